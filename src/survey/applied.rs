//! Stores, on the host, digests of the channels and services that `apply` last brought about, so that `doctor` can tell a
//! declaration that was not applied yet from a fault.

use std::collections::BTreeMap;
use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use rustix::fs::OFlags;
use serde::{Deserialize, Serialize};

use crate::digest::{Digester, sha256};
use crate::dir::{BENEATH, Dir, READ};
use crate::edge::{Edge, End};
use crate::infra::Infra;
use crate::inventory::files;
use crate::services::Services;

/// The folder of the file.
const FOLDER: &str = "/var/lib/anklume";
/// The file: infrastructures by name.
const FILE: &str = "applied.json";
/// Permissions of the folder.
const FOLDER_MODE: u32 = 0o711;
/// Permissions of the file: it shows who may call whom.
const FILE_MODE: u32 = 0o600;

/// The digests of one infrastructure.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Applied {
    /// By the edge's hash: what concerns this edge alone.
    edges: BTreeMap<String, String>,
    /// By `DOMAIN/MACHINE`: all services of a provider.
    providers: BTreeMap<String, String>,
    /// Everything in the file.
    #[serde(default)]
    whole: String,
    /// SHA-256 of the program that went into the machines.
    #[serde(default)]
    program: String,
}

impl Applied {
    /// Returns the digests of what a file declares, for machines that get the program with this SHA-256.
    pub(crate) fn declared(infra: &Infra, edges: &[Edge], program: &str) -> Self {
        let mut declared = Self {
            whole: whole(infra, edges),
            program: program.to_owned(),
            ..Self::default()
        };
        for edge in edges {
            let Some((_, provider)) = infra.machine(edge.provider.machine.as_str()) else {
                continue;
            };
            let services = Services::of(provider);
            let own = services.of_consumer(&edge.consumer.machine);
            let parts = (
                own.digest(),
                provider.mcp.run_as.as_deref(),
                edge.provider_device().keys,
                edge.consumer_device().keys,
            );
            // Plain data, which always serializes.
            let digest = sha256(serde_json::to_vec(&parts).unwrap_or_default());
            declared.edges.insert(edge.hash.clone(), digest);
            let name = name(&edge.provider);
            declared.providers.insert(name, services.digest());
        }
        declared
    }

    /// Reads what was last applied of this infrastructure; `None` if that is unknown.
    pub(crate) fn read(project: &str) -> Option<Self> {
        all().ok()?.remove(project)
    }

    /// Stores what is now in force: all that is declared, except for the ends for which `has_failed` returns true.
    pub(crate) fn store(
        self,
        project: &str,
        edges: &[Edge],
        has_failed: impl Fn(&End) -> bool,
        is_whole: bool,
    ) -> io::Result<()> {
        let mut all = match all() {
            Err(why) if why.kind() == io::ErrorKind::NotFound => BTreeMap::new(),
            all => all?,
        };
        let before = all.get(project).cloned().unwrap_or_default();
        let mut now = self;
        for edge in edges {
            let (hash, provider) = (&edge.hash, name(&edge.provider));
            if has_failed(&edge.provider) {
                keep(&mut now.providers, &before.providers, &provider);
            }
            if has_failed(&edge.provider) || has_failed(&edge.consumer) {
                keep(&mut now.edges, &before.edges, hash);
            }
        }
        if !is_whole {
            // A revocation may be among the steps that failed.
            let old = before.edges.clone();
            now.edges = old.into_iter().chain(now.edges).collect();
            now.whole.clone_from(&before.whole);
            now.program.clone_from(&before.program);
        }
        if now == before {
            return Ok(());
        }
        all.insert(project.to_owned(), now);
        write(&all)
    }

    /// Forgets what was applied to the machines that were deleted, and that the whole file is in force.
    pub(crate) fn forget(
        project: &str,
        edges: &[Edge],
        is_deleted: impl Fn(&End) -> bool,
    ) -> io::Result<()> {
        let mut all = all()?;
        let Some(applied) = all.get_mut(project) else {
            return Ok(());
        };
        applied.whole.clear();
        for edge in edges {
            if is_deleted(&edge.provider) {
                applied.providers.remove(&name(&edge.provider));
            }
            if is_deleted(&edge.provider) || is_deleted(&edge.consumer) {
                applied.edges.remove(&edge.hash);
            }
        }
        write(&all)
    }

    /// Returns whether a channel is in force as declared in `self`.
    pub(crate) fn has_edge(&self, declared: &Self, edge: &Edge) -> bool {
        self.edges.get(&edge.hash) == declared.edges.get(&edge.hash)
    }

    /// Returns whether the whole file is in force as declared in `self`.
    pub(crate) fn has_all(&self, declared: &Self) -> bool {
        self.whole == declared.whole
    }

    /// Returns whether another program than this one went into the machines.
    pub(crate) fn had_another(&self, program: &str) -> bool {
        !self.program.is_empty() && self.program != program
    }

    /// Returns whether a provider's services are in force as declared in `self`.
    pub(crate) fn has_services(&self, declared: &Self, provider: &End) -> bool {
        let name = name(provider);
        self.providers.get(&name) == declared.providers.get(&name)
    }
}

/// Returns a digest of everything that a file declares, whatever its comments and its layout.
fn whole(infra: &Infra, edges: &[Edge]) -> String {
    let mut all = Digester::default();
    for file in files(infra, edges) {
        // Plain data, which always serializes.
        all.add(&serde_json::to_vec(&file.values()).unwrap_or_default());
    }
    all.end()
}

/// Sets an entry back to its earlier value.
fn keep(now: &mut BTreeMap<String, String>, before: &BTreeMap<String, String>, key: &str) {
    match before.get(key) {
        Some(value) => now.insert(key.to_owned(), value.clone()),
        None => now.remove(key),
    };
}

fn name(end: &End) -> String {
    format!("{}/{}", end.domain, end.machine)
}

fn write(all: &BTreeMap<String, Applied>) -> io::Result<()> {
    // A file without channels has no other need of the folder.
    let mode = Permissions::from_mode(FOLDER_MODE);
    match fs::create_dir(FOLDER) {
        Ok(()) => fs::set_permissions(FOLDER, mode)?,
        Err(why) if why.kind() == io::ErrorKind::AlreadyExists => {}
        Err(why) => return Err(why),
    }
    let folder = Dir::open(Path::new(FOLDER), READ | OFlags::NOFOLLOW, BENEATH)?;
    let temporary = format!(".{FILE}.{}", std::process::id());
    folder.replace(FILE, &temporary, FILE_MODE, |file| {
        Ok(serde_json::to_writer(file, all)?)
    })
}

fn all() -> io::Result<BTreeMap<String, Applied>> {
    Ok(serde_json::from_slice(&fs::read(
        Path::new(FOLDER).join(FILE),
    )?)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::edge::edges;
    use crate::infra::parse;

    fn declared(text: &str) -> (Applied, Vec<Edge>) {
        let infra = parse("demo/infra.yml", text).unwrap().infra;
        let edges = edges(&infra).unwrap();
        (Applied::declared(&infra, &edges, "program"), edges)
    }

    const TEXT: &str = "
domains:
  vault:
    subnet_id: 0
    machines:
      signer:
        services:
          - {name: sign, tool: gpg_sign, consumers: [dev]}
          - {name: paste, tool: clipboard_get, consumers: [web]}
  work: {subnet_id: 1, machines: {dev: {}, web: {}}}
";

    #[test]
    fn each_channel_has_a_digest_of_what_concerns_it() {
        let (before, edges) = declared(TEXT);
        let of = |edge: &Edge| edge.consumer.machine.as_str().to_owned();
        let changed = |text: &str| {
            let (now, _) = declared(text);
            let differ = edges.iter().filter(|edge| !before.has_edge(&now, edge));
            let services = before.has_services(&now, &edges[0].provider);
            (
                differ.map(of).collect::<Vec<_>>(),
                services,
                before.has_all(&now),
            )
        };
        let none: Vec<String> = Vec::new();
        assert_eq!(
            changed(&TEXT.replace("domains:", "# x\ndomains:")),
            (none.clone(), true, true)
        );
        // Another consumer's service concerns that consumer, and the provider's file.
        let other = TEXT.replace("clipboard_get", "clipboard_set");
        assert_eq!(changed(&other), (vec!["web".to_owned()], false, false));
        let caller = TEXT.replace("dev: {}", "dev: {mcp: {uid: 1000}}");
        assert_eq!(changed(&caller), (vec!["dev".to_owned()], true, false));
        let server = TEXT.replace(
            "        services:",
            "        mcp: {run_as: me}\n        services:",
        );
        assert_eq!(changed(&server).0, ["dev", "web"]);
        let unrelated = TEXT.replace("web: {}", "web: {description: x}");
        assert_eq!(changed(&unrelated), (none, true, false));
    }
}
