//! The folder of a server's sockets: private before the first socket, one server at a time, nothing left behind.

use std::fs::{DirEntry, File};
use std::io::{self, Read as _};
use std::os::unix::fs::{
    DirBuilderExt as _, FileTypeExt as _, MetadataExt as _, PermissionsExt as _,
};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FlockOperation, Mode, OFlags, flock, openat};

use crate::name::MachineName;

/// Longest path of a Unix socket, in bytes (`sun_path` less its final zero).
const SOCKET_PATH_MAX: usize = 107;
/// The file that a running server holds locked.
const LOCK: &str = ".lock";
/// What the running server says of itself.
const STATUS: &str = ".status.json";
/// A socket that does not listen yet; no longer than any consumer's.
const FRESH: &str = ".new";
/// A status that is not whole yet; one server writes it.
const FRESH_STATUS: &str = ".status.new";
/// What the socket of a consumer is called, behind its name.
const SOCKET_SUFFIX: &str = ".sock";

/// Why sockets cannot be made in a folder.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FolderError {
    /// The system refused.
    #[error("the folder of the sockets, `{}`, cannot be {doing}: {source}", path.display())]
    Io {
        /// What was tried.
        doing: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// There is something in it, and no server's.
    #[error("`{}` holds `{}`, which is not of a server's sockets", folder.display(), name.escape_debug())]
    Foreign {
        /// The folder.
        folder: PathBuf,
        /// What it holds.
        name: String,
    },
    /// It is a link, a file, or another user's.
    #[error("`{}` is not a folder of this user's own", .0.display())]
    NotOurs(PathBuf),
    /// Another server has it.
    #[error("another server serves in `{}`", .0.display())]
    Taken(PathBuf),
    /// A socket's path would be longer than the system allows.
    #[error("the path of the socket `{}` has {length} bytes; {SOCKET_PATH_MAX} is the most there can be", path.display())]
    PathTooLong {
        /// The socket.
        path: PathBuf,
        /// Bytes of its path.
        length: usize,
    },
}

/// A folder that this process serves in; the lock goes with it.
#[derive(Debug)]
pub(crate) struct Folder {
    path: PathBuf,
    _lock: File,
}

impl Folder {
    /// Makes the folder private (0700), takes its lock and clears what a killed server left.
    ///
    /// # Errors
    ///
    /// It is not ours, cannot be made, holds what is no server's, or another server has it.
    pub(crate) fn take(path: &Path) -> Result<Self, FolderError> {
        make_private(path)?;
        let lock = lock_file(path).map_err(|source| error("locked", path, source))?;
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => return Err(FolderError::Taken(path.to_owned())),
            Err(source) => return Err(error("locked", path, source.into())),
        }
        let folder = Self {
            path: path.to_owned(),
            _lock: lock,
        };
        folder.clear()?;
        Ok(folder)
    }

    /// Whether a server holds the folder's lock now.
    pub(crate) fn is_served(path: &Path) -> bool {
        let Ok(lock) = regular(&path.join(LOCK)) else {
            return false;
        };
        flock(&lock, FlockOperation::NonBlockingLockShared).is_err()
    }

    /// What the server says of itself; the folder is its user's, who may be anybody.
    ///
    /// # Errors
    ///
    /// The system's; and what is there is no file, or too large.
    pub(crate) fn status(path: &Path) -> io::Result<Vec<u8>> {
        /// Largest status that is read, in bytes: a services file and a little.
        const STATUS_MAX: u64 = 32 * 1024 * 1024;
        let mut text = Vec::new();
        let file = regular(&Self::status_file(path))?;
        file.take(STATUS_MAX + 1).read_to_end(&mut text)?;
        if u64::try_from(text.len()).is_ok_and(|length| length <= STATUS_MAX) {
            Ok(text)
        } else {
            Err(io::ErrorKind::FileTooLarge.into())
        }
    }

    /// The file in which the server says what it serves.
    pub(crate) fn status_file(path: &Path) -> PathBuf {
        path.join(STATUS)
    }

    /// The socket of a consumer.
    pub(crate) fn socket(&self, consumer: &MachineName) -> PathBuf {
        self.path.join(format!("{consumer}{SOCKET_SUFFIX}"))
    }

    /// Makes the socket of a consumer (0600), for a runtime to take over.
    ///
    /// # Errors
    ///
    /// Its path is too long, or the system refuses.
    pub(crate) fn bind(&self, consumer: &MachineName) -> Result<UnixListener, FolderError> {
        let path = self.socket(consumer);
        let length = path.as_os_str().len();
        if length > SOCKET_PATH_MAX {
            return Err(FolderError::PathTooLong { path, length });
        }
        // Under another name until it listens, so that whoever sees the socket can connect.
        let fresh = self.path.join(FRESH);
        Self::remove_socket(&fresh)?;
        let made = UnixListener::bind(&fresh).and_then(|listener| {
            listener.set_nonblocking(true)?;
            // Nobody else enters the folder in between.
            std::fs::set_permissions(&fresh, std::fs::Permissions::from_mode(0o600))?;
            std::fs::rename(&fresh, &path)?;
            Ok(listener)
        });
        made.map_err(|source| error("given a socket", &path, source))
    }

    /// Whether something is where the socket of a consumer belongs; where that cannot be seen, it is taken to be there.
    pub(crate) fn has(&self, consumer: &MachineName) -> bool {
        let there = std::fs::symlink_metadata(self.socket(consumer));
        !there.is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
    }

    /// Why the socket of a consumer, which is there, cannot be served.
    pub(crate) fn not_served(&self, consumer: &MachineName, source: io::Error) -> FolderError {
        error("served", &self.socket(consumer), source)
    }

    /// Removes the socket of a consumer.
    ///
    /// # Errors
    ///
    /// The system refuses; a socket that is not there is no error.
    pub(crate) fn remove(&self, consumer: &MachineName) -> Result<(), FolderError> {
        Self::remove_socket(&self.socket(consumer))
    }

    fn remove_socket(path: &Path) -> Result<(), FolderError> {
        match std::fs::remove_file(path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                Err(error("cleared", path, source))
            }
            _ => Ok(()),
        }
    }

    /// Says what is served, for `mcp status`: whole or not at all.
    ///
    /// # Errors
    ///
    /// The system refuses.
    pub(crate) fn write_status(&self, text: &[u8]) -> Result<(), FolderError> {
        let path = Self::status_file(&self.path);
        let fresh = self.path.join(FRESH_STATUS);
        std::fs::write(&fresh, text)
            .and_then(|()| std::fs::rename(&fresh, &path))
            .map_err(|source| error("written to", &path, source))
    }

    /// Removes every socket of a consumer and the status, and nothing else.
    ///
    /// # Errors
    ///
    /// The system refuses.
    pub(crate) fn clear(&self) -> Result<(), FolderError> {
        let failed = |source| error("cleared", &self.path, source);
        for entry in std::fs::read_dir(&self.path).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            if entry.file_name() != LOCK && is_ours(&entry).map_err(failed)? {
                std::fs::remove_file(entry.path()).map_err(failed)?;
            }
        }
        Ok(())
    }
}

/// Whether it is named and made as a server does it.
fn is_ours(entry: &DirEntry) -> io::Result<bool> {
    let kind = entry.file_type()?;
    let name = entry.file_name();
    let name = name.to_str().unwrap_or_default();
    let consumer = name.strip_suffix(SOCKET_SUFFIX);
    let is_socket =
        name == FRESH || consumer.is_some_and(|name| name.parse::<MachineName>().is_ok());
    let is_file = [LOCK, STATUS, FRESH_STATUS].contains(&name);
    Ok((kind.is_socket() && is_socket) || (kind.is_file() && is_file))
}

/// Opens a regular file for reading, through no link; a pipe or device would make us wait.
fn regular(path: &Path) -> io::Result<File> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let file = File::from(openat(CWD, path, flags, Mode::empty())?);
    if file.metadata()?.is_file() {
        Ok(file)
    } else {
        Err(io::ErrorKind::InvalidInput.into())
    }
}

fn error(doing: &'static str, path: &Path, source: io::Error) -> FolderError {
    FolderError::Io {
        doing,
        path: path.to_owned(),
        source,
    }
}

fn make_private(path: &Path) -> Result<(), FolderError> {
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent).map_err(|source| error("made", parent, source))?;
    }
    match std::fs::DirBuilder::new().mode(0o700).create(path) {
        Err(source) if source.kind() != io::ErrorKind::AlreadyExists => {
            return Err(error("made", path, source));
        }
        _ => {}
    }
    let metadata = std::fs::symlink_metadata(path).map_err(|source| error("read", path, source))?;
    let ours = metadata.uid() == rustix::process::geteuid().as_raw();
    if !metadata.is_dir() || !ours {
        return Err(FolderError::NotOurs(path.to_owned()));
    }
    holds_sockets_only(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o700))
        .map_err(|source| error("made private", path, source))
}

/// A folder that no server had before is empty, or it is somebody's: it would be closed to others, and emptied.
fn holds_sockets_only(path: &Path) -> Result<(), FolderError> {
    let failed = |source| error("read", path, source);
    if regular(&path.join(LOCK)).is_ok() {
        return Ok(());
    }
    for entry in std::fs::read_dir(path).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        if !is_ours(&entry).map_err(failed)? {
            return Err(FolderError::Foreign {
                folder: path.to_owned(),
                name: entry.file_name().to_string_lossy().into_owned(),
            });
        }
    }
    Ok(())
}

fn lock_file(folder: &Path) -> io::Result<File> {
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let file = openat(CWD, folder.join(LOCK), flags, Mode::RUSR | Mode::WUSR)?;
    Ok(file.into())
}
