//! Looks into the machines, and changes nothing: what they hold of anklume, and whether they answer.
//!
//! A machine's answer is only its word.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tokio::time::timeout;

use super::channels;
use crate::edge::{Edge, PROVIDER_FOLDER};
use crate::incus::state::{Instance, InstanceId};
use crate::incus::{EntryKind, State};
use crate::infra::{Infra, Machine};
use crate::machine_state::{
    ABOVE, CallerUser, FoundServices, IDENTITY, LINK, ObservedMachine, Rights, SERVICES, Serving,
    ours, unit_paths,
};
use crate::mcp::listen::folder::SocketFolder;
use crate::plan::{RecreateReason, Role, has_inside};
use crate::session::Session;
use crate::session::each;
use crate::session::machine_files::MachineFiles;

/// Maximum time that a look into one machine may take: a machine decides how fast its files are.
const LOOK_MAX: Duration = Duration::from_secs(60);
/// Maximum size of a services file or a server status that is read, in bytes.
const SERVICES_MAX: u64 = 16 * 1024 * 1024;
/// Largest of the other files that are read, in bytes.
const FILE_MAX: u64 = 1024 * 1024;

/// The findings.
#[derive(Debug)]
pub(crate) struct Looked {
    /// In the machines, by project and name.
    pub(crate) inside: BTreeMap<InstanceId, ObservedMachine>,
    /// Edges over which a server answers, and not whoever asks now: the consumer's connections are all in use. By hash.
    pub(crate) full: BTreeSet<String>,
    /// Ends of edges whose device does not work, by the edge's hash.
    pub(crate) broken: BTreeMap<(String, Role), RecreateReason>,
}

/// Looks into every declared machine that is there and has, or had, the program.
pub(crate) async fn look(
    session: &Session,
    infra: &Infra,
    edges: &[Edge],
    state: &State,
) -> Looked {
    let there = |domain: &str, machine: &str| {
        let mut all = state.instances.iter();
        all.find(|one| one.project == domain && one.name == machine)
    };
    let machines: Vec<(&Machine, &Instance)> = infra
        .machines()
        .filter_map(|(domain, machine)| {
            Some((machine, there(domain.name.as_str(), machine.name.as_str())?))
        })
        .filter(|(_, there)| has_inside(there) && there.kind == "container")
        .collect();
    let found = each(&machines, |(machine, there)| async {
        let caller = CallerUser {
            uid: machine.mcp.uid,
            gid: machine.mcp.gid,
        };
        let found = timeout(LOOK_MAX, into(session, there, caller)).await;
        found.ok().flatten()
    })
    .await;
    let channels = channels::look(session, infra, edges, there).await;
    let mut looked = Looked {
        inside: BTreeMap::new(),
        full: channels.full(),
        broken: channels.broken(),
    };
    for ((machine, there), mut found) in machines.iter().zip(found) {
        if let Some(found) = &mut found
            && channels.hangs(machine.name.as_str())
        {
            found.serving = Serving::Silent;
        }
        looked.inside.extend(found.map(|found| (there.id(), found)));
    }
    looked
}

/// Reads what a machine holds; `None` if that is not possible.
async fn into(session: &Session, there: &Instance, caller: CallerUser) -> Option<ObservedMachine> {
    let runs = there.is_running();
    let mut found = ObservedMachine {
        runs,
        ..ObservedMachine::default()
    };
    let mut files = session.files(there).await;
    // What cannot be read is not there as it must be; the machine's own program says why.
    found.program = files.program().await.ok()?;
    found.bad_permissions = odd(&mut files, caller).await?;
    found.link = text(&mut files, LINK, EntryKind::Link).await?;
    let identity = text(&mut files, IDENTITY, EntryKind::File).await?;
    if let Some(text) = identity {
        found.identity = session
            .reader()
            .identity(text.as_bytes())
            .await
            .unwrap_or_default();
    }
    if let Some(file) = files
        .read(SERVICES, EntryKind::File, SERVICES_MAX)
        .await
        .ok()?
    {
        let shown = session.reader().services(&file).await.unwrap_or_default();
        found.services = Some(FoundServices::with(&file, shown));
    }
    let supervisor = found.identity.as_ref().and_then(|one| one.supervisor);
    for unit in supervisor.map(unit_paths).unwrap_or_default() {
        if let Some(text) = text(&mut files, &unit, EntryKind::File).await? {
            found.units.insert(unit, text);
        }
    }
    if runs && found.services.is_some() {
        // Whoever serves writes it: what cannot be read says that nobody serves as they should.
        (found.serving, found.confinement) = serving(session, &mut files)
            .await
            .unwrap_or((Serving::Silent, None));
    }
    Some(found)
}

/// Finds permissions that keep the caller out of our files or let others change them; `None` if they cannot be read.
async fn odd(files: &mut MachineFiles<'_>, caller: CallerUser) -> Option<BTreeMap<String, Rights>> {
    let mut odd = BTreeMap::new();
    let above = ABOVE.into_iter().map(|path| (path, None));
    let ours = ours().map(|(path, mode)| (path, Some(mode)));
    for (path, mode) in above.chain(ours) {
        // What is not there has no owner, and whatever else is there is no word of rights.
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
        let well = mode.map_or_else(|| caller.passes(rights), |mode| rights.are_as_made(mode));
        if !well {
            odd.insert(path.to_owned(), rights);
        }
    }
    Some(odd)
}

/// The text of a file; `None`: it cannot be read.
async fn text(files: &mut MachineFiles<'_>, path: &str, kind: EntryKind) -> Option<Option<String>> {
    // The server's status repeats its services.
    let large = path.starts_with(PROVIDER_FOLDER);
    let most = if large { SERVICES_MAX } else { FILE_MAX };
    let content = files.read(path, kind, most).await.ok()?;
    // What is no text is none of ours.
    Some(content.map(|bytes| String::from_utf8(bytes).unwrap_or_default()))
}

/// Reads the last status of the server.
async fn serving(
    session: &Session,
    files: &mut MachineFiles<'_>,
) -> Option<(Serving, Option<String>)> {
    let file = SocketFolder::status_file(PROVIDER_FOLDER.as_ref());
    let text = text(files, &file.to_string_lossy(), EntryKind::File).await??;
    let said = session.reader().status(text.as_bytes()).await.ok()??;
    let words = said.confinement.map(|in_force| in_force.to_string());
    Some((
        Serving::Policy {
            digest: said.digest,
            refused: said.refused.or(said.failed.0),
        },
        words.map(|words| words.chars().take(CONFINEMENT_SHOWN).collect()),
    ))
}

/// Maximum length of a server's confinement that is shown, in characters.
const CONFINEMENT_SHOWN: usize = 200;
