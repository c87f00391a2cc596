//! Finds files that Ansible would read instead of those that `sync` writes or alongside them, or would stop reading.
//!
//! Of the files of one machine or group, Ansible reads the first that exists: `NAME` (a file or a folder), `NAME.yml`,
//! `NAME.yaml`, `NAME.json` (`DataLoader.find_vars_files` of ansible-core). In an inventory folder, it reads them all.

use std::collections::HashSet;

use super::tree::{FileTree, TreeFault};
use crate::error::{Exit, Failure};
use crate::inventory::{FilePath, InventoryFolder};

/// The names in the three folders that do not end in `.yml`: no other file takes the place of those that `sync` writes.
pub(super) struct FoundNames([HashSet<String>; 3]);

impl FoundNames {
    /// Lists the folders.
    pub(super) fn list(tree: &FileTree) -> Result<Self, TreeFault> {
        let mut found = Self(Default::default());
        for (folder, names) in InventoryFolder::ALL.into_iter().zip(&mut found.0) {
            let others = tree.names(folder)?.into_iter();
            names.extend(others.filter(|name| name.strip_suffix(".yml").is_none()));
        }
        Ok(found)
    }

    /// Checks that Ansible reads this file, and no other one for the same machine or group.
    pub(super) fn check(&self, path: &FilePath) -> Result<(), Failure> {
        let FilePath { folder, stem } = path;
        let names = self.0.get(*folder as usize);
        // Most folders hold nothing else, and there may be ten thousand files to check.
        let Some(names) = names.filter(|names| !names.is_empty()) else {
            return Ok(());
        };
        for suffix in ["", ".yaml", ".json"] {
            if !names.contains(&format!("{stem}{suffix}")) {
                continue;
            }
            let other = format!("{}/{stem}{suffix}", folder.as_str());
            let (verb, relation) = match (folder, suffix) {
                (InventoryFolder::Inventory, _) => ("read", "as well as"),
                (_, "") => ("read", "instead of"),
                _ => ("ignore", "beside"),
            };
            let fault =
                format!("Ansible would {verb} `{other}` {relation} `{path}`, which sync writes");
            let help = match folder {
                InventoryFolder::Inventory => {
                    "remove it; if it lists hosts of your own, give it another name".to_owned()
                }
                InventoryFolder::GroupVars | InventoryFolder::HostVars => format!(
                    "move its variables to `{path}`, outside the managed block, and remove it"
                ),
            };
            return Err(Failure::new(Exit::Failed, fault).help(help));
        }
        Ok(())
    }
}
