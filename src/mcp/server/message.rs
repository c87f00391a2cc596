//! From a line to what it asks for; whatever is wrong with it becomes a request that is answered with the error,
//! so that one way out carries every answer.
//!
//! Nothing here runs or decides anything.

use rmcp::ErrorData;
use rmcp::model::{
    CallToolRequest, CallToolRequestParams, ClientCapabilities, ClientRequest, CustomRequest,
    DiscoverRequest, DiscoverRequestParams, ErrorCode, Extensions, GetExtensions as _,
    Implementation, InitializeRequest, InitializeRequestParams, ListToolsRequest, MetaObject,
    PaginatedRequestParams, PingRequest, ProtocolVersion, RequestId, RequestMetaObject,
};
use serde_json::{Map, Value};

use crate::mcp::framing::Line;
use crate::mcp::framing::json::{self, JsonFault};
use crate::mcp::{ID_MAX, shown};

/// The request in a line.
#[derive(Debug)]
pub(super) enum ClientMessage {
    /// Something to answer.
    Request(Box<AskedRequest>),
    /// The answer to this request is no longer wanted.
    Cancelled(RequestId),
    /// Nothing to answer: a blank line, a notification, an answer to a question that was never put.
    Nothing,
}

/// Something to answer.
#[derive(Debug)]
pub(super) struct AskedRequest {
    /// The client's id; without one the answer has none.
    pub(super) id: Option<RequestId>,
    /// The request, escaped and bounded: a method, and the tool of a call.
    pub(super) label: String,
    /// The request; a refused one is a [`CustomRequest`] that carries its [`ErrorData`].
    pub(super) request: ClientRequest,
}

/// Reads a line that was read with a limit of `max` bytes.
pub(super) fn read(line: &Line, max: usize) -> ClientMessage {
    match line {
        Line::Whole(bytes) => read_whole(json::trim(bytes)),
        Line::TooLong { head, tail, bytes } => refused(
            json::find_id(head, tail),
            "",
            ErrorData::invalid_request(
                format!("invalid request: a message has at most {max} bytes, this one has {bytes}"),
                None,
            ),
        ),
    }
}

fn read_whole(bytes: &[u8]) -> ClientMessage {
    if bytes.is_empty() {
        return ClientMessage::Nothing;
    }
    match json::read(bytes) {
        Ok(Value::Object(message)) => read_message(message),
        Ok(Value::Array(_)) => invalid(None, "batches are no part of MCP; send one message a line"),
        Ok(_) => invalid(None, "a message is a JSON object"),
        Err(JsonFault::Syntax(fault)) => refused(
            json::find_id_in(bytes),
            "",
            ErrorData::parse_error(format!("not JSON: {fault}"), None),
        ),
        Err(JsonFault::Refused(fault)) => invalid(json::find_id_in(bytes), &fault),
    }
}

fn read_message(mut message: Map<String, Value>) -> ClientMessage {
    let id = message.remove("id");
    let known = id.as_ref().and_then(json::as_id);
    if message.get("jsonrpc").and_then(Value::as_str) != Some("2.0") {
        return invalid(known, "`jsonrpc` is not \"2.0\"");
    }
    let Some(method) = message.remove("method") else {
        let answer = message.contains_key("result") || message.contains_key("error");
        return if answer {
            ClientMessage::Nothing
        } else {
            invalid(known, "`method` is missing")
        };
    };
    let Value::String(method) = method else {
        return invalid(known, "`method` is not a text");
    };
    let params = message.remove("params");
    match (id, known) {
        (None, _) => read_notification(&method, params.as_ref()),
        (Some(_), Some(id)) => read_request(id, &method, params),
        (Some(_), None) => invalid(
            None,
            &format!("`id` is not a text of at most {ID_MAX} bytes or an integer of 64 bits"),
        ),
    }
}

/// Of all notifications only a cancellation changes anything here.
fn read_notification(method: &str, params: Option<&Value>) -> ClientMessage {
    if method != "notifications/cancelled" {
        return ClientMessage::Nothing;
    }
    let id = params.and_then(|params| params.get("requestId"));
    id.and_then(json::as_id)
        .map_or(ClientMessage::Nothing, ClientMessage::Cancelled)
}

fn read_request(id: RequestId, method: &str, params: Option<Value>) -> ClientMessage {
    let mut label = shown(method);
    let request = read_params(params).and_then(|(params, meta)| {
        if method == "tools/call"
            && let Some(Value::String(name)) = params.get("name")
        {
            label = format!("{label} {}", shown(name));
        }
        read_method(method, params, meta)
    });
    match request {
        Ok(request) => ClientMessage::Request(Box::new(AskedRequest {
            id: Some(id),
            label,
            request,
        })),
        Err(error) => refused(Some(id), &label, error),
    }
}

/// Takes `params` apart: the members, and `_meta` by itself.
fn read_params(
    params: Option<Value>,
) -> Result<(Map<String, Value>, RequestMetaObject), ErrorData> {
    let mut params = match params {
        None | Some(Value::Null) => Map::new(),
        Some(Value::Object(params)) => params,
        Some(_) => return Err(bad_params("`params` is not an object")),
    };
    let meta = match params.remove("_meta") {
        None | Some(Value::Null) => Map::new(),
        Some(Value::Object(meta)) => meta,
        Some(_) => return Err(bad_params("`_meta` is not an object")),
    };
    // Repeated in each report: one that is no id is no token either.
    let is_token = |token: &Value| token.is_null() || json::as_id(token).is_some();
    if !meta.get("progressToken").is_none_or(is_token) {
        return Err(bad_params(format!(
            "`progressToken` is not a text of at most {ID_MAX} bytes or an integer of 64 bits"
        )));
    }
    Ok((params, RequestMetaObject(MetaObject(meta))))
}

fn read_method(
    method: &str,
    params: Map<String, Value>,
    meta: RequestMetaObject,
) -> Result<ClientRequest, ErrorData> {
    let mut request = match method {
        "initialize" => {
            ClientRequest::InitializeRequest(InitializeRequest::new(read_initialize(&params)?))
        }
        "server/discover" => {
            ClientRequest::DiscoverRequest(DiscoverRequest::new(DiscoverRequestParams {}))
        }
        "ping" if !is_modern(&meta) => ClientRequest::PingRequest(PingRequest::default()),
        "tools/list" => ClientRequest::ListToolsRequest(read_list(&params)?),
        "tools/call" => ClientRequest::CallToolRequest(read_call(params)?),
        // Carries its own `_meta`, so that a version that nobody speaks is named first.
        _ => ClientRequest::CustomRequest(CustomRequest::new(method, None)),
    };
    extensions(&mut request).insert(meta);
    Ok(request)
}

/// Returns whether a request says that it belongs to the stateless era.
pub(super) fn is_modern(meta: &RequestMetaObject) -> bool {
    meta.protocol_version()
        .is_some_and(|version| !version.has_initialize())
}

/// Returns whether a version belongs to the stateless era.
pub(super) fn is_modern_version(version: Option<&ProtocolVersion>) -> bool {
    version.is_some_and(|version| !version.has_initialize())
}

/// Only the version is used, and nothing else is kept: a client may say of itself what it likes, as long as it likes.
fn read_initialize(params: &Map<String, Value>) -> Result<InitializeRequestParams, ErrorData> {
    /// Maximum length of a version, in bytes; each that there is has ten.
    const VERSION_MAX: usize = 64;
    let member =
        |of: &Map<String, Value>, name: &str, fits: fn(&Value) -> bool, kind: &str| match of
            .get(name)
        {
            None => Err(bad_params(format!("`{name}` is missing"))),
            Some(value) if fits(value) => Ok(()),
            Some(_) => Err(bad_params(format!("`{name}` is not {kind}"))),
        };
    member(params, "protocolVersion", Value::is_string, "a text")?;
    member(params, "capabilities", Value::is_object, "an object")?;
    member(params, "clientInfo", Value::is_object, "an object")?;
    if let Some(Value::Object(client)) = params.get("clientInfo") {
        member(client, "name", Value::is_string, "a text")?;
        member(client, "version", Value::is_string, "a text")?;
    }
    let version = params.get("protocolVersion").cloned().unwrap_or_default();
    if version
        .as_str()
        .is_some_and(|text| text.len() > VERSION_MAX)
    {
        return Err(bad_params(format!(
            "`protocolVersion` has more than {VERSION_MAX} bytes"
        )));
    }
    let version = serde_json::from_value(version).map_err(|fault| bad_params(fault.to_string()))?;
    let nobody = Implementation::new("", "");
    Ok(
        InitializeRequestParams::new(ClientCapabilities::default(), nobody)
            .with_protocol_version(version),
    )
}

fn read_list(params: &Map<String, Value>) -> Result<ListToolsRequest, ErrorData> {
    match params.get("cursor") {
        None | Some(Value::Null) => Ok(ListToolsRequest::default()),
        Some(Value::String(cursor)) => Ok(ListToolsRequest::with_param(
            PaginatedRequestParams::default().with_cursor(Some(cursor.clone())),
        )),
        Some(_) => Err(bad_params("`cursor` is not a text")),
    }
}

fn read_call(mut params: Map<String, Value>) -> Result<CallToolRequest, ErrorData> {
    let name = match params.remove("name") {
        Some(Value::String(name)) => name,
        Some(_) => return Err(bad_params("`name` is not a text")),
        None => return Err(bad_params("`name` is missing: the tool to call")),
    };
    let arguments = match params.remove("arguments") {
        None | Some(Value::Null) => Map::new(),
        Some(Value::Object(arguments)) => arguments,
        Some(_) => return Err(bad_params("`arguments` is not an object")),
    };
    Ok(CallToolRequest::new(
        CallToolRequestParams::new(name).with_arguments(arguments),
    ))
}

fn bad_params(message: impl Into<std::borrow::Cow<'static, str>>) -> ErrorData {
    ErrorData::invalid_params(message, None)
}

/// The error of a method that is not served.
pub(super) fn unknown_method(method: &str) -> ErrorData {
    ErrorData::new(
        ErrorCode::METHOD_NOT_FOUND,
        format!("method not found: {}", shown(method)),
        None,
    )
}

fn invalid(id: Option<RequestId>, fault: &str) -> ClientMessage {
    refused(
        id,
        "",
        ErrorData::invalid_request(format!("invalid request: {fault}"), None),
    )
}

/// A request that is answered with `error` and nothing else.
pub(super) fn refused(id: Option<RequestId>, label: &str, error: ErrorData) -> ClientMessage {
    let mut request = CustomRequest::new("", None);
    request.extensions.insert(error);
    ClientMessage::Request(Box::new(AskedRequest {
        id,
        label: if label.is_empty() {
            "a message that cannot be read".to_owned()
        } else {
            label.to_owned()
        },
        request: ClientRequest::CustomRequest(request),
    }))
}

fn extensions(request: &mut ClientRequest) -> &mut Extensions {
    request.extensions_mut()
}
