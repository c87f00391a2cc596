//! The conditions of services, as a caller meets them.

use serde_json::{Value, json};

use super::world::World;
use super::{text, upstreams};

const TOOLS: &str = "{tools: {deploy: {description: Deploys, command: [/bin/echo, \"{env}\", \"{path}\"], arguments: {env: {type: string, \
    description: Where}, path: {type: string, optional: true}}}}}";

/// A provider of that tool with these services.
fn provider(services: &[&str]) -> World {
    let mut world = World::empty();
    world.declare(TOOLS, services);
    world
}

/// A service `run` of a tool of the machine's own, with these conditions.
fn service(conditions: &str) -> String {
    format!("{{name: run, tool: deploy, consumers: [alice], {conditions}}}")
}

#[test]
fn a_caller_sees_the_conditions_and_is_told_which_one_it_breaks() {
    let conditions = "where: {env: {enum: [staging, prod], max_length: 7}, path: {path_under: /srv/app, absent: true}}";
    let world = provider(&[&service(conditions)]);
    let server = world.listen();
    let mut alice = server.peer("alice");
    let listed = alice.list();
    assert_eq!(
        listed["result"]["tools"][0]["inputSchema"],
        json!({
            "type": "object",
            "properties": {
                "env": {"type": "string", "description": "Where", "enum": ["staging", "prod"], "maxLength": 7},
                "path": {"type": "string", "maxLength": 1000, "description": "It must be `/srv/app` or a path below it."},
            },
            "required": ["env"],
            "additionalProperties": false,
        })
    );
    let answer = alice.call("run", &json!({"env": "prod", "path": "/srv//app/x"}));
    assert_eq!(text(&answer), "prod /srv//app/x\n");
    assert_eq!(
        text(&alice.call("run", &json!({"env": "prod", "path": null}))),
        "prod\n"
    );
    let mut refused = |arguments: Value, why: &str| {
        let answer = alice.call("run", &arguments);
        assert_eq!(answer["result"]["isError"], true, "{answer}");
        assert_eq!(answer["result"]["content"][0]["text"], why);
    };
    let env = "`env` must be one of \"staging\", \"prod\" (`enum`)";
    refused(json!({"env": "test"}), env);
    let missing = "`env` must be sent (`enum`)";
    refused(json!({}), missing);
    refused(json!({"env": null}), missing);
    refused(json!({"env": ["prod"]}), env);
    let path = "`path` must be `/srv/app` or a path below it (`path_under`)";
    refused(json!({"env": "prod", "path": "/srv/app/../x"}), path);
    refused(json!({"env": "prod", "path": "/srv/appx"}), path);
    server.end();
    let calls = world.logged("call");
    let last = calls.last().unwrap();
    assert_eq!(
        (&last["decision"], &last["reason"]),
        (&json!("refused"), &json!(path))
    );
}

#[test]
fn only_listed_arguments_are_sent_and_listed() {
    let world = provider(&[&service("only: [env]")]);
    let server = world.listen();
    let mut alice = server.peer("alice");
    let listed = alice.list();
    let properties = listed["result"]["tools"][0]["inputSchema"]["properties"].as_object();
    assert_eq!(properties.unwrap().keys().collect::<Vec<_>>(), ["env"]);
    assert_eq!(text(&alice.call("run", &json!({"env": "prod"}))), "prod\n");
    let answer = alice.call("run", &json!({"env": "prod", "path": "x", "other": 1}));
    let why = "`other` may not be sent: the service takes only `env` (`only`)";
    assert_eq!(answer["result"]["content"][0]["text"], why);
}

#[test]
fn a_service_that_is_over_is_like_one_that_does_not_exist() {
    let over = service("expires: 2001-02-03T04:05:06+01:00");
    let lasting =
        "{name: lasting, tool: deploy, consumers: [alice], expires: 9999-01-01T00:00:00Z}";
    let world = provider(&[&over, lasting]);
    let server = world.listen();
    let mut alice = server.peer("alice");
    let listed = alice.list();
    let tools = listed["result"]["tools"].as_array().unwrap();
    assert_eq!((tools.len(), &tools[0]["name"]), (1, &json!("lasting")));
    let missing = alice.call("nothing", &json!({"env": "prod"}));
    let expired = alice.call("run", &json!({"env": "prod"}));
    assert_eq!(missing["error"]["code"], expired["error"]["code"]);
    assert_eq!(expired["error"]["message"], "Unknown tool: run");
    assert_eq!(
        text(&alice.call("lasting", &json!({"env": "prod"}))),
        "prod\n"
    );
    server.end();
    let calls = world.logged("call");
    assert_eq!(
        calls[1]["reason"],
        "the service expired at 2001-02-03T03:05:06Z"
    );
}

#[test]
fn only_is_about_what_a_caller_sends_and_not_about_what_is_fixed() {
    let service = "{name: run, tool: deploy, consumers: [alice], with: {path: /srv}, only: [env]}";
    let world = provider(&[service]);
    let server = world.listen();
    let mut alice = server.peer("alice");
    let answer = alice.call("run", &json!({"env": "prod"}));
    assert_eq!(text(&answer), "prod /srv\n");
    // A fixed argument may be repeated.
    let answer = alice.call("run", &json!({"env": "prod", "path": "/srv"}));
    assert_eq!(text(&answer), "prod /srv\n");
}

#[test]
fn a_rule_has_no_other_spelling_to_an_upstream() {
    let service =
        "{name: run, tool: fake/echo, consumers: [alice], where: {owner: {enum: [acme]}}}";
    let Some(world) = upstreams::provider("{fake: {command: [FAKE]}}", &[service]) else {
        return;
    };
    let server = world.listen();
    let mut alice = server.peer("alice");
    let schema = alice.list()["result"]["tools"][0]["inputSchema"].take();
    assert_eq!(schema["properties"]["owner"]["enum"], json!(["acme"]));
    assert_eq!(schema["additionalProperties"], false);
    text(&alice.call("run", &json!({"owner": "acme", "text": "x"})));
    let mut refused = |arguments: Value, why: &str| {
        let answer = alice.call("run", &arguments);
        assert_eq!(answer["result"]["content"][0]["text"], why, "{answer}");
        assert_eq!(answer["result"]["isError"], true);
    };
    refused(
        json!({"owner": "acme", "Owner": "other"}),
        "the caller may not set `Owner`",
    );
    refused(json!({"Owner": "other"}), "the caller may not set `Owner`");
    refused(
        json!({"owner": "other"}),
        "`owner` must be one of \"acme\" (`enum`)",
    );
}

#[test]
fn a_built_in_tool_has_conditions_too() {
    let service = "{name: push, tool: file_accept, consumers: [alice], where: {path: {path_under: in}, data: {max_bytes: 8}}, only: [path, data]}";
    let world = World::new(&[service]);
    let server = world.listen();
    let mut alice = server.peer("alice");
    let schema = alice.list()["result"]["tools"][0]["inputSchema"].take();
    let arguments = schema["properties"].as_object().unwrap();
    assert_eq!(arguments.keys().collect::<Vec<_>>(), ["path", "data"]);
    assert_eq!(schema["properties"]["data"]["maxLength"], 8);
    text(&alice.call("push", &json!({"path": "in/a", "data": "aGVsbG8="})));
    let mut refused = |arguments: Value, why: &str| {
        let answer = alice.call("push", &arguments);
        assert_eq!(answer["result"]["content"][0]["text"], why, "{answer}");
    };
    let path = "`path` must be `in` or a path below it (`path_under`)";
    refused(json!({"path": "out/a", "data": "aGk="}), path);
    refused(json!({"path": "in/../a", "data": "aGk="}), path);
    refused(
        json!({"path": "in/b", "data": "aGVsbG8gd29ybGQ="}),
        "`data` must be text of at most 8 bytes (`max_bytes`)",
    );
    let only = "`offset` may not be sent: the service takes only `data`, `path` (`only`)";
    refused(json!({"path": "in/b", "data": "aGk=", "offset": 0}), only);
}
