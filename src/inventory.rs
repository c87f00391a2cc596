//! Turns an [`Infra`] and its edges into the files that `sync` writes for Ansible, as values.
//!
//! Pure: names and values only, with the keys and the order that existing Ansible roles know, and their YAML.
//! The text around them in a file, and the disk, belong to `sync`.

use std::collections::{BTreeSet, HashMap};
use std::fmt;

use serde_json::{Map, Value, json};
use serde_saphyr::SerializeError;

use crate::edge::Edge;
use crate::infra::{
    Addressing, DEFAULT_IMAGE, DeclaredService, Device, Domain, Infra, Machine, Profile, TrustLevel,
};

/// A folder of generated files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum InventoryFolder {
    /// `inventory`: which machines there are.
    Inventory,
    /// `group_vars`: what holds for all, or for a domain.
    GroupVars,
    /// `host_vars`: what holds for a machine.
    HostVars,
}

impl InventoryFolder {
    /// Every folder.
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

/// Where a generated file is: `FOLDER/STEM.yml`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FilePath {
    /// The folder.
    pub folder: InventoryFolder,
    /// A domain, a machine, or `all`: never with a slash.
    pub stem: String,
}

impl FilePath {
    fn new(folder: InventoryFolder, stem: impl Into<String>) -> Self {
        let stem = stem.into();
        Self { folder, stem }
    }

    /// The name inside the folder.
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
    /// Its place.
    pub path: FilePath,
    subject: Subject<'a>,
}

/// The subject of a file.
#[derive(Debug, Clone)]
enum Subject<'a> {
    All(&'a Infra),
    Inventory(&'a Domain),
    Domain(&'a Domain),
    Machine(&'a Domain, &'a Machine, Vec<Hold<'a>>),
}

/// A machine's hold of an edge.
#[derive(Debug, Clone, Copy)]
enum Hold<'a> {
    Provider(&'a Edge),
    Consumer(&'a Edge),
}

impl Hold<'_> {
    fn device(self) -> Device {
        match self {
            Self::Provider(edge) => edge.provider_device(),
            Self::Consumer(edge) => edge.consumer_device(),
        }
    }
}

impl GeneratedFile<'_> {
    /// What the managed part of the file says. Made when asked for: of many files only few need be held at a time.
    #[must_use]
    pub fn values(&self) -> Map<String, Value> {
        match &self.subject {
            Subject::All(infra) => all_values(infra),
            Subject::Inventory(domain) => inventory_values(domain),
            Subject::Domain(domain) => domain_values(domain),
            Subject::Machine(domain, machine, holds) => machine_values(domain, machine, holds),
        }
    }
}

/// Writes values as YAML that readers of YAML 1.1 and 1.2 take for the same: a block mapping with its final newline, or `{}`.
///
/// A text is one line, so that none of its lines can be taken for a marker of the managed block.
///
/// # Errors
///
/// None for values of JSON; the writer has errors for other types.
pub fn to_yaml(values: &Map<String, Value>) -> Result<String, SerializeError> {
    let options = serde_saphyr::ser_options! {
        compact_list_indent: false,
        prefer_block_scalars: false,
    };
    serde_saphyr::to_string_with_options(values, options)
}

/// The files of an infrastructure: `group_vars/all.yml`, then for each enabled domain its inventory, its variables
/// and those of its machines.
#[must_use]
pub fn files<'a>(infra: &'a Infra, edges: &'a [Edge]) -> Vec<GeneratedFile<'a>> {
    let mut holds = holds(edges);
    let file = |folder, stem: &str, subject| GeneratedFile {
        path: FilePath::new(folder, stem),
        subject,
    };
    let mut files = vec![file(InventoryFolder::GroupVars, "all", Subject::All(infra))];
    for domain in infra.enabled() {
        let name = domain.name.as_str();
        files.push(file(
            InventoryFolder::Inventory,
            name,
            Subject::Inventory(domain),
        ));
        files.push(file(
            InventoryFolder::GroupVars,
            name,
            Subject::Domain(domain),
        ));
        for machine in &domain.machines {
            let name = machine.name.as_str();
            let holds = holds.remove(name).unwrap_or_default();
            files.push(file(
                InventoryFolder::HostVars,
                name,
                Subject::Machine(domain, machine, holds),
            ));
        }
    }
    files
}

/// The paths that belong to an infrastructure: those of [`files`], and those of disabled domains, which are left as they are.
#[must_use]
pub fn known_paths(infra: &Infra) -> BTreeSet<FilePath> {
    let mut known = BTreeSet::from([FilePath::new(InventoryFolder::GroupVars, "all")]);
    for domain in &infra.domains {
        known.insert(FilePath::new(
            InventoryFolder::Inventory,
            domain.name.as_str(),
        ));
        known.insert(FilePath::new(
            InventoryFolder::GroupVars,
            domain.name.as_str(),
        ));
        let machines = domain.machines.iter();
        known.extend(
            machines.map(|machine| FilePath::new(InventoryFolder::HostVars, machine.name.as_str())),
        );
    }
    known
}

/// Both ends of each edge, under the machine that each belongs to.
fn holds(edges: &[Edge]) -> HashMap<&str, Vec<Hold<'_>>> {
    let mut holds: HashMap<&str, Vec<Hold<'_>>> = HashMap::new();
    for edge in edges {
        let mut add = |machine, hold| holds.entry(machine).or_default().push(hold);
        add(edge.provider.machine.as_str(), Hold::Provider(edge));
        add(edge.consumer.machine.as_str(), Hold::Consumer(edge));
    }
    holds
}

/// Gathers keys in order; what is not declared has no key.
#[derive(Default)]
struct InventoryKeys(Map<String, Value>);

impl InventoryKeys {
    fn put(&mut self, key: &str, value: impl Into<Value>) {
        self.0.insert(key.to_owned(), value.into());
    }

    fn put_some(&mut self, key: &str, value: Option<impl Into<Value>>) {
        if let Some(value) = value {
            self.put(key, value);
        }
    }
}

/// A list or map for a key that is left out when there is nothing in it.
fn unless_empty<T: Into<Value>>(length: usize, value: T) -> Option<T> {
    (length > 0).then_some(value)
}

fn all_values(infra: &Infra) -> Map<String, Value> {
    let global = &infra.global;
    let images: BTreeSet<&str> = infra
        .machines()
        .map(|(_, machine)| machine.os_image.as_str())
        .collect();
    let mut keys = InventoryKeys::default();
    keys.put("project_name", infra.project.as_str());
    match &global.addressing {
        Addressing::Zones { written } => keys.put("addressing", written.clone()),
        Addressing::Subnets { base_subnet } => keys.put("base_subnet", base_subnet.as_str()),
    }
    let image = global.default_os_image.as_deref();
    keys.put("default_os_image", image.unwrap_or(DEFAULT_IMAGE));
    keys.put_some(
        "psot_default_connection",
        global.default_connection.as_deref(),
    );
    keys.put_some("psot_default_user", global.default_user.as_deref());
    keys.put_some(
        "incus_all_images",
        unless_empty(images.len(), json!(images)),
    );
    let policies = &infra.network_policies;
    keys.put_some(
        "network_policies",
        unless_empty(policies.len(), policies.clone()),
    );
    keys.0
}

fn inventory_values(domain: &Domain) -> Map<String, Value> {
    let host = |machine: &Machine| {
        let address = machine
            .ip
            .map(|ip| json!({ "ansible_host": ip.to_string() }));
        (
            machine.name.as_str().to_owned(),
            address.unwrap_or_default(),
        )
    };
    let hosts: Map<String, Value> = domain.machines.iter().map(host).collect();
    let hosts = unless_empty(hosts.len(), Value::Object(hosts)).unwrap_or_default();
    let mut keys = InventoryKeys::default();
    keys.put(
        "all",
        json!({ "children": { domain.name.as_str(): { "hosts": hosts } } }),
    );
    keys.0
}

fn domain_values(domain: &Domain) -> Map<String, Value> {
    let network = &domain.network;
    let profiles: Map<String, Value> = domain
        .profiles
        .iter()
        .map(|(name, profile)| (name.clone(), profile_value(profile)))
        .collect();
    let mut keys = InventoryKeys::default();
    keys.put("domain_name", domain.name.as_str());
    keys.put("domain_description", domain.description.as_str());
    keys.put("domain_ephemeral", domain.ephemeral);
    keys.put_some(
        "domain_trust_level",
        domain.trust_level.map(TrustLevel::as_str),
    );
    keys.put("domain_ai_provider", domain.ai_provider.as_str());
    keys.put("domain_ai_sanitize", domain.ai_sanitize.clone());
    keys.put("incus_project", domain.name.as_str());
    keys.put(
        "incus_network",
        json!({
            "name": network.name,
            "subnet": format!("{}/24", network.subnet),
            "gateway": network.gateway.to_string(),
        }),
    );
    keys.put("subnet_id", domain.subnet_id);
    keys.put_some("incus_profiles", unless_empty(profiles.len(), profiles));
    keys.0
}

fn profile_value(profile: &Profile) -> Value {
    let mut keys = InventoryKeys::default();
    let devices: Map<String, Value> = profile.devices.iter().map(device_value).collect();
    keys.put_some("devices", unless_empty(devices.len(), devices));
    keys.put_some(
        "config",
        unless_empty(profile.config.len(), strings(&profile.config)),
    );
    Value::Object(keys.0)
}

fn machine_values(domain: &Domain, machine: &Machine, holds: &[Hold<'_>]) -> Map<String, Value> {
    let edges = holds.iter().map(|hold| device_value(&hold.device()));
    let own = machine.devices.iter().map(device_value);
    let devices: Map<String, Value> = own.chain(edges).collect();
    let services: Vec<Value> = machine.services.iter().map(service_value).collect();
    let mut keys = InventoryKeys::default();
    keys.put("instance_name", machine.name.as_str());
    keys.put("instance_type", machine.kind.as_str());
    keys.put("instance_description", machine.description.as_str());
    keys.put("instance_domain", domain.name.as_str());
    keys.put("instance_ephemeral", machine.ephemeral);
    keys.put("instance_os_image", machine.os_image.as_str());
    keys.put_some("instance_ip", machine.ip.map(|ip| ip.to_string()));
    keys.put_some("instance_gpu", machine.gpu);
    let profiles = &machine.profiles;
    keys.put_some(
        "instance_profiles",
        unless_empty(profiles.len(), profiles.clone()),
    );
    let config = &machine.config;
    keys.put_some(
        "instance_config",
        unless_empty(config.len(), strings(config)),
    );
    keys.put_some("instance_devices", unless_empty(devices.len(), devices));
    keys.put_some("instance_storage_volumes", machine.storage_volumes.clone());
    keys.put_some("instance_services", unless_empty(services.len(), services));
    keys.put_some("instance_roles", machine.roles.clone());
    keys.put_some("instance_boot_autostart", machine.boot_autostart);
    keys.put_some("instance_boot_priority", machine.boot_priority);
    keys.put_some(
        "instance_snapshots_schedule",
        machine.snapshots_schedule.as_deref(),
    );
    keys.put_some(
        "instance_snapshots_expiry",
        machine.snapshots_expiry.as_deref(),
    );
    keys.0
}

/// A service as it was declared.
fn service_value(service: &DeclaredService) -> Value {
    let mut keys = InventoryKeys::default();
    keys.put("name", service.name.as_str());
    keys.put("tool", service.tool.as_str());
    keys.put("consumers", json!(service.consumers));
    keys.put_some(
        "with",
        unless_empty(service.with.len(), service.with.clone()),
    );
    Value::Object(keys.0)
}

fn device_value(device: &Device) -> (String, Value) {
    (device.name.clone(), strings(&device.keys))
}

/// Keys and values as Incus takes them: strings, so that no reader makes `True` of `true`.
fn strings(pairs: &[(String, String)]) -> Value {
    let pairs = pairs.iter().cloned();
    pairs
        .map(|(key, value)| (key, Value::String(value)))
        .collect()
}

#[cfg(test)]
mod tests;
