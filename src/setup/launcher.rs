//! Watches the machine's launcher from outside, and starts and ends it if no supervisor does.

use std::os::unix::fs::DirBuilderExt as _;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use rustix::net::sockopt::socket_peercred;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use tokio::process::Command;
use tokio::time::sleep;

use super::{SetupError, failed};
use crate::machine_state::{LAUNCHER, LAUNCHER_SOCKET, PATH, PROGRAM, SERVICES};

/// Maximum time for the launcher to start, or to end with its programs.
const WAIT_MAX: Duration = Duration::from_secs(10);
/// Interval between checks.
const LOOK: Duration = Duration::from_millis(20);

/// Returns the process that listens on the launcher's socket, if it belongs to root: others cannot make sockets there.
fn process() -> Option<Pid> {
    let stream = UnixStream::connect(LAUNCHER_SOCKET).ok()?;
    let peer = socket_peercred(&stream).ok()?;
    peer.uid.is_root().then_some(peer.pid)
}

/// Returns whether a launcher is running from the current program file.
pub(super) fn is_current() -> bool {
    process().is_some_and(|pid| {
        let path = format!("/proc/{}/exe", pid.as_raw_nonzero());
        std::fs::read_link(path).is_ok_and(|program| program == Path::new(PROGRAM))
    })
}

/// Waits until the launcher accepts connections.
pub(super) async fn answers() -> Result<(), SetupError> {
    let since = Instant::now();
    while process().is_none() {
        if since.elapsed() > WAIT_MAX {
            let why = format!(
                "nothing listens on `{LAUNCHER_SOCKET}`, which runs the machine's programs"
            );
            return Err(SetupError::NotServing(why));
        }
        sleep(LOOK).await;
    }
    Ok(())
}

/// Ends the running launcher and its programs.
pub(super) async fn end() -> Result<(), SetupError> {
    let Some(pid) = process() else {
        return Ok(());
    };
    if let Ok(process) = pidfd_open(pid, PidfdFlags::empty()) {
        let _ = pidfd_send_signal(&process, Signal::TERM);
    }
    let since = Instant::now();
    while process() == Some(pid) {
        if since.elapsed() > WAIT_MAX {
            let why = "the old launcher did not end in time".to_owned();
            return Err(SetupError::NotServing(why));
        }
        sleep(LOOK).await;
    }
    Ok(())
}

/// Starts a launcher without a supervisor.
pub(super) fn start() -> Result<(), SetupError> {
    if let Some(folder) = Path::new(LAUNCHER_SOCKET).parent() {
        let mut parents = std::fs::DirBuilder::new();
        let made = parents.recursive(true).mode(0o755).create(folder);
        made.map_err(failed("cannot create the launcher's folder"))?;
    }
    let mut command = Command::new(PROGRAM);
    command
        .args([LAUNCHER, LAUNCHER_SOCKET, SERVICES])
        .env_clear()
        .env("PATH", PATH)
        .current_dir("/")
        .process_group(0)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let started = command.spawn();
    started
        .map(drop)
        .map_err(failed("the launcher cannot be started"))
}
