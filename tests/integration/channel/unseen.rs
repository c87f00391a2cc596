//! Calls running when the log disappears: each is logged later; its result is withheld unless the machine allows it.

use std::fs;
use std::process::{Child, Stdio};

use serde_json::{Value, json};

use super::peer::call;
use super::text;
use super::world::{Ended, Listening, World, until};
use crate::harness::have_program;
use crate::serve::server::Keyring;

const SIGN: &str = "{name: sign, tool: gpg_sign, consumers: [alice]}";
const COPY: &str = "{name: copy, tool: clipboard_set, consumers: [alice, bob]}";

/// A world in which gpg waits for the file `go`.
fn held(keyring: &Keyring, mcp: &'static str) -> World {
    World::with_mcp(&[SIGN, COPY], mcp)
        .held_gpg()
        .keyring(keyring)
}

/// Starts a signing call by alice, and returns her connection.
fn signs(world: &World, server: &Listening) -> super::peer::Peer {
    let mut alice = server.peer("alice");
    alice.send(call("signs", "sign", &json!({"data": "aGVsbG8="})));
    until("it runs", || world.gpg_waits());
    alice
}

/// Removes the log's folder.
fn goes(world: &World) {
    fs::rename(world.path("log"), world.path("away")).unwrap();
}

/// Restores the log's folder.
fn comes(world: &World) {
    fs::rename(world.path("away"), world.path("log")).unwrap();
}

/// The log line of the signing call.
fn line(world: &World) -> Option<Value> {
    let mut calls = world.logged("call").into_iter();
    calls.find(|line| line["service"] == "sign")
}

fn kept_back() -> Value {
    json!({
        "code": -32603,
        "message": "the call ran, but its answer is withheld: this server cannot write its log",
        "data": {"logged": false, "ran": true}
    })
}

fn refused() -> Value {
    json!({
        "code": -32603,
        "message": "the call is refused: this server cannot write its log",
        "data": {"logged": false, "ran": false}
    })
}

#[test]
fn a_call_that_ran_while_the_log_was_away_has_its_line_when_it_is_back() {
    if !have_program("gpg") {
        return;
    }
    let keyring = Keyring::new();
    let world = held(&keyring, "{}");
    let server = world.listen();
    let mut alice = signs(&world, &server);
    goes(&world);
    world.write("go", "");
    assert_eq!(alice.receive()["error"], kept_back());
    // No call runs while a line has yet to be written.
    let mut bob = server.peer("bob");
    assert_eq!(
        bob.call("copy", &json!({"content": "x"}))["error"],
        refused()
    );
    assert_eq!(world.clipboard(), None);
    comes(&world);
    // The line is written even though nobody calls.
    until("it is in the log", || line(&world).is_some());
    let line = line(&world).unwrap();
    assert_eq!(
        (&line["caller"], &line["outcome"], &line["decision"]),
        (&json!("alice"), &json!("done"), &json!("allowed"))
    );
    text(&bob.call("copy", &json!({"content": "x"})));
    drop((alice, bob));
    server.end();
    // Calls that were refused in the meantime are reported as well.
    let counted = world.logged("counted");
    let told: Vec<_> = ["caller", "service", "decision", "reason", "count"]
        .map(|member| counted[0][member].clone())
        .into();
    let expected = json!(["bob", "copy", "refused", "the log could not be written", 1]);
    assert_eq!((counted.len(), json!(told)), (1, expected));
    world.log_is_intact();
}

#[test]
fn a_machine_that_allows_it_gives_the_answer_and_the_line_comes_later() {
    if !have_program("gpg") {
        return;
    }
    let keyring = Keyring::new();
    let world = held(&keyring, "{allow_unlogged: true}");
    let server = world.listen();
    let mut alice = signs(&world, &server);
    goes(&world);
    world.write("go", "");
    text(&alice.receive());
    // Calls that begin without a log also get their lines later.
    text(&alice.call("copy", &json!({"content": "x"})));
    comes(&world);
    until("both are in the log", || world.logged("call").len() == 2);
    let calls = world.logged("call");
    assert_eq!(
        (&calls[0]["service"], &calls[1]["service"]),
        (&json!("sign"), &json!("copy"))
    );
    drop(alice);
    server.end();
    world.log_is_intact();
}

#[test]
fn the_line_of_a_call_that_loses_its_consumer_is_written() {
    if !have_program("gpg") {
        return;
    }
    let keyring = Keyring::new();
    let world = held(&keyring, "{}");
    let server = world.listen();
    let mut alice = signs(&world, &server);
    world.policy(&["{name: copy, tool: clipboard_set, consumers: [bob]}"]);
    assert_eq!(
        alice.receive()["error"]["message"],
        "the call was stopped before it finished"
    );
    alice.gets_closed();
    until("it is in the log", || line(&world).is_some());
    assert_eq!(line(&world).unwrap()["outcome"], "cancelled");
    server.end();
    world.log_is_intact();
}

#[test]
fn a_server_that_ends_without_a_log_says_on_stderr_what_is_not_in_it() {
    if !have_program("gpg") {
        return;
    }
    let keyring = Keyring::new();
    let world = held(&keyring, "{}");
    let mut server = world.listen();
    let mut alice = signs(&world, &server);
    goes(&world);
    world.write("go", "");
    assert_eq!(alice.receive()["error"], kept_back());
    assert_eq!(
        alice.call("copy", &json!({"content": "x"}))["error"],
        refused()
    );
    server.signal("TERM");
    assert_eq!(server.wait(), 0, "{}", server.stderr());
    let said = server.stderr();
    let told: Vec<Value> = said
        .lines()
        .filter_map(|line| line.strip_prefix("error: not in the log: "))
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let events: Vec<&Value> = told.iter().map(|line| &line["event"]).collect();
    assert_eq!(events, ["call", "counted", "stop"], "{said}");
    assert_eq!(
        (&told[0]["service"], &told[0]["outcome"], &told[1]["count"]),
        (&json!("sign"), &json!("done"), &json!(1))
    );
}

/// Starts a client that makes a call, without waiting for it to finish.
fn begin(world: &World, args: &[&str]) -> Child {
    let mut command = world.command(args);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command.spawn().unwrap()
}

fn end(child: Child) -> Ended {
    let ran = child.wait_with_output().unwrap();
    Ended {
        status: ran.status.code().unwrap(),
        stdout: String::from_utf8(ran.stdout).unwrap(),
        stderr: String::from_utf8(ran.stderr).unwrap(),
    }
}

#[test]
fn a_client_is_told_whether_its_call_ran() {
    if !have_program("gpg") {
        return;
    }
    let keyring = Keyring::new();
    let world = held(&keyring, "{}");
    let server = world.listen();
    let sign = ["mcp", "call", "-i", "alice", "sign", "data:=\"aGVsbG8=\""];
    let signing = begin(&world, &sign);
    until("it runs", || world.gpg_waits());
    goes(&world);
    world.write("go", "");
    end(signing).is(
        1,
        "",
        "error: the server refused `tools/call`: the call ran, but its answer is withheld: this server cannot write its log (-32603)\n  \
         = help: the call was carried out; check its effect before you repeat it; the operator can see what is wrong with its log\n",
    );
    world.run(&sign).is(
        1,
        "",
        "error: the server refused `tools/call`: the call is refused: this server cannot write its log (-32603)\n  \
         = help: nothing was done; the operator can see what is wrong with its log\n",
    );
    drop(server);
}
