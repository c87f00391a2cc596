//! Lets only one `apply` or `destroy` run at a time on this computer: two would remove each other's sockets.
//!
//! The lock also records that a network was being created or deleted when a run was killed. Incus shows no operation
//! for that, and two simultaneous deletions of one network leave its DNS server behind, at the network's address.

use std::fs::{File, TryLockError};
use std::io::{self, Read as _, Seek as _, Write as _};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context as _;
use rustix::fs::{CWD, Mode, OFlags, open};

use crate::dir::open_or_make;

/// The lock file. Only root can write to its folder, so nobody else can hold the lock.
const LOCK: &str = "/run/anklume.lock";
/// Time for Incus to finish a killed run's network request, which takes a fraction of a second.
const AFTERMATH: Duration = Duration::from_secs(3);
/// Content of the file while a network is being created or deleted.
const MARK: &[u8] = b"a network is being made or deleted\n";

/// The lock, released when it is dropped.
#[derive(Debug)]
pub(crate) struct Lock {
    /// The file, and the number of networks that are being created or deleted.
    file: Mutex<(File, usize)>,
}

/// Marks that a network is being created or deleted, until `done`.
#[derive(Debug)]
pub(crate) struct Busy<'l>(Option<&'l Lock>);

/// Takes the lock; waits for another run, and for the aftermath of a killed one. `None` without root privileges.
pub(crate) async fn lock(tell: impl Fn(&str)) -> anyhow::Result<Option<Lock>> {
    if !rustix::process::geteuid().is_root() {
        return Ok(None);
    }
    let (file, killed) = take(tell).with_context(|| format!("cannot take the lock `{LOCK}`"))?;
    if killed {
        tokio::time::sleep(AFTERMATH).await;
    }
    Ok(Some(Lock {
        file: Mutex::new((file, 0)),
    }))
}

/// Returns the locked file, and whether a run was killed while a network was being created or deleted.
fn take(tell: impl Fn(&str)) -> io::Result<(File, bool)> {
    let mut file = open_or_make(CWD, LOCK)?;
    if file.try_lock().is_err() {
        tell("waiting for another anklume that changes this Incus");
        file.lock()?;
    }
    let killed = file.read(&mut [0])? > 0;
    file.set_len(0)?;
    Ok((file, killed))
}

/// Returns whether another run holds the lock. Returns `false` if the lock file cannot be opened.
pub(crate) fn is_held() -> bool {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let Ok(file) = open(LOCK, flags, Mode::empty()) else {
        return false;
    };
    let locked = File::from(file).try_lock_shared();
    matches!(locked, Err(TryLockError::WouldBlock))
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
            (0, 1) => file.rewind().and_then(|()| file.write_all(MARK)),
            (1, 0) => file.set_len(0),
            _ => Ok(()),
        };
    }
}

impl Busy<'_> {
    pub(crate) fn done(self) {
        if let Some(lock) = self.0 {
            lock.count(|busy| busy.saturating_sub(1));
        }
    }
}
