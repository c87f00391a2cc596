//! A run that is killed midway: each file is completely old or completely new, and the next run finishes the job.

use std::collections::BTreeMap;
use std::process::Stdio;

use super::tree;
use crate::harness::Anklume;

/// Files by name.
type Tree = BTreeMap<String, Vec<u8>>;

/// Enough machines for a run to last long enough to be interrupted.
const MACHINES: usize = 400;

fn infra(base: &str) -> String {
    use std::fmt::Write as _;
    let mut text = format!(
        "project_name: demo\nglobal: {{base_subnet: \"{base}\"}}\ndomains:\n  work:\n    subnet_id: 1\n    machines:\n"
    );
    for number in 0..MACHINES {
        let _ = writeln!(text, "      m{number}: {{description: of {base}}}");
    }
    text
}

/// A folder that was synced with this base subnet, and its files.
fn synced(base: &str) -> (tempfile::TempDir, Tree) {
    let ran = Anklume::new()
        .infra(&infra(base))
        .args(["sync", "--quiet"])
        .run();
    assert_eq!(ran.status, 0, "{ran:?}");
    let files = tree(ran.folder.path());
    (ran.folder, files)
}

#[test]
fn a_run_that_is_killed_leaves_whole_files_and_the_next_one_finishes() {
    let (_, new) = synced("10.200");
    let mut met = 0;
    for round in 0..8 {
        let (folder, old) = synced("10.100");
        std::fs::write(folder.path().join("infra.yml"), infra("10.200")).unwrap();
        let run = Anklume::in_folder(folder).args(["sync", "--quiet"]);
        let path = run.path();
        let mut child = run.command().stdin(Stdio::null()).spawn().unwrap();
        // Each round lets the run get further, because files are written in the order of the declaration.
        let name = format!("host_vars/m{}.yml", round * MACHINES / 10);
        let is_written = || std::fs::read(path.join(&name)).is_ok_and(|there| there == new[&name]);
        while !is_written() && child.try_wait().unwrap().is_none() {}
        child.kill().unwrap();
        let status = child.wait().unwrap();
        let left = tree(&path);
        for (name, text) in &left {
            let is_temporary = !old.contains_key(name);
            let whole = old.get(name) == Some(text) || new.get(name) == Some(text);
            assert!(
                is_temporary || whole,
                "{name} is neither the old one nor the new one"
            );
        }
        assert!(
            old.keys().all(|name| left.contains_key(name)),
            "a file is gone"
        );
        let is_new = |(name, text): &(&String, &Vec<u8>)| new.get(*name) == Some(*text);
        let written = left.iter().filter(is_new).count();
        met += usize::from(!status.success() && written > 0 && written < new.len());
        let next = Anklume::in_folder(run.into_folder())
            .args(["sync", "--quiet"])
            .run();
        assert_eq!(next.status, 0, "{next:?}");
        let ended = tree(next.folder.path());
        let names = |files: &Tree| files.keys().cloned().collect::<Vec<_>>();
        assert_eq!(names(&ended), names(&new), "something was left behind");
        assert!(ended == new);
    }
    assert!(met > 0, "no run was met in the middle");
}
