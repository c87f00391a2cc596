//! A text that is offered to one consumer: it is given once, within a minute.
//!
//! Opens files without `openat2`, which a process that talks to a display may not use.

use std::fs::File;
use std::io::Read as _;
use std::path::Path;
use std::time::{Duration, SystemTime};

use rustix::fs::{FileType, Mode, OFlags, fstat, openat};
use rustix::io::Errno;

use super::file::{open_folder, replace};
use super::{CLIPBOARD_MAX, not_text};
use crate::dir::is_own;
use crate::name::MachineName;
use crate::policy::Caller;
use crate::tool::{BlockingStop, ToolError};

/// Time for which an offer is valid.
pub(super) const VALID: Duration = Duration::from_secs(60);
/// Limit in bytes.
const MAX: u64 = CLIPBOARD_MAX as u64;

/// Returns the name of the file with what is offered to a consumer.
fn name(consumer: &MachineName) -> String {
    format!("offered-{consumer}")
}

/// Offers a text to a consumer, instead of what was offered to it before.
pub(super) fn arm(
    runtime: &Path,
    consumer: &MachineName,
    content: &str,
    stop: &BlockingStop,
) -> Result<(), ToolError> {
    replace(runtime, &name(consumer), content, stop)
}

/// Takes what is offered to the caller, so that nobody takes it again.
pub(super) fn take(runtime: &Path, caller: &Caller) -> Result<String, ToolError> {
    let Caller::Consumer(consumer) = caller else {
        let text = "what is offered is for a consumer; `clipboard_get` returns the clipboard";
        return Err(ToolError::Refused(text.to_owned()));
    };
    let failed = |refused: Errno| ToolError::system("take what is offered", refused);
    let folder = open_folder(runtime)?;
    // Only one call can rename it.
    let taken = format!(".taken-{consumer}-{}", std::process::id());
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
    let offered = file.metadata().and_then(|metadata| metadata.modified());
    // A time in the future, after the clock was set back, does not count either.
    let age = offered.map(|offered| SystemTime::now().duration_since(offered));
    if !is_file || !matches!(age, Ok(Ok(age)) if age <= VALID) {
        return Err(nothing(consumer));
    }
    let mut bytes = Vec::new();
    let read = file.take(MAX).read_to_end(&mut bytes);
    read.map_err(|why| ToolError::system("take what is offered", why))?;
    String::from_utf8(bytes).map_err(|_| not_text())
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
        let take = |name: &str| take(&folder, &caller(name)).map_err(|why| why.to_string());
        let nothing = |name: &str| {
            Err(format!(
                "nothing is offered to `{name}`; on the provider, `anklume clipboard offer --to {name}` \
                 offers it the clipboard for 60 s, once"
            ))
        };
        assert_eq!(take("alice"), nothing("alice"));
        let arm = |text: &str| {
            let alice = "alice".parse().unwrap();
            arm(&folder, &alice, text, &BlockingStop::default()).unwrap();
        };
        arm("first");
        arm("second");
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
        for time in [
            SystemTime::now() - VALID - Duration::from_secs(1),
            SystemTime::now() + hour,
        ] {
            arm(&folder, &alice, "old", &BlockingStop::default()).unwrap();
            let file = File::options()
                .append(true)
                .open(folder.join("offered-alice"))
                .unwrap();
            file.set_modified(time).unwrap();
            take(&folder, &caller("alice")).unwrap_err();
        }
        fs::write(root.path().join("secret"), "secret").unwrap();
        symlink("../secret", folder.join("offered-alice")).unwrap();
        take(&folder, &caller("alice")).unwrap_err();
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 0);
        take(&folder, &Caller::Operator).unwrap_err();
    }
}
