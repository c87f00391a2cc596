//! The machine's files: a path is gone through part by part, through no symbolic link and no mount.

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::fs::{
    AtFlags, Dir, FileType, FlockOperation, Mode, OFlags, ResolveFlags, Stat, chownat, fchmod,
    fchown, flock, fstat, mkdirat, open, openat, openat2, readlinkat, renameat, statat, symlinkat,
    unlinkat,
};
use rustix::io::Errno;
use rustix::process::{Gid, Uid, getegid, geteuid};
use tokio::time::sleep;

use super::account::Account;
use crate::machine_state::{CallerUser, PASS, Rights};

/// Flags for resolving every path, from the root folder on.
const STRICT: ResolveFlags = ResolveFlags::BENEATH
    .union(ResolveFlags::NO_SYMLINKS)
    .union(ResolveFlags::NO_MAGICLINKS)
    .union(ResolveFlags::NO_XDEV);
/// Flags to open a folder for working in it.
const FOLDER: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::CLOEXEC)
    .union(OFlags::NOFOLLOW);
/// Time to wait for another run's work in the machine.
const LOCK_MAX: Duration = Duration::from_secs(15);
/// Interval for checking whether it has ended.
const LOCK_LOOK: Duration = Duration::from_millis(20);
/// Deepest folder within a folder that is handed on.
const DEPTH_MAX: usize = 64;
/// Maximum size of a file that is read, in bytes: a services file, and more.
const READ_MAX: u64 = 32 * 1024 * 1024;

/// The reason why a file is not as required.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TreeError {
    /// A part of the path is a link, a mount, or something else than a file or folder.
    #[error("machine altered: `{0}` in it is a link, a mount, or no file or folder")]
    Altered(String),
    /// The system refused.
    #[error("`{path}` cannot be {doing}: {source}")]
    Io {
        /// The attempted operation.
        doing: &'static str,
        /// On what.
        path: String,
        /// The system's error.
        source: io::Error,
    },
}

fn refused(doing: &'static str, path: &str, why: Errno) -> TreeError {
    match why {
        Errno::LOOP | Errno::XDEV | Errno::NOTDIR | Errno::ISDIR | Errno::BUSY => {
            TreeError::Altered(path.to_owned())
        }
        why => io(doing, path, why.into()),
    }
}

fn io(doing: &'static str, path: &str, source: io::Error) -> TreeError {
    TreeError::Io {
        doing,
        path: path.to_owned(),
        source,
    }
}

/// Bits of a mode that are rights.
const RIGHTS: u32 = 0o7777;

/// Returns whether something is this program's own user's, who is root, with these rights.
fn is_as_made(is: &Stat, mode: u32) -> bool {
    (is.st_uid, is.st_gid) == (geteuid().as_raw(), getegid().as_raw())
        && is.st_mode & RIGHTS == mode
}

/// The root folder.
#[derive(Debug)]
pub(super) struct MachineTree(OwnedFd);

/// A path, taken apart.
struct PathParts<'a> {
    folder: &'a str,
    name: &'a str,
}

fn parts(path: &str) -> PathParts<'_> {
    let (folder, name) = path.rsplit_once('/').unwrap_or(("", path));
    PathParts { folder, name }
}

/// A path below the root, as `openat2` takes it.
fn below(path: &str) -> &str {
    match path.trim_start_matches('/') {
        "" => ".",
        path => path,
    }
}

/// Hands on what is in a folder, and then the folder.
fn hand_on(folder: &OwnedFd, from: u32, to: &Account, depth: usize) -> Result<(), Errno> {
    let new = (Some(Uid::from_raw(to.uid)), Some(Gid::from_raw(to.gid)));
    let theirs = |is: &Stat| is.st_uid == from;
    let listed = openat(folder, ".", FOLDER, Mode::empty())?;
    for entry in Dir::read_from(&listed)? {
        let entry = entry?;
        let name = entry.file_name();
        if [c".", c".."].contains(&name) {
            continue;
        }
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let found = match openat2(folder, name, flags, Mode::empty(), STRICT) {
            Ok(found) => found,
            // Gone meanwhile, or a mount: not ours to give.
            Err(Errno::NOENT | Errno::XDEV) => continue,
            Err(why) => return Err(why),
        };
        let is = fstat(&found)?;
        match FileType::from_raw_mode(is.st_mode) {
            FileType::Directory if depth > 0 => hand_on(&found, from, to, depth - 1)?,
            // Another name of the file may be somewhere else.
            FileType::RegularFile if theirs(&is) && is.st_nlink == 1 => {
                chownat(&found, "", new.0, new.1, AtFlags::EMPTY_PATH)?;
            }
            _ => {}
        }
    }
    if theirs(&fstat(&listed)?) {
        fchown(&listed, new.0, new.1)?;
    }
    Ok(())
}

impl MachineTree {
    /// The machine's own.
    pub(super) fn open() -> Result<Self, TreeError> {
        Self::at("/")
    }

    fn at(root: &str) -> Result<Self, TreeError> {
        let folder = open(root, FOLDER, Mode::empty());
        folder.map(Self).map_err(|why| refused("opened", root, why))
    }

    fn folder_there(&self, path: &str) -> Result<OwnedFd, Errno> {
        openat2(&self.0, below(path), FOLDER, Mode::empty(), STRICT)
    }

    /// A folder, made with what is missing above it.
    pub(super) fn folder(&self, path: &str, mode: u32) -> Result<OwnedFd, TreeError> {
        match self.folder_there(path) {
            Err(Errno::NOENT) => {}
            Ok(folder) => return Ok(folder),
            Err(why) => return Err(refused("opened", path, why)),
        }
        let PathParts { folder, name } = parts(path);
        let parent = self.folder(folder, 0o755)?;
        match mkdirat(&parent, name, Mode::from_raw_mode(mode)) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(why) => return Err(refused("made", path, why)),
        }
        let folder_made = self
            .folder_there(path)
            .map_err(|why| refused("opened", path, why))?;
        // Whatever the umask took.
        fchmod(&folder_made, Mode::from_raw_mode(mode))
            .map_err(|why| refused("given its rights", path, why))?;
        Ok(folder_made)
    }

    /// A folder of a user's, made and given to them where it is missing.
    pub(super) fn folder_of(
        &self,
        path: &str,
        mode: u32,
        owner: &Account,
    ) -> Result<(), TreeError> {
        match self.folder_there(path) {
            // What a user mounts there is theirs: nothing is pushed into it.
            Ok(_) | Err(Errno::XDEV) => return Ok(()),
            Err(_) => {}
        }
        let folder_made = self.folder(path, mode)?;
        let (user, group) = (Uid::from_raw(owner.uid), Gid::from_raw(owner.gid));
        fchown(&folder_made, Some(user), Some(group))
            .map_err(|why| refused("given to its user", path, why))
    }

    /// Gives a folder to another user, with what in it is the one's who has it; through no link and no mount. The folder itself
    /// comes last, so that a run that was interrupted is gone on with.
    pub(super) fn hand_on(&self, path: &str, to: &Account) -> Result<(), TreeError> {
        let folder = match self.folder_there(path) {
            Ok(folder) => folder,
            // What is mounted there is not ours to give.
            Err(Errno::NOENT | Errno::XDEV) => return Ok(()),
            Err(why) => return Err(refused("looked at", path, why)),
        };
        let handed = fstat(&folder).and_then(|is| match is.st_uid {
            had if had == to.uid => Ok(()),
            had => hand_on(&folder, had, to, DEPTH_MAX),
        });
        handed.map_err(|why| refused("given to its user", path, why))
    }

    /// Looks at a path itself, not at the target of a link.
    fn look(folder: &OwnedFd, path: &str, name: &str) -> Result<Option<Stat>, TreeError> {
        match statat(folder, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(is) => Ok(Some(is)),
            Err(Errno::NOENT) => Ok(None),
            Err(why) => Err(refused("looked at", path, why)),
        }
    }

    /// The content of a regular file; `None`: nothing is there.
    pub(super) fn read(&self, path: &str) -> Result<Option<Vec<u8>>, TreeError> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
        let file = match openat2(&self.0, below(path), flags, Mode::empty(), STRICT) {
            Ok(file) => file,
            Err(Errno::NOENT) => return Ok(None),
            Err(why) => return Err(refused("read", path, why)),
        };
        let is = fstat(&file).map_err(|why| refused("read", path, why))?;
        if FileType::from_raw_mode(is.st_mode) != FileType::RegularFile {
            return Err(TreeError::Altered(path.to_owned()));
        }
        let mut bytes = Vec::new();
        let read = File::from(file).take(READ_MAX).read_to_end(&mut bytes);
        read.map_err(|why| io("read", path, why))?;
        Ok(Some(bytes))
    }

    /// Makes a file of root's hold this, whole or not at all; whether it was otherwise.
    pub(super) fn file(&self, path: &str, content: &[u8], mode: u32) -> Result<bool, TreeError> {
        let PathParts { folder, name } = parts(path);
        let parent = self.folder(folder, 0o755)?;
        let there = Self::look(&parent, path, name)?;
        let as_made = there.is_some_and(|is| is_as_made(&is, mode));
        // Whoever else owns it may change it while it is compared.
        if self.read(path)?.as_deref() == Some(content) && as_made {
            return Ok(false);
        }
        let fresh = format!(".{name}.new");
        match unlinkat(&parent, &fresh, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(why) => return Err(refused("written", path, why)),
        }
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let file = openat(&parent, &fresh, flags, Mode::RUSR | Mode::WUSR)
            .map_err(|why| refused("written", path, why))?;
        fchmod(&file, Mode::from_raw_mode(mode)).map_err(|why| refused("written", path, why))?;
        let mut file = File::from(file);
        let written = file.write_all(content).and_then(|()| file.sync_all());
        written.map_err(|why| io("written", path, why))?;
        renameat(&parent, &fresh, &parent, name).map_err(|why| refused("written", path, why))?;
        Ok(true)
    }

    /// Puts a file of a folder in the place of another path's.
    pub(super) fn rename(&self, folder: &str, name: &str, to: &str) -> Result<(), TreeError> {
        let from = self
            .folder_there(folder)
            .map_err(|why| refused("opened", folder, why))?;
        let target = parts(to);
        let parent = self.folder(target.folder, 0o755)?;
        if let Some(there) = Self::look(&parent, to, target.name)?
            && FileType::from_raw_mode(there.st_mode) != FileType::RegularFile
        {
            return Err(TreeError::Altered(to.to_owned()));
        }
        renameat(&from, name, &parent, target.name)
            .map_err(|why| refused("put in its place", to, why))
    }

    /// A symbolic link, of ours or not there.
    pub(super) fn link(&self, path: &str, target: &str) -> Result<(), TreeError> {
        let PathParts { folder, name } = parts(path);
        let parent = self.folder(folder, 0o755)?;
        match readlinkat(&parent, name, Vec::new()) {
            Ok(leads) if leads.as_bytes() == target.as_bytes() => return Ok(()),
            Err(Errno::NOENT) => {}
            // A link of somebody's, or a file.
            Ok(_) | Err(Errno::INVAL) => return Err(TreeError::Altered(path.to_owned())),
            Err(why) => return Err(refused("made", path, why)),
        }
        symlinkat(target, &parent, name).map_err(|why| refused("made", path, why))
    }

    /// Removes a file or link; whether it was there.
    pub(super) fn remove(&self, path: &str) -> Result<bool, TreeError> {
        let PathParts { folder, name } = parts(path);
        let parent = match self.folder_there(folder) {
            Ok(parent) => parent,
            Err(Errno::NOENT) => return Ok(false),
            Err(why) => return Err(refused("removed", path, why)),
        };
        match unlinkat(&parent, name, AtFlags::empty()) {
            Ok(()) => Ok(true),
            Err(Errno::NOENT) => Ok(false),
            Err(why) => Err(refused("removed", path, why)),
        }
    }

    /// The names in a folder that begin so.
    pub(super) fn names(&self, folder: &str, prefix: &str) -> Result<Vec<String>, TreeError> {
        let opened = self
            .folder_there(folder)
            .map_err(|why| refused("opened", folder, why))?;
        let entries =
            rustix::fs::Dir::read_from(&opened).map_err(|why| refused("read", folder, why))?;
        let names =
            entries.filter_map(|entry| entry.ok()?.file_name().to_str().ok().map(str::to_owned));
        Ok(names.filter(|name| name.starts_with(prefix)).collect())
    }

    /// Waits until nobody else holds the lock of a file of root's, and holds it.
    ///
    /// # Errors
    ///
    /// Somebody holds it for long.
    pub(super) async fn lock(&self, path: &str) -> Result<OwnedFd, TreeError> {
        let PathParts { folder, name } = parts(path);
        let parent = self.folder(folder, 0o755)?;
        let flags =
            OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
        let file = openat(&parent, name, flags, Mode::RUSR | Mode::WUSR)
            .map_err(|why| refused("locked", path, why))?;
        let began = Instant::now();
        loop {
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => return Ok(file),
                Err(Errno::WOULDBLOCK) if began.elapsed() < LOCK_MAX => sleep(LOCK_LOOK).await,
                Err(why) => return Err(refused("locked", path, why)),
            }
        }
    }

    /// A folder, where it is there, is root's again, with these rights.
    pub(super) fn own_again(&self, path: &str, mode: u32) -> Result<(), TreeError> {
        let Some((folder, is)) = self.seen(path)? else {
            return Ok(());
        };
        if is_as_made(&is, mode) {
            return Ok(());
        }
        fchown(&folder, Some(geteuid()), Some(getegid()))
            .map_err(|why| refused("given back to root", path, why))?;
        // Whatever the change of owner took.
        fchmod(&folder, Mode::from_raw_mode(mode))
            .map_err(|why| refused("given its rights", path, why))
    }

    /// A folder, where it is there, lets a user pass; it stays as it is if it does.
    pub(super) fn lets_pass(&self, path: &str, user: CallerUser) -> Result<(), TreeError> {
        let Some((folder, is)) = self.seen(path)? else {
            return Ok(());
        };
        let rights = Rights {
            uid: is.st_uid,
            gid: is.st_gid,
            mode: is.st_mode & RIGHTS,
        };
        if user.passes(rights) {
            return Ok(());
        }
        fchmod(&folder, Mode::from_raw_mode(rights.mode | PASS))
            .map_err(|why| refused("opened to who may pass", path, why))
    }

    /// A folder, and how it is; `None`: it is not there.
    fn seen(&self, path: &str) -> Result<Option<(OwnedFd, Stat)>, TreeError> {
        let folder = match self.folder_there(path) {
            Err(Errno::NOENT) => return Ok(None),
            folder => folder.map_err(|why| refused("opened", path, why))?,
        };
        let is = fstat(&folder).map_err(|why| refused("looked at", path, why))?;
        Ok(Some((folder, is)))
    }

    /// That a folder, where it is there, is root's and nobody else can change what is in it.
    pub(super) fn is_roots(&self, path: &str) -> Result<(), TreeError> {
        /// Rights to write of the group and of others.
        const OTHERS_WRITE: u32 = 0o022;
        let Some((_, is)) = self.seen(path)? else {
            return Ok(());
        };
        if is.st_uid == 0 && is.st_mode & OTHERS_WRITE == 0 {
            Ok(())
        } else {
            Err(TreeError::Altered(path.to_owned()))
        }
    }
}

#[cfg(test)]
mod tests;
