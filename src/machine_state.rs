//! Specifies anklume's files in a machine, and compares them with the files found there.
//!
//! It is pure: [`crate::plan`] compares, `apply` reads and pushes, and [`crate::setup`] repairs inside the machine.

mod drift;
mod unit;

pub use drift::{Drift, DriftKind, FoundServices, ObservedMachine, Serving, differences};
pub use unit::{
    LAUNCHER_SOCKET, LOGS, PATH, RUNTIME, STOP_SECONDS, UNITS, Unit, systemd_wanted, unit_path,
    units,
};

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::catalogue::{UpstreamServer, UpstreamTool};
use crate::edge::CONSUMER_FOLDER;
use crate::infra::Machine;
use crate::name::{MachineName, ServerName, ServiceTool, UpstreamToolName};
use crate::services::{Services, ServicesFault};
use crate::text::Foreign;

/// The program's folder.
pub const PROGRAM_FOLDER: &str = "/opt/anklume";
/// The program's path.
pub const PROGRAM: &str = "/opt/anklume/anklume";
/// Name prefix of a program file that is being pushed, in the program's folder.
pub const FRESH_PREFIX: &str = "anklume.new-";
/// The subcommand that sets up the machine on which the program runs.
pub const SETUP: &str = "machine-setup";
/// The file that is locked during a setup; only root can open it.
pub const SETUP_LOCK: &str = "/etc/anklume/.lock";
/// The subcommand that asks a provider for the services that it offers to the machine.
pub const ASK: &str = "machine-ask";
/// The subcommand that looks up which key of the machine signs, which is not logged as a call.
pub const SIGNING_KEY: &str = "machine-key";
/// The hidden subcommand that checks whether the server's user can sign with an SSH key.
pub const SSH_KEY: &str = "machine-ssh-key";
/// The hidden subcommand that asks the machine's MCP servers for the definitions of their tools.
pub const DEFINITIONS: &str = "machine-definitions";
/// Links to the program in the shell's search path; under the second name, it is git's gpg.
pub const LINKS: [&str; 2] = ["/usr/local/bin/anklume", "/usr/local/bin/anklume-gpg"];
/// The program's configuration folder.
pub const ETC: &str = "/etc/anklume";
/// The [`Identity`] file.
pub const IDENTITY: &str = "/etc/anklume/machine";
/// The [`Services`] file of the machine's server.
pub const SERVICES: &str = "/etc/anklume/services.json";
/// Name of the server's service under the machine's supervisor.
pub const UNIT: &str = "anklume-mcp";
/// Name of the service that starts the server's gpg-agent.
pub const AGENT_UNIT: &str = "anklume-gpg-agent";
/// The subcommand of that service.
pub const LAUNCH: &str = "gpg-agent-launcher";
/// Name of the service that runs the machine's own programs.
pub const LAUNCHER_UNIT: &str = "anklume-run";
/// The subcommand of that service.
pub const LAUNCHER: &str = "program-launcher";
/// The environment variable with that service's socket path; without it, a server starts a launcher of its own.
pub const PROGRAM_LAUNCHER: &str = "ANKLUME_LAUNCHER";
/// The environment variable with the socket path of the gpg-agent's launcher; without it, a server starts the agent itself.
pub const AGENT_LAUNCHER: &str = "ANKLUME_GPG_AGENT_LAUNCHER";

/// The program's folders in a machine, owned by root with [`FOLDER_MODE`].
pub const FOLDERS: [&str; 4] = [PROGRAM_FOLDER, ETC, "/srv/anklume", CONSUMER_FOLDER];
/// Mode of these folders: everyone may list them.
pub const FOLDER_MODE: u32 = 0o755;
/// Mode of the program: everyone may run it.
pub const PROGRAM_MODE: u32 = 0o755;
/// Mode of the program's files: everyone may read them.
pub const FILE_MODE: u32 = 0o644;
/// The machine's own folders above these; their permissions stay as they are unless they keep the caller out.
pub const ABOVE: [&str; 3] = ["/opt", "/etc", "/srv"];
/// Bits added to the mode of such a folder if it keeps the caller out: search, not read.
pub const PASS: u32 = 0o111;

/// Returns every file and folder of the program, with its mode.
pub fn ours() -> impl Iterator<Item = (&'static str, u32)> {
    let files = [
        (PROGRAM, PROGRAM_MODE),
        (IDENTITY, FILE_MODE),
        (SERVICES, FILE_MODE),
    ];
    let folders = FOLDERS.into_iter().map(|folder| (folder, FOLDER_MODE));
    folders.chain(files)
}

/// Owner and mode of an entry in a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rights {
    /// User ID of the owner.
    pub uid: u32,
    /// Group ID.
    pub gid: u32,
    /// Permission bits, such as `0o755`.
    pub mode: u32,
}

impl Rights {
    /// Returns whether the entry belongs to root and has this mode.
    #[must_use]
    pub const fn are_as_made(self, mode: u32) -> bool {
        self.uid == 0 && self.gid == 0 && self.mode == mode
    }

    /// Returns whether a user other than root may change its content.
    #[must_use]
    pub const fn let_others_write(self) -> bool {
        self.uid != 0 || self.mode & 0o022 != 0
    }
}

/// The user that calls run as on a machine, with a single group.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CallerUser {
    /// User ID.
    pub uid: u32,
    /// Group ID.
    pub gid: u32,
}

impl CallerUser {
    /// Returns whether the user may pass through a folder with these permissions.
    #[must_use]
    pub const fn passes(self, folder: Rights) -> bool {
        let bit = if self.uid == folder.uid {
            0o100
        } else if self.gid == folder.gid {
            0o010
        } else {
            0o001
        };
        self.uid == 0 || folder.mode & bit != 0
    }
}

/// The specification of a machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MachineSpec {
    /// SHA-256 of the program.
    pub program: String,
    /// The machine.
    pub machine: MachineName,
    /// The user that the server runs as; `None`: root.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub run_as: Option<String>,
    /// The user who may make calls from the machine.
    #[serde(default)]
    pub caller: CallerUser,
    /// The text of its services file; `None` if it serves no one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub services: Option<String>,
}

impl MachineSpec {
    /// Specifies a machine with these services, or with none.
    #[must_use]
    pub fn new(
        program: &str,
        machine: MachineName,
        run_as: Option<String>,
        services: Option<&Services>,
    ) -> Self {
        // `to_file` returns JSON, which is UTF-8.
        let text = |services: &Services| String::from_utf8_lossy(&services.to_file()).into_owned();
        Self {
            program: program.to_owned(),
            machine,
            run_as,
            caller: CallerUser::default(),
            services: services.map(text),
        }
    }

    /// Parses the services.
    ///
    /// # Errors
    ///
    /// Fails if the text is not a services file.
    pub fn services(&self) -> Result<Option<Services>, ServicesFault> {
        let read = |text: &String| Services::from_file(text.as_bytes());
        self.services.as_ref().map(read).transpose()
    }

    /// Returns whether services use the machine's own programs.
    #[must_use]
    pub fn has_programs(&self) -> bool {
        let services = self.services().ok().flatten();
        services.is_some_and(|services| services.have_programs())
    }

    /// Returns the desired identity file for this supervisor.
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

/// A specification as sent to a machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sent {
    /// Time of sending, in seconds since 1970: host and machine share one clock.
    pub at: i64,
    /// The specification.
    pub order: MachineSpec,
}

/// The content of the identity file; unknown fields, from another version, are ignored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// The machine's name.
    pub machine: MachineName,
    /// The user that the server and the operator's calls run as; `None`: root.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub run_as: Option<String>,
    /// The server's supervisor; `None` if no one is served.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub supervisor: Option<Supervisor>,
    /// True from the start of a setup until it has finished.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub unfinished: bool,
}

impl Identity {
    /// Serialises the file.
    #[must_use]
    pub fn to_file(&self) -> Vec<u8> {
        // Serialising these types never fails.
        let mut bytes = serde_json::to_vec(self).unwrap_or_default();
        bytes.push(b'\n');
        bytes
    }

    /// Parses the file; returns `None` if it is not an identity.
    #[must_use]
    pub fn from_file(bytes: &[u8]) -> Option<Self> {
        serde_json::from_slice(bytes).ok()
    }
}

/// The supervisor of a machine's server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Supervisor {
    /// systemd, with a unit.
    Systemd,
    /// OpenRC, with a script.
    Openrc,
    /// No supervisor: nothing restarts the server.
    Nobody,
}

/// The program's answer after asking a provider for its services.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Offered {
    /// Names of the services.
    pub services: Vec<Foreign>,
    /// Time from request to answer on an open connection, in milliseconds.
    pub milliseconds: Option<f64>,
    /// The reason why no answer arrived.
    pub failed: Option<Foreign>,
    /// True if the provider answered that it is overloaded.
    pub overloaded: bool,
}

/// A request for the definitions of tools.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DefinitionRequest {
    /// The user that the machine's server runs as; `None`: root.
    pub run_as: Option<String>,
    /// The servers, and the tools that services use.
    pub servers: BTreeMap<ServerName, (UpstreamServer, BTreeSet<UpstreamToolName>)>,
}

impl DefinitionRequest {
    /// Requests the tools that a machine's services use; `None` if they use none.
    #[must_use]
    pub fn of(machine: &Machine) -> Option<Self> {
        let mut request = Self {
            run_as: machine.mcp.run_as.clone(),
            servers: BTreeMap::new(),
        };
        for service in &machine.services {
            let ServiceTool::Upstream(server, tool) = &service.tool else {
                continue;
            };
            if let Some(declared) = machine.mcp.servers.get(server) {
                let (_, tools) = request.servers.entry(server.clone()).or_insert_with(|| {
                    let declared = UpstreamServer {
                        tools: BTreeMap::new(),
                        ..declared.clone()
                    };
                    (declared, BTreeSet::new())
                });
                tools.insert(tool.clone());
            }
        }
        (!request.servers.is_empty()).then_some(request)
    }
}

/// The program's answer to it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DefinitionReport {
    /// The answer of each server.
    pub servers: BTreeMap<ServerName, ServerDefinitions>,
}

/// The definitions of one server.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ServerDefinitions {
    /// Of the requested tools, as far as the server has them.
    pub tools: BTreeMap<UpstreamToolName, UpstreamTool>,
    /// The names of all its tools, at most a thousand.
    pub names: Vec<UpstreamToolName>,
    /// The reason why the server did not list its tools.
    pub failed: Option<Foreign>,
}

/// The program's answer after a setup.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SetupReport {
    /// Digest of the policy that the server reports; `None` if no one is served.
    pub digest: Option<Foreign>,
    /// A path that is a link, a mount, or no longer a file or folder.
    pub altered: Option<Foreign>,
    /// Other failures, as text.
    pub failed: Option<Foreign>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_lets_through_whom_its_rights_name() {
        let folder = |uid, gid, mode| Rights { uid, gid, mode };
        let dev = CallerUser {
            uid: 1000,
            gid: 100,
        };
        let cases = [
            (folder(0, 0, 0o755), true),
            (folder(0, 0, 0o711), true),
            (folder(0, 0, 0o750), false),
            (folder(0, 100, 0o750), true),
            (folder(0, 100, 0o701), false),
            (folder(1000, 0, 0o700), true),
            (folder(1000, 100, 0o077), false),
        ];
        for (folder, passes) in cases {
            assert_eq!(dev.passes(folder), passes, "{folder:?}");
            assert!(CallerUser::default().passes(folder));
            let opened = Rights {
                mode: folder.mode | PASS,
                ..folder
            };
            assert!(dev.passes(opened));
        }
    }
}
