//! Carries out plans on an in-memory Incus.

use serde_json::{Value, json};

use crate::incus::state::{Acl, IncusNetwork, IncusProfile, Instance, Project, Volume};
use crate::incus::{ConfigMap, Devices, Direction, Edit, Object, State};
use crate::plan::{Action, Plan, Role, mark_unverified};

/// Carries out a plan on this Incus.
pub(super) fn carry(state: &mut State, plan: &Plan) {
    let actions: Vec<Action> = plan.actions().cloned().collect();
    for action in actions {
        match action {
            Action::Create { object, body, .. } => create(state, &object, body),
            Action::Edit { object, edits, .. } => edit(state, &object, &edits),
            Action::Start { machine, .. } => {
                "Running".clone_into(&mut instance(state, &machine).status);
            }
            Action::Connect {
                machine,
                device,
                new,
                role,
                ..
            } => {
                instance(state, &machine)
                    .devices
                    .insert(device.clone(), new);
                if role == Role::Consumer {
                    edit(state, &machine, &[mark_unverified(&device, true)]);
                }
            }
            Action::VerifyChannel(call) => {
                let consumer = &call.edge.consumer;
                let consumer = Object::machine(consumer.domain.as_str(), consumer.machine.as_str());
                let mark = mark_unverified(&call.edge.device_name(), false);
                edit(state, &consumer, &[mark]);
            }
            Action::Revoke(one) => {
                instance(state, &one.machine).devices.remove(&one.device);
            }
            Action::Install { .. }
            | Action::Unread { .. }
            | Action::RestoreBridge { .. }
            | Action::EndProxy(_)
            | Action::RemoveBridge(_)
            | Action::Folder { .. }
            | Action::Sweep { .. }
            | Action::Rotate(_)
            | Action::Schedule(_)
            | Action::Unschedule
            | Action::Delete { .. } => {}
        }
    }
}

/// Returns an existing machine.
pub(super) fn instance<'s>(state: &'s mut State, machine: &Object) -> &'s mut Instance {
    let Object::Machine { project, name } = machine else {
        panic!("{machine}");
    };
    let mut instances = state.instances.iter_mut();
    let found = instances.find(|one| one.project == *project && one.name == *name);
    found.unwrap()
}

fn of<T: serde::de::DeserializeOwned>(mut body: Value, more: Value) -> T {
    let (Value::Object(body_map), Value::Object(more)) = (&mut body, more) else {
        panic!("{body}");
    };
    body_map.extend(more);
    serde_json::from_value(body).unwrap()
}

fn create(state: &mut State, object: &Object, body: Value) {
    match object {
        Object::Project(name) => {
            state.projects.push(of::<Project>(body, json!({})));
            state.profiles.push(IncusProfile {
                name: "default".to_owned(),
                project: name.clone(),
                ..IncusProfile::default()
            });
        }
        Object::Acl(_) => state.acls.push(of::<Acl>(body, json!({}))),
        Object::Network(_) => state
            .networks
            .push(of::<IncusNetwork>(body, json!({"managed": true}))),
        Object::Profile { project, .. } => {
            state
                .profiles
                .push(of::<IncusProfile>(body, json!({"project": project})));
        }
        Object::Volume { project, pool, .. } => {
            let more = json!({"project": project, "pool": pool});
            state.volumes.push(of::<Volume>(body, more));
        }
        Object::Machine { project, .. } => {
            let expanded = body.get("devices").cloned();
            let more =
                json!({"project": project, "status": "Stopped", "expanded_devices": expanded});
            state.instances.push(of::<Instance>(body, more));
        }
    }
}

fn edit(state: &mut State, object: &Object, edits: &[Edit]) {
    // Addresses in use: Incus refuses to assign one twice.
    let others = state.instances.iter();
    let others = others.filter(|one| Object::machine(&one.project, &one.name) != *object);
    let devices = others.flat_map(|one| one.devices.values());
    let taken: Vec<_> = devices
        .map(address)
        .filter(|(_, address)| address.is_some())
        .collect();
    let (mut no_devices, mut no_text, mut no_list) = Default::default();
    let name = object.name();
    let mut lists = None;
    let parts: (&mut ConfigMap, &mut Devices, &mut String, &mut Vec<String>) = match object {
        Object::Project(_) => {
            let mut all = state.projects.iter_mut();
            let one = all.find(|one| one.name == name).unwrap();
            let description = &mut one.description;
            (&mut one.config, &mut no_devices, description, &mut no_list)
        }
        Object::Acl(_) => {
            let mut all = state.acls.iter_mut();
            let acl = all.find(|one| one.name == name).unwrap();
            lists = Some((&mut acl.ingress, &mut acl.egress));
            let config = &mut acl.config;
            (config, &mut no_devices, &mut no_text, &mut no_list)
        }
        Object::Network(_) => {
            let mut all = state.networks.iter_mut();
            let config = &mut all.find(|one| one.name == name).unwrap().config;
            (config, &mut no_devices, &mut no_text, &mut no_list)
        }
        Object::Profile { project, .. } => {
            let mut all = state.profiles.iter_mut();
            let one = all
                .find(|one| one.name == name && one.project == *project)
                .unwrap();
            let description = &mut one.description;
            (&mut one.config, &mut one.devices, description, &mut no_list)
        }
        Object::Volume { .. } => {
            let mut all = state.volumes.iter_mut();
            let config = &mut all.find(|one| one.name == name).unwrap().config;
            (config, &mut no_devices, &mut no_text, &mut no_list)
        }
        Object::Machine { .. } => {
            let one = instance(state, object);
            let (description, profiles) = (&mut one.description, &mut one.profiles);
            (&mut one.config, &mut one.devices, description, profiles)
        }
    };
    let (config, devices, described, profiles) = parts;
    for edit in edits {
        match edit {
            Edit::Config { key, new, .. } => match new {
                Some(value) => drop(config.insert(key.clone(), value.clone())),
                None => drop(config.remove(key)),
            },
            Edit::Device { name, new, .. } => match new {
                Some(keys) => {
                    assert!(!taken.contains(&address(keys)), "{object}: {keys:?}");
                    devices.insert(name.clone(), keys.clone());
                }
                None => drop(devices.remove(name)),
            },
            Edit::Rules {
                direction,
                old,
                new,
            } => {
                let (ingress, egress) = lists.as_mut().unwrap();
                let rules = match direction {
                    Direction::Ingress => ingress,
                    Direction::Egress => egress,
                };
                rules.retain(|rule| !old.contains(rule));
                rules.extend(new.iter().cloned());
            }
            Edit::Description { new, .. } => described.clone_from(new),
            Edit::Profiles { new, .. } => profiles.clone_from(new),
        }
    }
}

/// Returns the network and the fixed address of a device.
fn address(device: &ConfigMap) -> (Option<String>, Option<String>) {
    let key = |key: &str| device.get(key).cloned();
    (key("network"), key("ipv4.address"))
}
