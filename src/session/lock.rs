//! Lets only one `apply` or `destroy` run at a time on this computer: two would remove each other's sockets.
//!
//! The lock file names its holder, for those who wait. It also records that a network was being created or deleted when a run was killed. Incus shows no operation
//! for that, and two simultaneous deletions of one network leave its DNS server behind, at the network's address.

use std::fs::{File, TryLockError};
use std::io::{self, Read, Seek as _, SeekFrom, Write as _};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use anyhow::Context as _;
use rustix::fs::{CWD, Mode, OFlags, open};

use crate::dir::open_or_make;

/// The lock file. Only root can write to its folder, so nobody else can hold the lock.
const LOCK: &str = "/run/anklume.lock";
/// Time for Incus to finish a killed run's network request, which takes a fraction of a second.
const AFTERMATH: Duration = Duration::from_secs(3);
/// Maximum length of the file that is read, in bytes.
const CONTENT_MAX: u64 = 1024;
/// End of the file while a network is being created or deleted.
const MARK: &str = "a network is being created or deleted\n";

/// The lock, released when it is dropped.
#[derive(Debug)]
pub(crate) struct Lock {
    /// The file, and the number of networks that are being created or deleted.
    file: Mutex<(File, usize)>,
    /// Length of the line that names the holder, in bytes.
    holder: u64,
}

/// Marks that a network is being created or deleted, until `done`.
#[derive(Debug)]
pub(crate) struct Busy<'l>(Option<&'l Lock>);

/// Takes the lock; waits for another run, and for the aftermath of a killed one. `None` without root privileges.
pub(crate) async fn lock(tell: impl Fn(&str)) -> anyhow::Result<Option<Lock>> {
    if !rustix::process::geteuid().is_root() {
        return Ok(None);
    }
    let taken = take(tell).with_context(|| format!("cannot take the lock `{LOCK}`"))?;
    let (file, holder, killed) = taken;
    if killed {
        tokio::time::sleep(AFTERMATH).await;
    }
    Ok(Some(Lock {
        file: Mutex::new((file, 0)),
        holder,
    }))
}

/// Returns the locked file, the length of its first line, and whether a run was killed while a network was being
/// created or deleted.
fn take(tell: impl Fn(&str)) -> io::Result<(File, u64, bool)> {
    let mut file = open_or_make(CWD, LOCK)?;
    if file.try_lock().is_err() {
        tell(&format!(
            "waiting for another anklume that is changing this Incus{}",
            holder(&file)
        ));
        file.lock()?;
    }
    let killed = content(&file)?.ends_with(MARK);
    file.set_len(0)?;
    file.rewind()?;
    let line = format!("{} {}\n", std::process::id(), seconds());
    file.write_all(line.as_bytes())?;
    Ok((file, line.len() as u64, killed))
}

/// Returns the time since the epoch, in seconds.
fn seconds() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.unwrap_or_default().as_secs()
}

fn content(mut file: &File) -> io::Result<String> {
    let mut content = Vec::new();
    file.rewind()?;
    Read::take(file, CONTENT_MAX).read_to_end(&mut content)?;
    Ok(String::from_utf8_lossy(&content).into_owned())
}

/// Describes the holder of a lock file, in parentheses; empty if it is unknown.
fn holder(file: &File) -> String {
    let content = content(file).unwrap_or_default();
    let line = content.lines().next().and_then(|line| line.split_once(' '));
    let Some((Ok(pid), Ok(since))) =
        line.map(|(pid, since)| (pid.parse::<u32>(), since.parse::<u64>()))
    else {
        return String::new();
    };
    let running = seconds().saturating_sub(since);
    format!(" (process {pid}, running for {running} s)")
}

/// Returns a description of the run that holds the lock, possibly empty; `None` if nobody holds it, or if the lock file
/// cannot be opened.
pub(crate) fn other_holder() -> Option<String> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let file = File::from(open(LOCK, flags, Mode::empty()).ok()?);
    match file.try_lock_shared() {
        Err(TryLockError::WouldBlock) => Some(holder(&file)),
        _ => None,
    }
}

impl Lock {
    /// Marks that a network is being created or deleted; the mark outlives a run that is killed before `done`.
    pub(crate) fn busy(lock: Option<&Self>) -> Busy<'_> {
        if let Some(lock) = lock {
            lock.count(|busy| busy + 1);
        }
        Busy(lock)
    }

    fn count(&self, change: impl Fn(usize) -> usize) {
        let mut held = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        let (file, busy) = &mut *held;
        let before = *busy;
        *busy = change(before);
        // Without the mark, a later run only skips a pause.
        let _ = match (before, *busy) {
            (0, 1) => file
                .seek(SeekFrom::End(0))
                .and_then(|_| file.write_all(MARK.as_bytes())),
            (1, 0) => file.set_len(self.holder),
            _ => Ok(()),
        };
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        let held = self.file.get_mut().unwrap_or_else(PoisonError::into_inner);
        if let (file, 0) = held {
            // If the line stays, the next holder replaces it.
            let _ = file.set_len(0);
        }
    }
}

impl Busy<'_> {
    pub(crate) fn done(self) {
        if let Some(lock) = self.0 {
            lock.count(|busy| busy.saturating_sub(1));
        }
    }
}
