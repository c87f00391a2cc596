//! A process of the server's own, which does not outlive it.

use std::ffi::OsString;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::mcp::worker;
use crate::tool::environment;

/// Time that a process gets to exit after it closed its socket to the server.
const LAST_MOMENT: Timespec = Timespec {
    tv_sec: 1,
    tv_nsec: 0,
};

/// A process; a descriptor of it, so that no signal reaches another that got its id.
pub(super) struct ProcessHandle(OwnedFd);

impl ProcessHandle {
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
