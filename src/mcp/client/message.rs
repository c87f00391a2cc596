//! JSON-RPC as a client writes and reads it.

use rmcp::model::ErrorData;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::value::RawValue;

/// A message of the server's, its parts unparsed. A key that is there twice is no message.
#[derive(Debug, Deserialize)]
pub(super) struct ServerMessage<'a> {
    #[serde(borrow)]
    jsonrpc: Option<&'a RawValue>,
    #[serde(borrow)]
    id: Option<&'a RawValue>,
    #[serde(borrow)]
    method: Option<&'a RawValue>,
    #[serde(borrow)]
    params: Option<&'a RawValue>,
    #[serde(borrow, default, deserialize_with = "there")]
    result: Option<&'a RawValue>,
    #[serde(borrow)]
    error: Option<&'a RawValue>,
}

/// A value that is there, `null` too: as an answer that is not the same as none.
fn there<'de, D: Deserializer<'de>>(from: D) -> Result<Option<&'de RawValue>, D::Error> {
    Deserialize::deserialize(from).map(Some)
}

/// The meaning of a message for the request in flight.
#[derive(Debug)]
pub(super) enum Meaning {
    /// Its result.
    Result(Box<RawValue>),
    /// Its error; also an error that names no request, as there is one in flight only.
    Error(Box<RawValue>),
    /// Its progress.
    Progress,
    /// A request of the server's own, which waits for this reply.
    Asked(String),
    /// An answer to it that is neither; why.
    Malformed(&'static str),
    /// Nothing.
    Foreign,
}

#[derive(Serialize)]
struct OutgoingRequest<'a, P> {
    jsonrpc: &'static str,
    id: i64,
    method: &'a str,
    params: Params<'a, P>,
}

/// The parameters, and the token under which progress is reported.
#[derive(Serialize)]
struct Params<'a, P> {
    #[serde(rename = "_meta")]
    meta: Meta,
    #[serde(flatten)]
    params: &'a P,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Meta {
    progress_token: i64,
    /// See [`crate::mcp::ONE_COPY_KEY`].
    #[serde(
        rename = "anklume/one_copy",
        skip_serializing_if = "std::ops::Not::not"
    )]
    one_copy: bool,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ProgressParams<'a> {
    #[serde(borrow)]
    progress_token: &'a RawValue,
}

/// A request as one line, without its newline; `one_copy`: a large payload is wanted in the text of the result alone.
pub(super) fn request(
    id: i64,
    method: &str,
    params: &impl Serialize,
    one_copy: bool,
) -> serde_json::Result<Vec<u8>> {
    serde_json::to_vec(&OutgoingRequest {
        jsonrpc: "2.0",
        id,
        method,
        params: Params {
            meta: Meta {
                progress_token: id,
                one_copy,
            },
            params,
        },
    })
}

/// A notification without parameters as one line, without its newline.
pub(super) fn notification(method: &'static str) -> String {
    format!(r#"{{"jsonrpc":"2.0","method":"{method}"}}"#)
}

/// The reason why a line is no message.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum NoMessage {
    /// It ends too early, as the last one of a server that died.
    Cut,
    /// It is something else.
    Other,
}

/// Reads a line.
pub(super) fn read(line: &[u8]) -> Result<ServerMessage<'_>, NoMessage> {
    // A text that is no object would be quoted whole.
    if line.trim_ascii_start().first() == Some(&b'"') {
        return Err(NoMessage::Other);
    }
    let message: ServerMessage<'_> = serde_json::from_slice(line).map_err(|why| {
        if why.is_eof() {
            NoMessage::Cut
        } else {
            NoMessage::Other
        }
    })?;
    match message.jsonrpc {
        Some(version) if version.get() == r#""2.0""# => Ok(message),
        _ => Err(NoMessage::Other),
    }
}

impl ServerMessage<'_> {
    /// Returns the meaning of the message while request `id` is in flight.
    pub(super) fn meaning(&self, id: i64) -> Meaning {
        let ours = self.id.is_some_and(|it| it.get() == id.to_string());
        match (self.method, self.id, self.result, self.error) {
            (Some(method), Some(asked), ..) => Meaning::Asked(reply(method, asked)),
            (Some(method), None, ..) if self.is_progress(method, id) => Meaning::Progress,
            // Some servers say what there is not as `null`; of an error that is no harm.
            (None, Some(_), Some(result), Some(error)) if ours && result.get() == "null" => {
                Meaning::Error(error.to_owned())
            }
            (None, Some(_), Some(result), None) if ours && result.get() == "null" => {
                Meaning::Malformed("its `result` is null")
            }
            (None, Some(_), Some(result), None) if ours => Meaning::Result(result.to_owned()),
            (None, Some(_), None, Some(error)) if ours => Meaning::Error(error.to_owned()),
            (None, Some(_), Some(_), Some(_)) if ours => {
                Meaning::Malformed("it has both `result` and `error`")
            }
            (None, Some(_), None, None) if ours => {
                Meaning::Malformed("it has neither `result` nor `error`")
            }
            (None, None, None, Some(error)) => Meaning::Error(error.to_owned()),
            _ => Meaning::Foreign,
        }
    }

    fn is_progress(&self, method: &RawValue, id: i64) -> bool {
        let params = self.params.map_or("", RawValue::get);
        method.get() == r#""notifications/progress""#
            && params.starts_with('{')
            && serde_json::from_str::<ProgressParams<'_>>(params)
                .is_ok_and(|progress| progress.progress_token.get() == id.to_string())
    }
}

/// The reply to a server's request: `ping` is answered, everything else is not offered.
fn reply(method: &RawValue, id: &RawValue) -> String {
    /// Maximum length of an id that is given back, in bytes.
    const ID_MAX: usize = 256;
    let id = id.get();
    if id.len() > ID_MAX {
        r#"{"jsonrpc":"2.0","error":{"code":-32600,"message":"`id` has more than 256 bytes"}}"#
            .to_owned()
    } else if method.get() == r#""ping""# {
        format!(r#"{{"jsonrpc":"2.0","id":{id},"result":{{}}}}"#)
    } else {
        format!(
            r#"{{"jsonrpc":"2.0","id":{id},"error":{{"code":-32601,"message":"this client offers nothing"}}}}"#
        )
    }
}

/// The words and code of an error; a malformed one still is an error.
pub(super) fn refusal(error: &RawValue) -> ErrorData {
    serde_json::from_str(error.get())
        .unwrap_or_else(|_| ErrorData::internal_error("an error without code or message", None))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn meaning(line: &str) -> String {
        read(line.as_bytes()).map_or_else(
            |why| format!("no message: {why:?}"),
            |message| match message.meaning(3) {
                Meaning::Result(raw) => format!("result {}", raw.get()),
                Meaning::Error(raw) => format!("error {}", raw.get()),
                Meaning::Progress => "progress".to_owned(),
                Meaning::Asked(reply) => format!("asked {reply}"),
                Meaning::Malformed(why) => format!("malformed: {why}"),
                Meaning::Foreign => "foreign".to_owned(),
            },
        )
    }

    #[test]
    fn only_the_answer_to_the_request_in_flight_is_taken() {
        let cases = [
            (r#"{"jsonrpc":"2.0","id":3,"result":{}}"#, "result {}"),
            (
                r#"{"jsonrpc":"2.0","id":3,"error":{"code":1}}"#,
                r#"error {"code":1}"#,
            ),
            (r#"{"jsonrpc":"2.0","id":null,"error":{}}"#, "error {}"),
            (r#"{"jsonrpc":"2.0","error":{}}"#, "error {}"),
            (r#"{"jsonrpc":"2.0","id":2,"result":{}}"#, "foreign"),
            (r#"{"jsonrpc":"2.0","id":"3","result":{}}"#, "foreign"),
            (r#"{"jsonrpc":"2.0","id":3.0,"result":{}}"#, "foreign"),
            (
                r#"{"jsonrpc":"2.0","id":3}"#,
                "malformed: it has neither `result` nor `error`",
            ),
            (
                r#"{"jsonrpc":"2.0","id":3,"result":null}"#,
                "malformed: its `result` is null",
            ),
            (
                r#"{"jsonrpc":"2.0","id":3,"error":null}"#,
                "malformed: it has neither `result` nor `error`",
            ),
            (
                r#"{"jsonrpc":"2.0","id":3,"result":null,"error":{"code":1}}"#,
                r#"error {"code":1}"#,
            ),
            (r#"{"jsonrpc":"2.0","id":2,"result":null}"#, "foreign"),
            (r#"{"jsonrpc":"2.0","result":{}}"#, "foreign"),
            (
                r#"{"jsonrpc":"2.0","id":3,"result":{},"error":{}}"#,
                "malformed: it has both `result` and `error`",
            ),
            (
                r#"{"jsonrpc":"2.0","method":"notifications/progress","params":{"progressToken":3,"progress":1}}"#,
                "progress",
            ),
            (
                r#"{"jsonrpc":"2.0","method":"notifications/progress","params":{"progressToken":2,"progress":1}}"#,
                "foreign",
            ),
            (
                r#"{"jsonrpc":"2.0","method":"notifications/message"}"#,
                "foreign",
            ),
            (
                r#"{"jsonrpc":"2.0","id":"a","method":"ping"}"#,
                r#"asked {"jsonrpc":"2.0","id":"a","result":{}}"#,
            ),
            (
                r#"{"jsonrpc":"1.0","id":3,"result":{}}"#,
                "no message: Other",
            ),
            (r#"{"id":3,"result":{}}"#, "no message: Other"),
            (
                r#"{"jsonrpc":"2.0","id":3,"id":3,"result":{}}"#,
                "no message: Other",
            ),
            (
                r#"[{"jsonrpc":"2.0","id":3,"result":{}}]"#,
                "no message: Other",
            ),
            ("hello", "no message: Other"),
            ("{\"jsonrpc\":\"2.0\",\"id\":3,\"resu", "no message: Cut"),
        ];
        for (line, expected) in cases {
            assert_eq!(meaning(line), expected, "{line}");
        }
    }
}
