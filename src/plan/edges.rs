//! The devices of edges: those to be created, removed and verified, foreign ones, and leftover sockets.
//!
//! Every run probes the provider's end from the host. The consumer's end is probed inside the consumer, which Incus
//! counts as a change, so only a change causes such a call, and the consumer is marked until the call has succeeded.

use std::collections::{BTreeMap, BTreeSet};

use super::difference::{device_keys, value};
use super::facts::{RecreateReason, Role};
use super::ownership::{self, Ownership, unverified};
use super::{Action, MachineInputs, Plan, PlanInputs, Revocation, Verification};
use crate::diagnostic::quote;
use crate::edge::{CONSUMER_FOLDER, DEVICE_PREFIX, Edge, End, HOST_FOLDER, PROVIDER_FOLDER};
use crate::incus::state::{IncusProfile, Instance, InstanceId};
use crate::incus::{ConfigMap, Object};
use crate::infra::Device;

/// An end of an edge, with its device.
#[derive(Debug)]
pub(super) struct DesiredEdge {
    role: Role,
    other: InstanceId,
    keys: ConfigMap,
}

/// A machine: its project and name.
type MachineKey<'a> = (&'a str, &'a str);

/// The devices of all edges: by machine, then by name.
pub(super) type Ends<'a> = BTreeMap<MachineKey<'a>, BTreeMap<String, DesiredEdge>>;

fn key(end: &End) -> MachineKey<'_> {
    (end.domain.as_str(), end.machine.as_str())
}

/// Returns the devices of all edges.
pub(super) fn wanted(edges: &[Edge]) -> Ends<'_> {
    let mut wanted = Ends::new();
    for edge in edges {
        let (consumer, provider) = (&edge.consumer, &edge.provider);
        let mut add = |role, end, other, device: Device| {
            let (project, name) = key(other);
            let one = DesiredEdge {
                role,
                other: InstanceId::new(project, name),
                keys: device_keys(&device),
            };
            let here = wanted.entry(key(end)).or_default();
            here.insert(device.name, one);
        };
        add(Role::Provider, provider, consumer, edge.provider_device());
        add(Role::Consumer, consumer, provider, edge.consumer_device());
    }
    wanted
}

/// The machines that a channel's device connects, derived from its paths.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DevicePair {
    pub(super) consumer: InstanceId,
    /// Name of the provider.
    pub(super) provider: String,
    /// File name of the socket on the host.
    pub(super) socket: String,
    /// True for the consumer's end.
    pub(super) is_consumers: bool,
    /// True if the device's machine is not an end of the channel.
    pub(super) is_foreign: bool,
    /// The addresses at which the device listens and to which it connects, as in Incus.
    pub(crate) addresses: [String; 2],
}

/// Returns the pairs of a machine's channel devices.
pub(super) fn pairs(machine: &Instance) -> impl Iterator<Item = DevicePair> {
    let devices = machine.devices.values();
    devices.filter_map(|keys| pair(machine, keys, false))
}

fn pair(machine: &Instance, keys: &ConfigMap, is_foreign: bool) -> Option<DevicePair> {
    let name = |key: &str, folder: &str| {
        let path = path(value(keys, key))?;
        let name = below(&path, folder)?.strip_suffix(".sock")?;
        Some(name.to_owned())
    };
    let is_consumers = is_inside(keys);
    let (consumer, provider) = if is_consumers {
        (machine.id(), name("listen", CONSUMER_FOLDER)?)
    } else {
        let consumer = name("connect", PROVIDER_FOLDER)?;
        (InstanceId::new("", &consumer), machine.name.clone())
    };
    Some(DevicePair {
        consumer,
        provider,
        socket: host_socket(keys)?,
        is_consumers,
        is_foreign,
        addresses: ["listen", "connect"].map(|key| value(keys, key).to_owned()),
    })
}

impl From<&End> for InstanceId {
    fn from(end: &End) -> Self {
        Self::new(end.domain.as_str(), end.machine.as_str())
    }
}

impl From<&End> for Object {
    fn from(end: &End) -> Self {
        Self::machine(end.domain.as_str(), end.machine.as_str())
    }
}

/// A machine's device that uses a socket in anklume's folder but belongs to no edge of the machine.
#[derive(Debug)]
pub(crate) struct ForeignDevice<'a> {
    /// File name of the socket.
    pub(crate) socket: String,
    /// True if the machine is an end of the channel, but the device has the name that an earlier version gave it.
    pub(crate) is_renamed: bool,
    pub(crate) machine: &'a Instance,
    pub(crate) device: &'a str,
    keys: &'a ConfigMap,
}

/// Lists the devices that use these edges' sockets without being entitled to them.
pub(crate) fn foreign_devices<'a>(
    edges: &[Edge],
    instances: &'a [Instance],
) -> Vec<ForeignDevice<'a>> {
    let wanted = wanted(edges);
    let ours = sockets(edges);
    let foreign = instances.iter().flat_map(|one| foreign(one, &wanted));
    foreign.filter(|one| ours.contains(&one.socket)).collect()
}

fn foreign<'a>(machine: &'a Instance, wanted: &Ends<'_>) -> Vec<ForeignDevice<'a>> {
    let here = wanted.get(&(machine.project.as_str(), machine.name.as_str()));
    let belongs = |device: &String| here.is_some_and(|here| here.contains_key(device));
    let devices = machine.devices.iter();
    let devices = devices.filter(|(device, _)| !belongs(device));
    devices
        .filter_map(|(device, keys)| {
            let socket = host_socket(keys)?;
            let name = format!("{DEVICE_PREFIX}{}", socket.trim_end_matches(".sock"));
            let end = here.and_then(|here| here.get(&name));
            let is_renamed = end.is_some_and(|end| is_inside(&end.keys) == is_inside(keys));
            Some(ForeignDevice {
                socket,
                is_renamed,
                machine,
                device,
                keys,
            })
        })
        .collect()
}

/// A profile's device that uses a socket in anklume's folder, and so exposes it to every machine with the profile.
#[derive(Debug)]
pub(crate) struct ProfileDevice<'a> {
    socket: String,
    pub(crate) profile: &'a IncusProfile,
    pub(crate) device: &'a str,
}

impl ProfileDevice<'_> {
    /// Returns whether the socket belongs to one of these edges.
    pub(crate) fn is_on(&self, edges: &[Edge]) -> bool {
        edges.iter().any(|edge| socket_name(edge) == self.socket)
    }

    /// Describes the fault.
    pub(crate) fn what(&self) -> String {
        format!(
            "the device {} of the profile {} (project {}) has a socket in `{HOST_FOLDER}`, which is reserved for channels",
            quote(self.device),
            quote(&self.profile.name),
            quote(&self.profile.project)
        )
    }
}

/// Lists the profile devices in anklume's folder; none are anklume's own, because it adds devices to single machines.
pub(crate) fn profile_devices(profiles: &[IncusProfile]) -> Vec<ProfileDevice<'_>> {
    let devices = profiles.iter();
    let devices = devices.flat_map(|profile| profile.devices.iter().map(move |it| (profile, it)));
    devices
        .filter_map(|(profile, (device, keys))| {
            Some(ProfileDevice {
                socket: host_socket(keys)?,
                profile,
                device,
            })
        })
        .collect()
}

/// The file names of the edges' sockets on the host.
fn sockets(edges: &[Edge]) -> BTreeSet<String> {
    edges.iter().map(socket_name).collect()
}

fn socket_name(edge: &Edge) -> String {
    format!("{}.sock", edge.hash)
}

/// The normalised path in a proxy address.
fn path(address: &str) -> Option<String> {
    let mut names = Vec::new();
    for name in address.strip_prefix("unix:")?.split('/') {
        match name {
            "" | "." => {}
            ".." => drop(names.pop()),
            name => names.push(name),
        }
    }
    Some(format!("/{}", names.join("/")))
}

pub(super) fn below<'a>(path: &'a str, folder: &str) -> Option<&'a str> {
    path.strip_prefix(folder)?.strip_prefix('/')
}

fn is_inside(device: &ConfigMap) -> bool {
    value(device, "bind") == "instance"
}

/// Returns the file name of the socket on the host that a proxy creates or uses, if it is in anklume's folder.
pub(super) fn host_socket(device: &ConfigMap) -> Option<String> {
    if value(device, "type") != "proxy" {
        return None;
    }
    ["listen", "connect"].iter().find_map(|key| {
        let path = path(value(device, key))?;
        below(&path, HOST_FOLDER).map(str::to_owned)
    })
}

/// Returns whether a proxy listens in the machine's socket folder.
pub(super) fn listens_inside(device: &ConfigMap) -> bool {
    is_inside(device) && host_socket(device).is_some()
}

/// Plans the removal of devices that belong to no edge, on our machines, and on any machine if they use an edge's
/// socket; also returns, by hash, the edges whose host socket another machine took over.
pub(super) fn revocations(inputs: &PlanInputs<'_>) -> (Vec<Action>, BTreeSet<String>) {
    let wanted = wanted(inputs.wanted.edges);
    let ours = sockets(inputs.wanted.edges);
    let (mut revoked, mut stolen) = (Vec::new(), BTreeSet::new());
    let instances = inputs.state.instances.iter();
    for one in instances.flat_map(|one| foreign(one, &wanted)) {
        let config = &one.machine.config;
        if one.is_renamed && inputs.facts.unread.contains_key(&one.machine.id()) {
            // The device that replaces it is not created before the machine can be read.
            continue;
        }
        let of_us = ownership::owner(config, inputs.project()) == Ownership::Ours;
        let taken_over = ours.contains(&one.socket);
        if taken_over && !is_inside(one.keys) && !one.is_renamed {
            let hash = one.socket.strip_suffix(".sock").unwrap_or(&one.socket);
            stolen.insert(hash.to_owned());
        }
        if of_us || taken_over {
            revoked.push(revoke(&one, taken_over));
        }
    }
    (revoked, stolen)
}

/// Plans the removal of sockets on the host that belong to no edge and no device.
pub(super) fn sweep(inputs: &PlanInputs<'_>) -> Vec<Action> {
    let state = inputs.state;
    let devices = state.instances.iter().flat_map(|one| one.devices.values());
    let devices = devices.chain(state.profiles.iter().flat_map(|one| one.devices.values()));
    let mut in_use = sockets(inputs.wanted.edges);
    in_use.extend(devices.filter_map(host_socket));
    let left = inputs.facts.sockets.iter();
    let left = left.filter(|name| !in_use.contains(*name));
    let path = |name| format!("{HOST_FOLDER}/{name}");
    left.map(|name| Action::Sweep { path: path(name) })
        .collect()
}

fn revoke(one: &ForeignDevice<'_>, taken_over: bool) -> Action {
    let listen = path(value(one.keys, "listen")).unwrap_or_default();
    let is_inside = is_inside(one.keys);
    let file = |folder: &str| below(&listen, folder).is_some_and(|name| !name.contains('/'));
    Action::Revoke(Revocation {
        machine: Object::machine(&one.machine.project, &one.machine.name),
        device: one.device.to_owned(),
        inside: (is_inside && file(CONSUMER_FOLDER)).then(|| listen.clone()),
        host: (!is_inside && !taken_over && file(HOST_FOLDER)).then(|| listen.clone()),
        pair: pair(one.machine, one.keys, taken_over && !one.is_renamed),
        why: match (taken_over, one.is_renamed) {
            (_, true) => Some("gets its new name"),
            (true, false) => Some("not an end of that channel"),
            (false, false) => None,
        },
    })
}

/// Plans the devices of a machine's edges that are missing or differ.
pub(super) fn connect<'a>(
    one: MachineInputs<'a>,
    ends: &mut Ends<'a>,
    stolen: &BTreeSet<String>,
) -> Vec<Action> {
    let here = ends.remove(&(one.project(), one.name()));
    let mut actions = Vec::new();
    for (device, end) in here.unwrap_or_default() {
        let old = one.current.and_then(|current| current.devices.get(&device));
        let hash = device.strip_prefix(DEVICE_PREFIX).unwrap_or_default();
        let broken = &one.plan.facts.broken;
        let recreate = if end.role == Role::Provider && stolen.contains(hash) {
            Some(RecreateReason::TakenOver)
        } else {
            broken.get(&(hash.to_owned(), end.role)).copied()
        };
        let recreate = recreate.filter(|_| old.is_some());
        if recreate.is_some() || old != Some(&end.keys) {
            actions.push(Action::Connect {
                machine: one.object(),
                role: end.role,
                other: end.other,
                exists: old.is_some(),
                new: end.keys,
                recreate,
                device,
            });
        }
    }
    actions
}

/// Plans the calls to try after the actions so far: over the channels of the machines that these change, and over those
/// that have not answered since their last change.
pub(super) fn verifications(inputs: &PlanInputs<'_>, plan: &Plan) -> Vec<Action> {
    let mut touched = BTreeSet::new();
    let mut marks = BTreeSet::new();
    for action in plan.actions() {
        if let Some(machine) = action.machine() {
            touched.insert((machine.project(), machine.name()));
        }
        if let Action::Connect {
            machine,
            device,
            role: Role::Consumer,
            ..
        } = action
        {
            marks.insert((machine.project(), machine.name(), device.as_str()));
        }
    }
    let mut calls = Vec::new();
    for edge in inputs.wanted.edges {
        let (consumer, provider) = (key(&edge.consumer), key(&edge.provider));
        let device = edge.device_name();
        let current = inputs.machines.get(&consumer);
        let again = current.is_some_and(|it| it.config.contains_key(&unverified(&device)));
        let changes = touched.contains(&consumer) || touched.contains(&provider);
        if again || changes {
            calls.push(Action::VerifyChannel(Verification {
                name: format!("{} → {}", consumer.1, provider.1),
                marked: again || marks.contains(&(consumer.0, consumer.1, device.as_str())),
                edge: edge.clone(),
                changes,
            }));
        }
    }
    calls
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
