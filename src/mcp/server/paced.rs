//! The lines of a connection, at its caller's pace.

use std::io;
use std::sync::Arc;

use tokio::io::AsyncRead;
use tokio::time::{Instant, sleep_until, timeout_at};

use crate::limits::CALL_TIME;
use crate::mcp::framing::{Line, LineStep, Lines, Longest};
use crate::mcp::throttle::{MemoryPermit, ReadThrottle, SHORT};

/// A line, and the memory that it has until it is answered.
pub(super) type Held = (Line, Option<MemoryPermit>);

/// Lines that come when it is their turn.
#[derive(Debug)]
pub(super) struct PacedLines<R> {
    lines: Lines<R>,
    /// The memory of a long line that is not finished.
    room: Option<MemoryPermit>,
    /// When the rest of it began to be read.
    begun: Option<Instant>,
    /// `None`: as fast as they are written.
    pace: Option<Arc<ReadThrottle>>,
    /// A line that is there and waits for its turn.
    waiting: Option<(Held, Instant)>,
}

impl<R: AsyncRead + Unpin> PacedLines<R> {
    pub(super) fn new(
        reader: R,
        longest: impl Into<Longest>,
        pace: Option<Arc<ReadThrottle>>,
    ) -> Self {
        Self {
            lines: Lines::new(reader, longest),
            room: None,
            begun: None,
            pace,
            waiting: None,
        }
    }

    /// Maximum length of the current or last line, in bytes.
    pub(super) const fn max(&self) -> usize {
        self.lines.max()
    }

    /// The next line, or `None` at the end of the stream. Cancel-safe: no byte is lost when the future is dropped.
    ///
    /// # Errors
    ///
    /// As [`Lines::next`].
    pub(super) async fn next(&mut self) -> io::Result<Option<Held>> {
        let Some(pace) = &self.pace else {
            let line = self.lines.next().await?;
            return Ok(line.map(|line| (line, None)));
        };
        while self.waiting.is_none() {
            let most = if self.room.is_none() {
                SHORT
            } else {
                usize::MAX
            };
            let step = self.lines.next_within(most);
            let step = match self.begun {
                // It keeps memory that others of its caller wait for.
                Some(begun) => timeout_at(begun + CALL_TIME, step)
                    .await
                    .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())),
                None => step.await,
            };
            match step? {
                // What it has so far waits with the rest of it, which is back-pressure.
                LineStep::Grows => {
                    self.room = Some(pace.room(self.lines.max()).await?);
                    self.begun = Some(Instant::now());
                }
                LineStep::End => return Ok(None),
                LineStep::Line(line) => {
                    self.begun = None;
                    let turn = pace.message(line.length());
                    let room = self.room.take().and_then(|room| room.shrink(line.kept()));
                    self.waiting = Some(((line, room), turn));
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

    /// A line that is long and never ends, and how much of all of them was read.
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

    #[tokio::test]
    async fn what_never_ends_is_read_within_the_callers_memory_and_short_lines_beside_it() {
        const CONNECTIONS: usize = 100;
        let pace = Arc::new(ReadThrottle::default());
        let read = AtomicUsize::new(0);
        let long = |_| {
            let reader = Unfinished {
                left: LINE_MAX - 1,
                read: &read,
            };
            PacedLines::new(reader, LINE_MAX, Some(Arc::clone(&pace)))
        };
        let mut all: Vec<_> = (0..CONNECTIONS).map(long).collect();
        for lines in &mut all {
            assert!(lines.next().now_or_never().is_none());
        }
        let begun = CONNECTIONS * 3 * SHORT;
        let most = read.load(Ordering::Relaxed);
        assert!(most > LONG / 2 && most <= LONG + begun, "{most}");
        let mut short = PacedLines::new(&b"short\n"[..], LINE_MAX, Some(Arc::clone(&pace)));
        assert!(short.next().await.unwrap().is_some());
        // Those that go make room for the others.
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
        let pace = Arc::new(ReadThrottle::default());
        let line = [vec![b'x'; LINE_MAX - 1], b"\n".to_vec()].concat();
        let long = || PacedLines::new(&line[..], LINE_MAX, Some(Arc::clone(&pace)));
        let mut held = Vec::new();
        while let Some(line) = long().next().now_or_never() {
            held.push(line.unwrap().unwrap());
        }
        assert_eq!(held.len(), LONG / LINE_MAX);
        held.pop();
        assert!(long().next().await.unwrap().is_some());
        // A limit beyond all the memory: one at a time, and it comes.
        held.clear();
        let mut larger = PacedLines::new(&line[..], 4 * LONG, Some(Arc::clone(&pace)));
        assert!(larger.next().await.unwrap().is_some());
    }

    #[tokio::test]
    async fn a_line_that_waits_for_its_turn_is_not_lost_when_the_wait_is_dropped() {
        let pace = Arc::new(ReadThrottle::default());
        // Beyond what is read at once: from here on every line waits.
        while pace.message(0) <= Instant::now() {}
        let expected: Vec<String> = (0..40).map(|number| number.to_string()).collect();
        let text = expected.join("\n");
        let mut lines = PacedLines::new(text.as_bytes(), 8, Some(pace));
        let mut read = Vec::new();
        loop {
            let line = match lines.next().now_or_never() {
                Some(line) => line,
                None => lines.next().await,
            };
            match line.unwrap() {
                Some((Line::Whole(line), _)) => read.push(String::from_utf8(line).unwrap()),
                Some(long) => panic!("{long:?}"),
                None => break,
            }
        }
        assert_eq!(read, expected);
    }
}
