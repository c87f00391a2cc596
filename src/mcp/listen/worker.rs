//! Supervises a consumer's process: started at its first connection, and again after its end.
//!
//! The kernel shares memory, processors and descriptors among processes, so a consumer that asks for too much has its own
//! process slowed down or killed, and no other's.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::Signal;
use tokio::io::unix::AsyncFd;
use tokio::sync::oneshot;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::resources::{OwnedChild, ProcessHandle, WorkerResources};
use super::{FOLLOW, ServerState, WorkerFailures, lock};
use crate::mcp::monitor::{Local, attend};
use crate::mcp::server::Shutdown;
use crate::mcp::worker;
use crate::name::MachineName;
use crate::policy::Caller;

/// Delay after a process failed or could not be started: limits the cost of a recurring failure, and lets it be reported.
const RESTART_DELAY: Duration = FOLLOW.saturating_mul(2);
/// Time for a process to end after [`worker::ABORT`].
const LAST: Duration = Duration::from_secs(1);
/// Stack of the thread that answers a process, in bytes: it writes the log, and parses requests of bounded depth.
const STACK: usize = 1024 * 1024;

/// One consumer's socket, and the process that serves it.
pub(super) struct WorkerSupervisor {
    pub(super) caller: MachineName,
    pub(super) socket: AsyncFd<OwnedFd>,
    pub(super) state: ServerState,
    pub(super) failures: Arc<Mutex<WorkerFailures>>,
    /// Accept no new connections.
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
                            // An idle process ends in order.
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
            // The process that has ended accepted the earlier connections.
            ready.clear_ready();
        }
    }

    /// Waits until no new connections are to be accepted.
    async fn closed(&self) {
        tokio::select! {
            () = self.close.cancelled() => {}
            () = self.connections.graceful.cancelled() => {}
        }
    }

    /// Starts the process, and a thread that answers it.
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
            let source = Arc::clone(&state.live);
            let local = Local {
                caller: Caller::Consumer(caller.clone()),
                policy: Box::new(move || source.current()),
                recorder: state.recorder,
                limiter: state.gate,
            };
            attend(&ours, &caller, &state.live, &local, &resources);
            let how = process.reap(child);
            drop(resources);
            // The supervisor may have gone.
            let _ = ended.send(how);
        };
        // Without the thread the process sees the end of its stdin, and ends.
        std::thread::Builder::new()
            .name(self.caller.to_string())
            .stack_size(STACK)
            .spawn(attending)?;
        Ok(worker)
    }

    /// Tells the process how to end, until it has.
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
        if timeout(LAST, worker.ended()).await.is_err() {
            worker.process.signal(Signal::KILL);
            worker.ended().await;
        }
    }
}

/// A running process.
struct Worker {
    process: Arc<ProcessHandle>,
    end: oneshot::Receiver<Option<String>>,
}

impl Worker {
    /// Waits for its end; describes an abnormal one.
    async fn ended(&mut self) -> Option<String> {
        (&mut self.end).await.unwrap_or_default()
    }
}
