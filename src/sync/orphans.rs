//! Files that `sync` wrote for machines and domains that infra.yml no longer declares.
//!
//! Only a file with a managed block is one; what else lies in the folders is the user's. In doubt a file is kept.

use std::collections::{BTreeMap, BTreeSet};

use serde_yaml::Mapping;

use crate::inventory::{FilePath, InventoryFolder};

use super::managed_block::{self, BlockParts};
use super::tree::{FileTree, FoundFile, TreeFault};

/// The fate of an orphan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Fate {
    /// It stays; `--clean-orphans` would remove it.
    Left,
    /// It goes.
    Removed,
    /// It stays whatever the flags: why.
    Kept(String),
}

/// A file that nothing declares any more.
#[derive(Debug)]
pub(crate) struct Orphan {
    /// Its place.
    pub(crate) path: FilePath,
    /// Its content.
    pub(crate) found: FoundFile,
    /// Its fate.
    pub(crate) fate: Fate,
}

/// Finds the orphans, in the order of folders and names.
pub(crate) fn find(
    tree: &FileTree,
    known: &BTreeSet<FilePath>,
    clean: bool,
) -> Result<Vec<Orphan>, TreeFault> {
    let mut candidates = Vec::new();
    for folder in InventoryFolder::ALL {
        for path in tree.files(folder)? {
            if known.contains(&path) {
                continue;
            }
            // A link, a folder or a file of the user's is none of ours, whatever its name.
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

/// An orphan whose fate is open.
struct Candidate {
    path: FilePath,
    found: FoundFile,
    has_user_text: bool,
    /// `domain_ephemeral` or `instance_ephemeral`; `None` where the file does not say.
    ephemeral: Option<bool>,
    /// Of a machine: its domain.
    domain: Option<String>,
}

impl Candidate {
    /// `None` for a file that `sync` did not write.
    fn of(path: FilePath, found: FoundFile) -> Option<Self> {
        // A block that begins and does not end was ours, and is no more: left alone.
        let parts = managed_block::find(&found.text).ok()??;
        let values = values(&parts);
        let text = |key| {
            values
                .get(key)
                .and_then(serde_yaml::Value::as_str)
                .map(str::to_owned)
        };
        let truth = |key| values.get(key).and_then(serde_yaml::Value::as_bool);
        Some(Self {
            has_user_text: parts.has_user_text(),
            ephemeral: match path.folder {
                InventoryFolder::Inventory => None,
                InventoryFolder::GroupVars => truth("domain_ephemeral"),
                InventoryFolder::HostVars => truth("instance_ephemeral"),
            },
            domain: match path.folder {
                InventoryFolder::HostVars => text("instance_domain"),
                InventoryFolder::GroupVars | InventoryFolder::Inventory => Some(path.stem.clone()),
            },
            path,
            found,
        })
    }

    fn reason_to_keep(&self, protected: &BTreeMap<String, String>) -> Option<String> {
        let own = match (self.path.folder, self.ephemeral) {
            (InventoryFolder::Inventory, _) | (_, Some(true)) => None,
            (InventoryFolder::GroupVars, Some(false)) => {
                Some("protected: domain_ephemeral is false".to_owned())
            }
            (InventoryFolder::HostVars, Some(false)) => {
                Some("protected: instance_ephemeral is false".to_owned())
            }
            (InventoryFolder::GroupVars | InventoryFolder::HostVars, None) => {
                Some("protected: it does not say that it is ephemeral".to_owned())
            }
        };
        let of_domain = || {
            let domain = self
                .domain
                .as_ref()
                .filter(|_| self.path.folder != InventoryFolder::HostVars)?;
            let reason = protected.get(domain)?;
            Some(format!("protected: {reason}"))
        };
        let users = || {
            self.has_user_text
                .then(|| "it holds text of your own".to_owned())
        };
        own.or_else(of_domain).or_else(users)
    }
}

/// Reads the values in a file's block; empty if it cannot be read.
fn values(parts: &BlockParts<'_>) -> Mapping {
    serde_yaml::from_str(parts.body()).unwrap_or_default()
}

/// Domains whose inventory and variables stay, each with the file that says why.
fn protected_domains(candidates: &[Candidate]) -> BTreeMap<String, String> {
    let mut protected = BTreeMap::new();
    for candidate in candidates {
        let keeps = candidate.path.folder != InventoryFolder::Inventory
            && candidate.ephemeral != Some(true);
        if let Some(domain) = candidate.domain.as_ref().filter(|_| keeps) {
            let reason = format!("{} stays", candidate.path);
            protected.entry(domain.clone()).or_insert(reason);
        }
    }
    let declared: BTreeSet<&str> = candidates
        .iter()
        .filter(|candidate| candidate.path.folder == InventoryFolder::GroupVars)
        .map(|candidate| candidate.path.stem.as_str())
        .collect();
    for candidate in candidates
        .iter()
        .filter(|candidate| candidate.path.folder == InventoryFolder::Inventory)
    {
        if !declared.contains(candidate.path.stem.as_str()) {
            let reason = format!(
                "no group_vars/{}.yml says that it is ephemeral",
                candidate.path.stem
            );
            protected
                .entry(candidate.path.stem.clone())
                .or_insert(reason);
        }
    }
    protected
}
