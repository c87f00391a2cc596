//! A caller makes its provider hold as much as possible: the provider holds no more than that caller's share of memory,
//! serves the other caller meanwhile, and holds nothing afterwards.

use std::io::Write as _;
use std::os::unix::net::UnixStream;

use serde_json::json;

use super::peer::{call, cancel};
use super::text;
use super::world::{Listening, World, number_of, until};

const COPY: &str = "{name: copy, tool: clipboard_set, consumers: [alice, bob]}";
const TAKE: &str = "{name: take, tool: file_accept, consumers: [alice]}";
const GIVE: &str = "{name: give, tool: file_provide, consumers: [alice]}";

/// Number of the caller's connections: as many as it may have.
const CONNECTIONS: usize = 256;
/// Number of requests on a connection that reads none of the answers.
const REQUESTS: u32 = 20;
/// Limit in KiB for the memory that a caller can make its provider hold: its 64 MiB, and 32 MiB for the processes.
const MEMORY_KIB: u64 = (64 + 32) * 1024;
/// Tolerance for memory, in KiB.
const SLACK_KIB: u64 = 2 * 1024;
/// Number of rounds; none of them may leave memory in use.
const ROUNDS: usize = 2;

const PING: &str = r#"{"jsonrpc":"2.0","id":1,"method":"ping"}"#;

/// Private memory of a server and its workers, in KiB.
fn memory_kib(server: &Listening) -> u64 {
    let processes = server.processes().into_iter();
    processes
        .map(|process| number_of(process, "RssAnon:"))
        .sum()
}

/// The bytes that the connection with this number sends without ever reading an answer.
fn attack(number: usize) -> String {
    let deep = json!({"content": 1, "more": vec![json!({"a": 0}); 1_500]});
    match number % 8 {
        // Trees of values.
        0 => (0..REQUESTS)
            .map(|id| call(id, "copy", &deep) + "\n")
            .collect(),
        // A client that says a lot about itself.
        1 => {
            let hello = json!({"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": {
                "protocolVersion": "2025-11-25", "capabilities": {"experimental": {"x": {"y": "z".repeat(1 << 20)}}},
                "clientInfo": {"name": "n".repeat(1 << 20), "version": "1"}}});
            format!("{hello}\n")
        }
        // Large answers, and calls that are cancelled while their answers wait to be written.
        2 => (0..REQUESTS)
            .map(|id| {
                let taken_back = cancel(id);
                call(id, "give", &json!({"path": "big"})) + &format!("\n{taken_back}\n")
            })
            .collect(),
        // Lists.
        3 => (0..REQUESTS).map(|id| list(id) + "\n").collect(),
        // An id that is a tree, in an invalid line.
        4 => {
            let tree = "{\"\":0},".repeat(500_000);
            format!("{{\"jsonrpc\":\"2.0\",\"id\":[{tree}0],,}}\n")
        }
        // Text that would be quoted with escapes.
        5 => {
            let text = "\u{7f}".repeat(7 * 1024 * 1024);
            format!(
                "{{\"jsonrpc\":\"2.0\",\"id\":0,\"method\":\"initialize\",\"params\":{{\"protocolVersion\":\"2025-11-25\",\
                 \"clientInfo\":{{}},\"capabilities\":\"{text}\"}}}}\n"
            )
        }
        // Files that are never finished.
        6 => (0..8)
            .map(|file| {
                let path = format!("{number}-{file}");
                let first = json!({"path": path, "data": "AAAA".repeat(50_000), "offset": 0, "final": false});
                call(file, "take", &first) + "\n"
            })
            .collect(),
        // A line that never ends.
        _ => "x".repeat(15 * 1024 * 1024),
    }
}

/// A request for a list, in a line that resembles something else.
fn list(id: u32) -> String {
    let meta = json!({"_meta": {"x": "notifications/cancelled"}});
    let line = json!({"jsonrpc": "2.0", "id": id, "method": "tools/list", "params": meta});
    line.to_string().replace("tools/list", "tools\\/list")
}

/// Writes until the other end accepts no more; returns the number of bytes written.
fn write_some(stream: &mut UnixStream, bytes: &[u8]) -> usize {
    stream.set_nonblocking(true).unwrap();
    let mut written = 0;
    while let Some(rest) = bytes.get(written..).filter(|rest| !rest.is_empty()) {
        match stream.write(rest) {
            Ok(count) => written += count,
            Err(_) => break,
        }
    }
    written
}

#[test]
fn a_caller_that_takes_all_it_can_has_its_own_memory_and_no_more() {
    let world = World::new(&[COPY, GIVE, TAKE]);
    world.write("portal/outgoing/alice/big", vec![b'x'; 2 * 1024 * 1024]);
    let server = world.listen();
    let mut bob = server.peer("bob");
    text(&bob.call("copy", &json!({"content": "before"})));
    let before = memory_kib(&server);
    for _ in 0..ROUNDS {
        let mut peak = 0;
        let mut open: Vec<(UnixStream, Vec<u8>)> = (0..CONNECTIONS)
            .map(|number| {
                let stream = UnixStream::connect(server.socket("alice")).unwrap();
                (stream, attack(number).into_bytes())
            })
            .collect();
        // Try every connection repeatedly, until none accepts any more bytes.
        let mut idle = 0;
        while idle < 5 {
            let mut taken = 0;
            for (stream, left) in &mut open {
                let written = write_some(stream, left);
                taken += written;
                left.drain(..written);
            }
            text(&bob.call("copy", &json!({"content": "meanwhile"})));
            peak = peak.max(memory_kib(&server));
            idle = if taken == 0 { idle + 1 } else { 0 };
        }
        assert!(peak <= MEMORY_KIB, "{peak} KiB");
        // The limit also holds between two measurements.
        let most = server
            .worker("alice")
            .map(|worker| number_of(worker, "VmHWM:"));
        assert!(most.unwrap_or_default() <= MEMORY_KIB, "{most:?} KiB");
        drop(open);
        until("she is served again", || {
            let answer = server.peer("alice").ask(PING);
            answer.get("result").is_some()
        });
        // Alice's worker exits, and frees its memory.
        until("it is as it was", || {
            memory_kib(&server) <= before + SLACK_KIB && server.worker("alice").is_none()
        });
    }
    bob.lives();
    server.end();
    world.log_is_intact();
}

#[test]
fn an_answer_of_which_nothing_is_read_ends_its_connection() {
    let give = "{name: give, tool: file_provide, consumers: [alice], limits: {idle_seconds: 1}}";
    let world = World::new(&[give]);
    world.write("portal/outgoing/all/a", vec![b'a'; 2 * 1024 * 1024]);
    let server = world.listen();
    let mut alice = server.peer("alice");
    let asked = call("large", "give", &json!({"path": "a"}));
    // A caller that reads, however slowly, gets the answer.
    alice.send(&asked);
    let begun = std::time::Instant::now();
    let answer = alice.slowly(std::time::Duration::from_millis(40));
    assert!(begun.elapsed() > std::time::Duration::from_secs(1));
    assert!(answer.ends_with("}}\n"), "{} bytes", answer.len());
    alice.send(&asked);
    std::thread::sleep(std::time::Duration::from_secs(3));
    assert!(!alice.rest().ends_with('\n'));
    server.peer("alice").lives();
    server.end();
}
