//! A process's root folder. Lookups follow no links and cross no mounts, except a tmpfs on `/run`.
//!
//! The machine controls everything below this folder: files may change during a lookup.

use std::fs::{self, File};
use std::io::{self, Read as _};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::Path;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{FileType, Mode, OFlags, Stat, fstat, fstatfs, open, openat2, readlinkat};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::dir::{BENEATH, Dir, LOOK, ONE_MOUNT, RegularFile, SEARCH};
use crate::incus::{EntryKind, FileEntry, FileOwner};

/// The only mount that lookups cross, and only if it is a tmpfs: it contains the server's status.
const RUN: &str = "run";
/// File system type of tmpfs (statfs(2)).
const TMPFS_MAGIC: i64 = 0x0102_1994;
/// File system types that a machine can mount over its root and control: FUSE, overlayfs.
const MACHINES_OWN: [i64; 2] = [0x6573_5546, 0x794c_7630];
/// Mode bits that Incus reports too.
const RIGHTS: u32 = 0o777;
/// The ID shown for a user or group without a mapping in the machine (`/proc/sys/kernel/overflowuid`).
const NOBODY: u32 = 65_534;
/// Chunk size for comparing two files, in bytes.
const CHUNK: usize = 256 * 1024;
/// Maximum number of bytes read from a file below `/proc`.
const PROC_MAX: u64 = 64 * 1024;

/// The reason why a lookup has no answer.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum ViewFailure {
    /// The file is larger than allowed.
    TooLarge,
    /// The path leads through a link or a mount, or cannot be read.
    Unclear,
}

impl From<Errno> for ViewFailure {
    fn from(_: Errno) -> Self {
        Self::Unclear
    }
}

impl From<io::Error> for ViewFailure {
    fn from(_: io::Error) -> Self {
        Self::Unclear
    }
}

/// A machine's files.
#[derive(Debug)]
pub(super) struct View {
    root: Dir,
    /// The machine's first process.
    process: OwnedFd,
    users: Ids,
    groups: Ids,
}

impl View {
    /// Opens the root of the process `first`. Returns `None` unless it is the first process of its namespace and in
    /// that cgroup.
    pub(super) fn open(first: u32, cgroup: &str) -> Option<Self> {
        let number = i32::try_from(first).ok().and_then(Pid::from_raw)?;
        // Opened first: while this process is alive, the files read below belong to it.
        let process = pidfd_open(number, PidfdFlags::empty()).ok()?;
        let text = |name: &str| kernel_text(&format!("/proc/{first}/{name}"));
        if !is_first(&text("status")?) || !is_in(&text("cgroup")?, cgroup) {
            return None;
        }
        let root = format!("/proc/{first}/root");
        // Incus uses the machine's root, even if the first process has changed its own root.
        if fs::read_link(&root).ok()? != Path::new("/") {
            return None;
        }
        let root = Dir::open(Path::new(&root), SEARCH, ONE_MOUNT).ok()?;
        if MACHINES_OWN.contains(&fstatfs(&root).ok()?.f_type) {
            return None;
        }
        let view = Self {
            root,
            users: Ids::parse(&text("uid_map")?),
            groups: Ids::parse(&text("gid_map")?),
            process,
        };
        view.is_alive().then_some(view)
    }

    /// Returns whether the machine's first process is still alive.
    pub(super) fn is_alive(&self) -> bool {
        let mut ended = [PollFd::new(&self.process, PollFlags::IN)];
        poll(&mut ended, Some(&Timespec::default())) == Ok(0)
    }

    /// Returns the entry at a path; `None` if it does not exist.
    pub(super) fn look(&self, path: &str) -> Result<Option<FileEntry>, ViewFailure> {
        let Some((_, is)) = self.at(path)? else {
            return Ok(None);
        };
        let kind = FileType::from_raw_mode(is.st_mode);
        Ok(Some(FileEntry {
            kind: match kind {
                FileType::Directory => EntryKind::Folder,
                FileType::RegularFile | FileType::Fifo | FileType::Socket => EntryKind::File,
                FileType::Symlink => EntryKind::Link,
                _ => EntryKind::Other,
            },
            owner: Some(FileOwner {
                uid: self.users.inside(is.st_uid),
                gid: self.groups.inside(is.st_gid),
                mode: is.st_mode & RIGHTS,
            }),
            is_socket: Some(kind == FileType::Socket),
        }))
    }

    /// Returns the content of a regular file or the target of a link; `None` if the path is neither.
    pub(super) fn read(
        &self,
        path: &str,
        kind: EntryKind,
        max: u64,
    ) -> Result<Option<Vec<u8>>, ViewFailure> {
        let Some((handle, is)) = self.at(path)? else {
            return Ok(None);
        };
        match (kind, FileType::from_raw_mode(is.st_mode)) {
            (EntryKind::Link, FileType::Symlink) => {
                let target = readlinkat(&handle, "", Vec::new())?;
                Ok(Some(target.into_bytes()))
            }
            (EntryKind::File, FileType::RegularFile) => {
                if size(&is) > max {
                    return Err(ViewFailure::TooLarge);
                }
                let file = reopened(&handle)?;
                let content = RegularFile { file, stat: is }.read(max);
                content.map(Some).map_err(|why| match why.kind() {
                    io::ErrorKind::FileTooLarge => ViewFailure::TooLarge,
                    _ => ViewFailure::Unclear,
                })
            }
            _ => Ok(None),
        }
    }

    /// Returns whether a regular file equals a file on the host; `None` if the path is not a regular file.
    pub(super) fn is_same_file(&self, path: &str, own: &str) -> Result<Option<bool>, ViewFailure> {
        let Some((handle, is)) = self.at(path)? else {
            return Ok(None);
        };
        if FileType::from_raw_mode(is.st_mode) != FileType::RegularFile {
            return Ok(None);
        }
        let own = File::open(own)?;
        // Most different files differ in size.
        if own.metadata()?.len() != size(&is) {
            return Ok(Some(false));
        }
        let theirs = reopened(&handle)?.take(size(&is).saturating_add(1));
        Ok(Some(are_same(own, theirs)?))
    }

    /// Opens a path for inspection only.
    fn at(&self, path: &str) -> Result<Option<(OwnedFd, Stat)>, ViewFailure> {
        let handle = match self.opened(path) {
            Err(Errno::NOENT) => return Ok(None),
            handle => handle?,
        };
        let is = fstat(&handle)?;
        Ok(Some((handle, is)))
    }

    fn opened(&self, path: &str) -> Result<OwnedFd, Errno> {
        match self.root.open_at(path, LOOK) {
            Err(Errno::XDEV) => {}
            done => return done,
        }
        let below = path.trim_start_matches('/').strip_prefix(RUN);
        let in_run = below.and_then(|rest| rest.strip_prefix('/'));
        let in_run = in_run.ok_or(Errno::XDEV)?;
        let flags = LOOK | OFlags::DIRECTORY;
        let run = openat2(&self.root, RUN, flags, Mode::empty(), BENEATH)?;
        if fstatfs(&run)?.f_type != TMPFS_MAGIC {
            return Err(Errno::XDEV);
        }
        openat2(&run, in_run, LOOK, Mode::empty(), ONE_MOUNT)
    }
}

/// Reopens a file for reading.
fn reopened(handle: &OwnedFd) -> Result<File, Errno> {
    let path = format!("/proc/self/fd/{}", handle.as_raw_fd());
    let flags =
        OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::NOATIME | OFlags::CLOEXEC;
    open(path, flags, Mode::empty()).map(File::from)
}

fn size(is: &Stat) -> u64 {
    u64::try_from(is.st_size).unwrap_or(u64::MAX)
}

/// Returns whether two files have the same content.
fn are_same(mut one: impl io::Read, mut other: impl io::Read) -> io::Result<bool> {
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    loop {
        let more = |from: &mut dyn io::Read, chunk: &mut Vec<u8>| {
            chunk.clear();
            let wanted = u64::try_from(CHUNK).unwrap_or(u64::MAX);
            from.take(wanted).read_to_end(chunk)
        };
        more(&mut one, &mut ours)?;
        more(&mut other, &mut theirs)?;
        if ours != theirs || ours.is_empty() {
            return Ok(ours == theirs);
        }
    }
}

fn kernel_text(path: &str) -> Option<String> {
    let mut text = String::new();
    let file = fs::File::open(path).ok()?;
    file.take(PROC_MAX).read_to_string(&mut text).ok()?;
    Some(text)
}

/// Returns whether a process status (proc(5)) is that of the first process in a namespace below this one.
fn is_first(status: &str) -> bool {
    let mut lines = status.lines();
    let numbers = lines.find_map(|line| line.strip_prefix("NSpid:"));
    let mut numbers = numbers.unwrap_or_default().split_ascii_whitespace();
    numbers.next().is_some() && numbers.last() == Some("1")
}

/// Returns whether a process's cgroups (cgroups(7)) belong to the machine with this cgroup name and to no other.
fn is_in(cgroups: &str, machine: &str) -> bool {
    const PREFIX: &str = "lxc.payload.";
    let paths = cgroups
        .lines()
        .filter_map(|line| line.splitn(3, ':').nth(2));
    let machines = paths.filter_map(|path| {
        let mut parts = path.split('/');
        parts.find_map(|part| part.strip_prefix(PREFIX))
    });
    let mut any = false;
    for one in machines {
        if one != machine {
            return false;
        }
        any = true;
    }
    any
}

/// The mapping between a machine's user or group IDs and those on the host (user_namespaces(7)).
#[derive(Debug, PartialEq, Eq)]
struct Ids(Vec<Range>);

#[derive(Debug, PartialEq, Eq)]
struct Range {
    inside: u32,
    outside: u32,
    count: u32,
}

impl Ids {
    fn parse(map: &str) -> Self {
        let range = |line: &str| {
            let mut numbers = line.split_ascii_whitespace().map(str::parse);
            let mut next = || numbers.next()?.ok();
            Some(Range {
                inside: next()?,
                outside: next()?,
                count: next()?,
            })
        };
        Self(map.lines().filter_map(range).collect())
    }

    /// Returns the machine's ID for a user or group on the host.
    fn inside(&self, outside: u32) -> u32 {
        let mut ranges = self.0.iter();
        let found = ranges.find_map(|range| {
            let step = outside.checked_sub(range.outside)?;
            (step < range.count).then(|| range.inside.checked_add(step))?
        });
        found.unwrap_or(NOBODY)
    }
}

#[cfg(test)]
mod tests;
