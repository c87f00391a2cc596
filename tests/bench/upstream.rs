//! A call to a tool of an MCP server through a service, against the same call to the server itself.

use std::io::{BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::listening::{self, Server};

const ROUNDS: usize = 400;

/// Medians of one call.
pub(crate) struct Times {
    pub(crate) ours: Duration,
    /// The same call over the server's own pipes.
    pub(crate) direct: Duration,
}

/// Sends a line and reads the next one with an answer.
fn exchange(to: &mut impl Write, from: &mut impl std::io::BufRead, message: &Value) -> String {
    to.write_all(format!("{message}\n").as_bytes()).unwrap();
    let mut line = String::new();
    assert!(from.read_line(&mut line).unwrap() > 0, "no answer");
    line
}

fn hello() -> Value {
    json!({"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": {
        "protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "bench", "version": "0"},
    }})
}

fn median_of(mut call: impl FnMut()) -> Duration {
    // The first call may start the server.
    call();
    let times = (0..ROUNDS).map(|_| {
        let began = Instant::now();
        call();
        began.elapsed()
    });
    crate::median(times.collect())
}

/// Measures the calls of one server, in turns; `None` without Node or the server.
pub(crate) fn times(anklume: impl Fn() -> Command, folder: &Path) -> Option<Times> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("target/node/node_modules/@modelcontextprotocol/server-everything/dist/index.js");
    let node = Command::new("sh")
        .args(["-c", "command -v node"])
        .output()
        .ok()?;
    let node = String::from_utf8(node.stdout).ok()?;
    let node = node.trim();
    if !script.is_file() || node.is_empty() {
        return None;
    }
    let folder = folder.join("upstream");
    std::fs::create_dir(&folder).unwrap();
    let infra = format!(
        "domains:\n  d:\n    subnet_id: 0\n    machines:\n      vault:\n        mcp: {{servers: {{all: {{command: [{node}, {}]}}}}}}\n        \
         services:\n          - {{name: echo, tool: all/echo, consumers: [quiet, loud]}}\n      quiet: {{}}\n      loud: {{}}\n",
        script.display()
    );
    std::fs::write(folder.join("infra.yml"), &infra).unwrap();
    pin(&anklume, &folder);
    let services = listening::services(&anklume, &folder, &infra);
    let server = Server::start(anklume(), &folder, "sockets", &services);

    let mut direct = Command::new(node)
        .arg(&script)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut to = direct.stdin.take().unwrap();
    let mut from = BufReader::new(direct.stdout.take().unwrap());
    exchange(&mut to, &mut from, &hello());
    to.write_all(b"{\"jsonrpc\":\"2.0\",\"method\":\"notifications/initialized\"}\n")
        .unwrap();
    let call = |name: &str| json!({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": name, "arguments": {"message": "hi"}}});
    let answered = |line: &str| assert!(line.contains("Echo: hi"), "{line}");
    let message = call("echo");
    let own = median_of(|| {
        loop {
            let line = exchange(&mut to, &mut from, &message);
            // It may report its own log in between.
            if line.contains("\"id\":1") {
                answered(&line);
                break;
            }
        }
    });
    drop(to);
    direct.wait().unwrap();

    let mut to = UnixStream::connect(server.socket("quiet")).unwrap();
    let mut from = BufReader::new(to.try_clone().unwrap());
    exchange(&mut to, &mut from, &hello());
    let ours = median_of(|| answered(&exchange(&mut to, &mut from, &message)));
    Some(Times { ours, direct: own })
}

/// Pins the server's tools as it describes them now.
fn pin(anklume: &impl Fn() -> Command, folder: &Path) {
    let path = folder.join("infra.yml");
    let (read, mut pins) = anklume::infra::open_for_pinning(Some(&path)).unwrap();
    let (_, vault) = read.infra.machine("vault").unwrap();
    let request = anklume::machine_state::DefinitionRequest::of(vault).unwrap();
    let mut ask = anklume();
    ask.arg("machine-definitions")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped());
    let mut ask = ask.spawn().unwrap();
    let line = serde_json::to_vec(&request).unwrap();
    ask.stdin.take().unwrap().write_all(&line).unwrap();
    let report = ask.wait_with_output().unwrap().stdout;
    let report: anklume::machine_state::DefinitionReport = serde_json::from_slice(&report).unwrap();
    for (server, answer) in report.servers {
        for (tool, definition) in answer.tools {
            pins.set(&vault.name, &server, &tool, definition);
        }
    }
    std::fs::write(folder.join(anklume::infra::LOCK), pins.to_text()).unwrap();
}
