//! Joins a client's stdin and stdout to a provider's socket, byte for byte.
//!
//! The channel knows no half-close: so the end of the client's requests is not passed on, and the relay ends
//! when the answers to all of them are out. For that alone it reads the messages' ids.

use std::collections::HashSet;
use std::io;
use std::time::Duration;

use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::time::timeout;

use crate::mcp::LINE_MAX;

/// Bytes that are passed on at once.
const CHUNK: usize = 64 * 1024;

/// How a relay ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ended {
    /// The client's input ended, and every request has its answer.
    InOrder,
    /// The provider closed the connection.
    Vanished {
        /// Requests without an answer.
        unanswered: usize,
        /// Whether anything ever came from the provider.
        spoke: bool,
    },
    /// The client's input ended, and the provider was silent for too long.
    Silent {
        /// Requests without an answer.
        unanswered: usize,
    },
    /// Whoever read our stdout went away.
    Unheard,
}

/// The client's side.
#[derive(Debug)]
pub(crate) struct Client<I, O> {
    /// Its requests.
    pub(crate) input: I,
    /// Where its answers go.
    pub(crate) output: O,
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
pub(crate) async fn relay<I, O, R, W>(
    mut client: Client<I, O>,
    mut provider: Provider<R, W>,
    patience: Duration,
) -> io::Result<Ended>
where
    I: AsyncRead + Unpin,
    O: AsyncWrite + Unpin,
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let mut state = State::default();
    let mut from_client = vec![0; CHUNK];
    let mut from_provider = vec![0; CHUNK];
    // Requests that the provider has not taken yet: writing must not keep us from reading its answers.
    let mut outgoing: Vec<u8> = Vec::new();
    loop {
        if state.input_ended && outgoing.is_empty() && state.pending.is_empty() {
            return Ok(Ended::InOrder);
        }
        let wait = if state.input_ended {
            patience
        } else {
            Duration::MAX
        };
        let step = tokio::select! {
            read = client.input.read(&mut from_client), if !state.input_ended && outgoing.is_empty() => {
                Step::Input(read?)
            }
            written = provider.writer.write(&outgoing), if !outgoing.is_empty() => {
                Step::Sent(written.unwrap_or(0))
            }
            read = timeout(wait, provider.reader.read(&mut from_provider)) => match read {
                Ok(read) => Step::Answer(read.unwrap_or(0)),
                Err(_) => Step::Silence,
            }
        };
        match step {
            Step::Input(count) => {
                let bytes = from_client.get(..count).unwrap_or_default();
                outgoing.extend_from_slice(bytes);
                state.sent(bytes, &mut outgoing);
            }
            Step::Sent(0) | Step::Answer(0) => return Ok(state.vanished()),
            Step::Sent(count) => drop(outgoing.drain(..count)),
            Step::Answer(count) => {
                let bytes = from_provider.get(..count).unwrap_or_default();
                let heard = client.output.write_all(bytes).await;
                if heard.and(client.output.flush().await).is_err() {
                    return Ok(Ended::Unheard);
                }
                state.received(bytes);
            }
            Step::Silence => {
                return Ok(Ended::Silent {
                    unanswered: state.pending.len(),
                });
            }
        }
    }
}

enum Step {
    Input(usize),
    Sent(usize),
    Answer(usize),
    Silence,
}

#[derive(Debug, Default)]
struct State {
    requests: Scanner,
    answers: Scanner,
    /// Ids of requests without an answer, as JSON text of one form: a provider may write the same id otherwise.
    pending: HashSet<String>,
    input_ended: bool,
    spoke: bool,
}

/// What of a message tells whose answer it is.
#[derive(Debug, Deserialize)]
struct Envelope<'a> {
    #[serde(borrow)]
    id: Option<&'a RawValue>,
    method: Option<String>,
    #[serde(borrow)]
    params: Option<&'a RawValue>,
}

/// The request that `notifications/cancelled` takes back.
#[derive(Debug, Deserialize)]
struct Cancelled<'a> {
    #[serde(borrow, rename = "requestId")]
    request: Option<&'a RawValue>,
}

impl State {
    /// Notes what the client sends; an input that ends within a line gets the newline without which nobody answers.
    fn sent(&mut self, bytes: &[u8], outgoing: &mut Vec<u8>) {
        let pending = &mut self.pending;
        if bytes.is_empty() {
            self.input_ended = true;
            if !self.requests.is_between_lines() {
                outgoing.push(b'\n');
                self.requests
                    .feed(b"\n", |line| note_request(line, pending));
            }
            return;
        }
        self.requests
            .feed(bytes, |line| note_request(line, pending));
    }

    fn received(&mut self, bytes: &[u8]) {
        self.spoke = true;
        let pending = &mut self.pending;
        self.answers.feed(bytes, |line| {
            if let Ok(Envelope {
                id: Some(id),
                method: None,
                ..
            }) = serde_json::from_slice(line)
            {
                pending.remove(&one_form(id));
            }
        });
    }

    fn vanished(&self) -> Ended {
        Ended::Vanished {
            unanswered: self.pending.len(),
            spoke: self.spoke,
        }
    }
}

/// An id without the freedoms of JSON's writing, such as escapes that need not be there.
fn one_form(id: &RawValue) -> String {
    let read = serde_json::from_str::<Value>(id.get());
    read.map_or_else(|_| id.get().to_owned(), |value| value.to_string())
}

fn note_request(line: &[u8], pending: &mut HashSet<String>) {
    let Ok(message) = serde_json::from_slice::<Envelope<'_>>(line) else {
        return;
    };
    match (message.id, message.method.as_deref()) {
        (Some(id), Some(_)) => {
            pending.insert(one_form(id));
        }
        (None, Some("notifications/cancelled")) => {
            let params = message.params.map_or("{}", RawValue::get);
            if let Ok(Cancelled { request: Some(id) }) = serde_json::from_str(params) {
                pending.remove(&one_form(id));
            }
        }
        _ => {}
    }
}

/// Cuts a stream into lines, to look at them. One over [`LINE_MAX`] is passed on unread: nobody waits for its answer.
#[derive(Debug, Default)]
struct Scanner {
    line: Vec<u8>,
    bytes: usize,
}

impl Scanner {
    const fn is_between_lines(&self) -> bool {
        self.bytes == 0
    }

    fn feed(&mut self, bytes: &[u8], mut each: impl FnMut(&[u8])) {
        for part in bytes.split_inclusive(|byte| *byte == b'\n') {
            let (text, ends) = match part.strip_suffix(b"\n") {
                Some(text) => (text, true),
                None => (part, false),
            };
            self.bytes += part.len();
            if self.bytes <= LINE_MAX {
                self.line.extend_from_slice(text);
            }
            if ends {
                if self.bytes <= LINE_MAX {
                    each(&self.line);
                }
                self.line.clear();
                self.bytes = 0;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{BufReader, duplex, split};

    use super::*;

    const PATIENCE: Duration = Duration::from_millis(200);

    /// Relays `input` to a provider that answers what `answer` makes of each line, and then stays or goes.
    async fn relayed(
        input: &[u8],
        stays: bool,
        mut answer: impl FnMut(&[u8]) -> String,
    ) -> (Ended, Vec<u8>, Vec<u8>) {
        let (near, far) = duplex(256);
        let (reader, writer) = split(near);
        let (far_reader, far_writer) = split(far);
        let mut output = Vec::new();
        let mut seen = Vec::new();
        let provide = async {
            use tokio::io::AsyncBufReadExt as _;
            // Moved in, so that going closes the stream.
            let mut far_writer = far_writer;
            let mut lines = BufReader::new(far_reader);
            let mut line = Vec::new();
            while lines.read_until(b'\n', &mut line).await.unwrap() > 0 {
                seen.extend_from_slice(&line);
                let text = answer(&line);
                line.clear();
                if far_writer.write_all(text.as_bytes()).await.is_err() {
                    break;
                }
                if !stays {
                    return;
                }
            }
            std::future::pending::<()>().await;
        };
        let client = Client {
            input,
            output: &mut output,
        };
        let run = relay(client, Provider { reader, writer }, PATIENCE);
        let ended = tokio::select! {
            ended = run => ended.unwrap(),
            () = async { provide.await; std::future::pending().await } => unreachable!(),
        };
        (ended, output, seen)
    }

    fn answered(line: &[u8]) -> String {
        let Ok(message) = serde_json::from_slice::<serde_json::Value>(line) else {
            return String::new();
        };
        let Some(id) = message.get("id") else {
            return String::new();
        };
        format!("{{\"jsonrpc\":\"2.0\",\"id\":{id},\"result\":{{}}}}\n")
    }

    #[tokio::test]
    async fn ends_when_every_request_has_its_answer_and_passes_bytes_as_they_are() {
        let input =
            b"{\"id\":1,\"method\":\"a\"}\r\n\xff not json\n{\"id\":\"x\",\"method\":\"b\"}\n";
        let (ended, output, seen) = relayed(input, true, answered).await;
        assert_eq!(ended, Ended::InOrder);
        assert_eq!(
            String::from_utf8(output).unwrap(),
            "{\"jsonrpc\":\"2.0\",\"id\":1,\"result\":{}}\n{\"jsonrpc\":\"2.0\",\"id\":\"x\",\"result\":{}}\n"
        );
        assert_eq!(seen, input);
    }

    #[tokio::test]
    async fn an_id_is_the_same_however_it_is_written() {
        let input = br#"{"id":"\u00e9\/","method":"a"}"#;
        let other = |_: &[u8]| "{\"id\":\"é/\",\"result\":{}}\n".to_owned();
        let (ended, ..) = relayed(input, true, other).await;
        assert_eq!(ended, Ended::InOrder);
    }

    #[tokio::test]
    async fn the_last_line_needs_no_newline() {
        let (ended, output, seen) = relayed(b"{\"id\":1,\"method\":\"a\"}", true, answered).await;
        assert_eq!(ended, Ended::InOrder);
        assert!(!output.is_empty());
        assert_eq!(seen.last(), Some(&b'\n'));
    }

    #[tokio::test]
    async fn nothing_to_answer_ends_at_once_and_a_cancelled_request_is_not_waited_for() {
        let (ended, ..) = relayed(b"", true, answered).await;
        assert_eq!(ended, Ended::InOrder);
        let cancelled = b"{\"id\":7,\"method\":\"a\"}\n{\"method\":\"notifications/cancelled\",\"params\":{\"requestId\":7}}\n";
        let (ended, ..) = relayed(cancelled, true, |_| String::new()).await;
        assert_eq!(ended, Ended::InOrder);
    }

    #[tokio::test]
    async fn a_provider_that_goes_or_is_silent_is_told_apart() {
        let input = b"{\"id\":1,\"method\":\"a\"}\n";
        let (ended, ..) = relayed(input, false, |_| String::new()).await;
        let vanished = Ended::Vanished {
            unanswered: 1,
            spoke: false,
        };
        assert_eq!(ended, vanished);
        let (ended, ..) = relayed(input, true, |_| String::new()).await;
        assert_eq!(ended, Ended::Silent { unanswered: 1 });
    }

    #[tokio::test]
    async fn more_than_a_buffer_goes_both_ways_at_once() {
        let mut input = Vec::new();
        for id in 0..2_000 {
            input.extend_from_slice(format!("{{\"id\":{id},\"method\":\"a\"}}\n").as_bytes());
        }
        let (ended, output, seen) = relayed(&input, true, answered).await;
        assert_eq!(ended, Ended::InOrder);
        assert_eq!(seen, input);
        assert_eq!(String::from_utf8(output).unwrap().lines().count(), 2_000);
    }
}
