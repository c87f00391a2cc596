//! The channels over which a call is to be tried: those of the machines that a plan changes, and those that never answered.
//!
//! The provider's end is asked by every run, from the host. The consumer's end is asked inside the consumer, which Incus
//! counts as a change; so it is done after a change alone, and the consumer bears a mark until it has succeeded.

use std::collections::BTreeSet;

use super::mark::unproven;
use super::{Action, Plan, Role, Setting};
use crate::edge::{Edge, End};

/// A call to be tried over a channel, from its consumer's end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Proof {
    /// The channel.
    pub(crate) edge: Edge,
    /// It as people read it.
    pub(super) name: String,
    /// Whether it is tried because an earlier run had no answer, or ended before it asked.
    pub(super) again: bool,
    /// Whether the consumer bears the mark when it is tried.
    pub(crate) marked: bool,
}

/// Every call that is to be tried when the plan so far is carried out.
pub(super) fn proofs(setting: &Setting<'_>, plan: &Plan) -> Vec<Action> {
    let changed: BTreeSet<(&str, &str)> = plan.actions().filter_map(changed).collect();
    let proofs = setting.wanted.edges.iter().filter_map(|edge| {
        let (consumer, provider) = (place(&edge.consumer), place(&edge.provider));
        let device = edge.device_name();
        let there = setting.there(consumer.0, consumer.1);
        let again = there.is_some_and(|one| one.config.contains_key(&unproven(&device)));
        let is_changed = changed.contains(&consumer) || changed.contains(&provider);
        (again || is_changed).then(|| {
            Action::Prove(Proof {
                name: format!("{} → {}", edge.consumer.machine, edge.provider.machine),
                marked: again
                    || plan
                        .actions()
                        .any(|action| marks(action, consumer, &device)),
                edge: edge.clone(),
                again,
            })
        })
    });
    proofs.collect()
}

fn place(end: &End) -> (&str, &str) {
    (end.domain.as_str(), end.machine.as_str())
}

/// The machine whose channels an action changes.
fn changed(action: &Action) -> Option<(&str, &str)> {
    match action {
        Action::Install { machine, .. } | Action::Connect { machine, .. } => {
            Some((machine.project(), machine.name()))
        }
        _ => None,
    }
}

/// Whether an action marks the channel of this device on its consumer.
fn marks(action: &Action, consumer: (&str, &str), name: &str) -> bool {
    matches!(action, Action::Connect { machine, device, role: Role::Consumer, .. }
        if (machine.project(), machine.name()) == consumer && device == name)
}
