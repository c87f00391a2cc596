//! Looks into the machines, and changes nothing: what they hold of anklume, and whether they answer.
//!
//! What a machine says is its own word.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

use serde::de::{IgnoredAny, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use tokio::time::timeout;

use super::carry::each;
use super::channels;
use super::context::Context;
use super::files::MachineFiles;
use crate::confinement::InForce;
use crate::edge::{Edge, PROVIDER_FOLDER};
use crate::incus::state::Instance;
use crate::incus::{Kind, State};
use crate::infra::{Infra, Machine};
use crate::inside::{
    ABOVE, Caller, Found, IDENTITY, Identity, LINK, Rights, SERVICES, Serving, ours, unit_paths,
};
use crate::mcp::listen::folder::Folder;
use crate::plan::{Again, Role, has_inside};

/// Longest that a look into one machine may take: a machine decides how fast its files are.
const LOOK_MAX: Duration = Duration::from_secs(60);
/// Largest services file, or status of a server, that is read, in bytes.
const SERVICES_MAX: u64 = 16 * 1024 * 1024;
/// Largest of the other files that are read, in bytes.
const FILE_MAX: u64 = 1024 * 1024;

/// What was found.
#[derive(Debug)]
pub(super) struct Looked {
    /// In the machines, by project and name.
    pub(super) inside: BTreeMap<(String, String), Found>,
    /// Edges over which a server answers, and not whoever asks now: the consumer's connections are all in use. By hash.
    pub(super) full: BTreeSet<String>,
    /// Ends of edges whose device does not work, by the edge's hash.
    pub(super) broken: BTreeMap<(String, Role), Again>,
}

/// Looks into every declared machine that is there and has, or had, the program.
pub(super) async fn look(
    context: &Context,
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
        let caller = Caller {
            uid: machine.mcp.uid,
            gid: machine.mcp.gid,
        };
        let found = timeout(LOOK_MAX, into(context, there, caller)).await;
        found.ok().flatten()
    })
    .await;
    let channels = channels::look(context, infra, edges, there).await;
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
        let place = (there.project.clone(), there.name.clone());
        looked.inside.extend(found.map(|found| (place, found)));
    }
    looked
}

/// What a machine holds; `None`: it could not be looked at.
async fn into(context: &Context, there: &Instance, caller: Caller) -> Option<Found> {
    let runs = runs(there);
    let mut found = Found {
        runs,
        ..Found::default()
    };
    let mut files = context.files(there).await;
    // What cannot be read is not there as it must be; the machine's own program says why.
    found.program = files.program().await.ok()?;
    found.odd = odd(&mut files, caller).await?;
    found.link = text(&mut files, LINK, Kind::Link).await?;
    let identity = text(&mut files, IDENTITY, Kind::File).await?;
    found.identity = identity.and_then(|text| Identity::from_file(text.as_bytes()));
    found.services = text(&mut files, SERVICES, Kind::File).await?;
    let supervisor = found.identity.as_ref().and_then(|one| one.supervisor);
    for unit in supervisor.map(unit_paths).unwrap_or_default() {
        if let Some(text) = text(&mut files, &unit, Kind::File).await? {
            found.units.insert(unit, text);
        }
    }
    if runs && found.services.is_some() {
        // Whoever serves writes it: what cannot be read says that nobody serves as they should.
        (found.serving, found.confinement) =
            serving(&mut files).await.unwrap_or((Serving::Silent, None));
    }
    Some(found)
}

/// What keeps the caller from what is ours, or lets others change it; `None`: it cannot be looked at.
async fn odd(files: &mut MachineFiles<'_>, caller: Caller) -> Option<BTreeMap<String, Rights>> {
    let mut odd = BTreeMap::new();
    let above = ABOVE.into_iter().map(|path| (path, None));
    let ours = ours().map(|(path, mode)| (path, Some(mode)));
    for (path, mode) in above.chain(ours) {
        // What is not there has no owner, and whatever else is there is no word of rights.
        let entry = files.look(path).await.ok()?;
        let entry = entry.filter(|entry| matches!(entry.kind, Kind::Folder | Kind::File));
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

pub(in crate::command) fn runs(there: &Instance) -> bool {
    ["Running", "Ready"].contains(&there.status.as_str())
}

/// The text of a file; `None`: it cannot be read.
async fn text(files: &mut MachineFiles<'_>, path: &str, kind: Kind) -> Option<Option<String>> {
    // The server's status repeats its services.
    let large = path == SERVICES || path.starts_with(PROVIDER_FOLDER);
    let most = if large { SERVICES_MAX } else { FILE_MAX };
    let content = files.read(path, kind, most).await.ok()?;
    // What is no text is none of ours.
    Some(content.map(|bytes| String::from_utf8(bytes).unwrap_or_default()))
}

/// What the server last said of itself.
async fn serving(files: &mut MachineFiles<'_>) -> Option<(Serving, Option<String>)> {
    let file = Folder::status_file(PROVIDER_FOLDER.as_ref());
    let said = text(files, &file.to_string_lossy(), Kind::File).await?;
    Some(understood(said.as_deref()))
}

/// What a server's status says, as far as it is looked at.
fn understood(status: Option<&str>) -> (Serving, Option<String>) {
    let said: Option<Said> = status.and_then(|text| serde_json::from_str(text).ok());
    match said {
        Some(said) => (
            Serving::Policy {
                digest: said.digest,
                refused: said.refused.or(said.failed.0),
            },
            said.confinement.map(|in_force| {
                let words = in_force.to_string();
                words.chars().take(CONFINEMENT_SHOWN).collect()
            }),
        ),
        None => (Serving::Silent, None),
    }
}

/// Reads bytes as each of the things that a machine says.
///
/// # Panics
///
/// When more of it would be shown than may be, or something that a terminal obeys.
#[cfg(any(test, fuzzing))]
pub(in crate::command) fn words_of_a_machine(bytes: &[u8]) {
    if let Ok(text) = str::from_utf8(bytes) {
        let (_, confinement) = understood(Some(text));
        let shown = confinement.unwrap_or_default();
        assert!(shown.chars().count() <= CONFINEMENT_SHOWN);
        assert!(!shown.contains(char::is_control), "{shown:?}");
    }
    super::ask::understood(bytes);
    let report: Option<crate::inside::Report> = serde_json::from_slice(bytes).ok();
    let again = report.as_ref().map(serde_json::to_vec);
    assert!(again.is_none_or(|again| again.is_ok()));
    if let Some(identity) = Identity::from_file(bytes) {
        assert_eq!(Identity::from_file(&identity.to_file()), Some(identity));
    }
}

/// How much is shown of what a server says of its confinement, in characters.
const CONFINEMENT_SHOWN: usize = 200;

/// What of a server's status is looked at. The rest is as long as the machine likes, and is read over.
#[derive(Debug, Deserialize)]
struct Said {
    digest: String,
    refused: Option<String>,
    #[serde(default)]
    failed: First,
    #[serde(default)]
    confinement: Option<InForce>,
}

/// The first text of a list.
#[derive(Debug, Default)]
struct First(Option<String>);

impl<'de> Deserialize<'de> for First {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_seq(Self::default())
    }
}

impl<'de> Visitor<'de> for First {
    type Value = Self;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self, A::Error> {
        let first = list.next_element()?;
        while list.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Self(first))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_status_three_things_are_kept_whatever_else_it_holds() {
        let text =
            r#"{"digest":"d","refused":null,"services":[[[{}]]],"failed":["a",{},1],"pid":[]}"#;
        let said: Said = serde_json::from_str(text).unwrap();
        assert_eq!(
            (said.digest.as_str(), said.failed.0.as_deref()),
            ("d", Some("a"))
        );
        let old: Said = serde_json::from_str(r#"{"digest":"d","failed":[]}"#).unwrap();
        assert_eq!((old.refused, old.failed.0), (None, None));
        for none in ["{}", r#"{"digest":"d","failed":{}}"#, "[]", ""] {
            assert!(serde_json::from_str::<Said>(none).is_err(), "{none}");
        }
    }
}
