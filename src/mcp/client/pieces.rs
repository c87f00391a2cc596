//! Sends and fetches payloads that are too large for one call, in pieces and in constant memory.
//!
//! A tool's schemas, not its name, show whether it transfers pieces, because a service has its own name.

use std::collections::VecDeque;
use std::fmt;
use std::fs::File;
use std::io::{self, Read, Write};
use std::pin::pin;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rmcp::model::{CallToolResult, Tool};
use serde::ser::SerializeMap as _;
use serde::{Serialize, Serializer};
use serde_json::value::RawValue;
use serde_json::{Map, Value};
use tokio::io::{AsyncRead, AsyncWrite};

use super::exchange::malformed;
use super::{CALL, Called, Client, ClientError};
use crate::catalogue::{ONE_CALL_MAX, PIECE};
use crate::digest::{Digester, sha256};
use crate::dir::write_in_parts;
use crate::mcp::BASE64_KEY;
use crate::text::Foreign;

/// Maximum size of a fetched file, in bytes: a hostile server must not fill the disk.
const FETCH_MAX: u64 = 4 * 1024 * 1024 * 1024;

/// The direction in which a tool transfers pieces.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Pieces {
    None,
    /// To the tool.
    Up {
        /// The argument, encoded as base64 on the wire.
        argument: String,
        /// True if the tool also takes the size of the whole payload.
        size: bool,
        /// True if the tool also takes the digest of the whole payload.
        digest: bool,
    },
    /// From the tool.
    Down,
}

/// Derives the direction in which a tool transfers pieces from its schemas.
pub(crate) fn of(tool: &Tool) -> Pieces {
    let has = |name: &str| argument(tool, name).is_some();
    let output = tool.output_schema.as_ref();
    let gives = |name: &str| output.is_some_and(|schema| property(schema, name).is_some());
    let encoded: Vec<&String> = arguments(tool)
        .filter(|name| is_base64(tool, name))
        .collect();
    match encoded.as_slice() {
        [argument] if has("offset") && has("final") && gives("complete") => Pieces::Up {
            argument: (*argument).clone(),
            size: has("size"),
            digest: has("sha256"),
        },
        [] if has("offset") && has("length") && gives("complete") && gives("size") => Pieces::Down,
        _ => Pieces::None,
    }
}

/// Returns the names of a tool's arguments, in schema order.
pub(crate) fn arguments(tool: &Tool) -> impl Iterator<Item = &String> {
    let properties = tool.input_schema.get("properties");
    let names = properties.and_then(Value::as_object).map(Map::keys);
    names.into_iter().flatten()
}

/// Returns the schema of one argument of a tool.
pub(crate) fn argument<'a>(tool: &'a Tool, name: &str) -> Option<&'a Value> {
    property(&tool.input_schema, name)
}

/// Returns whether an argument takes base64, according to our own servers' `_meta` or JSON Schema's `contentEncoding`.
pub(crate) fn is_base64(tool: &Tool, name: &str) -> bool {
    let marks = tool.meta.as_ref().and_then(|meta| meta.0.get(BASE64_KEY));
    let mut marked = marks.and_then(Value::as_array).into_iter().flatten();
    let encoding = argument(tool, name).and_then(|schema| schema.get("contentEncoding"));
    marked.any(|marked| marked == name) || encoding.is_some_and(|encoding| encoding == "base64")
}

fn property<'a>(schema: &'a Map<String, Value>, name: &str) -> Option<&'a Value> {
    schema.get("properties")?.get(name)
}

/// Maximum size of sent content, in bytes: a stream may be endless.
const SEND_MAX: u64 = 4 * 1024 * 1024 * 1024;

/// Bytes from a file, a pipe or memory, read in another thread so that waiting can be interrupted.
pub(crate) struct PayloadSource {
    /// `None` during a read.
    reader: Option<Box<dyn Read + Send>>,
    /// The number of bytes, if it is known.
    size: Option<u64>,
    /// Of everything that [`Self::piece`] and [`Self::skip`] have read.
    whole: Digester,
}

/// A piece of a payload, in base64.
#[derive(Debug)]
struct EncodedPiece {
    /// A JSON string, which is sent as it is: base64 needs no escapes.
    json: Box<RawValue>,
    /// Number of bytes before base64.
    bytes: u64,
}

impl fmt::Debug for PayloadSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Source")
    }
}

impl PayloadSource {
    pub(crate) fn new(reader: impl Read + Send + 'static) -> Self {
        let reader: Box<dyn Read + Send> = Box::new(reader);
        Self {
            reader: Some(reader),
            size: None,
            whole: Digester::default(),
        }
    }

    /// The content of a file; its size is known if it is a regular one.
    pub(crate) fn of_file(file: File) -> Self {
        let metadata = file.metadata().ok();
        let regular = metadata.filter(std::fs::Metadata::is_file);
        Self {
            // Files in /proc report no size even if they have content.
            size: regular
                .map(|metadata| metadata.len())
                .filter(|size| *size > 0),
            ..Self::new(file)
        }
    }

    /// Prepends bytes that were already read.
    pub(crate) fn after(self, start: Vec<u8>) -> Self {
        let rest = self.reader.unwrap_or_else(|| Box::new(io::empty()));
        Self {
            size: self.size,
            ..Self::new(io::Cursor::new(start).chain(rest))
        }
    }

    /// Reads the next `length` bytes only to digest them; returns false at the end.
    async fn skip(&mut self, length: u64) -> io::Result<bool> {
        let mut left = length;
        while left > 0 {
            let piece = self.read(left.min(PIECE)).await?;
            if piece.is_empty() {
                return Ok(false);
            }
            self.whole.add(&piece);
            left = left.saturating_sub(u64::try_from(piece.len()).unwrap_or(u64::MAX));
        }
        Ok(true)
    }

    /// Reads the next `limit` bytes, or fewer at the end.
    pub(crate) async fn read(&mut self, limit: u64) -> io::Result<Vec<u8>> {
        self.in_thread(move |reader, _| read_up_to(reader, limit))
            .await
    }

    /// Reads, digests and encodes the next piece, which is empty at the end.
    async fn piece(&mut self) -> io::Result<EncodedPiece> {
        self.in_thread(|reader, whole| {
            let bytes = read_up_to(reader, PIECE)?;
            whole.add(&bytes);
            let mut json = String::with_capacity(bytes.len().div_ceil(3) * 4 + 2);
            json.push('"');
            STANDARD.encode_string(&bytes, &mut json);
            json.push('"');
            Ok(EncodedPiece {
                json: RawValue::from_string(json)?,
                bytes: bytes.len() as u64,
            })
        })
        .await
    }

    /// Runs blocking work on the reader in another thread.
    async fn in_thread<T: Send + 'static>(
        &mut self,
        work: impl FnOnce(&mut dyn Read, &mut Digester) -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        let Some(mut reader) = self.reader.take() else {
            return Err(io::Error::other("an earlier read has not ended"));
        };
        let mut whole = std::mem::take(&mut self.whole);
        let done = tokio::task::spawn_blocking(move || {
            let outcome = work(&mut reader, &mut whole);
            (reader, whole, outcome)
        });
        let (reader, whole, outcome) = done.await.map_err(io::Error::other)?;
        (self.reader, self.whole) = (Some(reader), whole);
        outcome
    }
}

fn read_up_to(reader: &mut dyn Read, limit: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::with_capacity(usize::try_from(limit.min(PIECE)).unwrap_or_default());
    reader.take(limit).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// A payload to send in pieces.
#[derive(Debug)]
pub(crate) struct ArgumentPayload {
    /// The argument.
    pub(crate) name: String,
    /// True if the tool takes the size of the whole payload.
    pub(crate) size: bool,
    /// True if the tool takes a digest of the whole payload.
    pub(crate) digest: bool,
    /// True if the tool keeps what it received of a payload of known size when the connection breaks.
    pub(crate) resume: bool,
    /// The bytes.
    pub(crate) source: PayloadSource,
}

/// Called with the number of bytes transferred so far, and with their total if it is known.
pub(crate) type Moved<'a> = &'a mut (dyn FnMut(u64, Option<u64>) + Send);

/// The reason why a piecewise transfer failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PiecesError {
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error("the content cannot be read: {0}")]
    Read(#[source] io::Error),
    #[error("the content has more than {SEND_MAX} bytes, the maximum that can be sent")]
    TooLarge,
    #[error(
        "the content has {0} bytes, of which at most {FETCH_MAX} are fetched; name a part with `offset` and `length`"
    )]
    TooLargeToFetch(u64),
    #[error("the content cannot be stored: {0}")]
    Keep(#[source] io::Error),
    /// What an earlier connection sent differs from the content; it has been discarded.
    #[error("the content changed while it was sent")]
    Changed,
}

/// The parameters of a call with a piece.
#[derive(Serialize)]
struct PieceCall<'a> {
    name: &'a str,
    arguments: PieceArguments<'a>,
}

struct PieceArguments<'a> {
    others: &'a Map<String, Value>,
    more: &'a [(&'a str, Value)],
    payload: (&'a str, &'a RawValue),
}

impl Serialize for PieceArguments<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        for (key, value) in self.others {
            map.serialize_entry(key, value)?;
        }
        for (key, value) in self.more {
            map.serialize_entry(key, value)?;
        }
        map.serialize_entry(self.payload.0, self.payload.1)?;
        map.end()
    }
}

/// Maximum number of pieces that are sent before the first of them is answered.
const IN_FLIGHT_MAX: usize = 2;

/// Returns the number of bytes sent so far, including this piece.
fn sent(offset: u64, piece: u64) -> Result<u64, PiecesError> {
    let end = offset.saturating_add(piece);
    let fits = (end <= SEND_MAX).then_some(end);
    fits.ok_or(PiecesError::TooLarge)
}

/// Fetched content.
#[derive(Debug)]
pub(crate) enum Fetched<F> {
    /// The whole content in one answer, or a tool failure.
    Whole(Called),
    /// The last answer, without its content, and the file with the pieces.
    Pieces(Foreign<CallToolResult>, F),
}

/// The header of a piece.
#[derive(Debug)]
struct AnswerPiece {
    size: u64,
    offset: u64,
    complete: bool,
    sha256: Option<String>,
}

impl<R: AsyncRead + Unpin, W: AsyncWrite + Unpin> Client<R, W> {
    /// Sends a payload in pieces; returns the answer to the last piece, or the first tool failure. If the tool takes the
    /// size, a payload of known size is announced first, so that one that does not fit is not sent.
    pub(crate) async fn send_pieces(
        &mut self,
        tool: &str,
        arguments: &Map<String, Value>,
        payload: ArgumentPayload,
        moved: Moved<'_>,
    ) -> Result<Called, PiecesError> {
        let ArgumentPayload {
            name,
            size,
            digest,
            resume,
            mut source,
        } = payload;
        let mut arguments = arguments.clone();
        let mut offset: u64 = 0;
        let total = source.size;
        if let Some(known) = source.size {
            if known > SEND_MAX {
                return Err(PiecesError::TooLarge);
            }
            if size {
                arguments.entry("size").or_insert(known.into());
                let mut first = arguments.clone();
                first.insert(name.clone(), "".into());
                first.insert("offset".to_owned(), 0.into());
                if resume {
                    first.insert("resume".to_owned(), true.into());
                }
                let called = self.call(tool, first, false).await?;
                if called.has_failed() {
                    return Ok(called);
                }
                if resume {
                    offset = received(&called)?.min(known);
                    let is_there = source.skip(offset).await.map_err(PiecesError::Read)?;
                    if !is_there || differs(&called, offset, &source.whole) {
                        self.discard(tool, &arguments, &name, offset).await?;
                        return Err(PiecesError::Changed);
                    }
                }
            }
        }
        let mut piece = source.piece().await.map_err(PiecesError::Read)?;
        let mut next = source.piece().await.map_err(PiecesError::Read)?;
        let mut in_flight = VecDeque::new();
        loop {
            let last = next.bytes == 0;
            let end = sent(offset, piece.bytes)?;
            let mut more = vec![("offset", offset.into()), ("final", last.into())];
            if last && digest && !arguments.contains_key("sha256") {
                more.push(("sha256", source.whole.clone().end().into()));
            }
            let call = PieceCall {
                name: tool,
                arguments: PieceArguments {
                    others: &arguments,
                    more: &more,
                    payload: (&name, &piece.json),
                },
            };
            in_flight.push_back((self.exchange.begin(CALL, &call, None)?, end));
            offset = end;
            if last {
                break;
            }
            let after = if in_flight.len() < IN_FLIGHT_MAX {
                source.piece().await
            } else {
                // While the server takes the oldest piece, another one is prepared.
                let (id, end) = in_flight.pop_front().ok_or(ClientError::Closed)?;
                let mut after = pin!(source.piece());
                let mut prepared = None;
                let called = {
                    let mut answer = pin!(self.answer(id));
                    loop {
                        tokio::select! {
                            called = &mut answer => break called?,
                            piece = &mut after, if prepared.is_none() => prepared = Some(piece),
                        }
                    }
                };
                // A refusal does not wait for a source that stalls.
                if called.has_failed() {
                    return Ok(called);
                }
                moved(end, total);
                match prepared {
                    Some(piece) => piece,
                    None => after.await,
                }
            };
            (piece, next) = (next, after.map_err(PiecesError::Read)?);
        }
        loop {
            let (id, end) = in_flight.pop_front().ok_or(ClientError::Closed)?;
            let called = self.answer(id).await?;
            if called.has_failed() || in_flight.is_empty() {
                return Ok(called);
            }
            moved(end, total);
        }
    }

    /// Has the server discard the `offset` bytes that it received over an earlier connection: as if they were the whole.
    async fn discard(
        &mut self,
        tool: &str,
        arguments: &Map<String, Value>,
        name: &str,
        offset: u64,
    ) -> Result<(), ClientError> {
        let mut last = arguments.clone();
        last.insert(name.to_owned(), "".into());
        last.insert("offset".to_owned(), offset.into());
        last.insert("final".to_owned(), true.into());
        // A digest that no content has.
        last.insert("sha256".to_owned(), "0".repeat(64).into());
        self.call(tool, last, false).await.map(drop)
    }

    /// Queues the request of the piece at `offset`; returns its id.
    fn ask_piece(
        &mut self,
        tool: &str,
        arguments: &Map<String, Value>,
        offset: u64,
        resume: bool,
    ) -> Result<i64, ClientError> {
        let mut arguments = arguments.clone();
        let length = if offset == 0 { ONE_CALL_MAX } else { PIECE };
        arguments.insert("offset".to_owned(), offset.into());
        arguments.insert("length".to_owned(), length.into());
        if resume {
            arguments.insert("resume".to_owned(), true.into());
        }
        self.begin(tool, arguments, true)
    }

    /// Fetches a payload in one call if it fits, otherwise in pieces into the file that `new` makes for that many bytes;
    /// checks the digest of the whole. After a broken connection, a call over another one goes on with `fetching`.
    pub(crate) async fn fetch<F: Write>(
        &mut self,
        tool: &str,
        arguments: &Map<String, Value>,
        fetching: &mut Fetching<F>,
        new: impl FnOnce(u64) -> io::Result<F>,
        moved: Moved<'_>,
    ) -> Result<Fetched<F>, PiecesError> {
        let mut new = Some(new);
        let resume = fetching.offset > 0;
        let mut asked = self.ask_piece(tool, arguments, fetching.offset, resume)?;
        loop {
            let offset = fetching.offset;
            let called = self.answer(asked).await?;
            if called.has_failed() {
                return Ok(Fetched::Whole(called));
            }
            let (piece, bytes) = read_piece(called.result.raw())?;
            if offset == 0 && piece.complete {
                check_whole(&piece, &bytes)?;
                return Ok(Fetched::Whole(called));
            }
            let size = *fetching.size.get_or_insert(piece.size);
            check(&piece, offset, &bytes, size)?;
            let next = offset + bytes.len() as u64;
            if !piece.complete {
                // The server prepares the next piece while this one is kept.
                asked = self.ask_piece(tool, arguments, next, false)?;
                self.exchange.send(self.timeouts.call).await?;
            }
            fetching.whole.add(&bytes);
            let file = match (&mut fetching.file, new.take()) {
                (Some(file), _) => file,
                (none, Some(new)) => none.insert(new(size).map_err(PiecesError::Keep)?),
                // `new` made one before.
                (None, None) => return Err(wrong("a piece has no file")),
            };
            write_in_parts(file, &bytes).map_err(PiecesError::Keep)?;
            fetching.offset = next;
            moved(fetching.offset, Some(size));
            if let Some(file) = fetching.file.take_if(|_| piece.complete) {
                if piece.sha256 != Some(fetching.whole.clone().end()) {
                    return Err(wrong(
                        "the digest of the pieces does not match that of the whole",
                    ));
                }
                let result = called.result.map(|mut result| {
                    result.content.clear();
                    result
                });
                return Ok(Fetched::Pieces(result, file));
            }
        }
    }
}

/// What was fetched of a payload before a connection broke.
#[derive(Debug)]
pub(crate) struct Fetching<F> {
    file: Option<F>,
    whole: Digester,
    offset: u64,
    size: Option<u64>,
}

impl<F> Default for Fetching<F> {
    fn default() -> Self {
        Self {
            file: None,
            whole: Digester::default(),
            offset: 0,
            size: None,
        }
    }
}

/// Returns how much of a payload the server has received over earlier connections, in bytes.
fn received(called: &Called) -> Result<u64, PiecesError> {
    let content = called.result.raw().structured_content.as_ref();
    let size = content.and_then(|content| content.get("size")?.as_u64());
    size.ok_or_else(|| wrong("it lacks `size`"))
}

/// Returns whether what the server has received differs from the first `offset` bytes of the payload.
fn differs(called: &Called, offset: u64, start: &Digester) -> bool {
    let content = called.result.raw().structured_content.as_ref();
    let digest = content.and_then(|content| content.get("sha256")?.as_str());
    offset > 0 && digest != Some(&start.clone().end())
}

fn read_piece(result: &CallToolResult) -> Result<(AnswerPiece, Vec<u8>), PiecesError> {
    let content = result.structured_content.as_ref();
    let member = |name: &str| content.and_then(|content| content.get(name));
    let number = |name: &str| {
        let number = member(name).and_then(Value::as_u64);
        number.ok_or_else(|| wrong(&format!("a piece lacks `{name}`")))
    };
    let complete = member("complete").and_then(Value::as_bool);
    let piece = AnswerPiece {
        size: number("size")?,
        offset: number("offset")?,
        complete: complete.ok_or_else(|| wrong("a piece lacks `complete`"))?,
        sha256: member("sha256").and_then(Value::as_str).map(str::to_owned),
    };
    let mut bytes = Vec::new();
    for block in result.content.iter().filter_map(|block| block.as_text()) {
        STANDARD
            .decode_vec(&block.text, &mut bytes)
            .map_err(|why| wrong(&format!("a piece is not base64: {why}")))?;
    }
    Ok((piece, bytes))
}

fn check(piece: &AnswerPiece, offset: u64, bytes: &[u8], size: u64) -> Result<(), PiecesError> {
    let end = offset + bytes.len() as u64;
    if size > FETCH_MAX {
        return Err(PiecesError::TooLargeToFetch(size));
    }
    if piece.size != size {
        return Err(wrong("the file changed while it was fetched; try again"));
    }
    if piece.offset != offset || end > size || piece.complete != (end == size) {
        return Err(wrong("the pieces are out of order"));
    }
    if bytes.is_empty() {
        return Err(wrong("a piece is empty"));
    }
    Ok(())
}

/// Checks the size and digest of a file that arrived in one answer.
fn check_whole(piece: &AnswerPiece, bytes: &[u8]) -> Result<(), PiecesError> {
    if piece.offset != 0 || piece.size != bytes.len() as u64 {
        return Err(wrong("the content does not have its declared size"));
    }
    if piece.sha256 != Some(sha256(bytes)) {
        return Err(wrong("the content does not have its declared digest"));
    }
    Ok(())
}

fn wrong(why: &str) -> PiecesError {
    malformed(CALL, why).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tool(input: &str, output: &str) -> Tool {
        serde_json::from_str(&format!(
            r#"{{"name":"t","inputSchema":{{"type":"object","properties":{input}}},
                "outputSchema":{{"type":"object","properties":{output}}}}}"#
        ))
        .unwrap()
    }

    #[test]
    fn what_is_sent_has_an_end() {
        assert_eq!(sent(SEND_MAX - 2, 2).unwrap(), SEND_MAX);
        assert_eq!(
            sent(SEND_MAX - 1, 2).unwrap_err().to_string(),
            "the content has more than 4294967296 bytes, the maximum that can be sent"
        );
    }

    #[test]
    fn a_file_in_one_answer_is_what_the_answer_says() {
        let digest = sha256(b"hi");
        let says = |size, offset, sha256: Option<&str>| {
            let piece = AnswerPiece {
                size,
                offset,
                complete: true,
                sha256: sha256.map(str::to_owned),
            };
            check_whole(&piece, b"hi").map_err(|why| why.to_string())
        };
        assert_eq!(says(2, 0, Some(&digest)), Ok(()));
        let refused = |why| {
            Err(format!(
                "the server's answer to `tools/call` is unusable: the content does not have its declared {why}"
            ))
        };
        assert_eq!(says(3, 0, Some(&digest)), refused("size"));
        assert_eq!(says(2, 1, Some(&digest)), refused("size"));
        assert_eq!(says(2, 0, Some("00")), refused("digest"));
        assert_eq!(says(2, 0, None), refused("digest"));
    }

    #[test]
    fn pieces_are_used_only_where_both_schemas_know_them() {
        let data = r#""data":{"type":"string","contentEncoding":"base64"},"offset":{},"final":{}"#;
        let up = |digest| Pieces::Up {
            argument: "data".to_owned(),
            size: false,
            digest,
        };
        let cases = [
            (format!("{{{data}}}"), r#"{"complete":{}}"#, up(false)),
            (
                format!(r#"{{{data},"sha256":{{}}}}"#),
                r#"{"complete":{}}"#,
                up(true),
            ),
            (format!("{{{data}}}"), "{}", Pieces::None),
            (
                r#"{"path":{},"offset":{},"length":{}}"#.to_owned(),
                r#"{"complete":{},"size":{}}"#,
                Pieces::Down,
            ),
            // Another server's tool, whose offset may count lines.
            (
                r#"{"path":{},"offset":{},"length":{}}"#.to_owned(),
                "{}",
                Pieces::None,
            ),
            ("{}".to_owned(), "{}", Pieces::None),
        ];
        for (input, output, expected) in cases {
            assert_eq!(of(&tool(&input, output)), expected, "{input} {output}");
        }
    }
}
