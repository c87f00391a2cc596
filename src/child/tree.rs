//! Finds and ends the descendants of a process.

use std::fs::File;
use std::io::{self, Read as _};
use std::os::unix::fs::MetadataExt as _;

use rustix::process::{
    Pid, PidfdFlags, Signal, WaitOptions, getpid, pidfd_open, pidfd_send_signal, waitpid,
};

/// Maximum length of a file about a process, in bytes.
const STAT_MAX: u64 = 4096;

/// A process, as `/proc/PID/stat` describes it (`proc_pid_stat(5)`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ProcessEntry {
    pub(super) pid: Pid,
    pub(super) parent: i32,
    /// Its state, as a letter.
    state: u8,
    pub(super) threads: u64,
    /// Time of its start, in clock ticks since boot: distinguishes it from a later process with the same number.
    start: u64,
    /// Its memory, in pages.
    pub(super) pages: u64,
}

impl ProcessEntry {
    fn read(pid: Pid) -> Option<Self> {
        let path = format!("/proc/{}/stat", pid.as_raw_nonzero());
        let mut bytes = Vec::new();
        File::open(path)
            .ok()?
            .take(STAT_MAX)
            .read_to_end(&mut bytes)
            .ok()?;
        Self::parse(pid, &bytes)
    }

    /// The name, which may contain anything, ends at the last parenthesis; the third field follows it.
    fn parse(pid: Pid, stat: &[u8]) -> Option<Self> {
        let end = stat.iter().rposition(|byte| *byte == b')')?;
        let fields = str::from_utf8(stat.get(end + 1..)?).ok()?;
        let fields: Vec<&str> = fields.split_ascii_whitespace().collect();
        let field = |number: usize| fields.get(number.checked_sub(3)?).copied();
        let number = |at: usize| field(at)?.parse::<u64>().ok();
        Some(Self {
            pid,
            parent: field(4)?.parse().ok()?,
            state: field(3)?.bytes().next()?,
            threads: number(20)?,
            start: number(22)?,
            pages: number(24)?,
        })
    }

    /// Returns whether none of its threads runs. A process whose first thread has exited looks like a zombie.
    const fn has_ended(&self) -> bool {
        matches!(self.state, b'Z' | b'X') && self.threads <= 1
    }

    const fn is_stopped(&self) -> bool {
        matches!(self.state, b'T' | b't')
    }

    /// Sends a signal, unless another process has this number by now.
    fn signal(&self, signal: Signal) {
        let Ok(process) = pidfd_open(self.pid, PidfdFlags::empty()) else {
            return;
        };
        if Self::read(self.pid).is_some_and(|now| now.start == self.start) {
            // One that has just ended needs no signal.
            let _ = pidfd_send_signal(&process, signal);
        }
    }
}

/// Lists all processes.
fn processes() -> io::Result<Vec<ProcessEntry>> {
    let mut all = Vec::new();
    for entry in std::fs::read_dir("/proc")? {
        let name = entry?.file_name();
        let pid = name.to_str().and_then(|name| name.parse().ok());
        all.extend(pid.and_then(Pid::from_raw).and_then(ProcessEntry::read));
    }
    Ok(all)
}

/// Tells which processes to leave alone, with their descendants. It is asked after the processes were listed, so it knows
/// all that had been started by then.
pub(super) type LeaveAlone<'a> = &'a dyn Fn(Pid) -> bool;

/// Lists the descendants of a process that have not ended.
pub(super) fn descendants(of: Pid, other: LeaveAlone<'_>) -> io::Result<Vec<ProcessEntry>> {
    let all = processes()?;
    let mut parents = vec![of.as_raw_nonzero().get()];
    let mut found = Vec::new();
    while let Some(parent) = parents.pop() {
        for process in &all {
            if process.parent == parent && !other(process.pid) {
                parents.push(process.pid.as_raw_nonzero().get());
                found.push(*process);
            }
        }
    }
    found.retain(|process| !process.has_ended());
    Ok(found)
}

/// Returns whether a process is a descendant of another, or its number is no longer in use.
pub(super) fn descends_or_has_ended(mut pid: Pid, of: Pid) -> bool {
    /// Maximum number of generations.
    const DEPTH_MAX: usize = 10_000;
    for _ in 0..DEPTH_MAX {
        let Some(process) = ProcessEntry::read(pid) else {
            return true;
        };
        match Pid::from_raw(process.parent) {
            Some(parent) if parent == of => return true,
            Some(parent) => pid = parent,
            None => return false,
        }
    }
    true
}

/// Waits for the children of this process that have ended.
pub(super) fn reap_children(other: LeaveAlone<'_>) -> io::Result<()> {
    let own = getpid().as_raw_nonzero().get();
    for process in processes()? {
        if process.parent == own && !other(process.pid) {
            // One that runs is left alone.
            let _ = waitpid(Some(process.pid), WaitOptions::NOHANG);
        }
    }
    Ok(())
}

/// Counts the tasks of a user, as `RLIMIT_NPROC` does.
pub(super) fn tasks_of(uid: u32) -> io::Result<u64> {
    let of_user = |process: &ProcessEntry| {
        let path = format!("/proc/{}", process.pid.as_raw_nonzero());
        std::fs::metadata(path).is_ok_and(|entry| entry.uid() == uid)
    };
    let all = processes()?;
    Ok(all
        .iter()
        .filter(|process| of_user(process))
        .map(|process| process.threads)
        .sum())
}

/// Sends a signal to these processes.
pub(super) fn signal_all(processes: &[ProcessEntry], signal: Signal) {
    for process in processes {
        process.signal(signal);
    }
}

/// Stops the descendants of a process, until none is left that could start another, and kills them. They are only gone
/// when their parents have waited for them.
pub(super) fn kill(of: Pid, other: LeaveAlone<'_>) -> io::Result<()> {
    /// Rounds of stopping, after which they are killed even while they still multiply.
    const ROUNDS: usize = 100;
    for _ in 0..ROUNDS {
        let mut running = descendants(of, other)?;
        running.retain(|process| !process.is_stopped());
        if running.is_empty() {
            break;
        }
        signal_all(&running, Signal::STOP);
    }
    signal_all(&descendants(of, other)?, Signal::KILL);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_cannot_pretend_with_its_name() {
        let pid = Pid::from_raw(7).unwrap();
        let rest = "1 7 7 0 -1 4194304 0 0 0 0 0 0 0 0 20 0 3 0 12345 4096 99 1";
        let stat = format!("7 (a) S 999 (b)) T {rest}");
        let found = ProcessEntry::parse(pid, stat.as_bytes()).unwrap();
        let expected = ProcessEntry {
            pid,
            parent: 1,
            state: b'T',
            threads: 3,
            start: 12345,
            pages: 99,
        };
        assert_eq!(found, expected);
        for broken in ["", "7 (a", "7 (a) S", "7 (a) S x 7"] {
            assert_eq!(ProcessEntry::parse(pid, broken.as_bytes()), None);
        }
    }

    #[test]
    fn this_process_is_a_descendant_of_its_parent() {
        let (own, parent) = (
            rustix::process::getpid(),
            rustix::process::getppid().unwrap(),
        );
        let is_there = |other: LeaveAlone<'_>| {
            let found = descendants(parent, other).unwrap();
            found.iter().any(|process| process.pid == own)
        };
        assert!(is_there(&|_| false));
        assert!(!is_there(&|pid| pid == own));
        assert!(descends_or_has_ended(own, parent));
        assert!(!descends_or_has_ended(parent, own));
    }
}
