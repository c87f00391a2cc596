//! Plans what goes into a machine: the program, its name, its services.

use super::ownership;
use super::{Action, PlanInputs};
use crate::edge::Edge;
use crate::incus::state::{Instance, InstanceId};
use crate::incus::{Object, State};
use crate::infra::{Domain, Infra, Machine, MachineType};
use crate::machine_state::{
    CallerUser, DriftKind, MachineSpec, ObservedMachine, Serving, differences,
};
use crate::services::Services;

/// Returns whether the program is, or was, in a machine.
pub(crate) fn has_inside(instance: &Instance) -> bool {
    instance.config.contains_key(ownership::INSIDE)
}

/// Returns whether the program must be in a machine: it offers something, or it is the end of an edge.
pub(super) fn needs_inside(setting: &PlanInputs<'_>, domain: &Domain, machine: &Machine) -> bool {
    // Incus gives virtual machines no channel; `sync` refuses one as an end.
    machine.kind == MachineType::Container
        && (!machine.services.is_empty()
            || setting
                .ends
                .contains(&(domain.name.as_str(), machine.name.as_str())))
}

/// Returns whether there is a machine in which the program is, or must be.
pub(crate) fn needs_program(infra: &Infra, edges: &[Edge], state: &State) -> bool {
    let holds = |domain: &Domain, machine: &Machine| {
        let mut all = state.instances.iter().filter(|one| has_inside(one));
        all.any(|one| one.project == domain.name.as_str() && one.name == machine.name.as_str())
    };
    let mut machines = infra.machines();
    !edges.is_empty()
        || machines.any(|(domain, one)| !one.services.is_empty() || holds(domain, one))
}

/// Builds the specification of a machine, with the program of this digest.
pub(crate) fn order(program: &str, machine: &Machine) -> MachineSpec {
    let services = (!machine.services.is_empty()).then(|| Services::of(machine));
    let run_as = machine.mcp.run_as.clone();
    let caller = CallerUser {
        uid: machine.mcp.uid,
        gid: machine.mcp.gid,
    };
    MachineSpec {
        caller,
        ..MachineSpec::new(program, machine.name.clone(), run_as, services.as_ref())
    }
}

/// Plans the change inside a machine; `None` if there is none.
pub(super) fn install(
    setting: &PlanInputs<'_>,
    domain: &Domain,
    machine: &Machine,
) -> Option<Action> {
    let id = InstanceId::new(domain.name.as_str(), machine.name.as_str());
    let there = setting.there(&id.project, &id.name);
    let needed = needs_inside(setting, domain, machine);
    if !needed && !there.is_some_and(has_inside) {
        return None;
    }
    let order = order(setting.wanted.program, machine);
    let nothing = ObservedMachine::default();
    let found = setting.facts.inside.get(&id).unwrap_or(&nothing);
    let pieces = differences(&order, found);
    if pieces.is_empty() {
        return None;
    }
    Some(Action::Install {
        machine: Object::machine(&id.project, &id.name),
        order,
        push: pieces.iter().any(|piece| piece.kind == DriftKind::Program),
        hung: found.serving == Serving::Silent,
        lines: pieces.into_iter().map(|piece| piece.line).collect(),
    })
}
