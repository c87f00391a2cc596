//! Tests `anklume mcp serve` on stdin and stdout: input, output and cost.

#![expect(
    clippy::indexing_slicing,
    clippy::expect_used,
    clippy::panic,
    reason = "an answer of another shape is a failed test"
)]

pub(crate) mod clients;
mod endurance;
mod protocol;
pub(crate) mod server;
pub(crate) mod strangers;

use std::io::{Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;

use serde_json::Value;

use crate::harness::{Anklume, have_program};

/// Names of the tools, in the order of the documentation.
const TOOLS: [&str; 5] = [
    "gpg_sign",
    "clipboard_get",
    "clipboard_set",
    "file_accept",
    "file_provide",
];

fn names(listed: &Value) -> Vec<&str> {
    let tools = listed["tools"].as_array().unwrap();
    tools
        .iter()
        .map(|tool| tool["name"].as_str().unwrap())
        .collect()
}

#[test]
fn what_people_type_to_try_a_deployment_answers_and_ends() {
    let list = r#"{"jsonrpc":"2.0","method":"tools/list","id":1,"params":{}}"#;
    for typed in [
        format!("{list}\n"),
        list.to_owned(),
        format!("{list}\r\n"),
        format!("\u{feff}{list}\n"),
        format!("\n  \n{list}\n\n"),
        format!("{{\"jsonrpc\":\"2.0\",\"method\":\"notifications/initialized\"}}\n{list}"),
    ] {
        let ran = Anklume::new()
            .args(["mcp", "serve"])
            .stdin(typed.clone())
            .run();
        assert_eq!((ran.status, ran.stderr.as_str()), (0, ""), "{typed:?}");
        let answer: Value = serde_json::from_str(&ran.stdout).unwrap();
        assert_eq!(answer["id"], 1);
        assert_eq!(names(&answer["result"]), TOOLS);
    }
}

#[test]
fn files_and_sockets_serve_as_well_as_pipes() {
    let list = r#"{"jsonrpc":"2.0","method":"tools/list","id":1}"#;
    let anklume = Anklume::new()
        .args(["mcp", "serve"])
        .file("in", list)
        .file("out", "");
    let folder = anklume.path();
    let from = std::fs::File::open(folder.join("in")).unwrap();
    let to = std::fs::File::create(folder.join("out")).unwrap();
    let status = anklume.command().stdin(from).stdout(to).status().unwrap();
    assert!(status.success());
    let answer = std::fs::read_to_string(folder.join("out")).unwrap();
    let answer: Value = serde_json::from_str(&answer).unwrap();
    assert_eq!(names(&answer["result"]), TOOLS);

    // When inetd or a similar program starts the server, one socket is both stdin and stdout.
    let (mut near, far) = UnixStream::pair().unwrap();
    let from = OwnedFd::from(far.try_clone().unwrap());
    let mut command = anklume.command();
    let mut child = command
        .stdin(from)
        .stdout(OwnedFd::from(far))
        .spawn()
        .unwrap();
    drop(command);
    near.write_all(list.as_bytes()).unwrap();
    near.shutdown(std::net::Shutdown::Write).unwrap();
    let mut answer = String::new();
    near.read_to_string(&mut answer).unwrap();
    let answer: Value = serde_json::from_str(&answer).unwrap();
    assert_eq!(names(&answer["result"]), TOOLS);
    assert!(child.wait().unwrap().success());
}

#[test]
fn nothing_on_stdin_is_no_fault() {
    Anklume::new().args(["mcp", "serve"]).run().answers("");
    Anklume::new()
        .args(["mcp", "serve"])
        .stdin("\n")
        .run()
        .answers("");
}

#[test]
fn list_tools_prints_what_the_operator_may_call() {
    let ran = Anklume::new().args(["mcp", "serve", "--list-tools"]).run();
    assert_eq!((ran.status, ran.stderr.as_str()), (0, ""));
    let first: Vec<&str> = ran
        .stdout
        .lines()
        .map(|line| line.split_whitespace().next().unwrap())
        .collect();
    assert_eq!(first, TOOLS);

    let ran = Anklume::new()
        .args(["mcp", "serve", "--list-tools", "--format", "json"])
        .run();
    assert_eq!((ran.status, ran.stderr.as_str()), (0, ""));
    let printed: Value = serde_json::from_str(&ran.stdout).unwrap();
    let served = Anklume::new()
        .args(["mcp", "serve"])
        .stdin(r#"{"jsonrpc":"2.0","method":"tools/list","id":1}"#)
        .run();
    let served: Value = serde_json::from_str(&served.stdout).unwrap();
    assert_eq!(printed, served["result"]);
}

#[test]
fn every_tool_says_what_runs_in_a_schema_that_every_client_reads() {
    let ran = Anklume::new()
        .args(["mcp", "serve", "--list-tools", "--format", "json"])
        .run();
    let listed: Value = serde_json::from_str(&ran.stdout).unwrap();
    for (tool, name) in listed["tools"].as_array().unwrap().iter().zip(TOOLS) {
        assert_eq!(tool["_meta"]["anklume/tool"], name);
        for word in ["title", "description"] {
            assert_ne!(tool[word].as_str().unwrap(), "", "{name}: {word}");
        }
        for hint in ["readOnlyHint", "destructiveHint", "idempotentHint"] {
            assert!(tool["annotations"][hint].is_boolean(), "{name}: {hint}");
        }
        assert_eq!(tool["annotations"]["openWorldHint"], false);
        for schema in ["inputSchema", "outputSchema"] {
            assert_eq!(tool[schema]["type"], "object", "{name}: {schema}");
            assert_eq!(
                tool[schema]["additionalProperties"], false,
                "{name}: {schema}"
            );
            assert_portable(&tool[schema]);
        }
    }
}

/// Asserts that a schema has no keyword that some client warns about or cannot handle.
#[track_caller]
fn assert_portable(schema: &Value) {
    match schema {
        Value::Object(members) => {
            for keyword in ["$ref", "$defs", "$schema", "format", "anyOf", "oneOf"] {
                assert!(!members.contains_key(keyword), "{keyword} in {schema}");
            }
            if let Some(kind) = members.get("type") {
                assert!(kind.is_string() || kind.is_object(), "{schema}");
            }
            members.values().for_each(assert_portable);
        }
        Value::Array(items) => items.iter().for_each(assert_portable),
        _ => {}
    }
}

#[test]
fn a_person_at_a_terminal_is_told_what_the_server_waits_for() {
    if !have_program("python3") {
        return;
    }
    // A new terminal, on which the test types Ctrl-D.
    let terminal = "
import os, pty, sys
server, terminal = pty.fork()
if server == 0:
    os.execv(sys.argv[1], [sys.argv[1], 'mcp', 'serve'])
os.write(terminal, b'\\x04')
shown = b''
while True:
    try:
        part = os.read(terminal, 4096)
    except OSError:
        break
    if not part:
        break
    shown += part
status = os.waitpid(server, 0)[1]
print(shown.decode().replace('\\r', ''), os.waitstatus_to_exitcode(status))
";
    let shown = std::process::Command::new("python3")
        .args(["-c", terminal, crate::harness::ANKLUME])
        .output()
        .unwrap();
    let shown = String::from_utf8(shown.stdout).unwrap();
    assert!(
        shown.contains("waiting for MCP messages on stdin, one a line; Ctrl-D ends")
            && shown.contains("anklume mcp list")
            && shown.ends_with(" 0\n"),
        "{shown}"
    );
}
