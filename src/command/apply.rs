//! `anklume apply`: makes Incus match `infra.yml`, and says what it does.
//!
//! What there is to do is decided in [`crate::plan`]; here it is looked for, shown, and carried out.

mod ask;
mod carry;
mod channels;
mod context;
mod files;
mod heads;
mod host;
mod host_work;
mod hung;
mod inside;
mod kept;
mod lock;
mod logs;
mod nested;
mod program;
mod progress;
mod proof;
mod provision;
mod remote;
mod report;
mod schedule;
mod shares;
mod stop;
mod wire;

pub(super) use ask::{Unheard, ask};
pub(super) use carry::{carry_out, each, in_parallel};
pub(super) use context::{Context, block_on};
pub(super) use files::FilesError;
pub(super) use heads::{Log, keep};
pub(super) use inside::runs;
pub(super) use logs::{LIMIT as LOG_LIMIT, path as log_path, rotate_all};
pub(super) use progress::Progress;
pub(super) use report::{Outcome, Report};
pub(super) use schedule::{has_daemon, is_scheduled};

use anyhow::Context as _;

use crate::cli::{ApplyArgs, Format};
use crate::command::open_infra;
use crate::edge::{Edge, edges};
use crate::error::{Exit, Failure};
use crate::incus::state::Instance;
use crate::incus::{Object, State};
use crate::infra::Infra;
use crate::plan::{
    Action, DomainPlan, Facts, MachinePlan, Plan, Wanted, needs_program, owner, plan, remote_images,
};

use super::output::Output;
use kept::Shelf;

/// Runs `anklume apply`.
pub(crate) fn run(args: &ApplyArgs, output: &Output) -> anyhow::Result<Exit> {
    let infra = open_infra(&args.infra, output)?.infra;
    let edges = edges(&infra)?;
    block_on(async {
        let context = Context::new(output).await?;
        if args.dry_run {
            // It changes nothing, and so waits for nobody.
            let before = lock::is_held();
            let (plan, _) = look(&context, &infra, &edges, &args.adopt).await?;
            if before || lock::is_held() {
                output.say(
                    "note: another anklume is changing this Incus: the plan shows only its current state",
                );
            }
            return show(&plan, args.exit_code, output);
        }
        let context = context.locked(output).await?;
        let (mut plan, state) = look(&context, &infra, &edges, &args.adopt).await?;
        plan.notes
            .extend(logs_of_calls(&context, &infra, &edges, &state).await);
        context.close_roots().await;
        for note in &plan.notes {
            output.say(&format!("note: {note}"));
        }
        let progress = Progress::new(output, plan.actions().count());
        let steps = execute(&context, &plan, &progress);
        let report = to_the_end(&context, &progress, steps).await?;
        report.print(NOTHING, &plan.notes, context.writes(), output)
    })
}

/// What was asked for is there.
const NOTHING: &str = "nothing to do: Incus is as declared";

/// Carries steps out to the end; to that of the steps in hand, where a signal asks to stop.
///
/// # Errors
///
/// A second signal did not wait for them: what has begun on Incus goes on there.
pub(super) async fn to_the_end(
    context: &Context,
    progress: &Progress,
    steps: impl Future<Output = Report>,
) -> anyhow::Result<Report> {
    let tell = || progress.line("stopping when the steps in hand have ended; asked again, at once");
    let report = context.stop().heeded(steps, tell).await;
    progress.end();
    let Some(report) = report.context("cannot watch for signals")? else {
        let failure = Failure::new(Exit::Interrupted, "stopped in the middle");
        return Err(failure.help(report::AGAIN).into());
    };
    Ok(if context.stop().is_asked() {
        report.stopped()
    } else {
        report
    })
}

/// Reads what there is, on Incus, on the host and in the machines.
pub(super) async fn survey(
    context: &Context,
    infra: &Infra,
    edges: &[Edge],
) -> anyhow::Result<(State, Facts)> {
    let state = context.state(&infra.project).await?;
    let mut facts = host::facts(infra, edges).await;
    let found = inside::look(context, infra, edges, &state).await;
    (facts.inside, facts.broken, facts.full) = (found.inside, found.broken, found.full);
    Ok((state, facts))
}

/// Reads what there is and compares.
async fn look(
    context: &Context,
    infra: &Infra,
    edges: &[Edge],
    adopt: &[String],
) -> anyhow::Result<(Plan, State)> {
    let (state, mut facts) = survey(context, infra, edges).await?;
    facts.images = remote::find(remote_images(infra, &state)).await;
    let program = if needs_program(infra, edges, &state) {
        context.program()?.digest.as_str()
    } else {
        ""
    };
    let wanted = Wanted {
        infra,
        edges,
        adopt,
        program,
    };
    let plan = plan(wanted, &state, &facts)?;
    Ok((plan, state))
}

/// Keeps the last lines of the providers' logs of calls, before anything is changed; what is to be said of them.
async fn logs_of_calls(
    context: &Context,
    infra: &Infra,
    edges: &[Edge],
    state: &State,
) -> Vec<String> {
    let shelf = Shelf::of_host();
    shelf.forget(infra, &state.instances);
    shelf.remember_rebuilt(&state.instances);
    let mut notes = Vec::new();
    for provider in providers(edges, state) {
        match keep(context, provider).await {
            Log::Sound => {}
            Log::Altered { detail, .. } => notes.push(detail),
            Log::Lost(log) => notes.push(log.put_aside()),
            Log::Unknown(why) => notes.push(why),
        }
    }
    notes
}

/// Forgets what was kept of the logs of machines that were deleted.
pub(super) fn forget_deleted(deleted: &[&Object]) {
    Shelf::of_host().forget_deleted(deleted);
}

/// The machines on Incus that are providers of these edges, each once.
pub(super) fn providers<'s>(edges: &[Edge], state: &'s State) -> Vec<&'s Instance> {
    let is_provider = |one: &&Instance| {
        let mut ends = edges.iter().map(|edge| &edge.provider);
        ends.any(|end| one.project == end.domain.as_str() && one.name == end.machine.as_str())
    };
    state.instances.iter().filter(is_provider).collect()
}

/// Whether a project of this state is that infrastructure's.
fn is_ours(state: &State, infra: &str, project: &str) -> bool {
    state
        .projects
        .iter()
        .any(|one| one.name == project && owner(&one.config, infra) == crate::plan::Owner::Ours)
}

fn show(plan: &Plan, exit_code: bool, output: &Output) -> anyhow::Result<Exit> {
    report::show(plan, output)?;
    Ok(if exit_code && !plan.is_empty() {
        Exit::Differs
    } else {
        Exit::Done
    })
}

/// Carries the plan out, stage by stage: what fails holds up only what needs it.
async fn execute(context: &Context, plan: &Plan, progress: &Progress) -> Report {
    let mut report = Report::default();
    report.add(in_parallel(context, plan.revoked().collect(), progress).await);
    report.add(carry_out(context, &plan.host, progress).await);
    let bases = plan.domains.iter().map(|domain| domain.base.as_slice());
    let bases = in_parallel(context, bases.collect(), progress).await;
    let mut sound = Vec::new();
    for (domain, outcomes) in plan.domains.iter().zip(bases) {
        if outcomes.iter().all(Outcome::is_done) {
            sound.push(domain);
        } else {
            let actions = domain
                .machines
                .iter()
                .flat_map(|one| one.make.iter().chain(&one.install).chain(&one.connect));
            let why = format!("the domain {} could not be made ready", domain.name);
            report.skip(actions, context.stop().or(&why), progress);
        }
        report.add(vec![outcomes]);
    }
    machines(context, &sound, &mut report, progress).await;
    report.add(proof::carry_out(context, &plan.proofs, &report, progress).await);
    report.add(carry_out(context, &plan.swept, progress).await);
    let upkeep = plan.upkeep.iter().map(std::slice::from_ref);
    report.add(in_parallel(context, upkeep.collect(), progress).await);
    report
}

/// The machines of the sound domains: made, then filled, then connected; one that fails goes no further.
async fn machines(
    context: &Context,
    domains: &[&DomainPlan],
    report: &mut Report,
    progress: &Progress,
) {
    /// What is done to all machines before anything of the next is done to one.
    const STAGES: [fn(&MachinePlan) -> &[Action]; 3] = [
        |machine| &machine.make,
        // The program first, then the policy, then the devices.
        |machine| machine.install.as_slice(),
        |machine| &machine.connect,
    ];
    let mut ready: Vec<&MachinePlan> = domains.iter().flat_map(|one| &one.machines).collect();
    for (number, stage) in (1..).zip(STAGES) {
        let chains = ready.iter().map(|machine| stage(machine)).collect();
        let ended = in_parallel(context, chains, progress).await;
        let machines = std::mem::take(&mut ready);
        for (machine, outcomes) in machines.into_iter().zip(ended) {
            if outcomes.iter().all(Outcome::is_done) {
                ready.push(machine);
            } else {
                let rest = STAGES.iter().skip(number);
                let rest = rest.flat_map(|stage| stage(machine));
                let why = format!("the machine {} is not ready", machine.name);
                report.skip(rest, context.stop().or(&why), progress);
            }
            report.add(vec![outcomes]);
        }
    }
}

impl Output {
    /// Whether the answer is for programs.
    pub(super) fn is_json(&self) -> bool {
        self.format() == Format::Json
    }
}
