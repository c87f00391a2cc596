//! What a server writes into the log, and whether it may go on when it cannot.

#[cfg(test)]
mod tests;

use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use serde_json::{Map, Value};

use crate::audit::flood::{Counted, Floods, Kind};
use crate::audit::{AuditError, Call, Event, Log, Outcome};

/// Hears of what could not be written.
pub(crate) type Complain = Box<dyn Fn(&AuditError) + Send + Sync>;

/// The log as a server uses it.
pub(crate) struct Recorder {
    /// `None`: there is none that could be written.
    log: Option<Log>,
    /// Whether no call may run without it, unless the policy allows that. Not so for the operator.
    required: bool,
    floods: Mutex<Floods>,
    began: Instant,
    /// Hears of what could not be written.
    complain: Complain,
}

impl fmt::Debug for Recorder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Recorder")
            .field("log", &self.log)
            .field("required", &self.required)
            .finish_non_exhaustive()
    }
}

impl Recorder {
    /// Writes to `log`; `required`: calls that cannot be logged do not run, unless the policy allows that.
    pub(crate) fn new(log: Option<Log>, required: bool, complain: Complain) -> Self {
        Self {
            log,
            required,
            floods: Mutex::new(Floods::default()),
            began: Instant::now(),
            complain,
        }
    }

    /// Makes sure that the call that is about to run can be logged.
    ///
    /// # Errors
    ///
    /// It cannot, and calls must not go unseen.
    pub(crate) fn reserve(&self, allow_unlogged: bool) -> Result<(), AuditError> {
        let reserved = self.log().and_then(|log| log.map_or(Ok(()), Log::reserve));
        self.tolerate(reserved, allow_unlogged)
    }

    /// Logs a call. When this returns the line is in the file, or counted in one that is to come.
    ///
    /// # Errors
    ///
    /// It could not be written, and calls must not go unseen.
    pub(crate) fn call(&self, call: Call, allow_unlogged: bool) -> Result<(), AuditError> {
        let ran = call.outcome != Outcome::NotRun;
        if ran || self.own_line(&call) {
            self.append(Event::Call(Box::new(call)), allow_unlogged)
        } else {
            Ok(())
        }
    }

    /// Logs an event of the server itself.
    ///
    /// # Errors
    ///
    /// As [`Recorder::call`].
    pub(crate) fn append(&self, event: Event, allow_unlogged: bool) -> Result<(), AuditError> {
        let appended = self.write(event);
        self.tolerate(appended, allow_unlogged)
    }

    fn write(&self, event: Event) -> Result<(), AuditError> {
        match self.log()? {
            Some(log) => log.append(event).map(drop),
            None => Ok(()),
        }
    }

    fn log(&self) -> Result<Option<&Log>, AuditError> {
        match &self.log {
            None if self.required => Err(AuditError::NotOpen),
            log => Ok(log.as_ref()),
        }
    }

    /// Writes the counted lines that are due; with `all`, those that are not due as well. What cannot be written is
    /// due again at the next call.
    pub(crate) fn count(&self, all: bool) {
        let mut floods = self.floods();
        let due = if all {
            floods.rest()
        } else {
            floods.due(self.began.elapsed())
        };
        drop(floods);
        for counted in due {
            if let Err(error) = self.write(event(counted.clone())) {
                (self.complain)(&error);
                self.floods().put_back(counted, self.began.elapsed());
            }
        }
    }

    fn floods(&self) -> MutexGuard<'_, Floods> {
        self.floods.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The keyed digest of a call's arguments; empty where there is no log.
    pub(crate) fn digest(&self, arguments: &Map<String, Value>) -> String {
        self.log
            .as_ref()
            .map_or_else(String::new, |log| log.key().digest(arguments))
    }

    fn own_line(&self, call: &Call) -> bool {
        let kind = Kind {
            name: call.service.clone(),
            decision: call.decision,
            reason: call.reason.clone(),
        };
        self.floods()
            .refused(&call.caller, kind, self.began.elapsed())
    }

    fn tolerate(&self, done: Result<(), AuditError>, allow: bool) -> Result<(), AuditError> {
        let Err(error) = done else { return Ok(()) };
        (self.complain)(&error);
        if allow || !self.required {
            Ok(())
        } else {
            Err(error)
        }
    }
}

fn event(counted: Counted) -> Event {
    Event::Counted {
        caller: counted.caller,
        service: counted.kind.name,
        decision: counted.kind.decision,
        reason: counted.kind.reason,
        count: counted.count,
    }
}
