//! Compares an object with its desired state: only keys that are or were declared count.

use std::collections::BTreeSet;

use serde_json::Value;

use super::{Action, ownership};
use crate::incus::{ConfigMap, Devices, Edit, Object};
use crate::infra::Device;

/// The profile that every project has.
pub(super) const DEFAULT_PROFILE: &str = "default";

/// Stands for the description in the list of keys that anklume set.
const DESCRIPTION: &str = "@description";
/// Stands for the profiles in the list of keys that anklume set.
const PROFILES: &str = "@profiles";

/// Builds a configuration or a device.
pub(super) fn config_map<const N: usize>(pairs: [(&str, &str); N]) -> ConfigMap {
    let owned = |(key, value): (&str, &str)| (key.to_owned(), value.to_owned());
    pairs.into_iter().map(owned).collect()
}

/// The value of a key; empty if it is not set.
pub(super) fn value<'a>(config: &'a ConfigMap, key: &str) -> &'a str {
    config.get(key).map_or("", String::as_str)
}

/// The keys of a declared device, in the form that Incus expects.
pub(super) fn device_keys(device: &Device) -> ConfigMap {
    device.keys.iter().cloned().collect()
}

/// The desired state of an object.
#[derive(Debug, Clone, Default)]
pub(super) struct Desired {
    pub(super) config: ConfigMap,
    pub(super) devices: Devices,
    /// Empty if none is declared.
    pub(super) description: String,
    /// Empty if none are declared.
    pub(super) profiles: Vec<String>,
}

impl Desired {
    pub(super) fn set(&mut self, key: &str, value: impl Into<String>) {
        self.config.insert(key.to_owned(), value.into());
    }

    /// Adds a device, replacing any device of the same name.
    pub(super) fn device(&mut self, device: &Device) {
        let keys = device_keys(device);
        self.devices.insert(device.name.clone(), keys);
    }

    /// Adds its owner's marks.
    pub(super) fn marked(mut self, project: &str) -> Self {
        let mut keys: Vec<String> = self.config.keys().cloned().collect();
        for (name, device) in &self.devices {
            keys.extend(device.keys().map(|key| format!("@{name}:{key}")));
        }
        keys.extend((!self.description.is_empty()).then(|| DESCRIPTION.to_owned()));
        keys.extend((!self.profiles.is_empty()).then(|| PROFILES.to_owned()));
        // A list of strings can always be serialized.
        let list = serde_json::to_string(&keys).unwrap_or_default();
        self.set(ownership::PROJECT, project);
        self.set(ownership::KEYS, list);
        self
    }
}

/// Returns the edits that turn an object with this configuration, these devices and this description into the desired one.
pub(super) fn edits(
    config: &ConfigMap,
    devices: &Devices,
    description: &str,
    want: &Desired,
) -> Vec<Edit> {
    let before = ownership::set_before(config);
    let dropped = before.iter().filter(|key| !key.starts_with('@'));
    let dropped = dropped.filter(|key| !want.config.contains_key(*key));
    let keys = want.config.keys().chain(dropped);
    let values = keys.map(|key| (key, config.get(key), want.config.get(key)));
    let changed = values.filter(|(_, old, new)| old != new);
    let mut edits: Vec<Edit> = changed
        .map(|(key, old, new)| Edit::Config {
            key: key.clone(),
            old: old.cloned(),
            new: new.cloned(),
        })
        .collect();
    edits.extend(device_edits(devices, want, &before));
    // A description that is no longer declared is removed.
    let declared = !want.description.is_empty() || was_set(config, DESCRIPTION);
    if declared && want.description != description {
        edits.push(Edit::Description {
            old: description.to_owned(),
            new: want.description.clone(),
        });
    }
    edits
}

/// Returns the edit to a machine's profiles; if none are declared any longer, the machine gets the default one.
pub(super) fn profiles_edit(
    config: &ConfigMap,
    current: &[String],
    want: &Desired,
) -> Option<Edit> {
    let declared = !want.profiles.is_empty() || was_set(config, PROFILES);
    let wanted = or_default(&want.profiles);
    (declared && wanted != current).then(|| Edit::Profiles {
        old: current.to_vec(),
        new: wanted,
    })
}

/// Returns the profiles of a machine: the declared ones, or the default one.
pub(super) fn or_default(profiles: &[String]) -> Vec<String> {
    if profiles.is_empty() {
        vec![DEFAULT_PROFILE.to_owned()]
    } else {
        profiles.to_vec()
    }
}

fn was_set(config: &ConfigMap, what: &str) -> bool {
    ownership::set_before(config).iter().any(|key| key == what)
}

fn device_edits(devices: &Devices, want: &Desired, before: &[String]) -> Vec<Edit> {
    let before = before.iter().filter_map(|key| key.strip_prefix('@'));
    let before: Vec<(&str, &str)> = before.filter_map(|key| key.rsplit_once(':')).collect();
    let dropped: BTreeSet<&str> = before.iter().map(|(name, _)| *name).collect();
    let dropped = dropped.into_iter();
    let dropped = dropped.filter(|name| !want.devices.contains_key(*name));
    let names = want.devices.keys().map(String::as_str).chain(dropped);
    names
        .filter_map(|name| {
            let (old, wanted) = (devices.get(name), want.devices.get(name));
            let new = match (old, wanted) {
                (Some(old), Some(wanted)) => Some(merged(name, old, wanted, &before)),
                _ => wanted.cloned(),
            };
            (old != new.as_ref()).then(|| Edit::Device {
                name: name.to_owned(),
                old: old.cloned(),
                new,
            })
        })
        .collect()
}

/// Returns a device with the declared keys and those that the user set by hand, without those that are no longer declared.
fn merged(name: &str, old: &ConfigMap, wanted: &ConfigMap, before: &[(&str, &str)]) -> ConfigMap {
    if old.get("type") != wanted.get("type") {
        // In another type of device, keys have other meanings.
        return wanted.clone();
    }
    let mut new = old.clone();
    new.retain(|key, _| !before.contains(&(name, key.as_str())));
    new.extend(wanted.clone());
    new
}

/// Returns the action that creates an object; `about` holds details for the reader of the plan.
pub(super) fn create(object: Object, body: Value, about: impl Into<String>) -> Action {
    Action::Create {
        object,
        body,
        about: about.into(),
    }
}

/// Returns the action that edits an object, if anything differs.
pub(super) fn edit(object: Object, edits: Vec<Edit>) -> Option<Action> {
    (!edits.is_empty()).then_some(Action::Edit {
        object,
        edits,
        runs: false,
    })
}

/// Returns the action that deletes an object that is not running.
pub(super) fn delete(object: Object) -> Action {
    Action::Delete {
        object,
        running: false,
        protected: false,
        sockets: Vec::new(),
    }
}
