//! `anklume clipboard` in a consumer, as a user would call it.

use std::fs;
use std::os::unix::fs::symlink;

use serde_json::json;

use super::world::{World, ended};
use crate::harness::{Anklume, have_program, png, x_server};

const GET: &str = "{name: paste, tool: clipboard_get, consumers: [alice]}";
const SET: &str = "{name: copy, tool: clipboard_set, consumers: [alice]}";

#[test]
fn a_text_goes_to_the_clipboard_of_another_machine_and_back() {
    let world = World::new(&[GET, SET]);
    let server = world.listen();
    fs::create_dir(world.path("alice")).unwrap();
    symlink(server.socket("alice"), world.path("alice/vault.sock")).unwrap();
    let sockets = world.text("alice");
    let world = world.env("ANKLUME_SOCKET_DIR", sockets);
    for text in ["", "bonjour", "two\nlines, \u{e9}\t\u{1b}[31m\n"] {
        let set = ["clipboard", "set", "-i", "vault"];
        world.run_with(&set, text.as_bytes()).is(0, "", "");
        world.run(&["clipboard", "get"]).is(0, text, "");
    }
    let binary = world.run_with(&["clipboard", "set"], b"\xff");
    binary.is(1, "", "error: stdin is neither UTF-8 text nor a PNG\n");
    let large = world.run_with(&["clipboard", "set"], "x".repeat(65537).as_bytes());
    assert_eq!((large.status, large.stdout.as_str()), (1, ""));
    assert!(
        large.stderr.starts_with("error: the provider reports: "),
        "{}",
        large.stderr
    );
    world
        .run(&["clipboard", "get"])
        .is(0, "two\nlines, \u{e9}\t\u{1b}[31m\n", "");
    world.run(&["clipboard", "get", "--service", "copy", "-i", "vault"]).is(
        3,
        "",
        "error: `copy` is not a service of vault that offers `clipboard_get` to this machine\n  = help: it offers: paste\n",
    );
    let listed = world.run(&["mcp", "list", "-i", "vault"]);
    assert_eq!(listed.status, 0, "{listed:?}");
    server.end();
}

#[test]
fn an_image_goes_to_the_clipboard_of_another_machine_and_back() {
    if !have_program("Xvfb") {
        return;
    }
    let (mut xvfb, display) = x_server();
    let world = World::new(&[GET, SET]).env("DISPLAY", display);
    let server = world.listen();
    fs::create_dir(world.path("alice")).unwrap();
    symlink(server.socket("alice"), world.path("alice/vault.sock")).unwrap();
    let sockets = world.text("alice");
    let world = world.env("ANKLUME_SOCKET_DIR", sockets);
    let get = || {
        let output = world.command(&["clipboard", "get"]).output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        output.stdout
    };
    // The largest one comes back only to a client that asks for one copy, as this one does.
    for size in [8, 700_000, 8 * 1024 * 1024] {
        let image = png(size);
        world.run_with(&["clipboard", "set"], &image).is(0, "", "");
        assert!(get() == image, "{size}");
    }
    world
        .run_with(&["clipboard", "set"], b"a text")
        .is(0, "", "");
    assert_eq!(get(), b"a text");
    let large = png(8 * 1024 * 1024 + 1);
    world.run_with(&["clipboard", "set"], &large).is(
        1,
        "",
        "error: stdin has more than 8388608 bytes\n  = help: send a file instead\n",
    );
    // A plain client gets an image of MCP.
    world.run_with(&["clipboard", "set"], &png(9)).is(0, "", "");
    let mut alice = server.peer("alice");
    let answer = alice.call("paste", &json!({}));
    assert_eq!(
        answer["result"]["content"],
        json!([{"type": "image", "data": "iVBORw0KGgoA", "mimeType": "image/png"}])
    );
    assert_eq!(
        answer["result"]["structuredContent"],
        json!({"text": "", "bytes": 9, "image": "iVBORw0KGgoA"})
    );
    world.run(&["clipboard", "offer", "--to", "alice"]).is(
        1,
        "",
        "error: the clipboard holds an image; only a text can be offered\n  = help: send it as a file\n",
    );
    // What is set last replaces it, and its holder ends.
    world.run_with(&["clipboard", "set"], b"").is(0, "", "");
    server.end();
    xvfb.kill().unwrap();
    xvfb.wait().unwrap();
}

#[test]
fn what_is_offered_is_given_once_to_its_consumer_and_nothing_else_is() {
    let offered = "{name: paste, tool: clipboard_get, consumers: [alice, bob], offered_only: true}";
    let world = World::new(&[
        offered,
        "{name: copy, tool: clipboard_set, consumers: [bob]}",
    ]);
    let server = world.listen();
    for name in ["alice", "bob"] {
        fs::create_dir(world.path(name)).unwrap();
        symlink(server.socket(name), world.path(name).join("vault.sock")).unwrap();
    }
    let get = |name: &str| {
        let sockets = world.path(name);
        let mut command = world.command(&["clipboard", "get", "-i", "vault"]);
        command.env("ANKLUME_SOCKET_DIR", sockets);
        ended(command)
    };
    let nothing = |name: &str| {
        format!(
            "error: the provider reports: nothing is offered to `{name}`; on the provider, `anklume clipboard offer --to {name}` offers it the clipboard for 60 s, once\n"
        )
    };
    world
        .run(&["mcp", "call", "clipboard_set", "content=everyday"])
        .is(0, "8 bytes on the clipboard", "");
    get("alice").is(1, "", &nothing("alice"));
    // As `clipboard offer` writes it, for which the operator needs the services file of a real machine (tests/incus).
    world.write("run/anklume/offered-alice", "secret");
    get("bob").is(1, "", &nothing("bob"));
    get("alice").is(0, "secret", "");
    get("alice").is(1, "", &nothing("alice"));
    world
        .run(&["mcp", "call", "clipboard_get"])
        .is(0, "everyday", "");
    world.run(&["clipboard", "offer", "--to", "nobody"]).is(
        3,
        "",
        "error: the provider reports: `nobody` is not a consumer of a service with `offered_only: true`; no machine is\n",
    );
    // A consumer neither offers nor chooses what it gets.
    let mut bob = server.peer("bob");
    for (tool, argument, arguments) in [
        (
            "copy",
            "offer_to",
            json!({"content": "x", "offer_to": "alice"}),
        ),
        ("paste", "offered_only", json!({"offered_only": false})),
    ] {
        let answer = bob.call(tool, &arguments);
        let text = answer["result"]["content"][0]["text"].as_str().unwrap();
        assert_eq!(text, format!("the caller may not set `{argument}`"));
    }
    get("alice").is(1, "", &nothing("alice"));
    server.end();
}

#[test]
fn sync_names_the_services_that_give_whatever_is_copied() {
    let infra = |with: &str| {
        format!(
            "domains:\n  d:\n    subnet_id: 0\n    machines:\n      vault:\n        services:\n          - {{name: paste, tool: clipboard_get, consumers: [dev]{with}}}\n      dev: {{}}\n"
        )
    };
    for (with, noted) in [
        ("", true),
        (", offered_only: false", true),
        (", offered_only: true", false),
        (", with: {offered_only: true}", false),
    ] {
        let ran = Anklume::new()
            .infra(&infra(with))
            .args(["sync", "--dry-run"])
            .run();
        let note = "note: the consumers of `vault/paste` may read what is copied there at any time (infra.yml:7); with `offered_only: true`, only what is offered to them\n";
        assert_eq!(ran.stderr.contains(note), noted, "{with}: {}", ran.stderr);
    }
}

#[test]
fn without_a_provider_one_is_asked_for() {
    let world = World::new(&[GET]);
    fs::create_dir(world.path("none")).unwrap();
    let none = world.text("none");
    let world = world.env("ANKLUME_SOCKET_DIR", none);
    world.run(&["clipboard", "get"]).is(
        2,
        "",
        "error: no provider of `clipboard_get` is named\n  = help: name it: `-i PROVIDER`\n",
    );
}
