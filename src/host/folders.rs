//! Makes folders and removes left-over sockets on the host. Follows no symbolic link.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileTypeExt as _;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, fchmod, fchown, mkdirat, open, openat, statat};
use rustix::io::Errno;
use rustix::process::{Gid, Uid};

use crate::edge::HOST_FOLDER;

/// anklume's folders on the host, from the top.
pub(crate) const FOLDERS: [&str; 2] = ["/var/lib/anklume", HOST_FOLDER];
/// Rights of a folder that leads to shared ones: a program that a machine's root leaves there with the rights of
/// its owner must not be within reach of the host's users.
const CLOSED: u32 = 0o700;
/// Flags to open a folder.
const FOLDER: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::CLOEXEC);

/// Makes a folder and what is missing above it, or gives the one that is there root as its owner and these rights. A machine that has
/// one of the folders above could put a link into it, so that none is followed.
pub(crate) fn make_folder(path: &str, mode: u32) -> io::Result<()> {
    let path = Path::new(path);
    let names = names(path).filter(|names| !names.is_empty());
    let Some((last, above)) = names.as_deref().and_then(<[_]>::split_last) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let mut folder = open("/", FOLDER, Mode::empty())?;
    let mut at = PathBuf::from("/");
    for name in above {
        at.push(name);
        folder = match enter(&folder, name, &at) {
            // What leads to anklume's own folders is the system's.
            Err(why) if why.kind() == io::ErrorKind::NotFound && !is_own(path) => {
                make(&folder, name, CLOSED)?;
                enter(&folder, name, &at)?
            }
            entered => entered?,
        };
    }
    let there = !make(&folder, last, mode)?;
    // What is held is what is changed, whatever comes in its place meanwhile.
    let held = enter(&folder, last, path)?;
    if there {
        fchown(&held, Some(Uid::ROOT), Some(Gid::ROOT))?;
    }
    // The umask does not count here.
    Ok(fchmod(&held, Mode::from_raw_mode(mode))?)
}

/// The names on the way to a path from `/`. Without links, `..` is what it looks like.
fn names(path: &Path) -> Option<Vec<&OsStr>> {
    let mut names = Vec::new();
    let mut parts = path.components();
    if parts.next() != Some(Component::RootDir) {
        return None;
    }
    for part in parts {
        match part {
            Component::Normal(name) => names.push(name),
            Component::ParentDir => drop(names.pop()),
            _ => {}
        }
    }
    Some(names)
}

/// Makes a folder; false when something of that name is there.
fn make(parent: &OwnedFd, name: &OsStr, mode: u32) -> io::Result<bool> {
    match mkdirat(parent, name, Mode::from_raw_mode(mode)) {
        Ok(()) => Ok(true),
        Err(Errno::EXIST) => Ok(false),
        Err(why) => Err(why.into()),
    }
}

/// Opens a folder in a folder; `path` is what messages call it.
fn enter(parent: &OwnedFd, name: &OsStr, path: &Path) -> io::Result<OwnedFd> {
    let is_link = || {
        let found = statat(parent, name, AtFlags::SYMLINK_NOFOLLOW);
        found.is_ok_and(|is| FileType::from_raw_mode(is.st_mode) == FileType::Symlink)
    };
    match openat(parent, name, FOLDER | OFlags::NOFOLLOW, Mode::empty()) {
        Ok(folder) => Ok(folder),
        Err(_) if is_link() => Err(io::Error::other(format!(
            "`{}` is a symbolic link, and no folder is made through one: declare where it leads",
            path.display().to_string().escape_debug()
        ))),
        Err(why) => Err(why.into()),
    }
}

/// Removes a socket; what is not there is removed, what is no socket stays.
pub(crate) fn remove_socket(path: &str) -> io::Result<()> {
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

/// Returns whether a path is one of anklume's own folders.
fn is_own(path: &Path) -> bool {
    FOLDERS.iter().any(|own| Path::new(own) == path)
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
        // Nor through a link above it, and `..` goes where it says.
        let above = root.path().join("above");
        std::os::unix::fs::symlink(root.path().join("a"), &above).unwrap();
        let refused = make_folder(above.join("c").to_str().unwrap(), 0o700).unwrap_err();
        assert!(
            refused.to_string().contains("above` is a symbolic link"),
            "{refused}"
        );
        assert!(!root.path().join("a/c").exists());
        make_folder(root.path().join("x/../a/c").to_str().unwrap(), 0o700).unwrap();
        assert!(root.path().join("a/c").is_dir() && !root.path().join("x").exists());

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
