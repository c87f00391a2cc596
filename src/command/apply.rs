//! `anklume apply`: makes Incus match `infra.yml`, and says what it does.
//!
//! [`crate::plan`] decides which actions there are; this command shows them and has them carried out.

pub(super) mod progress;
mod report;

pub(super) use report::print;

use anyhow::Context as _;

use super::open_infra;
use super::output::Output;
use crate::apply::outcome::RunReport;
use crate::apply::{execute, look};
use crate::cli::{ApplyArgs, Format};
use crate::edge::edges;
use crate::error::{Exit, Failure};
use crate::plan::Plan;
use crate::session::{Session, block_on, lock};
use crate::survey::{audit_checkpoint, providers};
use progress::Progress;

/// Runs `anklume apply`.
pub(crate) fn run(args: &ApplyArgs, output: &Output) -> anyhow::Result<Exit> {
    let infra = open_infra(&args.infra, output)?.infra;
    let edges = edges(&infra)?;
    block_on(async {
        let session = open_session(output).await?;
        if args.dry_run {
            // It changes nothing, and so waits for nobody.
            let before = lock::is_held();
            let (plan, _) = look(&session, &infra, &edges, &args.adopt).await?;
            if before || lock::is_held() {
                output.say(
                    "note: another anklume is changing this Incus: the plan shows only its current state",
                );
            }
            return show(&plan, args.exit_code, output);
        }
        let session = session.locked(|line| output.say(line)).await?;
        let (mut plan, state) = look(&session, &infra, &edges, &args.adopt).await?;
        let providers = providers(&edges, &state);
        let kept = audit_checkpoint::keep_all(&session, &infra, &providers, &state.instances);
        plan.notes.extend(kept.await);
        session.close_roots().await;
        for note in &plan.notes {
            output.say(&format!("note: {note}"));
        }
        let progress = Progress::new(output, plan.actions().count());
        let steps = execute(&session, &plan, &progress);
        let report = to_the_end(&session, &progress, steps).await?;
        print(&report, NOTHING, &plan.notes, session.writes(), output)
    })
}

/// The way to Incus for a run.
pub(super) async fn open_session(output: &Output) -> anyhow::Result<Session> {
    let session = Session::new().await?;
    if output.verbose() {
        output.say(&session.about);
    }
    Ok(session)
}

/// Message if nothing has to change.
const NOTHING: &str = "nothing to do: Incus is as declared";

/// Carries steps out to the end; to that of the steps in hand, where a signal asks to stop.
///
/// # Errors
///
/// A second signal did not wait for them: what has begun on Incus goes on there.
pub(super) async fn to_the_end(
    session: &Session,
    progress: &Progress,
    steps: impl Future<Output = RunReport>,
) -> anyhow::Result<RunReport> {
    let tell = || progress.line("stopping when the steps in hand have ended; asked again, at once");
    let report = session.interrupt.run(steps, tell).await;
    progress.end();
    let Some(report) = report.context("cannot watch for signals")? else {
        let failure = Failure::new(Exit::Interrupted, "stopped in the middle");
        return Err(failure.help(report::AGAIN).into());
    };
    Ok(if session.interrupt.is_asked() {
        report.stop()
    } else {
        report
    })
}

fn show(plan: &Plan, exit_code: bool, output: &Output) -> anyhow::Result<Exit> {
    report::show(plan, output)?;
    Ok(if exit_code && !plan.is_empty() {
        Exit::Differs
    } else {
        Exit::Done
    })
}

impl Output {
    /// Returns whether the answer is for programs.
    pub(super) fn is_json(&self) -> bool {
        self.format() == Format::Json
    }
}
