//! Plans `destroy`: deletes only objects with this infrastructure's marks, and none that are still in use.

use std::collections::BTreeSet;

use super::Action;
use super::difference::{DEFAULT_PROFILE, delete, value};
use super::edges::{below, host_socket};
use super::ownership::{self, Ownership, machine_owner, our_projects, owner};
use super::permissions::{self, PermissionChange};
use crate::edge::HOST_FOLDER;
use crate::incus::state::{IncusProfile, Instance, Project, Volume};
use crate::incus::{ConfigMap, Object, State};
use crate::infra::{PROTECTION, is_true};

/// The objects to be deleted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Selection<'a> {
    /// The whole infrastructure.
    All,
    /// A domain with everything in it.
    Domain(&'a str),
    /// A machine with its volumes; without a domain, in every domain that has a machine of this name.
    Machine(&'a str, Option<&'a str>),
}

/// The deletions, in an order that Incus accepts.
#[derive(Debug, Clone, Default)]
pub(crate) struct Deletions {
    /// The calls that are no longer possible.
    pub(crate) permissions: Vec<PermissionChange>,
    /// Machines, independent of each other.
    pub(crate) machines: Vec<Action>,
    /// Their volumes.
    pub(crate) volumes: Vec<Action>,
    /// Domains by name: profiles, networks, access lists and the project, one after the other.
    pub(crate) domains: Vec<(String, Vec<Action>)>,
    /// The rotation of the logs, once no machine has a channel.
    pub(crate) rotation: Option<Action>,
    /// Notes on the objects that are kept.
    pub(crate) notes: Vec<String>,
}

impl Deletions {
    /// Every action, in order.
    pub(crate) fn actions(&self) -> impl Iterator<Item = &Action> {
        let domains = self.domains.iter().flat_map(|(_, actions)| actions);
        let machines = self.machines.iter().chain(&self.volumes);
        machines.chain(domains).chain(&self.rotation)
    }
}

/// Plans the deletion of the selected parts of the infrastructure `project`; `rotated` is true if the host's
/// scheduler rotates the channels' logs.
pub(crate) fn destroy(
    project: &str,
    state: &State,
    selection: Selection<'_>,
    rotated: bool,
) -> Deletions {
    let mut deletions = Deletions::default();
    let chosen = |one: &Instance| match selection {
        Selection::All => true,
        Selection::Domain(domain) => one.project == domain,
        Selection::Machine(machine, domain) => {
            one.name == machine && domain.is_none_or(|domain| one.project == domain)
        }
    };
    let instances = state.instances.iter();
    let machines: Vec<&Instance> = instances
        .filter(|one| machine_owner(one, project) == Ownership::Ours && chosen(one))
        .collect();
    deletions.permissions = permissions::of_deletion(state, &machines);
    deletions.machines = machines.iter().map(|one| delete_machine(one)).collect();
    let gone: BTreeSet<String> = machines.iter().map(|one| full_name(one)).collect();
    let with_domain = |domain: &str| match selection {
        Selection::All => true,
        Selection::Domain(one) => one == domain,
        Selection::Machine(..) => false,
    };
    let goes = |volume: &Volume| {
        let machine = volume.config.get(ownership::MACHINE);
        let follows = machine.is_some_and(|machine| gone.contains(machine));
        owner(&volume.config, project) == Ownership::Ours
            && (follows || with_domain(&volume.project))
    };
    let (volumes, others): (Vec<&Volume>, Vec<&Volume>) =
        state.volumes.iter().partition(|one| goes(one));
    let volumes = volumes.iter().map(|volume| {
        delete(Object::Volume {
            project: volume.project.clone(),
            pool: volume.pool.clone(),
            name: volume.name.clone(),
        })
    });
    deletions.volumes.extend(volumes);
    for domain in our_projects(state, project).filter(|one| with_domain(&one.name)) {
        delete_domain(project, state, domain, &others, &gone, &mut deletions);
    }
    if rotated && are_last_ends(&gone, &state.instances) {
        deletions.rotation = Some(Action::Unschedule);
    }
    deletions
}

/// Returns whether these machines are ends of channels, and no other machine is.
fn are_last_ends(gone: &BTreeSet<String>, all: &[Instance]) -> bool {
    let is_end = |one: &Instance| one.devices.values().any(|keys| host_socket(keys).is_some());
    let mut ends = all.iter().filter(|one| is_end(one)).peekable();
    ends.peek().is_some() && ends.all(|end| gone.contains(&full_name(end)))
}

fn full_name(instance: &Instance) -> String {
    format!("{}/{}", instance.project, instance.name)
}

/// Returns the command that deletes this machine, and no other one of its name; `flag` is [`crate::infra::Infra::flag`].
pub(super) fn destroy_command(instance: &Instance, flag: &str) -> String {
    let (domain, name) = (
        instance.project.escape_debug(),
        instance.name.escape_debug(),
    );
    let force = if is_protected(instance) {
        " --force"
    } else {
        ""
    };
    format!("anklume destroy --domain {domain} --machine {name}{force}{flag}")
}

/// Returns the command that deletes this domain.
pub(super) fn destroy_domain_command(state: &State, domain: &str, flag: &str) -> String {
    let mut machines = state.instances.iter();
    let force = machines.any(|one| one.project == domain && is_protected(one));
    let force = if force { " --force" } else { "" };
    let domain = domain.escape_debug();
    format!("anklume destroy --domain {domain}{force}{flag}")
}

fn is_protected(instance: &Instance) -> bool {
    let protection = instance.config.get(PROTECTION);
    protection.is_some_and(|value| is_true(value))
}

pub(super) fn delete_machine(instance: &Instance) -> Action {
    let sockets = instance.devices.values().filter_map(host_listener);
    Action::Delete {
        object: Object::machine(&instance.project, &instance.name),
        running: instance.status != "Stopped",
        protected: is_protected(instance),
        sockets: sockets.map(str::to_owned).collect(),
    }
}

/// Returns the socket in anklume's folder that a device creates on the host.
fn host_listener(device: &ConfigMap) -> Option<&str> {
    let path = value(device, "listen").strip_prefix("unix:")?;
    let is_ours = below(path, HOST_FOLDER).is_some_and(|name| !name.contains('/'));
    let is_proxy = value(device, "type") == "proxy" && value(device, "bind") != "instance";
    (is_ours && is_proxy).then_some(path)
}

fn delete_domain(
    project: &str,
    state: &State,
    domain: &Project,
    other_volumes: &[&Volume],
    gone: &BTreeSet<String>,
    deletions: &mut Deletions,
) {
    let name = domain.name.as_str();
    let profiles = state.profiles.iter();
    let profiles = profiles.filter(|one| one.project == name && one.name != DEFAULT_PROFILE);
    let (ours, others): (Vec<&IncusProfile>, Vec<&IncusProfile>) =
        profiles.partition(|one| owner(&one.config, project) == Ownership::Ours);
    let machines = state.instances.iter().filter(|one| one.project == name);
    let machines = machines.filter(|one| !gone.contains(&full_name(one)));
    let volumes = other_volumes.iter().filter(|one| one.project == name);
    let mut stays: Vec<String> = machines.map(|one| one.name.clone()).collect();
    stays.extend(volumes.map(|one| one.name.clone()));
    stays.extend(others.iter().map(|one| format!("profile {}", one.name)));
    stays.extend(domain.others().map(str::to_owned));
    if !stays.is_empty() {
        deletions.notes.push(format!(
            "the domain `{}` is kept because anklume did not create some of its content: {}",
            name.escape_debug(),
            stays.join(", ").escape_debug()
        ));
        return;
    }
    let profiles = ours.iter().map(|one| {
        delete(Object::Profile {
            project: name.to_owned(),
            name: one.name.clone(),
        })
    });
    let mut actions: Vec<Action> = profiles.collect();
    // The network and the access list carry the domain's mark; a network that other machines use is kept, with its list.
    let is_ours = |config: &ConfigMap| {
        owner(config, project) == Ownership::Ours
            && config.get(ownership::DOMAIN).is_some_and(|of| of == name)
    };
    let mut used = BTreeSet::new();
    for network in state.networks.iter().filter(|one| is_ours(&one.config)) {
        let name = &network.name;
        let mut machines = network.machines();
        if machines.any(|(home, machine)| !gone.contains(&format!("{home}/{machine}"))) {
            used.insert(name.as_str());
            let name = name.escape_debug();
            let note = format!("the network `{name}` is kept: other machines use it");
            deletions.notes.push(note);
        } else {
            actions.push(delete(Object::Network(name.clone())));
        }
    }
    let acls = state.acls.iter().filter(|one| is_ours(&one.config));
    let acls = acls.filter(|one| !used.contains(one.name.as_str()));
    let acls = acls.map(|one| delete(Object::Acl(one.name.clone())));
    actions.extend(acls);
    actions.push(delete(Object::Project(name.to_owned())));
    deletions.domains.push((name.to_owned(), actions));
}
