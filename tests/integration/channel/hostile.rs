//! Malicious bytes on a consumer's socket: each gets the standard JSON-RPC error, and the server and connection survive.

use std::io::Write as _;
use std::os::unix::net::UnixStream;

use serde_json::{Value, json};

use super::peer::{Peer, call};
use super::text;
use super::world::{PATIENCE, World};

const COPY: &str = "{name: copy, tool: clipboard_set, consumers: [alice, bob]}";

/// Size in bytes of a line far beyond every limit.
const LONG_LINE: usize = 1024 * 1024 * 1024;

#[test]
fn a_line_over_the_limit_is_refused_in_flat_memory() {
    let world = World::new(&[COPY]);
    let server = world.listen();
    let mut alice = server.peer("alice");
    text(&alice.call("copy", &json!({"content": "before"})));
    let before = server.peak_kib();
    let head = r#"{"jsonrpc":"2.0","id":"long","method":"tools/call","params":{"name":"copy","arguments":{"content":""#;
    alice.write(head.as_bytes());
    let block = vec![b'x'; 1024 * 1024];
    for _ in 0..LONG_LINE / block.len() {
        alice.write(&block);
    }
    alice.write(b"\"}}}\n");
    let answer = alice.receive();
    let total = head.len() + LONG_LINE + 4;
    let message = format!(
        "invalid request: a message can have at most {} bytes; this one has {total}",
        anklume::limits::MESSAGE_BYTES
    );
    let expected =
        json!({"jsonrpc": "2.0", "id": "long", "error": {"code": -32600, "message": message}});
    assert_eq!(answer, expected);
    // At most the limit plus the spare capacity of a growing buffer, however long the line is.
    let more = server.peak_kib() - before;
    assert!(more < 40 * 1024, "{more} KiB more");
    alice.lives();
    assert_eq!(world.clipboard().as_deref(), Some("before"));
}

#[test]
fn a_services_own_message_limit_holds_for_its_callers_alone() {
    let world = World::new(&[
        "{name: copy, tool: clipboard_set, consumers: [alice], limits: {message_bytes: 300}}",
        "{name: other, tool: clipboard_set, consumers: [bob]}",
    ]);
    let server = world.listen();
    let content = json!({"content": "x".repeat(1000)});
    let mut alice = server.peer("alice");
    let answer = alice.call("copy", &content);
    assert_eq!(
        (&answer["id"], &answer["error"]["code"]),
        (&json!(1), &json!(-32600))
    );
    text(&alice.call("copy", &json!({"content": "short"})));
    text(&server.peer("bob").call("other", &content));
}

/// Malformed lines, each with a name and the code and ID of the error that answers it.
fn wrong_lines() -> Vec<(&'static str, Vec<u8>, i64, Option<u64>)> {
    let deep = |open: &str, close: &str| {
        let (open, close) = (open.repeat(10_000), close.repeat(10_000));
        format!(
            r#"{{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{{"name":"copy","arguments":{{"content":{open}1{close}}}}}}}"#
        )
    };
    let params = |params: Value| {
        json!({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params})
            .to_string()
            .into_bytes()
    };
    let method = |method: &str| {
        json!({"jsonrpc": "2.0", "id": 1, "method": method})
            .to_string()
            .into_bytes()
    };
    let whole = call(1, "copy", &json!({"content": "x"}));
    vec![
        ("invalid UTF-8", b"{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"\xff\xfe\"}".to_vec(), -32700, Some(1)),
        ("overlong UTF-8", b"{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"\xc0\xaf\"}".to_vec(), -32700, Some(1)),
        ("a surrogate", b"{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"\xed\xa0\x80\"}".to_vec(), -32700, Some(1)),
        ("NUL", b"{\"jsonrpc\":\"2.0\",\0\"id\":1,\"method\":\"ping\"}".to_vec(), -32700, Some(1)),
        ("NUL alone", b"\0\0\0\0".to_vec(), -32700, None),
        ("cut JSON", whole.as_bytes()[..whole.len() - 1].to_vec(), -32700, Some(1)),
        ("two messages in a line", format!("{whole}{whole}").into_bytes(), -32700, Some(1)),
        ("a header of another protocol", b"Content-Length: 10\r".to_vec(), -32700, None),
        ("deep arrays", deep("[", "]").into_bytes(), -32600, Some(1)),
        ("deep objects", deep("{\"a\":", "}").into_bytes(), -32600, Some(1)),
        ("open arrays", "[".repeat(10_000).into_bytes(), -32600, None),
        ("a key twice", br#"{"jsonrpc":"2.0","id":1,"method":"ping","method":"tools/list"}"#.to_vec(), -32600, Some(1)),
        ("an argument twice", br#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"copy","arguments":{"content":"a","content":"b"}}}"#.to_vec(), -32600, Some(1)),
        ("a name twice", br#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"x","name":"copy","arguments":{"content":"a"}}}"#.to_vec(), -32600, Some(1)),
        ("a batch", format!("[{whole}]").into_bytes(), -32600, None),
        ("an empty batch", b"[]".to_vec(), -32600, None),
        ("a number", b"1".to_vec(), -32600, None),
        ("no version", br#"{"id":1,"method":"tools/list"}"#.to_vec(), -32600, Some(1)),
        ("an id that is none", br#"{"jsonrpc":"2.0","id":{},"method":"tools/list"}"#.to_vec(), -32600, None),
        ("a method that is not text", br#"{"jsonrpc":"2.0","id":1,"method":{}}"#.to_vec(), -32600, Some(1)),
        ("parameters that are a list", params(json!(["copy"])), -32602, Some(1)),
        ("a name that is not text", params(json!({"name": ["copy"], "arguments": {"content": "x"}})), -32602, Some(1)),
        ("no name", params(json!({"arguments": {"content": "x"}})), -32602, Some(1)),
        ("arguments that are a text", params(json!({"name": "copy", "arguments": "content"})), -32602, Some(1)),
        ("_meta that is a list", params(json!({"name": "copy", "_meta": [], "arguments": {"content": "x"}})), -32602, Some(1)),
        ("a method of others", method("resources/list"), -32601, Some(1)),
        ("no such method", method("anklume/operator"), -32601, Some(1)),
    ]
}

#[test]
fn each_wrong_line_gets_its_standard_error_and_the_connection_lives() {
    let world = World::new(&[COPY]);
    let server = world.listen();
    let mut alice = server.peer("alice");
    let mut bob = server.peer("bob");
    for (what, line, code, id) in wrong_lines() {
        alice.send(&line);
        let answer = alice.receive();
        assert_eq!(answer["error"]["code"], code, "{what}: {answer}");
        assert_eq!(answer["id"], json!(id), "{what}: {answer}");
        assert_eq!(answer["jsonrpc"], "2.0", "{what}");
        alice.lives();
    }
    assert_eq!(world.clipboard(), None);
    // Messages that require no answer get none, and change nothing.
    let silent = [
        r#"{"jsonrpc":"2.0","id":77,"result":{}}"#,
        r#"{"jsonrpc":"2.0","id":"x","error":{"code":1,"message":"x"}}"#,
        r#"{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":77}}"#,
        r#"{"jsonrpc":"2.0","method":"notifications/progress","params":{"progressToken":1,"progress":1}}"#,
        r#"{"jsonrpc":"2.0","method":"tools/call","params":{"name":"copy","arguments":{"content":"x"}}}"#,
        "",
        "\r",
    ];
    for line in silent {
        alice.send(line);
        alice.lives();
    }
    assert_eq!(world.clipboard(), None);
    // The tool rejects wrong arguments with a result, not with a protocol error.
    let wrong = [
        json!({"content": 1}),
        json!({"content": null}),
        json!({"content": "x", "more": 1}),
        json!({}),
    ];
    for arguments in wrong {
        let answer = alice.call("copy", &arguments);
        assert_eq!(answer["result"]["isError"], true, "{answer}");
    }
    assert_eq!(world.clipboard(), None);
    text(&alice.call("copy", &json!({"content": "alive"})));
    text(&bob.call("copy", &json!({"content": "alive as well"})));
    drop((alice, bob));
    server.end();
    world.log_is_intact();
}

#[test]
fn an_id_that_is_free_again_can_be_used_again_at_once() {
    let world = World::new(&[COPY]);
    let server = world.listen();
    let mut alice = server.peer("alice");
    for number in 0..500 {
        text(&alice.call("copy", &json!({"content": number.to_string()})));
    }
}

#[test]
fn streams_that_are_no_json_at_all_end_without_harm() {
    let world = World::new(&[COPY]);
    let server = world.listen();
    // A noise generator that produces the same bytes in every run.
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut noise = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[0]
    };
    for round in 0..20 {
        let bytes: Vec<u8> = (0..64 * 1024).map(|_| noise()).collect();
        let mut stream = UnixStream::connect(server.socket("alice")).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        // Nobody reads the answers, and the client disconnects in the middle of them.
        let _ = stream.write_all(&bytes);
        if round % 2 == 0 {
            let _ = stream.shutdown(std::net::Shutdown::Write);
        }
    }
    server.peer("alice").lives();
    let connections: Vec<Peer> = (0..100).map(|_| server.peer("alice")).collect();
    drop(connections);
    text(
        &server
            .peer("bob")
            .call("copy", &json!({"content": "alive"})),
    );
    server.end();
    world.log_is_intact();
}
