//! Presents the connection to rmcp's service loop: requests in, answers out, one message per line.
//!
//! Limits everything that the loop leaves to its peer: line length, requests in flight, and shutdown, which waits
//! for outstanding answers.

use std::io;
use std::sync::Arc;

use memchr::memmem;
use rmcp::RoleServer;
use rmcp::model::{
    CancelledNotification, CancelledNotificationParam, ClientJsonRpcMessage, ClientNotification,
    ErrorData, RequestId, ServerJsonRpcMessage,
};
use serde::Serialize;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _};
use tokio::sync::Mutex;
use tokio::time::{Duration, Instant, sleep, sleep_until, timeout};

use super::in_flight::{InFlightRequests, RequestOutcome};
use super::message::{self, AskedRequest, ClientMessage};
use super::{Observer, Shutdown};
use crate::mcp::framing::{Line, LineLimit, json};
use crate::mcp::throttle::{HeldLine, MemoryPermit, ReadThrottle, SHORT, ThrottledLines};
use crate::mcp::{ConnectionLimits, VALUES_MAX};

/// Memory for any request, including its task and a short answer, in bytes.
const REQUEST: usize = 8 * 1024;
/// Memory for a value in a request, in bytes: an object entry with its key and the object's spare capacity.
const VALUE: usize = 320;
/// Memory for a service in a list, including its schemas, in bytes.
const LISTED: usize = 16 * 1024;
/// Text in a line that may be answered with a list.
const LIST: &[u8] = b"tools/list";
/// Text in a line that may cancel a request.
const CANCEL: &[u8] = b"notifications/cancelled";
/// Maximum length of such a line that need not wait for memory, in bytes: an id of at most 1 KiB, and a short reason.
const CANCEL_MAX: usize = 2 * 1024;

/// What a connection's server sets for its transport.
pub(in crate::mcp) struct TransportRules {
    pub(in crate::mcp) limits: ConnectionLimits,
    /// The caller's throttle; `None` if its requests are read as fast as it writes them.
    pub(in crate::mcp) throttle: Option<Arc<ReadThrottle>>,
    /// True if the connection ends after its first request is answered.
    pub(in crate::mcp) answers_once: bool,
    /// Maximum time without progress while an answer is written, and in all.
    pub(in crate::mcp) write_idle: Duration,
    pub(in crate::mcp) write_max: Duration,
    /// Returns the number of tools that a list may have; it is asked only where memory is limited.
    pub(in crate::mcp) listed: Box<dyn Fn() -> usize + Send + Sync>,
    pub(in crate::mcp) observer: Observer,
}

/// One connection.
pub(in crate::mcp) struct ServerTransport<R, W> {
    rules: TransportRules,
    lines: ThrottledLines<R>,
    writer: Arc<Mutex<W>>,
    flight: Arc<InFlightRequests>,
    stop: Shutdown,
    /// A line that is waiting for memory for its parsed request.
    waiting: Option<HeldLine>,
    /// Deadline for outstanding answers, set once no more requests are accepted.
    deadline: Option<Instant>,
}

impl<R: AsyncRead + Unpin, W> ServerTransport<R, W> {
    pub(in crate::mcp) fn new(
        reader: R,
        writer: W,
        flight: Arc<InFlightRequests>,
        max_line: LineLimit,
        rules: TransportRules,
        stop: Shutdown,
    ) -> Self {
        Self {
            lines: ThrottledLines::new(reader, max_line, rules.throttle.clone()),
            writer: Arc::new(Mutex::new(writer)),
            rules,
            flight,
            stop,
            waiting: None,
            deadline: None,
        }
    }

    /// Returns the next line as soon as one more request may be in flight; `None` if no more will be read.
    async fn line(&mut self) -> Option<HeldLine> {
        let mut limits = self.rules.limits;
        if self.lines.max() > limits.line {
            // Room for two lines of the maximum length.
            limits.in_flight_bytes = self.lines.max().saturating_mul(2);
        }
        let next = async {
            self.flight.wait_for_room(&limits).await;
            self.lines.next().await
        };
        let (line, time_left) = tokio::select! {
            // In this order, so that no request is taken after the server is told to end.
            biased;
            () = self.stop.graceful.cancelled() => (None, limits.stop),
            // A failed stream counts as ended: its peer is gone too.
            line = next => (line.ok().flatten(), limits.drain),
        };
        if line.is_none() {
            self.deadline = Some(Instant::now() + time_left);
        }
        line
    }

    /// Waits for outstanding answers, at most until the deadline.
    async fn drain(&mut self, deadline: Instant) {
        let stopped = async {
            self.stop.graceful.cancelled().await;
            sleep(self.rules.limits.stop).await;
        };
        tokio::select! {
            biased;
            () = self.flight.wait_until_empty() => return,
            () = sleep_until(deadline) => {}
            () = stopped => {}
            () = self.stop.immediate.cancelled() => {}
        }
        self.stop.immediate.cancel();
    }

    /// Passes the waiting line to rmcp as soon as memory for the parsed request is available.
    async fn parse_waiting(&mut self) -> Option<ClientJsonRpcMessage> {
        let (line, _) = self.waiting.as_ref()?;
        if let Some(id) = cancellation(line, self.lines.max()) {
            self.waiting = None;
            return self.flight.cancel(&id).map(cancelled);
        }
        let memory = match &self.rules.throttle {
            None => None,
            Some(throttle) => tokio::select! {
                // In this order, so that no request is taken after the server is told to end.
                biased;
                () = self.stop.graceful.cancelled() => {
                    self.waiting = None;
                    self.deadline = Some(Instant::now() + self.rules.limits.stop);
                    return None;
                }
                memory = throttle.request(self.memory_cost(line)) => memory.ok(),
            },
        };
        let (line, line_memory) = self.waiting.take()?;
        let bytes = line.kept();
        match message::read(&line, self.lines.max()) {
            ClientMessage::Nothing => None,
            ClientMessage::Cancelled(id) => self.flight.cancel(&id).map(cancelled),
            ClientMessage::Request(asked) => self.enter(*asked, bytes, [line_memory, memory]),
        }
    }

    /// Returns the memory that a line needs until it is answered, in bytes; counts at most [`SHORT`] bytes of its text.
    fn memory_cost(&self, line: &Line) -> usize {
        let Line::Whole(text) = line else {
            return REQUEST;
        };
        let values = json::count(text).unwrap_or_default().min(VALUES_MAX);
        // Escapes allow other spellings of the method.
        let may_list = memmem::find(text, LIST).is_some() || text.contains(&b'\\');
        let listed = if may_list { (self.rules.listed)() } else { 0 };
        REQUEST + text.len().min(SHORT) + values * VALUE + listed * LISTED
    }

    fn enter(
        &self,
        asked: AskedRequest,
        bytes: usize,
        memory: [Option<MemoryPermit>; 2],
    ) -> Option<ClientJsonRpcMessage> {
        if let Some(inner) = self.flight.enter(&asked, bytes, memory) {
            return Some(ClientJsonRpcMessage::request(asked.request, inner));
        }
        // If this error had the id, a client would take it for the answer to the first request and lose the real one.
        let twice = ErrorData::invalid_request(
            "invalid request: `id` belongs to a request that has not been answered yet",
            None,
        );
        let refused = message::refused(None, &asked.label, twice);
        let inner = self.flight.enter(&refused, bytes, [None, None])?;
        Some(ClientJsonRpcMessage::request(refused.request, inner))
    }
}

/// Returns the request that a short line cancels. Cancelling frees memory, so it must not wait for any.
fn cancellation(line: &Line, max: usize) -> Option<RequestId> {
    let Line::Whole(text) = line else {
        return None;
    };
    if text.len() > CANCEL_MAX || memmem::find(text, CANCEL).is_none() {
        return None;
    }
    match message::read(line, max) {
        ClientMessage::Cancelled(id) => Some(id),
        ClientMessage::Request(_) | ClientMessage::Nothing => None,
    }
}

fn cancelled(inner: RequestId) -> ClientJsonRpcMessage {
    let params = CancelledNotificationParam::new(Some(inner), None);
    let cancelled = CancelledNotification::new(params);
    ClientJsonRpcMessage::notification(ClientNotification::CancelledNotification(cancelled))
}

impl<R, W> rmcp::transport::Transport<RoleServer> for ServerTransport<R, W>
where
    R: AsyncRead + Send + Unpin + 'static,
    W: AsyncWrite + Send + Unpin + 'static,
{
    type Error = io::Error;

    fn send(
        &mut self,
        item: ServerJsonRpcMessage,
    ) -> impl Future<Output = io::Result<()>> + Send + 'static {
        let outer = self.flight.outer(&item);
        // The answer is counted as long as it is in memory, even if its request is cancelled.
        let held = outer
            .as_ref()
            .map(|(inner, _)| self.flight.take_held(inner));
        let writer = Arc::clone(&self.writer);
        let flight = Arc::clone(&self.flight);
        let stop = self.stop.clone();
        let observer = Arc::clone(&self.rules.observer);
        let (idle_time, max_time) = (self.rules.write_idle, self.rules.write_max);
        async move {
            if outer.is_none() && !matches!(item, ServerJsonRpcMessage::Notification(_)) {
                // Cancelled: its answer is no longer wanted.
                return Ok(());
            }
            let _held = held;
            let mut writer = writer.lock().await;
            if outer.is_some() && flight.outer(&item).is_none() {
                // Cancelled while it was waiting.
                return Ok(());
            }
            // Encoded only now, so that only one answer at a time is in memory twice.
            let outcome = RequestOutcome::of(&item);
            let line = encode(item, outer.as_ref().and_then(|(_, id)| id.clone()))?;
            if let Some((inner, _)) = &outer {
                flight.free_id(inner);
            }
            let writing = timeout(max_time, write(&mut *writer, &line, idle_time));
            let written = writing.await.unwrap_or_else(|elapsed| Err(elapsed.into()));
            drop(writer);
            if let Some((inner, _)) = outer
                && let Some(answered) = flight.answered(&inner, outcome, line.len())
            {
                observer(&answered);
            }
            if written.is_err() {
                // The peer no longer reads, so end the calls that are still running.
                stop.immediate.cancel();
            }
            written
        }
    }

    async fn receive(&mut self) -> Option<ClientJsonRpcMessage> {
        loop {
            if let Some(deadline) = self.deadline {
                self.drain(deadline).await;
                return None;
            }
            if self.waiting.is_none() {
                self.waiting = self.line().await;
            }
            if let Some(message) = self.parse_waiting().await {
                if self.rules.answers_once {
                    // Only the first request is answered.
                    self.deadline = Some(Instant::now() + self.rules.limits.drain);
                }
                return Some(message);
            }
        }
    }

    async fn close(&mut self) -> io::Result<()> {
        // Every answer is flushed as it is written; the stream closes when it is dropped.
        Ok(())
    }
}

/// An error as a line, without an id if the request had no readable one: JSON-RPC's `null` is not an id in MCP
/// (schema 2025-11-25, `JSONRPCErrorResponse`), and clients that validate their input throw on it.
#[derive(Serialize)]
struct ErrorLine<'a> {
    jsonrpc: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<RequestId>,
    error: &'a ErrorData,
}

/// Encodes a message as a line, with the client's own id.
fn encode(mut message: ServerJsonRpcMessage, id: Option<RequestId>) -> io::Result<Vec<u8>> {
    let mut line = if let ServerJsonRpcMessage::Error(error) = &message {
        serde_json::to_vec(&ErrorLine {
            jsonrpc: "2.0",
            id,
            error: &error.error,
        })?
    } else {
        if let (ServerJsonRpcMessage::Response(response), Some(id)) = (&mut message, id) {
            response.id = id;
        }
        serde_json::to_vec(&message)?
    };
    line.push(b'\n');
    Ok(line)
}

/// Writes a line; no single write may take longer than `idle_time`.
async fn write(
    writer: &mut (impl AsyncWrite + Unpin),
    mut line: &[u8],
    idle_time: Duration,
) -> io::Result<()> {
    while !line.is_empty() {
        if timeout(idle_time, writer.write_buf(&mut line)).await?? == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
    }
    writer.flush().await
}
