//! Joins a client's stdin and stdout to a provider's socket.
//!
//! The channel knows no half-close: so the end of the client's requests is not passed on, and the relay ends when every
//! request has its answer. It outlives its provider: what was in flight is answered with an error, and with
//! the client's next message another connection takes over, on which the handshake is made again. For both it looks at the
//! messages; what it passes on it leaves as it is, but for the answer to `initialize`, which then says that the list of
//! tools may change.

mod due;
mod handshake;
#[cfg(test)]
mod tests;

use std::io;
use std::time::Duration;

use serde_json::json;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::time::timeout;

use crate::mcp::LINE_MAX;
use crate::mcp::framing::Cutter;
use due::Due;
use handshake::Handshake;

/// Bytes that are passed on at once.
const CHUNK: usize = 64 * 1024;
/// Maximum time that a provider that came back may take for the handshake.
const GREETING: Duration = Duration::from_secs(5);
/// Code of the errors that answer for a provider that is not there (the official SDKs' `ConnectionClosed`).
const CLOSED: i32 = -32000;
/// The answer to a client when another connection has taken over.
const LIST_CHANGED: &[u8] =
    b"{\"jsonrpc\":\"2.0\",\"method\":\"notifications/tools/list_changed\"}\n";

/// The end of a relay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RelayEnd {
    /// The client's input ended, and every request has its answer.
    InOrder,
    /// The provider closed the connection.
    Vanished {
        /// Answers that it owes.
        unanswered: usize,
        /// True if anything ever came from the provider.
        spoke: bool,
    },
    /// The client's input ended, and the provider was silent for too long.
    Silent {
        /// Answers that it owes.
        unanswered: usize,
    },
    /// A provider that came back does not take the handshake that was made before.
    NotGreeted,
    /// It closed the connection before the handshake was made again.
    Closed,
    /// The reader of stdout went away.
    Unheard,
}

/// The client's side.
#[derive(Debug)]
pub(crate) struct RelayClient<I, O, G> {
    /// Its requests.
    pub(crate) input: I,
    /// Where its answers go.
    pub(crate) output: O,
    /// Whether nobody writes requests any more, though not all of them may be read yet.
    pub(crate) gone: G,
}

/// The provider's side.
#[derive(Debug)]
pub(crate) struct Provider<R, W> {
    /// Its answers.
    pub(crate) reader: R,
    /// Where the requests go.
    pub(crate) writer: W,
}

/// A client, over all the connections to its provider.
#[derive(Debug)]
pub(crate) struct Relay<I, O, G> {
    client: RelayClient<I, O, G>,
    state: RelayState,
    handshake: Handshake,
}

impl<I, O, G> Relay<I, O, G>
where
    I: AsyncRead + Unpin,
    O: AsyncWrite + Unpin,
    G: Fn() -> bool,
{
    /// A client that has said nothing.
    pub(crate) fn new(client: RelayClient<I, O, G>) -> Self {
        Self {
            client,
            state: RelayState::default(),
            handshake: Handshake::default(),
        }
    }

    /// Returns whether the client has more to say.
    pub(crate) fn is_open(&self) -> bool {
        !self.state.input_ended && !(self.client.gone)()
    }

    /// Relays until one side ends. `patience`: longest silence of the provider once the client's input has ended, and
    /// longest that it may take for a handshake that is made again.
    ///
    /// # Errors
    ///
    /// Reading the client's input failed.
    pub(crate) async fn run<R, W>(
        &mut self,
        mut provider: Provider<R, W>,
        patience: Duration,
    ) -> io::Result<RelayEnd>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        if self.handshake.is_made() {
            match timeout(patience.min(GREETING), self.greet(&mut provider)).await {
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
        let unseen = std::mem::take(&mut self.state.unseen);
        if !unseen.is_empty() {
            self.state.sent(&unseen, &mut self.handshake);
        }
        let mut from_client = vec![0; CHUNK];
        let mut from_provider = vec![0; CHUNK];
        loop {
            let state = &mut self.state;
            if state.is_done() {
                let words = state.last_words();
                return Ok(self.ended(&words, RelayEnd::InOrder).await);
            }
            let step = tokio::select! {
                read = self.client.input.read(&mut from_client), if state.wants_input() => {
                    RelayStep::Input(read?)
                }
                written = provider.writer.write(&state.outgoing), if !state.outgoing.is_empty() => {
                    RelayStep::Sent(written.unwrap_or(0))
                }
                read = timeout(state.longest(patience), provider.reader.read(&mut from_provider)) => match read {
                    Ok(read) => RelayStep::Answer(read.unwrap_or(0)),
                    Err(_) => RelayStep::Silence,
                }
            };
            match step {
                RelayStep::Input(count) => {
                    let bytes = from_client.get(..count).unwrap_or_default();
                    state.sent(bytes, &mut self.handshake);
                }
                RelayStep::Sent(0) => state.is_deaf(),
                RelayStep::Sent(count) => drop(state.outgoing.drain(..count)),
                RelayStep::Answer(0) => {
                    let ended = state.vanished();
                    // Another provider may take over, and then it is half an answer.
                    let is_last = state.input_ended || (self.client.gone)();
                    let words = if is_last {
                        state.last_words()
                    } else {
                        Vec::new()
                    };
                    return Ok(self.ended(&words, ended).await);
                }
                RelayStep::Answer(count) => {
                    let bytes = from_provider.get(..count).unwrap_or_default();
                    let out = state.received(bytes, &mut self.handshake);
                    if !self.tell(&out).await {
                        return Ok(RelayEnd::Unheard);
                    }
                }
                // A provider that takes nothing while its client lives may have reason to.
                RelayStep::Silence
                    if !state.input_ended && !state.deaf && !(self.client.gone)() => {}
                RelayStep::Silence => return Ok(state.silent()),
            }
        }
    }

    /// Answers for a provider that went away, and waits for the client's next message; false: there is none.
    ///
    /// # Errors
    ///
    /// As [`Relay::run`].
    pub(crate) async fn outlive(&mut self, why: &str) -> io::Result<bool> {
        if !self.give_up(why).await {
            return Ok(false);
        }
        // The rest of a message whose beginning has gone with the provider.
        while self.state.requests.is_within_a_line() {
            if !self.answer_one(why).await? {
                return Ok(false);
            }
        }
        self.wait().await
    }

    /// Answers every request in flight for a provider that went away; false: nobody reads it.
    pub(crate) async fn give_up(&mut self, why: &str) -> bool {
        let mut out = self.state.forget_provider();
        out.extend(self.state.errors(why));
        self.tell(&out).await
    }

    /// Answers the message that the client has begun for a provider that cannot be reached, and waits for the next; false: there
    /// is none.
    ///
    /// # Errors
    ///
    /// As [`Relay::run`].
    pub(crate) async fn refuse(&mut self, why: &str) -> io::Result<bool> {
        if !self.answer_one(why).await? {
            return Ok(false);
        }
        self.wait().await
    }

    /// Waits until there is something to pass on.
    async fn wait(&mut self) -> io::Result<bool> {
        self.state.unseen = self.next_bytes().await?;
        self.state.input_ended = self.state.unseen.is_empty();
        Ok(!self.state.input_ended)
    }

    /// The client's next line; empty at the end.
    async fn next_bytes(&mut self) -> io::Result<Vec<u8>> {
        let mut bytes = std::mem::take(&mut self.state.unseen);
        if bytes.is_empty() {
            bytes = vec![0; CHUNK];
            let count = self.client.input.read(&mut bytes).await?;
            bytes.truncate(count);
        }
        Ok(bytes)
    }

    /// Takes what is left of one message, and answers it with an error.
    async fn answer_one(&mut self, why: &str) -> io::Result<bool> {
        loop {
            let mut bytes = self.next_bytes().await?;
            let ends = bytes.is_empty();
            let line = if ends {
                self.state.input_ended = true;
                self.state.requests.last()
            } else {
                let (used, line) = self.state.requests.take(&bytes);
                self.state.unseen = bytes.split_off(used);
                line
            };
            if let Some(line) = &line {
                self.handshake.sent(line);
                self.state.due.sent(line);
                let out = self.state.errors(why);
                let heard = self.tell(&out).await;
                return Ok(heard && !ends);
            }
            if ends {
                return Ok(false);
            }
        }
    }

    /// Makes the handshake again on a new connection. What the provider says beside its answer is nobody's.
    async fn greet<R, W>(&mut self, provider: &mut Provider<R, W>) -> io::Result<()>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        provider.writer.write_all(self.handshake.request()).await?;
        let mut answers = Cutter::new(LINE_MAX);
        let mut bytes = vec![0; CHUNK];
        let mut is_taken = None;
        // To the end of a line, of which the client would get the rest.
        while is_taken.is_none() || answers.is_within_a_line() {
            let count = provider.reader.read(&mut bytes).await?;
            if count == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            answers.take_all(bytes.get(..count).unwrap_or_default(), |line| {
                is_taken = is_taken.or_else(|| self.handshake.is_taken(line));
            });
        }
        if is_taken != Some(true) {
            return Err(io::ErrorKind::InvalidData.into());
        }
        provider
            .writer
            .write_all(self.handshake.notification())
            .await
    }

    /// The end, after last words that the client still gets.
    async fn ended(&mut self, words: &[u8], how: RelayEnd) -> RelayEnd {
        if self.tell(words).await {
            how
        } else {
            RelayEnd::Unheard
        }
    }

    /// Writes to the client; false: nobody reads it.
    async fn tell(&mut self, bytes: &[u8]) -> bool {
        let heard = self.client.output.write_all(bytes).await;
        heard.and(self.client.output.flush().await).is_ok()
    }
}

/// An error in the place of an answer.
fn error(id: &str, why: &str) -> Vec<u8> {
    let said = json!({"code": CLOSED, "message": why});
    format!("{{\"jsonrpc\":\"2.0\",\"id\":{id},\"error\":{said}}}\n").into_bytes()
}

enum RelayStep {
    Input(usize),
    Sent(usize),
    Answer(usize),
    Silence,
}

#[derive(Debug)]
struct RelayState {
    /// Requests that the provider has not taken yet: writing must not keep us from reading its answers.
    outgoing: Vec<u8>,
    /// Input of the client that was read and not looked at yet.
    unseen: Vec<u8>,
    /// The answer whose end is not there yet.
    unfinished: Unfinished,
    requests: Cutter,
    answers: Cutter,
    due: Due,
    /// No more requests come, or none can be passed on.
    input_ended: bool,
    /// The provider takes nothing any more; what it said before is still to be read.
    deaf: bool,
    spoke: bool,
}

/// The beginning of an answer.
#[derive(Debug, Default)]
struct Unfinished {
    /// The part that waits for the rest.
    held: Vec<u8>,
    /// True if it was too long to wait, so that the client has a part of it.
    is_passed_on: bool,
}

impl Default for RelayState {
    fn default() -> Self {
        Self {
            outgoing: Vec::new(),
            unseen: Vec::new(),
            unfinished: Unfinished::default(),
            requests: Cutter::new(LINE_MAX),
            answers: Cutter::new(LINE_MAX),
            due: Due::default(),
            input_ended: false,
            deaf: false,
            spoke: false,
        }
    }
}

impl RelayState {
    fn is_done(&self) -> bool {
        self.input_ended && !self.deaf && self.outgoing.is_empty() && self.due.is_nothing()
    }

    fn wants_input(&self) -> bool {
        !self.input_ended && !self.deaf && self.outgoing.is_empty()
    }

    /// Time for which the provider may be silent, while answers are due.
    fn longest(&self, patience: Duration) -> Duration {
        if self.wants_input() {
            Duration::MAX
        } else {
            patience
        }
    }

    /// Notes what the client sends; an input that ends within a line gets the newline without which nobody answers.
    fn sent(&mut self, bytes: &[u8], handshake: &mut Handshake) {
        let due = &mut self.due;
        if bytes.is_empty() {
            self.input_ended = true;
            if let Some(line) = self.requests.last() {
                self.outgoing.push(b'\n');
                due.sent(&line);
            }
            return;
        }
        self.outgoing.extend_from_slice(bytes);
        self.requests.take_all(bytes, |line| {
            handshake.sent(line);
            due.sent(line);
        });
    }

    /// Notes what the provider answers: what of it goes to the client now.
    fn received(&mut self, bytes: &[u8], handshake: &mut Handshake) -> Vec<u8> {
        self.spoke = true;
        let mut out = Vec::with_capacity(bytes.len());
        let mut rest = bytes;
        while !rest.is_empty() {
            let (used, line) = self.answers.take(rest);
            let (part, after) = rest.split_at_checked(used).unwrap_or((rest, &[]));
            rest = after;
            self.unfinished.held.extend_from_slice(part);
            let Some(line) = line else { continue };
            self.due.received(&line);
            let held = std::mem::take(&mut self.unfinished.held);
            match handshake
                .answered(&line)
                .filter(|_| !self.unfinished.is_passed_on)
            {
                Some(changed) => out.extend(changed),
                None => out.extend(held),
            }
            self.unfinished.is_passed_on = false;
        }
        if self.unfinished.held.len() > LINE_MAX {
            out.append(&mut self.unfinished.held);
            self.unfinished.is_passed_on = true;
        }
        out
    }

    /// The provider's last, unfinished line, for a client that gets nothing more.
    fn last_words(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.unfinished.held)
    }

    fn is_deaf(&mut self) {
        self.deaf = true;
        self.outgoing.clear();
    }

    /// Errors in the place of all answers that are due.
    fn errors(&mut self, why: &str) -> Vec<u8> {
        let ids = self.due.give_up();
        ids.iter().flat_map(|id| error(id, why)).collect()
    }

    /// Forgets a connection that is gone; what ends an answer of which the client has a part.
    fn forget_provider(&mut self) -> Vec<u8> {
        self.outgoing.clear();
        self.unfinished.held.clear();
        self.answers = Cutter::new(LINE_MAX);
        (self.deaf, self.spoke) = (false, false);
        let ends = std::mem::take(&mut self.unfinished.is_passed_on);
        if ends { b"\n".to_vec() } else { Vec::new() }
    }

    fn vanished(&self) -> RelayEnd {
        RelayEnd::Vanished {
            unanswered: self.due.count(),
            spoke: self.spoke,
        }
    }

    fn silent(&self) -> RelayEnd {
        if self.deaf {
            return self.vanished();
        }
        if self.spoke && self.outgoing.is_empty() && self.due.no_request() {
            // What was no request need not be answered by every server.
            return RelayEnd::InOrder;
        }
        RelayEnd::Silent {
            unanswered: self.due.count(),
        }
    }
}
