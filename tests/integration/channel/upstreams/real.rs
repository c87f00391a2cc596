//! Servers that nobody here wrote.

use std::fs;
use std::process::Command;

use serde_json::{Value, json};

use super::{listed, package, pin, provider};
use crate::channel::text;
use crate::channel::world::World;
use crate::harness::{have, have_program};

/// A provider of these tools of a package's server, each as a service of its own name, for alice; `None` without it.
fn of_node(name: &str, rest: &str, tools: &[&str]) -> Option<World> {
    let path = package(&format!("node/node_modules/{name}/dist/index.js"));
    let node = which("node")?;
    if !have(name, path.is_file()) {
        return None;
    }
    of(&format!("{node}, {}{rest}", path.display()), tools)
}

fn of_python(program: &str, rest: &str, tools: &[&str]) -> Option<World> {
    let path = package(&format!("python/bin/{program}"));
    if !have(program, path.is_file()) {
        return None;
    }
    of(&format!("{}{rest}", path.display()), tools)
}

fn of(command: &str, tools: &[&str]) -> Option<World> {
    let services = tools.iter().map(|tool| {
        let name = tool.replace('-', "_");
        format!("{{name: {name}, tool: real/{tool}, consumers: [alice]}}")
    });
    let services: Vec<String> = services.collect();
    let services: Vec<&str> = services.iter().map(String::as_str).collect();
    provider(&format!("{{real: {{command: [{command}]}}}}"), &services)
}

fn which(program: &str) -> Option<String> {
    if !have_program(program) {
        return None;
    }
    let find = format!("command -v {program}");
    let found = Command::new("sh").args(["-c", &find]).output().unwrap();
    Some(String::from_utf8(found.stdout).unwrap().trim().to_owned())
}

/// Exports the services of the world's `infra.yml` and puts them in force.
fn export(world: &World) {
    let exported = world.run(&["policy", "export", "--machine", "vault"]);
    assert_eq!(exported.stderr, "");
    world.policy_bytes(exported.stdout.as_bytes());
}

#[test]
fn everything_passes() {
    let tools = [
        "echo",
        "get-sum",
        "get-tiny-image",
        "get-structured-content",
        "trigger-long-running-operation",
    ];
    let Some(world) = of_node("@modelcontextprotocol/server-everything", "", &tools) else {
        return;
    };
    let server = world.listen();
    let mut alice = server.peer("alice");
    let listed = alice.list();
    let count = listed["result"]["tools"].as_array().unwrap().len();
    assert_eq!(count, tools.len());
    let echo = alice.call("echo", &json!({"message": "hi"}));
    assert_eq!(text(&echo), "Echo: hi");
    let sum = alice.call("get_sum", &json!({"a": 2, "b": 3}));
    assert!(text(&sum).contains('5'), "{sum}");
    let image = alice.call("get_tiny_image", &json!({}));
    let content = image["result"]["content"].as_array().unwrap();
    let is_png = |block: &Value| block["type"] == "image" && block["mimeType"] == "image/png";
    assert!(content.iter().any(is_png), "{image}");
    let weather = alice.call("get_structured_content", &json!({"location": "New York"}));
    let temperature = &weather["result"]["structuredContent"]["temperature"];
    assert!(temperature.is_number(), "{weather}");
    // Its own arguments are its own to check.
    let wrong = alice.call("get_sum", &json!({"a": "two"}));
    let is_refused = wrong["result"]["isError"] == true || wrong.get("error").is_some();
    assert!(is_refused, "{wrong}");
    let long = json!({"jsonrpc": "2.0", "id": 9, "method": "tools/call", "params": {
        "name": "trigger_long_running_operation", "arguments": {"duration": 1, "steps": 2}, "_meta": {"progressToken": 5},
    }});
    alice.send(long.to_string());
    let mut reports = 0;
    loop {
        let message = alice.receive();
        if message["method"] != "notifications/progress" {
            text(&message);
            break;
        }
        assert_eq!(message["params"]["progressToken"], 5);
        reports += 1;
    }
    assert!(reports > 0);
}

#[test]
fn files_below_a_folder_are_read_and_written() {
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path().to_str().unwrap();
    let Some(world) = of_node(
        "@modelcontextprotocol/server-filesystem",
        &format!(", {here}"),
        &["list_directory", "write_file", "read_text_file"],
    ) else {
        return;
    };
    let server = world.listen();
    let mut alice = server.peer("alice");
    let path = format!("{here}/a.txt");
    let write = json!({"path": path, "content": "hello"});
    text(&alice.call("write_file", &write));
    assert_eq!(fs::read_to_string(&path).unwrap(), "hello");
    let listed = alice.call("list_directory", &json!({"path": here}));
    assert!(text(&listed).contains("a.txt"));
    let read = alice.call("read_text_file", &json!({"path": path}));
    assert_eq!(text(&read), "hello");
    let outside = alice.call("read_text_file", &json!({"path": "/etc/passwd"}));
    assert_eq!(outside["result"]["isError"], true, "{outside}");
}

#[test]
fn a_newer_version_that_describes_its_tools_differently_must_be_accepted() {
    let tools = ["create_entities", "read_graph"];
    let Some(world) = of_node("server-memory-before", "", &tools) else {
        return;
    };
    let server = world.listen();
    let mut alice = server.peer("alice");
    let entity = json!({"entities": [{"name": "a", "entityType": "t", "observations": ["o"]}]});
    text(&alice.call("create_entities", &entity));
    let graph = alice.call("read_graph", &json!({}));
    let graph: Value = serde_json::from_str(text(&graph)).unwrap();
    assert_eq!(graph["entities"][0]["name"], "a");
    let infra = fs::read_to_string(world.path("infra.yml")).unwrap();
    let newer = infra.replace(
        "server-memory-before",
        "@modelcontextprotocol/server-memory",
    );
    assert_ne!(newer, infra);
    fs::write(world.path("infra.yml"), newer).unwrap();
    export(&world);
    let refused = alice.call("read_graph", &json!({}));
    let why = refused["result"]["content"][0]["text"].as_str().unwrap();
    assert!(
        why.starts_with("the definition of `read_graph` has changed"),
        "{why}"
    );
    // It is no longer listed; the other one has not been asked for.
    assert_eq!(listed(&server), ["create_entities"]);
    assert_eq!(pin(&world), tools);
    export(&world);
    assert_eq!(listed(&server), tools);
    text(&alice.call("read_graph", &json!({})));
}

#[test]
fn a_repository_of_another_machine_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let repository = folder.path().to_str().unwrap();
    let make = format!(
        "cd {repository} && git init -q && git -c user.name=A -c user.email=a@b commit -q --allow-empty -m First"
    );
    assert!(
        Command::new("sh")
            .args(["-c", &make])
            .status()
            .unwrap()
            .success()
    );
    let rest = format!(", --repository, {repository}");
    let Some(world) = of_python("mcp-server-git", &rest, &["git_status", "git_log"]) else {
        return;
    };
    let server = world.listen();
    let mut alice = server.peer("alice");
    let log = alice.call("git_log", &json!({"repo_path": repository}));
    assert!(text(&log).contains("First"), "{log}");
    text(&alice.call("git_status", &json!({"repo_path": repository})));
}

#[test]
fn the_time_of_another_machine_is_told() {
    let tools = ["get_current_time", "convert_time"];
    let Some(world) = of_python("mcp-server-time", "", &tools) else {
        return;
    };
    let server = world.listen();
    let mut alice = server.peer("alice");
    let now = alice.call("get_current_time", &json!({"timezone": "Europe/Paris"}));
    let now: Value = serde_json::from_str(text(&now)).unwrap();
    assert_eq!(now["timezone"], "Europe/Paris");
    let wrong = alice.call("get_current_time", &json!({"timezone": "Nowhere"}));
    let is_refused = wrong["result"]["isError"] == true || wrong.get("error").is_some();
    assert!(is_refused, "{wrong}");
}
