//! Finds obstacles before anything is changed, and notes for the user.

use std::collections::{BTreeMap, BTreeSet};

use super::edges::Intruder;
use super::ownership::{self, Ownership};
use super::{
    Action, FolderState, PlanCode, PlanInputs, address, domain, edges, fault, share, upkeep,
};
use crate::diagnostic::{Diagnostic, Place, quote};
use crate::edge::{Edge, HOST_FOLDER};
use crate::infra::{Device, Machine};

/// Rights of anklume's folders on the host: whoever knows a path may go through, nobody may look around.
const FOLDER_MODE: u32 = 0o711;
/// Rights of a folder that is shared with a machine: the machine's users see it as any other.
const SHARED_MODE: u32 = 0o755;

/// Everything that is no matter of one object.
pub(super) fn check(setting: &PlanInputs<'_>, faults: &mut Vec<Diagnostic>) {
    adopted(setting, faults);
    pool(setting, faults);
    uids(setting, faults);
    host_folders(setting, faults);
    namesake(setting, faults);
    share::check(setting, faults);
    among_channels(setting, faults);
    address::check(setting, faults);
    for (_, machine) in setting.wanted.infra.machines() {
        sources(setting, machine, faults);
    }
}

/// Another file of the same `project_name`, whose channels would all be taken for left-overs.
fn namesake(setting: &PlanInputs<'_>, faults: &mut Vec<Diagnostic>) {
    let infra = setting.wanted.infra;
    let there: Vec<&str> = domain::our_projects(setting.state, setting.project())
        .map(|project| project.name.as_str())
        .collect();
    let known = |name: &&str| infra.domains.iter().any(|one| one.name.as_str() == *name);
    if there.is_empty() || there.iter().any(known) || infra.domains.is_empty() {
        return;
    }
    faults.push(fault(
        PlanCode::OtherInfrastructure,
        None,
        format!(
            "an infrastructure {} is on Incus, and this file declares none of its domains: {}",
            quote(setting.project()),
            there.join(", ").escape_debug()
        ),
        format!(
            "give this one a `project_name` of its own; or, if the domains were renamed, delete the old ones first: `anklume destroy --domain {}`",
            there.first().unwrap_or(&"NAME").escape_debug()
        ),
    ));
}

/// The devices of profiles in anklume's folder; `ours`: those in this file's domains or on its channels, or the others.
fn intruders<'a>(setting: &PlanInputs<'a>, ours: bool) -> impl Iterator<Item = Intruder> + use<'a> {
    let (infra, edges) = (setting.wanted.infra, setting.wanted.edges);
    let is_ours = move |one: &Intruder| {
        let mut domains = infra.enabled();
        domains.any(|domain| domain.name.as_str() == one.project) || one.is_on(edges)
    };
    let all = edges::intruders(&setting.state.profiles).into_iter();
    all.filter(move |one| is_ours(one) == ours)
}

/// Devices in the folder of the channels that are no channel's.
fn among_channels(setting: &PlanInputs<'_>, faults: &mut Vec<Diagnostic>) {
    let intruders = intruders(setting, true);
    faults.extend(intruders.map(|one| {
        let help = format!(
            "take it off: `incus profile device remove {} {} --project {}`",
            one.profile.escape_debug(),
            one.device.escape_debug(),
            one.project.escape_debug()
        );
        fault(PlanCode::ProxyIntoChannels, None, one.what(), help)
    }));
    // A file in which nobody is served is only warned of these.
    let mut declared = |place: &Place, owner: &str, device: &Device| {
        let keys = device.keys.iter().cloned().collect();
        faults.extend(edges::host_socket(&keys).map(|_| {
            let name = quote(&device.name);
            let message = format!(
                "the device {name} of {owner} has a socket in `{HOST_FOLDER}`, where only channels are"
            );
            fault(PlanCode::ProxyIntoChannels, Some(place), message, "choose another path")
        }));
    };
    for domain in setting.wanted.infra.enabled() {
        for (name, profile) in &domain.profiles {
            let owner = format!("the profile {}", quote(name));
            let devices = profile.devices.iter();
            devices.for_each(|device| declared(&domain.place, &owner, device));
        }
        for machine in &domain.machines {
            let owner = quote(machine.name.as_str());
            let devices = machine.devices.iter();
            devices.for_each(|device| declared(&machine.place, &owner, device));
        }
    }
}

/// A name that is to be taken over must be one of the file's.
fn adopted(setting: &PlanInputs<'_>, faults: &mut Vec<Diagnostic>) {
    let infra = setting.wanted.infra;
    for name in setting.wanted.adopt {
        let known = infra.machine(name).is_some()
            || infra
                .enabled()
                .any(|one| one.name.as_str() == name || one.network.name == *name);
        if !known {
            faults.push(fault(
                PlanCode::NothingToAdopt,
                None,
                format!("{} is no machine and no domain of this file", quote(name)),
                "declare it first, as it is on Incus",
            ));
        }
    }
}

fn pool(setting: &PlanInputs<'_>, faults: &mut Vec<Diagnostic>) {
    if setting.pool.is_none() && setting.wanted.infra.machines().next().is_some() {
        faults.push(fault(
            PlanCode::NoPool,
            None,
            "Incus has no storage pool for the machines".to_owned(),
            "make one: `incus storage create default dir`, or run `incus admin init`",
        ));
    }
}

/// The number under which a consumer's proxy runs must be nobody else's.
fn uids(setting: &PlanInputs<'_>, faults: &mut Vec<Diagnostic>) {
    let consumers: BTreeMap<u32, &str> = setting
        .wanted
        .edges
        .iter()
        .map(|edge| (edge.uid, edge.consumer.machine.as_str()))
        .collect();
    for (uid, consumer) in consumers {
        let taken = setting.facts.ids.iter().find(|taken| {
            uid.checked_sub(taken.first)
                .is_some_and(|above| above < taken.count)
        });
        if let Some(taken) = taken {
            let place = setting.wanted.infra.machine(consumer);
            faults.push(fault(
                PlanCode::UidInUse,
                place.map(|(_, machine)| &machine.place),
                format!(
                    "the channels of {} would run as the host's user {uid}, which {} has already",
                    quote(consumer),
                    taken.by
                ),
                "rename the machine (its number follows from its name), or move that user or range out of 2000000000 to 2099999999",
            ));
        }
    }
}

fn host_folders(setting: &PlanInputs<'_>, faults: &mut Vec<Diagnostic>) {
    if setting.wanted.edges.is_empty() && setting.facts.sockets.is_empty() {
        return;
    }
    for folder in &setting.facts.folders {
        if folder.state == FolderState::NoFolder {
            faults.push(fault(
                PlanCode::HostFolder,
                None,
                format!("{} is not a folder", quote(&folder.path)),
                "move it away: anklume keeps the sockets of services there",
            ));
        }
    }
    if !setting.facts.root && !setting.wanted.edges.is_empty() {
        faults.push(fault(
            PlanCode::HostFolder,
            None,
            format!("services need the folder `{HOST_FOLDER}`, and only root may look after it"),
            "run this as root: `sudo anklume apply`",
        ));
    }
}

/// Folders that anklume itself declares are made; others must be there.
fn is_own(device: &str) -> bool {
    device.starts_with("sv-") || device.starts_with("pd-")
}

fn sources(setting: &PlanInputs<'_>, machine: &Machine, faults: &mut Vec<Diagnostic>) {
    for device in &machine.devices {
        let Some(source) = device.get("source") else {
            continue;
        };
        let missing = setting.facts.missing.contains(source);
        let message = |what: &str| {
            format!(
                "the folder {} of the device {} of {} {what}",
                quote(source),
                quote(&device.name),
                quote(machine.name.as_str())
            )
        };
        if missing && !is_own(&device.name) {
            faults.push(fault(
                PlanCode::NoSource,
                Some(&machine.place),
                message("is not on the host"),
                format!(
                    "make it: `mkdir -p {}`; or say `required: false`",
                    source.escape_debug()
                ),
            ));
        } else if missing && !setting.facts.root {
            faults.push(fault(
                PlanCode::NoSource,
                Some(&machine.place),
                message("is not on the host, and only root may make it"),
                "run this as root: `sudo anklume apply`",
            ));
        }
    }
}

/// Folders on the host that must be made or mended.
pub(super) fn folders(setting: &PlanInputs<'_>) -> Vec<Action> {
    let mut actions = Vec::new();
    if !setting.wanted.edges.is_empty() {
        let folders = setting.facts.folders.iter();
        actions.extend(folders.map(|folder| Action::Folder {
            path: folder.path.clone(),
            mode: FOLDER_MODE,
            there: folder.state == FolderState::Loose,
        }));
    }
    let devices = setting
        .wanted
        .infra
        .machines()
        .flat_map(|(_, one)| &one.devices);
    let sources: BTreeSet<&str> = devices
        .filter(|device| is_own(&device.name))
        .filter_map(|device| device.get("source"))
        .filter(|source| setting.facts.missing.contains(*source))
        .collect();
    actions.extend(sources.into_iter().map(|path| Action::Folder {
        path: path.to_owned(),
        mode: SHARED_MODE,
        there: false,
    }));
    actions
}

/// That a consumer keeps everybody else out of its channel.
pub(crate) fn in_use(edge: &Edge) -> String {
    let consumer = &edge.consumer.machine;
    format!(
        "all the connections that {consumer} may have are in use; what in {consumer} holds them must let go"
    )
}

/// Notes that cause no action.
pub(super) fn notes(setting: &PlanInputs<'_>) -> Vec<String> {
    let infra = setting.wanted.infra;
    let mut notes: Vec<String> = upkeep::note(setting).into_iter().collect();
    notes.extend(share::notes(setting));
    if !infra.unapplied.is_empty() {
        let keys: Vec<String> = infra
            .unapplied
            .iter()
            .map(|one| format!("`{}`", one.key))
            .collect();
        notes.push(format!("not applied by anklume: {}", keys.join(", ")));
    }
    notes.extend(intruders(setting, false).map(|one| one.what()));
    let edges = setting.wanted.edges.iter();
    let full = edges.filter(|edge| setting.facts.full.contains(&edge.hash));
    notes.extend(full.map(|edge| {
        let (consumer, provider) = (&edge.consumer.machine, &edge.provider.machine);
        format!(
            "{consumer} → {provider} could not be asked: {}",
            in_use(edge)
        )
    }));
    for instance in &setting.state.instances {
        let (project, name) = (instance.project.as_str(), instance.name.as_str());
        let owner = ownership::machine_owner(&instance.config, setting.project(), project, name);
        let declared = infra
            .machine(name)
            .filter(|(home, _)| home.name.as_str() == project);
        match (owner, declared) {
            (Ownership::Ours, None) => notes.push(format!(
                "the machine {} (project {}) is no longer declared and stays; `anklume destroy --machine {}` deletes it",
                quote(name),
                quote(project),
                name.escape_debug()
            )),
            (Ownership::Ours, Some((_, machine))) => {
                let made_of = instance.config.get(ownership::IMAGE);
                if let Some(image) = made_of.filter(|image| **image != machine.os_image) {
                    notes.push(format!(
                        "{} was made of {} and stays so; to make it anew of {}: `incus rebuild`",
                        quote(name),
                        quote(image),
                        quote(&machine.os_image)
                    ));
                }
            }
            _ => {}
        }
    }
    for project in domain::our_projects(setting.state, setting.project()) {
        if !infra.enabled().any(|one| one.name.as_str() == project.name) {
            notes.push(format!(
                "the domain {} is no longer declared and stays; `anklume destroy --domain {}` deletes it",
                quote(&project.name),
                project.name.escape_debug()
            ));
        }
    }
    notes
}
