//! The official clients list and call a consumer's services, each through `mcp connect`.

use std::process::Command;

use serde_json::{Value, json};

use super::world::{World, ended, until};
use crate::harness::{ANKLUME, have_program};
use crate::serve::clients::{node, python};
use crate::serve::server::Keyring;

/// Makes a client list and call alice's services over her socket.
fn uses_its_services(client: Option<Command>, version: &str) {
    let (Some(mut client), true) = (client, have_program("gpg")) else {
        return;
    };
    let keyring = Keyring::new();
    let world = World::new(&[
        "{name: release_sign, tool: gpg_sign, consumers: [alice]}",
        "{name: copy, tool: clipboard_set, consumers: [alice]}",
        "{name: drop_off, tool: file_accept, consumers: [alice]}",
        "{name: pick_up, tool: file_provide, consumers: [alice]}",
        "{name: paste, tool: clipboard_get, consumers: [bob]}",
    ])
    .keyring(&keyring);
    world.write("portal/outgoing/all/note", "hello");
    let server = world.listen();
    let plan = json!([
        ["release_sign", {"data": "aGVsbG8="}],
        ["copy", {"content": "bonjour à tous"}],
        ["drop_off", {"path": "note.txt", "data": "aGVsbG8="}],
        ["pick_up", {"path": "note"}],
        ["pick_up", {"path": "none"}],
    ]);
    client
        .arg(plan.to_string())
        .args([ANKLUME, "mcp", "connect", "--socket"])
        .arg(server.socket("alice"));
    let ran = ended(client);
    assert_eq!((ran.status, ran.stderr.as_str()), (0, ""));
    let told: Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!(told["version"], version);
    assert_eq!(
        told["tools"],
        json!(["release_sign", "copy", "drop_off", "pick_up"])
    );
    let [signed, copied, dropped, picked, missing] = told["results"].as_array().unwrap().as_slice()
    else {
        panic!("{told}");
    };
    for result in [signed, copied, dropped, picked] {
        assert_eq!(result["error"], false, "{result}");
        assert!(result["structured"].is_object(), "{result}");
    }
    assert!(keyring.verifies(b"hello", signed["text"][0].as_str().unwrap()));
    assert_eq!(world.clipboard().as_deref(), Some("bonjour à tous"));
    let written = world.path("portal/incoming/alice/note.txt");
    assert_eq!(std::fs::read(written).unwrap(), b"hello");
    assert_eq!(picked["text"][0], "aGVsbG8=");
    assert_eq!(missing["error"], true);
    server.end();
    let calls = world.logged("call");
    assert!(calls.iter().all(|line| line["caller"] == "alice"));
    assert_eq!(calls.len(), 5);
}

#[test]
fn python_with_a_handshake() {
    uses_its_services(python("initialize"), "2025-11-25");
}

#[test]
fn python_that_asks_first() {
    uses_its_services(python("auto"), "2026-07-28");
}

#[test]
fn typescript_1() {
    uses_its_services(node("sdk"), "2025-11-25");
}

#[test]
fn typescript_2_with_a_handshake() {
    uses_its_services(node("legacy"), "2025-11-25");
}

#[test]
fn typescript_2_that_asks_first() {
    uses_its_services(node("auto"), "2026-07-28");
}

/// Makes a client call before its provider is killed, while no server is running, and after another one has started.
fn outlives_its_provider(client: Option<Command>) {
    let Some(mut client) = client else { return };
    let world = World::new(&["{name: copy, tool: clipboard_set, consumers: [alice]}"]);
    let mut server = world.listen();
    let socket = server.socket("alice");
    let pause = |name: &str| {
        let path = |end: &str| world.path(&format!("{name}.{end}"));
        json!(["pause", {"ready": path("ready"), "go": path("go")}])
    };
    let plan = json!([
        ["copy", {"content": "before"}],
        pause("killed"),
        ["copy", {"content": "nobody"}],
        pause("restarted"),
        ["copy", {"content": "after"}],
    ]);
    client
        .arg(plan.to_string())
        .args([ANKLUME, "mcp", "connect", "--socket"])
        .arg(socket)
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped());
    let running = client.spawn().unwrap();
    until("it has called", || world.path("killed.ready").exists());
    server.signal("KILL");
    server.wait();
    world.write("killed.go", "");
    until("it was refused", || world.path("restarted.ready").exists());
    let server = world.listen();
    world.write("restarted.go", "");
    let ran = running.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&ran.stderr);
    assert!(ran.status.success(), "{said}");
    let told: Value = serde_json::from_slice(&ran.stdout).unwrap();
    let results = told["results"].as_array().unwrap();
    let errors: Vec<&Value> = results.iter().map(|result| &result["error"]).collect();
    assert_eq!(errors, [false, true, false], "{told}");
    let why = results[1]["text"][0].as_str().unwrap();
    // The call may have been sent before or after the disconnect was noticed.
    let causes = [
        "Cannot reach MCP server",
        "the provider closed the connection",
    ];
    assert!(causes.iter().any(|cause| why.contains(cause)), "{why}");
    assert_eq!(world.clipboard().as_deref(), Some("after"));
    drop(server);
}

#[test]
fn python_outlives_its_provider() {
    outlives_its_provider(python("initialize"));
}

#[test]
fn python_that_asks_first_outlives_its_provider() {
    outlives_its_provider(python("auto"));
}

#[test]
fn typescript_1_outlives_its_provider() {
    outlives_its_provider(node("sdk"));
}

#[test]
fn typescript_2_outlives_its_provider() {
    outlives_its_provider(node("legacy"));
}
