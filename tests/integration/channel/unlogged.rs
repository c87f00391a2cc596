//! A log that cannot be written: no call runs unlogged, unless the machine allows it.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anklume::audit::{Event, Log};
use rustix::fs::{CWD, RenameFlags};
use serde_json::{Value, json};

use super::peer::call;
use super::text;
use super::world::{World, lines_of, until};
use crate::harness::{have, have_program};
use crate::serve::server::Keyring;

const COPY: &str = "{name: copy, tool: clipboard_set, consumers: [alice]}";

#[track_caller]
fn is_refused_unseen(answer: &Value) {
    assert_eq!(
        answer["error"],
        json!({
            "code": -32603,
            "message": "the call is refused: this server cannot write its log",
            "data": {"logged": false, "ran": false}
        })
    );
}

#[test]
fn a_server_without_a_log_does_not_start() {
    let world = World::new(&[COPY]).env("ANKLUME_AUDIT_LOG", "nowhere/audit.jsonl");
    for start in [&["--listen", "sockets"][..], &["--caller", "alice"]] {
        let args = [&["mcp", "serve", "--services", "services.json"], start].concat();
        world.run(&args).is(
            1,
            "",
            "error: the audit log `nowhere/audit.jsonl` cannot be opened: No such file or directory (os error 2)\n  \
             = help: no call runs unlogged: make its folder writable, or name another log with --audit-log; `mcp: {allow_unlogged: true}` in infra.yml lets calls run without it\n",
        );
    }
}

#[test]
fn a_log_that_goes_away_refuses_calls_until_it_is_back() {
    let world = World::new(&[COPY]);
    let server = world.listen();
    let mut alice = server.peer("alice");
    text(&alice.call("copy", &json!({"content": "seen"})));
    let (log, kept) = (world.path("log/audit.jsonl"), world.path("log/kept"));
    // The log's folder exists, but another folder has replaced the log itself.
    fs::rename(&log, &kept).unwrap();
    fs::create_dir(&log).unwrap();
    is_refused_unseen(&alice.call("copy", &json!({"content": "unseen"})));
    assert_eq!(world.clipboard().as_deref(), Some("seen"));
    until("it is reported", || {
        server.stderr().contains("the audit log `")
    });
    alice.lives();
    let path = log.display();
    let why = format!("the audit log `{path}` cannot be opened: Is a directory (os error 21)");
    until("the status reports it", || {
        let status = world.run(&["mcp", "status", "--listen", "sockets"]);
        let told = format!("\nNOT logged, no call runs: {why}\n");
        status.status == 1 && status.stdout.contains(&told)
    });
    // Swapped atomically, because the server keeps looking for the log.
    rustix::fs::renameat_with(CWD, &kept, CWD, &log, RenameFlags::EXCHANGE).unwrap();
    fs::remove_dir(&kept).unwrap();
    until("it is reported although nobody calls", || {
        world.run(&["mcp", "status", "--listen", "sockets"]).status == 0
    });
    text(&alice.call("copy", &json!({"content": "seen again"})));
    // Now the log's folder is gone as well.
    fs::rename(world.path("log"), world.path("away")).unwrap();
    is_refused_unseen(&alice.call("copy", &json!({"content": "unseen"})));
    is_refused_unseen(&alice.call("nowhere", &json!({})));
    assert_eq!(world.clipboard().as_deref(), Some("seen again"));
    fs::rename(world.path("away"), world.path("log")).unwrap();
    text(&alice.call("copy", &json!({"content": "back"})));
    drop(alice);
    server.end();
    world.log_is_intact();
    let ran = world.logged("call");
    assert_eq!(
        ran.iter().filter(|line| line["outcome"] == "done").count(),
        3
    );
}

#[test]
fn a_machine_that_allows_it_serves_without_a_log() {
    let world = World::with_mcp(&[COPY], "{allow_unlogged: true}");
    let server = world.listen();
    let mut alice = server.peer("alice");
    fs::rename(world.path("log"), world.path("away")).unwrap();
    text(&alice.call("copy", &json!({"content": "unseen"})));
    assert_eq!(world.clipboard().as_deref(), Some("unseen"));
    until("it is reported all the same", || {
        server.stderr().contains("error: the audit log `")
    });
    drop((alice, server));
}

#[test]
fn a_server_that_was_allowed_to_start_without_a_log_writes_it_as_soon_as_it_can() {
    let world = World::with_mcp(&[COPY], "{allow_unlogged: true}");
    fs::rename(world.path("log"), world.path("away")).unwrap();
    let server = world.listen();
    assert!(server.stderr().starts_with("error: the audit log `"));
    let mut alice = server.peer("alice");
    text(&alice.call("copy", &json!({"content": "unseen"})));
    assert_eq!(world.clipboard().as_deref(), Some("unseen"));
    let status = world.run(&["mcp", "status", "--listen", "sockets"]);
    let told = "\nNOT logged, calls run anyway: the audit log `";
    assert!(
        status.status == 1 && status.stdout.contains(told),
        "{status:?}"
    );
    fs::rename(world.path("away"), world.path("log")).unwrap();
    until("it writes", || {
        world.run(&["mcp", "status", "--listen", "sockets"]).status == 0
    });
    text(&alice.call("copy", &json!({"content": "seen"})));
    drop(alice);
    server.end();
    let log = world.log();
    let events: Vec<&Value> = log.iter().map(|line| &line["event"]).collect();
    assert_eq!(events, ["start", "call", "call", "stop"]);
    // Without a key, there is no digest.
    let digests = [&log[1], &log[2]].map(|line| line["arguments"].as_str().unwrap().len());
    assert_eq!(digests, [0, 64]);
    world.log_is_intact();
}

/// A small disk, unmounted when dropped.
struct Disk {
    path: PathBuf,
}

impl Disk {
    /// Mounts a disk of `bytes` bytes on an empty folder; `None` without permission to do so.
    fn mount(path: PathBuf, bytes: u64) -> Option<Self> {
        let options = format!("size={bytes}");
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &options, "anklume-test"])
            .arg(&path)
            .output()
            .is_ok_and(|ran| ran.status.success());
        have("the right to mount a small disk", mounted).then_some(Self { path })
    }

    /// Fills the disk completely.
    fn fill(&self) {
        let mut file = fs::File::create(self.path.join("filler")).unwrap();
        let block = [0; 4096];
        while std::io::Write::write_all(&mut file, &block).is_ok() {}
    }

    /// Leaves this number of bytes free on a full disk.
    fn leave(&self, bytes: u64) {
        let filler = fs::File::options()
            .append(true)
            .open(self.path.join("filler"))
            .unwrap();
        filler
            .set_len(filler.metadata().unwrap().len() - bytes)
            .unwrap();
    }

    fn free(&self) {
        fs::remove_file(self.path.join("filler")).unwrap();
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.path).status();
    }
}

#[test]
fn on_a_disk_without_room_for_its_line_no_call_runs() {
    let world = World::new(&[COPY]);
    let Some(disk) = Disk::mount(world.path("log"), 64 * 1024) else {
        return;
    };
    let server = world.listen();
    let mut alice = server.peer("alice");
    is_refused_unseen(&alice.call("copy", &json!({"content": "unseen"})));
    disk.fill();
    is_refused_unseen(&alice.call("copy", &json!({"content": "unseen"})));
    assert_eq!(world.clipboard(), None);
    alice.lives();
    world.log_is_intact();
    drop((alice, server, disk));
}

#[test]
fn when_the_disk_fills_up_every_call_that_ran_is_in_the_log() {
    let world = World::new(&[COPY]);
    let Some(disk) = Disk::mount(world.path("log"), 4 * 1024 * 1024) else {
        return;
    };
    let server = world.listen();
    let mut alice = server.peer("alice");
    text(&alice.call("copy", &json!({"content": "first"})));
    disk.fill();
    let (mut ran, mut refused) = (1, 0);
    // Each running call reserves space for its line; once the disk has no more, no further call runs.
    for batch in 0..100 {
        let calls: Vec<String> = (0..50)
            .map(|id| call(id, "copy", &json!({"content": format!("{batch} {id}")})))
            .collect();
        alice.send(calls.join("\n"));
        for _ in 0..50 {
            let answer = alice.receive();
            if answer["result"].is_object() {
                ran += 1;
            } else {
                is_refused_unseen(&answer);
                refused += 1;
            }
        }
        if refused > 0 {
            break;
        }
    }
    assert!(refused > 0, "{ran} calls ran");
    // One call alone needs less space than several at once.
    let refused = loop {
        let answer = alice.call("copy", &json!({"content": "alone"}));
        if answer["error"].is_object() {
            break answer;
        }
        ran += 1;
    };
    is_refused_unseen(&refused);
    assert_eq!(world.logged("call").len(), ran);
    is_refused_unseen(&alice.call("copy", &json!({"content": "unseen"})));
    assert_ne!(world.clipboard().as_deref(), Some("unseen"));
    disk.free();
    text(&alice.call("copy", &json!({"content": "seen"})));
    assert_eq!(world.clipboard().as_deref(), Some("seen"));
    drop(alice);
    server.end();
    world.log_is_intact();
    drop(disk);
}

#[test]
fn a_call_that_runs_keeps_the_room_for_its_line_while_others_fill_the_disk() {
    if !have_program("gpg") {
        return;
    }
    let keyring = Keyring::new();
    let world = World::new(&["{name: sign, tool: gpg_sign, consumers: [bob]}", COPY])
        .held_gpg()
        .keyring(&keyring);
    let Some(disk) = Disk::mount(world.path("log"), 4 * 1024 * 1024) else {
        return;
    };
    let server = world.listen();
    let (mut alice, mut bob) = (server.peer("alice"), server.peer("bob"));
    bob.send(call(1, "sign", &json!({"data": "aGVsbG8="})));
    until("it runs", || world.gpg_waits());
    disk.fill();
    while alice.call("copy", &json!({"content": "x"}))["result"].is_object() {}
    world.write("go", "");
    text(&bob.receive());
    let signed = world.logged("call");
    assert_eq!(signed.last().unwrap()["service"], "sign");
    drop((alice, bob));
    server.end();
    world.log_is_intact();
    drop(disk);
}

#[test]
fn a_log_that_is_rotated_takes_the_room_of_running_calls_along_or_stays() {
    let world = World::new(&[COPY]);
    let Some(disk) = Disk::mount(world.path("log"), 4 * 1024 * 1024) else {
        return;
    };
    let path = world.path("log/audit.jsonl");
    let log = Log::open_with(&path, 1).unwrap();
    let event = || Event::Reload {
        policy: "".into(),
        refused: Some("x".repeat(3000).into()),
    };
    log.append(event()).unwrap();
    log.reserve(10).unwrap();
    disk.fill();
    // Enough for the first lines of a new file, but not for all ten.
    disk.leave(8 * 1024);
    for _ in 0..10 {
        log.append(event()).unwrap();
    }
    assert_eq!(lines_of(&path).len(), 11);
    disk.free();
    log.append(event()).unwrap();
    assert_eq!(lines_of(&path).len(), 2);
    world.log_is_intact();
    drop(disk);
}
