//! Speaks MCP with upstreams: one process for each caller and server, started at the first call, stopped when idle.
//!
//! An upstream is not trusted: it gets nothing but the calls that the policy grants, its requests are refused, and what it
//! sends has limits. Its tools' definitions are compared with the pinned ones before each call.

mod connection;
mod error_output;
mod exchange;

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde_json::{Map, Value};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::DropGuard;

use super::Programs;
use crate::catalogue::{UpstreamServer, UpstreamTool};
use crate::mcp::client::{ProgressSink, UpstreamAnswer};
use crate::name::{ServerName, ServiceTool, UpstreamToolName};
use crate::policy::Caller;
use crate::services::Services;
use crate::tool::ToolError;
pub(super) use connection::connect;
use connection::{LIST_AGE_MAX, UpstreamConnection, UpstreamFault};

/// Pause after the first failure of an upstream; it doubles with each further one.
const BACK_OFF: Duration = Duration::from_millis(500);
const BACK_OFF_MAX: Duration = Duration::from_secs(30);
/// A call waits for the end of a pause that is not longer than this.
const PAUSE_WAITED: Duration = Duration::from_secs(2);

/// The running upstreams.
#[derive(Default)]
pub(super) struct Upstreams {
    places: Mutex<HashMap<(Caller, ServerName), Arc<UpstreamPlace>>>,
    /// Tools whose definition was not the pinned one when it was last checked, for each caller: each has a process.
    changed: Mutex<HashMap<(Caller, ServerName, UpstreamToolName), ToolChange>>,
}

/// A tool whose definition was not the pinned one.
struct ToolChange {
    /// The digest of the pinned definition.
    pinned: String,
    checked: Instant,
}

/// A caller's place for one server.
#[derive(Default)]
struct UpstreamPlace {
    /// Locked while it starts.
    upstream: tokio::sync::Mutex<Option<Upstream>>,
    failures: Mutex<UpstreamFailures>,
}

/// The failures of an upstream since it last answered.
#[derive(Default)]
struct UpstreamFailures {
    count: u32,
    /// It is not started again before this time.
    until: Option<Instant>,
}

/// An upstream's tool, for a caller.
pub(super) struct UpstreamTarget<'a> {
    pub(super) caller: &'a Caller,
    pub(super) name: &'a ServerName,
    pub(super) server: &'a UpstreamServer,
    pub(super) tool: &'a UpstreamTool,
}

impl UpstreamTarget<'_> {
    fn key(&self) -> Option<(Caller, ServerName, UpstreamToolName)> {
        let tool = self.tool.name().parse().ok()?;
        Some((self.caller.clone(), self.name.clone(), tool))
    }
}

/// A call to an upstream's tool.
pub(super) struct UpstreamCall<'a> {
    pub(super) target: UpstreamTarget<'a>,
    pub(super) arguments: &'a Map<String, Value>,
    /// Receives the progress that the upstream reports.
    pub(super) progress: Option<ProgressSink>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Upstreams {
    /// Makes a call, and starts the server if necessary. Dropping the future cancels the call.
    pub(super) async fn call(
        &self,
        programs: &Arc<Programs>,
        call: UpstreamCall<'_>,
    ) -> Result<UpstreamAnswer, ToolError> {
        let (place, connection) = self.connection(programs, &call.target).await?;
        let answered = connection.call(&call).await;
        let fault = answered.as_ref().err();
        self.note(programs, &call.target, (&place, &connection), fault);
        answered.map_err(ToolError::from)
    }

    /// Checks whether the server describes a tool as it is pinned, and starts it if necessary.
    pub(super) async fn check(&self, programs: &Arc<Programs>, target: &UpstreamTarget<'_>) {
        // What keeps it from starting was reported.
        if let Ok((place, connection)) = self.connection(programs, target).await {
            let checked = connection.check(target.tool).await;
            let fault = checked.as_ref().err();
            self.note(programs, target, (&place, &connection), fault);
        }
    }

    /// Returns a caller's place for a server, and the connection to the server, which runs.
    async fn connection(
        &self,
        programs: &Arc<Programs>,
        target: &UpstreamTarget<'_>,
    ) -> Result<(Arc<UpstreamPlace>, UpstreamConnection), ToolError> {
        let place = {
            let mut places = lock(&self.places);
            // Places without a server and without failures are forgotten.
            places.retain(|_, place| Arc::strong_count(place) > 1 || place.is_in_use());
            let key = (target.caller.clone(), target.name.clone());
            Arc::clone(places.entry(key).or_default())
        };
        let connection = place.connection(programs, target).await?;
        Ok((place, connection))
    }

    /// Notes whether the server still describes a tool as it is pinned, and whether it has failed.
    fn note(
        &self,
        programs: &Programs,
        target: &UpstreamTarget<'_>,
        (place, connection): (&UpstreamPlace, &UpstreamConnection),
        fault: Option<&UpstreamFault>,
    ) {
        match fault {
            None => {
                *lock(&place.failures) = UpstreamFailures::default();
                if let Some(key) = target.key() {
                    lock(&self.changed).remove(&key);
                }
            }
            Some(UpstreamFault::Changed(_) | UpstreamFault::Missing(_)) => {
                let Some(key) = target.key() else { return };
                let change = ToolChange {
                    pinned: target.tool.digest().to_owned(),
                    checked: Instant::now(),
                };
                let before = lock(&self.changed).insert(key, change);
                if before.is_none_or(|before| before.pinned != target.tool.digest()) {
                    let (server, tool) = (target.name, target.tool.name());
                    (programs.report)(&format!(
                        "the definition of `{server}/{tool}` is not the one that was accepted, so calls are refused"
                    ));
                }
            }
            Some(UpstreamFault::Ended(why)) if connection.is_new_failure(*why) => {
                place.record_failure();
            }
            Some(
                UpstreamFault::Ended(_) | UpstreamFault::TooLong(_) | UpstreamFault::NotReading,
            ) => {}
        }
    }

    /// Stops the server that has been without a call for the longest time, so that another program can run.
    pub(super) fn stop_one(&self) {
        let places = lock(&self.places);
        let idle = places.values().filter_map(|place| {
            let upstream = place.upstream.try_lock().ok()?;
            let connection = upstream.as_ref()?.connection.clone();
            Some((connection.idle_since()?, connection))
        });
        if let Some((_, connection)) = idle.min_by_key(|(since, _)| *since) {
            connection.stop();
        }
    }

    /// Returns the tools whose definition was not the one that is pinned now, for this caller or, without one, for any.
    pub(super) fn changed(
        &self,
        services: &Services,
        caller: Option<&Caller>,
    ) -> BTreeSet<ServiceTool> {
        let changed = lock(&self.changed);
        let changed = changed
            .iter()
            .filter_map(|((whose, server, tool), change)| {
                let pinned = services.servers.get(server)?.tools.get(tool)?;
                let tool = ServiceTool::Upstream(server.clone(), tool.clone());
                let is_asked = caller.is_none_or(|caller| caller == whose);
                (is_asked && pinned.digest() == change.pinned).then_some(tool)
            });
        changed.collect()
    }

    /// Returns whether it is time to check a caller's changed tool again, and counts it as checked: it is not offered, so
    /// no call would find out that it is described as pinned again.
    pub(super) fn claim_check(
        &self,
        caller: &Caller,
        server: &ServerName,
        tool: &UpstreamToolName,
    ) -> bool {
        let mut changed = lock(&self.changed);
        let change = changed.get_mut(&(caller.clone(), server.clone(), tool.clone()));
        change.is_some_and(|change| {
            let is_due = change.checked.elapsed() >= LIST_AGE_MAX;
            if is_due {
                change.checked = Instant::now();
            }
            is_due
        })
    }
}

impl UpstreamPlace {
    fn is_in_use(&self) -> bool {
        let runs = self.upstream.try_lock().map_or(true, |upstream| {
            upstream.as_ref().is_some_and(Upstream::is_running)
        });
        // The number of failures counts for a while, so that the pauses grow.
        let until = lock(&self.failures).until;
        runs || until.is_some_and(|until| until + BACK_OFF_MAX > Instant::now())
    }

    fn record_failure(&self) {
        let mut failures = lock(&self.failures);
        let pause = BACK_OFF.saturating_mul(1 << failures.count.min(10));
        failures.count = failures.count.saturating_add(1);
        failures.until = Some(Instant::now() + pause.min(BACK_OFF_MAX));
    }

    /// Returns the connection to the running server; starts one if none runs, or if it is declared differently by now.
    async fn connection(
        &self,
        programs: &Arc<Programs>,
        target: &UpstreamTarget<'_>,
    ) -> Result<UpstreamConnection, ToolError> {
        let mut upstream = self.upstream.lock().await;
        if let Some(running) = &*upstream
            && running.is_running()
            && running.runs_as(target.server)
        {
            return Ok(running.connection.clone());
        }
        *upstream = None;
        let until = lock(&self.failures).until;
        if let Some(until) = until
            && let Some(left) = until.checked_duration_since(Instant::now())
        {
            if left <= PAUSE_WAITED {
                sleep_until(until).await;
            } else {
                let text = format!(
                    "the server `{}` has failed repeatedly; try again in {:.0} s",
                    target.name,
                    left.as_secs_f64().ceil()
                );
                return Err(ToolError::Unavailable(text));
            }
        }
        let started = Upstream::start(programs, target).await;
        if started.is_err() {
            self.record_failure();
        }
        let started = upstream.insert(started?);
        Ok(started.connection.clone())
    }
}

/// A running server.
struct Upstream {
    connection: UpstreamConnection,
    /// What it was started from.
    server: UpstreamServer,
    /// Ends it when this is dropped.
    _end: DropGuard,
}

impl Upstream {
    fn is_running(&self) -> bool {
        self.connection.is_running()
    }

    fn runs_as(&self, server: &UpstreamServer) -> bool {
        let own = &self.server;
        (&own.command, &own.process, own.idle_seconds)
            == (&server.command, &server.process, server.idle_seconds)
    }

    async fn start(
        programs: &Arc<Programs>,
        target: &UpstreamTarget<'_>,
    ) -> Result<Self, ToolError> {
        let slot = programs.enter_slot(target.caller).await?;
        let label = format!("`{}` (for {})", target.name, target.caller);
        let connection = connect(
            target.server,
            &programs.user,
            &programs.report,
            label,
            Some(slot),
        )
        .await?;
        let end = connection.stop_on_drop();
        Ok(Self {
            connection,
            server: target.server.clone(),
            _end: end,
        })
    }
}
