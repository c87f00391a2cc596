//! Measures a call over an edge between two real machines against a byte echo over two bare proxies between them.
//!
//! This program itself is pushed into both machines: it is the echo in the provider and the client in the consumer.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use super::apply::{incus, name};
use super::median;

/// Names the role of this program in a machine: `echo PATH`, or `client ECHO EDGE`.
const PART: &str = "ANKLUME_BENCH_PART";
/// Number of round trips and connections to measure.
const ROUNDS: usize = 400;
/// Length of a message over the bare proxies: about that of a small call.
const MESSAGE: usize = 200;

/// Measurements of one edge.
pub(crate) struct Times {
    /// A tool call on an open connection.
    pub(crate) call: Duration,
    /// A round trip of bytes.
    pub(crate) echo: Duration,
    /// A new connection up to its first answer.
    pub(crate) connect: Duration,
    /// A new connection up to its first bytes.
    pub(crate) connect_echo: Duration,
}

/// Plays this process's role in a machine, if it was started for one; returns whether it was.
pub(crate) fn plays_a_part() -> bool {
    let Ok(part) = std::env::var(PART) else {
        return false;
    };
    let words: Vec<&str> = part.split(' ').collect();
    match words.as_slice() {
        ["echo", path] => echo(path),
        ["client", bare, edge] => client(bare, edge),
        other => unreachable!("{other:?}"),
    }
    true
}

fn echo(path: &str) {
    let _ = std::fs::remove_file(path);
    for stream in UnixListener::bind(path).unwrap().incoming() {
        let mut stream = stream.unwrap();
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(read) = stream.read(&mut buffer) {
                let came = buffer.get(..read).unwrap_or_default();
                if came.is_empty() || stream.write_all(came).is_err() {
                    break;
                }
            }
        });
    }
}

fn each(mut one: impl FnMut()) -> Duration {
    let times = (0..ROUNDS).map(|_| {
        let began = Instant::now();
        one();
        began.elapsed()
    });
    median(times.collect())
}

const HELLO: &str = r#"{"jsonrpc":"2.0","id":0,"method":"initialize","params":{"protocolVersion":"2025-06-18","capabilities":{},"clientInfo":{"name":"bench","version":"0"}}}"#;
const CALL: &str =
    r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"paste","arguments":{}}}"#;

/// Opens a connection and completes `initialize` on it.
fn open(path: &str) -> BufReader<UnixStream> {
    let mut stream = BufReader::new(UnixStream::connect(path).unwrap());
    exchange(&mut stream, HELLO);
    stream
}

fn exchange(stream: &mut BufReader<UnixStream>, message: &str) {
    stream
        .get_mut()
        .write_all(format!("{message}\n").as_bytes())
        .unwrap();
    let mut line = String::new();
    assert!(
        stream.read_line(&mut line).unwrap() > 0,
        "the server is gone"
    );
}

/// Measures the four durations and prints them in nanoseconds.
fn client(bare: &str, edge: &str) {
    let bytes = [b'x'; MESSAGE];
    let mut back = [0; MESSAGE];
    let mut there_and_back = |stream: &mut UnixStream| {
        stream.write_all(&bytes).unwrap();
        stream.read_exact(&mut back).unwrap();
    };
    let mut stream = UnixStream::connect(bare).unwrap();
    let echo = each(|| there_and_back(&mut stream));
    let connect_echo = each(|| there_and_back(&mut UnixStream::connect(bare).unwrap()));
    let mut session = open(edge);
    let call = each(|| exchange(&mut session, CALL));
    let connect = each(|| drop(open(edge)));
    let nanos = [call, echo, connect, connect_echo].map(|time| time.as_nanos().to_string());
    println!("{}", nanos.join(" "));
}

/// Measures between the two machines of [`super::apply::with_an_edge`].
pub(crate) fn measure() -> Times {
    let (provider, consumer) = (name(0), name(1));
    let this = std::env::current_exe().unwrap();
    let this = this.to_str().unwrap();
    for (machine, project) in [(&provider, "bench0"), (&consumer, "bench1")] {
        let target = format!("{machine}/root/bench");
        let push = [
            "file",
            "push",
            "-q",
            "--mode",
            "0755",
            this,
            &target,
            "--project",
            project,
        ];
        incus(&push).unwrap();
    }
    let part = |part: String| format!("{PART}={part}");
    let mut echo = Command::new("incus");
    let echo_part = part("echo /run/echo.sock".to_owned());
    echo.args([
        "exec",
        &provider,
        "--project",
        "bench0",
        "-T",
        "--env",
        &echo_part,
        "--",
        "/root/bench",
    ]);
    let mut echo = echo.stdin(Stdio::null()).spawn().unwrap();
    let host = format!("/var/lib/anklume/mcp/bench-{}.sock", std::process::id());
    let listen = format!("listen=unix:{host}");
    let connect = format!("connect=unix:{host}");
    let add = |machine: &str, project: &str, keys: &[&str]| {
        let words = [
            "config",
            "device",
            "add",
            machine,
            "echo",
            "proxy",
            "--project",
            project,
        ];
        incus(&[words.as_slice(), keys].concat()).unwrap();
    };
    add(
        &provider,
        "bench0",
        &[
            "bind=host",
            &listen,
            "connect=unix:/run/echo.sock",
            "mode=0600",
        ],
    );
    let inside = "listen=unix:/srv/anklume/mcp/echo";
    add(
        &consumer,
        "bench1",
        &["bind=instance", inside, &connect, "mode=0600"],
    );
    let client = part(format!(
        "client /srv/anklume/mcp/echo /srv/anklume/mcp/{provider}.sock"
    ));
    let times = incus(&[
        "exec",
        &consumer,
        "--project",
        "bench1",
        "-T",
        "--env",
        &client,
        "--",
        "/root/bench",
    ]);
    echo.kill().unwrap();
    echo.wait().unwrap();
    let _ = std::fs::remove_file(host);
    let times: Vec<Duration> = times
        .unwrap()
        .split_whitespace()
        .map(|nanos| Duration::from_nanos(nanos.parse().unwrap()))
        .collect();
    let [call, echo, connect, connect_echo] = times.try_into().unwrap();
    Times {
        call,
        echo,
        connect,
        connect_echo,
    }
}
