//! A machine's network device, its fixed address, and the transfer of an address to another machine.
//!
//! Incus refuses an address that another machine has, even if that machine is about to lose it.

use std::borrow::Cow;
use std::collections::{BTreeSet, HashMap};
use std::net::Ipv4Addr;

use super::destroy::destroy_command;
use super::difference::{config_map, device_keys};
use super::network::{PREFIX, first_address, parse_subnet};
use super::ownership::{self, Ownership, machine_owner};
use super::{Action, MachineInputs, Obstacles, PlanCode, PlanInputs};
use crate::diagnostic::quote;
use crate::incus::state::Instance;
use crate::incus::{ConfigMap, Devices, Edit};
use crate::infra::{Domain, Infra, Machine, NIC};

/// The key of a network device's fixed address.
const ADDRESS: &str = "ipv4.address";

/// A fixed address on a network.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct NetworkAddress {
    network: String,
    address: String,
}

/// Returns a machine's network device: the user's own device of that name, or one on the domain's bridge.
pub(super) fn nic(domain: &Domain, machine: &Machine) -> ConfigMap {
    let mut own = machine.devices.iter();
    if let Some(own) = own.find(|device| device.name == NIC) {
        return device_keys(own);
    }
    let mut keys = config_map([
        ("type", "nic"),
        ("name", NIC),
        ("network", domain.network.name.as_str()),
        // A forged sender address would pass the rules of the domain that it claims to come from.
        ("security.ipv4_filtering", "true"),
    ]);
    keys.extend(machine.ip.map(|ip| (ADDRESS.to_owned(), ip.to_string())));
    keys
}

/// Returns every address that the file declares for a machine.
pub(super) fn declared(infra: &Infra) -> BTreeSet<NetworkAddress> {
    let machines = infra.machines();
    machines
        .filter_map(|(domain, machine)| fixed_address(&nic(domain, machine)))
        .collect()
}

/// The fixed address of a network device.
fn fixed_address(device: &ConfigMap) -> Option<NetworkAddress> {
    let key = |key: &str| device.get(key);
    let network = key("network").or_else(|| key("parent"))?.clone();
    let is_nic = key("type").is_some_and(|kind| kind == "nic");
    let address = key(ADDRESS).filter(|_| is_nic)?.clone();
    Some(NetworkAddress { network, address })
}

/// Returns a machine's network device as it is, and as it must be before its network is set up: without its address if
/// another machine in the file gets the address or its network moves away from it; `None` if the network has moved already,
/// because Incus then refuses every other change of the device.
fn freed(one: MachineInputs<'_>) -> Option<(&ConfigMap, Option<ConfigMap>)> {
    let old = one.current?.devices.get(NIC)?;
    let address = fixed_address(old)?;
    let wanted = fixed_address(&nic(one.domain, one.machine));
    if wanted.as_ref() == Some(&address) {
        return None;
    }
    let host: Option<Ipv4Addr> = address.address.parse().ok();
    let is_in = |(subnet, prefix): (Ipv4Addr, u8)| {
        host.is_some_and(|host| first_address(host, prefix) == subnet)
    };
    let network = &one.domain.network;
    let mut networks = one.plan.state.networks.iter();
    let current = networks.find(|current| current.name == address.network);
    if current
        .and_then(parse_subnet)
        .is_some_and(|subnet| !is_in(subnet))
    {
        return Some((old, None));
    }
    let moves = address.network == network.name && !is_in((network.subnet, PREFIX));
    (moves || one.plan.addresses.contains(&address)).then(|| {
        let mut new = old.clone();
        new.remove(ADDRESS);
        (old, Some(new))
    })
}

/// Removes a machine's address if another machine gets it or its network moves, before any address is assigned.
pub(super) fn free(one: MachineInputs<'_>) -> Option<Action> {
    let (old, new) = freed(one).filter(|_| ownership::may_touch_machine(one))?;
    Some(Action::Edit {
        object: one.object(),
        edits: vec![Edit::Device {
            name: NIC.to_owned(),
            old: Some(old.clone()),
            new,
        }],
        runs: false,
    })
}

/// Returns the devices of an existing machine after [`free`].
pub(super) fn devices_then<'a>(one: MachineInputs<'_>, current: &'a Instance) -> Cow<'a, Devices> {
    let Some((_, new)) = freed(one) else {
        return Cow::Borrowed(&current.devices);
    };
    let mut devices = current.devices.clone();
    match new {
        Some(new) => devices.insert(NIC.to_owned(), new),
        None => devices.remove(NIC),
    };
    Cow::Owned(devices)
}

/// The undeclared machines that have an address from the file, each with the declared machine that should have it.
fn holders<'a>(
    inputs: &PlanInputs<'a>,
) -> Vec<(&'a Domain, &'a Machine, NetworkAddress, &'a Instance)> {
    let infra = inputs.wanted.infra;
    let mut holders = HashMap::new();
    for instance in &inputs.state.instances {
        // A declared machine gets its declared address.
        let home = infra.machine(&instance.name).map(|(home, _)| &home.name);
        if home.is_none_or(|home| home.as_str() != instance.project) {
            let devices = instance.expanded_devices.values();
            let addresses = devices.filter_map(fixed_address);
            holders.extend(addresses.map(|address| (address, instance)));
        }
    }
    let held = infra.machines().filter_map(|(domain, machine)| {
        let wanted = fixed_address(&nic(domain, machine))?;
        let holder = holders.get(&wanted)?;
        Some((domain, machine, wanted, *holder))
    });
    held.collect()
}

/// Returns whether a machine is a copy of an existing declared machine, which keeps its address.
fn is_copy_of_existing(inputs: &PlanInputs<'_>, holder: &Instance, original: &Machine) -> bool {
    matches!(machine_owner(holder, inputs.project()), Ownership::Copy(_))
        && inputs
            .wanted
            .infra
            .machine(original.name.as_str())
            .is_some_and(|(domain, _)| {
                let key = (domain.name.as_str(), original.name.as_str());
                inputs.machines.contains_key(&key)
            })
}

/// Notes the addresses that copies of machines have too.
pub(super) fn notes(inputs: &PlanInputs<'_>) -> Vec<String> {
    let held = holders(inputs).into_iter();
    let held = held.filter(|(_, machine, _, holder)| is_copy_of_existing(inputs, holder, machine));
    let note = |(_, machine, wanted, holder): (_, &Machine, NetworkAddress, &Instance)| {
        format!(
            "the address {} of {} is also that of {} (project {}), so only one of them can run",
            wanted.address,
            quote(machine.name.as_str()),
            quote(&holder.name),
            quote(&holder.project)
        )
    };
    held.map(note).collect()
}

/// Checks that no undeclared machine has an address from the file: Incus would report it only at startup, with half
/// of the plan done.
pub(super) fn check(inputs: &PlanInputs<'_>, faults: &mut Obstacles) {
    for (_, machine, wanted, holder) in holders(inputs) {
        if is_copy_of_existing(inputs, holder, machine) {
            continue;
        }
        let (name, project) = (holder.name.escape_debug(), holder.project.escape_debug());
        let (adopt, flag) = (&machine.name, inputs.flag());
        let rename = format!(
            "`incus stop {name} --project {project}`, `incus rename {name} {} --project {project}`",
            machine.name
        );
        let help = match machine_owner(holder, inputs.project()) {
            Ownership::Ours => format!(
                "delete it: `{}`; or, if it is the same machine: {rename}, then `anklume apply --adopt {adopt}{flag}`",
                destroy_command(holder, flag),
            ),
            Ownership::Copy(_) => format!(
                "if it is the same machine: {rename}, then `anklume apply{flag}`; if it is a copy: `incus config device unset {name} {NIC} {ADDRESS} --project {project}`"
            ),
            Ownership::Other(_) | Ownership::Nobody => {
                "give one of them another address".to_owned()
            }
        };
        faults.add(
            PlanCode::AddressInUse,
            Some(machine.ip_place.as_deref().unwrap_or(&machine.place)),
            format!(
                "the address {} of {} belongs to the machine {} (project {}) in Incus",
                wanted.address,
                quote(machine.name.as_str()),
                quote(&holder.name),
                quote(&holder.project)
            ),
            help,
        );
    }
}
