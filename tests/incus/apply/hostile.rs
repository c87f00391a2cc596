//! Malicious users inside a machine cannot block anything, or make the machine's root or the host act for them.

use crate::recorder::{Fate, Recorder};
use crate::world::{World, pair};

/// A provider whose server runs as an unprivileged user.
fn declared(run_as: &str) -> String {
    let signer = format!("mcp: {{run_as: {run_as}}}");
    pair(&signer, "name: paste, tool: clipboard_get")
}

/// The user ID of `user` in the tests' image.
const USER: &str = "1000";

fn as_user(world: &World, command: &str) {
    let signer = world.machine(0, "signer");
    let words = [
        "exec", &signer, "-T", "--user", USER, "--group", USER, "--cwd", "/", "--",
    ];
    let ran = world.incus(0, &[words.as_slice(), &["sh", "-c", command]].concat());
    assert!(ran.status.success(), "{command}: {ran:?}");
}

#[test]
fn who_serves_cannot_use_the_machine_s_root_against_others() {
    let mut world = World::new(&declared("user"));
    world.apply();
    // A process and a file that belong to root, and a server that claims to be that process.
    let (_, victim) = world.exec(
        0,
        "signer",
        "sleep 1000 >/dev/null 2>&1 </dev/null & echo $!; echo roots > /run/roots; chmod 666 /run/roots",
    );
    let victim = victim.trim();
    let (_, status) = world.exec(0, "signer", "cat /run/anklume/mcp/.status.json");
    let mut status: serde_json::Value = serde_json::from_str(&status).unwrap();
    let own = status.get("pid").unwrap().to_string();
    *status.get_mut("pid").unwrap() = victim.parse::<u32>().unwrap().into();
    as_user(
        &world,
        &format!(
            "ln /run/roots /run/anklume/mcp/hard; kill -9 {own}; sleep 0.3; \
             printf '%s' '{status}' > /run/anklume/mcp/.status.json; \
             flock /run/anklume/mcp/.lock sleep 1000 >/dev/null 2>&1 </dev/null & \
             flock /opt/anklume sleep 1000 >/dev/null 2>&1 </dev/null & sleep 0.2"
        ),
    );
    world.declare(&declared("root"));
    world.apply();
    assert!(
        world.exec(0, "signer", &format!("kill -0 {victim}")).0,
        "root's process was ended"
    );
    let (_, owner) = world.exec(0, "signer", "stat -c %u:%a /run/roots");
    assert_eq!(owner, "0:666\n");
    world.is_settled();
}

#[test]
fn what_cannot_be_read_makes_nobody_root_and_holds_nobody_up() {
    let world = World::new(&declared("user"));
    world.apply();
    let signer = world.machine(0, "signer");
    // A FIFO in place of the status file: reading it would block.
    as_user(
        &world,
        "rm /run/anklume/mcp/.status.json; mkfifo /run/anklume/mcp/.status.json",
    );
    let plan = world.plan();
    assert_eq!(plan, [format!("~ server on {signer}: no answer → running")]);
    world.apply();
    world.is_settled();
    // If the server's user is unknown, nothing is served as root instead.
    assert!(world.exec(0, "signer", "echo '{' > /etc/anklume/machine").0);
    // On a busy host, Incus loses the last output of a program that exits immediately (lxd #11422).
    let told = (0..20).any(|_| {
        let ran = world.run(&["mcp", "call", "-i", &signer, "clipboard_set", "content=x"]);
        assert_eq!(ran.status, 4, "{ran:?}");
        ran.stderr.contains("the server's user is unknown")
    });
    assert!(told);
    world.apply();
    let ran = world.run(&["mcp", "call", "-i", &signer, "clipboard_set", "content=x"]);
    assert_eq!(ran.status, 0, "{ran:?}");
    // More mounts than anybody needs.
    let deep = format!(
        "d=/tmp; for i in $(seq 15); do d=$d/{}; mkdir -p $d; done; cd $d; for i in $(seq 1200); do mount -t tmpfs none . || exit 1; done; rm /opt/anklume/anklume",
        "x".repeat(250)
    );
    assert!(world.exec(0, "signer", &deep).0);
    let (code, answer) = world.apply_json();
    assert_eq!(code, 1, "{answer:#}");
    assert!(
        answer
            .to_string()
            .contains("machine altered: `/proc/mounts`"),
        "{answer:#}"
    );
}

/// Runs `anklume apply --format json`. Just before the pushed program starts, the machine's root replaces it with a
/// script that prints this answer. Returns the exit code and the output of `apply`.
fn answered_by_another(answer: &str) -> (i32, String) {
    let world = World::new(&declared("root"));
    world.apply();
    // Forces the program to be pushed again.
    assert!(world.exec(0, "signer", "rm /opt/anklume/anklume").0);
    let (signer, root) = (world.machine(0, "signer"), world.root(0, "signer"));
    let other = format!(
        "cat >/tmp/other <<'X'\n#!/bin/sh\nread order\necho '{answer}'\ncat >/dev/null\nX\nchmod 755 /tmp/other"
    );
    assert!(world.exec(0, "signer", &other).0);
    let recorder = Recorder::new(move |number, line| {
        if number > 0 && line.starts_with(&format!("POST /1.0/instances/{signer}/exec")) {
            let pushed = std::fs::read_dir(root.join("opt/anklume")).unwrap();
            for program in pushed.map(|one| one.unwrap().path()) {
                std::fs::rename(root.join("tmp/other"), program).unwrap();
            }
        }
        Fate::Pass
    });
    let socket = recorder.socket().to_str().unwrap().to_owned();
    let run = world.anklume(&["apply", "--format", "json"]);
    let ran = run.env("INCUS_SOCKET", socket).run();
    world.apply();
    world.is_settled();
    (ran.status, ran.stdout)
}

#[test]
fn a_machine_that_reports_another_policy_than_was_sent_is_no_success() {
    let another = "its server does not report the policy that was sent";
    for (answer, why) in [
        (r#"{"digest":"0000"}"#, another),
        ("{}", another),
        (
            r#"{"digest":"0000","all":"well"}"#,
            "the program does not run in the machine",
        ),
    ] {
        let (status, said) = answered_by_another(answer);
        assert_eq!(status, 1, "{answer}: {said}");
        assert!(said.contains(why), "{answer}: {said}");
    }
}
