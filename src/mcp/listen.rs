//! A socket for each consumer: the socket is the caller.
//!
//! Sockets follow the policy in force; a consumer that is gone loses its socket and its connections.

pub(crate) mod folder;
mod house;
mod owned;
mod state;
mod worker;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde::{Deserialize, Serialize};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, timeout};
use tokio_util::sync::CancellationToken;

use crate::confinement::InForce;
use crate::limits::STOP_TIME;
use crate::machine_state::STOP_SECONDS;
use crate::mcp::policy_watcher::Policy;
use crate::mcp::server::Shutdown;
use crate::name::MachineName;
use crate::services::Services;
use crate::text::Foreign;
use crate::tool::Surroundings;
use folder::{FolderError, SocketFolder};
pub(crate) use state::ServerState;
use state::WorkerFailures;
use worker::WorkerSupervisor;

/// Interval for comparing sockets with the policy; calls look at it themselves.
const FOLLOW: Duration = Duration::from_millis(250);
/// Time that connections get to end, including their running calls.
const END: Duration = STOP_TIME.saturating_add(Duration::from_secs(5));
/// Time that they get after they were told to end at once.
const LAST: Duration = Duration::from_secs(3);
// Before it is killed, with a second for what is left to do.
const _: () = assert!(END.as_secs() + LAST.as_secs() + 1 < STOP_SECONDS);

/// The status of a server, for `mcp status`.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct ServerStatus {
    /// Its process.
    pub(crate) pid: u32,
    /// Its version.
    pub(crate) version: Foreign,
    /// The policy in force.
    pub(crate) services: Services,
    /// Its digest.
    pub(crate) digest: Foreign,
    /// The reason why the newest services file was not taken.
    pub(crate) refused: Option<Foreign>,
    /// Parts of the policy in force that fail, such as a socket that cannot be created; they are retried.
    #[serde(default)]
    pub(crate) failed: Vec<Foreign>,
    /// The reason why the log cannot be written.
    #[serde(default)]
    pub(crate) unlogged: Option<Foreign>,
    /// Where it finds its user's portal, clipboard and keys.
    #[serde(default)]
    pub(crate) surroundings: Option<Surroundings>,
    /// Its confinement.
    #[serde(default)]
    pub(crate) confinement: Option<InForce>,
}

/// A server of many consumers.
#[derive(Debug)]
pub(crate) struct Listening {
    folder: Arc<SocketFolder>,
    state: ServerState,
    stop: Shutdown,
    doors: BTreeMap<MachineName, ConsumerSocket>,
    /// Consumers whose sockets are to go.
    gone: BTreeSet<MachineName>,
    said: Option<SaidStatus>,
    worker_failures: WorkerFailures,
}

/// The changing part of the status.
#[derive(Debug, PartialEq, Eq)]
struct SaidStatus {
    digest: String,
    refused: Option<String>,
    failed: Vec<String>,
    unlogged: Option<String>,
}

/// A consumer's socket, and what it takes to close it.
#[derive(Debug)]
struct ConsumerSocket {
    close: CancellationToken,
    connections: Shutdown,
}

impl Listening {
    /// A server that has no sockets yet.
    pub(crate) fn new(folder: SocketFolder, state: ServerState, stop: Shutdown) -> Self {
        Self {
            folder: Arc::new(folder),
            state,
            stop,
            doors: BTreeMap::new(),
            gone: BTreeSet::new(),
            said: None,
            worker_failures: WorkerFailures::default(),
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
        allow_many();
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
                () = self.stop.graceful.cancelled() => break,
                _ = ticks.tick() => {
                    self.state.recorder.count();
                    // What could be done is; the next tick tries the rest again.
                    let failed = self.follow(&mut tasks);
                    let failed = self.failures(&failed);
                    self.worker_failures.take_exits().iter().for_each(|text| complain(text));
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
        let policy = self.state.live.current();
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
            door.connections.graceful.cancel();
            door.connections.immediate.cancel();
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
    fn bind(
        &mut self,
        name: &MachineName,
        tasks: &mut JoinSet<()>,
    ) -> Result<ConsumerSocket, FolderError> {
        let listener = self.folder.bind(name)?;
        let old = self.doors.get(name);
        let connections = old.map_or_else(|| self.stop.child(), |door| door.connections.clone());
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

    /// Serves a consumer's socket by a process of its own.
    fn open(
        &self,
        name: &MachineName,
        listener: std::os::unix::net::UnixListener,
        connections: Shutdown,
        tasks: &mut JoinSet<()>,
    ) -> io::Result<ConsumerSocket> {
        let door = ConsumerSocket {
            close: CancellationToken::new(),
            connections,
        };
        #[expect(
            deprecated,
            reason = "it is for types that lie about their descriptor; this one owns its own"
        )]
        let socket = AsyncFd::with_interest(OwnedFd::from(listener), Interest::READABLE)?;
        let supervisor = WorkerSupervisor {
            caller: name.clone(),
            socket,
            state: self.state.clone(),
            failures: self.worker_failures.clone(),
            close: door.close.clone(),
            connections: door.connections.clone(),
        };
        tasks.spawn(supervisor.run());
        Ok(door)
    }

    /// Failures at present, in words.
    fn failures(&self, failed: &[FolderError]) -> Vec<String> {
        let mut failures = self.worker_failures.unstarted();
        failures.extend(failed.iter().map(ToString::to_string));
        failures
    }

    /// Writes the status anew when it is another.
    fn tell(&mut self, policy: &Policy, failed: &[FolderError]) -> Result<(), FolderError> {
        let now = SaidStatus {
            digest: policy.digest.clone(),
            refused: self.state.live.refused(),
            failed: self.failures(failed),
            unlogged: self.state.recorder.trouble(),
        };
        if self.said.as_ref() == Some(&now) {
            return Ok(());
        }
        let status = ServerStatus {
            pid: std::process::id(),
            version: env!("CARGO_PKG_VERSION").into(),
            services: policy.services.clone(),
            digest: now.digest.as_str().into(),
            refused: now.refused.clone().map(Foreign::from),
            failed: now.failed.iter().map(|why| why.as_str().into()).collect(),
            unlogged: now.unlogged.clone().map(Foreign::from),
            surroundings: Some(Surroundings::from_env()),
            confinement: Some(self.state.confinement.clone()),
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
            self.stop.immediate.cancel();
            let _ = timeout(LAST, ended(&mut tasks)).await;
        }
        self.folder.clear()
    }
}

/// Lets this process, and those that it starts, have as many files open as the system allows: each connection takes one, each
/// consumer a few, and what systemd starts has 1024.
fn allow_many() {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    let most = Rlimit {
        current: maximum,
        maximum,
    };
    // If that is forbidden, keep the current limit.
    let _ = setrlimit(Resource::Nofile, most);
}
