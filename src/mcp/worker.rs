//! Defines the process that serves one consumer: its arguments, the signals that end it, and how it accepts as many
//! connections as the consumer may have.

use std::ffi::OsString;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::Signal;
use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use crate::mcp::server::{Server, Shared, Shutdown};
use crate::mcp::throttle::ReadThrottle;
use crate::name::MachineName;

/// The command of a worker; its stdin is the socket to its server, its stdout the socket that the consumer connects to.
pub(crate) const COMMAND: &str = "mcp-worker";
/// Stop accepting connections, and exit once the existing ones have ended.
pub(crate) const STOP_ACCEPTING: Signal = Signal::USR1;
/// Stop reading requests; running calls are still answered.
pub(crate) const DRAIN: Signal = Signal::TERM;
/// Abort the running calls as well.
pub(crate) const ABORT: Signal = Signal::INT;

/// The variable that makes the C library's allocator return most memory as soon as it is free, and keep none per thread
/// (`man mallopt`), so that memory used by a flood is not retained. It keeps 8 MiB, as much as the pieces of one transfer
/// need: touching new pages for each piece takes longer than processing it.
pub(crate) const ALLOCATOR: (&str, &str) = (
    "GLIBC_TUNABLES",
    "glibc.malloc.arena_max=1:glibc.malloc.mmap_threshold=4194304:glibc.malloc.trim_threshold=8388608",
);

/// Pause after a failed accept, caused for example by a lack of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// Time without a connection after which the process ends.
const IDLE: Duration = Duration::from_secs(2);
/// Interval for checking whether a peer has hung up.
const PEER_INTERVAL: Duration = Duration::from_secs(1);
/// Maximum number of connections beyond a caller's limit answered at the same time; others wait to be accepted.
const TURNED_AWAY: usize = 32;
/// Timeout for the first request on such a connection.
const FIRST_REQUEST: Duration = Duration::from_secs(5);

/// Returns the arguments of the process that serves `caller` according to the services file `services`.
pub(crate) fn arguments(caller: &MachineName, services: &Path, verbose: bool) -> Vec<OsString> {
    let mut arguments: Vec<OsString> =
        vec![COMMAND.into(), caller.as_str().into(), services.into()];
    if verbose {
        arguments.push("--verbose".into());
    }
    arguments
}

/// Accepts the connections of one consumer.
pub(crate) struct Acceptor {
    pub(crate) caller: MachineName,
    pub(crate) listener: UnixListener,
    /// State shared by its connections.
    pub(crate) shared: Arc<Shared>,
    /// The throttle and the memory that the connections share.
    pub(crate) throttle: Arc<ReadThrottle>,
    /// Tells the connections to end.
    pub(crate) connections: Shutdown,
}

impl Acceptor {
    /// Accepts connections until it is closed or has had none for a while, then waits for its connections to end.
    pub(crate) async fn run(self, close: CancellationToken) {
        let mut served = JoinSet::new();
        let mut turned_away = JoinSet::new();
        let mut turn = Instant::now();
        loop {
            let accept = async {
                sleep_until(turn).await;
                self.listener.accept().await
            };
            tokio::select! {
                () = close.cancelled() => break,
                () = self.connections.graceful.cancelled() => break,
                Some(_) = served.join_next() => {}
                Some(_) = turned_away.join_next() => {}
                // A new process, without the memory that this one has retained, serves the next connection.
                () = sleep(IDLE), if served.is_empty() && turned_away.is_empty() => break,
                // Further connections wait until a turned-away one has closed, so that each gets its answer.
                accepted = accept, if turned_away.len() < TURNED_AWAY || served.len() < self.max() => {
                    turn = self.throttle.connection();
                    let max = self.max();
                    match accepted {
                        Ok((stream, _)) if served.len() < max => {
                            served.spawn(serve(self.server(), stream, self.connections.child()));
                        }
                        Ok((stream, _)) => {
                            let beyond = self.server().over_limit(max);
                            turned_away.spawn(turn_away(beyond, stream, self.connections.child()));
                        }
                        Err(_) => sleep(ACCEPT_PAUSE).await,
                    }
                }
            }
        }
        drop(self.listener);
        while served.join_next().await.is_some() {}
        while turned_away.join_next().await.is_some() {}
    }

    fn server(&self) -> Server {
        let (shared, throttle) = (Arc::clone(&self.shared), Arc::clone(&self.throttle));
        Server::of_consumer(self.caller.clone(), shared, throttle)
    }

    /// Returns the maximum number of simultaneous connections: the largest current limit of the caller's services.
    fn max(&self) -> usize {
        let policy = self.shared.monitor.policy();
        let max = policy
            .services
            .connections_of(&self.caller, Timestamp::now());
        usize::try_from(max).unwrap_or(usize::MAX)
    }
}

async fn serve(server: Server, stream: UnixStream, stop: Shutdown) {
    let watched = stream.as_fd().try_clone_to_owned();
    let immediate = stop.immediate.clone();
    let (reader, writer) = stream.into_split();
    tokio::select! {
        () = server.serve(reader, writer, stop) => {}
        () = end_without_peer(watched.ok(), &immediate) => {}
    }
}

/// Ends a connection's calls once the peer has closed both directions, so that nobody can receive the answers. The end of what
/// is read does not say so: a peer may close only its own direction, and wait. Never returns.
async fn end_without_peer(stream: Option<OwnedFd>, immediate: &CancellationToken) {
    while let Some(stream) = &stream {
        sleep(PEER_INTERVAL).await;
        // A hangup is reported without being asked for (poll(2)).
        let mut watched = [PollFd::new(stream, PollFlags::empty())];
        let found = poll(&mut watched, Some(&Timespec::default()));
        let [watched] = watched;
        if found.is_ok() && watched.revents().contains(PollFlags::HUP) {
            immediate.cancel();
            break;
        }
    }
    std::future::pending::<()>().await;
}

/// Serves a connection beyond its caller's limit; one that sends no request in time gets no answer.
async fn turn_away(server: Server, stream: UnixStream, stop: Shutdown) {
    let mut serving = pin!(serve(server, stream, stop.clone()));
    if timeout(FIRST_REQUEST, &mut serving).await.is_err() {
        stop.immediate.cancel();
        serving.await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_says_the_same() {
        const PAGE: &str = include_str!("../../docs/channel.md");
        let seconds = FIRST_REQUEST.as_secs();
        let said = format!(
            "at most {TURNED_AWAY} such connections at once, each for at most {seconds} seconds"
        );
        // Line breaks in the page do not matter.
        let page = PAGE.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(page.contains(&said), "{said}");
    }
}
