//! A machine's network device, its fixed address, and the transfer of an address to another machine.
//!
//! Incus refuses an address that another machine has, even if that machine is about to lose it.

use std::borrow::Cow;
use std::collections::{BTreeSet, HashMap};

use super::destroy::destroy_command;
use super::difference::{config_map, device_keys};
use super::ownership::{self, Ownership};
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

/// Returns a machine's network device with and without its address, if another machine in the file gets the address.
fn freed(one: MachineInputs<'_>) -> Option<(&ConfigMap, ConfigMap)> {
    let old = one.current?.devices.get(NIC)?;
    let address = fixed_address(old)?;
    let wanted = fixed_address(&nic(one.domain, one.machine));
    if wanted.as_ref() == Some(&address) || !one.plan.addresses.contains(&address) {
        return None;
    }
    let mut new = old.clone();
    new.remove(ADDRESS);
    Some((old, new))
}

/// Removes a machine's address if another machine gets it, before any address is assigned.
pub(super) fn free(one: MachineInputs<'_>) -> Option<Action> {
    let (old, new) = freed(one).filter(|_| ownership::may_touch_machine(one))?;
    Some(Action::Edit {
        object: one.object(),
        edits: vec![Edit::Device {
            name: NIC.to_owned(),
            old: Some(old.clone()),
            new: Some(new),
        }],
    })
}

/// Returns the devices of an existing machine after [`free`].
pub(super) fn devices_then<'a>(one: MachineInputs<'_>, current: &'a Instance) -> Cow<'a, Devices> {
    let Some((_, new)) = freed(one) else {
        return Cow::Borrowed(&current.devices);
    };
    let mut devices = current.devices.clone();
    devices.insert(NIC.to_owned(), new);
    Cow::Owned(devices)
}

/// Checks that no undeclared machine has an address from the file: Incus would report it only at startup, with half
/// of the plan done.
pub(super) fn check(inputs: &PlanInputs<'_>, faults: &mut Obstacles) {
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
    for (domain, machine) in infra.machines() {
        let Some(wanted) = fixed_address(&nic(domain, machine)) else {
            continue;
        };
        let Some(holder) = holders.get(&wanted) else {
            continue;
        };
        let ours = ownership::owner(&holder.config, inputs.project()) == Ownership::Ours;
        let help = if ours {
            format!(
                "delete it: `{3}`; or, if it is the same machine: `incus stop {0} --project {2}`, `incus rename {0} {1} --project {2}`, then `anklume apply --adopt {1}`",
                holder.name.escape_debug(),
                machine.name,
                holder.project.escape_debug(),
                destroy_command(holder),
            )
        } else {
            "give one of them another address".to_owned()
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
