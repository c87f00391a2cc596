//! Later changes to the log: `audit verify` finds each of them and names the line.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::process::Command;

use anklume::audit::Event;
use anklume::audit::chain::{self, Head, ReadLine};
use rustix::process::geteuid;
use serde_json::{Value, json};

use super::log::six_lines;
use super::world::{Ended, World, ended, lines_of};
use crate::harness::{have, scrub, within};

/// Runs `audit verify` on these lines.
fn verify(world: &World, lines: &[String], more: &[&str]) -> Ended {
    world.write("copy.jsonl", lines.join("\n") + "\n");
    world.run(&[&["audit", "verify", "--file", "copy.jsonl"], more].concat())
}

/// The hash of a line.
pub(super) fn hash(line: &str) -> String {
    let line: Value = serde_json::from_str(line).unwrap();
    line["hash"].as_str().unwrap().to_owned()
}

#[test]
fn what_is_done_to_the_log_is_found_and_the_line_is_named() {
    let world = six_lines();
    let whole = lines_of(&world.path("log/audit.jsonl"));
    let head = hash(&whole[5]);
    let good = |count: usize| {
        let hash = hash(&whole[count - 1]);
        format!("intact: {count} line(s) from number 1 on, head {hash} (number {count})\n")
    };
    verify(&world, &whole, &[]).is(0, &good(6), "");
    verify(&world, &whole, &["--head", &head]).is(0, &good(6), "");
    verify(&world, &whole, &["--head", &hash(&whole[2])]).is(0, &good(6), "");

    let bad = |lines: Vec<String>, faults: &str| {
        let (count, end) = (lines.len(), lines.last().unwrap().clone());
        let end_hash = hash(&end);
        let number = |line: &str| serde_json::from_str::<Value>(line).unwrap()["seq"].clone();
        let (first, number) = (number(&lines[0]), number(&end));
        let expected = format!(
            "{faults}NOT intact: {count} line(s) from number {first} on, head {end_hash} (number {number})\n"
        );
        verify(&world, &lines, &[]).is(1, &expected, "");
    };
    let mut edited = whole.clone();
    edited[2] = edited[2].replace("alice", "carol");
    bad(
        edited,
        "copy.jsonl:3: edited: its hash does not match its bytes\n",
    );

    let mut removed = whole.clone();
    removed.drain(2..4);
    bad(removed, "copy.jsonl:3: 2 line(s) before it were removed\n");

    let mut reordered = whole.clone();
    reordered.swap(2, 3);
    bad(
        reordered,
        "copy.jsonl:3: 1 line(s) before it were removed\n\
         copy.jsonl:4: moved, repeated or inserted: it has number 3, expected 5\n",
    );

    let mut repeated = whole.clone();
    repeated.insert(4, whole[1].clone());
    bad(
        repeated,
        "copy.jsonl:5: moved, repeated or inserted: it has number 2, expected 5\n",
    );

    let mut inserted = whole.clone();
    inserted.insert(1, "{\"event\":\"call\"}".to_owned());
    bad(
        inserted,
        "copy.jsonl:2: inserted or edited: not a line of this log\n",
    );

    // A line with different content and a correct hash.
    let mut forged = whole.clone();
    let ReadLine::Whole(_, before) = chain::read(whole[1].as_bytes()) else {
        unreachable!()
    };
    let event = Event::Stop { pid: 1 };
    let (bytes, _) = chain::link(&before, "2026-01-01T00:00:00Z".to_owned(), event).unwrap();
    forged[2] = String::from_utf8(bytes).unwrap().trim_end().to_owned();
    bad(
        forged,
        "copy.jsonl:4: replaced: it does not continue the line before it\n",
    );

    bad(
        whole[1..].to_vec(),
        "copy.jsonl:1: lines before it were removed: the log cannot begin here\n",
    );

    // A truncated log is still a valid chain; only a recorded head reveals the change.
    verify(&world, &whole[..4], &[]).is(0, &good(4), "");
    let cut = verify(&world, &whole[..4], &["--head", &head]);
    let end = hash(&whole[3]);
    cut.is(1, &format!("the line with the given head is missing: the log was truncated or rewritten\nNOT intact: 4 line(s) from number 1 on, head {end} (number 4)\n"), "");
    verify(&world, &whole, &["--head", "abc"]).is(2, "", "error: `--head abc` is not a hash\n  = help: pass the 64 hexadecimal digits that an earlier `anklume audit verify` printed\n");
    let json = verify(&world, &whole[..4], &["--head", &head, "--format", "json"]);
    let report: Value = serde_json::from_str(&json.stdout).unwrap();
    assert_eq!(
        (json.status, &report["whole"], &report["head_missing"]),
        (1, &json!(false), &json!(true))
    );
}

#[test]
fn every_single_changed_byte_is_found() {
    let world = six_lines();
    let good = fs::read(world.path("log/audit.jsonl")).unwrap();
    // A sample from the whole file; the unit tests try every position.
    for place in (0..good.len()).step_by(good.len() / 23) {
        let mut bytes = good.clone();
        bytes[place] ^= 1;
        world.write("copy.jsonl", &bytes);
        let ran = world.run(&["audit", "verify", "--file", "copy.jsonl"]);
        assert_eq!(ran.status, 1, "byte {place}: {ran:?}");
    }
}

#[test]
fn a_log_that_may_not_be_looked_at_is_not_called_missing() {
    if !have("root", geteuid().is_root()) {
        return;
    }
    let world = six_lines();
    let program = world.path("anklume");
    // The other user might not have access to the build folder.
    crate::harness::copy_of_anklume(&program);
    let folder = fs::Permissions::from_mode(0o755);
    fs::set_permissions(world.path(""), folder).unwrap();
    for what in ["show", "verify"] {
        let mut look = Command::new(&program);
        look.args(["audit", what, "--file", "log/audit.jsonl"]);
        look.current_dir(world.path("")).uid(65_534).gid(65_534);
        let message = "error: cannot check for an audit log at `log/audit.jsonl`: Permission denied (os error 13)\n  \
                       = help: run this as root or as the server's user\n";
        ended(look).is(1, "", message);
    }
}

#[test]
fn a_last_line_whose_end_is_missing_is_found() {
    let world = six_lines();
    let whole = lines_of(&world.path("log/audit.jsonl"));
    let text = whole.join("\n");
    let torn = text.strip_suffix("\"}").unwrap();
    for (text, number) in [(text.as_str(), 6), (torn, 5)] {
        world.write("copy.jsonl", text);
        let head = hash(&whole[number - 1]);
        world.run(&["audit", "verify", "--file", "copy.jsonl"]).is(
            1,
            &format!(
                "copy.jsonl:6: unfinished: its end is missing; the next write completes it, or removes it and logs that\n\
                 NOT intact: 6 line(s) from number 1 on, head {head} (number {number})\n"
            ),
            "",
        );
    }
}

/// Memory limit in KiB for a command that reads an untrusted file.
const MEMORY: u32 = 96 * 1024;

/// Runs a command in the world's folder with this memory limit.
fn within_memory(world: &World, kib: u32, args: &[&str]) -> Ended {
    let mut command = within(kib);
    command.args(args).current_dir(world.path(""));
    scrub(&mut command, &world.path(""));
    ended(command)
}

#[test]
fn a_hostile_log_costs_little_memory_and_reaches_no_terminal() {
    let world = six_lines();
    let evil = "\u{1b}]0;owned\u{7}\u{9b}2J\u{202e}";
    let start = Event::Start {
        version: evil.into(),
        pid: 1,
        policy: evil.into(),
    };
    let (line, head) = chain::link(&Head::default(), format!("{evil}.5Z"), start).unwrap();
    let refused = Some(evil.into());
    let policy = evil.into();
    let reload = Event::Reload { policy, refused };
    let (other, _) = chain::link(&head, evil.to_owned(), reload).unwrap();
    let rows = "\n".repeat(8 * 1024 * 1024);
    let long = "x".repeat(32 * 1024 * 1024);
    let values = "[".repeat(1024) + &"{},".repeat(20_000) + "\n";
    let bytes = [
        line,
        other,
        rows.into(),
        long.into(),
        values.repeat(100).into(),
    ]
    .concat();
    world.write("copy.jsonl", bytes);
    let shown = within_memory(&world, MEMORY, &["audit", "show", "--file", "copy.jsonl"]);
    let harmless = "\\u{1b}]0;owned\\u{7}\\u{9b}2J\\u{202e}";
    let short = "\\u{1b}]0;owned\\u{7}\\u{9b}2";
    let expected = format!(
        "{harmless}Z  server started (anklume {harmless}, policy {short})\n\
         {harmless}Z  new services file refused, policy {short} stays in force: {harmless}\n"
    );
    let lines = 8 * 1024 * 1024 + 100;
    let warning =
        format!("warning: {lines} line(s) are not intact; `anklume audit verify` lists them\n");
    shown.is(0, &expected, &warning);
    let json = ["audit", "show", "--format", "json", "--file", "copy.jsonl"];
    let json = within_memory(&world, MEMORY, &json);
    assert_eq!(json.status, 0, "{json:?}");
    assert!(
        json.stdout
            .replace('\n', "")
            .chars()
            .all(|character| matches!(character, ' '..='~'))
    );
    assert_eq!(json.stdout.lines().count(), 2);
    let verified = within_memory(&world, MEMORY, &["audit", "verify", "--file", "copy.jsonl"]);
    assert_eq!(verified.status, 1, "{}", verified.stderr);
    assert!(verified.stdout.len() < 1024 * 1024);
    // The limit works: a smaller one stops the program.
    assert_ne!(within_memory(&world, 512, &["audit", "verify"]).status, 1);
}

#[test]
fn a_hostile_status_costs_little_memory_and_reaches_no_terminal() {
    let world = six_lines();
    let server = world.listen();
    let status = ["mcp", "status", "--listen", "sockets"];
    let path = world.path("sockets/.status.json");
    let good: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    let evil = "\u{1b}[2J\u{9b}2J\u{202e}";
    let mut said = good.clone();
    said["version"] = json!(evil);
    said["digest"] = json!(evil);
    said["failed"] = json!([evil]);
    fs::write(&path, said.to_string()).unwrap();
    let ran = within_memory(&world, MEMORY, &status);
    assert_eq!(ran.status, 1, "{ran:?}");
    assert!(
        ran.stdout
            .contains("NOT done: \\u{1b}[2J\\u{9b}2J\\u{202e}\n"),
        "{ran:?}"
    );
    assert!(ran.stdout.is_ascii());
    // An unreadable value is quoted.
    let mut said = good.clone();
    said["services"] = json!(evil);
    fs::write(&path, said.to_string()).unwrap();
    let ran = within_memory(&world, MEMORY, &status);
    assert_eq!((ran.status, ran.stdout.as_str()), (1, ""), "{ran:?}");
    let quoted = "`sockets/.status.json` was written by another version: invalid type: string ";
    assert!(ran.stderr.contains(quoted), "{}", ran.stderr);
    let plain = |character| matches!(character, ' '..='~');
    assert!(ran.stderr.trim_end().chars().all(plain), "{}", ran.stderr);
    let json = [&status[..], &["--format", "json"]].concat();
    fs::write(&path, good.to_string()).unwrap();
    let ran = within_memory(&world, MEMORY, &json);
    let told: Value = serde_json::from_str(&ran.stdout).unwrap();
    let (all, each) = (256 * 1024 * 1024, 64 * 1024 * 1024);
    assert_eq!(told["memory"]["all"], all);
    assert_eq!(told["memory"]["each"]["alice"], each);
    assert!(
        told["confinement"]["landlock"].as_u64().unwrap() > 0,
        "{told}"
    );
    for failed in [
        "\"\",".repeat(1_000_000),
        format!("\"{}\",", "x".repeat(32 * 1024 * 1024)),
    ] {
        let text =
            good.to_string()
                .replacen("\"failed\":[", &format!("\"failed\":[{failed}\"\""), 1);
        assert!(text.len() > failed.len());
        fs::write(&path, text).unwrap();
        within_memory(&world, MEMORY, &status).is(
            1,
            "",
            "error: cannot read `sockets/.status.json`: file too large\n",
        );
    }
    server.end();
}
