//! Reads everything before anything is judged or changed: Incus, the host, the machines, their channels and logs.
//!
//! Changes nothing except the stored log checkpoints. A machine's answer is only a claim.

pub(crate) mod audit_checkpoint;
mod channels;
mod checkpoint_store;
pub(crate) mod consumer;
pub(crate) mod host;
mod shares;

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::timeout;

use crate::edge::{Edge, PROVIDER_FOLDER};
use crate::incus::state::{Instance, InstanceId};
use crate::incus::{EntryKind, State};
use crate::infra::{Infra, Machine};
use crate::machine_state::{
    ABOVE, CallerUser, FoundServices, IDENTITY, LINK, ObservedMachine, Rights, SERVICES, Serving,
    ours, unit_paths,
};
use crate::mcp::listen::folder::SocketFolder;
use crate::name::{DomainName, MachineName};
use crate::plan::{Facts, has_inside};
use crate::session::machine_files::MachineFiles;
use crate::session::{Session, each};

/// Timeout for reading one machine, which controls how fast its files are read.
const LOOK_TIMEOUT: Duration = Duration::from_secs(60);
/// Maximum size of a services file or a server status that is read, in bytes.
const SERVICES_MAX: u64 = 16 * 1024 * 1024;
/// Maximum size of other files that are read, in bytes.
const FILE_MAX: u64 = 1024 * 1024;
/// Maximum length of a server's confinement that is displayed, in characters.
const CONFINEMENT_MAX: usize = 200;

/// Reads the state of Incus, the host and the machines.
pub(crate) async fn survey(
    session: &Session,
    infra: &Infra,
    edges: &[Edge],
) -> anyhow::Result<(State, Facts)> {
    let state = session.state(&infra.project).await?;
    let mut facts = host::facts(infra, edges).await;
    facts.inside = inside(session, infra, &state).await;
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

/// The machines in Incus that are providers of these edges, each once.
pub(crate) fn providers<'s>(edges: &[Edge], state: &'s State) -> Vec<&'s Instance> {
    let is_provider = |one: &&Instance| {
        let mut ends = edges.iter().map(|edge| &edge.provider);
        ends.any(|end| one.project == end.domain.as_str() && one.name == end.machine.as_str())
    };
    state.instances.iter().filter(is_provider).collect()
}

/// Reads every declared machine that exists and has, or had, the program.
async fn inside(
    session: &Session,
    infra: &Infra,
    state: &State,
) -> BTreeMap<InstanceId, ObservedMachine> {
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
        let observed = timeout(LOOK_TIMEOUT, observe(session, instance, caller)).await;
        Some((instance.id(), observed.ok()??))
    });
    observed.await.into_iter().flatten().collect()
}

/// Reads the content of a machine; `None` if that fails.
async fn observe(
    session: &Session,
    machine: &Instance,
    caller: CallerUser,
) -> Option<ObservedMachine> {
    let mut files = session.files(machine).await;
    let mut found = ObservedMachine {
        runs: machine.is_running(),
        // A machine whose program cannot be read is set up again, and the setup reports the reason.
        program: files.program().await.ok()?,
        bad_permissions: bad_permissions(&mut files, caller).await?,
        link: text(&mut files, LINK, EntryKind::Link).await?,
        ..ObservedMachine::default()
    };
    if let Some(text) = text(&mut files, IDENTITY, EntryKind::File).await? {
        let identity = session.reader.identity(text.as_bytes()).await;
        found.identity = identity.unwrap_or_default();
    }
    let services = files.read(SERVICES, EntryKind::File, SERVICES_MAX).await;
    if let Some(file) = services.ok()? {
        let summary = session.reader.services(&file).await.unwrap_or_default();
        found.services = Some(FoundServices::with(&file, summary));
    }
    let supervisor = found.identity.as_ref().and_then(|one| one.supervisor);
    for unit in supervisor.map(unit_paths).unwrap_or_default() {
        if let Some(text) = text(&mut files, &unit, EntryKind::File).await? {
            found.units.insert(unit, text);
        }
    }
    if found.runs && found.services.is_some() {
        // The server writes its status, so if that cannot be read, no server is working correctly.
        let serving = serving(session, &mut files).await;
        (found.serving, found.confinement) = serving.unwrap_or((Serving::Silent, None));
    }
    Some(found)
}

/// Finds permissions that keep the caller out of our files or let others change them; `None` if they cannot be read.
async fn bad_permissions(
    files: &mut MachineFiles<'_>,
    caller: CallerUser,
) -> Option<BTreeMap<String, Rights>> {
    let mut bad = BTreeMap::new();
    let above = ABOVE.into_iter().map(|path| (path, None));
    let ours = ours().map(|(path, mode)| (path, Some(mode)));
    for (path, mode) in above.chain(ours) {
        // A missing entry has no owner, and the mode of any other kind of entry does not matter.
        let entry = files.look(path).await.ok()?;
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
    Some(bad)
}

/// The text of a file; `None` if it cannot be read.
async fn text(files: &mut MachineFiles<'_>, path: &str, kind: EntryKind) -> Option<Option<String>> {
    // The server's status repeats its services.
    let large = path.starts_with(PROVIDER_FOLDER);
    let max = if large { SERVICES_MAX } else { FILE_MAX };
    let content = files.read(path, kind, max).await.ok()?;
    // A file that is not text is not one of ours.
    Some(content.map(|bytes| String::from_utf8(bytes).unwrap_or_default()))
}

/// Reads the last status of the server, and its confinement.
async fn serving(
    session: &Session,
    files: &mut MachineFiles<'_>,
) -> Option<(Serving, Option<String>)> {
    let file = SocketFolder::status_file(PROVIDER_FOLDER.as_ref());
    let text = text(files, &file.to_string_lossy(), EntryKind::File).await??;
    let status = session.reader.status(text.as_bytes()).await.ok()??;
    let confinement = status.confinement.map(|in_force| in_force.to_string());
    let serving = Serving::Policy {
        digest: status.digest,
        refused: status.refused.or(status.failed.0),
        unlogged: status.unlogged,
    };
    let cut = |text: String| text.chars().take(CONFINEMENT_MAX).collect();
    Some((serving, confinement.map(cut)))
}
