//! Tests the output and the other modes of `sync`: `--check`, `--dry-run`, orphans, JSON.

use std::process::Command;

use serde_json::{Value, json};

use super::{CLIPBOARD, FILES_OF_ONE, ONE, QUICK_START, again, machines, times, tree};
use crate::harness::{Anklume, Ran, have_program};

fn json_of(ran: &Ran) -> Value {
    serde_json::from_str(&ran.stdout).unwrap()
}

/// A folder synced from [`QUICK_START`], with `extra` in its `pro` domain.
fn quick_start(extra: &str) -> Ran {
    let infra = QUICK_START.replace("subnet_id: 2", &format!("subnet_id: 2\n    {extra}"));
    let ran = Anklume::new().infra(&infra).args(["sync"]).run();
    assert_eq!(ran.status, 0, "{}", ran.stderr);
    ran
}

/// The quick start without its `pro` domain.
fn without_pro() -> String {
    let (others, _) = QUICK_START.split_once("  pro:").unwrap();
    others.replace(", pro-dev", "")
}

#[test]
fn check_writes_nothing_and_exits_6_where_something_differs() {
    let ran = Anklume::new().infra(ONE).args(["sync", "--check"]).run();
    ran.is(
        6,
        "\
missing group_vars/all.yml
missing inventory/work.yml
missing group_vars/work.yml
missing host_vars/work-dev.yml
4 files: 4 to create; nothing was written
",
        "",
    );
    assert!(tree(ran.folder.path()).is_empty());
    let ran = again(ran, []).run();
    let ran = again(ran, ["--check"]).run();
    ran.answers("nothing to do: 4 files up to date\n");
    let infra = ONE.replace("{}", "{description: new}");
    let before = times(ran.folder.path());
    let ran = again(ran, ["--check"]).infra(&infra).run();
    ran.is(
        6,
        "differs host_vars/work-dev.yml\n4 files: 1 to update, 3 unchanged; nothing was written\n",
        "",
    );
    assert_eq!(times(ran.folder.path()), before);
}

#[test]
fn a_dry_run_shows_the_difference_and_writes_nothing() {
    let ran = Anklume::new().infra(ONE).args(["sync"]).run();
    let before = times(ran.folder.path());
    let infra = ONE.replace("{}", "{description: new, ip: 10.100.1.7}");
    let ran = again(ran, ["--dry-run"]).infra(&infra).run();
    ran.is(
        0,
        "\
--- a/inventory/work.yml
+++ b/inventory/work.yml
@@ -5,7 +5,8 @@
   children:
     work:
       hosts:
-        work-dev: null
+        work-dev:
+          ansible_host: \"10.100.1.7\"
 # === END MANAGED ===
 
 # Your custom variables below:
--- a/host_vars/work-dev.yml
+++ b/host_vars/work-dev.yml
@@ -3,10 +3,11 @@
 # Do not edit this section — it will be overwritten by `make sync`
 instance_name: work-dev
 instance_type: lxc
-instance_description: \"\"
+instance_description: new
 instance_domain: work
 instance_ephemeral: false
 instance_os_image: images:debian/13
+instance_ip: \"10.100.1.7\"
 # === END MANAGED ===
 
 # Your custom variables below:
",
        "4 files: 2 to update, 2 unchanged; nothing was written\n",
    );
    assert_eq!(times(ran.folder.path()), before);
}

#[test]
fn git_applies_a_dry_run_to_what_sync_writes() {
    if !have_program("git") {
        return;
    }
    let own = "x: 1";
    let start = || quick_start("ephemeral: true");
    let change = |ran: Ran, args: [&str; 2]| {
        let infra = without_pro().replace("10.100.1.10", "10.100.1.11");
        again(ran, args)
            .infra(&infra)
            .file("host_vars/work-dev.yml", own)
            .run()
    };
    let shown = change(start(), ["--clean-orphans", "--dry-run"]);
    std::fs::write(shown.folder.path().join("patch"), &shown.stdout).unwrap();
    let applied = Command::new("git")
        .args(["apply", "patch"])
        .current_dir(shown.folder.path())
        .env(
            "GIT_CEILING_DIRECTORIES",
            shown.folder.path().parent().unwrap(),
        )
        .output()
        .unwrap();
    assert!(
        applied.status.success(),
        "{}",
        String::from_utf8_lossy(&applied.stderr)
    );
    std::fs::remove_file(shown.folder.path().join("patch")).unwrap();
    let written = change(start(), ["--clean-orphans", "--quiet"]);
    assert_eq!(tree(shown.folder.path()), tree(written.folder.path()));
}

#[test]
fn orphans_of_an_ephemeral_domain_are_reported_and_removed_on_request() {
    let ran = quick_start("ephemeral: true");
    let ran = again(ran, []).infra(&without_pro()).run();
    ran.is(
        0,
        "updated host_vars/vault-signer.yml\n7 files: 1 updated, 6 unchanged\n",
        &format!(
            "{CLIPBOARD}\
orphan: inventory/pro.yml does not belong to anything declared
orphan: group_vars/pro.yml does not belong to anything declared
orphan: host_vars/pro-dev.yml does not belong to anything declared
  = help: `anklume sync --clean-orphans` removes those that are not kept
"
        ),
    );
    let ran = again(ran, ["--clean-orphans"]).run();
    ran.is(
        0,
        "\
removed inventory/pro.yml
removed group_vars/pro.yml
removed host_vars/pro-dev.yml
10 files: 3 removed, 7 unchanged
",
        CLIPBOARD,
    );
    let fresh = Anklume::new().infra(&without_pro()).args(["sync"]).run();
    assert_eq!(tree(ran.folder.path()), tree(fresh.folder.path()));
}

#[test]
fn what_is_protected_stays_and_so_does_its_inventory() {
    for (extra, pro_dev, reasons) in [
        (
            "ephemeral: false",
            "",
            [
                "group_vars/pro.yml stays",
                "domain_ephemeral is false",
                "instance_ephemeral is false",
            ],
        ),
        (
            "ephemeral: true",
            "ephemeral: false",
            [
                "host_vars/pro-dev.yml stays",
                "host_vars/pro-dev.yml stays",
                "instance_ephemeral is false",
            ],
        ),
    ] {
        let ran = quick_start(extra);
        let infra = std::fs::read_to_string(ran.folder.path().join("infra.yml")).unwrap();
        let infra = infra.replace(
            "ip: \"10.100.2.10\"",
            &format!("ip: \"10.100.2.10\"\n        {pro_dev}"),
        );
        let ran = again(ran, []).infra(&infra).run();
        let ran = again(ran, ["--clean-orphans"]).infra(&without_pro()).run();
        let files = [
            "inventory/pro.yml",
            "group_vars/pro.yml",
            "host_vars/pro-dev.yml",
        ];
        let said: Vec<String> = files
            .iter()
            .zip(reasons)
            .map(|(file, reason)| format!("orphan: {file} does not belong to anything declared; kept (protected: {reason})\n"))
            .collect();
        assert_eq!(
            (ran.status, ran.stderr.as_str()),
            (0, (CLIPBOARD.to_owned() + &said.concat()).as_str())
        );
        for file in files {
            assert!(ran.folder.path().join(file).is_file(), "{file}");
        }
    }
}

#[test]
fn only_files_that_sync_wrote_are_orphans_and_those_with_text_of_the_users_stay() {
    let ran = quick_start("ephemeral: true");
    let base = ran.folder.path().to_owned();
    let own = base.join("host_vars/pro-dev.yml");
    let text = std::fs::read_to_string(&own).unwrap() + "mine: 1\n";
    std::fs::write(&own, &text).unwrap();
    std::fs::write(base.join("host_vars/foreign.yml"), "x: 1\n").unwrap();
    std::fs::write(
        base.join("group_vars/open.yml"),
        "# === MANAGED BY infra.yml ===\n",
    )
    .unwrap();
    std::fs::write(base.join("inventory/notes.txt"), "x").unwrap();
    std::os::unix::fs::symlink("pro.yml", base.join("inventory/link.yml")).unwrap();
    std::fs::create_dir(base.join("inventory/folder.yml")).unwrap();
    let ran = again(ran, ["--clean-orphans"]).infra(&without_pro()).run();
    assert_eq!(ran.status, 0);
    assert_eq!(
        ran.stderr.strip_prefix(CLIPBOARD).unwrap(),
        "orphan: host_vars/pro-dev.yml does not belong to anything declared; kept (it contains text of your own)\n"
    );
    assert_eq!(ran.read("host_vars/pro-dev.yml"), text);
    for kept in [
        "host_vars/foreign.yml",
        "group_vars/open.yml",
        "inventory/notes.txt",
        "inventory/folder.yml",
    ] {
        assert!(base.join(kept).exists(), "{kept}");
    }
    assert!(base.join("inventory/link.yml").is_symlink());
    assert!(!base.join("inventory/pro.yml").exists());
}

#[test]
fn an_inventory_alone_says_nothing_of_itself_and_stays() {
    let ran = quick_start("ephemeral: true");
    std::fs::remove_file(ran.folder.path().join("group_vars/pro.yml")).unwrap();
    std::fs::remove_file(ran.folder.path().join("host_vars/pro-dev.yml")).unwrap();
    let ran = again(ran, ["--clean-orphans"]).infra(&without_pro()).run();
    assert_eq!(
        ran.stderr.strip_prefix(CLIPBOARD).unwrap(),
        "orphan: inventory/pro.yml does not belong to anything declared; kept (protected: no group_vars/pro.yml marks it as ephemeral)\n"
    );
}

#[test]
fn a_machine_that_moved_to_another_domain_is_no_orphan() {
    let ran = quick_start("ephemeral: true");
    let infra = without_pro() + "      pro-dev: {}\n";
    let ran = again(ran, ["--clean-orphans", "--quiet"])
        .infra(&infra)
        .run();
    ran.answers("");
    assert!(
        ran.read("host_vars/pro-dev.yml")
            .contains("instance_domain: work")
    );
    assert!(!ran.folder.path().join("inventory/pro.yml").exists());
}

#[test]
fn json_says_the_same() {
    let states = |state: &str| -> Vec<Value> {
        FILES_OF_ONE
            .iter()
            .map(|path| json!({ "path": path, "state": state }))
            .collect()
    };
    let ran = Anklume::new()
        .infra(ONE)
        .args(["sync", "--check", "--format", "json"])
        .run();
    assert_eq!((ran.status, ran.stderr.as_str()), (6, ""));
    assert_eq!(
        json_of(&ran),
        json!({ "written": false, "files": states("created"), "orphans": [] })
    );
    let ran = again(ran, ["--format", "json"]).run();
    assert_eq!((ran.status, ran.stderr.as_str()), (0, ""));
    assert_eq!(
        json_of(&ran),
        json!({ "written": true, "files": states("created"), "orphans": [] })
    );
    let ran = again(ran, ["--format", "json"]).run();
    assert_eq!(
        json_of(&ran),
        json!({ "written": false, "files": states("unchanged"), "orphans": [] })
    );
    let infra = ONE.replace("work-dev: {}", "work-two: {ephemeral: true}");
    let ran = again(ran, ["--format", "json", "--dry-run"])
        .infra(&infra)
        .run();
    let answer = json_of(&ran);
    assert_eq!(answer["written"], false);
    assert_eq!(
        answer["files"][0],
        json!({ "path": "group_vars/all.yml", "state": "unchanged" })
    );
    assert_eq!(answer["files"][3]["state"], "created");
    let diff = answer["files"][3]["diff"].as_str().unwrap();
    assert!(
        diff.starts_with("--- /dev/null\n+++ b/host_vars/work-two.yml\n"),
        "{diff}"
    );
    assert_eq!(
        answer["orphans"],
        json!([{ "path": "host_vars/work-dev.yml", "state": "kept", "reason": "protected: instance_ephemeral is false" }])
    );
}

#[test]
fn quiet_says_nothing_and_long_lists_are_cut() {
    Anklume::new()
        .infra(ONE)
        .args(["sync", "--quiet"])
        .run()
        .answers("");
    let machines = machines(60);
    let infra = ONE.replace("      work-dev: {}\n", &machines);
    let ran = Anklume::new()
        .infra(&infra)
        .args(["sync", "--dry-run", "--verbose"])
        .run();
    assert_eq!(ran.status, 0);
    let ran = again(ran, []).run();
    let lines: Vec<_> = ran.stdout.lines().collect();
    assert_eq!(lines.len(), 42);
    assert_eq!(
        lines[40..],
        ["… and 23 more (all with --verbose)", "63 files: 63 created"]
    );
}
