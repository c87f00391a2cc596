//! Plans `destroy`: only objects with the marks of this infrastructure, and none that is still used.

use std::collections::BTreeSet;

use super::Action;
use super::difference::DEFAULT_PROFILE;
use super::domain::our_projects;
use super::edges::host_socket;
use super::ownership::{self, Ownership, machine_owner, owner};
use crate::edge::HOST_FOLDER;
use crate::incus::state::{IncusProfile, Instance, Project, Volume};
use crate::incus::{ConfigMap, Object, State};

/// The deletions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Selection<'a> {
    /// Everything of the infrastructure.
    All,
    /// A domain with everything in it.
    Domain(&'a str),
    /// A machine with its volumes.
    Machine(&'a str),
}

/// The deletions, in a possible order.
#[derive(Debug, Clone, Default)]
pub(crate) struct Doomed {
    /// Machines, independent of each other.
    pub(crate) machines: Vec<Action>,
    /// Their volumes.
    pub(crate) volumes: Vec<Action>,
    /// Profiles, networks, access lists, projects, one after the other.
    pub(crate) rest: Vec<Action>,
    /// The objects that stay, and why.
    pub(crate) notes: Vec<String>,
}

impl Doomed {
    /// Every action, in order.
    pub(crate) fn actions(&self) -> impl Iterator<Item = &Action> {
        self.machines.iter().chain(&self.volumes).chain(&self.rest)
    }
}

/// Everything of the infrastructure `project` that the selection names; `rotated`: whether the host's scheduler was told to
/// rotate the logs of channels.
pub(crate) fn destroy(
    project: &str,
    state: &State,
    selection: Selection<'_>,
    rotated: bool,
) -> Doomed {
    let mut doomed = Doomed::default();
    let is_ours = |instance: &&Instance| {
        machine_owner(&instance.config, project, &instance.project, &instance.name)
            == Ownership::Ours
    };
    let chosen = |one: &&Instance| match selection {
        Selection::All => true,
        Selection::Domain(domain) => one.project == domain,
        Selection::Machine(machine) => one.name == machine,
    };
    let machines: Vec<&Instance> = state
        .instances
        .iter()
        .filter(is_ours)
        .filter(chosen)
        .collect();
    doomed.machines = machines.iter().map(|one| delete_machine(one)).collect();
    let gone: BTreeSet<String> = machines
        .iter()
        .map(|one| format!("{}/{}", one.project, one.name))
        .collect();
    let with_domain = |domain: &str| match selection {
        Selection::All => true,
        Selection::Domain(one) => one == domain,
        Selection::Machine(_) => false,
    };
    for volume in &state.volumes {
        let ours = owner(&volume.config, project) == Ownership::Ours;
        let follows = volume
            .config
            .get(ownership::MACHINE)
            .is_some_and(|of| gone.contains(of));
        if ours && (follows || with_domain(&volume.project)) {
            doomed.volumes.push(delete(Object::Volume {
                project: volume.project.clone(),
                pool: volume.pool.clone(),
                name: volume.name.clone(),
            }));
        }
    }
    for domain in our_projects(state, project).filter(|one| with_domain(&one.name)) {
        delete_domain(project, state, domain, &gone, &mut doomed);
    }
    if rotated && are_last_ends(&machines, &state.instances) {
        doomed.rest.push(Action::Unschedule);
    }
    doomed
}

/// Returns whether these machines are ends of channels, and no other machine is.
fn are_last_ends(machines: &[&Instance], all: &[Instance]) -> bool {
    let is_end = |one: &Instance| one.devices.values().any(|keys| host_socket(keys).is_some());
    let ends = || all.iter().filter(|one| is_end(one));
    let goes = |end: &Instance| {
        let mut machines = machines.iter();
        machines.any(|one| one.project == end.project && one.name == end.name)
    };
    ends().next().is_some() && ends().all(goes)
}

fn delete(object: Object) -> Action {
    Action::Delete {
        object,
        running: false,
        protected: false,
        sockets: Vec::new(),
    }
}

pub(super) fn delete_machine(instance: &Instance) -> Action {
    let is_true = |value: &String| ["true", "1", "yes", "on"].contains(&value.as_str());
    let sockets = instance.devices.values().filter_map(host_listener);
    Action::Delete {
        object: Object::machine(&instance.project, &instance.name),
        running: instance.status != "Stopped",
        protected: instance
            .config
            .get("security.protection.delete")
            .is_some_and(is_true),
        sockets: sockets.map(str::to_owned).collect(),
    }
}

/// The socket of anklume's that a device makes on the host.
fn host_listener(device: &ConfigMap) -> Option<&str> {
    let is = |key: &str, value: &str| device.get(key).is_some_and(|is| is == value);
    let path = device.get("listen")?.strip_prefix("unix:")?;
    let name = path.strip_prefix(HOST_FOLDER)?.strip_prefix('/')?;
    (is("type", "proxy") && !is("bind", "instance") && !name.contains('/')).then_some(path)
}

fn delete_domain(
    project: &str,
    state: &State,
    domain: &Project,
    gone: &BTreeSet<String>,
    doomed: &mut Doomed,
) {
    let name = domain.name.as_str();
    let (ours, others): (Vec<&IncusProfile>, Vec<&IncusProfile>) = state
        .profiles
        .iter()
        .filter(|one| one.project == name && one.name != DEFAULT_PROFILE)
        .partition(|one| owner(&one.config, project) == Ownership::Ours);
    let stays = stays(state, domain, &others, gone, doomed);
    if !stays.is_empty() {
        doomed.notes.push(format!(
            "the domain `{}` stays: it holds what anklume did not make: {}",
            name.escape_debug(),
            stays.join(", ").escape_debug()
        ));
        return;
    }
    doomed.rest.extend(ours.iter().map(|one| {
        delete(Object::Profile {
            project: name.to_owned(),
            name: one.name.clone(),
        })
    }));
    networks(project, state, name, gone, doomed);
    doomed.rest.push(delete(Object::Project(name.to_owned())));
}

/// Objects in a domain's project that are not deleted.
fn stays(
    state: &State,
    domain: &Project,
    profiles: &[&IncusProfile],
    gone: &BTreeSet<String>,
    doomed: &Doomed,
) -> Vec<String> {
    let home = &domain.name;
    let machines = state.instances.iter().filter(|one| one.project == *home);
    let machines = machines.filter(|one| !gone.contains(&format!("{home}/{}", one.name)));
    let goes = |volume: &Volume| {
        doomed.volumes.iter().any(|action| match action {
            Action::Delete {
                object:
                    Object::Volume {
                        project,
                        pool,
                        name,
                    },
                ..
            } => (project, pool, name) == (home, &volume.pool, &volume.name),
            _ => false,
        })
    };
    let volumes = state.volumes.iter().filter(|one| one.project == *home);
    let volumes = volumes.filter(|one| !goes(one));
    let mut stays: Vec<String> = machines.map(|one| one.name.clone()).collect();
    stays.extend(volumes.map(|one| one.name.clone()));
    stays.extend(profiles.iter().map(|one| format!("profile {}", one.name)));
    stays.extend(domain.others().map(str::to_owned));
    stays
}

/// The network and the access list of a domain are known by their mark; one that is used by others stays.
fn networks(
    project: &str,
    state: &State,
    domain: &str,
    gone: &BTreeSet<String>,
    doomed: &mut Doomed,
) {
    let is_ours = |config: &ConfigMap| {
        owner(config, project) == Ownership::Ours
            && config.get(ownership::DOMAIN).is_some_and(|of| of == domain)
    };
    let mut stays = BTreeSet::new();
    for network in state.networks.iter().filter(|one| is_ours(&one.config)) {
        let mut machines = network.machines();
        let foreign = machines.any(|(home, name)| !gone.contains(&format!("{home}/{name}")));
        if foreign {
            stays.insert(network.name.as_str());
            doomed.notes.push(format!(
                "the network `{}` stays: other machines use it",
                network.name.escape_debug()
            ));
        } else {
            doomed
                .rest
                .push(delete(Object::Network(network.name.clone())));
        }
    }
    let acls = state.acls.iter().filter(|one| is_ours(&one.config));
    let acls = acls.filter(|one| !stays.contains(one.name.as_str()));
    doomed
        .rest
        .extend(acls.map(|one| delete(Object::Acl(one.name.clone()))));
}
