//! The official clients list and call every tool.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

use super::TOOLS;
use super::server::Keyring;
use crate::harness::{ANKLUME, have, have_program, scrub};

/// A file or folder in this project.
fn project(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// The Python client, if it is installed.
pub(crate) fn python(way: &str) -> Option<Command> {
    let program = project("target/python/bin/python");
    let there = program.exists() && project("target/python/bin/mcp").exists();
    if !have("the Python client (target/python)", there) {
        return None;
    }
    let mut command = Command::new(program);
    scrub(&mut command, &project("target"));
    // A warning from the client about the server is an error.
    command
        .args(["-W", "error"])
        .arg(project("tests/clients/client.py"))
        .arg(way);
    Some(command)
}

/// A TypeScript client, if it is installed.
pub(crate) fn node(way: &str) -> Option<Command> {
    let packages = project("target/node/node_modules");
    let there = packages.join("@modelcontextprotocol/client").exists();
    if !have("the TypeScript clients (target/node)", there) || !have_program("node") {
        return None;
    }
    let mut command = Command::new("node");
    scrub(&mut command, &project("target"));
    command
        .env("NODE_PATH", packages)
        .arg(project("tests/clients/client.cjs"))
        .arg(way);
    Some(command)
}

/// Makes a client list the tools and call all five, and checks the results.
fn calls_every_tool(client: Option<Command>, version: &str) {
    let (Some(mut client), true) = (client, have_program("gpg")) else {
        return;
    };
    let keyring = Keyring::new();
    let folder = tempfile::tempdir().unwrap();
    for name in ["portal", "runtime"] {
        let path = folder.path().join(name);
        std::fs::create_dir(&path).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o700)).unwrap();
    }
    let plan = json!([
        ["gpg_sign", {"data": "aGVsbG8="}],
        ["clipboard_set", {"content": "bonjour à tous"}],
        ["clipboard_get", {}],
        ["file_accept", {"path": "note.txt", "data": "aGVsbG8="}],
        ["file_provide", {"path": "note.txt"}],
        ["file_provide", {"path": "none.txt"}],
    ]);
    client
        .arg(plan.to_string())
        .args([ANKLUME, "mcp", "serve"])
        .env("GNUPGHOME", keyring.path())
        .env("ANKLUME_MCP_PORTAL", folder.path().join("portal"))
        .env("XDG_RUNTIME_DIR", folder.path().join("runtime"));
    let ran = client.output().unwrap();
    let stderr = String::from_utf8(ran.stderr).unwrap();
    assert_eq!((ran.status.code(), stderr.as_str()), (Some(0), ""));
    let told: Value = serde_json::from_slice(&ran.stdout).unwrap();

    assert_eq!(told["version"], version);
    assert_eq!(told["tools"], json!(TOOLS));
    let [signed, set, got, accepted, provided, missing] =
        told["results"].as_array().unwrap().as_slice()
    else {
        panic!("{told}");
    };
    for result in [signed, set, got, accepted, provided] {
        assert_eq!(result["error"], false, "{result}");
        assert!(result["structured"].is_object(), "{result}");
    }
    let text = |result: &Value| result["text"][0].as_str().unwrap().to_owned();
    assert!(keyring.verifies(b"hello", &text(signed)));
    assert_eq!(text(got), "bonjour à tous");
    let written = folder.path().join("portal/note.txt");
    assert_eq!(std::fs::read(written).unwrap(), b"hello");
    assert_eq!(text(provided), "aGVsbG8=");
    assert_eq!(missing["error"], true);
    assert_eq!(missing["structured"], Value::Null);
}

#[test]
fn python_with_a_handshake() {
    calls_every_tool(python("initialize"), "2025-11-25");
}

#[test]
fn python_that_asks_first() {
    calls_every_tool(python("auto"), "2026-07-28");
}

#[test]
fn typescript_1() {
    calls_every_tool(node("sdk"), "2025-11-25");
}

#[test]
fn typescript_2_with_a_handshake() {
    calls_every_tool(node("legacy"), "2025-11-25");
}

#[test]
fn typescript_2_that_asks_first_with_a_server_of_its_own() {
    calls_every_tool(node("auto"), "2026-07-28");
}
