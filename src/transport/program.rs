//! Programs of the host that root runs, such as `incus`: which ones, and with what. Nobody else may have a hand in them.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use rustix::process::geteuid;
use tokio::process::Command;

use super::command::LOCAL_REMOTE;

/// What one finds of the environment: who asks, where Incus is, and the way to servers of images. Whatever else is set, such as a
/// library to be loaded, is not for a program of root's.
const KEPT: [&str; 17] = [
    "HOME",
    "USER",
    "LOGNAME",
    "LANG",
    "LC_ALL",
    "TERM",
    "TMPDIR",
    "XDG_CONFIG_HOME",
    "INCUS_CONF",
    "INCUS_DIR",
    "INCUS_SOCKET",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "NO_PROXY",
    "http_proxy",
    "https_proxy",
    "no_proxy",
];
/// Its search path for programs.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Mode bits that let others change something.
const OTHERS_WRITE: u32 = 0o022;
/// What is in a folder may be renamed by its owner alone.
const STICKY: u32 = 0o1000;
/// Some user may run it.
const RUN: u32 = 0o111;

/// The `incus` program, which talks to the daemon of this computer.
///
/// # Errors
///
/// As [`program`].
pub(crate) fn incus() -> io::Result<Command> {
    let mut command = program("incus")?;
    command.env(LOCAL_REMOTE.0, LOCAL_REMOTE.1);
    Ok(command)
}

/// A program of the host, in a clean environment.
///
/// # Errors
///
/// `NotFound`: there is none on the `PATH`; `PermissionDenied`: others than root, and the user who asks, can change it.
pub(crate) fn program(name: &str) -> io::Result<Command> {
    let path = find(name, &std::env::var_os("PATH").unwrap_or_default())?;
    let mut command = Command::new(path);
    command.env_clear().env("PATH", PATH);
    let set = |name: &'static str| Some((name, std::env::var_os(name)?));
    command.envs(KEPT.into_iter().filter_map(set));
    Ok(command)
}

/// The first one on the path that nobody else can change.
fn find(name: &str, path: &OsStr) -> io::Result<PathBuf> {
    let folders = std::env::split_paths(path).filter(|folder| folder.is_absolute());
    let mut changeable = None;
    for program in folders.map(|folder| folder.join(name)) {
        // Both of a link: what is in the folder, and what it leads to.
        let Ok(there) = fs::canonicalize(&program) else {
            continue;
        };
        if !fs::metadata(&there).is_ok_and(|is| is.is_file() && is.mode() & RUN != 0) {
            continue;
        }
        let folder = program.parent().and_then(|it| fs::canonicalize(it).ok());
        let ours = folder.is_some_and(|folder| is_ours_alone(&folder)) && is_ours_alone(&there);
        if ours {
            return Ok(there);
        }
        changeable.get_or_insert(program);
    }
    Err(changeable.map_or_else(
        || io::ErrorKind::NotFound.into(),
        |program| {
            let text = format!(
                "`{}` can be changed by others than root",
                program.display().to_string().escape_debug()
            );
            io::Error::new(io::ErrorKind::PermissionDenied, text)
        },
    ))
}

/// Returns whether root and we alone decide what a path without links leads to.
fn is_ours_alone(path: &Path) -> bool {
    path.ancestors().all(|part| {
        let Ok(is) = fs::symlink_metadata(part) else {
            return false;
        };
        let trusted = is.uid() == 0 || is.uid() == geteuid().as_raw();
        let mode = is.permissions().mode();
        // In a folder such as /tmp everybody has their own.
        let closed = mode & OTHERS_WRITE == 0 || is.is_dir() && part != path && mode & STICKY != 0;
        trusted && closed
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn mode(path: &Path, mode: u32) {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }

    fn program(folder: &Path, name: &str) -> PathBuf {
        fs::create_dir_all(folder).unwrap();
        let path = folder.join(name);
        fs::write(&path, "").unwrap();
        mode(&path, 0o755);
        path
    }

    #[test]
    fn only_a_program_that_nobody_else_can_change_is_started() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path().canonicalize().unwrap();
        mode(&root, 0o755);
        let (open, shut) = (root.join("open"), root.join("shut"));
        let good = program(&shut, "incus");
        program(&open, "incus");
        mode(&open, 0o777);
        let found = |folders: &[&Path]| find("incus", &std::env::join_paths(folders).unwrap());
        assert_eq!(found(&[&shut]).unwrap(), good);
        assert_eq!(found(&[&open, &shut]).unwrap(), good);
        let refused = found(&[&open]).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::PermissionDenied);
        assert!(
            refused
                .to_string()
                .ends_with("can be changed by others than root")
        );
        assert_eq!(
            found(&[Path::new("shut")]).unwrap_err().kind(),
            io::ErrorKind::NotFound
        );
        // What others may write, and what a link leads to.
        mode(&good, 0o775);
        assert!(found(&[&shut]).is_err());
        mode(&good, 0o755);
        let links = root.join("links");
        fs::create_dir(&links).unwrap();
        symlink(&good, links.join("incus")).unwrap();
        assert_eq!(found(&[&links]).unwrap(), good);
        fs::remove_file(links.join("incus")).unwrap();
        symlink(open.join("incus"), links.join("incus")).unwrap();
        assert!(found(&[&links]).is_err());
        // What is no program is none.
        mode(&good, 0o644);
        assert_eq!(found(&[&shut]).unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
