//! Calls over `incus exec`, with a malicious Incus and machine; `tests/incus` covers the real ones.

use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process, test_kill_process};

use super::Server;
use crate::harness::{Anklume, have_program, write_program};

/// A run with an Incus from `servers.py`, and a program `incus` that runs `script`.
fn with_incus(server: &Server, script: &str) -> Anklume {
    let run = Anklume::new();
    let program = run.path().join("bin/incus");
    write_program(&program, format!("#!/bin/sh\n{script}\n"));
    let path = format!("{}/bin:/usr/bin:/bin", run.path().display());
    run.env("INCUS_SOCKET", server.socket()).env("PATH", path)
}

fn incus(kind: &str) -> Option<Server> {
    have_program("python3").then(|| Server::start(kind))
}

#[test]
fn a_server_that_dies_leaves_its_last_words() {
    let Some(server) = incus("incus") else { return };
    let args = ["mcp", "list", "-i", "box"];
    let script = "for i in 1 2 3 4 5 6 7 8 9; do echo line $i >&2; done; printf 'fatal \\033[2J' >&2; exit 3";
    let said: Vec<String> = (3..=9).map(|n| format!("  | line {n}\n")).collect();
    let said = said.concat();
    let message = format!(
        "error: Cannot reach MCP server: the server ended without an answer (exit code 3); its last output:\n{said}  | fatal \\u{{1b}}[2J\n"
    );
    with_incus(&server, script)
        .args(args)
        .run()
        .is(4, "", &message);
    let message = "error: Cannot reach MCP server: the server was killed by signal 9\n";
    with_incus(&server, "kill -9 $$")
        .args(args)
        .run()
        .is(4, "", message);
}

#[test]
fn the_command_is_what_the_documentation_says() {
    let Some(server) = incus("incus") else { return };
    let script = "printf '%s\\n' \"$@\" >&2; exit 1";
    let args = ["mcp", "list", "-i", "box", "-v"];
    let ran = with_incus(&server, script).args(args).run();
    let words =
        "exec\nbox\n--project\np\n-T\n--force-local\n--\n/opt/anklume/anklume\nmcp\nserve\n";
    let begin = format!("machine `box` is in project `p`\n{words}error: Cannot reach");
    assert!(ran.stderr.starts_with(&begin), "{}", ran.stderr);
    let args = ["mcp", "list", "-i", "box", "--dry-run"];
    let ran = with_incus(&server, script).args(args).run();
    let line = "INCUS_REMOTE=local incus exec box --project p -T --force-local -- /opt/anklume/anklume mcp serve\n";
    assert_eq!(ran.stdout.split_inclusive('\n').next(), Some(line));
    assert_eq!(ran.stdout.lines().count(), 4);
}

#[test]
fn what_incus_says_of_the_program_is_understood() {
    let Some(server) = incus("incus") else { return };
    let args = ["mcp", "list", "-i", "box"];
    // This Incus reports that every file exists.
    let script = "echo 'Error: Command not found' >&2; exit 127";
    let ran = with_incus(&server, script).args(args).run();
    let begin = "error: Cannot reach MCP server: `/opt/anklume/anklume` exists in machine `box` but cannot run there; its last output:\n  | Error: Command not found\n  = help: install this program there: `incus file push -p --mode 0755 --uid 0 --gid 0 ";
    assert!(ran.status == 4 && ran.stderr.starts_with(begin), "{ran:?}");
    // The program's own exit code 127 has no special meaning.
    let ran = with_incus(&server, "exit 127").args(args).run();
    let message =
        "error: Cannot reach MCP server: the server ended without an answer (exit code 127)\n";
    ran.is(4, "", message);
}

#[test]
fn a_flood_on_stderr_and_a_server_that_will_not_end_are_survived() {
    let Some(server) = incus("incus") else { return };
    let script = "yes flood | cat >&2";
    // Long enough for the script to start, even on a busy machine.
    let args = ["mcp", "list", "-i", "box", "--timeout", "8"];
    let ran = with_incus(&server, script)
        .args(args)
        .memory(super::MEMORY)
        .run();
    assert_eq!(ran.status, 4, "{ran:?}");
    let begin =
        "error: Cannot reach MCP server: no answer within 8 s; its last output:\n  | flood\n";
    assert!(ran.stderr.starts_with(begin), "{}", ran.stderr);
    let stubborn = "trap '' TERM; while :; do sleep 0.1; done";
    let args = ["mcp", "list", "-i", "box", "--timeout", "1"];
    let ran = with_incus(&server, stubborn).args(args).run();
    let message = "error: Cannot reach MCP server: no answer within 1 s\n  = help: wait longer with `--timeout SECONDS`\n";
    ran.is(4, "", message);
}

#[test]
fn an_incus_that_cannot_be_used_says_which_it_is() {
    let begin = "error: Cannot reach MCP server: ";
    let run = |socket: &str| {
        Anklume::new()
            .args(["mcp", "list", "-i", "box", "--timeout", "0.5"])
            .env("INCUS_SOCKET", socket)
            .run()
    };
    let help = "start Incus, or install it (Debian: `apt install incus`); `anklume mcp list` without `-i` asks this computer's own server";
    let message = format!(
        "{begin}Incus is not running on this computer (no socket at `/nowhere`)\n  = help: {help}\n"
    );
    run("/nowhere").is(4, "", &message);
    let folder = tempfile::tempdir().unwrap();
    let dead = folder.path().join("x").to_str().unwrap().to_owned();
    drop(std::os::unix::net::UnixListener::bind(&dead).unwrap());
    let message = format!(
        "{begin}Incus is not running (nothing listens on `{dead}`)\n  = help: start Incus: `systemctl start incus.service`\n"
    );
    run(&dead).is(4, "", &message);
    let cases = [
        (
            "incus_refuses",
            "Incus reports: not \\u{1b} you (HTTP 403)\n",
        ),
        (
            "incus_changed",
            "the answer from Incus to `/1.0/instances?recursion=1&all-projects=true` cannot be read: missing field `name` at line 1 column 28\n",
        ),
        (
            "no_http",
            "Incus sent an answer that is not HTTP: invalid HTTP version parsed\n",
        ),
        ("gone", "Incus closed the connection without an answer\n"),
    ];
    for (kind, message) in cases {
        let Some(server) = incus(kind) else { return };
        run(&server.socket()).is(4, "", &format!("{begin}{message}"));
    }
    let Some(server) = incus("silent_http") else {
        return;
    };
    let message = format!(
        "{begin}Incus did not answer within 0.5 s (socket `{}`)\n  = help: check Incus with `incus info`, or wait longer with `--timeout SECONDS`\n",
        server.socket()
    );
    run(&server.socket()).is(4, "", &message);
    let Some(server) = incus("incus") else { return };
    let ran = Anklume::new()
        .args(["mcp", "list", "-i", "box"])
        .env("INCUS_SOCKET", server.socket())
        .env("PATH", "/nowhere")
        .run();
    let message = format!(
        "{begin}the `incus` program is not on this computer's PATH\n  = help: install the Incus client (Debian: `apt install incus-client`)\n"
    );
    ran.is(4, "", &message);
}

#[test]
fn an_interrupted_client_ends_its_server() {
    let Some(server) = incus("incus") else { return };
    let scripts = [
        "echo $$ >pid; exec sleep 1000",
        "trap '' TERM; echo $$ >pid; while :; do sleep 0.1; done",
    ];
    for (signal, script) in [Signal::INT, Signal::TERM].into_iter().zip(scripts) {
        let run =
            with_incus(&server, script).args(["mcp", "call", "x", "-i", "box", "--timeout", "60"]);
        let pid_file = run.path().join("pid");
        let mut client = run.command();
        let client = client
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut client = client.spawn().unwrap();
        let incus = pid_in(&pid_file);
        let id = Pid::from_raw(i32::try_from(client.id()).unwrap()).unwrap();
        kill_process(id, signal).unwrap();
        assert_eq!(client.wait().unwrap().code(), Some(130));
        assert!(test_kill_process(incus).is_err(), "{script} still runs");
    }
}

/// Waits for the process ID that a script writes, and returns it.
fn pid_in(path: &Path) -> Pid {
    let start = Instant::now();
    loop {
        let text = std::fs::read_to_string(path).unwrap_or_default();
        if let (true, Ok(id)) = (text.ends_with('\n'), text.trim().parse()) {
            return Pid::from_raw(id).unwrap();
        }
        let never = format!("{} never came", path.display());
        assert!(start.elapsed() < Duration::from_secs(60), "{never}");
        std::thread::sleep(Duration::from_millis(10));
    }
}
