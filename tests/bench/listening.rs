//! A listening server, and the callers' ends of its connections.

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Writes the services file of the machine `vault` in this infrastructure, and returns its path.
pub(crate) fn services(anklume: impl Fn() -> Command, folder: &Path, text: &str) -> PathBuf {
    let (infra, services) = (folder.join("infra.yml"), folder.join("services.json"));
    std::fs::write(&infra, text).unwrap();
    let mut export = anklume();
    export.args(["policy", "export", "--machine", "vault", "--infra"]);
    let exported = export.arg(&infra).output().unwrap();
    assert!(exported.status.success(), "policy export");
    std::fs::write(&services, exported.stdout).unwrap();
    services
}

/// The time that one call in a hundred exceeds.
pub(crate) fn p99_of(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times.swap_remove(times.len() * 99 / 100)
}

/// A server with two callers, `quiet` and `loud`; killed when dropped.
pub(crate) struct Server {
    process: Child,
    sockets: PathBuf,
}

impl Server {
    /// Starts the server and waits for its sockets.
    pub(crate) fn start(mut serve: Command, folder: &Path, name: &str, services: &Path) -> Self {
        let sockets = folder.join(name);
        serve.args(["mcp", "serve", "--listen"]).arg(&sockets);
        serve.arg("--services").arg(services);
        serve.env("ANKLUME_AUDIT_LOG", folder.join(format!("{name}.jsonl")));
        let process = serve.stderr(Stdio::null()).spawn().unwrap();
        let server = Self { process, sockets };
        while !server.socket("quiet").exists() || !server.socket("loud").exists() {
            std::thread::sleep(Duration::from_millis(10));
        }
        server
    }

    /// The server's process ID.
    pub(crate) fn pid(&self) -> u32 {
        self.process.id()
    }

    /// A caller's socket.
    pub(crate) fn socket(&self, caller: &str) -> PathBuf {
        self.sockets.join(format!("{caller}.sock"))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // If it exited by itself, the measurement has already failed.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A service call as one line, with id 0.
pub(crate) fn call(service: &str, content: &str) -> String {
    if content.is_empty() {
        return call_with(service, "{}");
    }
    call_with(service, &format!("{{\"content\":\"{content}\"}}"))
}

/// The same, with all arguments given as JSON.
pub(crate) fn call_with(service: &str, arguments: &str) -> String {
    format!(
        "{{\"jsonrpc\":\"2.0\",\"id\":0,\"method\":\"tools/call\",\"params\":{{\"name\":\"{service}\",\"arguments\":{arguments}}}}}\n"
    )
}

/// One connection.
pub(crate) struct Peer {
    writer: UnixStream,
    answers: BufReader<UnixStream>,
}

impl Peer {
    pub(crate) fn connect(socket: &Path) -> std::io::Result<Self> {
        let writer = UnixStream::connect(socket)?;
        let answers = BufReader::new(writer.try_clone()?);
        Ok(Self { writer, answers })
    }

    pub(crate) fn write(&mut self, lines: &str) -> std::io::Result<()> {
        self.writer.write_all(lines.as_bytes())
    }

    /// Reads the next line; it is empty at the end of the stream.
    pub(crate) fn read(&mut self) -> std::io::Result<String> {
        let mut line = String::new();
        self.answers.read_line(&mut line)?;
        Ok(line)
    }
}

/// Ends the background load of a measurement when dropped, so that a failed measurement does not wait for it.
pub(crate) struct Ends<'a>(pub(crate) &'a AtomicBool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
