//! A machine's own tools: programs that the launcher runs, with typed arguments.

pub(in crate::channel) mod ended;
mod rights;

use std::fs;

use serde_json::{Value, json};

use super::text;
use super::world::{Listening, World, all_processes, until, words_of};
use crate::harness::write_program;

/// A provider with these programs in its folder `bin`, and these tools in `mcp.tools`, each as a line of YAML in which
/// `BIN` stands for that folder.
fn provider(programs: &[(&str, &str)], tools: &str, services: &[&str]) -> World {
    with_mcp(programs, &format!("tools: {tools}"), services)
}

/// The same, with these other keys of `mcp`.
fn with_mcp(programs: &[(&str, &str)], mcp: &str, services: &[&str]) -> World {
    let mut world = World::empty();
    for (name, script) in programs {
        write_program(&world.path(&format!("bin/{name}")), script);
    }
    let mcp = mcp.replace("BIN", &world.text("bin"));
    world.declare(format!("{{{mcp}}}"), services);
    world
}

/// A provider of one tool and one service, both called `run`, for alice.
fn one(script: &str, rest: &str) -> World {
    let tools = format!("{{run: {{description: Runs, command: [BIN/run]{rest}}}}}");
    provider(
        &[("run", script)],
        &tools,
        &["{name: run, tool: run, consumers: [alice]}"],
    )
}

/// The text of a failed call.
#[track_caller]
fn failure(answer: &Value) -> &str {
    let result = &answer["result"];
    assert_eq!(result["isError"], true, "{answer}");
    assert!(result.get("structuredContent").is_none(), "{answer}");
    result["content"][0]["text"].as_str().unwrap()
}

/// The command lines of the processes that run something in the world's folder `bin`.
fn running(world: &World) -> Vec<String> {
    let bin = world.text("bin/");
    let lines = all_processes().map(|process| words_of(process).join(&b' '));
    let lines = lines.map(|line| String::from_utf8_lossy(&line).into_owned());
    lines.filter(|words| words.contains(&bin)).collect()
}

/// Calls the service `run` as alice.
fn run(server: &Listening, arguments: &Value) -> Value {
    server.peer("alice").call("run", arguments)
}

const DEPLOY: &str = "#!/bin/sh\nprintf '<%s>' \"$@\"\necho\ncat\necho warning >&2\n";
const DEPLOY_TOOL: &str = "{deploy: {description: Deploys the current release, \
    command: [BIN/deploy, \"--env={env}\", \"-n\", \"--count={count}\", \"--\", \"{files}\", \"{{x}}\"], \
    arguments: {env: {type: string, enum: [staging, prod], description: Where to}, \
    count: {type: integer, min: -5, max: 9, optional: true}, \
    files: {type: string, optional: true, max_length: 40}, \
    notes: {type: string, stdin: true, optional: true}}}}";

#[test]
fn a_program_gets_its_arguments_as_elements_and_its_input() {
    let services = [
        "{name: deploy, tool: deploy, consumers: [alice]}",
        "{name: deploy_staging, tool: deploy, with: {env: staging}, consumers: [alice, bob]}",
    ];
    let world = provider(&[("deploy", DEPLOY)], DEPLOY_TOOL, &services);
    let server = world.listen();
    let mut alice = server.peer("alice");
    let call =
        json!({"env": "prod", "count": -3, "files": "--force; $(x) 'y' *", "notes": "a\nb\n"});
    let answer = alice.call("deploy", &call);
    let stdout = "<--env=prod><-n><--count=-3><--><--force; $(x) 'y' *><{x}>\na\nb\n";
    assert_eq!(text(&answer), stdout);
    let structured = json!({"stdout": stdout, "stderr": "warning\n", "exit_status": 0});
    assert_eq!(answer["result"]["structuredContent"], structured);
    // Optional arguments that are left out take their elements with them.
    let answer = alice.call("deploy_staging", &json!({"count": null}));
    assert_eq!(text(&answer), "<--env=staging><-n><--><{x}>\n");
    let mut bob = server.peer("bob");
    let listed = bob.list();
    assert_eq!(
        listed["result"]["tools"],
        json!([{
            "name": "deploy_staging",
            "description": "Deploys the current release",
            "inputSchema": {
                "type": "object",
                "properties": {
                    "count": {"type": "integer", "minimum": -5, "maximum": 9},
                    "files": {"type": "string", "maxLength": 40},
                    "notes": {"type": "string", "maxLength": 65536},
                },
                "additionalProperties": false,
            },
            "outputSchema": {
                "type": "object",
                "properties": {
                    "stdout": {"type": "string", "description": "The text that the program printed"},
                    "stderr": {"type": "string", "description": "The beginning of the program's error output"},
                    "exit_status": {
                        "type": "integer",
                        "description": "The program's exit status; a call fails unless it is 0",
                    },
                },
                "required": ["stdout", "stderr", "exit_status"],
                "additionalProperties": false,
            },
            "annotations": {
                "readOnlyHint": false, "destructiveHint": true, "idempotentHint": false, "openWorldHint": true,
            },
            "_meta": {"anklume/tool": "deploy"},
        }])
    );
    assert_eq!(
        bob.call("deploy", &call)["error"]["message"],
        "Unknown tool: deploy"
    );
    let refused = bob.call("deploy_staging", &json!({"env": "prod"}));
    assert_eq!(failure(&refused), "the caller may not set `env`");
    server.end();
    let calls = world.logged("call");
    let said = |line: &Value| {
        json!([
            line["caller"],
            line["service"],
            line["tool"],
            line["outcome"]
        ])
    };
    let said: Vec<Value> = calls.iter().map(said).collect();
    assert_eq!(
        said,
        [
            json!(["alice", "deploy", "deploy", "done"]),
            json!(["alice", "deploy_staging", "deploy", "done"]),
            json!(["bob", "deploy", "deploy", "not_run"]),
            json!(["bob", "deploy_staging", "deploy", "not_run"]),
        ]
    );
    world.log_is_intact();
}

#[test]
fn a_value_cannot_become_an_option_another_line_or_a_second_element() {
    let script = "#!/bin/sh\necho ran >>ran\nprintf '<%s>' \"$@\"";
    let tool = ", command: [BIN/run, \"{name}\", \"-o{value}\", \"--to={to}\"], arguments: {name: {type: string}, \
        value: {type: string, optional: true}, to: {type: string, optional: true}}";
    let tool = format!("{{run: {{description: Runs{tool}}}}}");
    let world = provider(
        &[("run", script)],
        &tool,
        &["{name: run, tool: run, consumers: [alice]}"],
    );
    let server = world.listen();
    let mut alice = server.peer("alice");
    for (arguments, why) in [
        (json!({"name": "-rf"}), "`name` may not begin with `-`"),
        (json!({"name": "--"}), "`name` may not begin with `-`"),
        (
            json!({"name": "a", "value": "-x"}),
            "`value` may not begin with `-`",
        ),
        (
            json!({"name": "a\nb"}),
            "`name` contains the control character `\\n`",
        ),
        (
            json!({"name": "a\0b"}),
            "`name` contains the control character `\\0`",
        ),
        (
            json!({"name": "\u{1b}]0;x\u{7}"}),
            "`name` contains the control character `\\u{1b}`",
        ),
        (
            json!({"name": "x".repeat(128 * 1024)}),
            "`name` has 131072 characters; at most 1000 are taken",
        ),
        (
            json!({"name": ["a", "b"]}),
            "`name` must be a string, not a list",
        ),
        (
            json!({"name": {"a": 1}}),
            "`name` must be a string, not an object",
        ),
        (json!({}), "missing argument `name`"),
        (
            json!({"name": "a", "nam": "b"}),
            "unknown argument `nam`; closest: `name`",
        ),
    ] {
        let answer = alice.call("run", &arguments);
        assert_eq!(failure(&answer), why, "{arguments}");
    }
    assert!(!world.path("ran").exists());
    let good = json!({"name": "a -b", "value": "x -y", "to": "-z"});
    let answer = alice.call("run", &good);
    assert_eq!(text(&answer), "<a -b><-ox -y><--to=-z>");
    assert!(world.path("ran").exists());
}

#[test]
fn json_is_passed_on_as_a_value() {
    let output = ", arguments: {what: {type: string, stdin: true}}, output: json";
    let world = one("#!/bin/sh\ncat", output);
    let server = world.listen();
    let answer = run(
        &server,
        &json!({"what": " {\"b\": [1, 2.5], \"a\": null}\n"}),
    );
    let structured = json!({"output": {"b": [1, 2.5], "a": null}, "stderr": "", "exit_status": 0});
    assert_eq!(answer["result"]["structuredContent"], structured);
    let fails = |what: &str| {
        let answer = run(&server, &json!({"what": what}));
        failure(&answer).to_owned()
    };
    let beginning = "it did not print one JSON value: ";
    assert_eq!(
        fails(""),
        format!("{beginning}EOF while parsing a value at line 1 column 0")
    );
    assert_eq!(
        fails("{} {}"),
        format!("{beginning}trailing characters at line 1 column 4")
    );
    let deep = "[".repeat(200);
    assert!(fails(&deep).starts_with(beginning));
    assert!(fails("{\"a\": 1, \"a\": 2}").starts_with(beginning));
}

#[test]
fn a_failure_says_the_status_and_what_was_printed() {
    let script =
        "#!/bin/sh\necho out\necho err >&2\ncase $1 in kill) kill -9 $$;; *) exit $1;; esac";
    let world = one(script, "");
    let mut world = world;
    let mcp = "{tools: {run: {description: Runs, command: [BIN/run, \"{how}\"], arguments: {how: {type: string}}}, \
        gone: {description: Gone, command: [/no/such/program]}, \
        text: {description: No program, command: [/etc/passwd]}}}";
    let mcp = mcp.replace("BIN", &world.text("bin"));
    let services = ["run", "gone", "text"]
        .map(|name| format!("{{name: {name}, tool: {name}, consumers: [alice]}}"));
    world.declare(mcp, &services.each_ref().map(String::as_str));
    let server = world.listen();
    let mut alice = server.peer("alice");
    let fails = |alice: &mut super::peer::Peer, service: &str, arguments: Value| {
        failure(&alice.call(service, &arguments)).to_owned()
    };
    let printed = "\nstdout:\nout\nstderr:\nerr";
    assert_eq!(
        fails(&mut alice, "run", json!({"how": "7"})),
        format!("it exited with status 7{printed}")
    );
    assert_eq!(
        fails(&mut alice, "run", json!({"how": "kill"})),
        format!("it was ended by signal 9{printed}")
    );
    assert_eq!(text(&alice.call("run", &json!({"how": "0"}))), "out\n");
    // The caller does not learn paths; the provider's user does.
    let declared =
        "this tool cannot run on its machine as declared; the log of `anklume-run` there says why";
    for service in ["gone", "text"] {
        assert_eq!(fails(&mut alice, service, json!({})), declared);
    }
    let said = server.stderr();
    for line in [
        "error: the tool `gone` cannot run: `/no/such/program` cannot be executed: No such file or directory (os error 2)\n",
        "error: the tool `text` cannot run: `/etc/passwd` cannot be executed: Permission denied (os error 13)\n",
    ] {
        assert!(said.contains(line), "{said}");
    }
}

#[test]
fn no_more_than_the_declared_number_of_programs_runs_at_once() {
    let script = "#!/bin/sh\n[ -e \"$1\" ] && echo busy && exit\ntouch \"$1\"; sleep 0.2; rm \"$1\"; echo alone";
    let mcp = "children: 1, tools: {run: {description: Runs, command: [BIN/run, BIN/lock]}}";
    let services = ["{name: run, tool: run, consumers: [alice, bob]}"];
    let world = with_mcp(&[("run", script)], mcp, &services);
    let server = world.listen();
    let mut peers = [
        server.peer("alice"),
        server.peer("alice"),
        server.peer("bob"),
    ];
    for peer in &mut peers {
        peer.send(super::peer::call(1, "run", &json!({})));
    }
    for peer in &mut peers {
        assert_eq!(text(&peer.receive()), "alone\n");
    }
}

#[test]
fn a_caller_whose_calls_take_long_leaves_room_for_others() {
    let wait = "#!/bin/sh\nuntil [ -e \"$1\" ]; do sleep 0.05; done; echo waited";
    let tools = "children: 2, tools: {run: {description: Runs, command: [BIN/run, BIN/go]}, \
        quick: {description: Runs, command: [/bin/echo, ran]}}";
    let services = [
        "{name: run, tool: run, consumers: [alice]}",
        "{name: quick, tool: quick, consumers: [bob]}",
    ];
    let world = with_mcp(&[("run", wait)], tools, &services);
    let server = world.listen();
    let mut peers = [server.peer("alice"), server.peer("alice")];
    for peer in &mut peers {
        peer.send(super::peer::call(1, "run", &json!({})));
    }
    until("one runs", || !running(&world).is_empty());
    assert_eq!(text(&server.peer("bob").call("quick", &json!({}))), "ran\n");
    fs::write(world.path("bin/go"), "").unwrap();
    for peer in &mut peers {
        assert_eq!(text(&peer.receive()), "waited\n");
    }
}

#[test]
fn the_operator_runs_a_service_by_its_name() {
    let world = one("#!/bin/sh\necho ran", "");
    let serve = |lines: &str| {
        let serve = [
            "mcp",
            "serve",
            "--caller",
            "alice",
            "--services",
            "services.json",
        ];
        world.run_with(&serve, lines.as_bytes())
    };
    let call = super::peer::call(1, "run", &json!({})) + "\n";
    let answer: Value = serde_json::from_str(&serve(&call).stdout).unwrap();
    assert_eq!(text(&answer), "ran\n");
}

#[test]
fn the_page_about_own_services_works() {
    let page = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/own-services.md");
    let page = fs::read_to_string(page).unwrap();
    let block = |fence: &str| {
        let (_, rest) = page.split_once(fence).unwrap();
        rest.split_once("```").unwrap().0
    };
    // The machine's files are in the world's folder.
    let mut world = World::empty();
    let here = |text: &str| {
        let bin = world.text("bin");
        text.replace("/usr/local/bin", &bin)
            .replace("/etc/", &format!("{bin}/"))
    };
    write_program(&world.path("bin/deploy"), here(block("```sh\n")));
    world.write("bin/deploy.token", "s3cret\n");
    world.write("bin/deploy.env", "TOKEN=s3cret\n");
    let private = std::os::unix::fs::PermissionsExt::from_mode(0o600);
    fs::set_permissions(world.path("bin/deploy.env"), private).unwrap();
    let machines = here(block("```yaml\n"));
    let indented = machines.replace('\n', "\n    ");
    world.write(
        "infra.yml",
        format!("domains:\n  d:\n    subnet_id: 0\n    {indented}  work-dev: {{}}\n"),
    );
    let exported = world.run(&["policy", "export", "--machine", "vault"]);
    assert_eq!(exported.stderr, "");
    world.policy_bytes(exported.stdout.as_bytes());
    let server = world.listen();
    fs::create_dir(world.path("work-dev")).unwrap();
    let socket = world.path("work-dev/vault.sock");
    std::os::unix::fs::symlink(server.socket("work-dev"), socket).unwrap();
    std::os::unix::fs::symlink(crate::harness::ANKLUME, world.path("bin/anklume")).unwrap();
    let (sockets, path) = (world.text("work-dev"), std::env::var("PATH").unwrap());
    let path = format!("{}:{path}", world.text("bin"));
    world = world.env("ANKLUME_SOCKET_DIR", sockets).env("PATH", path);
    let console = block("```console\n");
    let commands: Vec<&str> = console
        .lines()
        .filter_map(|line| line.strip_prefix("$ "))
        .collect();
    let printed: Vec<&str> = console
        .lines()
        .filter(|line| !line.starts_with("$ "))
        .collect();
    let mut shell = std::process::Command::new("sh");
    shell.args(["-e", "-c", &commands.join("\n")]);
    world.through(&mut shell, &[]);
    let ran = super::world::ended(shell);
    assert_eq!(ran.stdout.lines().collect::<Vec<_>>(), printed, "{ran:?}");
    assert_eq!(ran.status, 0);
}
