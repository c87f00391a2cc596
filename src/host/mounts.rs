//! Reads the mount table of a process on this host.

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _};

/// The first place of those that are looked for where something is mounted for a process of this host; nothing, where
/// that may not be looked at.
///
/// # Errors
///
/// The table is longer than any sound machine's: whoever made so many mounts hides something, or means harm.
pub(crate) fn mounted(
    process: u32,
    is_looked_for: impl Fn(&str) -> bool,
) -> Result<Option<String>, TooManyMounts> {
    /// Maximum length of a table that is read, in bytes.
    const TABLE_MAX: u64 = 4 * 1024 * 1024;
    let Ok(table) = fs::File::open(format!("/proc/{process}/mountinfo")) else {
        return Ok(None);
    };
    let mut table = BufReader::new(table.take(TABLE_MAX));
    let mut line = Vec::new();
    let mut read = 0;
    while let Ok(length @ 1..) = table.read_until(b'\n', &mut line) {
        let text = String::from_utf8_lossy(&line);
        let place = text.split(' ').nth(4).map(unescaped);
        if let Some(place) = place.filter(|place| is_looked_for(place)) {
            return Ok(Some(place));
        }
        line.clear();
        read += u64::try_from(length).unwrap_or(u64::MAX);
    }
    if read < TABLE_MAX {
        Ok(None)
    } else {
        Err(TooManyMounts)
    }
}

/// A machine has more mounts than are read.
#[derive(Debug)]
pub(crate) struct TooManyMounts;

/// A path as the kernel writes it: blanks and backslashes as octal numbers.
pub(crate) fn unescaped(path: &str) -> String {
    let mut plain = path.to_owned();
    for (code, character) in [
        ("\\040", " "),
        ("\\011", "\t"),
        ("\\012", "\n"),
        ("\\134", "\\"),
    ] {
        plain = plain.replace(code, character);
    }
    plain
}
