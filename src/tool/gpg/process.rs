//! Runs GnuPG programs with some of the user's options: starts them, feeds them, waits for them to finish, and kills
//! them when nobody is waiting for them any more.

use std::env;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;

use rustix::fs::OFlags;
use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::{Child, Command};

use super::fault::{GpgFault, NoAgent};
use super::launcher::{self, GPGCONF, LauncherServer};
use crate::tool::{Settings, ToolError, environment, has_gnupg};

/// Maximum program output that is read, in bytes: a signature, a public key, a key listing, status lines.
const OUTPUT_MAX: u64 = 1024 * 1024;
/// Options for every gpg process. Of the user's options, only those in [`Configuration`] apply.
const ALWAYS: [&str; 10] = [
    "--no-options",
    "--batch",
    "--no-tty",
    "--disable-dirmngr",
    // An agent that gpg starts would end with this process, and be confined like it.
    "--no-autostart",
    "--no-auto-check-trustdb",
    // gpg writes nothing to the key folder, whose files tell the agent which programs to run.
    "--lock-never",
    "--no-random-seed-file",
    "--trust-model",
    "always",
];

const GPG_CONF: &str = "gpg.conf";
/// The configuration file for all GnuPG programs, since 2.3.8.
const COMMON: &str = "common.conf";
/// The byte order mark, which gpg skips.
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";
/// Maximum size of a configuration file, in bytes.
const FILE_MAX: u64 = 1024 * 1024;

#[derive(Debug)]
pub(super) struct GnuPg {
    pub(super) settings: Arc<Settings>,
    pub(super) configuration: Configuration,
}

/// A running program. Dropping it kills its process group; the agent keeps running.
#[derive(Debug)]
pub(super) struct RunningGpg(Child);

#[derive(Debug)]
pub(super) struct GpgEnd {
    pub(super) success: bool,
    pub(super) stdout: String,
    pub(super) stderr: String,
}

impl GnuPg {
    /// Creates a `GnuPg` without the user's options.
    pub(super) fn new(settings: Arc<Settings>) -> Self {
        Self {
            settings,
            configuration: Configuration::default(),
        }
    }

    /// Finds the key folder and reads the user's options, for signing with this key.
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
            if !has_gnupg() {
                return Err(not_installed());
            }
            return Err(GpgFault::NoSecretKey(key.map(str::to_owned)).into());
        }
        gnupg.configuration =
            Configuration::read(&home).map_err(|why| GpgFault::Configuration(why.to_string()))?;
        Ok(gnupg)
    }

    pub(super) async fn home(&self) -> Result<PathBuf, ToolError> {
        match &self.settings.gpg_home {
            Some(home) => Ok(home.folder()),
            // gpg reads it from the system's user database.
            None => self.folder("homedir").await,
        }
    }

    /// Returns a GnuPG folder or socket by its name in `gpgconf --list-dirs`.
    pub(super) async fn folder(&self, name: &str) -> Result<PathBuf, ToolError> {
        let ended = self.ask(GPGCONF, &["--list-dirs", name]).await?;
        match ended.stdout.trim_end_matches('\n') {
            path if ended.success && !path.is_empty() => Ok(path.into()),
            _ => {
                let message = "gpgconf does not report where its files are";
                Err(GpgFault::Failed(Some(message.to_owned())).into())
            }
        }
    }

    /// Starts one of GnuPG's servers unless it is already running; success does not mean that it is running.
    pub(super) async fn launch(&self, server: LauncherServer) -> Result<(), ToolError> {
        let Some(socket) = &self.settings.agent_launcher else {
            self.ask(GPGCONF, &["--launch", server.name()]).await?;
            return Ok(());
        };
        let launched = launcher::launch(socket, server).await;
        launched.map_err(|why| GpgFault::NoAgent(NoAgent::Launcher(why.to_string())).into())
    }

    /// Sends the agent a command, if it is running, and returns the answer.
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
            io::ErrorKind::NotFound => not_installed(),
            // The error itself may name a path.
            kind => ToolError::system("start gpg", kind),
        })
    }
}

fn not_installed() -> ToolError {
    let text = "gpg is not installed on the provider; install GnuPG there";
    ToolError::Unavailable(text.to_owned())
}

impl RunningGpg {
    /// Feeds content to the program; returns false if the program is no longer reading.
    pub(super) async fn feed(&mut self, data: &[u8]) -> bool {
        let Some(stdin) = &mut self.0.stdin else {
            return false;
        };
        // The program's own output says more than this error.
        stdin.write_all(data).await.is_ok()
    }

    /// Closes stdin, and waits for the program to finish.
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
        // `None` once the process has been waited for; then its ID may belong to another process.
        if let Some(group) = self.0.id().and_then(|id| Pid::from_raw(id.cast_signed())) {
            // Fails if it has already ended.
            let _ = kill_process_group(group, Signal::KILL);
        }
    }
}

/// Reads a program's output up to the limit; armor and status lines are UTF-8.
async fn read(from: Option<impl AsyncRead + Unpin>) -> String {
    let mut bytes = Vec::new();
    if let Some(from) = from {
        // The output before an error still counts.
        let _ = from.take(OUTPUT_MAX).read_to_end(&mut bytes).await;
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// The options in the user's `gpg.conf` that apply: the default key, and the locations of keys.
///
/// The others are ignored (`--no-options`): some send the signature elsewhere, sign with a second key, or treat part of
/// the content as a passphrase.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Configuration {
    /// Options for every gpg process.
    pub(super) keyrings: Vec<OsString>,
    /// True if keyboxd keeps the public keys; with `--no-autostart`, gpg does not start it.
    pub(super) uses_keyboxd: bool,
    /// Candidates for the default key, the last named first: gpg uses the last one that exists.
    pub(super) default_keys: Vec<String>,
}

impl Configuration {
    /// Returns the keyring files, resolved as gpg does: those without a slash are in the key folder.
    pub(super) fn files(&self, home: &Path) -> Vec<PathBuf> {
        let user = env::var_os("HOME").map(PathBuf::from);
        let named = self.keyrings.iter().map(Path::new);
        let files = named.filter(|name| !name.to_string_lossy().starts_with("--"));
        files
            .map(|name| match (name.strip_prefix("~"), &user) {
                (Ok(below), Some(user)) => user.join(below),
                _ => home.join(name),
            })
            .collect()
    }

    /// Reads the configuration files in a key folder; a missing file counts as empty.
    pub(super) fn read(home: &Path) -> io::Result<Self> {
        let mut all = Self::of(&contents(&home.join(GPG_CONF))?)?;
        let common = contents(&home.join(COMMON))?;
        let mut lines = common.split(|byte| *byte == b'\n');
        all.uses_keyboxd = lines.any(|line| line.trim_ascii() == b"use-keyboxd");
        Ok(all)
    }

    /// Reads lines as gpg does: an option's long name, white space, its value, possibly quoted; `#` begins a comment.
    fn of(bytes: &[u8]) -> io::Result<Self> {
        let mut all = Self::default();
        let bytes = bytes.strip_prefix(BYTE_ORDER_MARK).unwrap_or(bytes);
        for line in bytes.split(|byte| *byte == b'\n') {
            if line.trim_ascii_start().starts_with(b"#") {
                continue;
            }
            let line = str::from_utf8(line)
                .map_err(io::Error::other)?
                .trim_matches(is_space);
            let (name, value) = line.split_once(is_space).unwrap_or((line, ""));
            let value = unquoted(value.trim_matches(is_space));
            if value.contains('\0') {
                return Err(io::Error::other("a value in it contains a zero byte"));
            }
            match name {
                "default-key" if !value.is_empty() => all.default_keys.insert(0, value.to_owned()),
                "keyring" | "primary-keyring" if !value.is_empty() => {
                    let option = format!("--{name}");
                    all.keyrings.extend([option.into(), value.into()]);
                }
                "no-default-keyring" => all.keyrings.push("--no-default-keyring".into()),
                // Ignored: see `Configuration`.
                _ => {}
            }
        }
        Ok(all)
    }
}

/// Reads a file; returns no bytes if it is missing.
fn contents(path: &Path) -> io::Result<Vec<u8>> {
    // Avoids waiting for a pipe's writer.
    let nonblock = OFlags::NONBLOCK.bits().cast_signed();
    let opened = File::options().read(true).custom_flags(nonblock).open(path);
    let file = match opened {
        Err(why) if why.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        file => file?,
    };
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("it is not a file"));
    }
    let mut bytes = Vec::new();
    file.take(FILE_MAX + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > FILE_MAX {
        return Err(io::Error::other("it is larger than 1 MiB"));
    }
    Ok(bytes)
}

/// Returns whether a character is white space according to C's `isspace`.
const fn is_space(character: char) -> bool {
    character.is_ascii_whitespace() || character == '\u{b}'
}

fn unquoted(value: &str) -> &str {
    let Some(inner) = value.strip_prefix('"') else {
        return value;
    };
    inner.strip_suffix('"').unwrap_or(inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_default_key_and_the_keyrings_are_kept() {
        let text = "\u{feff}# default-key A\n\
            --default-key A\n\
            default-key\u{a0}A\n\
            keyring\n\
            passphrase-fd 0\n\
            \tdefault-key\u{b}B\r\n\
            local-user C\n\
            no-default-keyring\n\
            keyring \"~/my keys.kbx\"\n\
            default-key \"Dora <d@example.org>\"\n\
            default-key\n\
            default-keys E\n\
            output /tmp/x";
        assert_eq!(
            Configuration::of(text.as_bytes()).unwrap(),
            Configuration {
                keyrings: ["--no-default-keyring", "--keyring", "~/my keys.kbx"]
                    .map(OsString::from)
                    .to_vec(),
                uses_keyboxd: false,
                default_keys: vec!["Dora <d@example.org>".to_owned(), "B".to_owned()],
            }
        );
        assert_eq!(Configuration::of(b"").unwrap(), Configuration::default());
        let latin = Configuration::of(b"# caf\xe9\ndefault-key \"A B").unwrap();
        assert_eq!(latin.default_keys, ["A B"]);
        assert!(Configuration::of(b"default-key A\0").is_err());
    }

    #[test]
    fn a_file_that_cannot_be_read_is_not_taken_for_none() {
        let home = tempfile::tempdir().unwrap();
        assert_eq!(
            Configuration::read(home.path()).unwrap(),
            Configuration::default()
        );
        let path = home.path().join(GPG_CONF);
        std::fs::create_dir(&path).unwrap();
        assert!(Configuration::read(home.path()).is_err());
        std::fs::remove_dir(&path).unwrap();
        std::fs::write(&path, vec![b'#'; 1024 * 1024]).unwrap();
        assert!(Configuration::read(home.path()).is_ok());
        std::fs::write(&path, vec![b'#'; 1024 * 1024 + 1]).unwrap();
        assert!(Configuration::read(home.path()).is_err());
        std::fs::write(&path, b"default-key \xff").unwrap();
        assert!(Configuration::read(home.path()).is_err());
        std::fs::remove_file(&path).unwrap();
        std::fs::write(home.path().join(COMMON), "# x\n use-keyboxd\n").unwrap();
        assert!(Configuration::read(home.path()).unwrap().uses_keyboxd);
    }
}
