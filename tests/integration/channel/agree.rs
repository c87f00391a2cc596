//! For any policy, the list that a caller gets, the calls that it may make, and the answers of `policy check` agree.

use std::collections::BTreeSet;

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use serde_json::json;

use super::world::World;
use super::{names, text};

/// The machines that a service may name.
const CALLERS: [&str; 4] = ["alice", "bob", "carol", "c1"];
/// The names of the services; a policy uses one or more of them, in this order.
const SERVICES: [&str; 6] = ["a", "b", "c", "d", "e", "f"];
/// Number of policies to try.
const POLICIES: u32 = 24;

/// The consumers of each service.
fn policies() -> impl Strategy<Value = Vec<Vec<&'static str>>> {
    let consumers = proptest::sample::subsequence(CALLERS.to_vec(), 0..=CALLERS.len());
    proptest::collection::vec(consumers, 1..=SERVICES.len())
}

/// The services of `infra.yml`, one per line.
fn lines(policy: &[Vec<&str>]) -> Vec<String> {
    let services = SERVICES.iter().zip(policy);
    services
        .map(|(name, consumers)| {
            let consumers = consumers.join(", ");
            format!("{{name: {name}, tool: clipboard_set, consumers: [{consumers}]}}")
        })
        .collect()
}

#[test]
fn list_call_and_policy_check_agree_over_the_wire_for_any_policy() {
    let world = World::new(&["{name: a, tool: clipboard_set, consumers: [alice]}"]);
    let server = world.listen();
    let config = Config {
        cases: POLICIES,
        failure_persistence: None,
        ..Config::default()
    };
    let granted = std::cell::Cell::new(0);
    let done = TestRunner::new(config).run(&policies(), |policy| {
        let lines = lines(&policy);
        let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
        world.policy(&lines);
        let ran = world.run(&["policy", "list", "--format", "json"]);
        prop_assert_eq!(ran.status, 0, "{}", ran.stderr);
        for caller in CALLERS {
            let declared: BTreeSet<&str> = SERVICES
                .into_iter()
                .zip(&policy)
                .filter(|(_, consumers)| consumers.contains(&caller))
                .map(|(name, _)| name)
                .collect();
            granted.set(granted.get() + declared.len());
            for service in SERVICES {
                let ran = world.run(&["policy", "check", "--caller", caller, "--service", service]);
                let allowed = declared.contains(service);
                prop_assert_eq!(
                    ran.status,
                    i32::from(!allowed),
                    "{} {}: {:?}",
                    caller,
                    service,
                    ran
                );
            }
            // A machine that no service names has no socket.
            if !policy.iter().any(|consumers| consumers.contains(&caller)) {
                super::world::until("its socket goes", || !server.socket(caller).exists());
                continue;
            }
            super::world::until("its socket comes", || server.socket(caller).exists());
            let mut peer = server.peer(caller);
            let listed = peer.list();
            let listed: BTreeSet<&str> = names(&listed).into_iter().collect();
            prop_assert_eq!(&listed, &declared, "{}", caller);
            for service in SERVICES {
                let answer = peer.call(service, &json!({"content": service}));
                if declared.contains(service) {
                    text(&answer);
                    prop_assert_eq!(world.clipboard(), Some(service.to_owned()));
                } else {
                    let unknown =
                        json!({"code": -32602, "message": format!("Unknown tool: {service}")});
                    prop_assert_eq!(&answer["error"], &unknown);
                }
            }
        }
        Ok(())
    });
    assert!(done.is_ok(), "{done:?}");
    // Both answers occurred.
    assert!(granted.get() > 20, "{granted:?}");
    server.end();
}
