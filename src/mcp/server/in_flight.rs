//! Tracks the requests of one connection that have been read but not yet answered.
//!
//! Each gets an inner id, so that requests that share or reuse an id never get each other's answers.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rmcp::model::{JsonRpcResponse, RequestId, ServerJsonRpcMessage, ServerResult};
use tokio::sync::{Notify, OwnedSemaphorePermit};

use super::message::AskedRequest;
use crate::mcp::ConnectionLimits;
use crate::mcp::throttle::MemoryPermit;

/// The requests in flight.
#[derive(Default)]
pub(in crate::mcp) struct InFlightRequests {
    requests: Mutex<Requests>,
    changed: Notify,
}

#[derive(Default)]
struct Requests {
    last: i64,
    open: BTreeMap<i64, OpenRequest>,
}

/// One request in flight.
struct OpenRequest {
    /// The client's id, until it is free again.
    id: Option<RequestId>,
    /// The id as JSON text for the log, even after it is free again.
    id_text: String,
    label: String,
    bytes: usize,
    since: Instant,
    held: Held,
    /// True once its answer has been produced or abandoned.
    handled: bool,
    /// True if its answer is no longer wanted.
    cancelled: bool,
}

/// The memory of a request and its answer, and its tool's slot; freed when the answer has been written.
#[derive(Default)]
pub(super) struct Held {
    memory: Vec<MemoryPermit>,
    slot: Option<OwnedSemaphorePermit>,
}

/// The outcome of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RequestOutcome {
    /// It was answered with a result.
    Done,
    /// The tool failed.
    Failed,
    /// It was answered with an error with this code.
    Refused(i32),
}

impl RequestOutcome {
    pub(super) fn of(answer: &ServerJsonRpcMessage) -> Self {
        match answer {
            ServerJsonRpcMessage::Error(error) => Self::Refused(error.error.code.0),
            ServerJsonRpcMessage::Response(JsonRpcResponse {
                result: ServerResult::CallToolResult(result),
                ..
            }) if result.is_error == Some(true) => Self::Failed,
            _ => Self::Done,
        }
    }
}

/// A written answer as a log may show it, without its content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct AnsweredRequest {
    /// The request, escaped and truncated: its method and, for a call, the tool.
    pub(crate) label: String,
    pub(crate) outcome: RequestOutcome,
    /// Time from reading the request's last byte to writing the answer's last byte.
    pub(crate) took: Duration,
    /// The request's length, in bytes.
    pub(crate) bytes_in: usize,
    /// The answer's length, in bytes.
    pub(crate) bytes_out: usize,
}

/// A request that is being handled; marked as handled when dropped.
pub(in crate::mcp) struct Handling<'a> {
    flight: &'a InFlightRequests,
    inner: RequestId,
}

impl Drop for Handling<'_> {
    fn drop(&mut self) {
        if let RequestId::Number(inner) = self.inner {
            let mut requests = self.flight.lock();
            if let Some(open) = requests.open.get_mut(&inner) {
                open.handled = true;
            }
            self.flight.remove_if_over(requests, inner);
        }
    }
}

impl InFlightRequests {
    /// Adds a request and returns its inner id; `None` if its id is already in flight.
    pub(super) fn enter(
        &self,
        asked: &AskedRequest,
        bytes: usize,
        memory: [Option<MemoryPermit>; 2],
    ) -> Option<RequestId> {
        let mut requests = self.lock();
        let twice = asked.id.is_some() && requests.open.values().any(|open| open.id == asked.id);
        if twice {
            return None;
        }
        requests.last += 1;
        let inner = requests.last;
        let id_text = asked.id.as_ref().map(serde_json::to_string);
        let open = OpenRequest {
            id: asked.id.clone(),
            id_text: id_text.and_then(Result::ok).unwrap_or_default(),
            label: asked.label.clone(),
            bytes,
            since: Instant::now(),
            held: Held {
                memory: memory.into_iter().flatten().collect(),
                slot: None,
            },
            handled: false,
            cancelled: false,
        };
        requests.open.insert(inner, open);
        Some(RequestId::Number(inner))
    }

    /// Cancels a client's request and returns its inner id. The client's id is free again; no answer is written. The
    /// request stays in flight until it is handled, so that cancelled calls cannot pile up.
    pub(super) fn cancel(&self, id: &RequestId) -> Option<RequestId> {
        let mut requests = self.lock();
        let mut open = requests.open.iter_mut();
        let (&inner, open) = open.find(|(_, open)| open.id.as_ref() == Some(id))?;
        open.id = None;
        open.cancelled = true;
        self.remove_if_over(requests, inner);
        Some(RequestId::Number(inner))
    }

    /// Marks a request as handled when the returned value is dropped.
    pub(in crate::mcp) const fn handling(&self, inner: RequestId) -> Handling<'_> {
        let flight = self;
        Handling { flight, inner }
    }

    /// Removes a request that is both cancelled and handled: its answer is never written.
    fn remove_if_over(&self, mut requests: MutexGuard<'_, Requests>, inner: i64) {
        let open = requests.open.get(&inner);
        if open.is_some_and(|open| open.handled && open.cancelled) {
            requests.open.remove(&inner);
        }
        drop(requests);
        self.changed.notify_waiters();
    }

    /// Applies `change` to a request that is still in flight.
    fn with<T>(&self, inner: &RequestId, change: impl FnOnce(&mut OpenRequest) -> T) -> Option<T> {
        match inner {
            RequestId::Number(inner) => self.lock().open.get_mut(inner).map(change),
            RequestId::String(_) => None,
        }
    }

    /// Returns the client's id for a request in flight, as JSON text, and the request's length in bytes.
    pub(super) fn asked(&self, inner: &RequestId) -> (String, u64) {
        self.with(inner, |open| (open.id_text.clone(), open.bytes as u64))
            .unwrap_or_default()
    }

    /// Holds a running tool's slot until its answer is written.
    pub(super) fn keep_slot(&self, inner: &RequestId, slot: OwnedSemaphorePermit) {
        self.with(inner, |open| open.held.slot = Some(slot));
    }

    /// Holds an answer's memory until the answer is written.
    pub(super) fn keep_memory(&self, inner: &RequestId, memory: MemoryPermit) {
        self.with(inner, |open| open.held.memory.push(memory));
    }

    /// Takes the resources that are held until an answer is written.
    pub(super) fn take_held(&self, inner: &RequestId) -> Held {
        self.with(inner, |open| std::mem::take(&mut open.held))
            .unwrap_or_default()
    }

    /// Returns an answer's inner id and the client's id (`None` if the request had no readable id); returns nothing if
    /// the request is no longer in flight.
    pub(super) fn outer(
        &self,
        message: &ServerJsonRpcMessage,
    ) -> Option<(RequestId, Option<RequestId>)> {
        let inner = match message {
            ServerJsonRpcMessage::Response(response) => &response.id,
            ServerJsonRpcMessage::Error(error) => error.id.as_ref()?,
            _ => return None,
        };
        let outer = self.with(inner, |open| (!open.cancelled).then(|| open.id.clone()))??;
        Some((inner.clone(), outer))
    }

    /// Frees the client's id for a request whose answer is about to be written: the client may then reuse the id.
    pub(super) fn free_id(&self, inner: &RequestId) {
        self.with(inner, |open| open.id = None);
    }

    /// Removes a request whose answer has been written.
    pub(super) fn answered(
        &self,
        inner: &RequestId,
        outcome: RequestOutcome,
        bytes_out: usize,
    ) -> Option<AnsweredRequest> {
        let RequestId::Number(inner) = inner else {
            return None;
        };
        let open = self.lock().open.remove(inner);
        self.changed.notify_waiters();
        open.map(|open| AnsweredRequest {
            label: open.label,
            outcome,
            took: open.since.elapsed(),
            bytes_in: open.bytes,
            bytes_out,
        })
    }

    /// Waits until another request may be read.
    pub(super) async fn wait_for_room(&self, limits: &ConnectionLimits) {
        self.until(|requests| {
            let bytes: usize = requests.open.values().map(|open| open.bytes).sum();
            requests.open.len() < limits.in_flight && bytes < limits.in_flight_bytes
        })
        .await;
    }

    /// Waits until every request has been answered.
    pub(super) async fn wait_until_empty(&self) {
        self.until(|requests| requests.open.is_empty()).await;
    }

    async fn until(&self, holds: impl Fn(&Requests) -> bool) {
        loop {
            let changed = self.changed.notified();
            if holds(&self.lock()) {
                return;
            }
            changed.await;
        }
    }

    fn lock(&self) -> MutexGuard<'_, Requests> {
        self.requests.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
