//! Manages a server's socket folder: private, used by one server at a time, and cleared when the server ends.

use std::fs::{DirEntry, File, TryLockError};
use std::io::{self, Write as _};
use std::os::unix::fs::{
    DirBuilderExt as _, FileTypeExt as _, MetadataExt as _, PermissionsExt as _,
};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{CWD, OFlags, RenameFlags, renameat_with};

use crate::dir::{BENEATH, Dir, READ, RegularFile, SEARCH, lock_within, open_or_make};
use crate::mcp::framing::json;
use crate::name::MachineName;

/// Maximum wait for the folder's lock: a check for a running server holds it briefly.
const LOCK_TIMEOUT: Duration = Duration::from_secs(1);
/// Maximum length of a Unix socket path, in bytes (`sun_path` without its final zero).
const SOCKET_PATH_MAX: usize = 107;
/// The file that a running server keeps locked.
const LOCK: &str = ".lock";
/// Name of the running server's status file.
const STATUS: &str = ".status.json";
/// Name of a socket before it listens; shorter than the name of any consumer's socket.
const FRESH: &str = ".new";
/// Name of the status file until it is complete.
const FRESH_STATUS: &str = ".status.new";
/// Mode of the status file.
const STATUS_MODE: u32 = 0o600;
/// Suffix of a consumer's socket.
const SOCKET_SUFFIX: &str = ".sock";

/// The reason why sockets cannot be created in a folder.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FolderError {
    /// A system call failed.
    #[error("`{}` cannot be {doing}: {source}", path.display())]
    Io {
        /// The attempted operation.
        doing: &'static str,
        /// The path on which it was attempted.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// The folder contains a file that no server created.
    #[error("`{}` contains `{}`, which no server created", folder.display(), name.escape_debug())]
    Foreign {
        /// The folder.
        folder: PathBuf,
        /// Name of the file.
        name: String,
    },
    /// The folder is a link or a file, or belongs to another user.
    #[error("`{}` is not a folder that belongs to this user", .0.display())]
    NotOurs(PathBuf),
    /// Something other than a socket is at the socket's path.
    #[error("`{}` is not a socket, so no socket can be created there", .0.display())]
    InTheWay(PathBuf),
    /// Another server is using the folder.
    #[error("another server uses the folder `{}`", .0.display())]
    Taken(PathBuf),
    /// A socket path would be longer than the system allows.
    #[error("the socket path `{}` has {length} bytes; the maximum is {SOCKET_PATH_MAX}", path.display())]
    PathTooLong {
        /// The socket's path.
        path: PathBuf,
        /// Length of its path, in bytes.
        length: usize,
    },
}

/// This process's socket folder and its lock.
#[derive(Debug)]
pub(crate) struct SocketFolder {
    path: PathBuf,
    _lock: File,
}

impl SocketFolder {
    /// Makes the folder private (0700), takes its lock and removes the sockets left by a killed server.
    ///
    /// # Errors
    ///
    /// Fails if the folder belongs to another user, cannot be created, contains foreign files, or is in use.
    pub(crate) fn take(path: &Path) -> Result<Self, FolderError> {
        make_private(path)?;
        let lock = open_or_make(CWD, path.join(LOCK))
            .map_err(|source| error("locked", path, source.into()))?;
        lock_within(LOCK_TIMEOUT, || lock.try_lock()).map_err(|failed| match failed {
            TryLockError::WouldBlock => FolderError::Taken(path.to_owned()),
            TryLockError::Error(source) => error("locked", path, source),
        })?;
        let folder = Self {
            path: path.to_owned(),
            _lock: lock,
        };
        folder.clear()?;
        Ok(folder)
    }

    /// Returns whether a server currently holds the folder's lock.
    ///
    /// # Errors
    ///
    /// Fails if the folder belongs to another user.
    pub(crate) fn is_served(path: &Path) -> io::Result<bool> {
        match regular(path, LOCK) {
            Ok(lock) => Ok(lock.file.try_lock_shared().is_err()),
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Err(error),
            // No server has used the folder yet.
            Err(_) => Ok(false),
        }
    }

    /// Reads the server's status. The folder belongs to the server's user, who is not trusted.
    ///
    /// # Errors
    ///
    /// Fails if a system call fails, or if the status is too large or not a regular file.
    pub(crate) fn status(path: &Path) -> io::Result<Vec<u8>> {
        /// Maximum size of a status, in bytes: a services file plus some overhead.
        const STATUS_MAX: u64 = 17 * 1024 * 1024;
        /// Maximum number of values in a status, which keeps their memory below 32 MiB.
        const VALUES_MAX: usize = 200_000;
        /// Maximum length of a string in a status, in bytes.
        const TEXT_MAX: usize = 64 * 1024;
        let text = regular(path, STATUS)?.read(STATUS_MAX)?;
        if json::count(&text).is_some_and(|values| values <= VALUES_MAX)
            && !json::has_long_text(&text, TEXT_MAX, &[], &[])
        {
            Ok(text)
        } else {
            Err(io::ErrorKind::FileTooLarge.into())
        }
    }

    /// Returns the path of the status file.
    pub(crate) fn status_file(path: &Path) -> PathBuf {
        path.join(STATUS)
    }

    /// Returns the path of a consumer's socket.
    pub(crate) fn socket(&self, consumer: &MachineName) -> PathBuf {
        self.path.join(format!("{consumer}{SOCKET_SUFFIX}"))
    }

    /// Creates a consumer's socket (0600, non-blocking).
    ///
    /// # Errors
    ///
    /// Fails if the path is too long or taken by something other than a socket, or if a system call fails.
    pub(crate) fn bind(&self, consumer: &MachineName) -> Result<UnixListener, FolderError> {
        let path = self.socket(consumer);
        let length = path.as_os_str().len();
        if length > SOCKET_PATH_MAX {
            return Err(FolderError::PathTooLong { path, length });
        }
        // The socket has a temporary name until it listens, so that every visible socket accepts connections.
        let fresh = self.path.join(FRESH);
        Self::remove_socket(&fresh)?;
        Self::remove_socket(&path)?;
        let made = UnixListener::bind(&fresh).and_then(|listener| {
            listener.set_nonblocking(true)?;
            // Until then, the private folder protects the socket.
            std::fs::set_permissions(&fresh, std::fs::Permissions::from_mode(0o600))?;
            // Anything that has taken this name by now is not ours and is kept.
            renameat_with(CWD, &fresh, CWD, &path, RenameFlags::NOREPLACE)?;
            Ok(listener)
        });
        made.map_err(|source| match source.kind() {
            io::ErrorKind::AlreadyExists => FolderError::InTheWay(path),
            _ => error("created", &path, source),
        })
    }

    /// Returns whether a consumer's socket exists; true if that cannot be determined.
    pub(crate) fn has(&self, consumer: &MachineName) -> bool {
        match std::fs::symlink_metadata(self.socket(consumer)) {
            Ok(metadata) => metadata.file_type().is_socket(),
            Err(error) => error.kind() != io::ErrorKind::NotFound,
        }
    }

    /// Returns the error for a socket that exists but cannot be served.
    pub(crate) fn not_served(&self, consumer: &MachineName, source: io::Error) -> FolderError {
        error("served", &self.socket(consumer), source)
    }

    /// Removes a consumer's socket; does nothing if it is missing.
    ///
    /// # Errors
    ///
    /// Fails if a system call fails, or if something other than a socket is at its path.
    pub(crate) fn remove(&self, consumer: &MachineName) -> Result<(), FolderError> {
        Self::remove_socket(&self.socket(consumer))
    }

    fn remove_socket(path: &Path) -> Result<(), FolderError> {
        let metadata = std::fs::symlink_metadata(path);
        if metadata.is_ok_and(|metadata| !metadata.file_type().is_socket()) {
            return Err(FolderError::InTheWay(path.to_owned()));
        }
        match std::fs::remove_file(path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                Err(error("removed", path, source))
            }
            _ => Ok(()),
        }
    }

    /// Writes the status file for `mcp status` atomically.
    ///
    /// # Errors
    ///
    /// Fails if a system call fails.
    pub(crate) fn write_status(&self, text: &[u8]) -> Result<(), FolderError> {
        open(&self.path)
            .and_then(|folder| {
                folder.replace(STATUS, FRESH_STATUS, STATUS_MODE, |file| {
                    file.write_all(text)
                })
            })
            .map_err(|source| error("written", &self.path.join(STATUS), source))
    }

    /// Removes the sockets of all consumers and the status file, and nothing else.
    ///
    /// # Errors
    ///
    /// Fails if a system call fails.
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

/// Returns whether a server created the entry, judging by its name and type.
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

fn open(folder: &Path) -> io::Result<Dir> {
    Ok(Dir::open(folder, READ | OFlags::NOFOLLOW, BENEATH)?)
}

/// Opens a regular file in the folder; the folder's own path may be a link.
fn regular(folder: &Path, name: &str) -> io::Result<RegularFile> {
    let file = Dir::open(folder, SEARCH, BENEATH)?.regular(name)?;
    file.ok_or_else(|| io::ErrorKind::NotFound.into())
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
        std::fs::create_dir_all(parent).map_err(|source| error("created", parent, source))?;
    }
    match std::fs::DirBuilder::new().mode(0o700).create(path) {
        Err(source) if source.kind() != io::ErrorKind::AlreadyExists => {
            return Err(error("created", path, source));
        }
        _ => {}
    }
    let metadata = std::fs::symlink_metadata(path).map_err(|source| error("read", path, source))?;
    if !metadata.is_dir() || metadata.uid() != rustix::process::geteuid().as_raw() {
        return Err(FolderError::NotOurs(path.to_owned()));
    }
    holds_sockets_only(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o700))
        .map_err(|source| error("made private", path, source))
}

/// Checks that a folder without a lock file contains no foreign files, before it is made private and cleared.
fn holds_sockets_only(path: &Path) -> Result<(), FolderError> {
    let failed = |source| error("read", path, source);
    if regular(path, LOCK).is_ok() {
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

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn whoever_looks_whether_it_is_served_stops_no_start() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("sockets");
        drop(SocketFolder::take(&path).unwrap());
        let looked = regular(&path, LOCK).unwrap();
        looked.file.lock_shared().unwrap();
        let (about_to, taking) = mpsc::channel();
        let taken = std::thread::spawn({
            let path = path.clone();
            move || {
                about_to.send(()).unwrap();
                SocketFolder::take(&path)
            }
        });
        taking.recv().unwrap();
        std::thread::sleep(Duration::from_millis(100));
        drop(looked);
        let taken = taken.join().unwrap().unwrap();
        // A taken folder cannot be taken again.
        assert!(matches!(
            SocketFolder::take(&path),
            Err(FolderError::Taken(_))
        ));
        assert!(SocketFolder::is_served(&path).unwrap());
        drop(taken);
        assert!(!SocketFolder::is_served(&path).unwrap());
    }

    #[test]
    fn what_is_no_socket_is_neither_replaced_nor_removed() {
        let folder = tempfile::tempdir().unwrap();
        let folder = SocketFolder::take(&folder.path().join("sockets")).unwrap();
        let alice = "alice".parse().unwrap();
        let path = folder.socket(&alice);
        std::fs::write(&path, "somebody's").unwrap();
        assert!(!folder.has(&alice));
        let refused = folder.bind(&alice).unwrap_err();
        assert!(matches!(refused, FolderError::InTheWay(_)), "{refused}");
        let refused = folder.remove(&alice).unwrap_err();
        assert!(matches!(refused, FolderError::InTheWay(_)), "{refused}");
        folder.clear().unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"somebody's");
        std::fs::remove_file(&path).unwrap();
        let _listener = folder.bind(&alice).unwrap();
        assert!(folder.has(&alice));
        folder.remove(&alice).unwrap();
        assert!(!path.exists());
    }
}
