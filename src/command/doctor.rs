//! `anklume doctor`: walks every channel and says the first thing on its way that is broken, and what mends it.
//!
//! Changes nothing but what the host knows of the providers' logs of calls. Devices, processes, sockets and logs are looked at from the host; what only a machine can say is asked
//! there, within bounds, and shown as the machine's word.

mod consumer;
mod examine;
mod inside;
mod report;
mod upkeep;

use std::collections::BTreeMap;

use super::apply::{Context, Log, ask, block_on, each, has_daemon, keep, providers, survey};
use super::open_infra;
use super::output::Output;
use crate::channel::shell_line;
use crate::cli::{DoctorArgs, InfraArgs};
use crate::edge::{Edge, edges};
use crate::error::{Exit, Failure};
use crate::infra::Infra;
use crate::name::closest;
use crate::plan::{Facts, Intruder, Rotation, intruders, unrotated};
use consumer::ListenFolder;
use examine::{Examiner, Health};

/// Runs `anklume doctor`.
pub(crate) fn run(args: &DoctorArgs, output: &Output) -> anyhow::Result<Exit> {
    let infra = open_infra(&args.infra, output)?.infra;
    let edges = edges(&infra)?;
    let chosen = chosen(&infra, &edges, &args.machines)?;
    if chosen.is_empty() {
        return report::nothing(&args.machines, output);
    }
    let (healths, notes) = block_on(examine(args, &infra, &edges, &chosen, output))?;
    report::print(&healths, &notes, output)
}

/// The edges that were asked for.
fn chosen<'e>(infra: &Infra, edges: &'e [Edge], names: &[String]) -> anyhow::Result<Vec<&'e Edge>> {
    for name in names {
        if infra.machine(name).is_none() {
            let message = format!("`{}` is no machine of this file", name.escape_debug());
            let machines = infra.machines().map(|(_, machine)| machine.name.as_str());
            let failure = Failure::new(Exit::Usage, message);
            return Err(match closest(name, machines) {
                Some(near) => failure.help(format!("did you mean `{near}`?")),
                None => failure.help("`anklume policy list` shows who serves whom"),
            }
            .into());
        }
    }
    let is_chosen = |edge: &&Edge| {
        let ends = [&edge.consumer, &edge.provider];
        let is_end = |name: &String| ends.iter().any(|end| end.machine.as_str() == name);
        names.is_empty() || names.iter().any(is_end)
    };
    Ok(edges.iter().filter(is_chosen).collect())
}

async fn examine<'e>(
    args: &DoctorArgs,
    infra: &Infra,
    edges: &[Edge],
    chosen: &[&'e Edge],
    output: &Output,
) -> anyhow::Result<(Vec<Health<'e>>, Vec<String>)> {
    let context = Context::new(output).await?;
    let program = context.program()?;
    let (state, facts) = survey(&context, infra, edges).await?;
    let mut calls = BTreeMap::new();
    let asked: Vec<Edge> = chosen.iter().copied().cloned().collect();
    for provider in providers(&asked, &state) {
        let place = (provider.project.clone(), provider.name.clone());
        calls.insert(place, keep(&context, provider).await);
    }
    let apply = apply_command(&args.infra);
    let examiner = Examiner {
        infra,
        edges,
        state: &state,
        facts: &facts,
        program: &program.digest,
        calls: &calls,
        apply: &apply,
    };
    let healths = each(chosen, |edge| walk(&context, &examiner, edge)).await;
    let mut notes = host_notes(&facts, &apply);
    notes.extend(examiner.servers(chosen));
    let others = intruders(&state.profiles);
    let others = others.iter().filter(|one| !one.is_on(edges));
    notes.extend(others.map(Intruder::what));
    notes.extend(calls.into_values().filter_map(|log| match log {
        Log::Lost(log) => Some(log.to_string()),
        Log::Unknown(why) => Some(why),
        Log::Sound | Log::Altered { .. } => None,
    }));
    Ok((healths, notes))
}

/// Walks one edge: what the host sees, then what the consumer sees, then what will break it.
async fn walk<'e>(context: &Context, examiner: &Examiner<'_>, edge: &'e Edge) -> Health<'e> {
    let listens = match examiner.there(&edge.consumer) {
        Some(consumer) => consumer::listen_folder(context, consumer).await,
        None => ListenFolder::Gone,
    };
    let seen = examiner.machines(edge, &listens);
    let mut health = Health {
        edge,
        broken: seen.or_else(|| examiner.way(edge, &listens)),
        took: None,
        notes: examiner.notes(edge),
    };
    if health.broken.is_none() {
        match ask(context, edge).await {
            Ok(heard) => {
                health.broken = examiner.heard(edge, &heard.services);
                health.took = Some(heard.took);
            }
            Err(unheard) => health.broken = Some(examiner.unheard(edge, unheard)),
        }
    }
    if health.broken.is_none() {
        health.broken = examiner.upkeep(edge);
    }
    health
}

/// What is wrong on the host for all channels, and breaks none of them.
fn host_notes(facts: &Facts, apply: &str) -> Vec<String> {
    let mut notes = Vec::new();
    if !facts.root {
        notes.push("run this as root to have the channels' processes, sockets and logs on the host looked at".to_owned());
    }
    let why = match &facts.rotation {
        Rotation::Scheduled if has_daemon() => return notes,
        Rotation::Scheduled => "no cron runs on this host".to_owned(),
        Rotation::Wanting(_) => format!("`{apply}` sets that up"),
        Rotation::Nobody(why) => why.clone(),
    };
    notes.push(unrotated(&why));
    notes
}

/// The command that mends nearly everything.
fn apply_command(infra: &InfraArgs) -> String {
    let path = infra.infra.as_ref().map(|path| path.to_string_lossy());
    let mut words = vec!["anklume", "apply"];
    if let Some(path) = &path {
        words.extend(["--infra", path]);
    }
    shell_line(words)
}
