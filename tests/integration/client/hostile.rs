//! Whatever a server sends, the terminal is unharmed, and the client exits in time, in little memory, with one error.

use super::{against, against_with};

/// Asserts a failure to reach a server.
#[track_caller]
fn is_unreachable(kind: &str, args: &[&str], message: &str) {
    let Some(ran) = against(kind, args) else {
        return;
    };
    let expected = format!("error: Cannot reach MCP server: {message}\n");
    assert_eq!(
        (ran.status, ran.stdout.as_str()),
        (4, ""),
        "{kind}: {ran:?}"
    );
    assert_eq!(ran.stderr, expected, "{kind}");
}

const LIST: [&str; 2] = ["mcp", "list"];
const CALL: [&str; 3] = ["mcp", "call", "x"];
const QUICK: [&str; 4] = ["mcp", "list", "--timeout", "0.5"];
const WAIT: &str = "wait longer with `--timeout SECONDS`";
const DONE: &str = "the call may have been carried out";
const ASK: &str = "the provider is stopped or its server is not running: ask the operator";

#[test]
fn a_server_that_never_answers_ends_in_a_time_out() {
    let message = format!("no answer within 0.5 s\n  = help: {WAIT}");
    for kind in ["mute", "mute_later", "deaf", "endless_line"] {
        is_unreachable(kind, &QUICK, &message);
    }
    let call = ["mcp", "call", "x", "--timeout", "0.5"];
    is_unreachable("mute", &call, &message);
    // Long enough for the answers that do arrive, even on a busy machine.
    let message = format!("no answer within 8 s\n  = help: {DONE}; {WAIT}");
    let call = ["mcp", "call", "x", "--timeout", "8"];
    is_unreachable("mute_later", &call, &message);
}

#[test]
fn a_server_that_goes_away_is_one_error_however_it_goes() {
    let message = format!(
        "no server is listening on the socket: the connection was closed without an answer\n  = help: {ASK}"
    );
    is_unreachable("gone", &LIST, &message);
    // Here, a server is in fact running.
    let closed = "the connection was closed before the answer arrived\n  = help: ";
    let ask = "ask the operator";
    is_unreachable("gone_later", &LIST, &format!("{closed}{ask}"));
    is_unreachable("half_a_line", &LIST, &format!("{closed}{ask}"));
    let message = format!("{closed}{DONE}; {ask}");
    is_unreachable("gone_later", &CALL, &message);
}

#[test]
fn a_server_that_never_stops_sending_is_left() {
    let flood = "the server keeps sending without answering";
    is_unreachable("endless_notifications", &LIST, flood);
    is_unreachable("endless_requests", &LIST, flood);
    let long = "the server sent a message of 21 MiB; the limit is 16 MiB";
    is_unreachable("endless_answer", &LIST, long);
    let many = "the server's answer to `tools/list` is unusable: it lists more than 10000 tools";
    is_unreachable("many_tools", &LIST, many);
    let pages = "the server's answer to `tools/list` is unusable: it has more than 100 pages";
    is_unreachable("endless_pages", &LIST, pages);
}

#[test]
fn an_answer_of_many_values_is_refused_before_it_becomes_large() {
    let answer = "the server's answer to `tools/list` is unusable: ";
    let many = format!("{answer}it has more than 100000 values");
    is_unreachable("many_values", &LIST, &many);
    let pages = format!("{answer}its pages have more than 100000 values together");
    is_unreachable("many_values_on_pages", &LIST, &pages);
    let deep = format!("{answer}it is nested more than 100 levels deep");
    is_unreachable("deep", &LIST, &deep);
}

#[test]
fn a_text_that_is_too_long_is_neither_quoted_nor_kept() {
    let long = "is unusable: it has a string of more than 262144 bytes in an unexpected place";
    is_unreachable(
        "long_member",
        &LIST,
        &format!("the server's answer to `tools/list` {long}"),
    );
    is_unreachable(
        "long_greeting",
        &LIST,
        &format!("the server's answer to `initialize` {long}"),
    );
    let quoted = "\\u{7f}".repeat(79);
    let line = format!("the peer is not an MCP server: it sent `\"{quoted}…`");
    is_unreachable("long_line", &LIST, &line);
    if let Some(ran) = against("long_error", &LIST) {
        let words = "\\u{7f}".repeat(4000);
        ran.is(
            1,
            "",
            &format!("error: the server refused `tools/list`: {words}… (1)\n"),
        );
    }
}

#[test]
fn the_longest_answers_are_printed_in_little_memory() {
    let bytes = 15 * 1024 * 1024;
    if let Some(ran) = against("long_answer", &CALL) {
        assert_eq!((ran.status, ran.stdout.len()), (0, bytes), "{}", ran.stderr);
    }
    if let Some(ran) = against("long_answer", &["mcp", "call", "x", "--format", "json"]) {
        assert_eq!((ran.status, ran.stderr.as_str()), (0, ""));
        assert_eq!(ran.stdout.matches("\\u007f").count(), bytes);
    }
    if let Some(ran) = against("long_list", &LIST) {
        assert_eq!(
            (ran.status, ran.stdout.lines().count()),
            (0, 9_999),
            "{}",
            ran.stderr
        );
    }
    if let Some(ran) = against("long_list", &["mcp", "list", "--format", "json"]) {
        assert_eq!(ran.status, 0, "{}", ran.stderr);
        assert_eq!(ran.stdout.matches("\"name\"").count(), 9_999);
    }
    if let Some(ran) = against("long_asides", &LIST) {
        ran.is(0, "", "no tools\n");
    }
}

#[test]
fn a_relay_keeps_nothing_of_what_is_too_long_to_be_an_id() {
    let asked = concat!(
        r#"{"jsonrpc":"2.0","id":1,"method":"initialize"}"#,
        "\n",
        r#"{"jsonrpc":"2.0","id":2,"method":"tools/list"}"#,
        "\n"
    );
    if let Some(ran) = against_with("long_asides", &["mcp", "connect"], asked) {
        assert_eq!((ran.status, ran.stderr.as_str()), (0, ""));
        assert!(ran.stdout.ends_with("{\"tools\": []}}\n"));
        assert_eq!(ran.stdout.lines().count(), 6);
    }
    if let Some(ran) = against_with("long_line_aside", &["mcp", "connect"], asked) {
        assert_eq!((ran.status, ran.stderr.as_str()), (0, ""));
        assert_eq!(ran.stdout.lines().count(), 3);
    }
}

#[test]
fn what_is_not_mcp_is_said_to_be_so_and_shown_escaped() {
    let message = "the peer is not an MCP server: it sent `Welcome! \\u{1b}[31m`";
    is_unreachable("garbage", &LIST, message);
    let message = "the server's answer to `tools/list` is unusable: invalid type: integer `7`, expected a string at line 1 column 21";
    is_unreachable("not_a_result", &LIST, message);
}

#[test]
fn an_error_that_names_no_request_ends_the_one_in_flight() {
    if let Some(ran) = against("old_refusal", &LIST) {
        let message = "error: the server refused `initialize`: no \\u{1b}[2J (-32600)\n";
        ran.is(1, "", message);
    }
}

#[test]
fn answers_with_other_ids_are_not_taken() {
    if let Some(ran) = against("wrong_ids", &CALL) {
        ran.answers("right");
    }
}

#[test]
fn a_server_that_asks_gets_a_reply_and_nothing_more() {
    if let Some(ran) = against("asks", &CALL) {
        let ping = r#"{"id": "p", "result": {}, "code": null}"#;
        let sampling = r#"{"id": "s", "result": null, "code": -32601}"#;
        ran.answers(&format!("[{ping}, {sampling}]"));
    }
}

#[test]
fn escapes_reach_no_terminal() {
    if let Some(ran) = against("escapes", &LIST) {
        ran.answers(
            "t\\u{1b}]0;owned\\u{7}\\u{9b}2J\\u{202e}  d\\u{1b}]0;owned\\u{7}\\u{9b}2J\\u{202e}\n",
        );
    }
    if let Some(ran) = against("escapes", &CALL) {
        let said = "error: `x` failed: failed\\u{1b}]0;owned\\u{7}\\u{9b}2J\\u{202e}\n  |   = help: run this\n";
        ran.is(1, "", said);
    }
    if let Some(ran) = against("escapes", &["mcp", "list", "--format", "json"]) {
        let escaped = r#""name": "t\u001b]0;owned\u0007\u009b2J\u202e""#;
        assert!(ran.stdout.contains(escaped), "{}", ran.stdout);
        assert!(ran.stdout.is_ascii());
    }
    if let Some(ran) = against("bad_parameters", &["mcp", "call", "echo"]) {
        let message = "error: the server refused `tools/call`: bad \\u{1b} arguments (-32602)\n";
        ran.is(1, "", message);
    }
}

#[test]
fn pieces_that_do_not_make_a_whole_give_nothing() {
    let cases = [
        (
            "pieces_other_bytes",
            "the digest of the pieces does not match that of the whole",
        ),
        (
            "pieces_no_digest",
            "the digest of the pieces does not match that of the whole",
        ),
        (
            "pieces_other_size",
            "the file changed while it was fetched; try again",
        ),
        ("pieces_nothing", "a piece is empty"),
    ];
    for (kind, why) in cases {
        let message = format!("the server's answer to `tools/call` is unusable: {why}");
        is_unreachable(kind, &["mcp", "call", "fetch", "path=x"], &message);
    }
    let message = "error: the content has 1152921504606846976 bytes, of which at most 4294967296 are fetched; name a part \
        with `offset` and `length`\n";
    if let Some(ran) = against("huge", &["mcp", "call", "fetch", "path=x"]) {
        ran.is(1, "", message);
    }
}
