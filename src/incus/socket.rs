//! Locates the daemon's socket by the rules of the `incus` program.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use rustix::fs::Access;

/// The daemon's folder in Debian's and most packages.
const STATE: &str = "/var/lib/incus";
/// The socket in newer packages.
const RUN: &str = "/run/incus";

/// The socket to use: `INCUS_SOCKET`, then `INCUS_DIR`, then the usual folders; in a folder, the socket of
/// `incus-user` where the daemon's own may not be used.
pub(crate) fn socket_path(variable: impl Fn(&str) -> Option<OsString>) -> PathBuf {
    let set = |name| variable(name).filter(|value| !value.is_empty());
    if let Some(socket) = set("INCUS_SOCKET") {
        return socket.into();
    }
    let folder = set("INCUS_DIR").map_or_else(usual_folder, PathBuf::from);
    let own = folder.join("unix.socket");
    let shared = folder.join("unix.socket.user");
    if !writable(&own) && writable(&shared) {
        return shared;
    }
    own
}

fn usual_folder() -> PathBuf {
    let run = Path::new(RUN);
    if run.join("unix.socket").symlink_metadata().is_ok() {
        run.to_owned()
    } else {
        STATE.into()
    }
}

fn writable(path: &Path) -> bool {
    rustix::fs::access(path, Access::WRITE_OK).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(variables: &[(&str, &str)]) -> PathBuf {
        socket_path(|asked| {
            variables
                .iter()
                .find(|(name, _)| *name == asked)
                .map(|(_, value)| value.into())
        })
    }

    #[test]
    fn the_environment_decides_as_it_does_for_the_incus_program() {
        assert_eq!(
            with(&[("INCUS_SOCKET", "/a/b"), ("INCUS_DIR", "/c")]),
            Path::new("/a/b")
        );
        assert_eq!(
            with(&[("INCUS_SOCKET", ""), ("INCUS_DIR", "/c")]),
            Path::new("/c/unix.socket")
        );
    }

    #[test]
    fn the_socket_for_plain_users_is_taken_where_the_daemons_own_is_not_there() {
        let folder = tempfile::tempdir().unwrap();
        let shared = folder.path().join("unix.socket.user");
        std::fs::write(&shared, "").unwrap();
        let set = folder.path().to_str().unwrap();
        assert_eq!(with(&[("INCUS_DIR", set)]), shared);
        std::fs::write(folder.path().join("unix.socket"), "").unwrap();
        assert_eq!(
            with(&[("INCUS_DIR", set)]),
            folder.path().join("unix.socket")
        );
    }
}
