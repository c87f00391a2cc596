//! Runs programs of GnuPG: starts them, feeds them, waits for their end, and kills them when nobody waits any more.

use std::ffi::{OsStr, OsString};
use std::io;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::Arc;

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::{Child, Command};

use super::configuration::Configuration;
use super::fault::{GpgFault, NoAgent};
use super::launcher::{self, GPGCONF, LauncherServer};
use crate::tool::{Settings, ToolError, environment};

/// Maximum size of the output of a program that is read, in bytes: a signature, a public key, a listing of keys, status lines.
const OUTPUT_MAX: u64 = 1024 * 1024;
/// Options of every gpg. Of the user's options only those in [`Configuration`] apply.
const ALWAYS: [&str; 10] = [
    "--no-options",
    "--batch",
    "--no-tty",
    "--disable-dirmngr",
    // An agent that gpg starts would end with this process, and be confined like it.
    "--no-autostart",
    "--no-auto-check-trustdb",
    // gpg writes nothing into the folder of keys, where the agent reads which programs to run.
    "--lock-never",
    "--no-random-seed-file",
    "--trust-model",
    "always",
];

#[derive(Debug)]
pub(super) struct GnuPg {
    pub(super) settings: Arc<Settings>,
    /// The user's own options.
    pub(super) configuration: Configuration,
}

/// A running program. Dropped, its process group is killed; the agent lives on.
#[derive(Debug)]
pub(super) struct RunningGpg(Child);

#[derive(Debug)]
pub(super) struct GpgEnd {
    pub(super) success: bool,
    pub(super) stdout: String,
    pub(super) stderr: String,
}

impl GnuPg {
    /// Without the user's options.
    pub(super) fn new(settings: Arc<Settings>) -> Self {
        Self {
            settings,
            configuration: Configuration::default(),
        }
    }

    /// Finds the folder of keys and reads the user's options, for a signature by this key.
    pub(super) async fn find(
        settings: &Arc<Settings>,
        key: Option<&str>,
    ) -> Result<Self, ToolError> {
        if let Some(fault) = settings.gpg_home.as_ref().and_then(GpgFault::of_home) {
            return Err(fault.into());
        }
        let mut gnupg = Self::new(Arc::clone(settings));
        let home = gnupg.home().await?;
        if !home.is_dir() {
            return Err(GpgFault::NoSecretKey(key.map(str::to_owned)).into());
        }
        gnupg.configuration =
            Configuration::read(&home).map_err(|why| GpgFault::Configuration(why.to_string()))?;
        Ok(gnupg)
    }

    pub(super) async fn home(&self) -> Result<PathBuf, ToolError> {
        match &self.settings.gpg_home {
            Some(home) => Ok(home.folder()),
            // gpg reads it from the system's list of users.
            None => self.folder("homedir").await,
        }
    }

    /// Returns a folder or socket of GnuPG, by its name in `gpgconf --list-dirs`.
    pub(super) async fn folder(&self, name: &str) -> Result<PathBuf, ToolError> {
        let ended = self.ask(GPGCONF, &["--list-dirs", name]).await?;
        match ended.stdout.trim_end_matches('\n') {
            path if ended.success && !path.is_empty() => Ok(path.into()),
            _ => {
                let message = "gpgconf does not say where its files are";
                Err(GpgFault::Failed(Some(message.to_owned())).into())
            }
        }
    }

    /// Starts one of GnuPG's servers, unless it runs already; success does not mean that it runs.
    pub(super) async fn launch(&self, server: LauncherServer) -> Result<(), ToolError> {
        let Some(socket) = &self.settings.agent_launcher else {
            self.ask(GPGCONF, &["--launch", server.name()]).await?;
            return Ok(());
        };
        let launched = launcher::launch(socket, server).await;
        launched.map_err(|why| GpgFault::NoAgent(NoAgent::Launcher(why.to_string())).into())
    }

    /// Sends the agent a command, if it runs, and returns the answer.
    pub(super) async fn agent(&self, question: &str) -> Result<GpgEnd, ToolError> {
        let arguments = ["--no-autostart", question, "/bye"];
        self.ask(&self.settings.gpg_connect_agent, &arguments).await
    }

    async fn ask(
        &self,
        program: impl AsRef<OsStr>,
        arguments: &[&str],
    ) -> Result<GpgEnd, ToolError> {
        let arguments = arguments.iter().map(OsStr::new);
        self.start(program, arguments, Stdio::null())?.end().await
    }

    /// Runs gpg without stdin.
    pub(super) async fn run(&self, arguments: &[&str]) -> Result<GpgEnd, ToolError> {
        self.gpg(arguments, Stdio::null())?.end().await
    }

    /// Starts gpg.
    pub(super) fn gpg(&self, arguments: &[&str], stdin: Stdio) -> Result<RunningGpg, ToolError> {
        let always = ALWAYS.iter().map(OsStr::new);
        let keyrings = self.configuration.keyrings.iter().map(OsString::as_os_str);
        let arguments = arguments.iter().map(OsStr::new);
        let all = always.chain(keyrings).chain(arguments);
        self.start(&self.settings.gpg, all, stdin)
    }

    fn start<'a>(
        &self,
        program: impl AsRef<OsStr>,
        arguments: impl Iterator<Item = &'a OsStr>,
        stdin: Stdio,
    ) -> Result<RunningGpg, ToolError> {
        let mut command = Command::new(program);
        command.env_clear().envs(environment());
        if let Some(home) = &self.settings.gpg_home {
            command.env(home.variable, &home.path);
        }
        let spawned = command
            .args(arguments)
            .stdin(stdin)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            // A group of its own, so that the children of a wrapper script end with it.
            .process_group(0)
            .kill_on_drop(true)
            .spawn();
        spawned.map(RunningGpg).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => {
                let text = "gpg is not installed on the provider; install GnuPG there";
                ToolError::Unavailable(text.to_owned())
            }
            // The error itself may name a path.
            kind => ToolError::system("start gpg", kind),
        })
    }
}

impl RunningGpg {
    /// Feeds content; false when nobody reads it any more.
    pub(super) async fn feed(&mut self, data: &[u8]) -> bool {
        let Some(stdin) = &mut self.0.stdin else {
            return false;
        };
        // The program's last words say more than this error.
        stdin.write_all(data).await.is_ok()
    }

    /// Closes stdin, and waits for the program's end.
    pub(super) async fn end(mut self) -> Result<GpgEnd, ToolError> {
        self.0.stdin = None;
        let (stdout, stderr) = (self.0.stdout.take(), self.0.stderr.take());
        let (stdout, stderr, status) = tokio::join!(read(stdout), read(stderr), self.0.wait());
        let status = status.map_err(|refused| ToolError::system("wait for gpg", refused))?;
        Ok(GpgEnd {
            success: status.success(),
            stdout,
            stderr,
        })
    }
}

impl Drop for RunningGpg {
    fn drop(&mut self) {
        // `None` once it has been waited for, when the number may be another process's.
        if let Some(group) = self.0.id().and_then(|id| Pid::from_raw(id.cast_signed())) {
            // Fails if it has ended.
            let _ = kill_process_group(group, Signal::KILL);
        }
    }
}

/// Reads an output up to the limit; armor and status lines are UTF-8.
async fn read(from: Option<impl AsyncRead + Unpin>) -> String {
    let mut bytes = Vec::new();
    if let Some(from) = from {
        // The output before an error still counts.
        let _ = from.take(OUTPUT_MAX).read_to_end(&mut bytes).await;
    }
    String::from_utf8_lossy(&bytes).into_owned()
}
