//! `mcp connect` for agents: all providers of a machine as one server, and files by reference.

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use serde_json::{Value, json};

use super::peer::{call, cancel};
use super::world::{Listening, World, ended, number_of, until};
use super::{text, upstreams};
use crate::harness::{ANKLUME, python as program, scrub};
use crate::serve::clients::{node, python};
use crate::serve::strangers::node_program;

const SERVICES: [&str; 4] = [
    "{name: copy, tool: clipboard_set, consumers: [alice]}",
    "{name: drop_off, tool: file_accept, consumers: [alice]}",
    "{name: pick_up, tool: file_provide, consumers: [alice]}",
    "{name: paste, tool: clipboard_get, consumers: [bob]}",
];

/// The folders of a consumer: of its sockets, and of its files.
struct Consumer {
    folder: tempfile::TempDir,
}

impl Consumer {
    fn new(providers: &[(&str, &Listening)]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        for name in ["sockets", "files"] {
            fs::create_dir(folder.path().join(name)).unwrap();
        }
        let consumer = Self { folder };
        for (name, server) in providers {
            consumer.provider(name, server);
        }
        consumer
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.folder.path().join(name)
    }

    fn provider(&self, name: &str, server: &Listening) {
        let socket = self.path(&format!("sockets/{name}.sock"));
        let _ = fs::remove_file(&socket);
        symlink(server.socket("alice"), socket).unwrap();
    }

    fn command(&self, more: &[&str]) -> Command {
        let mut command = Command::new(ANKLUME);
        command
            .args(["mcp", "connect"])
            .args(more)
            .env_clear()
            .env("ANKLUME_SOCKET_DIR", self.path("sockets"));
        command
    }

    /// Starts it with the consumer's files.
    fn connect(&self) -> Agent {
        let files = self.path("files");
        Agent::start(self.command(&["--files", files.to_str().unwrap()]))
    }
}

/// A running `mcp connect`.
struct Agent {
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: Option<BufReader<ChildStdout>>,
}

impl Agent {
    fn start(mut command: Command) -> Self {
        let piped = command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = piped.spawn().unwrap();
        Self {
            stdin: child.stdin.take(),
            stdout: child.stdout.take().map(BufReader::new),
            child,
        }
    }

    fn send(&mut self, line: &str) {
        writeln!(self.stdin.as_mut().unwrap(), "{line}").unwrap();
    }

    #[track_caller]
    fn receive(&mut self) -> Value {
        let mut line = String::new();
        let stdout = self.stdout.as_mut().unwrap();
        stdout.read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap_or_else(|why| panic!("{why}: {line:?}"))
    }

    #[track_caller]
    fn call(&mut self, name: &str, arguments: &Value) -> Value {
        self.send(&call(1, name, arguments));
        self.receive()
    }

    #[track_caller]
    fn list(&mut self) -> Value {
        self.send(r#"{"jsonrpc":"2.0","id":1,"method":"tools/list"}"#);
        self.receive()["result"]["tools"].take()
    }

    #[track_caller]
    fn failure(&mut self, name: &str, arguments: &Value) -> String {
        let answer = self.call(name, arguments);
        assert_eq!(answer["result"]["isError"], true, "{answer}");
        answer["result"]["content"][0]["text"]
            .as_str()
            .unwrap()
            .to_owned()
    }

    fn end(mut self) {
        self.stdin = None;
        assert!(self.child.wait().unwrap().success());
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn names(tools: &Value) -> Vec<&str> {
    let tools = tools.as_array().unwrap().iter();
    tools.map(|tool| tool["name"].as_str().unwrap()).collect()
}

#[test]
fn all_providers_are_one_server_and_a_dead_one_is_named() {
    let (vault, web) = (World::new(&SERVICES), World::new(&SERVICES[..1]));
    let (vault_server, web_server) = (vault.listen(), web.listen());
    let consumer = Consumer::new(&[("vault", &vault_server), ("web-1", &web_server)]);
    drop(UnixListener::bind(consumer.path("sockets/dead.sock")).unwrap());
    let mut agent = Agent::start(consumer.command(&[]));
    let listed = agent.list();
    assert_eq!(
        names(&listed),
        [
            "vault__copy",
            "vault__drop_off",
            "vault__pick_up",
            "web-1__copy"
        ]
    );
    // Everything else is as the provider says.
    let mut own = vault_server.peer("alice").list()["result"]["tools"][0].take();
    own["name"] = "vault__copy".into();
    assert_eq!(listed[0], own);
    text(&agent.call("web-1__copy", &json!({"content": "hello"})));
    assert_eq!(web.clipboard().as_deref(), Some("hello"));
    assert_eq!(vault.clipboard(), None);
    let why = agent.failure("dead__copy", &json!({"content": "x"}));
    assert!(why.starts_with("cannot reach `dead`: "), "{why}");
    let why = agent.failure("none__copy", &json!({}));
    assert_eq!(
        why,
        "cannot reach `none`: this machine has no provider of that name"
    );
    let error = agent.call("vault__paste", &json!({}))["error"].take();
    assert_eq!(
        error,
        json!({"code": -32602, "message": "Unknown tool: paste"})
    );
    let error = agent.call("copy", &json!({}))["error"].take();
    assert_eq!(
        error,
        json!({"code": -32602, "message": "Unknown tool: copy"})
    );
    agent.end();
}

#[test]
fn it_outlives_its_providers_and_sees_a_grant_that_changes() {
    let world = World::new(&SERVICES[..1]);
    let server = world.listen();
    let consumer = Consumer::new(&[("vault", &server)]);
    let mut agent = Agent::start(consumer.command(&[]));
    let copy = json!({"content": "a"});
    text(&agent.call("vault__copy", &copy));
    server.end();
    let why = agent.failure("vault__copy", &copy);
    assert!(why.starts_with("cannot reach `vault`: "), "{why}");
    let server = world.listen();
    consumer.provider("vault", &server);
    text(&agent.call("vault__copy", &copy));
    world.policy(&[SERVICES[3]]);
    until("the grant is gone", || {
        agent.call("vault__copy", &copy)["error"]["message"] == "Unknown tool: copy"
    });
    assert_eq!(names(&agent.list()), [""; 0]);
    agent.end();
}

#[test]
fn calls_run_at_the_same_time_and_a_cancelled_one_ends_at_its_provider() {
    let Some(world) = upstreams::fake("slow", "") else {
        return;
    };
    let server = world.listen();
    let consumer = Consumer::new(&[("vault", &server)]);
    let mut agent = Agent::start(consumer.command(&[]));
    let slow = json!({"text": "x"});
    let request = json!({"jsonrpc": "2.0", "id": "a", "method": "tools/call",
        "params": {"name": "vault__run", "arguments": slow, "_meta": {"progressToken": "p"}}});
    agent.send(&request.to_string());
    let progress = agent.receive();
    assert_eq!(progress["method"], "notifications/progress");
    assert_eq!(progress["params"]["progressToken"], "p");
    assert_eq!(progress["params"]["message"], "working");
    // Others are answered meanwhile.
    agent.send(r#"{"jsonrpc":"2.0","id":"b","method":"ping"}"#);
    let mut pong = agent.receive();
    while pong["id"] != "b" {
        pong = agent.receive();
    }
    agent.send(&cancel("a"));
    until("the call is cancelled", || {
        world
            .logged("call")
            .iter()
            .any(|line| line["outcome"] == "cancelled")
    });
    // Killed in the middle of a call.
    agent.send(&request.to_string());
    assert_eq!(agent.receive()["method"], "notifications/progress");
    drop(agent);
    until("the other call has ended as well", || {
        let calls = world.logged("call");
        calls
            .iter()
            .filter(|line| line["outcome"] == "cancelled")
            .count()
            == 2
    });
}

#[test]
fn files_are_named_and_not_copied() {
    let world = World::new(&SERVICES);
    world.write("portal/outgoing/all/note", "from the vault");
    let server = world.listen();
    let consumer = Consumer::new(&[("vault", &server)]);
    let files = consumer.path("files");
    let mut agent = consumer.connect();
    let listed = agent.list();
    let (drop_off, pick_up) = (&listed[1]["inputSchema"], &listed[2]["inputSchema"]);
    let arguments = |schema: &Value| -> Vec<String> {
        schema["properties"]
            .as_object()
            .unwrap()
            .keys()
            .cloned()
            .collect()
    };
    assert_eq!(
        arguments(drop_off),
        ["path", "mode", "modified", "folder", "file"]
    );
    assert_eq!(drop_off["required"], json!(["path", "file"]));
    assert_eq!(arguments(pick_up), ["path", "entries", "save_as"]);
    fs::write(files.join("letter"), "dear vault").unwrap();
    text(&agent.call(
        "vault__drop_off",
        &json!({"path": "letter", "file": "letter"}),
    ));
    let arrived = world.path("portal/incoming/alice/letter");
    assert_eq!(fs::read_to_string(arrived).unwrap(), "dear vault");
    let saved = agent.call(
        "vault__pick_up",
        &json!({"path": "note", "save_as": "note"}),
    );
    assert_eq!(text(&saved), "saved 14 bytes as `note`");
    assert_eq!(saved["result"]["structuredContent"]["saved_as"], "note");
    assert_eq!(
        fs::read_to_string(files.join("note")).unwrap(),
        "from the vault"
    );
    // A path may be written in full, and as the folder was given.
    let full = files.canonicalize().unwrap().join("letter");
    text(&agent.call("vault__drop_off", &json!({"path": "again", "file": full})));
    let linked = consumer.path("linked");
    symlink(&files, &linked).unwrap();
    let mut other = Agent::start(consumer.command(&["--files", linked.to_str().unwrap()]));
    other.list();
    for (path, folder) in [("third", &files), ("fourth", &linked)] {
        let file = folder.join("letter");
        text(&other.call("vault__drop_off", &json!({"path": path, "file": file})));
    }
    // Short content may still be passed.
    text(&agent.call("vault__drop_off", &json!({"path": "short", "data": "aGk="})));

    let here = files.canonicalize().unwrap();
    let here = here.display();
    fs::create_dir(files.join("folder")).unwrap();
    symlink("/etc/passwd", files.join("link")).unwrap();
    symlink("/tmp", files.join("out")).unwrap();
    fs::write(consumer.path("secret"), "secret").unwrap();
    let mut refused = |name: &str, argument: &str, path: &str, why: &str| {
        let arguments = json!({"path": "note", argument: path});
        let why = why.replace("HERE", &here.to_string());
        assert_eq!(agent.failure(name, &arguments), format!("`vault`: {why}"));
    };
    for (path, why) in [
        ("../secret", "`../secret` is not below `HERE`"),
        ("/etc/passwd", "`/etc/passwd` is not below `HERE`"),
        ("", "`` is not below `HERE`"),
        ("none", "there is no file `none` below `HERE`"),
        ("link", "`link` contains a symbolic link"),
        ("out/x", "`out/x` contains a symbolic link"),
        ("folder", "`folder` is not a regular file"),
    ] {
        refused("vault__drop_off", "file", path, why);
    }
    for (path, why) in [
        ("../new", "`../new` is not below `HERE`"),
        (
            "letter",
            "`letter` already exists, and files are not replaced",
        ),
        ("link", "`link` already exists, and files are not replaced"),
        ("out/new", "`out/new` contains a symbolic link"),
        ("none/new", "the folder of `none/new` does not exist"),
        (".", "`.` names no file"),
    ] {
        refused("vault__pick_up", "save_as", path, why);
    }
    // What fails leaves nothing behind.
    let missing = agent.call("vault__pick_up", &json!({"path": "none", "save_as": "new"}));
    assert_eq!(missing["result"]["isError"], true, "{missing}");
    let mut left: Vec<_> = fs::read_dir(&files)
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    left.sort();
    assert_eq!(left, ["folder", "letter", "link", "note", "out"]);
    agent.end();
}

/// Hands a file in and fetches it again, and checks its content, the progress and the memory.
fn passes_both_ways(mebibytes: u32) {
    let world = World::new(&SERVICES);
    let server = world.listen();
    let consumer = Consumer::new(&[("vault", &server)]);
    let mut agent = consumer.connect();
    let part: Vec<u8> = (0..=250_u8).cycle().take(1024 * 1024).collect();
    let mut file = fs::File::create(consumer.path("files/large")).unwrap();
    for _ in 0..mebibytes {
        file.write_all(&part).unwrap();
    }
    let size = f64::from(mebibytes) * 1024.0 * 1024.0;
    let mut transfer = |name: &str, arguments: Value| {
        let request = json!({"jsonrpc": "2.0", "id": 7, "method": "tools/call",
            "params": {"name": name, "arguments": arguments, "_meta": {"progressToken": 3}}});
        agent.send(&request.to_string());
        let mut last = 0.0;
        loop {
            let message = agent.receive();
            if message["id"] == 7 {
                text(&message);
                assert!(last > 0.0);
                return;
            }
            let params = &message["params"];
            assert_eq!(
                (&params["progressToken"], params["total"].as_f64()),
                (&json!(3), Some(size))
            );
            let progress = params["progress"].as_f64().unwrap();
            assert!(progress > last, "{message}");
            last = progress;
        }
    };
    transfer("vault__drop_off", json!({"path": "large", "file": "large"}));
    let arrived = world.path("portal/incoming/alice/large");
    fs::create_dir_all(world.path("portal/outgoing/all")).unwrap();
    fs::rename(&arrived, world.path("portal/outgoing/all/large")).unwrap();
    transfer(
        "vault__pick_up",
        json!({"path": "large", "save_as": "back"}),
    );
    let mut compare = Command::new("cmp");
    compare.args([consumer.path("files/large"), consumer.path("files/back")]);
    assert!(compare.status().unwrap().success());
    let most = number_of(agent.child.id(), "VmHWM:");
    assert!(most < 64 * 1024, "{most} KiB");
    agent.end();
}

#[test]
fn a_large_file_passes_both_ways_in_little_memory_and_reports_progress() {
    passes_both_ways(64);
}

#[test]
#[ignore = "long"]
fn a_gibibyte_passes_both_ways_in_little_memory_and_reports_progress() {
    passes_both_ways(1024);
}

#[test]
fn nulls_and_other_arguments_and_large_results_pass() {
    let services = [
        "{name: echo, tool: fake/echo, consumers: [alice]}",
        "{name: big, tool: fake/big, consumers: [alice]}",
    ];
    let Some(world) = upstreams::provider("{fake: {command: [FAKE]}}", &services) else {
        return;
    };
    let server = world.listen();
    let consumer = Consumer::new(&[("vault", &server)]);
    let mut agent = Agent::start(consumer.command(&[]));
    let arguments = json!({"text": "a", "naïve ✓": "b", "nothing": null, "deep": {"null": null}});
    let echoed = agent.call("vault__echo", &arguments);
    let echoed = text(&echoed);
    // An argument that is null counts as left out.
    assert!(!echoed.contains("nothing"), "{echoed}");
    assert!(echoed.contains("'deep': {'null': null}"), "{echoed}");
    let bytes = 3 * 1024 * 1024;
    let big = agent.call("vault__big", &json!({"bytes": bytes}));
    assert_eq!(text(&big).len(), bytes);
    // Two clients at once, with many calls each.
    let mut other = Agent::start(consumer.command(&[]));
    for agent in [&mut agent, &mut other] {
        for id in 1..=40 {
            agent.send(&call(
                id,
                "vault__echo",
                &json!({"text": format!("call {id}.")}),
            ));
        }
    }
    for agent in [&mut agent, &mut other] {
        let mut ids: Vec<u64> = (0..40)
            .map(|_| {
                let answer = agent.receive();
                let id = answer["id"].as_u64().unwrap();
                assert!(text(&answer).contains(&format!("call {id}.")), "{answer}");
                id
            })
            .collect();
        ids.sort_unstable();
        assert_eq!(ids, (1..=40).collect::<Vec<_>>());
    }
    agent.end();
    other.end();
}

/// Makes a client with a command line list the tools, hand a file in, fetch one and get an image. `client` takes the
/// command of the server, and a tool with its arguments, or nothing for the list.
fn works_with_files(client: impl Fn(&str, Option<(&str, &Value)>) -> Option<Command>) {
    let Some(pictures) = upstreams::fake("echo", "") else {
        return;
    };
    let world = World::new(&SERVICES);
    world.write("portal/outgoing/all/note", "hello");
    let (server, pictures_server) = (world.listen(), pictures.listen());
    let consumer = Consumer::new(&[("vault", &server), ("pictures", &pictures_server)]);
    fs::write(consumer.path("files/in"), "handed in").unwrap();
    // Some clients do not pass the environment on to the programs that they start.
    let line = format!(
        "env ANKLUME_SOCKET_DIR={} {ANKLUME} mcp connect --files {}",
        consumer.path("sockets").display(),
        consumer.path("files").display()
    );
    let Some(list) = client(&line, None) else {
        return;
    };
    let said = |mut client: Command| {
        scrub(&mut client, consumer.folder.path());
        let ran = ended(client);
        assert_eq!(ran.status, 0, "{ran:?}");
        ran.stdout
    };
    let call =
        |name: &str, arguments: Value| said(client(&line, Some((name, &arguments))).unwrap());
    let listed = said(list);
    assert!(
        listed.contains("vault__drop_off") && listed.contains("save_as"),
        "{listed}"
    );
    call("vault__drop_off", json!({"path": "in", "file": "in"}));
    let arrived = world.path("portal/incoming/alice/in");
    assert_eq!(fs::read_to_string(arrived).unwrap(), "handed in");
    call("vault__pick_up", json!({"path": "note", "save_as": "out"}));
    let fetched = fs::read_to_string(consumer.path("files/out"));
    assert_eq!(fetched.unwrap(), "hello");
    let image = call("pictures__run", json!({"text": "x"}));
    assert!(
        image.contains("aW1hZ2U=") && image.contains("image/png"),
        "{image}"
    );
}

#[test]
fn fastmcp_works_with_files() {
    works_with_files(|line, call| {
        let mut command = Command::new(program("fastmcp")?);
        match call {
            None => command.args(["list", "--command", line, "--json"]),
            Some((name, arguments)) => command
                .args(["call", "--command", line, "--target", name, "--json"])
                .args(["--input-json", &arguments.to_string()]),
        };
        Some(command)
    });
}

#[test]
fn mcporter_works_with_files() {
    works_with_files(|line, call| {
        let (node, script) = node_program("mcporter", "dist/cli.js")?;
        let mut command = Command::new(node);
        command.arg(script);
        match call {
            None => command.args(["list", "--stdio", line, "--schema"]),
            Some((name, arguments)) => command
                .args(["call", "--stdio", line, name, "--output", "raw"])
                .args(["--args", &arguments.to_string()]),
        };
        Some(command)
    });
}

#[test]
fn a_client_that_is_gone_takes_its_calls_with_it() {
    let Some(world) = upstreams::fake("never", "") else {
        return;
    };
    let server = world.listen();
    let consumer = Consumer::new(&[("vault", &server)]);
    let mut agent = Agent::start(consumer.command(&[]));
    agent.send(&call(1, "vault__run", &json!({"text": "x"})));
    until("the call runs", || upstreams::servers(&world) == 1);
    // Its ends of the pipes are closed, as when it is killed.
    agent.stdin = None;
    agent.stdout = None;
    assert!(agent.child.wait().unwrap().success());
    until("its call has ended", || {
        let calls = world.logged("call");
        calls.iter().any(|line| line["outcome"] == "cancelled")
    });
}

/// Serves one hostile answer to each request, as an MCP server at this socket.
fn hostile(socket: &std::path::Path, tools: Value, result: String) {
    let listener = UnixListener::bind(socket).unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut reader = BufReader::new(stream.try_clone().unwrap());
            let mut line = String::new();
            while reader.read_line(&mut line).unwrap_or_default() > 0 {
                let request: Value = serde_json::from_str(&line).unwrap();
                line.clear();
                let answer = match request["method"].as_str().unwrap() {
                    "initialize" => json!({"protocolVersion": "2025-11-25", "capabilities": {}, "serverInfo": {"name": "x", "version": "0"}}).to_string(),
                    "tools/list" => json!({"tools": tools}).to_string(),
                    "tools/call" => result.clone(),
                    _ => continue,
                };
                let line = format!(
                    "{{\"jsonrpc\":\"2.0\",\"id\":{},\"result\":{answer}}}\n",
                    request["id"]
                );
                // The other side may have closed the connection.
                let _ = stream.write_all(line.as_bytes());
            }
        }
    });
}

#[test]
fn a_hostile_provider_costs_only_its_own_tools() {
    let world = World::new(&SERVICES[..1]);
    let server = world.listen();
    let consumer = Consumer::new(&[("vault", &server)]);
    let schema = json!({"type": "object"});
    let tool = |name: &str| json!({"name": name, "inputSchema": schema});
    let tools = json!([
        tool("good"),
        tool("good"),
        tool(""),
        tool("\u{1b}[2J"),
        tool(&"x".repeat(1000)),
        {"name": "no_object", "inputSchema": {}},
        {"name": "text", "inputSchema": schema, "outputSchema": {"type": "string"}},
    ]);
    let long = json!({"content": [{"type": "text", "text": "x".repeat(10 * 1024 * 1024)}]});
    hostile(&consumer.path("sockets/bad.sock"), tools, long.to_string());
    let wide = json!([{"name": "wide", "description": "x".repeat(2 * 1024 * 1024), "inputSchema": schema}]);
    hostile(&consumer.path("sockets/wide.sock"), wide, "{}".to_owned());
    let asks = json!({"resultType": "input_required", "inputRequests": {}}).to_string();
    hostile(
        &consumer.path("sockets/asks.sock"),
        json!([tool("ask")]),
        asks,
    );
    let mut agent = Agent::start(consumer.command(&[]));
    assert_eq!(
        names(&agent.list()),
        ["asks__ask", "bad__good", "vault__copy"]
    );
    let why = agent.failure("bad__good", &json!({}));
    assert_eq!(
        why,
        "`bad`: the result has 11 MiB; at most 9 MiB are passed on"
    );
    let why = agent.failure("asks__ask", &json!({}));
    assert_eq!(why, "the server's answer is unusable: it is not complete");
    text(&agent.call("vault__copy", &json!({"content": "x"})));
    agent.end();
}

#[test]
fn one_provider_with_files_has_its_own_names() {
    let world = World::new(&SERVICES);
    let server = world.listen();
    let consumer = Consumer::new(&[("vault", &server)]);
    let files = consumer.path("files");
    let mut agent = Agent::start(consumer.command(&["vault", "--files", files.to_str().unwrap()]));
    assert_eq!(names(&agent.list()), ["copy", "drop_off", "pick_up"]);
    fs::write(files.join("a"), "a").unwrap();
    text(&agent.call("drop_off", &json!({"path": "a", "file": "a"})));
    agent.end();
    let gone = files.join("none");
    let mut command = consumer.command(&["--files", gone.to_str().unwrap()]);
    command.stdin(Stdio::null());
    let ran = ended(command);
    assert_eq!(
        (ran.status, ran.stderr),
        (
            1,
            format!(
                "error: cannot open the folder `{}`: No such file or directory (os error 2)\n  = help: name a folder that exists with `--files`\n",
                gone.display()
            )
        )
    );
}

/// Makes a client use two providers, hand in and fetch a file, and get an image.
fn uses_all_providers(client: Option<Command>, version: &str) {
    let (Some(mut client), Some(pictures)) = (client, upstreams::fake("echo", "")) else {
        return;
    };
    let vault = World::new(&SERVICES);
    vault.write("portal/outgoing/all/note", "hello");
    let (vault_server, pictures_server) = (vault.listen(), pictures.listen());
    let consumer = Consumer::new(&[("pictures", &pictures_server), ("vault", &vault_server)]);
    fs::write(consumer.path("files/in"), "handed in").unwrap();
    let plan = json!([
        ["vault__drop_off", {"path": "in", "file": "in"}],
        ["vault__pick_up", {"path": "note", "save_as": "out"}],
        ["pictures__run", {"text": "naïve ✓"}],
        ["vault__copy", {"content": "x", "image": null}],
        ["vault__nothing", {}],
    ]);
    client
        .arg(plan.to_string())
        .args([ANKLUME, "mcp", "connect", "--files"])
        .arg(consumer.path("files"))
        .env("ANKLUME_SOCKET_DIR", consumer.path("sockets"));
    let ran = ended(client);
    assert_eq!((ran.status, ran.stderr.as_str()), (0, ""));
    let told: Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!(told["version"], version);
    let tools = [
        "pictures__run",
        "vault__copy",
        "vault__drop_off",
        "vault__pick_up",
    ];
    assert_eq!(told["tools"], json!(tools));
    let results = told["results"].as_array().unwrap();
    let errors: Vec<&Value> = results.iter().map(|result| &result["error"]).collect();
    assert_eq!(errors, [false, false, false, false, true], "{told}");
    assert_eq!(
        fs::read_to_string(consumer.path("files/out")).unwrap(),
        "hello"
    );
    let arrived = vault.path("portal/incoming/alice/in");
    assert_eq!(fs::read_to_string(arrived).unwrap(), "handed in");
    assert!(results[2].to_string().contains("naïve ✓"), "{told}");
    let types = ["text", "image", "audio", "resource", "resource_link"];
    assert_eq!(results[2]["types"], json!(types));
}

#[test]
fn python_uses_all_providers() {
    uses_all_providers(python("initialize"), "2025-11-25");
}

#[test]
fn python_that_asks_first_uses_all_providers() {
    uses_all_providers(python("auto"), "2026-07-28");
}

#[test]
fn typescript_1_uses_all_providers() {
    uses_all_providers(node("sdk"), "2025-11-25");
}

#[test]
fn typescript_2_uses_all_providers() {
    uses_all_providers(node("legacy"), "2025-11-25");
}

#[test]
fn typescript_2_that_asks_first_uses_all_providers() {
    uses_all_providers(node("auto"), "2026-07-28");
}
