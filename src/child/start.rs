//! Starts programs from the launcher, one reaper each.

use std::collections::HashSet;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::process::{Pid, getpid, set_child_subreaper};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf, pipe};
use tokio::process::{Child, Command};

use super::tree::{descendants, descends_or_has_ended, kill, reap_children};
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

/// Returns whether a process was started by this one, or is gone already.
pub(crate) fn is_program(pid: i32) -> bool {
    Pid::from_raw(pid).is_none_or(|pid| descends_or_has_ended(pid, getpid()))
}

/// Ends what killed reapers have left behind.
pub(crate) fn end_orphans() {
    /// Rounds, after which the rest is left to the supervisor.
    const ROUNDS: usize = 100;
    let is_reaper = |pid: Pid| reapers().as_ref().is_some_and(|known| known.contains(&pid));
    for _ in 0..ROUNDS {
        let _ = kill(getpid(), &is_reaper);
        let _ = reap_children(&is_reaper);
        if descendants(getpid(), &is_reaper).is_ok_and(|left| left.is_empty()) {
            return;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Starts a program; `held` is dropped when all its processes have ended.
pub(crate) async fn start(
    spec: &ProgramSpec,
    held: impl Send + 'static,
) -> Result<RunningProgram, StartError> {
    let program = || spec.argv.first().cloned().unwrap_or_default();
    let failed = |source| StartError::Reaper {
        program: program(),
        source,
    };
    let mut running = start_reaper(spec, held).map_err(failed)?;
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

fn start_reaper(spec: &ProgramSpec, held: impl Send + 'static) -> io::Result<RunningProgram> {
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
    // Whoever looks for orphans meanwhile does not take this child for one.
    let mut known = reapers();
    let child = command.spawn()?;
    let pid = child.id().and_then(|pid| i32::try_from(pid).ok());
    let pid = pid.and_then(Pid::from_raw);
    known.get_or_insert_default().extend(pid);
    drop(known);
    // Closes this process's copies of the ends that belong to the reaper.
    drop(command);
    watch(child, pid, held);
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
fn watch(mut reaper: Child, pid: Option<Pid>, held: impl Send + 'static) {
    tokio::spawn(async move {
        let ended = reaper.wait().await;
        if let (Some(known), Some(pid)) = (reapers().as_mut(), pid) {
            known.remove(&pid);
        }
        if !ended.is_ok_and(|status| status.success()) {
            // A failure is a panic, after which nothing more can be done.
            let _ = tokio::task::spawn_blocking(end_orphans).await;
        }
        drop(held);
    });
}
