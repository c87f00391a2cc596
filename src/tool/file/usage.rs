//! Limits how much each consumer may leave in its portal folder, so that none can fill the disk.
//!
//! Files received through this server are counted exactly; other changes count when the folder is measured again.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, openat, statat};
use rustix::io::Errno;

use super::partial::remove_met;
use super::portal::Portal;
use crate::tool::ToolError;

/// Time for which a measurement stays valid.
const FRESH: Duration = Duration::from_secs(60);
/// Minimum duration of a slow measurement, which is not repeated immediately if the folder is full: a caller that keeps
/// asking would keep its provider busy.
const LONG: Duration = Duration::from_millis(10);
/// Time for which a slow measurement of a full folder stays valid, as a multiple of its duration.
const LONG_FACTOR: u32 = 20;
/// Unit in which files and folders are counted, in bytes; an empty one counts as one unit.
const BLOCK: u64 = 4096;
/// Maximum depth of measured folders; a caller's paths are shallower.
const DEPTH_MAX: usize = 32;

/// The consumers' portal usage, shared by all of a server's connections.
#[derive(Debug, Clone, Default)]
pub(in crate::tool) struct Usage(Arc<Mutex<HashMap<String, Arc<Share>>>>);

/// One folder's share. Measuring a folder locks only that consumer's share, so other consumers do not have to wait.
#[derive(Debug, Default)]
struct Share {
    measured: Mutex<Option<Measured>>,
    /// Bytes on disk.
    bytes: AtomicU64,
    /// Bytes reserved for incoming files.
    reserved: AtomicU64,
}

#[derive(Debug, Clone, Copy)]
struct Measured {
    at: Instant,
    took: Duration,
}

impl Measured {
    /// Returns whether it is still valid; a full folder is measured again sooner, because files may have been removed.
    fn holds(self, fits: bool) -> bool {
        let age = self.at.elapsed();
        let still_full = self.took >= LONG && age < self.took * LONG_FACTOR;
        age < FRESH && (fits || still_full)
    }
}

/// Space reserved for one incoming file; released if the file is not completed.
#[derive(Debug)]
pub(super) struct QuotaReservation {
    share: Arc<Share>,
    folder: String,
    limit: u64,
    bytes: u64,
    /// Bytes of the file that count as used, no longer as reserved.
    settled: u64,
}

impl Usage {
    /// Begins a reservation of 0 bytes in a folder that may hold `limit` bytes.
    pub(super) fn reserve(&self, folder: String, limit: u64) -> QuotaReservation {
        // A panic elsewhere leaves the map intact.
        let mut shares = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        QuotaReservation {
            share: Arc::clone(shares.entry(folder.clone()).or_default()),
            folder,
            limit,
            bytes: 0,
            settled: 0,
        }
    }
}

impl QuotaReservation {
    /// Grows the reservation to fit a file of `size` bytes.
    pub(super) fn grow(&mut self, portal: &Portal, size: u64) -> Result<(), ToolError> {
        let wanted = blocks(size).saturating_sub(self.bytes + self.settled);
        let share = &self.share;
        let measured = share.measured.lock();
        // The lock is held until the space is reserved, so that two files never take the same space.
        let mut measured = measured.unwrap_or_else(PoisonError::into_inner);
        let fits = || share.total().saturating_add(wanted) <= self.limit;
        if !measured.is_some_and(|last| last.holds(fits())) {
            let began = Instant::now();
            let bytes = measure(portal, &self.folder)?;
            share.bytes.store(bytes, Ordering::Relaxed);
            *measured = Some(Measured {
                at: Instant::now(),
                took: began.elapsed(),
            });
        }
        if fits() {
            share.reserved.fetch_add(wanted, Ordering::Relaxed);
            self.bytes = self.bytes.saturating_add(wanted);
            return Ok(());
        }
        Err(ToolError::Quota {
            folder: self.folder.clone(),
            used: share.total().saturating_sub(self.bytes),
            wanted: wanted.saturating_add(self.bytes),
            limit: self.limit,
        })
    }

    /// Counts the first `size` bytes of a file that has a name as used, because a measurement finds them.
    pub(super) fn settle(&mut self, size: u64) {
        let now = blocks(size).saturating_sub(self.settled);
        let reserved = now.min(self.bytes);
        self.settled += now;
        self.bytes -= reserved;
        self.share.reserved.fetch_sub(reserved, Ordering::Relaxed);
        // The rest was counted over an earlier connection.
        self.share.bytes.fetch_add(reserved, Ordering::Relaxed);
    }

    /// Counts the completed file, and the folders that were made for it.
    pub(super) fn commit(self, folders: u64) {
        let bytes = self.bytes.saturating_add(folders.saturating_mul(BLOCK));
        // The reservation ends when `self` is dropped.
        self.share.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Counts the folders that were made, which is all that was reserved for.
    pub(super) fn commit_folders(self, folders: u64) {
        let bytes = folders.saturating_mul(BLOCK);
        self.share.bytes.fetch_add(bytes, Ordering::Relaxed);
    }
}

impl Drop for QuotaReservation {
    fn drop(&mut self) {
        // Takes no lock, because it may run on the serving thread.
        self.share.reserved.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

impl Share {
    fn total(&self) -> u64 {
        let reserved = self.reserved.load(Ordering::Relaxed);
        self.bytes.load(Ordering::Relaxed).saturating_add(reserved)
    }
}

/// Rounds a size in bytes up to whole blocks, at least one.
fn blocks(size: u64) -> u64 {
    size.div_ceil(BLOCK).max(1).saturating_mul(BLOCK)
}

/// Returns the number of bytes below a portal folder, in whole blocks; removes the incomplete files of senders that have
/// not come back.
fn measure(portal: &Portal, folder: &str) -> Result<u64, ToolError> {
    let failed = |refused| ToolError::system(format!("list `{folder}`"), refused);
    let Some(opened) = portal.open_folder(folder).map_err(failed)? else {
        return Ok(0);
    };
    sum(opened, DEPTH_MAX).map_err(failed)
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
            // Removed meanwhile.
            Err(Errno::NOENT) => continue,
            stat => stat?,
        };
        if remove_met(&entries.fd()?, entry.file_name(), &stat) {
            continue;
        }
        let is_folder = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
        let size = if is_folder { 0 } else { stat.st_size };
        if is_folder {
            folders.push(entry.file_name().to_owned());
        }
        total = total.saturating_add(blocks(u64::try_from(size).unwrap_or(0)));
    }
    let Some(depth) = depth.checked_sub(1) else {
        return Ok(total);
    };
    for name in folders {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        match openat(entries.fd()?, &name, flags, Mode::empty()) {
            Ok(below) => total = total.saturating_add(sum(below, depth)?),
            // Removed or replaced meanwhile.
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {}
            Err(refused) => return Err(refused),
        }
    }
    Ok(total)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tool::Settings;

    #[test]
    fn a_full_folder_that_takes_long_to_measure_is_not_measured_again_at_once() {
        let measured = |took| Measured {
            at: Instant::now(),
            took,
        };
        let (short, long) = (measured(LONG / 2), measured(Duration::from_secs(60)));
        assert_eq!([short.holds(true), short.holds(false)], [true, false]);
        assert_eq!([long.holds(true), long.holds(false)], [true, true]);
    }

    #[test]
    fn nobody_waits_while_another_folder_is_measured_and_what_is_given_back_waits_for_nothing() {
        let root = tempfile::tempdir().unwrap();
        let settings = Settings::new(root.path().to_owned(), root.path().to_owned());
        let portal = Portal::open(&settings).unwrap();
        let usage = Usage::default();
        let of = |folder: &str| usage.reserve(folder.to_owned(), 2 * BLOCK);
        let mut alice = of("incoming/alice");
        alice.grow(&portal, 1).unwrap();
        // Locked, as it is while her folder is being measured.
        let share = Arc::clone(&alice.share);
        let measuring = share.measured.lock().unwrap();
        let mut bob = of("incoming/bob");
        bob.grow(&portal, BLOCK + 1).unwrap();
        assert!(bob.grow(&portal, 3 * BLOCK).is_err());
        drop(alice);
        assert_eq!(share.total(), 0);
        drop(measuring);
        bob.commit(0);
        assert_eq!(of("incoming/bob").share.total(), 2 * BLOCK);
        // The folder is measured again before a refusal: the counted bytes are not on the disk.
        of("incoming/bob").grow(&portal, 2 * BLOCK).unwrap();
    }
}
