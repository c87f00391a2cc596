//! Plans everything beyond single objects: general obstacles, the host's folders and logs, and notes for the user.

use std::collections::{BTreeMap, BTreeSet};

use super::destroy::{destroy_command, destroy_domain_command};
use super::difference::device_keys;
use super::edges::{ProfileDevice, host_socket, profile_devices};
use super::facts::{FolderState, Rotation, TakenIds};
use super::ownership::{self, Ownership};
use super::{Action, Obstacles, PlanCode, PlanInputs, address, share};
use crate::diagnostic::{Diagnostic, Place, Severity, quote};
use crate::edge::{Edge, HOST_FOLDER};
use crate::incus::State;
use crate::incus::state::Instance;
use crate::infra::{Device, Infra, Machine};

/// Mode of anklume's folders on the host: every user may reach a known path, but only root may list them.
const FOLDER_MODE: u32 = 0o711;
/// Mode of a folder that is shared with a machine, whose users see it like any other folder.
const SHARED_MODE: u32 = 0o755;

/// Checks for obstacles that do not concern a single object.
pub(super) fn check(inputs: &PlanInputs<'_>, faults: &mut Obstacles) {
    adopted(inputs, faults);
    pool(inputs, faults);
    uids(inputs, faults);
    host_folders(inputs, faults);
    namesake(inputs, faults);
    share::check(inputs, faults);
    among_channels(inputs, faults);
    address::check(inputs, faults);
    for (_, machine) in inputs.wanted.infra.machines() {
        sources(inputs, machine, faults);
        id_map(inputs, machine, faults);
    }
}

/// Checks that the host lets a machine use the IDs in its `raw.idmap`: Incus refuses others only when the machine starts.
fn id_map(inputs: &PlanInputs<'_>, machine: &Machine, faults: &mut Obstacles) {
    let mut config = machine.config.iter();
    let Some((_, map)) = config.find(|(key, _)| key == "raw.idmap") else {
        return;
    };
    let [uids, gids] = &inputs.facts.mappable;
    for line in map.lines() {
        let mut words = line.split_whitespace();
        let (Some(kind), Some(range)) = (words.next(), words.next()) else {
            continue;
        };
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (Ok(first), Ok(last)) = (first.parse::<u32>(), last.parse::<u32>()) else {
            continue;
        };
        let files: &[(&str, &Option<Vec<TakenIds>>)] = match kind {
            "uid" => &[("/etc/subuid", uids)],
            "gid" => &[("/etc/subgid", gids)],
            _ => &[("/etc/subuid", uids), ("/etc/subgid", gids)],
        };
        let closed = files.iter().filter(|(_, ranges)| {
            ranges.as_ref().is_some_and(|ranges| {
                let holds = |range: &TakenIds| {
                    let end = range.first.saturating_add(range.count);
                    range.first <= first && last < end
                };
                !ranges.iter().any(holds)
            })
        });
        let closed: Vec<String> = closed.map(|(path, _)| format!("`{path}`")).collect();
        if closed.is_empty() {
            continue;
        }
        let count = last.saturating_sub(first).saturating_add(1);
        let give = if closed.len() > 1 {
            "do not grant"
        } else {
            "does not grant"
        };
        let closed = closed.join(" and ");
        faults.add(
            PlanCode::IdMap,
            Some(&machine.place),
            format!(
                "`raw.idmap` of {} maps the host ID {}, which {closed} {give} to root",
                quote(machine.name.as_str()),
                range.escape_debug(),
            ),
            format!(
                "add the line `root:{first}:{count}` to {closed}, then run `systemctl restart incus.service`"
            ),
        );
    }
}

/// Returns the fault of a file whose domains all belong to one other infrastructure: each of their objects would be an
/// obstacle of its own.
pub(super) fn renamed(infra: &Infra, state: &State) -> Option<Diagnostic> {
    let mut others = BTreeSet::new();
    for domain in infra.enabled() {
        let name = domain.name.as_str();
        let project = state.projects.iter().find(|project| project.name == name);
        match project.map(|project| ownership::owner(&project.config, &infra.project)) {
            None => {}
            Some(Ownership::Other(other)) => {
                others.insert(other);
            }
            Some(_) => return None,
        }
    }
    let (Some(other), 1) = (others.first(), others.len()) else {
        return None;
    };
    let message = format!(
        "the domains of this file belong to the infrastructure {} in Incus, but this file is {}",
        quote(other),
        quote(&infra.project)
    );
    let code = PlanCode::OtherInfrastructure.as_str();
    let mut fault = Diagnostic::new(Severity::Error, code, message);
    fault.help(format!(
        "if it was renamed, or its folder was moved, write `project_name: {}` in it; if not, give the domains other names",
        other.escape_debug()
    ));
    Some(fault)
}

/// Reports another file with the same `project_name`: all its channels would be mistaken for leftovers.
fn namesake(inputs: &PlanInputs<'_>, faults: &mut Obstacles) {
    let infra = inputs.wanted.infra;
    let projects = ownership::our_projects(inputs.state, inputs.project());
    let projects: Vec<&str> = projects.map(|project| project.name.as_str()).collect();
    let known = |name: &&str| infra.domains.iter().any(|one| one.name.as_str() == *name);
    let Some(first) = projects.first() else {
        return;
    };
    if projects.iter().any(known) || infra.domains.is_empty() {
        return;
    }
    faults.add(
        PlanCode::OtherInfrastructure,
        None,
        format!(
            "the infrastructure {} exists in Incus, but this file declares none of its domains: {}",
            quote(inputs.project()),
            projects.join(", ").escape_debug()
        ),
        format!(
            "give this one a `project_name` of its own; or, if the domains were renamed, delete the old ones first: `{}`",
            destroy_domain_command(inputs.state, first, inputs.flag())
        ),
    );
}

/// Returns the profile devices in anklume's folder: those in this file's domains or on its channels, then the others.
fn split_profile_devices<'a>(
    inputs: &PlanInputs<'a>,
) -> (Vec<ProfileDevice<'a>>, Vec<ProfileDevice<'a>>) {
    let (infra, edges) = (inputs.wanted.infra, inputs.wanted.edges);
    let all = profile_devices(&inputs.state.profiles).into_iter();
    all.partition(|one| {
        let mut domains = infra.enabled();
        domains.any(|domain| domain.name.as_str() == one.profile.project) || one.is_on(edges)
    })
}

/// Reports devices in the channel folder that belong to no channel.
fn among_channels(inputs: &PlanInputs<'_>, faults: &mut Obstacles) {
    for one in split_profile_devices(inputs).0 {
        let help = format!(
            "remove it: `incus profile device remove {} {} --project {}`",
            one.profile.name.escape_debug(),
            one.device.escape_debug(),
            one.profile.project.escape_debug()
        );
        faults.add(PlanCode::ProxyIntoChannels, None, one.what(), help);
    }
    // In a file without services, `infra` only warns about these.
    let mut declared = |place: &Place, owner: &str, devices: &[Device]| {
        for device in devices {
            if host_socket(&device_keys(device)).is_some() {
                let name = quote(&device.name);
                let message = format!(
                    "the device {name} of {owner} has a socket in `{HOST_FOLDER}`, which is reserved for channels"
                );
                let code = PlanCode::ProxyIntoChannels;
                faults.add(code, Some(place), message, "choose another path");
            }
        }
    };
    for domain in inputs.wanted.infra.enabled() {
        for (name, profile) in &domain.profiles {
            let owner = format!("the profile {}", quote(name));
            declared(&domain.place, &owner, &profile.devices);
        }
        for machine in &domain.machines {
            let owner = quote(machine.name.as_str());
            declared(&machine.place, &owner, &machine.devices);
        }
    }
}

/// Checks that each name given to `--adopt` is in the file.
fn adopted(inputs: &PlanInputs<'_>, faults: &mut Obstacles) {
    let infra = inputs.wanted.infra;
    for name in inputs.wanted.adopt {
        let mut domains = infra.enabled();
        let is_domain = domains.any(|one| one.name.as_str() == name || one.network.name == *name);
        if infra.machine(name).is_none() && !is_domain {
            faults.add(
                PlanCode::NothingToAdopt,
                None,
                format!(
                    "{} is neither a machine nor a domain in this file",
                    quote(name)
                ),
                "declare it first, as it is in Incus",
            );
        }
    }
}

fn pool(inputs: &PlanInputs<'_>, faults: &mut Obstacles) {
    if inputs.pool.is_none() && inputs.wanted.infra.machines().next().is_some() {
        faults.add(
            PlanCode::NoPool,
            None,
            "Incus has no storage pool for the machines".to_owned(),
            "create one: `incus storage create default dir`, or run `incus admin init`",
        );
    }
}

/// Checks that the user ID of each consumer's proxies is free.
fn uids(inputs: &PlanInputs<'_>, faults: &mut Obstacles) {
    let consumers = inputs.wanted.edges.iter();
    let consumers: BTreeMap<u32, &str> = consumers
        .map(|edge| (edge.uid, edge.consumer.machine.as_str()))
        .collect();
    for (uid, consumer) in consumers {
        let taken = inputs.facts.ids.iter().find(|taken| {
            let above = uid.checked_sub(taken.first);
            above.is_some_and(|above| above < taken.count)
        });
        let Some(taken) = taken else {
            continue;
        };
        let place = inputs.wanted.infra.machine(consumer);
        faults.add(
            PlanCode::UidInUse,
            place.map(|(_, machine)| &machine.place),
            format!(
                "the channels of {} would run as the host's user {uid}, which is already taken ({})",
                quote(consumer),
                taken.by
            ),
            "rename the machine (its number follows from its name), or move that user or range out of 2000000000 to 2099999999",
        );
    }
}

fn host_folders(inputs: &PlanInputs<'_>, faults: &mut Obstacles) {
    let flag = inputs.flag();
    let has_edges = !inputs.wanted.edges.is_empty();
    if !has_edges && inputs.facts.sockets.is_empty() {
        return;
    }
    for folder in &inputs.facts.folders {
        if folder.state == FolderState::NoFolder {
            faults.add(
                PlanCode::HostFolder,
                None,
                format!("{} is not a folder", quote(&folder.path)),
                "move it away: anklume keeps the sockets of services there",
            );
        }
    }
    if !inputs.facts.root && has_edges && !inputs.wanted.is_shown {
        faults.add(
            PlanCode::HostFolder,
            None,
            format!("services need the folder `{HOST_FOLDER}`, which only root may manage"),
            format!("run this as root: `sudo anklume apply{flag}`"),
        );
    }
}

/// Returns whether anklume itself declares a device, and so creates its folder; other folders must exist.
fn is_own(device: &str) -> bool {
    device.starts_with("sv-") || device.starts_with("pd-")
}

fn sources(inputs: &PlanInputs<'_>, machine: &Machine, faults: &mut Obstacles) {
    let flag = inputs.flag();
    for device in &machine.devices {
        let source = device.get("source");
        let Some(source) = source.filter(|source| inputs.facts.missing.contains(*source)) else {
            continue;
        };
        let (fault, help) = if !is_own(&device.name) {
            let source = source.escape_debug();
            let help = format!("create it: `mkdir -p {source}`; or write `required: false`");
            ("does not exist on the host", help)
        } else if !inputs.facts.root && !inputs.wanted.is_shown {
            let help = format!("run this as root: `sudo anklume apply{flag}`");
            (
                "does not exist on the host, and only root may create it",
                help,
            )
        } else {
            continue;
        };
        let message = format!(
            "the folder {} of the device {} of {} {fault}",
            quote(source),
            quote(&device.name),
            quote(machine.name.as_str())
        );
        faults.add(PlanCode::NoSource, Some(&machine.place), message, help);
    }
}

/// Plans the end of stray processes, and the creation and repair of folders on the host.
pub(super) fn host(inputs: &PlanInputs<'_>) -> Vec<Action> {
    let strays = &inputs.facts.strays;
    let mut actions: Vec<Action> = strays.iter().cloned().map(Action::EndProxy).collect();
    if !inputs.wanted.edges.is_empty() {
        let folders = inputs.facts.folders.iter();
        actions.extend(folders.map(|folder| Action::Folder {
            path: folder.path.clone(),
            mode: FOLDER_MODE,
            exists: folder.state == FolderState::Loose,
        }));
    }
    let machines = inputs.wanted.infra.machines();
    let devices = machines.flat_map(|(_, machine)| &machine.devices);
    let sources: BTreeSet<&str> = devices
        .filter(|device| is_own(&device.name))
        .filter_map(|device| device.get("source"))
        .filter(|source| inputs.facts.missing.contains(*source))
        .collect();
    actions.extend(sources.into_iter().map(|path| Action::Folder {
        path: path.to_owned(),
        mode: SHARED_MODE,
        exists: false,
    }));
    actions
}

/// Plans the rotation of the logs that Incus writes for the channels on the host, if the file has channels.
pub(super) fn upkeep(inputs: &PlanInputs<'_>) -> Vec<Action> {
    let facts = inputs.facts;
    if inputs.wanted.edges.is_empty() || !facts.root {
        return Vec::new();
    }
    let rotate = facts.logs.iter().cloned().map(Action::Rotate);
    let schedule = match &facts.rotation {
        Rotation::Wanting(schedule) => Some(Action::Schedule(schedule.clone())),
        Rotation::Scheduled | Rotation::Nobody(_) => None,
    };
    rotate.chain(schedule).collect()
}

/// States that nothing rotates the logs, and why.
pub(crate) fn unrotated(why: &str) -> String {
    format!("nothing rotates the logs of channels between runs of `anklume apply`: {why}")
}

/// States that a consumer itself blocks its channel.
pub(crate) fn in_use(edge: &Edge) -> String {
    let consumer = &edge.consumer.machine;
    format!(
        "all the connections that {consumer} may have are in use; the program in {consumer} that holds them must close them"
    )
}

/// Describes a copy of a machine, or a machine that was renamed by hand.
fn copy(inputs: &PlanInputs<'_>, instance: &Instance, original: &str) -> String {
    let subject = format!(
        "{} (project {})",
        quote(&instance.name),
        quote(&instance.project)
    );
    let mut instances = inputs.state.instances.iter();
    if instances.any(|one| format!("{}/{}", one.project, one.name) == original) {
        return format!(
            "{subject} is a copy of {} and is left alone",
            quote(original)
        );
    }
    format!(
        "{subject} was {} before it was renamed, or is a copy of it, and is left alone",
        quote(original)
    )
}

/// Returns whether the root of a running container is the host's root.
pub(crate) fn runs_privileged(instance: &Instance) -> bool {
    let map = instance.config.get("volatile.idmap.current");
    instance.kind == "container" && instance.is_running() && map.is_some_and(|map| map == "[]")
}

/// States that a running machine has other user IDs than it will have after its next start.
pub(crate) fn awaits_restart(instance: &Instance) -> Option<String> {
    let map = |key: &str| instance.config.get(key).filter(|_| instance.is_running());
    let (now, next) = (map("volatile.idmap.current")?, map("volatile.idmap.next")?);
    (now != next).then(|| {
        let (name, project) = (
            instance.name.escape_debug(),
            instance.project.escape_debug(),
        );
        format!(
            "{} runs with other user IDs than configured until it is restarted: `incus restart {name} --project {project}`",
            quote(&instance.name)
        )
    })
}

/// Returns the notes for the user.
pub(super) fn notes(inputs: &PlanInputs<'_>) -> Vec<String> {
    let infra = inputs.wanted.infra;
    let flag = inputs.flag();
    let mut notes = Vec::new();
    if !inputs.facts.root && !inputs.wanted.edges.is_empty() {
        notes.push(format!(
            "only root can create channels: `sudo anklume apply{flag}`; this plan omits what only root can see"
        ));
    }
    if let Rotation::Nobody(why) = &inputs.facts.rotation
        && !inputs.wanted.edges.is_empty()
    {
        notes.push(unrotated(why));
    }
    notes.extend(share::notes(inputs));
    if !infra.unapplied.is_empty() {
        let keys = infra.unapplied.iter().map(|one| format!("`{}`", one.key));
        let keys: Vec<String> = keys.collect();
        notes.push(format!("not applied by anklume: {}", keys.join(", ")));
    }
    let others = split_profile_devices(inputs).1;
    notes.extend(others.iter().map(ProfileDevice::what));
    let edges = inputs.wanted.edges.iter();
    let full = edges.filter(|edge| inputs.facts.full.contains(&edge.hash));
    notes.extend(full.map(|edge| {
        let (consumer, provider) = (&edge.consumer.machine, &edge.provider.machine);
        let why = in_use(edge);
        format!("{consumer} → {provider} could not be tested: {why}")
    }));
    notes.extend(address::notes(inputs));
    for instance in &inputs.state.instances {
        match ownership::machine_owner(instance, inputs.project()) {
            Ownership::Ours => {}
            Ownership::Copy(original) => {
                notes.push(copy(inputs, instance, &original));
                continue;
            }
            Ownership::Other(_) | Ownership::Nobody => continue,
        }
        notes.extend(awaits_restart(instance));
        let name = quote(&instance.name);
        let declared = infra.machine(&instance.name);
        let declared = declared.filter(|(home, _)| home.name.as_str() == instance.project);
        let Some((_, machine)) = declared else {
            notes.push(format!(
                "the machine {name} (project {}) is disabled or no longer declared, but still exists; `{}` deletes it",
                quote(&instance.project),
                destroy_command(instance, flag)
            ));
            continue;
        };
        let image = instance.config.get(ownership::IMAGE);
        if let Some(image) = image.filter(|image| **image != machine.os_image) {
            notes.push(format!(
                "{name} was created from {} and keeps that image; to lose everything in it and get the new one: `incus stop {1} --project {2}`, `incus rebuild {3} {1} --project {2}`, then `anklume apply{flag}`",
                quote(image),
                instance.name.escape_debug(),
                instance.project.escape_debug(),
                machine.os_image.escape_debug(),
            ));
        }
    }
    for project in ownership::our_projects(inputs.state, inputs.project()) {
        if !infra.enabled().any(|one| one.name.as_str() == project.name) {
            notes.push(format!(
                "the domain {} is disabled or no longer declared, but still exists; `{}` deletes it",
                quote(&project.name),
                destroy_domain_command(inputs.state, &project.name, flag)
            ));
        }
    }
    notes
}
