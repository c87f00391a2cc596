//! The devices of edges: those that must be, those that must go, and the sockets that nobody owns any more.

use std::collections::{BTreeMap, BTreeSet};

use super::ownership::{self, Ownership};
use super::{Action, Again, PlanInputs, Role};
use crate::diagnostic::quote;
use crate::edge::{CONSUMER_FOLDER, Edge, HOST_FOLDER};
use crate::incus::state::{IncusProfile, Instance, InstanceId};
use crate::incus::{ConfigMap, Object};
use crate::infra::{Domain, Machine};

/// Plans the deletions and what follows from them.
#[derive(Debug, Default)]
pub(super) struct Moves {
    /// Devices that must go.
    pub(super) revoked: Vec<Action>,
    /// Edges whose socket on the host another machine took over, by hash.
    pub(super) stolen: BTreeSet<String>,
    /// Sockets that belong to no device.
    pub(super) swept: Vec<Action>,
}

/// An end of an edge, with the device that belongs there.
#[derive(Debug)]
pub(super) struct DesiredEdge {
    role: Role,
    other: InstanceId,
    keys: ConfigMap,
}

/// The devices of all edges: by project and machine, then by name.
pub(super) type Ends<'a> = BTreeMap<(&'a str, &'a str), BTreeMap<String, DesiredEdge>>;

/// The devices of all edges.
pub(super) fn wanted(edges: &[Edge]) -> Ends<'_> {
    let mut wanted = Ends::new();
    for edge in edges {
        let ends = [
            (
                Role::Provider,
                &edge.provider,
                &edge.consumer,
                edge.provider_device(),
            ),
            (
                Role::Consumer,
                &edge.consumer,
                &edge.provider,
                edge.consumer_device(),
            ),
        ];
        for (role, end, other, device) in ends {
            let machine = (end.domain.as_str(), end.machine.as_str());
            let one = DesiredEdge {
                role,
                other: InstanceId::new(other.domain.as_str(), other.machine.as_str()),
                keys: device.keys.into_iter().collect(),
            };
            wanted.entry(machine).or_default().insert(device.name, one);
        }
    }
    wanted
}

/// A device that uses an edge's socket on the host, on a machine that is no end of that edge.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Stranger {
    /// File name of the socket.
    pub(crate) socket: String,
    /// The machine's project.
    pub(crate) project: String,
    /// The machine.
    pub(crate) machine: String,
    /// The device.
    pub(crate) device: String,
}

/// The devices that use these edges' sockets where they have no right to.
pub(crate) fn strangers(edges: &[Edge], instances: &[Instance]) -> Vec<Stranger> {
    let wanted = wanted(edges);
    let ours = sockets(edges);
    let mut found = Vec::new();
    for instance in instances {
        let here = wanted.get(&(instance.project.as_str(), instance.name.as_str()));
        for (name, device) in &instance.devices {
            let belongs = here.is_some_and(|here| here.contains_key(name));
            let socket = host_socket(device).filter(|socket| ours.contains(socket));
            found.extend(socket.filter(|_| !belongs).map(|socket| Stranger {
                socket,
                project: instance.project.clone(),
                machine: instance.name.clone(),
                device: name.clone(),
            }));
        }
    }
    found
}

/// A device of a profile that uses a socket in anklume's folder: whatever machine has the profile has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Intruder {
    /// File name of the socket.
    pub(crate) socket: String,
    /// The profile's project.
    pub(crate) project: String,
    /// The profile.
    pub(crate) profile: String,
    /// The device.
    pub(crate) device: String,
}

impl Intruder {
    /// Returns whether the socket is that of one of these edges.
    pub(crate) fn is_on(&self, edges: &[Edge]) -> bool {
        edges.iter().any(|edge| socket_name(edge) == self.socket)
    }

    /// Its fault, in words.
    pub(crate) fn what(&self) -> String {
        format!(
            "the device {} of the profile {} (project {}) has a socket in `{HOST_FOLDER}`, where only channels are",
            quote(&self.device),
            quote(&self.profile),
            quote(&self.project)
        )
    }
}

/// The devices of profiles in anklume's folder: none is anklume's, which connects machine by machine.
pub(crate) fn intruders(profiles: &[IncusProfile]) -> Vec<Intruder> {
    let mut found = Vec::new();
    for profile in profiles {
        for (device, keys) in &profile.devices {
            found.extend(host_socket(keys).map(|socket| Intruder {
                socket,
                project: profile.project.clone(),
                profile: profile.name.clone(),
                device: device.clone(),
            }));
        }
    }
    found
}

/// The file names of the edges' sockets on the host.
fn sockets(edges: &[Edge]) -> BTreeSet<String> {
    edges.iter().map(socket_name).collect()
}

fn socket_name(edge: &Edge) -> String {
    format!("{}.sock", edge.hash)
}

/// The path in an address of a proxy, in one way of the several in which it can be written.
fn path(address: &str) -> Option<String> {
    let mut names = Vec::new();
    for name in address.strip_prefix("unix:")?.split('/') {
        match name {
            "" | "." => {}
            ".." => {
                names.pop();
            }
            name => names.push(name),
        }
    }
    Some(format!("/{}", names.join("/")))
}

fn value<'a>(device: &'a ConfigMap, key: &str) -> &'a str {
    device.get(key).map_or("", String::as_str)
}

fn below<'a>(path: &'a str, folder: &str) -> Option<&'a str> {
    path.strip_prefix(folder)?.strip_prefix('/')
}

/// The file name of the socket on the host that a proxy makes or uses, if it is one of anklume's.
pub(super) fn host_socket(device: &ConfigMap) -> Option<String> {
    if value(device, "type") != "proxy" {
        return None;
    }
    ["listen", "connect"].iter().find_map(|key| {
        let path = path(value(device, key))?;
        below(&path, HOST_FOLDER).map(str::to_owned)
    })
}

/// Returns whether a proxy listens in the machine's folder of sockets.
pub(super) fn listens_inside(device: &ConfigMap) -> bool {
    value(device, "bind") == "instance" && host_socket(device).is_some()
}

/// Compares the devices on all machines of all projects with the edges.
pub(super) fn moves(setting: &PlanInputs<'_>) -> Moves {
    let edges = setting.wanted.edges;
    let wanted = wanted(edges);
    let ours = sockets(edges);
    let mut moves = Moves::default();
    let mut used = ours.clone();
    used.extend(
        intruders(&setting.state.profiles)
            .into_iter()
            .map(|one| one.socket),
    );
    for instance in &setting.state.instances {
        let place = (instance.project.as_str(), instance.name.as_str());
        for (name, device) in &instance.devices {
            let Some(socket) = host_socket(device) else {
                continue;
            };
            used.insert(socket.clone());
            let belongs = wanted
                .get(&place)
                .is_some_and(|here| here.contains_key(name));
            let of_us = ownership::owner(&instance.config, setting.project()) == Ownership::Ours;
            if belongs || !(of_us || ours.contains(&socket)) {
                continue;
            }
            let taken_over = ours.contains(&socket);
            if taken_over && value(device, "bind") != "instance" {
                let hash = socket.strip_suffix(".sock").unwrap_or(&socket);
                moves.stolen.insert(hash.to_owned());
            }
            moves
                .revoked
                .push(revoke(instance, name, device, taken_over));
        }
    }
    let left = setting
        .facts
        .sockets
        .iter()
        .filter(|name| !used.contains(*name));
    moves.swept = left
        .map(|name| Action::Sweep {
            path: format!("{HOST_FOLDER}/{name}"),
        })
        .collect();
    moves
}

fn revoke(instance: &Instance, name: &str, device: &ConfigMap, taken_over: bool) -> Action {
    let listen = path(value(device, "listen")).unwrap_or_default();
    let inside = value(device, "bind") == "instance";
    let file = |folder: &str| below(&listen, folder).is_some_and(|name| !name.contains('/'));
    let taken = (inside && file(CONSUMER_FOLDER)).then(|| listen.clone());
    let host = (!inside && !taken_over && file(HOST_FOLDER)).then(|| listen.clone());
    Action::Revoke {
        machine: Object::machine(&instance.project, &instance.name),
        device: name.to_owned(),
        old: device.clone(),
        inside: taken,
        host,
        why: taken_over.then_some("not an end of that channel"),
    }
}

/// The devices that a machine's edges need and that are not there as they must be.
pub(super) fn connect<'a>(
    setting: &PlanInputs<'_>,
    domain: &'a Domain,
    machine: &'a Machine,
    ends: &mut Ends<'a>,
    stolen: &BTreeSet<String>,
) -> Vec<Action> {
    let place = (domain.name.as_str(), machine.name.as_str());
    let here = ends.remove(&place).unwrap_or_default();
    let there = setting.there(place.0, place.1);
    let mut actions = Vec::new();
    for (device, one) in here {
        let old = there.and_then(|there| there.devices.get(&device));
        let hash = device
            .strip_prefix(crate::edge::DEVICE_PREFIX)
            .unwrap_or_default();
        let taken_over = one.role == Role::Provider && stolen.contains(hash);
        let broken = setting.facts.broken.get(&(hash.to_owned(), one.role));
        let anew = if taken_over {
            Some(Again::TakenOver)
        } else {
            broken.copied()
        };
        let anew = anew.filter(|_| old.is_some());
        if anew.is_some() || old != Some(&one.keys) {
            actions.push(Action::Connect {
                machine: Object::machine(place.0, place.1),
                role: one.role,
                other: one.other,
                old: old.cloned(),
                new: one.keys,
                anew,
                device,
            });
        }
    }
    actions
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_is_found_however_its_path_is_written() {
        let device = |listen: &str| {
            let pairs = [
                ("type", "proxy"),
                ("listen", listen),
                ("connect", "tcp:127.0.0.1:80"),
            ];
            pairs
                .map(|(key, value)| (key.to_owned(), value.to_owned()))
                .into_iter()
                .collect()
        };
        let folder = HOST_FOLDER.replace('/', "//");
        for written in [
            format!("unix:{HOST_FOLDER}/a.sock"),
            format!("unix:{folder}//a.sock"),
            format!("unix:/x/../.{HOST_FOLDER}/./b/../a.sock"),
        ] {
            assert_eq!(
                host_socket(&device(&written)).as_deref(),
                Some("a.sock"),
                "{written}"
            );
        }
        for other in ["unix:/a.sock", "unix:@a", "tcp:0.0.0.0:1", ""] {
            assert_eq!(host_socket(&device(other)), None, "{other}");
        }
    }
}
