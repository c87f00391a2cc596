//! The definitions of an MCP server of a machine are accepted on the host, and then served. The server is anklume itself.

use crate::world::{World, pair};

/// Puts a server into the provider: anklume itself, with its output filtered by a shell command.
fn install(world: &World, filter: &str) {
    let put = format!(
        "cat >/root/server <<'END'\n#!/bin/sh\n/opt/anklume/anklume mcp serve {filter}\nEND\nchmod 755 /root/server"
    );
    assert!(world.exec(0, "signer", &put).0);
}

#[test]
fn a_definition_is_accepted_on_the_host_before_a_consumer_may_call_the_tool() {
    let mut world = World::new(&pair("mcp: {run_as: root}", "name: note, tool: notify"));
    world.apply();
    install(&world, "");
    let server = "mcp: {servers: {own: {command: [/root/server]}}}";
    world.declare(&pair(server, "name: copy, tool: own/clipboard_set"));
    let refused = world.run(&["apply"]);
    assert_eq!(refused.status, 1);
    assert!(
        refused.stderr.starts_with("error[unpinned-tool]: "),
        "{}",
        refused.stderr
    );
    // It is shown, and nothing is written without acceptance.
    let shown = world.run(&["mcp", "pin"]);
    let machine = world.machine(0, "signer");
    let header = format!("{machine}: own/clipboard_set (new)\n+{{\n");
    assert!(shown.stdout.starts_with(&header), "{}", shown.stdout);
    assert!(
        shown
            .stdout
            .contains("+  \"description\": \"Replaces the content of the machine's clipboard")
    );
    assert_eq!(shown.status, 2);
    let help = "error: no terminal to ask for acceptance\n  = help: read the definitions, and accept them with `anklume mcp pin --yes`\n";
    assert_eq!(shown.stderr, help);
    assert_eq!(world.run(&["mcp", "pin", "--check"]).status, 6);
    assert_eq!(world.run(&["apply"]).status, 1);
    let pinned = world.run(&["mcp", "pin", "--yes"]);
    assert_eq!(
        (pinned.status, pinned.stderr.as_str()),
        (
            0,
            "pinned in `anklume.lock`; keep it with `infra.yml`, and run `anklume apply`\n"
        )
    );
    world.lock = Some(pinned.read("anklume.lock"));
    let again = world.run(&["mcp", "pin", "--check"]);
    assert_eq!(
        (again.status, again.stdout.as_str(), again.stderr.as_str()),
        (0, "", "all definitions are pinned\n")
    );
    world.apply();
    let call = format!("anklume mcp call -i {machine} copy content=hello 2>&1");
    let (done, said) = world.exec(1, "dev", &call);
    assert!(
        done && said.starts_with("5 bytes on the clipboard"),
        "{said}"
    );
    world.is_settled();
    // Another version of the server describes its tool differently.
    install(
        &world,
        "| while IFS= read -r line; do printf '%s\\n' \"$line\" | sed 's/Replaces/Erases/'; done",
    );
    let note = format!(
        "note: the server `own` of `{machine}` describes clipboard_set differently than it was accepted, so calls are refused; \
         `anklume mcp pin` shows the difference\n"
    );
    let seen = world.run(&["doctor"]);
    assert!(seen.stderr.contains(&note), "{}", seen.stderr);
    let seen = world.run(&["apply"]);
    assert!(seen.stderr.contains(&note), "{}", seen.stderr);
    let shown = world.run(&["mcp", "pin"]);
    assert!(
        shown
            .stdout
            .starts_with(&format!("{machine}: own/clipboard_set (changed)\n"))
    );
    assert!(
        shown
            .stdout
            .contains("\n-  \"description\": \"Replaces the content"),
        "{}",
        shown.stdout
    );
    assert!(
        shown
            .stdout
            .contains("\n+  \"description\": \"Erases the content"),
        "{}",
        shown.stdout
    );
    // A server that is not there is a failure with its reason.
    let gone = "mcp: {servers: {own: {command: [/no/such/server]}}}";
    world.declare(&pair(gone, "name: copy, tool: own/clipboard_set"));
    let failed = world.run(&["mcp", "pin"]);
    assert_eq!(failed.status, 1);
    let why = format!(
        "error: the server `own` of `{machine}` does not list its tools: the server `own` cannot run: `/no/such/server` cannot be \
         executed: No such file or directory (os error 2)"
    );
    assert!(failed.stderr.starts_with(&why), "{}", failed.stderr);
}
