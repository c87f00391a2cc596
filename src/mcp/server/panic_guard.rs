//! Guards every request: it is in flight until it is handled, and a panic on its way is answered.
//!
//! Nothing here knows one method from another.

use std::borrow::Cow;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use futures_util::FutureExt as _;
use rmcp::model::{
    ClientNotification, ClientRequest, ErrorData, ProtocolVersion, RequestId, ServerConfig,
    ServerResult,
};
use rmcp::service::{NotificationContext, RequestContext, RoleServer, Service};

use super::call::fault;
use super::handler::Handler;
use super::in_flight::InFlightRequests;

/// The handler of one connection, as rmcp's service loop calls it.
#[derive(Debug)]
pub(super) struct PanicGuard {
    handler: Handler,
    flight: Arc<InFlightRequests>,
}

impl PanicGuard {
    pub(super) const fn new(handler: Handler, flight: Arc<InFlightRequests>) -> Self {
        Self { handler, flight }
    }
}

/// A request that is being handled; dropped, it no longer is, whatever became of it.
struct Handling<'a> {
    flight: &'a InFlightRequests,
    inner: RequestId,
}

impl Drop for Handling<'_> {
    fn drop(&mut self) {
        self.flight.handled(&self.inner);
    }
}

impl Service<RoleServer> for PanicGuard {
    async fn handle_request(
        &self,
        request: ClientRequest,
        context: RequestContext<RoleServer>,
    ) -> Result<ServerResult, ErrorData> {
        let _handling = Handling {
            flight: &self.flight,
            inner: context.id.clone(),
        };
        let answer = AssertUnwindSafe(async {
            if let Some(error) = self.handler.turned_away(&request, &context) {
                return Err(error);
            }
            self.handler.handle_request(request, context).await
        });
        // Its caller must not wait for ever.
        let answer = answer.catch_unwind().await;
        answer.unwrap_or_else(|_panic| Err(fault()))
    }

    async fn handle_notification(
        &self,
        notification: ClientNotification,
        context: NotificationContext<RoleServer>,
    ) -> Result<(), ErrorData> {
        self.handler
            .handle_notification(notification, context)
            .await
    }

    fn get_info(&self) -> ServerConfig {
        Service::get_info(&self.handler)
    }

    fn supported_protocol_versions(&self) -> Cow<'static, [ProtocolVersion]> {
        Service::supported_protocol_versions(&self.handler)
    }
}
