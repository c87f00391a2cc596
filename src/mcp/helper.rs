//! Runs a consumer's tools for one resource in a separate process, next to the one that talks to the consumer.
//!
//! The worker, which reads untrusted bytes, opens no socket and starts no program; the helper, which holds keys or a
//! clipboard, decides again whether a call is granted. The server starts a helper when the worker asks for it, and only
//! if the policy grants the consumer a tool for that resource.

mod client;

use std::borrow::Cow;
use std::collections::HashMap;
use std::ffi::OsString;
use std::io;
use std::panic::AssertUnwindSafe;
use std::path::Path;
use std::sync::Arc;

use futures_util::FutureExt as _;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::limits::MESSAGE_BYTES_MAX;
use crate::mcp::monitor::{Monitor, framed};
use crate::name::MachineName;
use crate::policy::{self, Caller, Decision, Grant, Request};
use crate::tool::{self, Copies, Resource, Settings, ToolError, ToolOutcome, ToolSession};

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
const ORDER_MAX: u32 = MESSAGE_BYTES_MAX + 64 * 1024;
/// Maximum length of a report, in bytes: two copies of the largest payload in one answer, in base64.
const REPORT_MAX: u32 = 32 * 1024 * 1024;

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
    },
    /// Cancel this call, which is no longer wanted.
    Cancel { id: u64 },
    /// Forget this connection, which has ended.
    Close { connection: u64 },
}

/// The message of an error sent to another process.
#[derive(Serialize, Deserialize)]
#[serde(transparent)]
struct FailureText(String);

/// The end of a call.
#[derive(Serialize, Deserialize)]
struct HelperReport {
    id: u64,
    connection: u64,
    /// The call's result or error; `None` if it was cancelled.
    result: Option<Result<ToolOutcome, FailureText>>,
    /// True if the connection has an unfinished piecewise transfer.
    waits: bool,
}

/// Receives a message of at most `max` bytes. Fails at the end of the stream, and on an overlong or invalid message.
async fn receive<T: DeserializeOwned>(
    from: &mut (impl AsyncRead + Unpin),
    max: u32,
) -> io::Result<T> {
    let length = from.read_u32_le().await?;
    if length > max {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut bytes = Vec::new();
    from.take(length.into()).read_to_end(&mut bytes).await?;
    Ok(serde_json::from_slice(&bytes)?)
}

/// A helper's policy and settings.
pub(crate) struct Work<'a> {
    pub(crate) caller: MachineName,
    pub(crate) resource: Resource,
    /// Used only for the policy.
    pub(crate) monitor: &'a dyn Monitor,
    pub(crate) settings: Arc<Settings>,
}

/// Runs the ordered calls that the policy grants, until the socket is closed.
pub(crate) async fn serve(work: Work<'_>, socket: UnixStream) {
    let (reader, mut writer) = socket.into_split();
    let (reports, mut queue) = mpsc::unbounded_channel::<Vec<u8>>();
    let writing = tokio::spawn(async move {
        while let Some(report) = queue.recv().await {
            if writer.write_all(&report).await.is_err() {
                return;
            }
        }
    });
    let mut reader = BufReader::new(reader);
    let mut sessions: HashMap<u64, Arc<ToolSession>> = HashMap::new();
    let mut running: HashMap<u64, CancellationToken> = HashMap::new();
    while let Ok(order) = receive(&mut reader, ORDER_MAX).await {
        running.retain(|_, call| !call.is_cancelled());
        match order {
            HelperOrder::Call {
                id,
                connection,
                service,
                arguments,
                copies,
            } => {
                let session = sessions
                    .entry(connection)
                    .or_insert_with(|| Arc::new(ToolSession::new(Arc::clone(&work.settings))));
                let token = CancellationToken::new();
                running.insert(id, token.clone());
                let session = Arc::clone(session);
                let grant = work.decide(&service, &Arc::new(arguments.into_owned()));
                let reports = reports.clone();
                tokio::spawn(async move {
                    let result = tokio::select! {
                        result = run(grant, &session, copies) => {
                            Some(result.map_err(|error| FailureText(error.to_string())))
                        }
                        () = token.cancelled() => None,
                    };
                    token.cancel();
                    let report = HelperReport {
                        id,
                        connection,
                        result,
                        waits: !session.is_idle(),
                    };
                    // If the report cannot be sent, the worker notices that this process has ended.
                    if let Ok(report) = framed(&report) {
                        let _ = reports.send(report);
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
        }
    }
    running.values().for_each(CancellationToken::cancel);
    writing.abort();
}

impl Work<'_> {
    /// Grants a call to one of this process's tools if the policy in force allows it.
    fn decide(&self, service: &str, arguments: &Arc<Map<String, Value>>) -> Option<Grant> {
        let caller = Caller::Consumer(self.caller.clone());
        let request = Request {
            caller: &caller,
            name: service,
            arguments,
        };
        match policy::decide(&self.monitor.policy().services, request) {
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
    session: &ToolSession,
    copies: Copies,
) -> Result<ToolOutcome, ToolError> {
    let Some(grant) = grant else {
        let text = "the policy has changed and no longer grants this call";
        return Err(ToolError::Refused(text.to_owned()));
    };
    let running = AssertUnwindSafe(tool::run(&grant, session, copies)).catch_unwind();
    running.await.unwrap_or(Err(ToolError::Broken))
}
