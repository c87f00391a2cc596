//! A consumer's process: started at its first connection, and again when it has ended.
//!
//! A process of its own, because memory, processors and descriptors are what the kernel shares among processes: one
//! consumer that asks for too much has its own process slowed down or ended, and no other's.

use std::collections::BTreeMap;
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
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};
use tokio::io::unix::AsyncFd;
use tokio::sync::oneshot;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::FOLLOW;
use crate::mcp::gate::Gate;
use crate::mcp::live::Live;
use crate::mcp::monitor::Local;
use crate::mcp::monitor::attend::attend;
use crate::mcp::recorder::Recorder;
use crate::mcp::server::Stop;
use crate::mcp::worker;
use crate::name::MachineName;
use crate::policy::Caller;

/// Pause after a process that ended by itself, or could not be started: a fault that comes back takes no more than this, and
/// lasts long enough to be told of.
const AGAIN: Duration = FOLLOW.saturating_mul(2);
/// How long a process that is told to end at once may take.
const LAST: Duration = Duration::from_secs(1);
/// The same for one that has let go of its server.
const LAST_MOMENT: Timespec = Timespec {
    tv_sec: 1,
    tv_nsec: 0,
};
/// Stack of the thread that answers a process, in bytes: it writes the log, and parses questions of bounded depth.
const STACK: usize = 256 * 1024;

/// What the server keeps for all its consumers, and their processes ask for.
#[derive(Clone)]
pub(crate) struct Desk {
    /// The services file.
    pub(crate) services: PathBuf,
    /// The policy in force.
    pub(crate) live: Arc<Live>,
    /// The log.
    pub(crate) recorder: Arc<Recorder>,
    /// How busy the server is.
    pub(crate) gate: Arc<Gate>,
    /// Whether the processes tell of each answer.
    pub(crate) verbose: bool,
}

/// What is wrong with the processes of consumers.
#[derive(Debug, Clone, Default)]
pub(super) struct Troubles(Arc<Mutex<Said>>);

#[derive(Debug, Default)]
struct Said {
    /// Those that cannot be started, until they can.
    lasting: BTreeMap<MachineName, String>,
    /// Those that died, until that is told.
    passed: Vec<String>,
}

impl Troubles {
    /// What cannot be done at present, each as a sentence.
    pub(super) fn lasting(&self) -> Vec<String> {
        self.lock().lasting.values().cloned().collect()
    }

    /// What went wrong since this was asked last. A process that dies is its consumer's own loss, and nothing is left to mend.
    pub(super) fn passed(&self) -> Vec<String> {
        std::mem::take(&mut self.lock().passed)
    }

    fn cannot_start(&self, caller: &MachineName, why: &io::Error) {
        let text = format!("the process that serves `{caller}` cannot be started: {why}");
        self.lock().lasting.insert(caller.clone(), text);
    }

    fn died(&self, caller: &MachineName, how: &str) {
        let text = format!("the process that serves `{caller}` {how}");
        self.lock().passed.push(text);
    }

    fn mended(&self, caller: &MachineName) {
        self.lock().lasting.remove(caller);
    }

    fn lock(&self) -> MutexGuard<'_, Said> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Desk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Desk").finish_non_exhaustive()
    }
}

/// One consumer's socket, and the process that serves it.
pub(super) struct Keeping {
    pub(super) caller: MachineName,
    pub(super) socket: AsyncFd<OwnedFd>,
    pub(super) desk: Desk,
    pub(super) troubles: Troubles,
    /// No new connections.
    pub(super) close: CancellationToken,
    pub(super) connections: Stop,
}

impl Keeping {
    /// Serves until it is closed, and its connections have ended.
    pub(super) async fn run(self) {
        loop {
            tokio::select! {
                () = self.closed() => return,
                asked = self.asked() => if asked.is_err() { return },
            }
            match self.start() {
                Ok(mut worker) => {
                    self.troubles.mended(&self.caller);
                    tokio::select! {
                        how = worker.ended() => match how {
                            // It was idle.
                            None => continue,
                            Some(how) => self.troubles.died(&self.caller, &how),
                        },
                        () = self.closed() => return self.end(worker).await,
                    }
                }
                Err(why) => self.troubles.cannot_start(&self.caller, &why),
            }
            tokio::select! {
                () = self.closed() => return,
                () = sleep(AGAIN) => {}
            }
        }
    }

    /// Waits until somebody connects.
    async fn asked(&self) -> io::Result<()> {
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
        let (ours, theirs) = UnixStream::pair()?;
        #[expect(
            clippy::disallowed_methods,
            reason = "a thread waits for it, not the runtime"
        )]
        let child = Command::new("/proc/self/exe")
            .arg0("anklume")
            .env(worker::ALLOCATOR.0, worker::ALLOCATOR.1)
            .args(worker::arguments(
                &self.caller,
                &self.desk.services,
                self.desk.verbose,
            ))
            .stdin(OwnedFd::from(theirs))
            .stdout(self.socket.get_ref().try_clone()?)
            .spawn()?;
        let process = Arc::new(Process::of(&child));
        let (ended, end) = oneshot::channel();
        let worker = Worker {
            process: Arc::clone(&process),
            end,
        };
        let (caller, desk) = (self.caller.clone(), self.desk.clone());
        let attending = move || {
            let source = Arc::clone(&desk.live);
            let local = Local::new(
                Caller::Consumer(caller.clone()),
                Box::new(move || source.current()),
                desk.recorder,
                desk.gate,
            );
            attend(&ours, &caller, &desk.live, &local);
            // Whoever waits for its end may have gone.
            let _ = ended.send(process.reap(child));
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
            troubles,
            caller,
            ..
        } = self;
        // Whoever connects from now on is refused.
        drop(socket);
        troubles.mended(&caller);
        let orders = [
            (close, worker::CLOSE),
            (connections.gently, worker::GENTLY),
            (connections.now, worker::NOW),
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

/// A process by its id, as long as the id is its own.
struct Process(Mutex<Option<Pid>>);

impl Process {
    fn of(child: &Child) -> Self {
        Self(Mutex::new(Some(Pid::from_child(child))))
    }

    fn signal(&self, signal: Signal) {
        let pid = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(pid) = *pid {
            // One that has ended just now needs no signal.
            let _ = kill_process(pid, signal);
        }
    }

    /// Ends a process that says nothing more, and tells how it ended, where it was not in order.
    fn reap(&self, mut child: Child) -> Option<String> {
        // One that ends by itself has let go of its server a moment before.
        let ends = pidfd_open(Pid::from_child(&child), PidfdFlags::empty()).and_then(|process| {
            let mut ended = [PollFd::new(&process, PollFlags::IN)];
            poll(&mut ended, Some(&LAST_MOMENT))
        });
        let mut pid = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if ends != Ok(1) {
            // One that has ended meanwhile keeps the status that it has.
            let _ = child.kill();
        }
        let status = child.wait();
        *pid = None;
        match status {
            Ok(status) if status.success() => None,
            Ok(status) => Some(format!("ended: {status}")),
            Err(why) => Some(format!("cannot be waited for: {why}")),
        }
    }
}
