//! The logs that Incus writes of the channels on the host, which grow without bound unless somebody rotates them.

use super::{Action, PlanInputs};

/// A log that has grown over the limit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct BigLog {
    /// Its path.
    pub(crate) path: String,
    /// Its size on disk.
    pub(crate) bytes: u64,
}

/// A file of the host's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct HostFile {
    /// Its path.
    pub(crate) path: String,
    /// Its content.
    pub(crate) content: String,
}

/// The schedule that rotates the logs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Schedule {
    /// The scheduler.
    pub(crate) by: &'static str,
    /// What it is told by.
    pub(crate) files: Vec<HostFile>,
    /// True if something of ours is there already.
    pub(crate) there: bool,
}

/// Whether the host rotates the logs by itself.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) enum Rotation {
    /// It does, or nobody looked.
    #[default]
    Scheduled,
    /// It can be made to.
    Wanting(Schedule),
    /// It cannot, and why.
    Nobody(String),
}

/// Plans what keeps the logs bounded, if there are channels.
pub(super) fn upkeep(setting: &PlanInputs<'_>) -> Vec<Action> {
    let mut actions = Vec::new();
    if setting.wanted.edges.is_empty() || !setting.facts.root {
        return actions;
    }
    let logs = setting.facts.logs.iter();
    actions.extend(logs.map(|log| Action::Rotate {
        path: log.path.clone(),
        bytes: log.bytes,
    }));
    if let Rotation::Wanting(schedule) = &setting.facts.rotation {
        actions.push(Action::Schedule(schedule.clone()));
    }
    actions
}

/// Returns the note for the user if nothing rotates them.
pub(super) fn note(setting: &PlanInputs<'_>) -> Option<String> {
    match &setting.facts.rotation {
        Rotation::Nobody(why) if !setting.wanted.edges.is_empty() => Some(unrotated(why)),
        _ => None,
    }
}

/// That nobody rotates the logs, and why.
pub(crate) fn unrotated(why: &str) -> String {
    format!("nothing rotates the logs of channels between two runs of `anklume apply`: {why}")
}
