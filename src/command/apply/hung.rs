//! Ends a machine's server that runs and does not answer, so that a new one can take its place.
//!
//! From the host: what hangs in a machine may hang whatever is asked of it there. Only processes of that machine are touched,
//! so a machine that names one of its own like the server harms itself alone.

use std::fs;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::Duration;

use crate::edge::PROVIDER_FOLDER;
use crate::inside::PROGRAM;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::retry_on_intr;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

/// How long a server may take to end by itself: a little longer than it gives its running calls.
const GENTLY: Duration = Duration::from_secs(30);
/// How long the kernel may take to end it.
const FORCED: Duration = Duration::from_secs(10);

/// Ends every server in the machine whose first process that is.
pub(super) async fn end(first: u32) {
    let Some(machine) = namespace(first) else {
        return;
    };
    for process in servers() {
        // Opened first: what is looked at then is what is ended.
        let Ok(handle) = pidfd_open(process, PidfdFlags::empty()) else {
            continue;
        };
        let number = process.as_raw_nonzero().get().unsigned_abs();
        if namespace(number).as_ref() == Some(&machine) {
            // Only this machine's steps wait for it.
            let _ = tokio::task::spawn_blocking(move || end_one(&handle)).await;
        }
    }
}

/// The processes of this host, machines' included, that were started as a server.
fn servers() -> Vec<Pid> {
    let words = [PROGRAM, "mcp", "serve", "--listen", PROVIDER_FOLDER];
    let line = words.map(|word| format!("{word}\0")).concat();
    let entries = fs::read_dir("/proc").into_iter().flatten();
    entries
        .filter_map(Result::ok)
        .filter(|entry| {
            fs::read(entry.path().join("cmdline")).is_ok_and(|words| words == line.as_bytes())
        })
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter_map(Pid::from_raw)
        .collect()
}

/// What says which machine a process is of.
fn namespace(process: u32) -> Option<PathBuf> {
    fs::read_link(format!("/proc/{process}/ns/pid")).ok()
}

/// Ends one; blocks until it has.
fn end_one(handle: &OwnedFd) {
    // One that was stopped ends too; one that is gone meanwhile has ended.
    let _ = pidfd_send_signal(handle, Signal::TERM);
    let _ = pidfd_send_signal(handle, Signal::CONT);
    if !has_ended(handle, GENTLY) {
        let _ = pidfd_send_signal(handle, Signal::KILL);
        has_ended(handle, FORCED);
    }
}

/// Whether a process ends within this time: its handle can be read then.
fn has_ended(handle: &OwnedFd, patience: Duration) -> bool {
    let patience = Timespec::try_from(patience).ok();
    let mut ending = [PollFd::new(handle, PollFlags::IN)];
    // What cannot be waited for is not waited for.
    let waited = retry_on_intr(|| poll(&mut ending, patience.as_ref()));
    waited.map_or(true, |ready| ready > 0)
}
