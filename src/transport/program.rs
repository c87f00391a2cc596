//! Finds host programs, such as `incus`, for root to run: no other user may control them. Formats commands for users.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use rustix::process::geteuid;
use tokio::process::Command;

use crate::dir::{OTHERS_WRITE, STICKY};
use crate::incus::MachineRef;
use crate::machine_state::PROGRAM;

/// The server's arguments.
pub(super) const SERVE: [&str; 2] = ["mcp", "serve"];
/// The environment that makes `incus` talk to the local daemon even if the user's configuration prefers another one;
/// `--force-local` does not do that.
pub(crate) const LOCAL_REMOTE: (&str, &str) = ("INCUS_REMOTE", "local");
/// Variables that a program inherits, such as the user, Incus's location, and proxies; no others, such as a library
/// to preload.
const INHERITED: [&str; 17] = [
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
/// Search path for programs.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Mode bits that let any user run a file.
const RUN: u32 = 0o111;

/// Returns the `incus` program, set up for the local daemon.
pub(crate) fn incus() -> io::Result<Command> {
    let mut command = program("incus")?;
    command.env(LOCAL_REMOTE.0, LOCAL_REMOTE.1);
    Ok(command)
}

/// Returns a program on the host, with a clean environment.
/// Fails with `NotFound` if it is not on the `PATH`, and with `PermissionDenied` if other users can change it.
pub(crate) fn program(name: &str) -> io::Result<Command> {
    let path = find(name, &std::env::var_os("PATH").unwrap_or_default())?;
    let mut command = Command::new(path);
    command.env_clear().env("PATH", PATH);
    let set = |name: &'static str| Some((name, std::env::var_os(name)?));
    command.envs(INHERITED.into_iter().filter_map(set));
    Ok(command)
}

/// Finds the first program on the path that no other user can change.
fn find(name: &str, path: &OsStr) -> io::Result<PathBuf> {
    let folders = std::env::split_paths(path).filter(|folder| folder.is_absolute());
    let mut changeable = None;
    for program in folders.map(|folder| folder.join(name)) {
        // Both ends of a link are checked.
        let Ok(target) = fs::canonicalize(&program) else {
            continue;
        };
        if !fs::metadata(&target).is_ok_and(|is| is.is_file() && is.mode() & RUN != 0) {
            continue;
        }
        let folder = program.parent().and_then(|it| fs::canonicalize(it).ok());
        if folder.is_some_and(|folder| is_ours_alone(&folder)) && is_ours_alone(&target) {
            return Ok(target);
        }
        changeable.get_or_insert(program);
    }
    Err(changeable.map_or_else(
        || io::ErrorKind::NotFound.into(),
        |program| {
            let text = format!(
                "users other than root can change `{}`",
                program.display().to_string().escape_debug()
            );
            io::Error::new(io::ErrorKind::PermissionDenied, text)
        },
    ))
}

/// Returns whether only root and this user control a path without links.
fn is_ours_alone(path: &Path) -> bool {
    path.ancestors().all(|part| {
        fs::symlink_metadata(part).is_ok_and(|is| {
            let trusted = is.uid() == 0 || is.uid() == geteuid().as_raw();
            // In a folder such as /tmp, users cannot change each other's files.
            let sticky = is.is_dir() && part != path && is.mode() & STICKY != 0;
            trusted && (is.mode() & OTHERS_WRITE == 0 || sticky)
        })
    })
}

/// Returns the `incus` arguments that start the server in a machine.
///
/// `-T`: no terminal, even if stdin is one. `--force-local`: no stderr greeting and no new configuration on first use.
pub(crate) fn incus_exec(machine: &MachineRef) -> Vec<String> {
    let target = ["exec", &machine.name, "--project", &machine.project];
    let server = ["-T", "--force-local", "--", PROGRAM];
    let argv = target.into_iter().chain(server).chain(SERVE);
    argv.map(str::to_owned).collect()
}

/// Returns the path of this program, for a command that a user can type.
pub(crate) fn this_program() -> PathBuf {
    std::env::current_exe()
        .ok()
        // A program that was replaced while running has an outdated path.
        .filter(|path| path.exists())
        .unwrap_or_else(|| "anklume".into())
}

/// Returns a command that runs this program again, even if its file was replaced.
pub(crate) fn this_program_again() -> Command {
    Command::new("/proc/self/exe")
}

/// Quotes arguments as a single shell command.
pub(crate) fn shell_line<S: AsRef<OsStr>>(argv: impl IntoIterator<Item = S>) -> String {
    let quote = |arg: S| {
        let arg = arg.as_ref().to_string_lossy();
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_./:=@%+,".contains(&byte);
        if !arg.is_empty() && arg.bytes().all(plain) {
            return arg.into_owned();
        }
        format!("'{}'", arg.replace('\'', r"'\''"))
    };
    argv.into_iter().map(quote).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt as _, symlink};

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
                .starts_with("users other than root can change `")
        );
        assert_eq!(
            found(&[Path::new("shut")]).unwrap_err().kind(),
            io::ErrorKind::NotFound
        );
        // A program that others can write to, and link targets.
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
        // A file that is not executable is not a program.
        mode(&good, 0o644);
        assert_eq!(found(&[&shut]).unwrap_err().kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn a_line_is_quoted_where_a_shell_would_see_something_else() {
        let words = ["a-b", "", "it's", "$x", "a b", "~"];
        assert_eq!(shell_line(words), r"a-b '' 'it'\''s' '$x' 'a b' '~'");
    }

    #[test]
    fn the_command_of_the_documentation_is_what_runs() {
        let machine = MachineRef {
            name: "vault-signer".to_owned(),
            project: "vault".to_owned(),
            status: String::new(),
        };
        assert_eq!(
            shell_line(incus_exec(&machine)),
            "exec vault-signer --project vault -T --force-local -- /opt/anklume/anklume mcp serve"
        );
    }
}
