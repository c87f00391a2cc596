//! Waits on behalf of a call while reporting its progress; counts a connection's running calls; builds tool results.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use futures_util::future::{BoxFuture, OptionFuture};
use rmcp::model::{
    CallToolResult, ContentBlock, CustomResult, ErrorCode, ErrorData, MetaObject,
    ProgressNotificationParam, ProgressToken, ServerResult,
};
use rmcp::service::{RequestContext, RoleServer};
use serde_json::Value;
use serde_json::value::RawValue;
use tokio::sync::{Notify, mpsc};
use tokio::time::{Duration, Instant, MissedTickBehavior, interval_at, timeout};

use crate::catalogue::PNG;
use crate::mcp::client::{PROGRESS_MAX, ProgressSink, UpstreamAnswer};
use crate::mcp::concurrency::LimitKind;
use crate::mcp::framing::json;
use crate::mcp::monitor::{AdmitError, Admitted};
use crate::mcp::{ANSWER_VALUES_MAX, DECISION_KEY, LOGGED, OVERLOADED, OWN_KEYS, REFUSED};
use crate::tool::ToolOutcome;

/// Maximum time that an answer waits for a progress report being written, so that the report does not follow it.
const LAST_REPORT: Duration = Duration::from_secs(1);

/// A call that is waiting or running.
pub(in crate::mcp) struct CallProgress<'a> {
    pub(in crate::mcp) context: &'a RequestContext<RoleServer>,
    /// The called service; for the operator, the tool.
    pub(in crate::mcp) name: &'a str,
    /// The time at which the call arrived.
    pub(in crate::mcp) since: Instant,
    /// Interval between progress reports.
    pub(in crate::mcp) interval: Duration,
    /// True once an upstream has reported progress of its own.
    pub(in crate::mcp) is_reported: AtomicBool,
}

impl CallProgress<'_> {
    /// Waits for a future on behalf of the call, reporting progress to a caller that asked for it. Fails if the call is
    /// cancelled.
    pub(in crate::mcp) async fn wait_for<T>(
        &self,
        future: impl Future<Output = T>,
    ) -> Result<T, ErrorData> {
        self.wait(future, 1.0).await
    }

    /// Returns the token under which the caller wants reports, if it does.
    fn token(&self) -> Option<ProgressToken> {
        self.context.meta.get_progress_token()
    }

    /// Passes the progress that an upstream reports on to the caller, until no more can come. Never ends before that.
    async fn pass_on(&self, token: ProgressToken, mut progress: mpsc::Receiver<Box<RawValue>>) {
        while let Some(params) = progress.recv().await {
            self.is_reported.store(true, Ordering::Relaxed);
            let Ok(mut params) = serde_json::from_str::<ProgressNotificationParam>(params.get())
            else {
                continue;
            };
            params.progress_token = token.clone();
            // If the connection has ended, the call ends anyway.
            let _ = self.context.peer.notify_progress(params).await;
        }
    }

    /// Runs a call whose progress is passed on to the caller, if it wants to know of it.
    pub(in crate::mcp) async fn passing_on<F: Future>(
        &self,
        call: impl FnOnce(Option<ProgressSink>) -> F,
    ) -> F::Output {
        let Some(token) = self.token() else {
            return call(None).await;
        };
        let (sink, progress) = mpsc::channel(PROGRESS_MAX);
        let (result, ()) = tokio::join!(call(Some(sink)), self.pass_on(token, progress));
        result
    }

    /// Waits as [`Self::wait_for`] does, with reports of its own until an upstream reports. `per_second` is the progress of
    /// one second, which an upstream's own reports must exceed.
    pub(super) async fn wait<T>(
        &self,
        future: impl Future<Output = T>,
        per_second: f64,
    ) -> Result<T, ErrorData> {
        let mut future = std::pin::pin!(future);
        let token = self.token();
        let mut ticks = interval_at(Instant::now() + self.interval, self.interval);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut report: Option<BoxFuture<'_, ()>> = None;
        loop {
            tokio::select! {
                biased;
                done = &mut future => {
                    // A report that is being written must be sent before the answer, not after it.
                    let _ = timeout(LAST_REPORT, OptionFuture::from(report.as_mut())).await;
                    return Ok(done);
                }
                () = self.context.ct.cancelled() => {
                    let ended = "the call was stopped before it finished";
                    return Err(ErrorData::internal_error(ended, None));
                }
                _ = OptionFuture::from(report.as_mut()), if report.is_some() => report = None,
                _ = ticks.tick(), if token.is_some() && report.is_none() => {
                    let token = token.clone();
                    let token = token.filter(|_| !self.is_reported.load(Ordering::Relaxed));
                    report = token.map(|token| self.report(token, per_second));
                }
            }
        }
    }

    /// Reports to the caller how many seconds its call has been running.
    fn report(&self, token: ProgressToken, per_second: f64) -> BoxFuture<'_, ()> {
        let seconds = self.since.elapsed().as_secs_f64();
        let progress = ProgressNotificationParam::new(token, seconds * per_second)
            .with_message(format!("{} is still running", self.name));
        Box::pin(async {
            // If the connection has ended, the call ends anyway.
            let _ = self.context.peer.notify_progress(progress).await;
        })
    }
}

/// The running calls of one connection, by service: a call beyond the limit waits for them instead of failing.
#[derive(Default)]
pub(super) struct OwnCalls {
    running: Mutex<HashMap<String, usize>>,
    pub(super) ended: Notify,
}

impl OwnCalls {
    fn running(&self) -> MutexGuard<'_, HashMap<String, usize>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Admits a call with `admit`. Returns `Ok(None)` if this connection's calls have reached the limit.
    pub(super) fn enter<'a>(
        &'a self,
        service: &'a str,
        admit: impl FnOnce() -> Result<Box<dyn Admitted>, AdmitError>,
    ) -> Result<Option<OwnCall<'a>>, AdmitError> {
        // Locked during both counts, so that both contain the same calls.
        let mut running = self.running();
        let own = running.entry(service.to_owned()).or_default();
        match admit() {
            Ok(admitted) => {
                *own += 1;
                let count = OwnCount { own: self, service };
                Ok(Some(OwnCall { admitted, count }))
            }
            Err(AdmitError::Overloaded(full)) if full.kind == LimitKind::AtOnce && *own > 0 => {
                Ok(None)
            }
            Err(why) => Err(why),
        }
    }
}

/// A running call of this connection.
pub(super) struct OwnCall<'a> {
    // Dropped first, so that its place is free before a waiting call checks.
    pub(super) admitted: Box<dyn Admitted>,
    pub(super) count: OwnCount<'a>,
}

/// Counts a call among its connection's running calls until dropped.
pub(super) struct OwnCount<'a> {
    own: &'a OwnCalls,
    service: &'a str,
}

impl Drop for OwnCount<'_> {
    fn drop(&mut self) {
        if let Some(count) = self.own.running().get_mut(self.service) {
            *count = count.saturating_sub(1);
        }
        self.own.ended.notify_waiters();
    }
}

/// The answer to a call.
pub(in crate::mcp) enum AnswerResult {
    /// The result of one of the machine's tools, or of the policy.
    Built(Box<CallToolResult>),
    /// The result of an upstream, unchanged, and its length in bytes.
    Upstream(Value, u64),
}

impl From<CallToolResult> for AnswerResult {
    fn from(result: CallToolResult) -> Self {
        Self::Built(Box::new(result))
    }
}

impl AnswerResult {
    /// Returns whether the tool failed.
    pub(super) fn has_failed(&self) -> bool {
        match self {
            Self::Built(result) => result.is_error == Some(true),
            Self::Upstream(result, _) => result.get("isError") == Some(&Value::Bool(true)),
        }
    }

    /// Returns whether a result says that it is that of the last piece.
    pub(super) fn is_complete(&self) -> bool {
        let Self::Built(result) = self else {
            return false;
        };
        let content = result.structured_content.as_ref();
        content.and_then(|content| content.get("complete")) == Some(&Value::Bool(true))
    }

    /// Returns the length of its payload, in bytes.
    pub(super) fn bytes(&self) -> u64 {
        let Self::Built(result) = self else {
            return self.upstream_bytes();
        };
        let lengths = result.content.iter().map(|block| match block {
            ContentBlock::Text(text) => text.text.len() as u64,
            ContentBlock::Image(image) => image.data.len() as u64,
            _ => 0,
        });
        lengths.sum()
    }

    const fn upstream_bytes(&self) -> u64 {
        match self {
            Self::Built(_) => 0,
            Self::Upstream(_, bytes) => *bytes,
        }
    }

    /// Returns the answer for a client of the modern era or of an earlier one.
    pub(in crate::mcp) fn into_result(self, is_modern: bool) -> ServerResult {
        match self {
            Self::Built(mut result) => {
                if !is_modern {
                    result.result_type = None;
                }
                (*result).into()
            }
            Self::Upstream(mut result, _) => {
                // Required of every result since 2026-07-28, and unknown to earlier servers.
                if let (true, Some(result)) = (is_modern, result.as_object_mut()) {
                    result.entry("resultType").or_insert("complete".into());
                }
                ServerResult::CustomResult(CustomResult::new(result))
            }
        }
    }
}

/// Builds the answer from that of an upstream, without what would look like an answer of this server's own.
pub(super) fn of_upstream(answer: &UpstreamAnswer) -> Result<AnswerResult, ErrorData> {
    let mut answer = of_provider(answer)?;
    if let AnswerResult::Upstream(result, _) = &mut answer
        && let Some(Value::Object(meta)) = result.get_mut("_meta")
    {
        meta.retain(|key, _| !key.starts_with(OWN_KEYS));
    }
    Ok(answer)
}

/// Builds the answer from that of another server. A JSON-RPC error is passed on as one.
pub(in crate::mcp) fn of_provider(answer: &UpstreamAnswer) -> Result<AnswerResult, ErrorData> {
    let unusable = |why: &str| failed(format!("the server's answer is unusable: {why}")).into();
    match answer {
        UpstreamAnswer::Result(result) => {
            let text = result.get();
            match json::count(text.as_bytes()) {
                Some(..=ANSWER_VALUES_MAX) => {}
                Some(_) => {
                    let why = format!("it has more than {ANSWER_VALUES_MAX} values");
                    return Ok(unusable(&why));
                }
                None => return Ok(unusable("it is nested too deeply")),
            }
            let Ok(Value::Object(result)) = serde_json::from_str(text) else {
                return Ok(unusable("it is not an object"));
            };
            // Otherwise, its server could ask the caller's user something in this machine's name.
            if result.get("resultType").is_some_and(|is| is != "complete") {
                return Ok(unusable("it is not complete"));
            }
            Ok(AnswerResult::Upstream(result.into(), text.len() as u64))
        }
        UpstreamAnswer::Error(error) => {
            let count = json::count(error.get().as_bytes());
            let is_small = count.is_some_and(|count| count <= ANSWER_VALUES_MAX);
            let error = is_small.then(|| serde_json::from_str(error.get()).ok());
            let mut error = error.flatten().unwrap_or_else(|| {
                ErrorData::internal_error("the server answered with an unusable error", None)
            });
            // These mean something else in an error of this server.
            if error.code.0 == OVERLOADED {
                error.code = ErrorCode::INTERNAL_ERROR;
            }
            if let Some(Value::Object(data)) = &mut error.data {
                data.remove(LOGGED);
            }
            Err(error)
        }
    }
}

/// Builds the result of a tool that succeeded.
pub(super) fn succeeded(outcome: ToolOutcome) -> CallToolResult {
    let content = if outcome.is_png {
        ContentBlock::image(outcome.text, PNG)
    } else {
        ContentBlock::text(outcome.text)
    };
    let mut result = CallToolResult::success(vec![content]);
    result.structured_content = Some(Value::Object(outcome.structured));
    result
}

/// Builds the result of a tool that failed.
pub(in crate::mcp) fn failed(text: impl Into<String>) -> CallToolResult {
    CallToolResult::error(vec![ContentBlock::text(text)])
}

/// Builds the result for an argument that the policy refuses: a model can read it and omit the argument. A mark
/// distinguishes it from a tool failure.
pub(super) fn refused(text: String) -> CallToolResult {
    let mut meta = MetaObject::new();
    meta.0.insert(DECISION_KEY.to_owned(), REFUSED.into());
    failed(text).with_meta(Some(meta))
}

/// Builds the error for a request whose handler panicked.
pub(super) fn fault() -> ErrorData {
    ErrorData::internal_error("the request failed because of a fault in this server", None)
}
