//! A machine's own programs, run by a launcher that `apply` makes where services use them.

use std::time::{Duration, Instant};

use crate::world::{World, pair};

/// A signer with this tool and service, and a consumer.
fn declared(tool: &str) -> String {
    let signer = format!("mcp: {{run_as: root, tools: {{{tool}}}}}");
    pair(&signer, "name: deploy, tool: deploy, with: {env: staging}")
}

const DEPLOY: &str = "deploy: {description: Deploys, command: [/root/deploy, \"--env={env}\"], \
    arguments: {env: {type: string}, notes: {type: string, stdin: true, optional: true}}, env_file: /etc/deploy.env}";

/// A program that prints its arguments, its secret, its capabilities and its input, and leaves a process behind.
const SCRIPT: &str = "cat >/root/deploy <<'EOF'\n#!/bin/sh\necho \"$1 $TOKEN $(grep CapEff /proc/self/status)\"\ncat\n\
    sleep 4321 >/dev/null 2>&1 &\nEOF\nchmod 755 /root/deploy\numask 077\necho TOKEN=secret >/etc/deploy.env";

/// Returns what the consumer's call prints.
fn call(world: &World) -> (bool, String) {
    let call = format!(
        "anklume mcp call -i {} deploy notes=fine 2>&1",
        world.machine(0, "signer")
    );
    world.exec(1, "dev", &call)
}

/// The processes in the provider whose command line contains this.
fn processes(world: &World, words: &str) -> String {
    let find = format!(
        "for p in /proc/[0-9]*; do tr '\\0' ' ' <$p/cmdline 2>/dev/null | grep -q '^[^ ]*{words}' && echo ${{p#/proc/}}; done"
    );
    world.exec(0, "signer", &find).1
}

#[test]
fn a_consumer_runs_a_program_of_another_machine_and_apply_makes_and_removes_its_launcher() {
    let mut world = World::new(&declared(DEPLOY));
    world.apply();
    assert!(world.exec(0, "signer", SCRIPT).0);
    let answer = "--env=staging secret CapEff:\t0000000000000000\nfine";
    assert_eq!(call(&world), (true, answer.to_owned()));
    assert_eq!(processes(&world, "sleep 4321"), "");
    world.is_settled();
    let launcher = processes(&world, "anklume program-launcher");
    assert_eq!(launcher.lines().count(), 1, "{launcher}");
    let rights = format!(
        "grep -E 'CapEff|CapBnd|NoNewPrivs' /proc/{}/status",
        launcher.trim()
    );
    assert_eq!(
        world.exec(0, "signer", &rights).1,
        "CapEff:\t00000000000000e4\nCapBnd:\t00000000000000e4\nNoNewPrivs:\t1\n"
    );
    // The operator calls it by the name of its service.
    let machine = world.machine(0, "signer");
    let called = world.run(&["mcp", "call", "-i", &machine, "deploy", "notes=fine"]);
    assert_eq!(
        (called.status, called.stdout.trim_end()),
        (0, answer),
        "{}",
        called.stderr
    );

    // A changed tool is in force at once, without another launcher.
    world.declare(&declared(&DEPLOY.replace("--env={env}", "--to={env}")));
    world.apply();
    assert!(call(&world).1.starts_with("--to=staging secret"));
    assert_eq!(processes(&world, "anklume program-launcher"), launcher);

    // Without a service that uses it, the launcher goes.
    world.declare(&pair("mcp: {run_as: root}", "name: note, tool: notify"));
    world.apply();
    let began = Instant::now();
    while !processes(&world, "anklume program-launcher").is_empty() {
        assert!(
            began.elapsed() < Duration::from_secs(20),
            "the launcher stays"
        );
    }
    let (done, said) = call(&world);
    assert!(!done && said.contains("deploy"), "{said}");
}
