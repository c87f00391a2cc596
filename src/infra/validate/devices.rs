//! Checks `config`, `devices` and `profiles`: keys and values for Incus. Dangers to an edge are checked in `endpoints`.

use std::collections::HashSet;

use crate::diagnostic::quote;
use crate::infra::field::{self, Fields};
use crate::infra::findings::{At, Code, Findings};
use crate::infra::raw::Entry;
use crate::infra::{Device, Profile, is_true};

/// The device types that Incus supports.
const TYPES: [&str; 12] = [
    "none",
    "nic",
    "disk",
    "unix-char",
    "unix-block",
    "usb",
    "gpu",
    "infiniband",
    "proxy",
    "unix-hotplug",
    "tpm",
    "pci",
];

/// The configuration key that makes a container's root the host's root.
const PRIVILEGED: &str = "security.privileged";

/// The value of `security.privileged` in a `config`, with its location.
pub(super) type Privileged = Option<(bool, At)>;

/// A device with the locations of its parts.
#[derive(Debug, Clone)]
pub(super) struct PlacedDevice {
    pub(super) device: Device,
    /// Location of its name, or of the declaration from which it comes.
    pub(super) at: At,
    /// Locations of the values, in the order of the keys.
    pub(super) values: Vec<At>,
}

impl PlacedDevice {
    /// Returns a key's value and location.
    pub(super) fn get(&self, key: &str) -> Option<(&str, At)> {
        let position = self.device.keys.iter().position(|(name, _)| name == key)?;
        let (_, value) = self.device.keys.get(position)?;
        Some((value, self.values.get(position).copied().unwrap_or(self.at)))
    }

    /// Returns whether the device is of this type.
    pub(super) fn is(&self, kind: &str) -> bool {
        self.device.get("type") == Some(kind)
    }
}

/// A profile with the locations of its parts.
#[derive(Debug)]
pub(super) struct PlacedProfile {
    pub(super) name: String,
    pub(super) devices: Vec<PlacedDevice>,
    pub(super) privileged: Privileged,
    /// The profile without its devices.
    profile: Profile,
}

impl PlacedProfile {
    /// The profile without locations.
    pub(super) fn build(self) -> (String, Profile) {
        let devices = self.devices.into_iter().map(|placed| placed.device);
        let profile = Profile {
            devices: devices.collect(),
            ..self.profile
        };
        (self.name, profile)
    }
}

/// Reads a domain's profiles.
pub(super) fn profiles(fields: Fields<'_, '_>, findings: &mut Findings) -> Vec<PlacedProfile> {
    let profiles = fields.map("profiles", findings);
    let entries = profiles.map_or(&[][..], |profiles| profiles.entries());
    entries
        .iter()
        .filter_map(|entry| profile(entry, findings))
        .collect()
}

fn profile(entry: &Entry<'_>, findings: &mut Findings) -> Option<PlacedProfile> {
    let name = name(entry, "profile", findings)?;
    let fields = Fields::of(entry, findings)?;
    fields.known("a profile", &["description", "config", "devices"], findings);
    let description = fields.incus_text("description", findings);
    let (config, privileged) = config(fields, findings);
    let mut devices = Vec::new();
    add_own(fields, &mut devices, findings);
    Some(PlacedProfile {
        name,
        devices,
        privileged,
        profile: Profile {
            description: description.unwrap_or_default(),
            devices: Vec::new(),
            config,
            written_empty: fields.empty(&["config", "devices"]),
        },
    })
}

/// Reads `config`: keys and values in Incus's form, and the value of `security.privileged`.
pub(super) fn config(
    fields: Fields<'_, '_>,
    findings: &mut Findings,
) -> (Vec<(String, String)>, Privileged) {
    let Some(config) = fields.map("config", findings) else {
        return (Vec::new(), None);
    };
    let mut pairs = Vec::new();
    let mut privileged = None;
    for entry in config.entries() {
        let key = name(entry, "configuration key", findings);
        let value = field::incus_value(entry, findings);
        let (Some(key), Some(value)) = (key, value) else {
            continue;
        };
        if key == PRIVILEGED {
            privileged = Some((is_true(&value), entry.at));
        }
        pairs.push((key, value));
    }
    (pairs, privileged)
}

/// Adds the user's own devices to those that anklume creates; two devices with the same name are a fault.
pub(super) fn add_own(
    fields: Fields<'_, '_>,
    placed: &mut Vec<PlacedDevice>,
    findings: &mut Findings,
) {
    let Some(devices) = fields.map("devices", findings) else {
        return;
    };
    let made: HashSet<String> = placed.iter().map(|p| p.device.name.clone()).collect();
    for entry in devices.entries() {
        let Some(device) = device(entry, findings) else {
            continue;
        };
        if made.contains(&device.device.name) {
            duplicate(&device.device.name, entry.at, findings);
        }
        placed.push(device);
    }
}

/// Reports a device with the same name as one that anklume creates.
pub(super) fn duplicate(name: &str, at: At, findings: &mut Findings) {
    let message = format!("the machine has two devices named {}", quote(name));
    findings.error(Code::DuplicateDevice, at, message).help(
        "`sv-…` are shared volumes and `pd-…` persistent data: rename the device or the volume",
    );
}

fn device(entry: &Entry<'_>, findings: &mut Findings) -> Option<PlacedDevice> {
    let name = name(entry, "device", findings)?;
    let fields = Fields::of(entry, findings)?;
    let entries = fields.entries().iter();
    let (keys, values) = entries
        .map(|entry| {
            let value = field::incus_value(entry, findings).unwrap_or_default();
            ((entry.key.text.to_string(), value), entry.value.at)
        })
        .unzip();
    let placed = PlacedDevice {
        device: Device { name, keys },
        at: entry.at,
        values,
    };
    check_keys(&placed, fields, findings);
    Some(placed)
}

fn check_keys(placed: &PlacedDevice, fields: Fields<'_, '_>, findings: &mut Findings) {
    let needed: &[&str] = match fields.choice("type", &TYPES, findings) {
        Some("proxy") => &["listen", "connect"],
        // A virtual machine's block volume has a source but no path.
        Some("disk") if fields.entry("source").is_none() => &["path"],
        Some(_) => &[],
        None if fields.entry("type").is_some() => return,
        None => &["type"],
    };
    for key in needed {
        if fields.entry(key).is_none() {
            let owner = format!("device {}", quote(&placed.device.name));
            let help = match *key {
                "type" => format!("add `type:` with one of: {}", TYPES.join(", ")),
                "path" => "add the folder in the machine, such as `path: /data`".to_owned(),
                _ => format!("add an address, such as `{key}: tcp:127.0.0.1:80`"),
            };
            findings.missing(placed.at, &owner, key, help);
        }
    }
}

/// Reads a key that is a name in Incus: text without spaces, `/` or control characters.
fn name(entry: &Entry<'_>, what: &str, findings: &mut Findings) -> Option<String> {
    /// Maximum length of a device name in Incus, in bytes; names of profiles and keys are well below it.
    const NAME_MAX: usize = 64;
    let text = entry.key.text.as_ref();
    let forbidden = |c: char| c.is_whitespace() || c.is_control() || c == '/';
    if text.is_empty() || text.len() > NAME_MAX || text.contains(forbidden) || text == "~" {
        let message = format!("{} is not a valid {what} name", quote(text));
        findings
            .error(Code::InvalidName, entry.at, message)
            .help(format!(
                "use 1 to {NAME_MAX} characters, without spaces or `/`, and not just `~`"
            ));
        return None;
    }
    Some(text.to_owned())
}
