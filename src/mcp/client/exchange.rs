//! Sends JSON-RPC requests and reads their answers, over an untrusted stream.

use std::collections::VecDeque;
use std::io;
use std::time::Duration;

use rmcp::model::ErrorData;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::value::RawValue;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

use super::{ClientError, IN_ALL};
use crate::mcp::framing::{Line, Lines, json};
use crate::mcp::{ANSWER_VALUES_MAX, DEPTH_MAX};
use crate::text::Foreign;

/// Maximum number of other messages before the answer to a request.
const FOREIGN_MAX: usize = 20_000;
/// Maximum size of those messages, in bytes.
const FOREIGN_BYTES_MAX: usize = 64 * 1024 * 1024;
/// Maximum number of bytes kept from a line that is not a message.
const STRAY_MAX: usize = 1024;
/// Maximum length of a short string in an answer, such as a name, a description or a key, in bytes.
const TEXT_MAX: usize = 256 * 1024;
/// Keys in an answer whose strings may be longer.
const PAYLOAD: [&str; 4] = ["text", "data", "blob", "message"];
/// Keys in an answer below which every string may be longer.
const FREE: [&str; 2] = ["structuredContent", "_meta"];

/// The notification sent after `initialize`, without its newline.
pub(super) const INITIALIZED: &[u8] = br#"{"jsonrpc":"2.0","method":"notifications/initialized"}"#;

/// The stream, and the bytes still to be written to it.
#[derive(Debug)]
pub(super) struct Exchange<R, W> {
    lines: Lines<R>,
    writer: W,
    last_id: i64,
    /// The method of the last request.
    pub(super) last_method: Option<&'static str>,
    /// Messages that are not yet written, each freed as soon as it is.
    unsent: VecDeque<Vec<u8>>,
    /// Number of bytes of the first one that are already written.
    sent: usize,
    /// The answer to a later request than the one that is being waited for, and that request's id.
    early: Option<(i64, Line)>,
    /// Receives the progress of requests.
    pub(super) progress: Option<ProgressSink>,
}

/// Receives the progress of a call: the parameters of `notifications/progress`.
pub(crate) type ProgressSink = mpsc::Sender<Box<RawValue>>;

/// Maximum length of a report of progress that is passed on, in bytes; longer ones are dropped.
pub(crate) const PROGRESS_BYTES_MAX: usize = 64 * 1024;

/// Maximum number of reports of progress that wait to be passed on; further ones are dropped.
pub(crate) const PROGRESS_MAX: usize = 16;

/// The remaining budget of a request.
struct AnswerBudget {
    timeout: Duration,
    deadline: Instant,
    end: Instant,
    messages: usize,
    bytes: usize,
}

impl<R: AsyncRead + Unpin, W: AsyncWrite + Unpin> Exchange<R, W> {
    pub(super) const fn new(lines: Lines<R>, writer: W) -> Self {
        Self {
            lines,
            writer,
            last_id: 0,
            last_method: None,
            unsent: VecDeque::new(),
            sent: 0,
            early: None,
            progress: None,
        }
    }

    /// Sends a request and waits for its answer; any progress, including that of the write, restarts `timeout`.
    pub(super) async fn request(
        &mut self,
        method: &'static str,
        params: &impl Serialize,
        wish: Option<Wish>,
        timeout: Duration,
    ) -> Result<Box<RawValue>, ClientError> {
        let id = self.begin(method, params, wish)?;
        self.answer(id, method, timeout).await
    }

    /// Queues a request, which [`Self::answer`] sends; returns its id.
    pub(super) fn begin(
        &mut self,
        method: &'static str,
        params: &impl Serialize,
        wish: Option<Wish>,
    ) -> Result<i64, ClientError> {
        self.last_id += 1;
        self.last_method = Some(method);
        let text = request(self.last_id, method, params, wish)
            .map_err(|why| ClientError::Stream(why.into()))?;
        self.queue(text);
        Ok(self.last_id)
    }

    /// Waits for the answer to a request; answers to later ones are kept.
    pub(super) async fn answer(
        &mut self,
        id: i64,
        method: &'static str,
        timeout: Duration,
    ) -> Result<Box<RawValue>, ClientError> {
        let mut budget = AnswerBudget::new(timeout);
        // Nobody waits for the answer to an earlier request any more.
        self.early.take_if(|(early, _)| *early < id);
        loop {
            let line = match self.early.take_if(|(early, _)| *early == id) {
                Some((_, line)) => line,
                None => self.line(&mut budget).await?,
            };
            if self.keep_early(id, &line) {
                continue;
            }
            match meaning(id, line, &mut budget)? {
                Meaning::Result(result) => return bounded(method, result),
                Meaning::Error(error) => {
                    let error = bounded(method, error)?;
                    // A malformed error is still an error.
                    let refusal = serde_json::from_str(error.get()).unwrap_or_else(|_| {
                        ErrorData::internal_error("an error without code or message", None)
                    });
                    let refusal = Foreign::new(refusal);
                    return Err(ClientError::Refused { method, refusal });
                }
                Meaning::Progress(params) => {
                    budget.refresh();
                    if let Some(progress) = &self.progress
                        && params.get().len() <= PROGRESS_BYTES_MAX
                    {
                        // A caller that is slow misses some.
                        let _ = progress.try_send(params);
                    }
                }
                Meaning::Asked(reply) => self.queue(reply.into_bytes()),
                Meaning::Malformed(why) => return Err(malformed(method, why)),
                Meaning::Foreign => {}
            }
        }
    }

    /// Keeps a line for later if it is the first answer to a request after `id`.
    fn keep_early(&mut self, id: i64, line: &Line) -> bool {
        let Line::Whole(bytes) = line else {
            return false;
        };
        // Most requests are the last one; their answers may be large, and are parsed once.
        if self.last_id == id || self.early.is_some() {
            return false;
        }
        let later = read(bytes).ok().and_then(|message| message.answered());
        let later = later.filter(|later| (id + 1..=self.last_id).contains(later));
        self.early = later.map(|later| (later, line.clone()));
        self.early.is_some()
    }

    /// Writes what is queued, and reads the next line.
    async fn line(&mut self, budget: &mut AnswerBudget) -> Result<Line, ClientError> {
        loop {
            let first = self.unsent.front();
            let unsent = first
                .and_then(|first| first.get(self.sent..))
                .unwrap_or_default();
            return tokio::select! {
                biased;
                () = sleep_until(budget.deadline.min(budget.end)) => {
                    return Err(ClientError::Silent(budget.waited()));
                }
                written = self.writer.write(unsent), if !unsent.is_empty() => {
                    if self.note_write(&written) {
                        budget.refresh();
                    }
                    continue;
                }
                line = self.lines.next() => line.map_err(broken)?.ok_or(ClientError::Closed),
            };
        }
    }

    /// Queues a message, given without its newline; [`Self::request`] writes it.
    pub(super) fn queue(&mut self, mut message: Vec<u8>) {
        message.push(b'\n');
        self.unsent.push_back(message);
    }

    /// Writes what is queued without waiting for an answer; any progress restarts `timeout`.
    pub(super) async fn send(&mut self, timeout: Duration) -> Result<(), ClientError> {
        while let Some(first) = self.unsent.front() {
            let unsent = first.get(self.sent..).unwrap_or_default();
            let written = tokio::time::timeout(timeout, self.writer.write(unsent)).await;
            self.note_write(&written.map_err(|_| ClientError::Silent(timeout))?);
        }
        Ok(())
    }

    /// Notes how much a write has written, and frees a message that is written whole; returns false if the server no longer
    /// reads, whose earlier output still counts.
    fn note_write(&mut self, written: &io::Result<usize>) -> bool {
        let count = written.as_ref().copied().unwrap_or_default();
        if count == 0 {
            self.unsent.clear();
        }
        self.sent = self.sent.saturating_add(count);
        if self
            .unsent
            .front()
            .is_none_or(|first| self.sent >= first.len())
        {
            self.unsent.pop_front();
            self.sent = 0;
        }
        count > 0
    }
}

impl AnswerBudget {
    fn new(timeout: Duration) -> Self {
        let now = Instant::now();
        Self {
            timeout,
            deadline: now + timeout,
            end: now + IN_ALL.max(timeout),
            messages: FOREIGN_MAX,
            bytes: FOREIGN_BYTES_MAX,
        }
    }

    fn refresh(&mut self) {
        self.deadline = Instant::now() + self.timeout;
    }

    /// Returns the timeout that expired.
    fn waited(&self) -> Duration {
        if self.end < self.deadline {
            IN_ALL.max(self.timeout)
        } else {
            self.timeout
        }
    }

    fn spend(&mut self, bytes: usize) -> Result<(), ClientError> {
        let messages = self.messages.checked_sub(1);
        self.messages = messages.ok_or(ClientError::Flood)?;
        self.bytes = self.bytes.checked_sub(bytes).ok_or(ClientError::Flood)?;
        Ok(())
    }
}

/// Interprets a line while the answer to request `id` is awaited.
fn meaning(id: i64, line: Line, budget: &mut AnswerBudget) -> Result<Meaning, ClientError> {
    let line = match line {
        Line::Whole(line) => line,
        Line::TooLong { bytes, .. } => return Err(ClientError::TooLong(bytes)),
    };
    if line.iter().all(u8::is_ascii_whitespace) {
        budget.spend(line.len())?;
        return Ok(Meaning::Foreign);
    }
    let message = read(&line).map_err(|why| match why {
        NoMessage::Cut => ClientError::Closed,
        NoMessage::Other => {
            let line = line.get(..STRAY_MAX).unwrap_or(&line);
            ClientError::NotMcp(String::from_utf8_lossy(line).into_owned().into())
        }
    })?;
    let meaning = message.meaning(id);
    if !matches!(meaning, Meaning::Result(_) | Meaning::Error(_)) {
        budget.spend(line.len())?;
    }
    Ok(meaning)
}

/// Checks an answer's limits before it is deserialized: a value takes many times more memory than its text.
fn bounded(method: &'static str, answer: Box<RawValue>) -> Result<Box<RawValue>, ClientError> {
    let text = answer.get().as_bytes();
    let why = if json::has_long_text(text, TEXT_MAX, &PAYLOAD, &FREE) {
        format!("it has a string of more than {TEXT_MAX} bytes in an unexpected place")
    } else {
        match json::count(text) {
            Some(..=ANSWER_VALUES_MAX) => return Ok(answer),
            Some(_) => format!("it has more than {ANSWER_VALUES_MAX} values"),
            None => format!("it is nested more than {DEPTH_MAX} levels deep"),
        }
    };
    Err(malformed(method, &why))
}

/// Converts a stream error: EOF, EPIPE and ECONNRESET all mean that the server is gone.
fn broken(why: io::Error) -> ClientError {
    match why.kind() {
        io::ErrorKind::BrokenPipe
        | io::ErrorKind::ConnectionReset
        | io::ErrorKind::ConnectionAborted
        | io::ErrorKind::NotConnected
        | io::ErrorKind::UnexpectedEof => ClientError::Closed,
        _ => ClientError::Stream(why),
    }
}

pub(super) fn malformed(method: &'static str, why: &str) -> ClientError {
    let why = why.into();
    ClientError::Malformed { method, why }
}

/// A message from the server, with unparsed members. A duplicate key is an error.
#[derive(Debug, Deserialize)]
struct ServerMessage<'a> {
    #[serde(borrow)]
    jsonrpc: Option<&'a RawValue>,
    #[serde(borrow)]
    id: Option<&'a RawValue>,
    #[serde(borrow)]
    method: Option<&'a RawValue>,
    #[serde(borrow)]
    params: Option<&'a RawValue>,
    #[serde(borrow, default, deserialize_with = "present")]
    result: Option<&'a RawValue>,
    #[serde(borrow)]
    error: Option<&'a RawValue>,
}

/// Reads a value that is present, even `null`: a `null` answer differs from a missing one.
fn present<'de, D: Deserializer<'de>>(from: D) -> Result<Option<&'de RawValue>, D::Error> {
    Deserialize::deserialize(from).map(Some)
}

/// The meaning of a message for the request in flight.
enum Meaning {
    Result(Box<RawValue>),
    /// An error, even one without an id, as only one request is in flight.
    Error(Box<RawValue>),
    Progress(Box<RawValue>),
    /// The reply to a request from the server.
    Asked(String),
    /// The fault in an invalid answer.
    Malformed(&'static str),
    Foreign,
}

#[derive(Serialize)]
struct OutgoingRequest<'a, P> {
    jsonrpc: &'static str,
    id: i64,
    method: &'a str,
    params: Params<'a, P>,
}

/// The parameters, with the token for progress reports.
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
    #[serde(flatten)]
    wish: Option<Wish>,
}

/// A key in the `_meta` of a request that only anklume's own client sends.
#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) enum Wish {
    /// See [`crate::mcp::ONE_COPY_KEY`].
    #[serde(rename = "anklume/one_copy")]
    OneCopy(bool),
    /// See [`crate::mcp::SERVICES_KEY`].
    #[serde(rename = "anklume/services")]
    Services(bool),
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ProgressParams<'a> {
    #[serde(borrow)]
    progress_token: &'a RawValue,
}

/// Returns a request as one line without its newline.
pub(super) fn request(
    id: i64,
    method: &str,
    params: &impl Serialize,
    wish: Option<Wish>,
) -> serde_json::Result<Vec<u8>> {
    serde_json::to_vec(&OutgoingRequest {
        jsonrpc: "2.0",
        id,
        method,
        params: Params {
            meta: Meta {
                progress_token: id,
                wish,
            },
            params,
        },
    })
}

/// The meaning of a server's message for a client with several requests in flight.
#[derive(Debug)]
pub(crate) enum Incoming {
    /// The answer to a request.
    Answer { id: i64, answer: UpstreamAnswer },
    /// Progress of the request with this token.
    Progress { token: i64, params: Box<RawValue> },
    /// The reply to a request from the server.
    Asked(String),
    /// The server says that its tools have changed.
    ToolsChanged,
    /// Nothing that concerns a request.
    Other,
}

/// The answer of a server, as it was received.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum UpstreamAnswer {
    /// The result of a request.
    Result(Box<RawValue>),
    /// A JSON-RPC error.
    Error(Box<RawValue>),
}

/// Interprets a line of a server.
pub(crate) fn incoming(line: &[u8]) -> Incoming {
    let Ok(message) = read(line) else {
        return Incoming::Other;
    };
    if let Some(method) = message.method {
        return match (message.id, method.get()) {
            (Some(asked), _) => Incoming::Asked(reply(method, asked)),
            (None, r#""notifications/tools/list_changed""#) => Incoming::ToolsChanged,
            (None, r#""notifications/progress""#) => progress(message.params),
            (None, _) => Incoming::Other,
        };
    }
    let Some(id) = message.answered() else {
        return Incoming::Other;
    };
    match message.meaning(id) {
        Meaning::Result(result) => Incoming::Answer {
            id,
            answer: UpstreamAnswer::Result(result),
        },
        Meaning::Error(error) => Incoming::Answer {
            id,
            answer: UpstreamAnswer::Error(error),
        },
        Meaning::Malformed(_) => Incoming::Answer {
            id,
            answer: UpstreamAnswer::Error(malformed_answer()),
        },
        Meaning::Progress(_) | Meaning::Asked(_) | Meaning::Foreign => Incoming::Other,
    }
}

/// The error in place of an answer that has neither a result nor an error.
fn malformed_answer() -> Box<RawValue> {
    let error =
        ErrorData::internal_error("the server's answer is neither a result nor an error", None);
    // Serialization of this type cannot fail.
    serde_json::value::to_raw_value(&error).unwrap_or_default()
}

fn progress(params: Option<&RawValue>) -> Incoming {
    let token = params
        .filter(|params| params.get().starts_with('{'))
        .and_then(|params| serde_json::from_str::<ProgressParams<'_>>(params.get()).ok())
        .and_then(|progress| progress.progress_token.get().parse().ok());
    match (token, params) {
        (Some(token), Some(params)) => Incoming::Progress {
            token,
            params: params.to_owned(),
        },
        _ => Incoming::Other,
    }
}

/// The reason why a line is not a message.
#[derive(Debug)]
enum NoMessage {
    /// The line is cut off, like the last line of a server that died.
    Cut,
    Other,
}

fn read(line: &[u8]) -> Result<ServerMessage<'_>, NoMessage> {
    // A serde error would quote the whole string.
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
    /// Interprets the message while request `id` is in flight.
    fn meaning(&self, id: i64) -> Meaning {
        let ours = self.id.is_some_and(|it| it.get() == id.to_string());
        match (self.method, self.id, self.result, self.error) {
            (Some(method), Some(asked), ..) => Meaning::Asked(reply(method, asked)),
            (Some(method), None, ..) => match self.progress(method, id) {
                Some(params) => Meaning::Progress(params.to_owned()),
                None => Meaning::Foreign,
            },
            (None, None, None, Some(error)) => Meaning::Error(error.to_owned()),
            (None, Some(_), result, error) if ours => match (result, error) {
                (None, Some(error)) => Meaning::Error(error.to_owned()),
                // Some servers write an absent result as `null`, which is harmless next to an error.
                (Some(result), Some(error)) if result.get() == "null" => {
                    Meaning::Error(error.to_owned())
                }
                (Some(result), None) if result.get() == "null" => {
                    Meaning::Malformed("its `result` is null")
                }
                (Some(result), None) => Meaning::Result(result.to_owned()),
                (Some(_), Some(_)) => Meaning::Malformed("it has both `result` and `error`"),
                (None, None) => Meaning::Malformed("it has neither `result` nor `error`"),
            },
            _ => Meaning::Foreign,
        }
    }

    /// Returns the id of the request that this message answers, if it is one of ours.
    fn answered(&self) -> Option<i64> {
        self.method.is_none().then_some(())?;
        self.id?.get().parse().ok()
    }

    /// Returns the parameters of a report about the progress of this request.
    fn progress(&self, method: &RawValue, id: i64) -> Option<&RawValue> {
        let params = self.params.filter(|params| params.get().starts_with('{'))?;
        let progress: ProgressParams<'_> = serde_json::from_str(params.get()).ok()?;
        let is_ours = method.get() == r#""notifications/progress""#
            && progress.progress_token.get() == id.to_string();
        is_ours.then_some(params)
    }
}

/// Replies to a server's request: `ping` gets a result, any other method gets an error.
fn reply(method: &RawValue, id: &RawValue) -> String {
    /// Maximum length of an id that the reply repeats, in bytes.
    const ID_MAX: usize = 256;
    let id = id.get();
    if id.len() > ID_MAX {
        r#"{"jsonrpc":"2.0","error":{"code":-32600,"message":"`id` has more than 256 bytes"}}"#
            .to_owned()
    } else if method.get() == r#""ping""# {
        format!(r#"{{"jsonrpc":"2.0","id":{id},"result":{{}}}}"#)
    } else {
        format!(
            r#"{{"jsonrpc":"2.0","id":{id},"error":{{"code":-32601,"message":"this client supports no such method"}}}}"#
        )
    }
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
                Meaning::Progress(_) => "progress".to_owned(),
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
