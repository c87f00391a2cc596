//! A server that runs out of threads or files, or cannot change a socket: it keeps serving, reports this, and recovers.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::chown;
use std::os::unix::process::CommandExt as _;
use std::process::Command;
use std::time::{Duration, SystemTime};

use rustix::process::{Pid, Resource, Rlimit, geteuid, prlimit};
use serde_json::{Value, json};

use super::text;
use super::world::{Ended, Listening, World, until};
use crate::harness::have;

const ALICE: &str = "{name: copy, tool: clipboard_set, consumers: [alice]}";
const PASTE: &str = "{name: paste, tool: clipboard_get, consumers: [alice]}";
const BOTH: &str = "{name: give, tool: file_provide, consumers: [alice, bob]}";
const SERVE: [&str; 6] = [
    "mcp",
    "serve",
    "--listen",
    "sockets",
    "--services",
    "services.json",
];

/// The result of `mcp status`, and its output parsed as JSON.
fn status(world: &World) -> (Ended, Value) {
    let ran = world.run(&["mcp", "status", "--listen", "sockets", "--format", "json"]);
    let said = serde_json::from_str(&ran.stdout).unwrap();
    (ran, said)
}

/// Sets a server's soft limit on open files, and returns the previous one.
fn files(server: &Listening, most: u64) -> u64 {
    let pid = Pid::from_raw(server.pid().try_into().unwrap());
    let maximum = rustix::process::getrlimit(Resource::Nofile).maximum;
    let limit = Rlimit {
        current: Some(most),
        maximum,
    };
    let before = prlimit(pid, Resource::Nofile, limit).unwrap();
    before.current.unwrap()
}

/// The limit that leaves the server `spare` descriptors in addition to those that it keeps open.
fn limit_that_leaves(server: &Listening, spare: usize) -> u64 {
    let folder = format!("/proc/{}/fd", server.pid());
    let open = || -> BTreeSet<u64> {
        let entries = fs::read_dir(&folder).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name());
        names
            .map(|name| name.to_str().unwrap().parse().unwrap())
            .collect()
    };
    let mut kept = open();
    // The server also opens files for a moment, such as its policy.
    for _ in 0..20 {
        std::thread::sleep(Duration::from_millis(10));
        let now = open();
        kept.retain(|descriptor| now.contains(descriptor));
    }
    let mut free = (0..).filter(|descriptor| !kept.contains(descriptor));
    free.nth(spare).unwrap()
}

/// A user without any processes, because the limit does not apply to root.
const NOBODY_ELSE: u32 = 23_456;

/// A server that may have at most `most` threads and processes.
fn with_threads(world: &World, most: u32) -> Command {
    let own = |path: &std::path::Path| chown(path, Some(NOBODY_ELSE), Some(NOBODY_ELSE)).unwrap();
    own(&world.path(""));
    for name in ["services.json", "log", "run", "portal"] {
        own(&world.path(name));
    }
    let program = world.path("anklume");
    if !program.exists() {
        // That user might not have access to the build folder.
        crate::harness::copy_of_anklume(&program);
    }
    let mut limited = Command::new("prlimit");
    limited.uid(NOBODY_ELSE).gid(NOBODY_ELSE);
    limited.args([&format!("--nproc={most}:"), "--"]);
    limited.arg(program);
    world.through(&mut limited, &SERVE);
    limited
}

/// Raises the limit, as any process of the same user may.
fn with_more_threads(server: &Listening) {
    let mut prlimit = Command::new("prlimit");
    prlimit.uid(NOBODY_ELSE).gid(NOBODY_ELSE);
    prlimit.args(["--nproc=100:", "--pid", &server.pid().to_string()]);
    assert!(prlimit.status().unwrap().success());
}

/// bob waits until a process can be started for him; the others are served in the meantime.
fn bob_waits(world: &World, server: &Listening, why: &str, there_is_room_again: impl FnOnce()) {
    world.write("portal/outgoing/all/a", "content");
    let mut alice = server.peer("alice");
    text(&alice.call("give", &json!({"path": "a"})));
    let mut bob = server.peer("bob");
    let failed = format!("the process that serves `bob` cannot be started: {why}");
    until("it is reported", || server.stderr().contains(&failed));
    until("the status reports it", || {
        status(world).1["failed"] == json!([failed])
    });
    text(&alice.call("give", &json!({"path": "a"})));
    // A failure that repeats is reported only once.
    let told = server.stderr();
    assert_eq!(told.matches(&failed).count(), 1, "{told}");
    there_is_room_again();
    bob.lives();
    until("nothing is left to do", || status(world).0.status == 0);
}

#[test]
fn without_a_process_for_a_new_consumer_it_serves_the_others_on() {
    if !have("root", geteuid().is_root()) {
        return;
    }
    let world = World::new(&[BOTH]);
    // Its own thread, the two launchers and, for alice, a thread, her worker, and a thread in the worker.
    let server = world.listen_by(with_threads(&world, 6));
    bob_waits(
        &world,
        &server,
        "Resource temporarily unavailable (os error 11)",
        || with_more_threads(&server),
    );
    server.end();
}

#[test]
fn a_policy_that_could_not_be_read_once_is_read_again() {
    let world = World::new(&[ALICE, PASTE]);
    let server = world.listen();
    let mut alice = server.peer("alice");
    text(&alice.call("copy", &json!({"content": "before"})));
    let before = files(&server, 5);
    // Old enough to be accepted at the first check.
    world.write("services.new", world.export(&[PASTE]));
    let new = fs::File::options()
        .append(true)
        .open(world.path("services.new"))
        .unwrap();
    new.set_modified(SystemTime::now() - Duration::from_secs(3600))
        .unwrap();
    fs::rename(world.path("services.new"), world.path("services.json")).unwrap();
    until("it cannot be read", || {
        server
            .stderr()
            .contains("cannot be read: Too many open files")
    });
    until("the status cannot report it", || {
        server.stderr().contains(".status.json` cannot be written")
    });
    files(&server, before);
    until("the grant is gone", || {
        let answer = alice.call("copy", &json!({"content": "after"}));
        answer["error"]["message"] == "Unknown tool: copy"
    });
    until("it is reported", || status(&world).0.status == 0);
    // A failure that repeats is reported only once.
    let told = server.stderr();
    assert_eq!(told.matches("Too many open files").count(), 2, "{told}");
    server.end();
}

#[test]
fn what_cannot_be_done_for_one_consumer_is_done_for_the_others_and_told() {
    let world = World::new(&[ALICE]);
    let server = world.listen();
    // A folder is at the path of bob's socket, and a socket cannot replace it.
    fs::create_dir_all(world.path("sockets/bob.sock").join("full")).unwrap();
    world.policy(&["{name: copy, tool: clipboard_set, consumers: [bob, carol]}"]);
    until("carol is served", || server.socket("carol").exists());
    server.peer("carol").lives();
    until("alice is not", || !server.socket("alice").exists());
    until("the status reports it", || status(&world).0.status == 1);
    let (_, said) = status(&world);
    let failed = "`sockets/bob.sock` is not a socket, so no socket can be created there";
    assert_eq!(said["failed"], json!([failed]));
    let text = world.run(&["mcp", "status", "--listen", "sockets"]);
    assert!(
        text.stdout.contains(&format!("\nNOT done: {failed}\n")),
        "{text:?}"
    );
    fs::remove_dir_all(world.path("sockets/bob.sock")).unwrap();
    until("bob is served", || status(&world).0.status == 0);
    server.peer("bob").lives();
    let told = server.stderr();
    assert_eq!(told.matches(failed).count(), 1, "{told}");
    server.end();
}

#[test]
fn a_socket_that_cannot_be_removed_is_removed_later() {
    let world = World::new(&["{name: copy, tool: clipboard_set, consumers: [alice, bob]}"]);
    let server = world.listen();
    let bob = server.peer("bob");
    fs::remove_file(server.socket("bob")).unwrap();
    fs::create_dir(server.socket("bob")).unwrap();
    world.policy(&[
        ALICE,
        "{name: paste, tool: clipboard_get, consumers: [carol]}",
    ]);
    bob.gets_closed();
    // The status may mention bob before the new policy is in force, because his socket is already gone.
    until("carol is served", || server.socket("carol").exists());
    server.peer("carol").lives();
    until("the status reports it", || status(&world).0.status == 1);
    fs::remove_dir(server.socket("bob")).unwrap();
    until("nothing is left to do", || status(&world).0.status == 0);
    server.end();
}

#[test]
fn a_socket_that_somebody_took_away_comes_back() {
    let world = World::new(&[ALICE]);
    let server = world.listen();
    let mut before = server.peer("alice");
    before.lives();
    fs::remove_file(server.socket("alice")).unwrap();
    until("it is back", || server.socket("alice").exists());
    server.peer("alice").lives();
    before.lives();
    // The older connection is still hers: it closes once she is no longer a consumer.
    world.policy(&["{name: paste, tool: clipboard_get, consumers: [carol]}"]);
    before.gets_closed();
    until("it is gone", || !server.socket("alice").exists());
    server.end();
}

#[test]
fn without_files_for_a_new_consumer_it_serves_the_others_on() {
    let world = World::new(&[BOTH]);
    let server = world.listen();
    let mut alice = server.peer("alice");
    alice.lives();
    // The status needs two descriptors, for its folder and its file; starting a process needs more.
    let before = files(&server, limit_that_leaves(&server, 2));
    bob_waits(&world, &server, "Too many open files (os error 24)", || {
        files(&server, before);
    });
    server.end();
}
