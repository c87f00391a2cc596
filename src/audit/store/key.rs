//! Reads the machine's key, stored beside the log, or creates one.

use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};

use super::super::SealKey;
use super::AuditError;
use super::file::{beside, open_file};

/// Length of a key, in bytes.
const LENGTH: usize = 32;

/// Returns the path of a log's key: logs whose names differ only in the extension share one.
pub(super) fn path_of(log: &Path) -> PathBuf {
    let path = log.with_extension("key");
    if path != log {
        return path;
    }
    beside(log, ".key")
}

/// Reads the key, or creates one.
///
/// # Errors
///
/// Fails if a system call fails or the file is damaged: a new key would make the digests of equal arguments differ.
pub(super) fn read_or_make(path: &Path) -> Result<SealKey, AuditError> {
    let error = |doing| {
        move |source| AuditError::Io {
            doing,
            path: path.to_owned(),
            source,
        }
    };
    let mut file = open_file(path)?;
    file.lock().map_err(error("locked"))?;
    let mut found = Vec::new();
    (&mut file)
        .take(LENGTH as u64 + 1)
        .read_to_end(&mut found)
        .map_err(error("read"))?;
    if let Ok(key) = found.as_slice().try_into() {
        return Ok(SealKey(key));
    }
    if !found.is_empty() {
        return Err(AuditError::Key(path.to_owned()));
    }
    let mut key = [0; LENGTH];
    File::open("/dev/urandom")
        .and_then(|mut random| random.read_exact(&mut key))
        .map_err(error("given a key"))?;
    file.seek(SeekFrom::Start(0))
        .and_then(|_| file.write_all(&key))
        .and_then(|()| file.sync_all())
        .map_err(error("written"))?;
    Ok(SealKey(key))
}
