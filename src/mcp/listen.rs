//! A socket for each consumer: the socket is the caller.
//!
//! Sockets follow the policy in force; a consumer that is gone loses its socket and its connections.

pub(crate) mod folder;
mod lane;
mod turned_away;

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use crate::limits::CONNECTIONS;
use crate::mcp::live::{Live, Policy};
use crate::mcp::pace::Pace;
use crate::mcp::server::{Server, Shared, Stop};
use crate::name::MachineName;
use crate::policy::Caller;
use crate::services::Services;
use folder::{Folder, FolderError};

/// How often sockets are compared with the policy; calls look at it themselves.
const FOLLOW: Duration = Duration::from_millis(250);
/// Pause after an accept that failed, such as for want of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// How long connections may take to end, beyond what each takes for its running calls.
const END: Duration = Duration::from_secs(25);
/// How long they may take then, told to end at once.
const LAST: Duration = Duration::from_secs(1);

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
}

/// A server of many consumers.
#[derive(Debug)]
pub(crate) struct Listening {
    folder: Arc<Folder>,
    live: Arc<Live>,
    shared: Arc<Shared>,
    stop: Stop,
    doors: BTreeMap<MachineName, Door>,
    said: Option<(String, Option<String>)>,
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
            said: None,
        }
    }

    /// Serves until it is stopped; `ready` is called once, when every socket is there.
    ///
    /// # Errors
    ///
    /// A socket of the policy at the start cannot be made.
    pub(crate) async fn run(mut self, ready: impl FnOnce()) -> Result<(), FolderError> {
        lane::allow_many();
        let mut tasks = JoinSet::new();
        self.follow(&mut tasks)?;
        ready();
        let mut ticks = interval(FOLLOW);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = self.stop.gently.cancelled() => break,
                _ = ticks.tick() => {
                    self.shared.recorder.count(false);
                    // The last good state stays; the next tick tries again, `mcp status` tells.
                    let _ = self.follow(&mut tasks);
                }
                Some(_) = tasks.join_next() => {}
            }
        }
        self.end(tasks).await
    }

    /// Makes and removes sockets so that they are those of the policy in force.
    fn follow(&mut self, tasks: &mut JoinSet<()>) -> Result<(), FolderError> {
        let policy = self.live.current();
        let wanted = policy.services.consumers();
        let gone: Vec<MachineName> = self
            .doors
            .keys()
            .filter(|name| !wanted.contains(name))
            .cloned()
            .collect();
        for name in gone {
            if let Some(door) = self.doors.remove(&name) {
                door.close.cancel();
                door.connections.gently.cancel();
                door.connections.now.cancel();
            }
            self.folder.remove(&name)?;
        }
        for name in wanted {
            if !self.doors.contains_key(name) {
                let listener = self.folder.bind(name)?;
                let door = match self.open(name, listener, tasks) {
                    Ok(door) => door,
                    Err(source) => {
                        self.folder.remove(name)?;
                        return Err(self.folder.not_served(name, source));
                    }
                };
                self.doors.insert(name.clone(), door);
            }
        }
        self.tell(&policy)
    }

    /// Serves a consumer's socket in a lane of its own.
    fn open(
        &self,
        name: &MachineName,
        listener: std::os::unix::net::UnixListener,
        tasks: &mut JoinSet<()>,
    ) -> io::Result<Door> {
        let door = Door {
            close: CancellationToken::new(),
            connections: Stop {
                gently: self.stop.gently.child_token(),
                now: self.stop.now.child_token(),
            },
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
    fn tell(&mut self, policy: &Policy) -> Result<(), FolderError> {
        let refused = self.live.refused();
        let now = (policy.digest.clone(), refused.clone());
        if self.said.as_ref() == Some(&now) {
            return Ok(());
        }
        let status = Status {
            pid: std::process::id(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            services: policy.services.clone(),
            digest: policy.digest.clone(),
            refused,
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
                accepted = accept => {
                    turn = self.pace.connection();
                    match accepted {
                        Ok((stream, _)) if served.len() < self.most() => {
                            served.spawn(self.serve(stream));
                        }
                        Ok((stream, _)) if turned_away.len() < turned_away::AT_ONCE => {
                            turned_away.spawn(turned_away::answer(stream));
                        }
                        Ok(_) => {}
                        Err(_) => sleep(ACCEPT_PAUSE).await,
                    }
                }
            }
        }
        drop(self.listener);
        while served.join_next().await.is_some() {}
    }

    fn serve(&self, stream: UnixStream) -> impl Future<Output = ()> + Send + 'static {
        let server = Server::new(
            Caller::Consumer(self.caller.clone()),
            Arc::clone(&self.shared),
        )
        .paced(Arc::clone(&self.pace));
        // Each connection ends by itself; the door ends all of them.
        let stop = Stop {
            gently: self.connections.gently.child_token(),
            now: self.connections.now.child_token(),
        };
        async move {
            let (reader, writer) = stream.into_split();
            server.serve(reader, writer, stop).await;
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
