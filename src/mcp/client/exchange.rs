//! One request and its answer, over a stream that may do anything.

use std::io;
use std::mem;
use std::time::Duration;

use serde::Serialize;
use serde_json::value::RawValue;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _};
use tokio::time::{Instant, sleep_until};

use super::message::{self, Meaning, NoMessage};
use super::{ClientError, FREE, IN_ALL, PAYLOAD, TEXT_MAX, malformed};
use crate::mcp::framing::{Line, Lines, json};
use crate::mcp::{ANSWER_VALUES_MAX, DEPTH_MAX};
use crate::text::Foreign;

/// Maximum number of messages beside its answer that a request waits through.
const FOREIGN_MAX: usize = 20_000;
/// Maximum number of bytes of them.
const FOREIGN_BYTES_MAX: usize = 64 * 1024 * 1024;

/// The stream, and what is still to be written to it.
#[derive(Debug)]
pub(super) struct Exchange<R, W> {
    lines: Lines<R>,
    writer: W,
    last_id: i64,
    asked: Option<&'static str>,
    unsent: Vec<u8>,
    sent: usize,
}

/// The remaining budget of a request.
struct AnswerBudget {
    patience: Duration,
    deadline: Instant,
    end: Instant,
    messages: usize,
    bytes: usize,
}

/// The next event.
enum ExchangeEvent {
    Sent(io::Result<usize>),
    Came(io::Result<Option<Line>>),
    TimeUp,
}

impl<R: AsyncRead + Unpin, W: AsyncWrite + Unpin> Exchange<R, W> {
    pub(super) const fn new(lines: Lines<R>, writer: W) -> Self {
        Self {
            lines,
            writer,
            last_id: 0,
            asked: None,
            unsent: Vec::new(),
            sent: 0,
        }
    }

    /// Queues a notification; it leaves with the next request.
    pub(super) fn notify(&mut self, method: &'static str) {
        self.queue(message::notification(method).into_bytes());
    }

    /// The last request.
    pub(super) const fn asked(&self) -> Option<&'static str> {
        self.asked
    }

    /// Sends a request and waits for its answer; progress, of the writing too, gives it `patience` anew.
    pub(super) async fn request(
        &mut self,
        method: &'static str,
        params: &impl Serialize,
        one_copy: bool,
        patience: Duration,
    ) -> Result<Box<RawValue>, ClientError> {
        self.last_id += 1;
        self.asked = Some(method);
        let text = message::request(self.last_id, method, params, one_copy)
            .map_err(|why| ClientError::Stream(why.into()))?;
        self.queue(text);
        let mut budget = AnswerBudget::new(patience);
        loop {
            let line = match self.next(&budget).await {
                ExchangeEvent::TimeUp => return Err(ClientError::Silent(budget.waited())),
                ExchangeEvent::Sent(Ok(count)) if count > 0 => {
                    self.written(count);
                    budget.refresh();
                    continue;
                }
                // Nobody listens any more; what was said before that still counts.
                ExchangeEvent::Sent(_) => {
                    self.unsent.clear();
                    self.sent = 0;
                    continue;
                }
                ExchangeEvent::Came(Ok(Some(line))) => line,
                ExchangeEvent::Came(end) => return Err(ended(end)),
            };
            match self.meaning(line, &mut budget)? {
                Meaning::Result(result) => return bounded(method, result),
                Meaning::Error(error) => {
                    let error = bounded(method, error)?;
                    let refusal = Foreign::new(message::refusal(&error));
                    return Err(ClientError::Refused { method, refusal });
                }
                Meaning::Progress => budget.refresh(),
                Meaning::Asked(reply) => self.queue(reply.into_bytes()),
                Meaning::Malformed(why) => return Err(malformed(method, why)),
                Meaning::Foreign => {}
            }
        }
    }

    async fn next(&mut self, budget: &AnswerBudget) -> ExchangeEvent {
        let unsent = self.unsent.get(self.sent..).unwrap_or_default();
        tokio::select! {
            biased;
            () = sleep_until(budget.deadline.min(budget.end)) => ExchangeEvent::TimeUp,
            sent = self.writer.write(unsent), if !unsent.is_empty() => ExchangeEvent::Sent(sent),
            line = self.lines.next() => ExchangeEvent::Came(line),
        }
    }

    fn meaning(&self, line: Line, budget: &mut AnswerBudget) -> Result<Meaning, ClientError> {
        let line = match line {
            Line::Whole(line) => line,
            Line::TooLong { bytes, .. } => return Err(ClientError::TooLong(bytes)),
        };
        if line.iter().all(u8::is_ascii_whitespace) {
            budget.spend(line.len())?;
            return Ok(Meaning::Foreign);
        }
        let message = message::read(&line).map_err(|why| match why {
            NoMessage::Cut => ClientError::Closed,
            NoMessage::Other => not_mcp(&line),
        })?;
        let meaning = message.meaning(self.last_id);
        if !matches!(meaning, Meaning::Result(_) | Meaning::Error(_)) {
            budget.spend(line.len())?;
        }
        Ok(meaning)
    }

    fn queue(&mut self, mut message: Vec<u8>) {
        message.push(b'\n');
        if self.unsent.is_empty() {
            // A large message is not copied.
            self.unsent = message;
        } else {
            self.unsent.append(&mut message);
        }
    }

    fn written(&mut self, count: usize) {
        self.sent += count;
        if self.sent >= self.unsent.len() {
            // A large message is not kept after it has gone.
            drop(mem::take(&mut self.unsent));
            self.sent = 0;
        }
    }
}

impl AnswerBudget {
    fn new(patience: Duration) -> Self {
        let now = Instant::now();
        Self {
            patience,
            deadline: now + patience,
            end: now + IN_ALL.max(patience),
            messages: FOREIGN_MAX,
            bytes: FOREIGN_BYTES_MAX,
        }
    }

    fn refresh(&mut self) {
        self.deadline = Instant::now() + self.patience;
    }

    /// Returns how long was waited in vain, once the time is up.
    fn waited(&self) -> Duration {
        if self.end < self.deadline {
            IN_ALL.max(self.patience)
        } else {
            self.patience
        }
    }

    fn spend(&mut self, bytes: usize) -> Result<(), ClientError> {
        match (self.messages.checked_sub(1), self.bytes.checked_sub(bytes)) {
            (Some(messages), Some(bytes)) => {
                self.messages = messages;
                self.bytes = bytes;
                Ok(())
            }
            _ => Err(ClientError::Flood),
        }
    }
}

/// EOF, EPIPE and ECONNRESET are one: the far end is gone.
/// An answer that can be taken apart: a value takes many times more memory than its text.
fn bounded(method: &'static str, answer: Box<RawValue>) -> Result<Box<RawValue>, ClientError> {
    let text = answer.get().as_bytes();
    if json::has_long_text(text, TEXT_MAX, &PAYLOAD, &FREE) {
        let why = format!("it has a text of more than {TEXT_MAX} bytes where none is that long");
        return Err(malformed(method, &why));
    }
    match json::count(text) {
        Some(..=ANSWER_VALUES_MAX) => Ok(answer),
        Some(_) => {
            let why = format!("it has more than {ANSWER_VALUES_MAX} values");
            Err(malformed(method, &why))
        }
        None => {
            let why = format!("it is nested more than {DEPTH_MAX} levels deep");
            Err(malformed(method, &why))
        }
    }
}

fn ended(end: io::Result<Option<Line>>) -> ClientError {
    match end {
        Ok(_) => ClientError::Closed,
        Err(why) => match why.kind() {
            io::ErrorKind::BrokenPipe
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionAborted
            | io::ErrorKind::NotConnected
            | io::ErrorKind::UnexpectedEof => ClientError::Closed,
            _ => ClientError::Stream(why),
        },
    }
}

fn not_mcp(line: &[u8]) -> ClientError {
    /// Bytes of a stray line that are kept.
    const KEPT: usize = 1024;
    let line = line.get(..KEPT).unwrap_or(line);
    ClientError::NotMcp(Foreign::new(String::from_utf8_lossy(line).into_owned()))
}
