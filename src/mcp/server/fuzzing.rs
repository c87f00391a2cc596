//! One connection fed with any bytes: what must hold whatever a caller sends. For the fuzzer, and for a test of its seeds.

#![expect(clippy::panic, reason = "what must not happen stops the fuzzer")]

use std::path::Path;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use serde_json::{Map, Value};
use tokio::io::AsyncWrite;

use super::{Server, Shared, Shutdown};
use crate::audit::{AuditError, Log};
use crate::limits::{Limits, MESSAGES_AT_ONCE};
use crate::mcp::concurrency::ConcurrencyLimiter;
use crate::mcp::monitor::Local;
use crate::mcp::policy_watcher::Policy;
use crate::mcp::recorder::Recorder;
use crate::name::{MachineName, ToolName};
use crate::policy::Caller;
use crate::services::{Service, Services};
use crate::tool::{Settings, ToolOutcome};

/// Maximum duration of a run, in seconds; a connection that takes longer hangs.
const LONGEST: u64 = 20;

/// As many lines as are read at once: those beyond would wait.
fn in_time(bytes: &[u8]) -> &[u8] {
    let lines = bytes.split_inclusive(|byte| *byte == b'\n');
    let length = lines
        .take(MESSAGES_AT_ONCE as usize / 2)
        .map(<[u8]>::len)
        .sum();
    bytes.get(..length).unwrap_or(bytes)
}

/// Serves a consumer that sends these bytes and then ends; its tools do nothing but answer.
///
/// # Panics
///
/// When the server does not end, or writes what is not a line of JSON-RPC.
pub fn connection(bytes: &[u8]) {
    let folder = tempfile::tempdir().unwrap_or_else(|error| panic!("no folder: {error}"));
    serve(in_time(bytes), &folder.path().join("audit.jsonl"));
}

/// The server's output; `log` is its log of calls.
fn serve(bytes: &[u8], log: &Path) -> Vec<Value> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap_or_else(|error| panic!("no runtime: {error}"));
    let output = Output::default();
    let written = output.clone();
    let bytes = bytes.to_vec();
    let served = runtime.block_on(async {
        let server = server(log);
        let serving = server.serve(std::io::Cursor::new(bytes), output, Shutdown::default());
        tokio::time::timeout(std::time::Duration::from_secs(LONGEST), serving).await
    });
    assert!(served.is_ok(), "the connection does not end");
    let written = written.0.lock().unwrap_or_else(PoisonError::into_inner);
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
    let policy = Policy::new(services());
    let log = Log::open(log).unwrap_or_else(|error| panic!("{error}"));
    let complain = Box::new(|error: &AuditError| panic!("{error}"));
    let shared = Shared {
        monitor: Box::new(Local::new(
            Caller::Consumer(name("work-dev")),
            Box::new(move || Arc::clone(&policy)),
            Arc::new(Recorder::new(Some(log), true, complain)),
            Arc::new(ConcurrencyLimiter::default()),
        )),
        settings: Arc::new(Settings::new("/nonexistent".into(), "/nonexistent".into())),
        helpers: None,
        observer: Arc::new(|_| {}),
    };
    let mut server = Server::new(Caller::Consumer(name("work-dev")), Arc::new(shared));
    server.pace = Some(Arc::default());
    server.run = Arc::new(|grant, _, _| {
        let text = grant.name().to_owned();
        Box::pin(async move {
            Ok(ToolOutcome {
                text,
                structured: Map::new(),
            })
        })
    });
    server
}

fn services() -> Services {
    let service = |tool: &ToolName| Service {
        name: tool
            .as_str()
            .parse()
            .unwrap_or_else(|error| panic!("{error}")),
        tool: *tool,
        consumers: vec![name("work-dev")],
        with: Map::new(),
        limits: Limits::default(),
        declared_at: None,
    };
    Services {
        machine: name("vault"),
        services: ToolName::ALL.iter().map(service).collect(),
        allow_unlogged: false,
        memory: None,
        confinement: crate::infra::Confinement::Available,
    }
}

fn name(text: &str) -> MachineName {
    text.parse().unwrap_or_else(|error| panic!("{error}"))
}

/// Keeps what is written.
#[derive(Clone, Default)]
struct Output(Arc<Mutex<Vec<u8>>>);

impl AsyncWrite for Output {
    fn poll_write(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        let mut written = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        written.extend_from_slice(bytes);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }
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
        // Of two calls one was taken back, and has its line and its id all the same.
        assert_eq!((called, lines.lines().count()), (1, 2), "{lines}");
        for id in [r#""id":"\"a\"""#, r#""id":"2""#] {
            assert!(lines.contains(id), "{lines}");
        }
        assert!(in_time(&b"\n".repeat(100_000)).len() < 1000);
        connection(b"no JSON");
    }
}
