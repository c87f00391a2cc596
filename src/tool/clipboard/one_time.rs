//! A text that is offered to one consumer: it is given once, within a minute.
//!
//! Opens files without `openat2`, which a process that talks to a display may not use.

use std::fs::File;
use std::io::Read as _;
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, SystemTime};

use rustix::fs::{FileType, Mode, OFlags, Stat, fstat, openat};
use rustix::io::Errno;

use super::file::replace;
use super::{CLIPBOARD_MAX, not_text};
use crate::dir::{Dir, is_own};
use crate::name::MachineName;
use crate::policy::Caller;
use crate::tool::{BlockingStop, ToolError, runtime_folder};

/// Time for which an offer is valid.
pub(super) const VALID: Duration = Duration::from_secs(60);
/// Limit in bytes.
const MAX: u64 = CLIPBOARD_MAX as u64;

/// Begins the name of the file with what is offered to a consumer.
const PREFIX: &str = "offered-";

fn name(consumer: &MachineName) -> String {
    format!("{PREFIX}{consumer}")
}

/// Offers a text to a consumer, instead of what was offered to it before.
pub(super) fn offer(
    runtime: &Path,
    consumer: &MachineName,
    content: &str,
    stop: &BlockingStop,
) -> Result<(), ToolError> {
    remove_expired(&runtime_folder(runtime)?);
    replace(runtime, &name(consumer), content, stop)
}

/// Takes what is offered to the caller, so that nobody takes it again.
pub(super) fn take(
    runtime: &Path,
    caller: &Caller,
    stop: &BlockingStop,
) -> Result<String, ToolError> {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let Caller::Consumer(consumer) = caller else {
        let text = "what is offered is for a consumer; `clipboard_get` returns the clipboard";
        return Err(ToolError::Refused(text.to_owned()));
    };
    let failed = |refused: Errno| ToolError::system("take what is offered", refused);
    let folder = runtime_folder(runtime)?;
    remove_expired(&folder);
    // A call that has ended must not use the offer up.
    stop.check()?;
    // Only one call can rename it.
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let taken = format!(".taken-{consumer}-{}-{count}", std::process::id());
    match folder.rename(&name(consumer), &taken) {
        Err(Errno::NOENT) => return Err(nothing(consumer)),
        renamed => renamed.map_err(failed)?,
    }
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let opened = openat(&folder, &taken, flags, Mode::empty());
    folder.remove(&taken).map_err(failed)?;
    let file = File::from(opened.map_err(failed)?);
    let stat = fstat(&file).map_err(failed)?;
    let is_file = FileType::from_raw_mode(stat.st_mode).is_file() && is_own(&stat);
    if !is_file || !is_valid(&stat) {
        return Err(nothing(consumer));
    }
    let mut bytes = Vec::new();
    let read = file.take(MAX).read_to_end(&mut bytes);
    read.map_err(|why| ToolError::system("take what is offered", why))?;
    String::from_utf8(bytes).map_err(|_| not_text())
}

/// Returns whether a file is so new that its offer is valid. A time in the future, after the clock was set back, does not
/// count.
fn is_valid(stat: &Stat) -> bool {
    let second = u64::try_from(stat.st_mtime).unwrap_or_default();
    let nanosecond = u32::try_from(stat.st_mtime_nsec).unwrap_or_default();
    let offered = SystemTime::UNIX_EPOCH + Duration::new(second, nanosecond);
    let age = SystemTime::now().duration_since(offered);
    age.is_ok_and(|age| age <= VALID)
}

/// Removes what was offered to any consumer and not taken in time.
fn remove_expired(folder: &Dir) {
    // What cannot be removed is still not given.
    let names = folder.names().unwrap_or_default();
    for name in names.iter().filter(|name| name.starts_with(PREFIX)) {
        if let Ok(Some(stat)) = folder.stat(name)
            && !is_valid(&stat)
        {
            let _ = folder.remove(name);
        }
    }
}

fn nothing(consumer: &MachineName) -> ToolError {
    ToolError::Unavailable(format!(
        "nothing is offered to `{consumer}`; on the provider, `anklume clipboard offer --to {consumer}` \
         offers it the clipboard for {} s, once",
        VALID.as_secs()
    ))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    fn caller(name: &str) -> Caller {
        Caller::Consumer(name.parse().unwrap())
    }

    #[test]
    fn an_offer_is_given_once_to_the_one_to_whom_it_was_made() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("anklume");
        let take = |name: &str| {
            let stop = BlockingStop::default();
            take(&folder, &caller(name), &stop).map_err(|why| why.to_string())
        };
        let nothing = |name: &str| {
            Err(format!(
                "nothing is offered to `{name}`; on the provider, `anklume clipboard offer --to {name}` \
                 offers it the clipboard for 60 s, once"
            ))
        };
        assert_eq!(take("alice"), nothing("alice"));
        let offer = |text: &str| {
            let alice = "alice".parse().unwrap();
            offer(&folder, &alice, text, &BlockingStop::default()).unwrap();
        };
        offer("first");
        offer("second");
        assert_eq!(take("bob"), nothing("bob"));
        assert_eq!(take("alice"), Ok("second".to_owned()));
        assert_eq!(take("alice"), nothing("alice"));
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 0);
    }

    #[test]
    fn an_old_offer_one_from_the_future_and_a_link_are_none() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("anklume");
        let alice: MachineName = "alice".parse().unwrap();
        let hour = Duration::from_secs(3600);
        let stop = BlockingStop::default();
        for time in [
            SystemTime::now() - VALID - Duration::from_secs(1),
            SystemTime::now() + hour,
        ] {
            offer(&folder, &alice, "old", &stop).unwrap();
            let file = File::options()
                .append(true)
                .open(folder.join("offered-alice"))
                .unwrap();
            file.set_modified(time).unwrap();
            // Whoever asks, it is removed.
            take(&folder, &caller("bob"), &stop).unwrap_err();
            assert!(!folder.join("offered-alice").exists());
            take(&folder, &caller("alice"), &stop).unwrap_err();
        }
        fs::write(root.path().join("secret"), "secret").unwrap();
        symlink("../secret", folder.join("offered-alice")).unwrap();
        take(&folder, &caller("alice"), &stop).unwrap_err();
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 0);
        take(&folder, &Caller::Operator, &stop).unwrap_err();
    }
}
