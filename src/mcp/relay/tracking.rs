//! Tracks the messages that pass through a relay: the answers due to the client, and the client's handshake.
//!
//! A request is answered under its id. JSON-RPC and our own server also answer any other line, such as invalid JSON:
//! under its id if that is readable, otherwise without an id or under `null`. Other servers often ignore such a line.
//! Notifications, and answers to a server's own requests, are not answered.

use std::collections::{HashMap, HashSet};

use rmcp::model::RequestId;
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::value::RawValue;
use serde_json::{Map, Value, json};

use crate::mcp::framing::Line;
use crate::mcp::framing::json::{self, ID_WRITTEN_MAX, JsonFault};

/// Maximum length of a kept handshake message, in bytes.
const HANDSHAKE_MAX: usize = 64 * 1024;

/// The answers that are still due.
///
/// Ids are normalized JSON text: a provider may write the same id differently.
#[derive(Debug, Default)]
pub(super) struct PendingAnswers {
    /// The ids that only one line uses, each with whether that line is a request.
    by_id: HashMap<String, bool>,
    /// Requests whose answers cannot be told apart: `null` may answer any of them.
    ambiguous_requests: usize,
    /// Other lines whose answers cannot be told apart.
    ambiguous_others: usize,
    /// The ids of both kinds of lines.
    ambiguous_ids: HashSet<String>,
}

/// The answer expected for a line.
#[derive(Debug, PartialEq, Eq)]
enum ExpectedAnswer {
    None,
    /// An answer under this id, or under `null` if the line or the id is invalid.
    ById {
        id: String,
        request: bool,
        or_null: bool,
    },
    /// An answer without an id.
    WithoutId,
    /// The answer to this request is no longer expected.
    Cancelled(String),
}

/// The members of an answer that identify its request.
#[derive(Debug, Deserialize)]
struct AnswerEnvelope<'a> {
    #[serde(borrow)]
    id: Option<&'a RawValue>,
    method: Option<IgnoredAny>,
    error: Option<IgnoredAny>,
}

impl PendingAnswers {
    /// Notes a line from the client.
    pub(super) fn sent(&mut self, line: &Line) {
        match expected_answer(line) {
            ExpectedAnswer::None => {}
            ExpectedAnswer::ById {
                id,
                request,
                or_null,
            } => self.add(id, request, or_null),
            ExpectedAnswer::WithoutId => self.ambiguous_others += 1,
            ExpectedAnswer::Cancelled(id) => self.settle(&id),
        }
    }

    /// Notes a line from the provider.
    pub(super) fn received(&mut self, line: &Line) {
        match line {
            Line::TooLong { head, tail, .. } => {
                if let Some(id) = json::find_id(head, tail) {
                    self.settle(&id_text(&id));
                }
            }
            Line::Whole(bytes) if !json::begins_object(bytes) => {}
            Line::Whole(bytes) => match serde_json::from_slice(json::trim(bytes)) {
                Ok(AnswerEnvelope {
                    id: Some(id),
                    method: None,
                    ..
                }) => self.settle(&normalized(id)),
                Ok(AnswerEnvelope {
                    id: None,
                    method: None,
                    error: Some(_),
                }) => self.settle_ambiguous(false),
                _ => {}
            },
        }
    }

    /// Returns whether no answer is due.
    pub(super) fn is_empty(&self) -> bool {
        self.count() == 0
    }

    /// Returns whether every request has been answered.
    pub(super) fn no_request(&self) -> bool {
        self.ambiguous_requests == 0 && self.by_id.values().all(|request| !request)
    }

    /// Returns the number of answers that are due.
    pub(super) fn count(&self) -> usize {
        self.by_id.len() + self.ambiguous_requests + self.ambiguous_others
    }

    /// Forgets every line that is waiting for an answer; returns the ids of the lines that have one, as JSON text.
    pub(super) fn give_up(&mut self) -> Vec<String> {
        let all = std::mem::take(self);
        all.by_id.into_keys().chain(all.ambiguous_ids).collect()
    }

    /// Notes a line with an id. An invalid line, or one whose id is already in flight, may be answered with `null`.
    fn add(&mut self, id: String, request: bool, or_null: bool) {
        let first = self.by_id.remove(&id);
        if first.is_none() && !or_null && !self.ambiguous_ids.contains(&id) {
            self.by_id.insert(id, request);
            return;
        }
        self.ambiguous_ids.insert(id);
        for request in first.into_iter().chain([request]) {
            if request {
                self.ambiguous_requests += 1;
            } else {
                self.ambiguous_others += 1;
            }
        }
    }

    /// Notes an answer under an id. An unexpected answer, such as one to a cancelled request, settles no other line.
    fn settle(&mut self, id: &str) {
        if self.by_id.remove(id).is_none() && self.ambiguous_ids.contains(id) {
            self.settle_ambiguous(true);
        }
    }

    /// Notes the answer to an ambiguous line; if both kinds are waiting, `request` selects the kind.
    fn settle_ambiguous(&mut self, request: bool) {
        let (requests, others) = (&mut self.ambiguous_requests, &mut self.ambiguous_others);
        let settled = match (*requests, *others) {
            (0, _) => others,
            (_, 0) => requests,
            _ if request => requests,
            _ => others,
        };
        *settled = settled.saturating_sub(1);
        if self.ambiguous_requests + self.ambiguous_others == 0 {
            self.ambiguous_ids.clear();
        }
    }
}

/// Returns the answer expected for a line, both from our own server and according to JSON-RPC.
fn expected_answer(line: &Line) -> ExpectedAnswer {
    let bytes = match line {
        Line::TooLong { head, tail, .. } => return by_id(json::find_id(head, tail), true, false),
        Line::Whole(bytes) => json::trim(bytes),
    };
    if bytes.is_empty() {
        return ExpectedAnswer::None;
    }
    match json::read(bytes) {
        Ok(Value::Object(message)) => expected_for(&message),
        Ok(_) => ExpectedAnswer::WithoutId,
        Err(JsonFault::Syntax(_)) => by_id(json::find_id_in(bytes), false, true),
        Err(JsonFault::Refused(_)) => by_id(json::find_id_in(bytes), false, false),
    }
}

fn by_id(id: Option<RequestId>, request: bool, or_null: bool) -> ExpectedAnswer {
    id.map_or(ExpectedAnswer::WithoutId, |id| ExpectedAnswer::ById {
        id: id_text(&id),
        request,
        or_null,
    })
}

fn expected_for(message: &Map<String, Value>) -> ExpectedAnswer {
    let version = message.get("jsonrpc").and_then(Value::as_str) == Some("2.0");
    let answers = message.contains_key("result") || message.contains_key("error");
    let id = message.get("id");
    let valid_id = id.and_then(json::as_id);
    match (message.get("method"), id) {
        (Some(Value::String(_)), Some(id)) if !id.is_null() => ExpectedAnswer::ById {
            id: id.to_string(),
            request: true,
            or_null: valid_id.is_none(),
        },
        (Some(Value::String(method)), None) if version => {
            let request = message.get("params").and_then(|all| all.get("requestId"));
            match request {
                Some(id) if method == "notifications/cancelled" => {
                    ExpectedAnswer::Cancelled(id.to_string())
                }
                _ => ExpectedAnswer::None,
            }
        }
        (None, _) if version && answers => ExpectedAnswer::None,
        _ => by_id(valid_id, false, false),
    }
}

/// Converts an id to JSON text.
fn id_text(id: &RequestId) -> String {
    id.clone().into_json_value().to_string()
}

/// Normalizes an id, for example by removing needless escapes; leaves an overlong id unchanged.
fn normalized(id: &RawValue) -> String {
    let short = Some(id.get()).filter(|id| id.len() <= ID_WRITTEN_MAX);
    let read = short.and_then(|id| serde_json::from_str::<Value>(id).ok());
    read.map_or_else(|| id.get().to_owned(), |value| value.to_string())
}

/// A client's handshake, to be repeated with a provider that came back.
#[derive(Debug, Default)]
pub(super) struct Handshake {
    /// The request that no provider has accepted yet.
    pending: Option<HandshakeRequest>,
    /// The last accepted request.
    accepted: Option<HandshakeRequest>,
    /// The notification after the request, as the client wrote it; empty until it arrives.
    pub(super) notification: Vec<u8>,
}

#[derive(Debug)]
struct HandshakeRequest {
    id: RequestId,
    /// As the client wrote it, with its newline.
    line: Vec<u8>,
}

impl Handshake {
    /// Returns the request that a provider has accepted, as the client wrote it.
    pub(super) fn request(&self) -> Option<&[u8]> {
        self.accepted.as_ref().map(|request| &*request.line)
    }

    /// Notes a message from the client.
    pub(super) fn sent(&mut self, line: &Line) {
        let Some((bytes, message)) = short_object(line) else {
            return;
        };
        let line = [bytes, &b"\n"[..]].concat();
        match message.get("method").and_then(Value::as_str) {
            Some("initialize") => {
                let id = message.get("id").and_then(json::as_id);
                self.pending = id.map(|id| HandshakeRequest { id, line });
            }
            Some("notifications/initialized") => self.notification = line,
            _ => {}
        }
    }

    /// Notes a message from the provider. Returns a replacement for the answer that accepts the handshake: it declares
    /// that the tool list may change, as it does when the provider comes back.
    pub(super) fn answered(&mut self, line: &Line) -> Option<Vec<u8>> {
        let pending = self.pending.as_ref()?;
        let (_, mut message) = short_object(line)?;
        if !accepts(&message, &pending.id)? {
            self.pending = None;
            return None;
        }
        self.accepted = self.pending.take();
        let result = message.get_mut("result")?.as_object_mut()?;
        let capabilities = result.get_mut("capabilities")?.as_object_mut()?;
        let tools = capabilities.get_mut("tools")?.as_object_mut()?;
        tools.insert("listChanged".to_owned(), json!(true));
        let mut changed = serde_json::to_vec(&message).ok()?;
        changed.push(b'\n');
        Some(changed)
    }

    /// Returns whether a provider that came back accepts the handshake; `None` for any other message.
    pub(super) fn is_accepted(&self, line: &Line) -> Option<bool> {
        let (_, message) = short_object(line)?;
        accepts(&message, &self.accepted.as_ref()?.id)
    }
}

/// Returns whether the answer to a request is a result; `None` for any other message.
fn accepts(message: &Map<String, Value>, id: &RequestId) -> Option<bool> {
    let answers = !message.contains_key("method")
        && message.get("id").and_then(json::as_id).as_ref() == Some(id);
    answers.then(|| message.contains_key("result"))
}

/// Parses an object that is short enough for a handshake.
fn short_object(line: &Line) -> Option<(&[u8], Map<String, Value>)> {
    match line {
        Line::Whole(bytes) if bytes.len() <= HANDSHAKE_MAX => {
            let message = json::read_object(json::trim(bytes)).ok()?;
            Some((bytes, message))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(text: &str) -> Line {
        Line::Whole(text.as_bytes().to_vec())
    }

    /// Counts the answers due after lines from the client (`>`) and from the provider (`<`).
    fn due_after(lines: &[&str]) -> usize {
        let mut due = PendingAnswers::default();
        for text in lines {
            match text.split_at(1) {
                (">", text) => due.sent(&line(text)),
                (_, text) => due.received(&line(text)),
            }
        }
        assert_eq!(due.is_empty(), due.count() == 0);
        due.count()
    }

    const NULL: &str = r#"<{"jsonrpc":"2.0","id":null,"error":{"code":-32700,"message":"x"}}"#;

    #[test]
    fn what_an_answer_is_owed_for() {
        let named = |id: &str, request, or_null| ExpectedAnswer::ById {
            id: id.to_owned(),
            request,
            or_null,
        };
        let request = |id: &str| named(id, true, false);
        let odd = |id: &str| named(id, true, true);
        let other = |id: &str| named(id, false, false);
        let cases = [
            ("", ExpectedAnswer::None),
            (" \t", ExpectedAnswer::None),
            ("nonsense", ExpectedAnswer::WithoutId),
            ("{\"id\":1,", named("1", false, true)),
            ("42", ExpectedAnswer::WithoutId),
            ("[]", ExpectedAnswer::WithoutId),
            (
                r#"[{"jsonrpc":"2.0","id":1,"method":"a"}]"#,
                ExpectedAnswer::WithoutId,
            ),
            ("{}", ExpectedAnswer::WithoutId),
            (r#"{"jsonrpc":"2.0","id":1,"method":"a"}"#, request("1")),
            (
                "\u{feff}{\"jsonrpc\":\"2.0\",\"id\":\"\\u00e9\",\"method\":\"a\"}",
                request("\"é\""),
            ),
            // Our own server refuses a request without a version, but under its id.
            (r#"{"id":1,"method":"a"}"#, request("1")),
            (r#"{"jsonrpc":"2.0","id":1.50,"method":"a"}"#, odd("1.5")),
            (r#"{"jsonrpc":"2.0","id":[],"method":"a"}"#, odd("[]")),
            (
                r#"{"jsonrpc":"2.0","id":null,"method":"a"}"#,
                ExpectedAnswer::WithoutId,
            ),
            (r#"{"jsonrpc":"2.0","id":1}"#, other("1")),
            (r#"{"jsonrpc":"2.0","id":1,"method":7}"#, other("1")),
            (
                r#"{"jsonrpc":"2.0","id":1,"id":2,"method":"a"}"#,
                other("1"),
            ),
            (r#"{"jsonrpc":"2.0","method":"a"}"#, ExpectedAnswer::None),
            (r#"{"method":"a"}"#, ExpectedAnswer::WithoutId),
            (
                r#"{"jsonrpc":"2.0","id":1,"result":{}}"#,
                ExpectedAnswer::None,
            ),
            (
                r#"{"jsonrpc":"2.0","id":1,"error":{}}"#,
                ExpectedAnswer::None,
            ),
            (r#"{"id":1,"result":{}}"#, other("1")),
            (
                r#"{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":"x"}}"#,
                ExpectedAnswer::Cancelled("\"x\"".to_owned()),
            ),
            (
                r#"{"jsonrpc":"2.0","method":"notifications/cancelled"}"#,
                ExpectedAnswer::None,
            ),
        ];
        for (text, expected) in cases {
            assert_eq!(expected_answer(&line(text)), expected, "{text}");
        }
        let endless = |head: &str| Line::TooLong {
            head: head.as_bytes().to_vec(),
            tail: Vec::new(),
            bytes: 1 << 30,
        };
        assert_eq!(
            expected_answer(&endless(r#"{"id":7,"method":"#)),
            request("7")
        );
        assert_eq!(
            expected_answer(&endless(r#"{"method":"#)),
            ExpectedAnswer::WithoutId
        );
    }

    #[test]
    fn an_answer_settles_what_it_answers_and_nothing_else() {
        let asked = r#">{"jsonrpc":"2.0","id":1,"method":"ping"}"#;
        let answer = r#"<{"jsonrpc":"2.0","id":1,"result":{}}"#;
        let take_back =
            r#">{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":1}}"#;
        let cases: [(&[&str], usize); 16] = [
            (&[asked], 1),
            (&[asked, answer], 0),
            (&[asked, NULL], 1),
            (&[asked, "<{\"id\":2,\"result\":{}}"], 1),
            // The provider's own request; its notification and meaningless lines.
            (
                &[asked, r#"<{"jsonrpc":"2.0","id":1,"method":"roots/list"}"#],
                1,
            ),
            (
                &[asked, r#"<{"jsonrpc":"2.0","method":"a"}"#, "<", "<{}"],
                1,
            ),
            (&[">nonsense", NULL], 0),
            (&[">{\"id\":1,", NULL], 0),
            (&[">{\"id\":1,", answer], 0),
            // Some servers omit the id of an error that answers no request.
            (&[">nonsense", r#"<{"error":{"code":-32700}}"#], 0),
            (&[asked, ">nonsense", answer], 1),
            (&[asked, ">nonsense", NULL], 1),
            // Two requests with one id: two answers, one of which may have no id.
            (&[asked, asked, NULL, answer], 0),
            (&[asked, asked, answer, answer], 0),
            // A late answer to a cancelled request does not answer the nonsense.
            (&[asked, take_back, ">nonsense", answer], 1),
            (
                &[">{\"jsonrpc\":\"2.0\",\"id\":1.5,\"method\":\"a\"}", NULL],
                0,
            ),
        ];
        for (lines, due) in cases {
            assert_eq!(due_after(lines), due, "{lines:?}");
        }
        assert_eq!(due_after(&[">nonsense", asked, take_back]), 1);
    }
}
