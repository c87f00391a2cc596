//! Serves the handshake, the list and the calls.
//!
//! The policy is asked here, for lists and calls alike, at the moment of each request.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rmcp::ServerHandler;
use rmcp::model::{
    CacheScope, CallToolRequestParams, CallToolResponse, ClientRequest, CustomRequest,
    CustomResult, ErrorData, Implementation, InitializeRequestParams, InitializeResult,
    ListToolsResult, PaginatedRequestParams, ServerCapabilities, ServerConfig,
};
use rmcp::service::{RequestContext, RoleServer};
use tokio::sync::Semaphore;

use super::call_pipeline::{CallPipeline, Own};
use super::in_flight::InFlightRequests;
use super::message::{is_modern, is_modern_version, unknown_method};
use super::{Server, tools};
use crate::mcp::concurrency::too_many_connections;
use crate::mcp::helper::Connection;
use crate::tool::ToolSession;

/// Instructions for a client's model about this server.
const INSTRUCTIONS: &str = "Tools of one machine, for the machines that its owner allowed. \
    Each tool says in `_meta[\"anklume/tool\"]` what runs behind its name.";

/// The state of one connection.
#[derive(Debug)]
pub(super) struct Handler {
    server: Server,
    session: ToolSession,
    /// Runs what this process cannot.
    helpers: Option<Connection>,
    flight: Arc<InFlightRequests>,
    /// Places for tools that run.
    places: Arc<Semaphore>,
    /// Calls of this connection that run.
    own: Own,
    /// A request of the stateless era has come: from then on one without `_meta` is not answered by older rules.
    modern: AtomicBool,
}

impl Handler {
    pub(super) fn new(server: Server, flight: Arc<InFlightRequests>) -> Self {
        Self {
            session: ToolSession::new(Arc::clone(&server.shared.settings)),
            helpers: server.shared.helpers.clone().map(Connection::new),
            own: Own::default(),
            places: Arc::new(Semaphore::new(server.limits.running as usize)),
            server,
            flight,
            modern: AtomicBool::new(false),
        }
    }

    /// Notes to which era a request belongs and refuses one that belongs to none.
    fn check_era(&self, context: &RequestContext<RoleServer>) -> Result<(), ErrorData> {
        if is_modern(&context.meta) {
            self.modern.store(true, Ordering::Relaxed);
            return Ok(());
        }
        let bare = context.protocol_version().is_none();
        if bare && self.modern.load(Ordering::Relaxed) {
            return Err(ErrorData::invalid_params(
                "`_meta` lacks `io.modelcontextprotocol/protocolVersion`, which this connection began with",
                None,
            ));
        }
        Ok(())
    }

    fn list(
        &self,
        request: Option<PaginatedRequestParams>,
        context: &RequestContext<RoleServer>,
    ) -> Result<ListToolsResult, ErrorData> {
        if request.is_some_and(|request| request.cursor.is_some()) {
            return Err(ErrorData::invalid_params(
                "`cursor` is none of this server's: its list is one page",
                None,
            ));
        }
        let policy = self.server.shared.monitor.refreshed_policy();
        let tools = tools::list(&policy.services, &self.server.caller);
        let result = ListToolsResult::with_all_items(tools);
        if is_modern_version(context.protocol_version().as_ref()) {
            // The list is this caller's alone and may change at any moment.
            return Ok(result.with_ttl_ms(0).with_cache_scope(CacheScope::Private));
        }
        Ok(result)
    }

    /// The error that answers a request of a connection beyond its caller's limit; `None`: the connection is served.
    pub(super) fn turned_away(
        &self,
        request: &ClientRequest,
        context: &RequestContext<RoleServer>,
    ) -> Option<ErrorData> {
        let most = self.server.beyond?;
        if let ClientRequest::CallToolRequest(call) = request {
            return Some(self.course(context).turn_away(&call.params, most));
        }
        // What is no request has its own error.
        let fault = context.extensions.get::<ErrorData>().cloned();
        Some(fault.unwrap_or_else(|| too_many_connections(most).into()))
    }

    fn course<'a>(&'a self, context: &'a RequestContext<RoleServer>) -> CallPipeline<'a> {
        CallPipeline {
            server: &self.server,
            session: &self.session,
            helpers: self.helpers.as_ref(),
            flight: &self.flight,
            places: &self.places,
            own: &self.own,
            context,
        }
    }
}

impl ServerHandler for Handler {
    fn get_info(&self) -> ServerConfig {
        ServerConfig::new(ServerCapabilities::builder().enable_tools().build())
            .with_server_info(Implementation::new("anklume", env!("CARGO_PKG_VERSION")))
            .with_instructions(INSTRUCTIONS)
    }

    async fn initialize(
        &self,
        request: InitializeRequestParams,
        context: RequestContext<RoleServer>,
    ) -> Result<InitializeResult, ErrorData> {
        let answer = self.negotiate_initialize(&request)?;
        // What was agreed on and not what was asked for: later requests are answered by this version. Nothing else of it is
        // kept: a client may say as much of itself as it likes.
        let mut kept = InitializeRequestParams::default();
        kept.protocol_version = answer.protocol_version.clone();
        context.peer.set_peer_info(kept);
        Ok(answer)
    }

    async fn list_tools(
        &self,
        request: Option<PaginatedRequestParams>,
        context: RequestContext<RoleServer>,
    ) -> Result<ListToolsResult, ErrorData> {
        self.check_era(&context)?;
        self.list(request, &context)
    }

    async fn call_tool(
        &self,
        request: CallToolRequestParams,
        context: RequestContext<RoleServer>,
    ) -> Result<CallToolResponse, ErrorData> {
        self.check_era(&context)?;
        Ok(self.course(&context).call(request).await?.into())
    }

    async fn on_custom_request(
        &self,
        request: CustomRequest,
        context: RequestContext<RoleServer>,
    ) -> Result<CustomResult, ErrorData> {
        Err(context
            .extensions
            .get::<ErrorData>()
            .cloned()
            .unwrap_or_else(|| unknown_method(&request.method)))
    }
}
