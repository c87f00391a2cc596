//! From a way to a stream of bytes in each direction.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::UnixStream;
use tokio::process::Command;
use tokio::time::timeout;

use super::command::{SERVE, incus_exec};
use super::process::{ServerProcess, Watch};
use super::program;
use super::{Route, RouteContext, Socket, Transport, Unreachable};
use crate::incus::{FindError, Incus, MachineRef, Object, find, socket_path};
use crate::machine_state::PROGRAM;
use crate::text::Foreign;

/// This very program, also where its file was replaced or its path is relative.
const THIS_PROGRAM: &str = "/proc/self/exe";

/// An open channel: bytes in, bytes out, and what must be ended afterwards.
pub(crate) struct OpenTransport {
    /// Output of the server.
    pub(crate) reader: Box<dyn AsyncRead + Send + Unpin>,
    /// Input of the server. Dropped only after its last answer: Incus's proxies have no half-close.
    pub(crate) writer: Box<dyn AsyncWrite + Send + Unpin>,
    /// The object behind it.
    pub(crate) end: TransportEnd,
}

impl fmt::Debug for OpenTransport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Open")
            .field("end", &self.end)
            .finish_non_exhaustive()
    }
}

/// The far end of a channel, which outlives its streams.
#[derive(Debug)]
pub(crate) struct TransportEnd {
    channel: Transport,
    process: Option<ServerProcess>,
}

/// Finds the machine that a way means; asks Incus only where it must. Each question may take `patience`.
pub(crate) async fn resolve(way: Route, patience: Duration) -> Result<Transport, Unreachable> {
    match way {
        Route::Local => Ok(Transport::Local),
        Route::Socket(socket) => Ok(Transport::Socket(socket)),
        Route::Host { machine, project } => {
            let found = ask_incus(&machine, project.as_deref(), patience).await?;
            Ok(Transport::Exec(found))
        }
    }
}

/// Opens a channel; `watch` gets what a server that is started for it says on stderr.
pub(crate) async fn open(
    channel: Transport,
    patience: Duration,
    watch: Watch,
) -> Result<OpenTransport, Unreachable> {
    match &channel {
        Transport::Local => {
            let mut command = Command::new(THIS_PROGRAM);
            command.arg0("anklume").args(SERVE);
            start(command, channel, watch)
        }
        Transport::Exec(machine) => {
            if !machine.runs() {
                return Err(Unreachable::NotRunning(machine.clone()));
            }
            let mut command = program::incus().map_err(|why| not_started(&channel, why))?;
            command.args(incus_exec(machine));
            start(command, channel, watch)
        }
        Transport::Socket(socket) => {
            let stream = connect(socket, patience).await?;
            // Not `into_split`: its write half ends the stream when it is dropped.
            let (reader, writer) = tokio::io::split(stream);
            Ok(OpenTransport {
                reader: Box::new(reader),
                writer: Box::new(writer),
                end: TransportEnd {
                    channel,
                    process: None,
                },
            })
        }
    }
}

fn start(
    mut command: Command,
    channel: Transport,
    watch: Watch,
) -> Result<OpenTransport, Unreachable> {
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

async fn connect(socket: &Socket, patience: Duration) -> Result<UnixStream, Unreachable> {
    match timeout(patience, UnixStream::connect(&socket.path)).await {
        Ok(Ok(stream)) => Ok(stream),
        Ok(Err(why)) => Err(Unreachable::Socket {
            there: sockets_in(&folder_of(&socket.path)),
            socket: socket.clone(),
            why,
        }),
        Err(_) => Err(Unreachable::Silent {
            waited: patience,
            words: Vec::new(),
        }),
    }
}

/// The providers that this machine has sockets of, sorted; on the host there are none.
pub(crate) fn providers() -> Vec<String> {
    RouteContext::look()
        .folder()
        .map(sockets_in)
        .unwrap_or_default()
}

/// The folder of a path, as it can be opened.
fn folder_of(path: &Path) -> PathBuf {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder.to_owned(),
        _ => ".".into(),
    }
}

/// The providers whose sockets lie in a folder, sorted.
fn sockets_in(folder: &Path) -> Vec<String> {
    /// More than anyone would read; a folder may hold anything.
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

async fn ask_incus(
    name: &str,
    project: Option<&str>,
    patience: Duration,
) -> Result<MachineRef, Unreachable> {
    let mut incus = connect_incus(patience).await?;
    let machines = incus.machines(project).await?;
    let found = find(&machines, name, project);
    let Err(FindError::NoMachine { .. }) = &found else {
        return Ok(found?);
    };
    // The API answers with an empty list for a project that does not exist.
    if let Some(project) = project {
        let known = incus.projects().await?;
        if !known.iter().any(|one| one == project) {
            let name = project.to_owned();
            return Err(FindError::NoProject { name, known }.into());
        }
    }
    Ok(found?)
}

async fn connect_incus(patience: Duration) -> Result<Incus, Unreachable> {
    let socket = socket_path(|name| std::env::var_os(name));
    Ok(Incus::connect(socket, patience).await?)
}

impl TransportEnd {
    /// The channel that was opened.
    pub(crate) const fn channel(&self) -> &Transport {
        &self.channel
    }

    /// After the last answer, with both streams dropped: waits for the server's own end.
    pub(crate) async fn calm(self) {
        if let Some(process) = self.process {
            process.end().await;
        }
    }

    /// After a silence: why, in the server's own last words. The server is ended.
    pub(crate) fn silent(self, waited: Duration) -> Unreachable {
        let words = self
            .process
            .as_ref()
            .map(ServerProcess::words)
            .unwrap_or_default();
        Unreachable::Silent { waited, words }
    }

    /// After the stream ended too early, with both streams dropped: what became of the server.
    pub(crate) async fn died(self, patience: Duration) -> Unreachable {
        let Some(process) = self.process else {
            return Unreachable::Gone;
        };
        let (status, words) = process.end().await;
        let code = status.and_then(|status| status.code());
        let Transport::Exec(machine) = self.channel else {
            return Unreachable::Died { status, words };
        };
        // What the machine said last may stand in front of it, without a line end between.
        let says = |text: &str| words.iter().any(|line| line.raw().ends_with(text));
        match code {
            Some(127) if says("Error: Command not found") => {
                not_found(machine, words, patience).await
            }
            Some(126) if says("Error: Command not executable") => {
                Unreachable::NotExecutable(machine)
            }
            _ => Unreachable::Died { status, words },
        }
    }
}

/// Incus says "not found" also of a program whose interpreter or libraries are not there.
async fn not_found(machine: MachineRef, words: Vec<Foreign>, patience: Duration) -> Unreachable {
    let found = match connect_incus(patience).await {
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
