//! `anklume file` in a consumer, as a user would call it.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};

use super::world::{Listening, World};

const ACCEPT: &str = "{name: inbox, tool: file_accept, consumers: [alice]}";
const PROVIDE: &str = "{name: outbox, tool: file_provide, consumers: [alice]}";

fn alice() -> (World, Listening) {
    let world = World::new(&[ACCEPT, PROVIDE]);
    let server = world.listen();
    fs::create_dir(world.path("alice")).unwrap();
    symlink(server.socket("alice"), world.path("alice/vault.sock")).unwrap();
    let sockets = world.text("alice");
    (world.env("ANKLUME_SOCKET_DIR", sockets), server)
}

/// The path of a file that alice sent.
fn incoming(name: &str) -> String {
    format!("portal/incoming/alice/{name}")
}

#[test]
fn files_and_folders_are_sent_whole_with_their_modes() {
    let (world, server) = alice();
    let large = vec![7; 3 * 1024 * 1024 + 1];
    for folder in ["tree", "tree/b", "tree/empty"] {
        fs::create_dir(world.path(folder)).unwrap();
    }
    fs::write(world.path("tree/large"), &large).unwrap();
    world.write("tree/b/run", "#!/bin/sh");
    fs::set_permissions(world.path("tree/b/run"), fs::Permissions::from_mode(0o6750)).unwrap();
    world.write("note", "hello");
    symlink("note", world.path("link")).unwrap();
    world.run(&["file", "push", "note", "tree", "link"]).is(
        0,
        "",
        "sent note as incoming/alice/note\nsent tree/large as incoming/alice/tree/large\n\
         sent tree/b/run as incoming/alice/tree/b/run\nsent link as incoming/alice/link\n",
    );
    assert!(fs::read(world.path(&incoming("tree/large"))).unwrap() == large);
    let run = fs::metadata(world.path(&incoming("tree/b/run"))).unwrap();
    assert_eq!(run.permissions().mode() & 0o7777, 0o750);
    assert_eq!(fs::read(world.path(&incoming("link"))).unwrap(), b"hello");
    // Nothing is overwritten.
    world.write("note", "other");
    let again = world.run(&["file", "push", "note", "-i", "vault"]);
    again.is(
        1,
        "",
        "error: `note` was not sent: the provider reports: `incoming/alice/note` already exists, and nothing is overwritten; choose another name\n",
    );
    assert_eq!(fs::read(world.path(&incoming("note"))).unwrap(), b"hello");
    world
        .run_with(&["file", "push", "-", "--name", "piped"], &large)
        .is(0, "", "sent - as incoming/alice/piped\n");
    assert!(fs::read(world.path(&incoming("piped"))).unwrap() == large);
    server.end();
}

#[test]
fn what_cannot_be_sent_is_named_before_anything_is_sent() {
    let (world, server) = alice();
    world.write("note", "hello");
    fs::create_dir(world.path("tree")).unwrap();
    symlink("/etc/passwd", world.path("tree/link")).unwrap();
    for (args, status, stderr) in [
        (
            &["note", "nowhere"][..],
            1,
            "error: cannot read `nowhere`: No such file or directory (os error 2)\n",
        ),
        (
            &["note", "tree"],
            1,
            "error: `tree/link` is neither a file nor a folder\n  = help: links, devices and pipes are not sent\n",
        ),
        (
            &["note", "-"],
            2,
            "error: `-` has no name that the provider could use\n  = help: name it there: `--name NAME`\n",
        ),
        (
            &["note", "tree", "--name", "x"],
            2,
            "error: `--name` is for one file\n  = help: send the files one by one\n",
        ),
    ] {
        let ran = world.run(&[&["file", "push"], args].concat());
        ran.is(status, "", stderr);
        assert!(!world.path(&incoming("note")).exists(), "{args:?}");
    }
    // The positive control, and a name that leads out of the provider's folder.
    world
        .run(&["file", "push", "note"])
        .is(0, "", "sent note as incoming/alice/note\n");
    let out = world.run(&["file", "push", "note", "--name", "../bob/x"]);
    assert_eq!(out.status, 1, "{out:?}");
    assert!(!world.path("portal/incoming/bob").exists());
    server.end();
}

#[test]
fn files_are_fetched_whole_or_not_at_all() {
    let (world, server) = alice();
    let large = vec![7; 9 * 1024 * 1024 + 1];
    for folder in [
        "portal/outgoing",
        "portal/outgoing/all",
        "portal/outgoing/all/r",
        "here",
    ] {
        fs::create_dir_all(world.path(folder)).unwrap();
    }
    world.write("portal/outgoing/all/r/july", "july");
    fs::write(world.path("portal/outgoing/all/large"), &large).unwrap();
    world
        .run(&["file", "pull", "r/july", "large", "-o", "here"])
        .is(0, "", "created here/july\ncreated here/large\n");
    assert_eq!(fs::read(world.path("here/july")).unwrap(), b"july");
    assert!(fs::read(world.path("here/large")).unwrap() == large);
    world
        .run(&["file", "pull", "r/july", "-o", "-"])
        .is(0, "july", "");
    let exists = "error: `here/july` already exists\n  = help: remove it, or fetch into another folder: `-o DIR`\n";
    world
        .run(&["file", "pull", "r/july", "-o", "here"])
        .is(1, "", exists);
    world.run(&["file", "pull", "none", "-o", "here"]).is(
        1,
        "",
        "error: `none` was not fetched: the provider reports: no file `none` in the portal\n",
    );
    let twice = world.run(&["file", "pull", "r/july", "july"]);
    assert_eq!(twice.status, 1, "{twice:?}");
    world.run(&["file", "pull", "r/"]).is(
        2,
        "",
        "error: `r/` names no file\n  = help: name files, such as `reports/july.pdf`\n",
    );
    let left = fs::read_dir(world.path("here")).unwrap().count();
    assert_eq!(left, 2);
    server.end();
}
