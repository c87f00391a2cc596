//! Serves one socket per consumer: the socket identifies the caller.
//!
//! Sockets follow the policy in force: a removed consumer loses its socket and its connections.

pub(crate) mod folder;
mod worker;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::process::{Resource, getrlimit, setrlimit};
use serde::{Deserialize, Serialize};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, timeout};
use tokio_util::sync::CancellationToken;

use crate::confinement::InForce;
use crate::limits::STOP_TIME;
use crate::machine_state::STOP_SECONDS;
use crate::mcp::concurrency::ConcurrencyLimiter;
use crate::mcp::policy_watcher::{Policy, PolicyWatcher};
use crate::mcp::recorder::Recorder;
use crate::mcp::server::Shutdown;
use crate::name::MachineName;
use crate::services::Services;
use crate::text::Foreign;
use crate::tool::Surroundings;
use folder::{FolderError, SocketFolder};
use worker::WorkerSupervisor;

/// Interval at which the sockets are compared with the policy; each call reads the policy itself.
const FOLLOW: Duration = Duration::from_millis(250);
/// Time for connections, including their running calls, to end.
const END: Duration = STOP_TIME.saturating_add(Duration::from_secs(5));
/// Time for connections to end after an immediate shutdown.
const LAST: Duration = Duration::from_secs(3);
// Connections end before the server is killed, with a second to spare.
const _: () = assert!(END.as_secs() + LAST.as_secs() + 1 < STOP_SECONDS);

/// The status of a server, for `mcp status`.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct ServerStatus {
    pub(crate) pid: u32,
    pub(crate) version: Foreign,
    /// The policy in force.
    pub(crate) services: Services,
    /// The policy's digest.
    pub(crate) digest: Foreign,
    /// The reason why the newest services file was refused.
    pub(crate) refused: Option<Foreign>,
    /// Failures that are retried, such as a socket that cannot be created.
    #[serde(default)]
    pub(crate) failed: Vec<Foreign>,
    /// The reason why the log cannot be written.
    #[serde(default)]
    pub(crate) unlogged: Option<Foreign>,
    /// The environment of its tools: portal, clipboard and keys.
    #[serde(default)]
    pub(crate) surroundings: Option<Surroundings>,
    #[serde(default)]
    pub(crate) confinement: Option<InForce>,
    /// The address of the launcher of the machine's own programs.
    #[serde(default)]
    pub(crate) launcher: Option<PathBuf>,
}

/// The server state shared by all consumers.
#[derive(Clone)]
pub(crate) struct ServerState {
    /// The services file.
    pub(crate) services: PathBuf,
    /// The policy in force.
    pub(crate) watcher: Arc<PolicyWatcher>,
    pub(crate) recorder: Arc<Recorder>,
    /// The server's load.
    pub(crate) limiter: Arc<ConcurrencyLimiter>,
    pub(crate) loans: Arc<Mutex<Loans>>,
    pub(crate) confinement: InForce,
    /// The address of the server's gpg-agent launcher, if it started one.
    pub(crate) agent_launcher: Option<String>,
    /// The address of the launcher of the machine's own programs.
    pub(crate) program_launcher: PathBuf,
    /// True if the workers report each answer.
    pub(crate) verbose: bool,
}

/// Memory that a server has lent to its callers, and the number of callers.
#[derive(Debug, Default)]
pub(crate) struct Loans {
    callers: u64,
    bytes: u64,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Worker failures.
#[derive(Debug, Default)]
struct WorkerFailures {
    /// Failed starts, until one succeeds.
    unstarted: BTreeMap<MachineName, String>,
    /// Abnormal exits that have not been reported yet. Each affects only its consumer and needs no retry.
    exits: Vec<String>,
}

impl WorkerFailures {
    fn cannot_start(&mut self, caller: &MachineName, why: &io::Error) {
        let text = format!("the process that serves `{caller}` cannot be started: {why}");
        self.unstarted.insert(caller.clone(), text);
    }

    fn died(&mut self, caller: &MachineName, how: &str) {
        let text = format!("the process that serves `{caller}` {how}");
        self.exits.push(text);
    }
}

/// A server for many consumers.
pub(crate) struct Listening {
    folder: SocketFolder,
    state: ServerState,
    stop: Shutdown,
    sockets: BTreeMap<MachineName, ConsumerSocket>,
    /// Consumers whose sockets must be removed.
    removed: BTreeSet<MachineName>,
    last_status: Option<ChangingStatus>,
    worker_failures: Arc<Mutex<WorkerFailures>>,
}

/// The changing part of the status.
#[derive(PartialEq, Eq)]
struct ChangingStatus {
    digest: String,
    refused: Option<String>,
    failed: Vec<String>,
    unlogged: Option<String>,
}

/// A consumer's socket.
struct ConsumerSocket {
    /// Cancelled to stop accepting new connections.
    close: CancellationToken,
    connections: Shutdown,
}

impl Listening {
    pub(crate) fn new(folder: SocketFolder, state: ServerState, stop: Shutdown) -> Self {
        Self {
            folder,
            state,
            stop,
            sockets: BTreeMap::new(),
            removed: BTreeSet::new(),
            last_status: None,
            worker_failures: Arc::default(),
        }
    }

    /// Serves until stopped. Calls `ready` once every socket exists, and `complain` for each later failure.
    /// Fails if a socket of the initial policy cannot be created.
    pub(crate) async fn run(
        mut self,
        ready: impl FnOnce(),
        complain: impl Fn(&str),
    ) -> Result<(), FolderError> {
        raise_open_files_limit();
        let mut tasks = JoinSet::new();
        if let Some(failed) = self.follow(&mut tasks).into_iter().next() {
            // Removes the sockets already created.
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
                    // The next tick retries failed operations.
                    let failed = self.follow(&mut tasks);
                    let failed = self.failures(&failed);
                    let exits = std::mem::take(&mut lock(&self.worker_failures).exits);
                    for text in &exits {
                        complain(text);
                    }
                    for text in failed.iter().filter(|text| !known.contains(*text)) {
                        complain(text);
                    }
                    known = failed;
                }
                Some(_) = tasks.join_next() => {}
            }
        }
        self.end(tasks).await
    }

    /// Creates and removes sockets to match the policy in force; returns the failures.
    fn follow(&mut self, tasks: &mut JoinSet<()>) -> Vec<FolderError> {
        let policy = self.state.watcher.current();
        let wanted = policy.services.consumers();
        let mut failed = self.close(&wanted);
        for name in wanted {
            if self.sockets.contains_key(name) && self.folder.has(name) {
                continue;
            }
            match self.bind(name, tasks) {
                Ok(socket) => {
                    self.removed.remove(name);
                    self.sockets.insert(name.clone(), socket);
                }
                Err(error) => failed.push(error),
            }
        }
        failed.extend(self.write_status(&policy, &failed).err());
        failed
    }

    /// Closes and removes the sockets of consumers that are not `wanted`.
    fn close(&mut self, wanted: &BTreeSet<&MachineName>) -> Vec<FolderError> {
        self.sockets.retain(|name, socket| {
            let is_wanted = wanted.contains(name);
            if !is_wanted {
                socket.close.cancel();
                socket.connections.graceful.cancel();
                socket.connections.immediate.cancel();
                self.removed.insert(name.clone());
            }
            is_wanted
        });
        let mut failed = Vec::new();
        self.removed.retain(|name| {
            let error = self.folder.remove(name).err();
            let has_failed = error.is_some();
            failed.extend(error);
            has_failed
        });
        failed
    }

    /// Creates and serves a consumer's socket, even to replace a deleted one.
    fn bind(
        &mut self,
        name: &MachineName,
        tasks: &mut JoinSet<()>,
    ) -> Result<ConsumerSocket, FolderError> {
        let listener = self.folder.bind(name)?;
        let old = self.sockets.get(name);
        let connections = old.map_or_else(|| self.stop.child(), |old| old.connections.clone());
        #[expect(
            deprecated,
            reason = "it is for types that lie about their descriptor; this one owns its own"
        )]
        let socket = AsyncFd::with_interest(OwnedFd::from(listener), Interest::READABLE);
        let socket = socket.map_err(|source| {
            // No process would accept its connections.
            self.removed.insert(name.clone());
            let _ = self.folder.remove(name);
            self.folder.not_served(name, source)
        })?;
        let close = CancellationToken::new();
        let supervisor = WorkerSupervisor {
            caller: name.clone(),
            socket,
            state: self.state.clone(),
            failures: Arc::clone(&self.worker_failures),
            close: close.clone(),
            connections: connections.clone(),
        };
        tasks.spawn(supervisor.run());
        if let Some(old) = old {
            // The old socket's connections continue, and end with those of the new socket.
            old.close.cancel();
        }
        Ok(ConsumerSocket { close, connections })
    }

    /// Returns the current failures as messages.
    fn failures(&self, failed: &[FolderError]) -> Vec<String> {
        let workers = lock(&self.worker_failures);
        let unstarted = workers.unstarted.values().cloned();
        unstarted
            .chain(failed.iter().map(ToString::to_string))
            .collect()
    }

    /// Writes the status if it has changed.
    fn write_status(&mut self, policy: &Policy, failed: &[FolderError]) -> Result<(), FolderError> {
        let now = ChangingStatus {
            digest: policy.digest.clone(),
            refused: self.state.watcher.refused(),
            failed: self.failures(failed),
            unlogged: self.state.recorder.trouble(),
        };
        if self.last_status.as_ref() == Some(&now) {
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
            launcher: Some(self.state.program_launcher.clone()),
        };
        // Serialization of these types cannot fail.
        let text = serde_json::to_vec(&status).unwrap_or_default();
        self.folder.write_status(&text)?;
        self.last_status = Some(now);
        Ok(())
    }

    /// Stops accepting connections, lets running calls finish, and removes the sockets.
    async fn end(self, mut tasks: JoinSet<()>) -> Result<(), FolderError> {
        for socket in self.sockets.values() {
            socket.close.cancel();
        }
        let ended = async |tasks: &mut JoinSet<()>| while tasks.join_next().await.is_some() {};
        if timeout(END, ended(&mut tasks)).await.is_err() {
            self.stop.immediate.cancel();
            let _ = timeout(LAST, ended(&mut tasks)).await;
        }
        self.folder.clear()
    }
}

/// Raises the limit on open files to the maximum, also for child processes: each connection takes one file, each
/// consumer a few, and systemd's default limit is 1024.
fn raise_open_files_limit() {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    // If that is forbidden, the current limit remains in force.
    let _ = setrlimit(Resource::Nofile, limit);
}
