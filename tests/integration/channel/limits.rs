//! Tests the effect of each entry in a service's `limits:`.

use serde_json::{Value, json};

use super::peer::call;
use super::text;
use super::world::{World, all_processes, until, words_of};
use crate::harness::have_program;
use crate::serve::server::Keyring;

/// Asserts that the answer is the error for this limit.
#[track_caller]
fn met(answer: &Value, limit: &str) {
    assert_eq!(
        (&answer["error"]["code"], &answer["error"]["data"]["limit"]),
        (&json!(-32010), &json!(limit)),
        "{answer}"
    );
}

/// Returns whether any process has this word in its command line.
fn runs(word: &str) -> bool {
    let mut lines = all_processes().map(words_of);
    lines.any(|words| words.iter().any(|found| found == word.as_bytes()))
}

#[test]
fn a_call_beyond_its_seconds_is_ended_with_what_it_started_and_says_so() {
    if !have_program("gpg") {
        return;
    }
    let keyring = Keyring::new();
    let world = World::new(&[
        "{name: sign, tool: gpg_sign, consumers: [alice], limits: {call_seconds: 1}}",
    ])
    .held_gpg()
    .keyring(&keyring);
    let server = world.listen();
    let mut alice = server.peer("alice");
    alice.send(call(1, "sign", &json!({"data": "aGVsbG8="})));
    until("gpg runs", || world.gpg_waits());
    let answer = alice.receive();
    let result = &answer["result"];
    assert_eq!(result["isError"], true, "{answer}");
    assert_eq!(
        result["content"][0]["text"],
        "it was stopped after 1 s, the maximum duration"
    );
    let gpg = world.text("bin/gpg");
    until("gpg is gone", || !runs(&gpg));
    let logged = world.logged("call");
    assert_eq!(
        (&logged[0]["outcome"], &logged[0]["decision"]),
        (&json!("timed_out"), &json!("allowed"))
    );
    // The connection still works, and its slot is free.
    world.write("go", "");
    text(&alice.call("sign", &json!({"data": "aGVsbG8="})));
    server.end();
    world.log_is_intact();
}

#[test]
fn the_calls_of_all_callers_in_a_minute_are_counted_together() {
    let world = World::new(&[
        "{name: copy, tool: clipboard_set, consumers: [alice, bob], limits: {calls_per_minute_all: 3}}",
        "{name: other, tool: clipboard_set, consumers: [bob]}",
    ]);
    let server = world.listen();
    let (mut alice, mut bob) = (server.peer("alice"), server.peer("bob"));
    let content = json!({"content": "x"});
    for peer in [&mut alice, &mut bob] {
        text(&peer.call("copy", &content));
    }
    text(&alice.call("copy", &content));
    let limit = "3 calls from all callers per minute";
    for peer in [&mut alice, &mut bob] {
        met(&peer.call("copy", &content), limit);
    }
    // Another service is counted separately.
    text(&bob.call("other", &content));
    let reasons: Vec<Value> = world
        .logged("call")
        .iter()
        .filter(|line| line["decision"] == "overloaded")
        .map(|line| json!([line["caller"], line["reason"]]))
        .collect();
    assert_eq!(reasons, [json!(["alice", limit]), json!(["bob", limit])]);
}

#[test]
fn the_calls_of_all_callers_at_once_are_counted_together() {
    if !have_program("gpg") {
        return;
    }
    let keyring = Keyring::new();
    let world = World::new(&[
        "{name: sign, tool: gpg_sign, consumers: [alice, bob], limits: {in_flight_all: 1}}",
    ])
    .held_gpg()
    .keyring(&keyring);
    let server = world.listen();
    let (mut alice, mut bob) = (server.peer("alice"), server.peer("bob"));
    let data = json!({"data": "aGVsbG8="});
    alice.send(call(1, "sign", &data));
    until("alice's runs", || world.gpg_waits());
    met(&bob.call("sign", &data), "1 call from all callers at once");
    world.write("go", "");
    text(&alice.receive());
    text(&bob.call("sign", &data));
}

#[test]
fn signatures_that_wait_for_more_are_few_for_each_caller() {
    if !have_program("gpg") {
        return;
    }
    let keyring = Keyring::new();
    let world =
        World::new(&["{name: sign, tool: gpg_sign, consumers: [alice, bob]}"]).keyring(&keyring);
    let server = world.listen();
    let first = json!({"data": "aGVs", "offset": 0});
    let mut waiting: Vec<_> = (0..16)
        .map(|_| {
            let mut peer = server.peer("alice");
            text(&peer.call("sign", &first));
            peer
        })
        .collect();
    let mut late = server.peer("alice");
    let refused = late.call("sign", &first);
    assert_eq!(
        refused["result"]["content"][0]["text"],
        "16 signatures in pieces are under way for this caller, across all its connections; finish one first"
    );
    // Another caller has its own slots, and a freed slot can be used again.
    text(&server.peer("bob").call("sign", &first));
    let last = json!({"data": "bG8=", "offset": 3, "final": true});
    let signed = waiting[0].call("sign", &last);
    assert!(keyring.verifies(b"hello", text(&signed)));
    text(&late.call("sign", &first));
    let signed = late.call("sign", &last);
    assert!(keyring.verifies(b"hello", text(&signed)));
    drop(waiting);
    server.end();
}

#[test]
fn a_signature_that_waits_for_its_next_piece_is_a_call_in_flight() {
    if !have_program("gpg") {
        return;
    }
    let keyring = Keyring::new();
    let sign = "{name: sign, tool: gpg_sign, consumers: [alice], limits: {in_flight: 1}}";
    let world = World::new(&[sign]).keyring(&keyring);
    let server = world.listen();
    let mut waiting = server.peer("alice");
    text(&waiting.call("sign", &json!({"data": "aGVs", "offset": 0})));
    let mut other = server.peer("alice");
    let whole = json!({"data": "aGVsbG8="});
    let refused = other.call("sign", &whole);
    assert_eq!(
        refused["result"]["content"][0]["text"],
        "signatures in pieces use up this caller's `in_flight` limit; finish one first"
    );
    let last = json!({"data": "bG8=", "offset": 3, "final": true});
    assert!(keyring.verifies(b"hello", text(&waiting.call("sign", &last))));
    assert!(keyring.verifies(b"hello", text(&other.call("sign", &whole))));
    server.end();
}

#[test]
fn arguments_that_no_tool_takes_wait_for_nothing() {
    if !have_program("gpg") {
        return;
    }
    let keyring = Keyring::new();
    let sign = "{name: sign, tool: gpg_sign, consumers: [alice]}";
    let copy = "{name: copy, tool: clipboard_set, consumers: [alice]}";
    let world = World::new(&[sign, copy]).held_gpg().keyring(&keyring);
    let server = world.listen();
    let mut alice = server.peer("alice");
    let running = 8;
    for number in 0..running {
        alice.send(call(number, "sign", &json!({"data": "aGVsbG8="})));
    }
    until("gpg runs", || world.gpg_waits());
    // A valid call waits for one of them to finish; an invalid one gets its error immediately.
    alice.send(call("good", "copy", &json!({"content": "a"})));
    alice.send(call("bad", "copy", &json!({"content": 1})));
    let answer = alice.receive();
    assert_eq!(
        (&answer["id"], &answer["result"]["isError"]),
        (&json!("bad"), &json!(true)),
        "{answer}"
    );
    world.write("go", "");
    for _ in 0..=running {
        text(&alice.receive());
    }
    server.end();
}
