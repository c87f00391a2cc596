//! The logs that Incus writes of the channels on the host: without bound, and it never rotates them.
//!
//! Rotated in place, as the process that writes them keeps them open. Goes through no symbolic link and through folders of
//! this process's own user alone, which is root where there are such logs.

use std::fs::{self, File};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, Stat, fcntl_getfl, fcntl_setfl, fstat, open, openat, renameat,
    unlinkat,
};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, geteuid, pidfd_getfd, pidfd_open};

use crate::edge::{DEVICE_PREFIX, Edge, End, HASH_DIGITS};
use crate::incus::DEFAULT_PROJECT;
use crate::plan::BigLog;

/// Folder in which Incus keeps the logs of each machine.
const FOLDER: &str = "/var/log/incus";
/// From here on a log is rotated, in bytes that it takes on the disk.
pub(crate) const LIMIT: u64 = 10 * 1024 * 1024;
/// Size of its end that is kept beside it, in bytes.
const KEPT: u64 = 1024 * 1024;
/// A log's name: this, the device, [`SUFFIX`].
const PREFIX: &str = "proxy.";
/// The end of a log's name.
const SUFFIX: &str = ".log";
/// Suffix of the kept end of a log.
const OLD: &str = ".1";
/// The same while it is written.
const FRESH: &str = ".1.new";
/// Unit of a file's size on the disk, in bytes (stat(2)).
const BLOCK: u64 = 512;
/// Rights of others to write.
const OTHERS_WRITE: u32 = 0o022;
/// Flags to open a folder for working in it.
const OPENED: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::CLOEXEC)
    .union(OFlags::NOFOLLOW);

/// The logs of these edges that are over the limit.
pub(crate) fn big(edges: &[Edge]) -> Vec<BigLog> {
    let mut found = Vec::new();
    for edge in edges {
        for end in [&edge.provider, &edge.consumer] {
            let folder = folder_of(end);
            let log = format!("{PREFIX}{}{SUFFIX}", edge.device_name());
            let path = Path::new(FOLDER).join(&folder).join(&log);
            let bytes = fs::symlink_metadata(&path).ok().and_then(|is| {
                use std::os::unix::fs::MetadataExt as _;
                is.is_file().then(|| is.blocks() * BLOCK)
            });
            found.extend(bytes.filter(|bytes| *bytes > LIMIT).map(|bytes| BigLog {
                path: path.to_string_lossy().into_owned(),
                bytes,
            }));
        }
    }
    found
}

/// The log of an edge at one of its ends.
pub(crate) fn path(edge: &Edge, end: &End) -> String {
    let folder = folder_of(end);
    format!("{FOLDER}/{folder}/{PREFIX}{}{SUFFIX}", edge.device_name())
}

/// Name of a machine's folder in Incus.
fn folder_of(end: &End) -> String {
    if end.domain.as_str() == DEFAULT_PROJECT {
        end.machine.to_string()
    } else {
        format!("{}_{}", end.domain, end.machine)
    }
}

/// Rotates one log.
pub(crate) fn rotate(path: &str) -> io::Result<()> {
    let path = Path::new(path);
    let parts = (path.file_name(), path.parent().and_then(Path::file_name));
    let (Some(log), Some(machine)) = parts else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let (log, machine) = (log.to_string_lossy(), machine.to_string_lossy());
    let root = own_folder(open(FOLDER, OPENED, Mode::empty())?)?;
    let folder = own_folder(openat(&root, machine.as_ref(), OPENED, Mode::empty())?)?;
    rotate_in(&folder, &log)
}

/// Rotates every log of a channel that is over the limit; the paths of those that could not be, and why.
pub(crate) fn rotate_all() -> io::Result<Vec<(String, io::Error)>> {
    rotate_below(Path::new(FOLDER))
}

fn rotate_below(root: &Path) -> io::Result<Vec<(String, io::Error)>> {
    let mut failed = Vec::new();
    let opened = match open(root, OPENED, Mode::empty()) {
        Ok(opened) => own_folder(opened)?,
        // An Incus that has no logs has none that grow.
        Err(Errno::NOENT) => return Ok(failed),
        Err(why) => return Err(why.into()),
    };
    for machine in names(&opened)? {
        // What is no folder of ours, or goes away meanwhile, has no log of ours.
        let folder = openat(&opened, machine.as_str(), OPENED, Mode::empty());
        let Ok(folder) = folder.map_err(io::Error::from).and_then(own_folder) else {
            continue;
        };
        for log in names(&folder)?.iter().filter(|name| is_log(name)) {
            let is_big = look(&folder, log).is_ok_and(|is| on_disk(&is) > LIMIT);
            if is_big && let Err(why) = rotate_in(&folder, log) {
                let path = root.join(&machine).join(log);
                failed.push((path.to_string_lossy().into_owned(), why));
            }
        }
    }
    Ok(failed)
}

fn names(folder: &OwnedFd) -> io::Result<Vec<String>> {
    let entries = rustix::fs::Dir::read_from(folder)?;
    let name = |entry: rustix::fs::DirEntry| entry.file_name().to_str().map(str::to_owned).ok();
    Ok(entries
        .filter_map(|entry| name(entry.ok()?))
        .filter(|name| name != "." && name != "..")
        .collect())
}

/// Returns whether a file of that name is the log of a channel.
fn is_log(name: &str) -> bool {
    let device = name
        .strip_prefix(PREFIX)
        .and_then(|name| name.strip_suffix(SUFFIX));
    let hash = device.and_then(|device| device.strip_prefix(DEVICE_PREFIX));
    hash.is_some_and(|hash| {
        hash.len() == HASH_DIGITS && hash.bytes().all(|byte| byte.is_ascii_hexdigit())
    })
}

/// A folder in which nobody else can put anything.
fn own_folder(folder: OwnedFd) -> io::Result<OwnedFd> {
    let is = fstat(&folder)?;
    if is.st_uid == geteuid().as_raw() && is.st_mode & OTHERS_WRITE == 0 {
        return Ok(folder);
    }
    Err(io::Error::other(
        "others can write in the folder of the log",
    ))
}

fn look(folder: &OwnedFd, name: &str) -> io::Result<Stat> {
    Ok(rustix::fs::statat(folder, name, AtFlags::SYMLINK_NOFOLLOW)?)
}

/// What a file takes on the disk: what was cut off before a place where somebody goes on writing takes nothing.
fn on_disk(is: &Stat) -> u64 {
    u64::try_from(is.st_blocks).unwrap_or_default() * BLOCK
}

/// Keeps the end of a log beside it and empties it.
fn rotate_in(folder: &OwnedFd, name: &str) -> io::Result<()> {
    let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let file = openat(folder, name, flags, Mode::empty())?;
    let is = fstat(&file)?;
    let plain = FileType::from_raw_mode(is.st_mode) == FileType::RegularFile;
    if !plain || is.st_nlink != 1 || is.st_uid != geteuid().as_raw() {
        return Err(io::Error::other("it is not a log of Incus's"));
    }
    let mut file = File::from(file);
    keep_end(folder, name, &mut file, &is)?;
    append_only(&is);
    file.set_len(0)
}

/// Writes the end of a log into a file of its own.
fn keep_end(folder: &OwnedFd, name: &str, file: &mut File, is: &Stat) -> io::Result<()> {
    let length = u64::try_from(is.st_size).unwrap_or_default();
    file.seek(SeekFrom::Start(length.saturating_sub(KEPT)))?;
    let mut end = Vec::new();
    file.take(KEPT).read_to_end(&mut end)?;
    let fresh = format!("{name}{FRESH}");
    match unlinkat(folder, &fresh, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => {}
        Err(why) => return Err(why.into()),
    }
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let kept = openat(folder, &fresh, flags, Mode::RUSR | Mode::WUSR)?;
    File::from(kept).write_all(&end)?;
    Ok(renameat(folder, &fresh, folder, format!("{name}{OLD}"))?)
}

/// Makes whoever writes a log write at its end, whatever that is: Incus's proxies go on where they were, which would leave
/// a hole of gigabytes before it. Where that cannot be done the hole stays; it takes no place on the disk.
fn append_only(log: &Stat) {
    let Ok(entries) = fs::read_dir("/proc") else {
        return;
    };
    let numbers = entries
        .filter_map(Result::ok)
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter_map(Pid::from_raw);
    for process in numbers {
        for descriptor in [1, 2] {
            let path = format!("/proc/{}/fd/{descriptor}", process.as_raw_nonzero());
            let is_log = rustix::fs::stat(path)
                .is_ok_and(|is| (is.st_dev, is.st_ino) == (log.st_dev, log.st_ino));
            if is_log {
                // A process that is gone meanwhile writes nothing.
                let _ = append(process, descriptor);
            }
        }
    }
}

fn append(process: Pid, descriptor: i32) -> rustix::io::Result<()> {
    let handle = pidfd_open(process, PidfdFlags::empty())?;
    let shared = pidfd_getfd(&handle, descriptor, PidfdGetfdFlags::empty())?;
    let flags = fcntl_getfl(shared.as_fd())?;
    fcntl_setfl(shared.as_fd(), flags | OFlags::APPEND)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};

    use super::*;

    const LOG: &str = "proxy.mcp-0123456789abcdef.log";

    /// A folder of logs with one machine, whose log has so many bytes.
    fn logs(bytes: u64) -> (tempfile::TempDir, std::path::PathBuf) {
        let root = tempfile::tempdir().unwrap();
        let machine = root.path().join("work_dev");
        fs::create_dir(&machine).unwrap();
        fs::set_permissions(&machine, fs::Permissions::from_mode(0o755)).unwrap();
        let log = machine.join(LOG);
        let mut file = File::create(&log).unwrap();
        let line = b"Warning: Failed to connect to target\n".repeat(1000);
        let mut left = bytes;
        while left > 0 {
            let part = line.len().min(usize::try_from(left).unwrap());
            file.write_all(&line[..part]).unwrap();
            left -= part as u64;
        }
        file.write_all(b"the last line\n").unwrap();
        file.sync_all().unwrap();
        (root, log)
    }

    #[test]
    fn a_big_log_is_emptied_and_its_end_is_kept() {
        let (root, log) = logs(LIMIT + 4096);
        assert!(rotate_below(root.path()).unwrap().is_empty());
        assert_eq!(log.metadata().unwrap().len(), 0);
        let kept = log.with_file_name(format!("{LOG}{OLD}"));
        assert_eq!(kept.metadata().unwrap().len(), KEPT);
        assert!(fs::read(&kept).unwrap().ends_with(b"the last line\n"));
        assert_eq!(fs::read_dir(log.parent().unwrap()).unwrap().count(), 2);
    }

    #[test]
    fn whoever_writes_goes_on_at_the_beginning() {
        let (root, log) = logs(LIMIT + 4096);
        // A child is what a forkproxy is: its stdout is the log, not opened to append.
        let opened = File::options().write(true).open(&log).unwrap();
        let mut opened = opened;
        opened.seek(SeekFrom::End(0)).unwrap();
        #[expect(clippy::disallowed_methods, reason = "a writer to look at")]
        let mut child = std::process::Command::new("sh")
            .args(["-c", "read go; echo after; read go"])
            .stdin(std::process::Stdio::piped())
            .stdout(opened)
            .spawn()
            .unwrap();
        // The shell is there, with its stdout, once it waits.
        assert!(rotate_below(root.path()).unwrap().is_empty());
        let mut stdin = child.stdin.take().unwrap();
        stdin.write_all(b"go\ngo\n").unwrap();
        drop(stdin);
        child.wait().unwrap();
        assert_eq!(fs::read(&log).unwrap(), b"after\n");
        assert!(log.metadata().unwrap().blocks() * BLOCK <= 64 * 1024);
    }

    #[test]
    fn a_small_log_and_what_is_no_log_of_a_channel_stay() {
        let (root, log) = logs(4096);
        let other = log.with_file_name("proxy.web.log");
        fs::write(&other, vec![b'x'; usize::try_from(LIMIT + 4096).unwrap()]).unwrap();
        assert!(rotate_below(root.path()).unwrap().is_empty());
        assert_eq!(log.metadata().unwrap().len(), 4096 + 14);
        assert_eq!(other.metadata().unwrap().len(), LIMIT + 4096);
        assert!(rotate_below(&root.path().join("none")).unwrap().is_empty());
    }

    #[test]
    fn no_link_is_followed_and_no_folder_of_others_is_worked_in() {
        let (root, log) = logs(LIMIT + 4096);
        let length = log.metadata().unwrap().len();
        let linked = root.path().join("linked");
        fs::create_dir(&linked).unwrap();
        fs::set_permissions(&linked, fs::Permissions::from_mode(0o755)).unwrap();
        symlink(&log, linked.join(LOG)).unwrap();
        symlink(log.parent().unwrap(), root.path().join("folder")).unwrap();
        fs::set_permissions(log.parent().unwrap(), fs::Permissions::from_mode(0o777)).unwrap();
        assert!(rotate_below(root.path()).unwrap().is_empty());
        assert_eq!(log.metadata().unwrap().len(), length);
        // A second name of the file is somebody's way to have another one emptied.
        fs::set_permissions(log.parent().unwrap(), fs::Permissions::from_mode(0o755)).unwrap();
        fs::hard_link(&log, root.path().join("second")).unwrap();
        assert_eq!(rotate_below(root.path()).unwrap().len(), 1);
        assert_eq!(log.metadata().unwrap().len(), length);
    }
}
