//! Tests that the documentation agrees with the source.

use std::collections::BTreeSet;

use super::{EXAMPLE, parse};
use crate::diagnostic::Faults;
use crate::infra::findings::Code;

const REFERENCE: &str = include_str!("../../../docs/infra.md");
const DIAGNOSTICS: &str = include_str!("../../../docs/diagnostics.md");

#[test]
fn every_code_is_a_heading_and_every_heading_a_code() {
    // The edge and plan modules report the other codes, which their own tests check.
    let (own, _) = DIAGNOSTICS.split_once("\n## Channels\n").unwrap();
    let headings: Vec<_> = own
        .lines()
        .filter_map(|line| line.strip_prefix("### "))
        .collect();
    let codes: Vec<_> = Code::ALL.iter().map(|code| code.as_str()).collect();
    assert_eq!(headings, codes);
}

#[test]
fn every_code_is_provoked_by_a_test() {
    let tests = [
        include_str!("../tests.rs"),
        include_str!("devices.rs"),
        include_str!("disk.rs"),
        include_str!("domains.rs"),
        include_str!("machines.rs"),
        include_str!("model.rs"),
        include_str!("policies.rs"),
        include_str!("sections.rs"),
        include_str!("services.rs"),
        include_str!("tools.rs"),
        include_str!("../pins.rs"),
        include_str!("volumes.rs"),
        include_str!("yaml.rs"),
    ];
    for code in Code::ALL {
        let code = code.as_str();
        let in_drawing = format!("[{code}]");
        let in_table = format!("{code} ");
        let alone = format!("\"{code}\"");
        let named = |test: &&str| {
            test.contains(&in_drawing) || test.contains(&in_table) || test.contains(&alone)
        };
        assert!(tests.iter().any(named), "{code}");
    }
}

/// Every section, each with an unknown key.
const ODD_KEYS: &str = "
q9: 1
global: {q9: 1, addressing: {q9: 1}, resource_policy: {q9: 1, host_reserve: {q9: 1}}}
domains:
  d:
    q9: 1
    file_portal: {q9: 1}
    profiles: {p: {q9: 1}}
    machines:
      m:
        q9: 1
        persistent_data: {v: {q9: 1, path: /v}}
        storage_volumes: {v: {q9: 1}}
        services: [{q9: 1, name: s, tool: gpg_sign, limits: {q9: 1}}]
        mcp: {q9: 1}
  e: {subnet_id: 5}
shared_volumes: {v: {q9: 1, consumers: {m: ro}}}
network_policies: [{q9: 1, from: d, to: e, ports: all}]
";

#[test]
fn the_example_and_the_reference_name_every_key() {
    let Err(Faults(found)) = parse("infra.yml", ODD_KEYS) else {
        panic!("read")
    };
    assert_eq!(found.len(), ODD_KEYS.matches("q9").count(), "{found:?}");
    let mut keys = BTreeSet::new();
    for finding in &found {
        let list = finding.help.as_deref().unwrap();
        keys.extend(list.strip_prefix("the keys are: ").unwrap().split(", "));
    }
    assert!(keys.contains("consumers") && keys.contains("run_as") && keys.len() > 50);
    for key in keys {
        assert!(
            EXAMPLE.contains(&format!("{key}:")),
            "infra.example.yml: {key}"
        );
        assert!(
            REFERENCE.contains(&format!("`{key}`")),
            "docs/infra.md: {key}"
        );
    }
}
