//! Writes a server's log, and decides whether calls may run if that fails.
//!
//! Lines that could not be written are kept until they can be; until then, new calls run only if they may go unlogged.

#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use crate::audit::chain::unlinked;
use crate::audit::flood::{CallKind, Counted, Floods};
use crate::audit::{self, AuditError, Call, CallEnd, Event, Log, Outcome, Verdict};
use crate::text::Foreign;

/// Maximum number of lines kept until they can be written. Calls beyond that are only counted.
const KEPT_MAX: usize = 1024;
/// The logged reason for calls that did not run, or that ran but have no line of their own.
const NO_LOG: &str = "the log could not be written";

/// Receives each failure to write the log.
pub(crate) type Complain = Box<dyn Fn(&AuditError) + Send + Sync>;

/// The log as a server uses it.
pub(crate) struct Recorder {
    /// The path of a log that each write tries to open until one succeeds; `None` if only `log` is used.
    path: Option<PathBuf>,
    /// The log, once it has been opened.
    log: OnceLock<Log>,
    /// True if no call may run unlogged, unless the policy allows it. False for the operator.
    required: bool,
    /// Number of running calls; space is reserved for their lines.
    running: AtomicUsize,
    /// Unwritten lines, oldest first.
    kept: Mutex<VecDeque<KeptLine>>,
    floods: Mutex<Floods>,
    began: Instant,
    /// The reason why the last attempt to write failed.
    trouble: Mutex<Option<String>>,
    complain: Complain,
}

/// An event and its time.
#[derive(Debug)]
struct KeptLine {
    time: String,
    event: Event,
}

impl Recorder {
    /// Creates a recorder for `log`. If `required`, calls that cannot be logged do not run unless the policy allows it.
    pub(crate) fn new(log: Option<Log>, required: bool, complain: Complain) -> Self {
        Self {
            path: None,
            log: log.map(OnceLock::from).unwrap_or_default(),
            required,
            running: AtomicUsize::new(0),
            kept: Mutex::default(),
            floods: Mutex::default(),
            began: Instant::now(),
            trouble: Mutex::default(),
            complain,
        }
    }

    /// Creates a recorder for a log that cannot be opened yet; each write tries again.
    pub(crate) fn waiting_for(path: PathBuf, complain: Complain) -> Self {
        Self {
            path: Some(path),
            ..Self::new(None, true, complain)
        }
    }

    /// Returns the reason why the last attempt to write the log failed, if it did.
    pub(crate) fn trouble(&self) -> Option<String> {
        self.lock_trouble().clone()
    }

    fn lock_trouble(&self) -> MutexGuard<'_, Option<String>> {
        self.trouble.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reserves space for the line of a call that is about to run. `line` lacks the outcome; its argument digest
    /// is sealed. Fails if the line cannot be written, unless that is allowed; the call then counts as refused.
    pub(crate) fn begin(
        self: &Arc<Self>,
        mut line: Call,
        allow_unlogged: bool,
    ) -> Result<BegunCall, AuditError> {
        self.seal(&mut line);
        let running = self.running.fetch_add(1, Ordering::Relaxed) + 1;
        let mut begun = BegunCall {
            recorder: Arc::clone(self),
            line: None,
            since: Instant::now(),
            allow_unlogged,
        };
        let ready = self.ready(running);
        if let Err(error) = self.tolerate(ready, allow_unlogged) {
            self.count_one(&line, Verdict::Refused, NO_LOG.into());
            return Err(error);
        }
        begun.line = Some(line);
        Ok(begun)
    }

    /// Logs a call that did not run. When this returns, the line is in the file or counted in a later one. Fails if it
    /// could not be written (the call is then counted), unless unlogged calls are allowed.
    pub(crate) fn call(&self, mut call: Call, allow_unlogged: bool) -> Result<(), AuditError> {
        self.seal(&mut call);
        let kind = kind(&call, call.decision, call.reason.clone());
        let now = self.began.elapsed();
        if !self.floods().refused(call.caller.raw(), kind, now) {
            return Ok(());
        }
        let call = Box::new(call);
        let written = self.write(audit::now(), Event::Call(call.clone()));
        if written.is_err() {
            self.count_one(&call, call.decision, call.reason.clone());
        }
        self.tolerate(written, allow_unlogged)
    }

    /// Logs an event of the server itself; keeps a line that cannot be written, and fails unless that is allowed.
    pub(crate) fn append(&self, event: Event, allow_unlogged: bool) -> Result<(), AuditError> {
        let time = audit::now();
        let appended = self.write(time.clone(), event.clone());
        if appended.is_err() {
            self.keep(KeptLine { time, event });
        }
        self.tolerate(appended, allow_unlogged)
    }

    /// Writes the kept lines and the pending counts that are due. A line that cannot be written is due again next time.
    pub(crate) fn count(&self) {
        self.count_at(self.began.elapsed());
    }

    /// Like [`Self::count`], at a given time since the recorder's creation.
    fn count_at(&self, now: Duration) {
        let due = self.floods().due(now);
        // Detects that the log has become writable again, even without a call.
        if self.trouble().is_some() || !self.kept().is_empty() {
            // As for one more call: a full disk still takes what is already reserved.
            let ready = self.ready(self.running.load(Ordering::Relaxed) + 1);
            self.note(&ready);
        }
        for counted in due {
            let written = self.write(audit::now(), event(counted.clone()));
            self.note(&written);
            if written.is_err() {
                self.floods().put_back(counted, now);
            }
        }
    }

    /// Writes everything that is left, then `stop`. Returns the lines that could not be written.
    pub(crate) fn end(&self, stop: Option<Event>) -> Vec<String> {
        let rest = self.floods().rest().into_iter().map(event);
        for event in rest.chain(stop) {
            let time = audit::now();
            let written = self.write(time.clone(), event.clone());
            self.note(&written);
            if written.is_err() {
                self.kept().push_back(KeptLine { time, event });
            }
        }
        let left = std::mem::take(&mut *self.kept());
        let lines = left.iter().map(|kept| unlinked(&kept.time, &kept.event));
        lines.collect()
    }

    /// Seals the digest of a call's arguments; omits it if the server has no log.
    fn seal(&self, call: &mut Call) {
        let log = self.log().ok().flatten();
        let sealed = log.map(|log| log.key.seal(call.arguments.raw()));
        call.arguments = sealed.unwrap_or_default().into();
    }

    /// Returns the log, if this server has one.
    fn log(&self) -> Result<Option<&Log>, AuditError> {
        if let (None, Some(path)) = (self.log.get(), &self.path) {
            // Another thread may have opened the log as well.
            let _ = self.log.set(Log::open(path)?);
        }
        Ok(self.log.get())
    }

    /// Writes the kept lines and returns the log.
    fn flushed_log(&self) -> Result<Option<&Log>, AuditError> {
        let Some(log) = self.log()? else {
            return Ok(None);
        };
        let mut kept = self.kept();
        while let Some(KeptLine { time, event }) = kept.front() {
            log.append_of(time.clone(), event.clone())?;
            kept.pop_front();
        }
        Ok(Some(log))
    }

    /// Writes the kept lines, and reserves space for the lines of `running` calls.
    fn ready(&self, running: usize) -> Result<(), AuditError> {
        let log = self.flushed_log()?;
        log.map_or(Ok(()), |log| log.reserve(running))
    }

    /// Writes a line that belongs to no running call, without using the space reserved for running calls.
    fn write(&self, time: String, event: Event) -> Result<(), AuditError> {
        let Some(log) = self.flushed_log()? else {
            return Ok(());
        };
        let running = self.running.load(Ordering::Relaxed);
        if running > 0 {
            log.reserve(running + 1)?;
        }
        log.append_of(time, event).map(drop)
    }

    /// Writes the line of a finished call into its reserved space, or keeps the line if that fails.
    fn write_ran(&self, call: Call) -> Result<(), AuditError> {
        let time = audit::now();
        let event = Event::Call(Box::new(call));
        let written = self.flushed_log().and_then(|log| match log {
            Some(log) => log.append_of(time.clone(), event.clone()).map(drop),
            None => Ok(()),
        });
        if written.is_err() {
            self.keep(KeptLine { time, event });
        }
        written
    }

    fn keep(&self, line: KeptLine) {
        let mut kept = self.kept();
        if kept.len() < KEPT_MAX {
            kept.push_back(line);
            return;
        }
        drop(kept);
        if let Event::Call(call) = line.event {
            self.count_one(&call, call.decision, NO_LOG.into());
        }
    }

    fn kept(&self) -> MutexGuard<'_, VecDeque<KeptLine>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn floods(&self) -> MutexGuard<'_, Floods> {
        self.floods.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts a call that gets no line of its own.
    fn count_one(&self, call: &Call, decision: Verdict, reason: Foreign) {
        let counted = Counted {
            caller: call.caller.raw().clone(),
            kind: kind(call, decision, reason),
            count: 1,
        };
        self.floods().counted(counted, self.began.elapsed());
    }

    /// Notes whether the log could be written, and reports a failure.
    fn note(&self, done: &Result<(), AuditError>) {
        *self.lock_trouble() = done.as_ref().err().map(ToString::to_string);
        if let Err(error) = done {
            (self.complain)(error);
        }
    }

    fn tolerate(&self, done: Result<(), AuditError>, allow: bool) -> Result<(), AuditError> {
        self.note(&done);
        if allow || !self.required {
            Ok(())
        } else {
            done
        }
    }
}

/// A running call. A call dropped before [`BegunCall::ended`] ended with its connection and is logged as cancelled.
pub(crate) struct BegunCall {
    recorder: Arc<Recorder>,
    line: Option<Call>,
    since: Instant,
    allow_unlogged: bool,
}

impl BegunCall {
    /// Logs how the call ended. When this returns, the line is in the file and the answer may be sent. If the line
    /// could not be written, it is kept; unless that is allowed, this fails and the answer must not be sent.
    pub(crate) fn ended(mut self, end: CallEnd) -> Result<(), AuditError> {
        let written = self.write(end);
        written.map_or(Ok(()), |written| {
            self.recorder.tolerate(written, self.allow_unlogged)
        })
    }

    /// Writes the line, once.
    fn write(&mut self, end: CallEnd) -> Option<Result<(), AuditError>> {
        let mut line = self.line.take()?;
        let ran = u64::try_from(self.since.elapsed().as_micros()).unwrap_or(u64::MAX);
        line.duration_us = line.duration_us.saturating_add(ran);
        line.outcome = end.outcome;
        line.bytes_out = end.bytes_out;
        line.completes = end.completes;
        Some(self.recorder.write_ran(line))
    }
}

impl Drop for BegunCall {
    fn drop(&mut self) {
        if let Some(written) = self.write(Outcome::Cancelled.into()) {
            self.recorder.note(&written);
        }
        self.recorder.running.fetch_sub(1, Ordering::Relaxed);
    }
}

fn kind(call: &Call, decision: Verdict, reason: Foreign) -> CallKind {
    CallKind {
        name: call.service.clone(),
        decision,
        reason,
    }
}

fn event(counted: Counted) -> Event {
    Event::Counted {
        caller: counted.caller.into(),
        service: counted.kind.name,
        decision: counted.kind.decision,
        reason: counted.kind.reason,
        count: counted.count,
    }
}
