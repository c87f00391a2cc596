//! Concurrent changes in the same folders: another sync, an editor, and somebody who replaces files with links.

use std::os::unix::fs::symlink;
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use super::{ONE, QUICK_START, tree};
use crate::harness::Anklume;

/// Returns `many` if `ANKLUME_TEST_LONG` is set, and `few` otherwise.
fn rounds(few: usize, many: usize) -> usize {
    if std::env::var_os("ANKLUME_TEST_LONG").is_some() {
        many
    } else {
        few
    }
}

#[test]
fn several_syncs_at_once_leave_the_tree_of_one() {
    let expected = Anklume::new().infra(QUICK_START).args(["sync"]).run();
    let run = Anklume::new().infra(QUICK_START).args(["sync", "--quiet"]);
    let children: Vec<_> = (0..8)
        .map(|_| run.command().stderr(Stdio::piped()).spawn().unwrap())
        .collect();
    for child in children {
        let output = child.wait_with_output().unwrap();
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
    assert_eq!(tree(&run.path()), tree(expected.folder.path()));
}

#[test]
fn nothing_outside_is_written_while_somebody_exchanges_files_and_folders_for_links() {
    let outside = tempfile::tempdir().unwrap();
    let precious = outside.path().join("work-dev.yml");
    std::fs::write(&precious, "precious: 1\n").unwrap();
    let run = Anklume::new()
        .infra(ONE)
        .file("host_vars/work-dev.yml", "")
        .args(["sync", "--quiet"]);
    let base = run.path();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let folder = base.join("host_vars");
            let file = folder.join("work-dev.yml");
            while !stop.load(Ordering::Relaxed) {
                let _ = std::fs::remove_file(&file);
                let _ = symlink(&precious, &file);
                let _ = std::fs::rename(&folder, base.join("aside"));
                let _ = symlink(outside.path(), &folder);
                let _ = std::fs::remove_file(&folder);
                let _ = std::fs::rename(base.join("aside"), &folder);
                let _ = std::fs::remove_file(&file);
                let _ = std::fs::write(&file, "x: 1\n");
            }
        });
        // Repeat until at least one run has succeeded and at least one has been refused.
        let mut ends = [0; 2];
        let mut round = 0;
        while round < rounds(150, 5_000) || ends.contains(&0) && round < 20_000 {
            let output = run.command().output().unwrap();
            let code = output
                .status
                .code()
                .and_then(|code| usize::try_from(code).ok());
            let end = code.and_then(|code| ends.get_mut(code));
            *end.unwrap_or_else(|| panic!("{}", String::from_utf8_lossy(&output.stderr))) += 1;
            round += 1;
        }
        stop.store(true, Ordering::Relaxed);
        assert!(!ends.contains(&0), "done and refused: {ends:?}");
    });
    assert_eq!(std::fs::read_to_string(&precious).unwrap(), "precious: 1\n");
    assert_eq!(std::fs::read_dir(outside.path()).unwrap().count(), 1);
}

#[test]
fn the_text_of_an_editor_is_not_lost() {
    let run = Anklume::new().infra(ONE).args(["sync", "--quiet"]);
    assert!(run.command().status().unwrap().success());
    let file = run.path().join("host_vars/work-dev.yml");
    // The current round; after the last one, the editor stops.
    let on = AtomicUsize::new(0);
    let all = rounds(100, 3_000);
    std::thread::scope(|scope| {
        let saved = scope.spawn(|| {
            // Like an editor: a new file replaces the old one.
            let mut number = 0;
            let mut round = on.load(Ordering::SeqCst);
            while round < all {
                // In every third round, nobody saves.
                if round.is_multiple_of(3) {
                    std::thread::yield_now();
                    round = on.load(Ordering::SeqCst);
                    continue;
                }
                // A run's text may be visible briefly, before the run notices that the file has changed.
                let last = format!("\nmine: {number}\n");
                let text = (0..1_000_000)
                    .map(|_| std::fs::read_to_string(&file).unwrap())
                    .find(|text| number == 0 || text.ends_with(&last))
                    .expect("what was saved is lost");
                number += 1;
                let own = text.strip_suffix(&last).unwrap_or(&text);
                let beside = file.with_extension("swp");
                std::fs::write(&beside, format!("{own}\nmine: {number}\n")).unwrap();
                std::fs::rename(&beside, &file).unwrap();
                round = on.load(Ordering::SeqCst);
            }
            number
        });
        let mut done = 0;
        for round in 0..all {
            on.store(round, Ordering::SeqCst);
            let run =
                Anklume::new().infra(&ONE.replace("{}", &format!("{{description: d{round}}}")));
            let infra = run.path().join("infra.yml");
            let output = run
                .args(["sync", "--quiet", "--infra"])
                .args([infra.to_str().unwrap(), "--base-dir"]);
            let output = output
                .args([file.parent().unwrap().parent().unwrap().to_str().unwrap()])
                .command()
                .output()
                .unwrap();
            done += usize::from(output.status.success());
            assert!(matches!(output.status.code(), Some(0 | 1)), "{output:?}");
        }
        on.store(all, Ordering::SeqCst);
        assert!(done > 0, "no run came to its end");
        assert!(saved.join().unwrap() > 0);
    });
}
