//! Holds the server's state for all consumers, and the failures of their workers.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::confinement::InForce;
use crate::mcp::concurrency::ConcurrencyLimiter;
use crate::mcp::policy_watcher::PolicyWatcher;
use crate::mcp::recorder::Recorder;
use crate::name::MachineName;

impl fmt::Debug for ServerState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServerState").finish_non_exhaustive()
    }
}

/// The server's state for all consumers, for which their workers ask.
#[derive(Clone)]
pub(crate) struct ServerState {
    /// The services file.
    pub(crate) services: PathBuf,
    /// The policy in force.
    pub(crate) live: Arc<PolicyWatcher>,
    /// The log.
    pub(crate) recorder: Arc<Recorder>,
    /// Load of the server.
    pub(crate) gate: Arc<ConcurrencyLimiter>,
    /// Memory it has lent.
    pub(crate) loans: Arc<Loans>,
    /// The confinement of this server.
    pub(crate) confinement: InForce,
    /// Where the launcher of its gpg-agent listens, where it started one.
    pub(crate) launcher: Option<String>,
    /// True if the processes tell of each answer.
    pub(crate) verbose: bool,
}

#[derive(Debug, Default)]
struct Failures {
    /// Those that cannot be started, until they can.
    unstarted: BTreeMap<MachineName, String>,
    /// Those that died, until that is told.
    exits: Vec<String>,
}

impl WorkerFailures {
    /// Returns what cannot be done at present, each as a sentence.
    pub(super) fn unstarted(&self) -> Vec<String> {
        self.lock().unstarted.values().cloned().collect()
    }

    /// Those that exited abnormally since this was asked last. An exit concerns only its consumer, and there is nothing to retry.
    pub(super) fn take_exits(&self) -> Vec<String> {
        std::mem::take(&mut self.lock().exits)
    }

    pub(super) fn cannot_start(&self, caller: &MachineName, why: &io::Error) {
        let text = format!("the process that serves `{caller}` cannot be started: {why}");
        self.lock().unstarted.insert(caller.clone(), text);
    }

    pub(super) fn died(&self, caller: &MachineName, how: &str) {
        let text = format!("the process that serves `{caller}` {how}");
        self.lock().exits.push(text);
    }

    pub(super) fn clear(&self, caller: &MachineName) {
        self.lock().unstarted.remove(caller);
    }

    fn lock(&self) -> MutexGuard<'_, Failures> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The failures of workers.
#[derive(Debug, Clone, Default)]
pub(super) struct WorkerFailures(Arc<Mutex<Failures>>);

/// Memory that a server has lent to its callers, and how many there are.
#[derive(Debug, Default)]
pub(crate) struct Loans(Mutex<Lent>);

#[derive(Debug, Default)]
pub(super) struct Lent {
    pub(super) callers: u64,
    pub(super) bytes: u64,
}

impl Loans {
    pub(super) fn lock(&self) -> MutexGuard<'_, Lent> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
