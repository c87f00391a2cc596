//! Plans a machine: its volumes, the machine itself, its start, and the setup inside it.

use serde_json::{Value, json};

use super::address::{devices_then, nic};
use super::destroy::delete_machine;
use super::destroy::destroy_command;
use super::difference::{Desired, config_map, edit, edits, or_default, profiles_edit};
use super::domain::{devices_json, gives_root, is_declared_root, is_root, root_disk};
use super::ownership::{self, Ownership, machine_owner, may_touch_of_machine};
use super::{Action, MachineInputs, Obstacles, PlanCode, difference, edges, image};
use crate::diagnostic::quote;
use crate::edge::Edge;
use crate::incus::state::{Instance, InstanceId};
use crate::incus::{ConfigMap, Devices, Object, Power, State, as_object};
use crate::infra::{Domain, Infra, Machine, MachineType, NIC, is_true};
use crate::machine_state::{
    CallerUser, DriftKind, MachineSpec, ObservedMachine, Serving, differences,
};
use crate::services::Services;

/// The key of a container without a user namespace of its own.
const PRIVILEGED: &str = "security.privileged";
/// Prefix of a storage volume's device, before the volume's name.
const VOLUME_PREFIX: &str = "vol-";

/// Plans the volumes, the machine and its start, in this order.
pub(super) fn make(one: MachineInputs<'_>, faults: &mut Obstacles) -> Vec<Action> {
    let volumes = declared_volumes(one).into_iter();
    let mut actions: Vec<Action> = volumes
        .filter_map(|declared| volume(one, declared, faults))
        .collect();
    let object = one.object();
    let Some(current) = one.current else {
        actions.extend(create(one, faults));
        return actions;
    };
    let owner = machine_owner(current, one.plan.project());
    if !may_touch_of_machine(one, &object, &owner, faults) {
        return actions;
    }
    if current.kind != image::api_kind(one.machine.kind) {
        let name = one.name();
        faults.add(
            PlanCode::MachineType,
            Some(&one.machine.place),
            format!(
                "{} is declared as `{}`, but is a {} in Incus",
                quote(name),
                one.machine.kind.as_str(),
                current.kind.escape_debug()
            ),
            format!(
                "declare its actual `type`, or delete it: `{}`",
                destroy_command(current, one.plan.flag())
            ),
        );
        return actions;
    }
    if is_half_made(one) {
        // Nothing from the deleted machine carries over to the new one.
        let new = MachineInputs {
            current: None,
            ..one
        };
        actions.push(delete_machine(current));
        actions.extend(create(new, faults));
        return actions;
    }
    let want = want(one);
    let config = &current.config;
    let devices = devices_then(one, current);
    let mut changes = edits(config, &devices, &current.description, &want);
    changes.extend(ownership::is_unfinished(config).then(ownership::finished));
    changes.extend(profiles_edit(config, &current.profiles, &want));
    actions.extend((!changes.is_empty()).then(|| Action::Edit {
        object: object.clone(),
        edits: changes,
        runs: current.is_running(),
    }));
    let listens = current.devices.values().any(edges::listens_inside);
    match current.status.as_str() {
        "Running" | "Ready" => {}
        "Frozen" => actions.push(start(object, "Frozen", Power::Resume, false)),
        other => actions.push(start(object, other, Power::Start, listens)),
    }
    actions
}

/// Returns whether Incus or the run stopped while creating the machine, so that parts may be missing. A machine
/// that was started later counts as complete.
///
/// Only root's runs wait for each other: without the lock, another run may be creating it right now. An adopted machine
/// or a copy is not this run's to delete.
fn is_half_made(one: MachineInputs<'_>) -> bool {
    one.current.is_some_and(|current| {
        one.plan.facts.root
            && machine_owner(current, one.plan.project()) == Ownership::Ours
            && ownership::is_half_made(&current.config)
            && current.status == "Stopped"
    })
}

fn start(machine: Object, from: &str, power: Power, listens: bool) -> Action {
    Action::Start {
        machine,
        power,
        from: from.to_owned(),
        listens,
    }
}

fn want(one: MachineInputs<'_>) -> Desired {
    let machine = one.machine;
    let mut want = Desired {
        description: machine.description.clone(),
        profiles: machine.profiles.clone(),
        ..Desired::default()
    };
    let keys = machine.own_config().into_iter();
    want.config
        .extend(keys.map(|(_, key, value)| (key.to_owned(), value)));
    want.config.extend(machine.config.iter().cloned());
    let devices = &mut want.devices;
    devices.insert(NIC.to_owned(), nic(one.domain, machine));
    devices.extend(root(one).map(|root| ("root".to_owned(), root)));
    let volumes = declared_volumes(one);
    devices.extend(volumes.iter().filter_map(DeclaredVolume::device));
    for device in &machine.devices {
        want.device(device);
    }
    if is_privileged_end(one) {
        // Its root is the host's, so it could take over the channels of others.
        want.set(PRIVILEGED, "false");
    }
    let mut want = want.marked(one.plan.project());
    let own_name = format!("{}/{}", one.project(), one.name());
    want.set(ownership::MACHINE, own_name);
    if one.current.is_some_and(has_inside) || needs_inside(one) {
        want.set(ownership::INSIDE, "true");
        want.set(ownership::BUILT, "true");
    }
    // The image from which it was created, regardless of later declarations.
    let image = one.current.and_then(|it| it.config.get(ownership::IMAGE));
    want.set(ownership::IMAGE, image.unwrap_or(&machine.os_image));
    want
}

/// Returns whether a machine at the end of a channel is privileged, by its own configuration or by a profile. `infra`
/// refuses to declare that, so somebody did it by hand.
fn is_privileged_end(one: MachineInputs<'_>) -> bool {
    one.plan.ends.contains(&(one.project(), one.name()))
        && one.current.is_some_and(|current| {
            let value = current.expanded_config.get(PRIVILEGED);
            // What an earlier run set stays, because a profile may say otherwise.
            let own = current.config.get(PRIVILEGED);
            value.is_some_and(|value| is_true(value)) || own.is_some_and(|own| own == "false")
        })
}

/// Returns the machine's own root disk, if no profile and no device of the user provides one.
fn root(one: MachineInputs<'_>) -> Option<ConfigMap> {
    let declared = one.machine.devices.iter().any(is_declared_root);
    let by_hand = one.current.is_some_and(|current| {
        let mut devices = current.expanded_devices.iter();
        devices.any(|(name, keys)| name != "root" && is_root(keys))
    });
    let profiles = or_default(&one.machine.profiles);
    let of_profile = profiles.iter().any(|name| gives_root(one.domain, name));
    let needed = !declared && !by_hand && !of_profile;
    one.plan.pool.as_deref().filter(|_| needed).map(root_disk)
}

/// Plans the creation and the start of the machine.
fn create(one: MachineInputs<'_>, faults: &mut Obstacles) -> Vec<Action> {
    let (plan, machine) = (one.plan, one.machine);
    let source = match image::source(&machine.os_image, machine.kind, plan.state, plan.facts) {
        Ok(source) => source,
        Err(why) => {
            let (image, name) = (quote(&machine.os_image), quote(one.name()));
            let message = format!("the image {image} of {name} {}", why.what);
            faults.add(
                PlanCode::NoImage,
                Some(machine.os_image_place.as_deref().unwrap_or(&machine.place)),
                message,
                why.help,
            );
            return Vec::new();
        }
    };
    let want = want(one);
    let body = json!({
        "name": one.name(),
        "type": image::api_kind(machine.kind),
        "source": source,
        "description": want.description,
        "profiles": or_default(&machine.profiles),
        "config": as_object(&want.config),
        "devices": devices_json(&want.devices),
    });
    let image = machine.os_image.escape_debug();
    let address = machine.ip.map_or_else(String::new, |ip| format!(", {ip}"));
    let create = difference::create(one.object(), body, format!("{image}{address}"));
    let start = start(one.object(), "Stopped", Power::Start, false);
    vec![create, start]
}

/// A storage volume of a machine.
struct DeclaredVolume<'a> {
    name: &'a str,
    /// Its name in Incus: machines in the same domain may have volumes of the same name.
    object_name: String,
    pool: String,
    size: Option<String>,
    path: Option<String>,
}

impl DeclaredVolume<'_> {
    fn device(&self) -> Option<(String, ConfigMap)> {
        let keys = config_map([
            ("type", "disk"),
            ("pool", &self.pool),
            ("source", &self.object_name),
            ("path", self.path.as_ref()?),
        ]);
        Some((format!("{VOLUME_PREFIX}{}", self.name), keys))
    }
}

fn declared_volumes(one: MachineInputs<'_>) -> Vec<DeclaredVolume<'_>> {
    let declared = one.machine.storage_volumes.iter().flatten();
    declared
        .map(|(name, value)| {
            let text = |key: &str| match value.get(key) {
                Some(Value::String(text)) => Some(text.clone()),
                Some(Value::Null) | None => None,
                Some(other) => Some(other.to_string()),
            };
            let pool = text("pool").or_else(|| one.plan.pool.clone());
            DeclaredVolume {
                name,
                object_name: format!("{}-{name}", one.name()),
                pool: pool.unwrap_or_default(),
                size: text("size"),
                path: text("path"),
            }
        })
        .collect()
}

fn volume(
    one: MachineInputs<'_>,
    volume: DeclaredVolume<'_>,
    faults: &mut Obstacles,
) -> Option<Action> {
    let (project, state) = (one.project(), one.plan.state);
    if !state.pools.contains(&volume.pool) {
        faults.add(
            PlanCode::NoPool,
            Some(&one.machine.place),
            format!(
                "the volume {} of {} is in the storage pool {}, which does not exist",
                quote(volume.name),
                quote(one.name()),
                quote(&volume.pool)
            ),
            format!("available: {}", state.pools.join(", ").escape_debug()),
        );
        return None;
    }
    let mut want = Desired::default();
    want.config
        .extend(volume.size.clone().map(|size| ("size".to_owned(), size)));
    let mut want = want.marked(one.plan.project());
    want.set(ownership::MACHINE, format!("{project}/{}", one.name()));
    let current = state.volumes.iter().find(|it| {
        it.project == project && it.pool == volume.pool && it.name == volume.object_name
    });
    let body = json!({
        "name": volume.object_name,
        "type": "custom",
        "content_type": "filesystem",
        "config": as_object(&want.config),
    });
    let object = Object::Volume {
        project: project.to_owned(),
        pool: volume.pool,
        name: volume.object_name,
    };
    let Some(current) = current else {
        return Some(difference::create(
            object,
            body,
            volume.size.unwrap_or_default(),
        ));
    };
    let owner = ownership::owner(&current.config, one.plan.project());
    if !may_touch_of_machine(one, &object, &owner, faults) {
        return None;
    }
    edit(object, edits(&current.config, &Devices::new(), "", &want))
}

/// Returns whether a machine has, or had, the program.
pub(crate) fn has_inside(instance: &Instance) -> bool {
    instance.config.contains_key(ownership::INSIDE)
}

/// Returns whether a machine must have the program: it offers services, or is an end of an edge.
fn needs_inside(one: MachineInputs<'_>) -> bool {
    // Incus cannot give virtual machines a channel, so `edge` refuses them as ends.
    one.machine.kind == MachineType::Container
        && (!one.machine.services.is_empty()
            || one.plan.ends.contains(&(one.project(), one.name())))
}

/// Returns whether a machine in the file has, or must have, the program.
pub(crate) fn needs_program(infra: &Infra, edges: &[Edge], state: &State) -> bool {
    let holds = |domain: &Domain, machine: &Machine| {
        let mut all = state.instances.iter().filter(|one| has_inside(one));
        all.any(|one| one.project == domain.name.as_str() && one.name == machine.name.as_str())
    };
    let mut machines = infra.machines();
    !edges.is_empty()
        || machines.any(|(domain, one)| !one.services.is_empty() || holds(domain, one))
}

/// Builds the specification of a machine, with this program digest.
pub(crate) fn machine_spec(program: &str, machine: &Machine) -> MachineSpec {
    let services = (!machine.services.is_empty()).then(|| Services::of(machine));
    let run_as = machine.mcp.run_as.clone();
    let caller = CallerUser {
        uid: machine.mcp.uid,
        gid: machine.mcp.gid,
    };
    MachineSpec {
        caller,
        ..MachineSpec::new(program, machine.name.clone(), run_as, services.as_ref())
    }
}

/// Plans the setup inside a machine; `None` if nothing differs.
pub(super) fn install(one: MachineInputs<'_>) -> Option<Action> {
    if !needs_inside(one) && !one.current.is_some_and(has_inside) {
        return None;
    }
    let id = InstanceId::new(one.project(), one.name());
    let is_made_again = is_half_made(one);
    let unread = one.plan.facts.unread.get(&id);
    if let Some(why) = unread.filter(|_| !is_made_again) {
        return Some(Action::Unread {
            machine: one.object(),
            why: why.clone(),
        });
    }
    let spec = machine_spec(one.plan.wanted.program, one.machine);
    let nothing = ObservedMachine::default();
    let found = one.plan.facts.inside.get(&id);
    let found = found.filter(|_| !is_made_again).unwrap_or(&nothing);
    let differences = differences(&spec, found);
    if differences.is_empty() {
        return None;
    }
    Some(Action::Install {
        machine: one.object(),
        spec,
        push: differences.iter().any(|one| one.kind == DriftKind::Program),
        kill_server: found.serving == Serving::Silent,
        lines: differences.into_iter().map(|one| one.line).collect(),
    })
}
