//! Explains why a server is unreachable, and how to fix it.

use std::io;
use std::os::unix::fs::FileTypeExt as _;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::Duration;

use super::Socket;
use super::program::{shell_line, this_program};
use crate::incus::{FindError, IncusError, MachineRef};
use crate::machine_state::PROGRAM;
use crate::name::closest;
use crate::text::{Foreign, listed};

/// Maximum length of a Unix socket path, in bytes (`sun_path` without its final zero).
const PATH_MAX: usize = 107;

/// Help for a provider that is not serving.
const ASK_PROVIDER: &str = "the provider is stopped or its server is not running: ask the operator";

/// Help for a socket, or a folder of sockets, of another user.
const ONE_USER: &str =
    "only one user may use it: the `mcp: {uid: …}` of this machine in infra.yml, by default root";

/// The reason why a server is unreachable.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Unreachable {
    #[error(transparent)]
    Incus(#[from] IncusError),
    #[error(transparent)]
    Find(#[from] FindError),
    #[error("machine `{}` is {}", .0.name, .0.status.to_lowercase().escape_debug())]
    NotRunning(MachineRef),
    #[error("the `incus` program is not on this computer's PATH")]
    NoIncusProgram,
    #[error("`{0}` could not be started: {1}")]
    NotStarted(&'static str, #[source] io::Error),
    #[error("`{PROGRAM}` does not exist in machine `{}`", .0.name)]
    NoBinary(MachineRef),
    #[error("`{PROGRAM}` in machine `{}` is not executable", .0.name)]
    NotExecutable(MachineRef),
    #[error("`{PROGRAM}` exists in machine `{}` but cannot run there{}", machine.name, quoted(last_lines))]
    NotRunnable {
        machine: MachineRef,
        /// Its stderr.
        last_lines: Vec<Foreign>,
    },
    #[error("{} `{}`", socket_fault(&socket.path, why), socket.path.display().to_string().escape_debug())]
    Socket {
        socket: Socket,
        /// The names of the sockets next to it, or the reason why they are not known.
        available: io::Result<Vec<String>>,
        #[source]
        why: io::Error,
    },
    #[error("cannot read `{}`: {why}", folder.display().to_string().escape_debug())]
    SocketFolder {
        folder: PathBuf,
        #[source]
        why: io::Error,
    },
    #[error("no server is listening on the socket: the connection was closed without an answer")]
    Gone,
    #[error("the server {}{}", ending(*status), quoted(last_lines))]
    Died {
        /// Its exit status; `None` if it did not end in time.
        status: Option<ExitStatus>,
        last_lines: Vec<Foreign>,
    },
    #[error("no answer within {} s{}", waited.as_secs_f64(), quoted(last_lines))]
    Silent {
        waited: Duration,
        last_lines: Vec<Foreign>,
    },
}

fn socket_fault(path: &Path, why: &io::Error) -> String {
    match why.kind() {
        io::ErrorKind::InvalidInput if is_too_long(path) => {
            format!("this socket path is longer than {PATH_MAX} bytes:")
        }
        // The kernel reports the same error for a non-socket file as for a socket without a listener.
        io::ErrorKind::ConnectionRefused if !is_socket(path) => {
            "this file is not a socket:".to_owned()
        }
        io::ErrorKind::NotFound => "no socket exists at".to_owned(),
        io::ErrorKind::ConnectionRefused => "no server is listening on socket".to_owned(),
        io::ErrorKind::PermissionDenied => "no permission to use socket".to_owned(),
        _ => format!("{why}: socket"),
    }
}

fn is_too_long(path: &Path) -> bool {
    path.as_os_str().len() > PATH_MAX
}

fn is_socket(path: &Path) -> bool {
    // A file that cannot be examined may be a socket.
    std::fs::metadata(path).map_or(true, |it| it.file_type().is_socket())
}

fn ending(status: Option<ExitStatus>) -> String {
    use std::os::unix::process::ExitStatusExt as _;
    match status.map(|status| (status.code(), status.signal())) {
        None => "closed its stdout but did not end".to_owned(),
        Some((Some(code), _)) => format!("ended without an answer (exit code {code})"),
        Some((None, Some(signal))) => format!("was killed by signal {signal}"),
        Some((None, None)) => "ended without an answer".to_owned(),
    }
}

/// Quotes the last output on separate lines, so that it cannot be mistaken for our own.
fn quoted(last_lines: &[Foreign]) -> String {
    if last_lines.is_empty() {
        return String::new();
    }
    let lines = last_lines
        .iter()
        .map(|line| format!("\n  | {}", line.escaped()));
    format!("; its last output:{}", lines.collect::<String>())
}

impl Unreachable {
    /// Returns the next step for the user.
    pub(crate) fn help(&self) -> Option<String> {
        match self {
            Self::Incus(fault) => incus_help(fault),
            Self::Find(fault) => Some(find_help(fault)),
            Self::NotRunning(machine) => Some(wake(machine)),
            Self::NoIncusProgram => {
                Some("install the Incus client (Debian: `apt install incus-client`)".to_owned())
            }
            Self::NoBinary(machine) | Self::NotRunnable { machine, .. } => {
                Some(format!("install this program there: {}", push(machine)))
            }
            Self::NotExecutable(machine) => {
                let chmod = ["--", "chmod", "0755", PROGRAM];
                Some(incus_command(machine, &["exec", &machine.name], &chmod))
            }
            Self::Socket {
                socket,
                available,
                why,
            } => Some(socket_help(socket, available, why)),
            Self::SocketFolder { why, .. } if why.kind() == io::ErrorKind::PermissionDenied => {
                Some(ONE_USER.to_owned())
            }
            Self::SocketFolder { .. } => Some(
                "`ANKLUME_SOCKET_DIR` names the folder of the providers' sockets; without it, that is `/srv/anklume/mcp`"
                    .to_owned(),
            ),
            Self::Gone => Some(ASK_PROVIDER.to_owned()),
            Self::Silent { .. } => Some("wait longer with `--timeout SECONDS`".to_owned()),
            Self::NotStarted(..) | Self::Died { .. } => None,
        }
    }
}

fn incus_help(fault: &IncusError) -> Option<String> {
    let text = match fault {
        IncusError::NoSocket(_) => {
            "start Incus, or install it (Debian: `apt install incus`); `anklume mcp list` without `-i` asks this computer's own server"
        }
        IncusError::NotListening(_) => "start Incus: `systemctl start incus.service`",
        IncusError::NoPermission(_) => {
            "run this as root or as a member of the group `incus-admin` (its members are root on this computer)"
        }
        IncusError::Silent(..) => {
            "check Incus with `incus info`, or wait longer with `--timeout SECONDS`"
        }
        IncusError::Connection(_)
        | IncusError::NotHttp(_)
        | IncusError::Closed(_)
        | IncusError::TooLarge
        | IncusError::Answer { .. }
        | IncusError::Failed(_)
        | IncusError::Slow(_)
        | IncusError::Altered(_)
        | IncusError::NotUp(_)
        | IncusError::Refused { .. } => return None,
    };
    Some(text.to_owned())
}

fn find_help(fault: &FindError) -> String {
    match fault {
        FindError::NoMachine {
            closest: Some(near),
            ..
        } => format!(
            "did you mean `{}` (project `{}`)? `incus list --all-projects` shows all",
            near.name.escape_debug(),
            near.project.escape_debug()
        ),
        FindError::NoMachine { .. } => "`incus list --all-projects` shows all machines".to_owned(),
        FindError::NoProject { name, known } => {
            let known_names = known.iter().map(String::as_str);
            match closest(name, known_names) {
                Some(near) => format!("did you mean `{}`?", near.escape_debug()),
                None => format!("available: {}", known.join(", ").escape_debug()),
            }
        }
        FindError::Several { projects, .. } => {
            let flags: Vec<String> = projects
                .iter()
                .map(|project| format!("`{}`", shell_line(["--project", project])))
                .collect();
            format!("choose one: {}", flags.join(" or "))
        }
    }
}

/// Returns a command for a machine's project, in backticks.
fn incus_command(machine: &MachineRef, verb: &[&str], rest: &[&str]) -> String {
    let project = ["--project", &machine.project];
    let argv = [&["incus"], verb, &project, rest].concat();
    format!("`{}`", shell_line(argv))
}

/// Returns the command that starts or resumes a machine, or shows its state.
fn wake(machine: &MachineRef) -> String {
    let command = |verb| incus_command(machine, &[verb, &machine.name], &[]);
    match machine.status.as_str() {
        "Stopped" => command("start"),
        "Frozen" => command("resume"),
        _ => format!("check its state: {}", command("info")),
    }
}

/// Returns the command that puts this program into a machine.
fn push(machine: &MachineRef) -> String {
    let program = this_program().to_string_lossy().into_owned();
    let target = format!("{}{PROGRAM}", machine.name);
    let verb = ["file", "push", "-p", "--mode", "0755"];
    let owner = ["--uid", "0", "--gid", "0"];
    let command = [&verb[..], &owner, &[&program, &target]].concat();
    incus_command(machine, &command, &[])
}

fn socket_help(socket: &Socket, available: &io::Result<Vec<String>>, why: &io::Error) -> String {
    let path = socket.path.as_path();
    let help = match (why.kind(), available) {
        _ if is_too_long(path) => {
            "use a shorter path, such as a relative one or one through a symbolic link"
        }
        (io::ErrorKind::ConnectionRefused, _) if !is_socket(path) => {
            "name the socket of a provider: a file `PROVIDER.sock`"
        }
        (io::ErrorKind::PermissionDenied, _) => ONE_USER,
        (io::ErrorKind::NotFound, Err(unread)) => {
            return format!("check the path; the sockets in its folder cannot be listed: {unread}");
        }
        (io::ErrorKind::NotFound, Ok(names)) => return no_socket_help(socket, names),
        _ => ASK_PROVIDER,
    };
    help.to_owned()
}

/// Returns the next step where no socket has that name, but those with these names are next to it.
fn no_socket_help(socket: &Socket, names: &[String]) -> String {
    let name = socket.path.file_stem().unwrap_or_default();
    let name = name.to_string_lossy();
    match (names, &socket.provider) {
        ([], None) => {
            "that folder contains no socket; `-i PROVIDER` finds a provider's socket".to_owned()
        }
        ([], Some(_)) => {
            "no provider serves this machine; the operator declares services in infra.yml"
                .to_owned()
        }
        // A link whose target is gone, or a socket that was made a moment later.
        _ if names.iter().any(|known| *known == name) => ASK_PROVIDER.to_owned(),
        _ => {
            let near = closest(&name, names.iter().map(String::as_str));
            let near = near.map(|near| format!("did you mean `{}`? ", near.escape_debug()));
            format!("{}available: {}", near.unwrap_or_default(), listed(names))
        }
    }
}
