//! `anklume file` in a consumer, as a user would call it.

use std::fs;
use std::io::Write as _;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::thread;
use std::time::{Duration, SystemTime};

use std::os::unix::fs::{PermissionsExt as _, symlink};

use super::world::{Listening, World, ended};
use crate::harness::{ANKLUME, on_a_terminal};

const ACCEPT: &str = "{name: inbox, tool: file_accept, consumers: [alice]}";
const PROVIDE: &str = "{name: outbox, tool: file_provide, consumers: [alice]}";

pub(super) fn alice() -> (World, Listening) {
    let world = World::new(&[ACCEPT, PROVIDE]);
    let server = world.listen();
    fs::create_dir(world.path("alice")).unwrap();
    symlink(server.socket("alice"), world.path("alice/vault.sock")).unwrap();
    let sockets = world.text("alice");
    (world.env("ANKLUME_SOCKET_DIR", sockets), server)
}

fn time(second: i64, nanosecond: u32) -> SystemTime {
    let second = if second < 0 {
        SystemTime::UNIX_EPOCH - Duration::from_secs(second.unsigned_abs())
    } else {
        SystemTime::UNIX_EPOCH + Duration::from_secs(second.unsigned_abs())
    };
    second + Duration::from_nanos(nanosecond.into())
}

fn modified(path: &Path) -> SystemTime {
    fs::metadata(path).unwrap().modified().unwrap()
}

fn set_modified(path: &Path, time: SystemTime) {
    let file = fs::File::options().append(true).open(path).unwrap();
    file.set_modified(time).unwrap();
}

/// The path of a file that alice sent.
pub(super) fn incoming(name: &str) -> String {
    format!("portal/incoming/alice/{name}")
}

#[test]
fn files_and_folders_are_sent_whole_with_their_modes_and_times() {
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
    // Before 1970, and with nanoseconds.
    let times = [
        ("tree/b/run", time(-1, 250)),
        ("tree/large", time(1_700_000_000, 999_999_999)),
    ];
    for (name, time) in times {
        set_modified(&world.path(name), time);
    }
    world.run(&["file", "push", "note", "tree", "link"]).is(
        0,
        "",
        "sent note as incoming/alice/note\nsent tree/large as incoming/alice/tree/large\n\
         sent tree/b/run as incoming/alice/tree/b/run\nsent tree/empty as incoming/alice/tree/empty\n\
         sent link as incoming/alice/link\n",
    );
    assert!(world.path(&incoming("tree/empty")).is_dir());
    assert!(fs::read(world.path(&incoming("tree/large"))).unwrap() == large);
    let run = fs::metadata(world.path(&incoming("tree/b/run"))).unwrap();
    assert_eq!(run.permissions().mode() & 0o7777, 0o750);
    assert_eq!(fs::read(world.path(&incoming("link"))).unwrap(), b"hello");
    for (name, time) in times {
        assert_eq!(modified(&world.path(&incoming(name))), time, "{name}");
    }
    // Nothing is overwritten.
    world.write("note", "other");
    let again = world.run(&["file", "push", "note", "-i", "vault"]);
    again.is(
        1,
        "",
        "error: `note` was not sent: the provider reports: `incoming/alice/note` already exists, and nothing is overwritten; choose another name\n  = help: its content differs; send this one with `--name NAME`\n",
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
    let deep = "d/".repeat(17);
    fs::create_dir_all(world.path(&deep)).unwrap();
    world.write("named/-rf", "");
    for (args, status, stderr) in [
        (
            &["note", "d"][..],
            1,
            "error: `d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d` cannot be sent: the path is 17 names deep; at most 16 are allowed\n  = help: rename it, name it there with `--name NAME`, or send an archive\n",
        ),
        (
            &["note", "named/"],
            1,
            "error: `named/-rf` cannot be sent: the path `named/-rf` is not allowed: a name must not begin with `-`, which programs take for an option; try `named/_rf`\n  = help: rename it, name it there with `--name NAME`, or send an archive\n",
        ),
        (
            &["note", "--name", "../bob/x"],
            1,
            "error: `note` cannot be sent: the path `../bob/x` is not allowed: it contains the name `..`\n  = help: rename it, name it there with `--name NAME`, or send an archive\n",
        ),
        (
            &["note", "-i", "/inbox"],
            2,
            "error: `/inbox` does not name a service\n  = help: write it as PROVIDER or PROVIDER/SERVICE\n",
        ),
        (
            &["note", "-i", "vault/"],
            2,
            "error: `vault/` does not name a service\n  = help: write it as PROVIDER or PROVIDER/SERVICE\n",
        ),
        (
            &["note", "nowhere"],
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
    // The positive control, for programs.
    let sent = "[\n  {\n    \"file\": \"note\",\n    \"path\": \"incoming/alice/note\"\n  }\n]\n";
    world
        .run(&["file", "push", "note", "-q", "--format", "json"])
        .is(0, sent, "");
    // Some of several are there already.
    world.write("first", "first");
    world.write("note", "other");
    world.run(&["file", "push", "first", "note"]).is(
        1,
        "",
        "sent first as incoming/alice/first\n\
         1 of 2 were sent; the same command does not send them again\n\
         error: `note` was not sent: the provider reports: `incoming/alice/note` already exists, and nothing is overwritten; choose another name\n  = help: its content differs; send this one with `--name NAME`\n",
    );
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
    let permit = |name: &str, mode| {
        let path = world.path(&format!("portal/outgoing/all/{name}"));
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    };
    permit("r/july", 0o4755);
    permit("large", 0o600);
    let past = time(1_700_000_000, 5);
    set_modified(&world.path("portal/outgoing/all/large"), past);
    world
        .run(&["file", "pull", "r/july", "large", "-o", "here"])
        .is(0, "", "created here/july\ncreated here/large\n");
    assert_eq!(fs::read(world.path("here/july")).unwrap(), b"july");
    assert!(fs::read(world.path("here/large")).unwrap() == large);
    let mode = |name: &str| {
        let found = fs::metadata(world.path(name)).unwrap();
        found.permissions().mode() & 0o7777
    };
    assert_eq!((mode("here/july"), mode("here/large")), (0o755, 0o600));
    assert_eq!(modified(&world.path("here/large")), past);
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
    for (folder, why) in [
        (
            "none",
            "the folder `none` does not exist\n  = help: create it first",
        ),
        ("here/july", "`here/july` is not a folder"),
    ] {
        let why = format!("error: {why}\n");
        world
            .run(&["file", "pull", "large", "-o", folder])
            .is(1, "", &why);
    }
    fs::create_dir(world.path("json")).unwrap();
    world
        .run(&[
            "file", "pull", "r/july", "-o", "json", "-q", "--format", "json",
        ])
        .is(0, "[\n  \"json/july\"\n]\n", "");
    let twice = world.run(&["file", "pull", "r/july", "july"]);
    assert_eq!(twice.status, 1, "{twice:?}");
    world.run(&["file", "pull", ".."]).is(
        2,
        "",
        "error: `..` names no file\n  = help: name files or folders, such as `reports/july.pdf`\n",
    );
    let left = fs::read_dir(world.path("here")).unwrap().count();
    assert_eq!(left, 2);
    server.end();
}

#[test]
fn folders_are_listed_and_fetched_whole_without_what_leads_out_of_them() {
    let (world, server) = alice();
    for folder in ["all/r/deep/empty", "alice/r", "bob/r"] {
        fs::create_dir_all(world.path(&format!("portal/outgoing/{folder}"))).unwrap();
    }
    world.write("portal/outgoing/all/r/deep/f", "deep");
    world.write("portal/outgoing/all/r/one", "for all");
    world.write("portal/outgoing/alice/r/one", "for alice");
    world.write("portal/outgoing/bob/r/two", "for bob");
    world.write("portal/outgoing/all/single", "single");
    symlink("/etc/passwd", world.path("portal/outgoing/all/r/passwd")).unwrap();
    world.run(&["file", "list"]).is(0, "r/\nsingle\n", "");
    world.run(&["file", "list", "-i", "vault", "r/"]).is(
        0,
        "deep/\none\n",
        "note: 1 entry of `r` cannot be fetched: links, devices, or names that are not safe to show\n",
    );
    world
        .run(&["file", "list", "r", "--format", "json", "-q"])
        .is(0, "[\n  \"deep/\",\n  \"one\"\n]\n", "");
    for (name, why) in [
        ("none", "no file `none` in the portal"),
        ("single", "`single` is not a folder"),
        (
            "../bob",
            "the path `../bob` is not allowed: it contains the name `..`",
        ),
    ] {
        let why = format!("error: the provider reports: {why}\n");
        world.run(&["file", "list", name]).is(1, "", &why);
    }
    world.run(&["file", "pull", "r/", "single"]).is(
        0,
        "",
        "created ./r with 2 files\n\
         note: 1 entry of `./r` cannot be fetched: links, devices, or names that are not safe to show\n\
         created ./single\n",
    );
    assert_eq!(fs::read(world.path("r/deep/f")).unwrap(), b"deep");
    assert_eq!(fs::read(world.path("r/one")).unwrap(), b"for alice");
    assert!(world.path("r/deep/empty").is_dir());
    assert_eq!(fs::read_dir(world.path("r")).unwrap().count(), 2);
    let mode = fs::metadata(world.path("r")).unwrap().permissions().mode();
    assert_eq!(mode & 0o7777, 0o755);
    let again = "error: `./r` already exists\n  = help: remove it, or fetch into another folder: `-o DIR`\n";
    world.run(&["file", "pull", "r"]).is(1, "", again);
    world.run(&["file", "pull", "r", "-o", "-"]).is(
        1,
        "",
        "error: `r` was not fetched: the provider reports: `outgoing/alice/r` is a folder, which `entries` lists; only regular files can be read\n",
    );
    let names = fs::read_dir(world.path("")).unwrap();
    let hidden = names.filter(|name| {
        let name = name.as_ref().unwrap().file_name();
        name.to_string_lossy().starts_with(".anklume-")
    });
    assert_eq!(hidden.count(), 0);
    server.end();
}

#[test]
fn the_consoles_of_the_page_about_files_work() {
    let (world, server) = alice();
    symlink(ANKLUME, world.path("bin/anklume")).unwrap();
    let path = format!("{}:{}", world.text("bin"), std::env::var("PATH").unwrap());
    let world = world.env("PATH", path);
    for (name, content) in [
        ("report.pdf", "report"),
        ("photos/one.jpg", "photo"),
        ("portal/outgoing/all/july.pdf", "%PDF-1.7"),
        ("portal/outgoing/alice/reports/may.pdf", "may"),
        ("portal/outgoing/alice/reports/old/april.pdf", "april"),
    ] {
        world.write(name, content);
    }
    fs::create_dir(world.path("inbox")).unwrap();
    let page = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/files.md");
    let page = fs::read_to_string(page)
        .unwrap()
        .replace("work-dev", "alice");
    let blocks = page.split("```console\n").skip(1);
    let consoles: Vec<&str> = blocks
        .map(|block| block.split("```").next().unwrap())
        .collect();
    assert!(consoles.len() >= 4, "{consoles:?}");
    for console in consoles {
        for shown in console.split("$ ").skip(1) {
            let (command, expected) = shown.split_once('\n').unwrap();
            let mut shell = std::process::Command::new("sh");
            world.through(&mut shell, &[]);
            let ran = ended({
                shell.args(["-c", &format!("{command} 2>&1")]);
                shell
            });
            let said = ran.stdout.trim_end().to_owned() + "\n";
            assert_eq!((ran.status, said.as_str()), (0, expected), "{command}");
        }
    }
    server.end();
}

#[test]
fn progress_fits_the_terminal_and_leaves_no_trace() {
    let (world, _server) = alice();
    for (columns, form) in [(40, "%"), (80, "/5.00 MiB"), (140, "█")] {
        let name = format!(
            "a file with a name that is longer than what a terminal leaves to it, {columns}"
        );
        world.write(&name, vec![7; 5 * 1024 * 1024]);
        let mut command = world.command(&["file", "push", &name]);
        command.env("TERM", "xterm");
        let (status, shown) = on_a_terminal(command, columns, None);
        assert_eq!(status, 0, "{shown}");
        let lines: Vec<&str> = shown.split(['\r', '\n']).collect();
        let frames = lines
            .iter()
            .filter(|line| line.contains("a file with") && !line.contains("sent a file"));
        let frames: Vec<&str> = frames.copied().collect();
        assert!(frames.iter().any(|frame| frame.contains(form)), "{shown}");
        for frame in frames {
            // Each frame begins by erasing the line.
            let frame = frame.trim_start_matches("\u{1b}[2K");
            assert!(frame.chars().count() <= columns.into(), "{frame}");
        }
        assert!(!shown.contains(" EiB"), "{shown}");
    }
}

#[test]
fn the_same_push_again_sends_only_what_is_not_there() {
    let (world, _server) = alice();
    let large = vec![7; 3 * 1024 * 1024 + 1];
    fs::create_dir_all(world.path("tree/sub")).unwrap();
    world.write("tree/large", &large);
    world.write("tree/small", "hello");
    world.run(&["file", "push", "tree"]).is(
        0,
        "",
        "sent tree/large as incoming/alice/tree/large\nsent tree/small as incoming/alice/tree/small\n\
         sent tree/sub as incoming/alice/tree/sub\n",
    );
    world.write("tree/sub/new", "new");
    world.run(&["file", "push", "tree"]).is(
        0,
        "",
        "tree/large is there already, as incoming/alice/tree/large\n\
         tree/small is there already, as incoming/alice/tree/small\n\
         sent tree/sub/new as incoming/alice/tree/sub/new\n",
    );
    let ran = world.run(&[
        "file",
        "push",
        "tree/small",
        "--name",
        "tree/small",
        "--format",
        "json",
    ]);
    assert!(ran.stdout.contains("\"existed\": true"), "{}", ran.stdout);
    // Other content is not taken for it, whatever its length.
    for (name, content) in [
        ("small", b"HELLO".to_vec()),
        ("large", vec![8; large.len()]),
    ] {
        world.write(&format!("tree/{name}"), content);
        let ran = world.run(&["file", "push", "tree"]);
        assert_eq!(ran.status, 1, "{}", ran.stderr);
        let refused = format!(
            "error: `tree/{name}` was not sent: the provider reports: `incoming/alice/tree/{name}` already exists, and nothing \
             is overwritten; choose another name\n  = help: its content differs; send this one with `--name NAME`\n"
        );
        assert!(ran.stderr.contains(&refused), "{}", ran.stderr);
    }
    assert!(fs::read(world.path(&incoming("tree/large"))).unwrap() == large);
    assert_eq!(
        fs::read(world.path(&incoming("tree/small"))).unwrap(),
        b"hello"
    );
}

#[test]
fn the_provider_may_be_the_first_word() {
    let (world, server) = alice();
    world.write("note", "hello");
    let sent = |args: &[&str], name: &str| {
        let args = [&["file", "push"], args].concat();
        world
            .run(&args)
            .is(0, "", &format!("sent note as incoming/alice/{name}\n"));
    };
    sent(&["vault", "note"], "note");
    sent(&["vault/inbox", "note", "--name", "two"], "two");
    sent(&["-i", "vault/inbox", "note", "--name", "three"], "three");
    fs::create_dir_all(world.path("portal/outgoing/all")).unwrap();
    world.write("portal/outgoing/all/new", "fetched");
    world.run(&["file", "list", "vault"]).is(0, "new\n", "");
    world
        .run(&["file", "list", "vault/outbox", "."])
        .is(0, "new\n", "");
    let pulled = world.run(&["file", "pull", "vault", "new", "-o", "-"]);
    assert_eq!((pulled.status, pulled.stdout.as_str()), (0, "fetched"));
    let no_file = "error: no file is named\n  = help: name files or folders, or `-` for stdin\n";
    world.run(&["file", "push", "vault"]).is(2, "", no_file);
    // A file of that name is not taken for the provider, nor the provider for the file.
    world.write("vault", "a file");
    world.run(&["file", "push", "vault", "note"]).is(
        2,
        "",
        "error: `vault` is a file here, and may name the provider `vault`\n  \
         = help: write the file as `./vault`, or the provider as `-i vault`\n",
    );
    let both = world.run(&["file", "push", "-i", "vault", "vault"]);
    both.is(0, "", "sent vault as incoming/alice/vault\n");
    // What is not one of its providers is a file.
    let missing = world.run(&["file", "push", "other", "note"]);
    missing.is(
        1,
        "",
        "error: cannot read `other`: No such file or directory (os error 2)\n",
    );
    server.end();
}

/// A provider that never answers, but keeps the client busy.
fn busy_provider(socket: &Path) {
    let listener = UnixListener::bind(socket).unwrap();
    thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let ping = b"{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"ping\"}\n";
        while stream.write_all(ping).is_ok() {
            thread::sleep(Duration::from_millis(100));
        }
    });
}

#[test]
fn status_in_a_machine_shows_what_it_may_call_however_long_a_provider_talks() {
    let (world, server) = alice();
    let nowhere = world.text("nowhere");
    symlink(&nowhere, world.path("alice/gone.sock")).unwrap();
    busy_provider(&world.path("alice/busy.sock"));
    // With a file, it would be about that.
    fs::remove_file(world.path("infra.yml")).unwrap();
    let shown = world.run(&["status"]);
    let gone = world.text("alice/gone.sock");
    let shown_text = format!(
        "this is a machine that anklume did not set up\n\nPROVIDER  MAY CALL\n\
         busy      unknown: Cannot reach MCP server: no whole answer within 3 s\n\
         gone      unknown: Cannot reach MCP server: no socket exists at `{gone}`\n\
         vault     inbox, outbox\n"
    );
    shown.is(0, &shown_text, "");
    // Neither does it hold up a prompt.
    fs::remove_file(world.path("alice/busy.sock")).unwrap();
    busy_provider(&world.path("alice/busy.sock"));
    let completed = |line: &str| {
        let words: Vec<&str> = ["--"].into_iter().chain(line.split(' ')).collect();
        let mut command = world.command(&words);
        let output = command.env("_ANKLUME_COMPLETE", "fish").output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    assert_eq!(completed("anklume mcp call busy/"), "");
    assert_eq!(completed("anklume mcp call vault/in"), "vault/inbox\n");
    assert_eq!(completed("anklume file push va"), "vault\n");
    server.end();
}
