//! Tests `anklume sync`, which writes the files that Ansible reads.

mod ansible;
mod killed;
mod layout;
mod race;
mod refusal;
mod report;
mod text;
mod yaml;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use crate::harness::{Anklume, Ran};

/// The quick start from the README, with a `project_name`.
const QUICK_START: &str = concat!(
    "project_name: demo\n",
    include_str!("../fixtures/quick-start.yml"),
    include_str!("../fixtures/quick-start-pro.yml"),
);

/// The note on its clipboard.
const CLIPBOARD: &str = "note: the consumers of `vault-signer/clipboard` may read what is copied there at any time \
    (infra.yml:13); with `offered_only: true`, only what is offered to them\n";

/// A domain with one machine and nothing else.
const ONE: &str = "\
project_name: demo
domains:
  work:
    subnet_id: 1
    machines:
      work-dev: {}
";

/// The files for [`ONE`], in the order in which they are written.
const FILES_OF_ONE: [&str; 4] = [
    "group_vars/all.yml",
    "inventory/work.yml",
    "group_vars/work.yml",
    "host_vars/work-dev.yml",
];

/// The first lines of every file.
const HEAD: &str = "\
---
# === MANAGED BY infra.yml ===
# Do not edit this section — it will be overwritten by `make sync`
";
/// The last lines of every file.
const TAIL: &str = "\
# === END MANAGED ===

# Your custom variables below:
";

/// A run of `anklume sync` in the folder of an earlier run.
fn again<const N: usize>(ran: Ran, args: [&str; N]) -> Anklume {
    Anklume::in_folder(ran.folder).args(["sync"]).args(args)
}

/// The lines that declare `count` machines, `m0` and so on.
fn machines(count: usize) -> String {
    let mut lines = String::new();
    for number in 0..count {
        writeln!(lines, "      m{number}: {{}}").unwrap();
    }
    lines
}

/// Every file below a folder, except the declaration.
fn tree(base: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut files = BTreeMap::new();
    let mut folders = vec![base.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.file_name().unwrap() != "infra.yml" {
                let name = path.strip_prefix(base).unwrap().display().to_string();
                files.insert(name, std::fs::read(path).unwrap());
            }
        }
    }
    files
}

/// The modification time of each file below a folder.
fn times(base: &Path) -> BTreeMap<String, std::time::SystemTime> {
    let time = |name: String| {
        let time = base.join(&name).metadata().unwrap().modified().unwrap();
        (name, time)
    };
    tree(base).into_keys().map(time).collect()
}

#[test]
fn the_first_example_as_first_printed_says_its_one_fault_and_writes_nothing() {
    let printed = include_str!("../fixtures/quick-start.yml");
    let ran = Anklume::new().infra(printed).args(["sync"]).run();
    ran.is(
        1,
        "",
        "\
error[unknown-consumer]: `pro-dev` is not a machine in this file
  --> infra.yml:11:35
   |
11 |             consumers: [work-dev, pro-dev]
   |                                   ^^^^^^^
   = help: declare the machine in a domain, or take it off the list
",
    );
    assert!(tree(ran.folder.path()).is_empty());
}

#[test]
fn a_second_run_writes_nothing_and_a_change_writes_its_own_file_alone() {
    let first = Anklume::new().infra(ONE).args(["sync"]).run();
    let before = times(first.folder.path());
    let second = again(first, []).run();
    second.answers("nothing to do: 4 files up to date\n");
    assert_eq!(times(second.folder.path()), before);
    let infra = ONE.replace("{}", "{description: new}");
    let third = again(second, []).infra(&infra).run();
    third.answers("updated host_vars/work-dev.yml\n4 files: 1 updated, 3 unchanged\n");
    let mut after = times(third.folder.path());
    assert!(after["host_vars/work-dev.yml"] > before["host_vars/work-dev.yml"]);
    after.insert(
        "host_vars/work-dev.yml".to_owned(),
        before["host_vars/work-dev.yml"],
    );
    assert_eq!(after, before);
}

#[test]
fn a_file_with_the_same_values_in_another_style_is_rewritten_with_a_note() {
    let first = Anklume::new().infra(ONE).args(["sync"]).run();
    let path = first.folder.path().join("host_vars/work-dev.yml");
    let text = fs::read_to_string(&path).unwrap();
    let other_style = text.replace('"', "'");
    assert_ne!(text, other_style);
    fs::write(&path, other_style).unwrap();
    let second = again(first, []).run();
    second.is(
        0,
        "updated host_vars/work-dev.yml\n4 files: 1 updated, 3 unchanged\n",
        "note: 1 file changes only in its YAML style; its values stay the same\n",
    );
    assert_eq!(fs::read_to_string(&path).unwrap(), text);
    // A changed value is not merely a change of style.
    fs::write(&path, text.replace("work-dev", "other")).unwrap();
    again(second, [])
        .run()
        .answers("updated host_vars/work-dev.yml\n4 files: 1 updated, 3 unchanged\n");
}

#[test]
fn a_disabled_domain_has_no_files_and_those_it_had_are_left() {
    let disabled = ONE.replace("subnet_id: 1", "subnet_id: 1\n    enabled: false");
    let fresh = Anklume::new().infra(&disabled).args(["sync"]).run();
    fresh.answers("created group_vars/all.yml\n1 file: 1 created\n");
    let enabled = again(fresh, []).infra(ONE).run();
    let before = tree(enabled.folder.path());
    let off = again(enabled, ["--clean-orphans"]).infra(&disabled).run();
    off.answers("updated group_vars/all.yml\n1 file: 1 updated\n");
    let mut after = tree(off.folder.path());
    after.insert(
        "group_vars/all.yml".to_owned(),
        before["group_vars/all.yml"].clone(),
    );
    assert_eq!(after, before);
}

#[test]
fn an_infra_folder_and_a_base_dir_say_where_from_and_where_to() {
    let (base, domain) = (
        "project_name: demo\nglobal: {}\n",
        "work:\n  subnet_id: 1\n  machines:\n    work-dev: {}\n",
    );
    let ran = Anklume::new()
        .file("infra/base.yml", base)
        .file("infra/domains/work.yml", domain)
        .file("out/keep", "")
        .args(["sync", "--infra", "infra", "--base-dir", "out"])
        .run();
    assert_eq!((ran.status, ran.stderr.as_str()), (0, ""));
    let beside = Anklume::new().infra(ONE).args(["sync"]).run();
    for file in FILES_OF_ONE {
        assert_eq!(ran.read(&format!("out/{file}")), beside.read(file));
    }
    // Without an output folder, the files go next to the folder with the declaration.
    let ran = again(ran, ["--infra", "infra"]).run();
    assert_eq!((ran.status, ran.stderr.as_str()), (0, ""));
    assert_eq!(ran.read(FILES_OF_ONE[0]), beside.read(FILES_OF_ONE[0]));
}
