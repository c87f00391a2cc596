//! Servers that do not behave: each fails its own call, and nothing else.

use std::time::{Duration, Instant};

use serde_json::json;

use super::{failure, fake, provider, run, servers};
use crate::channel::text;
use crate::channel::world::until;

#[test]
fn a_server_that_dies_fails_its_call_and_is_started_again_after_a_pause() {
    let Some(world) = fake("die", "") else { return };
    let server = world.listen();
    let ended = "the server that runs this tool has ended: it closed its output";
    assert_eq!(failure(&run(&server)), ended);
    let again = failure(&run(&server));
    let paused = "the server `fake` has failed; it is started again in 0.";
    assert!(again.starts_with(paused), "{again}");
    std::thread::sleep(Duration::from_millis(600));
    assert_eq!(failure(&run(&server)), ended);
    // The pause doubles.
    std::thread::sleep(Duration::from_millis(600));
    let again = failure(&run(&server));
    assert!(again.starts_with(paused), "{again}");
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
            "error: the server fake (for alice) cannot run: the server that runs this tool has ended: {why}\n"
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
            let line = "error: the server fake (for alice) says: a line ";
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
