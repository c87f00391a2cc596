//! Opens a route: one byte stream in each direction. Keeps a server process's last output, and ends the process.

use std::collections::VecDeque;
use std::io;
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite};
use tokio::net::UnixStream;
use tokio::process::{Child, Command};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::program::{self, SERVE, incus_exec};
use super::{Route, RouteContext, Socket, Transport, Unreachable};
use crate::incus::{FindError, Incus, MachineRef, Object, find, socket_path};
use crate::machine_state::PROGRAM;
use crate::name::MachineName;
use crate::text::Foreign;

/// This program, even if its file has been replaced or its path is relative.
const THIS_PROGRAM: &str = "/proc/self/exe";
/// Time for a server to end after its stdin has been closed.
const CALM_END: Duration = Duration::from_secs(2);
/// Time between the first SIGTERM and the second.
const FIRST_TERM: Duration = Duration::from_millis(200);
/// Time between the second SIGTERM and SIGKILL.
const SECOND_TERM: Duration = Duration::from_millis(800);
/// Time for the kernel to end a killed process.
const KILLED_END: Duration = Duration::from_secs(1);
/// Time to read the rest of a server's stderr after it has ended.
const STDERR_TIME: Duration = Duration::from_secs(1);
/// Interval for polling a process that is being ended.
const POLL: Duration = Duration::from_millis(2);
/// Maximum number of lines of a server's stderr that are kept.
const LINES_MAX: usize = 8;
/// Maximum length of a line of a server's stderr that is kept or passed on, in bytes.
const LINE_MAX: usize = 1024;
/// Maximum number of bytes of a server's stderr that are passed on with `--verbose`.
const WATCHED_MAX: usize = 1024 * 1024;

/// An open channel.
pub(crate) struct OpenTransport {
    /// The server's output.
    pub(crate) reader: Box<dyn AsyncRead + Send + Unpin>,
    /// The server's input. Dropped only after the last answer, because Incus's proxies do not support half-closing.
    pub(crate) writer: Box<dyn AsyncWrite + Send + Unpin>,
    /// Its far end, to be shut down afterwards.
    pub(crate) end: TransportEnd,
}

/// The far end of a channel, which outlives its streams.
pub(crate) struct TransportEnd {
    pub(crate) channel: Transport,
    process: Option<ServerProcess>,
}

/// Finds a route's machine; asks Incus only if necessary, with `timeout` for each request.
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

/// Opens a channel; `watch` receives the stderr lines of a server that was started for it.
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
            // Not `into_split`: its write half ends the stream when dropped.
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

async fn connect(socket: &Socket, max_wait: Duration) -> Result<UnixStream, Unreachable> {
    let Ok(connected) = timeout(max_wait, UnixStream::connect(&socket.path)).await else {
        return Err(Unreachable::Silent {
            waited: max_wait,
            last_lines: Vec::new(),
        });
    };
    connected.map_err(|why| {
        let folder = socket.path.parent();
        let folder = folder.filter(|folder| !folder.as_os_str().is_empty());
        let available = match sockets_in(folder.unwrap_or(Path::new("."))) {
            // A folder that does not exist has none.
            Err(why) if why.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            available => available,
        };
        Unreachable::Socket {
            available,
            socket: socket.clone(),
            why,
        }
    })
}

/// Returns the providers whose sockets this machine has, sorted. Fails if their folder cannot be read: only one that
/// nobody named may be missing.
pub(crate) fn providers() -> Result<Vec<String>, Unreachable> {
    let context = RouteContext::look();
    let Some(folder) = context.folder() else {
        return Ok(Vec::new());
    };
    match sockets_in(folder) {
        Err(why) if why.kind() == io::ErrorKind::NotFound && context.sockets.is_none() => {
            Ok(Vec::new())
        }
        Err(why) => Err(Unreachable::SocketFolder {
            folder: folder.to_owned(),
            why,
        }),
        Ok(mut names) => {
            names.retain(|name| name.parse::<MachineName>().is_ok());
            Ok(names)
        }
    }
}

/// Returns the names of the sockets in a folder, sorted.
fn sockets_in(folder: &Path) -> io::Result<Vec<String>> {
    /// Maximum number of files that are read.
    const FILES_MAX: usize = 10_000;
    let mut names = Vec::new();
    for entry in folder.read_dir()?.take(FILES_MAX) {
        let name = entry?.file_name().into_string().ok();
        let name = name.and_then(|name| name.strip_suffix(".sock").map(str::to_owned));
        names.extend(name);
    }
    names.sort_unstable();
    Ok(names)
}

async fn find_machine(
    name: &str,
    project: Option<&str>,
    timeout: Duration,
) -> Result<MachineRef, Unreachable> {
    let mut incus = connect_incus(timeout).await?;
    let machines = incus.machines(project).await?;
    let machine = find(&machines, name, project);
    // The API returns an empty list for a project that does not exist.
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
    /// Waits for the server to end after the last answer; both streams are already closed.
    pub(crate) async fn calm(self) {
        if let Some(process) = self.process {
            process.end().await;
        }
    }

    /// Ends a silent server; the error contains its last output.
    pub(crate) fn silent(self, waited: Duration) -> Unreachable {
        let process = self.process.as_ref();
        let last_lines = process
            .map(|process| process.last_lines.all())
            .unwrap_or_default();
        Unreachable::Silent { waited, last_lines }
    }

    /// Explains why a stream ended early; both streams are already closed.
    pub(crate) async fn died(self, timeout: Duration) -> Unreachable {
        let Some(process) = self.process else {
            return Unreachable::Gone;
        };
        let (status, last_lines) = process.end().await;
        let code = status.and_then(|status| status.code());
        let Transport::Exec(machine) = self.channel else {
            return Unreachable::Died { status, last_lines };
        };
        // The machine's last output may precede the text on the same line.
        let says = |text: &str| last_lines.iter().any(|line| line.raw().ends_with(text));
        match code {
            Some(127) if says("Error: Command not found") => {
                not_found(machine, last_lines, timeout).await
            }
            Some(126) if says("Error: Command not executable") => {
                Unreachable::NotExecutable(machine)
            }
            _ => Unreachable::Died { status, last_lines },
        }
    }
}

/// Distinguishes a missing program from one without its interpreter or libraries: Incus reports "not found" for both.
async fn not_found(
    machine: MachineRef,
    last_lines: Vec<Foreign>,
    timeout: Duration,
) -> Unreachable {
    let found = match connect_incus(timeout).await {
        Ok(mut incus) => {
            let object = Object::machine(&machine.project, &machine.name);
            incus.kind_of_file(&object, PROGRAM).await.ok().flatten()
        }
        Err(_) => None,
    };
    if found.is_some() {
        Unreachable::NotRunnable {
            machine,
            last_lines,
        }
    } else {
        Unreachable::NoBinary(machine)
    }
}

/// Receives each line that a server writes to stderr, unescaped.
pub(crate) type Watch = Box<dyn Fn(&str) + Send + Sync>;

/// A child process; dropping it terminates, then kills it.
struct ServerProcess {
    child: Child,
    last_lines: LastLines,
    listener: JoinHandle<()>,
}

/// The last lines of a server's stderr.
#[derive(Clone, Default)]
struct LastLines(Arc<Mutex<VecDeque<Foreign>>>);

impl ServerProcess {
    /// Takes over a new child process, and reads its stderr.
    fn new(mut child: Child, watch: Watch) -> Self {
        let last_lines = LastLines::default();
        let listener = match child.stderr.take() {
            Some(stderr) => tokio::spawn(listen(stderr, last_lines.clone(), watch)),
            None => tokio::spawn(async {}),
        };
        Self {
            child,
            last_lines,
            listener,
        }
    }

    /// Waits for a process with a closed stdin to end, and for its stderr. The status is `None` if it does not end.
    async fn end(mut self) -> (Option<ExitStatus>, Vec<Foreign>) {
        let status = timeout(CALM_END, self.child.wait()).await;
        // Another process may be holding its stderr open.
        let _ = timeout(STDERR_TIME, &mut self.listener).await;
        let last_lines = self.last_lines.all();
        (status.ok().and_then(Result::ok), last_lines)
    }

    /// Blocks until the process ends; returns whether it ended in time.
    fn ends_within(&mut self, time: Duration) -> bool {
        let start = Instant::now();
        while matches!(self.child.try_wait(), Ok(None)) {
            if start.elapsed() >= time {
                return false;
            }
            sleep(POLL);
        }
        true
    }
}

impl Drop for ServerProcess {
    /// Blocks for a moment: this program is about to end, and must leave no process behind.
    fn drop(&mut self) {
        self.listener.abort();
        let id = self.child.id().and_then(|id| i32::try_from(id).ok());
        let Some(pid) = id.and_then(Pid::from_raw) else {
            return;
        };
        // The first signal lets a server finish its calls; the second does not.
        for time in [FIRST_TERM, SECOND_TERM] {
            let _ = kill_process(pid, Signal::TERM);
            if self.ends_within(time) {
                return;
            }
        }
        let _ = self.child.start_kill();
        self.ends_within(KILLED_END);
    }
}

impl LastLines {
    fn add(&self, line: String) {
        let mut lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if lines.len() == LINES_MAX {
            lines.pop_front();
        }
        lines.push_back(line.into());
    }

    fn all(&self) -> Vec<Foreign> {
        let lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        lines.iter().cloned().collect()
    }
}

async fn listen(mut stderr: impl AsyncRead + Unpin, last_lines: LastLines, watch: Watch) {
    let mut chunk = vec![0; LINE_MAX];
    let mut line = Vec::new();
    let mut watched = 0;
    let mut tell = |line: &mut Vec<u8>| {
        let text = String::from_utf8_lossy(line).trim_end().to_owned();
        line.clear();
        if text.is_empty() {
            return;
        }
        watched += text.len();
        if watched <= WATCHED_MAX {
            watch(&text);
        }
        last_lines.add(text);
    };
    while let Ok(read) = stderr.read(&mut chunk).await {
        if read == 0 {
            break;
        }
        for byte in chunk.iter().take(read) {
            match byte {
                b'\n' => tell(&mut line),
                // The rest of a long line is discarded.
                _ if line.len() == LINE_MAX => {}
                byte => line.push(*byte),
            }
        }
    }
    tell(&mut line);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_last_lines_are_kept_and_long_ones_are_cut() {
        let mut said = Vec::new();
        for number in 0..1000 {
            said.extend(format!("line {number}\n").bytes());
        }
        said.extend(vec![b'x'; 10 * LINE_MAX]);
        let last_lines = LastLines::default();
        listen(said.as_slice(), last_lines.clone(), Box::new(|_| {})).await;
        let mut expected: Vec<Foreign> = (993..1000)
            .map(|n| Foreign::from(format!("line {n}")))
            .collect();
        expected.push("x".repeat(LINE_MAX).into());
        assert_eq!(last_lines.all(), expected);
    }
}
