//! Throttles reading from a caller: messages that cost work but run no call, such as lists, refusals and garbage, are
//! read at a steady pace if there are many, so a flood waits in its own sockets.
//!
//! Running calls have their own limits ([`crate::mcp::concurrency`]) and are not counted here. A caller's bytes in
//! memory are limited too, whether its messages are complete, being processed, or endless.

mod memory;

use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::AsyncRead;
use tokio::time::{Instant, sleep_until, timeout_at};

use crate::limits::{CALL_TIME, MEMORY, MESSAGES_AT_ONCE, MESSAGES_PER_SECOND};
use crate::mcp::framing::{Line, LineLimit, LineStep, Lines};
use memory::{Alone, Pools};

pub(crate) use memory::{Lender, MemoryPermit};

/// Cost of a small message.
const MESSAGE: Duration = Duration::from_micros(1_000_000 / MESSAGES_PER_SECOND);
/// Cost of a burst, which is read without waiting.
const AT_ONCE: Duration = MESSAGE.saturating_mul(MESSAGES_AT_ONCE);
/// Bytes that cost as much as one message.
const BYTES: usize = 64 * 1024;
/// Maximum cost of a message, in small messages.
const MESSAGE_MAX: u32 = 256;
/// Cost of an accepted connection, in small messages.
const CONNECTION: u32 = 5;
/// Maximum size of a message that every connection may read, in bytes; a longer one uses its caller's memory.
pub(crate) const SHORT: usize = 16 * 1024;

/// The throttle for one caller, across all its connections.
pub(crate) struct ReadThrottle {
    memory: Pools,
    /// The time at which everything read so far would be done, at one message per [`MESSAGE`].
    done: Mutex<Instant>,
}

impl Default for ReadThrottle {
    fn default() -> Self {
        Self::with_memory(MEMORY, Box::new(Alone))
    }
}

impl ReadThrottle {
    /// Creates the throttle for a caller that may have this many bytes in memory, some of them borrowed.
    pub(crate) fn with_memory(bytes: u64, lender: Box<dyn Lender>) -> Self {
        Self {
            memory: Pools::of(bytes, lender),
            done: Mutex::new(Instant::now()),
        }
    }

    /// Waits for memory for a parsed request of this many bytes. Memory is taken in the order long message, request,
    /// answer, so that callers cannot deadlock. Never fails, because the semaphore is never closed.
    pub(crate) async fn request(&self, bytes: usize) -> io::Result<MemoryPermit> {
        self.memory.requests.acquire(bytes).await
    }

    /// Waits for memory for an answer of this many bytes. Never fails.
    pub(crate) async fn answer(&self, bytes: usize) -> io::Result<MemoryPermit> {
        self.memory.answers.acquire(bytes).await
    }

    /// Reserves a turn for a message of this many bytes; returns the time at which it may be read.
    fn message(&self, bytes: usize) -> Instant {
        self.turn(cost(bytes), Instant::now())
    }

    /// Reserves a turn for a connection; returns the time at which it may be served.
    pub(crate) fn connection(&self) -> Instant {
        self.turn(MESSAGE * CONNECTION, Instant::now())
    }

    /// Releases the turn of a message of this many bytes, because it was a call that is now running.
    pub(crate) fn runs(&self, bytes: usize) {
        let mut done = self.done.lock().unwrap_or_else(PoisonError::into_inner);
        *done = done.checked_sub(cost(bytes)).unwrap_or(*done);
    }

    fn turn(&self, cost: Duration, now: Instant) -> Instant {
        let mut done = self.done.lock().unwrap_or_else(PoisonError::into_inner);
        // Unused time does not accumulate.
        let begins = now.max(*done);
        *done = begins + cost;
        begins.checked_sub(AT_ONCE).map_or(now, |at| at.max(now))
    }
}

fn cost(bytes: usize) -> Duration {
    let parts = u32::try_from(bytes / BYTES).unwrap_or(MESSAGE_MAX);
    MESSAGE * parts.saturating_add(1).min(MESSAGE_MAX)
}

/// A line, and the memory that it holds until it is answered.
pub(crate) type HeldLine = (Line, Option<MemoryPermit>);

/// The lines of a connection, each in its turn.
pub(crate) struct ThrottledLines<R> {
    lines: Lines<R>,
    /// The memory of an unfinished long line, and the time at which reading the rest of it began.
    unfinished: Option<(MemoryPermit, Instant)>,
    /// `None` if lines are read as fast as they are written.
    throttle: Option<Arc<ReadThrottle>>,
    /// A line that has been read, and the time of its turn.
    waiting: Option<(HeldLine, Instant)>,
}

impl<R: AsyncRead + Unpin> ThrottledLines<R> {
    /// Reads lines of at most `max_len` bytes, without their newline.
    pub(crate) fn new(
        reader: R,
        max_len: impl Into<LineLimit>,
        throttle: Option<Arc<ReadThrottle>>,
    ) -> Self {
        Self {
            lines: Lines::new(reader, max_len),
            unfinished: None,
            throttle,
            waiting: None,
        }
    }

    /// Returns the maximum length of the current or last line, in bytes.
    pub(crate) const fn max(&self) -> usize {
        self.lines.max()
    }

    /// Returns the next line, or `None` at the end of the stream. Cancel-safe: no byte is lost when the future is dropped. Fails
    /// as [`Lines::next`] does.
    pub(crate) async fn next(&mut self) -> io::Result<Option<HeldLine>> {
        let Some(throttle) = &self.throttle else {
            let line = self.lines.next().await?;
            return Ok(line.map(|line| (line, None)));
        };
        while self.waiting.is_none() {
            let step = match self.unfinished {
                None => self.lines.next_within(SHORT).await?,
                // An unfinished line holds memory that its caller's other connections may be waiting for.
                Some((_, begun)) => {
                    let step = self.lines.next_within(usize::MAX);
                    timeout_at(begun + CALL_TIME, step).await??
                }
            };
            match step {
                // The bytes read so far wait together with the rest of the line, which creates back-pressure.
                LineStep::Grows => {
                    let memory = throttle.memory.long.acquire(self.lines.max()).await?;
                    self.unfinished = Some((memory, Instant::now()));
                }
                LineStep::End => return Ok(None),
                LineStep::Line(line) => {
                    let memory = self.unfinished.take();
                    let memory = memory.and_then(|(memory, _)| memory.shrink(line.kept()));
                    let turn = throttle.message(line.length());
                    self.waiting = Some(((line, memory), turn));
                }
            }
        }
        if let Some((_, turn)) = &self.waiting
            && *turn > Instant::now()
        {
            sleep_until(*turn).await;
        }
        Ok(self.waiting.take().map(|(held, _)| held))
    }
}

#[cfg(test)]
mod tests {
    use std::pin::Pin;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::{Context, Poll};

    use futures_util::FutureExt as _;
    use tokio::io::ReadBuf;

    use super::*;
    use crate::mcp::LINE_MAX;

    /// Default memory for a caller's long messages, in bytes.
    const LONG: usize = 24 * 1024 * 1024;

    /// A long line that never ends; `read` counts the bytes of all such lines.
    struct Unfinished<'a> {
        left: usize,
        read: &'a AtomicUsize,
    }

    impl AsyncRead for Unfinished<'_> {
        fn poll_read(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
            buffer: &mut ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            let bytes = self.left.min(buffer.remaining());
            if bytes == 0 {
                return Poll::Pending;
            }
            buffer.put_slice(&vec![b'x'; bytes]);
            self.left -= bytes;
            self.read.fetch_add(bytes, Ordering::Relaxed);
            Poll::Ready(Ok(()))
        }
    }

    #[test]
    fn a_burst_is_read_at_once_and_the_rest_at_a_pace() {
        let now = Instant::now();
        let throttle = ReadThrottle::default();
        *throttle.done.lock().unwrap() = now;
        let burst = MESSAGES_AT_ONCE;
        for _ in 0..=burst {
            assert_eq!(throttle.turn(cost(10), now), now);
        }
        assert_eq!(throttle.turn(cost(10), now), now + MESSAGE);
        assert_eq!(throttle.turn(cost(10), now), now + 2 * MESSAGE);
        // After a pause, a caller has the whole burst again, but no more.
        let later = now + 2 * AT_ONCE;
        for _ in 0..=burst {
            assert_eq!(throttle.turn(cost(10), later), later);
        }
        assert!(throttle.turn(cost(10), later) > later);
    }

    #[test]
    fn the_page_says_the_same() {
        const PAGE: &str = include_str!("../../docs/channel.md");
        // Line breaks in the page do not matter.
        let page = PAGE.split_whitespace().collect::<Vec<_>>().join(" ");
        let (part, short) = (BYTES / 1024, SHORT / 1024);
        for said in [
            format!("once more for each {part} KiB, at most {MESSAGE_MAX} times"),
            format!("a new connection counts as {CONNECTION} messages"),
            format!("Messages over {short} KiB use this memory"),
        ] {
            assert!(page.contains(&said), "{said}");
        }
    }

    #[test]
    fn calls_that_run_are_not_counted() {
        let now = Instant::now();
        let throttle = ReadThrottle::default();
        *throttle.done.lock().unwrap() = now;
        for _ in 0..100_000 {
            assert_eq!(throttle.turn(cost(5 * BYTES), now), now);
            throttle.runs(5 * BYTES);
        }
    }

    #[test]
    fn a_long_message_takes_longer_within_bounds() {
        assert_eq!(cost(0), MESSAGE);
        assert_eq!(cost(16 * BYTES), 17 * MESSAGE);
        assert_eq!(cost(usize::MAX), MESSAGE_MAX * MESSAGE);
    }

    #[tokio::test]
    async fn what_never_ends_is_read_within_the_callers_memory_and_short_lines_beside_it() {
        const CONNECTIONS: usize = 100;
        let throttle = Arc::new(ReadThrottle::default());
        let read = AtomicUsize::new(0);
        let long = |_| {
            let reader = Unfinished {
                left: LINE_MAX - 1,
                read: &read,
            };
            ThrottledLines::new(reader, LINE_MAX, Some(Arc::clone(&throttle)))
        };
        let mut all: Vec<_> = (0..CONNECTIONS).map(long).collect();
        for lines in &mut all {
            assert!(lines.next().now_or_never().is_none());
        }
        let begun = CONNECTIONS * 3 * SHORT;
        let most = read.load(Ordering::Relaxed);
        assert!(most > LONG / 2 && most <= LONG + begun, "{most}");
        let mut short = ThrottledLines::new(&b"short\n"[..], LINE_MAX, Some(Arc::clone(&throttle)));
        assert!(short.next().await.unwrap().is_some());
        // Closing connections makes room for the others.
        all.drain(..CONNECTIONS / 2);
        for lines in &mut all {
            assert!(lines.next().now_or_never().is_none());
        }
        let more = read.load(Ordering::Relaxed);
        assert!(
            more > most + LONG / 2 && more <= most + LONG + begun,
            "{more}"
        );
    }

    #[tokio::test]
    async fn a_long_line_has_its_memory_until_it_is_answered_and_any_number_comes_in_turn() {
        let throttle = Arc::new(ReadThrottle::default());
        let line = [vec![b'x'; LINE_MAX - 1], b"\n".to_vec()].concat();
        let long = || ThrottledLines::new(&line[..], LINE_MAX, Some(Arc::clone(&throttle)));
        let mut held = Vec::new();
        while let Some(line) = long().next().now_or_never() {
            held.push(line.unwrap().unwrap());
        }
        assert_eq!(held.len(), LONG / LINE_MAX);
        held.pop();
        assert!(long().next().await.unwrap().is_some());
        // If the line limit exceeds the whole memory, one line at a time still gets through.
        held.clear();
        let mut larger = ThrottledLines::new(&line[..], 4 * LONG, Some(Arc::clone(&throttle)));
        assert!(larger.next().await.unwrap().is_some());
    }

    #[tokio::test]
    async fn a_line_that_waits_for_its_turn_is_not_lost_when_the_wait_is_dropped() {
        let throttle = Arc::new(ReadThrottle::default());
        // Uses up the burst: from here on, every line waits.
        while throttle.message(0) <= Instant::now() {}
        let expected: Vec<String> = (0..40).map(|number| number.to_string()).collect();
        let text = expected.join("\n");
        let mut lines = ThrottledLines::new(text.as_bytes(), 8, Some(throttle));
        let mut read = Vec::new();
        loop {
            let line = match lines.next().now_or_never() {
                Some(line) => line,
                None => lines.next().await,
            };
            match line.unwrap() {
                Some((Line::Whole(line), _)) => read.push(String::from_utf8(line).unwrap()),
                Some((long, _)) => panic!("{long:?}"),
                None => break,
            }
        }
        assert_eq!(read, expected);
    }
}
