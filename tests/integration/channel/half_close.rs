//! A client keeps its side open until its last answer has arrived, because Incus's proxies do not support half-close.

use std::io::{BufRead as _, BufReader, ErrorKind, Read as _, Write as _};
use std::os::unix::net::UnixListener;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use serde_json::{Value, json};

use super::peer::call;
use super::world::World;

/// Time for which the provider checks, before each answer, whether its client has closed its side; not a limit.
const LOOK: Duration = Duration::from_millis(300);

/// A provider with one connection: checks that its client's side is open, then answers each request that has an ID.
fn provider(listener: UnixListener) -> JoinHandle<Vec<String>> {
    thread::spawn(move || {
        let (stream, _) = listener.accept().unwrap();
        let mut writer = stream.try_clone().unwrap();
        let mut reader = BufReader::new(stream);
        let mut methods = Vec::new();
        let mut line = String::new();
        while reader.read_line(&mut line).unwrap() > 0 {
            let request: Value = serde_json::from_str(&line).unwrap();
            line.clear();
            let method = request["method"].as_str().unwrap().to_owned();
            let result = match method.as_str() {
                "initialize" => json!({"protocolVersion": "2025-11-25", "capabilities": {},
                    "serverInfo": {"name": "far", "version": "0"}}),
                "tools/list" => {
                    json!({"tools": [{"name": "x", "inputSchema": {"type": "object"}}]})
                }
                _ => json!({"content": [{"type": "text", "text": "done"}]}),
            };
            if request.get("id").is_none() {
                continue;
            }
            reader.get_ref().set_read_timeout(Some(LOOK)).unwrap();
            match reader.fill_buf() {
                // The data is another message.
                Ok(more) => assert!(!more.is_empty(), "closed before the answer to `{method}`"),
                Err(why) => assert_eq!(why.kind(), ErrorKind::WouldBlock, "{why}"),
            }
            reader.get_ref().set_read_timeout(None).unwrap();
            methods.push(method);
            let answer = json!({"jsonrpc": "2.0", "id": request["id"], "result": result});
            writeln!(writer, "{answer}").unwrap();
        }
        let mut rest = Vec::new();
        reader.read_to_end(&mut rest).unwrap();
        methods
    })
}

/// Runs the client against such a provider; returns its output and its requests.
#[track_caller]
fn against(words: &[&str], input: &str) -> (String, Vec<String>) {
    let world = World::new(&["{name: copy, tool: clipboard_set, consumers: [alice]}"]);
    let socket = world.path("far.sock");
    let far = provider(UnixListener::bind(&socket).unwrap());
    let socket = socket.to_str().unwrap();
    let args = [&["mcp"], words, &["--socket", socket]].concat();
    let ran = world.run_with(&args, input.as_bytes());
    assert_eq!((ran.status, ran.stderr.as_str()), (0, ""));
    (ran.stdout, far.join().unwrap())
}

#[test]
fn no_client_closes_its_side_before_its_last_answer() {
    let (listed, asked) = against(&["list"], "");
    assert_eq!(listed, "x\n");
    assert_eq!(asked, ["initialize", "tools/list"]);
    let (called, asked) = against(&["call", "x", "{}"], "");
    assert_eq!(called, "done");
    assert_eq!(asked, ["initialize", "tools/list", "tools/call"]);
    let request = call(1, "x", &json!({})) + "\n";
    let (answered, asked) = against(&["connect"], &request);
    let answered: Value = serde_json::from_str(&answered).unwrap();
    assert_eq!(answered["result"]["content"][0]["text"], "done");
    assert_eq!(asked, ["tools/call"]);
}
