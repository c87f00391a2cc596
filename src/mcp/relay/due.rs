//! Counts the answers that a client still has to get, by the lines that went each way.
//!
//! A request is answered with its id. A line that is no request, such as one that is no JSON, is answered by JSON-RPC and
//! by our own server as well: under its id if that can be read, otherwise under none, where others write `null`. Other
//! servers are often silent about it. Notifications
//! and answers to a server's own questions are owed nothing.

use std::collections::{HashMap, HashSet};

use rmcp::model::RequestId;
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::value::RawValue;
use serde_json::{Map, Value};

use crate::mcp::framing::Line;
use crate::mcp::framing::json::{self, ID_WRITTEN_MAX, JsonFault};

/// The answers that are still to come.
///
/// Ids are JSON text of one form: who answers may write the same id otherwise.
#[derive(Debug, Default)]
pub(super) struct Due {
    /// Lines whose answer has an id that no other line has; true: a request.
    own: HashMap<String, bool>,
    /// Lines whose answers cannot be told apart: `null` may be any of theirs.
    alike: DueLines,
    /// The ids of those.
    alike_ids: HashSet<String>,
}

/// Number of lines to be answered.
#[derive(Debug, Default)]
struct DueLines {
    requests: usize,
    others: usize,
}

impl DueLines {
    const fn count(&self) -> usize {
        self.requests + self.others
    }

    const fn add(&mut self, request: bool) {
        if request {
            self.requests += 1;
        } else {
            self.others += 1;
        }
    }
}

/// The answer owed for a line.
#[derive(Debug, PartialEq, Eq)]
enum Owed {
    Nothing,
    /// An answer under this id; one under none will do where the line or the id is odd.
    Named {
        id: String,
        request: bool,
        odd: bool,
    },
    /// An answer under no id.
    Nameless,
    /// No more the answer to this request.
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

impl Due {
    /// Notes a line of the client's.
    pub(super) fn sent(&mut self, line: &Line) {
        match owed(line) {
            Owed::Nothing => {}
            Owed::Named { id, request, odd } => self.note(id, request, odd),
            Owed::Nameless => self.alike.add(false),
            Owed::Cancelled(id) => self.settle(&id),
        }
    }

    /// Notes a line of the provider's.
    pub(super) fn received(&mut self, line: &Line) {
        match line {
            Line::TooLong { head, tail, .. } => {
                if let Some(id) = json::find_id(head, tail) {
                    self.settle(&form(&id));
                }
            }
            Line::Whole(bytes) if !json::begins_object(bytes) => {}
            Line::Whole(bytes) => match serde_json::from_slice(json::trim(bytes)) {
                Ok(AnswerEnvelope {
                    id: Some(id),
                    method: None,
                    ..
                }) => self.settle(&one_form(id)),
                Ok(AnswerEnvelope {
                    id: None,
                    method: None,
                    error: Some(_),
                }) => self.settle_null(),
                _ => {}
            },
        }
    }

    /// Returns whether nothing is to come any more.
    pub(super) fn is_nothing(&self) -> bool {
        self.count() == 0
    }

    /// Returns whether every request has its answer.
    pub(super) fn no_request(&self) -> bool {
        self.alike.requests == 0 && self.own.values().all(|request| !request)
    }

    /// Returns the number of answers to come.
    pub(super) fn count(&self) -> usize {
        self.own.len() + self.alike.count()
    }

    /// Takes back every line that is to be answered; the ids of those that have one, as JSON text.
    pub(super) fn give_up(&mut self) -> Vec<String> {
        let own = std::mem::take(&mut self.own).into_keys();
        let alike = std::mem::take(&mut self.alike_ids);
        self.alike = DueLines::default();
        own.chain(alike).collect()
    }

    /// Notes a line that has an id. To an odd one, and to one whose id is in flight already, a server may answer `null`.
    fn note(&mut self, id: String, request: bool, odd: bool) {
        let first = self.own.remove(&id);
        if first.is_none() && !odd && !self.alike_ids.contains(&id) {
            self.own.insert(id, request);
            return;
        }
        self.alike_ids.insert(id);
        first
            .into_iter()
            .chain([request])
            .for_each(|request| self.alike.add(request));
    }

    /// The line of an id has its answer. One that nobody waits for, such as that to a request that was taken back, is
    /// nobody else's.
    fn settle(&mut self, id: &str) {
        if self.own.remove(id).is_some() || !self.alike_ids.contains(id) {
            return;
        }
        let DueLines { requests, others } = &mut self.alike;
        let one = if *requests > 0 { requests } else { others };
        *one = one.saturating_sub(1);
        self.forget();
    }

    /// An answer to nobody in particular.
    fn settle_null(&mut self) {
        let DueLines { requests, others } = &mut self.alike;
        let one = if *others > 0 { others } else { requests };
        *one = one.saturating_sub(1);
        self.forget();
    }

    fn forget(&mut self) {
        if self.alike.count() == 0 {
            self.alike_ids.clear();
        }
    }
}

/// Returns the answer owed for a line: that of our own server, and what JSON-RPC requires beyond it.
fn owed(line: &Line) -> Owed {
    let bytes = match line {
        Line::TooLong { head, tail, .. } => return named(json::find_id(head, tail), true, false),
        Line::Whole(bytes) => json::trim(bytes),
    };
    if bytes.is_empty() {
        return Owed::Nothing;
    }
    match json::read(bytes) {
        Ok(Value::Object(message)) => owed_for(&message),
        Ok(_) => Owed::Nameless,
        Err(JsonFault::Syntax(_)) => named(json::find_id_in(bytes), false, true),
        Err(JsonFault::Refused(_)) => named(json::find_id_in(bytes), false, false),
    }
}

fn named(id: Option<RequestId>, request: bool, odd: bool) -> Owed {
    id.map_or(Owed::Nameless, |id| Owed::Named {
        id: form(&id),
        request,
        odd,
    })
}

fn owed_for(message: &Map<String, Value>) -> Owed {
    let version = message.get("jsonrpc").and_then(Value::as_str) == Some("2.0");
    let answers = message.contains_key("result") || message.contains_key("error");
    let id = message.get("id");
    let usable = id.and_then(json::as_id);
    match (message.get("method"), id) {
        (Some(Value::String(_)), Some(id)) if !id.is_null() => Owed::Named {
            id: id.to_string(),
            request: true,
            odd: usable.is_none(),
        },
        (Some(Value::String(method)), None) if version => notified(method, message.get("params")),
        (None, _) if version && answers => Owed::Nothing,
        _ => named(usable, false, false),
    }
}

fn notified(method: &str, params: Option<&Value>) -> Owed {
    let request = params.and_then(|params| params.get("requestId"));
    match request {
        Some(id) if method == "notifications/cancelled" => Owed::Cancelled(id.to_string()),
        _ => Owed::Nothing,
    }
}

/// An id as JSON text.
fn form(id: &RequestId) -> String {
    id.clone().into_json_value().to_string()
}

/// An id without the freedoms of JSON's writing, such as escapes that need not be there; one that is too long for an id as it came.
fn one_form(id: &RawValue) -> String {
    let short = Some(id.get()).filter(|id| id.len() <= ID_WRITTEN_MAX);
    let read = short.and_then(|id| serde_json::from_str::<Value>(id).ok());
    read.map_or_else(|| id.get().to_owned(), |value| value.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(text: &str) -> Line {
        Line::Whole(text.as_bytes().to_vec())
    }

    /// Counts the answers due after lines from the client (`>`) and from the provider (`<`).
    fn due_after(lines: &[&str]) -> usize {
        let mut due = Due::default();
        for text in lines {
            match text.split_at(1) {
                (">", text) => due.sent(&line(text)),
                (_, text) => due.received(&line(text)),
            }
        }
        assert_eq!(due.is_nothing(), due.count() == 0);
        due.count()
    }

    const NULL: &str = r#"<{"jsonrpc":"2.0","id":null,"error":{"code":-32700,"message":"x"}}"#;

    #[test]
    fn what_an_answer_is_owed_for() {
        let named = |id: &str, request, odd| Owed::Named {
            id: id.to_owned(),
            request,
            odd,
        };
        let request = |id: &str| named(id, true, false);
        let odd = |id: &str| named(id, true, true);
        let other = |id: &str| named(id, false, false);
        let cases = [
            ("", Owed::Nothing),
            (" \t", Owed::Nothing),
            ("nonsense", Owed::Nameless),
            ("{\"id\":1,", named("1", false, true)),
            ("42", Owed::Nameless),
            ("[]", Owed::Nameless),
            (r#"[{"jsonrpc":"2.0","id":1,"method":"a"}]"#, Owed::Nameless),
            ("{}", Owed::Nameless),
            (r#"{"jsonrpc":"2.0","id":1,"method":"a"}"#, request("1")),
            (
                "\u{feff}{\"jsonrpc\":\"2.0\",\"id\":\"\\u00e9\",\"method\":\"a\"}",
                request("\"é\""),
            ),
            // Without a version our own server refuses it, under its id all the same.
            (r#"{"id":1,"method":"a"}"#, request("1")),
            (r#"{"jsonrpc":"2.0","id":1.50,"method":"a"}"#, odd("1.5")),
            (r#"{"jsonrpc":"2.0","id":[],"method":"a"}"#, odd("[]")),
            (
                r#"{"jsonrpc":"2.0","id":null,"method":"a"}"#,
                Owed::Nameless,
            ),
            (r#"{"jsonrpc":"2.0","id":1}"#, other("1")),
            (r#"{"jsonrpc":"2.0","id":1,"method":7}"#, other("1")),
            (
                r#"{"jsonrpc":"2.0","id":1,"id":2,"method":"a"}"#,
                other("1"),
            ),
            (r#"{"jsonrpc":"2.0","method":"a"}"#, Owed::Nothing),
            (r#"{"method":"a"}"#, Owed::Nameless),
            (r#"{"jsonrpc":"2.0","id":1,"result":{}}"#, Owed::Nothing),
            (r#"{"jsonrpc":"2.0","id":1,"error":{}}"#, Owed::Nothing),
            (r#"{"id":1,"result":{}}"#, other("1")),
            (
                r#"{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":"x"}}"#,
                Owed::Cancelled("\"x\"".to_owned()),
            ),
            (
                r#"{"jsonrpc":"2.0","method":"notifications/cancelled"}"#,
                Owed::Nothing,
            ),
        ];
        for (text, expected) in cases {
            assert_eq!(owed(&line(text)), expected, "{text}");
        }
        let endless = |head: &str| Line::TooLong {
            head: head.as_bytes().to_vec(),
            tail: Vec::new(),
            bytes: 1 << 30,
        };
        assert_eq!(owed(&endless(r#"{"id":7,"method":"#)), request("7"));
        assert_eq!(owed(&endless(r#"{"method":"#)), Owed::Nameless);
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
            // A question of the provider's, and a report.
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
            // As others write an error to nobody.
            (&[">nonsense", r#"<{"error":{"code":-32700}}"#], 0),
            (&[asked, ">nonsense", answer], 1),
            (&[asked, ">nonsense", NULL], 1),
            // One id twice: two answers, of which one may be to nobody.
            (&[asked, asked, NULL, answer], 0),
            (&[asked, asked, answer, answer], 0),
            // The answer that was on its way when its request was taken back is not that to the nonsense.
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
