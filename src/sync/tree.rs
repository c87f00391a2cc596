//! Reads, lists and locks the folders of generated files, without following symbolic links.
//!
//! Every file is opened relative to its folder's handle, so not even a race can escape the given folder.

use std::fs::TryLockError;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{FileType, Mode, Stat};
use rustix::io::Errno;

use crate::dir::{BENEATH, Dir, NotRead, READ, lock_within};
use crate::inventory::{FilePath, InventoryFolder};

/// Maximum size of a file, in bytes; files for Ansible are far smaller.
const FILE_MAX: u64 = 16 * 1024 * 1024;
/// Maximum time to wait for another run in the same folder.
const LOCK_WAIT: Duration = Duration::from_secs(30);
/// Prefix and suffix of temporary file names; Ansible ignores files whose names begin with a dot.
const TEMPORARY: (&str, &str) = (".anklume-sync-", ".tmp");

/// The reason why the folders cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TreeFault {
    /// The base folder does not exist.
    #[error("the folder `{0}` does not exist")]
    NoBase(String),
    /// The base folder is something else.
    #[error("`{0}` is not a folder")]
    NotBase(String),
    /// Something other than a folder has a folder's name.
    #[error("`{0}` is not a folder")]
    NotFolder(String),
    /// A folder or file is a symbolic link.
    #[error("`{0}` is a symbolic link, which sync does not follow")]
    Symlink(String),
    /// Something other than a regular file is where a file belongs.
    #[error("`{0}` is not a regular file")]
    NotFile(String),
    /// The file is larger than [`FILE_MAX`].
    #[error("`{0}` is larger than {max} MiB", max = FILE_MAX / 1024 / 1024)]
    TooLarge(String),
    /// The file is not UTF-8.
    #[error(
        "`{path}` is not UTF-8: first invalid byte in line {line}, at position {at} of the file"
    )]
    NotText {
        /// The file.
        path: String,
        /// Line of the first invalid byte, from 1.
        line: usize,
        /// Its position, from 1.
        at: usize,
    },
    /// Another run holds the folder's lock.
    #[error("another `anklume sync` has been at work in `{0}` for {wait} seconds", wait = LOCK_WAIT.as_secs())]
    Busy(String),
    /// Someone else changed a file in the meantime.
    #[error("`{0}` changed while sync ran; nothing was written")]
    Changed(String),
    /// A change failed, and undoing the previous ones failed too.
    #[error("{cause}; these files could not be restored: {}", .left.join(", "))]
    HalfDone {
        /// The first failure.
        cause: Box<TreeFault>,
        /// The files that could not be restored.
        left: Vec<String>,
    },
    /// A system call failed.
    #[error("cannot {doing} `{path}`")]
    System {
        /// The attempted operation.
        doing: &'static str,
        /// The path.
        path: String,
        /// The system error.
        source: io::Error,
    },
}

impl TreeFault {
    pub(crate) fn system(
        doing: &'static str,
        path: &dyn std::fmt::Display,
        cause: impl Into<io::Error>,
    ) -> Self {
        Self::System {
            doing,
            path: path.to_string().escape_debug().to_string(),
            source: cause.into(),
        }
    }

    /// Returns the user's next step.
    pub(crate) const fn help(&self) -> Option<&'static str> {
        match self {
            Self::NotBase(_) => Some("name a folder with `--base-dir`"),
            Self::NoBase(_) => Some("create it, or name another with `--base-dir`"),
            Self::Symlink(_) => Some(
                "replace it with its target, or name the folder that holds the real one with `--base-dir`",
            ),
            Self::NotFolder(_) | Self::NotFile(_) => Some("move it out of the way"),
            Self::NotText { .. } => Some("save the file as UTF-8"),
            Self::Changed(_) => Some("run sync again"),
            Self::Busy(_) => Some("wait for it to end, or end it"),
            Self::HalfDone { .. } => Some(
                "their old content is in hidden files beside them, named `.anklume-sync-…`; put it back by hand",
            ),
            Self::TooLarge(_) | Self::System { .. } => None,
        }
    }
}

/// Identifies a version of a file: any change to the file changes at least one of these values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FileIdentity {
    device: u64,
    inode: u64,
    size: i64,
    modified: (i64, i64),
}

impl FileIdentity {
    pub(crate) fn of(stat: &Stat) -> Self {
        Self {
            device: stat.st_dev,
            inode: stat.st_ino,
            size: stat.st_size,
            modified: (
                stat.st_mtime,
                i64::try_from(stat.st_mtime_nsec).unwrap_or_default(),
            ),
        }
    }
}

/// An existing file.
#[derive(Debug)]
pub(crate) struct FoundFile {
    /// Its text.
    pub(crate) text: String,
    /// Its version.
    pub(crate) identity: FileIdentity,
    /// Its permissions and owners.
    pub(crate) owner: TreeOwner,
}

/// Permissions and owners of a file.
#[derive(Debug, Clone, Copy)]
pub(crate) struct TreeOwner {
    /// Permission bits.
    pub(crate) mode: Mode,
    /// User.
    pub(crate) uid: u32,
    /// Group.
    pub(crate) gid: u32,
}

/// Intended use of the folders.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    /// Reading.
    Read,
    /// Reading and writing.
    Write,
}

/// The base folder and the three folders of generated files in it.
#[derive(Debug)]
pub(crate) struct FileTree {
    pub(crate) base: Dir,
    base_path: PathBuf,
    folders: [Option<Dir>; 3],
    /// True if this run holds the lock: no other run is using the folder.
    pub(crate) is_alone: bool,
}

impl FileTree {
    /// Opens and locks the base folder, and opens the existing folders in it.
    pub(crate) fn open(base: &Path, access: Access) -> Result<Self, TreeFault> {
        let name = base.display().to_string().escape_debug().to_string();
        let handle = Dir::open(base, READ, BENEATH).map_err(|cause| match cause {
            Errno::NOENT => TreeFault::NoBase(name.clone()),
            Errno::NOTDIR => TreeFault::NotBase(name.clone()),
            other => TreeFault::system("open", &base.display(), other),
        })?;
        let is_alone = lock(&handle, access, &name)?;
        let mut tree = Self {
            base: handle,
            base_path: base.to_owned(),
            folders: [None, None, None],
            is_alone,
        };
        for folder in InventoryFolder::ALL {
            let handle = tree.open_folder(folder)?;
            if let Some(place) = tree.folders.get_mut(folder as usize) {
                *place = handle;
            }
        }
        Ok(tree)
    }

    /// Returns the path of the base folder, for messages.
    pub(crate) fn name(&self) -> String {
        self.base_path.display().to_string()
    }

    /// Returns a folder, if it exists.
    pub(crate) fn folder(&self, folder: InventoryFolder) -> Option<&Dir> {
        self.folders.get(folder as usize).and_then(Option::as_ref)
    }

    fn open_folder(&self, folder: InventoryFolder) -> Result<Option<Dir>, TreeFault> {
        let name = folder.as_str();
        match self.base.dir(name) {
            Ok(handle) => Ok(Some(handle)),
            Err(Errno::NOENT) => Ok(None),
            Err(cause) => Err(self.wrong_folder(name, cause)),
        }
    }

    fn wrong_folder(&self, name: &str, cause: Errno) -> TreeFault {
        let path = self.base_path.join(name).display().to_string();
        let stat = self.base.stat(name).ok().flatten();
        match stat.map(|stat| FileType::from_raw_mode(stat.st_mode)) {
            Some(FileType::Symlink) => TreeFault::Symlink(path.escape_debug().to_string()),
            Some(FileType::Directory) | None => TreeFault::system("open", &path, cause),
            Some(_) => TreeFault::NotFolder(path.escape_debug().to_string()),
        }
    }

    /// Creates a folder if it is missing; returns whether it was missing.
    pub(crate) fn make_folder(&mut self, folder: InventoryFolder) -> Result<bool, TreeFault> {
        if self.folder(folder).is_some() {
            return Ok(false);
        }
        self.base
            .make_dir(folder.as_str(), 0o755)
            .map_err(|cause| {
                let path = self.base_path.join(folder.as_str());
                TreeFault::system("create the folder", &path.display(), cause)
            })?;
        let handle = self.open_folder(folder)?;
        if let Some(place) = self.folders.get_mut(folder as usize) {
            *place = handle;
        }
        Ok(true)
    }

    /// Reads a file; returns `None` if it does not exist.
    pub(crate) fn read(&self, path: &FilePath) -> Result<Option<FoundFile>, TreeFault> {
        let Some(folder) = self.folder(path.folder) else {
            return Ok(None);
        };
        let regular = folder.regular(&path.file_name()).map_err(|why| match why {
            NotRead::Link => TreeFault::Symlink(path.to_string()),
            NotRead::NotRegular => TreeFault::NotFile(path.to_string()),
            NotRead::System(cause) => TreeFault::system("read", path, cause),
        })?;
        let Some(regular) = regular else {
            return Ok(None);
        };
        let stat = regular.stat;
        let bytes = regular.read(FILE_MAX).map_err(|why| match why.kind() {
            io::ErrorKind::FileTooLarge => TreeFault::TooLarge(path.to_string()),
            _ => TreeFault::system("read", path, why),
        })?;
        let text = String::from_utf8(bytes).map_err(|fault| {
            let valid = fault.utf8_error().valid_up_to();
            let before = fault.as_bytes().iter().take(valid);
            TreeFault::NotText {
                path: path.to_string(),
                line: before.filter(|byte| **byte == b'\n').count() + 1,
                at: valid + 1,
            }
        })?;
        Ok(Some(FoundFile {
            text,
            identity: FileIdentity::of(&stat),
            owner: TreeOwner {
                mode: Mode::from_raw_mode(stat.st_mode & 0o777),
                uid: stat.st_uid,
                gid: stat.st_gid,
            },
        }))
    }

    /// Returns the names of the files in a folder.
    pub(super) fn names(&self, folder: InventoryFolder) -> Result<Vec<String>, TreeFault> {
        // Sync never uses names that are not UTF-8.
        let names = self.folder(folder).map_or(Ok(Vec::new()), Dir::names);
        names.map_err(|cause| TreeFault::system("list", &folder.as_str(), cause))
    }

    /// Returns the `.yml` files in a folder, sorted by name.
    pub(crate) fn files(&self, folder: InventoryFolder) -> Result<Vec<FilePath>, TreeFault> {
        let mut stems: Vec<String> = self
            .names(folder)?
            .iter()
            .filter(|name| !name.starts_with('.'))
            .filter_map(|name| name.strip_suffix(".yml").map(str::to_owned))
            .collect();
        stems.sort_unstable();
        Ok(stems
            .into_iter()
            .map(|stem| FilePath { folder, stem })
            .collect())
    }

    /// Removes the temporary files left by killed runs, as far as possible.
    pub(crate) fn remove_leftovers(&self) -> Result<(), TreeFault> {
        for folder in InventoryFolder::ALL {
            let names = self.names(folder)?;
            let leftover =
                |name: &&String| name.starts_with(TEMPORARY.0) && name.ends_with(TEMPORARY.1);
            for name in names.iter().filter(leftover) {
                if let Some(handle) = self.folder(folder) {
                    let _ = handle.remove(name);
                }
            }
        }
        Ok(())
    }
}

/// Returns the name of a temporary file.
pub(crate) fn temporary_name(number: usize) -> String {
    format!(
        "{}{}-{number}{}",
        TEMPORARY.0,
        std::process::id(),
        TEMPORARY.1
    )
}

/// Locks a folder until its handle is closed. Returns false if its file system cannot lock folders.
fn lock(folder: &Dir, access: Access, name: &str) -> Result<bool, TreeFault> {
    let handle = folder.handle();
    let locked = lock_within(LOCK_WAIT, || match access {
        Access::Read => handle.try_lock_shared(),
        Access::Write => handle.try_lock(),
    });
    match locked {
        Err(TryLockError::WouldBlock) => Err(TreeFault::Busy(name.to_owned())),
        locked => Ok(locked.is_ok()),
    }
}
