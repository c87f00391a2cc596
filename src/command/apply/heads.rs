//! The last line of each provider's log of calls, kept on the host: the provider's root can write a whole new log, and
//! cannot write one that still holds that line.
//!
//! The log is read and checked here: a machine's own word on it would be worth nothing.

use std::ffi::OsStr;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::time::timeout;

use super::context::Context;
use super::files::FilesError;
use super::inside::runs;
use super::kept::{Kept, Shelf};
use crate::audit::verify::{Report, Verifier};
use crate::audit::{KEEP, LOG, ROTATE_AT};
use crate::channel::shell_line;
use crate::incus::Kind;
use crate::incus::state::Instance;
use crate::plan::is_marked;

/// Largest file of a log that is read, in bytes: it is rotated before.
const FILE_MAX: u64 = ROTATE_AT + 1024 * 1024;
/// Longest that a log may take to be read.
const PATIENCE: Duration = Duration::from_secs(30);
/// How often a log that is rotated or written meanwhile is read.
const TRIES: usize = 3;

/// How a log of calls is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::command) enum Log {
    /// It still holds what it held, or there is none, and never was.
    Sound,
    /// Not as it was written; what is wrong, and the command that accepts it as it is.
    Altered { detail: String, accept: String },
    /// Incus built its machine anew, and it is not in it.
    Lost(Lost),
    /// It could not be looked at, and why.
    Unknown(String),
}

/// The log of a machine that Incus built anew: it went with everything in the machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::command) struct Lost {
    machine: String,
    /// The last line that was seen.
    line: u64,
    /// Where it is kept.
    path: PathBuf,
}

/// Checks a provider's log against what was kept of it, and keeps its last line. Only root keeps anything.
pub(in crate::command) async fn keep(context: &Context, provider: &Instance) -> Log {
    let shelf = Shelf::of_host();
    let is_root = rustix::process::geteuid().is_root();
    let path = shelf.path(provider);
    let Some(path) = path.filter(|_| is_root && runs(provider)) else {
        return Log::Sound;
    };
    let unknown = |why: &dyn std::fmt::Display| {
        Log::Unknown(format!(
            "the log of calls of {} is not watched: {why}",
            provider.name
        ))
    };
    let kept = match Shelf::read(&path) {
        Ok(kept) => kept,
        Err(why) => return unknown(&why),
    };
    let mut last = Log::Sound;
    for _ in 0..TRIES {
        let checked = timeout(PATIENCE, check(context, provider, kept.as_ref())).await;
        last = match checked {
            Ok(Ok(Checked::Whole(report))) => {
                let fresh = Kept {
                    project: provider.project.clone(),
                    machine: provider.name.clone(),
                    seq: report.head.seq,
                    head: report.head.hash,
                    marked: is_marked(&provider.config),
                    rebuilt: false,
                };
                let is_new = kept.as_ref() != Some(&fresh);
                return match is_new.then(|| shelf.write(&path, &fresh)).transpose() {
                    Ok(_) => Log::Sound,
                    Err(why) => unknown(&why),
                };
            }
            Ok(Ok(Checked::None)) => return Log::Sound,
            // What was read while it was rotated is read again.
            Ok(Ok(Checked::Altered(what))) => altered(provider, &path, &what),
            Ok(Err(why)) => unknown(&why),
            Err(_) => return unknown(&"it cannot be read in time"),
        };
    }
    let rebuilt = kept.filter(|kept| kept.is_rebuilt(provider));
    match (last, rebuilt) {
        (Log::Altered { .. }, Some(kept)) => Log::Lost(Lost {
            line: kept.seq,
            machine: kept.machine,
            path,
        }),
        (last, _) => last,
    }
}

impl Lost {
    /// Puts what was kept of it aside, so that the machine's next log is watched; what is to be said of that.
    pub(super) fn put_aside(&self) -> String {
        match Shelf::put_aside(&self.path, jiff::Timestamp::now()) {
            Ok(aside) => format!(
                "{self}: what was kept of it, up to line {}, is now in `{}`",
                self.line,
                aside.display()
            ),
            Err(why) => format!("{self}, and what was kept of it cannot be put aside: {why}"),
        }
    }
}

impl fmt::Display for Lost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let machine = self.machine.escape_debug();
        write!(
            f,
            "{machine} was rebuilt, and its log of calls went with it"
        )
    }
}

fn altered(provider: &Instance, path: &Path, what: &str) -> Log {
    Log::Altered {
        detail: format!(
            "the log of calls of {} {what}",
            provider.name.escape_debug()
        ),
        accept: shell_line([OsStr::new("rm"), path.as_os_str()]),
    }
}

/// What a look at a log gave.
enum Checked {
    Whole(Report),
    None,
    Altered(String),
}

/// The lines from the file on in which the kept one is must be one chain.
async fn check(
    context: &Context,
    provider: &Instance,
    kept: Option<&Kept>,
) -> Result<Checked, FilesError> {
    let mut inside = context.files(provider).await;
    let mut files = Vec::new();
    for number in 0..=KEEP {
        let name = match number {
            0 => LOG.to_owned(),
            number => format!("{LOG}.{number}"),
        };
        let Some(file) = inside.read(&name, Kind::File, FILE_MAX).await? else {
            break;
        };
        let found = kept.is_none_or(|kept| holds(&file, &kept.head));
        files.push(file);
        if found {
            return Ok(judged(verified(files, kept).await));
        }
    }
    Ok(match kept {
        None => Checked::None,
        Some(kept) if files.is_empty() => {
            Checked::Altered(format!("is gone: it had {} lines", kept.seq))
        }
        Some(kept) => Checked::Altered(format!(
            "was cut, written anew, or taken back to a snapshot: its line {} of before is not in it",
            kept.seq
        )),
    })
}

fn judged(report: Report) -> Checked {
    if report.is_whole() {
        Checked::Whole(report)
    } else {
        let places = report.findings.len();
        Checked::Altered(format!("is not as it was written, at {places} places"))
    }
}

/// Verifies the files, which come newest first.
async fn verified(files: Vec<Vec<u8>>, kept: Option<&Kept>) -> Report {
    let head = kept.map(|kept| kept.head.clone());
    let walk = move || {
        let mut verifier = Verifier::new(head);
        for file in files.iter().rev() {
            // A line that is just being written is nobody's fault.
            let end = file.iter().rposition(|byte| *byte == b'\n');
            let whole = end.and_then(|end| file.get(..=end)).unwrap_or_default();
            // Memory can always be read.
            let _ = verifier.file(LOG, whole);
        }
        verifier.finish()
    };
    let done = tokio::task::spawn_blocking(walk).await;
    done.unwrap_or_else(|_| Verifier::new(Some(String::new())).finish())
}

/// Whether a line with that hash is there.
fn holds(file: &[u8], head: &str) -> bool {
    let end = format!("\"hash\":\"{head}\"}}");
    file.split(|byte| *byte == b'\n')
        .any(|line| line.ends_with(end.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit::Event;
    use crate::audit::chain::{Head, link};

    /// A log of so many lines, and its last one.
    fn log(lines: u64, from: &Head) -> (Vec<u8>, Head) {
        let mut head = from.clone();
        let mut text = Vec::new();
        for pid in 0..lines {
            let event = Event::Stop {
                pid: u32::try_from(pid).unwrap(),
            };
            let (line, next) = link(&head, "2026-01-01T00:00:00Z".to_owned(), event).unwrap();
            text.extend(line);
            head = next;
        }
        (text, head)
    }

    fn kept(head: &Head) -> Kept {
        Kept {
            project: "vault".to_owned(),
            machine: "signer".to_owned(),
            seq: head.seq,
            head: head.hash.clone(),
            marked: true,
            rebuilt: false,
        }
    }

    #[tokio::test]
    async fn a_log_that_goes_on_is_whole_and_one_that_was_written_anew_is_not() {
        let (older, middle) = log(3, &Head::origin());
        let (newer, end) = log(2, &middle);
        assert!(holds(&older, &middle.hash) && !holds(&newer, &middle.hash));
        let files = vec![newer.clone(), older.clone()];
        let report = verified(files, Some(&kept(&middle))).await;
        assert!(report.is_whole());
        assert_eq!(report.head, end);
        // Half a line at the end is being written.
        let mut growing = [older.as_slice(), newer.as_slice(), b"{\"seq\":"].concat();
        let report = verified(vec![growing.clone()], Some(&kept(&middle))).await;
        assert_eq!((report.is_whole(), report.head), (true, end));
        growing[10] ^= 1;
        let report = verified(vec![growing], Some(&kept(&middle))).await;
        assert!(!report.is_whole());
        // The same calls, and another chain.
        let other = Head {
            seq: 0,
            hash: "0".repeat(63) + "1",
        };
        let (anew, _) = log(5, &other);
        assert!(!holds(&anew, &middle.hash));
    }
}
