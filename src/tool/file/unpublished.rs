//! Keeps a file invisible until it is complete: without a name, or, on file systems without unnamed files, under a
//! temporary name that is removed if the file is not completed. A file that may be completed later keeps a hidden name.

use std::fs::{File, TryLockError};
use std::io::{self, Seek as _};
use std::os::fd::AsRawFd as _;
use std::time::{Duration, SystemTime};

use rustix::fs::{
    AtFlags, CWD, FileType, Mode, OFlags, RenameFlags, fstat, linkat, openat, renameat_with,
    unlinkat,
};
use rustix::io::Errno;

use crate::dir::{Dir, is_own, lock_within, permit, write_in_parts};

/// Permissions while the file is being written.
const PRIVATE: Mode = Mode::RUSR.union(Mode::WUSR);

/// An incomplete file.
#[derive(Debug)]
pub(super) struct Unpublished {
    file: File,
    /// Its folder and temporary name, if it has one.
    name: Option<(Dir, String)>,
    /// True if its name stays when this value is dropped, for a later connection.
    is_kept: bool,
}

/// An incomplete file that an earlier connection left.
#[derive(Debug)]
pub(super) enum LeftFile {
    Absent,
    /// Another connection is writing it.
    Locked,
    Up(Unpublished),
}

impl Unpublished {
    /// Creates a new file with these permissions on the file system of `folder`.
    pub(super) fn create(folder: Dir, mode: Mode) -> Result<Self, Errno> {
        let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
        match openat(&folder, ".", flags, mode) {
            Ok(file) => Ok(Self {
                file: file.into(),
                name: None,
                is_kept: false,
            }),
            // FUSE and NFS do not support unnamed files.
            Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::INVAL | Errno::NOENT) => {
                Self::create_named(folder, PRIVATE)
            }
            Err(refused) => Err(refused),
        }
    }

    /// Creates a new file with a temporary name.
    fn create_named(folder: Dir, mode: Mode) -> Result<Self, Errno> {
        let name = |count| format!(".anklume-{}-{count}.part", std::process::id());
        let (name, file) = folder.create_unused(name, mode)?;
        // Locked where the file system can, so that nobody takes it for an abandoned one.
        let _ = file.try_lock();
        Ok(Self {
            file,
            name: Some((folder, name)),
            is_kept: false,
        })
    }

    /// Creates a new file that is kept under this name until it is complete, and locks it.
    pub(super) fn create_kept(folder: Dir, name: &str, mode: Mode) -> io::Result<Self> {
        // A later connection must be able to open it; its final mode comes last.
        let file = folder.create(name, mode | PRIVATE)?;
        file.try_lock()?;
        Ok(Self {
            file,
            name: Some((folder, name.to_owned())),
            is_kept: true,
        })
    }

    /// Opens a file that [`Self::create_kept`] made, and locks it within `wait`. Anything else under its name counts as
    /// absent.
    pub(super) fn taken_up(folder: Dir, name: &str, wait: Duration) -> io::Result<LeftFile> {
        let flags = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = match folder.open_at(name, flags) {
            Err(Errno::NOENT) => return Ok(LeftFile::Absent),
            file => File::from(file?),
        };
        match lock_within(wait, || file.try_lock()) {
            Err(TryLockError::WouldBlock) => return Ok(LeftFile::Locked),
            locked => locked?,
        }
        // Its last owner may have published or removed it just before the lock.
        let stat = fstat(&file)?;
        let named = folder.stat(name)?;
        let is_named = named.is_some_and(|named| named.st_ino == stat.st_ino);
        let is_plain = FileType::from_raw_mode(stat.st_mode).is_file() && stat.st_nlink == 1;
        if !(is_named && is_plain && is_own(&stat)) {
            return Ok(LeftFile::Absent);
        }
        Ok(LeftFile::Up(Self {
            file,
            name: Some((folder, name.to_owned())),
            is_kept: true,
        }))
    }

    /// The content, from where it was last read or written.
    pub(super) const fn content(&mut self) -> &mut File {
        &mut self.file
    }

    /// Removes the content.
    pub(super) fn empty(&mut self) -> io::Result<()> {
        self.file.rewind()?;
        self.file.set_len(0)
    }

    /// Returns whether the file stays when this value is dropped.
    pub(super) const fn is_kept(&self) -> bool {
        self.is_kept
    }

    /// Has the file removed when this value is dropped, even if it was kept.
    pub(super) const fn discard(&mut self) {
        self.is_kept = false;
    }

    /// Appends bytes.
    pub(super) fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        write_in_parts(&mut self.file, bytes)
    }

    /// Sets the permissions and the time of last change, syncs the file to disk, and gives it its name in `folder`;
    /// `EXIST` if the name is taken.
    pub(super) fn publish(
        mut self,
        folder: &Dir,
        name: &str,
        mode: Mode,
        modified: Option<SystemTime>,
    ) -> io::Result<()> {
        // From here on, only a published file stays.
        self.discard();
        match permit(&self.file, mode) {
            // A confined process may not change modes, so it creates another file instead.
            Err(Errno::PERM) => self = self.copy(folder.dir(".")?, mode)?,
            permitted => permitted?,
        }
        if let Some(modified) = modified {
            self.file.set_modified(modified)?;
        }
        self.file.sync_all()?;
        match &self.name {
            None => self.link(folder, name)?,
            Some((parent, own)) => {
                rename(parent, own, folder, name)?;
                // Nothing is left to remove.
                self.name = None;
            }
        }
        Ok(())
    }

    /// Copies the content to a new file with these permissions.
    fn copy(mut self, folder: Dir, mode: Mode) -> io::Result<Self> {
        let mut other = match &self.name {
            None => Self::create(folder, mode)?,
            Some(_) => Self::create_named(folder, mode)?,
        };
        self.file.rewind()?;
        io::copy(&mut self.file, &mut other.file)?;
        permit(&other.file, mode)?;
        Ok(other)
    }

    /// Gives an unnamed file its name.
    fn link(&self, folder: &Dir, name: &str) -> Result<(), Errno> {
        match linkat(&self.file, "", folder, name, AtFlags::EMPTY_PATH) {
            // Older kernels allow this only for privileged processes.
            Err(Errno::NOENT | Errno::PERM) => self.link_through_proc(folder, name),
            linked => linked,
        }
    }

    /// Gives an unnamed file its name without privileges.
    fn link_through_proc(&self, folder: &Dir, name: &str) -> Result<(), Errno> {
        let own = format!("/proc/self/fd/{}", self.file.as_raw_fd());
        linkat(CWD, own, folder, name, AtFlags::SYMLINK_FOLLOW)
    }
}

/// Renames a file to an unused name.
fn rename(parent: &Dir, own: &str, folder: &Dir, name: &str) -> Result<(), Errno> {
    match renameat_with(parent, own, folder, name, RenameFlags::NOREPLACE) {
        // The file system lacks NOREPLACE; a hard link never replaces a file either.
        Err(Errno::INVAL | Errno::NOSYS) => {
            linkat(parent, own, folder, name, AtFlags::empty())?;
            unlinkat(parent, own, AtFlags::empty())
        }
        renamed => renamed,
    }
}

impl Drop for Unpublished {
    fn drop(&mut self) {
        if let Some((folder, name)) = self.name.as_ref().filter(|_| !self.is_kept) {
            // Someone else may have removed it.
            let _ = unlinkat(folder, name, AtFlags::empty());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
    use std::path::Path;

    use super::*;
    use crate::dir::{BENEATH, SEARCH};

    fn folder(path: &Path) -> Dir {
        Dir::open(path, SEARCH, BENEATH).unwrap()
    }

    fn entries(path: &Path) -> usize {
        fs::read_dir(path).unwrap().count()
    }

    /// Creates a file in both ways, each with its number of folder entries: only the second file has a name.
    fn both(path: &Path) -> [(Unpublished, usize); 2] {
        let nameless = Unpublished::create(folder(path), PRIVATE).unwrap();
        assert!(
            nameless.name.is_none(),
            "this test needs a file system with O_TMPFILE"
        );
        [
            (nameless, 0),
            (Unpublished::create_named(folder(path), PRIVATE).unwrap(), 1),
        ]
    }

    #[test]
    fn it_is_there_whole_with_its_mode_or_not_at_all() {
        let root = tempfile::tempdir().unwrap();
        for (index, (mut file, _)) in both(root.path()).into_iter().enumerate() {
            file.write(b"one ").unwrap();
            file.write(b"two").unwrap();
            let name = format!("file{index}");
            assert!(!root.path().join(&name).exists());
            file.publish(
                &folder(root.path()),
                &name,
                Mode::from_raw_mode(0o641),
                None,
            )
            .unwrap();
            let path = root.path().join(&name);
            assert_eq!(fs::read(&path).unwrap(), b"one two");
            let found = fs::metadata(&path).unwrap();
            assert_eq!(
                (found.permissions().mode() & 0o7777, found.nlink()),
                (0o641, 1)
            );
        }
        assert_eq!(entries(root.path()), 2);
    }

    #[test]
    fn given_up_it_leaves_nothing() {
        let root = tempfile::tempdir().unwrap();
        let [nameless, named] = both(root.path());
        assert_eq!(entries(root.path()), 1);
        drop(named);
        assert_eq!(entries(root.path()), 0);
        drop(nameless);
        assert_eq!(entries(root.path()), 0);
    }

    #[test]
    fn there_is_a_way_for_users_without_privileges() {
        let root = tempfile::tempdir().unwrap();
        let mut file = Unpublished::create(folder(root.path()), PRIVATE).unwrap();
        file.write(b"x").unwrap();
        let target = folder(root.path());
        file.link_through_proc(&target, "f").unwrap();
        assert_eq!(fs::read(root.path().join("f")).unwrap(), b"x");
        let other = Unpublished::create(folder(root.path()), PRIVATE).unwrap();
        assert_eq!(other.link_through_proc(&target, "f"), Err(Errno::EXIST));
    }

    #[test]
    fn nothing_is_overwritten_not_even_a_link() {
        let root = tempfile::tempdir().unwrap();
        fs::write(root.path().join("taken"), "first").unwrap();
        std::os::unix::fs::symlink("nowhere", root.path().join("link")).unwrap();
        for name in ["taken", "link"] {
            for (mut file, _) in both(root.path()) {
                file.write(b"second").unwrap();
                let refused = file
                    .publish(&folder(root.path()), name, PRIVATE, None)
                    .unwrap_err();
                assert_eq!(refused.kind(), io::ErrorKind::AlreadyExists);
            }
        }
        assert_eq!(fs::read(root.path().join("taken")).unwrap(), b"first");
        assert_eq!(entries(root.path()), 2);
    }
}
