//! What a call starts ends with it, whatever it does.

use std::fs;

use rustix::process::geteuid;
use serde_json::{Value, json};

use super::{failure, one, provider, run, running, with_mcp};
use crate::channel::peer::{call, cancel};
use crate::channel::text;
use crate::channel::world::{World, all_processes, parent_of, signal, until, words_of};
use crate::harness::{have, python};

/// Ways of leaving a process behind: in another session, as an orphan, deaf to SIGTERM, with the pipes open, stopped.
const LEAVE: &str = "#!/bin/sh
stay=$(dirname \"$0\")/stay
setsid \"$stay\" one &
(setsid sh -c \"'$stay' two & '$stay' three\" &)
(trap '' TERM HUP INT; \"$stay\" four &)
\"$stay\" five <&- >&- 2>&- &
\"$stay\" six & kill -STOP $!
while [ \"$(cat \"$stay\".* 2>/dev/null | wc -l)\" -lt 5 ]; do sleep 0.05; done
echo started
";
/// Stays for long, but not for ever: a failed test leaves nothing behind either.
const STAY: &str = "#!/bin/sh\ntrap '' TERM\necho >\"$0.$1\"\nsleep 120\nsleep 120\n";

/// A provider whose service `run` leaves processes behind and then does this.
fn leaving(then: &str, rest: &str) -> World {
    let script = format!("{LEAVE}\n{then}");
    let tools = format!("{{run: {{description: Runs, command: [BIN/run]{rest}}}}}");
    provider(
        &[("run", &script), ("stay", STAY)],
        &tools,
        &["{name: run, tool: run, consumers: [alice]}"],
    )
}

/// Waits until the program has left its processes behind.
#[track_caller]
fn has_left(world: &World) {
    until("processes are left behind", || {
        let stay = running(world);
        ["one", "two", "three", "four", "five"].iter().all(|name| {
            stay.iter()
                .any(|words| words.contains(&format!("stay {name}")))
        })
    });
}

#[test]
fn a_program_that_ends_takes_all_its_processes_with_it() {
    let world = leaving("", "");
    let server = world.listen();
    assert_eq!(text(&run(&server, &json!({}))), "started\n");
    assert_eq!(running(&world), [""; 0]);
}

#[test]
fn a_program_that_takes_too_long_is_stopped() {
    let world = leaving("trap '' TERM\nsleep 120\nsleep 120", ", timeout: 1");
    let server = world.listen();
    let answer = run(&server, &json!({}));
    assert_eq!(
        failure(&answer),
        "it was stopped after 1 s, its maximum duration"
    );
    assert_eq!(running(&world), [""; 0]);
    server.end();
    // The log says what the answer says: the tool failed.
    assert_eq!(world.logged("call")[0]["outcome"], "failed");
}

#[test]
fn a_cancelled_call_ends_its_processes() {
    let world = leaving("sleep 120", "");
    let server = world.listen();
    let mut alice = server.peer("alice");
    alice.send(call(7, "run", &json!({})));
    has_left(&world);
    alice.send(cancel(7));
    until("they end", || running(&world).is_empty());
    // The connection goes on.
    assert!(alice.list()["result"]["tools"].is_array());
}

#[test]
fn a_call_of_a_consumer_that_hangs_up_ends_its_processes() {
    let world = leaving("sleep 120", "");
    let server = world.listen();
    let mut alice = server.peer("alice");
    alice.send(call(7, "run", &json!({})));
    has_left(&world);
    drop(alice);
    until("they end", || running(&world).is_empty());
}

#[test]
fn a_server_that_is_killed_takes_the_programs_with_it() {
    let world = leaving("sleep 120", "");
    let server = world.listen();
    let mut alice = server.peer("alice");
    alice.send(call(7, "run", &json!({})));
    has_left(&world);
    server.signal("KILL");
    until("they end", || running(&world).is_empty());
}

/// The processes with this subcommand that serve this world.
fn processes(world: &World, subcommand: &str) -> Vec<u32> {
    let folder = world.path("").canonicalize().unwrap();
    let is_it = |process: &u32| {
        let words = words_of(*process);
        words.get(1).map(Vec::as_slice) == Some(subcommand.as_bytes())
            && fs::read_link(format!("/proc/{process}/cwd")).is_ok_and(|cwd| cwd == folder)
    };
    all_processes().filter(is_it).collect()
}

/// The launcher of this world's server.
#[track_caller]
pub(in crate::channel) fn launcher(world: &World) -> u32 {
    let [launcher] = processes(world, "program-launcher")[..] else {
        panic!("one launcher");
    };
    launcher
}

#[test]
fn a_launcher_that_is_killed_takes_the_programs_with_it() {
    let world = leaving("sleep 120", "");
    let server = world.listen();
    let mut alice = server.peer("alice");
    alice.send(call(7, "run", &json!({})));
    has_left(&world);
    signal(launcher(&world), "KILL");
    let answer = alice.receive();
    assert_eq!(
        failure(&answer),
        "the process that runs this tool has ended; try again"
    );
    until("they end", || running(&world).is_empty());
}

#[test]
fn a_reaper_that_is_killed_leaves_nothing_either() {
    let world = leaving("sleep 120", "");
    let server = world.listen();
    let mut alice = server.peer("alice");
    alice.send(call(7, "run", &json!({})));
    has_left(&world);
    let [reaper] = processes(&world, "program-reaper")[..] else {
        panic!("one reaper");
    };
    signal(reaper, "KILL");
    assert_eq!(failure(&alice.receive()), "it was ended from outside");
    until("they end", || running(&world).is_empty());
    // The launcher goes on.
    alice.send(call(8, "run", &json!({})));
    has_left(&world);
}

#[test]
fn a_flood_is_stopped_and_what_follows_its_beginning_is_dropped() {
    let world = one("#!/bin/sh\nyes", "");
    let server = world.listen();
    let answer = run(&server, &json!({}));
    assert_eq!(
        failure(&answer),
        "it was stopped: it printed more than 1048576 bytes"
    );
    assert_eq!(running(&world), [""; 0]);
    let world = one(
        "#!/bin/sh\nyes | head -c 1048576; yes 123456789 | head -c 100000 >&2",
        "",
    );
    let server = world.listen();
    let answer = run(&server, &json!({}));
    assert_eq!(text(&answer).len(), 1_048_576);
    let stderr = answer["result"]["structuredContent"]["stderr"]
        .as_str()
        .unwrap();
    assert!(stderr.starts_with("123456789\n"));
    assert!(
        stderr.ends_with("\n(67232 more bytes)\n"),
        "{}",
        stderr.len()
    );
}

#[test]
fn a_program_may_close_its_output_and_leave_its_input_unread() {
    let world = one(
        "#!/bin/sh\nexec <&- >&- 2>&-\nsleep 0.1\nexit 0",
        ", arguments: {much: {type: string, stdin: true, max_length: 1000000}}",
    );
    let server = world.listen();
    let answer = run(&server, &json!({"much": "x".repeat(1_000_000)}));
    assert_eq!(text(&answer), "");
}

/// A provider whose service runs this Python program; `None` without Python.
fn in_python(program: &str, rest: &str) -> Option<World> {
    let python = python("python3")?;
    let script = format!("#!{}\n{program}", python.display());
    Some(one(&script, rest))
}

#[test]
fn a_program_that_fills_its_memory_fails() {
    let one_process = "x = bytearray(400_000_000)\nprint(len(x))";
    let Some(world) = in_python(one_process, "") else {
        return;
    };
    let server = world.listen();
    let answer = run(&server, &json!({}));
    let failed = failure(&answer);
    assert!(
        failed.starts_with("it exited with status 1") && failed.ends_with("MemoryError"),
        "{failed}"
    );
    // With more memory, it succeeds.
    let world = in_python(one_process, ", memory: 1GiB").unwrap();
    let server = world.listen();
    assert_eq!(text(&run(&server, &json!({}))), "400000000\n");
    // Several processes count together.
    let many = "import os, time\nfor _ in range(4):\n  if not os.fork():\n    x = bytearray(100_000_000)\n    time.sleep(60)\ntime.sleep(60)";
    let world = in_python(many, "").unwrap();
    let server = world.listen();
    let answer = run(&server, &json!({}));
    assert_eq!(
        failure(&answer),
        "it was stopped: it used more memory than it may"
    );
    assert_eq!(running(&world), [""; 0]);
}

#[test]
fn a_program_that_only_multiplies_is_ended_whole() {
    // The limit on a user's tasks does not apply to root, except in a container.
    if !have("root", geteuid().is_root()) {
        return;
    }
    let bomb = "exec 2>/dev/null; b() {{ b & b & }}; (b); setsid sh -c 'b() {{ b & b & }}; (b); sleep 60' $0 & sleep 60";
    let tool = format!(
        "tools: {{run: {{description: Runs, command: [/bin/sh, -c, \"{bomb}\", BIN/bomb], run_as: games, timeout: 2}}}}"
    );
    let world = with_mcp(&[], &tool, &["{name: run, tool: run, consumers: [alice]}"]);
    let server = world.listen();
    let answer: Value = run(&server, &json!({}));
    // Its shell may be the one that can no longer start a process.
    let ends = [
        "it was stopped after 2 s, its maximum duration",
        "it exited with status 2",
    ];
    assert!(ends.contains(&failure(&answer)), "{answer}");
    until("they end", || running(&world).is_empty());
}

#[test]
fn a_process_whose_first_thread_has_exited_is_ended_too() {
    // exit(2), rather than exit_group(2); such a process looks like a zombie, and has no command line.
    let program = "import ctypes, os, sys, threading, time
open(sys.argv[0] + '.pid', 'w').write(str(os.getpid()))
threading.Thread(target=time.sleep, args=(120,)).start()
ctypes.CDLL(None).syscall(60, 0)";
    let Some(world) = in_python(program, ", timeout: 2") else {
        return;
    };
    let server = world.listen();
    assert_eq!(
        failure(&run(&server, &json!({}))),
        "it was stopped after 2 s, its maximum duration"
    );
    let pid = fs::read_to_string(world.path("bin/run.pid")).unwrap();
    assert!(!fs::exists(format!("/proc/{pid}")).unwrap());
}

/// The number of processes, ended or not, that a process has as its children.
fn children(of: u32) -> usize {
    let parents = all_processes().filter_map(parent_of);
    parents.filter(|parent| *parent == of).count()
}

#[test]
fn calls_that_fail_or_are_cancelled_early_leave_no_zombies() {
    let tools = "{run: {description: Runs, command: [BIN/run]}, absent: {description: Runs, command: [BIN/absent]}}";
    let services = [
        "{name: run, tool: run, consumers: [alice]}",
        "{name: absent, tool: absent, consumers: [alice]}",
    ];
    let world = provider(&[("run", "#!/bin/sh\nsleep 120")], tools, &services);
    let server = world.listen();
    let mut alice = server.peer("alice");
    for _ in 0..5 {
        failure(&alice.call("absent", &json!({})));
    }
    for id in 100..130 {
        alice.send(call(id, "run", &json!({})));
        alice.send(cancel(id));
    }
    let launcher = launcher(&world);
    until("nothing is left", || {
        children(launcher) == 0 && running(&world).is_empty()
    });
}

#[test]
fn a_place_is_free_only_when_all_processes_have_ended() {
    let look = "#!/bin/sh\nfor p in /proc/[0-9]*/cmdline; do tr '\\0' ' ' <$p | grep -o \"$1\"; done 2>/dev/null; true";
    let mcp = "children: 1, tools: {run: {description: Runs, command: [BIN/deaf]}, \
        look: {description: Looks, command: [BIN/look, \"BIN/dea[f]\"]}}";
    let services = [
        "{name: run, tool: run, consumers: [alice]}",
        "{name: look, tool: look, consumers: [alice]}",
    ];
    let deaf = "#!/bin/sh\ntrap '' TERM\nsleep 120\nsleep 120";
    let world = with_mcp(&[("deaf", deaf), ("look", look)], mcp, &services);
    let server = world.listen();
    let mut alice = server.peer("alice");
    alice.send(call(7, "run", &json!({})));
    until("it runs", || !running(&world).is_empty());
    alice.send(cancel(7));
    assert_eq!(text(&alice.call("look", &json!({}))), "");
}
