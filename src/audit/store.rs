//! The files of the log: appending under a lock, rotation by size, the machine's key.

mod file;
mod key;
mod room;
#[cfg(test)]
mod tests;

use std::fs::{File, Metadata};
use std::io::{self, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use rustix::fs::{FlockOperation, flock};

use super::chain::{self, Head};
use super::{Event, SealKey};
use file::{LogEnd, fresh, gone, numbered, open_file, same_file};
pub use file::{files, may_have_dropped};
use room::LINE_ROOM;

/// The log where none is named.
pub const LOG: &str = "/var/log/anklume/audit.jsonl";
/// Size at which the log goes on in a new file, in bytes.
pub const ROTATE_AT: u64 = 32 * 1024 * 1024;
/// Files that are kept beside the one that is written.
pub const KEEP: u32 = 8;

/// The reason why the log could not be written.
#[derive(Debug, thiserror::Error)]
pub enum AuditError {
    /// The system refused.
    #[error("the audit log `{}` cannot be {doing}: {source}", path.display())]
    Io {
        /// The attempted operation.
        doing: &'static str,
        /// On which file.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// Someone else keeps replacing the file.
    #[error("the audit log `{}` is replaced again and again", .0.display())]
    Restless(PathBuf),
    /// What stands where the key is, is none.
    #[error("the key of the audit log, `{}`, is damaged; where it is removed a new one is made, and equal arguments are no longer found by those of before", .0.display())]
    Key(PathBuf),
    /// The end of the file is no line of the log.
    #[error("the audit log `{}` ends in something that is no line of it; `anklume audit verify` shows more", .0.display())]
    Foreign(PathBuf),
}

/// The log of this machine.
#[derive(Debug)]
pub struct Log {
    path: PathBuf,
    rotate_at: u64,
    key: SealKey,
    open: Mutex<OpenLog>,
}

/// The file as this process saw it last.
#[derive(Debug)]
struct OpenLog {
    file: File,
    length: u64,
    head: Head,
    /// Up to where this process made sure of room.
    reserved: u64,
    /// Room of it that is promised to calls that run, in bytes.
    promised: u64,
}

impl Log {
    /// Opens the log, creating it (0600) and the machine's key beside it when they are not there.
    ///
    /// # Errors
    ///
    /// The folder is not there or not writable; the key is damaged.
    pub fn open(path: &Path) -> Result<Self, AuditError> {
        Self::open_with(path, ROTATE_AT)
    }

    /// The same with another size for rotation.
    ///
    /// # Errors
    ///
    /// As [`Log::open`].
    pub fn open_with(path: &Path, rotate_at: u64) -> Result<Self, AuditError> {
        let file = open_file(path)?;
        Ok(Self {
            key: key::read_or_make(&key::path_of(path))?,
            path: path.to_owned(),
            rotate_at,
            open: Mutex::new(OpenLog {
                file,
                length: u64::MAX,
                head: Head::origin(),
                reserved: 0,
                promised: 0,
            }),
        })
    }

    /// The machine's key.
    #[must_use]
    pub const fn key(&self) -> &SealKey {
        &self.key
    }

    /// Makes sure of the room of the lines that are still to come of calls that run, so that none of them ends unseen.
    ///
    /// # Errors
    ///
    /// The disk is full, the file is not writable, or its end is no line of the log.
    pub fn reserve(&self, lines: usize) -> Result<(), AuditError> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.promised = (lines as u64).saturating_mul(LINE_ROOM);
        let ours = open
            .file
            .metadata()
            .map_err(|source| self.error("read", source))?;
        let is_enough = ours.len().saturating_add(open.promised) <= open.reserved;
        // Room in a file that the path no longer names is no room for the line.
        if is_enough && ours.len() == open.length && self.is_named(&ours) {
            return Ok(());
        }
        self.locked(&mut open, |open| {
            self.catch_up(open)?;
            self.make_room(open)
        })
    }

    fn make_room(&self, open: &mut OpenLog) -> Result<(), AuditError> {
        open.reserved = room::make(&open.file, open.length, open.promised)
            .map_err(|source| self.error("given room", source))?;
        Ok(())
    }

    /// Appends an event that happens now; when this returns, the line is in the file.
    ///
    /// # Errors
    ///
    /// The disk is full, the file is not writable; nothing of the line is left then.
    pub fn append(&self, event: Event) -> Result<Head, AuditError> {
        self.append_of(now(), event)
    }

    /// The same for one that happened at that time.
    ///
    /// # Errors
    ///
    /// As [`Log::append`].
    pub fn append_of(&self, time: String, event: Event) -> Result<Head, AuditError> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        self.locked(&mut open, |open| {
            self.catch_up(open)?;
            if open.length >= self.rotate_at {
                // A full disk must not lose the line for which there is room in the old file.
                let _ = self.rotate(open);
            }
            self.write(open, time, event)
        })
    }

    /// Does something under the lock of the file that the path names now.
    fn locked<T>(
        &self,
        open: &mut OpenLog,
        work: impl FnOnce(&mut OpenLog) -> Result<T, AuditError>,
    ) -> Result<T, AuditError> {
        self.lock_current(open)?;
        let done = work(open);
        // A lock that is held can be let go of; what was done is done.
        let _ = flock(&open.file, FlockOperation::Unlock);
        done
    }

    fn error(&self, doing: &'static str, source: io::Error) -> AuditError {
        AuditError::Io {
            doing,
            path: self.path.clone(),
            source,
        }
    }

    /// Returns whether the log's path names this file.
    fn is_named(&self, file: &Metadata) -> bool {
        std::fs::symlink_metadata(&self.path)
            .is_ok_and(|named| (named.dev(), named.ino()) == (file.dev(), file.ino()))
    }

    /// Takes the lock of the file that the path names now: another process may have rotated it.
    fn lock_current(&self, open: &mut OpenLog) -> Result<(), AuditError> {
        /// Rotations in a row that are believed.
        const TRIES: u32 = 16;
        for _ in 0..TRIES {
            flock(&open.file, FlockOperation::LockExclusive)
                .map_err(|source| self.error("locked", source.into()))?;
            let ours = open
                .file
                .metadata()
                .map_err(|source| self.error("read", source))?;
            if self.is_named(&ours) {
                return Ok(());
            }
            open.file = open_file(&self.path)?;
            open.length = u64::MAX;
            open.reserved = 0;
        }
        Err(AuditError::Restless(self.path.clone()))
    }

    /// Reads the end of the file anew when another process wrote.
    fn catch_up(&self, open: &mut OpenLog) -> Result<(), AuditError> {
        let length = open
            .file
            .metadata()
            .map_err(|source| self.error("read", source))?
            .len();
        if length == open.length {
            return Ok(());
        }
        let end = LogEnd::of(&open.file, length).map_err(|source| self.error("read", source))?;
        open.head = match end.line.as_deref() {
            None if end.length > 0 => return Err(AuditError::Foreign(self.path.clone())),
            None => self.head_before()?,
            Some(line) => match chain::read(line) {
                chain::ReadLine::Whole(_, head) | chain::ReadLine::Edited(head) => head,
                chain::ReadLine::Foreign => return Err(AuditError::Foreign(self.path.clone())),
            },
        };
        open.length = end.length;
        match chain::read(&end.tail) {
            _ if end.tail.is_empty() => Ok(()),
            chain::ReadLine::Whole(line, head) if line.continues(&open.head) => {
                // It lacks its newline alone: what it tells of is not lost.
                open.file
                    .write_all_at(b"\n", length)
                    .map_err(|source| self.error("repaired", source))?;
                open.length = length.saturating_add(1);
                open.head = head;
                Ok(())
            }
            _ => self.take_off(open, end.tail.len() as u64),
        }
    }

    /// Takes what follows the last line off the file, and says so.
    fn take_off(&self, open: &mut OpenLog, bytes: u64) -> Result<(), AuditError> {
        open.file
            .set_len(open.length)
            .map_err(|source| self.error("repaired", source))?;
        self.write(open, now(), Event::Torn { bytes }).map(drop)
    }

    /// The end of the chain when the current file is empty: that of the file before, if there is one.
    fn head_before(&self) -> Result<Head, AuditError> {
        let Ok(file) = File::open(numbered(&self.path, 1)) else {
            return Ok(Head::origin());
        };
        let length = file
            .metadata()
            .map_err(|source| self.error("read", source))?
            .len();
        let end = LogEnd::of(&file, length).map_err(|source| self.error("read", source))?;
        match end.line.as_deref().map(chain::read) {
            Some(chain::ReadLine::Whole(_, head) | chain::ReadLine::Edited(head)) => Ok(head),
            Some(chain::ReadLine::Foreign) => Err(AuditError::Foreign(numbered(&self.path, 1))),
            None => Ok(Head::origin()),
        }
    }

    /// Begins a new file, whose first line says so, and moves the others one number up.
    ///
    /// The log's path names a file at every moment: who opens the log in between finds the old one, locked.
    fn rotate(&self, open: &mut OpenLog) -> Result<(), AuditError> {
        let rotated = |source| self.error("rotated", source);
        let fresh = fresh(&self.path);
        let next = self.begin(&fresh, open)?;
        self.make_way()?;
        std::fs::hard_link(&self.path, numbered(&self.path, 1)).map_err(rotated)?;
        std::fs::rename(&fresh, &self.path).map_err(rotated)?;
        // Dropping the old file lets go of its lock; who waits for it finds the new name.
        *open = next;
        Ok(())
    }

    /// A file that goes on where `open` ends.
    fn begin(&self, fresh: &Path, open: &OpenLog) -> Result<OpenLog, AuditError> {
        gone(fresh).map_err(|source| self.error("rotated", source))?;
        let file = open_file(fresh)?;
        // Locked before it bears the name, so that no other process writes its first line.
        flock(&file, FlockOperation::LockExclusive)
            .map_err(|source| self.error("locked", source.into()))?;
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
            // Calls that run have their room in the old file, and need it in the new one.
            self.make_room(&mut next)?;
        }
        Ok(next)
    }

    /// Makes the first number free: the files up to the first number that is free move one up.
    fn make_way(&self) -> Result<(), AuditError> {
        let rotated = |source| self.error("rotated", source);
        let first = numbered(&self.path, 1);
        if same_file(&first, &self.path) {
            // A rotation was cut off when the file had both names.
            gone(&first).map_err(rotated)?;
        }
        let free = (1..KEEP).find(|number| !numbered(&self.path, *number).exists());
        for number in (1..free.unwrap_or(KEEP)).rev() {
            let from = numbered(&self.path, number);
            std::fs::rename(&from, numbered(&self.path, number + 1)).map_err(rotated)?;
        }
        Ok(())
    }

    fn write(&self, open: &mut OpenLog, time: String, event: Event) -> Result<Head, AuditError> {
        let (bytes, head) = chain::link(&open.head, time, event)
            .map_err(|source| self.error("written", source.into()))?;
        let before = open.length;
        let written = open
            .file
            .seek(SeekFrom::Start(before))
            .and_then(|_| open.file.write_all(&bytes));
        if let Err(source) = written {
            // What was written of the line goes; if even that fails, the next writer takes it off.
            let _ = open.file.set_len(before);
            open.length = u64::MAX;
            return Err(self.error("written", source));
        }
        open.length = before.saturating_add(bytes.len() as u64);
        open.head = head.clone();
        Ok(head)
    }
}

/// This moment, as lines have it.
#[must_use]
pub fn now() -> String {
    format!("{:.6}", jiff::Timestamp::now())
}
