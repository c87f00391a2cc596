//! The socket identifies the caller: no client can pose as another, and the list shows exactly the callable services.

use std::collections::BTreeSet;

use anklume::name::{MachineName, ToolName};
use anklume::policy::{Caller, Decision, Denial, Request, decide, offers};
use anklume::services::Services;
use proptest::prelude::*;
use serde_json::{Map, Value, json};

use super::peer::call;
use super::world::World;
use super::{names, text};

const SERVICES: [&str; 4] = [
    "{name: copy, tool: clipboard_set, consumers: [alice]}",
    "{name: paste, tool: clipboard_get, consumers: [bob]}",
    "{name: both, tool: clipboard_get, consumers: [alice, bob]}",
    "{name: closed, tool: clipboard_get, consumers: []}",
];

/// A request in the format of the stateless era.
fn modern(id: u32, method: &str, mut params: Value) -> String {
    params["_meta"]["io.modelcontextprotocol/protocolVersion"] = "2026-07-28".into();
    params["_meta"]["io.modelcontextprotocol/clientInfo"] = forged();
    params["_meta"]["io.modelcontextprotocol/clientCapabilities"] = json!({});
    json!({"jsonrpc": "2.0", "id": id, "method": method, "params": params}).to_string()
}

/// Every way in which a client might claim to be bob or the operator.
fn forged() -> Value {
    json!({
        "name": "bob", "version": "1", "title": "bob", "caller": "bob", "operator": true,
        "uid": 0, "user": "operator", "machine": "bob", "consumer": "bob",
    })
}

#[test]
fn nothing_that_a_client_says_makes_it_another() {
    let world = World::new(&SERVICES);
    let server = world.listen();
    let before = {
        let mut honest = server.peer("alice");
        (honest.list(), honest.call("paste", &json!({})))
    };
    let mut alice = server.peer("alice");
    let hello = json!({"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": {
        "protocolVersion": "2025-11-25", "capabilities": {"caller": forged(), "experimental": {"caller": forged()}},
        "clientInfo": forged(), "caller": "bob", "_meta": forged(),
    }, "caller": "bob"});
    assert!(alice.ask(hello.to_string())["result"].is_object());
    let around = |method: &str, mut params: Value| {
        let Value::Object(said) = forged() else {
            unreachable!()
        };
        let own = params.as_object_mut().unwrap();
        for (key, value) in said {
            own.entry(key).or_insert(value);
        }
        own.insert("_meta".to_owned(), forged());
        let request = json!({"jsonrpc": "2.0", "id": 1, "method": method, "params": params,
            "caller": "bob", "_meta": forged(), "clientInfo": forged()});
        request.to_string()
    };
    // The older era: the list and the refusals are the same as for an honest alice.
    let mut listing = json!({});
    for key in ["caller", "consumer", "operator"] {
        listing[key] = "bob".into();
    }
    assert_eq!(alice.ask(around("tools/list", listing)), before.0);
    let forged_call = |arguments: Value| json!({"name": "paste", "arguments": arguments});
    assert_eq!(
        alice.ask(around("tools/call", forged_call(json!({})))),
        before.1
    );
    assert_eq!(
        alice.ask(around("tools/call", forged_call(forged()))),
        before.1
    );
    for name in ["bob/paste", "paste@bob", "clipboard_get", "operator"] {
        let answer = alice.call(name, &json!({}));
        let message = format!("Unknown tool: {name}");
        assert_eq!(answer["error"]["message"], *message, "{name}");
    }
    // The stateless era.
    let listed = alice.ask(modern(2, "tools/list", json!({"caller": "bob"})));
    assert_eq!(names(&listed), ["copy", "both"]);
    let refused = alice.ask(modern(
        3,
        "tools/call",
        json!({"name": "paste", "arguments": forged(), "caller": "bob"}),
    ));
    assert_eq!(refused["error"], before.1["error"]);
    drop(alice);
    server.end();
    let mut callers = world.logged("call");
    callers.dedup_by_key(|line| line["caller"].clone());
    assert_eq!(callers.len(), 1);
    assert_eq!(callers[0]["caller"], "alice");
}

#[test]
fn refused_and_unknown_are_one_answer_byte_for_byte() {
    let world = World::new(&SERVICES);
    let server = world.listen();
    let mut alice = server.peer("alice");
    let mut answer = |name: &str, arguments: &Value| {
        alice.send(call(1, name, arguments));
        alice.line()
    };
    let expected = "{\"jsonrpc\":\"2.0\",\"id\":1,\"error\":{\"code\":-32602,\"message\":\"Unknown tool: NAME\"}}\n";
    for arguments in [json!({}), json!({"key_id": "x"}), json!({"content": 1})] {
        for name in ["paste", "closed", "nowhere", "clipboard_set", "PASTE"] {
            let expected = expected.replace("NAME", name);
            assert_eq!(answer(name, &arguments), expected);
        }
    }
}

#[test]
fn what_is_listed_over_the_wire_is_what_is_not_refused() {
    let world = World::new(&SERVICES);
    let server = world.listen();
    let every = ["copy", "paste", "both", "closed", "nowhere"]
        .into_iter()
        .chain(ToolName::ALL.map(ToolName::as_str));
    for consumer in ["alice", "bob"] {
        let mut peer = server.peer(consumer);
        let listed = peer.list();
        let listed: BTreeSet<&str> = names(&listed).into_iter().collect();
        let allowed: BTreeSet<&str> = every
            .clone()
            .filter(|name| {
                let answer = peer.call(name, &json!({"content": "x"}));
                // A failure caused by the arguments is not a refusal.
                answer["result"].is_object()
            })
            .collect();
        assert_eq!(listed, allowed, "{consumer}");
    }
}

#[test]
fn one_caller_on_stdio_is_served_as_on_its_socket() {
    let world = World::new(&SERVICES);
    let args = [
        "mcp",
        "serve",
        "--caller",
        "bob",
        "--services",
        "services.json",
    ];
    let list = r#"{"jsonrpc":"2.0","id":1,"method":"tools/list"}"#;
    let input = [
        list.to_owned(),
        call(2, "copy", &json!({"content": "x"})),
        call(3, "both", &json!({})),
    ];
    let ran = world.run_with(&args, input.join("\n").as_bytes());
    assert_eq!((ran.status, ran.stderr.as_str()), (0, ""));
    let mut answers: Vec<Value> = ran
        .stdout
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    answers.sort_by_key(|answer| answer["id"].as_u64());
    let [listed, refused, run] = answers.as_slice() else {
        panic!("{answers:?}");
    };
    let server = world.listen();
    assert_eq!(*listed, server.peer("bob").list());
    assert_eq!(names(listed), ["paste", "both"]);
    assert_eq!(
        refused["error"],
        json!({"code": -32602, "message": "Unknown tool: copy"})
    );
    assert!(run["result"].is_object(), "{run}");
    assert_eq!(world.clipboard(), None);
    let told: Vec<_> = world
        .logged("call")
        .iter()
        .map(|line| (line["caller"].clone(), line["decision"].clone()))
        .collect();
    assert!(told.contains(&("bob".into(), "refused".into())));
    assert!(told.contains(&("bob".into(), "allowed".into())));
    // A machine that is not a consumer of any service gets an empty list; an invalid name is an error.
    let nobody = [
        "mcp",
        "serve",
        "--caller",
        "carol",
        "--services",
        "services.json",
    ];
    let ran = world.run_with(&nobody, list.as_bytes());
    assert_eq!(
        names(&serde_json::from_str(&ran.stdout).unwrap()),
        [""; 0],
        "{ran:?}"
    );
    let wrong = world.run(&["mcp", "serve", "--caller", "../bob"]);
    assert_eq!((wrong.status, wrong.stdout.as_str()), (2, ""));
    assert!(
        wrong.stderr.starts_with("error: `--caller ../bob`: "),
        "{}",
        wrong.stderr
    );
}

#[test]
fn services_without_a_consumer_to_serve_are_a_mistake() {
    let world = World::new(&SERVICES);
    let ran = world.run(&["mcp", "serve", "--services", "services.json"]);
    assert_eq!((ran.status, ran.stdout.as_str()), (2, ""));
    for option in ["--listen [<DIR>]", "--caller <MACHINE>"] {
        assert!(ran.stderr.contains(option), "{}", ran.stderr);
    }
}

#[test]
fn a_granted_service_runs_with_its_fixed_arguments_hidden() {
    let world = World::new(&[
        "{name: copy, tool: clipboard_set, consumers: [alice], with: {content: fixed}}",
    ]);
    let server = world.listen();
    let mut alice = server.peer("alice");
    let listed = alice.list();
    let tool = &listed["result"]["tools"][0];
    assert_eq!(tool["inputSchema"]["properties"], json!({}));
    assert_eq!(tool["_meta"]["anklume/tool"], "clipboard_set");
    let other = alice.call("copy", &json!({"content": "other"}));
    assert_eq!(other["result"]["isError"], true, "{other}");
    assert_eq!(world.clipboard(), None);
    text(&alice.call("copy", &json!({})));
    assert_eq!(world.clipboard().as_deref(), Some("fixed"));
}

/// Services that share a few names and consumers, so that they overlap.
fn any_services() -> impl Strategy<Value = Services> {
    let name = prop::sample::select(vec!["a", "b", "gpg_sign", "clipboard_get", "d_1"]);
    let tool = prop::sample::select(ToolName::ALL.to_vec());
    let consumers =
        prop::collection::vec(prop::sample::select(vec!["x", "y", "operator", "a"]), 0..4);
    let with = prop::option::of("[a-z]{0,3}");
    let service = (name, tool, consumers, with).prop_map(|(name, tool, consumers, with)| {
        let with: Map<String, Value> = with
            .map(|value| ("content".to_owned(), value.into()))
            .into_iter()
            .collect();
        json!({"name": name, "tool": tool.as_str(), "consumers": consumers, "with": with})
    });
    prop::collection::vec(service, 0..6).prop_map(|mut services| {
        let mut seen = BTreeSet::new();
        services.retain(|service| seen.insert(service["name"].to_string()));
        serde_json::from_value(json!({"machine": "vault", "services": services})).unwrap()
    })
}

fn any_caller() -> impl Strategy<Value = Caller> {
    let consumer = prop::sample::select(vec!["x", "y", "z", "operator", "a"]);
    prop_oneof![
        1 => Just(Caller::Operator),
        5 => consumer.prop_map(|name| Caller::Consumer(name.parse::<MachineName>().unwrap())),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, failure_persistence: None, ..ProptestConfig::default() })]

    /// A name is listed if and only if calling it is not refused, whatever the arguments; no name is listed twice.
    #[test]
    fn what_is_listed_is_exactly_what_is_not_refused(
        services in any_services(),
        caller in any_caller(),
        stray in "[a-z_/ ]{0,6}",
        content in prop::option::of("[a-z]{0,3}"),
    ) {
        let listed: Vec<String> = offers(&services, &caller, jiff::Timestamp::now()).into_iter().map(|offer| offer.name).collect();
        let every: BTreeSet<&str> = services.services.iter().map(|service| service.name.as_str())
            .chain(ToolName::ALL.map(ToolName::as_str))
            .chain([stray.as_str()])
            .collect();
        prop_assert_eq!(listed.iter().collect::<BTreeSet<_>>().len(), listed.len());
        prop_assert!(listed.iter().all(|name| every.contains(name.as_str())));
        let arguments: Map<String, Value> =
            content.map(|text| ("content".to_owned(), text.into())).into_iter().collect();
        for name in every {
            let refused = match decide(&services, Request { caller: &caller, name, arguments: &std::sync::Arc::new(arguments.clone()), now: jiff::Timestamp::now() }) {
                Decision::Allowed(grant) => {
                    prop_assert_eq!(grant.name(), name);
                    prop_assert_eq!(grant.caller(), &caller);
                    false
                }
                // The caller may use this service, but not this argument.
                Decision::Denied(Denial::FixedArgument { .. } | Denial::NotSigned(_) | Denial::Condition(_)) => false,
                Decision::Denied(
                    Denial::Unknown | Denial::NotConsumer { .. } | Denial::NoOffers { .. } | Denial::Expired { .. },
                ) => true,
            };
            prop_assert_eq!(listed.iter().any(|listed| listed == name), !refused, "{}", name);
        }
    }
}
