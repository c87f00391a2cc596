//! `anklume clipboard` in a consumer, as a user would call it.

use std::fs;
use std::os::unix::fs::symlink;

use super::world::World;

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
    binary.is(1, "", "error: stdin is not text in UTF-8\n");
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
        "error: `copy` is not a service of vault that offers `clipboard_get` to this machine\n  = help: `anklume mcp list -i PROVIDER` shows its services\n",
    );
    let listed = world.run(&["mcp", "list", "-i", "vault"]);
    assert_eq!(listed.status, 0, "{listed:?}");
    server.end();
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
