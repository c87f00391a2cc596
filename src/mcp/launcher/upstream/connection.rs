//! Makes requests to a running upstream: starts it, checks its tools' definitions, and calls them.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::Serialize;
use serde_json::{Value, json};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, timeout};
use tokio_util::sync::DropGuard;

use super::UpstreamCall;
use super::error_output::ErrorOutput;
use super::exchange::{
    ExchangeState, UpstreamEnd, UpstreamLoss, UpstreamOutgoing, UpstreamRequest, exchange,
};
use crate::catalogue::{UpstreamServer, UpstreamTool};
use crate::child::{ChildUser, spec, start};
use crate::mcp::client::{ProgressSink, UpstreamAnswer, initialize_params};
use crate::mcp::framing::json as reader;
use crate::mcp::launcher::slots::ProgramSlot;
use crate::mcp::launcher::{NOT_SET_UP, ReportFault};
use crate::mcp::{ANSWER_VALUES_MAX, RESULT_MAX};
use crate::tool::ToolError;

/// Number of bytes that wait to be written to an upstream, from which on further requests are refused.
const UNSENT_MAX: usize = 32 * 1024 * 1024;
/// Maximum time for an upstream to start, and to list its tools.
const START_MAX: Duration = Duration::from_secs(30);
/// Maximum length of its list of tools, in bytes, and number of pages.
const LIST_BYTES_MAX: usize = 8 * 1024 * 1024;
const PAGES_MAX: usize = 100;
/// Age of a list after which it is fetched again before a call, in case an upstream does not say that it has changed.
pub(super) const LIST_AGE_MAX: Duration = Duration::from_secs(10);

/// Starts a server, and completes `initialize` with it.
pub(in crate::mcp::launcher) async fn connect(
    server: &UpstreamServer,
    user: &ChildUser,
    report: &ReportFault,
    label: String,
    slot: Option<ProgramSlot>,
) -> Result<UpstreamConnection, ToolError> {
    let not_set_up = |why: String| {
        report(&format!("the server {label} cannot run: {why}"));
        ToolError::Unavailable(NOT_SET_UP.to_owned())
    };
    let spec = spec(server.command.clone(), &server.process, user);
    let mut spec = spec.map_err(|why| not_set_up(why.to_string()))?;
    // Definitions may depend on it.
    if !spec.env.iter().any(|(name, _)| name == "TZ") {
        spec.env.push(("TZ".to_owned(), "UTC".to_owned()));
    }
    let program = start(&spec, slot).await;
    let program = program.map_err(|why| not_set_up(why.to_string()))?;
    let state = Arc::new(ExchangeState::default());
    let (requests, queue) = mpsc::unbounded_channel();
    let idle = Duration::from_secs(server.idle_seconds.into());
    let errors = ErrorOutput {
        label: label.clone(),
        report: Arc::clone(report),
    };
    tokio::spawn(exchange(program, queue, Arc::clone(&state), idle, errors));
    let connection = UpstreamConnection {
        requests,
        state,
        shared: Arc::new(UpstreamShared {
            is_counted: AtomicBool::new(false),
            used: Mutex::new(Instant::now()),
            listed: tokio::sync::Mutex::default(),
        }),
    };
    match timeout(START_MAX, connection.initialize()).await {
        Ok(Ok(())) => Ok(connection),
        Ok(Err(why)) => Err(not_set_up(why.to_string())),
        Err(_) => {
            connection.stop();
            let seconds = START_MAX.as_secs();
            Err(not_set_up(format!(
                "it did not answer `initialize` within {seconds} s"
            )))
        }
    }
}

/// The reason why a call to an upstream has no answer.
#[derive(Debug, thiserror::Error)]
pub(in crate::mcp::launcher) enum UpstreamFault {
    #[error("the server that runs this tool has ended: {0}")]
    Ended(UpstreamEnd),
    #[error("the server's answer has {} MiB; at most {} MiB are passed on", .0.div_ceil(1024 * 1024), RESULT_MAX / 1024 / 1024)]
    TooLong(u64),
    #[error(
        "the definition of `{0}` has changed since it was accepted, so it is not called; the operator can accept it with `anklume mcp pin` and `anklume apply`"
    )]
    Changed(String),
    #[error("the server no longer has a tool `{0}`")]
    Missing(String),
    #[error("the server does not read the calls that already wait; try again later")]
    NotReading,
}

impl From<UpstreamLoss> for UpstreamFault {
    fn from(loss: UpstreamLoss) -> Self {
        match loss {
            UpstreamLoss::Ended(why) => Self::Ended(why),
            UpstreamLoss::TooLong(bytes) => Self::TooLong(bytes),
        }
    }
}

impl From<UpstreamFault> for ToolError {
    fn from(fault: UpstreamFault) -> Self {
        match fault {
            UpstreamFault::NotReading => Self::Busy(fault.to_string()),
            UpstreamFault::Ended(_) => Self::Unavailable(fault.to_string()),
            UpstreamFault::TooLong(_) => Self::TooLarge(fault.to_string()),
            UpstreamFault::Changed(_) | UpstreamFault::Missing(_) => {
                Self::Refused(fault.to_string())
            }
        }
    }
}

/// Sends requests to a running server.
#[derive(Clone)]
pub(in crate::mcp::launcher) struct UpstreamConnection {
    requests: mpsc::UnboundedSender<UpstreamOutgoing>,
    state: Arc<ExchangeState>,
    shared: Arc<UpstreamShared>,
}

/// What the clones of a connection share.
struct UpstreamShared {
    /// True once the server's failure was counted: it may fail many calls at once.
    is_counted: AtomicBool,
    /// The time at which the last request ended.
    used: Mutex<Instant>,
    listed: tokio::sync::Mutex<Option<Listed>>,
}

/// The digests of a server's tools, by their names.
struct Listed {
    since: Instant,
    digests: HashMap<String, String>,
}

/// A request to a server.
#[derive(Serialize)]
struct UpstreamMessage<'a, P> {
    jsonrpc: &'static str,
    id: i64,
    method: &'a str,
    params: P,
}

/// The parameters of a call.
#[derive(Serialize)]
struct CallParams<'a> {
    name: &'a str,
    arguments: &'a serde_json::Map<String, Value>,
    #[serde(rename = "_meta", skip_serializing_if = "Option::is_none")]
    meta: Option<CallMeta>,
}

#[derive(Serialize)]
struct CallMeta {
    #[serde(rename = "progressToken")]
    progress_token: i64,
}

/// Cancels a request if it is dropped before the answer.
struct CancelOnDrop<'a> {
    connection: &'a UpstreamConnection,
    id: Option<i64>,
}

impl Drop for CancelOnDrop<'_> {
    fn drop(&mut self) {
        let connection = self.connection;
        connection.state.in_flight.fetch_sub(1, Ordering::Relaxed);
        *connection.used() = Instant::now();
        if let Some(id) = self.id {
            // A server that has ended has nothing to cancel.
            let _ = connection.requests.send(UpstreamOutgoing::Cancel(id));
        }
    }
}

impl UpstreamConnection {
    fn used(&self) -> MutexGuard<'_, Instant> {
        self.shared
            .used
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn is_running(&self) -> bool {
        !self.state.ended.is_cancelled()
    }

    /// Returns the time at which the last request ended; `None` if one is in flight, or if the server is about to end.
    pub(super) fn idle_since(&self) -> Option<Instant> {
        let is_idle = self.state.in_flight.load(Ordering::Relaxed) == 0;
        (is_idle && !self.state.stop.is_cancelled()).then(|| *self.used())
    }

    /// Ends the server when the result is dropped.
    pub(super) fn stop_on_drop(&self) -> DropGuard {
        self.state.stop.clone().drop_guard()
    }

    async fn initialize(&self) -> Result<(), UpstreamFault> {
        let params = initialize_params();
        match self.request("initialize", None, |_| &params).await? {
            UpstreamAnswer::Result(_) => {}
            UpstreamAnswer::Error(_) => {
                return Err(UpstreamFault::Ended(UpstreamEnd::RefusedInitialize));
            }
        }
        let initialized = json!({"jsonrpc": "2.0", "method": "notifications/initialized"});
        let line = initialized.to_string().into_bytes();
        let _ = self.requests.send(UpstreamOutgoing::Notification(line));
        Ok(())
    }

    pub(super) async fn call(
        &self,
        call: &UpstreamCall<'_>,
    ) -> Result<UpstreamAnswer, UpstreamFault> {
        self.check(call.target.tool).await?;
        let wants_progress = call.progress.is_some();
        let params = |id| CallParams {
            name: call.target.tool.name(),
            arguments: call.arguments,
            meta: wants_progress.then_some(CallMeta { progress_token: id }),
        };
        let answer = self
            .request("tools/call", call.progress.clone(), params)
            .await?;
        let (UpstreamAnswer::Result(payload) | UpstreamAnswer::Error(payload)) = &answer;
        let length = payload.get().len();
        if length > RESULT_MAX {
            return Err(UpstreamFault::TooLong(length as u64));
        }
        Ok(answer)
    }

    /// Checks that the server's definition of a tool is the pinned one.
    pub(super) async fn check(&self, tool: &UpstreamTool) -> Result<(), UpstreamFault> {
        let mut listed = self.shared.listed.lock().await;
        let is_stale = self.state.is_stale.swap(false, Ordering::Relaxed);
        let is_recent = |listed: &Listed| listed.since.elapsed() < LIST_AGE_MAX;
        if is_stale || !listed.as_ref().is_some_and(is_recent) {
            *listed = None;
            let tools = self.tools().await?;
            let digests = tools.iter().filter_map(|tool| {
                let name = tool.get("name")?.as_str()?.to_owned();
                // One that cannot be pinned is never the pinned one.
                let digest = UpstreamTool::of(tool).map(|tool| tool.digest().to_owned());
                Some((name, digest.unwrap_or_default()))
            });
            *listed = Some(Listed {
                since: Instant::now(),
                digests: digests.collect(),
            });
        }
        let name = tool.name().to_owned();
        let digests = listed.as_ref().map(|listed| &listed.digests);
        match digests.and_then(|digests| digests.get(&name)) {
            Some(digest) if *digest == tool.digest() => Ok(()),
            Some(_) => Err(UpstreamFault::Changed(name)),
            None => Err(UpstreamFault::Missing(name)),
        }
    }

    /// Returns whether this end of the server is a failure that was not counted yet.
    pub(super) fn is_new_failure(&self, why: UpstreamEnd) -> bool {
        why.is_failure() && !self.shared.is_counted.swap(true, Ordering::Relaxed)
    }

    /// Ends the server.
    pub(in crate::mcp::launcher) fn stop(&self) {
        self.state.stop.cancel();
    }

    /// Lists the server's tools as it describes them.
    pub(in crate::mcp::launcher) async fn tools(&self) -> Result<Vec<Value>, UpstreamFault> {
        let listing = async {
            let mut tools = Vec::new();
            let (mut values, mut bytes) = (0, 0);
            let mut params = json!({});
            for _ in 0..PAGES_MAX {
                let answer = self.request("tools/list", None, |_| &params).await?;
                let UpstreamAnswer::Result(page) = answer else {
                    self.stop();
                    return Err(UpstreamFault::Ended(UpstreamEnd::ListRefused));
                };
                // A value takes many times more memory than its text.
                values += reader::count(page.get().as_bytes()).unwrap_or(usize::MAX / 2);
                bytes += page.get().len();
                if values > ANSWER_VALUES_MAX || bytes > LIST_BYTES_MAX {
                    self.stop();
                    return Err(UpstreamFault::Ended(UpstreamEnd::ListTooLong));
                }
                let mut page: Value = serde_json::from_str(page.get()).unwrap_or_default();
                if let Some(Value::Array(listed)) = page.get_mut("tools") {
                    tools.append(listed);
                }
                match page.get("nextCursor") {
                    Some(cursor @ Value::String(_)) => params = json!({"cursor": cursor}),
                    _ => break,
                }
            }
            Ok(tools)
        };
        let listed = timeout(START_MAX, listing).await;
        listed.unwrap_or_else(|_| {
            self.state.stop.cancel();
            Err(UpstreamFault::Ended(UpstreamEnd::ListTimedOut))
        })
    }

    /// Sends a request with the parameters for its ID, and waits for its answer. Dropping the future cancels the request.
    async fn request<P: Serialize>(
        &self,
        method: &str,
        progress: Option<ProgressSink>,
        params: impl FnOnce(i64) -> P,
    ) -> Result<UpstreamAnswer, UpstreamFault> {
        if self.state.unsent.load(Ordering::Relaxed) >= UNSENT_MAX {
            return Err(UpstreamFault::NotReading);
        }
        let id = self.state.last_id.fetch_add(1, Ordering::Relaxed) + 1;
        let line = serde_json::to_vec(&UpstreamMessage {
            jsonrpc: "2.0",
            id,
            method,
            params: params(id),
        });
        let (answer, answered) = oneshot::channel();
        let before = UpstreamFault::Ended(UpstreamEnd::Before);
        let Ok(line) = line else { return Err(before) };
        let waiting = UpstreamRequest { answer, progress };
        let request = UpstreamOutgoing::Request { id, line, waiting };
        if self.requests.send(request).is_err() {
            return Err(before);
        }
        self.state.in_flight.fetch_add(1, Ordering::Relaxed);
        let mut cancel = CancelOnDrop {
            connection: self,
            id: Some(id),
        };
        let answer = answered.await;
        cancel.id = None;
        Ok(answer.map_err(|_| before)??)
    }
}
