//! A machine: its volumes, itself, its start.

use serde_json::{Value, json};

use super::destroy::delete_machine;
use super::difference::{Desired, description_edit, edit, edits, or_default, profiles_edit};
use super::domain::{devices_json, gives_root, is_root, root_disk};
use super::nic::{NIC, may_be_touched, nic};
use super::ownership::{self, Ownership, machine_owner};
use super::{Action, PlanCode, PlanInputs, address, edges, fault, image, install, not_ours};
use crate::diagnostic::{Diagnostic, quote};
use crate::incus::state::Instance;
use crate::incus::{ConfigMap, Devices, Object, Power, as_object};
use crate::infra::{Domain, Machine};

/// Prefix of the devices of storage volumes, before the volume's name.
const VOLUME_PREFIX: &str = "vol-";

/// Volumes, the machine, its start, in this order.
pub(super) fn make(
    setting: &PlanInputs<'_>,
    domain: &Domain,
    machine: &Machine,
    faults: &mut Vec<Diagnostic>,
) -> Vec<Action> {
    let (project, name) = (domain.name.as_str(), machine.name.as_str());
    let there = setting.there(project, name);
    let mut actions = volumes(setting, domain, machine, faults);
    let object = Object::machine(project, name);
    let Some(there) = there else {
        actions.extend(create(setting, domain, machine, faults));
        actions.push(start(object, "Stopped", Power::Start, false));
        return actions;
    };
    if !may_touch(setting, domain, machine, there, faults) {
        return actions;
    }
    if there.kind != image::api_kind(machine.kind) {
        faults.push(fault(
            PlanCode::MachineType,
            Some(&machine.place),
            format!(
                "{} is declared as `{}`, and on Incus it is a {}",
                quote(name),
                machine.kind.as_str(),
                there.kind.escape_debug()
            ),
            format!(
                "declare its `type` as it is, or delete it: `anklume destroy --machine {name}`"
            ),
        ));
        return actions;
    }
    if is_half_made(setting, domain, machine, there) {
        actions.push(delete_machine(there));
        actions.extend(create(setting, domain, machine, faults));
        actions.push(start(object, "Stopped", Power::Start, false));
        return actions;
    }
    let want = want(setting, domain, machine, Some(there));
    let devices = address::devices_then(setting, domain, machine, there);
    let mut changes = edits(&there.config, &devices, &want);
    changes.extend(ownership::is_unfinished(&there.config).then(ownership::finished));
    changes.extend(description_edit(&there.config, &there.description, &want));
    changes.extend(profiles_edit(&there.config, &there.profiles, &want));
    actions.extend(edit(object.clone(), changes));
    let listens = there.devices.values().any(edges::listens_inside);
    match there.status.as_str() {
        "Running" | "Ready" => {}
        "Frozen" => actions.push(start(object, &there.status, Power::Resume, false)),
        other => actions.push(start(object, other, Power::Start, listens)),
    }
    actions
}

/// Returns whether Incus or the run stopped while it created the machine, so that parts may be missing. A machine that has been
/// started since counts as complete.
///
/// Only root's runs wait for each other: without the lock, another run may be creating it right now. An adopted machine and
/// a copy are somebody's.
fn is_half_made(
    setting: &PlanInputs<'_>,
    domain: &Domain,
    machine: &Machine,
    there: &Instance,
) -> bool {
    let (project, name) = (domain.name.as_str(), machine.name.as_str());
    let owner = machine_owner(&there.config, setting.project(), project, name);
    setting.facts.root
        && owner == Ownership::Ours
        && ownership::is_unfinished(&there.config)
        && !ownership::was_started(&there.config)
        && there.status == "Stopped"
}

fn start(machine: Object, from: &str, power: Power, listens: bool) -> Action {
    Action::Start {
        machine,
        power,
        from: from.to_owned(),
        listens,
    }
}

fn may_touch(
    setting: &PlanInputs<'_>,
    domain: &Domain,
    machine: &Machine,
    there: &Instance,
    faults: &mut Vec<Diagnostic>,
) -> bool {
    if may_be_touched(setting, domain, machine) {
        return true;
    }
    let (project, name) = (domain.name.as_str(), machine.name.as_str());
    let owner = machine_owner(&there.config, setting.project(), project, name);
    let place = Some(&machine.place);
    faults.push(not_ours("machine", name, name, &owner, place));
    false
}

fn want(
    setting: &PlanInputs<'_>,
    domain: &Domain,
    machine: &Machine,
    there: Option<&Instance>,
) -> Desired {
    let mut want = Desired {
        description: machine.description.clone(),
        profiles: machine.profiles.clone(),
        ..Desired::default()
    };
    let options = [
        (
            "boot.autostart",
            machine.boot_autostart.map(|is| is.to_string()),
        ),
        (
            "boot.autostart.priority",
            machine.boot_priority.map(|is| is.to_string()),
        ),
        ("snapshots.schedule", machine.snapshots_schedule.clone()),
        (
            "snapshots.expiry",
            machine.snapshots_expiry.as_deref().map(expiry),
        ),
        (
            "security.protection.delete",
            (!machine.ephemeral).then(|| "true".to_owned()),
        ),
    ];
    for (key, value) in options {
        if let Some(value) = value {
            want.set(key, value);
        }
    }
    want.config.extend(machine.config.iter().cloned());
    want.devices.insert(NIC.to_owned(), nic(domain, machine));
    if let Some(root) = root(setting, domain, machine, there) {
        want.devices.insert("root".to_owned(), root);
    }
    for volume in declared_volumes(setting, machine) {
        want.devices.extend(volume.device(machine));
    }
    for device in &machine.devices {
        want.device(device);
    }
    let mut want = want.marked(setting.project());
    want.set(
        ownership::MACHINE,
        format!("{}/{}", domain.name, machine.name),
    );
    let has_inside = there.is_some_and(install::has_inside);
    if has_inside || install::needs_inside(setting, domain, machine) {
        want.set(ownership::INSIDE, "true");
        want.set(ownership::BUILT, "true");
    }
    let image = there.and_then(|there| there.config.get(ownership::IMAGE));
    // The image that it was made of: a later declaration does not make it another.
    want.set(ownership::IMAGE, image.unwrap_or(&machine.os_image));
    want
}

/// Expiry of a snapshot as Incus writes it: `M` and `H` are minutes and hours, `m` is months.
fn expiry(declared: &str) -> String {
    declared.replace('m', "M").replace('h', "H")
}

/// A root disk of the machine's own, where no profile and no device of the user's gives one.
fn root(
    setting: &PlanInputs<'_>,
    domain: &Domain,
    machine: &Machine,
    there: Option<&Instance>,
) -> Option<ConfigMap> {
    let declared = machine.devices.iter();
    let own = declared
        .map(|device| device.keys.iter().cloned().collect())
        .any(|keys: ConfigMap| is_root(&keys));
    let by_hand = there.is_some_and(|there| {
        let mut devices = there.expanded_devices.iter();
        devices.any(|(name, keys)| name != "root" && is_root(keys))
    });
    let of_profile = or_default(&machine.profiles)
        .iter()
        .any(|name| gives_root(domain, name));
    let needed = !own && !by_hand && !of_profile;
    setting.pool.as_deref().filter(|_| needed).map(root_disk)
}

fn create(
    setting: &PlanInputs<'_>,
    domain: &Domain,
    machine: &Machine,
    faults: &mut Vec<Diagnostic>,
) -> Option<Action> {
    let source = image::source(
        &machine.os_image,
        machine.kind,
        setting.state,
        setting.facts,
    );
    let source = match source {
        Ok(source) => source,
        Err(why) => {
            let message = format!(
                "the image {} of {} {}",
                quote(&machine.os_image),
                quote(machine.name.as_str()),
                why.what
            );
            faults.push(fault(
                PlanCode::NoImage,
                Some(&machine.place),
                message,
                why.help,
            ));
            return None;
        }
    };
    let want = want(setting, domain, machine, None);
    let body = json!({
        "name": machine.name.as_str(),
        "type": image::api_kind(machine.kind),
        "source": source,
        "description": want.description,
        "profiles": or_default(&machine.profiles),
        "config": as_object(&want.config),
        "devices": devices_json(&want.devices),
    });
    let about = match machine.ip {
        Some(ip) => format!("{}, {ip}", machine.os_image.escape_debug()),
        None => machine.os_image.escape_debug().to_string(),
    };
    Some(Action::Create {
        object: Object::machine(domain.name.as_str(), machine.name.as_str()),
        body,
        about,
    })
}

/// A storage volume of a machine.
struct DeclaredVolume {
    name: String,
    pool: String,
    size: Option<String>,
    path: Option<String>,
}

impl DeclaredVolume {
    /// Its name on Incus: machines of one domain may have volumes of one name.
    fn object_name(&self, machine: &Machine) -> String {
        format!("{}-{}", machine.name, self.name)
    }

    fn device(&self, machine: &Machine) -> Option<(String, ConfigMap)> {
        let path = self.path.as_ref()?;
        let keys = [
            ("type", "disk"),
            ("pool", &self.pool),
            ("source", &self.object_name(machine)),
            ("path", path),
        ]
        .into_iter()
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .collect();
        Some((format!("{VOLUME_PREFIX}{}", self.name), keys))
    }
}

fn declared_volumes(setting: &PlanInputs<'_>, machine: &Machine) -> Vec<DeclaredVolume> {
    let declared = machine.storage_volumes.iter().flatten();
    declared
        .map(|(name, value)| {
            let text = |key: &str| match value.get(key) {
                Some(Value::String(text)) => Some(text.clone()),
                Some(Value::Null) | None => None,
                Some(other) => Some(other.to_string()),
            };
            let pool = text("pool").or_else(|| setting.pool.clone());
            DeclaredVolume {
                name: name.clone(),
                pool: pool.unwrap_or_default(),
                size: text("size"),
                path: text("path"),
            }
        })
        .collect()
}

fn volumes(
    setting: &PlanInputs<'_>,
    domain: &Domain,
    machine: &Machine,
    faults: &mut Vec<Diagnostic>,
) -> Vec<Action> {
    let declared = declared_volumes(setting, machine);
    declared
        .iter()
        .filter_map(|volume| self::volume(setting, domain, machine, volume, faults))
        .collect()
}

fn volume(
    setting: &PlanInputs<'_>,
    domain: &Domain,
    machine: &Machine,
    volume: &DeclaredVolume,
    faults: &mut Vec<Diagnostic>,
) -> Option<Action> {
    let project = domain.name.as_str();
    if !setting.state.pools.contains(&volume.pool) {
        faults.push(fault(
            PlanCode::NoPool,
            Some(&machine.place),
            format!(
                "the volume {} of {} is in the storage pool {}, which is not there",
                quote(&volume.name),
                quote(machine.name.as_str()),
                quote(&volume.pool)
            ),
            format!(
                "available: {}",
                setting.state.pools.join(", ").escape_debug()
            ),
        ));
        return None;
    }
    let name = volume.object_name(machine);
    let object = Object::Volume {
        project: project.to_owned(),
        pool: volume.pool.clone(),
        name: name.clone(),
    };
    let mut want = Desired::default();
    if let Some(size) = &volume.size {
        want.set("size", size.clone());
    }
    let mut want = want.marked(setting.project());
    want.set(ownership::MACHINE, format!("{project}/{}", machine.name));
    let mut volumes = setting.state.volumes.iter();
    let there =
        volumes.find(|one| one.project == project && one.pool == volume.pool && one.name == name);
    let Some(there) = there else {
        return Some(Action::Create {
            object,
            body: json!({
                "name": name,
                "type": "custom",
                "content_type": "filesystem",
                "config": as_object(&want.config),
            }),
            about: volume.size.clone().unwrap_or_default(),
        });
    };
    let owner = ownership::owner(&there.config, setting.project());
    let adopted = owner == Ownership::Nobody && setting.adopts(machine.name.as_str());
    if owner != Ownership::Ours && !adopted {
        let place = Some(&machine.place);
        faults.push(not_ours(
            "volume",
            &name,
            machine.name.as_str(),
            &owner,
            place,
        ));
        return None;
    }
    edit(object, edits(&there.config, &Devices::new(), &want))
}
