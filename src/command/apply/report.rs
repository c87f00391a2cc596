//! How a run ended: every step with its outcome, and for what failed the command that shows more.

use serde::Serialize;

use super::super::output::Output;
use super::progress::Progress;
use crate::channel::shell_line;
use crate::error::Exit;
use crate::incus::Object;
use crate::plan::{Action, PROVE, Plan, Shown};

/// What to do about steps that were not done.
pub(super) const AGAIN: &str = "run the command again: it goes on where it was";

/// How one step ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Status {
    /// As planned.
    Done,
    /// Why not.
    Failed(String),
    /// Not begun, and why.
    Skipped(String),
}

/// A step and how it ended.
#[derive(Debug, Clone)]
pub(crate) struct Outcome {
    pub(super) shown: Shown,
    pub(super) status: Status,
    /// The command that shows more.
    more: Option<String>,
    /// The machine that it was about.
    machine: Option<Object>,
}

impl Outcome {
    /// Of an action.
    pub(crate) fn new(action: &Action, status: Status) -> Self {
        Self {
            shown: action.shown(),
            status,
            more: subject(action).map(show_command),
            machine: subject(action).cloned(),
        }
    }

    /// Of a step that is no action of a plan.
    pub(super) const fn of(shown: Shown, status: Status, more: String) -> Self {
        Self {
            shown,
            status,
            more: Some(more),
            machine: None,
        }
    }

    /// Whether the step changed something.
    fn is_change(&self) -> bool {
        self.is_done() && self.shown.verb != PROVE
    }

    /// Whether the step is done.
    pub(crate) fn is_done(&self) -> bool {
        self.status == Status::Done
    }

    /// What it was about.
    pub(super) fn title(&self) -> String {
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
        | Action::Prove(_)
        | Action::Rotate { .. }
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
pub(crate) struct Report {
    outcomes: Vec<Outcome>,
    /// Whether it was asked to stop.
    stopped: bool,
}

/// The answer as JSON.
#[derive(Debug, Serialize)]
struct Answer<'a> {
    changed: usize,
    failed: usize,
    skipped: usize,
    /// Requests to Incus that may change something.
    writes: u64,
    actions: Vec<Entry<'a>>,
    notes: &'a [String],
}

#[derive(Debug, Serialize)]
struct Entry<'a> {
    #[serde(flatten)]
    shown: &'a Shown,
    status: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    more: Option<&'a str>,
}

impl Report {
    /// Adds what chains of steps gave.
    pub(crate) fn add(&mut self, chains: Vec<Vec<Outcome>>) {
        self.outcomes.extend(chains.into_iter().flatten());
    }

    /// Adds steps that were not begun.
    pub(crate) fn skip<'a>(
        &mut self,
        actions: impl Iterator<Item = &'a Action>,
        why: &str,
        progress: &Progress,
    ) {
        for action in actions {
            let outcome = Outcome::new(action, Status::Skipped(why.to_owned()));
            self.outcomes.push(progress.ended(outcome));
        }
    }

    /// The same of a run that was asked to stop.
    pub(super) const fn stopped(mut self) -> Self {
        self.stopped = true;
        self
    }

    /// Whether a step of that machine did not succeed.
    pub(super) fn has_failed(&self, machine: &Object) -> bool {
        let mut own = self.outcomes.iter();
        own.any(|one| one.machine.as_ref() == Some(machine) && !one.is_done())
    }

    fn count(&self, is: impl Fn(&Status) -> bool) -> usize {
        self.outcomes.iter().filter(|one| is(&one.status)).count()
    }

    /// Prints the end of a run and says how it ended.
    ///
    /// `nothing` is said where there was no step.
    pub(crate) fn print(
        &self,
        nothing: &str,
        notes: &[String],
        writes: u64,
        output: &Output,
    ) -> anyhow::Result<Exit> {
        let changed = self.outcomes.iter().filter(|one| one.is_change()).count();
        let failed = self.count(|status| matches!(status, Status::Failed(_)));
        let skipped = self.count(|status| matches!(status, Status::Skipped(_)));
        let answered = if output.is_json() {
            output.json(&Answer {
                changed,
                failed,
                skipped,
                writes,
                actions: self.outcomes.iter().map(entry).collect(),
                notes,
            })
        } else {
            let line = match (self.outcomes.is_empty(), changed) {
                (true, _) => format!("{nothing}\n"),
                (false, 1) => "done: 1 change\n".to_owned(),
                (false, _) => format!("done: {changed} changes\n"),
            };
            output.answer(line.as_bytes()).map_err(Into::into)
        };
        let all = self.outcomes.len();
        if self.stopped && skipped > 0 {
            // A terminal that was closed takes no answer, and what failed is said all the same.
            if failed > 0 {
                self.print_failures(failed, 0, output);
            }
            let message = format!("stopped: {skipped} of {all} steps were not begun");
            output.failure(&message, Some(AGAIN));
            return Ok(Exit::Interrupted);
        }
        answered?;
        if failed + skipped == 0 {
            return Ok(Exit::Done);
        }
        self.print_failures(failed, skipped, output);
        output.stderr("  run the command again when that is mended: it goes on where it was");
        Ok(Exit::Failed)
    }

    fn print_failures(&self, failed: usize, skipped: usize, output: &Output) {
        let all = self.outcomes.len();
        let skipped = match skipped {
            0 => String::new(),
            some => format!(", and {some} that need them were not begun"),
        };
        output.failure(&format!("{failed} of {all} steps failed{skipped}"), None);
        for outcome in &self.outcomes {
            if let Status::Failed(why) = &outcome.status {
                output.stderr(&format!("  {}: {why}", outcome.title()));
                if let Some(more) = &outcome.more {
                    output.stderr(&format!("    see more: `{more}`"));
                }
            }
        }
    }
}

fn entry(outcome: &Outcome) -> Entry<'_> {
    let (status, reason) = match &outcome.status {
        Status::Done => ("done", None),
        Status::Failed(why) => ("failed", Some(why.as_str())),
        Status::Skipped(why) => ("skipped", Some(why.as_str())),
    };
    Entry {
        shown: &outcome.shown,
        status,
        reason,
        more: outcome.more.as_deref().filter(|_| status == "failed"),
    }
}

/// A plan as JSON.
#[derive(Debug, Serialize)]
struct Planned<'a> {
    actions: Vec<Shown>,
    notes: &'a [String],
}

/// Prints a plan that is not carried out.
pub(super) fn show(plan: &Plan, output: &Output) -> anyhow::Result<()> {
    let actions: Vec<Shown> = plan.actions().map(Action::shown).collect();
    if output.is_json() {
        return output.json(&Planned {
            actions,
            notes: &plan.notes,
        });
    }
    for note in &plan.notes {
        output.say(&format!("note: {note}"));
    }
    let lines: Vec<&str> = actions
        .iter()
        .flat_map(|action| &action.lines)
        .map(String::as_str)
        .collect();
    let mut text = lines.join("\n");
    if text.is_empty() {
        super::NOTHING.clone_into(&mut text);
    }
    text.push('\n');
    Ok(output.answer(text.as_bytes())?)
}
