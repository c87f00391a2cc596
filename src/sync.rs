//! Compares the files that Ansible reads with `infra.yml`, and writes all of them or none.

pub(crate) mod commit;
mod managed_block;
pub(crate) mod orphans;
mod shadow;
pub(crate) mod tree;
mod verify;

use std::collections::{BTreeSet, HashMap};
use std::num::NonZero;

use serde_json::{Map, Value};

use crate::error::{Exit, Failure, Failures};
use crate::inventory::{self, FilePath, GeneratedFile, InventoryFolder};
use commit::FileChange;
use managed_block::BlockFault;
use orphans::{Fate, Orphan};
use shadow::FoundNames;
use tree::{FileTree, FoundFile, TreeFault};
use verify::EnclosingKeys;

/// Minimum number of files that justifies another thread.
const SHARE_MIN: usize = 200;

/// The change to a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FileState {
    Created,
    Updated,
    Unchanged,
}

/// The current and required text of a file.
#[derive(Debug)]
pub(crate) struct PlannedFile {
    pub(crate) path: FilePath,
    pub(crate) found: Option<FoundFile>,
    pub(crate) new: String,
    pub(crate) state: FileState,
    /// True if an update changes only the YAML style, and no value.
    pub(crate) restyled: bool,
}

/// Compares every file with its required text.
///
/// # Errors
///
/// Returns every fault found.
pub(crate) fn plan(
    tree: &FileTree,
    files: &[GeneratedFile<'_>],
) -> Result<Vec<PlannedFile>, Failures> {
    let names = FoundNames::list(tree).map_err(|fault| Failures(vec![failure(&fault)]))?;
    let groups = GroupKeys::of(files);
    let mut plan = Vec::with_capacity(files.len());
    let mut faults = Vec::new();
    let work = |file: &GeneratedFile<'_>| {
        names.check(&file.path)?;
        planned(tree, file, &groups)
    };
    for result in on_all_cores(files, work) {
        match result {
            Ok(planned) => plan.push(planned),
            Err(fault) => faults.push(fault),
        }
    }
    if faults.is_empty() {
        Ok(plan)
    } else {
        Err(Failures(faults))
    }
}

/// Makes the planned changes, and removes the orphans marked for removal.
///
/// # Errors
///
/// Fails if a file cannot be written. No change remains then, unless the error says otherwise.
pub(crate) fn write(
    tree: &mut FileTree,
    plan: &[PlannedFile],
    orphans: &[Orphan],
) -> Result<(), TreeFault> {
    commit::commit(tree, &changes(plan, orphans))
}

/// Does the work for every file on all cores, keeping the order: a run spends most of its time reading files back.
fn on_all_cores<T: Send>(
    files: &[GeneratedFile<'_>],
    work: impl Fn(&GeneratedFile<'_>) -> T + Sync,
) -> Vec<T> {
    let cores = std::thread::available_parallelism().map_or(1, NonZero::get);
    let share = files.len().div_ceil(cores).max(SHARE_MIN);
    std::thread::scope(|scope| {
        let work = &work;
        let shares = files.chunks(share);
        let threads: Vec<_> = shares
            .map(|share| scope.spawn(move || share.iter().map(work).collect::<Vec<T>>()))
            .collect();
        let mut done = Vec::with_capacity(files.len());
        for thread in threads {
            match thread.join() {
                Ok(share) => done.extend(share),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        done
    })
}

/// The variables that infra.yml declares for groups, by file.
struct GroupKeys(HashMap<FilePath, BTreeSet<String>>);

impl GroupKeys {
    fn of(files: &[GeneratedFile<'_>]) -> Self {
        let groups = files
            .iter()
            .filter(|file| file.path.folder == InventoryFolder::GroupVars);
        let keys = groups.map(|file| {
            let keys = file.values().into_iter().map(|(key, _)| key).collect();
            (file.path.clone(), keys)
        });
        Self(keys.collect())
    }

    /// Returns the keys of the groups that enclose a file's machine or group.
    fn around<'a>(&'a self, file: &GeneratedFile<'_>) -> EnclosingKeys<'a> {
        let groups = file.enclosing().into_iter();
        groups
            .filter_map(|path| self.0.get_key_value(&path))
            .collect()
    }
}

fn planned(
    tree: &FileTree,
    file: &GeneratedFile<'_>,
    groups: &GroupKeys,
) -> Result<PlannedFile, Failure> {
    let path = file.path.clone();
    let found = tree.read(&path).map_err(|fault| failure(&fault))?;
    let old = found.as_ref().map(|found| found.text.as_str());
    let values = file.values();
    let new = new_text(old, &values, || groups.around(file))
        .map_err(|fault| block_failure(&path, &fault))?;
    let state = match old {
        None => FileState::Created,
        Some(old) if old == new => FileState::Unchanged,
        Some(_) => FileState::Updated,
    };
    let restyled =
        state == FileState::Updated && old.is_some_and(|old| verify::is_current(old, &values));
    Ok(PlannedFile {
        path,
        found,
        new,
        state,
        restyled,
    })
}

/// Returns the new text of a file, after reading it back.
fn new_text<'a>(
    old: Option<&str>,
    values: &Map<String, Value>,
    enclosing: impl FnOnce() -> EnclosingKeys<'a>,
) -> Result<String, BlockFault> {
    let body = inventory::to_yaml(values).map_err(|fault| BlockFault {
        line: 1,
        message: format!("its values cannot be written as YAML: {fault}"),
        help: "change the values in infra.yml",
    })?;
    let parts = match old {
        Some(old) => managed_block::find(old)?,
        None => None,
    };
    let new = match (old, parts) {
        (None, _) => managed_block::create(&body),
        (Some(_), Some(parts)) => parts.with_body(&body),
        (Some(old), None) => managed_block::insert(old, &body)?,
    };
    // A file written by sync alone was already read back when it was written.
    let is_read_back =
        old == Some(new.as_str()) && parts.is_some_and(|parts| !parts.has_user_text());
    if !is_read_back {
        verify::verify(&new, old, values, &enclosing())?;
    }
    Ok(new)
}

fn changes(plan: &[PlannedFile], orphans: &[Orphan]) -> Vec<FileChange> {
    let written = plan.iter().filter_map(|file| {
        let (path, text) = (file.path.clone(), file.new.clone());
        match (&file.found, file.state) {
            (_, FileState::Unchanged) => None,
            (None, _) => Some(FileChange::Create { path, text }),
            (Some(found), _) => Some(FileChange::Update {
                path,
                text,
                seen: found.identity,
                owner: found.owner,
            }),
        }
    });
    let removed = orphans
        .iter()
        .filter(|orphan| orphan.fate == Fate::Removed)
        .map(|orphan| FileChange::Remove {
            path: orphan.path.clone(),
            seen: orphan.found.identity,
        });
    written.chain(removed).collect()
}

pub(crate) fn failure(fault: &TreeFault) -> Failure {
    let message = match std::error::Error::source(fault) {
        Some(cause) => format!("{fault}: {cause}"),
        None => fault.to_string(),
    };
    let mut failure = Failure::new(Exit::Failed, message);
    failure.help = fault.help().map(Into::into);
    failure
}

fn block_failure(path: &FilePath, fault: &BlockFault) -> Failure {
    let message = format!("{path}:{}: {}", fault.line, fault.message);
    Failure {
        place: Some((path.to_string(), fault.line)),
        ..Failure::new(Exit::Failed, message).help(fault.help)
    }
}
