//! Changes the host itself: folders, processes, proxy logs and the timer that rotates them.

pub(crate) mod folders;
pub(crate) mod log_timer;
pub(crate) mod proxy_logs;
pub(crate) mod server_process;

use std::fmt::Display;
use std::fs;
use std::io::{self, BufRead as _, BufReader, Read as _};
use std::path::PathBuf;

use rustix::process::Pid;

use crate::edge::HASH_DIGITS;
use crate::incus::DEFAULT_PROJECT;

/// Returns whether a text has the form of an edge's hash.
pub(crate) fn is_hash(text: &str) -> bool {
    text.len() == HASH_DIGITS && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// The name by which Incus tells machines of all projects apart.
pub(crate) fn full_name(project: &str, machine: &str) -> String {
    if project == DEFAULT_PROJECT {
        machine.to_owned()
    } else {
        format!("{project}_{machine}")
    }
}

/// The processes of this host, machines' included.
pub(crate) fn processes() -> io::Result<impl Iterator<Item = Pid>> {
    let entries = fs::read_dir("/proc")?.filter_map(Result::ok);
    Ok(entries.filter_map(|entry| Pid::from_raw(entry.file_name().to_str()?.parse().ok()?)))
}

/// The first `max` bytes of a process's arguments, each of which ends with a zero byte.
pub(crate) fn command_line(process: Pid, max: u64) -> io::Result<Vec<u8>> {
    let mut args = Vec::new();
    let file = fs::File::open(format!("/proc/{process}/cmdline"))?;
    file.take(max).read_to_end(&mut args)?;
    Ok(args)
}

/// The PID namespace of a process, which is that of its machine.
pub(crate) fn namespace(process: impl Display) -> Option<PathBuf> {
    fs::read_link(format!("/proc/{process}/ns/pid")).ok()
}

/// The first mount point of a process that is looked for; `None` also where the table cannot be read.
///
/// # Errors
///
/// The table is longer than any sound machine's: it hides something, or is meant to harm.
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
    let mut lines = table.by_ref().split(b'\n').map_while(Result::ok);
    let place = lines.find_map(|line| {
        let text = String::from_utf8_lossy(&line);
        let place = text.split(' ').nth(4).map(unescaped);
        place.filter(|place| is_looked_for(place))
    });
    match place {
        None if table.get_ref().limit() == 0 => Err(TooManyMounts),
        place => Ok(place),
    }
}

/// A machine has more mounts than are read.
#[derive(Debug)]
pub(crate) struct TooManyMounts;

/// Decodes a path of a mount table, where the kernel writes blanks and backslashes as octal numbers.
pub(crate) fn unescaped(path: &str) -> String {
    let codes = [
        ("\\040", " "),
        ("\\011", "\t"),
        ("\\012", "\n"),
        ("\\134", "\\"),
    ];
    codes.iter().fold(path.to_owned(), |path, (code, plain)| {
        path.replace(code, plain)
    })
}

/// Turns the failure to remove something that is missing into success.
fn missing_is_removed(removed: io::Result<()>) -> io::Result<()> {
    match removed {
        Err(why) if why.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_of_the_default_project_has_no_project_in_its_cgroup() {
        assert_eq!(full_name("vault", "signer"), "vault_signer");
        assert_eq!(full_name("default", "signer"), "signer");
    }
}
