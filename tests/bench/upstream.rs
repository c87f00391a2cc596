//! A call to a tool of an MCP server through a service, against the same call to the server itself.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};

use crate::listening::{self, Server};

/// A call to measure.
struct Case {
    what: &'static str,
    /// The server, and a folder that it may read.
    command: Vec<String>,
    tool: &'static str,
    arguments: Value,
    /// A part of the answer.
    expected: &'static str,
    /// Number of measured calls, and of those before: a JavaScript program becomes faster while it runs.
    rounds: usize,
}

/// Medians of one call.
pub(crate) struct Times {
    pub(crate) what: &'static str,
    pub(crate) ours: Duration,
    /// The same call over the server's own pipes.
    pub(crate) direct: Duration,
}

/// Sends a line and reads the next one with an answer.
fn exchange(to: &mut impl Write, from: &mut impl BufRead, message: &Value) -> String {
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

/// Returns the calls of the servers that are installed (`make test-upstream`).
fn cases(folder: &Path) -> Vec<Case> {
    let installed = |path: &str| {
        let path = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("target")
            .join(path);
        path.is_file().then(|| path.display().to_string())
    };
    let node = Command::new("sh").args(["-c", "command -v node"]).output();
    let node = node.map_or_else(
        |_| String::new(),
        |node| String::from_utf8(node.stdout).unwrap(),
    );
    let script = |name: &str| {
        let script = format!("node/node_modules/@modelcontextprotocol/server-{name}/dist/index.js");
        Some(vec![node.trim().to_owned(), installed(&script)?]).filter(|_| !node.is_empty())
    };
    let here = folder.display().to_string();
    let file = folder.join("notes.txt");
    std::fs::write(&file, "a line\n".repeat(100)).unwrap();
    let made = Command::new("git").args(["init", "-q", &here]).status();
    assert!(made.unwrap().success(), "git init failed");
    let everything = script("everything").map(|command| Case {
        what: "`echo` of server-everything",
        command,
        tool: "echo",
        arguments: json!({"message": "hi"}),
        expected: "Echo: hi",
        rounds: 1000,
    });
    let filesystem = script("filesystem").map(|mut command| {
        command.push(here.clone());
        Case {
            what: "`read_text_file` of server-filesystem",
            command,
            tool: "read_text_file",
            arguments: json!({"path": file}),
            expected: "a line",
            rounds: 1000,
        }
    });
    let git = installed("python/bin/mcp-server-git").map(|program| Case {
        what: "`git_status` of mcp-server-git",
        command: vec![program],
        tool: "git_status",
        arguments: json!({"repo_path": here}),
        expected: "notes.txt",
        rounds: 100,
    });
    [everything, filesystem, git]
        .into_iter()
        .flatten()
        .collect()
}

/// Measures a call to each of the installed servers, through a service and directly, in turns.
pub(crate) fn times(anklume: impl Fn() -> Command, folder: &Path) -> Vec<Times> {
    let folder = folder.join("upstream");
    let shared = folder.join("shared");
    std::fs::create_dir_all(&shared).unwrap();
    let shared = shared.canonicalize().unwrap();
    let measured = cases(&shared)
        .into_iter()
        .enumerate()
        .map(|(number, case)| {
            let folder = folder.join(number.to_string());
            std::fs::create_dir(&folder).unwrap();
            measure(&anklume, &folder, &case)
        });
    measured.collect()
}

fn measure(anklume: &impl Fn() -> Command, folder: &Path, case: &Case) -> Times {
    let command = serde_json::to_string(&case.command).unwrap();
    let tool = case.tool;
    let infra = format!(
        "domains:\n  d:\n    subnet_id: 0\n    machines:\n      vault:\n        mcp: {{servers: {{one: {{command: {command}}}}}}}\n        \
         services:\n          - {{name: {tool}, tool: one/{tool}, consumers: [quiet, loud]}}\n      quiet: {{}}\n      loud: {{}}\n"
    );
    std::fs::write(folder.join("infra.yml"), &infra).unwrap();
    pin(anklume, folder);
    let services = listening::services(anklume, folder, &infra);
    let server = Server::start(anklume(), folder, "sockets", &services);

    let (program, arguments) = case.command.split_first().unwrap();
    let mut direct = Command::new(program)
        .args(arguments)
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
    let message = json!({
        "jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": tool, "arguments": case.arguments},
    });
    let answered = |line: &str| assert!(line.contains(case.expected), "{line}");
    let mut direct_call = || {
        let mut line = exchange(&mut to, &mut from, &message);
        // It may send something else in between.
        while !line.contains("\"id\":1") {
            line.clear();
            from.read_line(&mut line).unwrap();
        }
        answered(&line);
    };
    let mut our_to = UnixStream::connect(server.socket("quiet")).unwrap();
    let mut our_from = BufReader::new(our_to.try_clone().unwrap());
    exchange(&mut our_to, &mut our_from, &hello());
    let mut our_call = || answered(&exchange(&mut our_to, &mut our_from, &message));
    let (mut ours, mut own) = (Vec::new(), Vec::new());
    for round in 0..case.rounds * 2 {
        let (our_time, own_time) = (crate::timed(&mut our_call), crate::timed(&mut direct_call));
        if round >= case.rounds {
            ours.push(our_time);
            own.push(own_time);
        }
    }
    drop(to);
    direct.wait().unwrap();
    Times {
        what: case.what,
        ours: crate::median(ours),
        direct: crate::median(own),
    }
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
