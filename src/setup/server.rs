//! The machine's server, seen from beside it: which process, by which policy; ended and started where nobody else does.

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use tokio::process::Command;
use tokio::time::sleep;

use super::SetupError;
use super::account::Account;
use super::failed;
use crate::edge::PROVIDER_FOLDER;
use crate::inside::{PATH, PROGRAM, STOP_SECONDS};
use crate::mcp::listen::Status;
use crate::mcp::listen::folder::Folder;

/// How long a server may take to report a policy: it looks for one several times a second.
pub(crate) const REPORT_MAX: Duration = Duration::from_secs(20);
/// How long a server may take to end: as long as its running calls may.
const END_MAX: Duration = Duration::from_secs(STOP_SECONDS);
/// How often is looked.
const LOOK: Duration = Duration::from_millis(20);

fn folder() -> &'static Path {
    Path::new(PROVIDER_FOLDER)
}

/// What the server says of itself, if one runs.
fn status() -> Option<Status> {
    // A server that has just begun says nothing yet; to look at its lock then would be to hold it against it.
    let text = Folder::status(folder()).ok()?;
    let status = serde_json::from_slice(&text).ok()?;
    Folder::is_served(folder())
        .unwrap_or_default()
        .then_some(status)
}

/// Whether a server runs, and of the program that is in its place now.
pub(super) fn is_current() -> bool {
    status().is_some_and(|status| {
        let program = std::fs::read_link(format!("/proc/{}/exe", status.pid));
        program.is_ok_and(|path| path == Path::new(PROGRAM))
    })
}

/// Waits until the server reports this policy.
pub(super) async fn reports(digest: &str) -> Result<(), SetupError> {
    let began = Instant::now();
    loop {
        let status = status();
        let fits = |status: &Status| {
            status.digest == digest && status.refused.is_none() && status.failed.is_empty()
        };
        if status.as_ref().is_some_and(fits) && is_current() {
            return Ok(());
        }
        if began.elapsed() > REPORT_MAX {
            return Err(SetupError::NotServing(match status {
                None => format!("no server runs in `{PROVIDER_FOLDER}`"),
                Some(Status {
                    refused: Some(why), ..
                }) => why,
                Some(status) if status.digest == digest => status.failed.join("; "),
                Some(status) => format!("it reports {}", status.digest),
            }));
        }
        sleep(LOOK).await;
    }
}

/// Whether a process is a server of the folder: the program, also where its file was replaced, by the folder's owner.
fn is_server(pid: Pid) -> bool {
    let process = format!("/proc/{}", pid.as_raw_nonzero());
    let program = std::fs::read_link(format!("{process}/exe")).unwrap_or_default();
    let replaced = format!("{PROGRAM} (deleted)");
    let ours = [PROGRAM, &replaced]
        .iter()
        .any(|path| program == Path::new(path));
    let words = std::fs::read(format!("{process}/cmdline")).unwrap_or_default();
    let serves = words
        .split(|byte| *byte == 0)
        .any(|word| word == b"--listen");
    let owner = |path: &Path| std::fs::symlink_metadata(path).map(|is| is.uid());
    let same = match (owner(Path::new(&process)), owner(folder())) {
        (Ok(process), Ok(folder)) => process == folder,
        _ => false,
    };
    ours && serves && same
}

/// Ends the server that runs, when its calls are answered.
pub(super) async fn end() -> Result<(), SetupError> {
    let Some(pid) = status()
        .and_then(|status| i32::try_from(status.pid).ok())
        .and_then(Pid::from_raw)
    else {
        return Ok(());
    };
    // Whose file this number is from may be anybody: only a server of ours, of that user's, is told anything; it is held
    // by a descriptor, so that it is no other process meanwhile. One that is gone has ended.
    if let Ok(process) = pidfd_open(pid, PidfdFlags::empty())
        && is_server(pid)
    {
        let _ = pidfd_send_signal(&process, Signal::TERM);
    }
    let began = Instant::now();
    // What cannot be seen has not ended.
    while Folder::is_served(folder()).unwrap_or(true) {
        if began.elapsed() > END_MAX {
            return Err(SetupError::NotServing(
                "the old server does not end".to_owned(),
            ));
        }
        sleep(LOOK).await;
    }
    Ok(())
}

/// Starts a server that nobody supervises.
pub(super) fn start(account: &Account) -> Result<(), SetupError> {
    let mut command = Command::new(PROGRAM);
    command
        .args(["mcp", "serve", "--listen", PROVIDER_FOLDER])
        .env_clear()
        .env("PATH", PATH)
        .current_dir("/")
        .process_group(0)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let started = account.runs(&mut command).spawn();
    started
        .map(drop)
        .map_err(failed("the server cannot be started"))
}
