//! Writes a server's log, and decides whether calls may run if that fails.
//!
//! Tests that what could not be written is kept until it can be, and that nothing new runs before.

#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::fmt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use crate::audit::chain::unlinked;
use crate::audit::flood::{CallKind, Counted, Floods};
use crate::audit::{self, AuditError, Call, Event, Log, Outcome, Verdict};
use crate::text::Foreign;

/// Lines that are kept until they can be written. Calls beyond them are counted.
const KEPT_MAX: usize = 1024;
/// The reason why a call did not run, or has no line of its own although it ran.
const NO_LOG: &str = "the log could not be written";

/// Hears of what could not be written.
pub(crate) type Complain = Box<dyn Fn(&AuditError) + Send + Sync>;

/// The log as a server uses it.
pub(crate) struct Recorder {
    /// Where the log is; `None`: there is none, and none is looked for.
    path: Option<PathBuf>,
    /// The log, once it could be opened.
    log: OnceLock<Log>,
    /// True if no call may run without it, unless the policy allows that. Not so for the operator.
    required: bool,
    /// Calls whose line has its room, and is not written yet.
    running: AtomicUsize,
    /// Unwritten lines, oldest first.
    kept: Mutex<VecDeque<KeptLine>>,
    floods: Mutex<Floods>,
    began: Instant,
    /// The reason why it cannot be written now, as far as that was tried.
    trouble: Mutex<Option<String>>,
    /// Hears of what could not be written.
    complain: Complain,
}

/// An event and its time.
#[derive(Debug)]
struct KeptLine {
    time: String,
    event: Event,
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
        let open = log.map(OnceLock::from).unwrap_or_default();
        Self::of(None, open, required, complain)
    }

    /// The same with a log that cannot be opened yet: that is tried again whenever there is something to write.
    pub(crate) fn waiting_for(path: PathBuf, complain: Complain) -> Self {
        Self::of(Some(path), OnceLock::new(), true, complain)
    }

    fn of(path: Option<PathBuf>, log: OnceLock<Log>, required: bool, complain: Complain) -> Self {
        Self {
            path,
            log,
            required,
            running: AtomicUsize::new(0),
            kept: Mutex::default(),
            floods: Mutex::default(),
            began: Instant::now(),
            trouble: Mutex::default(),
            complain,
        }
    }

    /// Returns why the log cannot be written at this moment; nothing when it can be, as far as that was tried.
    pub(crate) fn trouble(&self) -> Option<String> {
        self.lock_trouble().clone()
    }

    fn lock_trouble(&self) -> MutexGuard<'_, Option<String>> {
        self.trouble.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes sure that the call that is about to run can be logged. `line` tells of it, but for how it ends; its digest of
    /// the arguments is sealed here, as everywhere.
    ///
    /// # Errors
    ///
    /// It cannot, and calls must not go unseen: it is counted as refused.
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
            let reason = NO_LOG.to_owned();
            self.count_one(&line, Verdict::Refused, reason.into());
            return Err(error);
        }
        begun.line = Some(line);
        Ok(begun)
    }

    /// Logs a call that did not run. When this returns the line is in the file, or counted in one that is to come.
    ///
    /// # Errors
    ///
    /// It could not be written, and is counted.
    pub(crate) fn call(&self, mut call: Call, allow_unlogged: bool) -> Result<(), AuditError> {
        self.seal(&mut call);
        if !self.has_own_line(&call) {
            return Ok(());
        }
        let call = Box::new(call);
        let written = self.write(audit::now(), Event::Call(call.clone()));
        if written.is_err() {
            self.count_one(&call, call.decision, call.reason.clone());
        }
        self.tolerate(written, allow_unlogged)
    }

    /// Logs an event of the server itself; what cannot be written is kept.
    ///
    /// # Errors
    ///
    /// As [`Recorder::begin`].
    pub(crate) fn append(&self, event: Event, allow_unlogged: bool) -> Result<(), AuditError> {
        let time = audit::now();
        let appended = self.write(time.clone(), event.clone());
        if appended.is_err() {
            self.keep(KeptLine { time, event });
        }
        self.tolerate(appended, allow_unlogged)
    }

    /// Writes what was kept, and the counted lines that are due. What cannot be written is due again at the next look.
    pub(crate) fn count(&self) {
        self.count_at(self.began.elapsed());
    }

    /// The same at a time of one's own (since the recorder was made).
    fn count_at(&self, now: Duration) {
        let due = self.floods().due(now);
        // Whether it can be written again is of interest also when nobody calls.
        if self.trouble().is_some() || !self.kept().is_empty() {
            let ready = self.ready(self.running.load(Ordering::Relaxed));
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

    /// Writes everything that is left, and last `stop`. Gives what cannot be written, each as a line of its own.
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

    /// Seals the digest of a call's arguments; where there is no log it is left out.
    fn seal(&self, call: &mut Call) {
        let log = self.log().ok().flatten();
        let sealed = log.map(|log| log.key().seal(call.arguments.raw()));
        call.arguments = sealed.unwrap_or_default().into();
    }

    /// The log; nothing where there is none.
    fn log(&self) -> Result<Option<&Log>, AuditError> {
        match (self.log.get(), &self.path) {
            (Some(log), _) => Ok(Some(log)),
            (None, None) => Ok(None),
            (None, Some(path)) => {
                let log = Log::open(path)?;
                Ok(Some(self.log.get_or_init(|| log)))
            }
        }
    }

    /// Whether the lines of so many running calls can be written.
    fn ready(&self, running: usize) -> Result<(), AuditError> {
        let Some(log) = self.log()? else {
            return Ok(());
        };
        self.flush(log)?;
        log.reserve(running)
    }

    /// Writes what does not come from a call that runs, and leaves to those the room that they were promised.
    fn write(&self, time: String, event: Event) -> Result<(), AuditError> {
        let Some(log) = self.log()? else {
            return Ok(());
        };
        self.flush(log)?;
        let running = self.running.load(Ordering::Relaxed);
        if running > 0 {
            log.reserve(running + 1)?;
        }
        log.append_of(time, event).map(drop)
    }

    /// Writes the line of a call that ran, into the room that it was promised, or keeps it.
    fn write_ran(&self, call: Call) -> Result<(), AuditError> {
        let time = audit::now();
        let event = Event::Call(Box::new(call));
        let written = self.log().and_then(|log| match log {
            Some(log) => {
                self.flush(log)?;
                log.append_of(time.clone(), event.clone()).map(drop)
            }
            None => Ok(()),
        });
        if written.is_err() {
            self.keep(KeptLine { time, event });
        }
        written
    }

    /// Writes what was kept.
    fn flush(&self, log: &Log) -> Result<(), AuditError> {
        let mut kept = self.kept();
        while let Some(KeptLine { time, event }) = kept.front() {
            log.append_of(time.clone(), event.clone())?;
            kept.pop_front();
        }
        Ok(())
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

    fn has_own_line(&self, call: &Call) -> bool {
        let kind = CallKind {
            name: call.service.clone(),
            decision: call.decision,
            reason: call.reason.clone(),
        };
        self.floods()
            .refused(call.caller.raw(), kind, self.began.elapsed())
    }

    /// Counts a call that gets no line of its own.
    fn count_one(&self, call: &Call, decision: Verdict, reason: Foreign) {
        let counted = Counted {
            caller: call.caller.raw().clone(),
            kind: CallKind {
                name: call.service.clone(),
                decision,
                reason,
            },
            count: 1,
        };
        self.floods().counted(counted, self.began.elapsed());
    }

    /// Notes whether the log could be written.
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

/// A call that runs. Dropped before it is told how it ended, it has ended with its connection, and is logged so.
pub(crate) struct BegunCall {
    recorder: Arc<Recorder>,
    line: Option<Call>,
    since: Instant,
    allow_unlogged: bool,
}

impl fmt::Debug for BegunCall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Begun").finish_non_exhaustive()
    }
}

impl BegunCall {
    /// Logs how it ended. When this returns the line is in the file, and the answer may leave.
    ///
    /// # Errors
    ///
    /// It could not be written, and is kept: the call ran, and its answer must not go unseen.
    pub(crate) fn ended(mut self, outcome: Outcome, bytes_out: u64) -> Result<(), AuditError> {
        let Some(line) = self.line.take() else {
            return Ok(());
        };
        let written = self.write(line, outcome, bytes_out);
        self.recorder.tolerate(written, self.allow_unlogged)
    }

    fn write(&self, mut line: Call, outcome: Outcome, bytes_out: u64) -> Result<(), AuditError> {
        let ran = u64::try_from(self.since.elapsed().as_micros()).unwrap_or(u64::MAX);
        line.duration_us = line.duration_us.saturating_add(ran);
        line.outcome = outcome;
        line.bytes_out = bytes_out;
        self.recorder.write_ran(line)
    }
}

impl Drop for BegunCall {
    fn drop(&mut self) {
        if let Some(line) = self.line.take() {
            let written = self.write(line, Outcome::Cancelled, 0);
            self.recorder.note(&written);
        }
        self.recorder.running.fetch_sub(1, Ordering::Relaxed);
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
