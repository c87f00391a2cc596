//! Makes changes to files, all of them or none.
//!
//! Everything new is written beside its place first and is on the disk before the first file changes its name; a failure
//! undoes what was done. A file that someone else wrote in the meantime is not overwritten, whatever the moment.

use std::fs::File;
use std::io::Write as _;
use std::os::fd::{AsFd as _, OwnedFd};

use rustix::fs::{AtFlags, Mode, OFlags, RenameFlags};
use rustix::io::Errno;

use crate::inventory::{FilePath, Folder};

use super::tree::{Identity, Owner, Tree, TreeFault, temporary_name};

/// Up to this many files are brought to the disk one by one; beyond it, the whole file system at once is faster.
const ONE_BY_ONE: usize = 64;

/// A change to one file.
#[derive(Debug)]
pub(super) enum Change {
    /// A file that is not there.
    Create {
        /// Where.
        path: FilePath,
        /// Its text.
        text: String,
    },
    /// A file that is there.
    Update {
        /// Where.
        path: FilePath,
        /// Its new text.
        text: String,
        /// What it was when it was read.
        seen: Identity,
        /// Permissions that it keeps.
        owner: Owner,
    },
    /// A file that goes.
    Remove {
        /// Where.
        path: FilePath,
        /// What it was when it was read.
        seen: Identity,
    },
}

impl Change {
    const fn path(&self) -> &FilePath {
        match self {
            Self::Create { path, .. } | Self::Update { path, .. } | Self::Remove { path, .. } => path,
        }
    }
}

/// How files change places.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Renames {
    /// By exchanging names in one step.
    Exchange,
    /// By hard links and plain renames: for file systems that cannot exchange, such as NFS.
    Links,
}

/// Makes all changes, or none.
///
/// # Errors
///
/// Whatever the system refused; everything is as it was, unless the fault says what is not.
pub(super) fn commit(tree: &mut Tree, changes: &[Change]) -> Result<(), TreeFault> {
    commit_with(tree, changes, Renames::Exchange)
}

fn commit_with(tree: &mut Tree, changes: &[Change], renames: Renames) -> Result<(), TreeFault> {
    if changes.is_empty() {
        return Ok(());
    }
    if tree.is_alone {
        tree.remove_leftovers()?;
    }
    let mut run = Run {
        tree,
        changes,
        renames,
        made: Vec::new(),
        prepared: 0,
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

/// A run of changes: what it has done so far.
struct Run<'a> {
    tree: &'a mut Tree,
    changes: &'a [Change],
    renames: Renames,
    /// Folders that this run made.
    made: Vec<Folder>,
    /// How many changes may have a temporary file.
    prepared: usize,
    /// What it takes to undo each change that was made, with the change's number.
    done: Vec<(usize, Undo)>,
}

/// What undoes a change. The temporary file's name follows from the change's number.
enum Undo {
    /// Take the new file away.
    Unlink,
    /// Exchange it with the temporary file, which holds the old one.
    Exchange,
    /// Give the temporary file, which is the old one, its name back.
    Rename,
    /// Give the old file its first name back.
    Kept,
}

impl Run<'_> {
    fn all(&mut self) -> Result<(), TreeFault> {
        for change in self.changes {
            let folder = change.path().folder;
            if self.tree.make_folder(folder)? {
                self.made.push(folder);
            }
        }
        for (number, change) in self.changes.iter().enumerate() {
            self.prepared = number + 1;
            self.prepare(number, change)?;
        }
        if self.changes.len() > ONE_BY_ONE {
            rustix::fs::syncfs(&self.tree.base).map_err(|cause| TreeFault::system("write below", ".", cause))?;
        }
        for (number, change) in self.changes.iter().enumerate() {
            self.make(number, change)?;
        }
        for folder in Folder::ALL {
            if let Some(handle) = self.tree.folder(folder) {
                sync_folder(handle).map_err(|cause| TreeFault::system("write", folder.as_str(), cause))?;
            }
        }
        Ok(())
    }

    fn folder(&self, path: &FilePath) -> Result<&OwnedFd, TreeFault> {
        let missing = || TreeFault::system("open", path.folder.as_str(), Errno::NOENT);
        self.tree.folder(path.folder).ok_or_else(missing)
    }

    /// Writes the new text beside its place.
    fn prepare(&self, number: usize, change: &Change) -> Result<(), TreeFault> {
        let (path, text, owner) = match change {
            Change::Create { path, text } => (path, text, None),
            Change::Update { path, text, owner, .. } => (path, text, Some(owner)),
            Change::Remove { .. } => return Ok(()),
        };
        let folder = self.folder(path)?;
        let fault = |cause| TreeFault::system("write", path, cause);
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        // Nobody else reads the new text of a file before it has that file's permissions.
        let mode = Mode::from_raw_mode(if owner.is_some() { 0o600 } else { 0o644 });
        let handle = rustix::fs::openat(folder, temporary_name(number), flags, mode)
            .map_err(|cause| fault(cause.into()))?;
        let mut file = File::from(handle);
        file.write_all(text.as_bytes()).map_err(fault)?;
        if let Some(owner) = owner {
            hand_over(&file, *owner).map_err(|cause| fault(cause.into()))?;
        }
        if self.changes.len() <= ONE_BY_ONE {
            file.sync_all().map_err(fault)?;
        }
        Ok(())
    }

    /// Makes a change whose text is prepared.
    fn make(&mut self, number: usize, change: &Change) -> Result<(), TreeFault> {
        let path = change.path();
        let undo = match change {
            Change::Create { .. } => self.create(number, path)?,
            Change::Update { seen, .. } => self.update(number, path, *seen)?,
            Change::Remove { seen, .. } => self.remove(number, path, *seen)?,
        };
        self.done.push((number, undo));
        Ok(())
    }

    fn create(&self, number: usize, path: &FilePath) -> Result<Undo, TreeFault> {
        let folder = self.folder(path)?;
        let temporary = temporary_name(number);
        let made = match self.rename(folder, &temporary, &path.file_name(), RenameFlags::NOREPLACE) {
            Err(cause) if cannot(cause) => {
                rustix::fs::linkat(folder, &temporary, folder, path.file_name(), AtFlags::empty())
            }
            made => made,
        };
        match made {
            Ok(()) => Ok(Undo::Unlink),
            Err(Errno::EXIST) => Err(TreeFault::Changed(path.to_string())),
            Err(cause) => Err(TreeFault::system("write", path, cause)),
        }
    }

    fn update(&self, number: usize, path: &FilePath, seen: Identity) -> Result<Undo, TreeFault> {
        let folder = self.folder(path)?;
        let (temporary, name) = (temporary_name(number), path.file_name());
        match self.rename(folder, &temporary, &name, RenameFlags::EXCHANGE) {
            Ok(()) if is_still(folder, &temporary, seen) => Ok(Undo::Exchange),
            Ok(()) => Err(changed(path, self.rename(folder, &temporary, &name, RenameFlags::EXCHANGE))),
            Err(cause) if cannot(cause) => self.update_by_links(number, path, seen),
            Err(Errno::NOENT) => Err(TreeFault::Changed(path.to_string())),
            Err(cause) => Err(TreeFault::system("write", path, cause)),
        }
    }

    /// Keeps a second name for the old file, then gives its first one to the new file.
    fn update_by_links(&self, number: usize, path: &FilePath, seen: Identity) -> Result<Undo, TreeFault> {
        let folder = self.folder(path)?;
        let (temporary, name) = (temporary_name(number), path.file_name());
        let fault = |cause| TreeFault::system("write", path, cause);
        let kept = kept_name(number);
        rustix::fs::linkat(folder, &name, folder, &kept, AtFlags::empty()).map_err(fault)?;
        if !is_still(folder, &kept, seen) {
            return Err(TreeFault::Changed(path.to_string()));
        }
        rustix::fs::renameat(folder, &temporary, folder, &name).map_err(fault)?;
        Ok(Undo::Kept)
    }

    fn remove(&self, number: usize, path: &FilePath, seen: Identity) -> Result<Undo, TreeFault> {
        let folder = self.folder(path)?;
        let temporary = temporary_name(number);
        match rustix::fs::renameat(folder, path.file_name(), folder, &temporary) {
            Ok(()) if is_still(folder, &temporary, seen) => Ok(Undo::Rename),
            Ok(()) => Err(changed(path, rustix::fs::renameat(folder, &temporary, folder, path.file_name()))),
            Err(cause) => Err(TreeFault::system("remove", path, cause)),
        }
    }

    fn rename(&self, folder: &OwnedFd, from: &str, to: &str, flags: RenameFlags) -> Result<(), Errno> {
        match self.renames {
            Renames::Exchange => rustix::fs::renameat_with(folder, from, folder, to, flags),
            Renames::Links => Err(Errno::INVAL),
        }
    }

    /// Undoes everything, last change first, and says what went wrong.
    fn undo(&mut self, cause: TreeFault) -> TreeFault {
        let (cause, mut left) = match cause {
            TreeFault::HalfDone { cause, left } => (cause, left),
            cause => (Box::new(cause), Vec::new()),
        };
        for (number, undo) in std::mem::take(&mut self.done).into_iter().rev() {
            let Some(path) = self.changes.get(number).map(Change::path) else {
                continue;
            };
            if self.undo_one(number, path, &undo).is_err() {
                left.push(path.to_string());
            }
        }
        if left.is_empty() {
            self.remove_temporaries();
            for folder in &self.made {
                // Someone may have put a file into it since.
                let _ = rustix::fs::unlinkat(&self.tree.base, folder.as_str(), AtFlags::REMOVEDIR);
            }
            return *cause;
        }
        TreeFault::HalfDone { cause, left }
    }

    fn undo_one(&self, number: usize, path: &FilePath, undo: &Undo) -> Result<(), Errno> {
        let folder = self.tree.folder(path.folder).ok_or(Errno::NOENT)?;
        let (temporary, name) = (temporary_name(number), path.file_name());
        match undo {
            Undo::Unlink => rustix::fs::unlinkat(folder, name, AtFlags::empty()),
            Undo::Exchange => self.rename(folder, &temporary, &name, RenameFlags::EXCHANGE),
            Undo::Rename => rustix::fs::renameat(folder, temporary, folder, name),
            Undo::Kept => rustix::fs::renameat(folder, kept_name(number), folder, name),
        }
    }

    /// Removes the temporary files: new texts that were not used, or old ones that are not needed any more.
    /// What cannot be removed goes with the next run.
    fn remove_temporaries(&self) {
        for (number, change) in self.changes.iter().enumerate().take(self.prepared) {
            if let Some(folder) = self.tree.folder(change.path().folder) {
                for name in [temporary_name(number), kept_name(number)] {
                    let _ = rustix::fs::unlinkat(folder, name, AtFlags::empty());
                }
            }
        }
    }
}

/// A file that was not the one that was read has been given its name back, or could not be.
fn changed(path: &FilePath, put_back: Result<(), Errno>) -> TreeFault {
    let cause = TreeFault::Changed(path.to_string());
    match put_back {
        Ok(()) => cause,
        Err(_) => TreeFault::HalfDone {
            cause: Box::new(cause),
            left: vec![path.to_string()],
        },
    }
}

/// The second name of an old file.
fn kept_name(number: usize) -> String {
    temporary_name(number).replace(".tmp", "-kept.tmp")
}

/// Whether the file system does not know the way that was tried.
fn cannot(cause: Errno) -> bool {
    [Errno::INVAL, Errno::NOSYS, Errno::OPNOTSUPP].contains(&cause)
}

/// Whether a name still leads to the file that was read, unchanged.
fn is_still(folder: &OwnedFd, name: &str, seen: Identity) -> bool {
    rustix::fs::statat(folder, name, AtFlags::SYMLINK_NOFOLLOW).is_ok_and(|stat| Identity::of(&stat) == seen)
}

/// Gives a new file the permissions of the old one, and its owner as far as the user may.
fn hand_over(file: &File, owner: Owner) -> Result<(), Errno> {
    let stat = rustix::fs::fstat(file)?;
    if (stat.st_uid, stat.st_gid) != (owner.uid, owner.gid) {
        let uid = Some(rustix::fs::Uid::from_raw(owner.uid));
        let gid = Some(rustix::fs::Gid::from_raw(owner.gid));
        if rustix::fs::fchown(file.as_fd(), uid, gid).is_err() {
            // Not the owner: the file becomes the user's, as with any editor; its group stays where it can.
            let _ = rustix::fs::fchown(file.as_fd(), None, gid);
        }
    }
    rustix::fs::fchmod(file, owner.mode)
}

/// Brings the names in a folder to the disk; a file system that has no such thing needs none.
fn sync_folder(folder: &OwnedFd) -> Result<(), Errno> {
    match rustix::fs::fsync(folder) {
        Err(cause) if cannot(cause) => Ok(()),
        result => result,
    }
}
