//! Plans what a domain needs before its machines: project, network, profiles.

use serde_json::{Value, json};

use super::difference::{DEFAULT_PROFILE, Desired, description_edit, edit, edits};
use super::ownership::{self, Ownership, may_touch};
use super::{Action, PlanCode, PlanInputs, fault, network};
use crate::diagnostic::{Diagnostic, quote};
use crate::incus::state::Project;
use crate::incus::{ConfigMap, DEFAULT_PROJECT, Devices, Object, State, as_object};
use crate::infra::{Domain, Profile};

/// Features that a domain's project shares with the others (`false`) or has for itself (`true`).
const FEATURES: [(&str, &str); 5] = [
    ("features.images", "false"),
    ("features.networks", "false"),
    ("features.profiles", "true"),
    ("features.storage.buckets", "true"),
    ("features.storage.volumes", "true"),
];

/// The storage pool that machines get: the one of the default profile, one of that name, or the only one.
pub(super) fn pool(state: &State) -> Option<String> {
    let profile = state
        .profiles
        .iter()
        .find(|one| one.project == DEFAULT_PROJECT && one.name == DEFAULT_PROFILE);
    let of_profile = profile.and_then(|profile| {
        let root = profile.devices.values().find(|device| is_root(device))?;
        root.get("pool").cloned()
    });
    of_profile
        .or_else(|| state.pools.iter().find(|pool| *pool == "default").cloned())
        .or_else(|| match state.pools.as_slice() {
            [only] => Some(only.clone()),
            _ => None,
        })
}

/// Returns whether a device is a machine's root disk.
pub(super) fn is_root(device: &ConfigMap) -> bool {
    let is = |key: &str, value: &str| device.get(key).is_some_and(|is| is == value);
    is("type", "disk") && is("path", "/")
}

/// Project, access list, network, profiles, in this order.
pub(super) fn base(
    setting: &PlanInputs<'_>,
    domain: &Domain,
    faults: &mut Vec<Diagnostic>,
) -> Vec<Action> {
    let mut actions = Vec::new();
    actions.extend(project(setting, domain, faults));
    actions.extend(network::acl(setting, domain, faults));
    actions.extend(network::network(setting, domain, faults));
    actions.extend(profiles(setting, domain, faults));
    actions
}

fn project(
    setting: &PlanInputs<'_>,
    domain: &Domain,
    faults: &mut Vec<Diagnostic>,
) -> Option<Action> {
    let name = domain.name.as_str();
    let object = Object::Project(name.to_owned());
    let there = setting.state.projects.iter().find(|one| one.name == name);
    let want = Desired {
        description: domain.description.clone(),
        ..Desired::default()
    };
    let mut want = want.marked(setting.project());
    let Some(there) = there else {
        for (feature, value) in FEATURES {
            want.set(feature, value);
        }
        let body = json!({
            "name": name,
            "description": want.description,
            "config": as_object(&want.config),
        });
        return Some(Action::Create {
            object,
            body,
            about: String::new(),
        });
    };
    let touched = may_touch(setting, domain, &object, &there.config, faults);
    if let Some(other) = other_features(there) {
        faults.push(fault(
            PlanCode::ProjectFeatures,
            Some(&domain.place),
            format!(
                "the project {} on Incus has {other}; a domain needs it the other way round",
                quote(name)
            ),
            "give the domain another name, or empty and delete that project: `incus project delete`",
        ));
    } else if touched {
        let mut edits = edits(&there.config, &Devices::new(), &want);
        edits.extend(description_edit(&there.config, &there.description, &want));
        return edit(object, edits);
    }
    None
}

/// The features that differ, as text.
fn other_features(project: &Project) -> Option<String> {
    let differ: Vec<String> = FEATURES
        .iter()
        .filter_map(|(feature, wanted)| {
            let is = project.config.get(*feature).map_or("false", String::as_str);
            (is != *wanted).then(|| format!("`{feature}={}`", is.escape_debug()))
        })
        .collect();
    (!differ.is_empty()).then(|| differ.join(", "))
}

/// Builds the desired configuration of a declared profile; `default` also has a root disk.
fn profile_want(setting: &PlanInputs<'_>, name: &str, declared: Option<&Profile>) -> Desired {
    let mut want = Desired::default();
    if let (DEFAULT_PROFILE, Some(pool)) = (name, &setting.pool) {
        want.devices.insert("root".to_owned(), root_disk(pool));
    }
    if let Some(declared) = declared {
        if declared
            .devices
            .iter()
            .any(|device| is_root(&device.keys.iter().cloned().collect()))
        {
            want.devices.clear();
        }
        want.description.clone_from(&declared.description);
        want.config.extend(declared.config.iter().cloned());
        for device in &declared.devices {
            want.device(device);
        }
    }
    want
}

/// The root disk of a machine that gets none from a profile.
pub(super) fn root_disk(pool: &str) -> ConfigMap {
    [("type", "disk"), ("path", "/"), ("pool", pool)]
        .into_iter()
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .collect()
}

/// Returns whether a profile of a domain gives its machines a root disk.
pub(super) fn gives_root(domain: &Domain, name: &str) -> bool {
    name == DEFAULT_PROFILE
        || domain.profiles.iter().any(|(known, profile)| {
            let mut devices = profile.devices.iter();
            known == name && devices.any(|one| is_root(&one.keys.iter().cloned().collect()))
        })
}

fn profiles(
    setting: &PlanInputs<'_>,
    domain: &Domain,
    faults: &mut Vec<Diagnostic>,
) -> Vec<Action> {
    let declared = domain
        .profiles
        .iter()
        .map(|(name, one)| (name.as_str(), Some(one)));
    let mut wanted: Vec<(&str, Option<&Profile>)> = declared.collect();
    if !wanted.iter().any(|(name, _)| *name == DEFAULT_PROFILE) {
        wanted.insert(0, (DEFAULT_PROFILE, None));
    }
    wanted
        .into_iter()
        .filter_map(|(name, declared)| {
            let want = profile_want(setting, name, declared).marked(setting.project());
            profile(setting, domain, name, &want, faults)
        })
        .collect()
}

fn profile(
    setting: &PlanInputs<'_>,
    domain: &Domain,
    name: &str,
    want: &Desired,
    faults: &mut Vec<Diagnostic>,
) -> Option<Action> {
    let project = domain.name.as_str();
    let object = Object::Profile {
        project: project.to_owned(),
        name: name.to_owned(),
    };
    let mut profiles = setting.state.profiles.iter();
    let there = profiles.find(|one| one.project == project && one.name == name);
    match there {
        // Incus makes `default` together with the project: it is nobody's who made it by hand.
        Some(there)
            if name != DEFAULT_PROFILE
                && !may_touch(setting, domain, &object, &there.config, faults) =>
        {
            None
        }
        Some(there) => {
            let mut edits = edits(&there.config, &there.devices, want);
            edits.extend(description_edit(&there.config, &there.description, want));
            edit(object, edits)
        }
        None if name == DEFAULT_PROFILE => {
            let mut edits = edits(&ConfigMap::new(), &Devices::new(), want);
            edits.extend(description_edit(&ConfigMap::new(), "", want));
            edit(object, edits)
        }
        None => Some(Action::Create {
            object,
            body: json!({
                "name": name,
                "description": want.description,
                "config": as_object(&want.config),
                "devices": devices_json(&want.devices),
            }),
            about: String::new(),
        }),
    }
}

/// Devices as the API takes them.
pub(super) fn devices_json(devices: &Devices) -> Value {
    let devices = devices
        .iter()
        .map(|(name, keys)| (name.clone(), as_object(keys)));
    Value::Object(devices.collect())
}

/// The projects of this infrastructure that are on Incus, by name.
pub(super) fn our_projects<'a>(
    state: &'a State,
    project: &'a str,
) -> impl Iterator<Item = &'a Project> {
    let ours = move |one: &&Project| ownership::owner(&one.config, project) == Ownership::Ours;
    state.projects.iter().filter(ours)
}
