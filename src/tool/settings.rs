//! Holds where the tools of a server work, and their limits.

use std::collections::BTreeMap;
use std::env;
use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::Semaphore;

use super::file::Usage;
use super::gpg::WAITING_MAX;
use crate::limits::{IDLE, IN_FLIGHT};
use crate::machine_state::AGENT_LAUNCHER;

/// The portal where none is named.
const PORTAL: &str = "/srv/anklume/portal";
/// The variable that names the folder of keys itself.
const KEYS: &str = "GNUPGHOME";
/// The variables that say where a user's portal, clipboard and keys are. Two servers that agree on them share all three.
const VARIABLES: [&str; 8] = [
    "ANKLUME_MCP_PORTAL",
    "XDG_RUNTIME_DIR",
    "WAYLAND_DISPLAY",
    "DISPLAY",
    "XAUTHORITY",
    KEYS,
    "HOME",
    AGENT_LAUNCHER,
];
/// What else of the environment a process may know that a server or a tool starts: where programs are, the user, the language, and
/// where a pinentry may ask.
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
    // Of builds for tests alone.
    "ANKLUME_PROBE",
];
/// Maximum time that gpg may take: somebody may be looking for a passphrase at a pinentry.
const GPG_WAIT: Duration = Duration::from_secs(300);
/// Maximum time that a display, or the program that owns its clipboard, may take to answer.
const DISPLAY_WAIT: Duration = Duration::from_secs(5);
/// Maximum number of bytes that one consumer may leave in its folder of the portal.
const INCOMING_MAX: u64 = 1024 * 1024 * 1024;

/// The settings of the tools of this server.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The only folder that `file_accept` and `file_provide` see (`ANKLUME_MCP_PORTAL`).
    pub portal: PathBuf,
    /// Folder of the clipboard file where there is no display (`$XDG_RUNTIME_DIR/anklume`).
    pub runtime: PathBuf,
    /// The display whose clipboard it is; without one, a file is.
    pub display: Option<Display>,
    /// Longest that it, or the program that owns its clipboard, may take to answer.
    pub display_wait: Duration,
    /// This program: it holds the clipboard of a display after the server has ended.
    pub program: PathBuf,
    /// GnuPG: a path, or a name to look for.
    pub gpg: PathBuf,
    /// The programs that talk to its agent and start one.
    pub gpg_connect_agent: PathBuf,
    /// The variables that name its files.
    pub gpgconf: PathBuf,
    /// Where the launcher of the agent listens; `None`: the agent is started from here.
    pub agent_launcher: Option<PathBuf>,
    /// The key folder of gpg, as far as the environment names it.
    pub gpg_home: Option<GpgHome>,
    /// Longest that gpg may take.
    pub gpg_wait: Duration,
    /// Idle deadline of transfers in pieces.
    pub idle: Duration,
    /// Most bytes that one consumer may leave in its folder of the portal.
    pub incoming_max: u64,
    /// Usage of the portal by consumers, as far as known.
    pub(super) usage: Usage,
    /// Places for signatures in pieces, each of which is a gpg that waits.
    pub(super) open_signatures: Arc<Semaphore>,
    /// Places for signatures of either kind: one that waits for its next piece is a call in flight as well.
    pub(super) signatures: Arc<Semaphore>,
}

/// A portal that depends on where the server is started.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`ANKLUME_MCP_PORTAL` is `{}`, and the portal is named by its absolute path",
    .0.display().to_string().escape_debug()
)]
pub struct RelativePortal(PathBuf);

/// The folder that gpg starts from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GpgHome {
    /// The variable that names it: `GNUPGHOME`, or `HOME`, in which gpg makes its own.
    pub variable: &'static str,
    /// The folder.
    pub path: PathBuf,
}

/// A display, as its programs find it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Display {
    /// `WAYLAND_DISPLAY`
    pub wayland: Option<OsString>,
    /// `DISPLAY`
    pub x11: Option<OsString>,
}

impl Settings {
    /// Settings with these two folders, no display, and everything else as it is by default.
    #[must_use]
    pub fn new(portal: PathBuf, runtime: PathBuf) -> Self {
        Self {
            portal,
            runtime,
            display: None,
            display_wait: DISPLAY_WAIT,
            // Works when the file was replaced while we run.
            program: PathBuf::from("/proc/self/exe"),
            gpg: PathBuf::from("gpg"),
            gpg_connect_agent: PathBuf::from("gpg-connect-agent"),
            gpgconf: PathBuf::from("gpgconf"),
            agent_launcher: None,
            gpg_home: None,
            gpg_wait: GPG_WAIT,
            idle: IDLE,
            incoming_max: INCOMING_MAX,
            usage: Usage::default(),
            open_signatures: Arc::new(Semaphore::new(WAITING_MAX)),
            signatures: places(IN_FLIGHT),
        }
    }

    /// Lets so many signatures be under way at once, those that wait for their next piece included.
    pub(crate) fn limit_signatures(&mut self, in_flight: u32) {
        self.signatures = places(in_flight);
    }

    /// Settings from the environment: `ANKLUME_MCP_PORTAL`, `XDG_RUNTIME_DIR`, `WAYLAND_DISPLAY`, `DISPLAY`, `GNUPGHOME`,
    /// `HOME`.
    ///
    /// # Errors
    ///
    /// A portal that is named and has no absolute path.
    pub fn from_env() -> Result<Self, RelativePortal> {
        let portal = portal(variable("ANKLUME_MCP_PORTAL"))?;
        // A relative XDG_RUNTIME_DIR is to be ignored, says its specification.
        let runtime = variable("XDG_RUNTIME_DIR")
            .map(PathBuf::from)
            .filter(|folder| folder.is_absolute())
            .unwrap_or_else(|| format!("/run/user/{}", rustix::process::geteuid()).into());
        Ok(Self {
            display: Display::from_env(),
            gpg_home: GpgHome::from_env(),
            agent_launcher: variable(AGENT_LAUNCHER).map(PathBuf::from),
            ..Self::new(portal, runtime.join("anklume"))
        })
    }
}

/// The environment of a process that a server or a tool starts.
pub(crate) fn environment() -> impl Iterator<Item = (&'static str, OsString)> {
    let names = VARIABLES.into_iter().chain(PASSED);
    names.filter_map(|name| Some((name, variable(name)?)))
}

/// Where a server finds its user's portal, clipboard and keys: its [`VARIABLES`]. One that is not there is not set.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Surroundings(BTreeMap<String, String>);

impl Surroundings {
    /// Those of this process.
    #[must_use]
    pub fn from_env() -> Self {
        let set = VARIABLES.iter().filter_map(|name| {
            // A value that is no UTF-8 cannot be told to anybody.
            let value = variable(name)?.into_string().ok()?;
            Some(((*name).to_owned(), value))
        });
        Self(set.collect())
    }

    /// Those of a user who has set nothing.
    #[must_use]
    pub fn of_user(home: &str, runtime: &str) -> Self {
        let set = [("HOME", home), ("XDG_RUNTIME_DIR", runtime)];
        Self(
            set.map(|(name, value)| (name.to_owned(), value.to_owned()))
                .into(),
        )
    }

    /// Every variable, and what it is to be; `None`: not set, which is what an empty value is as well.
    pub fn variables(&self) -> impl Iterator<Item = (&'static str, Option<&str>)> {
        VARIABLES.into_iter().map(|name| {
            let value = self.0.get(name).map(String::as_str);
            (name, value.filter(|value| !value.is_empty()))
        })
    }

    /// Returns whether these are those of this process, as far as programs look at them.
    #[must_use]
    pub fn are_ours(&self) -> bool {
        let ours = Self::from_env();
        self.variables().eq(ours.variables())
    }
}

impl GpgHome {
    /// The folder of keys.
    pub(super) fn folder(&self) -> PathBuf {
        if self.variable == KEYS {
            self.path.clone()
        } else {
            self.path.join(".gnupg")
        }
    }

    /// As gpg looks for it; where neither variable is set it asks the system's list of users.
    fn from_env() -> Option<Self> {
        [KEYS, "HOME"].into_iter().find_map(|name| {
            let path = variable(name)?.into();
            let variable = name;
            Some(Self { variable, path })
        })
    }
}

impl Display {
    /// Returns whether it may be on another machine: `host:number` is, as after `ssh -X`; `:number` is not.
    #[must_use]
    pub fn is_remote(&self) -> bool {
        let local = |name: &OsString| {
            let name = name.to_string_lossy();
            name.starts_with(':') || name.starts_with("unix:") || name.starts_with('/')
        };
        self.x11.as_ref().is_some_and(|name| !local(name))
    }

    fn from_env() -> Option<Self> {
        let display = Self {
            wayland: variable("WAYLAND_DISPLAY"),
            x11: variable("DISPLAY"),
        };
        (display.wayland.is_some() || display.x11.is_some()).then_some(display)
    }
}

/// The portal as named; another than the default only by an absolute path, as a server may be started anywhere.
fn portal(named: Option<OsString>) -> Result<PathBuf, RelativePortal> {
    let portal = named.map_or_else(|| PORTAL.into(), PathBuf::from);
    if portal.is_absolute() {
        Ok(portal)
    } else {
        Err(RelativePortal(portal))
    }
}

/// A variable of the environment; empty is as good as not set.
fn places(number: u32) -> Arc<Semaphore> {
    let number = usize::try_from(number).unwrap_or(Semaphore::MAX_PERMITS);
    Arc::new(Semaphore::new(number.min(Semaphore::MAX_PERMITS)))
}

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
            "`ANKLUME_MCP_PORTAL` is `p/q`, and the portal is named by its absolute path"
        );
    }
}
