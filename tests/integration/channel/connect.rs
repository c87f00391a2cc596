//! `mcp connect` connects the stdin and stdout of any client to a provider's socket.

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::peer::call;
use super::text;
use super::world::{Ended, PATIENCE, World, until, wait};
use crate::harness::have_program;
use crate::serve::server::Keyring;

const COPY: &str = "{name: copy, tool: clipboard_set, consumers: [alice, bob]}";
const SIGN: &str = "{name: sign, tool: gpg_sign, consumers: [alice]}";
const PING: &[u8] = b"{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"ping\"}\n";

/// Runs `mcp connect` with this input on stdin, followed by the end of input.
#[track_caller]
fn connect(world: &World, socket: &Path, more: &[&str], input: &[u8]) -> Ended {
    let args = ["mcp", "connect", "--socket", socket.to_str().unwrap()];
    world.run_with(&[&args[..], more].concat(), input)
}

/// A running `mcp connect` with an open stdin; dropping it kills it.
struct Connected {
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: BufReader<ChildStdout>,
}

impl Connected {
    fn start(world: &World, socket: &Path) -> Self {
        let args = ["mcp", "connect", "--socket", socket.to_str().unwrap()];
        let mut child = world
            .command(&args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        Self {
            stdin: child.stdin.take(),
            stdout: BufReader::new(child.stdout.take().unwrap()),
            child,
        }
    }

    fn send(&mut self, bytes: &[u8]) {
        let stdin = self.stdin.as_mut().unwrap();
        stdin.write_all(bytes).unwrap();
        stdin.flush().unwrap();
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.stdout.read_line(&mut line).unwrap();
        line
    }

    /// Waits for it to exit; returns the exit code and the rest of its output.
    fn end(mut self) -> Ended {
        let status = wait(&mut self.child);
        let (mut stdout, mut stderr) = (String::new(), String::new());
        self.stdout.read_to_string(&mut stdout).unwrap();
        let mut pipe = self.child.stderr.take().unwrap();
        pipe.read_to_string(&mut stderr).unwrap();
        Ended {
            status,
            stdout,
            stderr,
        }
    }
}

impl Drop for Connected {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Listens in the world's folder, and runs `serve` with the connection.
fn far_end<T: Send + 'static>(
    world: &World,
    serve: impl FnOnce(UnixStream) -> T + Send + 'static,
) -> (std::path::PathBuf, thread::JoinHandle<T>) {
    let path = world.path("far.sock");
    let _ = fs::remove_file(&path);
    let listener = UnixListener::bind(&path).unwrap();
    let serving = thread::spawn(move || {
        let (stream, _) = listener.accept().unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        serve(stream)
    });
    (path, serving)
}

#[test]
fn bytes_pass_as_they_are_both_ways() {
    let world = World::new(&[COPY]);
    // Anything that a client may write: invalid JSON, arbitrary bytes, any line endings, redundant spaces.
    let mut input = b"\xff\xfe\0 no json\r\n\n{ \"id\" : 1.50 , \"method\":\"a\"}\n".to_vec();
    input.extend(
        (0..=255_u8)
            .cycle()
            .take(200_000)
            .filter(|byte| *byte != b'\n'),
    );
    input.extend_from_slice(b"\n{\"jsonrpc\":\"2.0\",\"id\":\"end\",\"method\":\"ping\"}\n");
    let mut output = b"\x80\x81 hello \0\r\n\r\n{\"id\" :1.50, \"result\":1}\n".to_vec();
    // Answers to the two lines that are not JSON.
    for error in [r#"{"error":{},"id":null}"#, r#" { "error" : 1 } "#] {
        output.extend_from_slice(error.as_bytes());
        output.push(b'\n');
    }
    output.extend(
        (0..=255_u8)
            .rev()
            .cycle()
            .take(200_000)
            .filter(|byte| *byte != b'\n'),
    );
    let last = b"\n{\"id\":\"end\",\"result\":{}}\n\xff without a newline";
    output.extend_from_slice(last);

    let (length, answer) = (input.len(), output.clone());
    let (socket, serving) = far_end(&world, move |mut stream| {
        let mut seen = vec![0; length];
        stream.read_exact(&mut seen).unwrap();
        stream.write_all(&answer).unwrap();
        // The client did not half-close, so the connection ends when the client does.
        let mut rest = Vec::new();
        stream.read_to_end(&mut rest).unwrap();
        (seen, rest)
    });
    let mut command = world.command(&["mcp", "connect", "--socket", socket.to_str().unwrap()]);
    command.stdin(super::world::file_of(&input));
    let out = world.path("out");
    command.stdout(fs::File::create(&out).unwrap());
    let mut child = command.spawn().unwrap();
    assert_eq!(wait(&mut child), 0);
    let (seen, rest) = serving.join().unwrap();
    assert!(seen == input && rest.is_empty(), "{} more", rest.len());
    assert!(fs::read(&out).unwrap() == output);
}

#[test]
fn it_ends_when_the_answers_are_out_and_not_before() {
    if !have_program("gpg") {
        return;
    }
    let keyring = Keyring::new();
    let world = World::new(&[COPY, SIGN]).held_gpg().keyring(&keyring);
    let server = world.listen();
    let mut connected = Connected::start(&world, &server.socket("alice"));
    connected.send((call("slow", "sign", &json!({"data": "aGVsbG8="})) + "\n").as_bytes());
    connected.send(PING);
    // A last line without a newline, and then the end of input.
    connected.send(call("last", "copy", &json!({"content": "last"})).as_bytes());
    connected.stdin = None;
    let mut ids = vec![];
    for _ in 0..2 {
        let answer: Value = serde_json::from_str(&connected.line()).unwrap();
        ids.push(answer["id"].to_string());
    }
    ids.sort();
    assert_eq!(ids, ["\"last\"", "1"]);
    assert!(connected.child.try_wait().unwrap().is_none());
    world.write("go", "");
    let answer: Value = serde_json::from_str(&connected.line()).unwrap();
    assert_eq!(answer["id"], "slow");
    assert!(keyring.verifies(b"hello", text(&answer)));
    connected.end().is(0, "", "");
    // Without a request, there is nothing to wait for.
    connect(&world, &server.socket("alice"), &[], b"").is(0, "", "");
    let told = b"{\"jsonrpc\":\"2.0\",\"method\":\"notifications/initialized\"}\n";
    connect(&world, &server.socket("alice"), &[], told).is(0, "", "");
}

#[test]
fn what_is_no_request_has_its_answer_before_the_end() {
    let world = World::new(&[COPY]);
    let server = world.listen();
    for (line, code) in [
        ("nonsense", -32700),
        ("{\"jsonrpc\":\"2.0\",\"id\":", -32700),
        ("[]", -32600),
        ("{}", -32600),
        (r#"[{"jsonrpc":"2.0","id":1,"method":"ping"}]"#, -32600),
        (r#"{"jsonrpc":"2.0","id":null,"method":"ping"}"#, -32600),
        (r#"{"jsonrpc":"2.0","id":1.5,"method":"ping"}"#, -32600),
    ] {
        let ran = connect(&world, &server.socket("alice"), &[], line.as_bytes());
        assert_eq!((ran.status, ran.stderr.as_str()), (0, ""), "{line}");
        let answer: Value = serde_json::from_str(&ran.stdout).unwrap();
        assert_eq!(
            (&answer["id"], &answer["error"]["code"]),
            (&Value::Null, &json!(code)),
            "{line}"
        );
    }
    // Two requests with the same id get two answers.
    let twice = [PING, PING].concat();
    let ran = connect(&world, &server.socket("alice"), &[], &twice);
    assert_eq!((ran.status, ran.stdout.lines().count()), (0, 2), "{ran:?}");
}

#[test]
fn an_answer_is_passed_on_though_the_provider_takes_no_more() {
    let world = World::new(&[COPY]);
    let said =
        "{\"jsonrpc\":\"2.0\",\"id\":1,\"error\":{\"code\":-32010,\"message\":\"overloaded\"}}\n";
    let (socket, serving) = far_end(&world, move |mut stream| {
        // Act as a server does on a connection beyond the limit.
        let mut first = vec![0; PING.len()];
        stream.read_exact(&mut first).unwrap();
        stream.shutdown(std::net::Shutdown::Read).unwrap();
        stream.write_all(said.as_bytes()).unwrap();
    });
    let input = PING.repeat(20_000);
    let ran = connect(&world, &socket, &[], &input);
    serving.join().unwrap();
    assert_eq!(ran.status, 4);
    // `connect` itself answers each request that the provider left unanswered.
    let rest = ran.stdout.strip_prefix(said).unwrap();
    let rest: Value = serde_json::from_str(rest).unwrap();
    assert_eq!(
        (&rest["id"], &rest["error"]["code"]),
        (&json!(1), &json!(-32000))
    );
}

#[test]
fn a_provider_that_reads_nothing_is_met_by_the_time_out_once_the_client_is_gone() {
    let world = World::new(&[COPY]);
    let socket = world.path("deaf.sock");
    let _listener = UnixListener::bind(&socket).unwrap();
    let args = ["mcp", "connect", "--timeout", "0.5", "--socket"];
    let args = [&args[..], &[socket.to_str().unwrap()]].concat();
    let silent = "error: Cannot reach MCP server: no answer within 0.5 s\n  = help: wait longer with `--timeout SECONDS`\n";
    // More input than the buffers in between can hold, so its end is never read.
    let input = PING.repeat(40_000);
    world.run_with(&args, &input).is(4, "", silent);
    // The same with a full pipe that its writer then closes.
    let mut command = world.command(&args);
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    rustix::io::ioctl_fionbio(&stdin, true).unwrap();
    let mut since = Instant::now();
    while since.elapsed() < Duration::from_millis(500) {
        match stdin.write(&input) {
            Ok(bytes) => {
                assert_ne!(bytes, 0);
                since = Instant::now();
            }
            Err(full) => {
                assert_eq!(full.kind(), std::io::ErrorKind::WouldBlock);
                thread::sleep(Duration::from_millis(10));
            }
        }
    }
    drop(stdin);
    assert_eq!(wait(&mut child), 4);
    let mut said = String::new();
    child.stderr.unwrap().read_to_string(&mut said).unwrap();
    assert_eq!(said, silent);
}

#[test]
fn eight_mebibytes_go_each_way() {
    let world = World::new(&[
        "{name: take, tool: file_accept, consumers: [alice]}",
        "{name: give, tool: file_provide, consumers: [alice]}",
    ]);
    let content: Vec<u8> = (0..=255).cycle().take(8 * 1024 * 1024).collect();
    world.write("portal/outgoing/alice/big", &content);
    let server = world.listen();
    let mut down: Value =
        serde_json::from_str(&call("down", "give", &json!({"path": "big"}))).unwrap();
    down["params"]["_meta"] = json!({"anklume/one_copy": true});
    let down = down.to_string();
    let lines = [
        call(
            "up",
            "take",
            &json!({"path": "up", "data": STANDARD.encode(&content)}),
        ),
        down,
    ];
    let ran = connect(
        &world,
        &server.socket("alice"),
        &[],
        (lines.join("\n") + "\n").as_bytes(),
    );
    assert_eq!((ran.status, ran.stderr.as_str()), (0, ""));
    let answers: Vec<Value> = ran
        .stdout
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(answers.len(), 2);
    let down = answers
        .iter()
        .find(|answer| answer["id"] == "down")
        .unwrap();
    assert!(STANDARD.decode(text(down)).unwrap() == content);
    assert!(fs::read(world.path("portal/incoming/alice/up")).unwrap() == content);
}

#[test]
fn a_provider_that_vanishes_ends_it_with_4() {
    if !have_program("gpg") {
        return;
    }
    let keyring = Keyring::new();
    let world = World::new(&[COPY, SIGN]).held_gpg().keyring(&keyring);
    let begin = "error: Cannot reach MCP server: ";

    // The provider is killed in the middle of the last call.
    let mut server = world.listen();
    let mut connected = Connected::start(&world, &server.socket("alice"));
    connected.send(PING);
    assert!(connected.line().contains("\"result\":{}"));
    connected.send((call("lost", "sign", &json!({"data": "aGVsbG8="})) + "\n").as_bytes());
    connected.stdin = None;
    until("it runs", || world.gpg_waits());
    server.signal("KILL");
    server.wait();
    let message = format!("{begin}it closed the connection without answering 1 request(s)\n");
    let ended = connected.end();
    assert_eq!((ended.status, &ended.stderr), (4, &message));
    let lost: Value = serde_json::from_str(&ended.stdout).unwrap();
    assert_eq!(
        (&lost["id"], &lost["error"]["code"]),
        (&json!("lost"), &json!(-32000))
    );
    world.write("go", "");

    // Behind an Incus proxy, a connection to a missing server is accepted and then closed.
    let (socket, serving) = far_end(&world, drop);
    let ran = connect(&world, &socket, &[], PING);
    serving.join().unwrap();
    assert_eq!(ran.status, 4);
    assert!(ran.stderr.starts_with(begin), "{}", ran.stderr);
    // The provider is silent, and then closes the connection.
    let (socket, serving) = far_end(&world, |mut stream| {
        let mut seen = vec![0; PING.len()];
        stream.read_exact(&mut seen).unwrap();
    });
    let ran = connect(&world, &socket, &[], PING);
    serving.join().unwrap();
    assert_eq!(ran.status, 4);
    assert!(ran.stdout.contains("-32000"), "{}", ran.stdout);
    assert!(ran.stderr.starts_with(begin), "{}", ran.stderr);
}

#[test]
fn it_outlives_its_provider_and_answers_what_was_in_flight() {
    if !have_program("gpg") {
        return;
    }
    let keyring = Keyring::new();
    let world = World::new(&[COPY, SIGN]).held_gpg().keyring(&keyring);
    let mut server = world.listen();
    let socket = server.socket("alice");
    let mut connected = Connected::start(&world, &socket);
    let hello = json!({"jsonrpc": "2.0", "id": "hello", "method": "initialize", "params": {
        "protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "test", "version": "1"}}});
    connected.send(
        format!("{hello}\n{{\"jsonrpc\":\"2.0\",\"method\":\"notifications/initialized\"}}\n")
            .as_bytes(),
    );
    let welcome: Value = serde_json::from_str(&connected.line()).unwrap();
    assert_eq!(
        welcome["result"]["capabilities"]["tools"]["listChanged"],
        true
    );
    connected.send((call("lost", "sign", &json!({"data": "aGVsbG8="})) + "\n").as_bytes());
    until("it runs", || world.gpg_waits());
    server.signal("KILL");
    server.wait();
    let lost = json!({"jsonrpc": "2.0", "id": "lost", "error": {"code": -32000, "message":
        "the provider closed the connection before it answered: the call may have been carried out; the next message connects again"}});
    let said: Value = serde_json::from_str(&connected.line()).unwrap();
    assert_eq!(said, lost);
    // No server is running yet.
    connected.send(PING);
    let said: Value = serde_json::from_str(&connected.line()).unwrap();
    assert_eq!(said["error"]["code"], -32000, "{said}");
    let why = said["error"]["message"].as_str().unwrap();
    assert!(why.starts_with("Cannot reach MCP server: "), "{why}");
    // Another server takes over at the next message, and its tool list may differ.
    let server = world.listen();
    connected.send(call("next", "copy", &json!({"content": "x"})).as_bytes());
    connected.send(b"\n");
    let changed = json!({"jsonrpc": "2.0", "method": "notifications/tools/list_changed"});
    let said: Value = serde_json::from_str(&connected.line()).unwrap();
    assert_eq!(said, changed);
    let said: Value = serde_json::from_str(&connected.line()).unwrap();
    assert_eq!(
        (&said["id"], &said["result"]["isError"]),
        (&json!("next"), &json!(false))
    );
    connected.stdin = None;
    let ended = connected.end();
    assert_eq!((ended.status, ended.stdout.as_str()), (0, ""));
    let went = "Cannot reach MCP server: it closed the connection without answering 1 request(s); the next message connects again\n";
    assert_eq!(ended.stderr, went);
    drop(server);
}

#[test]
fn a_dead_and_a_silent_socket_end_it_with_4_in_time() {
    let world = World::new(&[COPY]);
    let begin = "error: Cannot reach MCP server: ";
    let gone = world.path("none.sock");
    connect(&world, &gone, &[], PING).is(
        4,
        "",
        &format!("{begin}no socket exists at `{}`\n  = help: that folder contains no socket; `-i PROVIDER` finds a provider's socket\n", gone.display()),
    );
    let dead = world.path("dead.sock");
    drop(UnixListener::bind(&dead).unwrap());
    connect(&world, &dead, &[], PING).is(
        4,
        "",
        &format!("{begin}no server is listening on socket `{}`\n  = help: the provider is stopped or its server is not running: ask the operator\n", dead.display()),
    );
    let silent = world.path("silent.sock");
    let _listener = UnixListener::bind(&silent).unwrap();
    let since = Instant::now();
    connect(&world, &silent, &["--timeout", "0.5"], PING).is(
        4,
        "",
        &format!("{begin}no answer within 0.5 s\n  = help: wait longer with `--timeout SECONDS`\n"),
    );
    // This limit detects a hang; it is not a measurement.
    assert!(since.elapsed() < PATIENCE / 2, "{:?}", since.elapsed());
    // Outside of a machine, there are no sockets to look for.
    let nothing = crate::harness::Anklume::new()
        .args(["mcp", "connect"])
        .run();
    nothing.is(2, "", "error: neither a provider nor a socket is named\n  = help: `anklume mcp connect PROVIDER`, or `anklume mcp connect --socket PATH`; inside a machine, neither is needed\n");
}

#[test]
fn a_client_that_goes_away_ends_it_quietly() {
    let world = World::new(&[COPY]);
    let server = world.listen();
    let mut connected = Connected::start(&world, &server.socket("alice"));
    connected.send(PING);
    connected.line();
    // Nobody reads its stdout any more.
    let Connected { stdout, .. } = &mut connected;
    let gone = std::mem::replace(stdout, BufReader::new(unheard(&world)));
    drop(gone);
    connected.send(PING);
    let status = wait(&mut connected.child);
    assert_eq!(status, 0);
    server.peer("alice").lives();
}

/// A finished program's stdout, as a replacement for a closed one.
fn unheard(world: &World) -> ChildStdout {
    let mut child = world
        .command(&["--version"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let stdout = child.stdout.take().unwrap();
    wait(&mut child);
    stdout
}
