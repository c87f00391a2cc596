//! Bytes to lines and back: one message a line, however the peer writes it.
//!
//! Nothing here knows what a message means.

pub(crate) mod json;

use std::fmt;
use std::io;
use std::mem;

use tokio::io::{AsyncBufReadExt as _, AsyncRead, BufReader};

/// Bytes that one read may take from the stream.
const READ: usize = 16 * 1024;
/// Bytes kept of each end of a line that is too long, so that its id can be looked for.
const END_KEPT: usize = 1024;

/// One line of a stream, without its `\n` or `\r\n`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Line {
    /// A line within the limit; also the last one of a stream that ends without a newline.
    Whole(Vec<u8>),
    /// A line over the limit, of which only the ends are kept.
    TooLong {
        /// Its first bytes, at most 1 KiB.
        head: Vec<u8>,
        /// Its last bytes, at most 1 KiB; they follow `head` and never overlap it.
        tail: Vec<u8>,
        /// Its whole length.
        bytes: u64,
    },
}

impl Line {
    /// Bytes of it that are in memory.
    pub(crate) fn kept(&self) -> usize {
        match self {
            Self::Whole(bytes) => bytes.len(),
            Self::TooLong { head, tail, .. } => head.len() + tail.len(),
        }
    }

    /// Its whole length.
    pub(crate) fn length(&self) -> usize {
        match self {
            Self::Whole(bytes) => bytes.len(),
            Self::TooLong { bytes, .. } => usize::try_from(*bytes).unwrap_or(usize::MAX),
        }
    }
}

/// The progress of reading a line.
#[derive(Debug)]
pub(crate) enum LineStep {
    /// It is there.
    Line(Line),
    /// It is unfinished, and long.
    Grows,
    /// There are no more.
    End,
}

/// The longest line, in bytes; asked when a line begins, for it may change in between.
pub(crate) struct Longest(Box<dyn Fn() -> usize + Send + Sync>);

impl Longest {
    /// As `ask` says at that moment.
    pub(crate) fn by(ask: impl Fn() -> usize + Send + Sync + 'static) -> Self {
        Self(Box::new(ask))
    }
}

impl From<usize> for Longest {
    fn from(bytes: usize) -> Self {
        Self::by(move || bytes)
    }
}

impl fmt::Debug for Longest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Longest")
    }
}

/// Cuts bytes, as they come, into lines of at most `max` bytes; what is longer is reduced to its ends.
#[derive(Debug)]
pub(crate) struct Cutter {
    max: usize,
    line: Vec<u8>,
    skipped: Option<Skipped>,
}

/// The part of a line that is kept while the rest goes by.
#[derive(Debug)]
struct Skipped {
    head: Vec<u8>,
    tail: Vec<u8>,
    bytes: u64,
}

impl Cutter {
    /// Cuts lines of at most `max` bytes, without their newline.
    pub(crate) const fn new(max: usize) -> Self {
        Self {
            max,
            line: Vec::new(),
            skipped: None,
        }
    }

    /// Takes bytes up to the end of a line: how many they are, and the line if it ended.
    pub(crate) fn take(&mut self, bytes: &[u8]) -> (usize, Option<Line>) {
        // In memory this cannot fail; it is the standard library's fast search for a byte.
        let used = io::BufRead::skip_until(&mut &*bytes, b'\n').unwrap_or(bytes.len());
        let taken = bytes.get(..used).unwrap_or(bytes);
        let (part, ended) = match taken.split_last() {
            Some((b'\n', part)) => (part, true),
            _ => (taken, false),
        };
        self.add(part);
        (used, ended.then(|| self.finish()))
    }

    /// Takes all bytes and hands every line that ended with them to `each`.
    pub(crate) fn take_all(&mut self, mut bytes: &[u8], mut each: impl FnMut(&Line)) {
        while !bytes.is_empty() {
            let (used, line) = self.take(bytes);
            bytes = bytes.get(used..).unwrap_or_default();
            if let Some(line) = line {
                each(&line);
            }
        }
    }

    /// Returns the rest at the end of the stream: a line without a newline, or nothing.
    pub(crate) fn last(&mut self) -> Option<Line> {
        self.is_within_a_line().then(|| self.finish())
    }

    /// Returns whether a line has begun and not ended.
    pub(crate) const fn is_within_a_line(&self) -> bool {
        !self.line.is_empty() || self.skipped.is_some()
    }

    /// Bytes of an unfinished line that are in memory.
    const fn held(&self) -> usize {
        self.line.len()
    }

    /// Gives the line that has come to its end and starts the next.
    fn finish(&mut self) -> Line {
        if let Some(skipped) = self.skipped.take() {
            return Line::TooLong {
                head: skipped.head,
                tail: skipped.tail,
                bytes: skipped.bytes,
            };
        }
        let mut line = mem::take(&mut self.line);
        if line.last() == Some(&b'\r') {
            line.pop();
        }
        Line::Whole(line)
    }

    /// Adds a part of a line to what is there of it; a line that grows over the limit is reduced to its ends.
    fn add(&mut self, part: &[u8]) {
        if let Some(skipped) = &mut self.skipped {
            skipped.add(part);
            return;
        }
        // One byte of grace: the `\r` before the newline is no part of the line.
        if self.line.len() + part.len() <= self.max + 1 {
            self.line.extend_from_slice(part);
            let over = self.line.len() > self.max && self.line.last() != Some(&b'\r');
            if over {
                self.skipped = Some(Skipped::start(&mem::take(&mut self.line), &[]));
            }
            return;
        }
        self.skipped = Some(Skipped::start(&mem::take(&mut self.line), part));
    }
}

/// Lines of at most `max` bytes from a stream; what is longer is skipped in flat memory and reported.
#[derive(Debug)]
pub(crate) struct Lines<R> {
    reader: BufReader<R>,
    longest: Longest,
    cutter: Cutter,
}

impl<R: AsyncRead + Unpin> Lines<R> {
    /// Reads lines of at most so many bytes (without the newline) from `reader`.
    pub(crate) fn new(reader: R, longest: impl Into<Longest>) -> Self {
        let longest = longest.into();
        Self {
            reader: BufReader::with_capacity(READ, reader),
            cutter: Cutter::new((longest.0)()),
            longest,
        }
    }

    /// Maximum length of the current or last line, in bytes.
    pub(crate) const fn max(&self) -> usize {
        self.cutter.max
    }

    /// The next line, or `None` at the end of the stream. Cancel-safe: no byte is lost when the future is dropped.
    ///
    /// # Errors
    ///
    /// The stream's error; an unfinished line is lost.
    pub(crate) async fn next(&mut self) -> io::Result<Option<Line>> {
        match self.next_within(usize::MAX).await? {
            LineStep::Line(line) => Ok(Some(line)),
            LineStep::Grows | LineStep::End => Ok(None),
        }
    }

    /// The same, but reads no further when so many bytes of an unfinished line are in memory, and one read more.
    ///
    /// # Errors
    ///
    /// As [`Lines::next`].
    pub(crate) async fn next_within(&mut self, most: usize) -> io::Result<LineStep> {
        loop {
            if self.cutter.held() > most {
                return Ok(LineStep::Grows);
            }
            let chunk = self.reader.fill_buf().await?;
            if chunk.is_empty() {
                return Ok(self.cutter.last().map_or(LineStep::End, LineStep::Line));
            }
            if !self.cutter.is_within_a_line() {
                self.cutter.max = (self.longest.0)();
            }
            let (used, line) = self.cutter.take(chunk);
            self.reader.consume(used);
            if let Some(line) = line {
                return Ok(LineStep::Line(line));
            }
        }
    }
}

impl Skipped {
    fn start(line: &[u8], part: &[u8]) -> Self {
        let mut skipped = Self {
            head: Vec::with_capacity(END_KEPT),
            tail: Vec::with_capacity(2 * END_KEPT),
            bytes: 0,
        };
        skipped.add(line);
        skipped.add(part);
        skipped
    }

    fn add(&mut self, part: &[u8]) {
        self.bytes += part.len() as u64;
        let room = END_KEPT.saturating_sub(self.head.len()).min(part.len());
        let (head, rest) = part.split_at(room);
        self.head.extend_from_slice(head);
        let last = rest.len().saturating_sub(END_KEPT);
        self.tail
            .extend_from_slice(rest.get(last..).unwrap_or_default());
        let surplus = self.tail.len().saturating_sub(END_KEPT);
        self.tail.drain(..surplus);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn read(bytes: &[u8], max: usize) -> Vec<Line> {
        let mut lines = Lines::new(bytes, max);
        let mut all = Vec::new();
        while let Some(line) = lines.next().await.unwrap() {
            all.push(line);
        }
        all
    }

    fn whole(text: &str) -> Line {
        Line::Whole(text.as_bytes().to_vec())
    }

    #[tokio::test]
    async fn every_line_comes_however_it_ends() {
        let cases: [(&str, &[&str]); 7] = [
            ("", &[]),
            ("\n", &[""]),
            ("a", &["a"]),
            ("a\n", &["a"]),
            ("a\r\nb\r\n", &["a", "b"]),
            ("a\n\nb", &["a", "", "b"]),
            ("12345678\n1234567\r\n", &["12345678", "1234567"]),
        ];
        for (bytes, lines) in cases {
            let expected: Vec<Line> = lines.iter().map(|line| whole(line)).collect();
            assert_eq!(read(bytes.as_bytes(), 8).await, expected, "{bytes:?}");
        }
    }

    #[tokio::test]
    async fn a_line_over_the_limit_is_reduced_to_its_ends_and_the_next_one_comes() {
        for length in [9_usize, 1024, 1025, 5000, 3 * READ] {
            let long = "x".repeat(length);
            let bytes = format!("{long}\nnext");
            let lines = read(bytes.as_bytes(), 8).await;
            let head = length.min(END_KEPT);
            let tail = (length - head).min(END_KEPT);
            let expected = Line::TooLong {
                head: vec![b'x'; head],
                tail: vec![b'x'; tail],
                bytes: length as u64,
            };
            assert_eq!(lines, [expected, whole("next")], "{length}");
        }
    }

    #[tokio::test]
    async fn the_limit_is_that_of_the_moment_at_which_a_line_begins() {
        let most = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(3));
        let asked = std::sync::Arc::clone(&most);
        let longest = Longest::by(move || asked.load(std::sync::atomic::Ordering::Relaxed));
        let mut lines = Lines::new(&b"abcd\nabcd\nabcd\n"[..], longest);
        for (limit, fits) in [(3, false), (4, true), (3, false)] {
            most.store(limit, std::sync::atomic::Ordering::Relaxed);
            let line = lines.next().await.unwrap().unwrap();
            assert_eq!((line == whole("abcd"), lines.max()), (fits, limit));
        }
    }

    #[tokio::test]
    async fn a_dropped_read_loses_nothing() {
        let (mut far, near) = tokio::io::duplex(64);
        let mut lines = Lines::new(near, 1024);
        tokio::io::AsyncWriteExt::write_all(&mut far, b"half")
            .await
            .unwrap();
        let waited = tokio::time::timeout(std::time::Duration::from_millis(20), lines.next()).await;
        assert!(waited.is_err());
        tokio::io::AsyncWriteExt::write_all(&mut far, b" and half\n")
            .await
            .unwrap();
        assert_eq!(lines.next().await.unwrap(), Some(whole("half and half")));
    }
}
