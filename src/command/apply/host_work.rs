//! What is changed on the host itself: folders and left-over sockets. Follows no symbolic link.

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, FileTypeExt as _};
use std::path::Path;

use rustix::fs::{Mode, OFlags, fchmod, fchown, mkdirat, open, openat};
use rustix::io::Errno;
use rustix::process::{Gid, Uid};

use super::host;

/// Rights of a folder that leads to shared ones: a program that a machine's root leaves there with the rights of
/// its owner must not be within reach of the host's users.
const CLOSED: u32 = 0o700;

/// Makes a folder, or gives it root as its owner and these rights.
pub(super) fn make_folder(path: &str, mode: u32) -> io::Result<()> {
    let path = Path::new(path);
    if !host::is_own(path) {
        let parent = path.parent().unwrap_or(Path::new("/"));
        fs::DirBuilder::new()
            .recursive(true)
            .mode(CLOSED)
            .create(parent)?;
    }
    let parts = (path.parent(), path.file_name());
    let (Some(parent), Some(name)) = parts else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let folder = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let parent = open(parent, folder, Mode::empty())?;
    let rights = Mode::from_raw_mode(mode);
    let there = match mkdirat(&parent, name, rights) {
        Ok(()) => false,
        Err(Errno::EXIST) => true,
        Err(why) => return Err(why.into()),
    };
    // What is held is what is changed: a machine that has the folder above could put a link in its place meanwhile.
    let held = openat(&parent, name, folder | OFlags::NOFOLLOW, Mode::empty())?;
    if there {
        fchown(&held, Some(Uid::ROOT), Some(Gid::ROOT))?;
    }
    // The umask does not count here.
    Ok(fchmod(&held, rights)?)
}

/// Removes a socket; what is not there is removed, what is no socket stays.
pub(super) fn remove_socket(path: &str) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Ok(is) if is.file_type().is_socket() => match fs::remove_file(path) {
            Err(why) if why.kind() != io::ErrorKind::NotFound => Err(why),
            _ => Ok(()),
        },
        Ok(_) => Err(io::Error::other("it is not a socket")),
        Err(why) if why.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(why) => Err(why),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn folders_are_made_with_closed_parents_and_sockets_alone_are_removed() {
        let root = tempfile::tempdir().unwrap();
        let leaf = root.path().join("a/b");
        make_folder(leaf.to_str().unwrap(), 0o755).unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o7777;
        assert_eq!(mode(&leaf), 0o755);
        assert_eq!(mode(&root.path().join("a")), CLOSED);
        let link = root.path().join("link");
        std::os::unix::fs::symlink(&leaf, &link).unwrap();
        assert!(make_folder(link.to_str().unwrap(), 0o700).is_err());
        assert_eq!(mode(&leaf), 0o755);

        let socket = root.path().join("s.sock");
        let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        remove_socket(socket.to_str().unwrap()).unwrap();
        assert!(!socket.exists());
        remove_socket(socket.to_str().unwrap()).unwrap();
        fs::write(&socket, "precious").unwrap();
        assert!(remove_socket(socket.to_str().unwrap()).is_err());
        assert!(socket.exists());
    }
}
