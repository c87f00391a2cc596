//! Keeps the last line of each provider's call log on the host, and checks that the log still contains it: a provider's
//! root can write a whole new log, but not one with that line.
//!
//! The log is read and checked here, because the machine's own verdict would be worthless.

use std::ffi::OsStr;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use tokio::time::timeout;

use super::checkpoint_store::{Checkpoint, CheckpointStore};
use crate::audit::{KEEP, LOG, ROTATE_AT};
use crate::foreign::{ForeignError, LogSeen, Reader};
use crate::incus::state::Instance;
use crate::incus::{EntryKind, Object};
use crate::infra::Infra;
use crate::plan::is_marked;
use crate::session::Session;
use crate::session::machine_files::FilesError;
use crate::transport::shell_line;

/// Maximum size of a log file that is read, in bytes; a log is rotated before it reaches this size.
const FILE_MAX: u64 = ROTATE_AT + 1024 * 1024;
/// Timeout for reading a log.
const TIMEOUT: Duration = Duration::from_secs(30);
/// Maximum number of attempts to read a log that is being rotated or written.
const TRIES: usize = 3;

/// The state of a call log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum LogState {
    /// It still contains the kept line, or it has never been seen.
    Sound,
    /// It was altered; `accept` is the command that accepts it as it is.
    Altered { detail: String, accept: String },
    /// The machine was rebuilt, which deleted its log; `note` reports this.
    Lost {
        note: String,
        /// Number of the last line that was seen.
        line: u64,
        /// The checkpoint file.
        path: PathBuf,
    },
    /// It could not be read, for this reason.
    Unknown(String),
}

/// Checks a provider's log against its checkpoint, and stores its last line. Only root stores anything.
pub(crate) async fn keep(session: &Session, provider: &Instance) -> LogState {
    let store = CheckpointStore::of_host();
    let is_watched = rustix::process::geteuid().is_root() && provider.is_running();
    let Some(path) = store.path(provider).filter(|_| is_watched) else {
        return LogState::Sound;
    };
    let machine = provider.name.escape_debug();
    let forget = shell_line([OsStr::new("rm"), path.as_os_str()]);
    let altered = |what: &str| LogState::Altered {
        detail: format!("the audit log on {machine} {what}"),
        accept: forget.clone(),
    };
    let kept = match CheckpointStore::read(&path) {
        Ok(kept) => kept,
        Err(why) => {
            return altered(&format!("cannot be compared with its checkpoint: {why}"));
        }
    };
    // The machine controls whether its log can be read, so a kept line that cannot be read counts as missing.
    let unknown = |why: &dyn fmt::Display| match &kept {
        Some(kept) => altered(&format!(
            "no longer shows its last known line {}: {why}",
            kept.seq
        )),
        None => LogState::Unknown(format!("the audit log on {machine} is not watched: {why}")),
    };
    let mut last = LogState::Sound;
    for _ in 0..TRIES {
        last = match timeout(TIMEOUT, check(session, provider, kept.as_ref())).await {
            Ok(Ok(Checked::Whole { seen, files })) => {
                let fresh = Checkpoint {
                    project: provider.project.clone(),
                    machine: provider.name.clone(),
                    seq: seen.seq,
                    head: seen.head,
                    files,
                    marked: is_marked(&provider.config),
                    rebuilt: false,
                };
                if kept.as_ref() == Some(&fresh) {
                    return LogState::Sound;
                }
                let written = store.write(&path, &fresh);
                return written.map_or_else(|why| unknown(&why), |()| LogState::Sound);
            }
            Ok(Ok(Checked::Missing)) => return LogState::Sound,
            // The log may have been rotated in the meantime, so it is read again.
            Ok(Ok(Checked::Altered(what))) => altered(&what),
            Ok(Ok(Checked::Faulty(what))) => LogState::Altered {
                detail: format!("the audit log on {machine} {what}"),
                accept: format!("{}; {forget}", put_aside(provider)),
            },
            Ok(Err(why)) => unknown(&why),
            Err(_) => {
                last = unknown(&"it could not be read in time");
                break;
            }
        };
    }
    let rebuilt = kept.as_ref().filter(|kept| kept.is_rebuilt(provider));
    match (&last, rebuilt) {
        (LogState::Altered { .. }, Some(kept)) => {
            let machine = kept.machine.escape_debug();
            LogState::Lost {
                note: format!("{machine} was rebuilt, and its audit log was lost with it"),
                line: kept.seq,
                path,
            }
        }
        _ => last,
    }
}

/// An error while reading a log.
#[derive(Debug, thiserror::Error)]
enum CheckError {
    #[error(transparent)]
    Files(#[from] FilesError),
    #[error(transparent)]
    Foreign(#[from] ForeignError),
}

/// The result of checking a log.
enum Checked {
    Whole {
        seen: LogSeen,
        files: u32,
    },
    Missing,
    Altered(String),
    /// It is not a chain, so it cannot be accepted as it is.
    Faulty(String),
}

/// Returns the command that moves a log aside in its machine, so that the server begins another one.
fn put_aside(provider: &Instance) -> String {
    let aside = format!("{LOG}.altered");
    let moved = format!("mkdir {aside} && mv {LOG} {aside}/ && mv {LOG}.[0-9]* {aside}/ || :");
    let (machine, project) = (&*provider.name, &*provider.project);
    shell_line([
        "incus",
        "exec",
        machine,
        "--project",
        project,
        "--",
        "sh",
        "-c",
        &moved,
    ])
}

/// Checks that all files of a log form one chain that contains the kept line: earlier lines must not change either.
async fn check(
    session: &Session,
    provider: &Instance,
    kept: Option<&Checkpoint>,
) -> Result<Checked, CheckError> {
    let mut inside = session.files(provider).await;
    // A separate reader: the session's reader also receives text from other machines.
    let reader = Reader::default();
    reader.log(kept.map(|kept| kept.head.clone())).await?;
    let mut files = 0;
    // Oldest first, with only one of them in memory at a time.
    for number in (0..=KEEP).rev() {
        let name = match number {
            0 => LOG.to_owned(),
            number => format!("{LOG}.{number}"),
        };
        match inside.read(&name, EntryKind::File, FILE_MAX).await? {
            Some(file) => {
                files += 1;
                reader.log_file(&file).await?;
            }
            None if files > 0 && number > 0 => {
                return Ok(Checked::Altered(format!("has no file `{name}`")));
            }
            None => {}
        }
    }
    Ok(judged(reader.log_end().await?, files, kept))
}

fn judged(seen: LogSeen, files: u32, kept: Option<&Checkpoint>) -> Checked {
    Checked::Altered(match kept {
        None if files == 0 => return Checked::Missing,
        Some(kept) if files == 0 => format!("is gone: it had {} lines", kept.seq),
        _ if seen.faults > 0 => {
            return Checked::Faulty(format!("was altered; faults found: {}", seen.faults));
        }
        Some(kept) if seen.head_missing => format!(
            "was truncated, rewritten, or restored from a snapshot: its last known line {} is missing",
            kept.seq
        ),
        // Rotation drops a file only if the maximum number of files exists.
        _ if files <= KEEP && seen.first > 1 => {
            format!("has lost everything before its line {}", seen.first)
        }
        Some(kept) if files < kept.files => {
            let gone = kept.files - files;
            format!("has lost {gone} of its {} files", kept.files)
        }
        _ => return Checked::Whole { seen, files },
    })
}

/// Stores the last lines of the providers' call logs before anything is changed; returns notes on them.
pub(crate) async fn keep_all(
    session: &Session,
    infra: &Infra,
    providers: &[&Instance],
    instances: &[Instance],
) -> Vec<String> {
    let store = CheckpointStore::of_host();
    store.forget(infra, instances);
    store.remember_rebuilt(instances);
    let mut notes = Vec::new();
    for provider in providers {
        match keep(session, provider).await {
            LogState::Sound => {}
            LogState::Lost { note, line, path } => {
                // Put aside, so that the machine's next log is watched.
                let aside = CheckpointStore::put_aside(&path, jiff::Timestamp::now());
                notes.push(match aside.map(|aside| aside.display().to_string()) {
                    Ok(aside) => {
                        format!("{note}: its checkpoint, up to line {line}, is now in `{aside}`")
                    }
                    Err(why) => {
                        format!("{note}, but its checkpoint cannot be put aside: {why}")
                    }
                });
            }
            LogState::Altered { detail: note, .. } | LogState::Unknown(note) => notes.push(note),
        }
    }
    notes
}

/// Forgets the checkpoints of machines that were deleted.
pub(crate) fn forget_deleted(deleted: &[&Object]) {
    CheckpointStore::of_host().forget_deleted(deleted);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit::Event;
    use crate::audit::chain::{Head, link};
    use crate::audit::verify::FINDINGS_MAX;
    use crate::foreign::LogWalk;

    /// Returns a log of this many lines after `from`, and its head; `first` is an additional first line.
    fn log(lines: u64, from: &Head, first: Option<Event>) -> (Vec<u8>, Head) {
        let mut head = from.clone();
        let mut text = Vec::new();
        let stops = (0..lines).map(|pid| Event::Stop {
            pid: u32::try_from(pid).unwrap(),
        });
        for event in first.into_iter().chain(stops) {
            let (line, next) = link(&head, "2026-01-01T00:00:00Z".to_owned(), event).unwrap();
            text.extend(line);
            head = next;
        }
        (text, head)
    }

    fn kept(head: &Head, files: u32) -> Checkpoint {
        Checkpoint {
            project: "vault".to_owned(),
            machine: "signer".to_owned(),
            seq: head.seq,
            head: head.hash.clone(),
            files,
            marked: true,
            rebuilt: false,
        }
    }

    /// Returns the finding for these files, oldest first; empty if they are sound.
    fn said(files: &[&[u8]], kept: &Checkpoint) -> String {
        let mut log = LogWalk::new(Some(kept.head.clone()));
        for file in files {
            log.file(file);
        }
        let number = u32::try_from(files.len()).unwrap();
        match judged(log.end(), number, Some(kept)) {
            Checked::Whole { seen, files } => {
                assert_eq!(files, number);
                assert!(seen.seq >= kept.seq);
                String::new()
            }
            Checked::Missing => "none".to_owned(),
            Checked::Altered(what) | Checked::Faulty(what) => what,
        }
    }

    #[test]
    fn a_log_that_goes_on_is_whole_and_one_that_was_changed_anywhere_is_not() {
        let rotated = || Some(Event::Rotated { bytes: 9 });
        let (oldest, first) = log(3, &Head::default(), None);
        let (older, middle) = log(3, &first, rotated());
        let (newer, _) = log(2, &middle, rotated());
        let all = [oldest.as_slice(), &older, &newer];
        let kept_middle = kept(&middle, 3);
        assert_eq!(said(&all, &kept_middle), "");
        // A rotation drops the oldest file only once the maximum number of files exists.
        let gone = "has lost everything before its line 4";
        assert_eq!(said(&all[1..], &kept(&middle, 2)), gone);
        let (mut every, mut end) = (Vec::new(), first.clone());
        for _ in 0..=KEEP {
            let (file, last) = log(1, &end, rotated());
            every.push(file);
            end = last;
        }
        let every: Vec<&[u8]> = every.iter().map(Vec::as_slice).collect();
        assert_eq!(said(&every, &kept(&end, KEEP + 1)), "");
        // A partial last line is still being written.
        let growing = [newer.as_slice(), b"{\"seq\":"].concat();
        assert_eq!(said(&[&oldest, &older, &growing], &kept_middle), "");
        // A change in a file that precedes the checkpoint's.
        let mut edited = oldest.clone();
        edited[10] ^= 1;
        assert_eq!(
            said(&[&edited, &older, &newer], &kept_middle),
            "was altered; faults found: 1"
        );
        let (anew, _) = log(3, &Head::default(), rotated());
        assert_ne!(said(&[&anew, &older, &newer], &kept_middle), "");
        assert_eq!(
            said(&all[1..], &kept_middle),
            "has lost everything before its line 4"
        );
        // A log with another chain.
        let other = Head {
            seq: 0,
            hash: "0".repeat(63) + "1",
        };
        let (anew, _) = log(9, &other, rotated());
        let missing = "was truncated, rewritten, or restored from a snapshot: its last known line 7 is missing";
        assert_eq!(said(&[&anew], &kept_middle), missing);
        assert_eq!(said(&[], &kept_middle), "is gone: it had 7 lines");
        let many = [newer.as_slice(), &b"\n".repeat(FINDINGS_MAX + 5)].concat();
        assert_eq!(
            said(&[&oldest, &older, &many], &kept_middle),
            "was altered; faults found: 1005"
        );
    }
}
