//! Takes one call through its stages: it is authorized, admitted, run, logged, and only then answered.
//!
//! The policy is applied when the call arrives, and again after it has waited for its turn.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use futures_util::FutureExt as _;
use jiff::Timestamp;
use rmcp::model::{ErrorCode, ErrorData};
use rmcp::service::{RequestContext, RoleServer};
use serde_json::{Map, Value, json};
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout};

use super::Server;
use super::call::{
    AnswerResult, CallProgress, OwnCall, OwnCalls, failed, fault, of_upstream, refused, succeeded,
};
use super::in_flight::InFlightRequests;
use super::transfer_ids::TransferIds;
use crate::audit::{self, CallEnd, Outcome, Verdict, bounded, digest_of};
use crate::limits::CALL_TIME;
use crate::mcp::concurrency::{Overloaded, too_many_connections};
use crate::mcp::helper::{CallOutcome, Connection, ToolResult};
use crate::mcp::monitor::AdmitError;
use crate::mcp::policy_watcher::Policy;
use crate::mcp::throttle::{MemoryPermit, SHORT};
use crate::mcp::{LOGGED, ONE_COPY_KEY, OVERLOADED, shown};
use crate::name::{ServiceTool, ToolName};
use crate::policy::{self, Caller, Decision, Denial, Grant, Request};
use crate::tool::{self, Copies, ToolSession};

/// The progress of one second of a call to an upstream that reports none: any report of its own is greater.
const UPSTREAM_PROGRESS: f64 = 1e-9;

impl From<Overloaded> for ErrorData {
    fn from(full: Overloaded) -> Self {
        let (limit, seconds) = (full.limit, full.retry_after.as_secs_f64());
        Self::new(
            ErrorCode(OVERLOADED),
            format!("overloaded: the limit is {limit}; try again in {seconds:.1} s"),
            Some(json!({"retryAfterSeconds": seconds, "limit": limit})),
        )
    }
}

/// The parts of a connection that its calls share.
pub(super) struct ConnectionState {
    pub(super) server: Server,
    session: ToolSession,
    /// Runs the tools that this process cannot run.
    helpers: Option<Connection>,
    pub(super) flight: Arc<InFlightRequests>,
    /// Slots for running tools.
    slots: Arc<Semaphore>,
    own: OwnCalls,
    transfers: TransferIds,
}

impl ConnectionState {
    pub(super) fn new(server: Server, flight: Arc<InFlightRequests>) -> Self {
        Self {
            session: ToolSession::new(Arc::clone(&server.shared.settings)),
            helpers: server.shared.helpers.clone().map(Connection::new),
            slots: Arc::new(Semaphore::new(server.limits.running as usize)),
            own: OwnCalls::default(),
            transfers: TransferIds::default(),
            server,
            flight,
        }
    }

    /// Returns the tools of upstreams whose definition has changed since it was accepted, as far as that is known.
    pub(super) async fn changed(&self) -> Vec<ServiceTool> {
        match &self.helpers {
            Some(helpers) => helpers.changed().await,
            None => Vec::new(),
        }
    }
}

/// The answer to a call: the result of the tool or of the policy, or a protocol error.
type Answer = Result<AnswerResult, ErrorData>;

/// One call in the pipeline.
pub(super) struct CallPipeline<'a> {
    connection: &'a ConnectionState,
    progress: CallProgress<'a>,
    arguments: &'a Arc<Map<String, Value>>,
    /// The call's log entry, as far as it is known on arrival.
    entry: audit::Call,
}

impl<'a> CallPipeline<'a> {
    pub(super) fn new(
        connection: &'a ConnectionState,
        context: &'a RequestContext<RoleServer>,
        name: &'a str,
        arguments: &'a Arc<Map<String, Value>>,
    ) -> Self {
        let (id, bytes_in) = connection.flight.asked(&context.id);
        Self {
            connection,
            progress: CallProgress {
                context,
                name,
                since: Instant::now(),
                interval: connection.server.limits.progress,
                is_reported: AtomicBool::new(false),
            },
            arguments,
            entry: audit::Call {
                id: bounded(&id),
                caller: connection.server.caller.to_string().into(),
                service: bounded(name),
                tool: None,
                decision: Verdict::Allowed,
                reason: "granted".into(),
                policy: "".into(),
                outcome: Outcome::NotRun,
                bytes_in,
                bytes_out: 0,
                duration_us: 0,
                transfer: connection.transfers.of(name, arguments),
                completes: None,
                purpose: None,
                arguments: digest_of(arguments).into(),
            },
        }
    }

    /// Authorizes, runs and logs the call. Fails with a protocol error for the caller, for example if the service is
    /// unknown or the call is overloaded, cancelled or not logged.
    pub(super) async fn answer(&self) -> Answer {
        self.run().await.unwrap_or_else(|answer| answer)
    }

    async fn run(&self) -> Result<Answer, Answer> {
        let ConnectionState { server, flight, .. } = self.connection;
        let policy = server.shared.monitor.policy();
        let grant = self
            .decide(&policy)
            .map_err(|denial| self.refuse(&policy, &denial))?;
        let mut memory = None;
        // A call whose arguments the tool will refuse does not wait, so that its arguments are kept only briefly.
        let definition = policy.services.definition(grant.tool());
        if definition.is_some_and(|tool| tool.check_some(grant.arguments()).is_ok()) {
            let reserved = self.reserve(&grant).await;
            memory = reserved.map_err(|cancelled| self.never_ran(&policy, &grant, cancelled))?;
        }
        let (grant, max_time, call) = self.admit().await?;
        // The caller's throttle applies only to requests that run nothing.
        if let Some(throttle) = &server.throttle {
            throttle.runs(usize::try_from(self.entry.bytes_in).unwrap_or(usize::MAX));
        }
        let (outcome, result) = self.run_tool(&grant, max_time).await;
        let bytes_out = result.as_ref().map_or(0, AnswerResult::bytes);
        let logged = call.admitted.ended(CallEnd {
            outcome,
            bytes_out,
            completes: self
                .entry
                .transfer
                .as_ref()
                .map(|_| result.as_ref().is_ok_and(AnswerResult::is_complete)),
        });
        drop(call.count);
        logged.map_err(|_| Err(unlogged(true)))?;
        let left = usize::try_from(bytes_out).unwrap_or(usize::MAX);
        if let Some(memory) = memory.and_then(|memory| memory.shrink(left.saturating_mul(2))) {
            flight.keep_memory(&self.progress.context.id, memory);
        }
        Ok(result)
    }

    fn decide(&self, policy: &Policy) -> Result<Grant, Denial> {
        let request = Request {
            caller: &self.connection.server.caller,
            name: self.progress.name,
            arguments: self.arguments,
            now: Timestamp::now(),
        };
        match policy::decide(&policy.services, request) {
            Decision::Allowed(grant) => Ok(grant),
            Decision::Denied(denial) => Err(denial),
        }
    }

    /// Waits for a slot to run the tool, and for memory if the answer may be large. Fails if the call is cancelled.
    async fn reserve(&self, grant: &Grant) -> Result<Option<MemoryPermit>, ErrorData> {
        let ConnectionState { server, flight, .. } = self.connection;
        let slots = slots_of(grant.tool()).min(server.limits.running);
        let slot = Arc::clone(&self.connection.slots).acquire_many_owned(slots);
        // The semaphore is never closed.
        if let Ok(slot) = self.progress.wait_for(slot).await? {
            flight.keep_slot(&self.progress.context.id, slot);
        }
        let bytes = tool::largest_answer(grant, &self.connection.session, self.copies());
        match &server.throttle {
            // Short answers are not counted.
            Some(throttle) if bytes > SHORT => {
                Ok(self.progress.wait_for(throttle.answer(bytes)).await?.ok())
            }
            _ => Ok(None),
        }
    }

    /// Admits the call under the policy now in force, as it may have waited a long time. Waits for this connection's
    /// calls, which is back-pressure, not overload. Also returns the call's maximum duration.
    async fn admit(&self) -> Result<(Grant, Duration, OwnCall<'_>), Answer> {
        let monitor = &self.connection.server.shared.monitor;
        let own = &self.connection.own;
        loop {
            let ended = own.ended.notified();
            let policy = monitor.policy();
            let grant = self
                .decide(&policy)
                .map_err(|denial| self.refuse(&policy, &denial))?;
            let line = self.granted_line(&policy, &grant);
            match own.enter(self.progress.name, || monitor.admit(line)) {
                Ok(Some(call)) => return Ok((grant, self.max_time(&policy), call)),
                Ok(None) => {
                    let waited = self.progress.wait_for(ended).await;
                    waited.map_err(|cancelled| self.never_ran(&policy, &grant, cancelled))?;
                }
                Err(AdmitError::Overloaded(full)) => {
                    return Err(Err(self.overload(&policy, full)));
                }
                Err(AdmitError::Unlogged) => return Err(Err(unlogged(false))),
                // Decides again; policies change too rarely for this to loop for long.
                Err(AdmitError::Changed) => {}
            }
        }
    }

    fn max_time(&self, policy: &Policy) -> Duration {
        let server = &self.connection.server;
        let max_time = policy.services.call_time(self.progress.name);
        match server.caller {
            // The operator may set a longer time for gpg.
            Caller::Operator => max_time.max(CALL_TIME).max(server.shared.settings.gpg_wait),
            Caller::Consumer(_) => max_time,
        }
    }

    /// Runs the tool. Returns its outcome for the log, and the answer: a tool failure is a result.
    async fn run_tool(&self, grant: &Grant, max_time: Duration) -> (Outcome, Answer) {
        // Panics are caught here, so that a call that panicked is logged as well.
        let running = AssertUnwindSafe(self.tool(grant)).catch_unwind();
        let running = timeout(max_time, running);
        let per_second = match grant.tool() {
            ServiceTool::Upstream(..) => UPSTREAM_PROGRESS,
            ServiceTool::BuiltIn(_) | ServiceTool::Own(_) => 1.0,
        };
        match self.progress.wait(running, per_second).await {
            Ok(Ok(Ok(Ok(CallOutcome::Tool(outcome))))) => {
                (Outcome::Done, Ok(succeeded(outcome).into()))
            }
            Ok(Ok(Ok(Ok(CallOutcome::Upstream(answer))))) => {
                let answer = of_upstream(&answer);
                let done = answer.as_ref().is_ok_and(|answer| !answer.has_failed());
                let outcome = if done { Outcome::Done } else { Outcome::Failed };
                (outcome, answer)
            }
            Ok(Ok(Ok(Err(error)))) => (Outcome::Failed, Ok(failed(error.to_string()).into())),
            Ok(Ok(Err(_panic))) => (Outcome::Failed, Err(fault())),
            Ok(Err(_elapsed)) => {
                let seconds = max_time.as_secs();
                let text = format!("it was stopped after {seconds} s, the maximum duration");
                (Outcome::TimedOut, Ok(failed(text).into()))
            }
            Err(cancelled) => (Outcome::Cancelled, Err(cancelled)),
        }
    }

    /// Runs the tool, here or in a helper.
    async fn tool(&self, grant: &Grant) -> ToolResult {
        let (connection, copies) = (self.connection, self.copies());
        let helpers = connection.helpers.as_ref();
        let Some(helpers) = helpers.filter(|helpers| helpers.runs(grant.tool())) else {
            let outcome = (connection.server.run)(grant, &connection.session, copies).await;
            return outcome.map(CallOutcome::Tool);
        };
        match grant.tool() {
            ServiceTool::Upstream(..) => {
                let run = |sink| helpers.run(grant, copies, sink);
                self.progress.passing_on(run).await
            }
            ServiceTool::BuiltIn(_) | ServiceTool::Own(_) => helpers.run(grant, copies, None).await,
        }
    }

    /// Returns the number of copies of a large payload in the answer.
    fn copies(&self) -> Copies {
        match self.progress.context.meta.0.0.get(ONE_COPY_KEY) {
            Some(Value::Bool(true)) => Copies::One,
            _ => Copies::Two,
        }
    }

    /// Logs and answers a denied call. The answer is the same for a missing service and for a forbidden one.
    fn refuse(&self, policy: &Policy, denial: &Denial) -> Answer {
        let (reason, answer) = match denial {
            Denial::Unknown | Denial::NotConsumer { .. } => {
                ("no such service".to_owned(), Err(self.unknown_tool()))
            }
            Denial::Expired { expiry, .. } => (
                format!("the service expired at {expiry}"),
                Err(self.unknown_tool()),
            ),
            Denial::Condition(broken) => {
                let text = broken.to_string();
                (text.clone(), Ok(refused(text).into()))
            }
            // Only the operator offers.
            Denial::NoOffers { consumer, others } => {
                let text = policy::no_offers(consumer, others);
                (text.clone(), Ok(refused(text).into()))
            }
            Denial::FixedArgument { argument } => {
                let text = format!("the caller may not set `{}`", shown(argument));
                (text.clone(), Ok(refused(text).into()))
            }
            Denial::NotSigned(refusal) => {
                let text = refusal.to_string();
                (text.clone(), Ok(refused(text).into()))
            }
        };
        self.log(self.line(policy, Verdict::Refused, reason))?;
        answer
    }

    fn unknown_tool(&self) -> ErrorData {
        let text = format!("Unknown tool: {}", shown(self.progress.name));
        ErrorData::invalid_params(text, None)
    }

    /// Logs a call on a connection beyond the caller's limit of `max`, without applying the policy; returns the error.
    pub(super) fn turn_away(&self, max: usize) -> ErrorData {
        let policy = self.connection.server.shared.monitor.policy();
        self.overload(&policy, too_many_connections(max))
    }

    fn overload(&self, policy: &Policy, full: Overloaded) -> ErrorData {
        let line = self.line(policy, Verdict::Overloaded, full.limit.clone());
        self.log(line).err().unwrap_or_else(|| full.into())
    }

    /// Logs a call that was cancelled while waiting for its turn.
    fn never_ran(&self, policy: &Policy, grant: &Grant, cancelled: ErrorData) -> Answer {
        let mut line = self.granted_line(policy, grant);
        line.reason = "cancelled while it waited".into();
        self.log(line)?;
        Err(cancelled)
    }

    fn granted_line(&self, policy: &Policy, grant: &Grant) -> audit::Call {
        audit::Call {
            tool: Some(grant.tool().to_string().into()),
            purpose: grant.purpose().map(|purpose| purpose.unescaped().into()),
            ..self.line(policy, Verdict::Allowed, "granted".to_owned())
        }
    }

    fn line(&self, policy: &Policy, decision: Verdict, reason: String) -> audit::Call {
        let since_request = self.progress.since.elapsed().as_micros();
        audit::Call {
            decision,
            reason: reason.into(),
            policy: policy.digest.as_str().into(),
            duration_us: u64::try_from(since_request).unwrap_or(u64::MAX),
            ..self.entry.clone()
        }
    }

    fn log(&self, line: audit::Call) -> Result<(), ErrorData> {
        let logged = self.connection.server.shared.monitor.log(line);
        logged.map_err(|_| unlogged(false))
    }
}

/// Returns the number of slots that a running tool takes: more for large answers, which wait in memory to be written.
const fn slots_of(tool: &ServiceTool) -> u32 {
    match tool {
        ServiceTool::BuiltIn(ToolName::FileProvide | ToolName::ClipboardGet) => 4,
        ServiceTool::BuiltIn(
            ToolName::GpgSign
            | ToolName::SshSign
            | ToolName::ClipboardSet
            | ToolName::FileAccept
            | ToolName::Notify,
        )
        | ServiceTool::Own(_)
        | ServiceTool::Upstream(..) => 1,
    }
}

/// Builds the error for a call that cannot be logged: it does not run, or, if it `ran`, its answer is withheld.
fn unlogged(ran: bool) -> ErrorData {
    let text = if ran {
        "the call ran, but its answer is withheld: this server cannot write its log"
    } else {
        "the call is refused: this server cannot write its log"
    };
    ErrorData::internal_error(text, Some(json!({LOGGED: false, "ran": ran})))
}
