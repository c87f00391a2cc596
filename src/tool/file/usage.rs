//! How much each consumer has left in its folder of the portal, so that none can fill the disk.
//!
//! Counted exactly for what comes through this server; what others do to the folder is seen when it is measured again.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, openat, statat};
use rustix::io::Errno;

use super::portal::Portal;
use crate::tool::ToolError;

/// How long a measurement is believed.
const FRESH: Duration = Duration::from_secs(60);
/// Bytes that a file or folder takes at least, so that a flood of empty ones counts.
const BLOCK: u64 = 4096;
/// Deeper folders are not a caller's making: its paths are less deep.
const DEPTH_MAX: usize = 32;

/// What consumers have in the portal, shared by all connections of a server.
#[derive(Debug, Clone, Default)]
pub(in crate::tool) struct Usage(Arc<Mutex<HashMap<String, Share>>>);

/// One folder's share.
#[derive(Debug, Clone, Copy)]
struct Share {
    /// On disk.
    bytes: u64,
    /// Promised to files on their way.
    promised: u64,
    measured: Instant,
}

/// Room that is promised to one file on its way; given back when the file does not come.
#[derive(Debug)]
pub(super) struct Room {
    usage: Usage,
    folder: String,
    limit: u64,
    bytes: u64,
}

impl Usage {
    /// No room yet, in a folder that may hold `limit` bytes.
    pub(super) fn room(&self, folder: &str, limit: u64) -> Room {
        Room {
            usage: self.clone(),
            folder: folder.to_owned(),
            limit,
            bytes: 0,
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Share>> {
        // A panic elsewhere leaves numbers that are still numbers.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Room {
    /// Makes the room large enough for a file of `size` bytes.
    pub(super) fn fit(&mut self, portal: &Portal, size: u64) -> Result<(), ToolError> {
        let wanted = blocks(size).saturating_sub(self.bytes);
        let mut shares = self.usage.lock();
        let known = shares.get(&self.folder).copied();
        let fits = |share: &Share| share.total().saturating_add(wanted) <= self.limit;
        let mut share = match known {
            Some(share) if share.measured.elapsed() < FRESH && fits(&share) => share,
            _ => Share {
                bytes: measure(portal, &self.folder)?,
                promised: known.map_or(0, |share| share.promised),
                measured: Instant::now(),
            },
        };
        let fits = fits(&share);
        let used = share.total();
        if fits {
            share.promised = share.promised.saturating_add(wanted);
            self.bytes = self.bytes.saturating_add(wanted);
        }
        shares.insert(self.folder.clone(), share);
        if fits {
            return Ok(());
        }
        Err(ToolError::Quota {
            folder: self.folder.clone(),
            used,
            wanted,
            limit: self.limit,
        })
    }

    /// The file has come, and with it so many new folders.
    pub(super) fn used(mut self, folders: u64) {
        let mut shares = self.usage.lock();
        if let Some(share) = shares.get_mut(&self.folder) {
            let folders = folders.saturating_mul(BLOCK);
            share.promised = share.promised.saturating_sub(self.bytes);
            share.bytes = share
                .bytes
                .saturating_add(self.bytes)
                .saturating_add(folders);
        }
        drop(shares);
        self.bytes = 0;
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        let mut shares = self.usage.lock();
        if let Some(share) = shares.get_mut(&self.folder) {
            share.promised = share.promised.saturating_sub(self.bytes);
        }
    }
}

impl Share {
    const fn total(&self) -> u64 {
        self.bytes.saturating_add(self.promised)
    }
}

/// Whole blocks that a size takes, in bytes.
const fn blocks(size: u64) -> u64 {
    let count = size.div_ceil(BLOCK);
    let count = if count == 0 { 1 } else { count };
    count.saturating_mul(BLOCK)
}

/// Bytes below a folder of the portal, in whole blocks.
fn measure(portal: &Portal, folder: &str) -> Result<u64, ToolError> {
    let Some(opened) = portal.list(folder)? else {
        return Ok(0);
    };
    sum(opened, DEPTH_MAX).map_err(|refused| ToolError::system(format!("list `{folder}`"), refused))
}

fn sum(folder: OwnedFd, depth: usize) -> Result<u64, Errno> {
    let mut total: u64 = 0;
    let mut entries = Dir::new(folder)?;
    let mut folders = Vec::new();
    while let Some(entry) = entries.read() {
        let entry = entry?;
        if matches!(entry.file_name().to_bytes(), b"." | b"..") {
            continue;
        }
        let stat = match statat(entries.fd()?, entry.file_name(), AtFlags::SYMLINK_NOFOLLOW) {
            // Taken out meanwhile.
            Err(Errno::NOENT) => continue,
            stat => stat?,
        };
        let size = match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => {
                folders.push(entry.file_name().to_owned());
                0
            }
            _ => u64::try_from(stat.st_size).unwrap_or(0),
        };
        total = total.saturating_add(blocks(size));
    }
    let Some(depth) = depth.checked_sub(1) else {
        return Ok(total);
    };
    for name in folders {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        match openat(entries.fd()?, &name, flags, Mode::empty()) {
            Ok(below) => total = total.saturating_add(sum(below, depth)?),
            // Taken out, or exchanged for something else, meanwhile.
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {}
            Err(refused) => return Err(refused),
        }
    }
    Ok(total)
}
