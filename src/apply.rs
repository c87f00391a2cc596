//! Makes Incus match a plan, action by action, and records how each one ended.
//!
//! [`crate::plan`] decides which actions there are.

mod channel_test;
mod destroy;
mod executor;
pub(crate) mod outcome;
mod provision;

pub(crate) use destroy::destroy;

use crate::edge::Edge;
use crate::incus::State;
use crate::infra::Infra;
use crate::plan::{
    Action, DesiredState, DomainPlan, MachinePlan, Plan, needs_program, plan, remote_images,
};
use crate::session::Session;
use crate::survey::{images, survey};
use executor::{carry_out, in_parallel};
use outcome::{RunReport, StepOutcome};

/// Watches a run.
pub(crate) trait RunObserver {
    /// A step in hand, as it is shown.
    type Step;

    /// A step begins.
    fn began(&self, action: &Action) -> Self::Step;

    /// A step is over, well or not.
    fn left(&self, step: Self::Step);

    /// The outcome of an action.
    fn ended(&self, outcome: StepOutcome) -> StepOutcome;
}

/// Reads what there is and compares.
pub(crate) async fn look(
    session: &Session,
    infra: &Infra,
    edges: &[Edge],
    adopt: &[String],
) -> anyhow::Result<(Plan, State)> {
    let (state, mut facts) = survey(session, infra, edges).await?;
    facts.images = images::find(remote_images(infra, &state)).await;
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
    };
    let plan = plan(wanted, &state, &facts)?;
    Ok((plan, state))
}

/// Carries the plan out, stage by stage: what fails holds up only what needs it.
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
    let mut sound = Vec::new();
    for (domain, outcomes) in plan.domains.iter().zip(bases) {
        if outcomes.iter().all(StepOutcome::is_done) {
            sound.push(domain);
        } else {
            let actions = domain
                .machines
                .iter()
                .flat_map(|one| one.make.iter().chain(&one.install).chain(&one.connect));
            let why = format!("the domain {} could not be made ready", domain.name);
            report.skip(actions, session.interrupt.or(&why), observer);
        }
        report.add(vec![outcomes]);
    }
    machines(session, &sound, &mut report, observer).await;
    report.add(channel_test::carry_out(session, &plan.verifications, &report, observer).await);
    report.add(carry_out(session, &plan.swept, observer).await);
    let upkeep = plan.upkeep.iter().map(std::slice::from_ref);
    report.add(in_parallel(session, upkeep.collect(), observer).await);
    report
}

/// The machines of the sound domains: made, then filled, then connected; one that fails goes no further.
async fn machines(
    session: &Session,
    domains: &[&DomainPlan],
    report: &mut RunReport,
    observer: &impl RunObserver,
) {
    /// The stages: each is finished for all machines before the next one begins.
    const STAGES: [fn(&MachinePlan) -> &[Action]; 3] = [
        |machine| &machine.make,
        // The program first, then the policy, then the devices.
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
                let rest = STAGES.iter().skip(number);
                let rest = rest.flat_map(|stage| stage(machine));
                let why = format!("the machine {} is not ready", machine.name);
                report.skip(rest, session.interrupt.or(&why), observer);
            }
            report.add(vec![outcomes]);
        }
    }
}
