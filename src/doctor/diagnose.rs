//! The first thing that is broken on the way of a channel, of what was seen. Pure: looks at nothing itself.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde::Serialize;

use super::listen_folder::ListenFolder;
use crate::edge::{CONSUMER_FOLDER, Edge, End};
use crate::incus::State;
use crate::incus::state::{Instance, InstanceId};
use crate::infra::{Device, Infra};
use crate::machine_state::{DriftKind, ObservedMachine, Supervisor};
use crate::name::MachineName;
use crate::plan::{
    Facts, Ownership, RecreateReason, Role, foreign_devices, in_use, machine_owner, profile_devices,
};
use crate::survey::audit_checkpoint::LogState;
use crate::survey::consumer::Unheard;
use crate::transport::shell_line;

/// The kind of fault, in the order of the checks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Cause {
    /// A machine is not there, not ours, or does not run.
    Machine,
    /// A folder in which sockets lie, in the consumer or on the host.
    Folder,
    /// A device is missing or another one.
    Device,
    /// Another machine has a device of this channel.
    Copy,
    /// No proxy process runs for a device.
    Process,
    /// A socket is gone.
    Socket,
    /// The program in a machine.
    Program,
    /// The provider's server does not answer.
    Server,
    /// The consumer's connections are all in use.
    Busy,
    /// It serves another policy.
    Policy,
    /// The unit that starts it with its machine.
    Supervision,
    /// A log of the host's grows without bound.
    Log,
    /// The provider's log of calls is not as it was written.
    Audit,
}

/// The fault, and the command that fixes it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Broken {
    /// The kind of fault.
    pub(crate) what: Cause,
    /// Its fault.
    pub(crate) detail: String,
    /// The command that mends it.
    pub(crate) mend: String,
}

/// The state of a channel.
#[derive(Debug)]
pub(crate) struct Health<'e> {
    /// The channel.
    pub(crate) edge: &'e Edge,
    /// The first thing that is broken; `None`: it works.
    pub(crate) broken: Option<Broken>,
    /// Duration of the consumer's request.
    pub(crate) took: Option<Duration>,
    /// Notes that do not break the channel.
    pub(crate) notes: Vec<String>,
}

/// Everything that was seen from the host.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Examiner<'a> {
    pub(crate) infra: &'a Infra,
    pub(crate) edges: &'a [Edge],
    pub(crate) state: &'a State,
    pub(crate) facts: &'a Facts,
    /// SHA-256 of the program that belongs in the machines.
    pub(crate) program: &'a str,
    /// The providers' logs of calls, by project and machine.
    pub(crate) calls: &'a BTreeMap<InstanceId, LogState>,
    /// The command that mends nearly everything.
    pub(crate) apply: &'a str,
}

impl Examiner<'_> {
    /// Notes on a channel that do not break it.
    pub(crate) fn notes(&self, edge: &Edge) -> Vec<String> {
        let provider = &edge.provider;
        let identity = self
            .found(provider)
            .and_then(|found| found.identity.as_ref());
        let alone = identity.is_some_and(|one| one.supervisor == Some(Supervisor::Nobody));
        let note = format!(
            "{} has neither systemd nor OpenRC: nothing restarts its server but `{}`",
            provider.machine, self.apply
        );
        alone.then_some(note).into_iter().collect()
    }

    /// As whom the providers of these channels serve, and what the kernel keeps their servers from.
    pub(crate) fn servers(&self, edges: &[&Edge]) -> Vec<String> {
        let providers: BTreeMap<_, _> = edges
            .iter()
            .map(|edge| (&edge.provider.machine, &edge.provider))
            .collect();
        let mut roots = Vec::new();
        let mut confined: BTreeMap<&str, Vec<&MachineName>> = BTreeMap::new();
        for (name, provider) in providers {
            let found = self.found(provider);
            let identity = found.and_then(|found| found.identity.as_ref());
            if identity.is_some_and(|identity| identity.run_as.is_none()) {
                roots.push(name);
            }
            if let Some(said) = found.and_then(|found| found.confinement.as_deref()) {
                confined.entry(said).or_default().push(name);
            }
        }
        let mut notes: Vec<String> = confined
            .iter()
            .map(|(said, names)| {
                format!("confined, as the servers say, by {said}: {}", listed(names))
            })
            .collect();
        if !roots.is_empty() {
            let roots = listed(&roots);
            notes.push(format!(
                "served by root: {roots}; `mcp: {{run_as: USER}}` in infra.yml takes another user"
            ));
        }
        notes
    }

    /// The machines at both ends.
    pub(crate) fn machines(&self, edge: &Edge, listens: &ListenFolder) -> Option<Broken> {
        self.consumer(edge, listens).or_else(|| self.provider(edge))
    }

    fn consumer(&self, edge: &Edge, listens: &ListenFolder) -> Option<Broken> {
        // A device whose folder is not there keeps the machine from starting.
        let starts = *listens == ListenFolder::There;
        self.machine(&edge.consumer, starts)
    }

    fn provider(&self, edge: &Edge) -> Option<Broken> {
        let identity = self
            .found(&edge.provider)
            .and_then(|one| one.identity.as_ref());
        let supervisor = identity.and_then(|one| one.supervisor);
        let starts = [Some(Supervisor::Systemd), Some(Supervisor::Openrc)].contains(&supervisor);
        self.machine(&edge.provider, starts)
    }

    /// A machine; `starts`: nothing is left to be done once it is started.
    fn machine(&self, end: &End, starts: bool) -> Option<Broken> {
        let name = &end.machine;
        let Some(there) = self.there(end) else {
            let detail = format!("{name} is not on Incus (project {})", end.domain);
            return Some(self.by_apply(Cause::Machine, detail));
        };
        let project = &self.infra.project;
        let owner = machine_owner(there, project);
        if owner != Ownership::Ours {
            let whose = match owner {
                Ownership::Other(other) => {
                    format!("belongs to the infrastructure {}", other.escape_debug())
                }
                Ownership::Copy(original) => format!("is a copy of {}", original.escape_debug()),
                Ownership::Nobody | Ownership::Ours => "was not made by anklume".to_owned(),
            };
            return Some(Broken {
                what: Cause::Machine,
                detail: format!("{name} {whose}"),
                mend: format!("{} --adopt {name}", self.apply),
            });
        }
        if there.is_running() {
            return None;
        }
        let status = there.status.to_lowercase();
        let detail = format!("{name} is {}", status.escape_debug());
        let incus = |verb: &str| {
            shell_line([
                "incus",
                verb,
                name.as_str(),
                "--project",
                end.domain.as_str(),
            ])
        };
        let mend = match status.as_str() {
            "frozen" => incus("resume"),
            "stopped" if starts => incus("start"),
            _ => self.apply.to_owned(),
        };
        Some(Broken {
            what: Cause::Machine,
            detail,
            mend,
        })
    }

    /// Checks what the host sees between two running machines.
    pub(crate) fn way(&self, edge: &Edge, listens: &ListenFolder) -> Option<Broken> {
        let program = [DriftKind::Program, DriftKind::Name, DriftKind::Rights];
        self.folders(edge, listens)
            .or_else(|| self.device(&edge.consumer, &edge.consumer_device()))
            .or_else(|| self.device(&edge.provider, &edge.provider_device()))
            .or_else(|| self.copy(edge))
            .or_else(|| self.ends(edge, Cause::Process))
            .or_else(|| self.ends(edge, Cause::Socket))
            .or_else(|| self.inside(&edge.provider, &program))
            .or_else(|| self.inside(&edge.consumer, &program))
            .or_else(|| self.silence(&edge.provider))
    }

    fn folders(&self, edge: &Edge, listens: &ListenFolder) -> Option<Broken> {
        let consumer = &edge.consumer;
        let name = &consumer.machine;
        let broken = |detail, mend| {
            Some(Broken {
                what: Cause::Folder,
                detail,
                mend,
            })
        };
        match listens {
            ListenFolder::There => {}
            ListenFolder::Gone => {
                let detail = format!("`{CONSUMER_FOLDER}` is gone from {name}");
                return broken(detail, self.apply.to_owned());
            }
            ListenFolder::Altered(part) => {
                let project = consumer.domain.as_str();
                let words = [
                    "incus",
                    "exec",
                    name.as_str(),
                    "--project",
                    project,
                    "--",
                    "rm",
                    part,
                ];
                let mend = format!("{}; {}", shell_line(words), self.apply);
                return broken(
                    format!("machine altered: `{part}` in {name} is not a folder"),
                    mend,
                );
            }
            ListenFolder::Unknown(why) => {
                let detail = format!("`{CONSUMER_FOLDER}` of {name} cannot be looked at: {why}");
                return broken(detail, self.apply.to_owned());
            }
        }
        let folder = self.facts.folders.first()?;
        let detail = format!(
            "`{}` on the host is missing, or not root's with the rights 0711",
            folder.path.escape_debug()
        );
        broken(detail, self.apply.to_owned())
    }

    fn device(&self, end: &End, device: &Device) -> Option<Broken> {
        let (machine, name) = (&end.machine, &device.name);
        let there = self.there(end)?;
        let Some(found) = there.devices.get(name) else {
            let detail = format!("{machine} has no device {name}");
            return Some(self.by_apply(Cause::Device, detail));
        };
        let mut keys: BTreeSet<&str> = found.keys().map(String::as_str).collect();
        keys.extend(device.keys.iter().map(|(key, _)| key.as_str()));
        let differs = |key: &&str| found.get(*key).map(String::as_str) != device.get(key);
        let keys: Vec<&str> = keys.into_iter().filter(differs).collect();
        if keys.is_empty() {
            return None;
        }
        let keys = keys.join(", ");
        let detail = format!(
            "the device {name} of {machine} is another one: {}",
            keys.escape_debug()
        );
        Some(self.by_apply(Cause::Device, detail))
    }

    fn copy(&self, edge: &Edge) -> Option<Broken> {
        let socket = format!("{}.sock", edge.hash);
        let profiles = profile_devices(&self.state.profiles);
        if let Some(one) = profiles
            .into_iter()
            .find(|one| one.is_on(std::slice::from_ref(edge)))
        {
            let remove = ["incus", "profile", "device", "remove"];
            let (profile, project) = (&one.profile.name, &one.profile.project);
            let what = [profile, one.device, "--project", project];
            return Some(Broken {
                what: Cause::Copy,
                detail: one.what(),
                mend: shell_line(remove.into_iter().chain(what)),
            });
        }
        let all = foreign_devices(self.edges, &self.state.instances);
        let one = all.into_iter().find(|one| one.socket == socket)?;
        let detail = format!(
            "{} (project {}) has a device of this channel, {}, and is no end of it",
            one.machine.name.escape_debug(),
            one.machine.project.escape_debug(),
            one.device.escape_debug()
        );
        Some(self.by_apply(Cause::Copy, detail))
    }

    /// Finds faults of the devices at both ends.
    fn ends(&self, edge: &Edge, what: Cause) -> Option<Broken> {
        let ends = [
            (Role::Consumer, &edge.consumer, edge.consumer_socket()),
            (Role::Provider, &edge.provider, edge.host_socket()),
        ];
        let mut broken = ends.into_iter().filter_map(|(role, end, socket)| {
            let again = self.facts.broken.get(&(edge.hash.clone(), role))?;
            let machine = &end.machine;
            let place = match role {
                Role::Consumer => format!("in {machine}"),
                Role::Provider => "on the host".to_owned(),
            };
            let (is, detail) = match again {
                RecreateReason::NoProcess | RecreateReason::TakenOver => (
                    Cause::Process,
                    format!(
                        "no proxy process runs for the device {} of {machine}",
                        edge.device_name()
                    ),
                ),
                RecreateReason::NoSocket => (Cause::Socket, format!("`{socket}` {place} is gone")),
                RecreateReason::BadSocket => {
                    let owner = match role {
                        Role::Consumer => edge.owner_uid,
                        Role::Provider => edge.uid,
                    };
                    let detail =
                        format!("`{socket}` {place} is no socket, or not user {owner}'s alone");
                    (Cause::Socket, detail)
                }
            };
            (is == what).then(|| self.by_apply(is, detail))
        });
        broken.next()
    }

    /// Compares what the consumer sees with what is declared.
    pub(crate) fn heard(&self, edge: &Edge, services: &BTreeSet<String>) -> Option<Broken> {
        let policy = [DriftKind::Services, DriftKind::Server];
        if let Some(broken) = self.inside(&edge.provider, &policy) {
            return Some(broken);
        }
        let (_, provider) = self.infra.machine(edge.provider.machine.as_str())?;
        let declared = provider.services.iter();
        let declared = declared.filter(|one| one.consumers.contains(&edge.consumer.machine));
        let declared: BTreeSet<String> = declared.map(|one| one.name.to_string()).collect();
        if declared == *services {
            return None;
        }
        let list = |names: &BTreeSet<String>| {
            let names: Vec<&str> = names.iter().map(String::as_str).collect();
            if names.is_empty() {
                "nothing".to_owned()
            } else {
                names.join(", ")
            }
        };
        let detail = format!(
            "the consumer says that it is offered {}; declared is {}",
            list(services),
            list(&declared)
        );
        Some(self.by_apply(Cause::Policy, detail))
    }

    /// The consumer could not ask, though all on the way looks right from the host.
    pub(crate) fn unheard(&self, edge: &Edge, unheard: Unheard) -> Broken {
        // Connections may have filled up after they were counted.
        if !unheard.overloaded && !self.facts.full.contains(&edge.hash) {
            return self.by_apply(Cause::Server, unheard.why);
        }
        let consumer = &edge.consumer;
        let words = [
            "incus",
            "restart",
            consumer.machine.as_str(),
            "--project",
            consumer.domain.as_str(),
        ];
        Broken {
            what: Cause::Busy,
            detail: in_use(edge),
            mend: shell_line(words),
        }
    }

    pub(crate) fn by_apply(&self, what: Cause, detail: String) -> Broken {
        Broken {
            what,
            detail,
            mend: self.apply.to_owned(),
        }
    }

    pub(crate) fn there(&self, end: &End) -> Option<&Instance> {
        let mut all = self.state.instances.iter();
        all.find(|one| one.project == end.domain.as_str() && one.name == end.machine.as_str())
    }

    pub(crate) fn found(&self, end: &End) -> Option<&ObservedMachine> {
        let id = InstanceId::new(end.domain.as_str(), end.machine.as_str());
        self.facts.inside.get(&id)
    }
}

/// Maximum number of machines that are named in one note.
const NAMES_SHOWN: usize = 8;

fn listed(names: &[&MachineName]) -> String {
    let shown: Vec<&str> = names
        .iter()
        .take(NAMES_SHOWN)
        .map(|name| name.as_str())
        .collect();
    match names.len().saturating_sub(NAMES_SHOWN) {
        0 => shown.join(", "),
        more => format!("{} and {more} more", shown.join(", ")),
    }
}
