//! Feeds arbitrary bytes to a connection and checks that it ends and answers in JSON-RPC; for the fuzzer and tests.

#![expect(clippy::panic, reason = "a violation stops the fuzzer")]

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Map, Value, json};
use tokio::io::AsyncReadExt as _;

use super::{Server, Shared, Shutdown};
use crate::audit::{AuditError, Log};
use crate::limits::MESSAGES_AT_ONCE;
use crate::mcp::concurrency::ConcurrencyLimiter;
use crate::mcp::monitor::Local;
use crate::mcp::policy_watcher::Policy;
use crate::mcp::recorder::Recorder;
use crate::name::{MachineName, ToolName};
use crate::policy::Caller;
use crate::tool::{Settings, ToolOutcome};

/// Maximum duration of a run; a longer run counts as a hang.
const MAX_TIME: Duration = Duration::from_secs(20);

/// Returns the first lines, up to half the number that may arrive in one burst: more might have to wait.
fn in_time(bytes: &[u8]) -> &[u8] {
    let lines = bytes.split_inclusive(|byte| *byte == b'\n');
    let length = lines
        .take(MESSAGES_AT_ONCE as usize / 2)
        .map(<[u8]>::len)
        .sum();
    bytes.get(..length).unwrap_or(bytes)
}

/// Serves a consumer that sends these bytes and then closes its end; the tools do nothing but answer.
///
/// # Panics
///
/// Panics if the server does not end, or writes anything other than JSON-RPC lines.
pub fn connection(bytes: &[u8]) {
    let folder = tempfile::tempdir().unwrap_or_else(|error| panic!("no folder: {error}"));
    serve(in_time(bytes), &folder.path().join("audit.jsonl"));
}

/// Returns the server's answers to these bytes; `log` is the path of its call log.
fn serve(bytes: &[u8], log: &Path) -> Vec<Value> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap_or_else(|error| panic!("no runtime: {error}"));
    let bytes = std::io::Cursor::new(bytes.to_vec());
    let mut written = Vec::new();
    let served = runtime.block_on(async {
        let (writer, mut output) = tokio::io::duplex(64 * 1024);
        let serving = server(log).serve(bytes, writer, Shutdown::default());
        let both = async { tokio::join!(serving, output.read_to_end(&mut written)) };
        tokio::time::timeout(MAX_TIME, both).await
    });
    assert!(served.is_ok(), "the connection does not end");
    let lines = written.split_inclusive(|byte| *byte == b'\n');
    let messages = lines.map(|line| {
        let message: Value = serde_json::from_slice(line)
            .unwrap_or_else(|error| panic!("not JSON: {error}: {line:?}"));
        assert_eq!(message.get("jsonrpc"), Some(&Value::from("2.0")));
        assert_eq!(line.last(), Some(&b'\n'));
        message
    });
    messages.collect()
}

fn server(log: &Path) -> Server {
    let services: Vec<_> = ToolName::ALL
        .iter()
        .map(|tool| json!({"name": tool, "tool": tool, "consumers": ["work-dev"]}))
        .collect();
    let services = serde_json::from_value(json!({"machine": "vault", "services": services}));
    let policy = Policy::new(services.unwrap_or_else(|error| panic!("{error}")));
    let log = Log::open(log).unwrap_or_else(|error| panic!("{error}"));
    let complain = Box::new(|error: &AuditError| panic!("{error}"));
    let caller = "work-dev".parse::<MachineName>();
    let caller = Caller::Consumer(caller.unwrap_or_else(|error| panic!("{error}")));
    let shared = Shared {
        monitor: Box::new(Local {
            caller: caller.clone(),
            policy: Box::new(move || Arc::clone(&policy)),
            recorder: Arc::new(Recorder::new(Some(log), true, complain)),
            limiter: Arc::new(ConcurrencyLimiter::default()),
        }),
        settings: Arc::new(Settings::new("/nonexistent".into(), "/nonexistent".into())),
        helpers: None,
        observer: Arc::new(|_| {}),
    };
    let mut server = Server::new(caller, Arc::new(shared));
    server.throttle = Some(Arc::default());
    server.run = Arc::new(|grant, _, _| {
        let text = grant.name().to_owned();
        Box::pin(async move {
            Ok(ToolOutcome {
                text,
                is_png: false,
                structured: Map::new(),
            })
        })
    });
    server
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_seeds_are_answered_and_logged() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fuzz/seeds/connection");
        let mut seeds: Vec<_> = std::fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .collect();
        seeds.sort();
        let mut called = 0;
        let own = tempfile::tempdir().unwrap();
        let log = own.path().join("audit.jsonl");
        for seed in &seeds {
            let bytes = std::fs::read(seed).unwrap();
            let answers = serve(in_time(&bytes), &log);
            assert!(!answers.is_empty(), "{}", seed.display());
            let results = answers.iter().map(|answer| &answer["result"]["content"]);
            called += results.filter(|content| content.is_array()).count();
        }
        let lines = String::from_utf8(std::fs::read(&log).unwrap()).unwrap();
        // One of the two calls was cancelled; it still has a line with its id.
        assert_eq!((called, lines.lines().count()), (1, 2), "{lines}");
        for id in [r#""id":"\"a\"""#, r#""id":"2""#] {
            assert!(lines.contains(id), "{lines}");
        }
        assert!(in_time(&b"\n".repeat(100_000)).len() < 1000);
        connection(b"no JSON");
    }
}
