//! Tests changes in a real folder: they are made or undone, and never overwrite other people's changes.

use std::fs;
use std::path::Path;

use super::super::tree::Access;
use super::*;

const BOTH: [Renames; 2] = [Renames::Exchange, Renames::Links];

fn path(stem: &str) -> FilePath {
    FilePath {
        folder: InventoryFolder::HostVars,
        stem: stem.to_owned(),
    }
}

/// Creates a folder with the files `a` and `b`.
fn two() -> tempfile::TempDir {
    let base = tempfile::tempdir().unwrap();
    fs::create_dir(base.path().join("host_vars")).unwrap();
    for name in ["a", "b"] {
        fs::write(base.path().join(format!("host_vars/{name}.yml")), name).unwrap();
    }
    base
}

fn content(base: &Path) -> Vec<(String, String)> {
    let mut found: Vec<(String, String)> = InventoryFolder::ALL
        .iter()
        .filter_map(|folder| fs::read_dir(base.join(folder.as_str())).ok())
        .flatten()
        .map(|entry| entry.unwrap().path())
        .map(|path| {
            let name = path.strip_prefix(base).unwrap().display().to_string();
            (name, String::from_utf8(fs::read(&path).unwrap()).unwrap())
        })
        .collect();
    found.sort();
    found
}

fn is(base: &Path, expected: &[(&str, &str)]) {
    let found = content(base);
    let found: Vec<(&str, &str)> = found
        .iter()
        .map(|(name, text)| (name.as_str(), text.as_str()))
        .collect();
    assert_eq!(found, expected);
}

fn open(base: &Path) -> FileTree {
    FileTree::open(base, Access::Write).unwrap()
}

fn create(stem: &str) -> FileChange {
    FileChange::Create {
        path: path(stem),
        text: "new".to_owned(),
    }
}

fn update(tree: &FileTree, stem: &str) -> FileChange {
    let found = tree.read(&path(stem)).unwrap().unwrap();
    FileChange::Update {
        path: path(stem),
        text: "changed".to_owned(),
        seen: found.identity,
        owner: found.owner,
    }
}

fn remove(tree: &FileTree, stem: &str) -> FileChange {
    FileChange::Remove {
        path: path(stem),
        seen: tree.read(&path(stem)).unwrap().unwrap().identity,
    }
}

#[test]
fn all_changes_are_made_and_nothing_is_left_beside_them() {
    for renames in BOTH {
        let base = two();
        let mut tree = open(base.path());
        let inventory = FilePath {
            folder: InventoryFolder::Inventory,
            stem: "x".to_owned(),
        };
        let changes = [
            FileChange::Create {
                path: inventory,
                text: "new".to_owned(),
            },
            create("c"),
            update(&tree, "a"),
            remove(&tree, "b"),
        ];
        commit_with(&mut tree, &changes, renames).unwrap();
        is(
            base.path(),
            &[
                ("host_vars/a.yml", "changed"),
                ("host_vars/c.yml", "new"),
                ("inventory/x.yml", "new"),
            ],
        );
    }
}

#[test]
fn a_failure_in_the_middle_undoes_everything() {
    for renames in BOTH {
        let base = two();
        let mut tree = open(base.path());
        let group = FilePath {
            folder: InventoryFolder::GroupVars,
            stem: "all".to_owned(),
        };
        let changes = [
            FileChange::Create {
                path: group,
                text: "new".to_owned(),
            },
            update(&tree, "a"),
            remove(&tree, "b"),
            create("c"),
            create("d"),
        ];
        // Someone else creates the last file during the run.
        fs::write(base.path().join("host_vars/d.yml"), "theirs").unwrap();
        let fault = commit_with(&mut tree, &changes, renames).unwrap_err();
        assert!(matches!(&fault, TreeFault::Changed(path) if path == "host_vars/d.yml"));
        is(
            base.path(),
            &[
                ("host_vars/a.yml", "a"),
                ("host_vars/b.yml", "b"),
                ("host_vars/d.yml", "theirs"),
            ],
        );
        assert!(!base.path().join("group_vars").exists());
    }
}

#[test]
fn what_someone_else_wrote_in_the_meantime_is_kept() {
    for renames in BOTH {
        for removes in [false, true] {
            let base = two();
            let mut tree = open(base.path());
            let change = if removes {
                remove(&tree, "a")
            } else {
                update(&tree, "a")
            };
            let changes = [update(&tree, "b"), change];
            fs::write(base.path().join("host_vars/a.yml"), "theirs").unwrap();
            let fault = commit_with(&mut tree, &changes, renames).unwrap_err();
            assert!(matches!(fault, TreeFault::Changed(_)));
            is(
                base.path(),
                &[("host_vars/a.yml", "theirs"), ("host_vars/b.yml", "b")],
            );
        }
    }
}

#[test]
fn a_link_put_in_the_place_of_a_file_is_not_followed() {
    for renames in BOTH {
        let base = two();
        let outside = tempfile::NamedTempFile::new().unwrap();
        fs::write(outside.path(), "precious").unwrap();
        let mut tree = open(base.path());
        let changes = [update(&tree, "a"), create("c")];
        for name in ["a", "c"] {
            let link = base.path().join(format!("host_vars/{name}.yml"));
            let _ = fs::remove_file(&link);
            std::os::unix::fs::symlink(outside.path(), link).unwrap();
        }
        let fault = commit_with(&mut tree, &changes, renames).unwrap_err();
        assert!(matches!(fault, TreeFault::Changed(_)));
        assert_eq!(fs::read(outside.path()).unwrap(), b"precious");
        assert!(base.path().join("host_vars/a.yml").is_symlink());
    }
}

#[test]
fn what_a_killed_run_left_is_removed_and_other_hidden_files_are_not() {
    let base = two();
    for name in [
        ".anklume-sync-1-0.tmp",
        ".anklume-sync-1-0-kept.tmp",
        ".hidden",
    ] {
        fs::write(base.path().join("host_vars").join(name), "x").unwrap();
    }
    let mut tree = open(base.path());
    commit(&mut tree, &[create("c")]).unwrap();
    is(
        base.path(),
        &[
            ("host_vars/.hidden", "x"),
            ("host_vars/a.yml", "a"),
            ("host_vars/b.yml", "b"),
            ("host_vars/c.yml", "new"),
        ],
    );
}
