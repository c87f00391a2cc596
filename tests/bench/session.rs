//! Drives an MCP session line by line over a child's pipes. All servers get the same driver, so that only they differ.

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

/// Measures the time per `clipboard_get` on an open session, over `calls` calls, `in_flight` of them at a time.
pub(crate) fn time_per_call(server: &mut Command, calls: u32, in_flight: u32) -> Duration {
    let mut session = Session::open(server);
    session.write(
        r#"{"jsonrpc":"2.0","id":"hello","method":"initialize","params":{"protocolVersion":"2025-06-18","capabilities":{},"clientInfo":{"name":"bench","version":"0"}}}"#,
    );
    session.read();
    session.write(r#"{"jsonrpc":"2.0","method":"notifications/initialized"}"#);
    let set = call(0, "clipboard_set", r#"{"content":"bonjour"}"#);
    session.exchange(&set);
    let time = session.per_line(calls, in_flight, |id| call(id + 1, "clipboard_get", "{}"));
    session.close();
    time
}

/// Measures the time per line through a program that echoes every line.
pub(crate) fn time_per_line(echo: &mut Command, lines: u32, in_flight: u32) -> Duration {
    let mut session = Session::open(echo);
    let time = session.per_line(lines, in_flight, |id| call(id + 1, "clipboard_get", "{}"));
    session.close();
    time
}

fn call(id: u32, tool: &str, arguments: &str) -> String {
    format!(
        r#"{{"jsonrpc":"2.0","id":{id},"method":"tools/call","params":{{"name":"{tool}","arguments":{arguments}}}}}"#
    )
}

struct Session {
    child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
    line: String,
}

impl Session {
    fn open(server: &mut Command) -> Self {
        let mut child = server
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let stdin = child.stdin.take().unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        Self {
            child,
            stdin,
            stdout,
            line: String::new(),
        }
    }

    fn write(&mut self, message: &str) {
        self.stdin
            .write_all(format!("{message}\n").as_bytes())
            .unwrap();
    }

    fn read(&mut self) {
        self.line.clear();
        assert!(
            self.stdout.read_line(&mut self.line).unwrap() > 0,
            "the server ended"
        );
    }

    fn exchange(&mut self, message: &str) {
        self.write(message);
        self.read();
        assert!(!self.line.contains(r#""error""#), "{}", self.line);
    }

    fn per_line(
        &mut self,
        lines: u32,
        in_flight: u32,
        message: impl Fn(u32) -> String,
    ) -> Duration {
        let start = Instant::now();
        for id in 0..in_flight {
            self.write(&message(id));
        }
        for id in in_flight..lines {
            self.read();
            self.write(&message(id));
        }
        for _ in 0..in_flight {
            self.read();
        }
        let time = start.elapsed() / lines;
        assert!(!self.line.contains(r#""error""#), "{}", self.line);
        time
    }

    fn close(mut self) {
        drop(self.stdin);
        self.child.wait().unwrap();
    }
}
