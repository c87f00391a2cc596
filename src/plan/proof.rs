//! The channels over which a call is to be tried: those of the machines that a plan changes, and those that never answered.
//!
//! The provider's end is asked by every run, from the host. The consumer's end is asked inside the consumer, which Incus
//! counts as a change; so it is done after a change alone, and the consumer bears a mark until it has succeeded.

use std::collections::BTreeSet;

use super::ownership::unproven;
use super::{Action, Plan, PlanInputs, Role};
use crate::edge::{Edge, End};

/// A call to be tried over a channel, from its consumer's end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Proof {
    /// The channel.
    pub(crate) edge: Edge,
    /// It as people read it.
    pub(super) name: String,
    /// True if something of it changes; if not, an earlier run had no answer, or ended before it asked.
    pub(crate) changes: bool,
    /// True if the consumer bears the mark when it is tried.
    pub(crate) marked: bool,
}

/// A machine: its project and name.
type ProofPlace<'a> = (&'a str, &'a str);

/// Every call that is to be tried when the plan so far is carried out.
pub(super) fn proofs(setting: &PlanInputs<'_>, plan: &Plan) -> Vec<Action> {
    let touched: BTreeSet<ProofPlace<'_>> = plan.actions().filter_map(changed).collect();
    let marks: BTreeSet<(ProofPlace<'_>, &str)> = plan.actions().filter_map(marks).collect();
    let mut proofs = Vec::new();
    for edge in setting.wanted.edges {
        let (consumer, provider) = (place(&edge.consumer), place(&edge.provider));
        let device = edge.device_name();
        let there = setting.there(consumer.0, consumer.1);
        let again = there.is_some_and(|one| one.config.contains_key(&unproven(&device)));
        let changes = touched.contains(&consumer) || touched.contains(&provider);
        if again || changes {
            proofs.push(Action::Prove(Proof {
                name: format!("{} → {}", edge.consumer.machine, edge.provider.machine),
                marked: again || marks.contains(&(consumer, &device)),
                edge: edge.clone(),
                changes,
            }));
        }
    }
    proofs
}

fn place(end: &End) -> ProofPlace<'_> {
    (end.domain.as_str(), end.machine.as_str())
}

/// The machine whose channels an action changes.
fn changed(action: &Action) -> Option<ProofPlace<'_>> {
    match action {
        Action::Install { machine, .. } | Action::Connect { machine, .. } => {
            Some((machine.project(), machine.name()))
        }
        _ => None,
    }
}

/// The consumer and the device that an action marks.
fn marks(action: &Action) -> Option<(ProofPlace<'_>, &str)> {
    match action {
        Action::Connect {
            machine,
            device,
            role: Role::Consumer,
            ..
        } => Some(((machine.project(), machine.name()), device)),
        _ => None,
    }
}
