//! The documents agree with the source.

use super::super::code::Code;

const DIAGNOSTICS: &str = include_str!("../../../docs/diagnostics.md");

#[test]
fn every_code_is_a_heading_and_every_heading_a_code() {
    let headings: Vec<_> = DIAGNOSTICS
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
