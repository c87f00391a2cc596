//! Shows a run: a progress bar and the running actions on a terminal, one line per action elsewhere; at the end, the
//! result and, for each failed action, the command that shows more.

use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use serde::Serialize;
use serde_json::json;

use crate::apply::RunObserver;
use crate::apply::outcome::{RunReport, StepOutcome, StepStatus};
use crate::command::output::{Output, paint_line};
use crate::error::Exit;
use crate::plan::{Action, ActionSummary, PermissionChange, Plan};

/// Advice if some actions were not carried out.
pub(super) const RESUMES: &str = "run the command again: it resumes where it stopped";
/// Interval between redraws of a running action.
const TICK: Duration = Duration::from_millis(120);

/// The progress of a run.
pub(super) struct Progress {
    output: Output,
    bars: Option<(MultiProgress, ProgressBar)>,
}

impl Progress {
    /// Starts the progress of a run with this number of steps.
    pub(super) fn new(output: &Output, steps: usize) -> Self {
        let bars = output.animates().then(|| {
            let all = MultiProgress::new();
            let style = ProgressStyle::with_template("{bar:32} {pos}/{len} {elapsed}")
                .unwrap_or_else(|_| ProgressStyle::default_bar());
            let total = u64::try_from(steps).unwrap_or(u64::MAX);
            let bar = all.add(ProgressBar::new(total).with_style(style));
            (all, bar)
        });
        Self {
            output: output.clone(),
            bars,
        }
    }

    /// Writes a line above the bar.
    pub(super) fn line(&self, line: &str) {
        match &self.bars {
            Some((all, _)) => all.suspend(|| self.output.say(line)),
            None => self.output.say(line),
        }
    }

    /// Removes the bar at the end of the run.
    pub(super) fn end(&self) {
        if let Some((_, bar)) = &self.bars {
            bar.finish_and_clear();
        }
    }
}

impl RunObserver for Progress {
    type Step = Option<ProgressBar>;

    fn started(&self, action: &Action) -> Self::Step {
        let (all, _) = self.bars.as_ref()?;
        let summary = action.shown();
        let line = summary.lines.first().cloned();
        let line = line.unwrap_or_else(|| summary.title());
        let spinner = all.add(ProgressBar::new_spinner().with_message(line));
        spinner.enable_steady_tick(TICK);
        Some(spinner)
    }

    fn finished(&self, step: Self::Step) {
        if let (Some((all, bar)), Some(step)) = (&self.bars, step) {
            step.finish_and_clear();
            all.remove(&step);
            bar.inc(1);
        }
    }

    fn record(&self, outcome: StepOutcome) -> StepOutcome {
        let title = outcome.summary.title();
        match &outcome.status {
            StepStatus::Done => {
                let lines = outcome.summary.lines.iter();
                lines.for_each(|line| self.line(&paint_line(line)));
            }
            StepStatus::Failed(why) => self.line(&paint_line(&format!("! {title}: {why}"))),
            StepStatus::Skipped(why) => {
                self.line(&paint_line(&format!("! {title}: skipped, {why}")));
            }
        }
        outcome
    }
}

#[derive(Debug, Serialize)]
struct ActionEntry<'a> {
    #[serde(flatten)]
    summary: &'a ActionSummary,
    status: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    more: Option<&'a str>,
}

impl<'a> ActionEntry<'a> {
    fn of(outcome: &'a StepOutcome) -> Self {
        let more = outcome.more.as_deref();
        let (status, reason, more) = match &outcome.status {
            StepStatus::Done => ("done", None, None),
            StepStatus::Failed(why) => ("failed", Some(why.as_str()), more),
            StepStatus::Skipped(why) => ("skipped", Some(why.as_str()), None),
        };
        Self {
            summary: &outcome.summary,
            status,
            reason,
            more,
        }
    }
}

/// A change of who may call what, as reported to programs.
#[derive(Debug, Serialize)]
struct PermissionEntry<'a> {
    #[serde(flatten)]
    change: &'a PermissionChange,
    /// False if a step for one of the machines at its ends was not done, or a test of its channel failed.
    in_force: bool,
}

/// A run that has ended.
pub(super) struct Ended<'a> {
    pub(super) report: &'a RunReport,
    pub(super) permissions: &'a [PermissionChange],
    pub(super) notes: &'a [String],
    /// Number of requests to Incus that may have changed something.
    pub(super) writes: u64,
}

impl Ended<'_> {
    fn permissions(&self) -> impl Iterator<Item = PermissionEntry<'_>> {
        let report = self.report;
        self.permissions.iter().map(|change| PermissionEntry {
            change,
            in_force: !change.ends.iter().any(|end| report.has_failed(end))
                && !report.has_failed_test(&change.ends),
        })
    }
}

/// Prints the result of a run, or `nothing` if it had no steps; returns the exit code.
pub(super) fn print(ended: &Ended<'_>, nothing: &str, output: &Output) -> anyhow::Result<Exit> {
    let report = ended.report;
    let outcomes = &report.outcomes;
    let number = |is: fn(&StepOutcome) -> bool| outcomes.iter().filter(|one| is(one)).count();
    let done = outcomes.iter().filter(|one| one.is_done());
    let changed: usize = done.map(|one| changes(&one.summary)).sum();
    let in_force = ended.permissions().filter(|one| one.in_force).count();
    let count = count_text(changed + in_force);
    let failed = number(|one| matches!(one.status, StepStatus::Failed(_)));
    let skipped = number(|one| matches!(one.status, StepStatus::Skipped(_)));
    let entries: Vec<ActionEntry<'_>> = outcomes.iter().map(ActionEntry::of).collect();
    let answer = json!({
        "changed": changed,
        "failed": failed,
        "skipped": skipped,
        "writes": ended.writes,
        "permissions": ended.permissions().collect::<Vec<_>>(),
        "actions": entries,
        "notes": ended.notes,
    });
    let answered = output.answer_as(&answer, || match outcomes.as_slice() {
        _ if output.quiet => String::new(),
        [] => format!("{nothing}\n"),
        _ if report.stopped && skipped > 0 => format!("stopped after {count}\n"),
        _ => format!("done: {count}\n"),
    });
    let all = outcomes.len();
    if report.stopped && skipped > 0 {
        // Writing the answer fails if the terminal is closed; the failures are printed anyway.
        if failed > 0 {
            print_failures(ended, failed, 0, output);
        } else {
            print_unsettled(ended, output);
        }
        let message = format!("stopped: {skipped} of {all} steps were not started");
        output.failure(&message, Some(RESUMES));
        return Ok(Exit::Interrupted);
    }
    answered?;
    if failed + skipped == 0 {
        return Ok(Exit::Done);
    }
    print_failures(ended, failed, skipped, output);
    output.stderr("  fix this, then run the command again: it resumes where it stopped");
    Ok(Exit::Failed)
}

/// Returns the number of an action's lines that are changes; the others, about channels, begin with `=`.
fn changes(summary: &ActionSummary) -> usize {
    let lines = summary.lines.iter();
    lines.filter(|line| !line.starts_with('=')).count()
}

fn count_text(count: usize) -> String {
    match count {
        1 => "1 change".to_owned(),
        count => format!("{count} changes"),
    }
}

fn print_failures(ended: &Ended<'_>, failed: usize, skipped: usize, output: &Output) {
    let report = ended.report;
    let all = report.outcomes.len();
    let skipped = match skipped {
        0 => String::new(),
        some => format!(", and {some} that depend on them were not started"),
    };
    output.failure(&format!("{failed} of {all} steps failed{skipped}"), None);
    for outcome in &report.outcomes {
        if let StepStatus::Failed(why) = &outcome.status {
            output.stderr(&format!("  {}: {why}", outcome.summary.title()));
            if let Some(more) = &outcome.more {
                output.stderr(&format!("    see more: `{more}`"));
            }
        }
    }
    print_unsettled(ended, output);
}

fn print_unsettled(ended: &Ended<'_>, output: &Output) {
    for one in ended.permissions().filter(|one| !one.in_force) {
        output.stderr(&format!("  may not be in effect yet: {}", one.change.line));
    }
}

/// Shows the changes of who may call what, before the steps that bring them about.
pub(super) fn print_permissions(permissions: &[PermissionChange], output: &Output) {
    for change in permissions {
        output.say(&paint_line(&change.line));
    }
}

/// Prints a plan that is not carried out, or `nothing` if it has no actions.
pub(super) fn print_plan(plan: &Plan, nothing: &str, output: &Output) -> anyhow::Result<()> {
    let actions: Vec<ActionSummary> = plan.actions().map(Action::shown).collect();
    if !output.is_json() {
        output.notes(&plan.notes);
    }
    let answer =
        json!({ "permissions": plan.permissions, "actions": actions, "notes": plan.notes });
    let permissions = plan.permissions.iter().map(|change| &change.line);
    let lines = permissions.chain(actions.iter().flat_map(|action| &action.lines));
    let lines: Vec<String> = lines.map(|line| paint_line(line) + "\n").collect();
    output.answer_as(&answer, || match lines.as_slice() {
        [] => format!("{nothing}\n"),
        lines => lines.concat(),
    })?;
    if !lines.is_empty() && !output.is_json() {
        let changes: usize = actions.iter().map(changes).sum();
        let changes = changes + plan.permissions.len();
        output.say(&format!("{}; nothing was changed", count_text(changes)));
    }
    Ok(())
}
