//! The client's end of a connection: `initialize`, `tools/list` and `tools/call`, one request at a time.
//!
//! The server is not trusted: every line, wait and count has a limit, and only the answer to the request in flight is
//! accepted. rmcp provides the types. Its client loop is not used: it drops an overlong line without an error, does not
//! limit a server's output, and omits unknown fields from results.

mod exchange;
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

use super::framing::{Lines, json};
use super::{ANSWER_VALUES_MAX, DECISION_KEY, LINE_MAX, REFUSED};
use crate::text::Foreign;
use exchange::{Exchange, INITIALIZED, malformed, request};

pub(crate) use exchange::{
    Incoming, PROGRESS_BYTES_MAX, PROGRESS_MAX, ProgressSink, UpstreamAnswer, Wish, incoming,
};

/// Default timeout for a server's first answer.
const FIRST_ANSWER: Duration = Duration::from_secs(5);
/// Default timeout for a call without progress.
const WITHOUT_PROGRESS: Duration = Duration::from_secs(30);
/// Maximum duration of one request, regardless of progress.
const IN_ALL: Duration = Duration::from_secs(60 * 60);
pub(crate) const LIST: &str = "tools/list";
pub(crate) const CALL: &str = "tools/call";
const TOOLS_MAX: usize = 10_000;
const PAGES_MAX: usize = 100;

/// Maximum length of a server's error message as quoted in ours, in characters.
pub(crate) const WORDS_SHOWN: usize = 4000;
/// Maximum length of a quoted line that is not a message, in characters.
const LINE_SHOWN: usize = 80;
/// Maximum length of the description of an answer's fault, in characters.
const WHY_SHOWN: usize = 300;

/// A client's timeouts.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Timeouts {
    /// For the server's first answer.
    pub(crate) first: Duration,
    /// For a later answer, or for progress towards it.
    pub(crate) call: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            first: FIRST_ANSWER,
            call: WITHOUT_PROGRESS,
        }
    }
}

/// The reason why a request has no usable answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ClientError {
    #[error("the connection was closed before the answer arrived")]
    Closed,
    /// No answer or progress arrived in time.
    #[error("no answer within {} s", .0.as_secs_f64())]
    Silent(Duration),
    #[error("the connection failed: {0}")]
    Stream(#[source] io::Error),
    #[error("the server sent a message of {} MiB; the limit is {} MiB", .0.div_ceil(1024 * 1024), LINE_MAX / 1024 / 1024)]
    TooLong(u64),
    /// The server sent too many messages or bytes that do not answer the request.
    #[error("the server keeps sending without answering")]
    Flood,
    #[error("the peer is not an MCP server: it sent `{}`", .0.shown(LINE_SHOWN))]
    NotMcp(Foreign),
    /// An answer that violates the protocol or exceeds a limit of this client.
    #[error("the server's answer to `{method}` is unusable: {}", why.shown(WHY_SHOWN))]
    Malformed {
        method: &'static str,
        /// The fault; it may quote the server.
        why: Foreign,
    },
    /// The server refused the request with a JSON-RPC error.
    #[error("the server refused `{method}`: {} ({})", refusal.part(|refusal| &*refusal.message).shown(WORDS_SHOWN), refusal.raw().code.0)]
    Refused {
        method: &'static str,
        refusal: Foreign<ErrorData>,
    },
}

/// The result of a tool call.
#[derive(Debug)]
pub(crate) struct Called {
    raw: Box<RawValue>,
    pub(crate) result: Foreign<CallToolResult>,
}

impl Called {
    /// Parses the result as received, with every field.
    pub(crate) fn value(&self) -> serde_json::Result<Foreign<Value>> {
        serde_json::from_str(self.raw.get())
    }

    /// Returns whether the tool failed or was refused.
    pub(crate) fn has_failed(&self) -> bool {
        self.result.raw().is_error == Some(true)
    }

    /// Returns whether the server's policy refused an argument, so that the tool did not run.
    pub(crate) fn is_refused(&self) -> bool {
        let meta = self.result.raw().meta.as_ref();
        let decision = meta.and_then(|meta| meta.0.get(DECISION_KEY));
        self.has_failed() && decision.is_some_and(|decision| decision == REFUSED)
    }
}

/// A connection on which `initialize` has succeeded.
#[derive(Debug)]
pub(crate) struct Client<R, W> {
    exchange: Exchange<R, W>,
    timeouts: Timeouts,
}

impl<R: AsyncRead + Unpin, W: AsyncWrite + Unpin> Client<R, W> {
    /// Sends `initialize`. `max_len` is the maximum length of a server's message, in bytes.
    pub(crate) async fn start(
        reader: R,
        writer: W,
        timeouts: Timeouts,
        max_len: usize,
    ) -> Result<Self, ClientError> {
        let mut exchange = Exchange::new(Lines::new(reader, max_len), writer);
        let answer = exchange
            .request("initialize", &introduction(), None, timeouts.first)
            .await?;
        let _: InitializeResult = typed("initialize", &answer)?;
        exchange.queue(INITIALIZED.to_vec());
        Ok(Self { exchange, timeouts })
    }

    /// Passes on the progress of later requests; `None`: drops it.
    pub(crate) fn pass_on_progress(&mut self, progress: Option<ProgressSink>) {
        self.exchange.progress = progress;
    }

    /// Returns whether the last request was a call, which may have run even without an answer.
    pub(crate) fn has_called(&self) -> bool {
        self.exchange.last_method == Some(CALL)
    }

    /// Sends `tools/list` and ignores the content of the answer.
    pub(crate) async fn answers(&mut self) -> Result<(), ClientError> {
        self.list(&Map::new(), None).await.map(drop)
    }

    async fn list(
        &mut self,
        params: &Map<String, Value>,
        wish: Option<Wish>,
    ) -> Result<Box<RawValue>, ClientError> {
        self.exchange
            .request(LIST, params, wish, self.timeouts.call)
            .await
    }

    /// Lists everything that can be called: the server's tools and, for the operator, the machine's services.
    pub(crate) async fn callable(&mut self) -> Result<Vec<Foreign<Tool>>, ClientError> {
        let pages = self.pages(Some(Wish::Services(true))).await?.into_iter();
        Ok(Self::tools_of(pages))
    }

    /// Lists the server's tools.
    pub(crate) async fn tools(&mut self) -> Result<Vec<Foreign<Tool>>, ClientError> {
        let pages = self.pages(None).await?.into_iter();
        Ok(Self::tools_of(pages))
    }

    fn tools_of(
        pages: impl Iterator<Item = (Box<RawValue>, ListToolsResult)>,
    ) -> Vec<Foreign<Tool>> {
        let tools = pages.flat_map(|(_, page)| page.tools);
        tools.map(Foreign::new).collect()
    }

    /// Lists the server's tools as received, with every field; appends the tools of later pages to the first page.
    pub(crate) async fn listing(&mut self) -> Result<Foreign<Value>, ClientError> {
        let mut pages = self.pages(None).await?.into_iter();
        let mut whole = match pages.next() {
            Some((first, _)) => typed(LIST, &first)?,
            None => Value::Null,
        };
        for (page, _) in pages {
            let mut page: Value = typed(LIST, &page)?;
            let tools = (whole.get_mut("tools"), page.get_mut("tools"));
            if let (Some(Value::Array(all)), Some(Value::Array(more))) = tools {
                all.append(more);
            }
            whole.as_object_mut().map(|all| all.remove("nextCursor"));
        }
        Ok(Foreign::new(whole))
    }

    /// Returns every page of the listing, both as text and parsed.
    async fn pages(
        &mut self,
        wish: Option<Wish>,
    ) -> Result<Vec<(Box<RawValue>, ListToolsResult)>, ClientError> {
        let at_most = |count: usize, max: usize, subject: &str, unit: &str| {
            if count <= max {
                return Ok(());
            }
            let why = format!("{subject} more than {max} {unit}");
            Err(malformed(LIST, &why))
        };
        let mut params = Map::new();
        let mut pages = Vec::new();
        let (mut bytes, mut values, mut tools) = (0, 0_usize, 0);
        for _ in 0..PAGES_MAX {
            let answer = self.list(&params, wish).await?;
            bytes += answer.get().len();
            at_most(bytes, LINE_MAX, "its pages have", "bytes together")?;
            let count = json::count(answer.get().as_bytes()).unwrap_or(usize::MAX);
            values = values.saturating_add(count);
            at_most(
                values,
                ANSWER_VALUES_MAX,
                "its pages have",
                "values together",
            )?;
            let mut page: ListToolsResult = typed(LIST, &answer)?;
            let cursor = page.next_cursor.take();
            tools += page.tools.len();
            at_most(tools, TOOLS_MAX, "it lists", "tools")?;
            pages.push((answer, page));
            let Some(cursor) = cursor else {
                return Ok(pages);
            };
            params.insert("cursor".to_owned(), cursor.into());
        }
        let why = format!("it has more than {PAGES_MAX} pages");
        Err(malformed(LIST, &why))
    }

    /// Calls a tool; a tool failure is a result. `one_copy` asks for a large payload only in the result's content.
    pub(crate) async fn call(
        &mut self,
        tool: &str,
        arguments: Map<String, Value>,
        one_copy: bool,
    ) -> Result<Called, ClientError> {
        let id = self.begin(tool, arguments, one_copy)?;
        self.answer(id).await
    }

    /// Calls a tool, and returns its result as it was received.
    pub(crate) async fn call_unread(
        &mut self,
        tool: &str,
        arguments: Map<String, Value>,
    ) -> Result<Box<RawValue>, ClientError> {
        let id = self.begin(tool, arguments, false)?;
        self.exchange.answer(id, CALL, self.timeouts.call).await
    }

    /// Queues a call; returns its id.
    fn begin(
        &mut self,
        tool: &str,
        arguments: Map<String, Value>,
        one_copy: bool,
    ) -> Result<i64, ClientError> {
        let params = call_params(tool, arguments);
        let wish = one_copy.then_some(Wish::OneCopy(true));
        self.exchange.begin(CALL, &params, wish)
    }

    /// Waits for the answer to a call that [`Exchange::begin`] queued.
    async fn answer(&mut self, id: i64) -> Result<Called, ClientError> {
        let raw = self.exchange.answer(id, CALL, self.timeouts.call).await?;
        let result = typed(CALL, &raw)?;
        Ok(Called { raw, result })
    }
}

fn introduction() -> InitializeRequestParams {
    let this = Implementation::new("anklume", env!("CARGO_PKG_VERSION"));
    InitializeRequestParams::new(ClientCapabilities::default(), this)
        .with_protocol_version(ProtocolVersion::LATEST_WITH_INITIALIZE)
}

/// Returns the parameters of `initialize` for an upstream: without capabilities, on which definitions may depend.
pub(crate) fn initialize_params() -> Value {
    // Serialization of this type cannot fail.
    serde_json::to_value(introduction()).unwrap_or_default()
}

pub(crate) fn call_params(tool: &str, arguments: Map<String, Value>) -> CallToolRequestParams {
    CallToolRequestParams::new(tool.to_owned()).with_arguments(arguments)
}

/// A request that is printed instead of sent.
#[derive(Debug)]
pub(crate) struct DryRunRequest {
    pub(crate) method: &'static str,
    pub(crate) params: Value,
    /// Asks for a large payload only in the result's text.
    pub(crate) wish: Option<Wish>,
}

/// Returns the messages of a conversation with these requests as lines without newlines; nothing is sent.
pub(crate) fn dry_run_messages(
    requests: &[DryRunRequest],
) -> Result<Vec<Vec<u8>>, serde_json::Error> {
    let mut lines = vec![
        request(1, "initialize", &introduction(), None)?,
        INITIALIZED.to_vec(),
    ];
    for (id, next) in (2..).zip(requests) {
        lines.push(request(id, next.method, &next.params, next.wish)?);
    }
    Ok(lines)
}

fn typed<T: DeserializeOwned>(method: &'static str, answer: &RawValue) -> Result<T, ClientError> {
    serde_json::from_str(answer.get()).map_err(|why| malformed(method, &why.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_waits_as_long_as_the_page_says() {
        const PAGE: &str = include_str!("../../docs/mcp.md");
        let Timeouts { first, call } = Timeouts::default();
        let (first, call, hours) = (first.as_secs(), call.as_secs(), IN_ALL.as_secs() / 3600);
        for row in [
            format!("| the first answer | {first} seconds |"),
            format!("| an answer, or progress towards it | {call} seconds;"),
            format!("| a request in total, regardless of progress | {hours} hour |"),
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
