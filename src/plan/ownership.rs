//! The marks in the configuration of anklume's objects, and the owner of an object.

use serde_json::Value;

use super::{MachineInputs, Obstacles, PlanCode, PlanInputs};
use crate::diagnostic::{Place, quote};
use crate::incus::state::{Instance, Project};
use crate::incus::{ConfigMap, Edit, Object, State};
use crate::infra::Domain;

/// Prefix of anklume's own keys, except [`BUILT`].
const OWN: &str = "user.anklume.";
/// Names the infrastructure (`project_name`).
pub(super) const PROJECT: &str = "user.anklume.project";
/// Names the domain that a network or an access list is for.
pub(super) const DOMAIN: &str = "user.anklume.domain";
/// Names the machine as `DOMAIN/NAME`, so that a copy can be recognised.
pub(super) const MACHINE: &str = "user.anklume.machine";
/// Names the image that a machine was created from, as declared.
pub(super) const IMAGE: &str = "user.anklume.image";
/// Set to `true` if the machine has, or had, the program.
pub(super) const INSIDE: &str = "user.anklume.inside";
/// Set to `true` until Incus reports that the machine is complete.
const UNFINISHED: &str = "user.anklume.unfinished";
/// Set once a machine has been started, even if the start failed.
const LAST_POWER: &str = "volatile.last_state.power";
/// Set to `true` until Incus rebuilds the machine: `incus rebuild` removes every image key.
pub(super) const BUILT: &str = "image.anklume";
/// A machine's UUID.
const UUID: &str = "volatile.uuid";
/// Equals [`UUID`], unless the machine was restored from a snapshot; `incus rebuild` makes both equal again.
const GENERATION: &str = "volatile.uuid.generation";
/// Prefix of keys that end in a channel's device: `true` on a consumer until a call over the channel has succeeded.
const UNVERIFIED: &str = "user.anklume.unproven.";
/// Lists the keys that anklume set: a JSON list of `KEY` and `@DEVICE:KEY` entries.
pub(super) const KEYS: &str = "user.anklume.keys";

/// Returns whether a key is one of anklume's marks.
pub(super) fn is_own(key: &str) -> bool {
    key.starts_with(OWN) || key == BUILT
}

/// The owner of an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Ownership {
    /// This infrastructure.
    Ours,
    /// Another infrastructure, by name.
    Other(String),
    /// A copy of a machine of this infrastructure, named `DOMAIN/NAME`.
    Copy(String),
    /// No infrastructure.
    Nobody,
}

impl Ownership {
    /// Returns whether an object with this owner may be changed; `adopted` is true if the user takes it over.
    fn allows(&self, adopted: bool) -> bool {
        match self {
            Self::Ours => true,
            Self::Nobody | Self::Copy(_) => adopted,
            Self::Other(_) => false,
        }
    }
}

/// Returns the owner of an object with this configuration.
pub(crate) fn owner(config: &ConfigMap, project: &str) -> Ownership {
    match config.get(PROJECT) {
        Some(name) if name == project => Ownership::Ours,
        Some(name) => Ownership::Other(name.clone()),
        None => Ownership::Nobody,
    }
}

/// Returns this infrastructure's projects in Incus.
pub(super) fn our_projects<'a>(
    state: &'a State,
    project: &'a str,
) -> impl Iterator<Item = &'a Project> {
    let ours = move |one: &&Project| owner(&one.config, project) == Ownership::Ours;
    state.projects.iter().filter(ours)
}

/// Returns the owner of a machine, even after `incus copy` and `incus rename`, which keep the marks.
pub(crate) fn machine_owner(instance: &Instance, project: &str) -> Ownership {
    let own = format!("{}/{}", instance.project, instance.name);
    let config = &instance.config;
    match (owner(config, project), config.get(MACHINE)) {
        (Ownership::Ours, Some(marked)) if *marked != own => Ownership::Copy(marked.clone()),
        (owner, _) => owner,
    }
}

/// Returns the request body that creates a machine, with the mark of an unfinished one.
pub(crate) fn unfinished(body: &Value) -> Value {
    let mut body = body.clone();
    if let Some(config) = body.get_mut("config").and_then(Value::as_object_mut) {
        config.insert(UNFINISHED.to_owned(), "true".into());
    }
    body
}

/// Returns the edit that removes the mark of an unfinished machine once Incus has created it.
pub(crate) fn finished() -> Edit {
    mark(UNFINISHED, false)
}

fn mark(key: &str, is_set: bool) -> Edit {
    Edit::Config {
        key: key.to_owned(),
        old: None,
        new: is_set.then(|| "true".to_owned()),
    }
}

/// Returns whether a machine is marked as unfinished.
pub(super) fn is_unfinished(config: &ConfigMap) -> bool {
    config.contains_key(UNFINISHED)
}

/// Returns whether a machine is marked as unfinished and was never started.
pub(super) fn is_half_made(config: &ConfigMap) -> bool {
    is_unfinished(config) && !config.contains_key(LAST_POWER)
}

/// Returns a machine's UUID, which survives a rename; a copy or a new machine has a different one.
pub(crate) fn number(config: &ConfigMap) -> Option<&String> {
    config.get(UUID)
}

/// Returns whether a machine has the mark that a rebuild removes.
pub(crate) fn is_marked(config: &ConfigMap) -> bool {
    config.contains_key(BUILT)
}

/// Returns whether a machine that had that mark was rebuilt. Nothing in the machine can remove the mark, but an older
/// snapshot can, and so can every user of Incus.
pub(crate) fn is_rebuilt(config: &ConfigMap) -> bool {
    !is_marked(config) && config.get(GENERATION) == number(config)
}

/// The mark of an unverified channel, by its device.
pub(super) fn unverified(device: &str) -> String {
    format!("{UNVERIFIED}{device}")
}

/// Returns the edit that sets or removes that mark on the consumer.
pub(crate) fn mark_unverified(device: &str, is_set: bool) -> Edit {
    mark(&unverified(device), is_set)
}

/// Returns the keys that anklume last set on an object; none if the list is damaged.
pub(super) fn set_before(config: &ConfigMap) -> Vec<String> {
    let list = config.get(KEYS);
    let keys = list.and_then(|list| serde_json::from_str::<Vec<Value>>(list).ok());
    let keys = keys.into_iter().flatten();
    keys.filter_map(|key| key.as_str().map(str::to_owned))
        .collect()
}

/// Returns whether an existing object of a domain may be changed; reports an obstacle if not.
pub(super) fn may_touch(
    inputs: &PlanInputs<'_>,
    domain: &Domain,
    object: &Object,
    config: &ConfigMap,
    faults: &mut Obstacles,
) -> bool {
    let owner = owner(config, inputs.project());
    let name = domain.name.as_str();
    let adopted = inputs.adopts(name) || inputs.adopts(object.name());
    claim(inputs, object, name, &owner, adopted, &domain.place, faults)
}

/// Returns whether a declared machine exists and may be changed.
pub(super) fn may_touch_machine(one: MachineInputs<'_>) -> bool {
    let owner = one.current.map(|it| machine_owner(it, one.plan.project()));
    owner.is_some_and(|owner| owner.allows(one.plan.adopts(one.name())))
}

/// Returns whether a machine, or one of its objects, may be changed; reports an obstacle if not.
pub(super) fn may_touch_of_machine(
    one: MachineInputs<'_>,
    object: &Object,
    owner: &Ownership,
    faults: &mut Obstacles,
) -> bool {
    let (name, place) = (one.name(), &one.machine.place);
    let adopted = one.plan.adopts(name);
    claim(one.plan, object, name, owner, adopted, place, faults)
}

/// Returns whether an object may be changed; reports an obstacle if not. `adopt` is its name for `--adopt`.
fn claim(
    inputs: &PlanInputs<'_>,
    object: &Object,
    adopt: &str,
    owner: &Ownership,
    adopted: bool,
    place: &Place,
    faults: &mut Obstacles,
) -> bool {
    if owner.allows(adopted) {
        return true;
    }
    let subject = format!("the {} {}", object.kind(), quote(object.name()));
    let flag = inputs.flag();
    let (fault, help) = match owner {
        Ownership::Other(other) => (
            format!(
                "in Incus belongs to another infrastructure, {}",
                quote(other)
            ),
            "give it another name here, or restore `project_name` if it was changed".to_owned(),
        ),
        Ownership::Copy(it) => (
            format!(
                "in Incus is a copy of {} and was not created by anklume",
                quote(it)
            ),
            format!("`anklume apply --adopt {adopt}{flag}` takes it over"),
        ),
        Ownership::Nobody | Ownership::Ours => (
            "already exists in Incus and was not created by anklume".to_owned(),
            format!(
                "`anklume apply --adopt {adopt}{flag}` takes it over, or give it another name here"
            ),
        ),
    };
    let message = format!("{subject} {fault}");
    faults.add(PlanCode::NotOurs, Some(place), message, help);
    false
}
