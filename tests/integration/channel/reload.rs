//! A services file that changes under a running server takes effect at the next call, even on an open connection.

use std::fs;

use serde_json::{Value, json};

use super::peer::Peer;
use super::world::{Listening, World, until};
use super::{names, text};

const BOTH: &str = "{name: copy, tool: clipboard_set, consumers: [alice, bob]}";
const ALICE: &str = "{name: copy, tool: clipboard_set, consumers: [alice]}";
const PASTE: &str = "{name: paste, tool: clipboard_get, consumers: [alice]}";

/// A connection from alice, who has already made a successful call on it.
#[track_caller]
fn calls(server: &Listening) -> Peer {
    let mut alice = server.peer("alice");
    text(&alice.call("copy", &json!({"content": "before"})));
    alice
}

#[track_caller]
fn is_refused(peer: &mut Peer) {
    let answer = peer.call("copy", &json!({"content": "after"}));
    assert_eq!(
        answer["error"],
        json!({"code": -32602, "message": "Unknown tool: copy"})
    );
}

#[test]
fn a_grant_that_is_gone_is_refused_at_the_next_call_of_a_live_connection() {
    type Change = fn(&World, &[u8]);
    let by_rename: Change = |world, bytes| world.policy_bytes(bytes);
    let in_place: Change = |world, bytes| fs::write(world.path("services.json"), bytes).unwrap();
    for change in [by_rename, in_place] {
        let world = World::new(&[ALICE, PASTE]);
        let server = world.listen();
        let mut alice = calls(&server);
        let less = world.export(&[PASTE]);
        change(&world, &less);
        is_refused(&mut alice);
        assert_eq!(names(&alice.list()), ["paste"]);
        // Granted and revoked again: each change takes effect at the next call, however quickly it follows the last.
        let more = world.export(&[ALICE, PASTE]);
        for _ in 0..20 {
            change(&world, &more);
            text(&alice.call("copy", &json!({"content": "again"})));
            change(&world, &less);
            is_refused(&mut alice);
        }
        assert_eq!(world.clipboard().as_deref(), Some("again"));
        assert!(
            world.logged("reload").len() >= 40,
            "every reload has its line"
        );
        world.log_is_intact();
    }
}

#[test]
fn a_file_that_is_not_there_is_told_and_taken_when_it_comes() {
    let world = World::new(&[ALICE]);
    let args = [
        "mcp",
        "serve",
        "--listen",
        "sockets",
        "--services",
        "typo.json",
    ];
    let server = world.listen_by(world.command(&args));
    let told = "warning: `typo.json` does not exist: no consumer is served until it does\n";
    assert!(server.stderr().starts_with(told), "{}", server.stderr());
    fs::copy(world.path("services.json"), world.path("typo.json")).unwrap();
    until("alice is served", || server.socket("alice").exists());
    text(&server.peer("alice").call("copy", &json!({"content": "x"})));
    server.end();
}

#[test]
fn a_file_that_is_gone_grants_nothing() {
    let world = World::new(&[BOTH]);
    let server = world.listen();
    let mut alice = calls(&server);
    fs::remove_file(world.path("services.json")).unwrap();
    // Either is correct: the call is refused, or the connection is already closed.
    alice.send(super::peer::call(1, "copy", &json!({"content": "after"})));
    let line = alice.line();
    let refused = "{\"jsonrpc\":\"2.0\",\"id\":1,\"error\":{\"code\":-32602,\"message\":\"Unknown tool: copy\"}}\n";
    assert!(line.is_empty() || line == refused, "{line}");
    if !line.is_empty() {
        alice.gets_closed();
    }
    assert_eq!(world.clipboard().as_deref(), Some("before"));
    for consumer in ["alice", "bob"] {
        until("the socket goes", || !server.socket(consumer).exists());
    }
    // The file comes back, and so do the services.
    world.policy(&[BOTH]);
    until("the socket is there", || server.socket("bob").exists());
    text(&server.peer("bob").call("copy", &json!({"content": "back"})));
}

#[test]
fn a_consumer_that_is_gone_loses_its_connections_and_socket_and_a_new_one_gets_its_own() {
    let world = World::new(&[BOTH]);
    let server = world.listen();
    let mut alice = calls(&server);
    let (mut bob, idle) = (server.peer("bob"), server.peer("bob"));
    bob.lives();
    world.policy(&[ALICE, "{name: x, tool: clipboard_set, consumers: [carol]}"]);
    bob.gets_closed();
    idle.gets_closed();
    until("bob's socket goes", || !server.socket("bob").exists());
    until("carol's socket is there", || {
        server.socket("carol").exists()
    });
    let mut carol = server.peer("carol");
    assert_eq!(names(&carol.list()), ["x"]);
    text(&carol.call("x", &json!({"content": "carol"})));
    // No other caller noticed anything.
    text(&alice.call("copy", &json!({"content": "alice"})));
}

#[test]
fn a_broken_file_keeps_the_last_good_policy_loudly() {
    let world = World::new(&[ALICE]);
    let server = world.listen();
    let mut alice = calls(&server);
    let good = fs::read(world.path("services.json")).unwrap();
    let digest = world.logged("start")[0]["policy"].clone();
    let file = "services.json";
    // It grants more but has the digest of the previous file, as if somebody had edited it by hand.
    let text_of = String::from_utf8(world.export(&[BOTH])).unwrap();
    let widened = text_of.replace(&digest_of(text_of.as_bytes()), digest.as_str().unwrap());
    let cases: [(&str, Vec<u8>, String); 4] = [
        (
            "truncated",
            good[..good.len() / 2].to_vec(),
            format!(
                "the services file `{file}` is refused: it is not a services file: EOF while parsing "
            ),
        ),
        (
            "empty",
            Vec::new(),
            format!(
                "the services file `{file}` is refused: it is not a services file: EOF while parsing a value at line 1 column 0"
            ),
        ),
        (
            "no services file",
            b"{\"x\": 1}".to_vec(),
            format!(
                "the services file `{file}` is refused: it is not a services file: unknown field `x`, expected `digest` or `policy` at line 1 column 4"
            ),
        ),
        (
            "widened by hand",
            widened.into_bytes(),
            format!(
                "the services file `{file}` is refused: its digest is {}, but it declares {}: it was edited by hand or is damaged",
                digest_of(text_of.as_bytes()),
                digest.as_str().unwrap()
            ),
        ),
    ];
    for (what, bytes, reason) in cases {
        world.policy_bytes(&bytes);
        text(&alice.call("copy", &json!({"content": what})));
        assert_eq!(world.clipboard().as_deref(), Some(what));
        let told = world.logged("reload").pop().unwrap();
        assert_eq!(told["policy"], digest, "{what}");
        let refused = told["refused"].as_str().unwrap();
        assert!(refused.starts_with(&reason), "{what}: {refused}");
        let loud = format!(
            "error: {}\n  = note: the policy {} stays in force\n",
            refused.escape_debug(),
            digest.as_str().unwrap()
        );
        until("it is reported on stderr", || {
            server.stderr().ends_with(&loud)
        });
        // `mcp status` reports it as well, once the server has noticed.
        let status = || world.run(&["mcp", "status", "--listen", "sockets"]);
        let confined = status().stdout;
        let confined = confined
            .lines()
            .find(|line| line.starts_with("confined by: "));
        let expected = format!(
            "`vault` is served by anklume {} (process {})\npolicy: {}\n{}\n\
             NOT in force: a newer policy was refused: {}\n\
             memory: 256 MiB at most, 64 MiB for alice\ncopy (clipboard_set): alice\n",
            env!("CARGO_PKG_VERSION"),
            server.pid(),
            digest.as_str().unwrap(),
            confined.unwrap(),
            refused.escape_debug()
        );
        until("the status shows it", || status().stdout == expected);
        status().is(1, &expected, "");
        assert!(!server.socket("bob").exists(), "{what}");
    }
    world.policy_bytes(&good);
    text(&alice.call("copy", &json!({"content": "mended"})));
    until("the status is good again", || {
        world.run(&["mcp", "status", "--listen", "sockets"]).status == 0
    });
    let json = world.run(&["mcp", "status", "--listen", "sockets", "--format", "json"]);
    let status: Value = serde_json::from_str(&json.stdout).unwrap();
    assert_eq!(
        (&status["digest"], &status["refused"], &status["machine"]),
        (&digest, &Value::Null, &json!("vault"))
    );
    server.end();
    world.run(&["mcp", "status", "--listen", "sockets"]).is(
        4,
        "",
        "error: no server is running in `sockets`\n  = help: `anklume mcp serve --listen` starts one; name another folder with --listen DIR\n",
    );
}

fn digest_of(file: &[u8]) -> String {
    let file: Value = serde_json::from_slice(file).unwrap();
    file["digest"].as_str().unwrap().to_owned()
}

#[test]
fn a_server_does_not_start_by_a_broken_policy() {
    let world = World::new(&[ALICE]);
    let good = fs::read(world.path("services.json")).unwrap();
    let help = "a server does not start with an invalid policy; `anklume policy export --machine NAME` on the host prints the file";
    let starts = [
        &["mcp", "serve", "--listen", "sockets"][..],
        &["mcp", "serve", "--caller", "alice"],
    ];
    for start in starts {
        let args = [start, &["--services", "services.json"]].concat();
        world.policy_bytes(&good[..40]);
        let ran = world.run(&args);
        ran.is(
            1,
            "",
            &format!("error: the services file `services.json` is refused: it is not a services file: EOF while parsing a string at line 2 column 38\n  = help: {help}\n"),
        );
        world.policy_bytes(b"[]");
        let ran = world.run(&args);
        let begin =
            "error: the services file `services.json` is refused: it is not a services file: ";
        assert_eq!((ran.status, ran.stdout.as_str()), (1, ""));
        assert!(ran.stderr.starts_with(begin), "{}", ran.stderr);
        assert!(ran.stderr.contains("at line 1 column "), "{}", ran.stderr);
    }
    assert!(!world.path("sockets/alice.sock").exists());
}
