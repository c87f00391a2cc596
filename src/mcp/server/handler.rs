//! Handles the handshake, the tool list and calls; each request is in flight until it is handled, and even a panic is
//! answered.

use std::borrow::Cow;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use futures_util::FutureExt as _;
use jiff::Timestamp;
use rmcp::ServerHandler;
use rmcp::model::{
    CacheScope, CallToolRequestParams, ClientNotification, ClientRequest, CustomRequest,
    CustomResult, ErrorData, Implementation, InitializeRequestParams, InitializeResult,
    ListToolsResult, MetaObject, PaginatedRequestParams, ProtocolVersion, ServerCapabilities,
    ServerConfig, ServerResult, Tool, ToolAnnotations,
};
use rmcp::service::{NotificationContext, RequestContext, RoleServer, Service};
use serde_json::{Map, Value};

use super::Server;
use super::call::fault;
use super::call_pipeline::{CallPipeline, ConnectionState};
use super::in_flight::InFlightRequests;
use super::message::{is_modern, unknown_method};
use crate::catalogue::{Definition, UpstreamTool, describe_without};
use crate::condition::Conditions;
use crate::mcp::concurrency::too_many_connections;
use crate::mcp::{BASE64_KEY, PUBLIC_KEY_KEY, SERVICES_KEY, TOOL_KEY};
use crate::name::{ServiceTool, ToolName};
use crate::policy::{self, Caller, ServiceOffer};
use crate::services::Services;

/// Instructions for a client's model about this server.
const INSTRUCTIONS: &str = "Tools of one machine, for the machines that the operator allowed. \
    The `_meta[\"anklume/tool\"]` of each tool identifies the tool behind its name.";

/// The era of a connection's requests.
#[derive(Default)]
pub(in crate::mcp) struct Era {
    /// True after a request of the stateless era: from then on, a request without `_meta` is refused.
    is_modern: AtomicBool,
}

impl Era {
    /// Notes the era that a request belongs to, and refuses a request that belongs to none.
    pub(in crate::mcp) fn check(
        &self,
        context: &RequestContext<RoleServer>,
    ) -> Result<(), ErrorData> {
        if is_modern(context.meta.protocol_version()) {
            self.is_modern.store(true, Ordering::Relaxed);
            return Ok(());
        }
        let bare = context.protocol_version().is_none();
        if bare && self.is_modern.load(Ordering::Relaxed) {
            return Err(ErrorData::invalid_params(
                "`_meta` lacks `io.modelcontextprotocol/protocolVersion`, which an earlier request on this connection had",
                None,
            ));
        }
        Ok(())
    }
}

/// Answers `initialize`. The agreed version applies to later requests. Nothing else is kept: a client's description has no
/// size limit.
pub(in crate::mcp) fn initialize(
    handler: &impl ServerHandler,
    request: &InitializeRequestParams,
    context: &RequestContext<RoleServer>,
) -> Result<InitializeResult, ErrorData> {
    let answer = handler.negotiate_initialize(request)?;
    let mut peer_info = InitializeRequestParams::default();
    peer_info.protocol_version = answer.protocol_version.clone();
    context.peer.set_peer_info(peer_info);
    Ok(answer)
}

/// Refuses a request that rmcp does not know.
pub(in crate::mcp) fn refuse_unknown(
    request: &CustomRequest,
    context: &RequestContext<RoleServer>,
) -> ErrorData {
    let error = context.extensions.get::<ErrorData>().cloned();
    error.unwrap_or_else(|| unknown_method(&request.method))
}

/// Refuses a request for another page of the list.
pub(in crate::mcp) fn check_cursor(
    request: Option<&PaginatedRequestParams>,
) -> Result<(), ErrorData> {
    if request.is_some_and(|request| request.cursor.is_some()) {
        let text = "`cursor` is unknown: this server's list has one page";
        return Err(ErrorData::invalid_params(text, None));
    }
    Ok(())
}

/// Handles the requests for which rmcp's own types would drop something.
pub(in crate::mcp) trait RequestHandler: ServerHandler {
    /// Returns the requests of its connection.
    fn flight(&self) -> &InFlightRequests;

    /// Answers a request.
    fn answer(
        &self,
        request: ClientRequest,
        context: RequestContext<RoleServer>,
    ) -> impl Future<Output = Result<ServerResult, ErrorData>> + Send;
}

/// Handles one connection's requests according to rmcp's rules for each method.
pub(super) struct Handler {
    connection: ConnectionState,
    era: Era,
}

impl Handler {
    /// Returns the error for a request on a connection beyond its caller's limit; `None` if the connection is served.
    fn turn_away(
        &self,
        request: &ClientRequest,
        context: &RequestContext<RoleServer>,
    ) -> Option<ErrorData> {
        let max = self.connection.server.over_limit?;
        if let ClientRequest::CallToolRequest(call) = request {
            let arguments = Arc::new(call.params.arguments.clone().unwrap_or_default());
            let call = CallPipeline::new(&self.connection, context, &call.params.name, &arguments);
            return Some(call.turn_away(max));
        }
        // An invalid message has its own error.
        let error = context.extensions.get::<ErrorData>().cloned();
        Some(error.unwrap_or_else(|| too_many_connections(max).into()))
    }
}

impl Handler {
    /// Handles `tools/call`. rmcp's handler is not used: it has a type for results, which would drop what an upstream adds.
    async fn call(
        &self,
        request: CallToolRequestParams,
        context: &RequestContext<RoleServer>,
    ) -> Result<ServerResult, ErrorData> {
        self.era.check(context)?;
        let arguments = Arc::new(request.arguments.unwrap_or_default());
        let call = CallPipeline::new(&self.connection, context, &request.name, &arguments);
        let answer = call.answer().await?;
        Ok(answer.into_result(is_modern(context.protocol_version())))
    }

    /// Removes the tools of upstreams whose definition has changed since it was accepted: they are not called.
    async fn drop_changed(&self, tools: &mut Vec<Tool>) {
        let tool_of = |tool: &Tool| -> Option<ServiceTool> {
            let tool = tool.meta.as_ref()?.0.get(TOOL_KEY)?.as_str()?;
            tool.parse().ok()
        };
        let is_upstream = |tool| matches!(tool_of(tool), Some(ServiceTool::Upstream(..)));
        if tools.iter().any(is_upstream) {
            let changed = self.connection.changed().await;
            tools.retain(|tool| tool_of(tool).is_none_or(|tool| !changed.contains(&tool)));
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
        initialize(self, &request, &context)
    }

    async fn list_tools(
        &self,
        request: Option<PaginatedRequestParams>,
        context: RequestContext<RoleServer>,
    ) -> Result<ListToolsResult, ErrorData> {
        self.era.check(&context)?;
        check_cursor(request.as_ref())?;
        let server = &self.connection.server;
        let policy = server.shared.monitor.refreshed_policy();
        let mut tools = list(&policy.services, &server.caller);
        let asks = context.meta.0.get(SERVICES_KEY) == Some(&true.into());
        if server.caller == Caller::Operator && !asks {
            // The operator's list contains only the tools, whatever the machine offers to others.
            tools.retain(|tool| tool.name.parse::<ToolName>().is_ok());
        }
        self.drop_changed(&mut tools).await;
        let result = ListToolsResult::with_all_items(tools);
        if is_modern(context.protocol_version()) {
            // The list is private to this caller and may change at any time.
            return Ok(result.with_ttl_ms(0).with_cache_scope(CacheScope::Private));
        }
        Ok(result)
    }

    async fn on_custom_request(
        &self,
        request: CustomRequest,
        context: RequestContext<RoleServer>,
    ) -> Result<CustomResult, ErrorData> {
        Err(refuse_unknown(&request, &context))
    }
}

impl Handler {
    pub(super) fn new(server: Server, flight: Arc<InFlightRequests>) -> Self {
        Self {
            connection: ConnectionState::new(server, flight),
            era: Era::default(),
        }
    }
}

impl RequestHandler for Handler {
    fn flight(&self) -> &InFlightRequests {
        &self.connection.flight
    }

    async fn answer(
        &self,
        request: ClientRequest,
        context: RequestContext<RoleServer>,
    ) -> Result<ServerResult, ErrorData> {
        match self.turn_away(&request, &context) {
            Some(error) => Err(error),
            None => match request {
                ClientRequest::CallToolRequest(call) => self.call(call.params, &context).await,
                request => self.handle_request(request, context).await,
            },
        }
    }
}

/// Wraps a handler for rmcp's service loop, and catches panics in each request.
pub(in crate::mcp) struct PanicGuard<H>(pub(in crate::mcp) H);

impl<H: RequestHandler> Service<RoleServer> for PanicGuard<H> {
    async fn handle_request(
        &self,
        request: ClientRequest,
        context: RequestContext<RoleServer>,
    ) -> Result<ServerResult, ErrorData> {
        let _handling = self.0.flight().handling(context.id.clone());
        let answer = AssertUnwindSafe(self.0.answer(request, context));
        // The caller must not wait forever.
        let answer = answer.catch_unwind().await;
        answer.unwrap_or_else(|_panic| Err(fault()))
    }

    async fn handle_notification(
        &self,
        notification: ClientNotification,
        context: NotificationContext<RoleServer>,
    ) -> Result<(), ErrorData> {
        self.0.handle_notification(notification, context).await
    }

    fn get_info(&self) -> ServerConfig {
        Service::get_info(&self.0)
    }

    fn supported_protocol_versions(&self) -> Cow<'static, [ProtocolVersion]> {
        Service::supported_protocol_versions(&self.0)
    }
}

/// Lists a caller's tools in the order of the services or, for the operator, in documentation order. The policy
/// alone selects them.
pub(crate) fn list(services: &Services, caller: &Caller) -> Vec<Tool> {
    policy::offers(services, caller, Timestamp::now())
        .into_iter()
        .filter_map(|offer| describe(services, offer, caller))
        .collect()
}

/// Describes one of the tools to the operator.
pub(crate) fn of_operator(tool: ToolName) -> Tool {
    let offer = ServiceOffer {
        name: tool.as_str().to_owned(),
        tool: tool.into(),
        fixed: Map::new(),
        conditions: Conditions::default(),
    };
    describe_as(Definition::BuiltIn(tool), offer, &Caller::Operator)
}

/// Describes what a caller may use; `None` if the machine has no such tool, which a valid services file rules out.
fn describe(services: &Services, offer: ServiceOffer, caller: &Caller) -> Option<Tool> {
    let definition = services.definition(&offer.tool)?;
    Some(describe_as(definition, offer, caller))
}

fn describe_as(definition: Definition<'_>, offer: ServiceOffer, caller: &Caller) -> Tool {
    let hidden = |argument: &str| !policy::may_choose(caller, &offer.tool, &offer.fixed, argument);
    let mut meta = MetaObject::new();
    meta.0
        .insert(TOOL_KEY.to_owned(), offer.tool.to_string().into());
    let mut docs = match definition {
        Definition::BuiltIn(tool) => describe_without(tool, hidden),
        Definition::Own(tool) => tool.describe(hidden),
        Definition::Upstream(tool) => {
            let mut input = tool.input_without(hidden);
            offer.conditions.narrow(&mut input);
            return of_upstream(tool, offer.name, input).with_meta(meta);
        }
    };
    offer.conditions.narrow(&mut docs.input);
    let properties = docs.input.get("properties");
    let is_listed = |argument: &&str| properties.is_some_and(|all| all.get(*argument).is_some());
    let base64: Vec<&str> = docs
        .base64
        .iter()
        .map(String::as_str)
        .filter(is_listed)
        .collect();
    if let Some(key) = offer.fixed.get("key")
        && offer.tool.is(ToolName::SshSign)
    {
        meta.0.insert(PUBLIC_KEY_KEY.to_owned(), key.clone());
    }
    if !base64.is_empty() {
        meta.0.insert(BASE64_KEY.to_owned(), base64.into());
    }
    let mut tool = Tool::new(offer.name, docs.description, Arc::new(docs.input));
    tool.title = docs.title.map(str::to_owned);
    tool.with_raw_output_schema(Arc::new(docs.output))
        .with_annotations(
            ToolAnnotations::new()
                .read_only(docs.read_only)
                .destructive(docs.destructive)
                .idempotent(docs.idempotent)
                // Nothing is known about a machine's own tool.
                .open_world(offer.tool.built_in().is_none()),
        )
        .with_meta(meta)
}

/// Describes a tool of an upstream as its pinned definition does, under the service's name.
fn of_upstream(tool: &UpstreamTool, name: String, input: Map<String, Value>) -> Tool {
    let mut described = Tool::new_with_raw(name, None, Arc::new(input));
    described.description = tool.text("description").map(|text| text.to_owned().into());
    described.title = tool.text("title").map(str::to_owned);
    described.output_schema = tool.object("outputSchema").cloned().map(Arc::new);
    let annotations = tool.object("annotations").cloned().map(Value::from);
    described.annotations = annotations.and_then(|hints| serde_json::from_value(hints).ok());
    described
}
