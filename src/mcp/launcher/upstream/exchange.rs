//! Exchanges messages with a running upstream, within limits, until it ends.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use serde_json::json;
use tokio::io::{AsyncRead, AsyncWriteExt as _, ReadBuf};
use tokio::net::unix::pipe;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use super::error_output::ErrorOutput;
use crate::child::{GRACE, RunningProgram};
use crate::mcp::client::{Incoming, PROGRESS_BYTES_MAX, ProgressSink, UpstreamAnswer, incoming};
use crate::mcp::framing::{Line, Lines};

/// Maximum length of a message from an upstream, in bytes: an image of 8 MiB in base64, twice.
const LINE_MAX: usize = 32 * 1024 * 1024;
/// Maximum number of messages and bytes that an upstream may send without answering.
const STRAY_MAX: usize = 20_000;
const STRAY_BYTES_MAX: usize = 64 * 1024 * 1024;
/// Size of an empty output buffer, in bytes, that is not kept.
const BUFFER_KEPT_MAX: usize = 64 * 1024;

/// The reason why an upstream has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(in crate::mcp::launcher) enum UpstreamEnd {
    #[error("it was stopped")]
    Stopped,
    #[error("nobody needs it any more")]
    Unneeded,
    #[error("it was idle")]
    Idle,
    /// It ended, for another of these reasons, when the call was about to begin.
    #[error("try again")]
    Before,
    #[error("it closed its output")]
    Closed,
    #[error("it cannot be read")]
    Unreadable,
    #[error("it keeps sending without answering")]
    SentTooMuch,
    #[error("it refused `initialize`")]
    RefusedInitialize,
    #[error("it does not list its tools")]
    ListRefused,
    #[error("its list of tools is too long")]
    ListTooLong,
    #[error("it did not list its tools in time")]
    ListTimedOut,
}

impl UpstreamEnd {
    /// Returns whether the upstream, rather than this process, is the cause.
    pub(super) const fn is_failure(self) -> bool {
        !matches!(
            self,
            Self::Stopped | Self::Unneeded | Self::Idle | Self::Before
        )
    }
}

/// What the exchange shares with those who make requests.
#[derive(Default)]
pub(super) struct ExchangeState {
    /// Cancelled to end the server.
    pub(super) stop: CancellationToken,
    /// Cancelled when the server has ended.
    pub(super) ended: CancellationToken,
    pub(super) last_id: AtomicI64,
    /// True if the server says that its tools have changed.
    pub(super) is_stale: AtomicBool,
    pub(super) in_flight: AtomicUsize,
    /// Number of bytes that wait to be written.
    pub(super) unsent: AtomicUsize,
}

/// A message to an upstream, without its newline.
pub(super) enum UpstreamOutgoing {
    Request {
        id: i64,
        line: Vec<u8>,
        waiting: UpstreamRequest,
    },
    Notification(Vec<u8>),
    /// The answer to this request is no longer wanted.
    Cancel(i64),
}

/// A request that waits for its answer.
pub(super) struct UpstreamRequest {
    pub(super) answer: oneshot::Sender<Result<UpstreamAnswer, UpstreamLoss>>,
    pub(super) progress: Option<ProgressSink>,
}

/// The reason why a request has no answer.
pub(super) enum UpstreamLoss {
    Ended(UpstreamEnd),
    /// Its answer may have been a message of this length, in bytes, which is too long.
    TooLong(u64),
}

/// Counts the bytes that an upstream sends without answering.
struct CountedReader {
    pipe: pipe::Receiver,
    /// The number of bytes that it may still send.
    left: Arc<AtomicUsize>,
}

impl AsyncRead for CountedReader {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.pipe).poll_read(context, buffer);
        let count = buffer.filled().len().saturating_sub(before);
        let left = self.left.load(Ordering::Relaxed);
        self.left
            .store(left.saturating_sub(count), Ordering::Relaxed);
        if left < count {
            return Poll::Ready(Err(io::ErrorKind::QuotaExceeded.into()));
        }
        read
    }
}

/// Exchanges messages with a server until it ends, is told to end, or has been idle for a while.
pub(super) async fn exchange(
    program: RunningProgram,
    mut queue: mpsc::UnboundedReceiver<UpstreamOutgoing>,
    state: Arc<ExchangeState>,
    idle: Duration,
    errors: ErrorOutput,
) {
    let RunningProgram {
        mut stdin,
        stdout,
        stderr,
        running,
        mut end,
    } = program;
    let reporting = tokio::spawn(errors.pass_on(stderr));
    let mut session = UpstreamSession {
        waiting: HashMap::new(),
        unsent: VecDeque::new(),
        stray: 0,
        left: Arc::new(AtomicUsize::new(STRAY_BYTES_MAX)),
        state: Arc::clone(&state),
    };
    let reader = CountedReader {
        pipe: stdout,
        left: Arc::clone(&session.left),
    };
    let mut lines = Lines::new(reader, LINE_MAX);
    let mut last = Instant::now();
    let why = loop {
        let is_idle = session.waiting.is_empty();
        let has_unsent = !session.unsent.is_empty();
        tokio::select! {
            () = state.stop.cancelled() => break UpstreamEnd::Stopped,
            written = stdin.write_buf(&mut session.unsent), if has_unsent => match written {
                Ok(_) => session.note_written(),
                Err(_) => break UpstreamEnd::Closed,
            },
            outgoing = queue.recv() => match outgoing {
                Some(outgoing) => {
                    last = Instant::now();
                    session.take(outgoing);
                }
                None => break UpstreamEnd::Unneeded,
            },
            line = lines.next() => match line {
                Ok(Some(line)) => {
                    // Without a call, what it says is no use of it.
                    if !is_idle {
                        last = Instant::now();
                    }
                    if !session.receive(&line) {
                        break UpstreamEnd::SentTooMuch;
                    }
                }
                Ok(None) => break UpstreamEnd::Closed,
                Err(why) if why.kind() == io::ErrorKind::QuotaExceeded => {
                    break UpstreamEnd::SentTooMuch;
                }
                Err(_) => break UpstreamEnd::Unreadable,
            },
            () = sleep_until(last + idle), if is_idle => break UpstreamEnd::Idle,
        }
    };
    state.ended.cancel();
    queue.close();
    while let Ok(outgoing) = queue.try_recv() {
        session.take(outgoing);
    }
    session.lose_all(|| UpstreamLoss::Ended(why));
    // A server ends at the end of its input (MCP, transports); one that does not is ended.
    drop((stdin, lines));
    let _ = timeout(GRACE, end.ended()).await;
    drop((running, end));
    let _ = reporting.await;
}

/// The state of the exchange with a server.
struct UpstreamSession {
    waiting: HashMap<i64, UpstreamRequest>,
    unsent: VecDeque<u8>,
    /// Number of messages since the last answer.
    stray: usize,
    left: Arc<AtomicUsize>,
    state: Arc<ExchangeState>,
}

impl UpstreamSession {
    fn take(&mut self, outgoing: UpstreamOutgoing) {
        match outgoing {
            UpstreamOutgoing::Request { id, line, waiting } => {
                self.waiting.insert(id, waiting);
                self.queue(&line);
            }
            UpstreamOutgoing::Notification(line) => self.queue(&line),
            UpstreamOutgoing::Cancel(id) => {
                if self.waiting.remove(&id).is_some() {
                    let cancelled = json!({
                        "jsonrpc": "2.0",
                        "method": "notifications/cancelled",
                        "params": {"requestId": id},
                    });
                    self.queue(cancelled.to_string().as_bytes());
                }
            }
        }
    }

    fn queue(&mut self, line: &[u8]) {
        self.unsent.extend(line);
        self.unsent.push_back(b'\n');
        self.note_unsent();
    }

    fn note_written(&mut self) {
        if self.unsent.is_empty() {
            self.unsent.shrink_to(BUFFER_KEPT_MAX);
        }
        self.note_unsent();
    }

    fn note_unsent(&self) {
        self.state
            .unsent
            .store(self.unsent.len(), Ordering::Relaxed);
    }

    fn lose_all(&mut self, loss: impl Fn() -> UpstreamLoss) {
        for (_, waiting) in self.waiting.drain() {
            // The caller may be gone.
            let _ = waiting.answer.send(Err(loss()));
        }
    }

    /// Takes a line of the server; returns false if it sends too much without answering.
    fn receive(&mut self, line: &Line) -> bool {
        self.stray += 1;
        let bytes = match line {
            Line::Whole(bytes) => bytes,
            Line::TooLong { bytes, .. } => {
                // Whose answer it is, is unknown.
                self.lose_all(|| UpstreamLoss::TooLong(*bytes));
                return true;
            }
        };
        match incoming(bytes) {
            Incoming::Answer { id, answer } => {
                if let Some(waiting) = self.waiting.remove(&id) {
                    self.stray = 0;
                    self.left.store(STRAY_BYTES_MAX, Ordering::Relaxed);
                    // The caller may be gone.
                    let _ = waiting.answer.send(Ok(answer));
                }
            }
            Incoming::Progress { token, params } => {
                let waiting = self.waiting.get(&token);
                let waiting = waiting.filter(|_| params.get().len() <= PROGRESS_BYTES_MAX);
                if let Some(progress) = waiting.and_then(|waiting| waiting.progress.as_ref()) {
                    // A caller that is slow misses some.
                    let _ = progress.try_send(params);
                }
            }
            Incoming::Asked(reply) => self.queue(reply.as_bytes()),
            Incoming::ToolsChanged => self.state.is_stale.store(true, Ordering::Relaxed),
            Incoming::Other => {}
        }
        self.stray <= STRAY_MAX
    }
}
