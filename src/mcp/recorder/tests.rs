//! Tests log lines that cannot be written in time.

use std::fs;
use std::path::{Path, PathBuf};

use super::*;
use crate::audit::Verdict;
use crate::audit::chain::{ReadLine, read};
use crate::audit::flood::WINDOW;

/// A recorder, and its log in a folder that can disappear.
struct Bench {
    folder: tempfile::TempDir,
    recorder: Arc<Recorder>,
}

impl Bench {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("log")).unwrap();
        let log = Log::open(&file(folder.path())).unwrap();
        Self {
            recorder: Arc::new(Recorder::new(Some(log), true, Box::new(|_| {}))),
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

    /// Returns the events in the log.
    fn events(&self) -> Vec<Event> {
        let text = fs::read(file(self.folder.path())).unwrap();
        let lines = text
            .split(|byte| *byte == b'\n')
            .filter(|line| !line.is_empty());
        lines
            .map(|line| match read(line) {
                ReadLine::Whole(line, _) => line.event,
                other => panic!("{other:?}"),
            })
            .collect()
    }

    /// Returns the number of calls that the log only counts.
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
        id: "1".into(),
        caller: "alice".into(),
        service: "sign".into(),
        tool: None,
        decision,
        reason: "not a consumer".into(),
        policy: "".into(),
        outcome,
        bytes_in: 1,
        bytes_out: 0,
        duration_us: 1,
        transfer: None,
        purpose: None,
        completes: None,
        arguments: "".into(),
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
    bench.recorder.count_at(WINDOW * 2);
    bench.log_comes();
    bench.recorder.count_at(WINDOW * 2);
    let own = bench.events().len() as u64 - 1;
    assert_eq!(own + bench.counted(), 300);
}

#[test]
fn a_refusal_whose_own_line_could_not_be_written_is_counted() {
    let bench = Bench::new();
    bench.log_goes();
    let refused = call(Verdict::Refused, Outcome::NotRun);
    assert!(bench.recorder.call(refused, false).is_err());
    bench.log_comes();
    assert_eq!(bench.recorder.end(None), Vec::<String>::new());
    assert_eq!(bench.counted(), 1);
}

#[test]
fn every_call_that_ran_while_the_log_was_away_is_told_of_and_memory_is_bounded() {
    let bench = Bench::new();
    let many = KEPT_MAX + 10;
    let ran = || call(Verdict::Allowed, Outcome::NotRun);
    let begun: Vec<_> = (0..many)
        .map(|_| bench.recorder.begin(ran(), false).unwrap())
        .collect();
    bench.log_goes();
    for one in begun {
        assert!(one.ended(done(1)).is_err());
    }
    // No further call runs.
    assert!(bench.recorder.begin(ran(), false).is_err());
    assert_eq!(bench.recorder.kept().len(), KEPT_MAX);
    bench.log_comes();
    drop(bench.recorder.begin(ran(), false).unwrap());
    assert_eq!(bench.recorder.end(None), Vec::<String>::new());
    let outcomes: Vec<Outcome> = bench
        .events()
        .into_iter()
        .filter_map(|event| match event {
            Event::Call(call) => Some(call.outcome),
            _ => None,
        })
        .collect();
    let (last, done) = outcomes.split_last().unwrap();
    assert!(done.iter().all(|outcome| *outcome == Outcome::Done));
    assert_eq!((done.len(), *last), (KEPT_MAX, Outcome::Cancelled));
    // Ten calls that ran, and one that was refused.
    assert_eq!(bench.counted(), 11);
    assert_eq!(bench.recorder.running.load(Ordering::Relaxed), 0);
}

#[test]
fn a_call_that_ends_with_its_connection_has_its_line() {
    let bench = Bench::new();
    let line = call(Verdict::Allowed, Outcome::NotRun);
    drop(bench.recorder.begin(line.clone(), false).unwrap());
    let mut expected = line;
    expected.outcome = Outcome::Cancelled;
    let [Event::Call(found)] = &bench.events()[..] else {
        panic!("one line");
    };
    expected.duration_us = found.duration_us;
    let log = Log::open(&file(bench.folder.path())).unwrap();
    expected.arguments = log.key.seal(expected.arguments.raw()).into();
    assert_eq!(**found, expected);
}

#[test]
fn what_was_late_has_the_time_at_which_it_happened() {
    let bench = Bench::new();
    bench.log_goes();
    let stop = |pid| Event::Stop { pid };
    assert!(bench.recorder.append(stop(1), false).is_err());
    let between = audit::now();
    bench.log_comes();
    bench.recorder.append(stop(2), false).unwrap();
    let text = fs::read(file(bench.folder.path())).unwrap();
    let times: Vec<String> = text
        .split(|byte| *byte == b'\n')
        .filter_map(|line| match read(line) {
            ReadLine::Whole(line, _) => Some(line.time),
            _ => None,
        })
        .collect();
    assert_eq!(bench.events(), [stop(1), stop(2)]);
    assert!(times[0] <= between && between <= times[1], "{times:?}");
}

#[test]
fn what_is_left_at_the_end_is_given_as_text() {
    let bench = Bench::new();
    bench.log_goes();
    let mut refused = call(Verdict::Refused, Outcome::NotRun);
    refused.service = "\u{202e}".into();
    assert!(bench.recorder.call(refused, false).is_err());
    let left = bench.recorder.end(Some(Event::Stop { pid: 1 }));
    assert_eq!(left.len(), 2);
    assert!(
        left[0].contains(r#""event":"counted","caller":"alice","service":"\u202e""#),
        "{left:?}"
    );
    assert!(left[1].ends_with(r#""event":"stop","pid":1}"#), "{left:?}");
}

fn done(bytes_out: u64) -> CallEnd {
    CallEnd {
        bytes_out,
        ..Outcome::Done.into()
    }
}
