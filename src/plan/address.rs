//! Fixed addresses: whose they are, and how one passes from a machine to another.
//!
//! Incus refuses an address that another machine has, also where that one is about to lose it.

use std::borrow::Cow;
use std::collections::{BTreeSet, HashMap};

use super::nic::{NIC, may_be_touched, nic};
use super::ownership::{self, Ownership};
use super::{Action, PlanCode, PlanInputs, fault};
use crate::diagnostic::{Diagnostic, quote};
use crate::incus::state::Instance;
use crate::incus::{ConfigMap, Devices, Edit, Object};
use crate::infra::{Domain, Infra, Machine};

/// The key of a network device.
const ADDRESS: &str = "ipv4.address";

/// A network and an address on it.
type AddressPlace = (String, String);

/// Every address that a machine of the file is declared with.
pub(super) fn declared(infra: &Infra) -> BTreeSet<AddressPlace> {
    let machines = infra.machines();
    machines
        .filter_map(|(domain, machine)| place(&nic(domain, machine)))
        .collect()
}

/// The fixed address of a network device.
fn place(device: &ConfigMap) -> Option<AddressPlace> {
    let key = |key: &str| device.get(key);
    let network = key("network").or_else(|| key("parent"))?;
    let is_nic = key("type").is_some_and(|kind| kind == "nic");
    let address = key(ADDRESS).filter(|_| is_nic)?;
    Some((network.clone(), address.clone()))
}

/// The network device of a machine without its address, where another machine of the file gets that.
fn freed(
    setting: &PlanInputs<'_>,
    domain: &Domain,
    machine: &Machine,
) -> Option<(ConfigMap, ConfigMap)> {
    let there = setting.there(domain.name.as_str(), machine.name.as_str())?;
    let old = there.devices.get(NIC)?;
    let has = place(old)?;
    let keeps = place(&nic(domain, machine)).is_some_and(|wanted| wanted == has);
    if keeps || !setting.addresses.contains(&has) {
        return None;
    }
    let mut new = old.clone();
    new.remove(ADDRESS);
    Some((old.clone(), new))
}

/// Takes the addresses off the machines of a domain that others get: before any of them is given out.
pub(super) fn free(setting: &PlanInputs<'_>, domain: &Domain) -> Vec<Action> {
    let machines = domain.machines.iter();
    let machines = machines.filter(|machine| may_be_touched(setting, domain, machine));
    machines
        .filter_map(|machine| {
            let (old, new) = freed(setting, domain, machine)?;
            Some(Action::Edit {
                object: Object::machine(domain.name.as_str(), machine.name.as_str()),
                edits: vec![Edit::Device {
                    name: NIC.to_owned(),
                    old: Some(old),
                    new: Some(new),
                }],
            })
        })
        .collect()
}

/// The devices of a machine when that is done.
pub(super) fn devices_then<'a>(
    setting: &PlanInputs<'_>,
    domain: &Domain,
    machine: &Machine,
    there: &'a Instance,
) -> Cow<'a, Devices> {
    let Some((_, new)) = freed(setting, domain, machine) else {
        return Cow::Borrowed(&there.devices);
    };
    let mut devices = there.devices.clone();
    devices.insert(NIC.to_owned(), new);
    Cow::Owned(devices)
}

/// The fixed addresses of machines that the file does not declare, by network.
type Holders<'a> = HashMap<AddressPlace, &'a Instance>;

fn holders<'a>(setting: &PlanInputs<'a>) -> Holders<'a> {
    let mut holders = Holders::new();
    for instance in &setting.state.instances {
        // A declared one gets the address that it is declared with.
        let declared = setting
            .wanted
            .infra
            .machine(&instance.name)
            .is_some_and(|(home, _)| home.name.as_str() == instance.project);
        if declared {
            continue;
        }
        let places = instance.expanded_devices.values().filter_map(place);
        holders.extend(places.map(|place| (place, instance)));
    }
    holders
}

/// The addresses that machines which the file does not declare have.
pub(super) fn check(setting: &PlanInputs<'_>, faults: &mut Vec<Diagnostic>) {
    let holders = holders(setting);
    for (domain, machine) in setting.wanted.infra.machines() {
        in_use(setting, domain, machine, &holders, faults);
    }
}

/// The machine that has an address of ours: Incus would notice at the start, when half is done.
fn in_use(
    setting: &PlanInputs<'_>,
    domain: &Domain,
    machine: &Machine,
    holders: &Holders<'_>,
    faults: &mut Vec<Diagnostic>,
) {
    let wanted = place(&nic(domain, machine));
    let Some((ip, holder)) = wanted.and_then(|place| Some((place.1.clone(), holders.get(&place)?)))
    else {
        return;
    };
    let ours = ownership::owner(&holder.config, setting.project()) == Ownership::Ours;
    let help = if ours {
        format!(
            "delete it: `anklume destroy --machine {0}`; or, if it is the same machine: `incus stop {0} --project {2}`, `incus rename {0} {1} --project {2}`, then `anklume apply --adopt {1}`",
            holder.name.escape_debug(),
            machine.name,
            holder.project.escape_debug(),
        )
    } else {
        "give one of them another address".to_owned()
    };
    faults.push(fault(
        PlanCode::AddressInUse,
        Some(&machine.place),
        format!(
            "the address {ip} of {} is that of the machine {} (project {}) on Incus",
            quote(machine.name.as_str()),
            quote(&holder.name),
            quote(&holder.project)
        ),
        help,
    ));
}
