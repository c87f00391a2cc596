//! How a run ended: every step with its outcome, and for what failed the command that shows more.

use serde::Serialize;

use super::super::output::Output;
use crate::apply::outcome::{Outcome, Report, Status};
use crate::error::Exit;
use crate::plan::{Action, Plan, Shown};

/// What to do about steps that were not done.
pub(super) const AGAIN: &str = "run the command again: it goes on where it was";

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

fn count(report: &Report, is: impl Fn(&Status) -> bool) -> usize {
    report.outcomes.iter().filter(|one| is(&one.status)).count()
}

/// Prints the end of a run and says how it ended.
///
/// `nothing` is said where there was no step.
pub(in crate::command) fn print(
    report: &Report,
    nothing: &str,
    notes: &[String],
    writes: u64,
    output: &Output,
) -> anyhow::Result<Exit> {
    let changed = report.outcomes.iter().filter(|one| one.is_change()).count();
    let failed = count(report, |status| matches!(status, Status::Failed(_)));
    let skipped = count(report, |status| matches!(status, Status::Skipped(_)));
    let answered = if output.is_json() {
        output.json(&Answer {
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
    output.stderr("  run the command again when that is mended: it goes on where it was");
    Ok(Exit::Failed)
}

fn print_failures(report: &Report, failed: usize, skipped: usize, output: &Output) {
    let all = report.outcomes.len();
    let skipped = match skipped {
        0 => String::new(),
        some => format!(", and {some} that need them were not begun"),
    };
    output.failure(&format!("{failed} of {all} steps failed{skipped}"), None);
    for outcome in &report.outcomes {
        if let Status::Failed(why) = &outcome.status {
            output.stderr(&format!("  {}: {why}", outcome.title()));
            if let Some(more) = &outcome.more {
                output.stderr(&format!("    see more: `{more}`"));
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
