//! Turns shared volumes and persistent data into disk devices, and reads storage volumes.

use std::collections::{BTreeMap, HashMap, HashSet};

use serde_json::{Map, Value};

use super::MachineContext;
use super::devices::{self, PlacedDevice};
use super::global::GlobalSettings;
use super::{DomainDraft, MachineDraft, Names};
use crate::diagnostic::quote;
use crate::infra::Device;
use crate::infra::field::{self, Fields};
use crate::infra::findings::{At, Code, Findings};
use crate::infra::raw::Entry;
use crate::name::MachineName;

/// Maximum number of devices from shared volumes: a thousand volumes for a thousand machines.
const SHARED_MAX: usize = 1_000_000;

/// Reads the disks of `persistent_data`.
pub(super) fn persistent(
    machine: &Entry<'_>,
    fields: Fields<'_, '_>,
    context: &MachineContext<'_>,
    findings: &mut Findings,
) -> Vec<PlacedDevice> {
    let Some(volumes) = fields.map("persistent_data", findings) else {
        return Vec::new();
    };
    let base = &context.settings.persistent_data_base;
    let domain = context.domain;
    let machine = machine.key.text.as_ref();
    let mut placed = Vec::new();
    for entry in volumes.entries() {
        let Some(name) = volume_name(entry, findings) else {
            continue;
        };
        let Some(volume) = Fields::of(entry, findings) else {
            continue;
        };
        volume.known("`persistent_data`", &["path", "readonly"], findings);
        let readonly = volume.flag("readonly", findings).unwrap_or(false);
        if volume.entry("path").is_none() {
            let help = "add the folder in the machine, such as `path: /var/lib/app`";
            findings.missing(entry.at, &quote(name), "path", help);
        }
        if let Some(path) = volume.absolute_path("path", findings) {
            let disk = MadeDisk {
                name: format!("pd-{name}"),
                source: format!("{base}/{domain}/{machine}/{name}"),
                path: path.text.to_owned(),
                shift: true,
                at: entry.at,
                source_at: entry.at,
                path_at: path.at,
            };
            placed.push(disk.placed(readonly));
        }
    }
    placed
}

fn volume_name<'t>(entry: &'t Entry<'_>, findings: &mut Findings) -> Option<&'t str> {
    let text = field::text_key(entry, "the name of a volume", findings)?;
    // The same rule as for machines, so that `sv-NAME` is a valid device name.
    if text.parse::<MachineName>().is_err() {
        let message = format!("{} is not a valid volume name", quote(text));
        findings
            .error(Code::InvalidName, entry.at, message)
            .help("use lower-case letters, digits and `-`, with a letter or digit at both ends");
        return None;
    }
    Some(text)
}

/// A disk that anklume creates, and the locations of its name, its source and its other parts.
struct MadeDisk {
    name: String,
    source: String,
    path: String,
    shift: bool,
    at: At,
    source_at: At,
    path_at: At,
}

impl MadeDisk {
    fn placed(&self, readonly: bool) -> PlacedDevice {
        let keys = [
            Some(("type", "disk", self.path_at)),
            Some(("source", self.source.as_str(), self.source_at)),
            Some(("path", self.path.as_str(), self.path_at)),
            self.shift.then_some(("shift", "true", self.path_at)),
            readonly.then_some(("readonly", "true", self.path_at)),
        ];
        let pair = |(key, value, at): (&str, &str, At)| ((key.to_owned(), value.to_owned()), at);
        let (keys, values) = keys.into_iter().flatten().map(pair).unzip();
        let name = self.name.clone();
        PlacedDevice {
            device: Device { name, keys },
            at: self.at,
            values,
        }
    }
}

/// Reads `storage_volumes`, kept as written.
pub(super) fn storage(
    fields: Fields<'_, '_>,
    findings: &mut Findings,
) -> Option<Map<String, Value>> {
    let volumes = fields.map("storage_volumes", findings)?;
    for entry in volumes.entries() {
        if let Some(volume) = Fields::of(entry, findings) {
            volume.known("a storage volume", &["pool", "size", "path"], findings);
            volume.text("pool", findings);
            volume.absolute_path("path", findings);
            volume.incus_text("size", findings);
        }
    }
    Some(field::json_map(volumes.entries()))
}

/// Adds the disks of `shared_volumes` to their consumers, before the devices that these already have.
pub(super) fn share(
    top: Fields<'_, '_>,
    settings: &GlobalSettings,
    names: &Names<'_>,
    drafts: &mut [DomainDraft],
    findings: &mut Findings,
) {
    if let Some(volumes) = top.map("shared_volumes", findings) {
        let Some(shared) = shared(volumes, settings, names, drafts, findings) else {
            return;
        };
        for ((domain, machine), placed) in shared {
            let domain = drafts.get_mut(domain);
            if let Some(machine) = domain.and_then(|domain| domain.machines.get_mut(machine)) {
                put_before(machine, placed, findings);
            }
        }
    }
    check_mounts(drafts, findings);
}

fn put_before(machine: &mut MachineDraft, mut placed: Vec<PlacedDevice>, findings: &mut Findings) {
    let made: HashSet<&str> = placed.iter().map(|p| p.device.name.as_str()).collect();
    for own in &machine.devices {
        if made.contains(own.device.name.as_str()) {
            devices::duplicate(&own.device.name, own.at, findings);
        }
    }
    placed.append(&mut machine.devices);
    machine.devices = placed;
}

/// Returns the shared disks of each machine; `None` if there are too many.
fn shared(
    volumes: Fields<'_, '_>,
    settings: &GlobalSettings,
    names: &Names<'_>,
    drafts: &[DomainDraft],
    findings: &mut Findings,
) -> Option<HashMap<(usize, usize), Vec<PlacedDevice>>> {
    let positions = positions(drafts);
    let mut shared: HashMap<_, Vec<_>> = HashMap::new();
    let mut count = 0;
    for entry in volumes.entries() {
        let Some((disk, consumers)) = volume(entry, settings, names, findings) else {
            continue;
        };
        for (position, readonly) in resolve(consumers, drafts, &positions) {
            count += 1;
            if count > SHARED_MAX {
                let message = format!("shared volumes create more than {SHARED_MAX} devices");
                findings
                    .error(Code::TooManyValues, entry.at, message)
                    .help("share fewer volumes, or with fewer machines");
                return None;
            }
            let disks = shared.entry(position).or_default();
            disks.push(disk.placed(readonly));
        }
    }
    Some(shared)
}

/// Domain or machine names, and whether their access is read-only.
type Consumers<'t> = Vec<(&'t str, bool)>;

fn volume<'t>(
    entry: &'t Entry<'_>,
    settings: &GlobalSettings,
    names: &Names<'_>,
    findings: &mut Findings,
) -> Option<(MadeDisk, Consumers<'t>)> {
    let name = volume_name(entry, findings)?;
    let fields = Fields::of(entry, findings)?;
    let keys = ["source", "path", "shift", "propagate", "consumers"];
    fields.known("a shared volume", &keys, findings);
    let source = fields.absolute_path("source", findings);
    let path = fields.absolute_path("path", findings);
    let shift = fields.flag("shift", findings).unwrap_or(true);
    fields.flag("propagate", findings);
    fields.note_unapplied(&["propagate"], findings);
    let consumers = match fields.entry("consumers") {
        Some(consumers) => Fields::of(consumers, findings)?,
        None => Fields::none(entry.at),
    };
    if consumers.entries().is_empty() {
        let message = format!("shared volume {} has no consumers", quote(name));
        findings
            .error(Code::MissingKey, entry.at, message)
            .help("add domains or machines, such as `consumers: {work: rw, web: ro}`");
    }
    let base = &settings.shared_volumes_base;
    let disk = MadeDisk {
        name: format!("sv-{name}"),
        source: source.map_or_else(|| format!("{base}/{name}"), |s| s.text.to_owned()),
        path: path.map_or_else(|| format!("/shared/{name}"), |p| p.text.to_owned()),
        shift,
        at: entry.at,
        source_at: source.map_or(entry.at, |text| text.at),
        path_at: path.or(source).map_or(entry.at, |text| text.at),
    };
    let consumers = consumers.entries().iter();
    let consumers = consumers.filter_map(|entry| consumer(entry, names, findings));
    Some((disk, consumers.collect()))
}

fn consumer<'t>(
    entry: &'t Entry<'_>,
    names: &Names<'_>,
    findings: &mut Findings,
) -> Option<(&'t str, bool)> {
    const MODES: &str = "write one of: ro, rw";
    let name = entry.key.text.as_ref();
    if !names.domains.contains_key(name) && !names.machines.contains_key(name) {
        names.unknown(
            name,
            entry.at,
            "declare it, or take it off the list",
            findings,
        );
    }
    let access = field::text_entry_like(entry, || MODES.to_owned(), findings)?;
    match access.text {
        "ro" => Some((name, true)),
        "rw" => Some((name, false)),
        other => {
            let message = format!("{} is not a valid volume access mode", quote(other));
            findings
                .error(Code::InvalidValue, access.at, message)
                .help(MODES);
            None
        }
    }
}

/// Positions of domains and machines among the drafts, by name.
#[derive(Default)]
struct Positions {
    machines: HashMap<String, (usize, usize)>,
    domains: HashMap<String, usize>,
}

fn positions(drafts: &[DomainDraft]) -> Positions {
    let mut positions = Positions::default();
    for (domain, draft) in drafts.iter().enumerate() {
        let name = draft.domain.name.to_string();
        positions.domains.insert(name, domain);
        for (machine, draft) in draft.machines.iter().enumerate() {
            let name = draft.machine.name.to_string();
            positions.machines.insert(name, (domain, machine));
        }
    }
    positions
}

/// Returns each machine that gets the volume, and whether it is read-only; a machine's entry overrides its domain's.
fn resolve(
    consumers: Consumers<'_>,
    drafts: &[DomainDraft],
    positions: &Positions,
) -> BTreeMap<(usize, usize), bool> {
    let mut resolved = BTreeMap::new();
    let mut overrides = Vec::new();
    for (name, readonly) in consumers {
        if let Some(domain) = positions.domains.get(name) {
            let machines = drafts.get(*domain).map_or(0, |draft| draft.machines.len());
            resolved.extend((0..machines).map(|machine| ((*domain, machine), readonly)));
        } else if let Some(position) = positions.machines.get(name) {
            overrides.push((*position, readonly));
        }
    }
    resolved.extend(overrides);
    resolved
}

/// Reports two disks at the same path in a machine.
fn check_mounts(drafts: &[DomainDraft], findings: &mut Findings) {
    let machines = drafts.iter().flat_map(|domain| &domain.machines);
    for MachineDraft {
        machine, devices, ..
    } in machines
    {
        let mut seen: HashSet<&str> = HashSet::new();
        for placed in devices.iter().filter(|placed| placed.is("disk")) {
            let Some((path, at)) = placed.get("path") else {
                continue;
            };
            let path = path.trim_end_matches('/');
            if !seen.insert(path) {
                let message = format!(
                    "{} has two disks at {}",
                    quote(machine.name.as_str()),
                    quote(path)
                );
                findings
                    .error(Code::DuplicateMount, at, message)
                    .help("give each disk a `path` of its own");
            }
        }
    }
}
