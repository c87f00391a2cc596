//! Rotates the logs that Incus writes for the channels on the host; Incus itself neither limits nor rotates them.
//!
//! Rotates the logs in place, because the writing processes keep them open. Follows no symbolic links and works only in
//! folders that belong to this process's own user (root, for these logs).

use std::fs::{self, File};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use rustix::fs::{FileType, OFlags, Stat, fcntl_getfl, fcntl_setfl, fstat, stat};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};

use super::{full_name, is_hash, processes};
use crate::dir::{BENEATH, Dir, OTHERS_WRITE, READ, is_own};
use crate::edge::{DEVICE_PREFIX, Edge, End};
use crate::plan::BigLog;

/// Folder in which Incus keeps the logs of each machine.
const FOLDER: &str = "/var/log/incus";
/// Size on disk above which a log is rotated, in bytes.
pub(crate) const LIMIT: u64 = 10 * 1024 * 1024;
/// Number of bytes from the end of a log that are kept beside it.
const KEPT: u64 = 1024 * 1024;
const KEPT_MODE: u32 = 0o600;
/// A log's name consists of this prefix, the device name and [`SUFFIX`].
const PREFIX: &str = "proxy.";
const SUFFIX: &str = ".log";
/// Prefix of the devices of anklume 0.1.0, until `apply` renames them.
const EARLIER_PREFIX: &str = "mcp-";
/// Suffix of the file that keeps the end of a log.
const OLD: &str = ".1";
/// Suffix of that file while it is being written.
const FRESH: &str = ".1.new";
/// Unit of a file's size on disk, in bytes (stat(2)).
const BLOCK: u64 = 512;

/// Returns the logs of these edges that exceed the limit.
pub(crate) fn big(edges: &[Edge]) -> Vec<BigLog> {
    let ends = |edge: &Edge| [path(edge, &edge.provider), path(edge, &edge.consumer)];
    let logs = edges.iter().flat_map(ends).filter_map(|path| {
        let is = fs::symlink_metadata(&path).ok()?;
        let bytes = is.blocks() * BLOCK;
        (is.is_file() && bytes > LIMIT).then_some(BigLog { path, bytes })
    });
    logs.collect()
}

/// Returns the path of an edge's log at one of its ends.
pub(crate) fn path(edge: &Edge, end: &End) -> String {
    let folder = full_name(end.domain.as_str(), end.machine.as_str());
    format!("{FOLDER}/{folder}/{PREFIX}{}{SUFFIX}", edge.device_name())
}

/// Rotates the log at this path.
pub(crate) fn rotate(path: &str) -> io::Result<()> {
    let path = Path::new(path);
    let parts = (path.file_name(), path.parent().and_then(Path::file_name));
    let (Some(log), Some(machine)) = parts else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let root = own_folder(opened(Path::new(FOLDER))?)?;
    let folder = own_folder(root.dir(&machine.to_string_lossy())?)?;
    rotate_in(&folder, &log.to_string_lossy())
}

/// Rotates every channel log that exceeds the limit; returns the paths of those that failed, with the errors.
pub(crate) fn rotate_all() -> io::Result<Vec<(String, io::Error)>> {
    rotate_below(Path::new(FOLDER))
}

fn rotate_below(root: &Path) -> io::Result<Vec<(String, io::Error)>> {
    let mut failed = Vec::new();
    let folders = match opened(root) {
        Ok(opened) => own_folder(opened)?,
        // Incus has not written any logs yet.
        Err(Errno::NOENT) => return Ok(failed),
        Err(why) => return Err(why.into()),
    };
    for machine in folders.names()? {
        // A folder that belongs to another user or has meanwhile disappeared contains none of our logs.
        let folder = folders.dir(&machine).map_err(io::Error::from);
        let Ok(folder) = folder.and_then(own_folder) else {
            continue;
        };
        // One unreadable folder must not prevent the logs in the others from being rotated.
        let Ok(logs) = folder.names() else {
            continue;
        };
        for log in logs.iter().filter(|name| is_log(name)) {
            let blocks = folder.stat(log).ok().flatten().map(|is| is.st_blocks);
            // A hole before the writer's offset occupies no blocks.
            let blocks = u64::try_from(blocks.unwrap_or_default()).unwrap_or_default();
            if blocks * BLOCK > LIMIT
                && let Err(why) = rotate_in(&folder, log)
            {
                let path = root.join(&machine).join(log);
                failed.push((path.to_string_lossy().into_owned(), why));
            }
        }
    }
    Ok(failed)
}

/// Returns whether a file of this name is a channel's log.
fn is_log(name: &str) -> bool {
    let device = name.strip_prefix(PREFIX);
    let device = device.and_then(|name| name.strip_suffix(SUFFIX));
    let prefixes = [DEVICE_PREFIX, EARLIER_PREFIX];
    let hashes = prefixes.map(|prefix| device.and_then(|device| device.strip_prefix(prefix)));
    hashes.into_iter().flatten().any(is_hash)
}

fn opened(folder: &Path) -> Result<Dir, Errno> {
    Dir::open(folder, READ | OFlags::NOFOLLOW, BENEATH)
}

/// Returns the folder if no other user can write to it.
fn own_folder(folder: Dir) -> io::Result<Dir> {
    let is = fstat(&folder)?;
    if is_own(&is) && is.st_mode & OTHERS_WRITE == 0 {
        return Ok(folder);
    }
    let fault = "other users can write to the folder of the log";
    Err(io::Error::other(fault))
}

/// Copies the end of a log to a file beside it, and empties the log.
fn rotate_in(folder: &Dir, name: &str) -> io::Result<()> {
    let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let mut file = File::from(folder.open_at(name, flags)?);
    let is = fstat(&file)?;
    let plain = FileType::from_raw_mode(is.st_mode) == FileType::RegularFile;
    if !plain || is.st_nlink != 1 || !is_own(&is) {
        return Err(io::Error::other("it is not an Incus log"));
    }
    let length = u64::try_from(is.st_size).unwrap_or_default();
    file.seek(SeekFrom::Start(length.saturating_sub(KEPT)))?;
    let mut end = Vec::new();
    (&mut file).take(KEPT).read_to_end(&mut end)?;
    let (old, fresh) = (format!("{name}{OLD}"), format!("{name}{FRESH}"));
    folder.replace(&old, &fresh, KEPT_MODE, |kept| kept.write_all(&end))?;
    append_only(&is);
    file.set_len(0)
}

/// Makes the processes that are writing to a log append to it.
///
/// Incus opens the log without `O_APPEND` (Go's `os.Create`) and passes it to its proxy as stdout and stderr. After the
/// file is emptied, the next line would go to the old offset, after a hole of gigabytes that readers and backups see as
/// zeros. The flag must be set on the writer's own descriptor; if that fails, the hole stays but uses no disk space.
fn append_only(log: &Stat) {
    for process in processes().into_iter().flatten() {
        for descriptor in [1, 2] {
            let is_log = stat(format!("/proc/{process}/fd/{descriptor}"))
                .is_ok_and(|is| (is.st_dev, is.st_ino) == (log.st_dev, log.st_ino));
            if is_log {
                // A process that has exited writes nothing.
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
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use super::*;

    const LOG: &str = "proxy.mcp_0123456789abcdef.log";

    /// Creates a log folder for one machine, with a log of this many bytes and a last line.
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
        // So is that of a device that has not been renamed yet.
        let (root, log) = logs(LIMIT + 4096);
        let earlier = log.with_file_name("proxy.mcp-0123456789abcdef.log");
        fs::rename(&log, &earlier).unwrap();
        assert!(rotate_below(root.path()).unwrap().is_empty());
        assert_eq!(earlier.metadata().unwrap().len(), 0);
    }

    #[test]
    fn whoever_writes_goes_on_at_the_beginning() {
        let (root, log) = logs(LIMIT + 4096);
        // As with a forkproxy, the child's stdout is the log, not opened for appending.
        let opened = File::options().write(true).open(&log).unwrap();
        let mut opened = opened;
        opened.seek(SeekFrom::End(0)).unwrap();
        #[expect(
            clippy::disallowed_methods,
            reason = "the test needs a process that writes"
        )]
        let mut child = std::process::Command::new("sh")
            .args(["-c", "read go; echo after; read go"])
            .stdin(std::process::Stdio::piped())
            .stdout(opened)
            .spawn()
            .unwrap();
        // After `spawn`, the shell's stdout is already the log.
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
        // A user could use a hard link to have another file emptied.
        fs::set_permissions(log.parent().unwrap(), fs::Permissions::from_mode(0o755)).unwrap();
        fs::hard_link(&log, root.path().join("second")).unwrap();
        assert_eq!(rotate_below(root.path()).unwrap().len(), 1);
        assert_eq!(log.metadata().unwrap().len(), length);
    }
}
