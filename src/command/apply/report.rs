//! Prints how a run ended: each action with its outcome, and for a failed one the command that shows more.

use serde::Serialize;

use super::super::output::Output;
use crate::apply::outcome::{RunReport, StepOutcome, StepStatus};
use crate::error::Exit;
use crate::plan::{Action, ActionSummary, Plan};

/// Advice for actions that were not done.
pub(super) const AGAIN: &str = "run the command again: it resumes where it stopped";

/// The answer as JSON.
#[derive(Debug, Serialize)]
struct ApplyAnswer<'a> {
    changed: usize,
    failed: usize,
    skipped: usize,
    /// Requests to Incus that may change something.
    writes: u64,
    actions: Vec<ActionEntry<'a>>,
    notes: &'a [String],
}

#[derive(Debug, Serialize)]
struct ActionEntry<'a> {
    #[serde(flatten)]
    shown: &'a ActionSummary,
    status: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    more: Option<&'a str>,
}

fn count(report: &RunReport, is: impl Fn(&StepStatus) -> bool) -> usize {
    report.outcomes.iter().filter(|one| is(&one.status)).count()
}

/// Prints the end of a run and says how it ended.
///
/// `nothing` is said where there was no step.
pub(in crate::command) fn print(
    report: &RunReport,
    nothing: &str,
    notes: &[String],
    writes: u64,
    output: &Output,
) -> anyhow::Result<Exit> {
    let changed = report.outcomes.iter().filter(|one| one.is_change()).count();
    let failed = count(report, |status| matches!(status, StepStatus::Failed(_)));
    let skipped = count(report, |status| matches!(status, StepStatus::Skipped(_)));
    let answered = if output.is_json() {
        output.json(&ApplyAnswer {
            changed,
            failed,
            skipped,
            writes,
            actions: report.outcomes.iter().map(entry).collect(),
            notes,
        })
    } else {
        let line = match (report.outcomes.is_empty(), changed) {
            (true, _) => format!("{nothing}\n"),
            (false, 1) => "done: 1 change\n".to_owned(),
            (false, _) => format!("done: {changed} changes\n"),
        };
        output.answer(line.as_bytes()).map_err(Into::into)
    };
    let all = report.outcomes.len();
    if report.stopped && skipped > 0 {
        // A terminal that was closed takes no answer, and what failed is said all the same.
        if failed > 0 {
            print_failures(report, failed, 0, output);
        }
        let message = format!("stopped: {skipped} of {all} steps were not begun");
        output.failure(&message, Some(AGAIN));
        return Ok(Exit::Interrupted);
    }
    answered?;
    if failed + skipped == 0 {
        return Ok(Exit::Done);
    }
    print_failures(report, failed, skipped, output);
    output.stderr("  fix this, then run the command again: it resumes where it stopped");
    Ok(Exit::Failed)
}

fn print_failures(report: &RunReport, failed: usize, skipped: usize, output: &Output) {
    let all = report.outcomes.len();
    let skipped = match skipped {
        0 => String::new(),
        some => format!(", and {some} that need them were not begun"),
    };
    output.failure(&format!("{failed} of {all} steps failed{skipped}"), None);
    for outcome in &report.outcomes {
        if let StepStatus::Failed(why) = &outcome.status {
            output.stderr(&format!("  {}: {why}", outcome.title()));
            if let Some(more) = &outcome.more {
                output.stderr(&format!("    see more: `{more}`"));
            }
        }
    }
}

fn entry(outcome: &StepOutcome) -> ActionEntry<'_> {
    let (status, reason) = match &outcome.status {
        StepStatus::Done => ("done", None),
        StepStatus::Failed(why) => ("failed", Some(why.as_str())),
        StepStatus::Skipped(why) => ("skipped", Some(why.as_str())),
    };
    ActionEntry {
        shown: &outcome.shown,
        status,
        reason,
        more: outcome.more.as_deref().filter(|_| status == "failed"),
    }
}

/// A plan as JSON.
#[derive(Debug, Serialize)]
struct PlanAnswer<'a> {
    actions: Vec<ActionSummary>,
    notes: &'a [String],
}

/// Prints a plan that is not carried out.
pub(super) fn show(plan: &Plan, output: &Output) -> anyhow::Result<()> {
    let actions: Vec<ActionSummary> = plan.actions().map(Action::shown).collect();
    if output.is_json() {
        return output.json(&PlanAnswer {
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
