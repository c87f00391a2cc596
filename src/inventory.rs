//! Turns an [`Infra`] and its edges into the files that `sync` writes for Ansible, as values.
//!
//! Pure: only names and values, with the keys and order that existing Ansible roles expect, and their YAML.
//! `sync` handles the surrounding text of each file, and all disk access.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::fmt;

use serde::{Serialize, Serializer};
use serde_json::{Map, Value, json};
use serde_saphyr::{SerializeError, Tagged};

use crate::edge::{Edge, End};
use crate::infra::{
    Addressing, DeclaredService, Device, Domain, Infra, Machine, Profile, TrustLevel,
};

/// A folder of generated files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum InventoryFolder {
    /// `inventory`: the machines of a domain.
    Inventory,
    /// `group_vars`: variables of all machines or of one domain.
    GroupVars,
    /// `host_vars`: variables of a machine.
    HostVars,
}

impl InventoryFolder {
    /// All folders.
    pub const ALL: [Self; 3] = [Self::Inventory, Self::GroupVars, Self::HostVars];

    /// The folder's name on disk.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Inventory => "inventory",
            Self::GroupVars => "group_vars",
            Self::HostVars => "host_vars",
        }
    }
}

/// Ansible's group of all machines.
const ALL: &str = "all";

/// The path of a generated file: `FOLDER/STEM.yml`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FilePath {
    /// The folder.
    pub folder: InventoryFolder,
    /// A domain, a machine, or `all`; never contains a slash.
    pub stem: String,
}

impl FilePath {
    fn new(folder: InventoryFolder, stem: impl Into<String>) -> Self {
        let stem = stem.into();
        Self { folder, stem }
    }

    /// The file's name in the folder.
    #[must_use]
    pub fn file_name(&self) -> String {
        format!("{}.yml", self.stem)
    }
}

impl fmt::Display for FilePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}.yml", self.folder.as_str(), self.stem)
    }
}

/// A file that `sync` keeps up to date.
#[derive(Debug, Clone)]
pub struct GeneratedFile<'a> {
    /// Its path.
    pub path: FilePath,
    subject: Subject<'a>,
}

/// The subject of a file.
#[derive(Debug, Clone)]
enum Subject<'a> {
    All(&'a Infra),
    Inventory(&'a Domain),
    Domain(&'a Domain),
    Machine(&'a Domain, &'a Machine, Vec<EdgeDevice<'a>>),
}

/// An edge, and the function that creates a machine's device for it.
type EdgeDevice<'a> = (&'a Edge, fn(&Edge) -> Device);

impl GeneratedFile<'_> {
    /// Returns the files whose variables also apply to this file's machine or group, nearest first.
    #[must_use]
    pub fn enclosing(&self) -> Vec<FilePath> {
        let group = |stem: &str| FilePath::new(InventoryFolder::GroupVars, stem);
        match &self.subject {
            Subject::All(_) | Subject::Inventory(_) => Vec::new(),
            Subject::Domain(_) => vec![group(ALL)],
            Subject::Machine(domain, ..) => vec![group(domain.name.as_str()), group(ALL)],
        }
    }

    /// Returns the values of the file's managed part. They are created on demand, so that few are in memory at a time.
    #[must_use]
    pub fn values(&self) -> Map<String, Value> {
        match &self.subject {
            Subject::All(infra) => all_values(infra),
            Subject::Inventory(domain) => inventory_values(domain),
            Subject::Domain(domain) => domain_values(domain),
            Subject::Machine(domain, machine, edges) => machine_values(domain, machine, edges),
        }
    }
}

/// Writes values as YAML with the same meaning in YAML 1.1 and 1.2: a block mapping with a final newline, or `{}`.
///
/// Each string is written on one line, so that no line within it can be mistaken for a marker of the managed block.
///
/// # Errors
///
/// Never fails for JSON values; the writer's errors concern other types.
pub fn to_yaml(values: &Map<String, Value>) -> Result<String, SerializeError> {
    let options = serde_saphyr::ser_options! {
        compact_list_indent: false,
        prefer_block_scalars: false,
    };
    serde_saphyr::to_string_with_options(&LiteralMap(values), options)
}

/// The YAML tag for text that Ansible must not evaluate as a template.
pub(crate) const UNSAFE: &str = "!unsafe";

/// Returns whether Ansible would evaluate text: it contains the start of a Jinja expression, statement or comment.
#[must_use]
pub(crate) fn is_template(text: &str) -> bool {
    ["{{", "{%", "{#"].iter().any(|start| text.contains(start))
}

/// Declared values by key.
struct LiteralMap<'a>(&'a Map<String, Value>);

impl Serialize for LiteralMap<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(key, value)| (key, Literal(value))))
    }
}

/// A declared value, with the tag [`UNSAFE`] on each string that Ansible would evaluate.
struct Literal<'a>(&'a Value);

impl Serialize for Literal<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0 {
            Value::String(text) if is_template(text) => {
                Tagged(text, Some(UNSAFE.to_owned())).serialize(serializer)
            }
            Value::Array(items) => serializer.collect_seq(items.iter().map(Literal)),
            Value::Object(keys) => LiteralMap(keys).serialize(serializer),
            value => value.serialize(serializer),
        }
    }
}

/// Returns an infrastructure's files: `group_vars/all.yml`, then each enabled domain's inventory, its variables,
/// and its machines' variables.
#[must_use]
pub fn files<'a>(infra: &'a Infra, edges: &'a [Edge]) -> Vec<GeneratedFile<'a>> {
    let mut devices = edge_devices(edges);
    let mut files = Vec::new();
    let mut add = |folder, stem: &str, subject| {
        let path = FilePath::new(folder, stem);
        files.push(GeneratedFile { path, subject });
    };
    add(InventoryFolder::GroupVars, ALL, Subject::All(infra));
    for domain in infra.enabled() {
        let name = domain.name.as_str();
        add(InventoryFolder::Inventory, name, Subject::Inventory(domain));
        add(InventoryFolder::GroupVars, name, Subject::Domain(domain));
        for machine in &domain.machines {
            let name = machine.name.as_str();
            let devices = devices.remove(name).unwrap_or_default();
            let subject = Subject::Machine(domain, machine, devices);
            add(InventoryFolder::HostVars, name, subject);
        }
    }
    files
}

/// Returns an infrastructure's paths: those of [`files`], and those of disabled domains (left unchanged).
#[must_use]
pub fn known_paths(infra: &Infra) -> HashSet<FilePath> {
    let mut known = HashSet::from([FilePath::new(InventoryFolder::GroupVars, ALL)]);
    for domain in &infra.domains {
        for folder in [InventoryFolder::Inventory, InventoryFolder::GroupVars] {
            known.insert(FilePath::new(folder, domain.name.as_str()));
        }
        for machine in &domain.machines {
            let name = machine.name.as_str();
            known.insert(FilePath::new(InventoryFolder::HostVars, name));
        }
    }
    known
}

/// Returns both devices of each edge, keyed by the machine to which each belongs.
fn edge_devices<'a>(edges: &'a [Edge]) -> HashMap<&'a str, Vec<EdgeDevice<'a>>> {
    let mut devices: HashMap<_, Vec<EdgeDevice<'a>>> = HashMap::new();
    for edge in edges {
        let mut add = |end: &'a End, device| {
            let machine = end.machine.as_str();
            devices.entry(machine).or_default().push((edge, device));
        };
        add(&edge.provider, Edge::provider_device);
        add(&edge.consumer, Edge::consumer_device);
    }
    devices
}

/// Returns the keys in order, except null ones, which are not declared.
fn declared(values: Value) -> Map<String, Value> {
    let Value::Object(mut keys) = values else {
        return Map::new();
    };
    keys.retain(|_, value| !value.is_null());
    keys
}

/// Returns a list or map unchanged, or null if it is empty.
fn unless_empty(value: Value) -> Value {
    unless_absent(value, "", &[])
}

/// Returns a section's list or map unchanged, or null if it is empty and was not declared as empty.
fn unless_absent(value: Value, key: &str, written_empty: &[&str]) -> Value {
    let is_empty = match &value {
        Value::Array(items) => items.is_empty(),
        Value::Object(keys) => keys.is_empty(),
        _ => false,
    };
    if is_empty && !written_empty.contains(&key) {
        return Value::Null;
    }
    value
}

fn all_values(infra: &Infra) -> Map<String, Value> {
    let global = &infra.global;
    let images: BTreeSet<&str> = infra
        .machines()
        .map(|(_, machine)| machine.os_image.as_str())
        .collect();
    let (addressing, subnets) = match &global.addressing {
        Addressing::Zones { written } => ("addressing", json!(written)),
        Addressing::Subnets { base_subnet } => ("base_subnet", json!(base_subnet)),
    };
    declared(json!({
        "project_name": infra.project,
        addressing: subnets,
        "default_os_image": global.default_os_image,
        "psot_default_connection": global.default_connection,
        "psot_default_user": global.default_user,
        "incus_all_images": unless_empty(json!(images)),
        "network_policies": unless_absent(json!(infra.network_policies), "network_policies", &infra.written_empty),
    }))
}

fn inventory_values(domain: &Domain) -> Map<String, Value> {
    let host = |machine: &Machine| {
        let address = machine.ip.map(|ip| json!({ "ansible_host": ip }));
        (machine.name.to_string(), address.unwrap_or_default())
    };
    let hosts: Value = domain.machines.iter().map(host).collect();
    declared(json!({
        "all": { "children": { domain.name.as_str(): { "hosts": unless_empty(hosts) } } },
    }))
}

fn domain_values(domain: &Domain) -> Map<String, Value> {
    let profiles: Value = domain
        .profiles
        .iter()
        .map(|(name, profile)| (name.clone(), profile_value(profile)))
        .collect();
    declared(json!({
        "domain_name": domain.name,
        "domain_description": domain.description,
        "domain_ephemeral": domain.ephemeral,
        "domain_trust_level": domain.trust_level.map(TrustLevel::as_str),
        "domain_ai_provider": domain.ai_provider,
        "domain_ai_sanitize": domain.ai_sanitize,
        "incus_project": domain.name,
        "incus_network": {
            "name": domain.network.name,
            "subnet": format!("{}/24", domain.network.subnet),
            "gateway": domain.network.gateway,
        },
        "subnet_id": domain.subnet_id,
        "incus_profiles": unless_absent(profiles, "profiles", &domain.written_empty),
    }))
}

fn profile_value(profile: &Profile) -> Map<String, Value> {
    let devices: Value = profile.devices.iter().map(device_value).collect();
    let section = |key, value| unless_absent(value, key, &profile.written_empty);
    declared(json!({
        "devices": section("devices", devices),
        "config": section("config", strings(&profile.config)),
    }))
}

fn machine_values(
    domain: &Domain,
    machine: &Machine,
    edges: &[EdgeDevice<'_>],
) -> Map<String, Value> {
    let edges = edges
        .iter()
        .map(|(edge, device)| device_value(&device(edge)));
    let devices: Value = machine
        .devices
        .iter()
        .map(device_value)
        .chain(edges)
        .collect();
    let services: Value = machine.services.iter().map(service_value).collect();
    let section = |key, value| unless_absent(value, key, &machine.written_empty);
    declared(json!({
        "instance_name": machine.name,
        "instance_type": machine.kind.as_str(),
        "instance_description": machine.description,
        "instance_domain": domain.name,
        "instance_ephemeral": machine.ephemeral,
        "instance_os_image": machine.os_image,
        "instance_ip": machine.ip,
        "instance_gpu": machine.gpu,
        "instance_profiles": section("profiles", json!(machine.profiles)),
        "instance_config": section("config", strings(&machine.config)),
        "instance_devices": section("devices", devices),
        "instance_storage_volumes": machine.storage_volumes,
        "instance_services": section("services", services),
        "instance_roles": machine.roles,
        "instance_boot_autostart": machine.boot_autostart,
        "instance_boot_priority": machine.boot_priority,
        "instance_snapshots_schedule": machine.snapshots_schedule,
        "instance_snapshots_expiry": machine.snapshots_expiry,
    }))
}

/// A service as declared.
fn service_value(service: &DeclaredService) -> Map<String, Value> {
    let mut keys = declared(json!({
        "name": service.name,
        "tool": service.tool,
        "consumers": service.consumers,
    }));
    if let Some(written) = &service.written {
        keys.extend((**written).clone());
    }
    keys
}

fn device_value(device: &Device) -> (String, Value) {
    (device.name.clone(), strings(&device.keys))
}

/// Returns keys and values in Incus's form: as strings, so that no reader turns `true` into `True`.
fn strings(pairs: &[(String, String)]) -> Value {
    pairs.iter().cloned().collect()
}

#[cfg(test)]
mod tests;
