//! A call that runs: its progress, its end, and what happens when it is cancelled.

use std::panic::AssertUnwindSafe;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use rmcp::model::{
    CallToolResult, ContentBlock, ErrorData, MetaObject, ProgressNotificationParam, ProgressToken,
};
use rmcp::service::{RequestContext, RoleServer};
use serde_json::Value;
use tokio::time::{Duration, Instant, MissedTickBehavior, interval_at, timeout};

use super::ServerRun;
use crate::audit;
use crate::mcp::helper::Connection;
use crate::mcp::{DECISION_KEY, ONE_COPY_KEY, REFUSED};
use crate::policy::Grant;
use crate::tool::{Copies, ToolError, ToolOutcome, ToolSession};

/// Time that an answer waits for a progress report that is being written, so that the report does not follow it.
const LAST_REPORT: Duration = Duration::from_secs(1);

/// A call that the policy has granted.
pub(super) struct ToolCall<'a> {
    pub(super) grant: &'a Grant,
    pub(super) session: &'a ToolSession,
    /// Runs what this process cannot.
    pub(super) helpers: Option<&'a Connection>,
    pub(super) run: &'a ServerRun,
    pub(super) context: &'a RequestContext<RoleServer>,
    /// When it came in.
    pub(super) since: Instant,
    /// Interval of progress reports to its caller.
    pub(super) every: Duration,
    /// Longest that the tool may take.
    pub(super) longest: Duration,
}

impl ToolCall<'_> {
    /// Runs the tool: how it ended, and what its caller hears. What a tool says went wrong is a result.
    pub(super) async fn run(&self) -> (audit::Outcome, Result<CallToolResult, ErrorData>) {
        // Caught here, so that a call that panicked is logged as well.
        let running = AssertUnwindSafe(self.tool());
        let running = timeout(self.longest, running.catch_unwind());
        match self.wait_for(running).await {
            Ok(Ok(Ok(Ok(outcome)))) => (audit::Outcome::Done, Ok(succeeded(outcome))),
            Ok(Ok(Ok(Err(error)))) => (audit::Outcome::Failed, Ok(failed(error.to_string()))),
            Ok(Ok(Err(_panic))) => (audit::Outcome::Failed, Err(fault())),
            Ok(Err(_elapsed)) => {
                let seconds = self.longest.as_secs();
                let text = format!("it was ended after {seconds} s, the longest it may take");
                (audit::Outcome::TimedOut, Ok(failed(text)))
            }
            Err(cancelled) => (audit::Outcome::Cancelled, Err(cancelled)),
        }
    }

    /// Runs the tool, here or in a helper.
    async fn tool(&self) -> Result<ToolOutcome, ToolError> {
        if let Some(helpers) = self.helpers
            && let Some(result) = helpers.run(self.grant, self.copies()).await
        {
            return result;
        }
        (self.run)(self.grant, self.session, self.copies()).await
    }

    /// Number of copies of a large payload wanted in the answer.
    pub(super) fn copies(&self) -> Copies {
        match self.context.meta.0.0.get(ONE_COPY_KEY) {
            Some(Value::Bool(true)) => Copies::One,
            _ => Copies::Two,
        }
    }

    /// Waits for something on behalf of the call, reporting progress to a caller that asked for it.
    ///
    /// # Errors
    ///
    /// When the call is cancelled.
    pub(super) async fn wait_for<T>(
        &self,
        something: impl Future<Output = T>,
    ) -> Result<T, ErrorData> {
        let mut something = std::pin::pin!(something);
        let token = self.context.meta.get_progress_token();
        let mut ticks = interval_at(Instant::now() + self.every, self.every);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut report: Option<ProgressReport<'_>> = None;
        loop {
            tokio::select! {
                biased;
                done = &mut something => {
                    // A report that is on its way goes out before the answer, not after it.
                    let _ = timeout(LAST_REPORT, sent(&mut report)).await;
                    return Ok(done);
                }
                () = self.context.ct.cancelled() => {
                    let ended = "the call was ended before it was done";
                    return Err(ErrorData::internal_error(ended, None));
                }
                () = sent(&mut report), if report.is_some() => report = None,
                _ = ticks.tick(), if token.is_some() && report.is_none() => {
                    report = token.clone().map(|token| self.report(token));
                }
            }
        }
    }

    /// Tells the caller that its call still runs, and for how many seconds now.
    fn report(&self, token: ProgressToken) -> ProgressReport<'_> {
        let seconds = self.since.elapsed().as_secs_f64();
        let progress = ProgressNotificationParam::new(token, seconds)
            .with_message(format!("{} still runs", self.grant.name()));
        Box::pin(async {
            // A connection that has ended ends the call by itself.
            let _ = self.context.peer.notify_progress(progress).await;
        })
    }
}

/// A report of progress on its way out.
type ProgressReport<'a> = BoxFuture<'a, ()>;

/// Waits until a report is out; at once when there is none.
async fn sent(report: &mut Option<ProgressReport<'_>>) {
    if let Some(report) = report {
        report.await;
    }
}

/// Builds the result of a tool that succeeded.
fn succeeded(outcome: ToolOutcome) -> CallToolResult {
    let mut result = CallToolResult::success(vec![ContentBlock::text(outcome.text)]);
    result.structured_content = Some(Value::Object(outcome.structured));
    result
}

/// Builds the result of a tool that failed.
fn failed(text: String) -> CallToolResult {
    CallToolResult::error(vec![ContentBlock::text(text)])
}

/// Builds the result for an argument that the policy refuses: a model may read it and leave the argument out. A mark tells it from a tool's failure.
pub(super) fn refused(text: String) -> CallToolResult {
    let mut meta = MetaObject::new();
    meta.0.insert(DECISION_KEY.to_owned(), REFUSED.into());
    failed(text).with_meta(Some(meta))
}

/// The answer for a request that panicked.
pub(super) fn fault() -> ErrorData {
    ErrorData::internal_error("the request failed by a fault of this server", None)
}
