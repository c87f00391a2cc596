//! Tests the log's files: intact, tampered with, torn, rotated, shared.

use std::io::BufReader;
use std::sync::atomic::{AtomicBool, Ordering};

use super::super::verify::{Fault, LINE_MAX, Verifier, VerifyReport};
use super::super::{Outcome, Verdict, bounded, digest_of};
use super::*;
use crate::name::{MACHINE_NAME_MAX, SERVICE_NAME_MAX};

fn stop(pid: u32) -> Event {
    Event::Stop { pid }
}

fn check(path: &Path, head: Option<String>) -> VerifyReport {
    let mut verifier = Verifier::new(head);
    if !may_have_dropped(path).unwrap() {
        verifier = verifier.from_the_first_line();
    }
    for file in files(path).unwrap() {
        let name = file.file_name().unwrap().to_string_lossy().into_owned();
        verifier
            .file(&name, BufReader::new(File::open(&file).unwrap()))
            .unwrap();
    }
    verifier.finish()
}

fn faults(path: &Path) -> Vec<(u64, Fault)> {
    let findings = check(path, None).findings;
    findings.into_iter().map(|f| (f.line, f.fault)).collect()
}

/// Creates a log of ten lines; returns its folder, its path and the lines.
fn ten() -> (tempfile::TempDir, PathBuf, Vec<String>) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("audit.jsonl");
    let log = Log::open(&path).unwrap();
    for pid in 1..=10 {
        log.append(stop(pid)).unwrap();
    }
    let text = std::fs::read(&path).unwrap();
    let text = String::from_utf8(text).unwrap();
    let lines = text.lines().map(str::to_owned).collect();
    (folder, path, lines)
}

fn rewrite(path: &Path, lines: &[String]) {
    std::fs::write(path, lines.join("\n") + "\n").unwrap();
}

#[test]
fn a_log_as_it_was_written_is_whole() {
    let (_folder, path, lines) = ten();
    let report = check(&path, None);
    assert!(report.is_whole(), "{report:?}");
    assert_eq!((report.lines, report.head.seq), (10, 10));
    assert!(lines.iter().all(|line| line.contains("\"event\":\"stop\"")));
    assert!(check(&path, Some(report.head.hash)).is_whole());
}

#[test]
fn an_edited_line_is_found_and_named() {
    let (_folder, path, mut lines) = ten();
    lines[4] = lines[4].replace("\"pid\":5", "\"pid\":6");
    rewrite(&path, &lines);
    assert_eq!(faults(&path), [(5, Fault::Edited)]);
}

#[test]
fn every_changed_byte_is_found() {
    let (_folder, path, _) = ten();
    let good = std::fs::read(&path).unwrap();
    for place in 0..good.len() {
        for bit in [0x01, 0x20, 0x80] {
            let mut bytes = good.clone();
            bytes[place] ^= bit;
            let mut verifier = Verifier::new(None).from_the_first_line();
            verifier.file("log", &bytes[..]).unwrap();
            let report = verifier.finish();
            assert!(!report.is_whole(), "byte {place}, bit {bit}: {report:?}");
        }
    }
}

#[test]
fn removed_reordered_inserted_and_replaced_lines_are_found_and_named() {
    let (_folder, path, lines) = ten();
    let mut removed = lines.clone();
    removed.remove(4);
    rewrite(&path, &removed);
    assert_eq!(faults(&path), [(5, Fault::Removed { count: 1 })]);

    let mut swapped = lines.clone();
    swapped.swap(4, 5);
    rewrite(&path, &swapped);
    assert!(!faults(&path).is_empty());
    assert_eq!(faults(&path)[0].0, 5);

    let mut repeated = lines.clone();
    repeated.insert(5, lines[2].clone());
    rewrite(&path, &repeated);
    let misplaced = Fault::Misplaced {
        expected: 6,
        found: 3,
    };
    assert_eq!(faults(&path), [(6, misplaced)]);

    let mut inserted = lines.clone();
    inserted.insert(5, "{\"seq\":6}".to_owned());
    rewrite(&path, &inserted);
    assert_eq!(faults(&path), [(6, Fault::Foreign)]);

    rewrite(&path, &lines[1..]);
    assert_eq!(faults(&path), [(1, Fault::NoBeginning)]);
}

#[test]
fn a_line_written_anew_with_a_right_hash_does_not_fit_its_follower() {
    let (_folder, path, mut lines) = ten();
    let chain::ReadLine::Whole(line, _) = chain::read(lines[4].as_bytes()) else {
        panic!("a line of the log");
    };
    let before = Head {
        seq: 4,
        hash: line.previous,
    };
    let (forged, _) = chain::link(&before, line.time, stop(99)).unwrap();
    lines[4] = String::from_utf8(forged).unwrap().trim_end().to_owned();
    rewrite(&path, &lines);
    assert_eq!(faults(&path), [(6, Fault::Replaced)]);
}

#[test]
fn a_cut_tail_shows_only_with_the_head() {
    let (_folder, path, lines) = ten();
    let head = check(&path, None).head.hash;
    rewrite(&path, &lines[..7]);
    assert!(check(&path, None).is_whole());
    assert!(check(&path, Some(head)).head_missing);
}

#[test]
fn a_torn_line_is_taken_off_and_noted() {
    let (_folder, path, lines) = ten();
    std::fs::write(&path, lines.join("\n") + "\n{\"seq\":11,\"ti").unwrap();
    assert_eq!(faults(&path), [(11, Fault::Unfinished)]);
    let log = Log::open(&path).unwrap();
    log.append(stop(11)).unwrap();
    let report = check(&path, None);
    assert!(report.is_whole(), "{report:?}");
    assert_eq!(report.lines, 12);
}

#[test]
fn a_last_line_that_lacks_only_its_newline_is_found_and_completed() {
    let (_folder, path, lines) = ten();
    std::fs::write(&path, lines.join("\n")).unwrap();
    assert_eq!(faults(&path), [(10, Fault::Unfinished)]);
    assert_eq!(check(&path, None).head.seq, 10);
    let log = Log::open(&path).unwrap();
    log.append(stop(11)).unwrap();
    let report = check(&path, None);
    assert!(report.is_whole(), "{report:?}");
    assert_eq!(report.lines, 11);
    assert!(
        std::fs::read(&path)
            .unwrap()
            .starts_with(lines.join("\n").as_bytes())
    );
}

#[test]
fn a_whole_line_at_the_end_that_does_not_follow_is_taken_off() {
    let (_folder, path, lines) = ten();
    let text = [&lines[..], &lines[4..5]].concat().join("\n");
    std::fs::write(&path, &text).unwrap();
    let misplaced = Fault::Misplaced {
        expected: 11,
        found: 5,
    };
    assert_eq!(faults(&path), [(11, misplaced)]);
    let log = Log::open(&path).unwrap();
    log.append(stop(11)).unwrap();
    let report = check(&path, None);
    assert!(report.is_whole(), "{report:?}");
    assert_eq!((report.lines, report.head.seq), (12, 12));
}

#[test]
fn an_end_that_is_longer_than_any_line_takes_nothing_of_the_log_away() {
    let (_folder, path, lines) = ten();
    let garbage = "x".repeat(LINE_MAX * 2);
    std::fs::write(&path, lines.join("\n") + "\n" + &garbage).unwrap();
    let before = std::fs::read(&path).unwrap();
    let log = Log::open(&path).unwrap();
    let refused = log.append(stop(11)).unwrap_err();
    assert!(matches!(refused, AuditError::Foreign(_)), "{refused}");
    assert!(std::fs::read(&path).unwrap() == before);
}

#[test]
fn rotation_keeps_the_chain() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("audit.jsonl");
    let log = Log::open_with(&path, 2_000).unwrap();
    for pid in 0..60 {
        log.append(stop(pid)).unwrap();
    }
    assert!(files(&path).unwrap().len() > 3);
    let report = check(&path, None);
    assert!(report.is_whole(), "{report:?}");
}

#[test]
fn old_files_that_were_removed_are_missed_until_rotation_removes_such_files_itself() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("audit.jsonl");
    let log = Log::open_with(&path, 1).unwrap();
    log.append(stop(0)).unwrap();
    log.append(stop(1)).unwrap();
    let removed = |count| vec![(1, Fault::Removed { count })];
    std::fs::rename(numbered(&path, 1), folder.path().join("kept")).unwrap();
    assert_eq!(faults(&path), removed(1));
    assert_eq!(check(&path, None).first, 2);
    std::fs::rename(folder.path().join("kept"), numbered(&path, 1)).unwrap();
    assert_eq!(faults(&path), []);
    // Each append starts a new file with two lines.
    for pid in 2..=KEEP {
        log.append(stop(pid)).unwrap();
    }
    assert_eq!(check(&path, None).first, 1);
    std::fs::remove_file(numbered(&path, KEEP)).unwrap();
    assert_eq!(faults(&path), removed(1));
    for pid in 0..2 {
        log.append(stop(pid)).unwrap();
    }
    assert_eq!((files(&path).unwrap().len(), faults(&path)), (9, vec![]));
    assert_ne!(check(&path, None).first, 1);
}

#[test]
fn many_writers_keep_one_chain_over_rotations() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("audit.jsonl");
    std::thread::scope(|scope| {
        for writer in 0..8 {
            let path = &path;
            scope.spawn(move || {
                let log = Log::open_with(path, 40_000).unwrap();
                for _ in 0..100 {
                    log.append(stop(writer)).unwrap();
                }
            });
        }
    });
    let report = check(&path, None);
    assert!(report.is_whole(), "{report:?}");
    assert!(report.head.seq >= 800);
}

#[test]
fn there_is_a_log_at_every_moment_of_a_rotation() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("audit.jsonl");
    let log = Log::open_with(&path, 1).unwrap();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        // A process that finds no log creates one, which the rotation would then replace, losing its lines.
        let looking = scope.spawn(|| {
            let mut missing = 0;
            while !done.load(Ordering::Relaxed) {
                missing += u32::from(!path.exists());
            }
            missing
        });
        for pid in 0..500 {
            log.append(stop(pid)).unwrap();
        }
        done.store(true, Ordering::Relaxed);
        assert_eq!(looking.join().unwrap(), 0);
    });
    let report = check(&path, None);
    assert!(report.is_whole(), "{report:?}");
}

#[test]
fn a_rotation_that_was_cut_off_leaves_a_whole_log_and_the_next_one_ends_it() {
    let (_folder, path, _) = ten();
    std::fs::hard_link(&path, numbered(&path, 1)).unwrap();
    assert!(check(&path, None).is_whole());
    let log = Log::open_with(&path, 1).unwrap();
    log.append(stop(11)).unwrap();
    let report = check(&path, None);
    assert!(report.is_whole(), "{report:?}");
    assert_eq!((report.lines, files(&path).unwrap().len()), (12, 2));
}

#[test]
fn rotations_that_fail_take_no_file_away() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("audit.jsonl");
    let log = Log::open_with(&path, 1).unwrap();
    for pid in 0..5 {
        log.append(stop(pid)).unwrap();
    }
    let before = files(&path).unwrap().len();
    // Blocks the creation of the new file, as a full disk would.
    std::fs::create_dir(fresh(&path)).unwrap();
    for pid in 5..20 {
        log.append(stop(pid)).unwrap();
    }
    let report = check(&path, None);
    assert!(report.is_whole(), "{report:?}");
    assert_eq!(files(&path).unwrap().len(), before);
}

#[test]
fn equal_arguments_have_equal_digests_and_nothing_shows() {
    let (_folder, path, _) = ten();
    let log = Log::open(&path).unwrap();
    let one = serde_json::json!({"a": 1, "b": "secret"});
    let two = serde_json::json!({"b": "secret", "a": 1});
    let digest = |v: &serde_json::Value| log.key.seal(&digest_of(v.as_object().unwrap()));
    assert_eq!(digest(&one), digest(&two));
    assert_ne!(
        digest(&one),
        digest(&serde_json::json!({"a": 2, "b": "secret"}))
    );
    assert_eq!(format!("{:?}", log.key), "Key(…)");
}

#[test]
fn the_longest_line_of_a_call_fits_into_the_room_that_is_promised_to_it() {
    let worst = "\u{1f600}".repeat(1000);
    let call = |outcome| super::super::Call {
        id: bounded(&worst),
        caller: "m".repeat(MACHINE_NAME_MAX).into(),
        service: bounded(&worst),
        tool: Some("t".repeat(SERVICE_NAME_MAX).into()),
        decision: Verdict::Overloaded,
        reason: "r".repeat(200).into(),
        policy: "0".repeat(64).into(),
        outcome,
        bytes_in: u64::MAX,
        bytes_out: u64::MAX,
        duration_us: u64::MAX,
        transfer: None,
        purpose: None,
        completes: None,
        arguments: "0".repeat(64).into(),
    };
    let event = Event::Call(Box::new(call(Outcome::TimedOut)));
    let head = Head {
        seq: u64::MAX - 1,
        ..Head::default()
    };
    let (line, _) = chain::link(&head, now(), event).unwrap();
    assert!(line.len() as u64 <= LINE_ROOM, "{}", line.len());
}

#[test]
fn where_the_end_is_no_line_of_the_log_no_room_is_promised() {
    let (_folder, path, _) = ten();
    let log = Log::open(&path).unwrap();
    log.reserve(1).unwrap();
    let mut file = File::options().append(true).open(&path).unwrap();
    file.write_all(b"hello\n").unwrap();
    let refused = log.reserve(1).unwrap_err();
    assert!(matches!(refused, AuditError::Foreign(_)), "{refused}");
}

#[test]
fn a_damaged_key_is_not_replaced() {
    let (_folder, path, _) = ten();
    let key = path.with_extension("key");
    for damaged in [31, 33, 1] {
        let bytes = vec![7; damaged];
        std::fs::write(&key, &bytes).unwrap();
        let refused = Log::open(&path).unwrap_err();
        assert!(matches!(refused, AuditError::Key(_)), "{refused}");
        assert_eq!(std::fs::read(&key).unwrap(), bytes);
    }
    // The machine stopped after the file was created and before it was written.
    std::fs::write(&key, "").unwrap();
    Log::open(&path).unwrap();
    assert_eq!(std::fs::read(&key).unwrap().len(), 32);
}

#[test]
fn logs_in_one_folder_keep_out_of_each_others_way() {
    let folder = tempfile::tempdir().unwrap();
    let names = ["a.jsonl", "a.log", "a.new", "b.key"];
    let paths = names.map(|name| folder.path().join(name));
    std::thread::scope(|scope| {
        for path in &paths {
            scope.spawn(|| {
                let log = Log::open_with(path, 1).unwrap();
                for pid in 0..20 {
                    log.append(stop(pid)).unwrap();
                }
            });
        }
    });
    for path in paths {
        let report = check(&path, None);
        assert!(report.is_whole(), "{}: {report:?}", path.display());
        assert_eq!(files(&path).unwrap().len(), 9);
    }
}

#[test]
fn a_disk_without_blocks_ahead_is_full_when_it_has_less_than_is_promised() {
    let folder = File::open("/").unwrap();
    let disk = |blocks, free| StatVfs {
        f_blocks: blocks,
        f_bavail: free,
        f_frsize: 512,
        ..fstatvfs(&folder).unwrap()
    };
    assert!(has(&disk(100, 8), 4096));
    assert!(!has(&disk(100, 7), 4096));
    assert!(has(&disk(0, 0), 4096));
}
