//! The connections of one consumer: accepted from its socket, as many as it may have.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use crate::limits::CONNECTIONS;
use crate::mcp::server::{Server, Shared, Shutdown};
use crate::mcp::throttle::ReadThrottle;
use crate::name::MachineName;

/// Pause after an accept that failed, such as for want of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// Time without a connection after which the server stops waiting for one.
const IDLE: Duration = Duration::from_secs(2);
/// Connections of one caller beyond its limit that are answered at once; those beyond wait to be accepted.
const TURNED_AWAY: usize = 32;
/// Time-out for the first request of such a connection.
const FIRST_REQUEST: Duration = Duration::from_secs(5);

/// The accepting end of one consumer's socket.
#[derive(Debug)]
pub(crate) struct Accepting {
    /// The consumer.
    pub(crate) caller: MachineName,
    /// Its socket.
    pub(crate) listener: UnixListener,
    /// State shared by its connections.
    pub(crate) shared: Arc<Shared>,
    /// Their throttle and their memory.
    pub(crate) pace: Arc<ReadThrottle>,
    /// Tells them to end.
    pub(crate) connections: Shutdown,
}

impl Accepting {
    /// Accepts until it is closed, or nobody has been connected for a while, then waits for its connections to end.
    pub(crate) async fn run(self, close: CancellationToken) {
        let pace = Arc::clone(&self.pace);
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
                () = self.connections.gently.cancelled() => break,
                Some(_) = served.join_next() => {}
                Some(_) = turned_away.join_next() => {}
                // Whoever comes next is served by a new process, without what this one has kept.
                () = sleep(IDLE), if served.is_empty() && turned_away.is_empty() => break,
                // Those beyond wait until one that is turned away has gone: each gets its answer.
                accepted = accept, if turned_away.len() < TURNED_AWAY || served.len() < self.most() => {
                    turn = pace.connection();
                    match accepted {
                        Ok((stream, _)) => match self.most() {
                            most if served.len() < most => {
                                served.spawn(serve(self.server(&pace), stream, self.stop()));
                            }
                            most => {
                                let beyond = self.server(&pace).beyond(most);
                                turned_away.spawn(turn_away(beyond, stream, self.stop()));
                            }
                        },
                        Err(_) => sleep(ACCEPT_PAUSE).await,
                    }
                }
            }
        }
        drop(self.listener);
        while served.join_next().await.is_some() {}
        while turned_away.join_next().await.is_some() {}
    }

    fn server(&self, pace: &Arc<ReadThrottle>) -> Server {
        let (shared, pace) = (Arc::clone(&self.shared), Arc::clone(pace));
        Server::of_consumer(self.caller.clone(), shared, pace)
    }

    /// Each connection ends by itself; the door ends all of them.
    fn stop(&self) -> Shutdown {
        Shutdown {
            gently: self.connections.gently.child_token(),
            now: self.connections.now.child_token(),
        }
    }

    /// Connections that the caller's services allow at once, by the policy of this moment.
    fn most(&self) -> usize {
        let policy = self.shared.monitor.policy();
        let services = policy.services.services.iter();
        let most = services
            .filter(|service| service.serves(&self.caller))
            .filter_map(|service| service.limits.connections)
            .max();
        usize::try_from(most.unwrap_or(CONNECTIONS)).unwrap_or(usize::MAX)
    }
}

async fn serve(server: Server, stream: UnixStream, stop: Shutdown) {
    let (reader, writer) = stream.into_split();
    server.serve(reader, writer, stop).await;
}

/// Serves a connection beyond its caller's limit; one that is slow to ask has no claim to an answer.
async fn turn_away(server: Server, stream: UnixStream, stop: Shutdown) {
    let mut serving = pin!(serve(server, stream, stop.clone()));
    if timeout(FIRST_REQUEST, &mut serving).await.is_err() {
        stop.now.cancel();
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
        // Line breaks of the page do not matter.
        let page = PAGE.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(page.contains(&said), "{said}");
    }
}
