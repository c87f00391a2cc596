//! The helper itself: runs what it is told, as far as the policy grants it.

use std::collections::HashMap;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use futures_util::FutureExt as _;
use tokio::io::{AsyncWriteExt as _, BufReader};
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::protocol::{HelperOrder, HelperReport, ORDER_MAX, receive};
use crate::mcp::monitor::{Monitor, framed};
use crate::name::MachineName;
use crate::policy::{self, Caller, Decision, Grant, Request};
use crate::tool::{self, Copies, Resource, Settings, ToolError, ToolSession};

/// The policy and settings it runs by.
pub(crate) struct Work<'a> {
    pub(crate) caller: MachineName,
    pub(crate) resource: Resource,
    /// Asked for the policy alone.
    pub(crate) monitor: &'a dyn Monitor,
    pub(crate) settings: Arc<Settings>,
}

/// Runs what it is told until its socket is closed.
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
                let call = HelperCall {
                    id,
                    connection,
                    session: Arc::clone(session),
                    grant: work.decide(&service, &arguments),
                    copies,
                };
                tokio::spawn(call.run(token, reports.clone()));
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
    /// Asks the current policy about a call of one of this process's tools.
    fn decide(
        &self,
        service: &str,
        arguments: &serde_json::Map<String, serde_json::Value>,
    ) -> Option<Grant> {
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

/// A call that runs.
struct HelperCall {
    id: u64,
    connection: u64,
    session: Arc<ToolSession>,
    grant: Option<Grant>,
    copies: Copies,
}

impl HelperCall {
    async fn run(self, token: CancellationToken, reports: mpsc::UnboundedSender<Vec<u8>>) {
        // Caught here, so that a call that panicked is reported as well.
        let running = AssertUnwindSafe(async {
            match &self.grant {
                Some(grant) => tool::run(grant, &self.session, self.copies)
                    .await
                    .map_err(|error| error.to_string()),
                None => Err("the policy has changed, and does not grant this call".to_owned()),
            }
        });
        let result = tokio::select! {
            result = running.catch_unwind() => {
                Some(result.unwrap_or_else(|_| Err(ToolError::Broken.to_string())))
            }
            () = token.cancelled() => None,
        };
        token.cancel();
        let report = HelperReport {
            id: self.id,
            connection: self.connection,
            result,
            waits: !self.session.is_idle(),
        };
        // Whoever asked sees the end of this process, where it cannot be written.
        if let Ok(report) = framed(&report) {
            let _ = reports.send(report);
        }
    }
}
