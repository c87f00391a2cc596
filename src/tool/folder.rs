//! Makes the folders that tools work in, where nobody else can have a hand in it.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Component, Path};

use rustix::fs::{CWD, Mode, OFlags, Stat, fchmod, fstat, mkdirat, openat};
use rustix::io::Errno;
use rustix::process::geteuid;

/// Flags to open a folder and go on from it.
const STEP: OFlags = OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);
/// All permission bits.
const MODE: u32 = 0o7777;
/// Permission bits that let others write.
const OTHERS_WRITE: u32 = 0o022;
/// Only the owner of an entry may rename or remove it.
const STICKY: u32 = 0o1000;

/// Makes a folder and what is missing above it (0755); nothing when it is there.
///
/// # Errors
///
/// The system's, and `PermissionDenied` when the first folder above that exists can be written to by other users.
pub(super) fn make(path: &Path, mode: Mode) -> io::Result<()> {
    let path = std::path::absolute(path)?;
    let missing = |folder: &&Path| matches!(folder.symlink_metadata(), Err(error) if error.kind() == io::ErrorKind::NotFound);
    let mut names: Vec<&OsStr> = Vec::new();
    let mut there = path.as_path();
    while missing(&there) {
        let (Some(Component::Normal(name)), Some(parent)) =
            (there.components().next_back(), there.parent())
        else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        names.push(name);
        there = parent;
    }
    if names.is_empty() {
        return Ok(());
    }
    let mut folder = openat(CWD, there, STEP, Mode::empty())?;
    if !ours_alone(&fstat(&folder)?) {
        return Err(io::ErrorKind::PermissionDenied.into());
    }
    while let Some(name) = names.pop() {
        let mode = if names.is_empty() {
            mode
        } else {
            Mode::from_raw_mode(0o755)
        };
        folder = enter(&folder, name, mode)?;
    }
    Ok(())
}

/// Makes one folder, unless somebody was faster, and opens it; never through a symbolic link.
fn enter(parent: &OwnedFd, name: &OsStr, mode: Mode) -> io::Result<OwnedFd> {
    match mkdirat(parent, name, mode) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(refused) => return Err(refused.into()),
    }
    let folder = openat(parent, name, STEP | OFlags::NOFOLLOW, Mode::empty())?;
    if ours_alone(&fstat(&folder)?) {
        Ok(folder)
    } else {
        Err(io::ErrorKind::PermissionDenied.into())
    }
}

/// Gives a file these permissions, where it has others.
pub(super) fn permit(file: &impl AsFd, mode: Mode) -> Result<(), Errno> {
    if Mode::from_raw_mode(fstat(file)?.st_mode & MODE) == mode {
        return Ok(());
    }
    fchmod(file, mode)
}

/// Nobody but us and root decides what a name in this folder leads to.
fn ours_alone(folder: &Stat) -> bool {
    let trusted = folder.st_uid == 0 || folder.st_uid == geteuid().as_raw();
    trusted && (folder.st_mode & OTHERS_WRITE == 0 || folder.st_mode & STICKY != 0)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt as _, chown};

    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::symlink_metadata(path).unwrap().permissions().mode() & 0o7777
    }

    #[test]
    fn missing_folders_are_made_and_existing_ones_left() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("a/b/c");
        make(&path, Mode::from_raw_mode(0o700)).unwrap();
        assert_eq!(mode(&path), 0o700);
        assert_eq!(mode(&root.path().join("a")), 0o755);
        make(&path, Mode::from_raw_mode(0o755)).unwrap();
        assert_eq!(mode(&path), 0o700);
    }

    #[test]
    fn nothing_is_made_where_others_can_write() {
        let root = tempfile::tempdir().unwrap();
        let open = root.path().join("open");
        fs::create_dir(&open).unwrap();
        fs::set_permissions(&open, fs::Permissions::from_mode(0o777)).unwrap();
        let refused = make(&open.join("x"), Mode::RWXU).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::PermissionDenied);
        assert!(!open.join("x").exists());
        // As in /tmp: nobody can exchange what we make.
        fs::set_permissions(&open, fs::Permissions::from_mode(0o1777)).unwrap();
        make(&open.join("x"), Mode::RWXU).unwrap();
        if crate::tool::testing::is_root() {
            let theirs = root.path().join("theirs");
            fs::create_dir(&theirs).unwrap();
            chown(&theirs, Some(12_345), None).unwrap();
            make(&theirs.join("x"), Mode::RWXU).unwrap_err();
            assert!(!theirs.join("x").exists());
        }
    }

    #[test]
    fn a_dangling_link_is_not_followed() {
        let root = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink(root.path().join("target"), root.path().join("link")).unwrap();
        make(&root.path().join("link/x"), Mode::RWXU).unwrap_err();
        assert!(!root.path().join("target").exists());
    }
}
