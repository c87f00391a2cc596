//! Serves the services of a consumer's providers to an MCP client: of all of them as one server, or of one.
//!
//! Each call has a connection of its own, so that a provider may restart at any time, and a cancelled call ends with
//! its connection. Results pass unchanged. The providers decide on every call; nothing here grants anything.

mod files;
mod provider;

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::future::{BoxFuture, join_all};
use rmcp::ServerHandler;
use rmcp::model::{
    CallToolRequestParams, ClientRequest, CustomRequest, CustomResult, ErrorData, Implementation,
    InitializeRequestParams, InitializeResult, PaginatedRequestParams, ServerCapabilities,
    ServerConfig, ServerResult,
};
use rmcp::service::{RequestContext, RoleServer, Service as _};
use serde_json::{Map, Value, json};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::mcp::client::{ProgressSink, Timeouts};
use crate::mcp::framing::LineLimit;
use crate::mcp::server::Shutdown;
use crate::mcp::server::call::{AnswerResult, CallProgress, failed};
use crate::mcp::server::handler::{
    Era, PanicGuard, RequestHandler, check_cursor, initialize, refuse_unknown,
};
use crate::mcp::server::in_flight::InFlightRequests;
use crate::mcp::server::message::is_modern;
use crate::mcp::server::transport::{ServerTransport, TransportRules};
use crate::mcp::{ConnectionLimits, shown};
use crate::name::ServiceName;
use crate::transport::OpenTransport;
pub(crate) use files::FileFolder;
use provider::Provider;

/// Maximum time for a provider to list its tools; the list does not wait longer for it.
const LIST_MAX: Duration = Duration::from_secs(3);
/// Maximum time for a call: that is up to the provider, and to the client.
pub(crate) const CALL_MAX: Duration = Duration::from_secs(24 * 60 * 60);
/// Interval for looking whether a provider that was missing from the list answers.
const LOOK_INTERVAL: Duration = Duration::from_secs(5);
/// Maximum length of a provider's list, in bytes.
const LIST_BYTES_MAX: usize = 1024 * 1024;
/// Maximum number of calls to one provider that run at the same time.
const CALLS_MAX: usize = 32;
/// Maximum number of requests of the client in flight. Calls that wait for one provider must not keep others from theirs.
const IN_FLIGHT_MAX: usize = 1024;
/// Separates a provider's name from that of its service. No machine's name has an underscore.
const SEPARATOR: &str = "__";
/// Maximum length of a tool's name that all clients can use, in characters.
pub(crate) const TOOL_NAME_SAFE: usize = 48;
/// The interval of this process's own reports of progress: none are made, because the provider reports.
const NO_REPORTS: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// Instructions for a client's model about this server.
const INSTRUCTIONS: &str = "Tools that other machines offer to this one. \
    A name of the form PROVIDER__SERVICE says which machine runs the tool.";

/// Opens a connection to a provider; the error says why there is none.
pub(crate) type OpenProvider =
    Box<dyn Fn(String) -> BoxFuture<'static, Result<OpenTransport, String>> + Send + Sync>;

/// The providers of a gateway.
pub(crate) enum Providers {
    /// All of the machine, by a function that returns their names at any time.
    All(Box<dyn Fn() -> Result<Vec<String>, String> + Send + Sync>),
    /// One, whose services have their own names.
    One(String),
}

/// A gateway for one client.
pub(crate) struct Gateway {
    pub(crate) providers: Providers,
    pub(crate) open: OpenProvider,
    pub(crate) timeouts: Timeouts,
    /// Tells a person why a provider is missing from the list.
    pub(crate) report: Box<dyn Fn(&str) + Send + Sync>,
    /// The folder whose files stand for content in base64; `None`: content is passed as it is.
    pub(crate) files: Option<Arc<FileFolder>>,
}

impl Gateway {
    /// Serves a client until its input has ended and all requests are answered, within a day.
    pub(crate) async fn serve<R, W>(self, reader: R, writer: W)
    where
        R: AsyncRead + Send + Unpin + 'static,
        W: AsyncWrite + Send + Unpin + 'static,
    {
        let flight = Arc::new(InFlightRequests::default());
        let limits = ConnectionLimits {
            drain: CALL_MAX,
            in_flight: IN_FLIGHT_MAX,
            ..ConnectionLimits::DEFAULT
        };
        let rules = TransportRules {
            limits,
            throttle: None,
            answers_once: false,
            write_idle: Duration::MAX,
            write_max: Duration::MAX,
            listed: Box::new(|| 0),
            observer: Arc::new(|_| ()),
        };
        let stop = Shutdown::default();
        let immediate = stop.immediate.clone();
        let max_line = LineLimit::from(limits.line);
        let ended = CancellationToken::new();
        let flight_of_transport = Arc::clone(&flight);
        let transport =
            ServerTransport::new(reader, writer, flight_of_transport, max_line, rules, stop);
        let service = PanicGuard(GatewayHandler {
            gateway: Arc::new(self),
            flight,
            looks: Arc::default(),
            era: Era::default(),
            places: Mutex::default(),
            ended: ended.clone(),
        });
        let _ended = ended.drop_guard();
        let running = rmcp::service::serve_directly_with_ct(service, transport, None, immediate);
        let _ = running.waiting().await;
    }

    /// Returns the provider and the service that a tool's name stands for.
    fn resolve<'a>(&'a self, tool: &'a str) -> Option<(&'a str, &'a str)> {
        match &self.providers {
            Providers::All(_) => tool.split_once(SEPARATOR),
            Providers::One(provider) => Some((provider, tool)),
        }
    }

    /// Lists the tools of all providers that answer in time; also returns the names of the others.
    async fn list(&self) -> Result<(Vec<Value>, Vec<String>), ErrorData> {
        let names = match &self.providers {
            Providers::All(names) => names().map_err(|why| ErrorData::internal_error(why, None))?,
            Providers::One(name) => vec![name.clone()],
        };
        let lists = names.into_iter().map(async |name| {
            let listing = timeout(LIST_MAX, self.list_of(&name)).await;
            let silent = || format!("no answer within {} s", LIST_MAX.as_secs());
            (name, listing.unwrap_or_else(|_| Err(silent())))
        });
        let (mut tools, mut missing) = (Vec::new(), Vec::new());
        for (name, listed) in join_all(lists).await {
            match (listed, &self.providers) {
                (Ok(listed), Providers::All(_)) => {
                    tools.extend(listed.into_iter().map(|tool| with_provider(&name, tool)));
                }
                (Ok(listed), Providers::One(_)) => tools = listed,
                (Err(why), Providers::One(_)) => {
                    return Err(ErrorData::internal_error(unreachable(&name, &why), None));
                }
                // The other providers are still listed.
                (Err(why), Providers::All(_)) => {
                    (self.report)(&format!("the tools of `{name}` are not listed: {why}"));
                    missing.push(name);
                }
            }
        }
        Ok((tools, missing))
    }

    /// Waits until one of these providers answers.
    async fn wait_for_one(&self, names: &[String]) {
        loop {
            sleep(LOOK_INTERVAL).await;
            for name in names {
                if let Ok(Ok(_)) = timeout(LIST_MAX, self.list_of(name)).await {
                    return;
                }
            }
        }
    }

    async fn list_of(&self, name: &str) -> Result<Vec<Value>, String> {
        let mut provider = Provider::connect(self, name).await?;
        let listed = provider.list().await;
        provider.end().await;
        let mut listed = listed.map_err(|why| why.to_string())?;
        let mut names = HashSet::new();
        listed.retain(|tool| {
            // One that a client refuses would cost it the tools of all providers.
            let name = tool.get("name").and_then(Value::as_str);
            let name = name.and_then(|name| name.parse::<ServiceName>().ok());
            name.is_some_and(|name| names.insert(name)) && has_schemas(tool)
        });
        let bytes: usize = listed.iter().map(|tool| tool.to_string().len()).sum();
        if bytes > LIST_BYTES_MAX {
            return Err(format!(
                "its list has {bytes} bytes; at most {LIST_BYTES_MAX} are passed on"
            ));
        }
        if let Some(files) = &self.files {
            for tool in &mut listed {
                files.describe(name, tool);
            }
        }
        Ok(listed)
    }

    /// Makes a call.
    async fn call(
        &self,
        (name, service): (&str, &str),
        arguments: Map<String, Value>,
        progress: Option<ProgressSink>,
    ) -> Result<AnswerResult, ErrorData> {
        let mut provider = match Box::pin(Provider::connect(self, name)).await {
            Ok(provider) => provider,
            Err(why) => return Ok(failed(unreachable(name, &why)).into()),
        };
        provider.report_progress(progress);
        let answer = Box::pin(provider.call(service, arguments)).await;
        provider.end().await;
        answer
    }
}

/// Returns whether a tool's schemas are those of objects, as MCP requires.
fn has_schemas(tool: &Value) -> bool {
    let is_object = |schema: &Value| schema.get("type").is_some_and(|kind| kind == "object");
    tool.get("inputSchema").is_some_and(is_object) && tool.get("outputSchema").is_none_or(is_object)
}

fn unreachable(provider: &str, why: &str) -> String {
    format!("cannot reach `{}`: {why}", shown(provider))
}

/// Returns the name under which a provider's service is called here.
pub(crate) fn tool_name(provider: &str, service: &str) -> String {
    format!("{provider}{SEPARATOR}{service}")
}

/// Gives a listed tool its name here.
fn with_provider(provider: &str, mut tool: Value) -> Value {
    let name = tool.get("name").and_then(Value::as_str).unwrap_or_default();
    let name = tool_name(provider, name);
    if let Some(tool) = tool.as_object_mut() {
        tool.insert("name".to_owned(), name.into());
    }
    tool
}

/// Handles a client's requests.
struct GatewayHandler {
    gateway: Arc<Gateway>,
    /// True while a task looks for providers that were missing from the list.
    looks: Arc<AtomicBool>,
    flight: Arc<InFlightRequests>,
    era: Era,
    /// The places for calls to each provider.
    places: Mutex<HashMap<String, Arc<Semaphore>>>,
    /// Cancelled when the client is gone.
    ended: CancellationToken,
}

impl GatewayHandler {
    async fn call(
        &self,
        params: CallToolRequestParams,
        context: &RequestContext<RoleServer>,
    ) -> Result<ServerResult, ErrorData> {
        self.era.check(context)?;
        let Some(target) = self.gateway.resolve(&params.name) else {
            let text = format!("Unknown tool: {}", shown(&params.name));
            return Err(ErrorData::invalid_params(text, None));
        };
        let progress = CallProgress {
            context,
            name: &params.name,
            since: Instant::now(),
            interval: NO_REPORTS,
            is_reported: AtomicBool::new(false),
        };
        // The semaphore is never closed.
        let places = self.places_of(target.0);
        let _place = progress.wait_for(places.acquire()).await?;
        let arguments = params.arguments.clone().unwrap_or_default();
        let calling = progress.passing_on(|sink| self.gateway.call(target, arguments, sink));
        let answer = progress.wait_for(calling).await??;
        Ok(answer.into_result(is_modern(context.protocol_version())))
    }

    /// Returns the places for calls to a provider; forgets those of others that have no call.
    fn places_of(&self, provider: &str) -> Arc<Semaphore> {
        let mut places = self.places.lock().unwrap_or_else(PoisonError::into_inner);
        places.retain(|_, places| Arc::strong_count(places) > 1);
        let places = places.entry(provider.to_owned());
        let new = || Arc::new(Semaphore::new(CALLS_MAX));
        Arc::clone(places.or_insert_with(new))
    }

    async fn list(
        &self,
        request: Option<&PaginatedRequestParams>,
        context: &RequestContext<RoleServer>,
    ) -> Result<ServerResult, ErrorData> {
        self.era.check(context)?;
        check_cursor(request)?;
        let (tools, missing) = self.gateway.list().await?;
        if !missing.is_empty() && !self.looks.swap(true, Ordering::Relaxed) {
            let (gateway, looks) = (Arc::clone(&self.gateway), Arc::clone(&self.looks));
            let (peer, ended) = (context.peer.clone(), self.ended.clone());
            tokio::spawn(async move {
                tokio::select! {
                    () = gateway.wait_for_one(&missing) => {}
                    () = ended.cancelled() => return,
                }
                looks.store(false, Ordering::Relaxed);
                // If the client is gone, nobody wants to know.
                let _ = peer.notify_tool_list_changed().await;
            });
        }
        let result = if is_modern(context.protocol_version()) {
            // The list is private to this client and may change at any time.
            json!({"tools": tools, "resultType": "complete", "ttlMs": 0, "cacheScope": "private"})
        } else {
            json!({"tools": tools})
        };
        Ok(ServerResult::CustomResult(CustomResult::new(result)))
    }
}

impl ServerHandler for GatewayHandler {
    fn get_info(&self) -> ServerConfig {
        ServerConfig::new(
            ServerCapabilities::builder()
                .enable_tools()
                .enable_tool_list_changed()
                .build(),
        )
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

    async fn on_custom_request(
        &self,
        request: CustomRequest,
        context: RequestContext<RoleServer>,
    ) -> Result<CustomResult, ErrorData> {
        Err(refuse_unknown(&request, &context))
    }
}

impl RequestHandler for GatewayHandler {
    fn flight(&self) -> &InFlightRequests {
        &self.flight
    }

    async fn answer(
        &self,
        request: ClientRequest,
        context: RequestContext<RoleServer>,
    ) -> Result<ServerResult, ErrorData> {
        match request {
            ClientRequest::CallToolRequest(call) => {
                Box::pin(self.call(call.params, &context)).await
            }
            ClientRequest::ListToolsRequest(list) => {
                Box::pin(self.list(list.params.as_ref(), &context)).await
            }
            request => self.handle_request(request, context).await,
        }
    }
}
