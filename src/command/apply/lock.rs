//! One `apply` or `destroy` at a time on this computer: two would sweep away each other's sockets.

use std::fs::File;
use std::io;

use anyhow::Context as _;
use rustix::fs::{FlockOperation, Mode, OFlags, flock, open};

use super::super::output::Output;

/// Only root writes in this folder, so nobody else can hold the lock.
const LOCK: &str = "/run/anklume.lock";

/// Takes the lock and holds it until it is dropped; waits for another run. Without root's rights there is no lock.
pub(crate) fn lock(output: &Output) -> anyhow::Result<Option<File>> {
    if !rustix::process::geteuid().is_root() {
        return Ok(None);
    }
    take(output)
        .map(Some)
        .with_context(|| format!("cannot take the lock `{LOCK}`"))
}

fn take(output: &Output) -> io::Result<File> {
    let flags = OFlags::CREATE | OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let file = open(LOCK, flags, Mode::RUSR | Mode::WUSR)?;
    if flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
        output.say("waiting for another anklume that changes this Incus");
        flock(&file, FlockOperation::LockExclusive)?;
    }
    Ok(file.into())
}
