//! Connects a client's stdin and stdout to a provider's socket.
//!
//! The channel has no half-close: the end of the client's requests is not passed on, and the relay ends when every
//! request is answered. It outlives its provider: requests in flight are answered with an error, and the client's next
//! message opens another connection, on which the handshake is repeated. Messages are passed on unchanged, except for the
//! answer to `initialize`, which is edited to declare that the tool list may change.

#[cfg(test)]
mod tests;
mod tracking;

use std::io;
use std::mem;
use std::time::Duration;

use serde_json::json;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::time::timeout;

use crate::mcp::LINE_MAX;
use crate::mcp::framing::LineSplitter;
use tracking::{Handshake, PendingAnswers};

/// Maximum size of one read, in bytes.
const CHUNK: usize = 64 * 1024;
/// Timeout for the repeated handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// Code of the errors that replace the answers of a lost provider (the official SDKs' `ConnectionClosed`).
const CLOSED: i32 = -32000;
/// The notification sent to a client after a reconnection.
const LIST_CHANGED: &[u8] =
    b"{\"jsonrpc\":\"2.0\",\"method\":\"notifications/tools/list_changed\"}\n";

/// The reason why a relay ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RelayEnd {
    /// The client's input ended, and every request has been answered.
    InOrder,
    /// The provider closed the connection.
    Vanished {
        /// Number of answers that are still due.
        unanswered: usize,
        /// True if the provider sent anything.
        spoke: bool,
    },
    /// The client's input ended, and the provider was silent for too long.
    Silent {
        /// Number of answers that are still due.
        unanswered: usize,
    },
    /// A provider that came back did not accept the repeated handshake.
    NotGreeted,
    /// The provider closed the connection before the handshake was repeated.
    Closed,
    /// The client no longer reads stdout.
    Unheard,
}

/// A client, across all connections to its provider.
#[derive(Debug)]
pub(crate) struct Relay<I, O, G> {
    input: I,
    output: O,
    is_gone: G,
    state: RelayState,
    handshake: Handshake,
}

impl<I, O, G> Relay<I, O, G>
where
    I: AsyncRead + Unpin,
    O: AsyncWrite + Unpin,
    G: Fn() -> bool,
{
    /// Creates a relay for the client's requests and answers. `is_gone` returns whether every process that could write
    /// requests is gone, though some requests may still be unread.
    pub(crate) fn new(input: I, output: O, is_gone: G) -> Self {
        Self {
            input,
            output,
            is_gone,
            state: RelayState::default(),
            handshake: Handshake::default(),
        }
    }

    /// Returns whether the client may send more.
    pub(crate) fn is_open(&self) -> bool {
        !self.state.input_ended && !(self.is_gone)()
    }

    /// Relays until one side ends. `max_silence` limits the provider's silence once the client's input has ended, and the
    /// repeated handshake.
    /// Fails if the client's input cannot be read.
    pub(crate) async fn run(
        &mut self,
        mut reader: impl AsyncRead + Unpin,
        mut writer: impl AsyncWrite + Unpin,
        max_silence: Duration,
    ) -> io::Result<RelayEnd> {
        if self.handshake.request().is_some() {
            let greeting = self.greet(&mut reader, &mut writer);
            match timeout(max_silence.min(HANDSHAKE_TIMEOUT), greeting).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) if error.kind() != io::ErrorKind::InvalidData => {
                    return Ok(RelayEnd::Closed);
                }
                _ => return Ok(RelayEnd::NotGreeted),
            }
            if !self.tell(LIST_CHANGED).await {
                return Ok(RelayEnd::Unheard);
            }
        }
        let pending = mem::take(&mut self.state.pending_input);
        if !pending.is_empty() {
            self.state.sent(&pending, &mut self.handshake);
        }
        let mut from_client = vec![0; CHUNK];
        let mut from_provider = vec![0; CHUNK];
        loop {
            let state = &mut self.state;
            if state.is_done() {
                return Ok(self.end(RelayEnd::InOrder).await);
            }
            tokio::select! {
                read = self.input.read(&mut from_client), if state.wants_input() => {
                    let bytes = from_client.get(..read?).unwrap_or_default();
                    state.sent(bytes, &mut self.handshake);
                }
                written = writer.write(&state.outgoing), if !state.outgoing.is_empty() => {
                    match written.unwrap_or(0) {
                        0 => {
                            state.write_closed = true;
                            state.outgoing.clear();
                        }
                        count => drop(state.outgoing.drain(..count)),
                    }
                }
                read = timeout(state.max_silence(max_silence), reader.read(&mut from_provider)) => {
                    match read.map(|read| read.unwrap_or(0)) {
                        Ok(0) => {
                            let end = state.vanished();
                            return Ok(self.end(end).await);
                        }
                        Ok(count) => {
                            let bytes = from_provider.get(..count).unwrap_or_default();
                            let out = state.received(bytes, &mut self.handshake);
                            if !self.tell(&out).await {
                                return Ok(RelayEnd::Unheard);
                            }
                        }
                        Err(_) if state.write_closed || !self.is_open() => {
                            return Ok(self.state.silent());
                        }
                        // While the client is alive, the provider may have a reason not to read.
                        Err(_) => {}
                    }
                }
            }
        }
    }

    /// Answers in place of a lost provider, and waits for the next message; returns false at the end of the input.
    pub(crate) async fn outlive(&mut self, why: &str) -> io::Result<bool> {
        let mut is_open = self.give_up(why).await;
        // Handles the rest of a message whose beginning was sent to the lost provider.
        while is_open && self.state.requests.is_within_a_line() {
            is_open = self.answer_one(why).await?;
        }
        Ok(is_open && self.wait().await?)
    }

    /// Answers every request in flight with an error; returns false if the client is gone.
    pub(crate) async fn give_up(&mut self, why: &str) -> bool {
        let mut out = self.state.forget_provider();
        out.extend(self.state.errors(why));
        self.tell(&out).await
    }

    /// Refuses the pending message, as the provider is unreachable, and waits for the next; returns false at the end.
    pub(crate) async fn refuse(&mut self, why: &str) -> io::Result<bool> {
        Ok(self.answer_one(why).await? && self.wait().await?)
    }

    /// Waits for input; returns false at its end.
    async fn wait(&mut self) -> io::Result<bool> {
        self.state.pending_input = self.next_bytes().await?;
        self.state.input_ended = self.state.pending_input.is_empty();
        Ok(!self.state.input_ended)
    }

    /// Returns the client's next bytes; none at the end of the input.
    async fn next_bytes(&mut self) -> io::Result<Vec<u8>> {
        let mut bytes = mem::take(&mut self.state.pending_input);
        if bytes.is_empty() {
            bytes = vec![0; CHUNK];
            let count = self.input.read(&mut bytes).await?;
            bytes.truncate(count);
        }
        Ok(bytes)
    }

    /// Reads the rest of one message, and answers it with an error; returns false at the end.
    async fn answer_one(&mut self, why: &str) -> io::Result<bool> {
        loop {
            let mut bytes = self.next_bytes().await?;
            let state = &mut self.state;
            let line = if bytes.is_empty() {
                state.input_ended = true;
                state.requests.last()
            } else {
                let (used, line) = state.requests.take(&bytes);
                state.pending_input = bytes.split_off(used);
                line
            };
            let input_ended = state.input_ended;
            if let Some(line) = &line {
                self.handshake.sent(line);
                state.pending_answers.sent(line);
                let out = state.errors(why);
                return Ok(self.tell(&out).await && !input_ended);
            }
            if input_ended {
                return Ok(false);
            }
        }
    }

    /// Repeats the handshake on a new connection; drops other messages from the provider.
    async fn greet<R, W>(&mut self, reader: &mut R, writer: &mut W) -> io::Result<()>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        let request = self.handshake.request().unwrap_or_default();
        writer.write_all(request).await?;
        let mut answers = LineSplitter::default();
        let mut bytes = vec![0; CHUNK];
        let mut is_accepted = None;
        // Reads to the end of a line; otherwise, the client would get the rest of it.
        while is_accepted.is_none() || answers.is_within_a_line() {
            let count = reader.read(&mut bytes).await?;
            if count == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            answers.take_all(bytes.get(..count).unwrap_or_default(), |line| {
                is_accepted = is_accepted.or_else(|| self.handshake.is_accepted(line));
            });
        }
        if is_accepted != Some(true) {
            return Err(io::ErrorKind::InvalidData.into());
        }
        writer.write_all(&self.handshake.notification).await
    }

    /// Ends the relay. Passes on the provider's unfinished line only if the client will get nothing more: if another
    /// provider may take over, the line would be a partial answer.
    async fn end(&mut self, end: RelayEnd) -> RelayEnd {
        let rest = if self.is_open() {
            Vec::new()
        } else {
            mem::take(&mut self.state.unfinished.bytes)
        };
        if self.tell(&rest).await {
            end
        } else {
            RelayEnd::Unheard
        }
    }

    /// Writes to the client; returns false if it is gone.
    async fn tell(&mut self, bytes: &[u8]) -> bool {
        let written = self.output.write_all(bytes).await;
        written.and(self.output.flush().await).is_ok()
    }
}

#[derive(Debug, Default)]
struct RelayState {
    /// Requests not yet written: writing must not block reading the provider's answers.
    outgoing: Vec<u8>,
    /// Client input that has been read but not yet processed.
    pending_input: Vec<u8>,
    unfinished: UnfinishedAnswer,
    requests: LineSplitter,
    answers: LineSplitter,
    pending_answers: PendingAnswers,
    /// True if no more requests will come.
    input_ended: bool,
    /// True if the provider no longer reads; its earlier output must still be read.
    write_closed: bool,
    spoke: bool,
}

/// The beginning of an incomplete answer.
#[derive(Debug, Default)]
struct UnfinishedAnswer {
    bytes: Vec<u8>,
    /// True if the client already has the earlier bytes: the answer was too long to be held back.
    is_passed_on: bool,
}

impl RelayState {
    fn is_done(&self) -> bool {
        self.input_ended
            && !self.write_closed
            && self.outgoing.is_empty()
            && self.pending_answers.is_empty()
    }

    fn wants_input(&self) -> bool {
        !self.input_ended && !self.write_closed && self.outgoing.is_empty()
    }

    fn max_silence(&self, after_input: Duration) -> Duration {
        if self.wants_input() {
            Duration::MAX
        } else {
            after_input
        }
    }

    /// Notes input from the client; adds a missing newline to the last line, as no server would answer it otherwise.
    fn sent(&mut self, bytes: &[u8], handshake: &mut Handshake) {
        if bytes.is_empty() {
            self.input_ended = true;
            if let Some(line) = self.requests.last() {
                self.outgoing.push(b'\n');
                self.pending_answers.sent(&line);
            }
            return;
        }
        self.outgoing.extend_from_slice(bytes);
        self.requests.take_all(bytes, |line| {
            handshake.sent(line);
            self.pending_answers.sent(line);
        });
    }

    /// Notes output from the provider; returns the part to be sent to the client now.
    fn received(&mut self, bytes: &[u8], handshake: &mut Handshake) -> Vec<u8> {
        self.spoke = true;
        let mut out = Vec::with_capacity(bytes.len());
        let mut rest = bytes;
        while !rest.is_empty() {
            let (used, line) = self.answers.take(rest);
            let (part, after) = rest.split_at_checked(used).unwrap_or((rest, &[]));
            rest = after;
            self.unfinished.bytes.extend_from_slice(part);
            let Some(line) = line else { continue };
            self.pending_answers.received(&line);
            let answer = mem::take(&mut self.unfinished);
            let changed = handshake.answered(&line);
            let changed = changed.filter(|_| !answer.is_passed_on);
            out.extend(changed.unwrap_or(answer.bytes));
        }
        if self.unfinished.bytes.len() > LINE_MAX {
            out.append(&mut self.unfinished.bytes);
            self.unfinished.is_passed_on = true;
        }
        out
    }

    /// Returns errors in place of all answers that are still due.
    fn errors(&mut self, why: &str) -> Vec<u8> {
        let error = json!({"code": CLOSED, "message": why});
        let ids = self.pending_answers.give_up();
        let line = |id| format!("{{\"jsonrpc\":\"2.0\",\"id\":{id},\"error\":{error}}}\n");
        ids.iter().map(line).collect::<String>().into_bytes()
    }

    /// Forgets a lost connection; returns the newline that ends an answer whose beginning the client already has.
    fn forget_provider(&mut self) -> Vec<u8> {
        self.outgoing.clear();
        self.answers = LineSplitter::default();
        (self.write_closed, self.spoke) = (false, false);
        if mem::take(&mut self.unfinished).is_passed_on {
            b"\n".to_vec()
        } else {
            Vec::new()
        }
    }

    fn vanished(&self) -> RelayEnd {
        RelayEnd::Vanished {
            unanswered: self.pending_answers.count(),
            spoke: self.spoke,
        }
    }

    fn silent(&self) -> RelayEnd {
        if self.write_closed {
            return self.vanished();
        }
        if self.spoke && self.outgoing.is_empty() && self.pending_answers.no_request() {
            // Some servers do not answer a line that is not a request.
            return RelayEnd::InOrder;
        }
        RelayEnd::Silent {
            unanswered: self.pending_answers.count(),
        }
    }
}
