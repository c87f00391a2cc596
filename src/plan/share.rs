//! Folders of the host that a machine writes with the rights of the host's own users.
//!
//! On such a disk a file that the machine's root makes is the host's root's, its set-user-ID bit included: whoever runs it
//! on the host is root. The machine's root can open the folder itself as wide as it likes, so that only a folder above it
//! keeps the host's users out.

use std::collections::BTreeSet;

use super::{PlanCode, PlanInputs, fault};
use crate::diagnostic::{Diagnostic, quote};
use crate::infra::{Device, Domain, Infra, Machine, MachineType};

/// The users of the host, apart from root, who can reach what a machine leaves in a folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Reach {
    /// Nobody; or its mount makes no program another user's.
    Nobody,
    /// Nobody, when the folders above it are made, which are not there.
    WhenMade,
    /// The one who owns a folder above it.
    User(u32),
    /// Everybody: no folder above it is closed.
    Everybody,
    /// Everybody can put something else in its place: this folder above it may be written by others.
    Replaceable(String),
}

/// The folders that machines write so.
pub(crate) fn shared_sources(infra: &Infra) -> BTreeSet<&str> {
    let machines = infra.machines();
    machines
        .flat_map(|(domain, machine)| shares(domain, machine))
        .collect()
}

/// The folders that one machine writes so.
fn shares<'i>(domain: &'i Domain, machine: &'i Machine) -> impl Iterator<Item = &'i str> + use<'i> {
    let profiles = || {
        let declared = domain.profiles.iter();
        declared.filter(|(name, _)| {
            let used = &machine.profiles;
            used.contains(name) || used.is_empty() && name == super::difference::DEFAULT_PROFILE
        })
    };
    let mut config = profiles()
        .flat_map(|(_, profile)| &profile.config)
        .chain(&machine.config);
    let of_host = machine.kind == MachineType::VirtualMachine
        || config.any(|(key, value)| key == "raw.idmap" && !value.trim().is_empty());
    let devices = profiles().flat_map(|(_, profile)| &profile.devices);
    let devices = devices.chain(&machine.devices);
    devices.filter_map(move |device| written(device, of_host))
}

/// The source of a disk that its machine writes as the host's users; `of_host`: also where it is not shifted.
fn written(device: &Device, of_host: bool) -> Option<&str> {
    let source = device.written_source()?;
    (of_host || device.is_true("shift")).then_some(source)
}

/// The folders with which the host would be given away.
pub(super) fn check(setting: &PlanInputs<'_>, faults: &mut Vec<Diagnostic>) {
    for (path, folder) in &setting.facts.nested {
        faults.push(exchangeable(setting, path, folder));
    }
    for (domain, machine) in setting.wanted.infra.machines() {
        let sources: BTreeSet<&str> = shares(domain, machine).collect();
        for source in sources {
            let Some((who, help)) = open(setting, source) else {
                continue;
            };
            faults.push(fault(
                PlanCode::OpenShare,
                Some(&machine.place),
                format!(
                    "what {} writes in {} is the host's root's, and {who}: a program that its root leaves there would make them root",
                    quote(machine.name.as_str()),
                    quote(source),
                ),
                help,
            ));
        }
    }
}

/// Paths in folders that a machine writes: the machine could replace them by links.
fn exchangeable(setting: &PlanInputs<'_>, path: &str, folder: &str) -> Diagnostic {
    let goes_there = |devices: &[Device]| {
        let mut paths = devices.iter().flat_map(Device::host_paths);
        paths.any(|(_, it)| it == path)
    };
    let user = setting.wanted.infra.machines().find(|(domain, machine)| {
        let mut profiles = domain.profiles.iter();
        goes_there(&machine.devices) || profiles.any(|(_, profile)| goes_there(&profile.devices))
    });
    fault(
        PlanCode::SourceInSharedFolder,
        user.map(|(_, machine)| &machine.place),
        format!(
            "{} leads into {}, a folder of the host that a machine may write into",
            quote(path),
            quote(folder)
        ),
        "the machine could put a link to any folder of the host there: share folders beside each other, \
         or let no machine write the outer one (`ro`, `readonly: true`)",
    )
}

/// The users who can reach it, and what would keep them out.
fn open(setting: &PlanInputs<'_>, source: &str) -> Option<(String, String)> {
    let missing = setting.facts.missing.iter();
    // A folder that is shared itself is not made closed.
    let mut shared_above = missing.filter(|path| {
        let below = source.strip_prefix(path.trim_end_matches('/'));
        below.is_some_and(|below| below.starts_with('/') && below != "/")
    });
    match setting.facts.shares.get(source)? {
        Reach::Nobody | Reach::User(_) => None,
        Reach::WhenMade if shared_above.next().is_none() => None,
        Reach::WhenMade | Reach::Everybody => {
            let who = "every user of the host gets there".to_owned();
            Some((who, format!("{}; or share it `ro`", closed(source))))
        }
        Reach::Replaceable(folder) => Some((
            format!(
                "every user of the host can put something else in its place in {}",
                quote(folder)
            ),
            format!("`chmod go-w {}`; or share it `ro`", folder.escape_debug()),
        )),
    }
}

/// How to close the way to a folder: the one above it, where that is nobody else's way.
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

/// The users of the host who are trusted with it because a machine writes below their folders.
pub(super) fn notes(setting: &PlanInputs<'_>) -> Vec<String> {
    let shares = setting.facts.shares.iter();
    shares
        .filter_map(|(source, reach)| match reach {
            Reach::User(uid) => Some(format!(
                "what machines write in {} is the host's root's: its user {uid} and a machine's root can together become root (docs/infra.md)",
                quote(source)
            )),
            _ => None,
        })
        .collect()
}
