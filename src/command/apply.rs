//! `anklume apply`: makes Incus match `infra.yml`, and says what it does.
//!
//! What there is to do is decided in [`crate::plan`]; here it is looked for, shown, and carried out.

mod carry;
mod context;
mod heads;
mod host;
mod host_work;
mod hung;
mod inside;
mod lock;
mod logs;
mod program;
mod progress;
mod proof;
mod provision;
mod remote;
mod report;
mod schedule;
mod shares;
mod wire;

pub(super) use carry::{carry_out, each, in_parallel};
pub(super) use context::{Context, runtime};
pub(super) use heads::{Log, forget_deleted, keep};
pub(super) use inside::runs;
pub(super) use logs::{LIMIT as LOG_LIMIT, path as log_path, rotate_all};
pub(super) use program::Program;
pub(super) use progress::Progress;
pub(super) use report::{Outcome, Report};
pub(super) use schedule::{has_daemon, is_scheduled};

use crate::cli::{ApplyArgs, Format};
use crate::command::open_infra;
use crate::edge::{Edge, edges};
use crate::error::{Exit, Failure};
use crate::incus::State;
use crate::incus::state::Instance;
use crate::infra::Infra;
use crate::plan::{Facts, Plan, Wanted, owner, plan, remote_images};

use super::output::Output;

/// Runs `anklume apply`.
pub(crate) fn run(args: &ApplyArgs, output: &Output) -> anyhow::Result<Exit> {
    let infra = open_infra(&args.infra, output)?.infra;
    let edges = edges(&infra)?;
    let runtime = runtime()?;
    runtime.block_on(async {
        // A dry run too: what another run is in the middle of is no state to plan from.
        let context = Context::new(output).await?.locked(output).await?;
        let context = context.with_program(Some(Program::of_this()?));
        let (mut plan, state) = look(&context, &infra, &edges, &args.adopt).await?;
        if args.dry_run {
            return show(&plan, args.exit_code, output);
        }
        plan.notes
            .extend(logs_of_calls(&context, &infra, &edges, &state).await);
        for note in &plan.notes {
            output.say(&format!("note: {note}"));
        }
        let progress = Progress::new(output, plan.actions().count());
        tokio::select! {
            report = execute(&context, &edges, &plan, &progress) => {
                progress.end();
                report.print(NOTHING, &plan.notes, context.writes(), output)
            }
            _ = tokio::signal::ctrl_c() => {
                progress.end();
                Err(interrupted())
            }
        }
    })
}

/// What was asked for is there.
const NOTHING: &str = "nothing to do: Incus is as declared";

/// Asked to stop in the middle: what has begun on Incus goes on there.
pub(super) fn interrupted() -> anyhow::Error {
    let failure = Failure::new(Exit::Interrupted, "stopped in the middle");
    let help = "run the command again: it goes on where it was";
    failure.help(help).into()
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
    (facts.inside, facts.broken) = (found.inside, found.broken);
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
    let wanted = Wanted {
        infra,
        edges,
        adopt,
        program: context
            .program()
            .map_or("", |program| program.digest.as_str()),
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
    heads::forget(infra, &state.instances);
    let mut notes = Vec::new();
    for provider in providers(edges, state) {
        match keep(context, provider).await {
            Log::Sound => {}
            Log::Altered { detail, .. } => notes.push(detail),
            Log::Unknown(why) => notes.push(why),
        }
    }
    notes
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
async fn execute(context: &Context, edges: &[Edge], plan: &Plan, progress: &Progress) -> Report {
    let mut report = Report::default();
    let each: Vec<_> = plan.revoked.iter().map(std::slice::from_ref).collect();
    report.add(in_parallel(context, each, progress).await);
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
            report.skip(actions, &why, progress);
        }
        report.add(vec![outcomes]);
    }
    machines(context, &sound, &mut report, progress).await;
    report.add(proof::of_new(edges, plan, &report, progress).await);
    report.add(carry_out(context, &plan.swept, progress).await);
    let upkeep = plan.upkeep.iter().map(std::slice::from_ref);
    report.add(in_parallel(context, upkeep.collect(), progress).await);
    report
}

async fn machines(
    context: &Context,
    domains: &[&crate::plan::DomainPlan],
    report: &mut Report,
    progress: &Progress,
) {
    let all: Vec<_> = domains.iter().flat_map(|domain| &domain.machines).collect();
    let made = in_parallel(
        context,
        all.iter().map(|one| one.make.as_slice()).collect(),
        progress,
    )
    .await;
    let mut ready = Vec::new();
    for (machine, outcomes) in all.into_iter().zip(made) {
        if outcomes.iter().all(Outcome::is_done) {
            ready.push(machine);
        } else {
            let why = format!("the machine {} is not ready", machine.name);
            let rest = machine.install.iter().chain(&machine.connect);
            report.skip(rest, &why, progress);
        }
        report.add(vec![outcomes]);
    }
    // The program first, then the policy, then the devices.
    let installs = ready.iter().map(|one| one.install.as_slice());
    let installed = in_parallel(context, installs.collect(), progress).await;
    let mut connect = Vec::new();
    for (machine, outcomes) in ready.into_iter().zip(installed) {
        if outcomes.iter().all(Outcome::is_done) {
            connect.push(machine.connect.as_slice());
        } else {
            let why = format!("the machine {} is not ready", machine.name);
            report.skip(machine.connect.iter(), &why, progress);
        }
        report.add(vec![outcomes]);
    }
    report.add(in_parallel(context, connect, progress).await);
}

impl Output {
    /// Whether the answer is for programs.
    pub(super) fn is_json(&self) -> bool {
        self.format() == Format::Json
    }
}
