//! The client's end of one connection: `initialize`, `tools/list`, `tools/call`, one request at a time.
//!
//! The server is not trusted: every line, every wait and every count has a limit, and only the answer to the
//! request in flight is taken. rmcp gives the types; its client loop is not used, because it drops a line that is
//! too long without a word, sets no limit to what a server may send, and gives results back without the fields that it does not know.

mod exchange;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing;
mod message;
pub(crate) mod pieces;

use std::io;
use std::time::Duration;

use rmcp::model::{
    CallToolRequestParams, CallToolResult, ClientCapabilities, ErrorData, Implementation,
    InitializeRequestParams, InitializeResult, ListToolsResult, ProtocolVersion, Tool,
};
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;
use serde_json::{Map, Value};
use tokio::io::{AsyncRead, AsyncWrite};

use super::framing::Lines;
use super::framing::json;
use super::{ANSWER_VALUES_MAX, DECISION_KEY, LINE_MAX, REFUSED};
use crate::text::Foreign;
use exchange::Exchange;

/// Default time-out for the first answer of a server.
const FIRST_ANSWER: Duration = Duration::from_secs(5);
/// Default time-out for a call without progress.
const WITHOUT_PROGRESS: Duration = Duration::from_secs(30);
/// Maximum duration of one request, whatever progress its server reports.
const IN_ALL: Duration = Duration::from_secs(60 * 60);
/// The method that lists tools.
pub(crate) const LIST: &str = "tools/list";
/// The method that calls one.
pub(crate) const CALL: &str = "tools/call";
/// Maximum number of tools that a server may list.
const TOOLS_MAX: usize = 10_000;
/// Maximum number of pages that a listing may have.
const PAGES_MAX: usize = 100;

/// Characters of a server's own words about a failure that are shown.
pub(crate) const WORDS_SHOWN: usize = 4000;
/// Characters that are shown of a line that is no message.
const LINE_SHOWN: usize = 80;
/// Characters that are shown of what is wrong with an answer.
const WHY_SHOWN: usize = 300;

/// The time-outs of a client.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Patience {
    /// For the server's first answer.
    pub(crate) first: Duration,
    /// For a later answer, or for progress towards it.
    pub(crate) call: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            first: FIRST_ANSWER,
            call: WITHOUT_PROGRESS,
        }
    }
}

/// The reason why there is no answer that can be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ClientError {
    /// The stream ended or broke before the answer.
    #[error("the connection was closed before the answer")]
    Closed,
    /// No answer and no progress in time.
    #[error("no answer within {} s", .0.as_secs_f64())]
    Silent(Duration),
    /// The stream failed in another way.
    #[error("the connection failed: {0}")]
    Stream(#[source] io::Error),
    /// A message over the limit.
    #[error("the server sent a message of {} MiB, and {} MiB is the limit", .0.div_ceil(1024 * 1024), LINE_MAX / 1024 / 1024)]
    TooLong(u64),
    /// More than a server has to say beside an answer.
    #[error("the server sends without end and does not answer")]
    Flood,
    /// A line that is no message.
    #[error("what answers is not an MCP server: it said `{}`", .0.shown(LINE_SHOWN))]
    NotMcp(Foreign),
    /// An answer that is not what the protocol promises.
    #[error("the server's answer to `{method}` is not what MCP promises: {}", why.shown(WHY_SHOWN))]
    Malformed {
        /// The request.
        method: &'static str,
        /// The fault; it may quote the server.
        why: Foreign,
    },
    /// The server refused the request with an error of JSON-RPC.
    #[error("the server refused `{method}`: {} ({})", refusal.part(|refusal| &*refusal.message).shown(WORDS_SHOWN), refusal.raw().code.0)]
    Refused {
        /// The request.
        method: &'static str,
        /// Its words and code.
        refusal: Foreign<ErrorData>,
    },
}

/// The result of a tool.
#[derive(Debug)]
pub(crate) struct Called {
    /// The result as it came.
    raw: Box<RawValue>,
    /// The result as MCP types.
    pub(crate) result: Foreign<CallToolResult>,
}

impl Called {
    /// The result as it came.
    ///
    /// # Errors
    ///
    /// Those of serde_json; what was taken as a result is JSON.
    pub(crate) fn value(&self) -> serde_json::Result<Foreign<Value>> {
        serde_json::from_str(self.raw.get())
    }

    /// Returns whether the tool failed, or was refused.
    pub(crate) fn has_failed(&self) -> bool {
        self.result.raw().is_error == Some(true)
    }

    /// Returns whether it is no result of the tool's: its server's policy refuses an argument.
    pub(crate) fn is_refused(&self) -> bool {
        let meta = self.result.raw().meta.as_ref();
        let decision = meta.and_then(|meta| meta.0.get(DECISION_KEY));
        self.has_failed() && decision.is_some_and(|decision| decision == REFUSED)
    }
}

/// A connection on which `initialize` was answered.
#[derive(Debug)]
pub(crate) struct Client<R, W> {
    exchange: Exchange<R, W>,
    patience: Patience,
}

impl<R: AsyncRead + Unpin, W: AsyncWrite + Unpin> Client<R, W> {
    /// Opens the conversation.
    ///
    /// # Errors
    ///
    /// Whatever keeps the server from answering `initialize`.
    pub(crate) async fn start(
        reader: R,
        writer: W,
        patience: Patience,
    ) -> Result<Self, ClientError> {
        Self::start_within(reader, writer, patience, LINE_MAX).await
    }

    /// The same with a server whose messages have so many bytes at most.
    ///
    /// # Errors
    ///
    /// Whatever keeps the server from answering `initialize`.
    pub(crate) async fn start_within(
        reader: R,
        writer: W,
        patience: Patience,
        longest: usize,
    ) -> Result<Self, ClientError> {
        let mut client = Self {
            exchange: Exchange::new(Lines::new(reader, longest), writer),
            patience,
        };
        let answer = client
            .exchange
            .request("initialize", &introduction(), false, patience.first)
            .await?;
        let _: InitializeResult = typed("initialize", &answer)?;
        client.exchange.notify("notifications/initialized");
        Ok(client)
    }

    /// Returns whether a call was sent, so that it may have been carried out whatever became of its answer.
    pub(crate) fn has_called(&self) -> bool {
        self.exchange.asked() == Some(CALL)
    }

    /// Whether the server lists anything at all; what it is, is not looked at.
    ///
    /// # Errors
    ///
    /// Whatever keeps the answer from coming.
    pub(crate) async fn answers(&mut self) -> Result<(), ClientError> {
        let listed = self
            .exchange
            .request(LIST, &Map::new(), false, self.patience.call)
            .await;
        listed.map(drop)
    }

    /// The tools that the server lists.
    ///
    /// # Errors
    ///
    /// Whatever keeps the whole list from coming.
    pub(crate) async fn tools(&mut self) -> Result<Vec<Foreign<Tool>>, ClientError> {
        let mut tools = Vec::new();
        self.pages(|page, typed| {
            drop(page);
            tools.extend(typed.tools.into_iter().map(Foreign::new));
            Ok(())
        })
        .await?;
        Ok(tools)
    }

    /// Everything that the server lists, as it came; of several pages, one.
    ///
    /// # Errors
    ///
    /// Whatever keeps the whole list from coming.
    pub(crate) async fn listing(&mut self) -> Result<Foreign<Value>, ClientError> {
        let mut whole = None;
        self.pages(|page, known| {
            drop(known);
            let page = typed(LIST, &page)?;
            whole = Some(match whole.take() {
                None => page,
                Some(first) => joined(first, page),
            });
            Ok(())
        })
        .await?;
        Ok(Foreign::new(whole.unwrap_or_default()))
    }

    /// Every page of the list, as text and as tools.
    async fn pages(
        &mut self,
        mut each: impl FnMut(Box<RawValue>, ListToolsResult) -> Result<(), ClientError>,
    ) -> Result<(), ClientError> {
        let mut params = Map::new();
        let mut room = LINE_MAX;
        let mut values = ANSWER_VALUES_MAX;
        let mut tools = TOOLS_MAX;
        for _ in 0..PAGES_MAX {
            let answer = self
                .exchange
                .request(LIST, &params, false, self.patience.call)
                .await?;
            room = room.checked_sub(answer.get().len()).ok_or_else(|| {
                malformed(
                    LIST,
                    &format!("its pages have more than {LINE_MAX} bytes together"),
                )
            })?;
            // Each page was counted when it came.
            let more = json::count(answer.get().as_bytes()).unwrap_or(usize::MAX);
            values = values.checked_sub(more).ok_or_else(|| {
                malformed(
                    LIST,
                    &format!("its pages have more than {ANSWER_VALUES_MAX} values together"),
                )
            })?;
            let mut page: ListToolsResult = typed(LIST, &answer)?;
            let cursor = page.next_cursor.take();
            tools = tools
                .checked_sub(page.tools.len())
                .ok_or_else(|| malformed(LIST, &format!("it lists more than {TOOLS_MAX} tools")))?;
            each(answer, page)?;
            let Some(cursor) = cursor else {
                return Ok(());
            };
            params.insert("cursor".to_owned(), cursor.into());
        }
        Err(malformed(
            LIST,
            &format!("it has more than {PAGES_MAX} pages"),
        ))
    }

    /// Calls a tool.
    ///
    /// # Errors
    ///
    /// Whatever keeps the tool's result from coming; a tool that says that it failed is a result.
    pub(crate) async fn call(
        &mut self,
        tool: &str,
        arguments: Map<String, Value>,
    ) -> Result<Called, ClientError> {
        self.ask(tool, arguments, false).await
    }

    /// The same; `one_copy`: a large payload is wanted in the text of the result alone.
    async fn ask(
        &mut self,
        tool: &str,
        arguments: Map<String, Value>,
        one_copy: bool,
    ) -> Result<Called, ClientError> {
        let params = call_params(tool, arguments);
        let answer = self
            .exchange
            .request(CALL, &params, one_copy, self.patience.call)
            .await?;
        let result = typed(CALL, &answer)?;
        Ok(Called {
            raw: answer,
            result,
        })
    }
}

/// Returns the client's introduction.
pub(crate) fn introduction() -> InitializeRequestParams {
    let this = Implementation::new("anklume", env!("CARGO_PKG_VERSION"));
    InitializeRequestParams::new(ClientCapabilities::default(), this)
        .with_protocol_version(ProtocolVersion::LATEST_WITH_INITIALIZE)
}

/// The parameters of a call.
pub(crate) fn call_params(tool: &str, arguments: Map<String, Value>) -> CallToolRequestParams {
    CallToolRequestParams::new(tool.to_owned()).with_arguments(arguments)
}

/// A request that is shown and not sent.
#[derive(Debug)]
pub(crate) struct Rehearsed {
    /// The request that would be sent.
    pub(crate) method: &'static str,
    /// Its parameters.
    pub(crate) params: Value,
    /// True if a large payload would be wanted in the text of the result alone.
    pub(crate) one_copy: bool,
}

/// The messages of a conversation with these requests, as they go over the wire; nothing is sent.
pub(crate) fn rehearsal(requests: &[Rehearsed]) -> Result<Vec<Vec<u8>>, serde_json::Error> {
    let mut lines = vec![
        message::request(1, "initialize", &introduction(), false)?,
        message::notification("notifications/initialized").into_bytes(),
    ];
    for (id, asked) in (2..).zip(requests) {
        lines.push(message::request(
            id,
            asked.method,
            &asked.params,
            asked.one_copy,
        )?);
    }
    Ok(lines)
}

/// A result with a further page's tools; what that page says beside them, the first has said.
fn joined(mut first: Value, page: Value) -> Value {
    let (Value::Object(whole), Value::Object(mut page)) = (&mut first, page) else {
        return first;
    };
    let more = page.remove("tools");
    if let (Some(Value::Array(all)), Some(Value::Array(more))) = (whole.get_mut("tools"), more) {
        all.extend(more);
    }
    whole.remove("nextCursor");
    first
}

fn typed<T: DeserializeOwned>(method: &'static str, answer: &RawValue) -> Result<T, ClientError> {
    serde_json::from_str(answer.get()).map_err(|why| malformed(method, &why.to_string()))
}

/// Maximum length of a text of an answer where none is long, in bytes: a name, a description, a key.
const TEXT_MAX: usize = 256 * 1024;
/// Keys of an answer whose text may be long.
const PAYLOAD: [&str; 4] = ["text", "data", "blob", "message"];
/// Keys of an answer below which every text may be long.
const FREE: [&str; 2] = ["structuredContent", "_meta"];

fn malformed(method: &'static str, why: &str) -> ClientError {
    let why = why.into();
    ClientError::Malformed { method, why }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_waits_as_long_as_the_page_says() {
        const PAGE: &str = include_str!("../../docs/mcp.md");
        let Patience { first, call } = Patience::default();
        let (first, call, hours) = (first.as_secs(), call.as_secs(), IN_ALL.as_secs() / 3600);
        for row in [
            format!("| the first answer | {first} seconds |"),
            format!("| an answer, or progress towards it | {call} seconds;"),
            format!("| a request in all, whatever its progress | {hours} hour |"),
        ] {
            assert!(PAGE.contains(&row), "{row}");
        }
    }

    #[test]
    fn what_a_server_says_of_its_refusal_is_cut_and_escaped() {
        let refusal = ErrorData::internal_error(format!("\u{1b}{}", "x".repeat(5000)), None);
        let refusal = Foreign::new(refusal);
        let method = LIST;
        let shown = ClientError::Refused { method, refusal }.to_string();
        let expected = format!(
            "the server refused `tools/list`: \\u{{1b}}{}… (-32603)",
            "x".repeat(WORDS_SHOWN - 1)
        );
        assert_eq!(shown, expected);
    }
}
