//! Finds files that `sync` wrote for machines and domains that infra.yml no longer declares.
//!
//! Only a file with a managed block can be an orphan; all other files are the user's. When in doubt, a file is kept.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use serde_yaml::{Mapping, Value};

use crate::inventory::{FilePath, InventoryFolder};

use super::managed_block;
use super::tree::{FileTree, FoundFile, TreeFault};

/// The fate of an orphan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Fate {
    /// Kept; `--clean-orphans` would remove it.
    Left,
    /// Removed.
    Removed,
    /// Kept despite `--clean-orphans`, for this reason.
    Kept(String),
}

/// A file of a machine or domain that infra.yml no longer declares.
#[derive(Debug)]
pub(crate) struct Orphan {
    pub(crate) path: FilePath,
    pub(crate) found: FoundFile,
    pub(crate) fate: Fate,
}

/// Returns the orphans, ordered by folder, then by name.
pub(crate) fn find(
    tree: &FileTree,
    known: &HashSet<FilePath>,
    clean: bool,
) -> Result<Vec<Orphan>, TreeFault> {
    let mut candidates = Vec::new();
    for folder in InventoryFolder::ALL {
        for path in tree.files(folder)? {
            if known.contains(&path) {
                continue;
            }
            // A link or a folder is the user's, regardless of its name.
            let Ok(Some(found)) = tree.read(&path) else {
                continue;
            };
            candidates.extend(Candidate::of(path, found));
        }
    }
    let protected = protected_domains(&candidates);
    let orphans = candidates.into_iter().map(|candidate| {
        let fate = match candidate.reason_to_keep(&protected) {
            Some(reason) => Fate::Kept(reason),
            None if clean => Fate::Removed,
            None => Fate::Left,
        };
        Orphan {
            path: candidate.path,
            found: candidate.found,
            fate,
        }
    });
    Ok(orphans.collect())
}

/// An orphan whose fate has not been decided yet.
struct Candidate {
    path: FilePath,
    found: FoundFile,
    has_user_text: bool,
    /// `domain_ephemeral` or `instance_ephemeral`, if the file sets it.
    ephemeral: Option<bool>,
    /// The file's domain; for a machine's file, the domain that it names.
    domain: Option<String>,
}

impl Candidate {
    /// Returns `None` for a file that `sync` did not write.
    fn of(path: FilePath, found: FoundFile) -> Option<Self> {
        // A file with a damaged block is left alone.
        let parts = managed_block::find(&found.text).ok()??;
        let values: Mapping = serde_yaml::from_str(parts.body()).unwrap_or_default();
        let domain = match path.folder {
            InventoryFolder::HostVars => {
                let domain = values.get("instance_domain").and_then(Value::as_str);
                domain.map(str::to_owned)
            }
            InventoryFolder::GroupVars | InventoryFolder::Inventory => Some(path.stem.clone()),
        };
        let ephemeral = ephemeral_key(path.folder).and_then(|key| values.get(key)?.as_bool());
        Some(Self {
            has_user_text: parts.has_user_text(),
            ephemeral,
            domain,
            path,
            found,
        })
    }

    fn reason_to_keep(&self, protected: &BTreeMap<String, String>) -> Option<String> {
        match (ephemeral_key(self.path.folder), self.ephemeral) {
            (None, _) | (_, Some(true)) => {}
            (Some(key), Some(false)) => return Some(format!("protected: {key} is false")),
            (Some(_), None) => {
                return Some("protected: it is not marked as ephemeral".to_owned());
            }
        }
        let domain = self.domain.as_ref();
        let of_domain = domain.filter(|_| self.path.folder != InventoryFolder::HostVars);
        if let Some(reason) = of_domain.and_then(|domain| protected.get(domain)) {
            return Some(format!("protected: {reason}"));
        }
        self.has_user_text
            .then(|| "it contains text of your own".to_owned())
    }
}

/// Returns the variable that states whether a file's machine or domain is ephemeral.
const fn ephemeral_key(folder: InventoryFolder) -> Option<&'static str> {
    match folder {
        InventoryFolder::Inventory => None,
        InventoryFolder::GroupVars => Some("domain_ephemeral"),
        InventoryFolder::HostVars => Some("instance_ephemeral"),
    }
}

/// Returns the domains whose inventory and variables are kept, each with the reason.
fn protected_domains(candidates: &[Candidate]) -> BTreeMap<String, String> {
    let mut protected = BTreeMap::new();
    let (inventories, variables): (Vec<_>, Vec<_>) = candidates
        .iter()
        .partition(|candidate| candidate.path.folder == InventoryFolder::Inventory);
    for candidate in &variables {
        if let (Some(domain), None | Some(false)) = (&candidate.domain, candidate.ephemeral) {
            let reason = format!("{} stays", candidate.path);
            protected.entry(domain.clone()).or_insert(reason);
        }
    }
    let of_domains = variables
        .iter()
        .filter(|candidate| candidate.path.folder == InventoryFolder::GroupVars);
    let declared: BTreeSet<&str> = of_domains.map(|candidate| &*candidate.path.stem).collect();
    for FilePath { stem, .. } in inventories.iter().map(|candidate| &candidate.path) {
        if !declared.contains(stem.as_str()) {
            let reason = format!("no group_vars/{stem}.yml marks it as ephemeral");
            protected.entry(stem.clone()).or_insert(reason);
        }
    }
    protected
}
