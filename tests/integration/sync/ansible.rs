//! The real Ansible and PyYAML read the files that `sync` writes, and get the declared values.

use std::fmt::Write as _;
use std::io::Write as _;
use std::process::{Command, Stdio};

use serde_json::{Map, Value, json};

use super::yaml::NASTY;
use crate::harness::python;
use crate::harness::{Anklume, scrub};

/// Unusual texts; other tests cover those that YAML cannot hold or that infra.yml refuses in a description.
fn texts() -> Vec<&'static str> {
    // Ansible itself interprets braces as templates.
    let plain = NASTY
        .iter()
        .filter(|text| !text.contains("{{") && !text.contains("{%"));
    plain.copied().collect()
}

/// One machine for each unusual text, which is its description, a value in its configuration and one of its roles.
fn declaration() -> (String, Map<String, Value>) {
    let mut text = "project_name: demo\ndomains:\n".to_owned();
    let mut expected = Map::new();
    for (number, nasty) in texts().into_iter().enumerate() {
        if number % 50 == 0 {
            let domain = number / 50;
            writeln!(text, "  d{domain}:\n    subnet_id: {domain}\n    machines:").unwrap();
        }
        // JSON is YAML, except for characters that a YAML reader takes for line breaks or considers unprintable.
        let quoted = ascii_json(nasty);
        writeln!(text, "      m{number}:\n        description: {quoted}\n        roles: [{quoted}, {{k: {quoted}}}]").unwrap();
        writeln!(text, "        config: {{user.x: {quoted}}}").unwrap();
        let variables = json!({
            "instance_description": nasty,
            "instance_roles": [nasty, { "k": nasty }],
            "instance_config": { "user.x": nasty },
            "instance_name": format!("m{number}"),
            "instance_ephemeral": false,
        });
        expected.insert(format!("m{number}"), variables);
    }
    (text, expected)
}

fn ascii_json(text: &str) -> String {
    let mut quoted = String::from("\"");
    for character in text.chars() {
        match character {
            ' '..='~' if character != '"' && character != '\\' => quoted.push(character),
            other => write!(quoted, "\\U{:08x}", u32::from(other)).unwrap(),
        }
    }
    quoted + "\""
}

#[test]
fn ansible_and_pyyaml_get_what_was_declared() {
    let (Some(inventory), Some(interpreter)) = (python("ansible-inventory"), python("python3"))
    else {
        return;
    };
    let (text, expected) = declaration();
    let ran = Anklume::new().infra(&text).args(["sync", "--quiet"]).run();
    assert_eq!((ran.status, ran.stderr.as_str()), (0, ""));
    let mut list = Command::new(inventory);
    scrub(&mut list, ran.folder.path());
    let listed = list
        .args(["-i", "inventory", "--playbook-dir", ".", "--list"])
        .current_dir(ran.folder.path())
        .output()
        .unwrap();
    assert!(
        listed.status.success(),
        "{}",
        String::from_utf8_lossy(&listed.stderr)
    );
    let answer = ran.folder.path().join("listed.json");
    std::fs::write(&answer, &listed.stdout).unwrap();
    let mut compare = Command::new(interpreter)
        .arg(concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/tests/python/same_values.py"
        ))
        .args([ran.folder.path(), answer.as_path()])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    write!(compare.stdin.take().unwrap(), "{}", Value::Object(expected)).unwrap();
    let output = compare.wait_with_output().unwrap();
    assert!(output.status.success());
    assert_eq!(String::from_utf8(output.stdout).unwrap(), "");
}
