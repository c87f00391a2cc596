//! Opens files below the portal, without following symbolic links.

use std::os::fd::OwnedFd;

use rustix::fs::{Mode, OFlags, fstatvfs, openat};
use rustix::io::Errno;

use crate::catalogue::PortalPath;
use crate::dir::{BENEATH, Dir, READ, SEARCH, make_all};
use crate::tool::{Settings, ToolError};

/// Permissions of new folders, before the umask is applied.
const FOLDER_MODE: u32 = 0o755;

/// The open portal.
#[derive(Debug)]
pub(super) struct Portal(Dir);

/// Creates the portal if it is missing, unless other users can write to its parent folder.
pub(in crate::tool) fn make(settings: &Settings) -> Result<(), ToolError> {
    make_all(&settings.portal, Mode::from_raw_mode(FOLDER_MODE))
        .map_err(|refused| ToolError::system("create the portal folder", refused))
}

impl Portal {
    /// Opens the existing portal.
    pub(super) fn open(settings: &Settings) -> Result<Self, ToolError> {
        match Dir::open(&settings.portal, SEARCH, BENEATH) {
            Ok(folder) => Ok(Self(folder)),
            Err(Errno::NOENT) => Err(ToolError::Unavailable(
                "the provider has no portal folder yet; it is created by `file_accept` or by its owner"
                    .to_owned(),
            )),
            Err(refused) => Err(ToolError::system("open the portal folder", refused)),
        }
    }

    /// Opens the portal, creating it first if it is missing.
    pub(super) fn open_or_make(settings: &Settings) -> Result<Self, ToolError> {
        make(settings)?;
        Self::open(settings)
    }

    /// Checks that the portal's file system has room for this many bytes.
    pub(super) fn check_space(&self, bytes: u64) -> Result<(), ToolError> {
        let stat = fstatvfs(self.0.handle())
            .map_err(|refused| ToolError::system("find out how much space is free", refused))?;
        let free = stat.f_bavail.saturating_mul(stat.f_frsize);
        if bytes > free {
            let message = format!("{bytes} bytes do not fit: the portal's disk has {free} left");
            return Err(ToolError::TooLarge(message));
        }
        Ok(())
    }

    /// Opens a file or folder for reading its metadata only.
    pub(super) fn look(&self, path: &PortalPath) -> Result<OwnedFd, ToolError> {
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        self.0
            .open_at(path.as_str(), flags)
            .map_err(|refused| explain(refused, path, "open"))
    }

    /// Opens a file for reading, without waiting for a pipe or device.
    pub(super) fn read(&self, path: &PortalPath) -> Result<OwnedFd, ToolError> {
        let flags =
            OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        self.0
            .open_at(path.as_str(), flags)
            .map_err(|refused| explain(refused, path, "read"))
    }

    /// Opens a file's folder; returns `None` if the folder does not exist.
    pub(super) fn parent(&self, path: &PortalPath) -> Result<Option<Dir>, ToolError> {
        let (folders, _) = path.split();
        match self.0.dir(&folders.join("/")) {
            Ok(folder) => Ok(Some(folder)),
            Err(Errno::NOENT) => Ok(None),
            Err(refused) => Err(explain(refused, path, "open the folder of")),
        }
    }

    /// Opens the existing folders on a file's path one by one, from the deepest one to the portal itself.
    pub(super) fn existing_folders(
        &self,
        path: &PortalPath,
    ) -> impl Iterator<Item = Result<Dir, ToolError>> {
        let (folders, _) = path.split();
        (0..=folders.len()).rev().filter_map(move |depth| {
            let above = folders.get(..depth).unwrap_or_default();
            match self.0.dir(&above.join("/")) {
                Err(Errno::NOENT) if depth > 0 => None,
                found => {
                    Some(found.map_err(|refused| explain(refused, path, "open the folder of")))
                }
            }
        })
    }

    /// Opens the deepest existing folder on a file's path.
    pub(super) fn nearest(&self, path: &PortalPath) -> Result<Dir, ToolError> {
        let nearest = self.existing_folders(path).next();
        // The last one is the portal.
        nearest.unwrap_or(Err(ToolError::Broken))
    }

    /// Opens a file's folder, creating any missing folders; also returns their number.
    pub(super) fn make_parent(&self, path: &PortalPath) -> Result<(Dir, u64), ToolError> {
        if let Some(parent) = self.parent(path)? {
            return Ok((parent, 0));
        }
        self.make_folders(&path.split().0, path)
    }

    /// Creates a folder and any missing folders above it; returns the number of new ones.
    pub(super) fn make_folder(&self, path: &PortalPath) -> Result<u64, ToolError> {
        let (mut folders, last) = path.split();
        folders.push(last);
        Ok(self.make_folders(&folders, path)?.1)
    }

    fn make_folders(&self, folders: &[&str], path: &PortalPath) -> Result<(Dir, u64), ToolError> {
        let failed = |refused| explain(refused, path, "create the folder of");
        let mut made: u64 = 0;
        let mut folder = self.0.dir(".").map_err(failed)?;
        for name in folders {
            if folder.make_dir(name, FOLDER_MODE).map_err(failed)? {
                made = made.saturating_add(1);
            }
            folder = folder.dir(name).map_err(failed)?;
        }
        Ok((folder, made))
    }

    /// Opens a folder in the portal for listing; returns `None` if it does not exist.
    pub(super) fn open_folder(&self, folder: &str) -> Result<Option<OwnedFd>, Errno> {
        match self.0.open_at(folder, READ) {
            Err(Errno::NOENT) => Ok(None),
            opened => opened.map(Some),
        }
    }
}

/// Syncs a folder's entries to disk, if the folder can be opened for reading.
pub(super) fn sync(folder: &Dir) {
    if let Ok(folder) = openat(folder, ".", READ, Mode::empty()) {
        // The file itself is on disk already; some file systems cannot sync folders.
        let _ = rustix::fs::fsync(folder);
    }
}

/// Maps a system error to an error about the caller's path.
pub(super) fn explain(refused: Errno, path: &PortalPath, doing: &str) -> ToolError {
    let text = match refused {
        Errno::NOENT => {
            let path = path.to_string();
            return ToolError::NotFound { path };
        }
        Errno::LOOP => format!("`{path}` leads through a symbolic link, which is not followed"),
        Errno::XDEV => format!("`{path}` leads out of the portal"),
        Errno::NOTDIR => format!("`{path}` leads through something that is not a folder"),
        Errno::NOSYS => {
            let text = "this system lacks openat2 (Linux 5.6), which the file tools require";
            return ToolError::Unavailable(text.to_owned());
        }
        _ => return ToolError::system(format!("{doing} `{path}`"), refused),
    };
    ToolError::Refused(text)
}
