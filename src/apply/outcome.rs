//! Records the outcomes of a run's actions, and the commands that show more about their objects.

use std::io;

use super::RunObserver;
use crate::foreign::ForeignError;
use crate::incus::{IncusError, Object};
use crate::plan::{Action, ActionSummary, Revocation, Verification};
use crate::session::incus_failure;
use crate::text::Foreign;
use crate::transport::{RemoteExecError, shell_line};

/// Maximum length of a machine's text in a message, in characters.
const WORDS_MAX: usize = 300;

/// The reason an action failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StepError {
    /// A request to Incus failed.
    #[error("{}", incus_failure(.0).message)]
    Incus(#[from] IncusError),
    /// A change to the host failed.
    #[error(transparent)]
    Host(#[from] io::Error),
    /// The program in a machine did not run to completion.
    #[error(transparent)]
    Exec(#[from] RemoteExecError),
    /// A machine's report cannot be read.
    #[error(transparent)]
    Reader(#[from] ForeignError),
    /// A machine answered without a report; holds its stderr.
    #[error("the program does not run in the machine: {}", .0.shown(WORDS_MAX))]
    NoReport(Foreign),
    /// A path in a machine was altered.
    #[error("the machine reports: machine altered: `{}` is not as anklume left it", .0.shown(WORDS_MAX))]
    Altered(Foreign),
    /// A machine reports a failure.
    #[error("the machine reports: {}", .0.shown(WORDS_MAX))]
    Reported(Foreign),
    /// A machine's server does not report the policy that was sent.
    #[error("its server does not report the policy that was sent")]
    OtherPolicy,
    /// The content of a machine is unknown, for this reason.
    #[error("its files cannot be read, so nothing in it was changed: {0}")]
    Unread(String),
    /// A channel test was planned among the other actions.
    #[error("a channel is tested only after all other steps")]
    TooEarly,
}

/// The status of an action.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum StepStatus {
    /// Done as planned.
    Done,
    /// Failed, with the reason.
    Failed(String),
    /// Not begun, with the reason.
    Skipped(String),
}

/// A step and how it ended.
#[derive(Debug, Clone)]
pub(crate) struct StepOutcome {
    pub(crate) summary: ActionSummary,
    pub(crate) status: StepStatus,
    /// The command that shows more.
    pub(crate) more: Option<String>,
    /// The machine or other object that the step concerned.
    pub(super) subject: Option<Object>,
    /// The machines at the ends of the channel that the step tests.
    tested: Option<[Object; 2]>,
}

impl StepOutcome {
    /// The outcome of an action.
    pub(super) fn new(action: &Action, status: StepStatus) -> Self {
        let subject = subject(action);
        Self {
            summary: action.shown(),
            status,
            more: subject.map(show_command),
            subject: subject.cloned(),
            tested: match action {
                Action::VerifyChannel(Verification { edge, .. }) => {
                    Some([&edge.consumer, &edge.provider].map(Object::from))
                }
                _ => None,
            },
        }
    }

    /// Returns whether the step is done.
    pub(crate) fn is_done(&self) -> bool {
        self.status == StepStatus::Done
    }
}

fn subject(action: &Action) -> Option<&Object> {
    match action {
        Action::Create { object, .. }
        | Action::Edit { object, .. }
        | Action::Delete { object, .. }
        | Action::RestoreBridge {
            network: object, ..
        } => Some(object),
        Action::Start { machine, .. }
        | Action::Install { machine, .. }
        | Action::Unread { machine, .. }
        | Action::Connect { machine, .. }
        | Action::Revoke(Revocation { machine, .. }) => Some(machine),
        Action::EndProxy(_)
        | Action::RemoveBridge(_)
        | Action::Folder { .. }
        | Action::Sweep { .. }
        | Action::VerifyChannel(_)
        | Action::Rotate(_)
        | Action::Schedule(_)
        | Action::Unschedule => None,
    }
}

fn show_command(object: &Object) -> String {
    let args: Vec<&str> = match object {
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
    shell_line([&["incus"], args.as_slice()].concat())
}

/// All steps of a run.
#[derive(Debug, Clone, Default)]
pub(crate) struct RunReport {
    pub(crate) outcomes: Vec<StepOutcome>,
    /// True if the run was asked to stop.
    pub(crate) stopped: bool,
}

impl RunReport {
    /// Adds the outcomes of chains.
    pub(super) fn add(&mut self, chains: Vec<Vec<StepOutcome>>) {
        self.outcomes.extend(chains.into_iter().flatten());
    }

    /// Adds skipped steps.
    pub(super) fn skip<'a>(
        &mut self,
        actions: impl Iterator<Item = &'a Action>,
        why: &str,
        observer: &impl RunObserver,
    ) {
        for action in actions {
            let outcome = StepOutcome::new(action, StepStatus::Skipped(why.to_owned()));
            self.outcomes.push(observer.record(outcome));
        }
    }

    /// Returns whether any step for an object of that project did not succeed.
    pub(super) fn has_failed_in(&self, project: &str) -> bool {
        let mut outcomes = self.outcomes.iter();
        outcomes.any(|one| {
            let subject = one.subject.as_ref();
            subject.is_some_and(|subject| subject.project() == project) && !one.is_done()
        })
    }

    /// Returns whether a test of the channel between those machines did not succeed.
    pub(crate) fn has_failed_test(&self, ends: &[Object; 2]) -> bool {
        let mut outcomes = self.outcomes.iter();
        outcomes.any(|one| {
            let tested = one.tested.as_ref();
            tested.is_some_and(|tested| tested.iter().all(|end| ends.contains(end)))
                && !one.is_done()
        })
    }

    /// Returns whether any step for that machine did not succeed.
    pub(crate) fn has_failed(&self, machine: &Object) -> bool {
        let mut outcomes = self.outcomes.iter();
        outcomes.any(|one| one.subject.as_ref() == Some(machine) && !one.is_done())
    }
}
