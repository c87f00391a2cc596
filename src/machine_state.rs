//! Compares what a machine should hold of anklume with what was found there.
//!
//! Pure. [`crate::plan`] compares, `apply` looks and pushes, [`crate::setup`] puts in order what is in the machine.

mod drift;
mod observed;
mod rights;
mod unit;

pub use drift::{Drift, DriftKind, differences, summary};
pub use observed::{FoundServices, ObservedMachine, Serving};
pub use rights::{
    ABOVE, CallerUser, FILE_MODE, FOLDER_MODE, FOLDERS, PASS, PROGRAM_MODE, Rights, ours,
};
pub use unit::{LOGS, PATH, RUNTIME, STOP_SECONDS, Unit, systemd_wanted, unit_paths, units};

use serde::{Deserialize, Serialize};

use crate::name::MachineName;
use crate::services::{Services, ServicesFault};
use crate::text::Foreign;

/// The folder of the program.
pub const PROGRAM_FOLDER: &str = "/opt/anklume";
/// The program.
pub const PROGRAM: &str = "/opt/anklume/anklume";
/// Prefix of a program file that is being pushed, in the program's folder.
pub const FRESH_PREFIX: &str = "anklume.new-";
/// The command by which the program puts a machine in order.
pub const SETUP: &str = "machine-setup";
/// Held locked by who puts a machine in order; nobody else can open it.
pub const SETUP_LOCK: &str = "/etc/anklume/.lock";
/// The command by which the program asks a provider what it offers the machine.
pub const ASK: &str = "machine-ask";
/// A link to the program, where a shell finds it.
pub const LINK: &str = "/usr/local/bin/anklume";
/// The folder of what the program is told.
pub const ETC: &str = "/etc/anklume";
/// Says that this is a machine of anklume's, which one, and by whom it is served ([`Identity`]).
pub const IDENTITY: &str = "/etc/anklume/machine";
/// The services that the machine's server serves ([`Services`]).
pub const SERVICES: &str = "/etc/anklume/services.json";
/// Name of the service at the machine's supervisor.
pub const UNIT: &str = "anklume-mcp";
/// Name of the service that starts its gpg-agent.
pub const AGENT_UNIT: &str = "anklume-gpg-agent";
/// The command by which the program starts it.
pub const LAUNCH: &str = "gpg-agent-launcher";
/// The variable that tells a server where the launcher listens; without it, it starts the agent itself.
pub const AGENT_LAUNCHER: &str = "ANKLUME_GPG_AGENT_LAUNCHER";

/// The specification of a machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MachineSpec {
    /// SHA-256 of the program.
    pub program: String,
    /// The machine.
    pub machine: MachineName,
    /// The user that serves; `None`: root.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run_as: Option<String>,
    /// The user who may call from it.
    #[serde(default)]
    pub caller: CallerUser,
    /// The text of its services file; `None`: it serves nobody.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub services: Option<String>,
}

impl MachineSpec {
    /// Of a machine that serves these, or nobody.
    #[must_use]
    pub fn new(
        program: &str,
        machine: MachineName,
        run_as: Option<String>,
        services: Option<&Services>,
    ) -> Self {
        // What `to_file` gives is JSON, which is text.
        let text = |services: &Services| String::from_utf8_lossy(&services.to_file()).into_owned();
        Self {
            program: program.to_owned(),
            machine,
            run_as,
            caller: CallerUser::default(),
            services: services.map(text),
        }
    }

    /// The services, read back.
    ///
    /// # Errors
    ///
    /// They are no services file.
    pub fn services(&self) -> Result<Option<Services>, ServicesFault> {
        let read = |text: &String| Services::from_file(text.as_bytes());
        self.services.as_ref().map(read).transpose()
    }

    /// Returns the desired identity file under this supervisor.
    #[must_use]
    pub fn identity(&self, supervisor: Supervisor) -> Identity {
        Identity {
            machine: self.machine.clone(),
            run_as: self.run_as.clone(),
            supervisor: self.services.as_ref().map(|_| supervisor),
            unfinished: false,
        }
    }
}

/// An order on its way into a machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sent {
    /// When it was sent, in seconds since 1970: host and machine have one clock.
    pub at: i64,
    /// The order.
    pub order: MachineSpec,
}

/// The content of the identity file; an unknown field belongs to another version.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// The machine's name.
    pub machine: MachineName,
    /// The user that serves, and that the operator's calls run as; `None`: root.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run_as: Option<String>,
    /// The supervisor of the server; `None` if nobody is served.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub supervisor: Option<Supervisor>,
    /// Somebody began to put the machine in order, and has not finished.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub unfinished: bool,
}

impl Identity {
    /// The bytes of the file.
    #[must_use]
    pub fn to_file(&self) -> Vec<u8> {
        // These types hold nothing that JSON cannot.
        let mut bytes = serde_json::to_vec(self).unwrap_or_default();
        bytes.push(b'\n');
        bytes
    }

    /// Reads the file; `None`: it is no identity.
    #[must_use]
    pub fn from_file(bytes: &[u8]) -> Option<Self> {
        serde_json::from_slice(bytes).ok()
    }
}

/// The supervisor of a machine's server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Supervisor {
    /// systemd, by a unit.
    Systemd,
    /// OpenRC, by a script.
    Openrc,
    /// Nobody: it was started, and nothing starts it again.
    Nobody,
}

/// The program's answer after asking a provider for its offer.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Offered {
    /// The names of the services.
    #[serde(default)]
    pub services: Vec<Foreign>,
    /// From the question to the answer, over a connection that stands, in milliseconds.
    #[serde(default)]
    pub milliseconds: Option<f64>,
    /// The reason why there is no answer, in words.
    #[serde(default)]
    pub failed: Option<Foreign>,
    /// The provider answered, and that was "overloaded".
    #[serde(default)]
    pub overloaded: bool,
}

/// The program's answer after putting a machine in order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SetupReport {
    /// Digest of the policy that the server reports; `None`: nobody is served.
    #[serde(default)]
    pub digest: Option<Foreign>,
    /// A path that is not what it was left as: a link, a mount, something else than a file or folder.
    #[serde(default)]
    pub altered: Option<Foreign>,
    /// Other failures, in words.
    #[serde(default)]
    pub failed: Option<Foreign>,
}
