//! What is served: the handshake, the list, the calls.
//!
//! The policy is asked here, for lists and calls alike, at the moment of each request.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rmcp::ServerHandler;
use rmcp::model::{
    CacheScope, CallToolRequestParams, CallToolResponse, CallToolResult, CustomRequest,
    CustomResult, ErrorData, Implementation, InitializeRequestParams, InitializeResult,
    ListToolsResult, PaginatedRequestParams, ServerCapabilities, ServerConfig,
};
use rmcp::service::{RequestContext, RoleServer};
use tokio::sync::Semaphore;
use tokio::time::Instant;

use super::call::{self, Call};
use super::flight::Flight;
use super::message::{is_modern, is_modern_version, unknown_method};
use super::{Server, tools};
use crate::mcp::shown;
use crate::name::ToolName;
use crate::policy::{self, Decision, Denial, Grant, Request};
use crate::services::Services;
use crate::tool::Session;

/// What a client's model may read about this server.
const INSTRUCTIONS: &str = "Tools of one machine, for the machines that its owner allowed. \
    Each tool says in `_meta[\"anklume/tool\"]` what runs behind its name.";

/// The state of one connection.
#[derive(Debug)]
pub(super) struct Handler {
    server: Server,
    session: Session,
    flight: Arc<Flight>,
    /// Places for tools that run.
    places: Arc<Semaphore>,
    /// A request of the stateless era has come: from then on one without `_meta` is not answered by older rules.
    modern: AtomicBool,
}

impl Handler {
    pub(super) fn new(server: Server, flight: Arc<Flight>) -> Self {
        Self {
            session: Session::new(Arc::clone(&server.settings)),
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

    /// The services of this moment.
    fn services(&self) -> Arc<Services> {
        Arc::clone(&self.server.services.borrow())
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
        let tools = tools::list(&self.services(), &self.server.caller);
        let result = ListToolsResult::with_all_items(tools);
        if is_modern_version(context.protocol_version().as_ref()) {
            // The list is this caller's alone and may change at any moment.
            return Ok(result.with_ttl_ms(0).with_cache_scope(CacheScope::Private));
        }
        Ok(result)
    }

    async fn call(
        &self,
        request: CallToolRequestParams,
        context: &RequestContext<RoleServer>,
    ) -> Result<CallToolResult, ErrorData> {
        let grant = match self.decide(request) {
            Ok(grant) => grant,
            Err(Refusal::Error(error)) => return Err(error),
            Err(Refusal::Result(text)) => return Ok(call::failed(text)),
        };
        let call = Call {
            grant: &grant,
            session: &self.session,
            run: &self.server.run,
            context,
            since: Instant::now(),
            every: self.server.limits.progress,
        };
        let places = places_of(grant.tool()).min(self.server.limits.running);
        let place = Arc::clone(&self.places).acquire_many_owned(places);
        // The places are never closed.
        if let Ok(place) = call.wait_for(place).await? {
            self.flight.hold(&context.id, place);
        }
        call.run().await
    }

    /// Asks the policy.
    fn decide(&self, params: CallToolRequestParams) -> Result<Grant, Refusal> {
        let arguments = params.arguments.unwrap_or_default();
        let request = Request {
            caller: &self.server.caller,
            name: &params.name,
            arguments: &arguments,
        };
        match policy::decide(&self.services(), request) {
            Decision::Allowed(grant) => Ok(grant),
            Decision::Denied(denial) => Err(Refusal::of(denial, &params.name)),
        }
    }
}

/// Places that a running tool takes: more when its answer may be large, for it waits in memory to be written.
const fn places_of(tool: ToolName) -> u32 {
    match tool {
        ToolName::FileProvide => 4,
        ToolName::GpgSign
        | ToolName::ClipboardGet
        | ToolName::ClipboardSet
        | ToolName::FileAccept => 1,
    }
}

/// How a caller hears that its call does not run.
enum Refusal {
    /// As an error of the protocol.
    Error(ErrorData),
    /// As the result of a tool that failed.
    Result(String),
}

impl Refusal {
    /// A service that is there for others and one that is not there at all are one answer.
    fn of(denial: Denial, name: &str) -> Self {
        match denial {
            Denial::Unknown | Denial::NotConsumer { .. } => Self::Error(ErrorData::invalid_params(
                format!("Unknown tool: {}", shown(name)),
                None,
            )),
            Denial::FixedArgument { argument } => Self::Result(format!(
                "`{}` is not the caller's to choose",
                shown(&argument)
            )),
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
        mut request: InitializeRequestParams,
        context: RequestContext<RoleServer>,
    ) -> Result<InitializeResult, ErrorData> {
        let answer = self.negotiate_initialize(&request)?;
        // What was agreed on and not what was asked for: later requests are answered by this version.
        request.protocol_version = answer.protocol_version.clone();
        context.peer.set_peer_info(request);
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
        Ok(self.call(request, &context).await?.into())
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
