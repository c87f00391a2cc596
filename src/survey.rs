//! Reads everything before anything is judged or changed: Incus, the host, the machines, their channels and logs.
//!
//! Changes nothing except what it stores on the host: log checkpoints and what was last applied. A machine's answer is only a claim.

pub(crate) mod applied;
pub(crate) mod audit_checkpoint;
mod channels;
mod checkpoint_store;
pub(crate) mod consumer;
pub(crate) mod definitions;
pub(crate) mod host;
mod shares;
pub(crate) mod signing_key;

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::timeout;

use crate::edge::{Edge, PROVIDER_FOLDER};
use crate::error::with_causes;
use crate::foreign::ForeignError;
use crate::host::age;
use crate::incus::state::Instance;
use crate::incus::{EntryKind, State};
use crate::infra::{Infra, Machine};
use crate::machine_state::{
    ABOVE, CallerUser, FoundServices, IDENTITY, LINKS, ObservedMachine, Rights, SERVICES, Serving,
    UNITS, ours, unit_path,
};
use crate::mcp::listen::folder::SocketFolder;
use crate::name::{DomainName, MachineName};
use crate::plan::{Facts, has_inside};
use crate::session::machine_files::{FilesError, MachineFiles};
use crate::session::{Session, each};

/// Time after its start within which Incus may still be starting its machines.
const STARTING_MAX: Duration = Duration::from_secs(300);
/// Timeout for reading one machine, which controls how fast its files are read.
const LOOK_TIMEOUT: Duration = Duration::from_secs(60);
/// Pauses before each further attempt at a machine that Incus could not look into.
const LOOK_PAUSES: [Duration; 3] = [
    Duration::from_millis(500),
    Duration::from_secs(1),
    Duration::from_secs(2),
];
/// Maximum size of a services file or a server status that is read, in bytes.
const SERVICES_MAX: u64 = 16 * 1024 * 1024;
/// Maximum size of other files that are read, in bytes.
const FILE_MAX: u64 = 1024 * 1024;
/// Maximum length of a server's confinement that is displayed, in characters.
const CONFINEMENT_MAX: usize = 200;

/// The reason why a machine's content is unknown.
#[derive(Debug, thiserror::Error)]
enum Unread {
    #[error(transparent)]
    Files(#[from] FilesError),
    #[error(transparent)]
    Reader(#[from] ForeignError),
    #[error("no answer within {} s", LOOK_TIMEOUT.as_secs())]
    Slow,
}

/// Reads the state of Incus, the host and the machines.
pub(crate) async fn survey(
    session: &Session,
    infra: &Infra,
    edges: &[Edge],
) -> anyhow::Result<(State, Facts)> {
    let state = session.state(&infra.project).await?;
    let mut facts = host::facts(infra, edges).await?;
    facts.incus_age = age(session.daemon).filter(|age| *age < STARTING_MAX);
    inside(session, infra, &state, &mut facts).await;
    channels::look(session, infra, edges, &state, &mut facts).await;
    Ok((state, facts))
}

/// The machine with this name in Incus.
pub(crate) fn instance<'s>(
    state: &'s State,
    domain: &DomainName,
    machine: &MachineName,
) -> Option<&'s Instance> {
    let mut all = state.instances.iter();
    all.find(|one| one.project == domain.as_str() && one.name == machine.as_str())
}

/// The declared machines that are providers of these edges and run, each with its domain's name.
fn running_providers<'i>(
    infra: &'i Infra,
    edges: &[&Edge],
    state: &State,
) -> Vec<(&'i str, &'i Machine)> {
    let machines = infra.machines().filter(|(domain, machine)| {
        let runs = instance(state, &domain.name, &machine.name).is_some_and(Instance::is_running);
        let mut providers = edges.iter().map(|edge| &edge.provider.machine);
        runs && providers.any(|provider| *provider == machine.name)
    });
    machines
        .map(|(domain, machine)| (domain.name.as_str(), machine))
        .collect()
}

/// The machines in Incus that are providers of these edges, each once.
pub(crate) fn providers<'s>(edges: &[Edge], state: &'s State) -> Vec<&'s Instance> {
    let is_provider = |one: &&Instance| {
        let mut ends = edges.iter().map(|edge| &edge.provider);
        ends.any(|end| one.project == end.domain.as_str() && one.name == end.machine.as_str())
    };
    state.instances.iter().filter(is_provider).collect()
}

/// Reads every declared machine that exists and has, or had, the program.
async fn inside(session: &Session, infra: &Infra, state: &State, facts: &mut Facts) {
    let machines: Vec<(&Machine, &Instance)> = infra
        .machines()
        .filter_map(|(domain, one)| Some((one, instance(state, &domain.name, &one.name)?)))
        .filter(|(_, instance)| has_inside(instance) && instance.kind == "container")
        .collect();
    let observed = each(&machines, |(machine, instance)| async {
        let caller = CallerUser {
            uid: machine.mcp.uid,
            gid: machine.mcp.gid,
        };
        let observed = timeout(LOOK_TIMEOUT, observe_patiently(session, instance, caller)).await;
        (instance.id(), observed.unwrap_or(Err(Unread::Slow)))
    });
    for (id, observed) in observed.await {
        match observed {
            Ok(observed) => drop(facts.inside.insert(id, observed)),
            Err(why) => drop(facts.unread.insert(id, with_causes(&why))),
        }
    }
}

/// Reads the content of a machine; tries again if Incus fails, as it may while the host or the machine is starting.
async fn observe_patiently(
    session: &Session,
    machine: &Instance,
    caller: CallerUser,
) -> Result<ObservedMachine, Unread> {
    for pause in LOOK_PAUSES {
        match observe(session, machine, caller).await {
            Err(Unread::Files(FilesError::Incus(_))) => tokio::time::sleep(pause).await,
            done => return done,
        }
    }
    observe(session, machine, caller).await
}

/// Reads the content of a machine. Fails if any part of it is unknown, which is not the same as missing.
async fn observe(
    session: &Session,
    machine: &Instance,
    caller: CallerUser,
) -> Result<ObservedMachine, Unread> {
    let mut files = session.files(machine).await;
    let mut found = ObservedMachine {
        runs: machine.is_running(),
        program: files.program().await?,
        bad_permissions: bad_permissions(&mut files, caller).await?,
        link: link(&mut files).await?,
        ..ObservedMachine::default()
    };
    if let Some(text) = text(&mut files, IDENTITY, EntryKind::File).await? {
        found.identity = known(session.reader.identity(text.as_bytes()).await)?;
    }
    if let Some(file) = read(&mut files, SERVICES, EntryKind::File, SERVICES_MAX).await? {
        let services = known(session.reader.services(&file).await)?;
        found.services = Some(FoundServices::with(&file, services));
    }
    let supervisor = found.identity.as_ref().and_then(|one| one.supervisor);
    let units = UNITS.into_iter();
    let units = units.filter_map(|name| unit_path(supervisor?, name));
    for unit in units {
        if let Some(text) = text(&mut files, &unit, EntryKind::File).await? {
            found.units.insert(unit, text);
        }
    }
    if found.runs && found.services.is_some() {
        // The server writes its status, so if there is none, no server is working correctly.
        let serving = serving(session, &mut files).await?;
        (found.serving, found.confinement) = serving.unwrap_or((Serving::Silent, None));
    }
    Ok(found)
}

/// Treats a text that ended its reader as a text of another type: the machine that wrote it is to blame.
fn known<T>(read: Result<Option<T>, ForeignError>) -> Result<Option<T>, ForeignError> {
    match read {
        Err(ForeignError::Died) => Ok(None),
        read => read,
    }
}

/// Finds permissions that keep the caller out of our files or let others change them.
async fn bad_permissions(
    files: &mut MachineFiles<'_>,
    caller: CallerUser,
) -> Result<BTreeMap<String, Rights>, FilesError> {
    let mut bad = BTreeMap::new();
    let above = ABOVE.into_iter().map(|path| (path, None));
    let ours = ours().map(|(path, mode)| (path, Some(mode)));
    for (path, mode) in above.chain(ours) {
        // A missing entry has no owner, and the mode of any other kind of entry does not matter.
        let entry = files.look(path).await?;
        let entry = entry.filter(|entry| matches!(entry.kind, EntryKind::Folder | EntryKind::File));
        let Some(owner) = entry.and_then(|entry| entry.owner) else {
            continue;
        };
        let rights = Rights {
            uid: owner.uid,
            gid: owner.gid,
            mode: owner.mode,
        };
        if !mode.map_or_else(|| caller.passes(rights), |mode| rights.are_as_made(mode)) {
            bad.insert(path.to_owned(), rights);
        }
    }
    Ok(bad)
}

/// The content of a file; `None` if there is no such file, and nothing of a file that is longer than any of ours.
async fn read(
    files: &mut MachineFiles<'_>,
    path: &str,
    kind: EntryKind,
    max: u64,
) -> Result<Option<Vec<u8>>, FilesError> {
    match files.read(path, kind, max).await {
        Err(FilesError::TooLarge) => Ok(Some(Vec::new())),
        read => read,
    }
}

/// The text of a file; `None` if there is no such file.
async fn text(
    files: &mut MachineFiles<'_>,
    path: &str,
    kind: EntryKind,
) -> Result<Option<String>, FilesError> {
    // The server's status repeats its services.
    let large = path.starts_with(PROVIDER_FOLDER);
    let max = if large { SERVICES_MAX } else { FILE_MAX };
    let content = read(files, path, kind, max).await?;
    // A file that is not text is not one of ours.
    Ok(content.map(|bytes| String::from_utf8(bytes).unwrap_or_default()))
}

/// The target of the links to the program, if it is the same.
async fn link(files: &mut MachineFiles<'_>) -> Result<Option<String>, FilesError> {
    let [first, second] = LINKS;
    let first = text(files, first, EntryKind::Link).await?;
    let second = text(files, second, EntryKind::Link).await?;
    Ok(first.filter(|first| Some(first) == second.as_ref()))
}

/// Reads the last status of the server, and its confinement; `None` if there is no status.
async fn serving(
    session: &Session,
    files: &mut MachineFiles<'_>,
) -> Result<Option<(Serving, Option<String>)>, Unread> {
    let file = SocketFolder::status_file(PROVIDER_FOLDER.as_ref());
    let Some(text) = text(files, &file.to_string_lossy(), EntryKind::File).await? else {
        return Ok(None);
    };
    let Some(status) = known(session.reader.status(text.as_bytes()).await)? else {
        return Ok(None);
    };
    let confinement = status.confinement.map(|in_force| in_force.to_string());
    let serving = Serving::Policy {
        digest: status.digest,
        refused: status.refused.or(status.failed.0),
        unlogged: status.unlogged,
    };
    let cut = |text: String| text.chars().take(CONFINEMENT_MAX).collect();
    Ok(Some((serving, confinement.map(cut))))
}
