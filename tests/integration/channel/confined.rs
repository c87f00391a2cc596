//! The remaining rights of a server's processes: read from `/proc`, tested from inside, and tested by a planted gpg.

use std::fs;
use std::io::Read as _;
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::path::Path;
use std::process::Command;

use serde_json::json;

use super::peer::call;
use super::text;
use super::world::{Listening, World, number_of, signal, until};
use crate::harness::{ANKLUME, have_program, write_program};
use crate::serve::server::Keyring;

const COPY: &str = "{name: copy, tool: clipboard_set, consumers: [alice, bob]}";
const SIGN: &str = "{name: sign, tool: gpg_sign, consumers: [alice]}";
const GIVE: &str = "{name: give, tool: file_provide, consumers: [alice]}";
const TAKE: &str = "{name: take, tool: file_accept, consumers: [carol]}";

/// Reads a line of `/proc/PID/status`.
fn line(process: u32, key: &str) -> String {
    let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let value = status.lines().find_map(|line| line.strip_prefix(key));
    value.unwrap().trim().to_owned()
}

/// Asserts no new privileges, filtered system calls, and no capabilities, now or after running a program.
#[track_caller]
fn is_confined(process: u32) {
    let words = fs::read(format!("/proc/{process}/cmdline")).unwrap();
    let words = String::from_utf8_lossy(&words).replace('\0', " ");
    assert_eq!(line(process, "NoNewPrivs:"), "1", "{words}");
    assert_eq!(line(process, "Seccomp:"), "2", "{words}");
    for set in ["CapInh:", "CapPrm:", "CapEff:", "CapBnd:", "CapAmb:"] {
        assert_eq!(line(process, set), "0000000000000000", "{set} {words}");
    }
}

#[test]
fn every_process_of_a_server_has_a_filter_and_no_capabilities_and_says_so() {
    let world = World::new(&[COPY, GIVE]);
    world.write("portal/outgoing/all/a", "content");
    let server = world.listen();
    let mut alice = server.peer("alice");
    text(&alice.call("copy", &json!({"content": "text"})));
    text(&alice.call("give", &json!({"path": "a"})));
    is_confined(server.pid());
    is_confined(server.worker("alice").unwrap());
    is_confined(server.helper("alice", "clipboard").unwrap());
    // Alice has no key here, and her worker itself reads the portal.
    assert_eq!(server.helper("alice", "keys"), None);
    assert_eq!(server.helper("alice", "portal"), None);
    let status = world.run(&["mcp", "status", "--listen", &world.text("sockets")]);
    let line = "\nconfined by: seccomp, no capabilities, Landlock ABI ";
    assert!(status.stdout.contains(line), "{status:?}");
    server.end();
}

/// A world in which every forbidden attempt has a target.
struct Temptation {
    world: World,
    _tcp: TcpListener,
    _unix: UnixListener,
    _datagram: UnixDatagram,
    attempts: String,
}

impl Temptation {
    fn new(services: &[&str]) -> Self {
        let world = World::new(services);
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        let unix = UnixListener::bind(world.path("other.sock")).unwrap();
        let datagram = UnixDatagram::bind(world.path("datagram.sock")).unwrap();
        world.write("portal/outgoing/all/a", "content");
        world.write("secret", "secret");
        let port = tcp.local_addr().unwrap();
        let attempts = [
            "read /etc/shadow".to_owned(),
            format!("read {}", world.text("secret")),
            format!("read {}", world.text("portal/outgoing/all/a")),
            format!("make {}", world.text("portal/made")),
            format!("append {}", world.text("log/audit.jsonl")),
            format!("make {}", world.text("made")),
            format!("connect {}", world.text("other.sock")),
            format!("tcp {port}"),
            format!("datagram {}", world.text("datagram.sock")),
            format!("mode {}", world.text("secret")),
            format!("neither {}", world.text("secret")),
            "run /bin/true".to_owned(),
            format!("signal {}", std::process::id()),
        ];
        // An unconfined process can reach each of them.
        fs::read("/etc/shadow").unwrap();
        UnixStream::connect(world.path("other.sock")).unwrap();
        TcpStream::connect(port).unwrap();
        let attempts = attempts.join("\n");
        let world = world.env("ANKLUME_PROBE", &attempts);
        Self {
            world,
            _tcp: tcp,
            _unix: unix,
            _datagram: datagram,
            attempts,
        }
    }

    /// The results of one process's attempts, one word each.
    #[track_caller]
    fn done(&self, server: &Listening, who: &str) -> Vec<&'static str> {
        let count = self.attempts.lines().count();
        let begin = format!("probe {who}: ");
        let mut lines = Vec::new();
        until("it has tried", || {
            let stderr = server.stderr();
            let said = stderr.lines().filter_map(|line| line.strip_prefix(&begin));
            lines = said.map(str::to_owned).collect();
            lines.len() == count
        });
        let asked = self.attempts.lines().zip(&lines);
        let words = asked.map(|(attempt, line)| {
            match line
                .strip_prefix(attempt)
                .and_then(|line| line.strip_prefix(": "))
            {
                Some("done") => "done",
                Some(
                    "Permission denied (os error 13)" | "Operation not permitted (os error 1)",
                ) => "refused",
                other => panic!("{attempt}: {other:?}"),
            }
        });
        words.collect()
    }
}

#[test]
fn a_process_that_reads_a_stranger_s_bytes_can_do_what_its_grants_need_and_nothing_else() {
    let tempted = Temptation::new(&[COPY, GIVE, TAKE]);
    let world = &tempted.world;
    let server = world.listen();
    server.peer("bob").lives();
    let refused = vec!["refused"; 13];
    assert_eq!(tempted.done(&server, "worker"), refused);
    server.end();
    let server = world.listen();
    server.peer("alice").lives();
    let mut portal_alone = refused.clone();
    portal_alone[2] = "done";
    portal_alone[3] = "done";
    assert_eq!(tempted.done(&server, "worker"), portal_alone);
    fs::remove_file(world.path("portal/made")).unwrap();
    server.end();
    // The clipboard is a file here, and a separate process handles it.
    let server = world.listen();
    let mut bob = server.peer("bob");
    text(&bob.call("copy", &json!({"content": "text"})));
    assert_eq!(tempted.done(&server, "clipboard"), refused);
    assert_eq!(world.clipboard().as_deref(), Some("text"));
    server.end();
    assert!(!world.path("made").exists() && !world.path("portal/made").exists());
}

#[test]
fn a_consumer_s_processes_start_only_what_the_policy_grants_and_follow_it() {
    let world = World::new(&[COPY]);
    fs::remove_dir(world.path("portal")).unwrap();
    let server = world.listen();
    let mut alice = server.peer("alice");
    alice.lives();
    let worker = server.worker("alice").unwrap();
    // The process for a tool that is granted later, on the same connection, starts with the rights that it needs.
    world.policy(&[COPY, "{name: take, tool: file_accept, consumers: [alice]}"]);
    let taken = json!({"path": "a", "data": "Y29udGVudA=="});
    until("it is granted", || {
        alice.call("take", &taken).get("result").is_some()
    });
    assert_eq!(server.worker("alice"), Some(worker));
    is_confined(server.helper("alice", "portal").unwrap());
    let file = world.path("portal/incoming/alice/a");
    assert_eq!(fs::read_to_string(file).unwrap(), "content");
    // A piecewise transfer, whose state is kept between two calls.
    let piece = |offset: u64, last: bool| json!({"path": "b", "data": "Y29udGVudA==", "offset": offset, "final": last});
    text(&alice.call("take", &piece(0, false)));
    text(&alice.call("take", &piece(7, true)));
    let file = world.path("portal/incoming/alice/b");
    assert_eq!(fs::read_to_string(file).unwrap(), "contentcontent");
    // A file with its own mode, set by the only piece or by the last one.
    let private = json!({"path": "c", "data": "Y29udGVudA==", "mode": "0600"});
    text(&alice.call("take", &private));
    let begins = json!({"path": "d", "data": "Y29udGVudA==", "offset": 0});
    let ends =
        json!({"path": "d", "data": "Y29udGVudA==", "offset": 7, "final": true, "mode": "0600"});
    text(&alice.call("take", &begins));
    text(&alice.call("take", &ends));
    for (name, mode) in [("a", 0o644), ("b", 0o644), ("c", 0o600), ("d", 0o600)] {
        let is = fs::metadata(world.path(&format!("portal/incoming/alice/{name}"))).unwrap();
        assert_eq!(is.mode() & 0o7777, mode, "{name}");
    }
    // The process exits after it has been idle for a while.
    until("it has ended", || {
        server.helper("alice", "portal").is_none()
    });
    assert_eq!(
        server.stderr().matches("ended").count(),
        0,
        "{}",
        server.stderr()
    );
    server.end();
}

/// A gpg that attempts things that a real one never needs, and reports the successful attempts over a socket.
const PLANTED: &str = r#"#!/usr/bin/python3
import os, resource, socket, sys
home, log, portal, secret, server, port, socket_path = "PLACES".split("|")
# It gets only the environment variables that gpg needs.
assert "UNTOLD" not in os.environ and "GNUPGHOME" in os.environ, sorted(os.environ)
done = []
def attempt(name, what):
    try:
        what()
        done.append(name)
    except OSError:
        pass
attempt("shadow", lambda: open("/etc/shadow"))
attempt("secret", lambda: open(secret))
attempt("portal", lambda: os.listdir(portal))
attempt("log", lambda: open(log, "a"))
attempt("memory", lambda: open(f"/proc/{server}/mem", "rb"))
attempt("environment", lambda: open(f"/proc/{server}/environ", "rb"))
attempt("signal", lambda: os.kill(int(server), 0))
attempt("tcp", lambda: socket.create_connection(("127.0.0.1", int(port)), 5))
attempt("udp", lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
attempt("keys", lambda: os.listdir(home))
attempt("plant", lambda: open(home + "/gpg-agent.conf", "w"))
attempt("mode", lambda: os.chmod(secret, 0o4755))
attempt("owner", lambda: os.chown(secret, 1, 1))
attempt("attribute", lambda: os.setxattr(secret, "user.a", b"a"))
attempt("time", lambda: os.utime(secret))
attempt("neither", lambda: os.fchmod(os.open(secret, 3), 0o4755))
attempt("folder", lambda: os.fchmod(os.open(home, os.O_RDONLY), 0o777))
attempt("given", lambda: os.fchown(os.open(home, os.O_RDONLY), 1, 1))
attempt("limit", lambda: resource.prlimit(int(server), resource.RLIMIT_NOFILE, resource.prlimit(int(server), resource.RLIMIT_NOFILE)))
attempt("priority", lambda: os.setpriority(os.PRIO_PROCESS, int(server), 1))
attempt("processor", lambda: os.sched_setaffinity(int(server), [0]))
attempt("empty", lambda: os.truncate(secret, 0))
attempt("node", lambda: os.mknod(home + "/node"))
# Unix sockets are within reach.
told = socket.socket(socket.AF_UNIX)
told.connect(socket_path)
told.sendall(" ".join(done).encode())
sys.exit(2)
"#;

#[test]
fn a_planted_gpg_reaches_the_keys_and_nothing_else_of_the_machine() {
    if !have_program("gpg") || !Path::new("/usr/bin/python3").exists() {
        return;
    }
    let keyring = Keyring::new();
    let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
    let world = World::new(&[SIGN]).keyring(&keyring);
    world.write("secret", "secret");
    let path = std::env::var("PATH").unwrap();
    let home = keyring.path().to_str().unwrap().to_owned();
    let planted = [
        home.clone(),
        world.text("log/audit.jsonl"),
        world.text("portal"),
        world.text("secret"),
        std::process::id().to_string(),
        tcp.local_addr().unwrap().port().to_string(),
        world.text("told.sock"),
    ];
    let told = UnixListener::bind(world.path("told.sock")).unwrap();
    let bin = world.text("bin");
    let planted = PLANTED.replace("PLACES", &planted.join("|"));
    write_program(&world.path("bin/gpg"), &planted);
    let world = world
        .env("PATH", format!("{bin}:{path}"))
        .env("UNTOLD", "secret");
    let server = world.listen();
    let mut alice = server.peer("alice");
    alice.send(call("call", "sign", &json!({"data": "aGVsbG8="})));
    let mut done = String::new();
    let (mut teller, _) = told.accept().unwrap();
    teller.read_to_string(&mut done).unwrap();
    assert_eq!(done, "keys");
    assert_eq!(fs::read_to_string(world.path("secret")).unwrap(), "secret");
    let mode = fs::metadata(world.path("secret")).unwrap().mode();
    assert_eq!(mode & 0o7000, 0);
    server.end();
}

/// Runs its arguments as if on a kernel without system call filters (`seccomp(2)`, number 317 on this architecture).
const WITHOUT_FILTERS: &str = r"
import ctypes, os, struct, sys
program = [(0x20, 0, 0, 0), (0x15, 0, 1, 317), (0x06, 0, 0, 0x00050000 | 38), (0x06, 0, 0, 0x7fff0000)]
code = ctypes.create_string_buffer(b''.join(struct.pack('HBBI', *line) for line in program))
class Program(ctypes.Structure):
    _fields_ = [('length', ctypes.c_ushort), ('code', ctypes.c_void_p)]
libc = ctypes.CDLL(None, use_errno=True)
assert libc.prctl(38, 1, 0, 0, 0) == 0
assert libc.prctl(22, 2, ctypes.byref(Program(len(program), ctypes.addressof(code)))) == 0
os.execv(sys.argv[1], sys.argv[1:])
";

/// A world's server, on such a kernel.
fn without_filters(world: &World) -> Command {
    let mut command = Command::new("python3");
    command.args(["-c", WITHOUT_FILTERS, ANKLUME]);
    let serve = [
        "mcp",
        "serve",
        "--listen",
        "sockets",
        "--services",
        "services.json",
    ];
    world.through(&mut command, &serve);
    command
}

#[test]
fn a_server_that_must_be_confined_does_not_serve_without_a_filter() {
    if !have_program("python3") {
        return;
    }
    let why = "no system-call filter: ";
    // The server runs with the confinement that the kernel supports, and reports what is missing.
    let world = World::new(&[COPY]);
    let server = world.listen_by(without_filters(&world));
    text(
        &server
            .peer("alice")
            .call("copy", &json!({"content": "text"})),
    );
    let status = world.run(&["mcp", "status", "--listen", "sockets"]);
    let said = "\nconfined by: no seccomp (";
    assert!(status.stdout.contains(said), "{status:?}");
    server.end();
    let world = World::with_mcp(&[COPY], "{confinement: required}");
    let ran = without_filters(&world).output().unwrap();
    let stderr = String::from_utf8(ran.stderr).unwrap();
    let said = format!("error: this server must be confined, but is not: {why}");
    assert!(stderr.starts_with(&said), "{stderr}");
    assert!(
        stderr.ends_with(
            "\n  = help: `mcp: {confinement: available}` in infra.yml lets it serve anyway\n"
        ),
        "{stderr}"
    );
    assert_eq!(ran.status.code(), Some(1));
    // The same on a kernel that can confine it.
    let server = world.listen();
    text(
        &server
            .peer("alice")
            .call("copy", &json!({"content": "text"})),
    );
    server.end();
}

#[test]
fn a_helper_that_does_not_end_is_ended_with_the_process_that_it_works_for() {
    let world = World::new(&[COPY]);
    let server = world.listen();
    let mut alice = server.peer("alice");
    text(&alice.call("copy", &json!({"content": "text"})));
    let helper = server.helper("alice", "clipboard").unwrap();
    signal(helper, "STOP");
    signal(server.worker("alice").unwrap(), "KILL");
    alice.gets_closed();
    until("it is gone", || {
        server.helper("alice", "clipboard").is_none()
    });
    let mut alice = server.peer("alice");
    text(&alice.call("copy", &json!({"content": "again"})));
    server.end();
}

#[test]
fn a_call_after_a_pause_finds_its_process_whenever_it_comes() {
    let world = World::new(&[COPY]);
    let server = world.listen();
    let mut alice = server.peer("alice");
    // Call around the moment when an idle process exits.
    for millis in [2_990, 2_998, 3_000, 3_001, 3_002, 3_004, 3_010] {
        text(&alice.call("copy", &json!({"content": "text"})));
        std::thread::sleep(std::time::Duration::from_millis(millis));
    }
    text(&alice.call("copy", &json!({"content": "text"})));
    server.end();
}

#[test]
fn calls_that_are_taken_back_keep_no_memory() {
    let world = World::new(&[COPY]);
    let server = world.listen();
    let mut alice = server.peer("alice");
    let content = "x".repeat(60_000);
    text(&alice.call("copy", &json!({"content": content})));
    let worker = server.worker("alice").unwrap();
    for number in 0..2_000 {
        alice.send(call(
            format!("c{number}"),
            "copy",
            &json!({"content": content}),
        ));
        let params = json!({"requestId": format!("c{number}"), "reason": ""});
        let cancelled =
            json!({"jsonrpc": "2.0", "method": "notifications/cancelled", "params": params});
        alice.send(cancelled.to_string());
    }
    // Some of the calls ran before they were cancelled.
    alice.send(json!({"jsonrpc": "2.0", "id": "end", "method": "ping"}).to_string());
    while alice.receive()["id"] != "end" {}
    let peak = number_of(worker, "VmHWM:");
    assert!(peak < 96 * 1024, "{peak} KiB");
    server.end();
}
