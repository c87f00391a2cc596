//! The requests of one connection that are read and not answered yet.
//!
//! Each gets an id of our own for its way through the server, so that two requests with one id, or an id that
//! is used again, can never get each other's answer.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rmcp::model::{RequestId, ServerJsonRpcMessage, ServerResult};
use tokio::sync::{Notify, OwnedSemaphorePermit};

use super::message::AskedRequest;
use crate::mcp::ConnectionLimits;
use crate::mcp::throttle::MemoryPermit;

/// The requests in flight.
#[derive(Debug, Default)]
pub(super) struct InFlightRequests {
    requests: Mutex<Requests>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct Requests {
    last: i64,
    open: BTreeMap<i64, OpenRequest>,
}

/// One request in flight.
#[derive(Debug)]
struct OpenRequest {
    /// Its id, as long as it is taken.
    id: Option<RequestId>,
    /// The same as JSON text, for the log; also when it is free again.
    id_text: String,
    label: String,
    bytes: usize,
    /// Its memory, and that of its answer.
    rooms: Vec<MemoryPermit>,
    since: Instant,
    /// The place of a running tool, free when its answer is written.
    place: Option<OwnedSemaphorePermit>,
    /// Its answer is made, or given up.
    handled: bool,
    /// Its answer is no longer wanted.
    cancelled: bool,
}

/// The result of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum How {
    /// It was answered with a result.
    Done,
    /// The tool could not do it.
    Failed,
    /// It was answered with an error of this code.
    Refused(i32),
}

impl How {
    /// The result of an answer's request.
    pub(super) fn of(answer: &ServerJsonRpcMessage) -> Self {
        match answer {
            ServerJsonRpcMessage::Error(error) => Self::Refused(error.error.code.0),
            ServerJsonRpcMessage::Response(response) => match &response.result {
                ServerResult::CallToolResult(result) if result.is_error == Some(true) => {
                    Self::Failed
                }
                _ => Self::Done,
            },
            ServerJsonRpcMessage::Request(_) | ServerJsonRpcMessage::Notification(_) => Self::Done,
        }
    }
}

/// An answer that was written, as a log may tell of it: nothing of any contents.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct AnsweredRequest {
    /// The request, escaped and bounded: a method, and the tool of a call.
    pub(crate) label: String,
    /// Its result.
    pub(crate) how: How,
    /// From the request's last byte read to the answer's last byte written.
    pub(crate) took: Duration,
    /// Length of the request.
    pub(crate) bytes_in: usize,
    /// Length of the answer.
    pub(crate) bytes_out: usize,
}

impl InFlightRequests {
    /// Takes a request in and gives it its inner id; `None` when its id is already in flight.
    pub(super) fn enter(
        &self,
        asked: &AskedRequest,
        bytes: usize,
        rooms: [Option<MemoryPermit>; 2],
    ) -> Option<RequestId> {
        let mut requests = self.lock();
        let twice = asked.id.is_some() && requests.open.values().any(|open| open.id == asked.id);
        if twice {
            return None;
        }
        requests.last += 1;
        let inner = requests.last;
        let open = OpenRequest {
            id: asked.id.clone(),
            id_text: asked
                .id
                .as_ref()
                .and_then(|id| serde_json::to_string(id).ok())
                .unwrap_or_default(),
            label: asked.label.clone(),
            bytes,
            rooms: rooms.into_iter().flatten().collect(),
            since: Instant::now(),
            place: None,
            handled: false,
            cancelled: false,
        };
        requests.open.insert(inner, open);
        Some(RequestId::Number(inner))
    }

    /// Takes back a client's request and gives its inner id. Its id is free again, and no answer is written; it stays in
    /// flight until it is handled, so that calls that come and go cannot pile up.
    pub(super) fn cancel(&self, id: &RequestId) -> Option<RequestId> {
        let mut requests = self.lock();
        let (inner, open) = requests
            .open
            .iter_mut()
            .find(|(_, open)| open.id.as_ref() == Some(id))?;
        let inner = *inner;
        open.id = None;
        open.cancelled = true;
        if open.handled {
            requests.open.remove(&inner);
        }
        drop(requests);
        self.changed.notify_waiters();
        Some(RequestId::Number(inner))
    }

    /// Notes that nothing works on a request any more.
    pub(super) fn handled(&self, inner: &RequestId) {
        let RequestId::Number(inner) = inner else {
            return;
        };
        let mut requests = self.lock();
        let Some(open) = requests.open.get_mut(inner) else {
            return;
        };
        open.handled = true;
        if open.cancelled {
            requests.open.remove(inner);
        }
        drop(requests);
        self.changed.notify_waiters();
    }

    /// The client's id of a request in flight, as JSON text, and the request's length in bytes.
    pub(super) fn asked(&self, inner: &RequestId) -> (String, u64) {
        let RequestId::Number(inner) = inner else {
            return (String::new(), 0);
        };
        let requests = self.lock();
        let open = requests.open.get(inner);
        open.map_or_else(Default::default, |open| {
            (open.id_text.clone(), open.bytes as u64)
        })
    }

    /// Keeps the place of a running tool until its answer is written.
    pub(super) fn hold(&self, inner: &RequestId, place: OwnedSemaphorePermit) {
        if let RequestId::Number(inner) = inner
            && let Some(open) = self.lock().open.get_mut(inner)
        {
            open.place = Some(place);
        }
    }

    /// Takes what an answer holds until it is written: its memory, and the place of its tool.
    pub(super) fn take_held(
        &self,
        inner: i64,
    ) -> (Vec<MemoryPermit>, Option<OwnedSemaphorePermit>) {
        let mut requests = self.lock();
        let open = requests.open.get_mut(&inner);
        open.map_or_else(Default::default, |open| {
            (std::mem::take(&mut open.rooms), open.place.take())
        })
    }

    /// Keeps the memory of an answer until it is written.
    pub(super) fn keep(&self, inner: &RequestId, room: MemoryPermit) {
        if let RequestId::Number(inner) = inner
            && let Some(open) = self.lock().open.get_mut(inner)
        {
            open.rooms.push(room);
        }
    }

    /// The client's id of an answer (`None`: the request had none that could be read); nothing when the request
    /// is no longer in flight.
    pub(super) fn outer(&self, message: &ServerJsonRpcMessage) -> Option<(i64, Option<RequestId>)> {
        let inner = match message {
            ServerJsonRpcMessage::Response(response) => &response.id,
            ServerJsonRpcMessage::Error(error) => error.id.as_ref()?,
            ServerJsonRpcMessage::Request(_) | ServerJsonRpcMessage::Notification(_) => {
                return None;
            }
        };
        let RequestId::Number(inner) = inner else {
            return None;
        };
        let requests = self.lock();
        let open = requests.open.get(inner).filter(|open| !open.cancelled)?;
        Some((*inner, open.id.clone()))
    }

    /// Frees the client's id of a request whose answer is about to be written: whoever has read it may use it again.
    pub(super) fn leaves(&self, inner: i64) {
        if let Some(open) = self.lock().open.get_mut(&inner) {
            open.id = None;
        }
    }

    /// Lets go of a request whose answer was written.
    pub(super) fn answered(
        &self,
        inner: i64,
        how: How,
        bytes_out: usize,
    ) -> Option<AnsweredRequest> {
        let open = self.lock().open.remove(&inner);
        self.changed.notify_waiters();
        open.map(|open| AnsweredRequest {
            label: open.label,
            how,
            took: open.since.elapsed(),
            bytes_in: open.bytes,
            bytes_out,
        })
    }

    /// Waits until one more request may be read.
    pub(super) async fn room(&self, limits: &ConnectionLimits) {
        self.until(|requests| {
            let bytes: usize = requests.open.values().map(|open| open.bytes).sum();
            requests.open.len() < limits.in_flight && bytes < limits.in_flight_bytes
        })
        .await;
    }

    /// Waits until every request is answered.
    pub(super) async fn empty(&self) {
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
