//! Carries out the actions that [`crate::plan`] decides on, and records how each one ended.

mod channel_test;
mod executor;
pub(crate) mod outcome;
pub(crate) mod provision;

use std::slice::from_ref;

use crate::edge::Edge;
use crate::incus::{Object, State};
use crate::infra::Infra;
use crate::plan::{
    Action, Deletions, DesiredState, DomainPlan, MachinePlan, Plan, needs_program, plan,
    remote_images,
};
use crate::session::Session;
use crate::survey::audit_checkpoint::forget_deleted;
use crate::survey::host::images;
use crate::survey::survey;
use executor::{carry_out, in_parallel};
use outcome::{RunReport, StepOutcome};

/// Reason for keeping a volume.
const UNDELETED_MACHINE: &str = "a machine of its domain could not be deleted";
/// Reason for keeping a domain.
const UNDELETED_PART: &str = "a part of it could not be deleted";

/// Observes a run.
pub(crate) trait RunObserver {
    /// The displayed form of a running step.
    type Step;

    /// Called when a step begins.
    fn started(&self, action: &Action) -> Self::Step;

    /// Called when a step ends, whatever its outcome.
    fn finished(&self, step: Self::Step);

    /// Called with the outcome of an action.
    fn record(&self, outcome: StepOutcome) -> StepOutcome;
}

/// Surveys everything and plans the necessary changes; `is_shown` is true for a plan that is not carried out.
pub(crate) async fn survey_and_plan(
    session: &Session,
    infra: &Infra,
    edges: &[Edge],
    adopt: &[String],
    is_shown: bool,
) -> anyhow::Result<(Plan, State)> {
    let (state, mut facts) = survey(session, infra, edges).await?;
    facts.images = images(remote_images(infra, &state)).await;
    let program = if needs_program(infra, edges, &state) {
        session.program()?.digest.as_str()
    } else {
        ""
    };
    let wanted = DesiredState {
        infra,
        edges,
        adopt,
        program,
        is_shown,
    };
    let mut plan = plan(wanted, &state, &facts)?;
    plan.notes.extend(session.untested.clone());
    Ok((plan, state))
}

/// Carries out the plan, stage by stage: a failure blocks only what depends on it.
pub(crate) async fn execute(
    session: &Session,
    plan: &Plan,
    observer: &impl RunObserver,
) -> RunReport {
    let mut report = RunReport::default();
    report.add(in_parallel(session, plan.revoked().collect(), observer).await);
    report.add(carry_out(session, &plan.host, observer).await);
    let bases = plan.domains.iter().map(|domain| domain.base.as_slice());
    let bases = in_parallel(session, bases.collect(), observer).await;
    let mut ready = Vec::new();
    for (domain, outcomes) in plan.domains.iter().zip(bases) {
        if outcomes.iter().all(StepOutcome::is_done) {
            ready.push(domain);
        } else {
            let actions = domain.machines.iter();
            let actions =
                actions.flat_map(|one| one.make.iter().chain(&one.install).chain(&one.connect));
            let why = format!("the domain {} could not be set up", domain.name);
            report.skip(actions, session.interrupt.or(&why), observer);
        }
        report.add(vec![outcomes]);
    }
    prepare_machines(session, &ready, &mut report, observer).await;
    report.add(channel_test::carry_out(session, &plan.verifications, &report, observer).await);
    report.add(carry_out(session, &plan.swept, observer).await);
    let upkeep = plan.upkeep.iter().map(from_ref);
    report.add(in_parallel(session, upkeep.collect(), observer).await);
    report
}

/// Creates, sets up and connects the machines in these domains; a machine that fails skips its remaining stages.
async fn prepare_machines(
    session: &Session,
    domains: &[&DomainPlan],
    report: &mut RunReport,
    observer: &impl RunObserver,
) {
    /// Each stage finishes for all machines before the next one begins.
    const STAGES: [fn(&MachinePlan) -> &[Action]; 3] = [
        |machine| &machine.make,
        // The program and the policy come before the devices.
        |machine| machine.install.as_slice(),
        |machine| &machine.connect,
    ];
    let mut ready: Vec<&MachinePlan> = domains.iter().flat_map(|one| &one.machines).collect();
    for (number, stage) in (1..).zip(STAGES) {
        let chains = ready.iter().map(|machine| stage(machine)).collect();
        let ended = in_parallel(session, chains, observer).await;
        let machines = std::mem::take(&mut ready);
        for (machine, outcomes) in machines.into_iter().zip(ended) {
            if outcomes.iter().all(StepOutcome::is_done) {
                ready.push(machine);
            } else {
                let rest = STAGES.iter().skip(number).flat_map(|stage| stage(machine));
                let why = format!("the machine {} is not ready", machine.name);
                report.skip(rest, session.interrupt.or(&why), observer);
            }
            report.add(vec![outcomes]);
        }
    }
}

/// Deletes the machines in parallel, then everything they used. A machine or a volume that could not be deleted keeps its
/// domain, and no other one.
pub(crate) async fn destroy(
    session: &Session,
    deletions: &Deletions,
    observer: &impl RunObserver,
) -> RunReport {
    let mut report = RunReport::default();
    let machines = deletions.machines.iter().map(from_ref).collect();
    let ended = in_parallel(session, machines, observer).await;
    let deleted = deletions.machines.iter().zip(&ended);
    let deleted = deleted.filter(|(_, outcomes)| outcomes.iter().all(StepOutcome::is_done));
    let deleted = deleted.filter_map(|(action, _)| action.deleted());
    forget_deleted(&deleted.collect::<Vec<&Object>>());
    report.add(ended);
    let project = |action: &Action| match action {
        Action::Delete { object, .. } => object.project().to_owned(),
        _ => String::new(),
    };
    let (volumes, kept): (Vec<&Action>, Vec<&Action>) = deletions
        .volumes
        .iter()
        .partition(|volume| !report.has_failed_in(&project(volume)));
    let why = |what: &str| session.interrupt.or(what).to_owned();
    report.skip(kept.into_iter(), &why(UNDELETED_MACHINE), observer);
    let volumes = volumes.into_iter().map(from_ref).collect();
    report.add(in_parallel(session, volumes, observer).await);
    for (domain, actions) in &deletions.domains {
        if report.has_failed_in(domain) {
            report.skip(actions.iter(), &why(UNDELETED_PART), observer);
        } else {
            report.add(carry_out(session, actions, observer).await);
        }
    }
    let ends = report.outcomes.iter().all(StepOutcome::is_done);
    if ends {
        report.add(carry_out(session, deletions.rotation.as_slice(), observer).await);
    } else {
        report.skip(deletions.rotation.iter(), &why(UNDELETED_PART), observer);
    }
    report
}
