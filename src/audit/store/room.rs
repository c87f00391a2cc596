//! Room on the disk for the lines of calls that run, made sure of before they do.

use std::fs::File;
use std::io;

use rustix::fs::{FallocateFlags, StatVfs, fallocate, fstatvfs};
use rustix::io::Errno;

/// Room that is promised to a call, in bytes: more than its line ever takes.
pub(super) const LINE_ROOM: u64 = 4 * 1024;
/// Room beyond what is promised, in bytes, so that it is not asked for at every call.
const AHEAD: u64 = 1024 * 1024;

/// Makes sure of so many bytes, and some more, behind the end of a file; gives up to where it reaches.
///
/// # Errors
///
/// The disk is full.
pub(super) fn make(file: &File, end: u64, promised: u64) -> io::Result<u64> {
    let bytes = promised.saturating_add(AHEAD);
    // Blocks of the file beyond its end: its length stays, nobody else can take them.
    match fallocate(file, FallocateFlags::KEEP_SIZE, end, bytes) {
        Ok(()) => {}
        // A file system that cannot give blocks ahead says at least how many are free.
        Err(Errno::OPNOTSUPP | Errno::NOSYS) if has(&fstatvfs(file)?, bytes) => {}
        Err(Errno::OPNOTSUPP | Errno::NOSYS) => return Err(Errno::NOSPC.into()),
        Err(source) => return Err(source.into()),
    }
    Ok(end.saturating_add(bytes))
}

/// Returns whether so many bytes are free. A file system that tells of no blocks at all has no size to fill.
const fn has(disk: &StatVfs, bytes: u64) -> bool {
    disk.f_blocks == 0 || disk.f_bavail.saturating_mul(disk.f_frsize) >= bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_without_blocks_ahead_is_full_when_it_has_less_than_is_promised() {
        let folder = File::open("/").unwrap();
        let disk = |blocks, free| StatVfs {
            f_blocks: blocks,
            f_bavail: free,
            f_frsize: 512,
            ..fstatvfs(&folder).unwrap()
        };
        assert!(has(&disk(100, 8), 4096));
        assert!(!has(&disk(100, 7), 4096));
        assert!(has(&disk(0, 0), 4096));
    }
}
