//! Host folders that a machine writes to with the rights of the host's own users.
//!
//! On such a disk, a file that the machine's root creates belongs to the host's root and may be set-user-ID: running
//! it on the host grants root. The machine's root can open the folder itself to everybody, so only a folder above it
//! keeps the host's users out.

use std::collections::BTreeSet;

use super::difference::DEFAULT_PROFILE;
use super::facts::Reach;
use super::{Obstacles, PlanCode, PlanInputs};
use crate::diagnostic::quote;
use crate::infra::{Device, Domain, Infra, Machine, MachineType};

/// Returns the folders that machines write to with such rights.
pub(crate) fn shared_sources(infra: &Infra) -> BTreeSet<&str> {
    let machines = infra.machines();
    machines
        .flat_map(|(domain, machine)| shares(domain, machine))
        .collect()
}

/// The folders that one machine writes to with such rights.
fn shares<'i>(domain: &'i Domain, machine: &'i Machine) -> impl Iterator<Item = &'i str> + use<'i> {
    let profiles = || {
        let declared = domain.profiles.iter();
        declared.filter(|(name, _)| {
            let used = &machine.profiles;
            used.contains(name) || used.is_empty() && name == DEFAULT_PROFILE
        })
    };
    let config = profiles().flat_map(|(_, profile)| &profile.config);
    let mut config = config.chain(&machine.config);
    // Such a machine writes with these rights even without `shift`.
    let as_host = machine.kind == MachineType::VirtualMachine
        || config.any(|(key, value)| key == "raw.idmap" && !value.trim().is_empty());
    let devices = profiles().flat_map(|(_, profile)| &profile.devices);
    let devices = devices.chain(&machine.devices);
    let written = devices.filter(move |device| as_host || device.is_true("shift"));
    written.filter_map(Device::written_source)
}

/// Checks that no folder lets a machine or a host user become root.
pub(super) fn check(inputs: &PlanInputs<'_>, faults: &mut Obstacles) {
    for (path, folder) in &inputs.facts.nested {
        exchangeable(inputs, path, folder, faults);
    }
    for (domain, machine) in inputs.wanted.infra.machines() {
        let sources: BTreeSet<&str> = shares(domain, machine).collect();
        for source in sources {
            let Some((who, help)) = open(inputs, source) else {
                continue;
            };
            faults.add(
                PlanCode::OpenShare,
                Some(&machine.place),
                format!(
                    "files that {} writes in {} belong to the host's root, and {who}: a program that the machine's root leaves there would make that user root",
                    quote(machine.name.as_str()),
                    quote(source),
                ),
                help,
            );
        }
    }
}

/// Reports a path in a folder that a machine writes to: the machine could replace it with a link.
fn exchangeable(inputs: &PlanInputs<'_>, path: &str, folder: &str, faults: &mut Obstacles) {
    let declares = |devices: &[Device]| {
        let mut paths = devices.iter().filter_map(Device::host_path);
        paths.any(|(_, it)| it == path)
    };
    let user = inputs.wanted.infra.machines().find(|(domain, machine)| {
        let mut profiles = domain.profiles.iter();
        declares(&machine.devices) || profiles.any(|(_, profile)| declares(&profile.devices))
    });
    faults.add(
        PlanCode::SourceInSharedFolder,
        user.map(|(_, machine)| &machine.place),
        format!(
            "{} leads into {}, a host folder that a machine may write to",
            quote(path),
            quote(folder)
        ),
        "the machine could put a link to any host folder there: share sibling folders, \
         or let no machine write to the outer one (`ro`, `readonly: true`)",
    );
}

/// Returns the users who can reach a folder, and the way to keep them out; `None` if no user can.
fn open(inputs: &PlanInputs<'_>, source: &str) -> Option<(String, String)> {
    let missing = inputs.facts.missing.iter();
    // A missing shared folder above it would be created open.
    let mut shared_above = missing.filter(|path| {
        let below = source.strip_prefix(path.trim_end_matches('/'));
        below.is_some_and(|below| below.starts_with('/') && below != "/")
    });
    match inputs.facts.shares.get(source)? {
        Reach::Nobody | Reach::User(_) => None,
        Reach::WhenMade if shared_above.next().is_none() => None,
        Reach::WhenMade | Reach::Everybody => {
            let who = "every user of the host can reach them".to_owned();
            Some((who, format!("{}; or share it `ro`", closed(source))))
        }
        Reach::Replaceable(folder) => Some((
            format!(
                "every user of the host can replace the folder in {}",
                quote(folder)
            ),
            format!("`chmod go-w {}`; or share it `ro`", folder.escape_debug()),
        )),
    }
}

/// Returns the command that blocks access to a folder: on its parent folder, if nothing else uses that.
fn closed(source: &str) -> String {
    let source = source.trim_end_matches('/');
    let (parent, name) = source.rsplit_once('/').unwrap_or(("", source));
    let depth = parent.split('/').filter(|part| !part.is_empty()).count();
    let system = ["/usr/", "/var/"].iter().any(|top| parent.starts_with(top));
    if depth > if system { 2 } else { 1 } {
        return format!("`chmod 0700 {}`", parent.escape_debug());
    }
    let inner = format!("{parent}/shared").escape_debug().to_string();
    let name = name.escape_debug();
    format!(
        "`mkdir -m 0700 {inner}`, `mv {} {inner}/` if it is there, and declare {inner}/{name}",
        source.escape_debug()
    )
}

/// Names the host users who could become root with the help of a machine that writes below their folders.
pub(super) fn notes(inputs: &PlanInputs<'_>) -> impl Iterator<Item = String> {
    let shares = inputs.facts.shares.iter();
    shares.filter_map(|(source, reach)| match reach {
        Reach::User(uid) => Some(format!(
            "files that machines write in {} belong to the host's root: the host's user {uid} and a machine's root can together become root (docs/infra.md)",
            quote(source)
        )),
        _ => None,
    })
}
