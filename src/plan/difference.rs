//! What an object has against what it should have: only declared keys count, and those that were declared before.

use std::collections::BTreeSet;

use super::{Action, ownership};
use crate::incus::{ConfigMap, Devices, Edit, Object};
use crate::infra::Device;

/// The profile that every project has.
pub(super) const DEFAULT_PROFILE: &str = "default";

/// In the list of what anklume set: the description.
const DESCRIPTION: &str = "@description";
/// In the list of what anklume set: the profiles.
const PROFILES: &str = "@profiles";

/// The desired state of an object.
#[derive(Debug, Clone, Default)]
pub(super) struct Desired {
    pub(super) config: ConfigMap,
    pub(super) devices: Devices,
    /// Empty where none is declared.
    pub(super) description: String,
    /// Empty where none are declared.
    pub(super) profiles: Vec<String>,
}

impl Desired {
    /// Sets a key.
    pub(super) fn set(&mut self, key: &str, value: impl Into<String>) {
        self.config.insert(key.to_owned(), value.into());
    }

    /// Sets a device, in the place of one of that name.
    pub(super) fn device(&mut self, device: &Device) {
        let keys = device.keys.iter().cloned().collect();
        self.devices.insert(device.name.clone(), keys);
    }

    /// The same with the marks of its owner.
    pub(super) fn marked(mut self, project: &str) -> Self {
        let mut keys: Vec<String> = self.config.keys().cloned().collect();
        for (name, device) in &self.devices {
            keys.extend(device.keys().map(|key| format!("@{name}:{key}")));
        }
        let others = [
            (DESCRIPTION, self.description.is_empty()),
            (PROFILES, self.profiles.is_empty()),
        ];
        let others = others.iter().filter(|(_, is_empty)| !is_empty);
        keys.extend(others.map(|(key, _)| (*key).to_owned()));
        // A list of strings is always JSON.
        let list = serde_json::to_string(&keys).unwrap_or_default();
        self.set(ownership::PROJECT, project);
        self.set(ownership::KEYS, list);
        self
    }
}

/// The edits that make an object with this configuration and these devices what it should be.
pub(super) fn edits(config: &ConfigMap, devices: &Devices, want: &Desired) -> Vec<Edit> {
    let before = ownership::set_before(config);
    let mut edits = Vec::new();
    for (key, value) in &want.config {
        let old = config.get(key);
        if old != Some(value) {
            edits.push(Edit::Config {
                key: key.clone(),
                old: old.cloned(),
                new: Some(value.clone()),
            });
        }
    }
    for key in before.iter().filter(|key| !key.starts_with('@')) {
        let gone = !want.config.contains_key(key);
        if let Some(old) = config.get(key).filter(|_| gone) {
            edits.push(Edit::Config {
                key: key.clone(),
                old: Some(old.clone()),
                new: None,
            });
        }
    }
    edits.extend(device_edits(devices, want, &before));
    edits
}

/// The edit of a description: one that was declared and is no longer is taken off.
pub(super) fn description_edit(config: &ConfigMap, there: &str, want: &Desired) -> Option<Edit> {
    let declared = !want.description.is_empty() || was_set(config, DESCRIPTION);
    (declared && want.description != there).then(|| Edit::Description {
        old: there.to_owned(),
        new: want.description.clone(),
    })
}

/// The edit of a machine's profiles: where some were declared and are no longer, it is as if none ever were.
pub(super) fn profiles_edit(config: &ConfigMap, there: &[String], want: &Desired) -> Option<Edit> {
    let declared = !want.profiles.is_empty() || was_set(config, PROFILES);
    let wanted = or_default(&want.profiles);
    (declared && wanted != there).then(|| Edit::Profiles {
        old: there.to_vec(),
        new: wanted,
    })
}

/// The profiles of a machine that is declared with these.
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
    let mut edits = Vec::new();
    let before: Vec<(&str, &str)> = before
        .iter()
        .filter_map(|key| key.strip_prefix('@')?.rsplit_once(':'))
        .collect();
    for (name, wanted) in &want.devices {
        let old = devices.get(name);
        let new = old.map_or_else(|| wanted.clone(), |old| merged(name, old, wanted, &before));
        if old != Some(&new) {
            edits.push(Edit::Device {
                name: name.clone(),
                old: old.cloned(),
                new: Some(new),
            });
        }
    }
    let names: BTreeSet<&str> = before.iter().map(|(name, _)| *name).collect();
    for name in names {
        let gone = !want.devices.contains_key(name);
        if let Some(old) = devices.get(name).filter(|_| gone) {
            edits.push(Edit::Device {
                name: name.to_owned(),
                old: Some(old.clone()),
                new: None,
            });
        }
    }
    edits
}

/// A device with what is declared, with what was set by hand, and without what is no longer declared.
fn merged(name: &str, old: &ConfigMap, wanted: &ConfigMap, before: &[(&str, &str)]) -> ConfigMap {
    if old.get("type") != wanted.get("type") {
        // Another kind of thing: its keys have other meanings.
        return wanted.clone();
    }
    let mut new = old.clone();
    new.retain(|key, _| !before.contains(&(name, key.as_str())));
    new.extend(
        wanted
            .iter()
            .map(|(key, value)| (key.clone(), value.clone())),
    );
    new
}

/// An action that edits, if there is something to edit.
pub(super) fn edit(object: Object, edits: Vec<Edit>) -> Option<Action> {
    (!edits.is_empty()).then_some(Action::Edit { object, edits })
}
