//! The connection as rmcp's service loop sees it: requests in, answers out, one message a line.
//!
//! Everything that the loop leaves to its peer's good will is bounded here: line length, requests in flight,
//! and the end, which waits for the answers that are still due.

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
use tokio::time::{Duration, Instant, timeout, timeout_at};

use super::in_flight::{How, InFlightRequests};
use super::message::{self, AskedRequest, ClientMessage};
use super::paced::{Held, PacedLines};
use super::{Observer, Server, Shutdown};
use crate::limits::CALL_TIME;
use crate::mcp::framing::Line;
use crate::mcp::framing::json;
use crate::mcp::throttle::{MemoryPermit, ReadThrottle, SHORT};
use crate::mcp::{ConnectionLimits, VALUES_MAX};

/// Bytes that any request takes, with its task and a short answer.
const REQUEST: usize = 8 * 1024;
/// Bytes of a value in a request: an entry of an object, with its key and the room that the object keeps for more.
const VALUE: usize = 320;
/// Bytes of a service in a list, with its schemas.
const LISTED: usize = 16 * 1024;
/// A line that has these words may be answered with a list.
const LIST: &[u8] = b"tools/list";
/// A line that has these words may take a request back.
const CANCEL: &[u8] = b"notifications/cancelled";
/// Maximum length of a such line, in bytes, that waits for no memory: an id has 1 KiB at most, and a reason is a sentence.
const CANCEL_MAX: usize = 2 * 1024;

/// One connection.
pub(super) struct ServerTransport<R, W> {
    lines: PacedLines<R>,
    writer: Arc<Mutex<W>>,
    /// Time for which a caller may read nothing of an answer.
    patience: Duration,
    flight: Arc<InFlightRequests>,
    limits: ConnectionLimits,
    stop: Shutdown,
    observer: Observer,
    /// The first request is the last one.
    only_one: bool,
    /// A line that waits for the memory of what it becomes.
    waiting: Option<Held>,
    pace: Option<Arc<ReadThrottle>>,
    /// The services of the caller, which a list tells of.
    service_count: Box<dyn Fn() -> usize + Send + Sync>,
    /// Until when the answers that are still due are waited for, once no more requests come.
    last_moment: Option<Instant>,
}

impl<R: AsyncRead + Unpin, W> ServerTransport<R, W> {
    pub(super) fn new(
        reader: R,
        writer: W,
        flight: Arc<InFlightRequests>,
        server: &Server,
        stop: Shutdown,
    ) -> Self {
        let limits = server.limits;
        Self {
            lines: PacedLines::new(reader, server.longest_line(), server.pace.clone()),
            writer: Arc::new(Mutex::new(writer)),
            patience: match server.pace {
                Some(_) => server.shared.settings.idle,
                // The operator's own: a terminal may be stopped.
                None => Duration::MAX,
            },
            flight,
            limits,
            stop,
            observer: Arc::clone(&server.shared.observer),
            only_one: server.beyond.is_some(),
            waiting: None,
            pace: server.pace.clone(),
            service_count: server.service_count(),
            last_moment: None,
        }
    }

    /// The next line, as soon as there is room for it; `None` when no more are to come.
    async fn line(&mut self) -> Option<Held> {
        let mut limits = self.limits;
        if self.lines.max() > limits.line {
            // Two that are as long as may be.
            limits.in_flight_bytes = self.lines.max().saturating_mul(2);
        }
        let next = async {
            self.flight.room(&limits).await;
            self.lines.next().await
        };
        let (line, patience) = tokio::select! {
            // In this order: once told to end, not one more request is taken.
            biased;
            () = self.stop.gently.cancelled() => (None, self.limits.stop),
            // A stream that fails has ended: there is nobody to tell.
            line = next => (line.ok().flatten(), self.limits.drain),
        };
        if line.is_none() {
            self.last_moment = Some(Instant::now() + patience);
        }
        line
    }

    /// Waits for the answers that are still due, but not for ever.
    async fn drain(&mut self, last_moment: Instant) {
        let stop_moment = async {
            self.stop.gently.cancelled().await;
            tokio::time::sleep(self.limits.stop).await;
        };
        tokio::select! {
            in_time = timeout_at(last_moment, self.flight.empty()) => {
                if in_time.is_err() {
                    self.stop.now.cancel();
                }
            }
            () = stop_moment => self.stop.now.cancel(),
            () = self.stop.now.cancelled() => {}
        }
    }

    /// Hands the waiting line to rmcp as soon as there is memory for the parsed request.
    async fn parse_waiting(&mut self) -> Option<ClientJsonRpcMessage> {
        let (line, _) = self.waiting.as_ref()?;
        if let Some(id) = cancellation(line, self.lines.max()) {
            self.waiting = None;
            return self.flight.cancel(&id).map(cancelled);
        }
        let memory = match (&self.pace, self.memory_cost(line)) {
            (None, _) => None,
            (Some(pace), memory_cost) => tokio::select! {
                // In this order: once told to end, not one more request is taken.
                biased;
                () = self.stop.gently.cancelled() => {
                    self.waiting = None;
                    self.last_moment = Some(Instant::now() + self.limits.stop);
                    return None;
                }
                room = pace.request(memory_cost) => room.ok(),
            },
        };
        let (line, room) = self.waiting.take()?;
        let bytes = line.kept();
        match message::read(&line, self.lines.max()) {
            ClientMessage::Nothing => None,
            ClientMessage::Cancelled(id) => self.flight.cancel(&id).map(cancelled),
            ClientMessage::Request(asked) => self.enter(*asked, bytes, [room, memory]),
        }
    }

    /// Bytes that a line may take until it is answered, beside its text, which is counted where it is long.
    fn memory_cost(&self, line: &Line) -> usize {
        let Line::Whole(text) = line else {
            return REQUEST;
        };
        let values = json::count(text).unwrap_or_default().min(VALUES_MAX);
        // With an escape the words may be written in another way.
        let may_list = memmem::find(text, LIST).is_some() || text.contains(&b'\\');
        let listed = if may_list { (self.service_count)() } else { 0 };
        REQUEST + text.len().min(SHORT) + values * VALUE + listed * LISTED
    }

    fn enter(
        &self,
        asked: AskedRequest,
        bytes: usize,
        rooms: [Option<MemoryPermit>; 2],
    ) -> Option<ClientJsonRpcMessage> {
        if let Some(inner) = self.flight.enter(&asked, bytes, rooms) {
            return Some(ClientJsonRpcMessage::request(asked.request, inner));
        }
        // With its id, a client would take this for the answer to the first request and lose the real one.
        let twice = ErrorData::invalid_request(
            "invalid request: `id` belongs to a request that is not answered yet",
            None,
        );
        let ClientMessage::Request(refused) = message::refused(None, &asked.label, twice) else {
            return None;
        };
        let inner = self.flight.enter(&refused, bytes, [None, None])?;
        Some(ClientJsonRpcMessage::request(refused.request, inner))
    }
}

/// The request that a short line takes back. That frees memory, so it must not wait for any.
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
    ClientJsonRpcMessage::notification(ClientNotification::CancelledNotification(
        CancelledNotification::new(params),
    ))
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
        // As long as the answer is in memory, it is counted, also when its request is taken back.
        let held = outer
            .as_ref()
            .map(|(inner, _)| self.flight.take_held(*inner));
        let writer = Arc::clone(&self.writer);
        let flight = Arc::clone(&self.flight);
        let stop = self.stop.clone();
        let observer = Arc::clone(&self.observer);
        let patience = self.patience;
        async move {
            if outer.is_none() && !matches!(item, ServerJsonRpcMessage::Notification(_)) {
                // Cancelled: its answer is no longer wanted.
                return Ok(());
            }
            let _held = held;
            let mut writer = writer.lock().await;
            if outer.is_some() && flight.outer(&item).is_none() {
                // Cancelled while it waited.
                return Ok(());
            }
            // Only now, so that one answer at a time is in memory twice.
            let how = How::of(&item);
            let line = encode(item, outer.as_ref().and_then(|(_, id)| id.clone()))?;
            if let Some((inner, _)) = outer {
                flight.leaves(inner);
            }
            let writing = write(&mut *writer, &line, patience);
            let written = match patience {
                Duration::MAX => writing.await,
                _ => timeout(CALL_TIME, writing)
                    .await
                    .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())),
            };
            drop(writer);
            if let Some((inner, _)) = outer
                && let Some(answered) = flight.answered(inner, how, line.len())
            {
                observer(&answered);
            }
            if written.is_err() {
                // Nobody reads any more: what still runs, runs for nobody.
                stop.now.cancel();
            }
            written
        }
    }

    async fn receive(&mut self) -> Option<ClientJsonRpcMessage> {
        loop {
            if let Some(last_moment) = self.last_moment {
                self.drain(last_moment).await;
                return None;
            }
            if self.waiting.is_none() {
                self.waiting = self.line().await;
            }
            if let Some(message) = self.parse_waiting().await {
                if self.only_one {
                    self.last_moment = Some(Instant::now() + self.limits.drain);
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

/// An error. Where the request had no id that could be read it has none: `null`, as JSON-RPC has it, is no id in MCP
/// (schema of 2025-11-25, `JSONRPCErrorResponse`), and clients that check their input throw on it.
#[derive(Serialize)]
struct ErrorLine<'a> {
    jsonrpc: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<RequestId>,
    error: &'a ErrorData,
}

/// One message as its line, with the client's own id.
fn encode(mut message: ServerJsonRpcMessage, id: Option<RequestId>) -> io::Result<Vec<u8>> {
    let mut line = match &mut message {
        ServerJsonRpcMessage::Error(error) => serde_json::to_vec(&ErrorLine {
            jsonrpc: "2.0",
            id,
            error: &error.error,
        })?,
        ServerJsonRpcMessage::Response(response) => {
            if let Some(id) = id {
                response.id = id;
            }
            serde_json::to_vec(&message)?
        }
        _ => serde_json::to_vec(&message)?,
    };
    line.push(b'\n');
    Ok(line)
}

async fn write(
    writer: &mut (impl AsyncWrite + Unpin),
    mut line: &[u8],
    patience: Duration,
) -> io::Result<()> {
    while !line.is_empty() {
        let taken = timeout(patience, writer.write(line)).await;
        let taken = taken.map_err(|_| io::ErrorKind::TimedOut)??;
        if taken == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        line = line.get(taken..).unwrap_or_default();
    }
    writer.flush().await
}
