//! `mcp list` and `mcp call` inside a consumer: a name selects a socket, and each outcome has its own exit code.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::process::Command;

use rustix::process::geteuid;
use serde_json::{Value, json};

use super::world::{Ended, Listening, World, ended, until};
use crate::harness::have;

const SERVICES: [&str; 2] = [
    "{name: copy, tool: clipboard_set, consumers: [alice]}",
    "{name: clipboard, tool: clipboard_get, consumers: [bob]}",
];

/// The machine alice, with one socket, named after its provider.
fn inside_alice(world: World, server: &Listening) -> World {
    let folder = world.path("alice");
    fs::create_dir(&folder).unwrap();
    symlink(server.socket("alice"), folder.join("vault.sock")).unwrap();
    let folder = folder.to_str().unwrap().to_owned();
    world.env("ANKLUME_SOCKET_DIR", folder)
}

fn mcp(world: &World, args: &[&str]) -> Ended {
    world.run(&[&["mcp"], args].concat())
}

#[test]
fn a_file_that_does_not_fit_is_refused_before_it_is_sent() {
    const GIB: u64 = 1024 * 1024 * 1024;
    let world = World::new(&["{name: push, tool: file_accept, consumers: [alice]}"]);
    let server = world.listen();
    let world = inside_alice(world, &server);
    let sparse = fs::File::create(world.path("sparse")).unwrap();
    sparse.set_len(2 * GIB).unwrap();
    // From a file, and from stdin redirected from one.
    let file = format!("data=@{}", world.path("sparse").display());
    let ran = mcp(&world, &["call", "-i", "vault", "push", "path=a", &file]);
    let refused = "error: `push` failed: `incoming/alice` holds 0 bytes, and 2.0 GiB more would exceed its limit of 1.0 GiB; send a smaller file\n";
    ran.is(1, "", refused);
    let log = fs::read_to_string(world.path("log/audit.jsonl")).unwrap();
    let calls = log.lines().map(|line| serde_json::from_str(line).unwrap());
    let calls: Vec<Value> = calls
        .filter(|line: &Value| line["service"] == "push")
        .collect();
    let sent: u64 = calls
        .iter()
        .map(|call| call["bytes_in"].as_u64().unwrap())
        .sum();
    assert!(calls.len() == 1 && sent < 1024, "{calls:?}");
    // Content within the limit arrives.
    let large = vec![b'x'; 9 * 1024 * 1024];
    fs::write(world.path("large"), &large).unwrap();
    let file = format!("data=@{}", world.path("large").display());
    let ran = mcp(&world, &["call", "-i", "vault", "push", "path=b", &file]);
    ran.is(0, "incoming/alice/b", "");
    assert!(fs::read(world.path("portal/incoming/alice/b")).unwrap() == large);
    server.end();
}

#[test]
fn a_name_is_a_socket_and_every_end_has_its_exit_code() {
    let world = World::new(&SERVICES);
    let mut server = world.listen();
    let world = inside_alice(world, &server);

    let listed = mcp(&world, &["list", "-i", "vault"]);
    assert_eq!((listed.status, listed.stderr.as_str()), (0, ""));
    assert!(
        listed.stdout.starts_with("copy  ") && listed.stdout.lines().count() == 1,
        "{}",
        listed.stdout
    );
    mcp(&world, &["call", "-i", "vault", "copy", "content=hi"]).is(
        0,
        "2 bytes on the clipboard",
        "",
    );
    // A refusal names the person to ask and the command to run.
    for args in [&["clipboard"][..], &["clipboard", "x=1"], &["nowhere"]] {
        let name = args[0];
        let ran = mcp(&world, &[&["call", "-i", "vault"], args].concat());
        assert_eq!((ran.status, ran.stdout.as_str()), (3, ""), "{ran:?}");
        let begin = format!("error: Unknown tool: {name}\n  = help: ");
        assert!(ran.stderr.starts_with(&begin), "{}", ran.stderr);
        let ask = format!(
            "the operator can see why on the host: `anklume policy explain --caller MACHINE --service {name} --provider vault`\n"
        );
        assert!(ran.stderr.contains(&ask), "{}", ran.stderr);
        // The operator runs it, with the name of the machine.
        let explain = ["policy", "explain", "--caller", "alice", "--service", name];
        let explained = world.run(&[&explain[..], &["--provider", "vault"]].concat());
        // A service that nobody offers has nothing to explain, which is an answer too.
        let is_answer = match name {
            "nowhere" => explained
                .stderr
                .starts_with("error: `vault` offers no service"),
            _ => explained.stdout.starts_with("denied: "),
        };
        assert!(is_answer, "{explained:?}");
    }
    // A failure of the tool is not a refusal.
    let ran = mcp(&world, &["call", "-i", "vault", "copy"]);
    let neither =
        "error: `copy` failed: either `content` or `image` must be there, and only one of them\n";
    ran.is(1, "", neither);
    let large = format!("content={}", "x".repeat(70_000));
    let ran = mcp(&world, &["call", "-i", "vault", "copy", &large]);
    assert_eq!((ran.status, ran.stdout.as_str()), (1, ""), "{ran:?}");
    // A provider that does not exist, and one whose server is not running.
    let ran = mcp(&world, &["list", "-i", "vaults"]);
    let folder = world.path("alice");
    let message = format!(
        "error: Cannot reach MCP server: no socket exists at `{}/vaults.sock`\n  = help: did you mean `vault`? available: vault\n",
        folder.display()
    );
    ran.is(4, "", &message);
    server.signal("KILL");
    server.wait();
    // Alice's worker exits a moment after the server.
    until("nobody listens", || {
        UnixStream::connect(server.socket("alice")).is_err()
    });
    let ran = mcp(&world, &["call", "-i", "vault", "copy", "content=x"]);
    assert_eq!((ran.status, ran.stdout.as_str()), (4, ""), "{ran:?}");
    let message = format!(
        "error: Cannot reach MCP server: no server is listening on socket `{}/vault.sock`",
        folder.display()
    );
    assert!(ran.stderr.starts_with(&message), "{}", ran.stderr);
}

#[test]
fn an_argument_that_is_missing_is_a_usage_error() {
    let world = World::new(&["{name: say, tool: notify, consumers: [alice]}"]);
    let server = world.listen();
    let world = inside_alice(world, &server);
    let ran = mcp(&world, &["call", "-i", "vault", "say"]);
    let message = "error: `say` needs `title`\n  = help: write `title=VALUE`; `-` instead of a value reads stdin\n";
    ran.is(2, "", message);
    server.end();
}

#[test]
fn an_argument_that_is_not_the_callers_to_choose_is_a_refusal() {
    let world = World::new(&[
        "{name: fixed, tool: clipboard_set, consumers: [alice], with: {content: fixed}}",
        "{name: sign, tool: gpg_sign, consumers: [alice]}",
    ]);
    let server = world.listen();
    let world = inside_alice(world, &server);
    let calls = [
        ("fixed", "content", r#"{"content":"other"}"#),
        (
            "sign",
            "key_id",
            r#"{"data":"aGk=","key_id":"0123456789ABCDEF"}"#,
        ),
    ];
    for (service, argument, arguments) in calls {
        let ran = mcp(&world, &["call", "-i", "vault", service, arguments]);
        let message = format!(
            "error: `{service}` is refused: the caller may not set `{argument}`\n  = help: leave it out: the provider sets it\n"
        );
        ran.is(3, "", &message);
        let json = [
            "call", "-i", "vault", service, arguments, "--format", "json",
        ];
        let ran = mcp(&world, &json);
        let answer: Value = serde_json::from_str(&ran.stdout).unwrap();
        assert_eq!(
            (&answer["_meta"], &answer["isError"], ran.status),
            (&json!({"anklume/decision": "refused"}), &json!(true), 3)
        );
    }
    assert_eq!(world.clipboard(), None);
    for line in world.logged("call") {
        assert_eq!(line["decision"], "refused");
    }
}

#[test]
fn a_tool_that_this_machine_lacks_may_be_another_machines() {
    let world = World::new(&SERVICES);
    let server = world.listen();
    let five = "available tools: gpg_sign, clipboard_get, clipboard_set, file_accept, file_provide";
    let unknown = format!("error: Unknown tool: copy\n  = help: {five}");
    let world = inside_alice(world, &server);
    let ran = mcp(&world, &["call", "copy"]);
    let more = format!("{unknown}; use `-i` for the tools of another machine: vault\n");
    ran.is(1, "", &more);
}

#[test]
fn a_socket_of_another_users_says_who_decides() {
    if !have("root", geteuid().is_root()) {
        return;
    }
    let world = World::new(&SERVICES);
    let server = world.listen();
    // A consumer's socket as Incus creates it, in a folder that anybody may read.
    for folder in ["", "sockets"] {
        let open = fs::Permissions::from_mode(0o755);
        fs::set_permissions(world.path(folder), open).unwrap();
    }
    let program = world.path("anklume");
    crate::harness::copy_of_anklume(&program);
    let mut other = Command::new(program);
    let socket = server.socket("alice");
    other.args(["mcp", "list", "--socket", socket.to_str().unwrap()]);
    other.current_dir(world.path("")).uid(65_534).gid(65_534);
    let message = format!(
        "error: Cannot reach MCP server: no permission to use socket `{}`\n  \
         = help: only one user may use it: the `mcp: {{uid: …}}` of this machine in infra.yml, by default root\n",
        socket.display()
    );
    ended(other).is(4, "", &message);
}

#[test]
fn connect_takes_a_name_as_well() {
    let world = World::new(&SERVICES);
    let server = world.listen();
    let world = inside_alice(world, &server);
    let list = b"{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"tools/list\"}\n";
    let ran = world.run_with(&["mcp", "connect", "vault"], list);
    assert_eq!((ran.status, ran.stderr.as_str()), (0, ""));
    let answer: Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!(super::names(&answer), ["copy"]);
}
