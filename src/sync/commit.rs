//! Makes changes to files, all of them or none.
//!
//! Every new file is complete on disk, under a temporary name, before the first one is renamed; after a failure, all
//! changes are undone. A file that someone else has changed in the meantime is never overwritten.

mod place;

use std::fs::File;
use std::io::Write as _;

use rustix::fs::{AtFlags, Mode};
use rustix::io::Errno;

use crate::dir::Dir;
use crate::inventory::{FilePath, InventoryFolder};

use super::tree::{FileIdentity, FileTree, TreeFault, TreeOwner, temporary_name};
use place::{CommitPlace, PlaceRefusal, Renames, Undo, cannot};

/// Maximum number of files to sync to disk one by one; for more, syncing the whole file system is faster.
const ONE_BY_ONE: usize = 64;

/// A change to one file.
#[derive(Debug)]
pub(crate) enum FileChange {
    /// Makes a new file.
    Create {
        /// Its path.
        path: FilePath,
        /// Its text.
        text: String,
    },
    /// Replaces the text of an existing file.
    Update {
        /// Its path.
        path: FilePath,
        /// Its new text.
        text: String,
        /// Its state when it was read.
        seen: FileIdentity,
        /// The permissions and owners that it keeps.
        owner: TreeOwner,
    },
    /// Removes a file.
    Remove {
        /// Its path.
        path: FilePath,
        /// Its state when it was read.
        seen: FileIdentity,
    },
}

impl FileChange {
    const fn path(&self) -> &FilePath {
        match self {
            Self::Create { path, .. } | Self::Update { path, .. } | Self::Remove { path, .. } => {
                path
            }
        }
    }
}

/// Makes all changes, or none.
///
/// # Errors
///
/// Fails if a system call fails. No change remains then, unless the error says otherwise.
pub(crate) fn commit(tree: &mut FileTree, changes: &[FileChange]) -> Result<(), TreeFault> {
    commit_with(tree, changes, Renames::Exchange)
}

fn commit_with(
    tree: &mut FileTree,
    changes: &[FileChange],
    renames: Renames,
) -> Result<(), TreeFault> {
    // Even if nothing changes: an earlier run may have been killed before it removed its temporary files.
    if tree.is_alone {
        tree.remove_leftovers()?;
    }
    if changes.is_empty() {
        return Ok(());
    }
    let mut run = CommitRun {
        tree,
        changes,
        renames,
        made: Vec::new(),
        new: Vec::with_capacity(changes.len()),
        done: Vec::new(),
    };
    let result = run.all();
    match result {
        Ok(()) => {
            run.remove_temporaries();
            Ok(())
        }
        Err(cause) => Err(run.undo(cause)),
    }
}

/// A run that makes changes, and its progress.
struct CommitRun<'a> {
    tree: &'a mut FileTree,
    changes: &'a [FileChange],
    renames: Renames,
    /// Folders that this run has created.
    made: Vec<InventoryFolder>,
    /// The state of each prepared file, indexed by change number.
    new: Vec<Option<FileIdentity>>,
    /// The undo step for each change made, with the change number.
    done: Vec<(usize, Undo)>,
}

impl CommitRun<'_> {
    fn all(&mut self) -> Result<(), TreeFault> {
        for change in self.changes {
            let folder = change.path().folder;
            if self.tree.make_folder(folder)? {
                self.made.push(folder);
            }
        }
        for (number, change) in self.changes.iter().enumerate() {
            // Recorded first, so that an incomplete file is removed too.
            self.new.push(None);
            let new = self.prepare(number, change)?;
            if let Some(last) = self.new.last_mut() {
                *last = new;
            }
        }
        if self.changes.len() > ONE_BY_ONE {
            rustix::fs::syncfs(&self.tree.base)
                .map_err(|cause| TreeFault::system("write below", &self.tree.name(), cause))?;
        }
        for (number, change) in self.changes.iter().enumerate() {
            self.make(number, change)?;
        }
        for folder in InventoryFolder::ALL {
            if let Some(handle) = self.tree.folder(folder) {
                sync_folder(handle)
                    .map_err(|cause| TreeFault::system("write", &folder.as_str(), cause))?;
            }
        }
        Ok(())
    }

    fn folder(&self, path: &FilePath) -> Result<&Dir, TreeFault> {
        let missing = || TreeFault::system("open", &path.folder.as_str(), Errno::NOENT);
        self.tree.folder(path.folder).ok_or_else(missing)
    }

    /// Writes the new text to a temporary file.
    fn prepare(
        &self,
        number: usize,
        change: &FileChange,
    ) -> Result<Option<FileIdentity>, TreeFault> {
        let (path, text, owner) = match change {
            FileChange::Create { path, text } => (path, text, None),
            FileChange::Update {
                path, text, owner, ..
            } => (path, text, Some(owner)),
            FileChange::Remove { .. } => return Ok(None),
        };
        let folder = self.folder(path)?;
        let fault = |cause| TreeFault::system("write", path, cause);
        // Nobody else may read the new text before the file has its final permissions.
        let mode = Mode::from_raw_mode(if owner.is_some() { 0o600 } else { 0o644 });
        let mut file = folder
            .create(&temporary_name(number), mode)
            .map_err(|cause| fault(cause.into()))?;
        file.write_all(text.as_bytes()).map_err(fault)?;
        if let Some(owner) = owner {
            hand_over(&file, *owner).map_err(|cause| fault(cause.into()))?;
        }
        if self.changes.len() <= ONE_BY_ONE {
            file.sync_all().map_err(fault)?;
        }
        let stat = rustix::fs::fstat(&file).map_err(|cause| fault(cause.into()))?;
        Ok(Some(FileIdentity::of(&stat)))
    }

    /// Returns the names that a change uses for its file.
    fn place(&self, number: usize, path: &FilePath) -> Result<CommitPlace<'_>, TreeFault> {
        let temporary = temporary_name(number);
        Ok(CommitPlace {
            folder: self.folder(path)?,
            name: path.file_name(),
            kept: temporary.replace(".tmp", "-kept.tmp"),
            temporary,
        })
    }

    /// Makes a prepared change.
    fn make(&mut self, number: usize, change: &FileChange) -> Result<(), TreeFault> {
        let place = self.place(number, change.path())?;
        let new = self.new.get(number).copied().flatten();
        // Every update has been prepared; one that was not would fail in `create`.
        let made = match (change, new) {
            (FileChange::Update { seen, .. }, Some(new)) => place.update(self.renames, *seen, new),
            (FileChange::Remove { seen, .. }, _) => place.remove(*seen),
            (FileChange::Create { .. } | FileChange::Update { .. }, _) => {
                place.create(self.renames)
            }
        };
        match made {
            Ok(undo) => {
                if undo == Undo::Kept {
                    // If the file system cannot exchange names now, it will not be able to later in this run either.
                    self.renames = Renames::Links;
                }
                self.done.push((number, undo));
                Ok(())
            }
            Err(refusal) => Err(fault(change, refusal)),
        }
    }

    /// Undoes all changes in reverse order, and returns the final error.
    fn undo(&mut self, cause: TreeFault) -> TreeFault {
        let (cause, mut left) = match cause {
            TreeFault::HalfDone { cause, left } => (cause, left),
            cause => (Box::new(cause), Vec::new()),
        };
        for (number, undo) in std::mem::take(&mut self.done).into_iter().rev() {
            let Some(path) = self.changes.get(number).map(FileChange::path) else {
                continue;
            };
            let new = self.new.get(number).copied().flatten();
            let place = self.place(number, path);
            if !place.is_ok_and(|place| place.undo(undo, new).is_ok()) {
                left.push(path.to_string());
            }
        }
        if left.is_empty() {
            self.remove_temporaries();
            for folder in &self.made {
                // Fails if someone has since put a file into it.
                let _ = rustix::fs::unlinkat(&self.tree.base, folder.as_str(), AtFlags::REMOVEDIR);
            }
            return *cause;
        }
        TreeFault::HalfDone { cause, left }
    }

    /// Removes the temporary files: unused new ones, and old ones that have been replaced.
    fn remove_temporaries(&self) {
        for (number, change) in self.changes.iter().enumerate().take(self.new.len()) {
            if let Ok(place) = self.place(number, change.path()) {
                place.tidy();
            }
        }
    }
}

/// Maps a refusal to an error.
fn fault(change: &FileChange, refusal: PlaceRefusal) -> TreeFault {
    let path = change.path();
    let changed = || TreeFault::Changed(path.to_string());
    match refusal {
        PlaceRefusal::Changed => changed(),
        PlaceRefusal::Displaced => TreeFault::HalfDone {
            cause: Box::new(changed()),
            left: vec![path.to_string()],
        },
        PlaceRefusal::System(cause) => {
            let is_removal = matches!(change, FileChange::Remove { .. });
            TreeFault::system(if is_removal { "remove" } else { "write" }, path, cause)
        }
    }
}

/// Gives a new file the old one's permissions and, as far as the user is allowed to, its owner.
fn hand_over(file: &File, owner: TreeOwner) -> Result<(), Errno> {
    let stat = rustix::fs::fstat(file)?;
    if (stat.st_uid, stat.st_gid) != (owner.uid, owner.gid) {
        let uid = Some(rustix::fs::Uid::from_raw(owner.uid));
        let gid = Some(rustix::fs::Gid::from_raw(owner.gid));
        if rustix::fs::fchown(file, uid, gid).is_err() {
            // Only root can set another owner. As with editors, the user becomes owner; the group is kept if possible.
            let _ = rustix::fs::fchown(file, None, gid);
        }
    }
    rustix::fs::fchmod(file, owner.mode)
}

/// Syncs a folder to disk, if the file system can sync folders.
fn sync_folder(folder: &Dir) -> Result<(), Errno> {
    match rustix::fs::fsync(folder) {
        Err(cause) if cannot(cause) => Ok(()),
        result => result,
    }
}

#[cfg(test)]
mod tests;
