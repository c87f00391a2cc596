//! A socket for each consumer: the socket is the caller.
//!
//! Sockets follow the policy in force; a consumer that is gone loses its socket and its connections.

pub(crate) mod folder;
mod lane;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use crate::inside::STOP_SECONDS;
use crate::limits::{CONNECTIONS, STOP_TIME};
use crate::mcp::live::{Live, Policy};
use crate::mcp::pace::Pace;
use crate::mcp::server::{Server, Shared, Stop};
use crate::name::MachineName;
use crate::services::Services;
use crate::tool::Surroundings;
use folder::{Folder, FolderError};

/// How often sockets are compared with the policy; calls look at it themselves.
const FOLLOW: Duration = Duration::from_millis(250);
/// Pause after an accept that failed, such as for want of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// How long connections may take to end, with what each takes for its running calls.
const END: Duration = STOP_TIME.saturating_add(Duration::from_secs(5));
/// How long they may take then, told to end at once.
const LAST: Duration = Duration::from_secs(1);
// Before it is killed, with a second for what is left to do.
const _: () = assert!(END.as_secs() + LAST.as_secs() + 1 < STOP_SECONDS);

/// Connections of one caller beyond its limit that are answered at once; those beyond wait to be accepted.
const TURNED_AWAY: usize = 32;
/// How long the first request of such a connection may take.
const FIRST_REQUEST: Duration = Duration::from_secs(5);

/// What a server says of itself, for `mcp status`.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Status {
    /// Its process.
    pub(crate) pid: u32,
    /// Its version.
    pub(crate) version: String,
    /// The policy in force.
    pub(crate) services: Services,
    /// Its digest.
    pub(crate) digest: String,
    /// Why the newest services file was not taken.
    pub(crate) refused: Option<String>,
    /// What of the policy in force cannot be done, such as a socket that cannot be made; it is tried again and again.
    #[serde(default)]
    pub(crate) failed: Vec<String>,
    /// Why the log cannot be written.
    #[serde(default)]
    pub(crate) unlogged: Option<String>,
    /// Where it finds its user's portal, clipboard and keys.
    #[serde(default)]
    pub(crate) surroundings: Option<Surroundings>,
}

/// A server of many consumers.
#[derive(Debug)]
pub(crate) struct Listening {
    folder: Arc<Folder>,
    live: Arc<Live>,
    shared: Arc<Shared>,
    stop: Stop,
    doors: BTreeMap<MachineName, Door>,
    /// Consumers whose sockets are to go.
    gone: BTreeSet<MachineName>,
    said: Option<Said>,
}

/// What the status says that may change.
#[derive(Debug, PartialEq, Eq)]
struct Said {
    digest: String,
    refused: Option<String>,
    failed: Vec<String>,
    unlogged: Option<String>,
}

/// A consumer's socket, and what it takes to close it.
#[derive(Debug)]
struct Door {
    close: CancellationToken,
    connections: Stop,
}

impl Listening {
    /// A server that has no sockets yet.
    pub(crate) fn new(folder: Folder, live: Arc<Live>, shared: Arc<Shared>, stop: Stop) -> Self {
        Self {
            folder: Arc::new(folder),
            live,
            shared,
            stop,
            doors: BTreeMap::new(),
            gone: BTreeSet::new(),
            said: None,
        }
    }

    /// Serves until it is stopped; `ready` is called once, when every socket is there, and `complain` for each thing
    /// that cannot be done from then on.
    ///
    /// # Errors
    ///
    /// A socket of the policy at the start cannot be made.
    pub(crate) async fn run(
        mut self,
        ready: impl FnOnce(),
        complain: impl Fn(&str),
    ) -> Result<(), FolderError> {
        lane::allow_many();
        let mut tasks = JoinSet::new();
        if let Some(failed) = self.follow(&mut tasks).into_iter().next() {
            // The sockets that were made go again.
            let _ = self.end(tasks).await;
            return Err(failed);
        }
        ready();
        let mut ticks = interval(FOLLOW);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut known = Vec::new();
        loop {
            tokio::select! {
                () = self.stop.gently.cancelled() => break,
                _ = ticks.tick() => {
                    self.shared.recorder.count();
                    // What could be done is; the next tick tries the rest again.
                    let failed = self.follow(&mut tasks);
                    let failed: Vec<String> = failed.iter().map(ToString::to_string).collect();
                    failed.iter().filter(|text| !known.contains(*text)).for_each(|text| complain(text));
                    known = failed;
                }
                Some(_) = tasks.join_next() => {}
            }
        }
        self.end(tasks).await
    }

    /// Makes and removes sockets so that they are those of the policy in force, and gives what could not be done.
    fn follow(&mut self, tasks: &mut JoinSet<()>) -> Vec<FolderError> {
        let policy = self.live.current();
        let wanted = policy.services.consumers();
        let mut failed = self.close(|name| wanted.contains(&name));
        for name in wanted {
            if self.doors.contains_key(name) && self.folder.has(name) {
                continue;
            }
            match self.bind(name, tasks) {
                Ok(door) => {
                    self.gone.remove(name);
                    self.doors.insert(name.clone(), door);
                }
                Err(error) => failed.push(error),
            }
        }
        if let Err(error) = self.tell(&policy, &failed) {
            failed.push(error);
        }
        failed
    }

    /// Closes the doors of those that are not wanted any more, and takes their sockets away.
    fn close(&mut self, wanted: impl Fn(&MachineName) -> bool) -> Vec<FolderError> {
        let gone = &mut self.gone;
        self.doors.retain(|name, door| {
            if wanted(name) {
                return true;
            }
            door.close.cancel();
            door.connections.gently.cancel();
            door.connections.now.cancel();
            gone.insert(name.clone());
            false
        });
        let mut failed = Vec::new();
        self.gone.retain(|name| match self.folder.remove(name) {
            Ok(()) => false,
            Err(error) => {
                failed.push(error);
                true
            }
        });
        failed
    }

    /// Makes the socket of a consumer, also of one whose socket was taken away, and serves it.
    fn bind(&mut self, name: &MachineName, tasks: &mut JoinSet<()>) -> Result<Door, FolderError> {
        let listener = self.folder.bind(name)?;
        let old = self.doors.get(name);
        let connections = old.map_or_else(
            || Stop {
                gently: self.stop.gently.child_token(),
                now: self.stop.now.child_token(),
            },
            |door| door.connections.clone(),
        );
        let opened = self.open(name, listener, connections, tasks);
        match opened {
            Ok(door) => {
                if let Some(old) = old {
                    // Its connections live on, and end with those of the new one.
                    old.close.cancel();
                }
                Ok(door)
            }
            Err(source) => {
                // Nobody would answer there.
                self.gone.insert(name.clone());
                let _ = self.folder.remove(name);
                Err(self.folder.not_served(name, source))
            }
        }
    }

    /// Serves a consumer's socket in a lane of its own.
    fn open(
        &self,
        name: &MachineName,
        listener: std::os::unix::net::UnixListener,
        connections: Stop,
        tasks: &mut JoinSet<()>,
    ) -> io::Result<Door> {
        let door = Door {
            close: CancellationToken::new(),
            connections,
        };
        let serving = lane::start(name.as_str(), || {
            let accepting = Accepting {
                caller: name.clone(),
                listener: UnixListener::from_std(listener)?,
                live: Arc::clone(&self.live),
                shared: Arc::clone(&self.shared),
                pace: Arc::default(),
                connections: door.connections.clone(),
            };
            Ok(accepting.run(door.close.clone()))
        })?;
        tasks.spawn(serving);
        Ok(door)
    }

    /// Writes the status anew when it is another.
    fn tell(&mut self, policy: &Policy, failed: &[FolderError]) -> Result<(), FolderError> {
        let now = Said {
            digest: policy.digest.clone(),
            refused: self.live.refused(),
            failed: failed.iter().map(ToString::to_string).collect(),
            unlogged: self.shared.recorder.trouble(),
        };
        if self.said.as_ref() == Some(&now) {
            return Ok(());
        }
        let status = Status {
            pid: std::process::id(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            services: policy.services.clone(),
            digest: now.digest.clone(),
            refused: now.refused.clone(),
            failed: now.failed.clone(),
            unlogged: now.unlogged.clone(),
            surroundings: Some(Surroundings::from_env()),
        };
        // These types hold nothing that JSON cannot.
        let text = serde_json::to_vec(&status).unwrap_or_default();
        self.folder.write_status(&text)?;
        self.said = Some(now);
        Ok(())
    }

    /// No new connections; the running calls end; the sockets go.
    async fn end(self, mut tasks: JoinSet<()>) -> Result<(), FolderError> {
        for door in self.doors.values() {
            door.close.cancel();
        }
        let ended = async |tasks: &mut JoinSet<()>| while tasks.join_next().await.is_some() {};
        if timeout(END, ended(&mut tasks)).await.is_err() {
            self.stop.now.cancel();
            let _ = timeout(LAST, ended(&mut tasks)).await;
        }
        self.folder.clear()
    }
}

/// The accepting end of one consumer's socket.
struct Accepting {
    caller: MachineName,
    listener: UnixListener,
    live: Arc<Live>,
    shared: Arc<Shared>,
    pace: Arc<Pace>,
    connections: Stop,
}

impl Accepting {
    /// Accepts until it is closed, then waits for its connections to end.
    async fn run(self, close: CancellationToken) {
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
                // Those beyond wait until one that is turned away has gone: each gets its answer.
                accepted = accept, if turned_away.len() < TURNED_AWAY || served.len() < self.most() => {
                    turn = self.pace.connection();
                    match accepted {
                        Ok((stream, _)) => match self.most() {
                            most if served.len() < most => {
                                served.spawn(serve(self.server(), stream, self.stop()));
                            }
                            most => {
                                let beyond = self.server().beyond(most);
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

    fn server(&self) -> Server {
        let (shared, pace) = (Arc::clone(&self.shared), Arc::clone(&self.pace));
        Server::of_consumer(self.caller.clone(), shared, pace)
    }

    /// Each connection ends by itself; the door ends all of them.
    fn stop(&self) -> Stop {
        Stop {
            gently: self.connections.gently.child_token(),
            now: self.connections.now.child_token(),
        }
    }

    /// Connections that the caller's services allow at once, by the policy of this moment.
    fn most(&self) -> usize {
        let policy = self.live.current();
        let most = policy
            .services
            .services
            .iter()
            .filter(|service| service.consumers.contains(&self.caller))
            .filter_map(|service| service.limits.connections)
            .max();
        usize::try_from(most.unwrap_or(CONNECTIONS)).unwrap_or(usize::MAX)
    }
}

async fn serve(server: Server, stream: UnixStream, stop: Stop) {
    let (reader, writer) = stream.into_split();
    server.serve(reader, writer, stop).await;
}

/// Serves a connection beyond its caller's limit; one that is slow to ask has no claim to an answer.
async fn turn_away(server: Server, stream: UnixStream, stop: Stop) {
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
            "Of such connections {TURNED_AWAY} are looked at at once, for {seconds} seconds at most"
        );
        assert!(PAGE.contains(&said), "{said}");
    }
}
