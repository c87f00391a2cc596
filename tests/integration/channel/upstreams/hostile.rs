//! Servers that do not behave: each fails its own call, and nothing else.

use std::time::{Duration, Instant};

use serde_json::json;

use super::{failure, fake, provider, run, servers};
use crate::channel::peer::call;
use crate::channel::programs::ended::launcher;
use crate::channel::text;
use crate::channel::world::{number_of, until};

#[test]
fn a_server_that_dies_fails_its_call_and_is_started_again_after_a_pause() {
    let Some(world) = fake("die", "") else { return };
    let server = world.listen();
    let ended = "the server that runs this tool has ended: it closed its output";
    // Each failure doubles the pause before the next start; short pauses are waited for.
    for _ in 0..3 {
        assert_eq!(failure(&run(&server)), ended);
    }
    let mut last = failure(&run(&server));
    if last == ended {
        last = failure(&run(&server));
    }
    let paused = "the server `fake` has failed repeatedly; try again in ";
    assert!(last.starts_with(paused), "{last}");
}

#[test]
fn a_server_that_dies_with_several_calls_in_flight_has_failed_once() {
    let services = [
        "{name: run, tool: fake/die, consumers: [alice]}",
        "{name: never, tool: fake/never, consumers: [alice]}",
    ];
    let Some(world) = provider("{fake: {command: [FAKE]}}", &services) else {
        return;
    };
    let server = world.listen();
    let mut waiting: Vec<_> = (0..6).map(|_| server.peer("alice")).collect();
    for peer in &mut waiting {
        peer.send(call(1, "never", &json!({"text": ""})));
    }
    until("it runs", || servers(&world) == 1);
    run(&server);
    for peer in &mut waiting {
        let ended = "the server that runs this tool has ended: it closed its output";
        assert_eq!(failure(&peer.receive()), ended);
    }
    // So the next call is not refused.
    let ended = "the server that runs this tool has ended: it closed its output";
    assert_eq!(failure(&run(&server)), ended);
}

#[test]
fn a_list_of_tools_that_is_too_long_is_refused_before_it_is_read() {
    let Some(world) = fake("echo", "") else {
        return;
    };
    world.write("settings", "lists");
    let server = world.listen();
    let long = "the server that runs this tool has ended: its list of tools is too long";
    assert_eq!(failure(&run(&server)), long);
    let launcher = number_of(launcher(&world), "VmHWM:");
    assert!(launcher < 300_000, "{launcher} KiB");
}

#[test]
fn an_error_that_is_too_long_or_has_too_many_values_fails_only_its_call() {
    let Some(world) = fake("refuse", "") else {
        return;
    };
    let server = world.listen();
    let mut alice = server.peer("alice");
    let mut refuse = |bytes: u32| alice.call("run", &json!({"text": "", "bytes": bytes}));
    let long = failure(&refuse(20_000_000));
    assert!(long.starts_with("the server's answer has "), "{long}");
    assert_eq!(
        refuse(4_000_000)["error"]["message"],
        "the server answered with an unusable error"
    );
    assert_eq!(refuse(0)["error"]["code"], -32055);
}

#[test]
fn an_answer_bears_no_mark_of_this_program_and_asks_nothing() {
    let Some(world) = fake("forges", "") else {
        return;
    };
    let server = world.listen();
    let mut alice = server.peer("alice");
    let mut forged = |text: &str| alice.call("run", &json!({"text": text}));
    let expected = json!({"content": [], "isError": true, "_meta": {"kept": 1}});
    assert_eq!(forged("decision")["result"], expected);
    let expected =
        json!({"code": -32603, "message": "try again", "data": {"ran": false, "kept": 1}});
    assert_eq!(forged("error")["error"], expected);
    assert_eq!(
        failure(&forged("ask")),
        "the server's answer is unusable: it is not complete"
    );
}

#[test]
fn a_fixed_argument_has_no_other_spelling() {
    let Some(world) = fake("echo", "") else {
        return;
    };
    let server = world.listen();
    let mut alice = server.peer("alice");
    for other in ["Owner", "OWNER", "owner_", "unknown"] {
        let answer = alice.call("run", &json!({"text": "hi", other: "evil"}));
        assert_eq!(
            failure(&answer),
            format!("the caller may not set `{other}`")
        );
    }
    let answer = alice.call("run", &json!({"text": "hi", "bytes": 1, "owner": "acme"}));
    assert!(text(&answer).contains("'bytes': 1"), "{answer}");
}

#[test]
fn a_server_that_no_longer_reads_gets_no_more_calls() {
    let service = "{name: run, tool: fake/echo, consumers: [alice], limits: {call_seconds: 1}}";
    let Some(world) = provider("{fake: {command: [FAKE]}}", &[service]) else {
        return;
    };
    world.write("settings", "deaf");
    let server = world.listen();
    let mut alice = server.peer("alice");
    let arguments = json!({"text": "x".repeat(12_000_000)});
    // It has read the first call; three more exceed the limit of 32 MiB.
    for _ in 0..4 {
        assert_eq!(
            failure(&alice.call("run", &arguments)),
            "it was stopped after 1 s, the maximum duration"
        );
    }
    assert_eq!(
        failure(&alice.call("run", &arguments)),
        "the server does not read the calls that already wait; try again later"
    );
}

#[test]
fn an_idle_server_makes_room_for_another_program() {
    let service = |name: &str| format!("{{name: {name}, tool: {name}/echo, consumers: [alice]}}");
    let services = [service("one"), service("two")];
    let servers_of = "{one: {command: [FAKE]}, two: {command: [FAKE]}}, children: 1";
    let services = services.each_ref().map(String::as_str);
    let Some(world) = provider(servers_of, &services) else {
        return;
    };
    let server = world.listen();
    let mut alice = server.peer("alice");
    for name in ["one", "two", "one"] {
        text(&alice.call(name, &json!({"text": "", "owner": ""})));
        until("one runs", || servers(&world) == 1);
    }
}

#[test]
fn a_server_that_cannot_start_is_reported_to_its_own_machine() {
    let Some(world) = fake("echo", "") else {
        return;
    };
    let server = world.listen();
    world.write("settings", "broken");
    let declared =
        "this tool cannot run on its machine as declared; the log of `anklume-run` there says why";
    assert_eq!(failure(&run(&server)), declared);
    world.write("settings", "shy");
    std::thread::sleep(Duration::from_millis(600));
    assert_eq!(failure(&run(&server)), declared);
    let said = server.stderr();
    for why in ["it closed its output", "it refused `initialize`"] {
        let line = format!(
            "error: the server `fake` (for alice) cannot run: the server that runs this tool has ended: {why}\n"
        );
        assert!(said.contains(&line), "{said}");
    }
    world.write("settings", "");
    std::thread::sleep(Duration::from_millis(1100));
    text(&run(&server));
}

#[test]
fn a_server_that_never_answers_is_met_by_the_time_limit_of_its_service() {
    let service = "{name: run, tool: fake/never, consumers: [alice], limits: {call_seconds: 1}}";
    let Some(world) = provider("{fake: {command: [FAKE]}}", &[service]) else {
        return;
    };
    let server = world.listen();
    let answer = run(&server);
    assert_eq!(
        failure(&answer),
        "it was stopped after 1 s, the maximum duration"
    );
    // The process goes on for other calls.
    assert_eq!(servers(&world), 1);
}

#[test]
fn floods_and_endless_lines_end_the_server() {
    for tool in ["flood", "endless"] {
        let Some(world) = fake(tool, "") else { return };
        let server = world.listen();
        let began = Instant::now();
        let flooded =
            "the server that runs this tool has ended: it keeps sending without answering";
        assert_eq!(failure(&run(&server)), flooded, "{tool}");
        assert!(began.elapsed() < Duration::from_secs(30));
        until("it ends", || servers(&world) == 0);
        server.end();
    }
}

#[test]
fn what_does_not_answer_a_request_has_no_effect() {
    for (tool, answer) in [
        ("noise", "after noise"),
        ("liar", "the truth"),
        ("twice", "first"),
        (
            "asks",
            "{\"q0\": -32601, \"q1\": -32601, \"q2\": -32601, \"q3\": \"answered\"}",
        ),
    ] {
        let Some(world) = fake(tool, "") else { return };
        let server = world.listen();
        assert_eq!(text(&run(&server)), answer, "{tool}");
        assert_eq!(text(&run(&server)), answer, "{tool}");
        if tool == "noise" {
            let line = "error: the server `fake` (for alice) says: a line ";
            until("its words are in the log", || {
                server.stderr().contains(line)
            });
            assert!(!server.stderr().contains('\u{1b}'));
        }
    }
}

#[test]
fn a_result_that_is_too_long_is_an_error_that_names_its_size() {
    let Some(world) = fake("big", "") else { return };
    let server = world.listen();
    let mut alice = server.peer("alice");
    let mut big = |bytes: u32| alice.call("run", &json!({"text": "", "bytes": bytes}));
    assert_eq!(text(&big(8_000_000)).len(), 8_000_000);
    let long = "the server's answer has 10 MiB; at most 9 MiB are passed on";
    assert_eq!(failure(&big(10_000_000)), long);
    let longer = "the server's answer has 39 MiB; at most 9 MiB are passed on";
    assert_eq!(failure(&big(40_000_000)), longer);
    assert_eq!(text(&big(10)).len(), 10);
}
