//! Decides whether a call may run, based on the policy in force and the limits across all callers, and logs the call.
//!
//! A server with one connection does this itself ([`Local`]). A server with many consumers does it for all of them;
//! their workers ask it ([`remote`], [`attend()`]), so a worker never opens the log and cannot name another caller.

mod protocol;
pub(crate) mod remote;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::io::{self, BufReader};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::audit::{Call, CallEnd, Outcome, Verdict, bounded, bounded_reason};
use crate::ipc::{SpinRead, receive, send};
use crate::mcp::concurrency::{ConcurrencyLimiter, Overloaded, RunningCall};
use crate::mcp::policy_watcher::{Policy, PolicyWatcher};
use crate::mcp::recorder::{BegunCall, Recorder};
use crate::name::MachineName;
use crate::policy::Caller;
use crate::tool::Resource;
use protocol::{MonitorRequest, REQUEST_MAX, Response};

/// Answers a connection's requests before and after each call.
pub(crate) trait Monitor: Send + Sync {
    /// Returns the policy in force.
    fn policy(&self) -> Arc<Policy>;

    /// Returns the policy in force, read again even if the services file looks unchanged, so that a list is never stale
    /// and a stuck server is noticed.
    fn refreshed_policy(&self) -> Arc<Policy> {
        self.policy()
    }

    /// Admits a call that the policy grants; `line` is its log line without the outcome.
    fn admit(&self, line: Call) -> Result<Box<dyn Admitted>, AdmitError>;

    /// Logs a call that does not run. Fails if the line cannot be written, unless unlogged calls are allowed.
    fn log(&self, line: Call) -> Result<(), LogError>;
}

/// An admitted call. A call dropped before [`Admitted::ended`] ended with its connection and is logged as cancelled.
pub(crate) trait Admitted: Send {
    /// Makes room for the next call and logs how this one ended. When this returns, the line is in the file and the
    /// answer may be sent. Fails under the same conditions as [`Monitor::log`].
    fn ended(self: Box<Self>, end: CallEnd) -> Result<(), LogError>;
}

/// The reason why a call that the policy grants does not run.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum AdmitError {
    /// A limit has been reached.
    Overloaded(Overloaded),
    /// The call could not be logged.
    Unlogged,
    /// The policy in force is not the one that granted the call.
    Changed,
}

/// The event could not be written to the log.
#[derive(Debug)]
pub(crate) struct LogError;

/// A monitor within this process.
pub(crate) struct Local {
    /// The caller. The operator's calls have no limits.
    pub(crate) caller: Caller,
    pub(crate) policy: PolicySource,
    pub(crate) recorder: Arc<Recorder>,
    /// The limits across all callers.
    pub(crate) limiter: Arc<ConcurrencyLimiter>,
}

/// Returns the policy in force.
pub(crate) type PolicySource = Box<dyn Fn() -> Arc<Policy> + Send + Sync>;

impl Local {
    fn admit_local(&self, line: Call) -> Result<LocalCall, AdmitError> {
        let policy = (self.policy)();
        if *line.policy.raw() != policy.digest {
            return Err(AdmitError::Changed);
        }
        let running = match &self.caller {
            Caller::Operator => None,
            Caller::Consumer(name) => {
                let called = line.service.raw();
                let service = policy.services.service(called);
                let service = service.filter(|service| service.serves_at(name, Timestamp::now()));
                // The worker decided under another policy, or not at all.
                let service = service.ok_or(AdmitError::Changed)?;
                let entered = self.limiter.enter(name.as_str(), called, &service.limits);
                Some(entered.map_err(AdmitError::Overloaded)?)
            }
        };
        let line = Call {
            decision: Verdict::Allowed,
            ..self.with_trusted_fields(line, &policy)
        };
        let begun = self.recorder.begin(line, policy.services.allow_unlogged);
        let begun = begun.map_err(|_| AdmitError::Unlogged)?;
        Ok(LocalCall { running, begun })
    }

    /// Sets the fields for which a worker is not trusted, such as caller, tool and reason.
    fn with_trusted_fields(&self, line: Call, policy: &Policy) -> Call {
        let service = policy.services.service(line.service.raw());
        let not_consumer = match (&self.caller, service) {
            (Caller::Consumer(caller), Some(service)) => !service.serves(caller),
            _ => false,
        };
        Call {
            caller: self.caller.to_string().into(),
            outcome: Outcome::NotRun,
            bytes_out: 0,
            completes: None,
            tool: service.map_or(line.tool, |service| Some(service.tool.to_string().into())),
            reason: if not_consumer && line.decision == Verdict::Refused {
                // The caller gets the same answer for a missing service as for a forbidden one; only the log differs.
                "not a consumer".into()
            } else {
                line.reason
            },
            ..line
        }
    }
}

impl Monitor for Local {
    fn policy(&self) -> Arc<Policy> {
        (self.policy)()
    }

    fn admit(&self, line: Call) -> Result<Box<dyn Admitted>, AdmitError> {
        Ok(Box::new(self.admit_local(line)?))
    }

    fn log(&self, line: Call) -> Result<(), LogError> {
        let policy = (self.policy)();
        let line = self.with_trusted_fields(line, &policy);
        let logged = self.recorder.call(line, policy.services.allow_unlogged);
        logged.map_err(|_| LogError)
    }
}

/// A running call: its place and its log line.
struct LocalCall {
    running: Option<RunningCall>,
    begun: BegunCall,
}

impl Admitted for LocalCall {
    fn ended(self: Box<Self>, end: CallEnd) -> Result<(), LogError> {
        let Self { running, begun } = *self;
        drop(running);
        begun.ended(end).map_err(|_| LogError)
    }
}

/// Provides a worker with helpers and memory.
pub(crate) trait House {
    /// Starts a helper and returns its socket. Fails if the policy grants the consumer none, or if a system call fails.
    fn start(&self, resource: Resource) -> io::Result<OwnedFd>;

    /// Lends memory if enough is free; returns whether it did.
    fn borrow(&self) -> bool;

    /// Takes the memory back.
    fn give_back(&self);
}

/// Answers a worker until it closes its end or sends an invalid request. Its running calls then end as well.
pub(crate) fn attend(
    process: &UnixStream,
    caller: &MachineName,
    watcher: &PolicyWatcher,
    local: &Local,
    house: &impl House,
) {
    let mut requests = BufReader::new(SpinRead::new(process));
    let (mut running, mut last) = (HashMap::new(), 0);
    while let Ok(request) = receive(&mut requests, REQUEST_MAX) {
        let mut helper = None;
        let answer = match request {
            MonitorRequest::Policy => policy(caller, watcher),
            MonitorRequest::Admit(call) => {
                let admitted = local.admit_local(truncate_fields(*call));
                Response::Admit(admitted.map(|call| {
                    last += 1;
                    running.insert(last, call);
                    last
                }))
            }
            MonitorRequest::Ended { place, end } => match running.remove(&place) {
                Some(call) => done(Box::new(call).ended(end)),
                None => return,
            },
            MonitorRequest::Abandoned { place } => match running.remove(&place).map(drop) {
                Some(()) => Response::Done,
                None => return,
            },
            MonitorRequest::Log(call) => done(local.log(truncate_fields(*call))),
            MonitorRequest::Borrow => Response::Lent(house.borrow()),
            MonitorRequest::GiveBack => {
                house.give_back();
                Response::Done
            }
            MonitorRequest::Helper(resource) => match house.start(resource) {
                Ok(socket) => {
                    helper = Some(socket);
                    Response::Helper
                }
                Err(why) => Response::NoHelper(why.to_string()),
            },
        };
        if send(process, &answer, helper.as_ref().map(OwnedFd::as_fd)).is_err() {
            return;
        }
    }
}

/// Answers a helper, which asks only for the policy.
pub(crate) fn attend_helper(helper: &UnixStream, caller: &MachineName, watcher: &PolicyWatcher) {
    let mut requests = BufReader::new(SpinRead::new(helper));
    while let Ok(MonitorRequest::Policy) = receive(&mut requests, REQUEST_MAX) {
        if send(helper, &policy(caller, watcher), None).is_err() {
            return;
        }
    }
}

fn done(logged: Result<(), LogError>) -> Response {
    logged.map_or(Response::Unlogged, |()| Response::Done)
}

/// Builds the response with the part of the policy that a worker may know: its consumer's part.
fn policy(caller: &MachineName, watcher: &PolicyWatcher) -> Response {
    let (policy, settled) = watcher.current_and_settled();
    Response::Policy {
        services: policy.services.of_consumer(caller),
        digest: policy.digest.clone(),
        settled,
    }
}

/// Truncates the text fields, which are set by the worker.
fn truncate_fields(line: Call) -> Call {
    Call {
        id: bounded(line.id.raw()),
        service: bounded(line.service.raw()),
        tool: line.tool.as_ref().map(|tool| bounded(tool.raw())),
        reason: bounded_reason(line.reason.raw()),
        policy: bounded(line.policy.raw()),
        purpose: line
            .purpose
            .as_ref()
            .map(|purpose| bounded_reason(purpose.raw())),
        ..line
    }
}
