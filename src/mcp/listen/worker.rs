//! A consumer's process: started at its first connection, and again when it has ended.
//!
//! A process of its own, because memory, processors and descriptors are what the kernel shares among processes: one
//! consumer that asks for too much has its own process slowed down or ended, and no other's.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Child, Command};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use tokio::io::unix::AsyncFd;
use tokio::sync::oneshot;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::FOLLOW;
use super::house::Loans;
use super::house::OneHouse;
use crate::confinement::InForce;
use crate::mcp::gate::Gate;
use crate::mcp::live::Live;
use crate::mcp::monitor::Local;
use crate::mcp::monitor::attend::attend;
use crate::mcp::recorder::Recorder;
use crate::mcp::server::Stop;
use crate::mcp::worker;
use crate::name::MachineName;
use crate::policy::Caller;
use crate::tool::environment;

/// Pause after a process that ended by itself, or could not be started: a fault that comes back takes no more than this, and
/// lasts long enough to be told of.
const RESTART_DELAY: Duration = FOLLOW.saturating_mul(2);
/// How long a process that is told to end at once may take.
const LAST: Duration = Duration::from_secs(1);
/// How long a process that closed its socket to the server may take to exit.
const LAST_MOMENT: Timespec = Timespec {
    tv_sec: 1,
    tv_nsec: 0,
};
/// Stack of the thread that answers a process, in bytes: it writes the log, and parses questions of bounded depth.
const STACK: usize = 1024 * 1024;

/// What the server keeps for all its consumers, and their processes ask for.
#[derive(Clone)]
pub(crate) struct ServerState {
    /// The services file.
    pub(crate) services: PathBuf,
    /// The policy in force.
    pub(crate) live: Arc<Live>,
    /// The log.
    pub(crate) recorder: Arc<Recorder>,
    /// How busy the server is.
    pub(crate) gate: Arc<Gate>,
    /// What it has lent.
    pub(crate) loans: Arc<Loans>,
    /// What the kernel keeps this server from.
    pub(crate) confinement: InForce,
    /// Where the launcher of its gpg-agent listens, where it started one.
    pub(crate) launcher: Option<String>,
    /// Whether the processes tell of each answer.
    pub(crate) verbose: bool,
}

/// What went wrong with the processes of consumers.
#[derive(Debug, Clone, Default)]
pub(super) struct WorkerFailures(Arc<Mutex<Failures>>);

#[derive(Debug, Default)]
struct Failures {
    /// Those that cannot be started, until they can.
    unstarted: BTreeMap<MachineName, String>,
    /// Those that died, until that is told.
    exits: Vec<String>,
}

impl WorkerFailures {
    /// What cannot be done at present, each as a sentence.
    pub(super) fn unstarted(&self) -> Vec<String> {
        self.lock().unstarted.values().cloned().collect()
    }

    /// Those that exited abnormally since this was asked last. An exit concerns only its consumer, and there is nothing to retry.
    pub(super) fn take_exits(&self) -> Vec<String> {
        std::mem::take(&mut self.lock().exits)
    }

    fn cannot_start(&self, caller: &MachineName, why: &io::Error) {
        let text = format!("the process that serves `{caller}` cannot be started: {why}");
        self.lock().unstarted.insert(caller.clone(), text);
    }

    pub(super) fn died(&self, caller: &MachineName, how: &str) {
        let text = format!("the process that serves `{caller}` {how}");
        self.lock().exits.push(text);
    }

    fn clear(&self, caller: &MachineName) {
        self.lock().unstarted.remove(caller);
    }

    fn lock(&self) -> MutexGuard<'_, Failures> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for ServerState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServerState").finish_non_exhaustive()
    }
}

/// One consumer's socket, and the process that serves it.
pub(super) struct Supervisor {
    pub(super) caller: MachineName,
    pub(super) socket: AsyncFd<OwnedFd>,
    pub(super) state: ServerState,
    pub(super) failures: WorkerFailures,
    /// No new connections.
    pub(super) close: CancellationToken,
    pub(super) connections: Stop,
}

impl Supervisor {
    /// Serves until it is closed, and its connections have ended.
    pub(super) async fn run(self) {
        loop {
            tokio::select! {
                () = self.closed() => return,
                pending = self.connection_pending() => if pending.is_err() { return },
            }
            match self.start() {
                Ok(mut worker) => {
                    self.failures.clear(&self.caller);
                    tokio::select! {
                        how = worker.ended() => match how {
                            // It was idle.
                            None => continue,
                            Some(how) => self.failures.died(&self.caller, &how),
                        },
                        () = self.closed() => return self.end(worker).await,
                    }
                }
                Err(why) => self.failures.cannot_start(&self.caller, &why),
            }
            tokio::select! {
                () = self.closed() => return,
                () = sleep(RESTART_DELAY) => {}
            }
        }
    }

    /// Waits until somebody connects.
    async fn connection_pending(&self) -> io::Result<()> {
        loop {
            let mut ready = self.socket.readable().await?;
            let mut looked = [PollFd::new(self.socket.get_ref(), PollFlags::IN)];
            if poll(&mut looked, Some(&Timespec::default()))? > 0 {
                return Ok(());
            }
            // The process that has ended took those that were there.
            ready.clear_ready();
        }
    }

    /// Waits until there are to be no new connections.
    async fn closed(&self) {
        tokio::select! {
            () = self.close.cancelled() => {}
            () = self.connections.gently.cancelled() => {}
        }
    }

    /// Starts the process, and a thread that answers it.
    fn start(&self) -> io::Result<Worker> {
        let arguments = worker::arguments(&self.caller, &self.state.services, self.state.verbose);
        let listening = self.socket.get_ref().try_clone()?;
        let (ours, child) = Owned::start(arguments, listening, None)?;
        let process = Arc::new(Process::of(&child)?);
        let (ended, end) = oneshot::channel();
        let worker = Worker {
            process: Arc::clone(&process),
            end,
        };
        let (caller, state) = (self.caller.clone(), self.state.clone());
        let house = OneHouse::new(caller.clone(), state.clone(), self.failures.clone());
        let attending = move || {
            let source = Arc::clone(&state.live);
            let local = Local::new(
                Caller::Consumer(caller.clone()),
                Box::new(move || source.current()),
                state.recorder,
                state.gate,
            );
            attend(&ours, &caller, &state.live, &local, &house);
            // Whoever waits for its end may have gone.
            let how = process.reap(child);
            drop(house);
            let _ = ended.send(how);
        };
        // Without the thread the process has nobody at the other end, and ends.
        std::thread::Builder::new()
            .name(self.caller.to_string())
            .stack_size(STACK)
            .spawn(attending)?;
        Ok(worker)
    }

    /// Tells the process how to end, until it has.
    async fn end(self, mut worker: Worker) {
        let Self {
            socket,
            close,
            connections,
            failures,
            caller,
            ..
        } = self;
        // Whoever connects from now on is refused.
        drop(socket);
        failures.clear(&caller);
        let orders = [
            (close, worker::STOP_ACCEPTING),
            (connections.gently, worker::DRAIN),
            (connections.now, worker::ABORT),
        ];
        for (given, signal) in orders {
            tokio::select! {
                _ = worker.ended() => return,
                () = given.cancelled() => worker.process.signal(signal),
            }
        }
        if timeout(LAST, worker.ended()).await.is_err() {
            worker.process.signal(Signal::KILL);
            worker.ended().await;
        }
    }
}

/// A process that runs.
struct Worker {
    process: Arc<Process>,
    end: oneshot::Receiver<Option<String>>,
}

impl Worker {
    /// Waits until it has ended, and says how, where it was not in order.
    async fn ended(&mut self) -> Option<String> {
        (&mut self.end).await.unwrap_or_default()
    }
}

/// A process; a descriptor of it, so that no signal reaches another that got its id.
pub(super) struct Process(OwnedFd);

impl Process {
    pub(super) fn of(child: &Owned) -> io::Result<Self> {
        Ok(Self(pidfd_open(
            Pid::from_child(&child.0),
            PidfdFlags::empty(),
        )?))
    }

    pub(super) fn signal(&self, signal: Signal) {
        // One that has ended just now needs no signal.
        let _ = pidfd_send_signal(&self.0, signal);
    }

    /// Waits for a process that closed its socket, kills it where that takes too long, and gives an abnormal status in words.
    pub(super) fn reap(&self, mut child: Owned) -> Option<String> {
        // A process that exits by itself closes its socket a moment before.
        let mut ended = [PollFd::new(&self.0, PollFlags::IN)];
        if poll(&mut ended, Some(&LAST_MOMENT)) != Ok(1) {
            // One that has ended meanwhile keeps the status that it has.
            let _ = child.0.kill();
        }
        match child.0.wait() {
            Ok(status) if status.success() => None,
            Ok(status) => Some(format!("ended: {status}")),
            Err(why) => Some(format!("cannot be waited for: {why}")),
        }
    }
}

/// A process of ours, which does not outlive this value.
pub(super) struct Owned(Child);

impl Owned {
    /// Starts this program with these arguments, which speaks with the server over its stdin and with others over its stdout; the
    /// server's end, and the process.
    pub(super) fn start(
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
            // What a terminal sends to the server is the server's to pass on.
            .process_group(0)
            .stdin(OwnedFd::from(theirs))
            .stdout(stdout)
            .spawn()?;
        Ok((ours, Self(child)))
    }
}

impl Drop for Owned {
    fn drop(&mut self) {
        // Neither does anything to one that was waited for.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
