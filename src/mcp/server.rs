//! One connection: who calls is known from the channel, what may be called is asked of the policy,
//! the tool runs, the answer goes out.
//!
//! Nothing here prints, opens sockets or reads files.

mod call;
mod call_pipeline;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing;
mod handler;
mod in_flight;
mod message;
mod paced;
mod panic_guard;
#[cfg(test)]
mod tests;
mod tools;
mod transport;

pub(crate) use call_pipeline::OVERLOADED;
pub(crate) use in_flight::{AnsweredRequest, How};
pub(crate) use tools::{list, of_operator};

use std::fmt;
use std::sync::Arc;

use futures_util::future::BoxFuture;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::sync::CancellationToken;

use crate::limits::STOP_TIME;
use crate::mcp::ConnectionLimits;
use crate::mcp::framing::Longest;
use crate::mcp::helper::Helpers;
use crate::mcp::monitor::Monitor;
use crate::mcp::policy_watcher::Policy;
use crate::mcp::throttle::ReadThrottle;
use crate::name::MachineName;
use crate::policy::{Caller, Grant};
use crate::tool::{self, Copies, Settings, ToolError, ToolOutcome, ToolSession};
use handler::Handler;
use in_flight::InFlightRequests;
use panic_guard::PanicGuard;
use transport::ServerTransport;

/// Is told of each answer that was written.
pub(crate) type Observer = Arc<dyn Fn(&AnsweredRequest) + Send + Sync>;
/// Runs a grant: [`tool::run`], except in tests of what a tool can do to its server.
type ServerRun =
    Arc<dyn for<'a> Fn(&'a Grant, &'a ToolSession, Copies) -> RunningServer<'a> + Send + Sync>;
/// A tool that runs.
type RunningServer<'a> = BoxFuture<'a, Result<ToolOutcome, ToolError>>;

/// Tells a connection to end.
#[derive(Debug, Clone, Default)]
pub(crate) struct Shutdown {
    /// Read no more requests; the running calls are answered first, within [`ConnectionLimits::stop`].
    pub(crate) gently: CancellationToken,
    /// End the running calls as well; they are answered with an error.
    pub(crate) now: CancellationToken,
}

/// State shared by all connections of a caller.
pub(crate) struct Shared {
    /// The policy, the limits, the log.
    pub(crate) monitor: Box<dyn Monitor>,
    /// The settings of the tools.
    pub(crate) settings: Arc<Settings>,
    /// Who runs what this process cannot; `None`: it runs every tool itself.
    pub(crate) helpers: Option<Arc<Helpers>>,
    /// Is told of each answer.
    pub(crate) observer: Observer,
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").finish_non_exhaustive()
    }
}

/// The parts with which a connection is served.
#[derive(Clone)]
pub(crate) struct Server {
    caller: Caller,
    shared: Arc<Shared>,
    limits: ConnectionLimits,
    /// The throttle for the caller; `None`: it is read as fast as it writes.
    pace: Option<Arc<ReadThrottle>>,
    /// The connections that the caller may have, where this one is beyond them.
    beyond: Option<usize>,
    run: ServerRun,
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server")
            .field("caller", &self.caller)
            .finish_non_exhaustive()
    }
}

impl Server {
    /// Serves `caller` by the policy of the moment of each call.
    pub(crate) fn new(caller: Caller, shared: Arc<Shared>) -> Self {
        Self {
            caller,
            shared,
            limits: ConnectionLimits::DEFAULT,
            pace: None,
            beyond: None,
            run: Arc::new(|grant, session, copies| Box::pin(tool::run(grant, session, copies))),
        }
    }

    /// Serves a connection of a consumer, at the pace of all its connections. Its running calls may take as long as a person
    /// at a pinentry when the server is told to end.
    pub(crate) fn of_consumer(
        consumer: MachineName,
        shared: Arc<Shared>,
        pace: Arc<ReadThrottle>,
    ) -> Self {
        let mut server = Self::new(Caller::Consumer(consumer), shared);
        server.pace = Some(pace);
        server.limits.stop = STOP_TIME;
        server
    }

    /// The same for a connection beyond the `most` that its caller may have at once: its first request is answered with
    /// "overloaded", and is in the log if it is a call; then it ends.
    pub(crate) const fn beyond(mut self, most: usize) -> Self {
        self.beyond = Some(most);
        self
    }

    /// Serves one connection to its end: until its requests have ended and are answered, or until `stop`.
    pub(crate) async fn serve<R, W>(self, reader: R, writer: W, stop: Shutdown)
    where
        R: AsyncRead + Send + Unpin + 'static,
        W: AsyncWrite + Send + Unpin + 'static,
    {
        let flight = Arc::new(InFlightRequests::default());
        let transport =
            ServerTransport::new(reader, writer, Arc::clone(&flight), &self, stop.clone());
        let door = PanicGuard::new(Handler::new(self, Arc::clone(&flight)), flight);
        // Not `serve`: it ends a connection whose first message is none that it expects, and `tools/list` by hand is one.
        let running = rmcp::service::serve_directly_with_ct(door, transport, None, stop.now);
        // A loop that panicked has ended as well; its peer sees the end of the stream.
        let _ = running.waiting().await;
    }
}

impl Server {
    /// Returns the number of services that the caller has at this moment.
    fn service_count(&self) -> Box<dyn Fn() -> usize + Send + Sync> {
        let shared = Arc::clone(&self.shared);
        Box::new(move || shared.monitor.policy().services.services.len())
    }

    /// The longest request, by the policy of the moment at which one begins.
    fn longest_line(&self) -> Longest {
        let (caller, shared, else_line) = (
            self.caller.clone(),
            Arc::clone(&self.shared),
            self.limits.line,
        );
        Longest::by(move || longest_message(&caller, &shared.monitor.policy()).unwrap_or(else_line))
    }
}

/// The longest message that the caller's services set, if any does; which service a message names shows only when it is read.
fn longest_message(caller: &Caller, policy: &Policy) -> Option<usize> {
    let Caller::Consumer(name) = caller else {
        return None;
    };
    let services = policy.services.services.iter();
    let set = services
        .filter(|service| service.serves(name))
        .map(|service| service.limits.message_bytes);
    let longest = set.reduce(|longest, next| match (longest, next) {
        (Some(one), Some(other)) => Some(one.max(other)),
        // One that sets nothing allows what is allowed by default.
        (one, other) => Some(one.or(other)?.max(crate::limits::MESSAGE_BYTES)),
    })??;
    usize::try_from(longest).ok()
}
