//! Many calls at once: every answer reaches its request, no caller delays another, and excess calls get "overloaded".

use std::io::Write as _;
use std::sync::Barrier;
use std::thread;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::peer::{Peer, call};
use super::text;
use super::world::{PATIENCE, World, until};
use crate::harness::have_program;
use crate::serve::server::Keyring;

/// Code of the "overloaded" error.
const OVERLOADED: i64 = -32010;

#[test]
fn of_128_calls_in_flight_from_8_callers_every_answer_finds_its_request() {
    if !have_program("gpg") {
        return;
    }
    let keyring = Keyring::new();
    let callers: Vec<String> = (1..=8).map(|number| format!("c{number}")).collect();
    let all = callers.join(", ");
    let sign = format!("{{name: sign, tool: gpg_sign, consumers: [{all}]}}");
    let give = format!("{{name: give, tool: file_provide, consumers: [{all}]}}");
    let world = World::new(&[&sign, &give]).held_gpg().keyring(&keyring);
    for caller in &callers {
        for number in 0..8 {
            let path = format!("portal/outgoing/{caller}/{number}");
            world.write(&path, format!("{caller} {number}"));
        }
    }
    let server = world.listen();
    let all_sent = Barrier::new(callers.len() + 1);
    let talk = |caller: &str| {
        let mut peer = server.peer(caller);
        // The first eight use all slots of the connection; the others wait behind them.
        for number in 0..8 {
            let data = STANDARD.encode(format!("{caller} {number}"));
            peer.send(call(
                format!("sign {number}"),
                "sign",
                &json!({"data": data}),
            ));
        }
        for number in 0..8 {
            peer.send(call(number, "give", &json!({"path": number.to_string()})));
        }
        all_sent.wait();
        let answers: Vec<Value> = (0..16).map(|_| peer.receive()).collect();
        peer.lives();
        answers
    };
    let told: Vec<(&str, Vec<Value>)> = thread::scope(|scope| {
        let threads: Vec<_> = callers
            .iter()
            .map(|caller| (caller.as_str(), scope.spawn(|| talk(caller))))
            .collect();
        all_sent.wait();
        // Nothing has been answered yet, so 128 calls are in flight.
        until("the calls run", || world.gpg_waits());
        world.write("go", "");
        threads
            .into_iter()
            .map(|(caller, thread)| (caller, thread.join().unwrap()))
            .collect()
    });
    for (caller, answers) in told {
        let mut ids: Vec<String> = answers.iter().map(|a| a["id"].to_string()).collect();
        ids.sort();
        ids.dedup();
        assert_eq!(ids.len(), 16, "{caller}");
        for answer in answers {
            let (id, said) = (&answer["id"], text(&answer));
            if let Some(number) = id.as_u64() {
                assert_eq!(
                    STANDARD.decode(said).unwrap(),
                    format!("{caller} {number}").as_bytes()
                );
            } else {
                let number = id.as_str().unwrap().trim_start_matches("sign ");
                let content = format!("{caller} {number}");
                assert!(keyring.verifies(content.as_bytes(), said), "{caller}: {id}");
            }
        }
    }
    assert_eq!(world.logged("call").len(), 128);
    world.log_is_intact();
}

#[test]
fn a_burst_over_the_limit_is_overloaded_and_every_call_is_in_the_log() {
    let limited = "{name: copy, tool: clipboard_set, consumers: [alice, bob], limits: {calls_per_minute: 100}}";
    let world = World::new(&[limited]);
    let server = world.listen();
    let mut alice = server.peer("alice");
    let calls: Vec<String> = (0..300)
        .map(|number| call(number, "copy", &json!({"content": number.to_string()})))
        .collect();
    alice.send(calls.join("\n"));
    let mut ids = Vec::new();
    let (mut done, mut overloaded) = (0, 0);
    for _ in 0..300 {
        let answer = alice.receive();
        ids.push(answer["id"].as_u64().unwrap());
        if answer["result"].is_object() {
            text(&answer);
            done += 1;
            continue;
        }
        let error = &answer["error"];
        assert_eq!(error["code"], OVERLOADED, "{answer}");
        assert_eq!(
            error["data"]["limit"],
            "100 calls from this caller per minute"
        );
        let seconds = error["data"]["retryAfterSeconds"].as_f64().unwrap();
        assert!(seconds > 0.0 && seconds <= 61.0, "{answer}");
        overloaded += 1;
    }
    ids.sort_unstable();
    assert_eq!(ids, (0..300).collect::<Vec<_>>());
    assert!(done >= 100 && overloaded > 0, "{done} {overloaded}");
    // bob did not cause this, and is not affected by it.
    text(&server.peer("bob").call("copy", &json!({"content": "bob"})));
    server.end();

    let of = |decision: &str| {
        let own = world
            .logged("call")
            .iter()
            .filter(|line| line["caller"] == "alice" && line["decision"] == decision)
            .count() as u64;
        let counted = world.logged("counted");
        let counted = counted
            .iter()
            .filter(|line| line["caller"] == "alice" && line["decision"] == decision)
            .map(|line| line["count"].as_u64().unwrap());
        own + counted.sum::<u64>()
    };
    assert_eq!(
        (of("allowed"), of("overloaded"), of("refused")),
        (done, overloaded, 0)
    );
    world.log_is_intact();
}

#[test]
fn a_client_that_is_told_overloaded_ends_with_5() {
    let limited =
        "{name: copy, tool: clipboard_set, consumers: [alice], limits: {calls_per_minute: 1}}";
    let world = World::new(&[limited]);
    let server = world.listen();
    let socket = server.socket("alice");
    let args = ["mcp", "call", "--socket", socket.to_str().unwrap()];
    let run = || world.run(&[&args[..], &["copy", "content=x"]].concat());
    run().is(0, "1 byte on the clipboard", "");
    let ran = run();
    assert_eq!((ran.status, ran.stdout.as_str()), (5, ""));
    let begin = "error: the provider is overloaded: the limit is 1 call from this caller per minute; try again in ";
    let end = " s\n  = help: nothing was refused; try the same call again\n";
    assert!(
        ran.stderr.starts_with(begin) && ran.stderr.ends_with(end),
        "{}",
        ran.stderr
    );
}

#[test]
fn calls_at_once_over_the_limit_wait_on_one_connection_and_are_overloaded_across_several() {
    if !have_program("gpg") {
        return;
    }
    let keyring = Keyring::new();
    let world =
        World::new(&["{name: sign, tool: gpg_sign, consumers: [alice], limits: {in_flight: 1}}"])
            .held_gpg()
            .keyring(&keyring);
    let server = world.listen();
    let (mut first, mut second) = (server.peer("alice"), server.peer("alice"));
    let data = json!({"data": "aGVsbG8="});
    for id in 0..3 {
        first.send(call(id, "sign", &data));
    }
    until("one runs", || world.gpg_waits());
    let answer = second.call("sign", &data);
    assert_eq!(answer["error"]["code"], OVERLOADED);
    assert_eq!(
        answer["error"]["message"],
        "overloaded: the limit is 1 call from this caller at once; try again in 1.0 s"
    );
    second.lives();
    world.write("go", "");
    for _ in 0..3 {
        text(&first.receive());
    }
}

#[test]
fn connections_over_the_limit_are_overloaded_and_the_others_live() {
    let world = World::new(&[
        "{name: copy, tool: clipboard_set, consumers: [alice, bob], limits: {connections: 3}}",
    ]);
    let server = world.listen();
    let mut open: Vec<Peer> = (0..3).map(|_| server.peer("alice")).collect();
    for peer in &mut open {
        peer.lives();
    }
    let mut fourth = server.peer("alice");
    let answer = fourth.call("copy", &json!({"content": "fourth"}));
    assert_eq!(
        (&answer["id"], &answer["error"]["code"]),
        (&json!(1), &json!(OVERLOADED))
    );
    fourth.gets_closed();
    assert_eq!(world.clipboard(), None);
    let socket = server.socket("alice");
    let args = ["mcp", "list", "--socket", socket.to_str().unwrap()];
    assert_eq!(world.run(&args).status, 5);
    server.peer("bob").lives();
    // A freed slot can be used again.
    drop(open.pop());
    until("a place is free", || world.run(&args).status == 0);
    for peer in &mut open {
        peer.lives();
    }
}

#[test]
fn connections_far_over_the_limit_wait_until_it_is_their_turn_to_be_told() {
    let world = World::new(&[
        "{name: copy, tool: clipboard_set, consumers: [alice], limits: {connections: 1}}",
    ]);
    let server = world.listen();
    let mut first = server.peer("alice");
    first.lives();
    // More silent connections than the server turns away at the same time.
    let silent: Vec<Peer> = (0..40).map(|_| server.peer("alice")).collect();
    let socket = server.socket("alice");
    let args = ["mcp", "list", "--socket", socket.to_str().unwrap()];
    let ran = world.run(&[&args[..], &["--timeout", "60"]].concat());
    assert_eq!(ran.status, 5, "{ran:?}");
    first.lives();
    drop(silent);
    server.end();
}

#[test]
fn long_messages_of_many_connections_wait_for_each_other_and_are_all_answered() {
    let world = World::new(&[
        "{name: copy, tool: clipboard_set, consumers: [alice]}",
        "{name: take, tool: file_accept, consumers: [alice]}",
    ]);
    let server = world.listen();
    // More unfinished lines than fit in memory at once: those already begun do not keep the others from finishing.
    let data = "A".repeat(8 * 1024 * 1024);
    let senders: Vec<Peer> = (0..24).map(|_| server.peer("alice")).collect();
    let mut quick = server.peer("alice");
    std::thread::scope(|scope| {
        for (number, mut peer) in senders.into_iter().enumerate() {
            let data = &data;
            scope.spawn(move || {
                let file = json!({"path": format!("f{number}"), "data": data});
                text(&peer.call("take", &file));
            });
        }
        for _ in 0..20 {
            text(&quick.call("copy", &json!({"content": "short"})));
        }
    });
    server.end();
}

#[test]
fn a_slow_reader_and_a_slow_writer_disturb_nobody() {
    let world = World::new(&[
        "{name: give, tool: file_provide, consumers: [alice]}",
        "{name: copy, tool: clipboard_set, consumers: [bob, carol]}",
    ]);
    let content = vec![b'x'; 1024 * 1024];
    world.write("portal/outgoing/alice/big", &content);
    let server = world.listen();
    let mut alice = server.peer("alice");
    let mut carol = server.peer("carol");
    let mut bob = server.peer("bob");
    bob.lives();
    // 60 unread answers of 1.4 MB each.
    let asked: Vec<String> = (0..60)
        .map(|id| call(id, "give", &json!({"path": "big"})))
        .collect();
    alice.send(asked.join("\n"));
    // One call, sent byte by byte, with a call by bob after every fourth byte.
    let line = call("slow", "copy", &json!({"content": "slowly"})) + "\n";
    for (number, byte) in line.bytes().enumerate() {
        carol.write(&[byte]);
        if number % 4 == 0 {
            text(&bob.call("copy", &json!({"content": "bob"})));
        }
    }
    let answer = carol.receive();
    assert_eq!(answer["id"], "slow");
    text(&answer);
    let peak = server.peak_kib();
    assert!(peak < 128 * 1024, "{peak} KiB");
    // A caller that reads late loses nothing.
    let mut ids: Vec<u64> = (0..60)
        .map(|_| {
            let answer = alice.receive();
            assert_eq!(text(&answer).len(), content.len().div_ceil(3) * 4);
            answer["id"].as_u64().unwrap()
        })
        .collect();
    ids.sort_unstable();
    assert_eq!(ids, (0..60).collect::<Vec<_>>());
    alice.lives();
}

#[test]
fn one_caller_that_floods_does_not_stop_another() {
    let world = World::new(&[
        "{name: copy, tool: clipboard_set, consumers: [alice], limits: {calls_per_minute: 1}}",
        "{name: paste, tool: clipboard_set, consumers: [bob]}",
    ]);
    let server = world.listen();
    let flood = std::os::unix::net::UnixStream::connect(server.socket("alice")).unwrap();
    flood.set_write_timeout(Some(PATIENCE)).unwrap();
    let mut writer = flood.try_clone().unwrap();
    let writing = thread::spawn(move || {
        let line = call(1, "copy", &json!({"content": "x"})) + "\n";
        // Until the connection is closed.
        while writer.write_all(line.as_bytes()).is_ok() {}
    });
    let mut reader = flood.try_clone().unwrap();
    let reading = thread::spawn(move || std::io::copy(&mut reader, &mut std::io::sink()));
    let mut bob = server.peer("bob");
    for number in 0..100 {
        text(&bob.call("paste", &json!({"content": number.to_string()})));
    }
    flood.shutdown(std::net::Shutdown::Both).unwrap();
    writing.join().unwrap();
    let _ = reading.join().unwrap();
    server.end();
    // The flood is counted, not logged line by line.
    let lines = world.log().len();
    assert!(lines < 300, "{lines} lines");
    world.log_is_intact();
}

#[test]
fn a_call_that_waits_reports_and_the_clients_time_out_counts_from_that() {
    if !have_program("gpg") {
        return;
    }
    let keyring = Keyring::new();
    let world = World::new(&["{name: sign, tool: gpg_sign, consumers: [alice]}"])
        .slow_gpg(11)
        .keyring(&keyring);
    world.write("letter", "hello");
    let server = world.listen();
    let socket = server.socket("alice");
    let args = [
        "mcp",
        "call",
        "--timeout",
        // Four times the interval between two progress reports of a running call.
        "8",
        "--socket",
        socket.to_str().unwrap(),
        "sign",
        "data=@letter",
    ];
    let ran = world.run(&args);
    assert_eq!((ran.status, ran.stderr.as_str()), (0, ""));
    assert!(keyring.verifies(b"hello", &ran.stdout));
}
