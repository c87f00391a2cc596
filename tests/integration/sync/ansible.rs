//! The real Ansible and PyYAML read the files that `sync` writes, and get the declared values, or `sync` refuses.

use std::fmt::Write as _;
use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

use proptest::prelude::*;
use proptest::strategy::ValueTree as _;
use proptest::test_runner::TestRunner;
use serde_json::{Map, Value, json};

use super::yaml::NASTY;
use super::{again, tree};
use crate::harness::{Anklume, Ran, have, python, scrub};

/// Variables of a machine that the declarations below set.
const VARIABLES: [&str; 6] = [
    "instance_name",
    "instance_description",
    "instance_config",
    "instance_roles",
    "instance_ephemeral",
    "domain_description",
];

/// One machine for every ten texts, which are its description and values in its configuration and roles.
fn declaration(texts: &[&str]) -> (String, Map<String, Value>) {
    let mut text = "project_name: demo\ndomains:\n".to_owned();
    let mut expected = Map::new();
    for (number, texts) in texts.chunks(10).enumerate() {
        // JSON is YAML, except for characters that a YAML reader takes for line breaks or considers unprintable.
        let quoted: Vec<String> = texts.iter().map(|text| ascii_json(text)).collect();
        let config = quoted.iter().enumerate();
        let config: Vec<_> = config
            .map(|(key, value)| format!("user.x{key}: {value}"))
            .collect();
        let (all, config) = (quoted.join(", "), config.join(", "));
        let (first, first_text) = (quoted.first().unwrap(), texts.first().unwrap());
        writeln!(
            text,
            "  d{number}:\n    subnet_id: {number}\n    description: {first}\n    machines:\n      m{number}:\n        \
             description: {first}\n        roles: [{all}, {{k: {first}}}]\n        config: {{{config}}}"
        )
        .unwrap();
        let config = texts.iter().enumerate();
        let config: Map<_, _> = config
            .map(|(key, value)| (format!("user.x{key}"), json!(value)))
            .collect();
        let mut roles: Vec<Value> = texts.iter().map(|text| json!(text)).collect();
        roles.push(json!({ "k": first_text }));
        let variables = json!({
            "instance_name": format!("m{number}"),
            "instance_description": first_text,
            "instance_config": config,
            "instance_roles": roles,
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

/// Returns the values that Ansible's tasks see for each machine.
fn seen_by_ansible(folder: &Path) -> Map<String, Value> {
    let pairs: Vec<_> = VARIABLES
        .iter()
        .map(|name| format!("'{name}': {name}"))
        .collect();
    let play = json!([{
        "hosts": "all",
        "gather_facts": false,
        "connection": "local",
        "tasks": [{ "debug": { "msg": format!("{{{{ {{ {} }} }}}}", pairs.join(", ")) } }],
    }]);
    // A playbook is read relative to its own folder; its name is not one that sync knows.
    fs::write(folder.join("play.json"), play.to_string()).unwrap();
    let mut ansible = Command::new(python("ansible-playbook").unwrap());
    scrub(&mut ansible, folder);
    let played = ansible
        .args(["-i", "inventory", "play.json"])
        .env(
            "ANSIBLE_CALLBACK_PLUGINS",
            concat!(env!("CARGO_MANIFEST_DIR"), "/tests/python/callback"),
        )
        .env("ANSIBLE_STDOUT_CALLBACK", "seen")
        .env("ANSIBLE_FORKS", "2")
        .current_dir(folder)
        .output()
        .unwrap();
    fs::remove_file(folder.join("play.json")).unwrap();
    let stderr = String::from_utf8_lossy(&played.stderr);
    assert!(
        played.status.success(),
        "{stderr}{}",
        String::from_utf8_lossy(&played.stdout)
    );
    let lines = String::from_utf8(played.stdout).unwrap();
    let seen = lines.lines().map(|line| {
        let seen: (String, Value) = serde_json::from_str(line).unwrap();
        seen
    });
    seen.collect()
}

/// Returns the differences between the declaration and what PyYAML and Ansible read.
fn differences(ran: &Ran, expected: &Map<String, Value>) -> String {
    let seen = Value::Object(seen_by_ansible(ran.folder.path()));
    let mut compare = Command::new(python("python3").unwrap())
        .arg(concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/tests/python/same_values.py"
        ))
        .arg(ran.folder.path())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = compare.stdin.take().unwrap();
    write!(stdin, "{}\n{seen}\n", json!(expected)).unwrap();
    drop(stdin);
    let output = compare.wait_with_output().unwrap();
    assert!(output.status.success());
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn ansible_and_pyyaml_get_what_was_declared() {
    if !have("Ansible", python("ansible-playbook").is_some()) {
        return;
    }
    // Besides the unusual texts, random ones: what YAML, Jinja and people write.
    let random = prop_oneof![
        "[ -~]{1,24}",
        "[a-c #:{}%!&*'\"\\\\-]{1,16}",
        "[a-z ]{0,8}(\\{\\{|\\{%|\\{#)[ -~]{0,16}",
        "\\PC{1,12}",
    ];
    let mut runner = TestRunner::deterministic();
    let random = (0..200).map(|_| random.new_tree(&mut runner).unwrap().current());
    let random: Vec<String> = random.collect();
    let texts: Vec<&str> = NASTY
        .iter()
        .copied()
        .chain(random.iter().map(String::as_str))
        .collect();
    let (text, expected) = declaration(&texts);
    let ran = Anklume::new().infra(&text).args(["sync", "--quiet"]).run();
    assert_eq!((ran.status, ran.stderr.as_str()), (0, ""));
    assert_eq!(differences(&ran, &expected), "");
}

/// A file that exists before `sync` first runs: the suffix of its name, and its text.
struct Present {
    suffix: &'static str,
    text: &'static str,
    /// The text that `FOLDER/STEM.yml` has once the help is followed; `None` if `sync` accepts the file.
    corrected: Option<&'static str>,
}

const fn present(
    suffix: &'static str,
    text: &'static str,
    corrected: Option<&'static str>,
) -> Present {
    Present {
        suffix,
        text,
        corrected,
    }
}

/// Files of variables.
const VARS: [Present; 13] = [
    present("", "mine: 1\n", Some("mine: 1\n")),
    present("/vault.yml", "mine: 1\n", Some("mine: 1\n")),
    present(".yaml", "mine: 1\n", Some("mine: 1\n")),
    present(".json", "{\"mine\": 1}\n", Some("mine: 1\n")),
    present(".yml", "mine: 1\n", None),
    present(".yml", "---\n# mine\nmine: \"{{ 1 }}\"\n", None),
    present(".yml", "{}\n", Some("")),
    present(".yml", "---\n{\"mine\": 1}\n", Some("mine: 1\n")),
    present(
        ".yml",
        "instance_description: x\ndomain_name: x\nproject_name: x\n",
        Some(""),
    ),
    present(".yml", "mine: 1\nproject_name: x\n", Some("mine: 1\n")),
    present(".yml~", "mine: [\n", None),
    present(".yml.bak", "mine: [\n", None),
    present(".ini", "mine: [\n", None),
];

/// Files of an inventory; each assigns a machine a different address.
const INVENTORY: [Present; 4] = [
    present("", "[all]\nm0 ansible_host=10.9.9.9\n", Some("")),
    present(
        ".yaml",
        "all: {hosts: {m0: {ansible_host: 10.9.9.9}}}\n",
        Some(""),
    ),
    present(
        ".json",
        "{\"all\": {\"hosts\": {\"m0\": {\"ansible_host\": \"10.9.9.9\"}}}}\n",
        Some(""),
    ),
    present(".yml~", "mine: [\n", None),
];

#[test]
fn what_is_already_there_hides_nothing_from_ansible_or_is_refused_with_what_helps() {
    if !have("Ansible", python("ansible-playbook").is_some()) {
        return;
    }
    let (text, expected) = declaration(&["{{ 1 + 1 }} screens"]);
    let vars = ["host_vars/m0", "group_vars/d0", "group_vars/all"];
    let vars = vars
        .iter()
        .flat_map(|path| VARS.iter().map(move |file| (*path, file)));
    let inventory = INVENTORY.iter().map(|file| ("inventory/d0", file));
    for (path, file) in vars.chain(inventory) {
        let name = format!("{path}{}", file.suffix);
        let run = Anklume::new().infra(&text).file(&name, file.text);
        let before = tree(&run.path());
        let mut ran = run.args(["sync", "--quiet"]).run();
        let what = format!("{name} {:?}: {}", file.text, ran.stderr);
        if let Some(corrected) = file.corrected {
            assert_eq!(ran.status, 1, "{what}");
            assert_eq!(tree(ran.folder.path()), before, "{what}");
            assert!(
                ran.stderr.contains(path) && ran.stderr.contains("  = help: "),
                "{what}"
            );
            let base = ran.folder.path();
            let old = base.join(&name);
            fs::remove_file(&old).unwrap();
            if old.parent() != base.join(path).parent() {
                fs::remove_dir(old.parent().unwrap()).unwrap();
            }
            if !corrected.is_empty() {
                fs::write(base.join(format!("{path}.yml")), corrected).unwrap();
            }
            ran = again(ran, ["--quiet"]).run();
        }
        assert_eq!((ran.status, ran.stderr.as_str()), (0, ""), "{what}");
        // Ansible itself takes a long time to start.
        if path != "group_vars/d0" && !file.text.contains("project_name") {
            assert_eq!(differences(&ran, &expected), "", "{what}");
        }
    }
}
