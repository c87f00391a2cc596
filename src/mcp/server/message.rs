//! Parses a line into a request. A fault becomes a request that is answered with the error, so that every answer
//! takes the same path.

use rmcp::ErrorData;
use rmcp::model::{
    CallToolRequest, CallToolRequestParams, ClientCapabilities, ClientRequest, CustomRequest,
    DiscoverRequest, DiscoverRequestParams, ErrorCode, GetExtensions as _, Implementation,
    InitializeRequest, InitializeRequestParams, ListToolsRequest, MetaObject,
    PaginatedRequestParams, PingRequest, ProtocolVersion, RequestId, RequestMetaObject,
};
use serde::Deserialize as _;
use serde_json::{Map, Value};

use crate::mcp::framing::Line;
use crate::mcp::framing::json::{self, JsonFault};
use crate::mcp::{ID_MAX, shown};

/// The content of a line.
#[derive(Debug)]
pub(super) enum ClientMessage {
    Request(Box<AskedRequest>),
    /// The answer to this request is no longer wanted.
    Cancelled(RequestId),
    /// Nothing to answer: a blank line, a notification, or an answer to a request that was never made.
    Nothing,
}

/// A request to answer.
#[derive(Debug)]
pub(super) struct AskedRequest {
    /// The client's id; if it is missing, the answer has none either.
    pub(super) id: Option<RequestId>,
    /// The method and, for a call, its tool; escaped and limited in length.
    pub(super) label: String,
    /// A refused request is a [`CustomRequest`] that carries its [`ErrorData`].
    pub(super) request: ClientRequest,
}

/// Parses a line that was read with a limit of `max` bytes.
pub(super) fn read(line: &Line, max: usize) -> ClientMessage {
    match line {
        Line::Whole(bytes) => read_whole(json::trim(bytes)),
        Line::TooLong { head, tail, bytes } => invalid(
            json::find_id(head, tail),
            &format!("a message can have at most {max} bytes; this one has {bytes}"),
        ),
    }
}

fn read_whole(bytes: &[u8]) -> ClientMessage {
    if bytes.is_empty() {
        return ClientMessage::Nothing;
    }
    match json::read(bytes) {
        Ok(Value::Object(message)) => read_message(message),
        Ok(Value::Array(_)) => invalid(
            None,
            "MCP does not support batches; send one message per line",
        ),
        Ok(_) => invalid(None, "a message must be a JSON object"),
        Err(JsonFault::Syntax(fault)) => ClientMessage::Request(refused(
            json::find_id_in(bytes),
            "",
            ErrorData::parse_error(format!("not JSON: {fault}"), None),
        )),
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
        return invalid(known, "`method` is not a string");
    };
    let params = message.remove("params");
    match (id, known) {
        (None, _) => read_notification(&method, params.as_ref()),
        (Some(_), Some(id)) => read_request(id, &method, params),
        (Some(_), None) => invalid(
            None,
            &format!("`id` is not a string of at most {ID_MAX} bytes or a 64-bit integer"),
        ),
    }
}

/// Reads a notification; only a cancellation has any effect here.
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
    ClientMessage::Request(match request {
        Ok(request) => Box::new(AskedRequest {
            id: Some(id),
            label,
            request,
        }),
        Err(error) => refused(Some(id), &label, error),
    })
}

/// Separates `_meta` from the other members of `params`.
fn read_params(
    params: Option<Value>,
) -> Result<(Map<String, Value>, RequestMetaObject), ErrorData> {
    let mut params = object(params, "params")?;
    let meta = object(params.remove("_meta"), "_meta")?;
    // Each progress report repeats the token, so its length is limited like an id's.
    let is_token = |token: &Value| token.is_null() || json::as_id(token).is_some();
    if !meta.get("progressToken").is_none_or(is_token) {
        return Err(bad_params(format!(
            "`progressToken` is not a string of at most {ID_MAX} bytes or a 64-bit integer"
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
        "ping" if !is_modern(meta.protocol_version()) => {
            ClientRequest::PingRequest(PingRequest::default())
        }
        "tools/list" => ClientRequest::ListToolsRequest(read_list(&params)?),
        "tools/call" => ClientRequest::CallToolRequest(read_call(params)?),
        // An unknown method keeps its `_meta`, so that an unsupported version is reported first.
        _ => ClientRequest::CustomRequest(CustomRequest::new(method, None)),
    };
    request.extensions_mut().insert(meta);
    Ok(request)
}

/// Returns whether this is a version of the stateless protocol.
pub(in crate::mcp) fn is_modern(version: Option<ProtocolVersion>) -> bool {
    version.is_some_and(|version| !version.has_initialize())
}

/// Checks the members and keeps only the version: a client's description of itself may have any length.
fn read_initialize(params: &Map<String, Value>) -> Result<InitializeRequestParams, ErrorData> {
    /// Maximum length of a version, in bytes; all existing ones have ten.
    const VERSION_MAX: usize = 64;
    let version = member(params, "protocolVersion", Value::is_string, "a string")?;
    member(params, "capabilities", Value::is_object, "an object")?;
    let client = member(params, "clientInfo", Value::is_object, "an object")?;
    if let Value::Object(client) = client {
        member(client, "name", Value::is_string, "a string")?;
        member(client, "version", Value::is_string, "a string")?;
    }
    if version.as_str().is_some_and(|it| it.len() > VERSION_MAX) {
        return Err(bad_params(format!(
            "`protocolVersion` has more than {VERSION_MAX} bytes"
        )));
    }
    let version = ProtocolVersion::deserialize(version);
    let version = version.map_err(|fault| bad_params(fault.to_string()))?;
    let nobody = Implementation::new("", "");
    let params = InitializeRequestParams::new(ClientCapabilities::default(), nobody);
    Ok(params.with_protocol_version(version))
}

/// Returns a required member of the right type.
fn member<'a>(
    object: &'a Map<String, Value>,
    name: &str,
    fits: fn(&Value) -> bool,
    kind: &str,
) -> Result<&'a Value, ErrorData> {
    match object.get(name) {
        None => Err(bad_params(format!("`{name}` is missing"))),
        Some(value) if fits(value) => Ok(value),
        Some(_) => Err(bad_params(format!("`{name}` is not {kind}"))),
    }
}

/// Returns an optional object member, or an empty object if it is missing.
fn object(value: Option<Value>, name: &str) -> Result<Map<String, Value>, ErrorData> {
    match value {
        None | Some(Value::Null) => Ok(Map::new()),
        Some(Value::Object(members)) => Ok(members),
        Some(_) => Err(bad_params(format!("`{name}` is not an object"))),
    }
}

fn read_list(params: &Map<String, Value>) -> Result<ListToolsRequest, ErrorData> {
    match params.get("cursor") {
        None | Some(Value::Null) => Ok(ListToolsRequest::default()),
        Some(Value::String(cursor)) => Ok(ListToolsRequest::with_param(
            PaginatedRequestParams::default().with_cursor(Some(cursor.clone())),
        )),
        Some(_) => Err(bad_params("`cursor` is not a string")),
    }
}

fn read_call(mut params: Map<String, Value>) -> Result<CallToolRequest, ErrorData> {
    let name = match params.remove("name") {
        Some(Value::String(name)) => name,
        Some(_) => return Err(bad_params("`name` is not a string")),
        None => return Err(bad_params("`name` is missing: the tool to call")),
    };
    let arguments = object(params.remove("arguments"), "arguments")?;
    Ok(CallToolRequest::new(
        CallToolRequestParams::new(name).with_arguments(arguments),
    ))
}

fn bad_params(message: impl Into<std::borrow::Cow<'static, str>>) -> ErrorData {
    ErrorData::invalid_params(message, None)
}

/// Builds the error for an unknown method.
pub(super) fn unknown_method(method: &str) -> ErrorData {
    let text = format!("method not found: {}", shown(method));
    ErrorData::new(ErrorCode::METHOD_NOT_FOUND, text, None)
}

fn invalid(id: Option<RequestId>, fault: &str) -> ClientMessage {
    let error = ErrorData::invalid_request(format!("invalid request: {fault}"), None);
    ClientMessage::Request(refused(id, "", error))
}

/// Builds a request that is answered with `error` and nothing else.
pub(super) fn refused(id: Option<RequestId>, label: &str, error: ErrorData) -> Box<AskedRequest> {
    let mut request = CustomRequest::new("", None);
    request.extensions.insert(error);
    let label = if label.is_empty() {
        "a message that cannot be read"
    } else {
        label
    };
    Box::new(AskedRequest {
        id,
        label: label.to_owned(),
        request: ClientRequest::CustomRequest(request),
    })
}
