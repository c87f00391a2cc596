//! `notify`: shows a message in the session of the server's user, or, where there is none, appends it to a file.
//!
//! The caller's name is added here, and text that could imitate another message, or that a notification service could
//! take for markup, is replaced.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Write as _};
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use rustix::fs::{Mode, OFlags, fstat, openat};
use tokio::process::Command;
use tokio::time::timeout;

use super::runtime::user_folders;
use super::{ToolError, ToolOutcome, ToolSession, blocking, environment, runtime_folder};
use crate::catalogue::{Notified, Notify, parse};
use crate::dir::{Dir, is_own, lock_within};
use crate::name::ToolName;
use crate::policy::{Caller, Grant};
use crate::text::is_invisible;

/// The program of libnotify that shows a message.
pub(super) const PROGRAM: &str = "notify-send";
/// The variable that names the session's D-Bus.
const BUS: &str = "DBUS_SESSION_BUS_ADDRESS";
/// Time that the session may take to show a message.
const WAIT: Duration = Duration::from_secs(5);
/// The file in the runtime folder, and what it is renamed to when it is full.
const FILE: &str = "notifications";
const OLD: &str = "notifications.1";
/// Time for which other messages may keep the file locked.
const LOCK_WAIT: Duration = Duration::from_secs(2);
/// Size at which the file is full, in bytes.
const FILE_MAX: u64 = 256 * 1024;

pub(super) async fn notify(grant: &Grant, session: &ToolSession) -> Result<ToolOutcome, ToolError> {
    let Notify { title, body } = parse(ToolName::Notify, grant.arguments())?;
    let caller = match grant.caller() {
        Caller::Operator => "operator".to_owned(),
        Caller::Consumer(name) => name.to_string(),
    };
    let title = format!("[{caller}] {}", one_line(&title));
    let body = body.map(|body| lines(&body)).unwrap_or_default();
    let settings = &session.settings;
    let shown = match bus(&settings.runtime) {
        Some(bus) => show(&bus, &title, &body).await?,
        None => false,
    };
    if !shown {
        let folder = settings.runtime.clone();
        let line = format!("{} {title}\t{}\n", now(), body.replace('\n', "\t"));
        blocking(move |stop| {
            stop.check()?;
            append(&folder, &line).map_err(|why| ToolError::system("note the message", why))
        })
        .await?;
    }
    let text = if shown {
        "shown".to_owned()
    } else {
        "noted: the provider's user has no session that shows messages".to_owned()
    };
    ToolOutcome::new(text, &Notified { shown })
}

fn now() -> String {
    format!("{:.0}", jiff::Timestamp::now())
}

/// Replaces what is invisible, or what a notification service could take for markup.
fn plain(character: char) -> char {
    match character {
        '<' => '‹',
        '>' => '›',
        '&' => '＆',
        other if is_visible(other) => other,
        _ => '\u{fffd}',
    }
}

fn is_visible(character: char) -> bool {
    // The standard library escapes what is not printable; a combining mark is, after a letter.
    let text = String::from_iter(['a', character]);
    let is_printable = text.escape_debug().eq(text.chars());
    matches!(character, '"' | '\'' | '\\') || (is_printable && !is_invisible(character))
}

fn one_line(text: &str) -> String {
    text.chars().map(plain).collect()
}

fn lines(text: &str) -> String {
    let lines: Vec<String> = text.lines().map(one_line).collect();
    lines.join("\n")
}

/// Returns the address of the session's D-Bus, which a service of the system is not told.
fn bus(runtime: &Path) -> Option<OsString> {
    if let Some(named) = std::env::var_os(BUS).filter(|named| !named.is_empty()) {
        return Some(named);
    }
    let mut sockets = user_folders(runtime).map(|folder| folder.join("bus"));
    let socket = sockets.find(|socket| socket.exists())?;
    let mut address = OsString::from("unix:path=");
    address.push(socket);
    Some(address)
}

/// Shows a message; returns false if the program is not installed.
async fn show(bus: &OsString, title: &str, body: &str) -> Result<bool, ToolError> {
    // The program reads escapes in the body, which could spell what `plain` replaces.
    let body = body.replace('\\', "\\\\");
    let mut command = Command::new(PROGRAM);
    command
        .env_clear()
        .envs(environment())
        .env(BUS, bus)
        .args(["--app-name=anklume", "--", title, &body])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true);
    let mut child = match command.spawn() {
        Err(why) if why.kind() == io::ErrorKind::NotFound => return Ok(false),
        child => child.map_err(|why| ToolError::system("start `notify-send`", why))?,
    };
    let ended = timeout(WAIT, child.wait()).await.map_err(|_| {
        ToolError::TimedOut(format!(
            "the session did not show the message within {} s",
            WAIT.as_secs()
        ))
    })?;
    let ended = ended.map_err(|why| ToolError::system("wait for `notify-send`", why))?;
    if !ended.success() {
        let text = "the session of the provider's user has no service that shows messages; start one there";
        return Err(ToolError::Unavailable(text.to_owned()));
    }
    Ok(true)
}

/// Appends a line to the file of messages; a full file is renamed, and replaces an older one.
fn append(runtime: &Path, line: &str) -> io::Result<()> {
    let folder = runtime_folder(runtime).map_err(io::Error::other)?;
    loop {
        let mut file = open(&folder)?;
        // Only its holder renames it: of two that find it full, the second finds another file.
        lock_within(LOCK_WAIT, || file.try_lock()).map_err(io::Error::from)?;
        let named = folder.stat(FILE)?;
        let stat = fstat(&file)?;
        if named.is_none_or(|named| named.st_ino != stat.st_ino) {
            continue;
        }
        if file.metadata()?.len() < FILE_MAX {
            return file.write_all(line.as_bytes());
        }
        folder.rename(FILE, OLD)?;
    }
}

fn open(folder: &Dir) -> io::Result<File> {
    let flags = OFlags::WRONLY
        | OFlags::APPEND
        | OFlags::CREATE
        | OFlags::NOFOLLOW
        | OFlags::NONBLOCK
        | OFlags::CLOEXEC;
    let file = openat(folder, FILE, flags, Mode::RUSR | Mode::WUSR)?;
    let stat = fstat(&file)?;
    if !is_own(&stat) || stat.st_nlink != 1 {
        return Err(io::ErrorKind::PermissionDenied.into());
    }
    Ok(file.into())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use super::*;

    #[test]
    fn text_imitates_nothing_and_is_no_markup() {
        let title = one_line("a\n[vault] b\u{202e}\u{1b}[31m <b>&amp;");
        assert_eq!(title, "a\u{fffd}[vault] b\u{fffd}\u{fffd}[31m ‹b›＆amp;");
        assert_eq!(lines("one\r\ntwo\u{7}\n"), "one\ntwo\u{fffd}");
    }

    #[test]
    fn the_file_of_messages_is_private_bounded_and_no_link() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("anklume");
        append(&folder, "one\n").unwrap();
        let path = folder.join(FILE);
        assert_eq!(
            fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            0o600
        );
        fs::write(&path, vec![b'x'; usize::try_from(FILE_MAX).unwrap()]).unwrap();
        append(&folder, "two\n").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"two\n");
        assert_eq!(fs::metadata(folder.join(OLD)).unwrap().len(), FILE_MAX);
        fs::remove_file(&path).unwrap();
        fs::write(root.path().join("secret"), "").unwrap();
        symlink("../secret", &path).unwrap();
        append(&folder, "three\n").unwrap_err();
        assert_eq!(fs::read(root.path().join("secret")).unwrap(), b"");
    }
}
