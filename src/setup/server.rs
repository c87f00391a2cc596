//! Watches the machine's server from outside: its process and its policy. Stops and starts it if no supervisor does.

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use tokio::process::Command;
use tokio::time::sleep;

use super::SetupError;
use super::failed;
use crate::account::Account;
use crate::edge::PROVIDER_FOLDER;
use crate::machine_state::{LAUNCHER_SOCKET, PATH, PROGRAM, PROGRAM_LAUNCHER, STOP_SECONDS};
use crate::mcp::listen::ServerStatus;
use crate::mcp::listen::folder::SocketFolder;
use crate::text::Foreign;
use crate::tool::Surroundings;

/// Maximum time for a server to report a policy: it checks for one several times a second.
pub(crate) const REPORT_MAX: Duration = Duration::from_secs(20);
/// Maximum time for a server to end, including its running calls.
const END_MAX: Duration = Duration::from_secs(STOP_SECONDS);
/// Interval between checks.
const LOOK: Duration = Duration::from_millis(20);

fn folder() -> &'static Path {
    Path::new(PROVIDER_FOLDER)
}

/// Reads the status of a folder's server, if one is running.
fn status(folder: &Path) -> Option<ServerStatus> {
    // The status comes first: checking the lock would disturb a server that is just starting and has no status yet.
    let text = SocketFolder::status(folder).ok()?;
    let status = serde_json::from_slice(&text).ok()?;
    SocketFolder::is_served(folder)
        .unwrap_or_default()
        .then_some(status)
}

/// Returns the locations of the user's portal, clipboard and keys: those that the server uses, or would use.
pub(crate) fn surroundings(account: &Account) -> Surroundings {
    let is_theirs = std::fs::symlink_metadata(folder()).is_ok_and(|is| is.uid() == account.uid);
    let served = is_theirs.then(|| status(folder())).flatten();
    // An earlier version of the server does not report them.
    let said = served.and_then(|status| status.surroundings);
    said.unwrap_or_else(|| account.surroundings())
}

/// Returns whether a server is running from the current program file.
pub(super) fn is_current() -> bool {
    status(folder()).is_some_and(|status| runs(&status, Path::new(PROGRAM)))
}

/// Returns whether the server with this status is running from this program file.
fn runs(status: &ServerStatus, program: &Path) -> bool {
    let runs = std::fs::read_link(format!("/proc/{}/exe", status.pid));
    runs.is_ok_and(|path| path == program)
}

/// Waits until the machine's server reports this policy.
pub(super) async fn reports(digest: &str) -> Result<(), SetupError> {
    reports_within(REPORT_MAX, folder(), Path::new(PROGRAM), digest).await
}

async fn reports_within(
    timeout: Duration,
    folder: &Path,
    program: &Path,
    digest: &str,
) -> Result<(), SetupError> {
    let start = Instant::now();
    loop {
        let status = status(folder);
        let fits = |status: &ServerStatus| {
            status.digest.raw() == digest
                && status.refused.is_none()
                && status.failed.is_empty()
                && runs(status, program)
        };
        if status.as_ref().is_some_and(fits) {
            return Ok(());
        }
        if start.elapsed() >= timeout {
            return Err(SetupError::NotServing(match status {
                None => format!("no server is running in `{}`", folder.display()),
                Some(ServerStatus {
                    refused: Some(why), ..
                }) => why.escaped(),
                Some(status) if status.digest.raw() == digest => {
                    let failed: Vec<String> = status.failed.iter().map(Foreign::escaped).collect();
                    failed.join("; ")
                }
                Some(status) => format!("it reports {}", status.digest.escaped()),
            }));
        }
        sleep(LOOK).await;
    }
}

/// Returns whether a process is the server: it is running the program, even if replaced, as the folder's owner.
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

/// Ends the running server once its calls have been answered.
pub(super) async fn end() -> Result<(), SetupError> {
    let Some(pid) = status(folder())
        .and_then(|status| i32::try_from(status.pid).ok())
        .and_then(Pid::from_raw)
    else {
        return Ok(());
    };
    // An untrusted user wrote this number: only that user's server gets the signal. The descriptor keeps the signal
    // from reaching a later process with the same number.
    if let Ok(process) = pidfd_open(pid, PidfdFlags::empty())
        && is_server(pid)
    {
        let _ = pidfd_send_signal(&process, Signal::TERM);
    }
    let start = Instant::now();
    // A server whose state is unknown counts as running.
    while SocketFolder::is_served(folder()).unwrap_or(true) {
        if start.elapsed() > END_MAX {
            return Err(SetupError::NotServing(
                "the old server did not end in time".to_owned(),
            ));
        }
        sleep(LOOK).await;
    }
    Ok(())
}

/// Starts a server without a supervisor.
pub(super) fn start(account: &Account) -> Result<(), SetupError> {
    let mut command = Command::new(PROGRAM);
    command
        .args(["mcp", "serve", "--listen", PROVIDER_FOLDER])
        .env_clear()
        .env("PATH", PATH)
        .env(PROGRAM_LAUNCHER, LAUNCHER_SOCKET)
        .current_dir("/")
        .process_group(0)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let started = account.runs(&mut command, &account.surroundings()).spawn();
    started
        .map(drop)
        .map_err(failed("the server cannot be started"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::services::Services;

    /// Waits for a server with this status to report a policy.
    async fn waited(
        timeout: Duration,
        status: &ServerStatus,
        program: &Path,
        digest: &str,
    ) -> String {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("mcp");
        let served = SocketFolder::take(&path).unwrap();
        std::fs::write(
            SocketFolder::status_file(&path),
            serde_json::to_vec(status).unwrap(),
        )
        .unwrap();
        let done = reports_within(timeout, &path, program, digest).await;
        drop(served);
        done.map_or_else(|why| why.to_string(), |()| "reported".to_owned())
    }

    fn status(digest: &str) -> ServerStatus {
        let services = serde_json::json!({"machine": "signer", "services": []});
        let services: Services = serde_json::from_value(services).unwrap();
        ServerStatus {
            pid: std::process::id(),
            version: "".into(),
            services,
            digest: digest.into(),
            refused: None,
            failed: Vec::new(),
            unlogged: None,
            surroundings: None,
            confinement: None,
            launcher: None,
        }
    }

    #[tokio::test]
    async fn setup_accepts_only_a_server_of_this_program_that_reports_the_sent_policy() {
        let own = std::env::current_exe().unwrap();
        let said = "the server does not report the policy that was sent: ";
        let now = Duration::ZERO;
        assert_eq!(waited(now, &status("a"), &own, "a").await, "reported");
        let other = waited(now, &status("b"), &own, "a").await;
        assert_eq!(other, format!("{said}it reports b"));
        let refused = ServerStatus {
            refused: Some("no JSON".into()),
            ..status("a")
        };
        let refused = waited(now, &refused, &own, "a").await;
        assert_eq!(refused, format!("{said}no JSON"));
        let failed = ServerStatus {
            failed: vec!["one".into(), "two".into()],
            ..status("a")
        };
        let failed = waited(now, &failed, &own, "a").await;
        assert_eq!(failed, format!("{said}one; two"));
        // An old program reports the new policy.
        let old = waited(now, &status("a"), Path::new("/bin/false"), "a").await;
        assert!(old.starts_with(said), "{old}");
        let nobody = Path::new("/nowhere");
        let none = reports_within(now, nobody, &own, "a").await.unwrap_err();
        let none = none.to_string();
        assert_eq!(none, format!("{said}no server is running in `/nowhere`"));
    }
}
