//! The network device of a machine.

use super::PlanInputs;
use super::ownership::{Ownership, machine_owner};
use crate::incus::ConfigMap;
use crate::infra::{Domain, Machine};

/// The network device; one of that name in a profile gives way to it.
pub(super) const NIC: &str = "eth0";

/// Returns whether a declared machine that is there is ours, or the user says that it shall be.
pub(super) fn may_be_touched(setting: &PlanInputs<'_>, domain: &Domain, machine: &Machine) -> bool {
    let (project, name) = (domain.name.as_str(), machine.name.as_str());
    let there = setting.there(project, name);
    there.is_some_and(|there| {
        match machine_owner(&there.config, setting.project(), project, name) {
            Ownership::Ours => true,
            Ownership::Nobody | Ownership::Copy(_) => setting.adopts(name),
            Ownership::Other(_) => false,
        }
    })
}

/// Its network device: the user's own of that name, or one on the domain's bridge.
pub(super) fn nic(domain: &Domain, machine: &Machine) -> ConfigMap {
    let mut own = machine.devices.iter();
    if let Some(own) = own.find(|device| device.name == NIC) {
        return own.keys.iter().cloned().collect();
    }
    let mut keys: ConfigMap = [
        ("type", "nic"),
        ("name", NIC),
        ("network", domain.network.name.as_str()),
        // A forged sender would pass the rules of the domain that it is forged from.
        ("security.ipv4_filtering", "true"),
    ]
    .into_iter()
    .map(|(key, value)| (key.to_owned(), value.to_owned()))
    .collect();
    if let Some(ip) = machine.ip {
        keys.insert("ipv4.address".to_owned(), ip.to_string());
    }
    keys
}
