//! The marks that an object of anklume's bears in its configuration, and whose an object is.

use serde_json::Value;

use super::{PlanInputs, not_ours};
use crate::diagnostic::Diagnostic;
use crate::incus::{ConfigMap, Edit, Object};
use crate::infra::Domain;

/// Prefix of anklume's own keys, except [`BUILT`].
const OWN: &str = "user.anklume.";
/// Names the infrastructure (`project_name`).
pub(super) const PROJECT: &str = "user.anklume.project";
/// Names the domain that a network or an access list is for.
pub(super) const DOMAIN: &str = "user.anklume.domain";
/// Names the machine as `DOMAIN/NAME`, so that a copy is known as one.
pub(super) const MACHINE: &str = "user.anklume.machine";
/// Names the image that a machine was made of, as declared.
pub(super) const IMAGE: &str = "user.anklume.image";
/// Is there where the program is, or was: `true`.
pub(super) const INSIDE: &str = "user.anklume.inside";
/// Set to `true` until Incus reports that the machine is complete.
const UNFINISHED: &str = "user.anklume.unfinished";
/// Set once a machine has been started, even if the start failed.
const LAST_POWER: &str = "volatile.last_state.power";
/// Is there until Incus builds the machine anew: `incus rebuild` takes away every key that is an image's. `true`.
pub(super) const BUILT: &str = "image.anklume";
/// A machine's number.
const UUID: &str = "volatile.uuid";
/// The same, or another value since the machine was taken back to a snapshot; after `incus rebuild` the same again.
const GENERATION: &str = "volatile.uuid.generation";
/// Is there, with a channel's device behind it, on a consumer in which no call over the channel has succeeded yet: `true`.
const UNPROVEN: &str = "user.anklume.unproven.";
/// Lists what anklume set: a JSON list of keys, and of `@DEVICE:KEY`.
pub(super) const KEYS: &str = "user.anklume.keys";

/// Returns whether anklume keeps a key for itself.
pub(super) fn is_own(key: &str) -> bool {
    key.starts_with(OWN) || key == BUILT
}

/// The owner of an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Ownership {
    /// This infrastructure's.
    Ours,
    /// Another one's, by name.
    Other(String),
    /// A copy of a machine of this infrastructure, named `DOMAIN/NAME`.
    Copy(String),
    /// Nobody's that anklume knows.
    Nobody,
}

/// Returns the owner of an object with this configuration.
pub(crate) fn owner(config: &ConfigMap, project: &str) -> Ownership {
    match config.get(PROJECT) {
        Some(name) if name == project => Ownership::Ours,
        Some(name) => Ownership::Other(name.clone()),
        None => Ownership::Nobody,
    }
}

/// Whose a machine is: `incus copy` and `incus rename` keep the marks.
pub(crate) fn machine_owner(
    config: &ConfigMap,
    project: &str,
    domain: &str,
    name: &str,
) -> Ownership {
    let own = format!("{domain}/{name}");
    match (owner(config, project), config.get(MACHINE)) {
        (Ownership::Ours, Some(marked)) if *marked != own => Ownership::Copy(marked.clone()),
        (owner, _) => owner,
    }
}

/// The body of a request that creates a machine, with the mark of an unfinished machine.
pub(crate) fn unfinished(body: &Value) -> Value {
    let mut body = body.clone();
    if let Some(config) = body.get_mut("config").and_then(Value::as_object_mut) {
        config.insert(UNFINISHED.to_owned(), "true".into());
    }
    body
}

/// Takes that mark off: Incus has made the machine.
pub(crate) fn finished() -> Edit {
    Edit::Config {
        key: UNFINISHED.to_owned(),
        old: None,
        new: None,
    }
}

/// Returns whether a machine bears that mark.
pub(super) fn is_unfinished(config: &ConfigMap) -> bool {
    config.contains_key(UNFINISHED)
}

/// Returns whether a machine was ever started.
pub(super) fn was_started(config: &ConfigMap) -> bool {
    config.contains_key(LAST_POWER)
}

/// What Incus calls a machine for ever, whatever its name: a copy or a new machine has another number.
pub(crate) fn number(config: &ConfigMap) -> Option<&String> {
    config.get(UUID)
}

/// Returns whether a machine bears that mark.
pub(crate) fn is_marked(config: &ConfigMap) -> bool {
    config.contains_key(BUILT)
}

/// Returns whether a machine that bore that mark was built anew. Nobody in the machine can take the mark off; a snapshot from before
/// it can, and so can whoever may use Incus.
pub(crate) fn is_rebuilt(config: &ConfigMap) -> bool {
    !is_marked(config) && config.get(GENERATION) == number(config)
}

/// The mark of a channel that nobody has proven, by its device.
pub(super) fn unproven(device: &str) -> String {
    format!("{UNPROVEN}{device}")
}

/// Sets that mark on the consumer, or takes it off.
pub(crate) fn mark_unproven(device: &str, is: bool) -> Edit {
    Edit::Config {
        key: unproven(device),
        old: None,
        new: is.then(|| "true".to_owned()),
    }
}

/// Returns the keys that anklume set on an object the last time.
pub(super) fn set_before(config: &ConfigMap) -> Vec<String> {
    let Some(text) = config.get(KEYS) else {
        return Vec::new();
    };
    // A list that somebody broke forgets what to remove, and nothing else.
    match serde_json::from_str(text) {
        Ok(Value::Array(keys)) => keys
            .into_iter()
            .filter_map(|key| key.as_str().map(str::to_owned))
            .collect(),
        _ => Vec::new(),
    }
}

/// Returns whether an object that is there may be touched; says so where not.
pub(super) fn may_touch(
    setting: &PlanInputs<'_>,
    domain: &Domain,
    object: &Object,
    config: &ConfigMap,
    faults: &mut Vec<Diagnostic>,
) -> bool {
    let owner = owner(config, setting.project());
    let adopted = owner == Ownership::Nobody
        && (setting.adopts(domain.name.as_str()) || setting.adopts(object.name()));
    if owner == Ownership::Ours || adopted {
        return true;
    }
    faults.push(not_ours(
        object.kind(),
        object.name(),
        domain.name.as_str(),
        &owner,
        Some(&domain.place),
    ));
    false
}
