//! What becomes of lines that cannot be written when they should be.

use std::fs;
use std::path::{Path, PathBuf};

use super::*;
use crate::audit::Verdict;
use crate::audit::chain::{Read, read};

/// A log in a folder that may go away, and who writes it.
struct Bench {
    folder: tempfile::TempDir,
    recorder: Recorder,
}

impl Bench {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("log")).unwrap();
        let log = Log::open(&file(folder.path())).unwrap();
        Self {
            recorder: Recorder::new(Some(log), true, Box::new(|_| {})),
            folder,
        }
    }

    fn log_goes(&self) {
        fs::rename(
            self.folder.path().join("log"),
            self.folder.path().join("away"),
        )
        .unwrap();
    }

    fn log_comes(&self) {
        fs::rename(
            self.folder.path().join("away"),
            self.folder.path().join("log"),
        )
        .unwrap();
    }

    /// What the log holds.
    fn events(&self) -> Vec<Event> {
        let text = fs::read(file(self.folder.path())).unwrap();
        let lines = text
            .split(|byte| *byte == b'\n')
            .filter(|line| !line.is_empty());
        lines
            .map(|line| match read(line) {
                Read::Whole(line, _) => line.event,
                other => panic!("{other:?}"),
            })
            .collect()
    }

    /// Calls that it tells of in counted lines.
    fn counted(&self) -> u64 {
        let events = self.events();
        let counts = events.iter().map(|event| match event {
            Event::Counted { count, .. } => *count,
            _ => 0,
        });
        counts.sum()
    }
}

fn file(folder: &Path) -> PathBuf {
    folder.join("log/audit.jsonl")
}

fn call(decision: Verdict, outcome: Outcome) -> Call {
    Call {
        id: "1".to_owned(),
        caller: "alice".to_owned(),
        service: "sign".to_owned(),
        tool: None,
        decision,
        reason: "not a consumer".to_owned(),
        policy: String::new(),
        outcome,
        bytes_in: 1,
        bytes_out: 0,
        duration_us: 1,
        arguments: String::new(),
    }
}

#[test]
fn counts_that_could_not_be_written_are_written_when_the_log_is_back() {
    let bench = Bench::new();
    for _ in 0..300 {
        let refused = call(Verdict::Refused, Outcome::NotRun);
        bench.recorder.call(refused, false).unwrap();
    }
    bench.log_goes();
    bench.recorder.count(true);
    bench.log_comes();
    bench.recorder.count(false);
    let own = bench.events().len() as u64 - 1;
    assert_eq!(own + bench.counted(), 300);
}
