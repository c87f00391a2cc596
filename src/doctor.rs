//! Judges each channel from a survey: what is broken, and what will break.

mod diagnose;
mod listen_folder;
mod machine;
mod upkeep;

use std::collections::BTreeMap;

use crate::edge::Edge;
use crate::host::log_timer::has_daemon;
use crate::infra::Infra;
use crate::plan::{Facts, ProfileDevice, Rotation, profile_devices, unrotated};
use crate::session::{Session, each};
use crate::survey::audit_checkpoint::{LogState, keep};
use crate::survey::consumer::ask;
use crate::survey::{providers, survey};
use diagnose::Examiner;
pub(crate) use diagnose::{Broken, Health};
use listen_folder::ListenFolder;

/// Walks the chosen edges; what is to be said of the host and of all channels. `apply`: the command that mends nearly everything.
///
/// # Errors
///
/// Incus does not answer, or this program cannot be read.
pub(crate) async fn examine<'e>(
    session: &Session,
    infra: &Infra,
    edges: &[Edge],
    chosen: &[&'e Edge],
    apply: &str,
) -> anyhow::Result<(Vec<Health<'e>>, Vec<String>)> {
    let program = session.program()?;
    let (state, facts) = survey(session, infra, edges).await?;
    let mut calls = BTreeMap::new();
    let asked: Vec<Edge> = chosen.iter().copied().cloned().collect();
    for provider in providers(&asked, &state) {
        calls.insert(provider.id(), keep(session, provider).await);
    }
    let examiner = Examiner {
        infra,
        edges,
        state: &state,
        facts: &facts,
        program: &program.digest,
        calls: &calls,
        apply,
    };
    let healths = each(chosen, |edge| walk(session, &examiner, edge)).await;
    let mut notes = host_notes(&facts, apply);
    notes.extend(examiner.servers(chosen));
    let others = profile_devices(&state.profiles);
    let others = others.iter().filter(|one| !one.is_on(edges));
    notes.extend(others.map(ProfileDevice::what));
    notes.extend(calls.into_values().filter_map(|log| match log {
        LogState::Lost(log) => Some(log.to_string()),
        LogState::Unknown(why) => Some(why),
        LogState::Sound | LogState::Altered { .. } => None,
    }));
    Ok((healths, notes))
}

/// Walks one edge: what the host sees, then what the consumer sees, then what will break it.
async fn walk<'e>(session: &Session, examiner: &Examiner<'_>, edge: &'e Edge) -> Health<'e> {
    let listens = match examiner.there(&edge.consumer) {
        Some(consumer) => listen_folder::listen_folder(session, consumer).await,
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
        match ask(session, edge).await {
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

/// Returns notes on the host that concern all channels and break none.
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
