//! Tests whole files, both accepted and refused ones.

mod devices;
mod disk;
mod documents;
mod domains;
mod helps;
mod machines;
mod model;
mod mutated;
mod policies;
mod sections;
mod services;
mod tools;
mod volumes;
mod yaml;

use super::*;
use crate::diagnostic::{Severity, draw};
use crate::name::ToolName;

/// The quick start from the README without its `pro` domain, which its services name.
const QUICK_START: &str = include_str!("../../tests/fixtures/quick-start.yml");

/// The domain that is missing from [`QUICK_START`].
const PRO: &str = include_str!("../../tests/fixtures/quick-start-pro.yml");

/// The repository's example, with every key.
const EXAMPLE: &str = include_str!("../../infra.example.yml");

#[track_caller]
fn good(text: &str) -> ReadInfra {
    match parse("infra.yml", text) {
        Ok(read) => read,
        Err(Faults(faults)) => panic!("{}", draw(&faults, false)),
    }
}

#[test]
fn the_quick_start_of_the_documentation_has_one_fault() {
    let Err(Faults(faults)) = parse("infra.yml", QUICK_START) else {
        panic!("read")
    };
    let drawn = "\
error[unknown-consumer]: `pro-dev` is not a machine in this file
  --> infra.yml:11:35
   |
11 |             consumers: [work-dev, pro-dev]
   |                                   ^^^^^^^
   = help: declare the machine in a domain, or take it off the list";
    assert_eq!(draw(&faults, false), drawn);
}

#[test]
fn the_quick_start_with_a_pro_domain_is_read() {
    let read = good(&format!("{QUICK_START}{PRO}"));
    assert_eq!(read.warnings, []);
    let infra = read.infra;
    let names: Vec<_> = infra.machines().map(|(_, m)| m.name.as_str()).collect();
    assert_eq!(names, ["vault-signer", "work-dev", "pro-dev"]);
    let (domain, signer) = infra.machine("vault-signer").unwrap();
    assert_eq!(domain.network.name, "net-vault");
    assert_eq!(domain.network.subnet.to_string(), "10.100.0.0");
    assert_eq!(domain.network.gateway.to_string(), "10.100.0.254");
    assert_eq!(signer.os_image, DEFAULT_IMAGE);
    assert_eq!(signer.place.short(), "infra.yml:5");
    let [sign, clipboard] = signer.services.as_slice() else {
        panic!("two services")
    };
    assert_eq!(sign.tool, ToolName::GpgSign.into());
    assert_eq!(sign.consumers.len(), 2);
    assert_eq!(clipboard.place.short(), "infra.yml:12");
}

#[test]
fn the_example_is_read_without_a_warning() {
    let read = good(EXAMPLE);
    assert_eq!(draw(&read.warnings, false), "");
}

/// Returns every finding as `code line:column marked-text`; a warning is prefixed with `warning `.
fn found(text: &str) -> Vec<String> {
    let all = match parse("infra.yml", text) {
        Ok(read) => read.warnings,
        Err(Faults(all)) => all,
    };
    all.iter().map(in_short).collect()
}

fn in_short(found: &Diagnostic) -> String {
    let place = found.place.as_ref().unwrap();
    let marked = place.source.text.get(place.bytes.clone()).unwrap();
    let marked = marked.replace('\u{1b}', r"\u{1b}");
    let severity = match found.severity {
        Severity::Error => "",
        Severity::Warning => "warning ",
    };
    let (line, column) = (place.line, place.column);
    format!("{severity}{} {line}:{column} {marked}", found.code)
}

/// A file, and the short forms of all its findings.
type Case = (&'static str, &'static [&'static str]);

#[track_caller]
fn check(cases: &[Case]) {
    for (text, expected) in cases {
        assert_eq!(found(text), *expected, "{text}");
    }
}

#[test]
fn a_fixed_argument_is_named_once_and_the_help_says_what_yaml_read() {
    let text = "domains:\n  a:\n    subnet_id: 0\n    machines:\n      m:\n        services:\n          \
                - {name: s, tool: gpg_sign, with: {key_id: 1234567890123456}}\n";
    let Err(Faults(faults)) = parse("infra.yml", text) else {
        panic!("read")
    };
    let drawn = draw(&faults, false);
    assert!(
        drawn.starts_with("error[invalid-argument]: `key_id` must be "),
        "{drawn}"
    );
    let help = "= help: YAML reads a number or Boolean here; quote it to make it text: `\"1234567890123456\"`";
    assert!(drawn.ends_with(help), "{drawn}");
}
