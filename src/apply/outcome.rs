//! Records how the actions of a run ended, and for a failed one the command that shows more.

use super::RunObserver;
use crate::incus::Object;
use crate::plan::{Action, ActionSummary, VERIFY};
use crate::transport::shell_line;

/// The status of an action.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum StepStatus {
    /// As planned.
    Done,
    /// The reason.
    Failed(String),
    /// Not begun, and why.
    Skipped(String),
}

/// A step and how it ended.
#[derive(Debug, Clone)]
pub(crate) struct StepOutcome {
    pub(crate) shown: ActionSummary,
    pub(crate) status: StepStatus,
    /// The command that shows more.
    pub(crate) more: Option<String>,
    /// The machine that it was about.
    machine: Option<Object>,
}

impl StepOutcome {
    /// Of an action.
    pub(crate) fn new(action: &Action, status: StepStatus) -> Self {
        Self {
            shown: action.shown(),
            status,
            more: subject(action).map(show_command),
            machine: subject(action).cloned(),
        }
    }

    /// Of a step that is no action of a plan.
    pub(crate) const fn of(shown: ActionSummary, status: StepStatus, more: String) -> Self {
        Self {
            shown,
            status,
            more: Some(more),
            machine: None,
        }
    }

    /// Returns whether the step changed something.
    pub(crate) fn is_change(&self) -> bool {
        self.is_done() && self.shown.verb != VERIFY
    }

    /// Returns whether the step is done.
    pub(crate) fn is_done(&self) -> bool {
        self.status == StepStatus::Done
    }

    /// Its title.
    pub(crate) fn title(&self) -> String {
        self.shown.title()
    }
}

fn subject(action: &Action) -> Option<&Object> {
    match action {
        Action::Create { object, .. }
        | Action::Edit { object, .. }
        | Action::Delete { object, .. } => Some(object),
        Action::Start { machine, .. }
        | Action::Install { machine, .. }
        | Action::Connect { machine, .. }
        | Action::Revoke { machine, .. } => Some(machine),
        Action::Folder { .. }
        | Action::Sweep { .. }
        | Action::VerifyChannel(_)
        | Action::Rotate(_)
        | Action::Schedule(_)
        | Action::Unschedule => None,
    }
}

fn show_command(object: &Object) -> String {
    let words: Vec<&str> = match object {
        Object::Project(name) => vec!["project", "show", name],
        Object::Acl(name) => vec!["network", "acl", "show", name],
        Object::Network(name) => vec!["network", "show", name],
        Object::Profile { project, name } => vec!["profile", "show", name, "--project", project],
        Object::Volume {
            project,
            pool,
            name,
        } => vec![
            "storage",
            "volume",
            "show",
            pool,
            name,
            "--project",
            project,
        ],
        Object::Machine { project, name } => {
            vec!["info", name, "--project", project, "--show-log"]
        }
    };
    shell_line([&["incus"], words.as_slice()].concat())
}

/// All steps of a run.
#[derive(Debug, Clone, Default)]
pub(crate) struct RunReport {
    pub(crate) outcomes: Vec<StepOutcome>,
    /// True if it was asked to stop.
    pub(crate) stopped: bool,
}

impl RunReport {
    /// Adds what chains of steps gave.
    pub(crate) fn add(&mut self, chains: Vec<Vec<StepOutcome>>) {
        self.outcomes.extend(chains.into_iter().flatten());
    }

    /// Adds steps that were not begun.
    pub(crate) fn skip<'a>(
        &mut self,
        actions: impl Iterator<Item = &'a Action>,
        why: &str,
        observer: &impl RunObserver,
    ) {
        for action in actions {
            let outcome = StepOutcome::new(action, StepStatus::Skipped(why.to_owned()));
            self.outcomes.push(observer.ended(outcome));
        }
    }

    /// The same of a run that was asked to stop.
    pub(crate) const fn stop(mut self) -> Self {
        self.stopped = true;
        self
    }

    /// Returns whether a step of that machine did not succeed.
    pub(crate) fn has_failed(&self, machine: &Object) -> bool {
        let mut own = self.outcomes.iter();
        own.any(|one| one.machine.as_ref() == Some(machine) && !one.is_done())
    }
}
