//! Large, numerous, slow and cut-off messages: their effect on a server, and the privacy of the tools' data.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::process::Stdio;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::server::{Ended, Keyring, Server};
use crate::harness::{Anklume, have_program, write_program};

/// Memory limit in KiB for a server, whatever its peer does.
const MEMORY_KIB: u64 = 64 * 1024;

/// Returns whether this is a long run (`make test-long`).
fn long() -> bool {
    std::env::var_os("ANKLUME_TEST_LONG").is_some()
}

fn call(id: impl Into<Value>, tool: &str, arguments: &Value) -> Value {
    let params = json!({"name": tool, "arguments": arguments});
    json!({"jsonrpc": "2.0", "id": id.into(), "method": "tools/call", "params": params})
}

/// `mcp serve` with its own portal and runtime folder, both below the run's folder.
fn serving() -> Anklume {
    let anklume = Anklume::new()
        .args(["mcp", "serve"])
        .file("portal/.keep", "")
        .file("runtime/.keep", "");
    let folder = anklume.path();
    // Only the user may read the clipboard's contents.
    let private = std::fs::Permissions::from_mode(0o700);
    std::fs::set_permissions(folder.join("runtime"), private).unwrap();
    anklume
        .env(
            "ANKLUME_MCP_PORTAL",
            folder.join("portal").to_str().unwrap(),
        )
        .env("XDG_RUNTIME_DIR", folder.join("runtime").to_str().unwrap())
}

/// The same with a custom `gpg` first on the PATH: a script that runs `before` and then becomes the real gpg.
fn with_gpg(before: &str, keyring: &Keyring) -> Anklume {
    let script = format!("#!/bin/sh\n{before}\nPATH=${{PATH#*:}}\nexec gpg \"$@\"\n");
    let anklume = serving();
    let folder = anklume.path();
    write_program(&folder.join("bin/gpg"), script);
    let path = std::env::var("PATH").unwrap();
    anklume
        .env("PATH", format!("{}:{path}", folder.join("bin").display()))
        .env("GNUPGHOME", keyring.path().to_str().unwrap())
}

/// Waits until a condition holds; only a hang makes this fail, not a slow machine.
#[track_caller]
fn wait_until(what: &str, holds: impl Fn() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < Duration::from_secs(60), "{what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn a_line_beyond_the_limit_is_answered_with_its_id_and_costs_no_memory() {
    let mut server = Server::start(serving());
    let mib = 1024 * 1024;
    let sizes: &[usize] = if long() { &[17, 256, 1024] } else { &[17, 128] };
    let part = vec![b'A'; mib];
    for (size, at_front) in sizes.iter().flat_map(|size| [(size, true), (size, false)]) {
        let (head, tail) = if at_front {
            (
                r#"{"jsonrpc":"2.0","id":"big","method":"tools/call","params":{"data":""#,
                "\"}}\n",
            )
        } else {
            (
                r#"{"jsonrpc":"2.0","method":"tools/call","params":{"data":""#,
                "\"},\"id\":\"big\"}\n",
            )
        };
        server.write(head.as_bytes());
        for _ in 0..*size {
            server.write(&part);
        }
        server.write(tail.as_bytes());
        let bytes = head.len() + size * mib + tail.len() - 1;
        let message = format!(
            "invalid request: a message can have at most 16777216 bytes; this one has {bytes}"
        );
        let error =
            json!({"jsonrpc": "2.0", "id": "big", "error": {"code": -32600, "message": message}});
        assert_eq!(server.receive(), error);
    }
    assert!(server.peak_kib() < MEMORY_KIB, "{} KiB", server.peak_kib());
    let answer = server.ask(r#"{"jsonrpc":"2.0","id":1,"method":"ping"}"#);
    assert_eq!(answer["result"], json!({}));
    server.ends_quietly();
}

#[test]
fn a_flood_of_calls_is_answered_one_for_one_and_costs_no_memory() {
    let calls: u64 = if long() { 500_000 } else { 50_000 };
    let mut server = Server::start(serving());
    let mut stdin = server.take_stdin();
    let flood = std::thread::spawn(move || {
        for id in 0..calls {
            // Half of the calls reach a tool; the policy refuses the other half.
            let tool = if id.is_multiple_of(2) {
                "clipboard_get"
            } else {
                "no_such_tool"
            };
            writeln!(stdin, "{}", call(id, tool, &json!({}))).unwrap();
        }
        stdin
    });
    let mut answered = vec![false; usize::try_from(calls).unwrap()];
    for _ in 0..calls {
        let answer = server.receive();
        let id = answer["id"].as_u64().unwrap();
        let known = if id.is_multiple_of(2) {
            "result"
        } else {
            "error"
        };
        assert!(answer.get(known).is_some(), "{answer}");
        let seen = &mut answered[usize::try_from(id).unwrap()];
        assert!(!std::mem::replace(seen, true), "{id} was answered twice");
    }
    assert!(server.peak_kib() < MEMORY_KIB, "{} KiB", server.peak_kib());
    drop(flood.join().unwrap());
    server.ends_quietly();
}

#[test]
fn a_flood_of_calls_that_are_taken_back_costs_no_memory() {
    let calls = if long() { 500_000 } else { 20_000 };
    let mut server = Server::start(serving());
    let mut stdin = server.take_stdin();
    let flood = std::thread::spawn(move || {
        for id in 0..calls {
            let back = json!({"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": id}});
            writeln!(stdin, "{}\n{back}", call(id, "clipboard_get", &json!({}))).unwrap();
        }
        writeln!(stdin, r#"{{"jsonrpc":"2.0","id":"last","method":"ping"}}"#).unwrap();
        stdin
    });
    // A call may be answered before it is cancelled.
    while server.receive()["id"] != "last" {}
    assert!(server.peak_kib() < MEMORY_KIB, "{} KiB", server.peak_kib());
    drop(flood.join().unwrap());
    server.end();
}

#[test]
fn answers_that_nobody_reads_cost_no_memory_and_none_is_lost() {
    const CALLS: usize = 3000;
    let anklume = serving().file("portal/file", vec![b'x'; 100_000]);
    let mut child = anklume
        .command()
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let writing = std::thread::spawn(move || {
        for id in 0..CALLS {
            writeln!(
                stdin,
                "{}",
                call(id, "file_provide", &json!({"path": "file"}))
            )
            .unwrap();
        }
    });
    // This gives a server without back-pressure time to fill its memory.
    std::thread::sleep(Duration::from_secs(1));
    assert!(!writing.is_finished(), "the requests were all read");
    let peak = peak_kib(child.id());
    assert!(peak < MEMORY_KIB, "{peak} KiB");
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut ids: Vec<u64> = Vec::new();
    for _ in 0..CALLS {
        let answer: Value = serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap();
        assert_eq!(answer["result"]["isError"], false);
        ids.push(answer["id"].as_u64().unwrap());
    }
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), CALLS);
    writing.join().unwrap();
    assert!(lines.next().is_none());
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

/// Peak memory of a process so far, in KiB.
fn peak_kib(process: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let line = status
        .lines()
        .find(|line| line.starts_with("VmHWM:"))
        .unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[test]
fn a_slow_gpg_is_waited_for_though_the_requests_have_ended_and_tells_that_it_runs() {
    if !have_program("gpg") {
        return;
    }
    let keyring = Keyring::new();
    // Longer than the five seconds after which the service loop itself drops an answer.
    let mut server = Server::start(with_gpg("sleep 7", &keyring));
    let mut asked = call("slow", "gpg_sign", &json!({"data": "aGVsbG8="}));
    asked["params"]["_meta"] = json!({"progressToken": 5});
    // The request has no newline, and nothing follows it.
    server.write(asked.to_string().as_bytes());
    server.close_stdin();
    let mut reports = 0;
    let answer = loop {
        let message = server.receive();
        if message.get("id").is_some() {
            break message;
        }
        assert_eq!(message["method"], "notifications/progress");
        assert_eq!(message["params"]["progressToken"], 5);
        reports += 1;
    };
    assert!(reports >= 2, "{reports} reports");
    assert_eq!(answer["result"]["isError"], false, "{answer}");
    let signature = answer["result"]["content"][0]["text"].as_str().unwrap();
    assert!(keyring.verifies(b"hello", signature));
    server.ends_quietly();
}

/// Returns whether a process is running; a zombie is not.
fn runs(process: &str) -> bool {
    std::fs::read_to_string(format!("/proc/{process}/status"))
        .is_ok_and(|status| !status.contains("State:\tZ"))
}

#[test]
fn a_cancelled_call_stops_its_gpg_and_has_no_answer() {
    if !have_program("gpg") {
        return;
    }
    let keyring = Keyring::new();
    let mut server = Server::start(with_gpg(
        "echo $$ >pid.new; mv pid.new pid; exec sleep 600",
        &keyring,
    ));
    let pid = server.path().join("pid");
    server.send(call("gone", "gpg_sign", &json!({"data": "aGVsbG8="})).to_string());
    wait_until("gpg starts", || pid.exists());
    let process = std::fs::read_to_string(&pid).unwrap();
    assert!(runs(process.trim()));
    server.send(
        r#"{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":"gone","reason":"enough"}}"#,
    );
    wait_until("gpg ends", || !runs(process.trim()));
    let answer = server.ask(r#"{"jsonrpc":"2.0","id":"next","method":"ping"}"#);
    assert_eq!(answer["id"], "next");
    server.ends_quietly();
}

#[test]
fn a_signal_lets_the_running_calls_end_first() {
    if !have_program("gpg") {
        return;
    }
    let keyring = Keyring::new();
    for signal in ["TERM", "INT"] {
        let wait = "touch started; while [ ! -e go ]; do sleep 0.02; done";
        let mut server = Server::start(with_gpg(wait, &keyring));
        let folder = server.path();
        server.send(call(1, "gpg_sign", &json!({"data": "aGVsbG8="})).to_string());
        wait_until("gpg starts", || folder.join("started").exists());
        server.signal(signal);
        std::fs::write(folder.join("go"), "").unwrap();
        let answer = server.receive();
        assert_eq!(answer["result"]["isError"], false, "{answer}");
        // The server's stdin is still open.
        let ended = server.wait();
        assert_eq!((ended.status, ended.stderr.as_str()), (0, ""), "{signal}");
    }
}

#[test]
fn a_second_signal_ends_the_running_calls_as_well() {
    if !have_program("gpg") {
        return;
    }
    let keyring = Keyring::new();
    let mut server = Server::start(with_gpg("touch started; exec sleep 600", &keyring));
    let folder = server.path();
    server.send(call(1, "gpg_sign", &json!({"data": "aGVsbG8="})).to_string());
    wait_until("gpg starts", || folder.join("started").exists());
    // Two pending signals of the same kind would count as one.
    server.signal("TERM");
    server.signal("INT");
    let answer = server.receive();
    assert_eq!(
        answer["error"]["message"],
        "the call was stopped before it finished"
    );
    assert_eq!(server.wait().status, 0);
}

#[test]
fn a_signal_ends_a_server_that_has_nothing_to_do() {
    for signal in ["TERM", "INT"] {
        let mut server = Server::new();
        server.ask(r#"{"jsonrpc":"2.0","id":1,"method":"ping"}"#);
        server.signal(signal);
        let ended = server.wait();
        assert_eq!((ended.status, ended.stderr.as_str()), (0, ""), "{signal}");
    }
}

#[test]
fn when_nobody_reads_any_more_the_server_ends_and_says_nothing() {
    let mut child = serving()
        .command()
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    // Kept open, so that the end of stdin is not the reason for the server to exit.
    let mut stdin = child.stdin.take().unwrap();
    writeln!(stdin, r#"{{"jsonrpc":"2.0","id":1,"method":"ping"}}"#).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0));
    let mut stderr = String::new();
    child
        .stderr
        .take()
        .unwrap()
        .read_to_string(&mut stderr)
        .unwrap();
    assert_eq!(stderr, "");
}

#[test]
fn eight_mib_go_in_and_out_in_one_call() {
    let mut server = Server::start(serving());
    // Base64 of 8 MiB, consisting of `Man` repeated, and two more bytes at the end.
    let data = format!("{}TWE=", "TWFu".repeat(8 * 1024 * 1024 / 3));
    let taken =
        server.ask(call(1, "file_accept", &json!({"path": "big", "data": data})).to_string());
    assert_eq!(taken["result"]["isError"], false, "{taken}");
    let mut give = call(2, "file_provide", &json!({"path": "big"}));
    give["params"]["_meta"] = json!({"anklume/one_copy": true});
    let given = server.ask(give.to_string());
    assert_eq!(given["result"]["isError"], false);
    assert!(given["result"]["content"][0]["text"] == data.as_str());
    assert_eq!(
        given["result"]["structuredContent"]["size"],
        8 * 1024 * 1024
    );
    server.ends_quietly();
}

#[test]
fn an_answer_that_carries_its_content_twice_keeps_below_what_official_clients_read() {
    let mut server = Server::start(serving());
    let most = 3 * 1024 * 1024;
    let (data, start) = ("TWFu".repeat(most / 3), "TWFu".repeat(most / 3 - 1));
    let pieces = [
        json!({"path": "fits", "offset": 0, "data": data}),
        json!({"path": "fits", "offset": most, "data": "", "final": true}),
        json!({"path": "more", "offset": 0, "data": start}),
        json!({"path": "more", "offset": most - 3, "data": "TWFuTQ==", "final": true}),
    ];
    for piece in pieces {
        let taken = server.ask(call(1, "file_accept", &piece).to_string());
        assert_eq!(taken["result"]["isError"], false, "{taken}");
    }
    let given = server.ask(call(4, "file_provide", &json!({"path": "fits"})).to_string());
    // Serialised again in the same form, because the answer contains no white space.
    let length = given.to_string().len();
    assert!(length < 10 * 1024 * 1024, "{length}");
    assert!(given["result"]["content"][0]["text"] == data.as_str());
    assert!(given["result"]["structuredContent"]["data"] == data.as_str());
    let given = server.ask(call(5, "file_provide", &json!({"path": "more"})).to_string());
    assert_eq!(
        given["result"]["content"][0]["text"],
        "`more` has 3145729 bytes, but one call returns at most 3145728; read it in pieces with `offset` and `length`, 1048576 bytes each"
    );
    server.ends_quietly();
}

#[test]
fn the_log_tells_what_was_called_and_nothing_of_any_contents() {
    // `canary content` in base64.
    const CANARY: [&str; 2] = ["canary content", "Y2FuYXJ5IGNvbnRlbnQ="];
    let anklume = serving()
        .args(["--verbose"])
        .env("RUST_LOG", "trace")
        .env("RUST_BACKTRACE", "1");
    let mut server = Server::start(anklume);
    for (tool, arguments) in [
        ("clipboard_set", json!({"content": CANARY[0]})),
        ("clipboard_get", json!({})),
        ("file_accept", json!({"path": "a", "data": CANARY[1]})),
        ("file_accept", json!({"path": "a", "data": CANARY[1]})),
        ("file_provide", json!({"path": "a"})),
        ("gpg_sign", json!({"data": CANARY[1]})),
        ("gpg_sign", json!({"data": CANARY[0]})),
        ("file_provide", json!({"path": CANARY[0]})),
    ] {
        let answer = server.ask(call(1, tool, &arguments).to_string());
        assert!(answer.get("result").is_some(), "{answer}");
    }
    server.ask(format!(
        r#"{{"jsonrpc":"2.0","id":1,"method":"ping","params":"{}"#,
        CANARY[0]
    ));
    let Ended {
        status,
        rest,
        stderr,
    } = server.end();
    assert_eq!((status, rest), (0, Vec::new()));
    for canary in CANARY {
        assert!(!stderr.contains(canary), "{stderr}");
    }
    let told: Vec<&str> = stderr
        .lines()
        .map(|line| line.split(" in ").next().unwrap())
        .collect();
    assert_eq!(
        told,
        [
            "tools/call clipboard_set: done",
            "tools/call clipboard_get: done",
            "tools/call file_accept: done",
            "tools/call file_accept: failed",
            "tools/call file_provide: done",
            "tools/call gpg_sign: failed",
            "tools/call gpg_sign: failed",
            "tools/call file_provide: failed",
            "a message that cannot be read: refused with -32700",
        ]
    );
}
