//! The tools' settings: the locations that they use, and their limits.

use std::collections::BTreeMap;
use std::env;
use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::file::Usage;
use super::gpg::WAITING_MAX;
use super::ssh::AGENT;
use crate::limits::{IDLE, IN_FLIGHT};
use crate::machine_state::AGENT_LAUNCHER;

const PORTAL: &str = "/srv/anklume/portal";
/// The variable that names the key folder itself.
const KEYS: &str = "GNUPGHOME";
/// The variables that locate a user's portal, clipboard and keys. Two servers with equal values share all three.
const VARIABLES: [&str; 9] = [
    "ANKLUME_MCP_PORTAL",
    "XDG_RUNTIME_DIR",
    "WAYLAND_DISPLAY",
    "DISPLAY",
    "XAUTHORITY",
    KEYS,
    AGENT,
    "HOME",
    AGENT_LAUNCHER,
];
/// The other variables of a process that a server or a tool starts: program locations, the user, the language, and
/// the terminal or session for a pinentry.
const PASSED: [&str; 15] = [
    "PATH",
    "USER",
    "LOGNAME",
    "LANG",
    "LANGUAGE",
    "LC_ALL",
    "LC_CTYPE",
    "LC_MESSAGES",
    "TZ",
    "TMPDIR",
    "TERM",
    "GPG_TTY",
    "DBUS_SESSION_BUS_ADDRESS",
    "ANKLUME_AUDIT_LOG",
    // Only for test builds.
    "ANKLUME_PROBE",
];
/// Maximum time that gpg may take: somebody may be looking up a passphrase for a pinentry.
const GPG_WAIT: Duration = Duration::from_secs(300);
/// Maximum time that a display, or the program that owns its clipboard, may take to answer.
const DISPLAY_WAIT: Duration = Duration::from_secs(5);
/// Maximum number of bytes that one consumer may leave in its portal folder.
const INCOMING_MAX: u64 = 1024 * 1024 * 1024;

/// The settings of this server's tools.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The only folder that `file_accept` and `file_provide` see (`ANKLUME_MCP_PORTAL`).
    pub portal: PathBuf,
    /// Folder of the clipboard file, which is used without a display (`$XDG_RUNTIME_DIR/anklume`).
    pub runtime: PathBuf,
    /// The display whose clipboard is used; without one, a file is used.
    pub display: Option<Display>,
    /// Maximum time that the display, or the program that owns its clipboard, may take to answer.
    pub display_wait: Duration,
    /// This program, which holds the clipboard of a display after the server has ended.
    pub program: PathBuf,
    /// The gpg program: a path, or a name to search for.
    pub gpg: PathBuf,
    /// The program that talks to gpg's agent.
    pub gpg_connect_agent: PathBuf,
    /// The socket of the agent's launcher; `None` if this process starts the agent itself.
    pub agent_launcher: Option<PathBuf>,
    /// The home folder of the user, in which SSH keeps its keys (`HOME`).
    pub home: Option<PathBuf>,
    /// gpg's key folder, if the environment names it.
    pub gpg_home: Option<GpgHome>,
    /// Maximum time that gpg may take.
    pub gpg_wait: Duration,
    /// Idle deadline for piecewise transfers.
    pub idle: Duration,
    /// Maximum number of bytes that one consumer may leave in its folder of the portal.
    pub incoming_max: u64,
    pub(super) usage: Usage,
    /// Permits for piecewise signatures, each of which keeps a gpg waiting.
    pub(super) open_signatures: Arc<Semaphore>,
    /// Permits for all signatures: one that is waiting for its next piece counts as a call in flight.
    pub(super) signatures: Arc<Semaphore>,
    /// The permit to take up a transfer that broke, which reads up to gigabytes for one short request.
    resumptions: Arc<Semaphore>,
}

/// The error for a portal whose path is not absolute.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`ANKLUME_MCP_PORTAL` is `{}`, but the portal must be an absolute path",
    .0.display().to_string().escape_debug()
)]
pub struct RelativePortal(PathBuf);

/// The folder from which gpg finds its keys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GpgHome {
    /// The variable that names it: `GNUPGHOME`, or `HOME`, in which gpg creates its own folder.
    pub variable: &'static str,
    /// The folder.
    pub path: PathBuf,
}

/// A display, as the environment names it to programs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Display {
    /// `WAYLAND_DISPLAY`
    pub wayland: Option<OsString>,
    /// `DISPLAY`
    pub x11: Option<OsString>,
}

impl Settings {
    /// Returns default settings with these two folders and no display.
    #[must_use]
    pub fn new(portal: PathBuf, runtime: PathBuf) -> Self {
        Self {
            portal,
            runtime,
            display: None,
            display_wait: DISPLAY_WAIT,
            // Works even after the file has been replaced.
            program: PathBuf::from("/proc/self/exe"),
            gpg: PathBuf::from("gpg"),
            gpg_connect_agent: PathBuf::from("gpg-connect-agent"),
            agent_launcher: None,
            home: None,
            gpg_home: None,
            gpg_wait: GPG_WAIT,
            idle: IDLE,
            incoming_max: INCOMING_MAX,
            usage: Usage::default(),
            open_signatures: Arc::new(Semaphore::new(WAITING_MAX)),
            signatures: Arc::new(Semaphore::new(IN_FLIGHT as usize)),
            resumptions: Arc::new(Semaphore::new(1)),
        }
    }

    /// Returns whether the environment names gpg's key folder itself, which must then exist.
    pub(super) fn names_gnupg_home(&self) -> bool {
        self.gpg_home
            .as_ref()
            .is_some_and(|home| home.variable == KEYS)
    }

    /// Waits for the permit to take up a transfer, if `wanted`.
    pub(super) async fn resumption(&self, wanted: bool) -> Option<OwnedSemaphorePermit> {
        let permits = Arc::clone(&self.resumptions);
        // The semaphore is never closed.
        if wanted {
            permits.acquire_owned().await.ok()
        } else {
            None
        }
    }

    /// Limits the number of simultaneous signatures, including those that are waiting for their next piece.
    pub(crate) fn limit_signatures(&mut self, in_flight: u32) {
        self.signatures = Arc::new(Semaphore::new(in_flight as usize));
    }

    /// Reads settings from the environment: `ANKLUME_MCP_PORTAL`, `XDG_RUNTIME_DIR`, `WAYLAND_DISPLAY`, `DISPLAY`,
    /// `GNUPGHOME`, `HOME`, `ANKLUME_GPG_AGENT_LAUNCHER`.
    ///
    /// # Errors
    ///
    /// The portal path is not absolute.
    pub fn from_env() -> Result<Self, RelativePortal> {
        let portal = portal(variable("ANKLUME_MCP_PORTAL"))?;
        let runtime = variable("XDG_RUNTIME_DIR").map(PathBuf::from);
        // Its specification says that a relative path must be ignored.
        let runtime = runtime.filter(|folder| folder.is_absolute());
        let runtime =
            runtime.unwrap_or_else(|| format!("/run/user/{}", rustix::process::geteuid()).into());
        Ok(Self {
            display: Display::from_env(),
            home: variable("HOME").map(PathBuf::from),
            gpg_home: GpgHome::from_env(),
            agent_launcher: variable(AGENT_LAUNCHER).map(PathBuf::from),
            ..Self::new(portal, runtime.join("anklume"))
        })
    }
}

/// Returns the environment of a process that a server or a tool starts.
pub(crate) fn environment() -> impl Iterator<Item = (&'static str, OsString)> {
    let names = VARIABLES.into_iter().chain(PASSED);
    names.filter_map(|name| Some((name, variable(name)?)))
}

/// A server's [`VARIABLES`]: the locations of its user's portal, clipboard and keys. A missing variable is unset.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Surroundings(BTreeMap<String, String>);

impl Surroundings {
    /// Returns the variables of this process.
    #[must_use]
    pub fn from_env() -> Self {
        let set = VARIABLES.iter().filter_map(|name| {
            // JSON cannot carry a value that is not UTF-8.
            let value = variable(name)?.into_string().ok()?;
            Some(((*name).to_owned(), value))
        });
        Self(set.collect())
    }

    /// Returns the variables of a user who has set none.
    #[must_use]
    pub fn of_user(home: &str, runtime: &str) -> Self {
        let set = [("HOME", home), ("XDG_RUNTIME_DIR", runtime)];
        let set = set.map(|(name, value)| (name.to_owned(), value.to_owned()));
        Self(set.into())
    }

    /// Returns every variable with its value; `None` if it is unset or empty.
    pub fn variables(&self) -> impl Iterator<Item = (&'static str, Option<&str>)> {
        VARIABLES.into_iter().map(|name| {
            let value = self.0.get(name).map(String::as_str);
            (name, value.filter(|value| !value.is_empty()))
        })
    }

    /// Returns whether the variables equal those of this process.
    #[must_use]
    pub fn are_ours(&self) -> bool {
        let ours = Self::from_env();
        self.variables().eq(ours.variables())
    }
}

impl GpgHome {
    pub(super) fn folder(&self) -> PathBuf {
        match self.variable {
            KEYS => self.path.clone(),
            _ => self.path.join(".gnupg"),
        }
    }

    /// Finds the folder as gpg does; gpg reads the system's user database if neither variable is set.
    fn from_env() -> Option<Self> {
        [KEYS, "HOME"].into_iter().find_map(|name| {
            Some(Self {
                variable: name,
                path: variable(name)?.into(),
            })
        })
    }
}

impl Display {
    /// Returns whether it may be on another machine: `host:number` may be, as with `ssh -X`; `:number` is not.
    #[must_use]
    pub fn is_remote(&self) -> bool {
        self.x11.as_ref().is_some_and(|name| {
            let name = name.to_string_lossy();
            !name.starts_with(':') && !name.starts_with("unix:") && !name.starts_with('/')
        })
    }

    fn from_env() -> Option<Self> {
        let display = Self {
            wayland: variable("WAYLAND_DISPLAY"),
            x11: variable("DISPLAY"),
        };
        (display.wayland.is_some() || display.x11.is_some()).then_some(display)
    }
}

/// Returns the named portal, or the default. A relative path is refused, because a server may be started from anywhere.
fn portal(named: Option<OsString>) -> Result<PathBuf, RelativePortal> {
    let portal = named.map_or_else(|| PORTAL.into(), PathBuf::from);
    if portal.is_absolute() {
        Ok(portal)
    } else {
        Err(RelativePortal(portal))
    }
}

/// Returns an environment variable, unless it is unset or empty.
fn variable(name: &str) -> Option<OsString> {
    env::var_os(name).filter(|value| !value.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_portal_is_named_by_its_absolute_path() {
        assert_eq!(portal(None), Ok(PORTAL.into()));
        assert_eq!(portal(Some("/p".into())), Ok("/p".into()));
        assert_eq!(
            portal(Some("p/q".into())).unwrap_err().to_string(),
            "`ANKLUME_MCP_PORTAL` is `p/q`, but the portal must be an absolute path"
        );
    }
}
