//! A server that has been running for a long time holds no more resources than a new one.

use std::time::{Duration, Instant};

use serde_json::json;

use super::world::{Listening, World, number_of, until};
use super::{names, text};

/// Number of connections that are opened and closed.
const CONNECTIONS: usize = 5_000;
/// Number of connections that are open at the same time.
const AT_ONCE: usize = 50;
/// Number of new services files.
const RELOADS: usize = 200;
/// Tolerance for memory, in KiB: the allocator keeps some of the freed memory.
const SLACK_KIB: u64 = 4 * 1024;

const COPY: &str = "{name: copy, tool: clipboard_set, consumers: [alice, bob]}";
const PASTE: &str = "{name: paste, tool: clipboard_get, consumers: [alice]}";

/// The resources of a server and its workers.
#[derive(Debug)]
struct Held {
    descriptors: usize,
    threads: u64,
    memory_kib: u64,
}

impl Held {
    fn by(server: &Listening) -> Self {
        let processes = server.processes();
        let sum = |key| {
            processes
                .iter()
                .map(|process| number_of(*process, key))
                .sum()
        };
        let open = |process| {
            std::fs::read_dir(format!("/proc/{process}/fd"))
                .unwrap()
                .count()
        };
        Self {
            descriptors: processes.iter().map(open).sum(),
            threads: sum("Threads:"),
            memory_kib: sum("VmRSS:"),
        }
    }

    /// The server's resources once they no longer change.
    fn at_rest(server: &Listening) -> Self {
        let mut last = Self::by(server);
        let mut since = Instant::now();
        until("it comes to rest", || {
            let now = Self::by(server);
            if (now.descriptors, now.threads) != (last.descriptors, last.threads) {
                since = Instant::now();
            }
            last = now;
            since.elapsed() > REST
        });
        last
    }
}

/// Longer than the 10 s for which the runtime keeps an idle thread.
const REST: Duration = Duration::from_secs(12);

/// Opens connections for one consumer; each requests the list, and one of each batch makes a call.
fn connect(server: &Listening, connections: usize) {
    for _ in 0..connections / AT_ONCE {
        let mut peers: Vec<_> = (0..AT_ONCE).map(|_| server.peer("alice")).collect();
        for peer in &mut peers {
            assert!(names(&peer.list()).contains(&"copy"));
        }
        text(&peers[0].call("copy", &json!({"content": "x"})));
    }
}

/// Puts new policies in force, one after another.
fn reload(world: &World, server: &Listening, reloads: usize) {
    let mut peer = server.peer("alice");
    let [one, two] = [world.export(&[COPY]), world.export(&[COPY, PASTE])];
    for number in 0..reloads {
        let (bytes, expected) = if number % 2 == 0 {
            (&two, 2)
        } else {
            (&one, 1)
        };
        world.policy_bytes(bytes);
        assert_eq!(names(&peer.list()).len(), expected);
    }
}

#[test]
fn descriptors_threads_and_memory_do_not_grow_over_5000_connections_and_200_reloads() {
    let world = World::new(&[COPY]);
    let server = world.listen();
    // First, create everything that is created on first use.
    connect(&server, 4 * AT_ONCE);
    reload(&world, &server, 10);
    let before = Held::at_rest(&server);
    connect(&server, CONNECTIONS);
    reload(&world, &server, RELOADS);
    let after = Held::at_rest(&server);
    assert_eq!(
        (after.descriptors, after.threads),
        (before.descriptors, before.threads),
        "{before:?} {after:?}"
    );
    assert!(
        after.memory_kib <= before.memory_kib + SLACK_KIB,
        "{before:?} {after:?}"
    );
    server.end();
}
