//! The answers to all kinds of lines: each case is a line and its whole answer.

use serde_json::{Value, json};

use super::server::Server;
use super::{TOOLS, names};

/// A line to a server and its answer; `None` for a line without an answer.
type Exchange = (Vec<u8>, Option<Value>);

/// An error; one that answers no particular request has no id at all.
fn error(id: impl Into<Value>, code: i32, message: &str) -> Value {
    let error = json!({"code": code, "message": message});
    match id.into() {
        Value::Null => json!({"jsonrpc": "2.0", "error": error}),
        id => json!({"jsonrpc": "2.0", "id": id, "error": error}),
    }
}

/// The answer to `ping`.
fn pong(id: impl Into<Value>) -> Value {
    json!({"jsonrpc": "2.0", "id": id.into(), "result": {}})
}

/// Holds a conversation on one connection, which must still work afterwards.
#[track_caller]
fn converse(exchanges: Vec<Exchange>) {
    let mut server = Server::new();
    for (line, expected) in exchanges {
        server.send(&line);
        // After a line that gets no answer, send one that does.
        let expected = expected.unwrap_or_else(|| {
            server.send(r#"{"jsonrpc":"2.0","id":"after","method":"ping"}"#);
            pong("after")
        });
        assert_eq!(
            server.receive(),
            expected,
            "{}",
            String::from_utf8_lossy(&line)
        );
    }
    server.ends_quietly();
}

fn exchange(line: impl AsRef<[u8]>, answer: Value) -> Exchange {
    (line.as_ref().to_vec(), Some(answer))
}

fn silence(line: impl AsRef<[u8]>) -> Exchange {
    (line.as_ref().to_vec(), None)
}

/// Asserts that these lines are refused with this code, each with the ID and the message of its answer.
#[track_caller]
fn refuses<const N: usize>(code: i32, cases: [(&[u8], Value, &str); N]) {
    let exchanges = cases.map(|(line, id, message)| exchange(line, error(id, code, message)));
    converse(exchanges.to_vec());
}

#[test]
fn what_is_not_json_is_answered_under_the_id_that_can_be_read() {
    let null = Value::Null;
    refuses(
        -32700,
        [
            (
                b"nonsense",
                null.clone(),
                "not JSON: expected ident at line 1 column 2",
            ),
            (
                b"{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":",
                json!(1),
                "not JSON: EOF while parsing a value at line 1 column 33",
            ),
            (
                b"\"\xff\xfe\"",
                null.clone(),
                "not JSON: invalid unicode code point at line 1 column 2",
            ),
            (
                b"{\"a\":\"\0\"}",
                null.clone(),
                "not JSON: control character (\\u0000-\\u001F) found while parsing a string at line 1 column 7",
            ),
            (
                b"{}{}",
                null,
                "not JSON: trailing characters at line 1 column 3",
            ),
            // A string that JavaScript cut inside an emoji, once with the ID first and once with the ID last.
            (
                br#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"clipboard_set","arguments":{"content":"\ud83c"}}}"#,
                json!(1),
                "not JSON: unexpected end of hex escape at line 1 column 110",
            ),
            (
                br#"{"method":"tools/call","params":{"arguments":{"content":"\ud83c"}},"jsonrpc":"2.0","id":"x"}"#,
                json!("x"),
                "not JSON: unexpected end of hex escape at line 1 column 64",
            ),
            // The way Python writes NaN and infinity.
            (
                br#"{"params":{"arguments":{"offset":NaN}},"jsonrpc":"2.0","id":7}"#,
                json!(7),
                "not JSON: expected value at line 1 column 34",
            ),
        ],
    );
}

#[test]
fn what_is_no_request_is_refused_and_the_connection_lives() {
    let no_id = "invalid request: `id` is not a string of at most 1024 bytes or a 64-bit integer";
    let no_version = "invalid request: `jsonrpc` is not \"2.0\"";
    let no_object = "invalid request: a message must be a JSON object";
    let batch = "invalid request: MCP does not support batches; send one message per line";
    let long = json!({"jsonrpc": "2.0", "id": "x".repeat(1025), "method": "ping"}).to_string();
    let null = || Value::Null;
    refuses(
        -32600,
        [
            (b"42", null(), no_object),
            (b"null", null(), no_object),
            (b"{}", null(), no_version),
            (b"[]", null(), batch),
            (
                br#"[{"jsonrpc":"2.0","id":1,"method":"ping"}]"#,
                null(),
                batch,
            ),
            (br#"{"id":1,"method":"ping"}"#, json!(1), no_version),
            (
                br#"{"jsonrpc":"1.0","id":"x","method":"ping"}"#,
                json!("x"),
                no_version,
            ),
            (
                br#"{"jsonrpc":2.0,"id":1,"method":"ping"}"#,
                json!(1),
                no_version,
            ),
            (
                br#"{"jsonrpc":"2.0","id":null,"method":"ping"}"#,
                null(),
                no_id,
            ),
            (
                br#"{"jsonrpc":"2.0","id":1.5,"method":"ping"}"#,
                null(),
                no_id,
            ),
            (
                br#"{"jsonrpc":"2.0","id":9223372036854775808,"method":"ping"}"#,
                null(),
                no_id,
            ),
            (
                br#"{"jsonrpc":"2.0","id":[],"method":"ping"}"#,
                null(),
                no_id,
            ),
            (long.as_bytes(), null(), no_id),
            (
                br#"{"jsonrpc":"2.0","id":1}"#,
                json!(1),
                "invalid request: `method` is missing",
            ),
            (
                br#"{"jsonrpc":"2.0","id":1,"method":7}"#,
                json!(1),
                "invalid request: `method` is not a string",
            ),
        ],
    );
}

#[test]
fn equal_keys_and_endless_nesting_are_refused_whole() {
    let deep = |open: &str, close: &str| {
        let (open, close) = (open.repeat(10_000), close.repeat(10_000));
        format!(r#"{{"jsonrpc":"2.0","id":9,"method":"ping","params":{{"x":{open}{close}}}}}"#)
    };
    let (arrays, objects) = (deep("[", "]"), deep("{\"a\":", "}"));
    refuses(
        -32600,
        [
            (
                br#"{"jsonrpc":"2.0","id":1,"id":2,"method":"ping"}"#,
                json!(1),
                "invalid request: duplicate key `id` at line 1 column 28",
            ),
            (
                br#"{"jsonrpc":"2.0","id":8,"method":"tools/call","params":{"name":"clipboard_get","arguments":{"a":1,"a":2}}}"#,
                json!(8),
                "invalid request: duplicate key `a` at line 1 column 101",
            ),
            (
                arrays.as_bytes(),
                json!(9),
                "invalid request: nested more than 100 levels deep at line 1 column 153",
            ),
            (
                objects.as_bytes(),
                json!(9),
                "invalid request: nested more than 100 levels deep at line 1 column 545",
            ),
        ],
    );
}

#[test]
fn what_has_no_answer_gets_none() {
    converse(vec![
        silence(""),
        silence(" \t "),
        silence(r#"{"jsonrpc":"2.0","method":"notifications/initialized"}"#),
        silence(r#"{"jsonrpc":"2.0","method":"notifications/none/such","params":{"a":1}}"#),
        silence(r#"{"jsonrpc":"2.0","method":"tools/call","params":{"name":"clipboard_get"}}"#),
        silence(
            r#"{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":77}}"#,
        ),
        silence(r#"{"jsonrpc":"2.0","method":"notifications/cancelled"}"#),
        silence(r#"{"jsonrpc":"2.0","id":5,"result":{}}"#),
        silence(r#"{"jsonrpc":"2.0","id":5,"error":{"code":-1,"message":"x"}}"#),
    ]);
}

#[test]
fn a_request_in_any_dress_is_answered() {
    converse(vec![
        exchange(
            "\u{feff}{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"ping\"}",
            pong(1),
        ),
        exchange(
            "{\"jsonrpc\":\"2.0\",\"id\":-7,\"method\":\"ping\"}\r",
            pong(-7),
        ),
        exchange(
            " { \"method\" : \"ping\" , \"id\" : \"\u{e9}\\u00e9\" , \"jsonrpc\" : \"2.0\" , \"extra\" : [ ] } ",
            pong("éé"),
        ),
        exchange(
            r#"{"jsonrpc":"2.0","id":"","method":"ping","params":null}"#,
            pong(""),
        ),
        exchange(
            r#"{"jsonrpc":"2.0","id":9223372036854775807,"method":"ping"}"#,
            pong(i64::MAX),
        ),
    ]);
}

#[test]
fn only_what_is_served_is_found() {
    let methods = [
        "prompts/list",
        "prompts/get",
        "resources/list",
        "resources/read",
        "resources/templates/list",
        "resources/subscribe",
        "resources/unsubscribe",
        "resources/directory/read",
        "completion/complete",
        "logging/setLevel",
        "sampling/createMessage",
        "roots/list",
        "elicitation/create",
        "subscriptions/listen",
        "skills/list",
        "tasks/get",
        "notifications/initialized",
        "no/such/method",
        "",
    ];
    let exchanges = methods.map(|method| {
        let asked = json!({"jsonrpc": "2.0", "id": 3, "method": method, "params": {}});
        let message = format!("method not found: {method}");
        exchange(asked.to_string(), error(3, -32601, &message))
    });
    converse(exchanges.to_vec());
    // In the answer, the method is escaped and shortened.
    let long = format!("a\u{7}{}", "b".repeat(200));
    let asked = json!({"jsonrpc": "2.0", "id": 3, "method": long});
    let message = format!("method not found: a\\u{{7}}{}…", "b".repeat(98));
    converse(vec![exchange(
        asked.to_string(),
        error(3, -32601, &message),
    )]);
}

#[test]
fn a_malformed_list_or_call_is_refused_before_anything_runs() {
    let ask = |method: &str, params: Value| {
        json!({"jsonrpc": "2.0", "id": 4, "method": method, "params": params}).to_string()
    };
    let refused = |message: &str| error(4, -32602, message);
    converse(vec![
        exchange(ask("ping", json!([])), refused("`params` is not an object")),
        exchange(
            ask("ping", json!({"_meta": 1})),
            refused("`_meta` is not an object"),
        ),
        exchange(
            ask("tools/list", json!({"cursor": "abc"})),
            refused("`cursor` is unknown: this server's list has one page"),
        ),
        exchange(
            ask("tools/list", json!({"cursor": 1})),
            refused("`cursor` is not a string"),
        ),
        exchange(
            r#"{"jsonrpc":"2.0","id":4,"method":"tools/call"}"#,
            refused("`name` is missing: the tool to call"),
        ),
        exchange(
            ask("tools/call", json!({})),
            refused("`name` is missing: the tool to call"),
        ),
        exchange(
            ask("tools/call", json!({"name": 1})),
            refused("`name` is not a string"),
        ),
        exchange(
            ask(
                "tools/call",
                json!({"name": "clipboard_get", "arguments": []}),
            ),
            refused("`arguments` is not an object"),
        ),
        exchange(
            ask(
                "tools/call",
                json!({"name": "clipboard_get", "arguments": "{}"}),
            ),
            refused("`arguments` is not an object"),
        ),
        exchange(
            ask("tools/call", json!({"name": "no_such_tool"})),
            refused("Unknown tool: no_such_tool"),
        ),
        exchange(
            ask("tools/call", json!({"name": ""})),
            refused("Unknown tool: "),
        ),
        exchange(
            ask("tools/call", json!({"name": "\u{1b}[31m\n"})),
            refused("Unknown tool: \\u{1b}[31m\\n"),
        ),
        exchange(
            ask("tools/call", json!({"name": "x".repeat(5000)})),
            refused(&format!("Unknown tool: {}…", "x".repeat(100))),
        ),
        exchange(
            ask("initialize", json!({})),
            refused("`protocolVersion` is missing"),
        ),
    ]);
}

#[test]
fn bad_arguments_are_a_result_that_says_so() {
    let mut server = Server::new();
    for (tool, arguments) in [
        ("gpg_sign", json!({})),
        ("gpg_sign", json!({"data": "!!!!"})),
        ("gpg_sign", json!({"data": 1})),
        ("clipboard_get", json!({"extra": 1})),
        ("clipboard_set", json!({})),
        ("file_accept", json!({"path": "../x", "data": ""})),
        (
            "file_accept",
            json!({"path": "x", "data": "", "mode": "4755"}),
        ),
        ("file_provide", json!({"path": "x", "offset": -1})),
    ] {
        let params = json!({"name": tool, "arguments": arguments});
        let asked = json!({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params});
        let answer = server.ask(asked.to_string());
        assert_eq!(answer["result"]["isError"], true, "{asked}: {answer}");
        let text = answer["result"]["content"][0]["text"].as_str().unwrap();
        assert_ne!(text, "", "{asked}");
    }
    server.ends_quietly();
}

fn initialize(version: &str) -> String {
    json!({"jsonrpc": "2.0", "id": "i", "method": "initialize", "params": {
        "protocolVersion": version, "capabilities": {}, "clientInfo": {"name": "t", "version": "1"}}})
    .to_string()
}

/// A request in the format of the stateless era.
fn modern(id: u32, method: &str, params: Value) -> String {
    let mut params = params;
    params["_meta"] = json!({
        "io.modelcontextprotocol/protocolVersion": "2026-07-28",
        "io.modelcontextprotocol/clientCapabilities": {},
        "io.modelcontextprotocol/clientInfo": {"name": "t", "version": "1"}});
    json!({"jsonrpc": "2.0", "id": id, "method": method, "params": params}).to_string()
}

#[test]
fn every_version_with_a_handshake_is_agreed_on_and_others_get_the_newest() {
    let mut server = Server::new();
    // Several handshakes on one connection: each `initialize` is answered.
    for (asked, agreed) in [
        ("2024-11-05", "2024-11-05"),
        ("2025-03-26", "2025-03-26"),
        ("2025-06-18", "2025-06-18"),
        ("2025-11-25", "2025-11-25"),
        ("2026-07-28", "2025-11-25"),
        ("2099-01-01", "2025-11-25"),
        ("1999-01-01", "2025-11-25"),
    ] {
        let answer = server.ask(initialize(asked));
        let result = &answer["result"];
        assert_eq!(answer["id"], "i");
        assert_eq!(result["protocolVersion"], agreed, "{asked}");
        assert_eq!(result["capabilities"], json!({"tools": {}}));
        let program = json!({"name": "anklume", "version": env!("CARGO_PKG_VERSION")});
        assert_eq!(result["serverInfo"], program);

        server.send(r#"{"jsonrpc":"2.0","method":"notifications/initialized"}"#);
        assert_eq!(
            server.ask(r#"{"jsonrpc":"2.0","id":1,"method":"ping"}"#)["result"],
            json!({})
        );
        let listed = server.ask(r#"{"jsonrpc":"2.0","id":2,"method":"tools/list"}"#);
        assert_eq!(names(&listed["result"]), TOOLS);
        let members: Vec<&String> = listed["result"].as_object().unwrap().keys().collect();
        assert_eq!(members, ["tools"], "nothing of the later era");
    }
    server.ends_quietly();
}

#[test]
fn the_stateless_era_is_served_with_a_list_that_nobody_shares() {
    let mut server = Server::new();
    let found = server.ask(modern(1, "server/discover", json!({})));
    let result = &found["result"];
    assert_eq!(result["resultType"], "complete");
    assert_eq!(result["cacheScope"], "private");
    let versions = json!([
        "2024-11-05",
        "2025-03-26",
        "2025-06-18",
        "2025-11-25",
        "2026-07-28"
    ]);
    assert_eq!(result["supportedVersions"], versions);
    assert_eq!(result["capabilities"], json!({"tools": {}}));

    let listed = server.ask(modern(2, "tools/list", json!({})));
    let result = &listed["result"];
    assert_eq!(names(result), TOOLS);
    assert_eq!(result["resultType"], "complete");
    assert_eq!(
        (&result["ttlMs"], &result["cacheScope"]),
        (&json!(0), &json!("private"))
    );

    let called = server.ask(modern(
        3,
        "tools/call",
        json!({"name": "clipboard_set", "arguments": {}}),
    ));
    assert_eq!(called["result"]["resultType"], "complete");
    assert_eq!(called["result"]["isError"], true);

    let unknown = server.ask(modern(4, "tools/call", json!({"name": "nope"})));
    assert_eq!(unknown, error(4, -32602, "Unknown tool: nope"));
    for method in ["ping", "prompts/list", "subscriptions/listen"] {
        let refused = server.ask(modern(5, method, json!({})));
        let message = format!("method not found: {method}");
        assert_eq!(refused, error(5, -32601, &message));
    }

    // Once this era has been used, a server must not guess the rules for a request without `_meta`.
    let bare = server.ask(r#"{"jsonrpc":"2.0","id":6,"method":"tools/list"}"#);
    assert_eq!(bare["error"]["code"], -32602);
    server.ends_quietly();
}

#[test]
fn both_eras_live_on_one_connection() {
    let mut server = Server::new();
    let bare = r#"{"jsonrpc":"2.0","id":1,"method":"tools/list"}"#;
    assert_eq!(names(&server.ask(bare)["result"]), TOOLS, "before anything");
    server.ask(modern(2, "server/discover", json!({})));
    assert_eq!(
        names(&server.ask(bare)["result"]),
        TOOLS,
        "after a mere question"
    );
    let listed = server.ask(modern(3, "tools/list", json!({})));
    assert_eq!(listed["result"]["cacheScope"], "private");
    server.ask(initialize("2025-06-18"));
    let listed = server.ask(bare);
    assert_eq!(names(&listed["result"]), TOOLS, "after a handshake");
    assert_eq!(listed["result"].get("cacheScope"), None);
    let listed = server.ask(modern(4, "tools/list", json!({})));
    assert_eq!(listed["result"]["cacheScope"], "private");
    server.ends_quietly();
}

#[test]
fn a_version_that_nobody_speaks_and_a_half_said_one_are_named() {
    let mut server = Server::new();
    let mut asked: Value = serde_json::from_str(&modern(1, "tools/list", json!({}))).unwrap();
    let version = "/params/_meta/io.modelcontextprotocol~1protocolVersion";
    *asked.pointer_mut(version).unwrap() = json!("2099-01-01");
    let answer = server.ask(asked.to_string());
    assert_eq!(answer["error"]["code"], -32022);
    assert_eq!(answer["error"]["data"]["requested"], "2099-01-01");

    let half = json!({"jsonrpc": "2.0", "id": 2, "method": "tools/list",
        "params": {"_meta": {"io.modelcontextprotocol/protocolVersion": "2026-07-28"}}});
    let answer = server.ask(half.to_string());
    assert_eq!(answer["error"]["code"], -32602);
    let message = answer["error"]["message"].as_str().unwrap();
    assert!(
        message.contains("io.modelcontextprotocol/clientCapabilities"),
        "{message}"
    );
    server.ends_quietly();
}

#[test]
fn the_end_right_after_a_probe_is_no_fault() {
    let mut server = Server::new();
    server.ask(modern(1, "server/discover", json!({})));
    server.ends_quietly();
}
