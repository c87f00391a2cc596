//! The audit log: it has a line for each call, can be shown and verified, and reveals tampering.

use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::thread;

use anklume::audit::{Event, Log, ROTATE_AT};
use serde_json::{Value, json};

use super::peer::{call, cancel};
use super::tamper::hash;
use super::text;
use super::world::{World, lines_of, until};
use crate::harness::have_program;
use crate::serve::server::Keyring;

const SERVICES: [&str; 2] = [
    "{name: copy, tool: clipboard_set, consumers: [alice]}",
    "{name: paste, tool: clipboard_get, consumers: [bob]}",
];

/// A world whose log has six lines: start, four calls, stop.
pub(super) fn six_lines() -> World {
    let world = World::new(&SERVICES);
    let server = world.listen();
    let mut alice = server.peer("alice");
    text(&alice.call("copy", &json!({"content": "one"})));
    alice.call("paste", &json!({}));
    alice.call("nowhere", &json!({}));
    text(&server.peer("bob").call("paste", &json!({})));
    drop(alice);
    server.end();
    assert_eq!(world.log().len(), 6);
    world
}

/// The output of `audit show`, with everything that differs between runs replaced.
fn steady(text: &str) -> String {
    let steady = |line: &str| {
        let (time, rest) = line.split_at(20);
        assert!(time.ends_with('Z') && time.as_bytes()[10] == b'T', "{line}");
        let words: Vec<&str> = rest.split(' ').collect();
        let next_is = |at: usize, what: &str| words.get(at + 1).is_some_and(|word| *word == what);
        let after = |at: usize, what: &str| at > 0 && words[at - 1] == what;
        let words: Vec<&str> = words
            .iter()
            .enumerate()
            .map(|(at, word)| match *word {
                _ if next_is(at, "ms") => "N",
                _ if after(at, "policy") => "P)",
                word => word,
            })
            .collect();
        format!("T{}\n", words.join(" "))
    };
    text.lines().map(steady).collect()
}

#[test]
fn the_log_shows_what_is_asked_for() {
    let world = six_lines();
    let copy = call(1, "copy", &json!({"content": "one"})).len();
    let paste = call(1, "paste", &json!({})).len();
    let version = env!("CARGO_PKG_VERSION");
    let started = format!("T  server started (anklume {version}, policy P)\n");
    let copied =
        format!("T  allowed  alice  copy (clipboard_set)  done, {copy} B in, 24 B out, N ms\n");
    let denied = "T  refused  alice  paste (clipboard_get)  not a consumer\n";
    let unknown = "T  refused  alice  nowhere  no such service\n";
    let pasted =
        format!("T  allowed  bob  paste (clipboard_get)  done, {paste} B in, 3 B out, N ms\n");
    let stopped = "T  server stopped\n";
    let show = |args: &[&str]| {
        let ran = world.run(&[&["audit", "show"], args].concat());
        // No matching line is not the same as an empty log.
        let note = if ran.stdout.is_empty() {
            "note: none of 6 line(s) matches\n"
        } else {
            ""
        };
        assert_eq!((ran.status, ran.stderr.as_str()), (0, note), "{args:?}");
        steady(&ran.stdout)
    };
    let all = [&started, &copied, denied, unknown, &pasted, stopped].concat();
    assert_eq!(show(&[]), all);
    assert_eq!(show(&["--since", "1h"]), all);
    assert_eq!(show(&["--since", "2020-01-01T00:00:00Z"]), all);
    assert_eq!(show(&["--since", "2120-01-01T00:00:00Z"]), "");
    assert_eq!(
        show(&["--caller", "alice"]),
        [&copied, denied, unknown].concat()
    );
    assert_eq!(show(&["--caller", "carol"]), "");
    assert_eq!(show(&["--service", "paste"]), [denied, &pasted].concat());
    assert_eq!(show(&["--decision", "refused"]), [denied, unknown].concat());
    let narrow = ["--caller", "alice", "--service", "paste"];
    assert_eq!(
        show(&[&narrow[..], &["--decision", "refused"]].concat()),
        denied
    );
    assert_eq!(
        show(&[&narrow[..], &["--decision", "allowed"]].concat()),
        ""
    );
    let json = world.run(&["audit", "show", "--format", "json", "--service", "copy"]);
    assert_eq!(
        json.stdout,
        lines_of(&world.path("log/audit.jsonl"))[1].clone() + "\n"
    );
    let wrong = world.run(&["audit", "show", "--since", "soon"]);
    wrong.is(2, "", "error: `--since soon` is not a time\n  = help: write it as 2026-11-22, 2026-11-22T10:00:00Z, or how long ago: 90s, 15m, 2h, 7d\n");
    let none = world.run(&["audit", "show", "--file", "none.jsonl"]);
    none.is(1, "", "error: no audit log found at `none.jsonl`\n  = help: a provider's log is in its machine: `anklume audit show -i PROVIDER`; name another log with --file\n");
}

#[test]
fn a_line_holds_what_the_design_says() {
    let world = six_lines();
    let log = world.log();
    let line = &log[1];
    let keys: Vec<&str> = line
        .as_object()
        .unwrap()
        .keys()
        .map(String::as_str)
        .collect();
    let expected = [
        "seq",
        "time",
        "event",
        "id",
        "caller",
        "service",
        "tool",
        "decision",
        "reason",
        "policy",
        "outcome",
        "bytes_in",
        "bytes_out",
        "duration_us",
        "arguments",
        "previous",
        "hash",
    ];
    assert_eq!(keys, expected);
    assert_eq!(
        (&line["id"], &line["outcome"]),
        (&json!("1"), &json!("done"))
    );
    let file: Value =
        serde_json::from_slice(&fs::read(world.path("services.json")).unwrap()).unwrap();
    assert_eq!(line["policy"], file["digest"]);
    // Equal arguments have equal digests; a digest is keyed, so it is not the plain hash of guessable text.
    assert_eq!(log[2]["arguments"], log[3]["arguments"]);
    assert_ne!(log[1]["arguments"], log[2]["arguments"]);
    for file in ["audit.jsonl", "audit.key"] {
        let mode = fs::metadata(world.path("log").join(file))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600, "{file}");
    }
}

#[test]
fn no_name_and_no_id_forges_or_breaks_a_line() {
    let world = World::new(&SERVICES);
    let server = world.listen();
    let mut alice = server.peer("alice");
    let forged = lines_like("alice");
    let names = [
        "a\nb",
        "a\r\nb",
        &forged,
        "\u{1b}[2J\u{1b}]0;x\u{7}",
        "\"}\n{\"seq\":1,\"event\":\"stop\"}",
        "\",\"hash\":\"00\"}",
        "\0",
        "\u{202e}x\u{2028}\u{85}",
        &"x".repeat(1024 * 1024),
        &"\n".repeat(1024 * 1024),
        &"é".repeat(1000),
    ];
    for name in names {
        let answer = alice.call(name, &json!({name: name}));
        assert_eq!(answer["error"]["code"], -32602);
        let id = name.chars().take(300).collect::<String>();
        let answer = alice.ask(call(id.as_str(), name, &json!({})));
        assert_eq!(answer["id"], *id);
    }
    drop(alice);
    server.end();
    world.log_is_intact();
    for line in lines_of(&world.path("log/audit.jsonl")) {
        assert!(line.len() < 1024, "{} bytes", line.len());
        assert!(
            line.bytes().all(|byte| (b' '..=b'~').contains(&byte)),
            "{line:?}"
        );
    }
    let events: Vec<Value> = world
        .log()
        .iter()
        .map(|line| line["event"].clone())
        .collect();
    let (first, last) = (events.first().unwrap(), events.last().unwrap());
    assert_eq!((first, last), (&json!("start"), &json!("stop")));
    let told: u64 = world.logged("call").len() as u64
        + world
            .logged("counted")
            .iter()
            .map(|line| line["count"].as_u64().unwrap())
            .sum::<u64>();
    assert_eq!(told, 2 * names.len() as u64);
    let shown = world.run(&["audit", "show"]);
    assert_eq!(shown.stdout.lines().count(), world.log().len());
    let safe = |c: char| c == '\n' || !(c.is_control() || c == '\u{202e}' || c == '\u{2028}');
    assert!(shown.stdout.chars().all(safe), "{:?}", shown.stdout);
}

/// Text that an attacker might try to pass off as log lines.
fn lines_like(caller: &str) -> String {
    format!(
        "x\n{{\"seq\":2,\"time\":\"2026-01-01T00:00:00Z\",\"event\":\"call\",\"caller\":\"{caller}\"}}\n"
    )
}

#[test]
fn contents_are_never_in_the_log_nor_on_stderr() {
    let secret = "sesame-open-4711";
    let world = World::new(&[
        "{name: copy, tool: clipboard_set, consumers: [alice]}",
        "{name: paste, tool: clipboard_get, consumers: [alice]}",
        "{name: take, tool: file_accept, consumers: [alice]}",
        "{name: give, tool: file_provide, consumers: [alice]}",
    ]);
    world.write("portal/outgoing/alice/f", secret);
    let args = [
        "mcp",
        "serve",
        "--listen",
        "sockets",
        "--services",
        "services.json",
        "-v",
    ];
    let server = world.listen_by(world.command(&args));
    let mut alice = server.peer("alice");
    let encoded = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, secret);
    text(&alice.call("copy", &json!({"content": secret})));
    assert_eq!(text(&alice.call("paste", &json!({}))), secret);
    text(&alice.call("take", &json!({"path": secret, "data": encoded})));
    text(&alice.call("give", &json!({"path": "f"})));
    alice.call("give", &json!({"path": secret}));
    alice.call("copy", &json!({secret: secret, "content": 1}));
    alice.call("nowhere", &json!({secret: secret}));
    alice.ask(json!({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "copy", "arguments": secret, secret: secret}}).to_string());
    let said = server.stderr();
    drop(alice);
    server.end();
    let mut held = said.into_bytes();
    for file in fs::read_dir(world.path("log")).unwrap() {
        held.extend(fs::read(file.unwrap().path()).unwrap());
    }
    assert!(world.logged("call").len() == 7);
    for word in [secret, &encoded] {
        let found = held
            .windows(word.len())
            .any(|window| window == word.as_bytes());
        assert!(!found, "{word}: {}", String::from_utf8_lossy(&held));
    }
}

#[test]
fn a_flood_of_refusals_is_counted_and_takes_nobody_elses_share() {
    let world = World::new(&SERVICES);
    let server = world.listen();
    let mut alice = server.peer("alice");
    let flood: Vec<String> = (0..1_000)
        .map(|number| call(number, &format!("no_{number}"), &json!({})))
        .collect();
    for lines in flood.chunks(50) {
        alice.send(lines.join("\n"));
        for _ in lines {
            assert_eq!(alice.receive()["error"]["code"], -32602);
        }
    }
    let mut bob = server.peer("bob");
    bob.call("copy", &json!({}));
    drop(bob);
    server.end();
    let own = world.logged("call");
    assert_eq!(own.iter().filter(|line| line["caller"] == "bob").count(), 1);
    let own = own.iter().filter(|line| line["caller"] == "alice").count() as u64;
    let counted = world.logged("counted");
    let total: u64 = counted
        .iter()
        .map(|line| line["count"].as_u64().unwrap())
        .sum();
    assert_eq!(own + total, 1_000);
    assert!(own + counted.len() as u64 <= 100, "{own} {}", counted.len());
    world.log_is_intact();
}

#[test]
fn on_stdio_the_refusals_that_were_counted_are_in_the_log_at_the_end() {
    let calls: Vec<String> = (0..100).map(|id| call(id, "nowhere", &json!({}))).collect();
    let bob = ["--caller", "bob", "--services", "services.json"];
    // A machine may even be called `operator`, and is not mistaken for the operator.
    let machine = ["--caller", "operator", "--services", "services.json"];
    let callers = [
        ("bob", &bob[..]),
        ("operator", &machine),
        ("(operator)", &[]),
    ];
    for (caller, args) in callers {
        let world = World::new(&SERVICES);
        let args = [&["mcp", "serve"], args].concat();
        let ran = world.run_with(&args, calls.join("\n").as_bytes());
        assert_eq!(
            (ran.status, ran.stdout.lines().count()),
            (0, 100),
            "{ran:?}"
        );
        let own = world.logged("call").len() as u64;
        let counted = world.logged("counted");
        assert_eq!(counted.len(), 1, "{caller}");
        assert_eq!(counted[0]["caller"], caller);
        assert_eq!(own + counted[0]["count"].as_u64().unwrap(), 100);
        world.log_is_intact();
    }
}

#[test]
fn several_servers_on_one_log_keep_one_chain() {
    let world = World::new(&["{name: copy, tool: clipboard_set, consumers: [alice, bob]}"]);
    let listen = |folder: &str| {
        let args = [
            "mcp",
            "serve",
            "--listen",
            folder,
            "--services",
            "services.json",
        ];
        world.listen_by(world.command(&args))
    };
    let (first, second) = (listen("sockets"), listen("others"));
    let calls = |socket: &Path, consumer: &str| {
        let mut peer = super::peer::Peer::connect(&socket.join(format!("{consumer}.sock")));
        for number in 0..40 {
            text(&peer.call("copy", &json!({"content": number.to_string()})));
        }
    };
    let input: Vec<String> = (0..40)
        .map(|id| call(id, "copy", &json!({"content": "x"})))
        .collect();
    let input = input.join("\n");
    thread::scope(|scope| {
        for folder in ["sockets", "others"] {
            for consumer in ["alice", "bob"] {
                let folder = world.path(folder);
                scope.spawn(move || calls(&folder, consumer));
            }
        }
        for _ in 0..2 {
            scope.spawn(|| {
                let args = [
                    "mcp",
                    "serve",
                    "--caller",
                    "alice",
                    "--services",
                    "services.json",
                ];
                assert_eq!(world.run_with(&args, input.as_bytes()).status, 0);
            });
        }
    });
    first.end();
    second.end();
    assert_eq!(world.logged("call").len(), 6 * 40);
    assert_eq!(world.logged("start").len(), 4);
    assert_eq!(world.logged("stop").len(), 4);
    world.log_is_intact();
}

#[test]
fn a_log_that_has_grown_goes_on_in_a_new_file_in_one_chain() {
    let world = World::new(&SERVICES);
    let path = world.path("log/audit.jsonl");
    let log = Log::open(&path).unwrap();
    let filler = "x".repeat(60_000);
    while fs::metadata(&path).unwrap().len() < ROTATE_AT {
        let (policy, refused) = ("".into(), Some(filler.as_str().into()));
        log.append(Event::Reload { policy, refused }).unwrap();
    }
    let before = lines_of(&path).len();
    let server = world.listen();
    text(&server.peer("alice").call("copy", &json!({"content": "x"})));
    server.end();
    let old = world.path("log/audit.jsonl.1");
    assert_eq!(lines_of(&old).len(), before);
    let events: Vec<Value> = world
        .log()
        .iter()
        .map(|line| line["event"].clone())
        .collect();
    assert_eq!(events, ["rotated", "start", "call", "stop"]);
    let ran = world.run(&["audit", "verify"]);
    let lines = before + 4;
    let head = hash(lines_of(&path).last().unwrap());
    ran.is(
        0,
        &format!("intact: {lines} line(s) from number 1 on, head {head} (number {lines})\n"),
        "",
    );
    // The old file is missing.
    let oldest = hash(&lines_of(&old)[0]);
    fs::remove_file(&old).unwrap();
    let file = path.display();
    let (first, found) = (before + 1, lines - before);
    world.run(&["audit", "verify"]).is(
        1,
        &format!("{file}:1: {before} line(s) before it were removed\nNOT intact: {found} line(s) from number {first} on, head {head} (number {lines})\n"),
        "",
    );
    // The line with a recorded head may have been removed with that file.
    let ran = world.run(&["audit", "verify", "--head", &oldest]);
    let missing = format!(
        "\nthe line with the given head is missing: it is older than number {first}, where the log now begins, or the log was truncated or rewritten\n"
    );
    assert!(ran.stdout.contains(&missing), "{ran:?}");
}

#[test]
fn a_services_file_with_a_long_fault_leaves_a_log_that_goes_on() {
    let world = World::new(&SERVICES);
    let server = world.listen();
    let key = "x".repeat(1024 * 1024);
    world.policy_bytes(format!("{{\"{key}\": 1}}").as_bytes());
    until("it is refused", || !world.logged("reload").is_empty());
    text(
        &server
            .peer("alice")
            .call("copy", &json!({"content": "one"})),
    );
    server.end();
    world.log_is_intact();
}

#[test]
fn the_words_of_a_refusal_are_shown_as_they_are() {
    let world = World::new(&["{name: sign, tool: gpg_sign, consumers: [alice]}"]);
    let server = world.listen();
    let mut alice = server.peer("alice");
    alice.call("sign", &json!({"data": "aGk=", "key_id": "AA"}));
    alice.call("it's\n\u{1b}", &json!({}));
    drop(alice);
    server.end();
    let shown = world
        .run(&["audit", "show", "--decision", "refused"])
        .stdout;
    let shown: Vec<&str> = shown
        .lines()
        .map(|line| line.split_once("  ").unwrap().1)
        .collect();
    let expected = [
        "refused  alice  sign (gpg_sign)  the caller may not set `key_id`",
        "refused  alice  it's\\n\\u{1b}  no such service",
    ];
    assert_eq!(shown, expected);
}

#[test]
fn a_call_that_is_taken_back_has_its_line() {
    if !have_program("gpg") {
        return;
    }
    let keyring = Keyring::new();
    let world =
        World::new(&["{name: sign, tool: gpg_sign, consumers: [alice], limits: {in_flight: 1}}"])
            .held_gpg()
            .keyring(&keyring);
    let server = world.listen();
    let mut alice = server.peer("alice");
    let data = json!({"data": "aGVsbG8="});
    alice.send(call("runs", "sign", &data));
    until("it runs", || world.gpg_waits());
    alice.send(call("waits", "sign", &data));
    alice.lives();
    for id in ["waits", "runs"] {
        alice.send(cancel(id));
        until("it is in the log", || {
            let calls = world.logged("call");
            calls.iter().any(|line| line["id"] == format!("\"{id}\""))
        });
    }
    let told: Vec<_> = world
        .logged("call")
        .into_iter()
        .map(|line| (line["id"].clone(), line["outcome"].clone()))
        .collect();
    let expected = [("\"waits\"", "not_run"), ("\"runs\"", "cancelled")];
    assert_eq!(
        told,
        expected.map(|(id, outcome)| (id.into(), outcome.into()))
    );
    alice.lives();
}

#[test]
fn the_pieces_of_a_transfer_are_shown_as_one_line_and_logged_each() {
    let world = World::new(&["{name: inbox, tool: file_accept, consumers: [alice, bob]}"]);
    let server = world.listen();
    let (mut alice, mut bob) = (server.peer("alice"), server.peer("bob"));
    let piece = |peer: &mut super::peer::Peer, path: &str, offset: u64, last: bool| {
        let arguments = json!({"path": path, "data": "aGk=", "offset": offset, "final": last});
        let answer = peer.call("inbox", &arguments);
        assert_eq!(answer["result"]["isError"], json!(false), "{answer}");
    };
    // Two transfers of alice's and one of bob's in turns, and a call that is no piece.
    for (offset, last) in [(0, false), (2, false), (4, true)] {
        piece(&mut alice, "one", offset, last);
        piece(&mut alice, "two", offset, last);
        piece(&mut bob, "one", offset, last);
    }
    let whole = json!({"path": "whole", "data": "aGk="});
    alice.call("inbox", &whole);
    // One that is interrupted, and one of a name that is taken.
    piece(&mut bob, "two", 0, false);
    piece(&mut bob, "two", 2, false);
    let taken = json!({"path": "one", "data": "aGk=", "offset": 0, "final": false});
    let answer = alice.call("inbox", &taken);
    assert_eq!(answer["result"]["isError"], json!(true), "{answer}");
    server.end();
    let calls = world.logged("call");
    let transfers: Vec<Option<&str>> = calls.iter().map(|call| call["transfer"].as_str()).collect();
    assert_eq!((transfers.len(), transfers[9]), (13, None));
    let names: std::collections::BTreeSet<_> = transfers.iter().flatten().collect();
    assert_eq!(names.len(), 5, "{transfers:?}");
    let shown = world.run(&["audit", "show", "--service", "inbox"]);
    let words = |line: &str| -> Vec<String> {
        let words = line.split_whitespace().skip(1);
        words
            .map(str::to_owned)
            .filter(|word| word.parse::<f64>().is_err())
            .collect()
    };
    let lines: Vec<String> = shown
        .stdout
        .lines()
        .map(|line| words(line).join(" "))
        .collect();
    let one = |caller: &str, outcome: &str, pieces: &str| {
        format!("allowed {caller} inbox (file_accept) {outcome}, B in, B out, ms{pieces}")
    };
    assert_eq!(
        lines,
        [
            one("alice", "done", " (3 pieces)"),
            one("alice", "done", " (3 pieces)"),
            one("bob", "done", " (3 pieces)"),
            one("alice", "done", ""),
            one("bob", "done", " (2 pieces, incomplete)"),
            one("alice", "failed", ""),
        ]
    );
    let bytes: u64 = calls
        .iter()
        .map(|call| call["bytes_in"].as_u64().unwrap())
        .sum();
    let shown: u64 = shown
        .stdout
        .lines()
        .map(|line| {
            line.split(" B in")
                .next()
                .unwrap()
                .rsplit(' ')
                .next()
                .unwrap()
        })
        .map(|number| number.parse::<u64>().unwrap())
        .sum();
    assert_eq!(shown, bytes);
    world.log_is_intact();
}

#[test]
fn the_last_lines_are_shown_and_then_each_new_one_over_a_rotation() {
    let world = six_lines();
    let all = world.run(&["audit", "show"]).stdout;
    let last = |number: &str| world.run(&["audit", "show", "-n", number]);
    let (_, two) = all.trim_end().rsplit_once('\n').unwrap();
    last("1").is(0, &format!("{two}\n"), "");
    last("0").is(0, "", "");
    last("100").is(0, &all, "");
    let shown = world.path("shown");
    let mut command = world.command(&["audit", "show", "-n", "1", "-f"]);
    let errors = world.path("errors");
    command.stdout(File::create(&shown).unwrap());
    command.stderr(File::create(&errors).unwrap());
    let mut following = command.spawn().unwrap();
    let now = || fs::read_to_string(&shown).unwrap();
    until("the last line", || now() == format!("{two}\n"));
    // The log goes on in another file, and its first line comes in two parts.
    let log = fs::read_to_string(world.path("log/audit.jsonl")).unwrap();
    let lines: Vec<&str> = log.lines().collect();
    fs::rename(
        world.path("log/audit.jsonl"),
        world.path("log/audit.jsonl.1"),
    )
    .unwrap();
    let (begin, end) = lines[1].split_at(20);
    fs::write(world.path("log/audit.jsonl"), begin).unwrap();
    let mut file = File::options()
        .append(true)
        .open(world.path("log/audit.jsonl"))
        .unwrap();
    writeln!(file, "{end}\n{}", lines[2]).unwrap();
    let shown_lines: Vec<&str> = all.lines().collect();
    let expected = format!("{two}\n{}\n{}\n", shown_lines[1], shown_lines[2]);
    until("the new lines", || now() == expected);
    // What is not intact is said, and a log that was shortened is shown again.
    let said = || fs::read_to_string(&errors).unwrap();
    writeln!(file, "forged").unwrap();
    until("the warning", || {
        said().starts_with("warning: 1 line(s) are not intact; ")
    });
    fs::write(world.path("log/audit.jsonl"), format!("{}\n", lines[3])).unwrap();
    let expected = format!("{expected}{}\n", shown_lines[3]);
    until("the line of the shortened log", || now() == expected);
    assert!(
        said().ends_with(
            "note: the log was removed, replaced or truncated; what it has now follows\n"
        ),
        "{}",
        said()
    );
    // Lines that were shown before are not shown again when the newest file is gone.
    fs::remove_file(world.path("log/audit.jsonl")).unwrap();
    fs::write(world.path("log/audit.jsonl"), format!("{}\n", lines[4])).unwrap();
    let expected = format!("{expected}{}\n", shown_lines[4]);
    until("the line of the new log", || now() == expected);
    following.kill().unwrap();
    following.wait().unwrap();
}
