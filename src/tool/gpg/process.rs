//! Programs of GnuPG that run: started with a command line of ours, fed, waited for, and ended with whoever waits for them.

use std::ffi::{OsStr, OsString};
use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::{Child, ChildStdin, Command};

use super::configuration::Configuration;
use super::fault::{GpgFault, NoAgent};
use super::launcher::{self, LauncherServer};
use crate::tool::{Settings, ToolError, environment};

/// Most that is read of what one of them writes, in bytes: a signature, a public key, a listing of keys, status lines.
const OUTPUT_MAX: u64 = 1024 * 1024;
/// Options for every gpg. Of the user's options only those in [`Configuration`] hold.
const ALWAYS: [&str; 10] = [
    "--no-options",
    "--batch",
    "--no-tty",
    "--disable-dirmngr",
    // An agent that gpg starts would end with us, and be held to what we are.
    "--no-autostart",
    "--no-auto-check-trustdb",
    // It writes nothing into the folder of keys, where the agent reads what it is to run.
    "--lock-never",
    "--no-random-seed-file",
    "--trust-model",
    "always",
];

/// The GnuPG of the server's user.
#[derive(Debug)]
pub(super) struct GnuPg<'s> {
    settings: &'s Settings,
    /// The user's own options.
    pub(super) configuration: Configuration,
}

/// A running program. Dropped, it and what it started in its process group are killed; its agent lives on.
#[derive(Debug)]
pub(super) struct RunningGpg {
    child: Child,
    stdin: Option<ChildStdin>,
}

/// The output of a program that ended.
#[derive(Debug)]
pub(super) struct GpgEnd {
    pub(super) success: bool,
    pub(super) stdout: String,
    pub(super) stderr: String,
}

impl<'s> GnuPg<'s> {
    /// The same as one that was found before.
    pub(super) const fn again(settings: &'s Settings, configuration: Configuration) -> Self {
        Self {
            settings,
            configuration,
        }
    }

    /// Finds the folder of keys, and what holds there, for a signature by this key.
    pub(super) async fn find(settings: &'s Settings, key: Option<&str>) -> Result<Self, ToolError> {
        if let Some(fault) = settings.gpg_home.as_ref().and_then(GpgFault::of_home) {
            return Err(fault.into());
        }
        let mut found = Self::again(settings, Configuration::default());
        let home = found.home().await?;
        if !home.is_dir() {
            return Err(GpgFault::no_secret_key(key.map(str::to_owned)).into());
        }
        found.configuration =
            Configuration::read(&home).map_err(|why| GpgFault::Configuration(why.to_string()))?;
        Ok(found)
    }

    /// The folder of keys.
    pub(super) async fn home(&self) -> Result<PathBuf, ToolError> {
        match &self.settings.gpg_home {
            Some(home) => Ok(home.folder()),
            // The system's list of users says it, which gpg reads.
            None => self.folder("homedir").await,
        }
    }

    /// A folder or socket of GnuPG's, by its name in `gpgconf --list-dirs`.
    pub(super) async fn folder(&self, name: &str) -> Result<PathBuf, ToolError> {
        let ended = self
            .ask(&self.settings.gpgconf, &["--list-dirs", name])
            .await?;
        match ended.stdout.trim_end_matches('\n') {
            path if ended.success && !path.is_empty() => Ok(path.into()),
            _ => Err(
                GpgFault::Failed(Some("gpgconf does not say where its files are".to_owned()))
                    .into(),
            ),
        }
    }

    /// Starts one of GnuPG's servers, unless it runs already. Whether it runs then is seen when it is asked.
    pub(super) async fn launch(&self, server: LauncherServer) -> Result<(), ToolError> {
        let Some(socket) = &self.settings.agent_launcher else {
            let gpgconf = &self.settings.gpgconf;
            return self
                .ask(gpgconf, &["--launch", server.name()])
                .await
                .map(drop);
        };
        let launched = launcher::launch(socket, server).await;
        launched.map_err(|why| GpgFault::NoAgent(NoAgent::Launcher(why.to_string())).into())
    }

    /// Asks the agent something, if it runs; its answer.
    pub(super) async fn agent(&self, question: &str) -> Result<GpgEnd, ToolError> {
        let arguments = ["--no-autostart", question, "/bye"];
        self.ask(&self.settings.gpg_connect_agent, &arguments).await
    }

    /// Runs one of the programs beside gpg.
    async fn ask(&self, program: &Path, arguments: &[&str]) -> Result<GpgEnd, ToolError> {
        let arguments: Vec<&OsStr> = arguments.iter().map(OsStr::new).collect();
        self.start(program, &arguments, Stdio::null())?.end().await
    }

    /// Runs gpg, which reads nothing.
    pub(super) async fn run(&self, arguments: &[&str]) -> Result<GpgEnd, ToolError> {
        self.gpg(arguments, Stdio::null())?.end().await
    }

    /// Starts a gpg that reads its stdin.
    pub(super) fn feed(&self, arguments: &[&str]) -> Result<RunningGpg, ToolError> {
        self.gpg(arguments, Stdio::piped())
    }

    fn gpg(&self, arguments: &[&str], stdin: Stdio) -> Result<RunningGpg, ToolError> {
        let always = ALWAYS.iter().map(OsStr::new);
        let keyrings = self.configuration.keyrings.iter().map(OsString::as_os_str);
        let all: Vec<&OsStr> = always
            .chain(keyrings)
            .chain(arguments.iter().map(OsStr::new))
            .collect();
        self.start(&self.settings.gpg, &all, stdin)
    }

    fn start(
        &self,
        program: &Path,
        arguments: &[&OsStr],
        stdin: Stdio,
    ) -> Result<RunningGpg, ToolError> {
        let mut command = Command::new(program);
        command.env_clear().envs(environment());
        if let Some(home) = &self.settings.gpg_home {
            command.env(home.variable, &home.path);
        }
        let mut child = command
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
        Ok(RunningGpg { child, stdin })
    }
}

impl RunningGpg {
    /// Feeds content; false when nobody reads it any more.
    pub(super) async fn feed(&mut self, data: &[u8]) -> bool {
        let Some(stdin) = &mut self.stdin else {
            return false;
        };
        // Whatever the error is, the program's own last words say more.
        stdin.write_all(data).await.is_ok()
    }

    /// Ends what it reads, and waits for its end.
    pub(super) async fn end(mut self) -> Result<GpgEnd, ToolError> {
        self.stdin = None;
        let (stdout, stderr) = (self.child.stdout.take(), self.child.stderr.take());
        let (stdout, stderr, status) = tokio::join!(read(stdout), read(stderr), self.child.wait());
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
        // What came before an error is still what was said.
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
