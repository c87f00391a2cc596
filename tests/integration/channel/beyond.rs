//! Connections beyond a caller's limit: the first request gets the standard answer, and is logged.

use serde_json::{Value, json};

use super::peer::call;
use super::world::{Listening, World};

/// A world whose caller may have only one connection, and its server.
fn full() -> (World, Listening) {
    let world = World::new(&[
        "{name: copy, tool: clipboard_set, consumers: [alice], limits: {connections: 1}}",
        "{name: paste, tool: clipboard_get, consumers: [bob]}",
    ]);
    let server = world.listen();
    (world, server)
}

fn overloaded(id: &Value) -> Value {
    let limit = "1 connection from this caller at once";
    let message = format!("overloaded: the limit is {limit}; try again in 1.0 s");
    let data = json!({"retryAfterSeconds": 1.0, "limit": limit});
    json!({"jsonrpc": "2.0", "id": id, "error": {"code": -32010, "message": message, "data": data}})
}

#[test]
fn a_call_is_in_the_log_whatever_it_calls_and_however_long_it_is() {
    let (world, server) = full();
    let mut first = server.peer("alice");
    first.lives();
    let long = "x".repeat(100 * 1024);
    let calls = [
        ("copy", json!({"content": "short"})),
        ("copy", json!({"content": long})),
        ("paste", json!({})),
        ("nothing", json!({})),
    ];
    for (id, (service, arguments)) in calls.iter().enumerate() {
        let mut beyond = server.peer("alice");
        let answer = beyond.ask(call(id, service, arguments));
        assert_eq!(answer, overloaded(&json!(id)), "{service}");
        beyond.gets_closed();
    }
    first.lives();
    assert_eq!(world.clipboard(), None);
    let logged: Vec<Value> = world
        .logged("call")
        .iter()
        .map(|line| {
            assert_eq!(line["reason"], "1 connection from this caller at once");
            assert_eq!(
                (&line["caller"], &line["outcome"]),
                (&json!("alice"), &json!("not_run"))
            );
            json!([line["id"], line["service"], line["tool"], line["decision"]])
        })
        .collect();
    assert_eq!(
        logged,
        [
            json!(["0", "copy", "clipboard_set", "overloaded"]),
            json!(["1", "copy", "clipboard_set", "overloaded"]),
            json!(["2", "paste", "clipboard_get", "overloaded"]),
            json!(["3", "nothing", null, "overloaded"]),
        ]
    );
    server.end();
    world.log_is_intact();
}

#[test]
fn what_needs_no_answer_goes_by_and_what_is_no_request_gets_its_own_error() {
    let (_world, server) = full();
    let mut first = server.peer("alice");
    first.lives();
    let said_before = [
        "",
        "\r\n  \n",
        r#"{"jsonrpc":"2.0","method":"notifications/initialized"}"#,
        r#"{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":7}}"#,
        r#"{"jsonrpc":"2.0","id":1,"result":{}}"#,
    ];
    for said in said_before {
        let mut beyond = server.peer("alice");
        beyond.send(said);
        let answer = beyond.ask(r#"{"jsonrpc":"2.0","id":"7","method":"tools/list"}"#);
        assert_eq!(answer, overloaded(&json!("7")), "{said:?}");
        beyond.gets_closed();
    }
    let too_long = format!(
        r#"{{"jsonrpc":"2.0","id":3,"x":"{}"}}"#,
        "x".repeat(17 << 20)
    );
    let wrong = [
        ("garbage", -32700, Value::Null),
        (
            r#"{"jsonrpc":"2.0","id":{"a":1},"method":"ping"}"#,
            -32600,
            Value::Null,
        ),
        (
            r#"{"jsonrpc":"2.0","id":3,"method":"ping","method":"ping"}"#,
            -32600,
            json!(3),
        ),
        (
            r#"{"jsonrpc":"2.0","id":3,"method":"tools/call"}"#,
            -32602,
            json!(3),
        ),
        (too_long.as_str(), -32600, json!(3)),
    ];
    for (line, code, id) in wrong {
        let mut beyond = server.peer("alice");
        let answer = beyond.ask(line);
        let shown = line.get(..line.len().min(80));
        assert_eq!(
            (&answer["error"]["code"], &answer["id"]),
            (&json!(code), &id),
            "{shown:?}"
        );
        beyond.gets_closed();
    }
    first.lives();
    server.end();
}

#[test]
fn a_client_behind_mcp_connect_hears_it_too() {
    let (world, server) = full();
    let mut first = server.peer("alice");
    first.lives();
    let socket = server.socket("alice");
    let args = ["mcp", "connect", "--socket", socket.to_str().unwrap()];
    let line = call(1, "copy", &json!({"content": "x".repeat(80_000)})) + "\n";
    let ran = world.run_with(&args, line.as_bytes());
    let answer: Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!(answer, overloaded(&json!(1)));
    // The exit code depends on whether stdin ended before the connection closed; no answer was due.
    assert!(!ran.stderr.contains("owes"), "{}", ran.stderr);
    assert!([0, 4].contains(&ran.status), "{}", ran.stderr);
}

#[test]
fn one_that_says_nothing_is_closed_and_one_that_is_answered_after_the_end_of_its_requests_too() {
    let (_world, server) = full();
    let mut first = server.peer("alice");
    first.lives();
    server.peer("alice").gets_closed();
    let mut beyond = server.peer("alice");
    beyond.write(br#"{"jsonrpc":"2.0","id":1,"method":"tools/list"}"#);
    beyond.ends();
    assert_eq!(beyond.receive(), overloaded(&json!(1)));
    beyond.gets_closed();
    server.end();
}
