//! Measures calls and files over an edge between two real machines against bytes over two bare proxies between them.
//!
//! This program itself is pushed into both machines: it is the echo, or the sink of a file, in the provider, and the client
//! in the consumer.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use super::apply::{incus, name};
use super::median;

/// Names the role of this program in a machine: `echo PATH`, `client ECHO EDGE`, `sink PATH`, or `files SINK PROVIDER`.
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
        ["sink", path] => sink(path),
        ["files", bare, provider] => files(bare, provider),
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

/// Size of a transferred file, in bytes.
pub(crate) const SIZE: u32 = 256 * 1024 * 1024;
/// Number of transfers of each kind.
const TRANSFERS: u32 = 3;
const PIECE: usize = 1024 * 1024;

/// Writes what each connection announces and sends into a file, syncs it, and answers with a byte.
fn sink(path: &str) {
    let _ = std::fs::remove_file(path);
    for stream in UnixListener::bind(path).unwrap().incoming() {
        let mut stream = stream.unwrap();
        let mut size = [0; 8];
        stream.read_exact(&mut size).unwrap();
        let mut file = std::fs::File::create("/root/sunk").unwrap();
        let mut piece = vec![0; PIECE];
        let mut left = u64::from_le_bytes(size);
        while left > 0 {
            let read = stream.read(&mut piece).unwrap();
            file.write_all(piece.get(..read).unwrap_or_default())
                .unwrap();
            left -= read as u64;
        }
        file.sync_all().unwrap();
        stream.write_all(b"!").unwrap();
    }
}

/// Sends a file through the bare proxies.
fn cat(bare: &str, file: &str) {
    let mut stream = UnixStream::connect(bare).unwrap();
    let mut file = std::fs::File::open(file).unwrap();
    let size = file.metadata().unwrap().len();
    stream.write_all(&size.to_le_bytes()).unwrap();
    let mut piece = vec![0; PIECE];
    loop {
        match file.read(&mut piece).unwrap() {
            0 => break,
            read => stream
                .write_all(piece.get(..read).unwrap_or_default())
                .unwrap(),
        }
    }
    stream.read_exact(&mut [0]).unwrap();
}

/// Measures a push, a pull and the bare bytes in turns, and prints the medians in nanoseconds.
fn files(bare: &str, provider: &str) {
    let bytes = (0_u32..).flat_map(u32::to_le_bytes);
    let bytes: Vec<u8> = bytes.take(usize::try_from(SIZE).unwrap()).collect();
    let anklume = |words: &[&str]| {
        let mut command = Command::new("/usr/local/bin/anklume");
        command
            .args(words)
            .args(["-i", provider])
            .env("HOME", "/root");
        assert!(command.status().unwrap().success(), "{words:?}");
    };
    let (mut push, mut pull, mut floor) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..TRANSFERS {
        let name = format!("/root/file{round}");
        std::fs::write(&name, &bytes).unwrap();
        push.push(crate::timed(|| anklume(&["file", "push", &name])));
        pull.push(crate::timed(|| {
            anklume(&["file", "pull", "fetched", "-o", "/root"]);
        }));
        floor.push(crate::timed(|| cat(bare, &name)));
        for used in [&name, "/root/fetched"] {
            std::fs::remove_file(used).unwrap();
        }
    }
    let nanos = [push, pull, floor].map(|times| median(times).as_nanos().to_string());
    println!("{}", nanos.join(" "));
}

/// Measures between the two machines of [`super::apply::with_an_edge`].
pub(crate) fn measure() -> Times {
    let times = between("echo", |bare, provider| {
        format!("client {bare} /srv/anklume/mcp/{provider}.sock")
    });
    let [call, echo, connect, connect_echo] = times.try_into().unwrap();
    Times {
        call,
        echo,
        connect,
        connect_echo,
    }
}

/// Measures transfers of a file between these machines.
pub(crate) fn measure_files() -> crate::transfer::Times {
    let provide = format!(
        "mkdir -p /srv/anklume/portal/outgoing/all && head -c {SIZE} /dev/zero >/srv/anklume/portal/outgoing/all/fetched"
    );
    let exec = [
        "exec",
        &name(0),
        "--project",
        "bench0",
        "-T",
        "--",
        "sh",
        "-c",
    ];
    incus(&[exec.as_slice(), &[&provide]].concat()).unwrap();
    let times = between("sink", |bare, provider| format!("files {bare} {provider}"));
    let [push, pull, floor] = times.try_into().unwrap();
    crate::transfer::Times { push, pull, floor }
}

/// Connects the two machines by bare proxies to this program, in this role, in the provider; runs it in the consumer in the
/// role that `client` names, and returns the times that it prints.
fn between(role: &str, client: impl FnOnce(&str, &str) -> String) -> Vec<Duration> {
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
    let echo_part = part(format!("{role} /run/{role}.sock"));
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
    let host = format!(
        "/var/lib/anklume/mcp/bench-{role}-{}.sock",
        std::process::id()
    );
    let listen = format!("listen=unix:{host}");
    let connect = format!("connect=unix:{host}");
    let add = |machine: &str, project: &str, keys: &[&str]| {
        let words = [
            "config",
            "device",
            "add",
            machine,
            role,
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
            &format!("connect=unix:/run/{role}.sock"),
            "mode=0600",
        ],
    );
    let inside = format!("listen=unix:/srv/anklume/mcp/{role}");
    add(
        &consumer,
        "bench1",
        &["bind=instance", &inside, &connect, "mode=0600"],
    );
    let client = part(client(&format!("/srv/anklume/mcp/{role}"), &provider));
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
    let times = times.unwrap();
    let nanos = times.split_whitespace();
    nanos
        .map(|nanos| Duration::from_nanos(nanos.parse().unwrap()))
        .collect()
}
