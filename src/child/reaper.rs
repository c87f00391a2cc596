//! The process that starts a program, waits for it, and ends everything that it has left behind.
//!
//! It keeps its rights, so that no process of the program's user can end it, and does nothing else with them.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::param::page_size;
use rustix::process::{
    DumpableBehavior, Pid, PidfdFlags, Signal, WaitOptions, WaitStatus, getpid, pidfd_open,
    set_child_subreaper, set_dumpable_behavior, wait,
};
use rustix::stdio::{dup2_stderr, dup2_stdin, dup2_stdout, stdin};

use super::tree::{descendants, kill, signal_all};
use super::{EXEC, GRACE, ORDER_MAX, ProgramEnd, ProgramSpec, REPORT_MAX, ReaperReport};
use crate::ipc::{SpinRead, receive, receive_with_descriptor, send};

/// Interval for adding up the memory of the program's processes.
const TICK: Timespec = Timespec {
    tv_sec: 1,
    tv_nsec: 0,
};
/// Interval for checking whether processes have ended.
const LOOK: Duration = Duration::from_millis(5);

/// Runs the program that the message on stdin describes, until it has ended or the launcher closes the socket. The
/// program's stdin is attached to the message; stdout and stderr are the program's.
pub(crate) fn run() -> io::Result<()> {
    let launcher = UnixStream::from(stdin().try_clone_to_owned()?);
    set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    set_child_subreaper(Some(getpid()))?;
    let (spec, input): (ProgramSpec, _) =
        receive_with_descriptor(SpinRead::new(&launcher), ORDER_MAX)?;
    let input = input.ok_or(io::ErrorKind::InvalidData)?;
    let program = match start(&spec, input) {
        Ok(program) => program,
        Err(why) => {
            end_all(|_, _| {});
            return send(&launcher, &ReaperReport::Failed(why.to_string()), None);
        }
    };
    // From here on, nothing may keep this process from ending what it has started. If the launcher is gone, the socket is
    // closed, which ends it.
    let _ = close_pipes();
    let _ = send(&launcher, &ReaperReport::Started, None);
    let end = Reaper {
        launcher: &launcher,
        program,
        memory: spec.memory,
        end: None,
    };
    let end = end.wait();
    let _ = send(&launcher, &ReaperReport::Ended(end), None);
    Ok(())
}

/// Closes this process's ends of the program's pipes, which would stay open after the program has closed its own.
fn close_pipes() -> io::Result<()> {
    let null = File::options().read(true).write(true).open("/dev/null")?;
    dup2_stdin(&null)?;
    dup2_stdout(&null)?;
    Ok(dup2_stderr(&null)?)
}

/// Starts the program; returns its process ID once it has been executed.
fn start(spec: &ProgramSpec, input: OwnedFd) -> io::Result<Pid> {
    let (ours, theirs) = UnixStream::pair()?;
    #[expect(
        clippy::disallowed_methods,
        reason = "this process waits for all its children itself"
    )]
    let child = std::process::Command::new("/proc/self/exe")
        .arg0("anklume")
        .arg(EXEC)
        .env_clear()
        .stdin(OwnedFd::from(theirs))
        .spawn()?;
    let pid = Pid::from_child(&child);
    send(&ours, spec, Some(input.as_fd()))?;
    drop(input);
    // The socket is closed when the program is executed; before that, a failure is reported on it.
    match receive::<String>(&mut io::BufReader::new(&ours), REPORT_MAX) {
        Err(why) if why.kind() == io::ErrorKind::UnexpectedEof => Ok(pid),
        Err(why) => Err(why),
        Ok(why) => Err(io::Error::other(why)),
    }
}

struct Reaper<'a> {
    launcher: &'a UnixStream,
    program: Pid,
    memory: u64,
    /// How the program ended.
    end: Option<ProgramEnd>,
}

impl Reaper<'_> {
    /// Waits for the program's end, or ends it; returns when no process is left.
    fn wait(mut self) -> ProgramEnd {
        // If it cannot be watched, it is ended.
        let _ = self.watch();
        end_all(|pid, status| self.note(pid, status));
        self.end
            .unwrap_or(ProgramEnd::Killed(Signal::KILL.as_raw()))
    }

    /// Waits until the program has ended or must end.
    fn watch(&mut self) -> io::Result<()> {
        let process = pidfd_open(self.program, PidfdFlags::empty())?;
        loop {
            let mut watched = [
                PollFd::new(&process, PollFlags::IN),
                PollFd::new(self.launcher, PollFlags::IN),
            ];
            match poll(&mut watched, Some(&TICK)) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(why) => return Err(why.into()),
            }
            let [program, launcher] = watched.map(|watched| !watched.revents().is_empty());
            if program {
                return Ok(());
            }
            if launcher {
                return self.ask_to_end();
            }
            if uses_more(self.memory)? {
                self.end = Some(ProgramEnd::OutOfMemory);
                return Ok(());
            }
            self.reap();
        }
    }

    /// Lets the processes end by themselves, for a while.
    fn ask_to_end(&mut self) -> io::Result<()> {
        signal_all(&descendants(getpid(), &|_| false)?, Signal::TERM);
        let since = Instant::now();
        while self.reap() && since.elapsed() < GRACE {
            std::thread::sleep(LOOK);
        }
        Ok(())
    }

    fn reap(&mut self) -> bool {
        reap(|pid, status| self.note(pid, status))
    }

    fn note(&mut self, pid: Pid, status: WaitStatus) {
        if pid == self.program && self.end.is_none() {
            self.end = Some(how(status));
        }
    }
}

/// Returns whether the program's processes use more than `memory` bytes.
fn uses_more(memory: u64) -> io::Result<bool> {
    let descendants = descendants(getpid(), &|_| false)?;
    let pages: u64 = descendants.iter().map(|process| process.pages).sum();
    Ok(pages.saturating_mul(page_size() as u64) > memory)
}

/// Ends all descendants of this process.
fn end_all(mut note: impl FnMut(Pid, WaitStatus)) {
    while reap(&mut note) {
        // What cannot be read now is ended in the next round.
        let _ = kill(getpid(), &|_| false);
        std::thread::sleep(LOOK);
    }
}

/// Waits for the children that have ended; returns whether others are left.
fn reap(mut note: impl FnMut(Pid, WaitStatus)) -> bool {
    loop {
        match wait(WaitOptions::NOHANG) {
            Ok(Some((pid, status))) => note(pid, status),
            Ok(None) => return true,
            Err(Errno::INTR) => {}
            // No child is left.
            Err(_) => return false,
        }
    }
}

fn how(status: WaitStatus) -> ProgramEnd {
    match (status.exit_status(), status.terminating_signal()) {
        (Some(status), _) => ProgramEnd::Exited(status),
        (None, signal) => ProgramEnd::Killed(signal.unwrap_or_default()),
    }
}
