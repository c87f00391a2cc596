//! Changes the machine's files without following symbolic links or crossing mounts.

use std::fs::{File, TryLockError};
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd as _, BorrowedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, Stat, Uid, chownat, fchmod, fchown, fstat, openat,
    openat2, readlinkat, renameat, symlinkat,
};
use rustix::io::Errno;
use rustix::process::{getegid, geteuid};
use tokio::time::sleep;

use crate::account::Account;
use crate::dir::{Dir, LOOK, NotRead, ONE_MOUNT, OTHERS_WRITE, READ, RIGHTS, open_or_make};
use crate::machine_state::{CallerUser, PASS, Rights};

/// Maximum time to wait for another run in the machine.
const LOCK_MAX: Duration = Duration::from_secs(15);
/// Interval between checks of the lock.
const LOCK_LOOK: Duration = Duration::from_millis(20);
/// Maximum folder depth in [`MachineTree::hand_on`].
const DEPTH_MAX: usize = 64;
/// Maximum number of bytes read from a file: more than a services file has.
const READ_MAX: u64 = 32 * 1024 * 1024;

/// The reason why a file could not be set up.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TreeError {
    /// A part of the path is a link, a mount, or neither a file nor a folder.
    #[error("machine altered: `{0}` in it is a link, a mount, or neither a file nor a folder")]
    Altered(String),
    /// A system call failed.
    #[error("`{path}` cannot be {doing}: {source}")]
    Io {
        /// The attempted operation.
        doing: &'static str,
        /// The path of the file or folder.
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

/// Returns whether a file or folder belongs to this process's user, who is root, and has these permissions.
fn is_as_made(is: &Stat, mode: u32) -> bool {
    (is.st_uid, is.st_gid) == (geteuid().as_raw(), getegid().as_raw())
        && is.st_mode & RIGHTS == mode
}

/// The root folder of the machine.
#[derive(Debug)]
pub(super) struct MachineTree(Dir);

/// The folder and the last part of a path.
struct PathParts<'a> {
    folder: &'a str,
    name: &'a str,
}

fn parts(path: &str) -> PathParts<'_> {
    let (folder, name) = path.rsplit_once('/').unwrap_or(("", path));
    PathParts { folder, name }
}

/// Hands the content of a folder to another user, and then the folder itself. Names need not be UTF-8.
fn hand_on(folder: BorrowedFd<'_>, from: u32, to: &Account, depth: usize) -> Result<(), Errno> {
    let (user, group) = (Some(Uid::from_raw(to.uid)), Some(Gid::from_raw(to.gid)));
    let theirs = |stat: &Stat| stat.st_uid == from;
    let listed = openat(folder, c".", READ | OFlags::NOFOLLOW, Mode::empty())?;
    for entry in rustix::fs::Dir::read_from(&listed)? {
        let entry = entry?;
        let name = entry.file_name();
        if [c".", c".."].contains(&name) {
            continue;
        }
        let found = match openat2(folder, name, LOOK, Mode::empty(), ONE_MOUNT) {
            // Removed in the meantime, or a mount, which is not ours to hand over.
            Err(Errno::NOENT | Errno::XDEV) => continue,
            found => found?,
        };
        let stat = fstat(&found)?;
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory if depth > 0 => hand_on(found.as_fd(), from, to, depth - 1)?,
            // A second link to the file may exist elsewhere.
            FileType::RegularFile if theirs(&stat) && stat.st_nlink == 1 => {
                chownat(&found, "", user, group, AtFlags::EMPTY_PATH)?;
            }
            _ => {}
        }
    }
    if theirs(&fstat(&listed)?) {
        fchown(&listed, user, group)?;
    }
    Ok(())
}

impl MachineTree {
    /// Opens the machine's own root folder.
    pub(super) fn open() -> Result<Self, TreeError> {
        Self::at("/")
    }

    fn at(root: &str) -> Result<Self, TreeError> {
        let folder = Dir::open(Path::new(root), READ | OFlags::NOFOLLOW, ONE_MOUNT);
        folder.map(Self).map_err(|why| refused("opened", root, why))
    }

    /// Opens a folder; makes it and its parents if they are missing.
    pub(super) fn folder(&self, path: &str, mode: u32) -> Result<Dir, TreeError> {
        match self.0.dir(path) {
            Err(Errno::NOENT) => {}
            folder => return folder.map_err(|why| refused("opened", path, why)),
        }
        let PathParts { folder, name } = parts(path);
        let parent = self.folder(folder, 0o755)?;
        parent
            .make_dir(name, mode)
            .map_err(|why| refused("created", path, why))?;
        let folder = self
            .0
            .dir(path)
            .map_err(|why| refused("opened", path, why))?;
        // Restores the bits that the umask removed.
        fchmod(&folder, Mode::from_raw_mode(mode))
            .map_err(|why| refused("given its permissions", path, why))?;
        Ok(folder)
    }

    /// Makes a folder owned by a user, if it is missing.
    pub(super) fn folder_of(
        &self,
        path: &str,
        mode: u32,
        owner: &Account,
    ) -> Result<(), TreeError> {
        match self.0.dir(path) {
            // A mount there belongs to the user and is left alone.
            Ok(_) | Err(Errno::XDEV) => return Ok(()),
            Err(_) => {}
        }
        let folder_made = self.folder(path, mode)?;
        let (user, group) = (Uid::from_raw(owner.uid), Gid::from_raw(owner.gid));
        fchown(&folder_made, Some(user), Some(group))
            .map_err(|why| refused("given to its user", path, why))
    }

    /// Hands a folder to another user, with everything in it that belongs to its owner, following no link or mount. The
    /// folder itself comes last, so that the next run resumes an interrupted one.
    pub(super) fn hand_on(&self, path: &str, to: &Account) -> Result<(), TreeError> {
        let folder = match self.0.dir(path) {
            Ok(folder) => folder,
            // A mount there is not ours to hand over.
            Err(Errno::NOENT | Errno::XDEV) => return Ok(()),
            Err(why) => return Err(refused("examined", path, why)),
        };
        let handed = fstat(&folder).and_then(|is| match is.st_uid {
            had if had == to.uid => Ok(()),
            had => hand_on(folder.as_fd(), had, to, DEPTH_MAX),
        });
        handed.map_err(|why| refused("given to its user", path, why))
    }

    /// Returns the content of a regular file; `None` if it does not exist.
    pub(super) fn read(&self, path: &str) -> Result<Option<Vec<u8>>, TreeError> {
        let regular = self.0.regular(path).map_err(|why| match why {
            NotRead::System(why) => refused("read", path, why),
            NotRead::Link | NotRead::NotRegular => TreeError::Altered(path.to_owned()),
        })?;
        let Some(regular) = regular else {
            return Ok(None);
        };
        let mut bytes = Vec::new();
        let read = regular.file.take(READ_MAX).read_to_end(&mut bytes);
        read.map_err(|why| io("read", path, why))?;
        Ok(Some(bytes))
    }

    /// Writes a file owned by root, whole or not at all; returns whether it changed.
    pub(super) fn file(&self, path: &str, content: &[u8], mode: u32) -> Result<bool, TreeError> {
        let PathParts { folder, name } = parts(path);
        let parent = self.folder(folder, 0o755)?;
        let current = parent
            .stat(name)
            .map_err(|why| refused("examined", path, why))?;
        let as_made = current.is_some_and(|stat| is_as_made(&stat, mode));
        // Owner and mode count too, because another owner could change the file during the comparison.
        if self.read(path)?.as_deref() == Some(content) && as_made {
            return Ok(false);
        }
        parent
            .replace(name, &format!(".{name}.new"), mode, |file| {
                file.write_all(content)?;
                file.sync_all()
            })
            .map_err(|why| match Errno::from_io_error(&why) {
                Some(why) => refused("written", path, why),
                None => io("written", path, why),
            })?;
        Ok(true)
    }

    /// Moves a file in a folder to another path, replacing the file there.
    pub(super) fn rename(&self, folder: &str, name: &str, to: &str) -> Result<(), TreeError> {
        let from = self
            .0
            .dir(folder)
            .map_err(|why| refused("opened", folder, why))?;
        let target = parts(to);
        let parent = self.folder(target.folder, 0o755)?;
        let current = parent
            .stat(target.name)
            .map_err(|why| refused("examined", to, why))?;
        if current.is_some_and(|stat| !FileType::from_raw_mode(stat.st_mode).is_file()) {
            return Err(TreeError::Altered(to.to_owned()));
        }
        renameat(&from, name, &parent, target.name)
            .map_err(|why| refused("moved into place", to, why))
    }

    /// Makes a symbolic link, unless the same link exists.
    pub(super) fn link(&self, path: &str, target: &str) -> Result<(), TreeError> {
        let PathParts { folder, name } = parts(path);
        let parent = self.folder(folder, 0o755)?;
        match readlinkat(&parent, name, Vec::new()) {
            Ok(leads) if leads.as_bytes() == target.as_bytes() => return Ok(()),
            Err(Errno::NOENT) => {}
            // A foreign link, or a file.
            Ok(_) | Err(Errno::INVAL) => return Err(TreeError::Altered(path.to_owned())),
            Err(why) => return Err(refused("created", path, why)),
        }
        symlinkat(target, &parent, name).map_err(|why| refused("created", path, why))
    }

    /// Removes a file or link; returns whether it existed.
    pub(super) fn remove(&self, path: &str) -> Result<bool, TreeError> {
        let PathParts { folder, name } = parts(path);
        let parent = match self.0.dir(folder) {
            Ok(parent) => parent,
            Err(Errno::NOENT) => return Ok(false),
            Err(why) => return Err(refused("removed", path, why)),
        };
        parent
            .remove(name)
            .map_err(|why| refused("removed", path, why))
    }

    /// Returns the names in a folder that begin with `prefix`.
    pub(super) fn names(&self, folder: &str, prefix: &str) -> Result<Vec<String>, TreeError> {
        let opened = self
            .0
            .dir(folder)
            .map_err(|why| refused("opened", folder, why))?;
        let mut names = opened.names().map_err(|why| refused("read", folder, why))?;
        names.retain(|name| name.starts_with(prefix));
        Ok(names)
    }

    /// Locks a file owned by root; waits for any other holder.
    ///
    /// # Errors
    ///
    /// Fails if the lock does not become free within [`LOCK_MAX`].
    pub(super) async fn lock(&self, path: &str) -> Result<File, TreeError> {
        let PathParts { folder, name } = parts(path);
        let parent = self.folder(folder, 0o755)?;
        let file = open_or_make(&parent, name).map_err(|why| refused("locked", path, why))?;
        let start = Instant::now();
        loop {
            match file.try_lock() {
                Err(TryLockError::WouldBlock) if start.elapsed() < LOCK_MAX => {
                    sleep(LOCK_LOOK).await;
                }
                Err(TryLockError::WouldBlock) => {
                    return Err(io("locked", path, Errno::WOULDBLOCK.into()));
                }
                attempted => {
                    let locked = attempted.map(|()| file).map_err(io::Error::from);
                    return locked.map_err(|why| io("locked", path, why));
                }
            }
        }
    }

    /// Makes root the owner of a folder again, if it exists, with these permissions.
    pub(super) fn own_again(&self, path: &str, mode: u32) -> Result<(), TreeError> {
        let Some((folder, is)) = self.seen(path)? else {
            return Ok(());
        };
        if is_as_made(&is, mode) {
            return Ok(());
        }
        fchown(&folder, Some(geteuid()), Some(getegid()))
            .map_err(|why| refused("given back to root", path, why))?;
        // Restores the bits that the change of owner removed.
        fchmod(&folder, Mode::from_raw_mode(mode))
            .map_err(|why| refused("given its permissions", path, why))
    }

    /// Lets everyone pass through a folder, if it exists and this user cannot pass yet.
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
            .map_err(|why| refused("made passable", path, why))
    }

    /// Opens a folder and returns its state; `None` if it does not exist.
    fn seen(&self, path: &str) -> Result<Option<(Dir, Stat)>, TreeError> {
        let folder = match self.0.dir(path) {
            Err(Errno::NOENT) => return Ok(None),
            folder => folder.map_err(|why| refused("opened", path, why))?,
        };
        let is = fstat(&folder).map_err(|why| refused("examined", path, why))?;
        Ok(Some((folder, is)))
    }

    /// Checks that a folder, if it exists, belongs to root and that only root can write to it.
    pub(super) fn is_roots(&self, path: &str) -> Result<(), TreeError> {
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
