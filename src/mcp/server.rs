//! One connection: who calls is known from the channel, what may be called is asked of the policy,
//! the tool runs, the answer goes out.
//!
//! Nothing here prints, opens sockets or reads files.

mod call;
mod door;
mod flight;
mod handler;
mod message;
#[cfg(test)]
mod tests;
mod tools;
mod transport;

pub(crate) use flight::{Answered, How};
pub(crate) use tools::list;

use std::fmt;
use std::sync::Arc;

use futures_util::future::BoxFuture;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::mcp::Limits;
use crate::policy::{Caller, Grant};
use crate::services::Services;
use crate::tool::{self, Outcome, Session, Settings, ToolError};
use door::Door;
use flight::Flight;
use handler::Handler;
use transport::Transport;

/// Who hears of each answer that was written.
pub(crate) type Observer = Arc<dyn Fn(&Answered) + Send + Sync>;
/// What runs a grant: [`tool::run`], but for tests of what a tool can do to its server.
type Run = Arc<dyn for<'a> Fn(&'a Grant, &'a Session) -> Running<'a> + Send + Sync>;
/// A tool that runs.
type Running<'a> = BoxFuture<'a, Result<Outcome, ToolError>>;

/// How a connection is told to end.
#[derive(Debug, Clone, Default)]
pub(crate) struct Stop {
    /// Read no more requests; the running calls are answered first, within [`Limits::stop`].
    pub(crate) gently: CancellationToken,
    /// End the running calls as well; they are answered with an error.
    pub(crate) now: CancellationToken,
}

/// What a connection is served with.
#[derive(Clone)]
pub(crate) struct Server {
    caller: Caller,
    services: watch::Receiver<Arc<Services>>,
    settings: Arc<Settings>,
    limits: Limits,
    observer: Observer,
    run: Run,
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server")
            .field("caller", &self.caller)
            .finish_non_exhaustive()
    }
}

impl Server {
    /// Serves `caller` by what `services` holds at the moment of each call.
    pub(crate) fn new(
        caller: Caller,
        services: watch::Receiver<Arc<Services>>,
        settings: Arc<Settings>,
        observer: Observer,
    ) -> Self {
        Self {
            caller,
            services,
            settings,
            limits: Limits::DEFAULT,
            observer,
            run: Arc::new(|grant, session| Box::pin(tool::run(grant, session))),
        }
    }

    /// Serves one connection to its end: until its requests have ended and are answered, or until `stop`.
    pub(crate) async fn serve<R, W>(self, reader: R, writer: W, stop: Stop)
    where
        R: AsyncRead + Send + Unpin + 'static,
        W: AsyncWrite + Send + Unpin + 'static,
    {
        let flight = Arc::new(Flight::default());
        let transport = Transport::new(
            reader,
            writer,
            Arc::clone(&flight),
            self.limits,
            stop.clone(),
            Arc::clone(&self.observer),
        );
        let door = Door::new(Handler::new(self, Arc::clone(&flight)), flight);
        // Not `serve`: it ends a connection whose first message is none that it expects, and `tools/list` by hand is one.
        let running = rmcp::service::serve_directly_with_ct(door, transport, None, stop.now);
        // A loop that panicked has ended as well; its peer sees the end of the stream.
        let _ = running.waiting().await;
    }
}
