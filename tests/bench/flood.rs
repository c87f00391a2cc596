//! What one caller feels while another floods the same server: its p99, idle and under flood, in one run.

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Calls of the quiet caller in each half.
const CALLS: u32 = 1_000;
/// Pause between them: a program that calls now and then, far below its own limits.
const PAUSE: Duration = Duration::from_millis(2);
/// Connections of the loud caller.
const LOUD: usize = 4;
/// Calls that each of them sends before it reads.
const BATCH: usize = 32;

/// Two consumers of one clipboard.
const INFRA: &str = "domains:
  d:
    subnet_id: 0
    machines:
      vault:
        services:
          - {name: clipboard, tool: clipboard_get, consumers: [quiet, loud]}
      quiet: {}
      loud: {}
";

/// The quiet caller's p99.
pub(crate) struct P99 {
    /// While nobody else calls.
    pub(crate) idle: Duration,
    /// While the other floods another server: what the shared processors cost.
    pub(crate) elsewhere: Duration,
    /// While the other floods the same server.
    pub(crate) flooded: Duration,
}

/// Measures the quiet caller.
pub(crate) fn p99(anklume: impl Fn() -> Command, folder: &Path) -> P99 {
    let (infra, services) = (folder.join("flood.yml"), folder.join("services.json"));
    std::fs::write(&infra, INFRA).unwrap();
    let mut export = anklume();
    export.args(["policy", "export", "--machine", "vault", "--infra"]);
    let exported = export.arg(&infra).output().unwrap();
    assert!(exported.status.success(), "policy export");
    std::fs::write(&services, exported.stdout).unwrap();
    let start = |name: &str| {
        let sockets = folder.join(name);
        let mut serve = anklume();
        serve.args(["mcp", "serve", "--listen"]).arg(&sockets);
        serve.arg("--services").arg(&services);
        serve.env("ANKLUME_AUDIT_LOG", folder.join(format!("{name}.jsonl")));
        let server = Server(serve.stderr(Stdio::null()).spawn().unwrap());
        let socket = |name: &str| sockets.join(format!("{name}.sock"));
        while !socket("quiet").exists() || !socket("loud").exists() {
            std::thread::sleep(Duration::from_millis(10));
        }
        (server, socket("quiet"), socket("loud"))
    };
    let (ours, quiet, loud) = start("ours");
    let (other, _, loud_elsewhere) = start("other");
    let times = P99 {
        idle: measure(&quiet),
        elsewhere: while_flooded(&quiet, &loud_elsewhere),
        flooded: while_flooded(&quiet, &loud),
    };
    drop((ours, other));
    times
}

fn while_flooded(quiet: &Path, loud: &Path) -> Duration {
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..LOUD {
            scope.spawn(|| flood(loud, &stop));
        }
        let flooded = measure(quiet);
        stop.store(true, Ordering::Relaxed);
        flooded
    })
}

/// Ended when dropped.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        // One that ended by itself has failed the measurement already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn call(id: u32) -> String {
    format!(
        "{{\"jsonrpc\":\"2.0\",\"id\":{id},\"method\":\"tools/call\",\"params\":{{\"name\":\"clipboard\"}}}}\n"
    )
}

fn measure(socket: &Path) -> Duration {
    let mut stream = UnixStream::connect(socket).unwrap();
    let mut answers = BufReader::new(stream.try_clone().unwrap());
    let mut line = String::new();
    let mut times: Vec<Duration> = (0..CALLS)
        .map(|id| {
            std::thread::sleep(PAUSE);
            let start = Instant::now();
            stream.write_all(call(id).as_bytes()).unwrap();
            line.clear();
            answers.read_line(&mut line).unwrap();
            assert!(!line.contains("\"error\""), "{line}");
            start.elapsed()
        })
        .collect();
    times.sort_unstable();
    times.swap_remove(times.len() * 99 / 100)
}

fn flood(socket: &Path, stop: &AtomicBool) {
    let mut stream = UnixStream::connect(socket).unwrap();
    let mut answers = BufReader::new(stream.try_clone().unwrap());
    let batch: String = (0..).take(BATCH).map(call).collect();
    let mut line = String::new();
    while !stop.load(Ordering::Relaxed) {
        stream.write_all(batch.as_bytes()).unwrap();
        for _ in 0..BATCH {
            line.clear();
            answers.read_line(&mut line).unwrap();
        }
    }
}
