//! What a program finds in its reach: not its parents' descriptors, environment, rights or processes.

use std::fs;
use std::io::{Read as _, Write as _};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::{SocketAddr, UnixStream};
use std::process::Command;

use rustix::process::geteuid;
use serde_json::{Value, json};

use super::ended::launcher;
use super::{failure, one, run, running, with_mcp};
use crate::channel::text;
use crate::channel::world::{World, until};
use crate::harness::{have, python};

const RUN: &str = "{name: run, tool: run, consumers: [alice]}";

#[test]
fn a_program_has_an_environment_of_its_own_and_secrets_from_a_file() {
    let tool = "tools: {run: {description: Runs, command: [BIN/run], env_file: BIN/env}}";
    let world = with_mcp(&[("run", "#!/bin/sh\nenv | sort")], tool, &[RUN]);
    let world = world.env("SECRET_OF_THE_SERVER", "1");
    let file = world.path("bin/env");
    fs::write(&file, "# a comment\nTOKEN='a b'\nLANG=C\n").unwrap();
    let mode = |mode| fs::set_permissions(&file, fs::Permissions::from_mode(mode)).unwrap();
    mode(0o600);
    let server = world.listen();
    let home = world.text("");
    let home = home.trim_end_matches('/');
    let expected = format!(
        "HOME={home}\nLANG=C\nPATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\nPWD={home}\nTOKEN=a b\n"
    );
    assert_eq!(text(&run(&server, &json!({}))), expected);
    // A file that others may read is refused, and no message quotes one.
    let refused = |why: &str| {
        let answer = run(&server, &json!({}));
        assert_eq!(
            failure(&answer),
            "this tool cannot run on its machine as declared; the log of `anklume-run` there says why"
        );
        let line = format!("error: the tool `run` cannot run: {why}\n");
        let said = server.stderr();
        assert!(said.contains(&line), "{said}");
        // What the message proposes mends it.
        if let Some((_, command)) = why.split_once("; run `") {
            let mut shell = Command::new("sh");
            shell.args(["-c", command.trim_end_matches('`')]);
            assert!(shell.status().unwrap().success());
            text(&run(&server, &json!({})));
        }
    };
    let path = file.to_str().unwrap();
    mode(0o644);
    refused(&format!(
        "others may use `{path}` (mode 0644); run `chmod 0600 {path}`"
    ));
    if have("root", geteuid().is_root()) {
        std::os::unix::fs::chown(&file, Some(5), None).unwrap();
        refused(&format!(
            "`{path}` belongs to the user 5; run `chown root:root {path}`"
        ));
    }
    fs::write(&file, "TOKEN=1\nsecret words\n").unwrap();
    refused(&format!("line 2 of `{path}` is not `NAME=value`"));
    fs::remove_file(&file).unwrap();
    refused(&format!(
        "`{path}` cannot be read: No such file or directory (os error 2)"
    ));
    assert!(!server.stderr().contains("secret words"));
}

#[test]
fn a_program_reaches_neither_its_parents_nor_the_server() {
    // Each attempt prints `done` only if it succeeds; the last one is the control.
    let script = "#!/bin/sh
try() { name=$1; shift; if \"$@\" >/dev/null 2>&1; then echo \"$name: done\"; else echo \"$name: refused\"; fi; }
parent=$(sed 's/.*) . //; s/ .*//' /proc/$$/stat)
try 'environment of the parent' cat /proc/$parent/environ
try 'memory of the parent' head -c 1 /proc/$parent/mem
try 'descriptors of the parent' readlink /proc/$parent/fd/0
try 'signal to the parent' kill -0 $parent
sleep 60 & try 'signal to a child' kill -9 $!
grep -E '^(NoNewPrivs|CapInh|CapPrm|CapEff|CapAmb):' /proc/self/status | tr '\\t' ' '
ls /proc/self/fd/ | grep -c '^[3-9]$'
";
    let world = one(script, "");
    let server = world.listen();
    let answer = run(&server, &json!({}));
    // `ls` has one descriptor of its own.
    let expected = "environment of the parent: refused
memory of the parent: refused
descriptors of the parent: refused
signal to the parent: refused
signal to a child: done
CapInh: 0000000000000000
CapPrm: 0000000000000000
CapEff: 0000000000000000
CapAmb: 0000000000000000
NoNewPrivs: 1
1
";
    assert_eq!(text(&answer), expected);
}

#[test]
fn a_program_runs_as_the_declared_user_with_that_user_s_groups() {
    if !have("root", geteuid().is_root()) {
        return;
    }
    let tool = "tools: {run: {description: Runs, command: [/usr/bin/id], run_as: games}, \
        none: {description: Runs, command: [/usr/bin/id], run_as: no-such-user}, \
        score: {description: Runs, command: [/bin/cat, /proc/self/oom_score_adj], run_as: games}}";
    let services = [
        RUN,
        "{name: none, tool: none, consumers: [alice]}",
        "{name: score, tool: score, consumers: [alice]}",
    ];
    let world: World = with_mcp(&[], tool, &services);
    let server = world.listen();
    let answer = run(&server, &json!({}));
    let user = text(&answer);
    assert!(
        user.starts_with("uid=5(games) gid=60(games) groups=60(games)"),
        "{user}"
    );
    // If memory runs out, the kernel ends it first.
    let score = server.peer("alice").call("score", &json!({}));
    assert_eq!(text(&score), "1000\n");
    failure(&server.peer("alice").call("none", &json!({})));
    let said = server.stderr();
    let why =
        "error: the tool `none` cannot run: the user `no-such-user` does not exist in this machine";
    assert!(said.contains(why), "{said}");
}

/// The name of the abstract socket of a world's launcher.
fn socket(world: &World) -> String {
    let words = fs::read(format!("/proc/{}/cmdline", launcher(world))).unwrap();
    let name = words.split(|byte| *byte == 0).nth(2).unwrap();
    let name = str::from_utf8(name).unwrap();
    name.strip_prefix('@').unwrap().to_owned()
}

fn framed(message: &Value) -> Vec<u8> {
    let text = message.to_string();
    let length = u32::try_from(text.len()).unwrap();
    [&length.to_le_bytes()[..], text.as_bytes()].concat()
}

/// A connection to the launcher, as a worker of alice's would have it.
fn connected(world: &World) -> UnixStream {
    let address = SocketAddr::from_abstract_name(socket(world)).unwrap();
    let mut stream = UnixStream::connect_addr(&address).unwrap();
    let hello = json!({"Calls": {"consumer": "alice"}});
    stream.write_all(&framed(&hello)).unwrap();
    stream
}

/// What arrives until the end of the connection, at most one message; `None`: nothing.
fn message(stream: &mut UnixStream) -> Option<String> {
    let mut length = [0; 4];
    stream.read_exact(&mut length).ok()?;
    let mut text = String::new();
    let length = u32::from_le_bytes(length).into();
    stream.take(length).read_to_string(&mut text).unwrap();
    Some(text)
}

fn order(id: u32, arguments: &Value) -> Value {
    json!({"Call": {"id": id, "connection": 1, "service": "run", "arguments": arguments, "copies": "One", "progress": false}})
}

#[test]
fn a_program_does_not_reach_the_launcher_as_a_server_does() {
    let Some(python) = python("python3") else {
        return;
    };
    let program = "import socket, sys, json
s = socket.socket(socket.AF_UNIX)
s.settimeout(20)
s.connect('\\0' + sys.argv[1])
hello = json.dumps('Status').encode()
try:
    s.sendall(len(hello).to_bytes(4, 'little') + hello)
    print(s.recv(1000))
except ConnectionError:
    print(b'')
";
    let program = format!("#!{}\n{program}", python.display());
    let tool = "tools: {run: {description: Runs, command: [BIN/run, \"{name}\"], arguments: {name: {type: string}}}}";
    let world = with_mcp(&[("run", &program)], tool, &[RUN]);
    let server = world.listen();
    let name = socket(&world);
    assert_eq!(text(&run(&server, &json!({"name": name}))), "b''\n");
    // The same program outside gets an answer.
    let outside = Command::new(world.path("bin/run")).arg(name).output();
    let outside = String::from_utf8(outside.unwrap().stdout).unwrap();
    assert!(outside.contains("running"), "{outside}");
}

#[test]
fn a_worker_that_was_taken_over_gets_no_more_from_the_launcher() {
    let tool = "tools: {run: {description: Runs, command: [BIN/run, \"{s}\"], arguments: {s: {type: string}}}}";
    let world = with_mcp(
        &[("run", "#!/bin/sh\nsleep \"$1\"; echo ran")],
        tool,
        &[RUN],
    );
    let _server = world.listen();
    let mut stream = connected(&world);
    stream
        .write_all(&framed(&order(1, &json!({"s": "0"}))))
        .unwrap();
    assert!(message(&mut stream).unwrap().contains("ran"));
    // The same number twice: the first call could not be cancelled any more.
    for _ in 0..2 {
        stream
            .write_all(&framed(&order(2, &json!({"s": "60"}))))
            .unwrap();
    }
    assert_eq!(message(&mut stream), None);
    // More values than a consumer's message may have.
    let mut stream = connected(&world);
    let many = json!({"s": vec![0; 20_000]});
    stream.write_all(&framed(&order(1, &many))).unwrap();
    assert_eq!(message(&mut stream), None);
    // More bytes.
    let mut stream = connected(&world);
    stream.write_all(&(18_u32 << 20).to_le_bytes()).unwrap();
    assert_eq!(message(&mut stream), None);
    until("all ends", || running(&world).is_empty());
}
