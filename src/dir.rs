//! Opens, reads, replaces and locks files below an open folder, without following symbolic links.

use std::ffi::OsStr;
use std::fs::{File, TryLockError};
use std::io::{self, Read as _};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Component, Path};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::fs::{
    AtFlags, CWD, FileType, Mode, OFlags, RenameFlags, ResolveFlags, Stat, fchmod, fstat, mkdirat,
    open, openat, openat2, renameat, renameat_with, statat, unlinkat,
};
use rustix::io::Errno;
use rustix::path::Arg;
use rustix::process::geteuid;

use crate::name::closest;
use crate::text::escaped;

/// Resolves paths only below the folder, without following symbolic links or `/proc` magic links.
pub(crate) const BENEATH: ResolveFlags = ResolveFlags::BENEATH
    .union(ResolveFlags::NO_SYMLINKS)
    .union(ResolveFlags::NO_MAGICLINKS);
/// Resolves paths as [`BENEATH`] does, without crossing mounts.
pub(crate) const ONE_MOUNT: ResolveFlags = BENEATH.union(ResolveFlags::NO_XDEV);
/// Opens folders for reading their entries and changing their mode.
pub(crate) const READ: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::CLOEXEC);
/// Opens folders for access to the entries below them; needs no permission to read the folders.
pub(crate) const SEARCH: OFlags = OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);
/// Opens anything without using it: opening a device or a pipe this way has no effect.
pub(crate) const LOOK: OFlags = OFlags::PATH.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
/// Permission bits that let the group and others write.
pub(crate) const OTHERS_WRITE: u32 = 0o022;
/// Permission bits of the group and of others.
pub(crate) const OTHERS: u32 = 0o077;
/// All permission bits.
pub(crate) const RIGHTS: u32 = 0o7777;
/// In a folder with this bit, only the owner of an entry may rename or remove it.
pub(crate) const STICKY: u32 = 0o1000;
/// Interval between attempts to take a lock.
const LOCK_INTERVAL: Duration = Duration::from_millis(10);

/// An open folder. Paths are relative to it; a leading `/` stands for the folder itself.
#[derive(Debug)]
pub(crate) struct Dir {
    handle: File,
    flags: OFlags,
    resolve: ResolveFlags,
}

/// An open regular file.
#[derive(Debug)]
pub(crate) struct RegularFile {
    /// The file, open for reading.
    pub(crate) file: File,
    /// Its metadata when it was opened.
    pub(crate) stat: Stat,
}

/// The reason why a path cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NotRead {
    /// The path leads through a symbolic link.
    Link,
    /// The path names something other than a regular file.
    NotRegular,
    /// A system error.
    System(Errno),
}

impl From<Errno> for NotRead {
    fn from(error: Errno) -> Self {
        match error {
            Errno::LOOP => Self::Link,
            // A socket.
            Errno::NXIO => Self::NotRegular,
            error => Self::System(error),
        }
    }
}

impl From<NotRead> for io::Error {
    fn from(error: NotRead) -> Self {
        match error {
            NotRead::Link => Errno::LOOP.into(),
            NotRead::NotRegular => io::ErrorKind::InvalidInput.into(),
            NotRead::System(error) => error.into(),
        }
    }
}

impl Dir {
    /// Opens the folder at `path` with these flags. `path` may lead through links; `resolve` restricts paths below it.
    pub(crate) fn open(path: &Path, flags: OFlags, resolve: ResolveFlags) -> Result<Self, Errno> {
        let handle = open(path, flags, Mode::empty())?;
        Ok(Self::from_handle(handle, flags, resolve))
    }

    /// Takes an open folder; these flags apply to what is opened below it.
    pub(crate) fn from_handle(handle: OwnedFd, flags: OFlags, resolve: ResolveFlags) -> Self {
        let handle = handle.into();
        Self {
            handle,
            flags,
            resolve,
        }
    }

    /// Opens a folder below this one in the same way.
    pub(crate) fn dir(&self, path: &str) -> Result<Self, Errno> {
        let handle = self.open_at(path, self.flags)?;
        Ok(Self::from_handle(handle, self.flags, self.resolve))
    }

    /// Opens the entry at this path.
    pub(crate) fn open_at(&self, path: &str, flags: OFlags) -> Result<OwnedFd, Errno> {
        let path = match path.trim_start_matches('/') {
            "" => ".",
            path => path,
        };
        openat2(&self.handle, path, flags, Mode::empty(), self.resolve)
    }

    /// Opens a regular file for reading, without waiting for a pipe or device; returns `None` if it does not exist.
    pub(crate) fn regular(&self, path: &str) -> Result<Option<RegularFile>, NotRead> {
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let file = match self.open_at(path, flags) {
            Err(Errno::NOENT) => return Ok(None),
            file => file?,
        };
        let stat = fstat(&file)?;
        if !FileType::from_raw_mode(stat.st_mode).is_file() {
            return Err(NotRead::NotRegular);
        }
        let file = file.into();
        Ok(Some(RegularFile { file, stat }))
    }

    /// Returns the metadata of an entry, without following a link; `None` if there is no such entry.
    pub(crate) fn stat(&self, name: &str) -> Result<Option<Stat>, Errno> {
        match statat(&self.handle, name, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => Ok(None),
            stat => stat.map(Some),
        }
    }

    /// Creates a folder with this mode, minus the umask; returns false if the name is taken.
    pub(crate) fn make_dir(&self, name: &str, mode: u32) -> Result<bool, Errno> {
        match mkdirat(&self.handle, name, Mode::from_raw_mode(mode)) {
            Err(Errno::EXIST) => Ok(false),
            result => result.map(|()| true),
        }
    }

    /// Creates a file with this mode, minus the umask, and opens it for reading and writing; `EXIST` if the name is taken.
    pub(crate) fn create(&self, name: &str, mode: Mode) -> Result<File, Errno> {
        let flags =
            OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        openat(&self.handle, name, flags, mode).map(File::from)
    }

    /// Creates a file as [`Self::create`] does, under an unused name that `name` builds from a number; returns that name too.
    pub(crate) fn create_unused(
        &self,
        name: impl Fn(u32) -> String,
        mode: Mode,
    ) -> Result<(String, File), Errno> {
        /// Maximum number of names to try: killed processes may have left some behind.
        const TRIES: usize = 1000;
        static COUNT: AtomicU32 = AtomicU32::new(0);
        for _ in 0..TRIES {
            let name = name(COUNT.fetch_add(1, Ordering::Relaxed));
            match self.create(&name, mode) {
                Err(Errno::EXIST) => {}
                created => return Ok((name, created?)),
            }
        }
        Err(Errno::EXIST)
    }

    /// Creates or replaces a file atomically, with exactly this mode. The new file is named `temporary` until
    /// `fill` has written it; any file that a killed process left under that name is removed.
    pub(crate) fn replace(
        &self,
        name: &str,
        temporary: &str,
        mode: u32,
        fill: impl FnOnce(&mut File) -> io::Result<()>,
    ) -> io::Result<()> {
        self.remove(temporary)?;
        let mut new = self.create(temporary, Mode::RUSR | Mode::WUSR)?;
        let replaced = permit(&new, Mode::from_raw_mode(mode))
            .map_err(io::Error::from)
            .and_then(|()| fill(&mut new))
            .and_then(|()| Ok(self.rename(temporary, name)?));
        if replaced.is_err() {
            // The first error is reported.
            let _ = self.remove(temporary);
        }
        replaced
    }

    /// Renames an entry in this folder, replacing any entry that has the new name.
    pub(crate) fn rename(&self, from: &str, to: &str) -> Result<(), Errno> {
        renameat(&self.handle, from, &self.handle, to)
    }

    /// Renames an entry in this folder; `EXIST` if the new name is taken.
    pub(crate) fn rename_new(&self, from: &str, to: &str) -> Result<(), Errno> {
        renameat_with(&self.handle, from, &self.handle, to, RenameFlags::NOREPLACE)
    }

    /// Removes an entry other than a folder; returns false if it does not exist.
    pub(crate) fn remove(&self, name: &str) -> Result<bool, Errno> {
        match unlinkat(&self.handle, name, AtFlags::empty()) {
            Err(Errno::NOENT) => Ok(false),
            result => result.map(|()| true),
        }
    }

    /// Returns the names of the entries, except those that are not UTF-8.
    pub(crate) fn names(&self) -> Result<Vec<String>, Errno> {
        let mut names = Vec::new();
        for entry in rustix::fs::Dir::read_from(&self.handle)? {
            let entry = entry?;
            let name = entry.file_name().to_str().ok();
            names.extend(
                name.filter(|name| ![".", ".."].contains(name))
                    .map(str::to_owned),
            );
        }
        Ok(names)
    }

    /// The folder's own handle, for locking and syncing it.
    pub(crate) const fn handle(&self) -> &File {
        &self.handle
    }
}

impl AsFd for Dir {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.handle.as_fd()
    }
}

impl RegularFile {
    /// Reads the whole file.
    ///
    /// # Errors
    ///
    /// A system error, or `FileTooLarge` if the file has more than `max` bytes, even if it grew after it was opened.
    pub(crate) fn read(self, max: u64) -> io::Result<Vec<u8>> {
        // With room for one byte more than the file, the read reaches the end without growing the buffer.
        let size = u64::try_from(self.stat.st_size)
            .unwrap_or_default()
            .min(max);
        let mut bytes = Vec::with_capacity(usize::try_from(size).unwrap_or_default() + 1);
        let mut bounded = self.file.take(max.saturating_add(1));
        bounded.read_to_end(&mut bytes)?;
        if u64::try_from(bytes.len()).is_ok_and(|length| length <= max) {
            Ok(bytes)
        } else {
            Err(io::ErrorKind::FileTooLarge.into())
        }
    }
}

/// Opens a file for reading and writing, unless `path` itself is a link; creates it (0600) if it does not exist.
pub(crate) fn open_or_make(folder: impl AsFd, path: impl Arg) -> Result<File, Errno> {
    let flags =
        OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
    openat(folder, path, flags, Mode::RUSR | Mode::WUSR).map(File::from)
}

/// Returns the path of the file whose name is closest to that of a file that does not exist, escaped.
pub(crate) fn closest_file(path: &Path) -> Option<String> {
    /// Maximum number of entries to compare.
    const ENTRIES_MAX: usize = 10_000;
    let name = path.file_name()?.to_str()?;
    let folder = path.parent()?;
    let listed = if folder.as_os_str().is_empty() {
        Path::new(".")
    } else {
        folder
    };
    let entries = std::fs::read_dir(listed).ok()?.take(ENTRIES_MAX).flatten();
    let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
    let names: Vec<String> = names.collect();
    let near = closest(name, names.iter().map(String::as_str))?;
    Some(escaped(&folder.join(near).to_string_lossy()))
}

/// Returns whether the entry belongs to this process's user.
pub(crate) fn is_own(stat: &Stat) -> bool {
    stat.st_uid == geteuid().as_raw()
}

/// Sets the mode of a file or folder if it differs.
pub(crate) fn permit(file: &impl AsFd, mode: Mode) -> Result<(), Errno> {
    if Mode::from_raw_mode(fstat(file)?.st_mode & RIGHTS) == mode {
        return Ok(());
    }
    fchmod(file, mode)
}

/// Writes bytes to a file, a part at a time: measured on ext4 and Linux 6.18, writes of a mebibyte take up to ten times as
/// long as the same bytes in such parts.
pub(crate) fn write_in_parts(file: &mut impl io::Write, bytes: &[u8]) -> io::Result<()> {
    /// Size of a part, in bytes.
    const PART: usize = 128 * 1024;
    bytes.chunks(PART).try_for_each(|part| file.write_all(part))
}

/// Retries taking a lock until `timeout` has passed.
pub(crate) fn lock_within(
    timeout: Duration,
    attempt: impl Fn() -> Result<(), TryLockError>,
) -> Result<(), TryLockError> {
    let start = Instant::now();
    loop {
        match attempt() {
            Err(TryLockError::WouldBlock) if start.elapsed() < timeout => sleep(LOCK_INTERVAL),
            Err(TryLockError::Error(error)) if error.kind() == io::ErrorKind::Interrupted => {}
            attempted => return attempted,
        }
    }
}

/// Creates the folder at `path` with this mode, and missing folders above it (0755). Does nothing if it exists.
///
/// # Errors
///
/// A system error, or `PermissionDenied` if other users can write to the lowest existing folder.
pub(crate) fn make_all(path: &Path, mode: Mode) -> io::Result<()> {
    let path = std::path::absolute(path)?;
    let is_missing = |path: &Path| {
        let found = path.symlink_metadata();
        found.is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
    };
    let mut missing: Vec<&OsStr> = Vec::new();
    let mut existing = path.as_path();
    while is_missing(existing) {
        let (Some(Component::Normal(name)), Some(parent)) =
            (existing.components().next_back(), existing.parent())
        else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        missing.push(name);
        existing = parent;
    }
    if missing.is_empty() {
        return Ok(());
    }
    let mut folder = openat(CWD, existing, SEARCH, Mode::empty())?;
    check_owner(&folder)?;
    while let Some(name) = missing.pop() {
        let is_last = missing.is_empty();
        let mode = if is_last {
            mode
        } else {
            Mode::from_raw_mode(0o755)
        };
        match mkdirat(&folder, name, mode) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => return Err(error.into()),
        }
        folder = openat(&folder, name, SEARCH | OFlags::NOFOLLOW, Mode::empty())?;
        check_owner(&folder)?;
    }
    Ok(())
}

/// Checks that only this user and root can change which file a name in this folder refers to.
fn check_owner(folder: &OwnedFd) -> io::Result<()> {
    let stat = fstat(folder)?;
    let is_trusted = stat.st_uid == 0 || is_own(&stat);
    if is_trusted && (stat.st_mode & OTHERS_WRITE == 0 || stat.st_mode & STICKY != 0) {
        Ok(())
    } else {
        Err(io::ErrorKind::PermissionDenied.into())
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt as _, chown};

    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::symlink_metadata(path).unwrap().permissions().mode() & 0o7777
    }

    #[test]
    fn missing_folders_are_made_and_existing_ones_left() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("a/b/c");
        make_all(&path, Mode::from_raw_mode(0o700)).unwrap();
        assert_eq!(mode(&path), 0o700);
        assert_eq!(mode(&root.path().join("a")), 0o755);
        make_all(&path, Mode::from_raw_mode(0o755)).unwrap();
        assert_eq!(mode(&path), 0o700);
    }

    #[test]
    fn nothing_is_made_where_others_can_write() {
        let root = tempfile::tempdir().unwrap();
        let open = root.path().join("open");
        fs::create_dir(&open).unwrap();
        fs::set_permissions(&open, fs::Permissions::from_mode(0o777)).unwrap();
        let refused = make_all(&open.join("x"), Mode::RWXU).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::PermissionDenied);
        assert!(!open.join("x").exists());
        // Sticky, like /tmp: no other user can replace the new folder.
        fs::set_permissions(&open, fs::Permissions::from_mode(0o1777)).unwrap();
        make_all(&open.join("x"), Mode::RWXU).unwrap();
        if geteuid().is_root() {
            let theirs = root.path().join("theirs");
            fs::create_dir(&theirs).unwrap();
            chown(&theirs, Some(12_345), None).unwrap();
            make_all(&theirs.join("x"), Mode::RWXU).unwrap_err();
            assert!(!theirs.join("x").exists());
        }
    }

    #[test]
    fn a_dangling_link_is_not_followed() {
        let root = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink(root.path().join("target"), root.path().join("link")).unwrap();
        make_all(&root.path().join("link/x"), Mode::RWXU).unwrap_err();
        assert!(!root.path().join("target").exists());
    }
}
