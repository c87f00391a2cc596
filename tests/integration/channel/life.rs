//! The life cycle of a server: readiness, one server per folder, shutdown, kill and restart.

use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, Stdio};

use rustix::process::geteuid;
use serde_json::json;

use super::peer::call;
use super::text;
use super::world::{PATIENCE, World, ended, until, wait};
use crate::harness::{have, have_program};
use crate::serve::server::Keyring;

const COPY: &str = "{name: copy, tool: clipboard_set, consumers: [alice, bob]}";
const SIGN: &str = "{name: sign, tool: gpg_sign, consumers: [alice]}";

/// The sockets in the socket folder.
fn sockets(world: &World) -> Vec<String> {
    let entries = fs::read_dir(world.path("sockets")).unwrap();
    let mut sockets: Vec<String> = entries
        .map(Result::unwrap)
        .filter(|entry| entry.file_type().unwrap().is_socket())
        .map(|entry| entry.file_name().into_string().unwrap())
        .collect();
    sockets.sort();
    sockets
}

#[test]
fn sockets_and_their_folder_are_private() {
    let world = World::new(&[COPY]);
    fs::create_dir(world.path("sockets")).unwrap();
    let open = fs::Permissions::from_mode(0o777);
    fs::set_permissions(world.path("sockets"), open).unwrap();
    let server = world.listen();
    let mode = |path| fs::metadata(path).unwrap().permissions().mode() & 0o7777;
    assert_eq!(mode(world.path("sockets")), 0o700);
    assert_eq!(mode(server.socket("alice")), 0o600);
    assert_eq!(sockets(&world), ["alice.sock", "bob.sock"]);
}

#[test]
fn readiness_is_told_when_the_sockets_are_there() {
    let world = World::new(&[COPY]);
    let path = world.path("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let args = ["mcp", "serve", "--listen", "sockets"];
    let mut command = world.command(&[&args[..], &["--services", "services.json"]].concat());
    let server = world.begin(command.env("NOTIFY_SOCKET", &path));
    let mut said = [0; 256];
    let length = socket.recv(&mut said).unwrap();
    let said = std::str::from_utf8(&said[..length]).unwrap();
    assert_eq!(said.trim_end(), "READY=1");
    // A consumer can connect as soon as the server is ready.
    server.peer("alice").lives();
    server.end();
}

#[test]
fn a_second_server_of_one_folder_is_refused() {
    let world = World::new(&[COPY]);
    let server = world.listen();
    let args = ["mcp", "serve", "--listen", "sockets"];
    let second = world.run(&[&args[..], &["--services", "services.json"]].concat());
    second.is(
        1,
        "",
        "error: another server uses the folder `sockets`\n  = help: only one server can use a folder; `anklume mcp status` shows what it serves\n",
    );
    server.peer("alice").lives();
    assert_eq!(sockets(&world), ["alice.sock", "bob.sock"]);
    server.end();
}

#[test]
fn a_second_signal_makes_a_stdio_server_end_answer_and_log_a_hanging_call() {
    if !have_program("gpg") {
        return;
    }
    let keyring = Keyring::new();
    let world = World::new(&[SIGN]).held_gpg().keyring(&keyring);
    let args = [
        "mcp",
        "serve",
        "--caller",
        "alice",
        "--services",
        "services.json",
    ];
    let mut server = world
        .command(&args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let line = call(1, "sign", &json!({"data": "aGVsbG8="})) + "\n";
    let mut stdin = server.stdin.take().unwrap();
    stdin.write_all(line.as_bytes()).unwrap();
    until("the call runs", || world.gpg_waits());
    // Two pending signals of the same kind would count as one.
    for signal in ["-TERM", "-INT"] {
        let kill = [signal.to_owned(), server.id().to_string()];
        assert!(Command::new("kill").args(kill).status().unwrap().success());
    }
    // Otherwise, gpg would keep running for a minute.
    assert_eq!(wait(&mut server), 0);
    let mut said = String::new();
    let mut stdout = server.stdout.take().unwrap();
    stdout.read_to_string(&mut said).unwrap();
    let answer: serde_json::Value = serde_json::from_str(&said).unwrap();
    assert_eq!(
        answer["error"],
        json!({"code": -32603, "message": "the call was stopped before it finished"})
    );
    assert_eq!(world.logged("call")[0]["outcome"], "cancelled");
    drop(stdin);
}

#[test]
fn a_file_where_a_socket_belongs_stays_and_is_told() {
    let world = World::new(&[COPY]);
    world.write("sockets/.lock", "");
    world.write("sockets/alice.sock", "somebody's");
    let mut refused = world.begin(&mut world.command(&[
        "mcp",
        "serve",
        "--listen",
        "sockets",
        "--services",
        "services.json",
    ]));
    assert_eq!(refused.wait(), 1);
    assert_eq!(
        refused.stderr(),
        "error: `sockets/alice.sock` is not a socket, so no socket can be created there\n  \
         = help: move it away: a server removes only sockets\n"
    );
    fs::remove_file(world.path("sockets/alice.sock")).unwrap();
    // The same while a server is running.
    let server = world.listen();
    fs::remove_file(server.socket("alice")).unwrap();
    fs::write(server.socket("alice"), "somebody's").unwrap();
    let status = || world.run(&["mcp", "status", "--listen", "sockets"]);
    let told = "NOT done: `sockets/alice.sock` is not a socket";
    until("the status reports it", || status().stdout.contains(told));
    assert_eq!(status().status, 1);
    server.peer("bob").lives();
    server.end();
    let kept = fs::read(world.path("sockets/alice.sock")).unwrap();
    assert_eq!(kept, b"somebody's");
}

#[test]
fn a_status_that_may_not_be_seen_is_not_taken_for_no_server() {
    if !have("root", geteuid().is_root()) {
        return;
    }
    let world = World::new(&[COPY]);
    let server = world.listen();
    let program = world.path("anklume");
    // The other user might not have access to the build folder.
    crate::harness::copy_of_anklume(&program);
    let folder = fs::Permissions::from_mode(0o755);
    fs::set_permissions(world.path(""), folder).unwrap();
    let mut status = Command::new(program);
    status.args(["mcp", "status", "--listen", "sockets"]);
    status.current_dir(world.path("")).uid(65_534).gid(65_534);
    let message = "error: cannot check for a server in `sockets`: Permission denied (os error 13)\n  \
                   = help: run this as root or as the server's user\n";
    ended(status).is(1, "", message);
    server.end();
}

#[test]
fn told_to_end_a_server_answers_what_runs_and_leaves_no_socket() {
    if !have_program("gpg") {
        return;
    }
    for signal in ["TERM", "INT"] {
        let keyring = Keyring::new();
        let world = World::new(&[COPY, SIGN]).held_gpg().keyring(&keyring);
        let mut server = world.listen();
        let mut alice = server.peer("alice");
        let idle = [server.peer("alice"), server.peer("bob")];
        alice.send(call("runs", "sign", &json!({"data": "aGVsbG8="})));
        until("it runs", || world.gpg_waits());
        server.signal(signal);
        // It accepts no new connections and no new calls.
        for peer in idle {
            peer.gets_closed();
        }
        let socket = server.socket("bob");
        until("nobody listens", || {
            std::os::unix::net::UnixStream::connect(&socket).is_err()
        });
        alice.send(call("late", "copy", &json!({"content": "late"})));
        world.write("go", "");
        let answer = alice.receive();
        assert_eq!(answer["id"], "runs");
        assert!(keyring.verifies(b"hello", text(&answer)));
        alice.gets_closed();
        assert_eq!(server.wait(), 0, "{}", server.stderr());
        assert_eq!(sockets(&world), [""; 0]);
        assert_eq!(world.clipboard(), None);
        let events: Vec<_> = world
            .log()
            .into_iter()
            .map(|line| line["event"].clone())
            .collect();
        assert_eq!(events, ["start", "call", "stop"]);
    }
}

#[test]
fn a_killed_servers_sockets_are_taken_over_and_the_log_stays_whole() {
    if !have_program("gpg") {
        return;
    }
    let keyring = Keyring::new();
    let world = World::new(&[COPY, SIGN]).held_gpg().keyring(&keyring);
    let mut server = world.listen();
    let mut alice = server.peer("alice");
    text(&alice.call("copy", &json!({"content": "before"})));
    alice.send(call("lost", "sign", &json!({"data": "aGVsbG8="})));
    until("it runs", || world.gpg_waits());
    server.signal("KILL");
    assert_eq!(server.wait(), -1);
    alice.gets_closed();
    assert_eq!(sockets(&world), ["alice.sock", "bob.sock"]);
    // A client reports that it cannot reach the server.
    let socket = server.socket("alice");
    let ran = world.run(&["mcp", "list", "--socket", socket.to_str().unwrap()]);
    assert_eq!(ran.status, 4, "{ran:?}");
    // The new server does not serve alice, so it removes her socket.
    world.policy(&["{name: copy, tool: clipboard_set, consumers: [bob, carol]}"]);
    let server = world.listen();
    assert_eq!(sockets(&world), ["bob.sock", "carol.sock"]);
    text(
        &server
            .peer("bob")
            .call("copy", &json!({"content": "after"})),
    );
    world.write("go", "");
    server.end();
    assert_eq!(world.logged("start").len(), 2);
    assert_eq!(world.logged("call").len(), 2);
    world.log_is_intact();
}

#[test]
fn killed_in_the_middle_of_many_calls_the_chain_goes_on() {
    let world = World::new(&[COPY]);
    for _ in 0..3 {
        let mut server = world.listen();
        let mut alice = server.peer("alice");
        let calls: Vec<String> = (0..200)
            .map(|id| call(id, "copy", &json!({"content": "x"})))
            .collect();
        alice.send(calls.join("\n"));
        for _ in 0..20 {
            text(&alice.receive());
        }
        server.signal("KILL");
        assert_eq!(server.wait(), -1);
    }
    // The server removes an incomplete last line left behind by a crash, and logs that.
    let mut log = fs::OpenOptions::new()
        .append(true)
        .open(world.path("log/audit.jsonl"))
        .unwrap();
    std::io::Write::write_all(&mut log, b"{\"seq\":9,\"ti").unwrap();
    world.listen().end();
    assert_eq!(world.logged("torn")[0]["bytes"], 12);
    assert!(world.logged("call").len() >= 60);
    world.log_is_intact();
}

#[test]
fn a_folder_that_is_not_ours_alone_is_refused() {
    let world = World::new(&[COPY]);
    std::os::unix::fs::symlink(world.path("elsewhere"), world.path("sockets")).unwrap();
    let args = ["mcp", "serve", "--listen", "sockets"];
    let args = [&args[..], &["--services", "services.json"]].concat();
    let refused = "error: `sockets` is not a folder that belongs to this user\n  = help: name a new folder, or one that belongs to this user, with --listen\n";
    world.run(&args).is(1, "", refused);
    fs::create_dir(world.path("elsewhere")).unwrap();
    world.run(&args).is(1, "", refused);
    fs::remove_file(world.path("sockets")).unwrap();
    world.write("sockets", "a file");
    world.run(&args).is(1, "", refused);
}

#[test]
fn a_folder_that_holds_anything_else_is_refused_and_left_as_it_is() {
    /// A name, and the function that creates something with that name.
    type Put<'a> = (&'a str, &'a dyn Fn(&Path));

    let world = World::new(&[COPY]);
    let args = ["mcp", "serve", "--listen", "sockets"];
    let args = [&args[..], &["--services", "services.json"]].concat();
    let listen = |path: &Path| drop(UnixListener::bind(path).unwrap());
    let write = |path: &Path| fs::write(path, "kept").unwrap();
    let make = |path: &Path| fs::create_dir(path).unwrap();
    let put: [Put; 5] = [
        ("S.gpg-agent", &listen),
        ("Not-A-Name.sock", &listen),
        ("alice.sock", &write),
        ("kept.txt", &write),
        ("folder", &make),
    ];
    for (name, put) in put {
        fs::create_dir(world.path("sockets")).unwrap();
        let open = fs::Permissions::from_mode(0o755);
        fs::set_permissions(world.path("sockets"), open).unwrap();
        put(&world.path("sockets").join(name));
        world.run(&args).is(
            1,
            "",
            &format!("error: `sockets` contains `{name}`, which no server created\n  = help: a server denies others access to its folder; name an empty or new folder with --listen\n"),
        );
        let left = fs::read_dir(world.path("sockets")).unwrap();
        let left: Vec<_> = left.map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(left, [name]);
        let mode = fs::metadata(world.path("sockets"))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o7777, 0o755);
        fs::remove_dir_all(world.path("sockets")).unwrap();
    }
}

#[test]
fn in_a_folder_that_is_a_servers_only_what_is_a_servers_is_cleared() {
    let world = World::new(&[COPY]);
    world.listen().end();
    world.write("sockets/kept.txt", "kept");
    // Files that a killed server left in this folder, and somebody else's files.
    for name in ["S.gpg-agent", "carol.sock", ".new"] {
        drop(UnixListener::bind(world.path("sockets").join(name)).unwrap());
    }
    world.write("sockets/.status.new", "{");
    let server = world.listen();
    assert_eq!(sockets(&world), ["S.gpg-agent", "alice.sock", "bob.sock"]);
    assert!(world.path("sockets/kept.txt").exists());
    assert!(!world.path("sockets/.status.new").exists());
    server.end();
    assert_eq!(sockets(&world), ["S.gpg-agent"]);
}

#[test]
fn it_serves_more_consumers_than_it_was_given_files_for() {
    let all = "[alice, bob, carol, c1, c2, c3, c4, c5, c6, c7, c8]";
    let world = World::new(&[&format!(
        "{{name: copy, tool: clipboard_set, consumers: {all}}}"
    )]);
    let args = ["mcp", "serve", "--listen", "sockets"];
    let server = world.command(&[&args[..], &["--services", "services.json"]].concat());
    // Like systemd: a low soft limit, which the server may raise.
    let mut limited = Command::new("sh");
    limited.args(["-c", "ulimit -S -n 32 && exec \"$@\"", "sh"]);
    limited.arg(server.get_program()).args(server.get_args());
    limited.current_dir(server.get_current_dir().unwrap());
    for (name, value) in server.get_envs() {
        match value {
            Some(value) => limited.env(name, value),
            None => limited.env_remove(name),
        };
    }
    let server = world.listen_by(limited);
    let mut peers: Vec<_> = (0..32).map(|_| server.peer("c8")).collect();
    for peer in &mut peers {
        peer.lives();
    }
    server.peer("alice").lives();
}
