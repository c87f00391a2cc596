//! Joins a client's stdin and stdout to a provider's socket, byte for byte.
//!
//! The channel knows no half-close: so the end of the client's requests is not passed on, and the relay ends
//! when the answers that they are owed are out. For that alone it looks at the messages.

mod due;
#[cfg(test)]
mod tests;

use std::io;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::time::timeout;

use crate::mcp::LINE_MAX;
use crate::mcp::wire::Cutter;
use due::Due;

/// Bytes that are passed on at once.
const CHUNK: usize = 64 * 1024;

/// How a relay ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ended {
    /// The client's input ended, and every request has its answer.
    InOrder,
    /// The provider closed the connection.
    Vanished {
        /// Answers that it owes.
        unanswered: usize,
        /// Whether anything ever came from the provider.
        spoke: bool,
    },
    /// The client's input ended, and the provider was silent for too long.
    Silent {
        /// Answers that it owes.
        unanswered: usize,
    },
    /// Whoever read our stdout went away.
    Unheard,
}

/// The client's side.
#[derive(Debug)]
pub(crate) struct Client<I, O, G> {
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

/// Relays until one side ends. `patience`: longest silence of the provider once the client's input has ended.
///
/// # Errors
///
/// Reading the client's input failed, or writing to it in another way than that it went away.
pub(crate) async fn relay<I, O, G, R, W>(
    mut client: Client<I, O, G>,
    mut provider: Provider<R, W>,
    patience: Duration,
) -> io::Result<Ended>
where
    I: AsyncRead + Unpin,
    O: AsyncWrite + Unpin,
    G: Fn() -> bool,
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let mut state = State::default();
    let mut from_client = vec![0; CHUNK];
    let mut from_provider = vec![0; CHUNK];
    loop {
        if state.is_done() {
            return Ok(Ended::InOrder);
        }
        let step = tokio::select! {
            read = client.input.read(&mut from_client), if state.wants_input() => {
                Step::Input(read?)
            }
            written = provider.writer.write(&state.outgoing), if !state.outgoing.is_empty() => {
                Step::Sent(written.unwrap_or(0))
            }
            read = timeout(state.longest(patience), provider.reader.read(&mut from_provider)) => match read {
                Ok(read) => Step::Answer(read.unwrap_or(0)),
                Err(_) => Step::Silence,
            }
        };
        match step {
            Step::Input(count) => state.sent(from_client.get(..count).unwrap_or_default()),
            Step::Sent(0) => state.is_deaf(),
            Step::Sent(count) => drop(state.outgoing.drain(..count)),
            Step::Answer(0) => return Ok(state.vanished()),
            Step::Answer(count) => {
                let bytes = from_provider.get(..count).unwrap_or_default();
                let heard = client.output.write_all(bytes).await;
                if heard.and(client.output.flush().await).is_err() {
                    return Ok(Ended::Unheard);
                }
                state.received(bytes);
            }
            // A provider that takes nothing while its client lives may have reason to.
            Step::Silence if !state.input_ended && !(client.gone)() => {}
            Step::Silence => return Ok(state.silent()),
        }
    }
}

enum Step {
    Input(usize),
    Sent(usize),
    Answer(usize),
    Silence,
}

#[derive(Debug)]
struct State {
    /// Requests that the provider has not taken yet: writing must not keep us from reading its answers.
    outgoing: Vec<u8>,
    requests: Cutter,
    answers: Cutter,
    due: Due,
    /// No more requests come, or none can be passed on.
    input_ended: bool,
    /// The provider takes nothing any more; what it said before is still to be read.
    deaf: bool,
    spoke: bool,
}

impl Default for State {
    fn default() -> Self {
        Self {
            outgoing: Vec::new(),
            requests: Cutter::new(LINE_MAX),
            answers: Cutter::new(LINE_MAX),
            due: Due::default(),
            input_ended: false,
            deaf: false,
            spoke: false,
        }
    }
}

impl State {
    fn is_done(&self) -> bool {
        self.input_ended && !self.deaf && self.outgoing.is_empty() && self.due.is_nothing()
    }

    fn wants_input(&self) -> bool {
        !self.input_ended && self.outgoing.is_empty()
    }

    /// How long the provider may be silent. While a client that has all it asked for thinks, as long as it likes.
    fn longest(&self, patience: Duration) -> Duration {
        if self.wants_input() {
            Duration::MAX
        } else {
            patience
        }
    }

    /// Notes what the client sends; an input that ends within a line gets the newline without which nobody answers.
    fn sent(&mut self, bytes: &[u8]) {
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
        self.requests.take_all(bytes, |line| due.sent(line));
    }

    fn received(&mut self, bytes: &[u8]) {
        self.spoke = true;
        let due = &mut self.due;
        self.answers.take_all(bytes, |line| due.received(line));
    }

    fn is_deaf(&mut self) {
        self.input_ended = true;
        self.deaf = true;
        self.outgoing.clear();
    }

    fn vanished(&self) -> Ended {
        Ended::Vanished {
            unanswered: self.due.count(),
            spoke: self.spoke,
        }
    }

    fn silent(&self) -> Ended {
        if self.deaf {
            return self.vanished();
        }
        if self.spoke && self.outgoing.is_empty() && self.due.no_request() {
            // What was no request need not be answered by every server.
            return Ended::InOrder;
        }
        Ended::Silent {
            unanswered: self.due.count(),
        }
    }
}
