//! Supervises a worker, and lends it the server's resources.
//!
//! A worker is started on the first connection, and again on the next one after it ends. The kernel divides memory,
//! processors and descriptors among processes, so an excessive consumer slows down or kills only its own process.
//! The server lends a worker one helper per resource of its granted tools, and free memory beyond its reserved share.

use std::cell::Cell;
use std::collections::HashMap;
use std::ffi::OsString;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use tokio::io::unix::AsyncFd;
use tokio::sync::oneshot;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::{FOLLOW, ServerState, WorkerFailures, lock};
use crate::limits::MEMORY_RESERVED;
use crate::machine_state::AGENT_LAUNCHER;
use crate::mcp::monitor::{House, Local, attend, attend_helper};
use crate::mcp::server::Shutdown;
use crate::mcp::{helper, launcher, worker};
use crate::name::MachineName;
use crate::policy::Caller;
use crate::tool::{Resource, environment};

/// Delay after a process failed or could not be started, to limit the cost of a recurring failure and to report it.
const RESTART_DELAY: Duration = FOLLOW.saturating_mul(2);
/// Time for a process to end after [`worker::ABORT`].
const ABORT_TIME: Duration = Duration::from_secs(1);
/// Stack size of the thread that answers a process, in bytes: it writes the log and parses requests of bounded depth.
const STACK: usize = 1024 * 1024;
/// Stack size of the thread that answers a helper, in bytes: it only sends the policy.
const HELPER_STACK: usize = 256 * 1024;
/// Time for a helper to end.
const HELPER_END: Duration = Duration::from_secs(2);
/// Time for a process to exit after closing its socket to the server.
const EXIT_TIME: Timespec = Timespec {
    tv_sec: 1,
    tv_nsec: 0,
};

/// One consumer's socket, and the process that serves it.
pub(super) struct WorkerSupervisor {
    pub(super) caller: MachineName,
    pub(super) socket: AsyncFd<OwnedFd>,
    pub(super) state: ServerState,
    pub(super) failures: Arc<Mutex<WorkerFailures>>,
    /// Cancelled to stop accepting new connections.
    pub(super) close: CancellationToken,
    pub(super) connections: Shutdown,
}

impl WorkerSupervisor {
    /// Serves until the socket is closed and its connections have ended.
    pub(super) async fn run(self) {
        loop {
            tokio::select! {
                () = self.closed() => return,
                pending = self.connection_pending() => if pending.is_err() { return },
            }
            match self.start() {
                Ok(mut worker) => {
                    lock(&self.failures).unstarted.remove(&self.caller);
                    tokio::select! {
                        how = worker.ended() => match how {
                            // An idle process has exited normally.
                            None => continue,
                            Some(how) => lock(&self.failures).died(&self.caller, &how),
                        },
                        () = self.closed() => return self.end(worker).await,
                    }
                }
                Err(why) => lock(&self.failures).cannot_start(&self.caller, &why),
            }
            tokio::select! {
                () = self.closed() => return,
                () = sleep(RESTART_DELAY) => {}
            }
        }
    }

    /// Waits for a connection.
    async fn connection_pending(&self) -> io::Result<()> {
        loop {
            let mut ready = self.socket.readable().await?;
            let mut polled = [PollFd::new(self.socket.get_ref(), PollFlags::IN)];
            if poll(&mut polled, Some(&Timespec::default()))? > 0 {
                return Ok(());
            }
            // The socket was ready because of connections that the ended process accepted.
            ready.clear_ready();
        }
    }

    /// Waits until new connections must no longer be accepted.
    async fn closed(&self) {
        tokio::select! {
            () = self.close.cancelled() => {}
            () = self.connections.graceful.cancelled() => {}
        }
    }

    /// Starts the process, and a thread that answers its requests.
    fn start(&self) -> io::Result<Worker> {
        let arguments = worker::arguments(&self.caller, &self.state.services, self.state.verbose);
        let listening = self.socket.get_ref().try_clone()?;
        let (ours, child) = OwnedChild::start(arguments, listening, None)?;
        let process = Arc::new(ProcessHandle::of(&child)?);
        let (ended, end) = oneshot::channel();
        let worker = Worker {
            process: Arc::clone(&process),
            end,
        };
        let (caller, state) = (self.caller.clone(), self.state.clone());
        let resources =
            WorkerResources::new(caller.clone(), state.clone(), Arc::clone(&self.failures));
        let attending = move || {
            let source = Arc::clone(&state.watcher);
            let local = Local {
                caller: Caller::Consumer(caller.clone()),
                policy: Box::new(move || source.current()),
                recorder: state.recorder,
                limiter: state.limiter,
            };
            attend(&ours, &caller, &state.watcher, &local, &resources);
            let how = process.reap(child);
            drop(resources);
            // The supervisor may be gone.
            let _ = ended.send(how);
        };
        // Without the thread, the process sees the end of its stdin and exits.
        std::thread::Builder::new()
            .name(self.caller.to_string())
            .stack_size(STACK)
            .spawn(attending)?;
        Ok(worker)
    }

    /// Tells the process to end, with increasing force, until it has ended.
    async fn end(self, mut worker: Worker) {
        // Refuses new connections.
        drop(self.socket);
        lock(&self.failures).unstarted.remove(&self.caller);
        let orders = [
            (self.close, worker::STOP_ACCEPTING),
            (self.connections.graceful, worker::DRAIN),
            (self.connections.immediate, worker::ABORT),
        ];
        for (order, signal) in orders {
            tokio::select! {
                _ = worker.ended() => return,
                () = order.cancelled() => worker.process.signal(signal),
            }
        }
        if timeout(ABORT_TIME, worker.ended()).await.is_err() {
            worker.process.signal(Signal::KILL);
            worker.ended().await;
        }
    }
}

/// A running worker process.
struct Worker {
    process: Arc<ProcessHandle>,
    end: oneshot::Receiver<Option<String>>,
}

impl Worker {
    /// Waits for the process to end; describes an abnormal end.
    async fn ended(&mut self) -> Option<String> {
        (&mut self.end).await.unwrap_or_default()
    }
}

/// A process descriptor, so that no signal reaches a later process with the same id.
struct ProcessHandle(OwnedFd);

impl ProcessHandle {
    fn of(child: &OwnedChild) -> io::Result<Self> {
        let pid = Pid::from_child(&child.0);
        Ok(Self(pidfd_open(pid, PidfdFlags::empty())?))
    }

    fn signal(&self, signal: Signal) {
        // A process that has just ended needs no signal.
        let _ = pidfd_send_signal(&self.0, signal);
    }

    /// Waits for a process that closed its socket, kills it after [`EXIT_TIME`], and describes an abnormal status.
    fn reap(&self, mut child: OwnedChild) -> Option<String> {
        // A process that exits on its own closes its socket just before it exits.
        let mut ended = [PollFd::new(&self.0, PollFlags::IN)];
        if poll(&mut ended, Some(&EXIT_TIME)) != Ok(1) {
            // A process that has ended in the meantime keeps its status.
            let _ = child.0.kill();
        }
        match child.0.wait() {
            Ok(status) if status.success() => None,
            Ok(status) => Some(format!("ended: {status}")),
            Err(why) => Some(format!("cannot be waited for: {why}")),
        }
    }
}

/// A child process of the server; it does not outlive this value.
struct OwnedChild(Child);

impl OwnedChild {
    /// Starts this program with a socket to the server as stdin; returns the server's end, and the process.
    fn start(
        arguments: Vec<OsString>,
        stdout: OwnedFd,
        variable: Option<(&str, &str)>,
    ) -> io::Result<(UnixStream, Self)> {
        let (ours, theirs) = UnixStream::pair()?;
        #[expect(
            clippy::disallowed_methods,
            reason = "a thread waits for it, not the runtime"
        )]
        let child = Command::new("/proc/self/exe")
            .arg0("anklume")
            .args(arguments)
            .env_clear()
            .envs(environment())
            .env(worker::ALLOCATOR.0, worker::ALLOCATOR.1)
            .envs(variable)
            // The server forwards the terminal's signals.
            .process_group(0)
            .stdin(OwnedFd::from(theirs))
            .stdout(stdout)
            .spawn()?;
        Ok((ours, Self(child)))
    }
}

impl Drop for OwnedChild {
    fn drop(&mut self) {
        // Neither affects a process that has already been waited for.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The resources lent to one worker; the loans end when this value is dropped.
struct WorkerResources {
    caller: MachineName,
    state: ServerState,
    failures: Arc<Mutex<WorkerFailures>>,
    helpers: Arc<RunningHelpers>,
    borrowed: Cell<u64>,
}

impl WorkerResources {
    fn new(caller: MachineName, state: ServerState, failures: Arc<Mutex<WorkerFailures>>) -> Self {
        lock(&state.loans).callers += 1;
        Self {
            caller,
            state,
            failures,
            helpers: Arc::default(),
            borrowed: Cell::default(),
        }
    }
}

impl Drop for WorkerResources {
    fn drop(&mut self) {
        self.give_back();
        lock(&self.state.loans).callers -= 1;
        // The worker is gone: kills the helpers that do not end on their own.
        if !self.helpers.wait(HashMap::is_empty) {
            let running = lock(&self.helpers.running);
            running
                .values()
                .for_each(|process| process.signal(Signal::KILL));
        }
    }
}

type HelperProcesses = HashMap<Resource, Arc<ProcessHandle>>;

/// The running helpers of one worker.
#[derive(Default)]
struct RunningHelpers {
    running: Mutex<HelperProcesses>,
    ended: Condvar,
}

impl RunningHelpers {
    /// Waits up to [`HELPER_END`] until a condition holds; returns whether it does.
    fn wait(&self, holds: impl Fn(&HelperProcesses) -> bool) -> bool {
        let waited = self
            .ended
            .wait_timeout_while(lock(&self.running), HELPER_END, |running| !holds(running));
        let (running, _) = waited.unwrap_or_else(PoisonError::into_inner);
        holds(&running)
    }
}

impl House for WorkerResources {
    fn borrow(&self) -> bool {
        if self.borrowed.get() > 0 {
            return true;
        }
        let services = &self.state.watcher.current().services;
        let more = services
            .memory_of(&self.caller)
            .saturating_sub(MEMORY_RESERVED);
        let mut lent = lock(&self.state.loans);
        let reserved = lent.callers.saturating_mul(MEMORY_RESERVED);
        let all = reserved.saturating_add(lent.bytes).saturating_add(more);
        // One caller at a time can always borrow: with many callers, the reserved shares may use up all the memory.
        if lent.bytes > 0 && all > services.memory_of_all() {
            return false;
        }
        lent.bytes += more;
        self.borrowed.set(more);
        true
    }

    fn give_back(&self) {
        lock(&self.state.loans).bytes -= self.borrowed.take();
    }

    fn start(&self, resource: Resource) -> io::Result<OwnedFd> {
        let policy = self.state.watcher.current();
        let mut services = policy.services.services.iter();
        let now = Timestamp::now();
        let is_granted = services
            .any(|one| one.serves_at(&self.caller, now) && Resource::of(&one.tool) == resource);
        if !is_granted {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        if resource == Resource::Programs {
            let caller = Caller::Consumer(self.caller.clone());
            let socket = launcher::connect(&self.state.program_launcher, &caller);
            return socket.map(OwnedFd::from);
        }
        // An idle helper may be about to end.
        if !self.helpers.wait(|all| !all.contains_key(&resource)) {
            return Err(io::ErrorKind::ResourceBusy.into());
        }
        let (socket, at_helper) = UnixStream::pair()?;
        let arguments = helper::arguments(&self.caller, resource, &self.state.services);
        let launcher = self.state.agent_launcher.as_deref();
        let launcher = launcher.map(|address| (AGENT_LAUNCHER, address));
        let (ours, child) = OwnedChild::start(arguments, at_helper.into(), launcher)?;
        let process = Arc::new(ProcessHandle::of(&child)?);
        lock(&self.helpers.running).insert(resource, Arc::clone(&process));
        let place = HelperPlace {
            helpers: Arc::clone(&self.helpers),
            resource,
        };
        let (caller, watcher) = (self.caller.clone(), Arc::clone(&self.state.watcher));
        let failures = Arc::clone(&self.failures);
        let attending = move || {
            attend_helper(&ours, &caller, &watcher);
            if let Some(how) = process.reap(child) {
                lock(&failures).died(&caller, &how);
            }
            drop(place);
        };
        // Without the thread, the process sees the end of its stdin and exits.
        std::thread::Builder::new()
            .name(format!("{}-{}", self.caller, resource.as_str()))
            .stack_size(HELPER_STACK)
            .spawn(attending)?;
        Ok(socket.into())
    }
}

/// A running helper's entry, removed when this value is dropped.
struct HelperPlace {
    helpers: Arc<RunningHelpers>,
    resource: Resource,
}

impl Drop for HelperPlace {
    fn drop(&mut self) {
        lock(&self.helpers.running).remove(&self.resource);
        self.helpers.ended.notify_all();
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
        let watcher = PolicyWatcher::new(path, services, Box::new(|_, _| {}));
        ServerState {
            services: path.to_owned(),
            watcher: Arc::new(watcher),
            recorder: Arc::new(Recorder::new(None, false, Box::new(|_| {}))),
            limiter: Arc::new(ConcurrencyLimiter::default()),
            loans: Arc::default(),
            confinement: crate::confinement::InForce::default(),
            agent_launcher: None,
            program_launcher: "/nowhere".into(),
            verbose: false,
        }
    }

    #[test]
    fn memory_is_lent_as_long_as_what_is_reserved_for_each_caller_is_left() {
        let folder = tempfile::tempdir().unwrap();
        let state = state(&folder.path().join("services.json"));
        let failures = Arc::default();
        let house = |name: &str| {
            WorkerResources::new(name.parse().unwrap(), state.clone(), Arc::clone(&failures))
        };
        let first = house("c1");
        // The first worker borrows all the memory beyond its own reserved share.
        assert!(first.borrow() && first.borrow());
        let second = house("c2");
        assert!(!second.borrow());
        first.give_back();
        assert!(second.borrow() && !first.borrow());
        drop(second);
        assert!(first.borrow());
        drop(first);
        let lent = lock(&state.loans);
        assert_eq!((lent.callers, lent.bytes), (0, 0));
    }
}
