//! Starts programs from the launcher, one reaper each.

use std::collections::HashSet;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::process::{Pid, WaitOptions, getpid, set_child_subreaper, waitpid};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf, pipe};
use tokio::process::{Child, Command};

use super::tree::{descendants, kill};
use super::{ProgramEnd, ProgramSpec, REAPER, REPORT_MAX, ReaperReport};
use crate::ipc::{receive_async, send};

/// The running reapers; every other child of this process was left behind by a reaper that was killed.
static REAPERS: Mutex<Option<HashSet<Pid>>> = Mutex::new(None);

/// The reason why a program could not be started.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StartError {
    /// The program itself: it is missing, or may not be executed.
    #[error("`{program}` cannot be executed: {why}")]
    Program { program: String, why: String },
    #[error("no process can be started for `{program}`: {source}")]
    Reaper { program: String, source: io::Error },
}

/// A running program. Dropping it ends the program and everything that it has started.
#[derive(Debug)]
pub(crate) struct RunningProgram {
    pub(crate) stdin: pipe::Sender,
    pub(crate) stdout: pipe::Receiver,
    pub(crate) stderr: pipe::Receiver,
    /// Dropping it asks the program's processes to end, and ends them shortly afterwards.
    pub(crate) running: OwnedWriteHalf,
    pub(crate) end: ReaperEnd,
}

/// Reports a program's end.
#[derive(Debug)]
pub(crate) struct ReaperEnd(OwnedReadHalf);

impl ReaperEnd {
    /// Waits until the program and all its processes have ended. Fails if the reaper itself was killed.
    pub(crate) async fn ended(&mut self) -> io::Result<ProgramEnd> {
        match receive_async(&mut self.0, REPORT_MAX).await? {
            ReaperReport::Ended(end) => Ok(end),
            ReaperReport::Started | ReaperReport::Failed(_) => {
                Err(io::ErrorKind::InvalidData.into())
            }
        }
    }
}

/// Makes this process the parent of what a killed reaper leaves behind.
pub(crate) fn adopt_orphans() -> io::Result<()> {
    Ok(set_child_subreaper(Some(getpid()))?)
}

fn reapers() -> MutexGuard<'static, Option<HashSet<Pid>>> {
    REAPERS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Ends what killed reapers have left behind.
pub(crate) fn end_orphans() {
    /// Rounds, after which the rest is left to the supervisor.
    const ROUNDS: usize = 100;
    let known: Vec<Pid> = reapers().iter().flatten().copied().collect();
    for _ in 0..ROUNDS {
        let _ = kill(getpid(), &known);
        let orphans = descendants(getpid(), &known).unwrap_or_default();
        if orphans.is_empty() {
            return;
        }
        for orphan in orphans {
            // Only children can be waited for; the others follow.
            let _ = waitpid(Some(orphan.pid), WaitOptions::NOHANG);
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Starts a program.
pub(crate) async fn start(spec: &ProgramSpec) -> Result<RunningProgram, StartError> {
    let program = || spec.argv.first().cloned().unwrap_or_default();
    let failed = |source| StartError::Reaper {
        program: program(),
        source,
    };
    let mut running = start_reaper(spec).map_err(failed)?;
    match receive_async(&mut running.end.0, REPORT_MAX).await {
        Ok(ReaperReport::Started) => Ok(running),
        Ok(ReaperReport::Failed(why)) => Err(StartError::Program {
            program: program(),
            why,
        }),
        Ok(ReaperReport::Ended(_)) => Err(failed(io::ErrorKind::InvalidData.into())),
        Err(why) => Err(failed(why)),
    }
}

fn start_reaper(spec: &ProgramSpec) -> io::Result<RunningProgram> {
    let (ours, theirs) = UnixStream::pair()?;
    let (input, stdin) = io::pipe()?;
    let (stdout, output) = io::pipe()?;
    let (stderr, errors) = io::pipe()?;
    let mut command = Command::new("/proc/self/exe");
    command
        .arg0("anklume")
        .arg(REAPER)
        .env_clear()
        .process_group(0)
        .stdin(OwnedFd::from(theirs))
        .stdout(OwnedFd::from(output))
        .stderr(OwnedFd::from(errors));
    let child = command.spawn()?;
    // Closes this process's copies of the ends that belong to the reaper.
    drop(command);
    watch(child);
    send(&ours, spec, Some(input.as_fd()))?;
    ours.set_nonblocking(true)?;
    let (end, running) = tokio::net::UnixStream::from_std(ours)?.into_split();
    Ok(RunningProgram {
        stdin: pipe::Sender::from_owned_fd(stdin.into())?,
        stdout: pipe::Receiver::from_owned_fd(stdout.into())?,
        stderr: pipe::Receiver::from_owned_fd(stderr.into())?,
        running,
        end: ReaperEnd(end),
    })
}

/// Waits for a reaper, and ends what it has left behind if it was killed.
fn watch(mut reaper: Child) {
    let pid = reaper.id().and_then(|pid| i32::try_from(pid).ok());
    let pid = pid.and_then(Pid::from_raw);
    reapers().get_or_insert_default().extend(pid);
    tokio::spawn(async move {
        let ended = reaper.wait().await;
        if let (Some(known), Some(pid)) = (reapers().as_mut(), pid) {
            known.remove(&pid);
        }
        if !ended.is_ok_and(|status| status.success()) {
            end_orphans();
        }
    });
}
