//! Opens a route: a stream of bytes in each direction.

use std::io;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::UnixStream;
use tokio::process::Command;

use super::process::{ServerProcess, Watch};
use super::program::{self, SERVE, incus_exec};
use super::{Route, RouteContext, Socket, Transport, Unreachable};
use crate::incus::{FindError, Incus, MachineRef, Object, find, socket_path};
use crate::machine_state::PROGRAM;
use crate::text::Foreign;

/// This program, also if its file was replaced or its path is relative.
const THIS_PROGRAM: &str = "/proc/self/exe";

/// An open channel.
pub(crate) struct OpenTransport {
    /// Output of the server.
    pub(crate) reader: Box<dyn AsyncRead + Send + Unpin>,
    /// Input of the server. Dropped only after its last answer: Incus's proxies have no half-close.
    pub(crate) writer: Box<dyn AsyncWrite + Send + Unpin>,
    /// Its far end, to be ended afterwards.
    pub(crate) end: TransportEnd,
}

/// The far end of a channel, which outlives its streams.
pub(crate) struct TransportEnd {
    channel: Transport,
    process: Option<ServerProcess>,
}

/// Finds the machine of a route; asks Incus only if necessary, with `timeout` for each request.
pub(crate) async fn resolve(route: Route, timeout: Duration) -> Result<Transport, Unreachable> {
    match route {
        Route::Local => Ok(Transport::Local),
        Route::Socket(socket) => Ok(Transport::Socket(socket)),
        Route::Host { machine, project } => {
            let machine = find_machine(&machine, project.as_deref(), timeout).await?;
            Ok(Transport::Exec(machine))
        }
    }
}

/// Opens a channel; `watch` gets the lines that a server started for it writes to stderr.
pub(crate) async fn open(
    channel: Transport,
    timeout: Duration,
    watch: Watch,
) -> Result<OpenTransport, Unreachable> {
    let mut command = match &channel {
        Transport::Local => {
            let mut command = Command::new(THIS_PROGRAM);
            command.arg0("anklume").args(SERVE);
            command
        }
        Transport::Exec(machine) => {
            if !machine.runs() {
                return Err(Unreachable::NotRunning(machine.clone()));
            }
            let mut command = program::incus().map_err(|why| not_started(&channel, why))?;
            command.args(incus_exec(machine));
            command
        }
        Transport::Socket(socket) => {
            let stream = connect(socket, timeout).await?;
            // Not `into_split`: its write half ends the stream when it is dropped.
            let (reader, writer) = tokio::io::split(stream);
            return Ok(OpenTransport {
                reader: Box::new(reader),
                writer: Box::new(writer),
                end: TransportEnd {
                    channel,
                    process: None,
                },
            });
        }
    };
    let piped = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    let mut child = piped.spawn().map_err(|why| not_started(&channel, why))?;
    let (Some(writer), Some(reader)) = (child.stdin.take(), child.stdout.take()) else {
        let why = io::Error::other("it has no stdin or stdout");
        return Err(not_started(&channel, why));
    };
    Ok(OpenTransport {
        reader: Box::new(reader),
        writer: Box::new(writer),
        end: TransportEnd {
            channel,
            process: Some(ServerProcess::new(child, watch)),
        },
    })
}

fn not_started(channel: &Transport, why: io::Error) -> Unreachable {
    match channel {
        Transport::Exec(_) if why.kind() == io::ErrorKind::NotFound => Unreachable::NoIncusProgram,
        Transport::Exec(_) => Unreachable::NotStarted("incus", why),
        Transport::Local | Transport::Socket(_) => {
            Unreachable::NotStarted("anklume mcp serve", why)
        }
    }
}

async fn connect(socket: &Socket, timeout: Duration) -> Result<UnixStream, Unreachable> {
    let connecting = UnixStream::connect(&socket.path);
    let Ok(connected) = tokio::time::timeout(timeout, connecting).await else {
        return Err(Unreachable::Silent {
            waited: timeout,
            words: Vec::new(),
        });
    };
    connected.map_err(|why| {
        let folder = socket.path.parent();
        let folder = folder.filter(|folder| !folder.as_os_str().is_empty());
        Unreachable::Socket {
            available: sockets_in(folder.unwrap_or(Path::new("."))),
            socket: socket.clone(),
            why,
        }
    })
}

/// Returns the providers whose sockets this machine has, sorted; none on the host.
pub(crate) fn providers() -> Vec<String> {
    RouteContext::look()
        .folder()
        .map(sockets_in)
        .unwrap_or_default()
}

/// Returns the providers whose sockets are in a folder, sorted.
fn sockets_in(folder: &Path) -> Vec<String> {
    /// Maximum number of names; a folder may have any number of files.
    const SHOWN: usize = 64;
    let Ok(entries) = folder.read_dir() else {
        return Vec::new();
    };
    let mut names: Vec<String> = entries
        .filter_map(Result::ok)
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter_map(|name| name.strip_suffix(".sock").map(str::to_owned))
        .take(SHOWN)
        .collect();
    names.sort_unstable();
    names
}

async fn find_machine(
    name: &str,
    project: Option<&str>,
    timeout: Duration,
) -> Result<MachineRef, Unreachable> {
    let mut incus = connect_incus(timeout).await?;
    let machines = incus.machines(project).await?;
    let machine = find(&machines, name, project);
    // The API answers with an empty list for a project that does not exist.
    if let (Err(FindError::NoMachine { .. }), Some(project)) = (&machine, project) {
        let known = incus.projects().await?;
        if !known.iter().any(|one| one == project) {
            let name = project.to_owned();
            return Err(FindError::NoProject { name, known }.into());
        }
    }
    Ok(machine?)
}

async fn connect_incus(timeout: Duration) -> Result<Incus, Unreachable> {
    let socket = socket_path(|name| std::env::var_os(name));
    Ok(Incus::connect(socket, timeout).await?)
}

impl TransportEnd {
    /// Returns the channel that was opened.
    pub(crate) const fn channel(&self) -> &Transport {
        &self.channel
    }

    /// Waits for the server to end after the last answer; both streams are closed.
    pub(crate) async fn calm(self) {
        if let Some(process) = self.process {
            process.end().await;
        }
    }

    /// Ends a silent server; the error has its last output.
    pub(crate) fn silent(self, waited: Duration) -> Unreachable {
        let process = self.process.as_ref();
        let words = process.map(ServerProcess::words).unwrap_or_default();
        Unreachable::Silent { waited, words }
    }

    /// Explains the early end of a stream; both streams are closed.
    pub(crate) async fn died(self, timeout: Duration) -> Unreachable {
        let Some(process) = self.process else {
            return Unreachable::Gone;
        };
        let (status, words) = process.end().await;
        let code = status.and_then(|status| status.code());
        let Transport::Exec(machine) = self.channel else {
            return Unreachable::Died { status, words };
        };
        // The machine's last output may precede it on the same line.
        let says = |text: &str| words.iter().any(|line| line.raw().ends_with(text));
        match code {
            Some(127) if says("Error: Command not found") => {
                not_found(machine, words, timeout).await
            }
            Some(126) if says("Error: Command not executable") => {
                Unreachable::NotExecutable(machine)
            }
            _ => Unreachable::Died { status, words },
        }
    }
}

/// Incus says "not found" also of a program whose interpreter or libraries are missing.
async fn not_found(machine: MachineRef, words: Vec<Foreign>, timeout: Duration) -> Unreachable {
    let found = match connect_incus(timeout).await {
        Ok(mut incus) => {
            let object = Object::machine(&machine.project, &machine.name);
            incus.kind_of_file(&object, PROGRAM).await.ok().flatten()
        }
        Err(_) => None,
    };
    if found.is_some() {
        Unreachable::NotRunnable { machine, words }
    } else {
        Unreachable::NoBinary(machine)
    }
}
