//! A worker for each consumer: its death affects nobody else, it exits with its server, and it uses little memory.

use std::fs;

use serde_json::json;

use super::peer::{Peer, call};
use super::text;
use super::world::{Listening, World, signal, until};
use crate::harness::have_program;
use crate::serve::server::Keyring;

const COPY: &str = "{name: copy, tool: clipboard_set, consumers: [alice, bob]}";
const SIGN: &str = "{name: sign, tool: gpg_sign, consumers: [alice], limits: {in_flight_all: 1}}";

/// Limit in KiB on the private memory of a worker that has nothing to do.
const IDLE_KIB: u64 = 3 * 1024;

fn is_there(process: u32) -> bool {
    fs::exists(format!("/proc/{process}")).unwrap()
}

/// A connection from alice, and the process ID of the worker that serves her.
fn alice(server: &Listening) -> (Peer, u32) {
    let mut alice = server.peer("alice");
    alice.lives();
    (alice, server.worker("alice").unwrap())
}

#[test]
fn a_process_is_started_for_who_connects() {
    let world = World::new(&[COPY]);
    let server = world.listen();
    assert_eq!(server.processes(), [server.pid()]);
    let (alice, first) = alice(&server);
    assert_eq!(server.worker("bob"), None);
    drop(alice);
    // When nobody has been connected for a while, the worker exits; the next connection starts another.
    until("it has ended", || server.worker("alice").is_none());
    server.peer("alice").lives();
    let second = server.worker("alice").unwrap();
    assert_ne!(first, second);
    server.end();
    assert!(!is_there(second));
}

#[test]
fn a_process_that_is_killed_takes_nobody_elses_connection_and_its_calls_are_in_the_log() {
    if !have_program("gpg") {
        return;
    }
    let keyring = Keyring::new();
    let world = World::new(&[COPY, SIGN]).held_gpg().keyring(&keyring);
    let server = world.listen();
    let mut bob = server.peer("bob");
    bob.lives();
    let (mut peer, worker) = alice(&server);
    peer.send(call("lost", "sign", &json!({"data": "aGVsbG8="})));
    until("it runs", || world.gpg_waits());
    signal(worker, "KILL");
    peer.gets_closed();
    text(&bob.call("copy", &json!({"content": "bob"})));
    let said = "the process that serves `alice` ended: signal: 9 (SIGKILL)";
    until("it is reported", || server.stderr().contains(said));
    let lines = world.logged("call");
    let lost = lines.iter().find(|line| line["id"] == "\"lost\"").unwrap();
    assert_eq!(
        (&lost["caller"], &lost["outcome"]),
        (&json!("alice"), &json!("cancelled"))
    );
    // alice is served again, and the service's only slot is free.
    world.write("go", "");
    let (mut peer, again) = alice(&server);
    assert_ne!(again, worker);
    let signed = peer.call("sign", &json!({"data": "aGVsbG8="}));
    assert!(keyring.verifies(b"hello", text(&signed)));
    bob.lives();
    server.end();
    world.log_is_intact();
}

#[test]
fn a_server_that_is_killed_leaves_no_process_behind() {
    let world = World::new(&[COPY]);
    let mut server = world.listen();
    let (peer, worker) = alice(&server);
    server.signal("KILL");
    server.wait();
    peer.gets_closed();
    until("it has ended", || !is_there(worker));
}

#[test]
fn a_process_that_does_not_hear_that_its_consumer_is_gone_is_killed() {
    let world = World::new(&[COPY]);
    let server = world.listen();
    let (peer, worker) = alice(&server);
    signal(worker, "STOP");
    world.policy(&["{name: copy, tool: clipboard_set, consumers: [bob]}"]);
    until("it has ended", || !is_there(worker));
    peer.gets_closed();
    server.peer("bob").lives();
    server.end();
}

#[test]
fn a_process_sees_the_services_of_its_own_consumer_alone() {
    let world = World::new(&[
        COPY,
        "{name: secret, tool: clipboard_get, consumers: [bob]}",
    ]);
    let server = world.listen();
    let (mut peer, worker) = alice(&server);
    // This is not one of her services, but the log shows why the call was refused and which tool it requested.
    let answer = peer.call("secret", &json!({}));
    assert_eq!(answer["error"]["message"], "Unknown tool: secret");
    let lines = world.logged("call");
    let line = lines.last().unwrap();
    assert_eq!(
        (&line["reason"], &line["tool"]),
        (&json!("not a consumer"), &json!("clipboard_get"))
    );
    assert_eq!(server.worker("alice"), Some(worker));
    server.end();
}

#[test]
fn a_process_that_has_nothing_to_do_costs_little() {
    let world = World::new(&[COPY]);
    let server = world.listen();
    let (mut peer, worker) = alice(&server);
    text(&peer.call("copy", &json!({"content": "x"})));
    let said = fs::read_to_string(format!("/proc/{worker}/smaps_rollup")).unwrap();
    let line = said
        .lines()
        .find_map(|line| line.strip_prefix("Private_Dirty:"));
    let kib: u64 = line
        .and_then(|line| line.trim().strip_suffix(" kB"))
        .unwrap()
        .parse()
        .unwrap();
    assert!(kib <= IDLE_KIB, "{kib} KiB");
    server.end();
}
