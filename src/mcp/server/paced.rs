//! The lines of a connection, at its caller's pace.

use std::io;
use std::sync::Arc;

use tokio::io::AsyncRead;
use tokio::time::{Instant, sleep_until};

use crate::mcp::pace::Pace;
use crate::mcp::wire::{Line, Lines};

/// Lines that come when it is their turn.
#[derive(Debug)]
pub(super) struct PacedLines<R> {
    lines: Lines<R>,
    /// `None`: as fast as they are written.
    pace: Option<Arc<Pace>>,
    /// A line that is there and waits for its turn.
    waiting: Option<(Line, Instant)>,
}

impl<R: AsyncRead + Unpin> PacedLines<R> {
    pub(super) const fn new(lines: Lines<R>, pace: Option<Arc<Pace>>) -> Self {
        Self {
            lines,
            pace,
            waiting: None,
        }
    }

    /// The next line, or `None` at the end of the stream. Cancel-safe: no byte is lost when the future is dropped.
    ///
    /// # Errors
    ///
    /// As [`Lines::next`].
    pub(super) async fn next(&mut self) -> io::Result<Option<Line>> {
        let Some(pace) = &self.pace else {
            return self.lines.next().await;
        };
        if self.waiting.is_none() {
            let Some(line) = self.lines.next().await? else {
                return Ok(None);
            };
            let turn = pace.message(line.length());
            self.waiting = Some((line, turn));
        }
        if let Some((_, turn)) = &self.waiting
            && *turn > Instant::now()
        {
            sleep_until(*turn).await;
        }
        Ok(self.waiting.take().map(|(line, _)| line))
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    #[tokio::test]
    async fn a_line_that_waits_for_its_turn_is_not_lost_when_the_wait_is_dropped() {
        let pace = Arc::new(Pace::default());
        // Beyond what is read at once: from here on every line waits.
        while pace.message(0) <= Instant::now() {}
        let expected: Vec<String> = (0..40).map(|number| number.to_string()).collect();
        let text = expected.join("\n");
        let mut lines = PacedLines::new(Lines::new(text.as_bytes(), 8), Some(pace));
        let mut read = Vec::new();
        loop {
            let line = match lines.next().now_or_never() {
                Some(line) => line,
                None => lines.next().await,
            };
            match line.unwrap() {
                Some(Line::Whole(line)) => read.push(String::from_utf8(line).unwrap()),
                Some(long) => panic!("{long:?}"),
                None => break,
            }
        }
        assert_eq!(read, expected);
    }
}
