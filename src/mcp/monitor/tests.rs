//! Tests a worker and its monitor as two ends of a socket: requests and their log lines.

use std::io::Write as _;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use serde_json::json;

use super::remote::RemoteMonitor;
use super::*;
use crate::audit::chain::{ReadLine, read};
use crate::audit::{CallEnd, Event, Log};
use crate::mcp::policy_watcher::PolicyWatcher;
use crate::services::Services;
use crate::text::Foreign;

/// A server with two consumers, and the worker's end of alice's socket.
struct Bench {
    folder: tempfile::TempDir,
    attending: JoinHandle<()>,
    socket: UnixStream,
}

fn services(consumers: &[&str]) -> Services {
    serde_json::from_value(json!({
        "machine": "vault",
        "services": [
            {"name": "sign", "tool": "gpg_sign", "consumers": consumers, "limits": {"in_flight": 1}},
            {"name": "secret", "tool": "clipboard_get", "consumers": ["bob"]},
        ]
    }))
    .unwrap()
}

impl Bench {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("services.json");
        std::fs::write(&path, services(&["alice", "bob"]).to_file()).unwrap();
        let watcher = Arc::new(PolicyWatcher::new(
            &path,
            PolicyWatcher::read(&path).unwrap(),
            Box::new(|_, _| {}),
        ));
        let log = Log::open(&folder.path().join("audit.jsonl")).unwrap();
        let alice = "alice".parse().unwrap();
        let source = Arc::clone(&watcher);
        let local = Local {
            caller: Caller::Consumer("alice".parse().unwrap()),
            policy: Box::new(move || source.current()),
            recorder: Arc::new(Recorder::new(Some(log), true, Box::new(|_| {}))),
            limiter: Arc::new(ConcurrencyLimiter::default()),
        };
        let (socket, process) = UnixStream::pair().unwrap();
        let attending = std::thread::spawn(move || {
            attend(&process, &alice, &watcher, &local, &Nothing);
        });
        Self {
            folder,
            attending,
            socket,
        }
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("services.json")
    }

    fn remote(&self, lost: impl Fn() + Send + Sync + 'static) -> RemoteMonitor {
        RemoteMonitor::new(self.socket.try_clone().unwrap(), &self.path(), lost).unwrap()
    }

    /// Returns the calls in the log.
    fn calls(&self) -> Vec<Call> {
        let text = std::fs::read(self.folder.path().join("audit.jsonl")).unwrap();
        let lines = text.split(|byte| *byte == b'\n');
        lines
            .filter(|line| !line.is_empty())
            .map(|line| match read(line) {
                ReadLine::Whole(line, _) => match line.event {
                    Event::Call(call) => *call,
                    other => panic!("{other:?}"),
                },
                other => panic!("{other:?}"),
            })
            .collect()
    }
}

/// Returns a log line whose caller and tool are wrong.
fn line(service: &str, policy: &str) -> Call {
    Call {
        id: "1".into(),
        caller: "bob".into(),
        service: service.into(),
        tool: Some("clipboard_set".into()),
        decision: Verdict::Allowed,
        reason: "granted".into(),
        policy: policy.into(),
        outcome: Outcome::NotRun,
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
fn a_call_is_let_in_and_logged_as_its_callers_whatever_its_process_says() {
    let bench = Bench::new();
    let remote = bench.remote(|| {});
    let policy = remote.policy();
    assert_eq!(policy.digest, services(&["alice", "bob"]).digest());
    let names: Vec<_> = policy.services.services.iter().collect();
    assert_eq!(names.len(), 1, "{names:?}");
    assert_eq!(names[0].consumers, ["alice".parse().unwrap()]);
    let place = remote.admit(line("sign", &policy.digest)).unwrap();
    let full = remote.admit(line("sign", &policy.digest)).err().unwrap();
    assert!(matches!(full, AdmitError::Overloaded(_)), "{full:?}");
    place.ended(done(7)).unwrap();
    // The place is free again, but another consumer's service remains out of reach.
    drop(remote.admit(line("sign", &policy.digest)).unwrap());
    let other = remote.admit(line("secret", &policy.digest)).err().unwrap();
    assert!(matches!(other, AdmitError::Changed), "{other:?}");
    let mut refused = line("secret", &policy.digest);
    refused.decision = Verdict::Refused;
    refused.reason = "x".repeat(60_000).into();
    remote.log(refused).unwrap();
    let said: Vec<_> = bench
        .calls()
        .into_iter()
        .map(|call| (call.caller, call.tool.unwrap(), call.outcome, call.reason))
        .collect();
    let expected = |tool: &str, outcome, reason: &str| {
        (
            Foreign::from("alice"),
            Foreign::from(tool),
            outcome,
            Foreign::from(reason),
        )
    };
    assert_eq!(
        said,
        [
            expected("gpg_sign", Outcome::Done, "granted"),
            expected("gpg_sign", Outcome::Cancelled, "granted"),
            expected("clipboard_get", Outcome::NotRun, "not a consumer"),
        ]
    );
}

#[test]
fn another_policy_is_seen_at_the_next_look_and_no_call_runs_by_an_old_one() {
    let bench = Bench::new();
    let remote = bench.remote(|| {});
    let before = remote.policy();
    std::fs::write(bench.path(), services(&["bob"]).to_file()).unwrap();
    let old = remote.admit(line("sign", &before.digest)).err().unwrap();
    assert!(matches!(old, AdmitError::Changed), "{old:?}");
    let after = remote.policy();
    assert_eq!(after.digest, services(&["bob"]).digest());
    assert!(after.services.services.is_empty());
}

#[test]
fn a_process_that_ends_has_its_calls_logged_and_one_without_a_server_runs_nothing() {
    let bench = Bench::new();
    let lost = Arc::new(AtomicBool::new(false));
    let hears = Arc::clone(&lost);
    let remote = bench.remote(move || hears.store(true, Ordering::Relaxed));
    let digest = remote.policy().digest.clone();
    let place = remote.admit(line("sign", &digest)).unwrap();
    bench.socket.shutdown(std::net::Shutdown::Both).unwrap();
    let Bench {
        folder, attending, ..
    } = bench;
    attending.join().unwrap();
    let text = std::fs::read(folder.path().join("audit.jsonl")).unwrap();
    let text = String::from_utf8(text).unwrap();
    assert!(text.contains(r#""outcome":"cancelled""#), "{text}");
    assert!(!lost.load(Ordering::Relaxed));
    assert!(place.ended(done(1)).is_err());
    assert!(lost.load(Ordering::Relaxed));
    assert!(matches!(
        remote.admit(line("sign", &digest)).err(),
        Some(AdmitError::Unlogged)
    ));
}

#[test]
fn what_is_no_question_ends_the_process_that_asks_it() {
    let long = |bytes: u32| bytes.to_le_bytes().to_vec();
    let unfit = [
        [long(4), b"null".to_vec()].concat(),
        [long(5), b"\"Who\"".to_vec()].concat(),
        long(1024 * 1024),
        [
            long(30),
            br#"{"Left":{"place":18446744073709}}"#[..30].to_vec(),
        ]
        .concat(),
        // A place that no call occupies.
        [long(20), br#"{"Left":{"place":3}}"#.to_vec()].concat(),
    ];
    for bytes in unfit {
        let bench = Bench::new();
        (&bench.socket).write_all(&bytes).unwrap();
        bench.attending.join().unwrap();
    }
}

/// A server that provides no resources.
struct Nothing;

impl House for Nothing {
    fn start(&self, _: crate::tool::Resource) -> std::io::Result<std::os::fd::OwnedFd> {
        Err(std::io::ErrorKind::Unsupported.into())
    }

    fn borrow(&self) -> bool {
        false
    }

    fn give_back(&self) {}
}

fn done(bytes_out: u64) -> CallEnd {
    CallEnd {
        bytes_out,
        ..Outcome::Done.into()
    }
}
