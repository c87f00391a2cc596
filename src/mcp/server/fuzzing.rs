//! One connection fed with any bytes: what must hold whatever a caller sends.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use serde_json::{Map, Value};
use tokio::io::AsyncWrite;

use super::{Server, Shared, Stop};
use crate::limits::Limits;
use crate::mcp::gate::Gate;
use crate::mcp::live::Policy;
use crate::mcp::recorder::Recorder;
use crate::name::{MachineName, ToolName};
use crate::policy::Caller;
use crate::services::{Service, Services};
use crate::tool::{Outcome, Settings};

/// Longest run, in seconds; a connection that takes longer hangs.
const LONGEST: u64 = 20;

/// Serves a consumer that sends these bytes and then ends; its tools do nothing but answer.
///
/// # Panics
///
/// When the server does not end, or writes what is not a line of JSON-RPC.
pub fn connection(bytes: &[u8]) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap_or_else(|error| panic!("no runtime: {error}"));
    let output = Output::default();
    let written = output.clone();
    let bytes = bytes.to_vec();
    let served = runtime.block_on(async {
        let server = server();
        let serving = server.serve(std::io::Cursor::new(bytes), output, Stop::default());
        tokio::time::timeout(std::time::Duration::from_secs(LONGEST), serving).await
    });
    assert!(served.is_ok(), "the connection does not end");
    let written = written.0.lock().unwrap_or_else(PoisonError::into_inner);
    for line in written.split_inclusive(|byte| *byte == b'\n') {
        let message: Value = serde_json::from_slice(line)
            .unwrap_or_else(|error| panic!("not JSON: {error}: {line:?}"));
        assert_eq!(message.get("jsonrpc"), Some(&Value::from("2.0")));
        assert_eq!(line.last(), Some(&b'\n'));
    }
}

fn server() -> Server {
    let policy = Policy::new(services());
    let shared = Shared {
        policy: Box::new(move || Arc::clone(&policy)),
        settings: Arc::new(Settings::new("/nonexistent".into(), "/nonexistent".into())),
        recorder: Arc::new(Recorder::new(None, false, Box::new(|_| {}))),
        gate: Arc::new(Gate::default()),
        observer: Arc::new(|_| {}),
    };
    let mut server = Server::new(Caller::Consumer(name("work-dev")), Arc::new(shared));
    server.run = Arc::new(|grant, _| {
        let text = grant.name().to_owned();
        Box::pin(async move {
            Ok(Outcome {
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
