//! What a call is asked of beside its caller: the policy, the limits over all callers, the log.
//!
//! A server of one connection does this itself ([`Local`]). A server of many consumers does it for each of them in one
//! place, and the process that serves a consumer asks there ([`remote`], [`attend`]): so no consumer's process can write
//! another's line, or hold the log.

pub(crate) mod attend;
mod protocol;
pub(crate) mod remote;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use crate::audit::{Call, Outcome, Verdict};
use crate::mcp::gate::{Gate, Overloaded, Running};
use crate::mcp::live::Policy;
use crate::mcp::recorder::{Begun, Recorder};
use crate::policy::Caller;

/// Who is asked.
pub(crate) trait Monitor: Send + Sync {
    /// The policy in force at this moment.
    fn policy(&self) -> Arc<Policy>;

    /// The same, asked of whoever keeps it though nothing says that it may be another: who lists what it may call, sees that
    /// it could.
    fn policy_anew(&self) -> Arc<Policy> {
        self.policy()
    }

    /// Lets a call in that the policy grants; `line` tells of it, but for how it ends.
    ///
    /// # Errors
    ///
    /// It does not run, for the reason given.
    fn admit(&self, line: Call) -> Result<Box<dyn Admitted>, NotNow>;

    /// Logs a call that does not run.
    ///
    /// # Errors
    ///
    /// It cannot be written, and calls must not go unseen.
    fn log(&self, line: Call) -> Result<(), Unlogged>;
}

/// A call that was let in. Dropped before it is told how it ended, it has ended with its connection, and is logged so.
pub(crate) trait Admitted: Send {
    /// Makes room for the next call, and logs how this one ended. When this returns the line is in the file, and the answer
    /// may leave.
    ///
    /// # Errors
    ///
    /// It cannot be written, and calls must not go unseen.
    fn ended(self: Box<Self>, outcome: Outcome, bytes_out: u64) -> Result<(), Unlogged>;
}

/// Why a call that the policy grants does not run.
#[derive(Debug)]
pub(crate) enum NotNow {
    /// A limit is met.
    Overloaded(Overloaded),
    /// It could not be logged.
    Unlogged,
    /// Another policy is in force than the one that granted it.
    Changed,
}

/// What happened could not be written into the log.
#[derive(Debug)]
pub(crate) struct Unlogged;

/// What is asked of, in this process.
pub(crate) struct Local {
    /// Who calls.
    caller: Caller,
    /// The policy in force.
    policy: PolicySource,
    /// The log.
    recorder: Arc<Recorder>,
    /// How busy the server is.
    gate: Arc<Gate>,
}

/// The policy of the moment at which it is asked for.
pub(crate) type PolicySource = Box<dyn Fn() -> Arc<Policy> + Send + Sync>;

impl Local {
    /// For the calls of one caller. Those of the operator have no limits.
    pub(crate) fn new(
        caller: Caller,
        policy: PolicySource,
        recorder: Arc<Recorder>,
        gate: Arc<Gate>,
    ) -> Self {
        Self {
            caller,
            policy,
            recorder,
            gate,
        }
    }

    /// Lets a call in, whose place is free again when it is dropped.
    ///
    /// # Errors
    ///
    /// As [`Monitor::admit`].
    fn let_in(&self, line: Call) -> Result<Place, NotNow> {
        let policy = (self.policy)();
        if line.policy != policy.digest {
            return Err(NotNow::Changed);
        }
        let running = match &self.caller {
            Caller::Operator => None,
            Caller::Consumer(name) => {
                let service = policy.services.service(&line.service);
                let service = service.filter(|service| service.consumers.contains(name));
                // Whoever asks has decided by another policy, or not at all.
                let service = service.ok_or(NotNow::Changed)?;
                let entered = self
                    .gate
                    .enter(name.as_str(), &line.service, &service.limits);
                Some(entered.map_err(NotNow::Overloaded)?)
            }
        };
        let line = self.complete(line, &policy);
        let begun = self.recorder.begin(line, policy.services.allow_unlogged);
        let begun = begun.map_err(|_| NotNow::Unlogged)?;
        Ok(Place { running, begun })
    }

    /// What the log says of a call that is nobody else's to say: who called, and what runs behind the name.
    fn complete(&self, line: Call, policy: &Policy) -> Call {
        let service = policy.services.service(&line.service);
        let not_consumer = match (&self.caller, service) {
            (Caller::Consumer(caller), Some(service)) => !service.consumers.contains(caller),
            _ => false,
        };
        Call {
            caller: self.caller.to_string(),
            tool: service.map_or(line.tool, |service| Some(service.tool.to_string())),
            reason: if not_consumer && line.decision == Verdict::Refused {
                NOT_A_CONSUMER.to_owned()
            } else {
                line.reason
            },
            ..line
        }
    }
}

/// A caller hears the same of a service that is there for others and of one that is not there at all; the log tells them apart.
const NOT_A_CONSUMER: &str = "not a consumer";

impl Monitor for Local {
    fn policy(&self) -> Arc<Policy> {
        (self.policy)()
    }

    fn admit(&self, line: Call) -> Result<Box<dyn Admitted>, NotNow> {
        Ok(Box::new(self.let_in(line)?))
    }

    fn log(&self, line: Call) -> Result<(), Unlogged> {
        let policy = (self.policy)();
        let line = self.complete(line, &policy);
        let logged = self.recorder.call(line, policy.services.allow_unlogged);
        logged.map_err(|_| Unlogged)
    }
}

/// A call's place among those that run, and its line of the log.
struct Place {
    running: Option<Running>,
    begun: Begun,
}

impl Admitted for Place {
    fn ended(self: Box<Self>, outcome: Outcome, bytes_out: u64) -> Result<(), Unlogged> {
        let Self { running, begun } = *self;
        drop(running);
        begun.ended(outcome, bytes_out).map_err(|_| Unlogged)
    }
}
