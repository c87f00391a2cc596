//! Plans the parts of a domain that must exist before its machines: project, network, profiles.

use serde_json::{Value, json};

use super::difference::{
    DEFAULT_PROFILE, Desired, config_map, create, device_keys, edit, edits, value,
};
use super::ownership::may_touch;
use super::{Action, Obstacles, PlanCode, PlanInputs, address, network};
use crate::diagnostic::quote;
use crate::incus::state::{IncusProfile, Project};
use crate::incus::{ConfigMap, DEFAULT_PROJECT, Devices, Object, State, as_object};
use crate::infra::{Device, Domain, Profile};

/// Features that a domain's project shares with other projects (`false`) or keeps to itself (`true`).
const FEATURES: [(&str, &str); 5] = [
    ("features.images", "false"),
    ("features.networks", "false"),
    ("features.profiles", "true"),
    ("features.storage.buckets", "true"),
    ("features.storage.volumes", "true"),
];

/// Returns the storage pool for machines: that of the default profile, the one named `default`, or the only one.
pub(super) fn pool(state: &State) -> Option<String> {
    let mut profiles = state.profiles.iter();
    let default =
        profiles.find(|one| one.project == DEFAULT_PROJECT && one.name == DEFAULT_PROFILE);
    let root = default.and_then(|profile| profile.devices.values().find(|keys| is_root(keys)));
    let of_profile = root.and_then(|root| root.get("pool"));
    let named = || state.pools.iter().find(|pool| *pool == "default");
    let only = || match state.pools.as_slice() {
        [only] => Some(only),
        _ => None,
    };
    of_profile.or_else(named).or_else(only).cloned()
}

/// Returns whether a device is a machine's root disk.
pub(super) fn is_root(device: &ConfigMap) -> bool {
    value(device, "type") == "disk" && value(device, "path") == "/"
}

/// Returns whether a declared device is a root disk.
pub(super) fn is_declared_root(device: &Device) -> bool {
    is_root(&device_keys(device))
}

/// Plans the project, access list, network and profiles, in this order.
pub(super) fn base<'a>(
    inputs: &'a PlanInputs<'a>,
    domain: &'a Domain,
    faults: &mut Obstacles,
) -> Vec<Action> {
    let mut actions = Vec::new();
    actions.extend(project(inputs, domain, faults));
    // Incus refuses to move a network away from the fixed addresses of its machines, and them from it afterwards.
    let machines = domain.machines.iter();
    let machines = machines.map(|machine| inputs.machine(domain, machine));
    actions.extend(machines.filter_map(address::free));
    actions.extend(network::acl(inputs, domain, faults));
    actions.extend(network::network(inputs, domain, faults));
    let declared = domain.profiles.iter();
    let declared = declared.map(|(name, profile)| (name.as_str(), Some(profile)));
    let has_default = declared.clone().any(|(name, _)| name == DEFAULT_PROFILE);
    let implicit = (!has_default).then_some((DEFAULT_PROFILE, None));
    let profiles = implicit.into_iter().chain(declared);
    actions.extend(profiles.filter_map(|(name, one)| profile(inputs, domain, name, one, faults)));
    actions
}

fn project(inputs: &PlanInputs<'_>, domain: &Domain, faults: &mut Obstacles) -> Option<Action> {
    let name = domain.name.as_str();
    let object = Object::Project(name.to_owned());
    let want = Desired {
        description: domain.description.clone(),
        ..Desired::default()
    };
    let mut want = want.marked(inputs.project());
    let mut projects = inputs.state.projects.iter();
    let Some(current) = projects.find(|one| one.name == name) else {
        for (feature, value) in FEATURES {
            want.set(feature, value);
        }
        let body = json!({
            "name": name,
            "description": want.description,
            "config": as_object(&want.config),
        });
        return Some(create(object, body, ""));
    };
    if let Some(other) = other_features(current) {
        faults.add(
            PlanCode::ProjectFeatures,
            Some(&domain.place),
            format!(
                "the project {} in Incus has {other}; a domain needs the opposite",
                quote(name)
            ),
            format!(
                "give the domain another name, or empty that project and delete it: `incus project delete {}`",
                name.escape_debug()
            ),
        );
        return None;
    }
    if !may_touch(inputs, domain, &object, &current.config, faults) {
        return None;
    }
    let (config, description) = (&current.config, &current.description);
    edit(object, edits(config, &Devices::new(), description, &want))
}

/// The features that differ, as text.
fn other_features(project: &Project) -> Option<String> {
    let differ = FEATURES.iter().filter_map(|(feature, wanted)| {
        let value = project.config.get(*feature);
        let value = value.map_or("false", String::as_str);
        (value != *wanted).then(|| format!("`{feature}={}`", value.escape_debug()))
    });
    let differ: Vec<String> = differ.collect();
    (!differ.is_empty()).then(|| differ.join(", "))
}

/// Builds the desired state of a profile; `default` also gets a root disk.
fn profile_want(inputs: &PlanInputs<'_>, name: &str, declared: Option<&Profile>) -> Desired {
    let mut want = Desired::default();
    if let (DEFAULT_PROFILE, Some(pool)) = (name, &inputs.pool) {
        want.devices.insert("root".to_owned(), root_disk(pool));
    }
    if let Some(declared) = declared {
        if declared.devices.iter().any(is_declared_root) {
            want.devices.clear();
        }
        want.description.clone_from(&declared.description);
        want.config.extend(declared.config.iter().cloned());
        for device in &declared.devices {
            want.device(device);
        }
    }
    want.marked(inputs.project())
}

/// Returns a root disk in this storage pool.
pub(super) fn root_disk(pool: &str) -> ConfigMap {
    config_map([("type", "disk"), ("path", "/"), ("pool", pool)])
}

/// Returns whether a profile of a domain gives its machines a root disk.
pub(super) fn gives_root(domain: &Domain, name: &str) -> bool {
    let mut declared = domain.profiles.iter();
    name == DEFAULT_PROFILE
        || declared
            .any(|(known, profile)| known == name && profile.devices.iter().any(is_declared_root))
}

fn profile(
    inputs: &PlanInputs<'_>,
    domain: &Domain,
    name: &str,
    declared: Option<&Profile>,
    faults: &mut Obstacles,
) -> Option<Action> {
    let want = profile_want(inputs, name, declared);
    let project = domain.name.as_str();
    let object = Object::Profile {
        project: project.to_owned(),
        name: name.to_owned(),
    };
    let mut profiles = inputs.state.profiles.iter();
    let current = profiles.find(|one| one.project == project && one.name == name);
    // Incus creates `default` together with the project, so it exists without a mark.
    let is_default = name == DEFAULT_PROFILE;
    let created_with_project = IncusProfile::default();
    let Some(current) = current.or(is_default.then_some(&created_with_project)) else {
        let body = json!({
            "name": name,
            "description": want.description,
            "config": as_object(&want.config),
            "devices": devices_json(&want.devices),
        });
        return Some(create(object, body, ""));
    };
    if !is_default && !may_touch(inputs, domain, &object, &current.config, faults) {
        return None;
    }
    let (config, description) = (&current.config, &current.description);
    edit(object, edits(config, &current.devices, description, &want))
}

/// Converts devices to a JSON object.
pub(super) fn devices_json(devices: &Devices) -> Value {
    let devices = devices.iter();
    devices
        .map(|(name, keys)| (name.clone(), as_object(keys)))
        .collect()
}
