//! Manages the log files: appending under a lock, rotation by size, reserving space for lines, the machine's key.

mod file;
mod key;
#[cfg(test)]
mod tests;

use std::fs::{self, File, Metadata};
use std::io::{self, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::fs::{FallocateFlags, StatVfs, fallocate, fstatvfs};
use rustix::io::Errno;

use super::chain::{self, Head};
use super::{Event, SealKey};
use file::{LogEnd, fresh, gone, numbered, open_file, same_file};
pub use file::{files, may_have_dropped};

/// Default path of the log.
pub const LOG: &str = "/var/log/anklume/audit.jsonl";
/// Size at which the log continues in a new file, in bytes.
pub const ROTATE_AT: u64 = 32 * 1024 * 1024;
/// Number of old files to keep.
pub const KEEP: u32 = 8;
/// Disk space promised to each call, in bytes: more than its line ever takes.
const LINE_ROOM: u64 = 4 * 1024;
/// Disk space to allocate beyond what is promised, in bytes, so that not every call has to allocate.
const AHEAD: u64 = 1024 * 1024;

/// The reason the log could not be written.
#[derive(Debug, thiserror::Error)]
pub enum AuditError {
    /// A system call failed.
    #[error("the audit log `{}` cannot be {doing}: {source}", path.display())]
    Io {
        /// The attempted operation.
        doing: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// Another process keeps replacing the file.
    #[error("the audit log `{}` keeps being replaced", .0.display())]
    Restless(PathBuf),
    /// The key file holds no key.
    #[error("the key of the audit log, `{}`, is damaged; if you remove it, a new one is made, and digests of arguments no longer match earlier ones", .0.display())]
    Key(PathBuf),
    /// The file does not end with a line of the log.
    #[error(
        "the audit log `{}` does not end with a line of the log; remove what follows the last one, or move the file away (`anklume audit verify` shows more)",
        .0.display()
    )]
    Foreign(PathBuf),
}

/// The log of this machine.
#[derive(Debug)]
pub struct Log {
    path: PathBuf,
    rotate_at: u64,
    /// The machine's key.
    pub key: SealKey,
    open: Mutex<OpenLog>,
}

/// The file as this process last saw it.
#[derive(Debug)]
struct OpenLog {
    file: File,
    /// Its length, in bytes; `u64::MAX` if unknown.
    length: u64,
    head: Head,
    /// File length up to which this process has allocated disk space, in bytes.
    reserved: u64,
    /// Disk space promised to running calls, in bytes.
    promised: u64,
}

impl Log {
    /// Opens the log; creates it (0600) and the machine's key beside it if they are missing. Fails if the folder is
    /// missing or not writable, or if the key is damaged.
    pub fn open(path: &Path) -> Result<Self, AuditError> {
        Self::open_with(path, ROTATE_AT)
    }

    /// The same as [`Log::open`], but with another rotation size.
    pub fn open_with(path: &Path, rotate_at: u64) -> Result<Self, AuditError> {
        let file = open_file(path)?;
        Ok(Self {
            key: key::read_or_make(&key::path_of(path))?,
            path: path.to_owned(),
            rotate_at,
            open: Mutex::new(OpenLog {
                file,
                length: u64::MAX,
                head: Head::default(),
                reserved: 0,
                promised: 0,
            }),
        })
    }

    /// Allocates disk space for the lines that running calls have yet to write, so that none ends unlogged. Fails if
    /// the disk is full, the file is not writable, or it does not end with a line of the log.
    pub fn reserve(&self, lines: usize) -> Result<(), AuditError> {
        let mut open = self.opened();
        open.promised = (lines as u64).saturating_mul(LINE_ROOM);
        let ours = self.metadata(&open.file)?;
        let is_enough = ours.len().saturating_add(open.promised) <= open.reserved;
        // Space reserved in a file that the path no longer names does not count.
        if is_enough && ours.len() == open.length && self.is_named(&ours) {
            return Ok(());
        }
        self.locked(&mut open, |open| {
            self.catch_up(open)?;
            self.make_room(open)
        })
    }

    fn opened(&self) -> MutexGuard<'_, OpenLog> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Allocates the promised space, and some extra, beyond the end of the file.
    fn make_room(&self, open: &mut OpenLog) -> Result<(), AuditError> {
        let bytes = open.promised.saturating_add(AHEAD);
        // Allocates blocks beyond the end of the file: its length stays the same, and nothing else can use them.
        let allocated = fallocate(&open.file, FallocateFlags::KEEP_SIZE, open.length, bytes);
        allocated
            .or_else(|why| match why {
                // A file system that cannot preallocate at least reports its free space.
                Errno::OPNOTSUPP | Errno::NOSYS if has(&fstatvfs(&open.file)?, bytes) => Ok(()),
                Errno::OPNOTSUPP | Errno::NOSYS => Err(Errno::NOSPC),
                why => Err(why),
            })
            .map_err(|why| self.error("given room")(why.into()))?;
        open.reserved = open.length.saturating_add(bytes);
        Ok(())
    }

    /// Appends an event with the current time; on return, the line is in the file. Fails if the disk is full or the
    /// file is not writable; in that case, no part of the line remains.
    pub fn append(&self, event: Event) -> Result<Head, AuditError> {
        self.append_of(now(), event)
    }

    /// The same as [`Log::append`], but for an event that happened at the given time.
    pub fn append_of(&self, time: String, event: Event) -> Result<Head, AuditError> {
        self.locked(&mut self.opened(), |open| {
            self.catch_up(open)?;
            if open.length >= self.rotate_at {
                // Even if the disk is full, a line that fits into the old file must not be lost.
                let _ = self.rotate(open);
            }
            self.write(open, time, event)
        })
    }

    /// Runs `work` while holding the lock on the file that the path currently names.
    fn locked<T>(
        &self,
        open: &mut OpenLog,
        work: impl FnOnce(&mut OpenLog) -> Result<T, AuditError>,
    ) -> Result<T, AuditError> {
        self.lock_current(open)?;
        let done = work(open);
        // Releasing a held lock does not fail; the work is done in any case.
        let _ = open.file.unlock();
        done
    }

    fn error(&self, doing: &'static str) -> impl Fn(io::Error) -> AuditError + use<'_> {
        move |source| AuditError::Io {
            doing,
            path: self.path.clone(),
            source,
        }
    }

    fn metadata(&self, file: &File) -> Result<Metadata, AuditError> {
        file.metadata().map_err(self.error("read"))
    }

    /// Returns whether the log's path names this file.
    fn is_named(&self, file: &Metadata) -> bool {
        fs::symlink_metadata(&self.path)
            .is_ok_and(|named| (named.dev(), named.ino()) == (file.dev(), file.ino()))
    }

    /// Locks the file that the path currently names: another process may have rotated the log.
    fn lock_current(&self, open: &mut OpenLog) -> Result<(), AuditError> {
        /// Maximum number of rotations in a row.
        const TRIES: u32 = 16;
        for _ in 0..TRIES {
            open.file.lock().map_err(self.error("locked"))?;
            if self.is_named(&self.metadata(&open.file)?) {
                return Ok(());
            }
            open.file = open_file(&self.path)?;
            open.length = u64::MAX;
            open.reserved = 0;
        }
        Err(AuditError::Restless(self.path.clone()))
    }

    /// Rereads the end of the file if its length is not the expected one.
    fn catch_up(&self, open: &mut OpenLog) -> Result<(), AuditError> {
        let length = self.metadata(&open.file)?.len();
        if length == open.length {
            return Ok(());
        }
        let end = LogEnd::of(&open.file, length).map_err(self.error("read"))?;
        open.head = match end.line.as_deref() {
            None if end.length > 0 => return Err(AuditError::Foreign(self.path.clone())),
            None => self.head_before()?,
            Some(line) => head_of(line, &self.path)?,
        };
        open.length = end.length;
        match chain::read(&end.tail) {
            _ if end.tail.is_empty() => Ok(()),
            chain::ReadLine::Whole(line, head) if line.continues(&open.head) => {
                // Only the newline is missing, so the event is not lost.
                let repaired = open.file.write_all_at(b"\n", length);
                repaired.map_err(self.error("repaired"))?;
                open.length = length.saturating_add(1);
                open.head = head;
                Ok(())
            }
            // Whatever follows the last whole line is removed, and a new line records that.
            _ => {
                let repaired = open.file.set_len(open.length);
                repaired.map_err(self.error("repaired"))?;
                let bytes = end.tail.len() as u64;
                self.write(open, now(), Event::Torn { bytes }).map(drop)
            }
        }
    }

    /// Returns the head of the previous file, or the default if there is none; for use when the current file is empty.
    fn head_before(&self) -> Result<Head, AuditError> {
        let before = numbered(&self.path, 1);
        let Ok(file) = File::open(&before) else {
            return Ok(Head::default());
        };
        let length = self.metadata(&file)?.len();
        let end = LogEnd::of(&file, length).map_err(self.error("read"))?;
        let line = end.line.as_deref();
        line.map_or(Ok(Head::default()), |line| head_of(line, &before))
    }

    /// Begins a new file, whose first line records the rotation, and renames each older file to the next number.
    ///
    /// The log's path always names a file: a process that opens the log during the rotation finds the old one, locked.
    fn rotate(&self, open: &mut OpenLog) -> Result<(), AuditError> {
        let fresh = fresh(&self.path);
        let next = self.begin(&fresh, open)?;
        self.make_way()
            .and_then(|()| fs::hard_link(&self.path, numbered(&self.path, 1)))
            .and_then(|()| fs::rename(&fresh, &self.path))
            .map_err(self.error("rotated"))?;
        // Dropping the old file releases its lock; a process waiting for the lock then finds the new file.
        *open = next;
        Ok(())
    }

    /// Creates a file that continues where `open` ends.
    fn begin(&self, fresh: &Path, open: &OpenLog) -> Result<OpenLog, AuditError> {
        gone(fresh).map_err(self.error("rotated"))?;
        let file = open_file(fresh)?;
        // Locked before it gets its name, so that no other process writes its first line.
        file.lock().map_err(self.error("locked"))?;
        let mut next = OpenLog {
            file,
            length: 0,
            head: open.head.clone(),
            reserved: 0,
            promised: open.promised,
        };
        let bytes = open.length;
        self.write(&mut next, now(), Event::Rotated { bytes })?;
        if next.promised > 0 {
            // Running calls have space reserved in the old file and need it in the new one.
            self.make_room(&mut next)?;
        }
        Ok(next)
    }

    /// Frees the first number: renames each file before the first free number to the next number.
    fn make_way(&self) -> io::Result<()> {
        let first = numbered(&self.path, 1);
        if same_file(&first, &self.path) {
            // A rotation was interrupted while the file had both names.
            gone(&first)?;
        }
        let free = (1..KEEP).find(|number| !numbered(&self.path, *number).exists());
        (1..free.unwrap_or(KEEP)).rev().try_for_each(|number| {
            let from = numbered(&self.path, number);
            fs::rename(from, numbered(&self.path, number + 1))
        })
    }

    fn write(&self, open: &mut OpenLog, time: String, event: Event) -> Result<Head, AuditError> {
        let line = chain::link(&open.head, time, event).map_err(io::Error::from);
        let (bytes, head) = line.map_err(self.error("written"))?;
        let before = open.length;
        let sought = open.file.seek(SeekFrom::Start(before));
        if let Err(source) = sought.and_then(|_| open.file.write_all(&bytes)) {
            // Removes the written part of the line; if even that fails, the next writer removes it.
            let _ = open.file.set_len(before);
            open.length = u64::MAX;
            return Err(self.error("written")(source));
        }
        open.length = before.saturating_add(bytes.len() as u64);
        open.head = head.clone();
        Ok(head)
    }
}

/// Returns the head after this line of a file.
fn head_of(line: &[u8], file: &Path) -> Result<Head, AuditError> {
    match chain::read(line) {
        chain::ReadLine::Whole(_, head) | chain::ReadLine::Edited(head) => Ok(head),
        chain::ReadLine::Foreign => Err(AuditError::Foreign(file.to_owned())),
    }
}

/// Returns whether this many bytes are free. A file system that reports no blocks at all has no size limit.
const fn has(disk: &StatVfs, bytes: u64) -> bool {
    disk.f_blocks == 0 || disk.f_bavail.saturating_mul(disk.f_frsize) >= bytes
}

/// Returns the current time in the form of a line's `time`.
#[must_use]
pub fn now() -> String {
    format!("{:.6}", jiff::Timestamp::now())
}
