//! Creates folders and removes leftover sockets on the host. Follows no symbolic links.

use std::fs;
use std::io;
use std::os::unix::fs::FileTypeExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, fchown};
use rustix::io::Errno;
use rustix::process::{Gid, Uid};

use super::missing_is_removed;
use crate::dir::{BENEATH, Dir, READ, permit};
use crate::edge::HOST_FOLDER;

/// anklume's folders on the host, from the top down.
pub(crate) const FOLDERS: [&str; 2] = ["/var/lib/anklume", HOST_FOLDER];
/// Mode of a folder above shared ones: a set-user-ID program that a machine's root leaves there must be out of
/// reach of the host's users.
const CLOSED: u32 = 0o700;

/// Creates a folder with this mode, and any missing parents. If it exists, sets its mode and makes root its owner.
/// Follows no links, because a machine that can write to a folder above could put one there.
pub(crate) fn make_folder(path: &str, mode: u32) -> io::Result<()> {
    let names = names(path).ok_or(io::ErrorKind::InvalidInput)?;
    let (last, above) = names.split_last().ok_or(io::ErrorKind::InvalidInput)?;
    let path = Path::new(path);
    let is_own = FOLDERS.iter().any(|own| Path::new(own) == path);
    let mut at = PathBuf::from("/");
    let mut folder = Dir::open(&at, READ, BENEATH)?;
    for name in above {
        at.push(name);
        folder = match enter(&folder, name, &at) {
            // The folders above anklume's own belong to the system.
            Err(why) if why.kind() == io::ErrorKind::NotFound && !is_own => {
                folder.make_dir(name, CLOSED)?;
                enter(&folder, name, &at)?
            }
            entered => entered?,
        };
    }
    let is_new = folder.make_dir(last, mode)?;
    // Changed through its descriptor, because another folder may have replaced it meanwhile.
    let opened = enter(&folder, last, path)?;
    if !is_new {
        fchown(&opened, Some(Uid::ROOT), Some(Gid::ROOT))?;
    }
    // Set explicitly, regardless of the umask.
    Ok(permit(&opened, Mode::from_raw_mode(mode))?)
}

/// Splits a path into its names from `/`; `None` for a relative path. Without links, `..` removes the name before it.
fn names(path: &str) -> Option<Vec<&str>> {
    let mut names = Vec::new();
    for name in path.strip_prefix('/')?.split('/') {
        match name {
            "" | "." => {}
            ".." => drop(names.pop()),
            name => names.push(name),
        }
    }
    Some(names)
}

/// Opens a folder in another one; error messages call it `path`.
fn enter(parent: &Dir, name: &str, path: &Path) -> io::Result<Dir> {
    parent.dir(name).map_err(|why| match why {
        Errno::LOOP => io::Error::other(format!(
            "`{}` is a symbolic link, and anklume does not create folders through links: declare its target",
            path.display().to_string().escape_debug()
        )),
        why => why.into(),
    })
}

/// Removes a socket and nothing else; a missing one is not an error.
pub(crate) fn remove_socket(path: &str) -> io::Result<()> {
    missing_is_removed(fs::symlink_metadata(path).and_then(|is| {
        if is.file_type().is_socket() {
            fs::remove_file(path)
        } else {
            Err(io::Error::other("it is not a socket"))
        }
    }))
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
        // A link above the folder is refused too, and `..` only removes the name before it.
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
