//! Runs a consumer's tools for one resource in a separate process, next to the one that talks to the consumer.
//!
//! The worker, which reads untrusted bytes, opens no socket and starts no program; the helper, which holds keys or a
//! clipboard, decides again whether a call is granted. The server starts a helper when the worker asks for it, and only
//! if the policy grants the consumer a tool for that resource.

mod client;

use std::borrow::Cow;
use std::collections::HashMap;
use std::ffi::OsString;
use std::panic::AssertUnwindSafe;
use std::path::Path;
use std::sync::Arc;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use serde_json::{Map, Value};
use tokio::io::{AsyncWriteExt as _, BufReader};
use tokio::net::UnixStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_util::sync::CancellationToken;

use crate::ipc::{framed, receive_bytes};
use crate::limits::{MESSAGE_BYTES, MESSAGE_BYTES_MAX};
use crate::mcp::VALUES_MAX;
use crate::mcp::client::{PROGRESS_MAX, ProgressSink, UpstreamAnswer};
use crate::mcp::framing::json;
use crate::mcp::policy_watcher::Policy;
use crate::name::{MachineName, ServiceTool};
use crate::policy::{self, Caller, Decision, Grant, Request};
use crate::tool::{self, Copies, Resource, ToolError, ToolOutcome, ToolSession};

pub(crate) use client::{Connection, Helpers};

/// The command of a helper; its stdin is the socket to the server, and its stdout is the socket to the worker.
pub(crate) const COMMAND: &str = "mcp-helper";

/// Returns the arguments for the helper that runs `caller`'s tools for `resource` under the services file `services`.
pub(crate) fn arguments(
    caller: &MachineName,
    resource: Resource,
    services: &Path,
) -> Vec<OsString> {
    vec![
        COMMAND.into(),
        caller.as_str().into(),
        resource.as_str().into(),
        services.into(),
    ]
}

/// Maximum length of an order, in bytes: the longest arguments that a services file allows, plus the other fields.
const ORDER_MAX: u32 = MESSAGE_BYTES_MAX + ORDER_EXTRA;
/// Maximum length of those, in bytes.
const ORDER_EXTRA: u32 = 1024 * 1024;
/// Maximum number of values in an order: those of a message, and its own fields.
const ORDER_VALUES_MAX: usize = VALUES_MAX + 32;
/// Maximum length of a report, in bytes: two copies of the largest payload in one answer, in base64.
const REPORT_MAX: u32 = 32 * 1024 * 1024;

/// Maximum number of reports that wait to be written.
const REPORTS_WAITING_MAX: usize = 64;

/// The error for a call beyond [`Work::calls_max`].
const FULL: &str = "too many calls are running; try again later";

/// A worker's order to its helper: length-prefixed JSON, like a report.
#[derive(Serialize, Deserialize)]
enum HelperOrder<'a> {
    /// Run a tool.
    Call {
        /// The call's number, repeated in its report.
        id: u64,
        /// The connection, to which piecewise transfers belong.
        connection: u64,
        service: Cow<'a, str>,
        /// The caller's input.
        arguments: Cow<'a, Map<String, Value>>,
        /// Number of copies of a large payload in the answer.
        copies: Copies,
        /// True if the caller wants to know of progress.
        progress: bool,
    },
    /// Cancel this call, which is no longer wanted.
    Cancel { id: u64 },
    /// Forget this connection, which has ended.
    Close { connection: u64 },
    /// Report which tools have changed.
    Changed { id: u64 },
}

/// The message of an error sent to another process.
#[derive(Serialize, Deserialize)]
#[serde(transparent)]
struct FailureText(String);

/// A helper's message about a call.
#[derive(Serialize, Deserialize)]
enum HelperReport {
    /// The end of the call.
    Ended {
        id: u64,
        connection: u64,
        /// The call's result or error; `None` if it was cancelled.
        result: Option<Result<CallOutcome, FailureText>>,
        /// True if the connection has an unfinished piecewise transfer.
        waits: bool,
    },
    /// Progress of the call, as an upstream reports it.
    Progress { id: u64, params: Box<RawValue> },
    /// The tools that are not called because their definition has changed since it was accepted.
    Changed { id: u64, tools: Vec<ServiceTool> },
}

/// The outcome of a call that a tool has answered.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum CallOutcome {
    /// The result of one of the machine's tools.
    Tool(ToolOutcome),
    /// The answer of an upstream.
    Upstream(UpstreamAnswer),
}

/// The calls of one connection.
pub(crate) trait CallSession: Send + Sync {
    /// Runs a grant's tool. Dropping the future ends everything that it has started.
    fn run(
        self: Arc<Self>,
        grant: Grant,
        copies: Copies,
        progress: Option<ProgressSink>,
    ) -> BoxFuture<'static, ToolResult>;

    /// Returns whether no piecewise transfer is waiting for its next piece.
    fn is_idle(&self) -> bool;
}

/// The result of a call, or the error for the caller.
pub(crate) type ToolResult = Result<CallOutcome, ToolError>;

impl CallSession for ToolSession {
    fn run(
        self: Arc<Self>,
        grant: Grant,
        copies: Copies,
        _progress: Option<ProgressSink>,
    ) -> BoxFuture<'static, ToolResult> {
        Box::pin(async move {
            let outcome = tool::run(&grant, &self, copies).await;
            outcome.map(CallOutcome::Tool)
        })
    }

    fn is_idle(&self) -> bool {
        self.is_idle()
    }
}

/// A framed report that waits to be written.
struct HelperMessage {
    bytes: Vec<u8>,
    /// The place of its call, which is free again once the report is written.
    #[expect(dead_code, reason = "it is held, not read")]
    permit: Option<OwnedSemaphorePermit>,
}

/// The work of a process that runs tools for a worker.
pub(crate) struct Work<'a> {
    pub(crate) caller: Caller,
    pub(crate) resource: Resource,
    /// Returns the policy in force.
    pub(crate) policy: &'a (dyn Fn() -> Arc<Policy> + Sync),
    /// Begins to serve a connection.
    pub(crate) session: &'a (dyn Fn() -> Arc<dyn CallSession> + Sync),
    /// Maximum number of calls that run at the same time; further ones fail.
    pub(crate) calls_max: usize,
    /// Returns the tools whose definition has changed since it was accepted.
    pub(crate) changed: &'a (dyn Fn() -> Vec<ServiceTool> + Sync),
}

/// Runs the ordered calls that the policy grants, until the socket is closed.
pub(crate) async fn serve(work: Work<'_>, socket: UnixStream) {
    let (reader, mut writer) = socket.into_split();
    let (reports, mut queue) = mpsc::channel::<HelperMessage>(REPORTS_WAITING_MAX);
    let writing = tokio::spawn(async move {
        while let Some(message) = queue.recv().await {
            if writer.write_all(&message.bytes).await.is_err() {
                return;
            }
        }
    });
    let free = Arc::new(Semaphore::new(work.calls_max.min(Semaphore::MAX_PERMITS)));
    let mut reader = BufReader::new(reader);
    let mut sessions: HashMap<u64, Arc<dyn CallSession>> = HashMap::new();
    let mut running: HashMap<u64, CancellationToken> = HashMap::new();
    while let Ok(order) = receive_bytes(&mut reader, work.order_max()).await {
        // A value takes many times more memory than its text.
        let is_small = json::count(&order).is_some_and(|values| values <= ORDER_VALUES_MAX);
        let order = is_small.then(|| serde_json::from_slice(&order).ok());
        let Some(order) = order.flatten() else {
            break;
        };
        running.retain(|_, call| !call.is_cancelled());
        match order {
            HelperOrder::Call {
                id,
                connection,
                service,
                arguments,
                copies,
                progress,
            } => {
                // A call that nobody could cancel would not end.
                if running.contains_key(&id) {
                    break;
                }
                let permit = Arc::clone(&free).try_acquire_owned().ok();
                let session = sessions.entry(connection).or_insert_with(work.session);
                let token = CancellationToken::new();
                running.insert(id, token.clone());
                let session = Arc::clone(session);
                let grant = work.decide(&service, &Arc::new(arguments.into_owned()));
                let reports = reports.clone();
                let sink = progress.then(|| pass_on_progress(id, reports.clone()));
                tokio::spawn(async move {
                    let result = if permit.is_none() {
                        Some(Err(FailureText(FULL.to_owned())))
                    } else {
                        tokio::select! {
                            result = run(grant, &session, copies, sink) => {
                                Some(result.map_err(|error| FailureText(error.to_string())))
                            }
                            () = token.cancelled() => None,
                        }
                    };
                    token.cancel();
                    let report = HelperReport::Ended {
                        id,
                        connection,
                        result,
                        waits: !session.is_idle(),
                    };
                    // If the report cannot be sent, the worker notices that this process has ended.
                    if let Ok(bytes) = framed(&report) {
                        let _ = reports.send(HelperMessage { bytes, permit }).await;
                    }
                });
            }
            HelperOrder::Cancel { id } => {
                if let Some(call) = running.remove(&id) {
                    call.cancel();
                }
            }
            HelperOrder::Close { connection } => {
                sessions.remove(&connection);
            }
            HelperOrder::Changed { id } => {
                let tools = (work.changed)();
                if let Ok(bytes) = framed(&HelperReport::Changed { id, tools }) {
                    let message = HelperMessage {
                        bytes,
                        permit: None,
                    };
                    // If it cannot be sent, the worker has ended.
                    let _ = reports.send(message).await;
                }
            }
        }
    }
    running.values().for_each(CancellationToken::cancel);
    writing.abort();
}

/// Passes on the progress of a call until its sink is dropped.
fn pass_on_progress(id: u64, reports: mpsc::Sender<HelperMessage>) -> ProgressSink {
    let (sink, mut progress) = mpsc::channel(PROGRESS_MAX);
    tokio::spawn(async move {
        while let Some(params) = progress.recv().await {
            if let Ok(bytes) = framed(&HelperReport::Progress { id, params }) {
                // If it cannot be sent, the worker has ended.
                let _ = reports
                    .send(HelperMessage {
                        bytes,
                        permit: None,
                    })
                    .await;
            }
        }
    });
    sink
}

impl Work<'_> {
    /// Returns the maximum length of the caller's orders, in bytes.
    fn order_max(&self) -> u32 {
        let services = &(self.policy)().services;
        let message = match &self.caller {
            Caller::Operator => return ORDER_MAX,
            Caller::Consumer(name) => {
                let message = services.message_bytes_of(name, MESSAGE_BYTES, Timestamp::now());
                u32::try_from(message).unwrap_or(MESSAGE_BYTES_MAX)
            }
        };
        message.saturating_add(ORDER_EXTRA).min(ORDER_MAX)
    }

    /// Grants a call to one of this process's tools if the policy in force allows it.
    fn decide(&self, service: &str, arguments: &Arc<Map<String, Value>>) -> Option<Grant> {
        let request = Request {
            caller: &self.caller,
            name: service,
            arguments,
            now: Timestamp::now(),
        };
        match policy::decide(&(self.policy)().services, request) {
            Decision::Allowed(grant) => {
                Some(grant).filter(|grant| Resource::of(grant.tool()) == self.resource)
            }
            Decision::Denied(_) => None,
        }
    }
}

/// Runs a grant's tool; a panic also fails the call.
async fn run(
    grant: Option<Grant>,
    session: &Arc<dyn CallSession>,
    copies: Copies,
    progress: Option<ProgressSink>,
) -> ToolResult {
    let Some(grant) = grant else {
        let text = "the policy has changed and no longer grants this call";
        return Err(ToolError::Refused(text.to_owned()));
    };
    let running = AssertUnwindSafe(Arc::clone(session).run(grant, copies, progress)).catch_unwind();
    running.await.unwrap_or(Err(ToolError::Broken))
}
