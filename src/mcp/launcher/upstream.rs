//! Speaks MCP with upstreams: one process for each caller and server, started at the first call, stopped when idle.
//!
//! An upstream is not trusted: it gets nothing but the calls that the policy grants, its requests are refused, and what it
//! sends has limits. Its tools' definitions are compared with the pinned ones before each call.

mod connection;
mod error_output;
mod exchange;

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde_json::{Map, Value};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::DropGuard;

use super::Programs;
use crate::catalogue::{UpstreamServer, UpstreamTool};
use crate::mcp::client::UpstreamAnswer;
use crate::mcp::helper::ProgressSink;
use crate::name::{ServerName, ServiceTool, UpstreamToolName};
use crate::policy::Caller;
use crate::services::Services;
use crate::tool::ToolError;
pub(super) use connection::connect;
use connection::{UpstreamConnection, UpstreamFault};

/// Pause after the first failure of an upstream; it doubles with each further one.
const BACK_OFF: Duration = Duration::from_millis(500);
const BACK_OFF_MAX: Duration = Duration::from_secs(30);
/// A call waits for the end of a pause that is not longer than this.
const PAUSE_WAITED: Duration = Duration::from_secs(2);

/// The running upstreams.
#[derive(Default)]
pub(super) struct Upstreams {
    places: Mutex<HashMap<(Caller, ServerName), Arc<UpstreamPlace>>>,
    /// Tools whose definition was not the pinned one when they were last called, with the digest of the latter.
    changed: Mutex<BTreeMap<(ServerName, UpstreamToolName), String>>,
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

/// A call to an upstream's tool.
pub(super) struct UpstreamCall<'a> {
    pub(super) caller: &'a Caller,
    pub(super) name: &'a ServerName,
    pub(super) server: &'a UpstreamServer,
    pub(super) tool: &'a UpstreamTool,
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
        let place = {
            let mut places = lock(&self.places);
            // Places without a server and without failures are forgotten.
            places.retain(|_, place| Arc::strong_count(place) > 1 || place.is_in_use());
            let key = (call.caller.clone(), call.name.clone());
            Arc::clone(places.entry(key).or_default())
        };
        let connection = place.connection(programs, &call).await?;
        let answered = connection.call(&call).await;
        if self.note_definition(&call, answered.as_ref().err()) {
            let (server, tool) = (call.name, call.tool.name());
            (programs.report)(&format!(
                "the definition of `{server}/{tool}` is not the one that was accepted, so calls are refused"
            ));
        }
        match &answered {
            Err(UpstreamFault::Ended(why)) if connection.is_new_failure(*why) => place.has_failed(),
            Err(_) => {}
            Ok(_) => *lock(&place.failures) = UpstreamFailures::default(),
        }
        answered.map_err(ToolError::from)
    }

    /// Notes whether the server still describes a called tool as it is pinned; returns whether a difference is new.
    fn note_definition(&self, call: &UpstreamCall<'_>, fault: Option<&UpstreamFault>) -> bool {
        let Ok(tool) = call.tool.name().parse() else {
            return false;
        };
        let key = (call.name.clone(), tool);
        let mut changed = lock(&self.changed);
        match fault {
            Some(UpstreamFault::Changed(_) | UpstreamFault::Missing(_)) => {
                let digest = call.tool.digest().to_owned();
                changed.insert(key, digest.clone()) != Some(digest)
            }
            Some(UpstreamFault::Ended(_) | UpstreamFault::TooLong(_) | UpstreamFault::Deaf) => {
                false
            }
            None => {
                changed.remove(&key);
                false
            }
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

    /// Returns the tools whose definition was not the one that is pinned now.
    pub(super) fn changed(&self, services: &Services) -> Vec<ServiceTool> {
        let changed = lock(&self.changed);
        let changed = changed.iter().filter_map(|((server, tool), digest)| {
            let pinned = services.servers.get(server)?.tools.get(tool)?;
            let tool = ServiceTool::Upstream(server.clone(), tool.clone());
            (pinned.digest() == *digest).then_some(tool)
        });
        changed.collect()
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

    fn has_failed(&self) {
        let mut failures = lock(&self.failures);
        let pause = BACK_OFF.saturating_mul(1 << failures.count.min(10));
        failures.count = failures.count.saturating_add(1);
        failures.until = Some(Instant::now() + pause.min(BACK_OFF_MAX));
    }

    /// Returns the connection to the running server; starts one if none runs, or if it is declared differently by now.
    async fn connection(
        &self,
        programs: &Arc<Programs>,
        call: &UpstreamCall<'_>,
    ) -> Result<UpstreamConnection, ToolError> {
        let mut upstream = self.upstream.lock().await;
        if let Some(running) = &*upstream
            && running.is_running()
            && running.runs_as(call.server)
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
                    call.name,
                    left.as_secs_f64().ceil()
                );
                return Err(ToolError::Unavailable(text));
            }
        }
        let started = Upstream::start(programs, call).await;
        if started.is_err() {
            self.has_failed();
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

    async fn start(programs: &Arc<Programs>, call: &UpstreamCall<'_>) -> Result<Self, ToolError> {
        let slot = programs.enter_slot(call.caller).await?;
        let label = format!("`{}` (for {})", call.name, call.caller);
        let connection = connect(
            call.server,
            &programs.user,
            &programs.report,
            label,
            Some(slot),
        )
        .await?;
        let end = connection.stop_on_drop();
        Ok(Self {
            connection,
            server: call.server.clone(),
            _end: end,
        })
    }
}
