//! The official clients, each through `mcp connect`: they list and call a consumer's services.

use std::process::Command;

use serde_json::{Value, json};

use super::world::{World, ended};
use crate::harness::{ANKLUME, have_program};
use crate::serve::clients::{node, python};
use crate::serve::server::Keyring;

/// Has a client list and call alice's services over her socket.
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
    .env("GNUPGHOME", keyring.path().to_str().unwrap());
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
