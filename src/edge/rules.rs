//! What a machine may not do while it is an end of an edge, and what no machine may do beside one.
//!
//! Incus obeys devices to the letter: a privileged end, a mount over a socket folder or a second way to a
//! socket would each undo what the edges promise.

use std::collections::HashSet;

use crate::diagnostic::{Diagnostic, Severity};
use crate::infra::{Device, Domain, Infra, Machine, MachineType, Profile};

use super::{CONSUMER_FOLDER, DEVICE_PREFIX, Edge, HASH_DIGITS, PROVIDER_FOLDER};

/// Everything of anklume's on the host.
const HOST_ROOT: &str = "/var/lib/anklume";

/// Every fault of the machines, given the edges between them; none where there is no edge.
pub(super) fn faults(infra: &Infra, edges: &[Edge]) -> Vec<Diagnostic> {
    if edges.is_empty() {
        return Vec::new();
    }
    let ends: HashSet<&str> = edges
        .iter()
        .flat_map(|edge| [&edge.consumer.machine, &edge.provider.machine])
        .map(crate::name::MachineName::as_str)
        .collect();
    let shared = shared_folders(infra);
    let mut faults = Vec::new();
    for (domain, machine) in infra.machines() {
        if ends.contains(machine.name.as_str()) {
            faults.extend(end_fault(domain, machine));
            faults.extend(device_faults(domain, machine, end_device_fault));
        }
        faults.extend(device_faults(domain, machine, host_path_fault));
        faults.extend(device_faults(domain, machine, |device| {
            connect_fault(device, &shared)
        }));
    }
    faults
}

/// What is wrong with a device, and what to do about it.
struct Wrong {
    what: String,
    help: &'static str,
}

fn end_fault(domain: &Domain, machine: &Machine) -> Option<Diagnostic> {
    if machine.kind == MachineType::VirtualMachine {
        return Some(fault(
            "edge-virtual-machine",
            machine,
            format!(
                "`{}` is a virtual machine and an end of a service, and Incus gives those no Unix-socket proxy",
                machine.name
            ),
            "make it a container (`type: lxc`), or take the service or the consumer out",
        ));
    }
    is_privileged(domain, machine).then(|| {
        fault(
            "edge-privileged",
            machine,
            format!(
                "`{}` is privileged and an end of a service: its root is root on the host",
                machine.name
            ),
            "take `security.privileged` off, or the service or the consumer out",
        )
    })
}

/// The machine's own word, or else that of the last of its profiles that has one.
fn is_privileged(domain: &Domain, machine: &Machine) -> bool {
    let profiles = profiles(domain, machine)
        .into_iter()
        .flat_map(|(_, profile)| &profile.config);
    profiles
        .chain(&machine.config)
        .rfind(|(key, _)| key == "security.privileged")
        .is_some_and(|(_, value)| is_true(value))
}

/// What Incus takes for true.
fn is_true(value: &str) -> bool {
    ["true", "1", "yes", "on"].contains(&value.to_ascii_lowercase().as_str())
}

/// The profiles that a machine uses and its domain declares; without a list it uses `default`.
fn profiles<'a>(domain: &'a Domain, machine: &'a Machine) -> Vec<(&'a str, &'a Profile)> {
    let declared = |name: &str| {
        let found = domain.profiles.iter().find(|(known, _)| known == name);
        found.map(|(name, profile)| (name.as_str(), profile))
    };
    if machine.profiles.is_empty() {
        return declared("default").into_iter().collect();
    }
    let names = machine.profiles.iter();
    names.filter_map(|name| declared(name)).collect()
}

/// The faults that `check` finds in the devices of a machine and of its profiles.
fn device_faults(
    domain: &Domain,
    machine: &Machine,
    check: impl Fn(&Device) -> Option<Wrong>,
) -> Vec<Diagnostic> {
    let of = |from: String, device: &Device| {
        let wrong = check(device)?;
        Some(fault(
            "edge-device",
            machine,
            format!(
                "the device `{}` of `{}`{from} {}",
                device.name.escape_debug(),
                machine.name,
                wrong.what
            ),
            wrong.help,
        ))
    };
    let own = machine.devices.iter();
    let mut faults: Vec<_> = own.filter_map(|device| of(String::new(), device)).collect();
    for (name, profile) in profiles(domain, machine) {
        let from = || format!(" (profile `{}`)", name.escape_debug());
        let devices = profile.devices.iter();
        faults.extend(devices.filter_map(|device| of(from(), device)));
    }
    faults
}

fn fault(code: &'static str, machine: &Machine, message: String, help: &str) -> Diagnostic {
    Diagnostic {
        severity: Severity::Error,
        code,
        message,
        place: Some(machine.place.clone()),
        help: Some(help.to_owned()),
    }
}

/// On an end: nobody else's device has a name of ours, and nothing lies over, or leads into, the folders of sockets.
fn end_device_fault(device: &Device) -> Option<Wrong> {
    if has_edge_name(&device.name) {
        return Some(Wrong {
            what: format!(
                "has a name of the form `{DEVICE_PREFIX}HASH`, which the devices of services have"
            ),
            help: "give it another name",
        });
    }
    let inside = match kind(device) {
        Kind::Disk => device.get("path").map(str::to_owned),
        Kind::Proxy => machine_side(device),
        Kind::Other => None,
    };
    let inside = inside
        .map(|path| components(&path))
        .filter(|path| !path.is_empty())?;
    let folder = [CONSUMER_FOLDER, PROVIDER_FOLDER]
        .into_iter()
        .find(|folder| overlap(&inside, &components(folder)))?;
    Some(Wrong {
        what: format!("reaches `{folder}`, the folder of the machine's service sockets"),
        help: "use another path inside the machine",
    })
}

/// On any machine: nothing reaches anklume's own folder on the host.
fn host_path_fault(device: &Device) -> Option<Wrong> {
    let host = match kind(device) {
        Kind::Disk => device
            .get("source")
            .filter(|path| path.starts_with('/'))
            .map(str::to_owned),
        Kind::Proxy => host_side(device),
        Kind::Other => None,
    }?;
    let host = components(&host);
    overlap(&host, &components(HOST_ROOT)).then(|| Wrong {
        what: format!("reaches `{HOST_ROOT}` on the host, where the sockets of services are"),
        help: "use another path on the host",
    })
}

/// On any machine: the host connects to no path where a machine could put a symbolic link.
fn connect_fault(device: &Device, shared: &[Vec<String>]) -> Option<Wrong> {
    if kind(device) != Kind::Proxy || device.get("bind") != Some("instance") {
        return None;
    }
    let connect = components(&host_side(device)?);
    shared
        .iter()
        .any(|folder| connect.starts_with(folder))
        .then(|| Wrong {
            what: "connects to a path on the host where a machine can write, and would follow its symbolic links"
                .to_owned(),
            help: "move the socket out of the shared folder, or share the folder read-only",
        })
}

/// The folders of the host that some machine can write.
fn shared_folders(infra: &Infra) -> Vec<Vec<String>> {
    let own = infra.machines().flat_map(|(_, machine)| &machine.devices);
    let profiles = infra
        .enabled()
        .flat_map(|domain| &domain.profiles)
        .flat_map(|(_, profile)| &profile.devices);
    own.chain(profiles)
        .filter(|device| kind(device) == Kind::Disk)
        .filter(|device| !device.get("readonly").is_some_and(is_true))
        .filter_map(|device| device.get("source"))
        .filter(|source| source.starts_with('/'))
        .map(components)
        .collect()
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Disk,
    Proxy,
    Other,
}

fn kind(device: &Device) -> Kind {
    match device.get("type") {
        Some("disk") => Kind::Disk,
        Some("proxy") => Kind::Proxy,
        _ => Kind::Other,
    }
}

/// The path of a proxy's socket on the host; Incus binds to the host unless told otherwise.
fn host_side(device: &Device) -> Option<String> {
    let bound_inside = device.get("bind") == Some("instance");
    socket(device, if bound_inside { "connect" } else { "listen" })
}

/// The path of a proxy's socket inside the machine.
fn machine_side(device: &Device) -> Option<String> {
    let bound_inside = device.get("bind") == Some("instance");
    socket(device, if bound_inside { "listen" } else { "connect" })
}

fn socket(device: &Device, key: &str) -> Option<String> {
    let path = device.get(key)?.trim().strip_prefix("unix:")?;
    path.starts_with('/').then(|| path.to_owned())
}

fn has_edge_name(name: &str) -> bool {
    name.strip_prefix(DEVICE_PREFIX).is_some_and(|rest| {
        rest.len() == HASH_DIGITS && rest.bytes().all(|byte| byte.is_ascii_hexdigit())
    })
}

/// A path as the kernel walks it, symbolic links aside.
fn components(path: &str) -> Vec<String> {
    let mut parts = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            name => parts.push(name.to_owned()),
        }
    }
    parts
}

/// Whether one path is the other or lies below it.
fn overlap(left: &[String], right: &[String]) -> bool {
    left.starts_with(right) || right.starts_with(left)
}
