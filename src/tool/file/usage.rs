//! Tracks how much each consumer has left in its folder of the portal, so that none can fill the disk.
//!
//! Counted exactly for what comes through this server; what others do to the folder is seen when it is measured again.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, openat, statat};
use rustix::io::Errno;

use super::portal::Portal;
use crate::tool::ToolError;

/// Time for which a measurement holds.
const FRESH: Duration = Duration::from_secs(60);
/// A measurement that takes longer is not made again at once for a folder that is full: a caller that keeps asking would have its
/// provider do nothing else.
const LONG: Duration = Duration::from_millis(10);
/// For how many times as long as a long measurement took it is believed of a full folder.
const BELIEVED: u32 = 20;
/// Bytes that a file or folder takes at least, so that a flood of empty ones counts.
const BLOCK: u64 = 4096;
/// Deeper folders are not a caller's making: its paths are less deep.
const DEPTH_MAX: usize = 32;

/// The usage of the portal by consumers, shared by all connections of a server.
#[derive(Debug, Clone, Default)]
pub(in crate::tool) struct Usage(Arc<Mutex<HashMap<String, Arc<Share>>>>);

/// One folder's share. A folder is measured with its own lock held and no other: however much a consumer has left there, nobody
/// else waits for that.
#[derive(Debug, Default)]
struct Share {
    /// The last measurement.
    measured: Mutex<Option<Measured>>,
    /// On disk.
    bytes: AtomicU64,
    /// Promised to files on their way.
    promised: AtomicU64,
}

/// When a folder was measured, and how long that took.
#[derive(Debug, Clone, Copy)]
struct Measured {
    at: Instant,
    took: Duration,
}

impl Measured {
    /// Returns whether it says of a folder what there is in it; of one that is full, what may have been taken out since is looked for.
    fn holds(self, fits: bool) -> bool {
        let age = self.at.elapsed();
        let again = if self.took < LONG {
            Duration::ZERO
        } else {
            self.took * BELIEVED
        };
        age < FRESH && (fits || age < again)
    }
}

/// Room that is promised to one file on its way; given back when the file does not come.
#[derive(Debug)]
pub(super) struct QuotaReservation {
    share: Arc<Share>,
    folder: String,
    limit: u64,
    bytes: u64,
}

impl Usage {
    /// No room yet, in a folder that may hold `limit` bytes.
    pub(super) fn room(&self, folder: &str, limit: u64) -> QuotaReservation {
        // A panic elsewhere leaves a map that is still a map.
        let mut shares = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        QuotaReservation {
            share: Arc::clone(shares.entry(folder.to_owned()).or_default()),
            folder: folder.to_owned(),
            limit,
            bytes: 0,
        }
    }
}

impl QuotaReservation {
    /// Makes the room large enough for a file of `size` bytes.
    pub(super) fn fit(&mut self, portal: &Portal, size: u64) -> Result<(), ToolError> {
        let wanted = blocks(size).saturating_sub(self.bytes);
        let share = &self.share;
        // Held until the room is promised, so that two files never take the same one.
        let mut measured = share
            .measured
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let fits = || share.total().saturating_add(wanted) <= self.limit;
        if !measured.is_some_and(|last| last.holds(fits())) {
            let began = Instant::now();
            let bytes = measure(portal, &self.folder)?;
            share.bytes.store(bytes, Ordering::Relaxed);
            let took = began.elapsed();
            let at = Instant::now();
            *measured = Some(Measured { at, took });
        }
        if fits() {
            share.promised.fetch_add(wanted, Ordering::Relaxed);
            self.bytes = self.bytes.saturating_add(wanted);
            return Ok(());
        }
        Err(ToolError::Quota {
            folder: self.folder.clone(),
            used: share.total(),
            wanted,
            limit: self.limit,
        })
    }

    /// The file has come, and with it so many new folders.
    pub(super) fn used(self, folders: u64) {
        let came = self.bytes.saturating_add(folders.saturating_mul(BLOCK));
        // What was promised is given back with the room itself.
        self.share.bytes.fetch_add(came, Ordering::Relaxed);
    }
}

impl Drop for QuotaReservation {
    fn drop(&mut self) {
        // Waits for no lock: it may run on the thread that serves.
        self.share.promised.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

impl Share {
    fn total(&self) -> u64 {
        let promised = self.promised.load(Ordering::Relaxed);
        self.bytes.load(Ordering::Relaxed).saturating_add(promised)
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
        let of = |folder| usage.room(folder, 2 * BLOCK);
        let mut alice = of("incoming/alice");
        alice.fit(&portal, 1).unwrap();
        // As while her folder is measured, for as long as that takes.
        let share = Arc::clone(&alice.share);
        let measuring = share.measured.lock().unwrap();
        let mut bob = of("incoming/bob");
        bob.fit(&portal, BLOCK + 1).unwrap();
        assert!(bob.fit(&portal, 3 * BLOCK).is_err());
        drop(alice);
        assert_eq!(share.total(), 0);
        drop(measuring);
        bob.used(0);
        assert_eq!(of("incoming/bob").share.total(), 2 * BLOCK);
        // What was counted and is not on the disk is measured again before anybody is refused.
        of("incoming/bob").fit(&portal, 2 * BLOCK).unwrap();
    }
}
