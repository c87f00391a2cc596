//! Tests the tools with the real programs: gpg and its agent, an X server and its clients.
#![expect(
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a panic is a failed test"
)]

mod clipboard;
mod gpg;
mod wayland;

use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use anklume::policy::{Caller, Decision, Grant, Request, decide};
use anklume::services::Services;
use anklume::tool::{self, Copies, Settings, ToolOutcome, ToolSession};
use serde_json::Value;

use crate::harness::{Anklume, write_program};

/// The folders and settings of a server, from which tests make connections.
pub(crate) struct Server {
    pub(crate) folder: tempfile::TempDir,
    pub(crate) settings: Settings,
}

/// A connection by the operator.
pub(crate) struct Connection {
    session: ToolSession,
    runtime: tokio::runtime::Runtime,
}

impl Server {
    pub(crate) fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let settings = Settings::new(folder.path().join("portal"), folder.path().join("run"));
        Self { folder, settings }
    }

    pub(crate) fn connect(&self) -> Connection {
        Connection {
            session: ToolSession::new(Arc::new(self.settings.clone())),
            runtime: tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap(),
        }
    }

    /// Makes one call on a new connection.
    pub(crate) fn call(&self, tool: &str, arguments: Value) -> Result<ToolOutcome, String> {
        self.connect().call(tool, arguments)
    }
}

impl Connection {
    pub(crate) fn call(&self, tool: &str, arguments: Value) -> Result<ToolOutcome, String> {
        let grant = grant(tool, arguments);
        let outcome = self
            .runtime
            .block_on(tool::run(&grant, &self.session, Copies::Two));
        outcome.map_err(|error| error.to_string())
    }

    /// Makes several calls at the same time.
    pub(crate) fn call_all(&self, calls: Vec<(&str, Value)>) -> Vec<Result<ToolOutcome, String>> {
        let grants: Vec<Grant> = calls
            .into_iter()
            .map(|(tool, arguments)| grant(tool, arguments))
            .collect();
        let calls = grants
            .iter()
            .map(|grant| tool::run(grant, &self.session, Copies::Two));
        let outcomes = self.runtime.block_on(futures_util::future::join_all(calls));
        outcomes
            .into_iter()
            .map(|outcome| outcome.map_err(|error| error.to_string()))
            .collect()
    }

    /// Begins a call, and cancels it as soon as a condition holds.
    pub(crate) fn give_up_when(&self, tool: &str, arguments: Value, happened: impl Fn() -> bool) {
        let grant = grant(tool, arguments);
        self.runtime.block_on(async {
            let happened = async {
                while !happened() {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            };
            tokio::select! {
                outcome = tool::run(&grant, &self.session, Copies::Two) => panic!("ended: {outcome:?}"),
                () = happened => {}
            }
        });
    }
}

fn grant(tool: &str, arguments: Value) -> Grant {
    let Value::Object(arguments) = arguments else {
        panic!("arguments are an object");
    };
    let services = Services::none("vault".parse().unwrap());
    let request = Request {
        caller: &Caller::Operator,
        name: tool,
        arguments: &std::sync::Arc::new(arguments),
        now: jiff::Timestamp::now(),
    };
    match decide(&services, request) {
        Decision::Allowed(grant) => grant,
        Decision::Denied(denial) => panic!("{denial:?}"),
    }
}

/// Waits until a condition holds; fails if that takes too long.
#[track_caller]
pub(crate) fn eventually(what: &str, holds: impl Fn() -> bool) {
    for _ in 0..3000 {
        if holds() {
            return;
        }
        thread::sleep(Duration::from_millis(10));
    }
    panic!("never: {what}");
}

/// Returns whether a process is running; a zombie is not.
pub(crate) fn runs(process: u32) -> bool {
    std::fs::read_to_string(format!("/proc/{process}/stat"))
        .is_ok_and(|stat| !stat.rsplit_once(')').unwrap().1.starts_with(" Z"))
}

/// Writes a shell script.
pub(crate) fn script(path: &Path, text: &str) {
    write_program(path, format!("#!/bin/sh\n{text}\n"));
}

#[test]
fn half_a_character_is_refused_and_the_clipboard_kept() {
    let content = |text: &str| {
        let call = r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"clipboard_set","arguments":{"content":"#;
        format!("{call}\"{text}\"}}}}}}\n")
    };
    let get = r#"{"jsonrpc":"2.0","id":2,"method":"tools/call","params":{"name":"clipboard_get","arguments":{}}}"#;
    let serve = |folder: tempfile::TempDir, line: &str| {
        let runtime = folder.path().join("run").to_str().unwrap().to_owned();
        Anklume::in_folder(folder)
            .args(["mcp", "serve"])
            .env("XDG_RUNTIME_DIR", runtime)
            .stdin(line)
            .run()
    };
    let ran = serve(tempfile::tempdir().unwrap(), &content("kept"));
    assert!(
        ran.stdout.contains("4 bytes on the clipboard"),
        "{}",
        ran.stdout
    );
    // An earlier implementation emptied the file before it failed.
    let ran = serve(ran.folder, &content(r"\ud800"));
    assert!(ran.stdout.contains("error"), "{}", ran.stdout);
    let ran = serve(ran.folder, get);
    assert!(ran.stdout.contains(r#""text":"kept""#), "{}", ran.stdout);
}
