//! `anklume apply`: makes Incus match `infra.yml`; `anklume destroy`: deletes what `apply` made, on request.
//!
//! [`crate::plan`] decides on the actions; these commands show them, and [`crate::apply`] carries them out.

mod report;

use std::io::{IsTerminal as _, Write as _};

use anyhow::Context as _;

use super::output::{Output, paint_line};
use super::{on_host_only, open_infra, or_closest};
use crate::apply::outcome::{RunReport, StepOutcome};
use crate::apply::{self, execute, survey_and_plan};
use crate::cli::{ApplyArgs, DestroyArgs};
use crate::edge::{Edge, End, edges};
use crate::error::{Exit, Failure};
use crate::host::log_timer::is_scheduled;
use crate::incus::{Object, State};
use crate::infra::Infra;
use crate::plan::{self, Action, Deletions, Selection};
use crate::session::{Session, block_on, lock};
use crate::survey::applied::Applied;
use crate::survey::{audit_checkpoint, definitions, providers};
use report::{Ended, Progress, RESUMES, print, print_permissions, print_plan};

/// Message from `apply` if there are no actions.
const NOTHING_TO_DO: &str = "nothing to do: Incus is as declared";
/// Message from `destroy` if there are no actions.
const NOTHING_TO_DELETE: &str = "nothing to delete: anklume created nothing in Incus for this file";
/// Input that confirms a deletion.
const YES: &str = "yes";

/// Runs `anklume apply`.
pub(crate) fn run(args: &ApplyArgs, output: &Output) -> anyhow::Result<Exit> {
    let infra = open_infra(&args.infra, output)?.infra;
    let edges = edges(&infra)?;
    block_on(async {
        let session = open_session(output).await?;
        if args.dry_run {
            // A dry run changes nothing, so it does not wait for the lock.
            let before = lock::other_holder();
            let (plan, _) = survey_and_plan(&session, &infra, &edges, &args.adopt, true).await?;
            if let Some(holder) = before.or_else(lock::other_holder) {
                output.say(&format!(
                    "note: another anklume{holder} is changing Incus; the plan shows only its current state"
                ));
            }
            print_plan(&plan, NOTHING_TO_DO, output)?;
            let differs = args.exit_code && !plan.is_empty();
            return Ok(if differs { Exit::Differs } else { Exit::Done });
        }
        let session = session.locked(|line| output.say(line)).await?;
        let (mut plan, state) =
            survey_and_plan(&session, &infra, &edges, &args.adopt, false).await?;
        let providers = providers(&edges, &state);
        let notes = audit_checkpoint::keep_all(&session, &infra, &providers, &state.instances);
        plan.notes.extend(notes.await);
        let all: Vec<_> = edges.iter().collect();
        plan.notes
            .extend(definitions::notes(&session, &infra, &all, &state).await);
        session.close_roots().await;
        output.notes(&plan.notes);
        print_permissions(&plan.permissions, output);
        let progress = Progress::new(output, plan.actions().count());
        let steps = execute(&session, &plan, &progress);
        let report = run_steps(&session, &progress, steps).await?;
        remember(&infra, &edges, &session.program()?.digest, &report);
        let ended = Ended {
            report: &report,
            permissions: &plan.permissions,
            notes: &plan.notes,
            writes: session.writes(),
        };
        print(&ended, NOTHING_TO_DO, output)
    })
}

/// Stores what is in force now, so that `doctor` knows what was not applied yet.
fn remember(infra: &Infra, edges: &[Edge], program: &str, report: &RunReport) {
    let has_failed = |end: &End| report.has_failed(&end.into());
    let is_whole = report.outcomes.iter().all(StepOutcome::is_done);
    let declared = Applied::declared(infra, edges, program);
    // Without it, `doctor` calls such a channel broken instead.
    let _ = declared.store(&infra.project, edges, has_failed, is_whole);
}

/// Runs `anklume destroy`.
pub(crate) fn destroy(args: &DestroyArgs, output: &Output) -> anyhow::Result<Exit> {
    let infra = open_infra(&args.infra, output)?.infra;
    let selection = match (&args.domain, args.only.as_ref().or(args.machine.as_ref())) {
        (domain, Some(machine)) => Selection::Machine(machine, domain.as_deref()),
        (Some(domain), None) => Selection::Domain(domain),
        (None, None) => Selection::All,
    };
    block_on(async {
        let session = open_session(output)
            .await?
            .locked(|line| output.say(line))
            .await?;
        let state = session.state(&infra.project).await?;
        let deletions = plan::destroy(&infra.project, &state, selection, is_scheduled());
        output.notes(&deletions.notes);
        refuse_several(selection, &deletions)?;
        if deletions.actions().next().is_none() {
            plan::check_renamed(&infra, &state)?;
            refuse_unknown(selection, &infra.project, &state)?;
            let ended = Ended {
                report: &RunReport::default(),
                permissions: &[],
                notes: &deletions.notes,
                writes: 0,
            };
            return print(&ended, NOTHING_TO_DELETE, output);
        }
        // With `--yes`, each line is shown once its action is done; otherwise, all are shown before confirmation.
        if !args.yes {
            print_permissions(&deletions.permissions, output);
            for line in deletions.actions().flat_map(Action::lines) {
                output.stderr(&paint_line(&line));
            }
        }
        refuse_protected(&deletions, args.force)?;
        if args.yes {
            print_permissions(&deletions.permissions, output);
        } else {
            confirm()?;
        }
        let progress = Progress::new(output, deletions.actions().count());
        let steps = apply::destroy(&session, &deletions, &progress);
        let report = run_steps(&session, &progress, steps).await?;
        // What is missing from now on was deleted on request.
        let deleted = deletions.machines.iter().filter_map(Action::deleted);
        let deleted: Vec<(&str, &str)> = deleted.map(|one| (one.project(), one.name())).collect();
        let is_deleted = |end: &End| deleted.contains(&(end.domain.as_str(), end.machine.as_str()));
        let _ = Applied::forget(
            &infra.project,
            &edges(&infra).unwrap_or_default(),
            is_deleted,
        );
        let ended = Ended {
            report: &report,
            permissions: &deletions.permissions,
            notes: &deletions.notes,
            writes: session.writes(),
        };
        print(&ended, NOTHING_TO_DELETE, output)
    })
}

/// Opens the session of a run.
pub(super) async fn open_session(output: &Output) -> anyhow::Result<Session> {
    let session = Session::new().await.map_err(|why| match on_host_only() {
        Some(failure) => failure.into(),
        None => why,
    })?;
    if output.verbose {
        output.say(&session.about);
    }
    Ok(session)
}

/// Carries out all steps; after a signal, only waits for those that are running.
///
/// # Errors
///
/// Fails on a second signal; operations that have already begun continue in Incus.
async fn run_steps(
    session: &Session,
    progress: &Progress,
    steps: impl Future<Output = RunReport>,
) -> anyhow::Result<RunReport> {
    let tell = || {
        progress.line(
            "stopping once the running steps have ended; interrupt again to stop immediately",
        );
    };
    let report = session.interrupt.run(steps, tell).await;
    progress.end();
    let Some(mut report) = report.context("cannot watch for signals")? else {
        let failure = Failure::new(Exit::Interrupted, "stopped before the running steps ended");
        return Err(failure.help(RESUMES).into());
    };
    report.stopped = session.interrupt.is_asked();
    Ok(report)
}

/// Fails if a machine was named without its domain, and several domains have one of that name.
fn refuse_several(selection: Selection<'_>, deletions: &Deletions) -> Result<(), Failure> {
    let (Selection::Machine(name, None), [_, _, ..]) = (selection, &*deletions.machines) else {
        return Ok(());
    };
    let projects = deletions.machines.iter().filter_map(|action| match action {
        Action::Delete {
            object: Object::Machine { project, .. },
            ..
        } => Some(project.as_str()),
        _ => None,
    });
    let projects: Vec<&str> = projects.collect();
    let (name, all) = (name.escape_debug(), projects.join(", "));
    let message = format!(
        "`{name}` is a machine in several domains: {}",
        all.escape_debug()
    );
    Err(Failure::new(Exit::Failed, message).help("name its domain too: `--domain DOMAIN`"))
}

/// Fails if the user named a domain or machine, because no part of it exists.
fn refuse_unknown(selection: Selection<'_>, project: &str, state: &State) -> Result<(), Failure> {
    let instances = state.instances.iter();
    let (kind, name, known): (_, _, Vec<&str>) = match selection {
        Selection::All => return Ok(()),
        Selection::Domain(name) => ("domain", name, instances.map(|one| &*one.project).collect()),
        Selection::Machine(name, _) => ("machine", name, instances.map(|one| &*one.name).collect()),
    };
    let message = format!(
        "anklume created no {kind} `{}` in Incus for `{}`",
        name.escape_debug(),
        project.escape_debug()
    );
    let otherwise = "`incus list --all-projects` shows all machines and their projects";
    Err(Failure::new(Exit::Failed, message).help(or_closest(name, known, otherwise)))
}

fn refuse_protected(deletions: &Deletions, force: bool) -> Result<(), Failure> {
    let protected = deletions.machines.iter().filter_map(|action| match action {
        Action::Delete {
            object,
            protected: true,
            ..
        } => Some(object.name()),
        _ => None,
    });
    let protected: Vec<&str> = protected.collect();
    if force || protected.is_empty() {
        return Ok(());
    }
    let message = format!(
        "not ephemeral, so not deleted: {}",
        protected.join(", ").escape_debug()
    );
    let help = "`--force` deletes them anyway; nothing was deleted";
    Err(Failure::new(Exit::Failed, message).help(help))
}

/// Asks for confirmation at the terminal.
fn confirm() -> anyhow::Result<()> {
    let stdin = std::io::stdin();
    if !stdin.is_terminal() {
        let failure = Failure::new(Exit::Usage, "no terminal to ask for confirmation");
        return Err(failure.help("`--yes` deletes without asking").into());
    }
    let mut stderr = std::io::stderr().lock();
    write!(stderr, "delete all of this? type `{YES}`: ")?;
    stderr.flush()?;
    let mut answer = String::new();
    stdin.read_line(&mut answer)?;
    if answer.trim() == YES {
        return Ok(());
    }
    Err(Failure::new(Exit::Failed, "nothing was deleted").into())
}
