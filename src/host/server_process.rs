//! Ends a machine's server that runs and does not answer, so that a new one can take its place.
//!
//! From the host: what hangs in a machine may hang whatever is asked of it there. Only processes of that machine are touched,
//! so a machine that names its own like the server harms itself alone; and all of them end in the time of one.

use std::fs;
use std::io::{self, Read as _};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::edge::PROVIDER_FOLDER;
use crate::machine_state::PROGRAM;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::retry_on_intr;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

/// Time that servers get to end by themselves: a little longer than they give their running calls.
const GENTLY: Duration = Duration::from_secs(30);
/// Time that the kernel gets to end them.
const FORCED: Duration = Duration::from_secs(10);
/// Maximum number of processes that are ended: one is the server, and a machine may have made more that look like it.
const MOST: usize = 64;

/// Ends every server in the machine whose first process that is.
pub(crate) async fn end(first: u32) {
    let machine = namespace(first);
    // A number that is another process's by now is of no machine.
    if machine.is_none() || machine == namespace(std::process::id()) {
        return;
    }
    let handles = servers().into_iter().filter_map(|process| {
        // Opened first: what is looked at then is what is ended.
        let handle = pidfd_open(process, PidfdFlags::empty()).ok()?;
        let number = process.as_raw_nonzero().get().unsigned_abs();
        (namespace(number) == machine).then_some(handle)
    });
    let handles = handles.take(MOST).collect();
    // Only this machine's steps wait for it.
    let _ = tokio::task::spawn_blocking(move || end_all(handles, GENTLY)).await;
}

/// The processes of this host, machines' included, that were started as a server.
fn servers() -> Vec<Pid> {
    let words = [PROGRAM, "mcp", "serve", "--listen", PROVIDER_FOLDER];
    let line = words.map(|word| format!("{word}\0")).concat();
    let entries = fs::read_dir("/proc").into_iter().flatten();
    entries
        .filter_map(Result::ok)
        .filter(|entry| {
            // No more than could be the same: a process may have arguments of any length.
            let most = u64::try_from(line.len())
                .unwrap_or(u64::MAX)
                .saturating_add(1);
            command_line(&entry.path(), most).is_ok_and(|words| words == line.as_bytes())
        })
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter_map(Pid::from_raw)
        .collect()
}

/// The first `most` bytes of a process's arguments, each of which ends with a zero byte; `process` is its folder in
/// `/proc`.
pub(crate) fn command_line(process: &Path, most: u64) -> io::Result<Vec<u8>> {
    let mut words = Vec::new();
    let file = fs::File::open(process.join("cmdline"))?;
    file.take(most).read_to_end(&mut words)?;
    Ok(words)
}

/// The cgroup that identifies a process's machine.
pub(crate) fn namespace(process: u32) -> Option<PathBuf> {
    fs::read_link(format!("/proc/{process}/ns/pid")).ok()
}

/// Ends processes: all are asked, then those that are left are made to. Blocks until that is done.
fn end_all(mut handles: Vec<OwnedFd>, gently: Duration) {
    for handle in &handles {
        // One that was stopped ends too; one that is gone meanwhile has ended.
        let _ = pidfd_send_signal(handle, Signal::TERM);
        let _ = pidfd_send_signal(handle, Signal::CONT);
    }
    wait(&mut handles, gently);
    for handle in &handles {
        let _ = pidfd_send_signal(handle, Signal::KILL);
    }
    wait(&mut handles, FORCED);
}

/// Waits until the processes have ended, or so long; those are left that have not.
fn wait(handles: &mut Vec<OwnedFd>, patience: Duration) {
    let began = Instant::now();
    handles.retain(|handle| !has_ended(handle, patience.saturating_sub(began.elapsed())));
}

/// Returns whether a process ends within this time: its handle can be read then.
fn has_ended(handle: &OwnedFd, patience: Duration) -> bool {
    let patience = Timespec::try_from(patience).ok();
    let mut ending = [PollFd::new(handle, PollFlags::IN)];
    // What cannot be waited for is not waited for.
    let waited = retry_on_intr(|| poll(&mut ending, patience.as_ref()));
    waited.map_or(true, |ready| ready > 0)
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead as _, BufReader};
    use std::process::{Child, Stdio};

    use super::*;

    /// A shell that runs this, once it has said that it does.
    fn shell(script: &str) -> Child {
        #[expect(clippy::disallowed_methods, reason = "a process to end")]
        let mut command = std::process::Command::new("sh");
        let mut child = command
            .args(["-c", script])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        let mut said = BufReader::new(child.stdout.take().unwrap());
        said.read_line(&mut line).unwrap();
        assert_eq!(line, "ready\n");
        child
    }

    fn handle(child: &Child) -> OwnedFd {
        let number = Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap();
        pidfd_open(number, PidfdFlags::empty()).unwrap()
    }

    #[test]
    fn all_are_asked_before_any_is_waited_for_and_then_made_to() {
        let folder = tempfile::tempdir().unwrap();
        let asked = folder.path().join("asked");
        let asked = asked.to_str().unwrap();
        // The first ends when the second one was asked, which is never if it is waited for alone.
        let first =
            format!("trap '' TERM; echo ready; until [ -e {asked} ]; do sleep 0.02; done; exit 7");
        let second =
            format!("trap 'touch {asked}; exit 8' TERM; echo ready; while :; do sleep 0.02; done");
        let (mut first, mut second) = (shell(&first), shell(&second));
        end_all(vec![handle(&first), handle(&second)], GENTLY);
        assert_eq!(first.wait().unwrap().code(), Some(7));
        assert_eq!(second.wait().unwrap().code(), Some(8));
        // Those that do not listen.
        let deaf = "trap '' TERM; echo ready; while :; do sleep 0.02; done";
        let mut deaf = [shell(deaf), shell(deaf)];
        end_all(deaf.iter().map(handle).collect(), Duration::ZERO);
        for one in &mut deaf {
            assert_eq!(one.wait().unwrap().code(), None);
        }
    }
}
