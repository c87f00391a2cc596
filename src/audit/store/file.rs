//! Names and lists a log's files, and reads the end of one.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::CWD;

use super::super::verify::LINE_MAX;
use super::{AuditError, KEEP};
use crate::dir::open_or_make;

/// Returns the log's existing files, oldest first.
///
/// # Errors
///
/// Fails if the existence of a file cannot be determined.
pub fn files(path: &Path) -> io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for number in (1..=KEEP).rev() {
        let file = numbered(path, number);
        // After an interrupted rotation, the current file has both names.
        if file.try_exists()? && !same_file(&file, path) {
            files.push(file);
        }
    }
    if path.try_exists()? {
        files.push(path.to_owned());
    }
    Ok(files)
}

/// Returns whether rotation may have dropped a log file: only the file with the last number is ever dropped.
///
/// # Errors
///
/// Fails if the existence of the file cannot be determined.
pub fn may_have_dropped(path: &Path) -> io::Result<bool> {
    numbered(path, KEEP).try_exists()
}

/// Returns whether both paths name the same file.
pub(super) fn same_file(one: &Path, other: &Path) -> bool {
    let identity = |path| std::fs::symlink_metadata(path).map(|file| (file.dev(), file.ino()));
    matches!((identity(one), identity(other)), (Ok(one), Ok(other)) if one == other)
}

/// Removes a file, if it exists.
pub(super) fn gone(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => Err(source),
        _ => Ok(()),
    }
}

/// Returns the path of a rotated file of the log.
pub(super) fn numbered(path: &Path, number: u32) -> PathBuf {
    beside(path, &format!(".{number}"))
}

/// Returns the path of the file in which the log will continue.
pub(super) fn fresh(path: &Path) -> PathBuf {
    beside(path, ".new")
}

/// Appends to the log's full name, so that logs with different extensions get different files.
pub(super) fn beside(path: &Path, end: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(end);
    name.into()
}

/// Opens a file for writing, without following links; creates it (0600) if it is missing.
pub(super) fn open_file(path: &Path) -> Result<File, AuditError> {
    open_or_make(CWD, path).map_err(|source| AuditError::Io {
        doing: "opened",
        path: path.to_owned(),
        source: source.into(),
    })
}

/// The end of a file.
pub(super) struct LogEnd {
    /// Total length of its whole lines, in bytes.
    pub(super) length: u64,
    /// The last whole line, without its newline; `None` if there is none, or if the text after it is too long.
    pub(super) line: Option<Vec<u8>>,
    /// The text after the whole lines, without a newline.
    pub(super) tail: Vec<u8>,
}

impl LogEnd {
    /// Reads the end of a file of this length.
    pub(super) fn of(file: &File, length: u64) -> io::Result<Self> {
        let window = length.min(LINE_MAX as u64 * 2);
        let start = length - window;
        let mut bytes = vec![0; usize::try_from(window).unwrap_or_default()];
        file.read_exact_at(&mut bytes, start)?;
        let Some(newline) = bytes.iter().rposition(|byte| *byte == b'\n') else {
            return Ok(Self {
                length: start,
                line: None,
                tail: bytes,
            });
        };
        let tail = bytes.split_off(newline + 1);
        bytes.pop();
        let line = bytes.rsplit(|byte| *byte == b'\n').next();
        Ok(Self {
            length: length - tail.len() as u64,
            line: line.map(<[u8]>::to_vec),
            tail,
        })
    }
}
