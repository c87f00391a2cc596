//! How one file takes the place of another: in one step, so that it can be undone, and never over what someone else wrote.

use rustix::fs::{AtFlags, RenameFlags};
use rustix::io::Errno;

use super::super::tree::FileIdentity;
use crate::dir::Dir;

/// Replaces files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Renames {
    /// By exchanging names in one step.
    Exchange,
    /// By hard links and plain renames: for file systems that cannot exchange, such as NFS. Between the look at the old
    /// file and its replacement there is an instant here in which someone else's change is not seen.
    Links,
}

/// The names of one file in its folder.
#[derive(Debug)]
pub(super) struct CommitPlace<'a> {
    /// The folder.
    pub(super) folder: &'a Dir,
    /// The file's own name.
    pub(super) name: String,
    /// The place of its new text, and afterwards of its old one.
    pub(super) temporary: String,
    /// A second name of the old file, where names cannot be exchanged.
    pub(super) kept: String,
}

/// Undoes a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Undo {
    /// Take the new file away.
    Unlink,
    /// Exchange it with the temporary file, which is the old one.
    Exchange,
    /// Give the old file, which has its second name, the first one back.
    Kept,
    /// Give the temporary file, which is the old one, its name back.
    Rename,
}

/// The reason why a file does not change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PlaceRefusal {
    /// It is not the one that was read; it is as it was.
    Changed,
    /// It is not the one that was read, and could not be put back.
    Displaced,
    /// The system said no.
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
    /// Gives the temporary file its name, where nothing has it.
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

    /// Puts the temporary file, `new`, in the place of the one that was `seen`.
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

    /// Takes away the file that was `seen`.
    pub(super) fn remove(&self, seen: FileIdentity) -> Result<Undo, PlaceRefusal> {
        self.rename(&self.name, &self.temporary, RenameFlags::empty())?;
        if self.is(&self.temporary, seen) {
            Ok(Undo::Rename)
        } else {
            Err(changed(self.rename_back()))
        }
    }

    /// Undoes a change whose new file was `new`. What someone else has put in its place since stays.
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

    /// Removes what a change needed and nobody needs any more.
    pub(super) fn tidy(&self) {
        // What cannot be removed now goes with the next run.
        let _ = self.unlink(&self.temporary);
        let _ = self.unlink(&self.kept);
    }

    /// Gives the temporary file its name back. Where that shows that someone had put a newer file there, that one stays.
    fn exchange_back(&self, new: FileIdentity) -> Result<(), Errno> {
        self.rename(&self.temporary, &self.name, RenameFlags::EXCHANGE)?;
        if self.is(&self.temporary, new) {
            return Ok(());
        }
        self.rename(&self.temporary, &self.name, RenameFlags::empty())
    }

    /// Gives the temporary file its name back, unless someone has used that name since.
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

    /// Returns whether a name leads to this very file, unchanged.
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

/// Returns whether the file system does not know the way that was tried.
pub(super) fn cannot(cause: Errno) -> bool {
    [Errno::INVAL, Errno::NOSYS, Errno::OPNOTSUPP].contains(&cause)
}
