//! The way of a call: decided, let in, run, logged, and only then answered.
//!
//! The policy is asked at the moment of the call, and once more when it had to wait for its turn.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rmcp::model::{CallToolRequestParams, CallToolResult, ErrorCode, ErrorData};
use rmcp::service::{RequestContext, RoleServer};
use serde_json::{Map, Value, json};
use tokio::sync::{Notify, Semaphore};
use tokio::time::Instant;

use super::Server;
use super::call::{self, ToolCall};
use super::in_flight::InFlightRequests;
use crate::audit::{self, Outcome, Verdict, bounded, digest_of};
use crate::catalogue::check_some;
use crate::limits::{CALL_TIME, Limits};
use crate::mcp::concurrency::{Full, Overloaded, too_many_connections};
use crate::mcp::helper::Connection;
use crate::mcp::monitor::{AdmitError, Admitted, LogError};
use crate::mcp::policy_watcher::Policy;
use crate::mcp::shown;
use crate::mcp::throttle::{MemoryPermit, SHORT};
use crate::name::ToolName;
use crate::policy::{self, Caller, Decision, Denial, Grant, Request};
use crate::text::Foreign;
use crate::tool::{self, Copies, ToolSession};

/// Code of the error that says "not now" (JSON-RPC leaves -32000 to -32099 to servers).
pub(crate) const OVERLOADED: i32 = -32010;

impl From<Overloaded> for ErrorData {
    /// The error of a call that may run, but not now.
    fn from(full: Overloaded) -> Self {
        let (limit, seconds) = (full.limit, full.retry_after.as_secs_f64());
        Self::new(
            ErrorCode(OVERLOADED),
            format!("overloaded: {limit} is the limit; try again in {seconds:.1} s"),
            Some(json!({"retryAfterSeconds": seconds, "limit": limit})),
        )
    }
}

/// The calls of one connection that run, by service: it waits for them instead of being told "overloaded".
#[derive(Debug, Default)]
pub(super) struct Own {
    running: Mutex<HashMap<String, usize>>,
    ended: Notify,
}

impl Own {
    /// Lets a call in by `admit`; `Ok(None)`: it is this connection's own calls that fill it.
    fn enter(
        &self,
        service: &str,
        admit: impl FnOnce() -> Result<Box<dyn Admitted>, AdmitError>,
    ) -> Result<Option<OwnCall<'_>>, AdmitError> {
        // Locked over both counts: a call that is in by one is in by the other.
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        let own = running.entry(service.to_owned()).or_default();
        match admit() {
            Ok(place) => {
                *own += 1;
                Ok(Some(OwnCall {
                    own: self,
                    service: service.to_owned(),
                    place: Some(place),
                }))
            }
            Err(AdmitError::Overloaded(full)) if full.kind == Full::AtOnce && *own > 0 => Ok(None),
            Err(why) => Err(why),
        }
    }
}

/// One of them; noted as ended when dropped.
struct OwnCall<'a> {
    own: &'a Own,
    service: String,
    place: Option<Box<dyn Admitted>>,
}

impl OwnCall<'_> {
    /// Logs how it ended; its place is free.
    fn ended(mut self, outcome: Outcome, bytes_out: u64) -> Result<(), LogError> {
        let place = self.place.take();
        place.map_or(Ok(()), |place| place.ended(outcome, bytes_out))
    }
}

/// A call that has its turn, and the policy's word for it.
struct CallTurn<'a> {
    grant: Grant,
    limits: Limits,
    place: OwnCall<'a>,
}

/// The answer for a call that does not run.
type Answer = Result<CallToolResult, ErrorData>;

impl Drop for OwnCall<'_> {
    fn drop(&mut self) {
        // Its place is free before whoever waits for it looks.
        drop(self.place.take());
        let mut running = self
            .own
            .running
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = running.get_mut(&self.service) {
            *count = count.saturating_sub(1);
        }
        drop(running);
        self.own.ended.notify_waiters();
    }
}

/// The pipeline of one call.
pub(super) struct CallPipeline<'a> {
    pub(super) server: &'a Server,
    pub(super) session: &'a ToolSession,
    pub(super) helpers: Option<&'a Connection>,
    pub(super) flight: &'a InFlightRequests,
    pub(super) places: &'a Arc<Semaphore>,
    pub(super) own: &'a Own,
    pub(super) context: &'a RequestContext<RoleServer>,
}

/// The log entry of a call, however it ends.
struct CallEntry {
    id: Foreign,
    service: Foreign,
    bytes_in: u64,
    arguments: String,
    since: Instant,
}

impl CallPipeline<'_> {
    /// Decides, runs, logs.
    ///
    /// # Errors
    ///
    /// A protocol error for the caller: unknown, refused, overloaded, cancelled, or not logged.
    pub(super) async fn call(
        &self,
        request: CallToolRequestParams,
    ) -> Result<CallToolResult, ErrorData> {
        let arguments = request.arguments.unwrap_or_default();
        let name = request.name.as_ref();
        let entry = self.entry(name, &arguments);
        let policy = self.server.shared.monitor.policy();
        let grant = match self.decide(&policy, name, &arguments) {
            Ok(grant) => grant,
            Err(denial) => return self.refuse(&entry, &policy, &denial, name),
        };
        let limits = policy.services.limits_of(name);
        let call = self.granted(&grant, &limits, &entry);
        let mut room = None;
        // Arguments that the tool will refuse wait for nothing: they are kept no longer than it takes to say so.
        if check_some(grant.tool(), grant.arguments()).is_ok() {
            let places = places_of(grant.tool()).min(self.server.limits.running);
            let place = Arc::clone(self.places).acquire_many_owned(places);
            match call.wait_for(place).await {
                Ok(Ok(place)) => self.flight.hold(&self.context.id, place),
                // Closed they never are.
                Ok(Err(_)) => {}
                Err(ended) => return self.never_ran(&entry, &policy, &grant, ended),
            }
            room = match call.wait_for(self.room(&grant, call.copies())).await {
                Ok(room) => room,
                Err(ended) => return self.never_ran(&entry, &policy, &grant, ended),
            };
        }
        let turn = match self.turn(&call, &entry, name, &arguments).await {
            Ok(turn) => turn,
            Err(answer) => return answer,
        };
        self.runs(&entry);
        let call = self.granted(&turn.grant, &turn.limits, &entry);
        let (outcome, result) = call.run().await;
        let bytes_out = result.as_ref().map_or(0, text_bytes);
        let logged = turn.place.ended(outcome, bytes_out);
        logged.map_err(|_| unlogged(true))?;
        let left = usize::try_from(bytes_out).unwrap_or(usize::MAX);
        if let Some(room) = room.and_then(|room| room.shrink(left.saturating_mul(2))) {
            self.flight.keep(&self.context.id, room);
        }
        result
    }

    /// The memory of the answer, where that may be large.
    async fn room(&self, grant: &Grant, copies: Copies) -> Option<MemoryPermit> {
        let pace = self.server.pace.as_ref()?;
        let bytes = tool::largest_answer(grant, copies);
        // A short answer is not counted.
        if bytes <= SHORT {
            return None;
        }
        pace.answer(bytes).await.ok()
    }

    fn decide(
        &self,
        policy: &Policy,
        name: &str,
        arguments: &Map<String, Value>,
    ) -> Result<Grant, Denial> {
        let request = Request {
            caller: &self.server.caller,
            name,
            arguments,
        };
        match policy::decide(&policy.services, request) {
            Decision::Allowed(grant) => Ok(grant),
            Decision::Denied(denial) => Err(denial),
        }
    }

    fn granted<'c>(&'c self, grant: &'c Grant, limits: &Limits, entry: &CallEntry) -> ToolCall<'c> {
        ToolCall {
            grant,
            session: self.session,
            helpers: self.helpers,
            run: &self.server.run,
            context: self.context,
            since: entry.since,
            every: self.server.limits.progress,
            longest: limits.call_time().max(match self.server.caller {
                // A tool's own time is the operator's to set.
                Caller::Operator => CALL_TIME.max(self.server.shared.settings.gpg_wait),
                Caller::Consumer(_) => Duration::ZERO,
            }),
        }
    }

    /// A place among the calls that run, by the policy of the moment at which there is one: it may have waited long. Those of
    /// this connection are waited for: that is back-pressure, no overload.
    async fn turn(
        &self,
        waiting: &ToolCall<'_>,
        entry: &CallEntry,
        name: &str,
        arguments: &Map<String, Value>,
    ) -> Result<CallTurn<'_>, Answer> {
        let monitor = &self.server.shared.monitor;
        loop {
            let ended = self.own.ended.notified();
            let policy = monitor.policy();
            let grant = match self.decide(&policy, name, arguments) {
                Ok(grant) => grant,
                Err(denial) => return Err(self.refuse(entry, &policy, &denial, name)),
            };
            let limits = policy.services.limits_of(name);
            let mut line = self.line(entry, &policy, Verdict::Allowed, "granted".to_owned());
            line.tool = Some(grant.tool().as_str().into());
            match self.own.enter(name, || monitor.admit(line)) {
                Ok(Some(place)) => {
                    return Ok(CallTurn {
                        grant,
                        limits,
                        place,
                    });
                }
                Ok(None) => {
                    if let Err(given_up) = waiting.wait_for(ended).await {
                        return Err(self.never_ran(entry, &policy, &grant, given_up));
                    }
                }
                Err(AdmitError::Overloaded(full)) => {
                    return Err(Err(self.overload(entry, &policy, full)));
                }
                Err(AdmitError::Unlogged) => return Err(Err(unlogged(false))),
                // Asked again; a policy does not change as fast as it is asked for.
                Err(AdmitError::Changed) => {}
            }
        }
    }

    /// Its caller's pace is that of what does not run.
    fn runs(&self, entry: &CallEntry) {
        if let Some(pace) = &self.server.pace {
            pace.runs(usize::try_from(entry.bytes_in).unwrap_or(usize::MAX));
        }
    }

    /// A service that is there for others and one that is not there at all are one answer.
    fn refuse(
        &self,
        entry: &CallEntry,
        policy: &Policy,
        denial: &Denial,
        name: &str,
    ) -> Result<CallToolResult, ErrorData> {
        let (reason, answer) = match denial {
            Denial::Unknown | Denial::NotConsumer { .. } => {
                ("no such service".to_owned(), Err(unknown_tool(name)))
            }
            Denial::FixedArgument { argument } => {
                let text = format!("`{}` is not the caller's to choose", shown(argument));
                (text.clone(), Ok(call::refused(text)))
            }
        };
        self.log(self.line(entry, policy, Verdict::Refused, reason))?;
        answer
    }

    /// A call over a connection that its caller has too many of: nothing is decided, and it is in the log.
    pub(super) fn turn_away(&self, request: &CallToolRequestParams, most: usize) -> ErrorData {
        let name = request.name.as_ref();
        let entry = match &request.arguments {
            Some(arguments) => self.entry(name, arguments),
            None => self.entry(name, &Map::new()),
        };
        let policy = self.server.shared.monitor.policy();
        self.overload(&entry, &policy, too_many_connections(most))
    }

    fn overload(&self, entry: &CallEntry, policy: &Policy, full: Overloaded) -> ErrorData {
        let line = self.line(entry, policy, Verdict::Overloaded, full.limit.clone());
        match self.log(line) {
            Ok(()) => full.into(),
            Err(unseen) => unseen,
        }
    }

    /// A call that ended while it waited for its turn has its line as well.
    fn never_ran(
        &self,
        entry: &CallEntry,
        policy: &Policy,
        grant: &Grant,
        ended: ErrorData,
    ) -> Result<CallToolResult, ErrorData> {
        let reason = "taken back while it waited".to_owned();
        let mut line = self.line(entry, policy, Verdict::Allowed, reason);
        line.tool = Some(grant.tool().as_str().into());
        self.log(line)?;
        Err(ended)
    }

    fn entry(&self, name: &str, arguments: &Map<String, Value>) -> CallEntry {
        let (id, bytes_in) = self.flight.asked(&self.context.id);
        CallEntry {
            id: bounded(&id),
            service: bounded(name),
            bytes_in,
            arguments: digest_of(arguments),
            since: Instant::now(),
        }
    }

    fn line(
        &self,
        entry: &CallEntry,
        policy: &Policy,
        decision: Verdict,
        reason: String,
    ) -> audit::Call {
        let took = entry.since.elapsed().as_micros();
        audit::Call {
            id: entry.id.clone(),
            caller: self.server.caller.to_string().into(),
            service: entry.service.clone(),
            tool: None,
            decision,
            reason: reason.into(),
            policy: policy.digest.as_str().into(),
            outcome: Outcome::NotRun,
            bytes_in: entry.bytes_in,
            bytes_out: 0,
            duration_us: u64::try_from(took).unwrap_or(u64::MAX),
            arguments: entry.arguments.as_str().into(),
        }
    }

    fn log(&self, line: audit::Call) -> Result<(), ErrorData> {
        let logged = self.server.shared.monitor.log(line);
        logged.map_err(|_| unlogged(false))
    }
}

/// Places that a running tool takes: more when its answer may be large, for it waits in memory to be written.
const fn places_of(tool: ToolName) -> u32 {
    match tool {
        ToolName::FileProvide => 4,
        ToolName::GpgSign
        | ToolName::ClipboardGet
        | ToolName::ClipboardSet
        | ToolName::FileAccept => 1,
    }
}

fn unknown_tool(name: &str) -> ErrorData {
    ErrorData::invalid_params(format!("Unknown tool: {}", shown(name)), None)
}

/// A call that nobody could see afterwards does not run; of one that has run, the answer stays here.
fn unlogged(ran: bool) -> ErrorData {
    let text = if ran {
        "the call ran, but its answer is kept back: this server cannot write its log"
    } else {
        "the call is refused: this server cannot write its log"
    };
    ErrorData::internal_error(text, Some(json!({"logged": false, "ran": ran})))
}

fn text_bytes(result: &CallToolResult) -> u64 {
    let texts = result.content.iter().filter_map(|block| block.as_text());
    texts.map(|text| text.text.len() as u64).sum()
}
