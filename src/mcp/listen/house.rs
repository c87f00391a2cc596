//! What the server gives a consumer's process: helpers, of a resource of which the policy grants it a tool, one of each at a time;
//! and memory beyond what is reserved for each caller, as long as there is some.

use std::cell::Cell;
use std::collections::HashMap;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::process::Signal;

use super::owned::{Owned, ProcessHandle};
use super::state::{ServerState, WorkerFailures};
use crate::limits::MEMORY_RESERVED;
use crate::machine_state::AGENT_LAUNCHER;
use crate::mcp::helper;
use crate::mcp::monitor::{House, attend_helper};
use crate::name::MachineName;
use crate::tool::Resource;

/// Stack of the thread that answers a helper, in bytes: it hands out a policy.
const STACK: usize = 256 * 1024;

/// The resources of one worker; its loans end with this value.
pub(super) struct OneHouse {
    caller: MachineName,
    state: ServerState,
    failures: WorkerFailures,
    running: Arc<RunningHelpers>,
    borrowed: Cell<u64>,
}

impl Drop for OneHouse {
    fn drop(&mut self) {
        self.give_back();
        self.state.loans.lock().callers -= 1;
        // The process that they worked for is gone. What does not end by itself then is ended.
        if !self.running.wait(HashMap::is_empty) {
            let running = self.running.lock();
            running
                .values()
                .for_each(|process| process.signal(Signal::KILL));
        }
    }
}

/// The helpers of one process that have not ended.
#[derive(Default)]
struct RunningHelpers {
    running: Mutex<HashMap<Resource, Arc<ProcessHandle>>>,
    ended: Condvar,
}

/// Time that one gets to end.
const LAST: Duration = Duration::from_secs(2);

impl RunningHelpers {
    fn lock(&self) -> MutexGuard<'_, HashMap<Resource, Arc<ProcessHandle>>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits a while until this holds; whether it does.
    fn wait(&self, holds: impl Fn(&HashMap<Resource, Arc<ProcessHandle>>) -> bool) -> bool {
        let waited = self
            .ended
            .wait_timeout_while(self.lock(), LAST, |running| !holds(running));
        let (running, _) = waited.unwrap_or_else(PoisonError::into_inner);
        holds(&running)
    }
}

impl OneHouse {
    pub(super) fn new(caller: MachineName, state: ServerState, failures: WorkerFailures) -> Self {
        state.loans.lock().callers += 1;
        Self {
            caller,
            state,
            failures,
            running: Arc::default(),
            borrowed: Cell::default(),
        }
    }
}

impl House for OneHouse {
    fn borrow(&self) -> bool {
        if self.borrowed.get() > 0 {
            return true;
        }
        let services = &self.state.live.current().services;
        let more = services
            .memory_of(&self.caller)
            .saturating_sub(MEMORY_RESERVED);
        let mut lent = self.state.loans.lock();
        let reserved = lent.callers.saturating_mul(MEMORY_RESERVED);
        let all = reserved.saturating_add(lent.bytes).saturating_add(more);
        // One caller at a time gets it in any case: with many, what is reserved may be all that there is.
        if lent.bytes > 0 && all > services.memory_of_all() {
            return false;
        }
        lent.bytes += more;
        self.borrowed.set(more);
        true
    }

    fn give_back(&self) {
        self.state.loans.lock().bytes -= self.borrowed.take();
    }

    fn start(&self, resource: Resource) -> io::Result<OwnedFd> {
        let policy = self.state.live.current();
        let mut services = policy.services.services.iter();
        let is_granted =
            services.any(|one| one.serves(&self.caller) && Resource::of(one.tool) == resource);
        if !is_granted {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        // One that was idle may be about to end.
        if !self
            .running
            .wait(|running| !running.contains_key(&resource))
        {
            return Err(io::ErrorKind::ResourceBusy.into());
        }
        let (socket, at_helper) = UnixStream::pair()?;
        let arguments = helper::arguments(&self.caller, resource, &self.state.services);
        let launcher = self.state.launcher.as_deref();
        let launcher = launcher.map(|at| (AGENT_LAUNCHER, at));
        let (ours, child) = Owned::start(arguments, at_helper.into(), launcher)?;
        let process = Arc::new(ProcessHandle::of(&child)?);
        let place = HelperPlace::take(&self.running, resource, &process);
        let (caller, live) = (self.caller.clone(), Arc::clone(&self.state.live));
        let failures = self.failures.clone();
        let attending = move || {
            attend_helper(&ours, &caller, &live);
            if let Some(how) = process.reap(child) {
                failures.died(&caller, &how);
            }
            drop(place);
        };
        // Without the thread the process has nobody at the other end, and ends.
        std::thread::Builder::new()
            .name(format!("{}-{}", self.caller, resource.as_str()))
            .stack_size(STACK)
            .spawn(attending)?;
        Ok(socket.into())
    }
}

/// The place of one that runs.
struct HelperPlace {
    all: Arc<RunningHelpers>,
    resource: Resource,
}

impl HelperPlace {
    fn take(all: &Arc<RunningHelpers>, resource: Resource, process: &Arc<ProcessHandle>) -> Self {
        all.lock().insert(resource, Arc::clone(process));
        Self {
            all: Arc::clone(all),
            resource,
        }
    }
}

impl Drop for HelperPlace {
    fn drop(&mut self) {
        self.all.lock().remove(&self.resource);
        self.all.ended.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::MEMORY_ALL;
    use crate::mcp::concurrency::ConcurrencyLimiter;
    use crate::mcp::policy_watcher::PolicyWatcher;
    use crate::mcp::recorder::Recorder;
    use crate::services::Services;

    fn state(path: &std::path::Path) -> ServerState {
        let services = serde_json::json!({"machine": "vault", "services": [
            {"name": "a", "tool": "file_provide", "consumers": ["c1"]},
            {"name": "b", "tool": "file_provide", "consumers": ["c1", "c2"], "limits": {"memory": MEMORY_ALL}},
        ]});
        let services: Services = serde_json::from_value(services).unwrap();
        std::fs::write(path, services.to_file()).unwrap();
        let live = PolicyWatcher::new(path, services, Box::new(|_, _| {}));
        ServerState {
            services: path.to_owned(),
            live: Arc::new(live),
            recorder: Arc::new(Recorder::new(None, false, Box::new(|_| {}))),
            gate: Arc::new(ConcurrencyLimiter::default()),
            loans: Arc::default(),
            confinement: crate::confinement::InForce::default(),
            launcher: None,
            verbose: false,
        }
    }

    #[test]
    fn memory_is_lent_as_long_as_what_is_reserved_for_each_caller_is_left() {
        let folder = tempfile::tempdir().unwrap();
        let state = state(&folder.path().join("services.json"));
        let failures = WorkerFailures::default();
        let house =
            |name: &str| OneHouse::new(name.parse().unwrap(), state.clone(), failures.clone());
        let first = house("c1");
        // All that there is, but for what the first one has.
        assert!(first.borrow() && first.borrow());
        let second = house("c2");
        assert!(!second.borrow());
        first.give_back();
        assert!(second.borrow() && !first.borrow());
        drop(second);
        assert!(first.borrow());
        drop(first);
        let lent = state.loans.lock();
        assert_eq!((lent.callers, lent.bytes), (0, 0));
    }
}
