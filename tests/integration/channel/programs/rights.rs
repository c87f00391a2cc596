//! What a program finds in its reach: not its parents' descriptors, environment, rights or processes.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::process::Command;

use rustix::process::geteuid;
use serde_json::json;

use super::{failure, one, run, with_mcp};
use crate::channel::text;
use crate::channel::world::World;
use crate::harness::have;

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
        none: {description: Runs, command: [/usr/bin/id], run_as: no-such-user}}";
    let services = [RUN, "{name: none, tool: none, consumers: [alice]}"];
    let world: World = with_mcp(&[], tool, &services);
    let server = world.listen();
    let answer = run(&server, &json!({}));
    let user = text(&answer);
    assert!(
        user.starts_with("uid=5(games) gid=60(games) groups=60(games)"),
        "{user}"
    );
    failure(&server.peer("alice").call("none", &json!({})));
    let said = server.stderr();
    let why =
        "error: the tool `none` cannot run: the user `no-such-user` does not exist in this machine";
    assert!(said.contains(why), "{said}");
}
