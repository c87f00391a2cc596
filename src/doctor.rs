//! Judges each channel from a survey: finds current faults and future ones.

mod diagnose;
mod machine;

use std::collections::BTreeMap;

use crate::diagnostic::Faults;
use crate::edge::{CONSUMER_FOLDER, Edge};
use crate::host::log_timer::has_daemon;
use crate::incus::EntryKind;
use crate::incus::state::Instance;
use crate::infra::Infra;
use crate::plan::{
    DesiredState, Facts, PermissionChange, Plan, ProfileDevice, RemoteImage, Rotation,
    awaits_restart, check_renamed, permission_changes, plan, profile_devices, remote_images,
    unrotated,
};
use crate::session::machine_files::FilesError;
use crate::session::{Session, each};
use crate::survey::applied::Applied;
use crate::survey::audit_checkpoint::{LogState, keep};
use crate::survey::consumer::ask;
use crate::survey::{definitions, providers, signing_key, survey};
pub(crate) use diagnose::{Broken, Health};
use diagnose::{Cause, Examiner};

/// The folder in which a consumer's devices listen.
#[derive(Debug, PartialEq, Eq)]
enum ListenFolder {
    Intact,
    Missing,
    /// This component of its path is not a folder.
    Altered(String),
    /// It could not be examined, for this reason.
    Unknown(String),
}

/// The result of an examination.
#[derive(Debug, Default)]
pub(crate) struct Examination<'e> {
    /// The health of the chosen edges.
    pub(crate) healths: Vec<Health<'e>>,
    /// Faults that belong to none of the declared edges.
    pub(crate) others: Vec<Broken>,
    /// The changes of who may call what that `apply` would bring about.
    pub(crate) not_applied: Vec<PermissionChange>,
    /// The other changes of the file that were not applied yet, as lines of a plan.
    pub(crate) not_applied_lines: Vec<String>,
    /// Notes on the host and all channels.
    pub(crate) notes: Vec<String>,
}

/// Examines the chosen edges. `apply` is the command that fixes nearly everything. Fails if Incus does not answer or if
/// this program's file cannot be read.
pub(crate) async fn examine<'e>(
    session: &Session,
    infra: &Infra,
    edges: &[Edge],
    chosen: &[&'e Edge],
    apply: &str,
) -> anyhow::Result<Examination<'e>> {
    let program = session.program()?;
    let (state, mut facts) = survey(session, infra, edges).await?;
    // Only `apply` searches for images.
    for image in remote_images(infra, &state) {
        facts.images.insert(image, Ok(RemoteImage::default()));
    }
    check_renamed(infra, &state)?;
    let mut calls = BTreeMap::new();
    let asked: Vec<Edge> = chosen.iter().copied().cloned().collect();
    for provider in providers(&asked, &state) {
        calls.insert(provider.id(), keep(session, provider).await);
    }
    let declared = Applied::declared(infra, edges, &program.digest);
    let applied = Applied::read(&infra.project);
    let examiner = Examiner {
        infra,
        edges,
        state: &state,
        facts: &facts,
        program: &program.digest,
        calls: &calls,
        declared: &declared,
        applied: applied.as_ref(),
        apply,
    };
    let healths = each(chosen, |edge| walk(session, &examiner, edge)).await;
    let mut notes = if edges.is_empty() {
        Vec::new()
    } else {
        host_notes(&facts, apply)
    };
    notes.extend(session.untested.clone());
    notes.extend(signing_key::notes(session, infra, chosen, &state).await);
    notes.extend(definitions::notes(session, infra, chosen, &state).await);
    notes.extend(examiner.servers(chosen));
    notes.extend(examiner.ends(chosen).filter_map(awaits_restart));
    let others = profile_devices(&state.profiles);
    let others = others.iter().filter(|one| !one.is_on(edges));
    notes.extend(others.map(ProfileDevice::what));
    let wanted = DesiredState {
        infra,
        edges,
        adopt: &[],
        program: &program.digest,
        is_shown: true,
    };
    let mut not_applied = permission_changes(wanted, &state, &facts);
    not_applied.retain(|change| examiner.is_of(change, chosen) && !examiner.is_fault(change));
    let is_applied = applied.as_ref().map(|applied| applied.has_all(&declared));
    let mut others = examiner.strays();
    if is_applied == Some(true) {
        // The file is in force, so somebody brought about what it does not say.
        others.extend(
            not_applied
                .drain(..)
                .map(|change| examiner.drifted(&change.line)),
        );
    }
    let (found, not_applied_lines) = drift(&examiner, is_applied, plan(wanted, &state, &facts));
    others.extend(found);
    notes.extend(calls.into_values().filter_map(|log| match log {
        LogState::Lost { note, .. } | LogState::Unknown(note) => Some(note),
        LogState::Sound | LogState::Altered { .. } => None,
    }));
    Ok(Examination {
        healths,
        others,
        not_applied,
        not_applied_lines,
        notes,
    })
}

/// Returns what differs from the file, as lines if the file was not applied and else as faults, and what would keep `apply`
/// from bringing it about.
fn drift(
    examiner: &Examiner<'_>,
    is_applied: Option<bool>,
    plan: Result<Plan, Faults>,
) -> (Vec<Broken>, Vec<String>) {
    let plan = match plan {
        Ok(plan) => plan,
        Err(Faults(obstacles)) => {
            let obstacles = obstacles.into_iter().map(|one| Broken {
                what: Cause::Obstacle,
                detail: format!("`{}` would refuse: {}", examiner.apply, one.message),
                fix: one.help.unwrap_or_default(),
            });
            return (obstacles.collect(), Vec::new());
        }
    };
    let lines = plan.drift(is_applied == Some(true));
    if is_applied == Some(false) {
        return (Vec::new(), lines);
    }
    let broken = lines.iter().map(|line| examiner.drifted(line));
    (broken.collect(), Vec::new())
}

/// Examines one edge: first from the host, then from the consumer, and finally for future faults.
async fn walk<'e>(session: &Session, examiner: &Examiner<'_>, edge: &'e Edge) -> Health<'e> {
    let listens = match examiner.instance(&edge.consumer) {
        Some(consumer) => listen_folder(session, consumer).await,
        None => Ok(ListenFolder::Missing),
    };
    let listens = listens.unwrap_or_else(|why| ListenFolder::Unknown(why.to_string()));
    let seen = examiner.machines(edge, &listens);
    let mut health = Health {
        edge,
        broken: seen.or_else(|| examiner.way(edge, &listens)),
        is_pending: examiner.is_pending(edge),
        took: None,
        notes: examiner.notes(edge),
    };
    if health.broken.is_none() {
        match ask(session, edge).await {
            Ok(answer) => {
                health.broken = examiner.policy(edge, &answer.services);
                health.took = Some(answer.took);
            }
            Err(failure) => health.broken = Some(examiner.no_answer(edge, failure)),
        }
    }
    health.broken = health.broken.or_else(|| examiner.upkeep(edge));
    let what = health.broken.as_ref().map(|broken| broken.what);
    health.is_pending |= what == Some(Cause::Version);
    health
}

/// Examines the folder in which a consumer's devices listen, and each component of its path.
async fn listen_folder(session: &Session, consumer: &Instance) -> Result<ListenFolder, FilesError> {
    let mut files = session.files(consumer).await;
    let ends = CONSUMER_FOLDER.match_indices('/').map(|(at, _)| at).skip(1);
    for end in ends.chain([CONSUMER_FOLDER.len()]) {
        let part = CONSUMER_FOLDER.get(..end).unwrap_or(CONSUMER_FOLDER);
        match files.look(part).await?.map(|entry| entry.kind) {
            Some(EntryKind::Folder) => {}
            None => return Ok(ListenFolder::Missing),
            Some(EntryKind::File | EntryKind::Link | EntryKind::Other) => {
                return Ok(ListenFolder::Altered(part.to_owned()));
            }
        }
    }
    Ok(ListenFolder::Intact)
}

/// Returns notes on host problems that affect all channels but break none of them.
fn host_notes(facts: &Facts, apply: &str) -> Vec<String> {
    let mut notes = Vec::new();
    if !facts.root {
        notes.push(
            "run this as root to check the channels' processes, sockets and logs on the host"
                .to_owned(),
        );
    }
    let why = match &facts.rotation {
        Rotation::Scheduled if has_daemon() => return notes,
        Rotation::Scheduled => "cron is not running on this host".to_owned(),
        Rotation::Wanting(_) => format!("`{apply}` sets that up"),
        Rotation::Nobody(why) => why.clone(),
    };
    notes.push(unrotated(&why));
    notes
}
