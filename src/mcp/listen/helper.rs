//! The helpers of a consumer's process: started when it asks for one, of a resource of which the policy grants it a tool.

use std::collections::HashSet;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::process::Command;
use std::sync::{Arc, Mutex, PoisonError};

use super::worker::{Owned, Process, ServerState, WorkerFailures};
use crate::inside::AGENT_LAUNCHER;
use crate::mcp::monitor::attend::attend_helper;
use crate::mcp::{helper, worker};
use crate::name::MachineName;
use crate::tool::Resource;

/// Stack of the thread that answers a helper, in bytes: it hands out a policy.
const STACK: usize = 256 * 1024;

/// Starts the helpers of one process; one of each resource at a time.
pub(super) struct Starter {
    pub(super) caller: MachineName,
    pub(super) state: ServerState,
    pub(super) failures: WorkerFailures,
    running: Arc<Mutex<HashSet<Resource>>>,
}

impl Starter {
    pub(super) fn new(caller: MachineName, state: ServerState, failures: WorkerFailures) -> Self {
        Self {
            caller,
            state,
            failures,
            running: Arc::default(),
        }
    }

    /// Starts one; the socket to it.
    ///
    /// # Errors
    ///
    /// The caller has no tool of that resource, one runs already, or the system refuses.
    pub(super) fn start(&self, resource: Resource) -> io::Result<OwnedFd> {
        let policy = self.state.live.current();
        let mut services = policy.services.services.iter();
        let is_granted =
            services.any(|one| one.serves(&self.caller) && Resource::of(one.tool) == resource);
        if !is_granted {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        let running = Running::begin(&self.running, resource)?;
        let (ours, theirs) = UnixStream::pair()?;
        let (socket, at_helper) = UnixStream::pair()?;
        #[expect(
            clippy::disallowed_methods,
            reason = "a thread waits for it, not the runtime"
        )]
        let child = Command::new("/proc/self/exe")
            .arg0("anklume")
            .envs(self.state.launcher.iter().map(|at| (AGENT_LAUNCHER, at)))
            .env(worker::ALLOCATOR.0, worker::ALLOCATOR.1)
            .args(helper::arguments(
                &self.caller,
                resource,
                &self.state.services,
            ))
            .process_group(0)
            .stdin(OwnedFd::from(theirs))
            .stdout(OwnedFd::from(at_helper))
            .spawn()?;
        let child = Owned(child);
        let process = Process::of(&child)?;
        let (caller, live) = (self.caller.clone(), Arc::clone(&self.state.live));
        let failures = self.failures.clone();
        let attending = move || {
            attend_helper(&ours, &caller, &live);
            if let Some(how) = process.reap(child) {
                failures.died(&caller, &how);
            }
            drop(running);
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
struct Running {
    all: Arc<Mutex<HashSet<Resource>>>,
    resource: Resource,
}

impl Running {
    fn begin(all: &Arc<Mutex<HashSet<Resource>>>, resource: Resource) -> io::Result<Self> {
        let mut running = all.lock().unwrap_or_else(PoisonError::into_inner);
        if !running.insert(resource) {
            return Err(io::ErrorKind::ResourceBusy.into());
        }
        Ok(Self {
            all: Arc::clone(all),
            resource,
        })
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let mut running = self.all.lock().unwrap_or_else(PoisonError::into_inner);
        running.remove(&self.resource);
    }
}
