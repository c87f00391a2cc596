//! One caller floods while another calls: counts the answers that the flood gets during one call by the other.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use serde_json::{Value, json};

use super::peer::{Peer, call};
use super::text;
use super::world::{Listening, World, until};

/// Number of the loud caller's connections, from two threads.
const CONNECTIONS: usize = 192;
/// Number of requests that it keeps in flight on each connection.
const EACH: usize = 8;
/// Number of the quiet caller's calls.
const CALLS: usize = 200;

/// A provider for both callers; the loud one reaches none of its limits.
fn world() -> World {
    let unlimited = "{calls_per_minute: 1000000000, calls_per_minute_all: 1000000000, in_flight: 10000, in_flight_all: 10000}";
    World::new(&[
        &format!("{{name: paste, tool: clipboard_get, consumers: [alice], limits: {unlimited}}}"),
        "{name: copy, tool: clipboard_set, consumers: [bob]}",
    ])
}

/// Ends the flood when dropped, so that a failed call does not wait for it.
struct Ends<'a>(&'a AtomicBool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Floods the server with alice's calls to `name`, checks each answer, and returns their median number per call by bob.
fn answers_during_a_call(server: &Listening, name: &str, check: fn(&Value)) -> usize {
    let mut bob = server.peer("bob");
    text(&bob.call("copy", &json!({"content": "bob"})));
    let (answered, stop) = (AtomicUsize::new(0), AtomicBool::new(false));
    let mut steps: Vec<usize> = thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| flood(server, name, &answered, &stop, check));
        }
        let _ends = Ends(&stop);
        until("every connection is busy", || {
            answered.load(Ordering::Relaxed) > CONNECTIONS * EACH
        });
        (0..CALLS)
            .map(|id| {
                let before = answered.load(Ordering::Relaxed);
                let answer = bob.ask(call(id, "copy", &json!({"content": "bob"})));
                assert_eq!(
                    (&answer["id"], text(&answer)),
                    (&json!(id), "3 bytes on the clipboard")
                );
                answered.load(Ordering::Relaxed) - before
            })
            .collect()
    });
    steps.sort_unstable();
    steps[CALLS / 2]
}

/// Keeps half of the connections busy until it is stopped, and then reads the outstanding answers.
fn flood(
    server: &Listening,
    name: &str,
    answered: &AtomicUsize,
    stop: &AtomicBool,
    check: fn(&Value),
) {
    let mut peers: Vec<(Peer, Vec<bool>)> = (0..CONNECTIONS / 2)
        .map(|_| (server.peer("alice"), vec![true; EACH]))
        .collect();
    for (peer, due) in &mut peers {
        for id in 0..due.len() {
            peer.send(call(id, name, &json!({})));
        }
    }
    while peers.iter().any(|(_, due)| due.contains(&true)) {
        for (peer, due) in peers.iter_mut().filter(|(_, due)| due.contains(&true)) {
            let answer = peer.receive();
            check(&answer);
            let id = usize::try_from(answer["id"].as_u64().unwrap()).unwrap();
            assert!(due[id], "answered twice: {answer}");
            answered.fetch_add(1, Ordering::Relaxed);
            due[id] = !stop.load(Ordering::Relaxed);
            if due[id] {
                peer.send(call(id, name, &json!({})));
            }
        }
    }
}

#[test]
fn a_call_does_not_wait_behind_the_calls_of_another_caller() {
    let world = world();
    let server = world.listen();
    let between = answers_during_a_call(&server, "paste", |answer| assert_eq!(text(answer), "bob"));
    // With a single queue, the number would include all running calls: several on each connection.
    assert!(between < CONNECTIONS / 2, "{between}");
    server.end();
    world.log_is_intact();
}

#[test]
fn a_call_does_not_wait_behind_what_is_refused_to_another_caller() {
    let world = world();
    let server = world.listen();
    let between = answers_during_a_call(&server, "copy", |answer| {
        assert_eq!(answer["error"]["message"], "Unknown tool: copy", "{answer}");
    });
    assert!(between < CONNECTIONS / 2, "{between}");
    server.end();
    // Every call by either caller is logged or counted in the log.
    world.log_is_intact();
}
