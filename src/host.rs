//! Changes the host itself: bridges, folders, processes, proxy logs and the timer that rotates them.

pub(crate) mod bridges;
pub(crate) mod folders;
pub(crate) mod log_timer;
pub(crate) mod proxies;
pub(crate) mod proxy_logs;

use std::fmt::Display;
use std::fs;
use std::io::{self, BufRead as _, BufReader, Read as _};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::retry_on_intr;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::edge::{HASH_DIGITS, PROVIDER_FOLDER};
use crate::incus::DEFAULT_PROJECT;
use crate::machine_state::PROGRAM;

/// Time for servers to exit by themselves: a little longer than they allow their running calls.
const GRACEFUL: Duration = Duration::from_secs(30);
/// Time for killed servers to exit.
const FORCED: Duration = Duration::from_secs(10);
/// Maximum number of processes to terminate: only one is the server, but a machine may imitate it.
const PROCESSES_MAX: usize = 64;

/// Returns whether a string has the form of an edge's hash.
pub(crate) fn is_hash(text: &str) -> bool {
    text.len() == HASH_DIGITS && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// Returns the name that Incus uses to tell apart the machines of different projects.
pub(crate) fn full_name(project: &str, machine: &str) -> String {
    if project == DEFAULT_PROJECT {
        machine.to_owned()
    } else {
        format!("{project}_{machine}")
    }
}

/// Returns the processes on this host, including those in machines.
pub(crate) fn processes() -> io::Result<impl Iterator<Item = Pid>> {
    let entries = fs::read_dir("/proc")?.filter_map(Result::ok);
    Ok(entries.filter_map(|entry| Pid::from_raw(entry.file_name().to_str()?.parse().ok()?)))
}

/// Returns the first `max` bytes of a process's arguments; each argument ends with a zero byte.
pub(crate) fn command_line(process: Pid, max: u64) -> io::Result<Vec<u8>> {
    let mut args = Vec::new();
    let file = fs::File::open(format!("/proc/{process}/cmdline"))?;
    file.take(max).read_to_end(&mut args)?;
    Ok(args)
}

/// Returns a process's PID namespace, which is that of its machine.
pub(crate) fn namespace(process: impl Display) -> Option<PathBuf> {
    fs::read_link(format!("/proc/{process}/ns/pid")).ok()
}

/// Returns a process's state and the time of its start, which follow the parenthesised name as fields 3 and 22 (proc(5)).
fn stat(process: impl Display) -> Option<(char, u64)> {
    let stat = fs::read(format!("/proc/{process}/stat")).ok()?;
    let stat = String::from_utf8_lossy(&stat);
    let (_, fields) = stat.rsplit_once(')')?;
    let mut fields = fields.split_ascii_whitespace();
    let state = fields.next()?.chars().next()?;
    Some((state, fields.nth(18)?.parse().ok()?))
}

/// Returns the time since a process started.
pub(crate) fn age(process: u32) -> Option<Duration> {
    /// Clock ticks in a second, as shown by the kernel on every architecture with this program's ABI (proc(5)).
    const TICKS: u64 = 100;
    let (_, started) = stat(process)?;
    let uptime = fs::read("/proc/uptime").ok()?;
    let uptime = String::from_utf8_lossy(&uptime);
    let seconds: u64 = uptime.split(['.', ' ']).next()?.parse().ok()?;
    Some(Duration::from_secs(seconds.checked_sub(started / TICKS)?))
}

/// Terminates every server in the machine with this first process, so that a new one can be started.
///
/// Works from the host, because a hanging machine may also block every request inside it. Terminates only this
/// machine's processes, all at the same time, so a process that imitates the server harms only its own machine.
pub(crate) async fn end_servers(first: u32) {
    let machine = namespace(first);
    // The PID may meanwhile have been reused by a process outside all machines.
    if machine.is_none() || machine == namespace(std::process::id()) {
        return;
    }
    let server = [PROGRAM, "mcp", "serve", "--listen", PROVIDER_FOLDER, ""].join("\0");
    // One byte more than the server's arguments, so that a longer command line does not match.
    let max = server.len() as u64 + 1;
    let handles = processes().into_iter().flatten().filter_map(|process| {
        let args = command_line(process, max).ok()?;
        if args != server.as_bytes() {
            return None;
        }
        // Opened before the namespaces are compared, so that the handle refers to the compared process.
        let handle = pidfd_open(process, PidfdFlags::empty()).ok()?;
        (namespace(process) == machine).then_some(handle)
    });
    let handles = handles.take(PROCESSES_MAX).collect();
    // Only this machine's actions wait for this.
    let _ = tokio::task::spawn_blocking(move || end_all(handles, GRACEFUL)).await;
}

/// Terminates processes: asks all of them to exit, then kills the rest. Blocks until this is done.
fn end_all(mut handles: Vec<OwnedFd>, graceful: Duration) -> bool {
    for handle in &handles {
        // CONT lets a stopped process exit too. A signal fails only if the process has already exited.
        let _ = pidfd_send_signal(handle, Signal::TERM);
        let _ = pidfd_send_signal(handle, Signal::CONT);
    }
    wait(&mut handles, graceful);
    for handle in &handles {
        let _ = pidfd_send_signal(handle, Signal::KILL);
    }
    wait(&mut handles, FORCED);
    handles.is_empty()
}

/// Waits for the processes to exit, for at most `timeout` in total; keeps those that have not.
fn wait(handles: &mut Vec<OwnedFd>, timeout: Duration) {
    let began = Instant::now();
    handles.retain(|handle| {
        let left = Timespec::try_from(timeout.saturating_sub(began.elapsed())).ok();
        // The handle of a process that has exited is readable; a handle that cannot be polled is dropped.
        let mut ending = [PollFd::new(handle, PollFlags::IN)];
        let ready = retry_on_intr(|| poll(&mut ending, left.as_ref()));
        ready.is_ok_and(|ready| ready == 0)
    });
}

/// Returns the first matching mount point of a process; also `None` if the table cannot be read. Fails if the table is
/// longer than that of any healthy machine, because it may be hiding a mount or be an attack.
pub(crate) fn mounted(
    process: u32,
    is_looked_for: impl Fn(&str) -> bool,
) -> Result<Option<String>, TooManyMounts> {
    /// Maximum number of bytes read from a table.
    const TABLE_MAX: u64 = 4 * 1024 * 1024;
    let Ok(table) = fs::File::open(format!("/proc/{process}/mountinfo")) else {
        return Ok(None);
    };
    let mut table = BufReader::new(table.take(TABLE_MAX));
    let mut lines = table.by_ref().split(b'\n').map_while(Result::ok);
    let place = lines.find_map(|line| {
        let text = String::from_utf8_lossy(&line);
        let place = text.split(' ').nth(4).map(unescaped);
        place.filter(|place| is_looked_for(place))
    });
    match place {
        None if table.get_ref().limit() == 0 => Err(TooManyMounts),
        place => Ok(place),
    }
}

/// The error for a machine whose mount table is too long.
#[derive(Debug)]
pub(crate) struct TooManyMounts;

/// Decodes a path from a mount table, in which the kernel writes whitespace and backslashes as octal escapes.
pub(crate) fn unescaped(path: &str) -> String {
    path.replace("\\040", " ")
        .replace("\\011", "\t")
        .replace("\\012", "\n")
        .replace("\\134", "\\")
}

/// Treats the removal of a missing file as success.
fn missing_is_removed(removed: io::Result<()>) -> io::Result<()> {
    match removed {
        Err(why) if why.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Child, Stdio};

    use super::*;

    #[test]
    fn a_machine_of_the_default_project_has_no_project_in_its_cgroup() {
        assert_eq!(full_name("vault", "signer"), "vault_signer");
        assert_eq!(full_name("default", "signer"), "signer");
    }

    /// Starts a shell with this script; returns once the script has printed `ready`.
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
        // The first exits only once the second is asked to exit: waiting for each before asking the next would hang.
        let first =
            format!("trap '' TERM; echo ready; until [ -e {asked} ]; do sleep 0.02; done; exit 7");
        let second =
            format!("trap 'touch {asked}; exit 8' TERM; echo ready; while :; do sleep 0.02; done");
        let (mut first, mut second) = (shell(&first), shell(&second));
        end_all(vec![handle(&first), handle(&second)], GRACEFUL);
        assert_eq!(first.wait().unwrap().code(), Some(7));
        assert_eq!(second.wait().unwrap().code(), Some(8));
        // Processes that ignore the request to exit.
        let deaf = "trap '' TERM; echo ready; while :; do sleep 0.02; done";
        let mut deaf = [shell(deaf), shell(deaf)];
        end_all(deaf.iter().map(handle).collect(), Duration::ZERO);
        for one in &mut deaf {
            assert_eq!(one.wait().unwrap().code(), None);
        }
    }
}
