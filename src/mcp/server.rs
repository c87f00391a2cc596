//! Serves one connection: the channel identifies the caller, the policy decides, the tool runs, and the answer is sent.
//!
//! Nothing here prints, opens sockets or reads files.

pub(in crate::mcp) mod call;
mod call_pipeline;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing;
pub(in crate::mcp) mod handler;
pub(in crate::mcp) mod in_flight;
pub(in crate::mcp) mod message;
#[cfg(test)]
mod tests;
mod transfer_ids;
pub(in crate::mcp) mod transport;

pub(crate) use handler::{list, of_operator};
pub(crate) use in_flight::{AnsweredRequest, RequestOutcome};

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use jiff::Timestamp;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::sync::CancellationToken;

use crate::limits::{CALL_TIME, STOP_TIME};
use crate::mcp::ConnectionLimits;
use crate::mcp::framing::LineLimit;
use crate::mcp::helper::Helpers;
use crate::mcp::monitor::Monitor;
use crate::mcp::throttle::ReadThrottle;
use crate::name::MachineName;
use crate::policy::{Caller, Grant};
use crate::tool::{self, Copies, Settings, ToolError, ToolOutcome, ToolSession};
use handler::{Handler, PanicGuard};
use in_flight::InFlightRequests;
use transport::{ServerTransport, TransportRules};

/// Receives each written answer.
pub(crate) type Observer = Arc<dyn Fn(&AnsweredRequest) + Send + Sync>;
/// Runs a grant: [`tool::run`], except in tests.
type ServerRun =
    Arc<dyn for<'a> Fn(&'a Grant, &'a ToolSession, Copies) -> RunningServer<'a> + Send + Sync>;
/// A running tool.
type RunningServer<'a> = BoxFuture<'a, Result<ToolOutcome, ToolError>>;

/// Tells a connection to end.
#[derive(Debug, Clone, Default)]
pub(crate) struct Shutdown {
    /// Read no more requests; running calls are still answered, within [`ConnectionLimits::stop`].
    pub(crate) graceful: CancellationToken,
    /// End the running calls as well; they are answered with an error.
    pub(crate) immediate: CancellationToken,
}

impl Shutdown {
    /// Returns a shutdown that begins together with this one, or earlier on its own.
    pub(crate) fn child(&self) -> Self {
        Self {
            graceful: self.graceful.child_token(),
            immediate: self.immediate.child_token(),
        }
    }
}

/// State shared by all connections of a caller.
pub(crate) struct Shared {
    /// The policy, the limits and the log.
    pub(crate) monitor: Box<dyn Monitor>,
    pub(crate) settings: Arc<Settings>,
    /// Runs the tools that this process cannot run; `None` if it runs every tool itself.
    pub(crate) helpers: Option<Arc<Helpers>>,
    pub(crate) observer: Observer,
}

/// Serves a connection.
#[derive(Clone)]
pub(crate) struct Server {
    caller: Caller,
    shared: Arc<Shared>,
    limits: ConnectionLimits,
    /// The caller's throttle; `None` if its requests are read as fast as it writes them.
    throttle: Option<Arc<ReadThrottle>>,
    /// The caller's maximum number of connections, if this one exceeds it.
    over_limit: Option<usize>,
    run: ServerRun,
}

impl Server {
    /// Creates the server for a connection of `caller`, under the policy in force at each call.
    pub(crate) fn new(caller: Caller, shared: Arc<Shared>) -> Self {
        Self {
            caller,
            shared,
            limits: ConnectionLimits::DEFAULT,
            throttle: None,
            over_limit: None,
            run: Arc::new(|grant, session, copies| Box::pin(tool::run(grant, session, copies))),
        }
    }

    /// Creates the server for a consumer's connection, with the throttle that all its connections share. When told to
    /// stop, it lets running calls take as long as a person may need at a pinentry.
    pub(crate) fn of_consumer(
        consumer: MachineName,
        shared: Arc<Shared>,
        throttle: Arc<ReadThrottle>,
    ) -> Self {
        let mut server = Self::new(Caller::Consumer(consumer), shared);
        server.throttle = Some(throttle);
        server.limits.stop = STOP_TIME;
        server
    }

    /// Marks this connection as beyond the `max` that its caller may have: its first request is answered with
    /// "overloaded", and logged if it is a call; then the connection ends.
    pub(crate) const fn over_limit(mut self, max: usize) -> Self {
        self.over_limit = Some(max);
        self
    }

    /// Serves one connection to its end: until its input has ended and all requests are answered, or until `stop`.
    pub(crate) async fn serve<R, W>(self, reader: R, writer: W, stop: Shutdown)
    where
        R: AsyncRead + Send + Unpin + 'static,
        W: AsyncWrite + Send + Unpin + 'static,
    {
        let flight = Arc::new(InFlightRequests::default());
        let immediate = stop.immediate.clone();
        let (max_line, rules) = (self.max_line(), self.rules());
        let transport =
            ServerTransport::new(reader, writer, Arc::clone(&flight), max_line, rules, stop);
        let guard = PanicGuard(Handler::new(self, flight));
        // Not `serve`: it ends a connection on an unexpected first message, such as `tools/list` typed by hand.
        let running = rmcp::service::serve_directly_with_ct(guard, transport, None, immediate);
        // A panic ends the loop as well; the peer then sees the end of the stream.
        let _ = running.waiting().await;
    }

    fn rules(&self) -> TransportRules {
        let shared = Arc::clone(&self.shared);
        let (write_idle, write_max) = match self.throttle {
            Some(_) => (shared.settings.idle, CALL_TIME),
            // The operator's own terminal may be suspended.
            None => (Duration::MAX, Duration::MAX),
        };
        TransportRules {
            limits: self.limits,
            throttle: self.throttle.clone(),
            answers_once: self.over_limit.is_some(),
            write_idle,
            write_max,
            observer: Arc::clone(&shared.observer),
            listed: Box::new(move || shared.monitor.policy().services.services.len()),
        }
    }

    /// Returns the maximum length of a request, in bytes, under the policy in force when it begins: the largest of the
    /// limits of the caller's services, as the service named in a request is known only after the request is read.
    fn max_line(&self) -> LineLimit {
        let default = self.limits.line;
        let Caller::Consumer(name) = self.caller.clone() else {
            return default.into();
        };
        let shared = Arc::clone(&self.shared);
        LineLimit(Box::new(move || {
            let policy = shared.monitor.policy();
            let max = policy
                .services
                .message_bytes_of(&name, default as u64, Timestamp::now());
            usize::try_from(max).unwrap_or(usize::MAX)
        }))
    }
}
