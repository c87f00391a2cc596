//! Compares an [`Infra`] with Incus: the actions that make Incus match, or every obstacle to them.
//!
//! Pure: reads no file and connects to nothing; `apply` carries out the actions.

mod action;
mod address;
mod check;
mod destroy;
mod difference;
mod domain;
mod edges;
mod facts;
mod image;
mod machine;
mod network;
mod ownership;
mod permissions;
mod share;

pub(crate) use action::{Action, ActionSummary, Revocation, Verification};
pub(crate) use check::{awaits_restart, in_use, runs_privileged, unrotated};
pub(crate) use destroy::{Deletions, Selection, destroy};
pub(crate) use edges::{ProfileDevice, foreign_devices, profile_devices};
pub(crate) use facts::{
    BigLog, Facts, FolderState, HostFile, HostFolder, HostRoute, ImageError, Proxy, ProxyEnd,
    Reach, RecreateReason, RemoteImage, Role, Rotation, Schedule, TakenIds,
};
pub(crate) use image::remote_images;
pub(crate) use machine::{has_inside, machine_spec, needs_program};
pub(crate) use network::EXPIRY;
pub(crate) use ownership::{
    Ownership, finished, is_marked, is_rebuilt, machine_owner, mark_unverified, number, owner,
    unfinished,
};
pub(crate) use permissions::PermissionChange;
pub(crate) use share::shared_sources;

use std::collections::{BTreeSet, HashMap};

use crate::diagnostic::{Diagnostic, Faults, Place, Severity, codes};
use crate::edge::Edge;
use crate::incus::state::Instance;
use crate::incus::{Object, State};
use crate::infra::{Domain, Infra, Machine};
use address::NetworkAddress;

/// The desired state.
#[derive(Debug, Clone, Copy)]
pub(crate) struct DesiredState<'a> {
    pub(crate) infra: &'a Infra,
    pub(crate) edges: &'a [Edge],
    /// Machines and domains to take over although anklume did not create them.
    pub(crate) adopt: &'a [String],
    /// SHA-256 of the program for the machines.
    pub(crate) program: &'a str,
    /// True if the plan is only shown, so that the user needs no right to carry it out.
    pub(crate) is_shown: bool,
}

/// The actions, in order.
#[derive(Debug, Clone, Default)]
pub(crate) struct Plan {
    /// The changes of who may call what, which the actions bring about.
    pub(crate) permissions: Vec<PermissionChange>,
    /// Removal of undeclared channels; comes first, because a revocation should not wait.
    pub(crate) revoked: Vec<Action>,
    /// Processes that Incus lost track of, and folders on the host.
    pub(crate) host: Vec<Action>,
    /// Projects, networks and profiles; then the machines in them.
    pub(crate) domains: Vec<DomainPlan>,
    /// Calls over the channels, after the actions above.
    pub(crate) verifications: Vec<Action>,
    /// Leftover sockets on the host.
    pub(crate) swept: Vec<Action>,
    /// Independent actions that keep the host's channel logs bounded.
    pub(crate) upkeep: Vec<Action>,
    /// Notes for the user that involve no action.
    pub(crate) notes: Vec<String>,
}

/// The actions in one domain.
#[derive(Debug, Clone, Default)]
pub(crate) struct DomainPlan {
    pub(crate) name: String,
    /// Project, access list, network, profiles: one after the other, before any of its machines.
    pub(crate) base: Vec<Action>,
    /// Its machines, independent of each other.
    pub(crate) machines: Vec<MachinePlan>,
}

/// The actions for one machine.
#[derive(Debug, Clone, Default)]
pub(crate) struct MachinePlan {
    pub(crate) name: String,
    /// Volumes, the machine itself, its start: one after the other.
    pub(crate) make: Vec<Action>,
    /// The setup inside the machine, once it is running and before any device of its edges.
    pub(crate) install: Option<Action>,
    /// The devices of its edges, once it and the machines at the other ends are running.
    pub(crate) connect: Vec<Action>,
}

impl Plan {
    /// Every action, in the order of the plan.
    pub(crate) fn actions(&self) -> impl Iterator<Item = &Action> {
        let machines = || self.domains.iter().flat_map(|domain| &domain.machines);
        let first = self.revoked.iter().chain(&self.host);
        first
            .chain(self.domains.iter().flat_map(|domain| &domain.base))
            .chain(machines().flat_map(|machine| &machine.make))
            .chain(machines().filter_map(|machine| machine.install.as_ref()))
            .chain(machines().flat_map(|machine| &machine.connect))
            .chain(&self.verifications)
            .chain(&self.swept)
            .chain(&self.upkeep)
    }

    /// Returns the revocations, grouped by machine: Incus accepts only one edit of a machine at a time.
    pub(crate) fn revoked(&self) -> impl Iterator<Item = &[Action]> {
        let machine = |action: &Action| match action {
            Action::Revoke(one) => Some(one.machine.clone()),
            _ => None,
        };
        self.revoked
            .chunk_by(move |one, next| machine(one) == machine(next))
    }

    /// Returns the lines of what differs in the domains and machines, apart from what is inside machines, and from channels.
    /// If the file was not applied yet, domains and machines that do not exist are not counted.
    pub(crate) fn drift(&self, is_applied: bool) -> Vec<String> {
        let is_new = |action: &Action| matches!(action, Action::Create { object, .. } if matches!(object, Object::Project(_)));
        let domains = self.domains.iter();
        let domains: Vec<&DomainPlan> = domains
            .filter(|domain| is_applied || !domain.base.iter().any(is_new))
            .collect();
        let bases = domains.iter().flat_map(|domain| &domain.base);
        let machines = domains.iter().flat_map(|domain| &domain.machines);
        let machines = machines.flat_map(|machine| &machine.make);
        let machines = machines.filter(|action| match action {
            Action::Edit { .. } => true,
            Action::Create { .. } => is_applied,
            _ => false,
        });
        bases.chain(machines).flat_map(Action::lines).collect()
    }

    /// Returns whether the plan has no action.
    pub(crate) fn is_empty(&self) -> bool {
        self.actions().next().is_none()
    }
}

/// Fails if all domains of the infra that exist in Incus belong to one other infrastructure, as after a change of
/// `project_name` or of the folder that it defaults to.
pub(crate) fn check_renamed(infra: &Infra, state: &State) -> Result<(), Faults> {
    match check::renamed(infra, state) {
        Some(fault) => Err(Faults(vec![fault])),
        None => Ok(()),
    }
}

/// Returns the changes of who may call what that a plan would bring about.
pub(crate) fn permission_changes(
    wanted: DesiredState<'_>,
    state: &State,
    facts: &Facts,
) -> Vec<PermissionChange> {
    let inputs = PlanInputs::new(wanted, state, facts);
    let (revoked, _) = edges::revocations(&inputs);
    permissions::changes(&inputs, &revoked)
}

/// Compares an infra with Incus; returns the plan, or every obstacle to it.
pub(crate) fn plan(wanted: DesiredState<'_>, state: &State, facts: &Facts) -> Result<Plan, Faults> {
    check_renamed(wanted.infra, state)?;
    let mut faults = Obstacles::default();
    let inputs = PlanInputs::new(wanted, state, facts);
    check::check(&inputs, &mut faults);
    let (revoked, stolen) = edges::revocations(&inputs);
    let mut ends = edges::wanted(wanted.edges);
    let mut plan = Plan {
        permissions: permissions::changes(&inputs, &revoked),
        revoked,
        host: check::host(&inputs),
        swept: edges::sweep(&inputs),
        upkeep: check::upkeep(&inputs),
        ..Plan::default()
    };
    for domain in wanted.infra.enabled() {
        let base = domain::base(&inputs, domain, &mut faults);
        let machines = domain.machines.iter();
        let machines = machines.map(|machine| inputs.machine(domain, machine));
        let machines = machines.map(|one| MachinePlan {
            name: one.name().to_owned(),
            make: machine::make(one, &mut faults),
            install: machine::install(one),
            connect: edges::connect(one, &mut ends, &stolen),
        });
        let machines = machines.collect();
        plan.domains.push(DomainPlan {
            name: domain.name.to_string(),
            base,
            machines,
        });
    }
    plan.verifications = edges::verifications(&inputs, &plan);
    plan.notes = check::notes(&inputs);
    if faults.0.is_empty() {
        Ok(plan)
    } else {
        Err(Faults(faults.0))
    }
}

/// The inputs of the comparison.
struct PlanInputs<'a> {
    wanted: DesiredState<'a>,
    state: &'a State,
    facts: &'a Facts,
    /// The storage pool for machines, if one exists.
    pool: Option<String>,
    /// The machines in Incus, by project and name.
    machines: HashMap<(&'a str, &'a str), &'a Instance>,
    /// The declared fixed addresses.
    addresses: BTreeSet<NetworkAddress>,
    /// The ends of edges, by project and name.
    ends: BTreeSet<(&'a str, &'a str)>,
}

impl<'a> PlanInputs<'a> {
    /// Returns the flag that names the file, for a command in a message.
    fn flag(&self) -> &'a str {
        &self.wanted.infra.flag
    }

    fn new(wanted: DesiredState<'a>, state: &'a State, facts: &'a Facts) -> Self {
        let machines = state.instances.iter();
        let machines = machines.map(|one| ((one.project.as_str(), one.name.as_str()), one));
        let ends = wanted.edges.iter();
        let ends = ends.flat_map(|edge| [&edge.consumer, &edge.provider]);
        let ends = ends.map(|end| (end.domain.as_str(), end.machine.as_str()));
        Self {
            wanted,
            state,
            facts,
            pool: domain::pool(state),
            machines: machines.collect(),
            addresses: address::declared(wanted.infra),
            ends: ends.collect(),
        }
    }

    /// The name of the infrastructure, which marks its objects.
    fn project(&self) -> &str {
        &self.wanted.infra.project
    }

    /// Returns whether the user allows the object with this name to be taken over.
    fn adopts(&self, name: &str) -> bool {
        self.wanted.adopt.iter().any(|one| one == name)
    }

    fn machine(&'a self, domain: &'a Domain, machine: &'a Machine) -> MachineInputs<'a> {
        let key = (domain.name.as_str(), machine.name.as_str());
        MachineInputs {
            plan: self,
            domain,
            machine,
            current: self.machines.get(&key).copied(),
        }
    }
}

/// A declared machine, with the inputs of its comparison.
#[derive(Clone, Copy)]
struct MachineInputs<'a> {
    plan: &'a PlanInputs<'a>,
    domain: &'a Domain,
    machine: &'a Machine,
    /// The machine of that name in the domain's project, if it exists.
    current: Option<&'a Instance>,
}

impl<'a> MachineInputs<'a> {
    fn project(self) -> &'a str {
        self.domain.name.as_str()
    }

    fn name(self) -> &'a str {
        self.machine.name.as_str()
    }

    fn object(self) -> Object {
        Object::machine(self.project(), self.name())
    }
}

codes! {
    /// The kinds of obstacle; each is a heading in `docs/diagnostics.md`.
    enum PlanCode {
        /// An object with that name exists but does not belong to this infrastructure.
        NotOurs = "not-ours",
        /// `--adopt` names neither a machine nor a domain in the file.
        NothingToAdopt = "nothing-to-adopt",
        /// Another file has the same `project_name`.
        OtherInfrastructure = "other-infrastructure",
        /// A project has features that a domain's project must not have.
        ProjectFeatures = "project-features",
        /// A bridge with that name cannot be created.
        BridgeName = "bridge-name",
        /// A foreign network uses these addresses.
        SubnetInUse = "subnet-in-use",
        /// An undeclared machine has the address.
        AddressInUse = "address-in-use",
        /// A container is declared as a virtual machine, or vice versa.
        MachineType = "machine-type",
        NoImage = "no-image",
        NoPool = "no-pool",
        /// A disk's folder does not exist on the host.
        NoSource = "no-source",
        /// Users on the host can reach files that a machine writes as the host's root.
        OpenShare = "open-share",
        /// A machine could replace the source of another device; also a code of `infra`.
        SourceInSharedFolder = "source-in-shared-folder",
        /// anklume's own folders cannot be created.
        HostFolder = "host-folder",
        UidInUse = "uid-in-use",
        /// The host does not let machines use a user or group ID of `raw.idmap`.
        IdMap = "id-map",
        /// A proxy uses a channel's path; also a code of `infra`.
        ProxyIntoChannels = "proxy-into-channels",
    }
}

/// The obstacles found so far.
#[derive(Debug, Default)]
struct Obstacles(Vec<Diagnostic>);

impl Obstacles {
    fn add(
        &mut self,
        code: PlanCode,
        place: Option<&Place>,
        message: String,
        help: impl Into<String>,
    ) {
        self.0.push(Diagnostic {
            severity: Severity::Error,
            code: code.as_str(),
            message,
            place: place.cloned(),
            help: Some(help.into()),
        });
    }
}

#[cfg(test)]
mod tests;
