//! A running gpg: started with a command line of ours, fed, waited for, and ended with whoever waits for it.

use std::ffi::OsStr;
use std::io;
use std::process::Stdio;

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::{Child, ChildStdin, Command};

use super::fault::GpgFault;
use super::status::{self, Created};
use crate::tool::{Settings, ToolError};

/// Most that is read of what gpg writes, in bytes: a signature or a public key, and its status lines.
const OUTPUT_MAX: u64 = 1024 * 1024;

/// A running gpg. Dropped, it and what it started in its process group are killed; its agent lives on.
#[derive(Debug)]
pub(super) struct Gpg {
    child: Child,
    stdin: Option<ChildStdin>,
}

/// A finished signature.
#[derive(Debug)]
pub(super) struct Signature {
    /// ASCII-armored.
    pub(super) text: String,
    pub(super) created: Created,
}

/// What a gpg that ended had written.
struct Ended {
    success: bool,
    stdout: String,
    stderr: String,
}

impl Gpg {
    /// Starts a gpg that signs its stdin.
    ///
    /// `key` has been checked by the catalogue; it is the value of an option and can never be one.
    pub(super) fn sign(settings: &Settings, key: Option<&str>) -> Result<Self, ToolError> {
        let mut arguments: Vec<&OsStr> = ["--status-fd", "2", "--armor", "--no-textmode"]
            .map(OsStr::new)
            .to_vec();
        if let Some(key) = key {
            arguments.extend(["--local-user", key].map(OsStr::new));
        }
        arguments.extend(["--output", "-", "--detach-sign"].map(OsStr::new));
        Self::start(settings, &arguments, Stdio::piped())
    }

    /// The public part of a key, ASCII-armored.
    pub(super) async fn export(
        settings: &Settings,
        fingerprint: &str,
    ) -> Result<String, ToolError> {
        let arguments = [
            "--armor",
            "--export-options",
            "export-minimal",
            "--export",
            fingerprint,
        ];
        let gpg = Self::start(settings, &arguments.map(OsStr::new), Stdio::null())?;
        let ended = gpg.end().await?;
        if ended.success && !ended.stdout.is_empty() {
            Ok(ended.stdout)
        } else {
            Err(GpgFault::Failed(Some("no public key to go with the signature".to_owned())).into())
        }
    }

    fn start(settings: &Settings, arguments: &[&OsStr], stdin: Stdio) -> Result<Self, ToolError> {
        if let Some(fault) = settings.gpg_home.as_ref().and_then(GpgFault::of_home) {
            return Err(fault.into());
        }
        let mut child = Command::new(&settings.gpg)
            .args(["--batch", "--no-tty", "--disable-dirmngr"])
            .args(arguments)
            .stdin(stdin)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            // A group of its own, so that what a wrapper script started ends with it.
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .map_err(|refused| not_started(&refused))?;
        let stdin = child.stdin.take();
        Ok(Self { child, stdin })
    }

    /// Feeds content; false when gpg has stopped reading.
    pub(super) async fn feed(&mut self, data: &[u8]) -> bool {
        let Some(stdin) = &mut self.stdin else {
            return false;
        };
        // Whatever the error is, gpg's own last words say more.
        stdin.write_all(data).await.is_ok()
    }

    /// Ends the content and waits for the signature.
    pub(super) async fn finish(self, key: Option<String>) -> Result<Signature, ToolError> {
        let ended = self.end().await?;
        match Created::find(&ended.stderr) {
            Some(created) if ended.success && !ended.stdout.is_empty() => Ok(Signature {
                text: ended.stdout,
                created,
            }),
            _ => Err(status::fault(&ended.stderr, key).into()),
        }
    }

    async fn end(mut self) -> Result<Ended, ToolError> {
        self.stdin = None;
        let (stdout, stderr) = (self.child.stdout.take(), self.child.stderr.take());
        let (stdout, stderr, status) = tokio::join!(read(stdout), read(stderr), self.child.wait());
        let status = status.map_err(|refused| ToolError::system("wait for gpg", refused))?;
        Ok(Ended {
            success: status.success(),
            stdout,
            stderr,
        })
    }
}

impl Drop for Gpg {
    fn drop(&mut self) {
        // Its number is its own until it has been waited for.
        let group = self
            .child
            .id()
            .and_then(|id| Pid::from_raw(id.cast_signed()));
        if let Some(group) = group {
            // Gone already is as good.
            let _ = kill_process_group(group, Signal::KILL);
        }
    }
}

/// All that comes, up to the limit; what is no UTF-8 is no armor and no status line either.
async fn read(from: Option<impl AsyncRead + Unpin>) -> String {
    let mut bytes = Vec::new();
    if let Some(from) = from {
        // What came before an error is still what gpg said.
        let _ = from.take(OUTPUT_MAX).read_to_end(&mut bytes).await;
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn not_started(refused: &io::Error) -> ToolError {
    if refused.kind() == io::ErrorKind::NotFound {
        let text = "gpg is not installed on the provider; install GnuPG there";
        return ToolError::Unavailable(text.to_owned());
    }
    ToolError::system("start gpg", io::Error::from(refused.kind()))
}
