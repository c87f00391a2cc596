//! Finds a channel's first fault in the observations, and the faults that will break it later. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::slice;
use std::time::Duration;

use jiff::Timestamp;
use serde::Serialize;

use super::ListenFolder;
use crate::edge::{CONSUMER_FOLDER, Edge, End};
use crate::host::proxy_logs::{LIMIT, path};
use crate::incus::State;
use crate::incus::state::{Instance, InstanceId};
use crate::infra::{Device, Infra, is_true};
use crate::machine_state::{DriftKind, Identity, LOGS, ObservedMachine, Serving, Supervisor};
use crate::name::ServiceTool;
use crate::plan::{
    Facts, Ownership, PermissionChange, RecreateReason, Role, foreign_devices, in_use,
    machine_owner, profile_devices, runs_privileged,
};
use crate::survey::applied::Applied;
use crate::survey::audit_checkpoint::LogState;
use crate::survey::consumer::ConsumerFailure;
use crate::survey::instance;
use crate::text::listed;
use crate::transport::shell_line;

#[cfg(test)]
mod tests;

/// The kind of fault, in the order of the checks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Cause {
    /// A machine is missing, not ours, or not running.
    Machine,
    /// A socket folder, in the consumer or on the host.
    Folder,
    /// A device is missing or differs.
    Device,
    /// Another machine has one of this channel's devices.
    Copy,
    /// No proxy process is running for a device.
    Process,
    /// A socket is missing, was replaced, or is not private to its user.
    Socket,
    /// A fault in a machine's program files.
    Program,
    /// A machine has another program than this one, which was replaced on the host after the last `apply`.
    Version,
    /// The provider's server does not answer.
    Server,
    /// The consumer's connections are all in use.
    Busy,
    /// The server serves another policy.
    Policy,
    /// The unit that starts the server with its machine is missing or differs.
    Supervision,
    /// A log on the host is growing without bound.
    Log,
    /// The provider's call log was altered.
    Audit,
    /// A domain or a machine in Incus differs from the file.
    Drift,
    /// Something would keep `apply` from running.
    Obstacle,
}

/// A fault, and the command that fixes it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Broken {
    pub(crate) what: Cause,
    pub(crate) detail: String,
    pub(crate) fix: String,
}

/// The state of a channel.
#[derive(Debug)]
pub(crate) struct Health<'e> {
    pub(crate) edge: &'e Edge,
    /// The first fault; `None` if the channel works.
    pub(crate) broken: Option<Broken>,
    /// True if what is declared for this channel was not applied yet, which explains any fault.
    pub(crate) is_pending: bool,
    /// Duration of the consumer's request.
    pub(crate) took: Option<Duration>,
    /// Problems that do not break the channel.
    pub(crate) notes: Vec<String>,
}

/// All observations made from the host, and the declarations to compare them with.
#[derive(Debug, Clone, Copy)]
pub(super) struct Examiner<'a> {
    pub(super) infra: &'a Infra,
    pub(super) edges: &'a [Edge],
    pub(super) state: &'a State,
    pub(super) facts: &'a Facts,
    /// SHA-256 of the program that belongs in the machines.
    pub(super) program: &'a str,
    /// The providers' call logs, by project and machine.
    pub(super) calls: &'a BTreeMap<InstanceId, LogState>,
    /// What the file declares.
    pub(super) declared: &'a Applied,
    /// What was last applied; `None` if that is unknown.
    pub(super) applied: Option<&'a Applied>,
    /// The command that fixes nearly everything.
    pub(super) apply: &'a str,
}

impl Examiner<'_> {
    /// Returns whether what is declared for a channel was not applied yet.
    pub(super) fn is_pending(&self, edge: &Edge) -> bool {
        let is_applied = |applied: &Applied| applied.has_edge(self.declared, edge);
        !self.applied.is_some_and(is_applied) && (self.applied.is_some() || self.is_unmade(edge))
    }

    /// Returns whether neither machine has a device of the channel, so that no run can have made it.
    fn is_unmade(&self, edge: &Edge) -> bool {
        let has_device = |end: &End| {
            let devices = self.instance(end).map(|one| &one.devices);
            devices.is_some_and(|devices| devices.contains_key(&edge.device_name()))
        };
        !has_device(&edge.consumer) && !has_device(&edge.provider)
    }

    /// Returns whether the services of a provider differ from the declared ones only because they were not applied yet.
    pub(super) fn awaits_services(&self, provider: &End) -> bool {
        self.applied
            .is_some_and(|applied| !applied.has_services(self.declared, provider))
    }

    /// Returns whether a change concerns a machine of the chosen channels.
    pub(super) fn is_of(&self, change: &PermissionChange, chosen: &[&Edge]) -> bool {
        let is_end = |name: &str| {
            let mut ends = chosen
                .iter()
                .flat_map(|edge| [&edge.consumer, &edge.provider]);
            ends.any(|end| end.machine.as_str() == name)
        };
        chosen.len() == self.edges.len() || is_end(&change.consumer) || is_end(&change.provider)
    }

    /// Returns whether a change would mend a fault: everything that it concerns was applied before.
    pub(super) fn is_fault(&self, change: &PermissionChange) -> bool {
        let mut edges = self.edges.iter().filter(|edge| {
            let ends = [
                edge.consumer.machine.as_str(),
                edge.provider.machine.as_str(),
            ];
            ends == [&change.consumer, &change.provider]
        });
        edges.any(|edge| !self.is_pending(edge))
    }

    /// Returns the machines at the ends of these channels, each once.
    pub(super) fn ends(&self, edges: &[&Edge]) -> impl Iterator<Item = &Instance> {
        let ends = edges
            .iter()
            .flat_map(|edge| [&edge.consumer, &edge.provider]);
        let ids: BTreeSet<InstanceId> = ends.map(InstanceId::from).collect();
        let instances = self.state.instances.iter();
        instances.filter(move |instance| ids.contains(&instance.id()))
    }

    /// Returns a difference as a fault.
    pub(super) fn drifted(&self, line: &str) -> Broken {
        let detail = format!("Incus differs from infra.yml: {line}");
        self.by_apply(Cause::Drift, detail)
    }

    /// Returns the stray processes as faults.
    pub(super) fn strays(&self) -> Vec<Broken> {
        let strays = self.facts.strays.iter().map(|stray| {
            let detail = format!("process {} on the host is {}", stray.process, stray.about());
            self.by_apply(Cause::Process, detail)
        });
        strays.collect()
    }

    /// Returns notes on a channel's problems that do not break it.
    pub(super) fn notes(&self, edge: &Edge) -> Vec<String> {
        let provider = &edge.provider;
        let alone = self.supervisor(provider) == Some(Supervisor::Nobody);
        let note = format!(
            "{} has neither systemd nor OpenRC: only `{}` restarts its server",
            provider.machine, self.apply
        );
        alone.then_some(note).into_iter().collect()
    }

    /// Returns notes on the users and the confinement of these channels' servers.
    pub(super) fn servers(&self, edges: &[&Edge]) -> Vec<String> {
        let providers: BTreeMap<_, _> = edges
            .iter()
            .map(|edge| (&edge.provider.machine, &edge.provider))
            .collect();
        let mut roots = Vec::new();
        let mut confined: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for (name, provider) in providers {
            let identity = self.identity(provider);
            if identity.is_some_and(|identity| identity.run_as.is_none()) {
                roots.push(name.as_str());
            }
            let confinement = self
                .found(provider)
                .and_then(|it| it.confinement.as_deref());
            if let Some(confinement) = confinement {
                confined.entry(confinement).or_default().push(name.as_str());
            }
        }
        let confined = confined.iter().map(|(confinement, names)| {
            let names = listed(names);
            format!("confined by {confinement}, according to the servers: {names}")
        });
        let mut notes: Vec<String> = confined.collect();
        if !roots.is_empty() {
            let roots = listed(&roots);
            notes.push(format!(
                "the server runs as root in {roots}; `mcp: {{run_as: USER}}` in infra.yml sets another user"
            ));
        }
        notes
    }

    /// Checks the machines at both ends.
    pub(super) fn machines(&self, edge: &Edge, listens: &ListenFolder) -> Option<Broken> {
        // The machine cannot start if the folder of one of its devices is missing.
        let consumer = self.machine(&edge.consumer, *listens == ListenFolder::Intact);
        consumer.or_else(|| {
            let supervisor = self.supervisor(&edge.provider);
            let starts = matches!(supervisor, Some(Supervisor::Systemd | Supervisor::Openrc));
            self.machine(&edge.provider, starts)
        })
    }

    /// Checks a machine. If `starts` is true, a stopped machine only needs to be started.
    fn machine(&self, end: &End, starts: bool) -> Option<Broken> {
        let what = Cause::Machine;
        let name = &end.machine;
        let Some(instance) = self.instance(end) else {
            let detail = format!("{name} is not in Incus (project {})", end.domain);
            return Some(self.by_apply(what, detail));
        };
        let fault = match machine_owner(instance, &self.infra.project) {
            Ownership::Ours => None,
            Ownership::Other(other) => {
                let other = other.escape_debug();
                Some(format!("belongs to the infrastructure {other}"))
            }
            Ownership::Copy(original) => Some(format!("is a copy of {}", original.escape_debug())),
            Ownership::Nobody => Some("was not created by anklume".to_owned()),
        };
        if let Some(fault) = fault {
            let detail = format!("{name} {fault}");
            let fix = match machine_owner(instance, &self.infra.project) {
                // It cannot be adopted.
                Ownership::Other(_) => incus_line("info", end, &[]),
                _ => format!("{} --adopt {name}", self.apply),
            };
            return Some(Broken { what, detail, fix });
        }
        if runs_privileged(instance) {
            let detail = format!("{name} runs privileged, so its root is the root of this host");
            let fix = format!("{}; {}", self.apply, incus_line("restart", end, &[]));
            return Some(Broken { what, detail, fix });
        }
        if instance.is_running() {
            return None;
        }
        if let Some(age) = self.facts.incus_age.filter(|_| is_to_start(instance)) {
            let age = age.as_secs();
            return Some(Broken {
                what,
                detail: format!(
                    "{name} is not running yet: Incus started {age} s ago and may still be starting its machines"
                ),
                fix: format!("anklume doctor{}", self.infra.flag),
            });
        }
        let status = instance.status.to_lowercase();
        let detail = format!("{name} is {}", status.escape_debug());
        let fix = match status.as_str() {
            "frozen" => incus_line("resume", end, &[]),
            "stopped" if starts => incus_line("start", end, &[]),
            _ => self.apply.to_owned(),
        };
        Some(Broken { what, detail, fix })
    }

    /// Checks the channel between two running machines, as seen from the host.
    pub(super) fn way(&self, edge: &Edge, listens: &ListenFolder) -> Option<Broken> {
        let program = [DriftKind::Program, DriftKind::Name, DriftKind::Rights];
        self.folders(edge, listens)
            .or_else(|| self.device(&edge.consumer, &edge.consumer_device()))
            .or_else(|| self.device(&edge.provider, &edge.provider_device()))
            .or_else(|| self.copy(edge))
            .or_else(|| self.devices(edge))
            .or_else(|| self.inside(&edge.provider, &program))
            .or_else(|| self.inside(&edge.consumer, &program))
            .or_else(|| self.silence(&edge.provider))
    }

    fn folders(&self, edge: &Edge, listens: &ListenFolder) -> Option<Broken> {
        let what = Cause::Folder;
        let name = &edge.consumer.machine;
        let detail = match listens {
            ListenFolder::Intact => {
                let path = self.facts.folders.first()?.path.escape_debug();
                format!("`{path}` on the host is missing, or is not owned by root with mode 0711")
            }
            ListenFolder::Missing => format!("`{CONSUMER_FOLDER}` is gone from {name}"),
            ListenFolder::Altered(part) => {
                let remove = incus_line("exec", &edge.consumer, &["--", "rm", part]);
                let fix = format!("{remove}; {}", self.apply);
                let detail = format!("machine altered: `{part}` in {name} is not a folder");
                return Some(Broken { what, detail, fix });
            }
            ListenFolder::Unknown(why) => {
                let detail = format!("`{CONSUMER_FOLDER}` of {name} cannot be examined: {why}");
                let fix = incus_line("info", &edge.consumer, &["--show-log"]);
                return Some(Broken { what, detail, fix });
            }
        };
        Some(self.by_apply(what, detail))
    }

    fn device(&self, end: &End, device: &Device) -> Option<Broken> {
        let (machine, name) = (&end.machine, &device.name);
        let Some(found) = self.instance(end)?.devices.get(name) else {
            let detail = format!("{machine} has no device {name}");
            return Some(self.by_apply(Cause::Device, detail));
        };
        let mut keys: BTreeSet<&str> = found.keys().map(String::as_str).collect();
        keys.extend(device.keys.iter().map(|(key, _)| key.as_str()));
        keys.retain(|key| found.get(*key).map(String::as_str) != device.get(key));
        if keys.is_empty() {
            return None;
        }
        let keys = keys.into_iter().collect::<Vec<_>>().join(", ");
        let detail = format!(
            "the device {name} of {machine} differs from the expected one in: {}",
            keys.escape_debug()
        );
        Some(self.by_apply(Cause::Device, detail))
    }

    fn copy(&self, edge: &Edge) -> Option<Broken> {
        let mut profiles = profile_devices(&self.state.profiles).into_iter();
        if let Some(one) = profiles.find(|one| one.is_on(slice::from_ref(edge))) {
            let remove = ["incus", "profile", "device", "remove"];
            let (profile, project) = (&one.profile.name, &one.profile.project);
            let device = [profile, one.device, "--project", project];
            return Some(Broken {
                what: Cause::Copy,
                detail: one.what(),
                fix: shell_line(remove.into_iter().chain(device)),
            });
        }
        let socket = format!("{}.sock", edge.hash);
        let all = foreign_devices(self.edges, &self.state.instances);
        let one = all
            .into_iter()
            .find(|one| one.socket == socket && !one.is_renamed)?;
        let detail = format!(
            "{} (project {}) has a device of this channel, {}, but is not one of its ends",
            one.machine.name.escape_debug(),
            one.machine.project.escape_debug(),
            one.device.escape_debug()
        );
        Some(self.by_apply(Cause::Copy, detail))
    }

    /// Finds faults in the devices at both ends: first in their processes, then in their sockets.
    fn devices(&self, edge: &Edge) -> Option<Broken> {
        let (consumer, provider) = (&edge.consumer.machine, &edge.provider.machine);
        let inside = format!("`{}` in {consumer}", edge.consumer_socket());
        let on_host = format!("`{}` on the host", edge.host_socket());
        let ends = [
            (Role::Consumer, consumer, inside, edge.owner_uid),
            (Role::Provider, provider, on_host, edge.uid),
        ];
        let faults = ends
            .into_iter()
            .filter_map(|(role, machine, socket, owner)| {
                let (what, detail) = match self.facts.broken.get(&(edge.hash.clone(), role))? {
                    RecreateReason::NoProcess | RecreateReason::TakenOver => {
                        let device = edge.device_name();
                        let detail = format!(
                            "no proxy process is running for the device {device} of {machine}"
                        );
                        (Cause::Process, detail)
                    }
                    RecreateReason::NoSocket => (Cause::Socket, format!("{socket} is gone")),
                    RecreateReason::BadSocket => {
                        let detail =
                            format!("{socket} is not a socket, or is not private to user {owner}");
                        (Cause::Socket, detail)
                    }
                };
                Some(self.by_apply(what, detail))
            });
        faults.min_by_key(|fault| fault.what == Cause::Socket)
    }

    /// Compares the services that the consumer sees with the declared ones.
    pub(super) fn policy(&self, edge: &Edge, services: &BTreeSet<String>) -> Option<Broken> {
        let policy = [DriftKind::Server, DriftKind::Services];
        // Services of other consumers may not be applied yet.
        let policy = if self.awaits_services(&edge.provider) {
            &policy[..1]
        } else {
            &policy[..]
        };
        if let Some(broken) = self.inside(&edge.provider, policy) {
            return Some(broken);
        }
        let (_, provider) = self.infra.machine(edge.provider.machine.as_str())?;
        let declared = provider.services.iter();
        let declared = declared.filter(|one| one.consumers.contains(&edge.consumer.machine));
        let now = Timestamp::now();
        let (mut expected, mut declared_names) = (BTreeSet::new(), BTreeSet::new());
        for one in declared {
            declared_names.insert(one.name.to_string());
            // An upstream's tool is not listed while it differs from the accepted one, of which there is a note.
            let is_upstream = matches!(one.tool, ServiceTool::Upstream(..));
            if !is_upstream && !one.conditions.have_expired(now) {
                expected.insert(one.name.to_string());
            }
        }
        let declared = declared_names;
        if expected.is_subset(services) && services.is_subset(&declared) {
            return None;
        }
        let list = |names: &BTreeSet<String>| {
            if names.is_empty() {
                return "none".to_owned();
            }
            names
                .iter()
                .map(String::as_str)
                .collect::<Vec<_>>()
                .join(", ")
        };
        let detail = format!(
            "services reported by the consumer: {}; declared in infra.yml: {}",
            list(services),
            list(&declared)
        );
        Some(self.by_apply(Cause::Policy, detail))
    }

    /// Explains why the consumer's request failed, although the channel looks intact from the host.
    pub(super) fn no_answer(&self, edge: &Edge, failure: ConsumerFailure) -> Broken {
        // All connections may have been taken since they were counted.
        if !failure.overloaded && !self.facts.full.contains(&edge.hash) {
            return self.by_apply(Cause::Server, failure.why);
        }
        Broken {
            what: Cause::Busy,
            detail: in_use(edge),
            fix: incus_line("restart", &edge.consumer, &[]),
        }
    }

    /// Finds faults that will break the channel later: in the server's supervision and in the logs.
    pub(super) fn upkeep(&self, edge: &Edge) -> Option<Broken> {
        self.inside(&edge.provider, &[DriftKind::Supervision])
            .or_else(|| self.unlogged(&edge.provider))
            .or_else(|| self.log(edge))
            .or_else(|| self.calls(&edge.provider))
    }

    /// A server that cannot write its log refuses every call, though it still answers.
    fn unlogged(&self, provider: &End) -> Option<Broken> {
        /// Maximum length of a server's reason, in characters.
        const WHY_MAX: usize = 200;
        let (_, machine) = self.infra.machine(provider.machine.as_str())?;
        let inside = self.found(provider)?;
        let Serving::Policy { unlogged, .. } = &inside.serving else {
            return None;
        };
        let why = unlogged.as_ref().filter(|_| !machine.mcp.allow_unlogged)?;
        Some(Broken {
            what: Cause::Audit,
            detail: format!(
                "the server of {} cannot write its audit log, so it refuses every call; it reports: {}",
                provider.machine,
                why.shown(WHY_MAX)
            ),
            fix: incus_line("exec", provider, &["--", "df", "-h", LOGS]),
        })
    }

    fn log(&self, edge: &Edge) -> Option<Broken> {
        let paths = [&edge.provider, &edge.consumer].map(|end| path(edge, end));
        let mut logs = self.facts.logs.iter();
        let log = logs.find(|log| paths.contains(&log.path))?;
        let mib = |bytes: u64| bytes / (1024 * 1024);
        let detail = format!(
            "`{}` takes up {} MiB of the host's disk, but should be rotated at {} MiB",
            log.path.escape_debug(),
            mib(log.bytes),
            mib(LIMIT)
        );
        Some(self.by_apply(Cause::Log, detail))
    }

    fn calls(&self, provider: &End) -> Option<Broken> {
        match self.calls.get(&provider.into())? {
            LogState::Sound | LogState::Lost { .. } | LogState::Unknown(_) => None,
            LogState::Altered { detail, accept } => Some(Broken {
                what: Cause::Audit,
                detail: format!(
                    "{detail}; once you know why, accept its current state with the command below"
                ),
                fix: accept.clone(),
            }),
        }
    }

    pub(super) fn by_apply(&self, what: Cause, detail: String) -> Broken {
        let fix = self.apply.to_owned();
        Broken { what, detail, fix }
    }

    pub(super) fn instance(&self, end: &End) -> Option<&Instance> {
        instance(self.state, &end.domain, &end.machine)
    }

    pub(super) fn found(&self, end: &End) -> Option<&ObservedMachine> {
        self.facts.inside.get(&end.into())
    }

    /// The reason why the content of a machine is unknown.
    pub(super) fn unread(&self, end: &End) -> Option<&String> {
        self.facts.unread.get(&end.into())
    }

    fn identity(&self, end: &End) -> Option<&Identity> {
        self.found(end)?.identity.as_ref()
    }

    fn supervisor(&self, end: &End) -> Option<Supervisor> {
        self.identity(end)?.supervisor
    }
}

/// Returns whether Incus starts a machine by itself after its own start.
fn is_to_start(instance: &Instance) -> bool {
    if !["Stopped", "Starting"].contains(&&*instance.status) {
        return false;
    }
    let key = |key: &str| instance.expanded_config.get(key).map(String::as_str);
    let power = instance.config.get("volatile.last_state.power");
    match key("boot.autostart") {
        Some(value) => is_true(value),
        None => power.is_some_and(|power| power == "RUNNING"),
    }
}

/// Returns a shell command that runs `incus` on a machine.
pub(super) fn incus_line(verb: &str, end: &End, more: &[&str]) -> String {
    let (machine, project) = (end.machine.as_str(), end.domain.as_str());
    let words = ["incus", verb, machine, "--project", project];
    shell_line(words.iter().chain(more))
}
