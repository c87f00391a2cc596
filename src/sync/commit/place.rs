//! Replaces one file with another in a single, reversible step, and never overwrites someone else's change.

use rustix::fs::{AtFlags, RenameFlags};
use rustix::io::Errno;

use super::super::tree::FileIdentity;
use crate::dir::Dir;

/// The method used to replace files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Renames {
    /// Exchanges two names in one step.
    Exchange,
    /// Uses hard links and plain renames, for file systems that cannot exchange names, such as NFS. A change made by
    /// someone else between checking the old file and replacing it goes unnoticed.
    Links,
}

/// The names of one file in its folder.
#[derive(Debug)]
pub(super) struct CommitPlace<'a> {
    /// The folder.
    pub(super) folder: &'a Dir,
    /// The file's own name.
    pub(super) name: String,
    /// The temporary file's name; the file holds the new text before the change, and the old text after it.
    pub(super) temporary: String,
    /// A second name for the old file, used if names cannot be exchanged.
    pub(super) kept: String,
}

/// How to undo a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Undo {
    /// Remove the new file.
    Unlink,
    /// Exchange the file with the temporary one, which holds the old text.
    Exchange,
    /// Rename the old file from its second name to its first.
    Kept,
    /// Rename the temporary file, which is the old file, back to its former name.
    Rename,
}

/// The reason why a file was not changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PlaceRefusal {
    /// It differs from the file that was read, and has been left untouched.
    Changed,
    /// It differs from the file that was read, and could not be put back.
    Displaced,
    /// A system call failed.
    System(Errno),
}

impl From<Errno> for PlaceRefusal {
    fn from(cause: Errno) -> Self {
        match cause {
            Errno::EXIST | Errno::NOENT => Self::Changed,
            other => Self::System(other),
        }
    }
}

impl CommitPlace<'_> {
    /// Renames the temporary file to its final name, if that name is free.
    pub(super) fn create(&self, renames: Renames) -> Result<Undo, PlaceRefusal> {
        let made = match renames {
            Renames::Exchange => self.rename(&self.temporary, &self.name, RenameFlags::NOREPLACE),
            Renames::Links => Err(Errno::NOSYS),
        };
        match made {
            Err(cause) if cannot(cause) => self.link(&self.temporary, &self.name)?,
            made => made?,
        }
        Ok(Undo::Unlink)
    }

    /// Replaces the file `seen` with the temporary file `new`.
    pub(super) fn update(
        &self,
        renames: Renames,
        seen: FileIdentity,
        new: FileIdentity,
    ) -> Result<Undo, PlaceRefusal> {
        if !self.is(&self.name, seen) {
            return Err(PlaceRefusal::Changed);
        }
        let exchanged = match renames {
            Renames::Exchange => self.rename(&self.temporary, &self.name, RenameFlags::EXCHANGE),
            Renames::Links => Err(Errno::NOSYS),
        };
        match exchanged {
            Ok(()) if self.is(&self.temporary, seen) => Ok(Undo::Exchange),
            Ok(()) => Err(changed(self.exchange_back(new))),
            Err(cause) if cannot(cause) => self.update_by_links(seen),
            Err(cause) => Err(cause.into()),
        }
    }

    fn update_by_links(&self, seen: FileIdentity) -> Result<Undo, PlaceRefusal> {
        self.link(&self.name, &self.kept)?;
        if !self.is(&self.kept, seen) {
            return Err(PlaceRefusal::Changed);
        }
        self.rename(&self.temporary, &self.name, RenameFlags::empty())?;
        Ok(Undo::Kept)
    }

    /// Removes the file `seen`.
    pub(super) fn remove(&self, seen: FileIdentity) -> Result<Undo, PlaceRefusal> {
        self.rename(&self.name, &self.temporary, RenameFlags::empty())?;
        if self.is(&self.temporary, seen) {
            Ok(Undo::Rename)
        } else {
            Err(changed(self.rename_back()))
        }
    }

    /// Undoes a change whose new file was `new`. A file that someone else has since written is kept.
    pub(super) fn undo(&self, undo: Undo, new: Option<FileIdentity>) -> Result<(), Errno> {
        let is_ours = new.is_some_and(|new| self.is(&self.name, new));
        match (undo, new) {
            (Undo::Rename, _) => self.rename_back(),
            (Undo::Exchange, Some(new)) => self.exchange_back(new),
            (Undo::Kept, _) if is_ours => self.rename(&self.kept, &self.name, RenameFlags::empty()),
            (Undo::Unlink, _) if is_ours => self.unlink(&self.name),
            (Undo::Kept | Undo::Unlink | Undo::Exchange, _) => Ok(()),
        }
    }

    /// Removes the temporary files of a change.
    pub(super) fn tidy(&self) {
        // The next run removes files that cannot be removed now.
        let _ = self.unlink(&self.temporary);
        let _ = self.unlink(&self.kept);
    }

    /// Exchanges the names back. If someone has written a newer file in the meantime, the newer file is kept.
    fn exchange_back(&self, new: FileIdentity) -> Result<(), Errno> {
        self.rename(&self.temporary, &self.name, RenameFlags::EXCHANGE)?;
        if self.is(&self.temporary, new) {
            return Ok(());
        }
        self.rename(&self.temporary, &self.name, RenameFlags::empty())
    }

    /// Renames the temporary file back, unless someone has since used its former name.
    fn rename_back(&self) -> Result<(), Errno> {
        let back = match self.rename(&self.temporary, &self.name, RenameFlags::NOREPLACE) {
            Err(cause) if cannot(cause) => self.link(&self.temporary, &self.name),
            back => back,
        };
        match back {
            Err(Errno::EXIST) => Ok(()),
            back => back,
        }
    }

    fn rename(&self, from: &str, to: &str, flags: RenameFlags) -> Result<(), Errno> {
        if flags.is_empty() {
            return self.folder.rename(from, to);
        }
        rustix::fs::renameat_with(self.folder, from, self.folder, to, flags)
    }

    fn link(&self, from: &str, to: &str) -> Result<(), Errno> {
        rustix::fs::linkat(self.folder, from, self.folder, to, AtFlags::empty())
    }

    fn unlink(&self, name: &str) -> Result<(), Errno> {
        self.folder.remove(name).map(drop)
    }

    /// Returns whether a name refers to exactly this version of a file.
    fn is(&self, name: &str, identity: FileIdentity) -> bool {
        let stat = self.folder.stat(name).ok().flatten();
        stat.is_some_and(|stat| FileIdentity::of(&stat) == identity)
    }
}

fn changed(put_back: Result<(), Errno>) -> PlaceRefusal {
    match put_back {
        Ok(()) => PlaceRefusal::Changed,
        Err(_) => PlaceRefusal::Displaced,
    }
}

/// Returns whether the error means that the file system does not support the operation.
pub(super) fn cannot(cause: Errno) -> bool {
    [Errno::INVAL, Errno::NOSYS, Errno::OPNOTSUPP].contains(&cause)
}
