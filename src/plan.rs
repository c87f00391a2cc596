//! Compares an [`Infra`] with Incus: the actions that make Incus match, or every reason why they must not begin.
//!
//! Pure: reads no file, asks nobody. Who carries the actions out, and how, is none of its business.

mod action;
mod address;
mod again;
mod check;
mod code;
mod destroy;
mod difference;
mod domain;
mod edges;
mod image;
mod install;
mod machine;
mod network;
mod nic;
mod ownership;
mod proof;
mod share;
mod upkeep;

pub(crate) use action::{Action, ActionSummary, PROVE, Role};
pub(crate) use again::Again;
pub(crate) use check::in_use;
pub(crate) use destroy::{Doomed, Selection, destroy};
pub(crate) use edges::{Intruder, intruders, strangers};
pub(crate) use image::{RemoteImage, remote_images};
pub(crate) use install::{has_inside, needs_program, order};
pub(crate) use ownership::{
    Ownership, finished, is_marked, is_rebuilt, machine_owner, mark_unproven, number, owner,
    unfinished,
};
pub(crate) use proof::Proof;
pub(crate) use share::{Reach, shared_sources};
pub(crate) use upkeep::{BigLog, HostFile, Rotation, Schedule, unrotated};

use code::PlanCode;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::Ipv4Addr;

use crate::diagnostic::{Diagnostic, Faults, Place, Severity, quote};
use crate::edge::Edge;
use crate::incus::State;
use crate::incus::state::{Instance, InstanceId};
use crate::infra::Infra;
use crate::machine_state::ObservedMachine;

/// The desired state.
#[derive(Debug, Clone, Copy)]
pub(crate) struct DesiredState<'a> {
    /// The declaration.
    pub(crate) infra: &'a Infra,
    /// The edges that follow.
    pub(crate) edges: &'a [Edge],
    /// Machines and domains that may be taken over though anklume did not make them.
    pub(crate) adopt: &'a [String],
    /// SHA-256 of the program that goes into the machines.
    pub(crate) program: &'a str,
}

/// Facts about the host apart from Incus.
#[derive(Debug, Clone, Default)]
pub(crate) struct Facts {
    /// User and group numbers that the host uses, and for what.
    pub(crate) ids: Vec<TakenIds>,
    /// File names in the folder of the edges' sockets.
    pub(crate) sockets: Vec<String>,
    /// Paths that devices need and that are not there.
    pub(crate) missing: BTreeSet<String>,
    /// The users who can reach the folders that machines write as users of the host.
    pub(crate) shares: BTreeMap<String, Reach>,
    /// Paths of devices that lie where a machine may write, and in which of the file's folders.
    pub(crate) nested: BTreeMap<String, String>,
    /// anklume's own folders on the host that are not as they must be: path, and what is wrong where it cannot be mended.
    pub(crate) folders: Vec<HostFolder>,
    /// Routes to networks that are directly connected.
    pub(crate) routes: Vec<HostRoute>,
    /// Images of remotes, by their name as written: where they are, or why not.
    pub(crate) images: BTreeMap<String, Result<RemoteImage, String>>,
    /// True if this process may write anklume's folders.
    pub(crate) root: bool,
    /// The content found in machines.
    pub(crate) inside: BTreeMap<InstanceId, ObservedMachine>,
    /// Ends of edges whose device is there and does not work, by the edge's hash.
    pub(crate) broken: BTreeMap<(String, Role), Again>,
    /// Edges whose consumer has all the connections that it may have, so that nobody else can ask; by hash.
    pub(crate) full: BTreeSet<String>,
    /// Logs of the edges that have grown over the limit.
    pub(crate) logs: Vec<BigLog>,
    /// Whether the host rotates them by itself.
    pub(crate) rotation: Rotation,
}

/// A range of user or group numbers that the host uses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TakenIds {
    /// The first.
    pub(crate) first: u32,
    /// The number.
    pub(crate) count: u32,
    /// By whom, such as "`/etc/passwd` for `alice`".
    pub(crate) by: String,
}

/// One of anklume's own folders on the host that is not as it must be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct HostFolder {
    /// Its path.
    pub(crate) path: String,
    /// The fault.
    pub(crate) state: FolderState,
}

/// The fault of a folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum FolderState {
    /// It is not there.
    Missing,
    /// Owner or rights differ.
    Loose,
    /// It is no folder.
    NoFolder,
}

/// A network that the host reaches directly.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct HostRoute {
    /// Over which interface.
    pub(crate) interface: String,
    /// Its first address.
    pub(crate) network: Ipv4Addr,
    /// Bits of its prefix.
    pub(crate) prefix: u8,
}

/// The actions, in order.
#[derive(Debug, Clone, Default)]
pub(crate) struct Plan {
    /// Channels that are no longer declared: first, because whoever was revoked should not wait.
    pub(crate) revoked: Vec<Action>,
    /// Folders on the host.
    pub(crate) host: Vec<Action>,
    /// Projects, networks and profiles; then the machines in them.
    pub(crate) domains: Vec<DomainPlan>,
    /// Calls over the channels, when all of that is done.
    pub(crate) proofs: Vec<Action>,
    /// Left-over sockets on the host.
    pub(crate) swept: Vec<Action>,
    /// Independent actions that keep the host's channel logs bounded.
    pub(crate) upkeep: Vec<Action>,
    /// Notes for the user that cause no action.
    pub(crate) notes: Vec<String>,
}

/// The actions in one domain.
#[derive(Debug, Clone, Default)]
pub(crate) struct DomainPlan {
    /// The domain.
    pub(crate) name: String,
    /// Project, access list, network, profiles: one after the other, before any of its machines.
    pub(crate) base: Vec<Action>,
    /// Its machines, independent of each other.
    pub(crate) machines: Vec<MachinePlan>,
}

/// The actions for one machine.
#[derive(Debug, Clone, Default)]
pub(crate) struct MachinePlan {
    /// The machine.
    pub(crate) name: String,
    /// Volumes, the machine itself, its start: one after the other.
    pub(crate) make: Vec<Action>,
    /// What goes into it, when it runs and before any device of its edges.
    pub(crate) install: Option<Action>,
    /// The devices of its edges, when it and the other ends run.
    pub(crate) connect: Vec<Action>,
}

impl Plan {
    /// Every action, in the order of the plan.
    pub(crate) fn actions(&self) -> impl Iterator<Item = &Action> {
        let domains = self.domains.iter();
        let base = domains.clone().flat_map(|domain| &domain.base);
        let make = domains
            .clone()
            .flat_map(|domain| &domain.machines)
            .flat_map(|machine| &machine.make);
        let install = domains
            .clone()
            .flat_map(|domain| &domain.machines)
            .filter_map(|machine| machine.install.as_ref());
        let connect = domains
            .flat_map(|domain| &domain.machines)
            .flat_map(|machine| &machine.connect);
        let first = self.revoked.iter().chain(&self.host);
        first
            .chain(base)
            .chain(make)
            .chain(install)
            .chain(connect)
            .chain(&self.proofs)
            .chain(&self.swept)
            .chain(&self.upkeep)
    }

    /// The channels that go, those of one machine together: of edits of one machine at the same time Incus takes one.
    pub(crate) fn revoked(&self) -> impl Iterator<Item = &[Action]> {
        let machine = |action: &Action| match action {
            Action::Revoke { machine, .. } => Some(machine.clone()),
            _ => None,
        };
        self.revoked
            .chunk_by(move |one, next| machine(one) == machine(next))
    }

    /// Returns whether there is nothing to do.
    pub(crate) fn is_empty(&self) -> bool {
        self.actions().next().is_none()
    }
}

/// Compares; the plan, or everything that stands in its way.
pub(crate) fn plan(wanted: DesiredState<'_>, state: &State, facts: &Facts) -> Result<Plan, Faults> {
    let mut faults = Vec::new();
    let setting = PlanInputs::new(wanted, state, facts);
    check::check(&setting, &mut faults);
    let moves = edges::moves(&setting);
    let mut ends = edges::wanted(wanted.edges);
    let mut plan = Plan {
        revoked: moves.revoked,
        host: check::folders(&setting),
        swept: moves.swept,
        upkeep: upkeep::upkeep(&setting),
        ..Plan::default()
    };
    for declared in wanted.infra.enabled() {
        let mut base = domain::base(&setting, declared, &mut faults);
        base.extend(address::free(&setting, declared));
        let machines = declared
            .machines
            .iter()
            .map(|one| MachinePlan {
                name: one.name.to_string(),
                make: machine::make(&setting, declared, one, &mut faults),
                install: install::install(&setting, declared, one),
                connect: edges::connect(&setting, declared, one, &mut ends, &moves.stolen),
            })
            .collect();
        plan.domains.push(DomainPlan {
            name: declared.name.to_string(),
            base,
            machines,
        });
    }
    plan.proofs = proof::proofs(&setting, &plan);
    plan.notes = check::notes(&setting);
    if faults.is_empty() {
        Ok(plan)
    } else {
        Err(Faults(faults))
    }
}

/// Everything that a part of the comparison looks at.
struct PlanInputs<'a> {
    wanted: DesiredState<'a>,
    state: &'a State,
    facts: &'a Facts,
    /// The storage pool of machines; `None`: there is none.
    pool: Option<String>,
    /// The machines on Incus by project and name.
    machines: HashMap<(&'a str, &'a str), &'a Instance>,
    /// The fixed addresses that are declared, each with its network.
    addresses: BTreeSet<(String, String)>,
    /// The ends of edges by project and name.
    ends: BTreeSet<(&'a str, &'a str)>,
}

impl<'a> PlanInputs<'a> {
    fn new(wanted: DesiredState<'a>, state: &'a State, facts: &'a Facts) -> Self {
        let machines = state.instances.iter();
        let ends = wanted.edges.iter();
        let ends = ends.flat_map(|edge| [&edge.consumer, &edge.provider]);
        Self {
            wanted,
            state,
            facts,
            pool: domain::pool(state),
            machines: machines
                .map(|one| ((one.project.as_str(), one.name.as_str()), one))
                .collect(),
            addresses: address::declared(wanted.infra),
            ends: ends
                .map(|end| (end.domain.as_str(), end.machine.as_str()))
                .collect(),
        }
    }

    /// The machine of that name in that domain's project, if it is there.
    fn there(&self, domain: &str, machine: &str) -> Option<&'a Instance> {
        self.machines.get(&(domain, machine)).copied()
    }

    /// The name of the infrastructure, which its objects bear.
    fn project(&self) -> &str {
        &self.wanted.infra.project
    }

    /// Returns whether the user allows to take over the thing of this name.
    fn adopts(&self, name: &str) -> bool {
        self.wanted.adopt.iter().any(|one| one == name)
    }
}

/// Something in the way.
fn fault(
    code: PlanCode,
    place: Option<&Place>,
    message: String,
    help: impl Into<String>,
) -> Diagnostic {
    Diagnostic {
        severity: Severity::Error,
        code: code.as_str(),
        message,
        place: place.cloned(),
        help: Some(help.into()),
    }
}

/// The obstacle of an object that belongs to somebody else.
fn not_ours(
    what: &str,
    name: &str,
    adopt: &str,
    owner: &Ownership,
    place: Option<&Place>,
) -> Diagnostic {
    match owner {
        Ownership::Other(other) => fault(
            PlanCode::NotOurs,
            place,
            format!(
                "the {what} {} on Incus belongs to another infrastructure, {}",
                quote(name),
                quote(other)
            ),
            "give it another name here, or set `project_name` back if it was changed",
        ),
        Ownership::Copy(original) => fault(
            PlanCode::NotOurs,
            place,
            format!(
                "the {what} {} on Incus is a copy of {} and was not made by anklume",
                quote(name),
                quote(original)
            ),
            format!("`anklume apply --adopt {adopt}` takes it over as it is"),
        ),
        Ownership::Nobody | Ownership::Ours => fault(
            PlanCode::NotOurs,
            place,
            format!(
                "the {what} {} is on Incus already and was not made by anklume",
                quote(name)
            ),
            format!("`anklume apply --adopt {adopt}` takes it over, or give it another name here"),
        ),
    }
}

#[cfg(test)]
mod tests;
