//! A file whose transfer may go on over a later connection: until it is complete, it has a hidden name that follows from
//! the path, the size and the time of last change that its sender announced.

use std::ffi::CStr;
use std::io::{self, Read as _};
use std::os::fd::AsFd;
use std::time::{Duration, SystemTime};

use rustix::fs::{FileType, Mode, Stat, openat};
use sha2::{Digest as _, Sha256};

use super::unpublished::{LeftFile, Unpublished};
use crate::catalogue::{PIECE, PortalPath};
use crate::digest::sha256;
use crate::dir::{BENEATH, Dir, READ, SEARCH};
use crate::tool::{BlockingStop, ToolError};

const PREFIX: &str = ".anklume-";
const SUFFIX: &str = ".part";
/// Time after its last piece for which an abandoned file is kept.
const KEPT: Duration = Duration::from_secs(24 * 60 * 60);
/// Time that the earlier connection of a file may take to end.
const END: Duration = Duration::from_secs(5);
/// Maximum number of entries of a folder that are searched for abandoned files.
const ENTRIES_MAX: usize = 10_000;
/// Length of the digest in a name, in characters.
const DIGITS: usize = 32;

/// What an earlier connection left.
#[derive(Debug)]
pub(super) struct Partial {
    pub(super) file: Unpublished,
    pub(super) size: u64,
    pub(super) digest: Sha256,
}

impl Partial {
    /// Begins with an empty file.
    pub(super) fn new(file: Unpublished) -> Self {
        Self {
            file,
            size: 0,
            digest: Sha256::new(),
        }
    }
}

/// Returns whether any name in a path is that of an incomplete file.
pub(super) fn leads_to_reserved(path: &PortalPath) -> bool {
    path.as_str().split('/').any(is_reserved)
}

/// Returns whether a name is that of an incomplete file.
pub(super) fn is_reserved(name: &str) -> bool {
    name.starts_with(PREFIX) && name.ends_with(SUFFIX)
}

/// Returns the hidden name of a file. `announced` tells apart the files that are sent to one path: their size, and the time
/// of their last change.
pub(super) fn name(path: &PortalPath, (size, modified): (u64, &str)) -> String {
    let key = sha256(format!("{path}\n{size}\n{modified}").as_bytes());
    let key = key.get(..DIGITS).unwrap_or(&key);
    format!("{PREFIX}{key}{SUFFIX}")
}

/// Finds what an earlier connection left of a file of `size` bytes, in one of these folders.
pub(super) fn find(
    folders: impl Iterator<Item = Result<Dir, ToolError>>,
    name: &str,
    path: &PortalPath,
    size: u64,
    stop: &BlockingStop,
) -> Result<Option<Partial>, ToolError> {
    for folder in folders {
        let taken = Unpublished::taken_up(folder?, name, END)
            .map_err(|refused| ToolError::system(format!("write `{path}`"), refused))?;
        match taken {
            LeftFile::Absent => {}
            LeftFile::Locked => {
                let message = format!("another connection is sending `{path}`");
                return Err(ToolError::Busy(message));
            }
            LeftFile::Up(file) => return received(file, path, size, stop).map(Some),
        }
    }
    Ok(None)
}

/// Creates a file with these permissions that is kept until it is complete.
pub(super) fn create(
    folder: Dir,
    name: &str,
    path: &PortalPath,
    mode: Mode,
) -> Result<Unpublished, ToolError> {
    remove_abandoned(&folder);
    Unpublished::create_kept(folder, name, mode)
        .map_err(|refused| ToolError::system(format!("write `{path}`"), refused))
}

/// Reads what was received; a file longer than announced is begun again.
fn received(
    mut file: Unpublished,
    path: &PortalPath,
    announced: u64,
    stop: &BlockingStop,
) -> Result<Partial, ToolError> {
    let failed =
        |refused| ToolError::system(format!("read what was received of `{path}`"), refused);
    let (mut size, mut digest) = (0, Sha256::new());
    let mut piece = Vec::new();
    loop {
        stop.check()?;
        piece.clear();
        let read = file.content().take(PIECE).read_to_end(&mut piece);
        if read.map_err(failed)? == 0 {
            break;
        }
        digest.update(&piece);
        size += u64::try_from(piece.len()).unwrap_or(u64::MAX);
    }
    if size > announced {
        file.empty().map_err(failed)?;
        (size, digest) = (0, Sha256::new());
    }
    Ok(Partial { file, size, digest })
}

/// Removes the incomplete files of a folder whose senders have not come back.
fn remove_abandoned(folder: &Dir) {
    // Whatever cannot be looked at stays, and counts against the quota of its sender.
    let Ok(listed) = openat(folder, ".", READ, Mode::empty()) else {
        return;
    };
    let entries = rustix::fs::Dir::new(listed).into_iter().flatten().flatten();
    let names: Vec<String> = entries
        .take(ENTRIES_MAX)
        .filter_map(|entry| entry.file_name().to_str().ok().map(str::to_owned))
        .filter(|name| is_reserved(name))
        .collect();
    for name in names {
        if folder
            .stat(&name)
            .is_ok_and(|stat| stat.is_some_and(|stat| is_old(&stat)))
        {
            remove_if_unused(folder, &name);
        }
    }
}

/// Removes an abandoned file that is met when a folder is measured; returns whether it is gone.
pub(super) fn remove_met(folder: &impl AsFd, name: &CStr, stat: &Stat) -> bool {
    let name = name.to_str().ok().filter(|name| is_reserved(name));
    let Some(name) = name.filter(|_| is_old(stat)) else {
        return false;
    };
    let opened = folder.as_fd().try_clone_to_owned();
    opened.is_ok_and(|opened| remove_if_unused(&Dir::from_handle(opened, SEARCH, BENEATH), name))
}

/// Returns whether it is a file whose last piece was received long ago.
fn is_old(stat: &Stat) -> bool {
    let changed = u64::try_from(stat.st_mtime).unwrap_or_default();
    let changed = SystemTime::UNIX_EPOCH + Duration::from_secs(changed);
    FileType::from_raw_mode(stat.st_mode).is_file() && changed.elapsed().is_ok_and(|age| age > KEPT)
}

/// Removes a file unless a connection is using it; returns whether it did.
fn remove_if_unused(folder: &Dir, name: &str) -> bool {
    let again = folder.dir(".").map_err(io::Error::from);
    let taken = again.and_then(|again| Unpublished::taken_up(again, name, Duration::ZERO));
    let Ok(LeftFile::Up(mut file)) = taken else {
        return false;
    };
    // Dropping it removes it.
    file.discard();
    true
}
