//! Models a valid `infra.yml`: the user's declarations after every rule has been checked.
//!
//! Pure data and queries. `raw` reads the shape, `validate` turns it into an [`Infra`], which needs no further check.

mod field;
mod findings;
mod network;
mod open;
mod pins;
pub(crate) mod policy;
mod raw;
mod validate;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::catalogue::{OwnTool, UpstreamServer};
use crate::condition::Conditions;
use crate::diagnostic::{Diagnostic, Faults, Place};
use crate::limits::Limits;
use crate::name::{DomainName, MachineName, OwnToolName, ServerName, ServiceName, ServiceTool};
pub(crate) use open::{DEFAULT_FILE, DEFAULT_FOLDER, project_name};
pub use pins::{LOCK, Pins};

/// Image for machines if neither they nor `global` name one.
pub const DEFAULT_IMAGE: &str = "images:debian/13";
/// Maximum size of a file, in bytes: four times the size that 10,000 machines need.
pub const FILE_MAX: u64 = 16 * 1024 * 1024;

/// A valid infrastructure, with its warnings.
#[derive(Debug, Clone)]
pub struct ReadInfra {
    /// The declaration.
    pub infra: Infra,
    /// Findings that do not invalidate the file, in file order.
    pub warnings: Vec<Diagnostic>,
    /// The folder that contains `infra.yml` or `infra/`.
    pub folder: PathBuf,
}

/// Top-level keys of the file.
const TOP: [&str; 5] = [
    "project_name",
    "global",
    "domains",
    "network_policies",
    "shared_volumes",
];

/// Reads and checks an infrastructure: a file, or a folder with `base.yml`, `domains/*.yml` and `policies.yml`.
/// Without a path, reads `./infra.yml` or `./infra/`.
///
/// # Errors
///
/// Returns every fault, in file order; also fails if neither a file nor a folder exists, or if both do, and if a service's
/// tool is not pinned.
pub fn open(path: Option<&Path>) -> Result<ReadInfra, Faults> {
    let (read, _) = open_for_pinning(path)?;
    match pins::faults(&read.infra) {
        faults if faults.is_empty() => Ok(read),
        faults => Err(Faults(faults)),
    }
}

/// Reads and checks an infrastructure as [`open()`] does, but without the requirement that tools are pinned; also returns
/// what is pinned.
///
/// # Errors
///
/// Returns every fault, in file order; also fails if the lock file is not valid.
pub fn open_for_pinning(path: Option<&Path>) -> Result<(ReadInfra, Pins), Faults> {
    let (files, folder) = open::open(path)?;
    let mut read = check(&files, folder)?;
    let pins = match open::open_beside(&read.folder, LOCK)? {
        None => Pins::default(),
        Some(file) => Pins::parse(&file.source.text)
            .map_err(|why| Faults(vec![pins::invalid(&file.source.path, &why)]))?,
    };
    pins::fill(&mut read.infra, &pins);
    Ok((read, pins))
}

/// Reads and checks the text of one file; `path` appears in messages, and its folder names the project.
///
/// # Errors
///
/// Returns every fault, in file order.
pub fn parse(path: &str, text: &str) -> Result<ReadInfra, Faults> {
    let folder = Path::new(path).parent().unwrap_or_else(|| Path::new(""));
    let file = open::InfraFile::new(path, text.to_owned(), open::FileRole::Base);
    check(&[file], folder.to_owned())
}

fn check(files: &[open::InfraFile], folder: PathBuf) -> Result<ReadInfra, Faults> {
    let (infra, warnings) = validate::read(files, &open::project_name(&folder))?;
    Ok(ReadInfra {
        infra,
        warnings,
        folder,
    })
}

/// Everything that an `infra.yml` (or an `infra/` folder) declares.
#[derive(Debug, Clone)]
pub struct Infra {
    /// `project_name`, or the name of the file's folder. Distinguishes infrastructures on the same host.
    pub project: String,
    /// The `global` section, with defaults filled in.
    pub global: Global,
    /// The domains in file order, including disabled ones.
    pub domains: Vec<Domain>,
    /// `network_policies` as written, plus any policy that `ai_access_policy: exclusive` adds.
    pub network_policies: Vec<Value>,
    /// Those of them that `apply` brings into force.
    pub policies: Vec<policy::NetworkPolicy>,
    /// Keys whose value is written as an empty list or map. Ansible reads them, unlike absent keys.
    pub written_empty: Vec<&'static str>,
    /// Keys that anklume reads, checks and writes for Ansible but does not apply itself; each is listed once.
    pub unapplied: Vec<Unapplied>,
    /// The flag that names this file in a command, with a space before it; empty if the command finds it by itself.
    pub flag: String,
    /// Positions of the machines, as (domain, machine).
    index: HashMap<MachineName, (usize, usize)>,
}

/// A key that anklume reads but does not apply, and its first occurrence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unapplied {
    /// The key, with its section (`global.gpu_policy`).
    pub key: &'static str,
    /// Location of its first occurrence.
    pub place: Place,
}

/// The `global` section, defaults filled in.
#[derive(Debug, Clone)]
pub struct Global {
    /// The subnet assignment scheme.
    pub addressing: Addressing,
    /// Image for machines that do not name one.
    pub default_os_image: String,
    /// Stored in `group_vars/all.yml` for Ansible, used nowhere else.
    pub default_connection: Option<String>,
    /// Stored in `group_vars/all.yml` for Ansible, used nowhere else.
    pub default_user: Option<String>,
}

/// The assignment of subnets.
#[derive(Debug, Clone)]
pub enum Addressing {
    /// `<base_subnet>.<subnet_id>.0/24`, both set by the user.
    Subnets {
        /// The first two octets, as text (`10.100`).
        base_subnet: String,
    },
    /// A zone in `10.0.0.0/8` for each trust level.
    Zones {
        /// The `addressing` map as written, for `group_vars/all.yml`.
        written: Map<String, Value>,
    },
}

/// A group of machines: one Incus project, one bridge.
#[derive(Debug, Clone)]
pub struct Domain {
    /// Its name, unique.
    pub name: DomainName,
    /// Location of its name.
    pub place: Place,
    /// Free text.
    pub description: String,
    /// A disabled domain keeps its addresses, but neither `sync` nor `apply` acts on it.
    pub enabled: bool,
    /// `subnet_id` as written, or as assigned in its zone.
    pub subnet_id: u8,
    /// As written; in zone mode, defaults to `semi-trusted`.
    pub trust_level: Option<TrustLevel>,
    /// Machines of an ephemeral domain may be deleted.
    pub ephemeral: bool,
    /// The domain's Incus profiles, in file order.
    pub profiles: Vec<(String, Profile)>,
    /// For Ansible.
    pub ai_provider: String,
    /// For Ansible: `true`, `false` or `"always"`.
    pub ai_sanitize: Value,
    /// The bridge.
    pub network: Network,
    /// The machines, in file order.
    pub machines: Vec<Machine>,
    /// Keys whose value is written as an empty list or map. Ansible reads them, unlike absent keys.
    pub written_empty: Vec<&'static str>,
}

/// A domain's trust level; determines its zone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum TrustLevel {
    /// `admin`
    Admin,
    /// `trusted`
    Trusted,
    /// `semi-trusted`
    SemiTrusted,
    /// `untrusted`
    Untrusted,
    /// `disposable`
    Disposable,
}

impl TrustLevel {
    /// All levels, from the most to the least trusted.
    pub const ALL: [Self; 5] = [
        Self::Admin,
        Self::Trusted,
        Self::SemiTrusted,
        Self::Untrusted,
        Self::Disposable,
    ];

    /// The word in `infra.yml`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Admin => "admin",
            Self::Trusted => "trusted",
            Self::SemiTrusted => "semi-trusted",
            Self::Untrusted => "untrusted",
            Self::Disposable => "disposable",
        }
    }
}

/// A domain's bridge and its subnet, always a /24.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Network {
    /// Name of the bridge, at most 15 bytes (Linux `IFNAMSIZ`).
    pub name: String,
    /// First address of the /24.
    pub subnet: Ipv4Addr,
    /// `.254`
    pub gateway: Ipv4Addr,
}

/// A domain's Incus profile.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Profile {
    /// Free text.
    pub description: String,
    /// Devices, as written.
    pub devices: Vec<Device>,
    /// Configuration keys and values in Incus's form: strings.
    pub config: Vec<(String, String)>,
    /// Keys whose value is written as an empty list or map. Ansible reads them, unlike absent keys.
    pub written_empty: Vec<&'static str>,
}

/// An Incus device: its name, and its keys and values in Incus's form.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    /// Name, unique on its machine.
    pub name: String,
    /// Keys (including `type`) and values, in order.
    pub keys: Vec<(String, String)>,
}

/// Name of a machine's network device on its domain's bridge.
pub(crate) const NIC: &str = "eth0";

/// Host folders to which machines can write without a device.
pub(crate) const MACHINES_OWN: [&str; 5] = [
    "/var/lib/incus/storage-pools",
    "/var/lib/incus/containers",
    "/var/lib/incus/virtual-machines",
    "/var/lib/incus/devices",
    "/proc",
];

impl Device {
    /// The value of a key.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&str> {
        self.keys
            .iter()
            .find(|(name, _)| name == key)
            .map(|(_, value)| value.as_str())
    }

    /// Returns whether a key has a value that Incus reads as true.
    pub(crate) fn is_true(&self, key: &str) -> bool {
        self.get(key).is_some_and(is_true)
    }

    /// The folder or file on the host that a disk shares.
    pub(crate) fn shared_source(&self) -> Option<&str> {
        // With a pool, the source is a volume, not a path.
        let of_host = self.get("type") == Some("disk") && self.get("pool").is_none();
        let source = self.get("source").filter(|_| of_host)?;
        source.starts_with('/').then_some(source)
    }

    /// The folder or file on the host that a disk shares with write access.
    pub(crate) fn written_source(&self) -> Option<&str> {
        self.shared_source().filter(|_| !self.is_true("readonly"))
    }

    /// Returns the host path that Incus opens for the device, and the key that names the path.
    pub(crate) fn host_path(&self) -> Option<(&'static str, &str)> {
        match self.get("type")? {
            "disk" => Some(("source", self.shared_source()?)),
            // One end of a proxy is on the host.
            "proxy" => {
                let in_machine =
                    matches!(self.get("bind"), Some("instance" | "guest" | "container"));
                let on_host = if in_machine { "connect" } else { "listen" };
                Some((on_host, self.get(on_host)?.strip_prefix("unix:")?))
            }
            // Without a source, the path in the machine is also the path on the host.
            "unix-char" | "unix-block" => ["source", "path"]
                .into_iter()
                .find_map(|key| Some((key, self.get(key)?))),
            _ => None,
        }
    }
}

/// The configuration key that keeps a machine from being deleted.
pub(crate) const PROTECTION: &str = "security.protection.delete";

/// Returns whether Incus reads a value as true.
pub(crate) fn is_true(value: &str) -> bool {
    ["true", "1", "yes", "on"].contains(&value.to_lowercase().as_str())
}

/// Container or virtual machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MachineType {
    /// `lxc`
    Container,
    /// `vm`
    VirtualMachine,
}

impl MachineType {
    /// The word in `infra.yml`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Container => "lxc",
            Self::VirtualMachine => "vm",
        }
    }
}

/// An Incus instance.
#[derive(Debug, Clone)]
pub struct Machine {
    /// Its name, unique across all domains.
    pub name: MachineName,
    /// Location of its name.
    pub place: Place,
    /// Container or virtual machine.
    pub kind: MachineType,
    /// Free text.
    pub description: String,
    /// Fixed address within the domain's subnet; `None` for DHCP.
    pub ip: Option<Ipv4Addr>,
    /// Location of its own address.
    pub ip_place: Option<Box<Place>>,
    /// Image: the machine's own, or the default.
    pub os_image: String,
    /// Location of its own image.
    pub os_image_place: Option<Box<Place>>,
    /// True if it may be deleted; the machine's own value, or its domain's.
    pub ephemeral: bool,
    /// For Ansible; `None` if not set.
    pub gpu: Option<bool>,
    /// Profile names, as written; empty if not set.
    pub profiles: Vec<String>,
    /// Incus configuration, with values in Incus's form.
    pub config: Vec<(String, String)>,
    /// Devices in `host_vars` order: shared volumes (`sv-*`), persistent data (`pd-*`), the user's own devices.
    /// Edge devices are not included; see `edge`.
    pub devices: Vec<Device>,
    /// `storage_volumes` as written.
    pub storage_volumes: Option<Map<String, Value>>,
    /// Ansible roles, as written.
    pub roles: Option<Vec<Value>>,
    /// True if it starts with the host.
    pub boot_autostart: Option<bool>,
    /// 0 to 100.
    pub boot_priority: Option<u8>,
    /// Five cron fields.
    pub snapshots_schedule: Option<String>,
    /// Such as `30d`.
    pub snapshots_expiry: Option<String>,
    /// Its `mcp` section.
    pub mcp: McpUsers,
    /// Its services, in file order.
    pub services: Vec<DeclaredService>,
    /// Keys whose value is written as an empty list or map. Ansible reads them, unlike absent keys.
    pub written_empty: Vec<&'static str>,
}

/// A machine's `mcp` section.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct McpUsers {
    /// User whose keys, clipboard and portal the machine's server uses; `None` for root.
    pub run_as: Option<String>,
    /// Owner of the consumer's sockets inside the machine.
    pub uid: u32,
    /// Group of the consumer's sockets inside the machine.
    pub gid: u32,
    /// True if the machine's services run even while their calls cannot be logged.
    pub allow_unlogged: bool,
    /// Memory that its server may use for all its callers together, in bytes.
    pub memory: Option<u64>,
    /// The minimum confinement of its server.
    pub confinement: Confinement,
    /// The machine's own tools.
    pub tools: BTreeMap<OwnToolName, OwnTool>,
    /// The MCP servers that the machine runs; their tools are those that are pinned.
    pub servers: BTreeMap<ServerName, UpstreamServer>,
    /// Maximum number of its own programs that run at the same time.
    pub children: Option<u32>,
}

/// The minimum kernel confinement that a server requires.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Confinement {
    /// As much confinement as the kernel offers.
    #[default]
    Available,
    /// At least a system call filter, and no capabilities.
    Required,
}

impl Confinement {
    /// Returns whether it is the default.
    #[must_use]
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// An entry of `services`.
#[derive(Debug, Clone)]
pub struct DeclaredService {
    /// The name that a consumer calls.
    pub name: ServiceName,
    /// Location of the name.
    pub place: Place,
    /// The tool that it runs.
    pub tool: ServiceTool,
    /// The machines that may call it, each once, in file order.
    pub consumers: Vec<MachineName>,
    /// Fixed arguments, checked against the tool's schema; empty if not set.
    pub with: Map<String, Value>,
    /// What a caller may send, and until when.
    pub conditions: Conditions,
    /// Limits for its callers.
    pub limits: Limits,
    /// The optional keys as written, for Ansible.
    pub written: Option<Box<Map<String, Value>>>,
    /// Locations of its arguments, if its tool belongs to an MCP server: they are checked when its definition is known.
    pub(crate) arguments: Option<Box<ArgumentPlaces>>,
}

/// Where a service mentions its arguments.
#[derive(Debug, Clone, Default)]
pub(crate) struct ArgumentPlaces {
    /// The arguments in `with`.
    pub(crate) with: HashMap<String, Place>,
    /// The arguments in `where` and `only`, and the keys of their rules.
    pub(crate) conditions: HashMap<(String, Option<&'static str>), Place>,
    /// The key `only`.
    pub(crate) only: Option<Place>,
}

impl ArgumentPlaces {
    /// Returns the location of an argument in the conditions, or of a key of its rule.
    pub(crate) fn condition(&self, argument: &str, key: Option<&'static str>) -> Option<&Place> {
        let find = |key| self.conditions.get(&(argument.to_owned(), key));
        key.and_then(|key| find(Some(key)))
            .or_else(|| find(None))
            .or(self.only.as_ref())
    }
}

impl Machine {
    /// Returns the Incus configuration that its own keys set: each key of `infra.yml`, the Incus key, and the value.
    pub(crate) fn own_config(&self) -> Vec<(&'static str, &'static str, String)> {
        let protection = if self.ephemeral { None } else { Some(true) };
        // In Incus's notation, `M` and `H` are minutes and hours, and `m` is months.
        let expiry = self.snapshots_expiry.as_ref();
        let expiry = expiry.map(|written| written.replace('m', "M").replace('h', "H"));
        let priority = self.boot_priority;
        let keys = [
            (
                "boot_autostart",
                "boot.autostart",
                self.boot_autostart.map(|is| is.to_string()),
            ),
            (
                "boot_priority",
                "boot.autostart.priority",
                priority.map(|is| is.to_string()),
            ),
            (
                "snapshots_schedule",
                "snapshots.schedule",
                self.snapshots_schedule.clone(),
            ),
            ("snapshots_expiry", "snapshots.expiry", expiry),
            (
                "ephemeral",
                PROTECTION,
                protection.map(|is: bool| is.to_string()),
            ),
        ];
        let keys = keys.into_iter();
        keys.filter_map(|(key, incus, value)| Some((key, incus, value?)))
            .collect()
    }
}

impl Infra {
    /// The enabled domains.
    pub fn enabled(&self) -> impl Iterator<Item = &Domain> {
        self.domains.iter().filter(|domain| domain.enabled)
    }

    /// Every machine in an enabled domain, with its domain.
    pub fn machines(&self) -> impl Iterator<Item = (&Domain, &Machine)> {
        self.enabled()
            .flat_map(|domain| domain.machines.iter().map(move |machine| (domain, machine)))
    }

    /// The machine with this name in an enabled domain, with its domain.
    #[must_use]
    pub fn machine(&self, name: &str) -> Option<(&Domain, &Machine)> {
        let (domain, machine) = *self.index.get(name)?;
        let domain = self.domains.get(domain)?;
        let machine = domain.machines.get(machine)?;
        domain.enabled.then_some((domain, machine))
    }

    fn with_index(mut self) -> Self {
        let machines = self.domains.iter().enumerate().flat_map(|(at, domain)| {
            let names = domain.machines.iter().map(|machine| machine.name.clone());
            names
                .enumerate()
                .map(move |(position, name)| (name, (at, position)))
        });
        self.index = machines.collect();
        self
    }
}
