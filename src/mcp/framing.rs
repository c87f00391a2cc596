//! Splits bytes into lines, one message each, without interpreting them.

pub(crate) mod json;

use std::fmt;
use std::io;
use std::mem;

use tokio::io::{AsyncBufReadExt as _, AsyncRead, AsyncReadExt as _, BufReader};

use super::LINE_MAX;

/// Maximum size of one read from the stream, in bytes.
const READ: usize = 16 * 1024;
/// Maximum size of one read into a line that is already longer than [`READ`], in bytes: about what the kernel keeps for a
/// Unix socket.
const LONG_READ: usize = 128 * 1024;
/// Number of bytes kept from each end of an overlong line to search for its id.
const END_KEPT: usize = 1024;

/// One line of a stream, without its `\n` or `\r\n`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Line {
    /// A line within the limit; also the last line of a stream that ends without a newline.
    Whole(Vec<u8>),
    /// Both ends of a line over the limit.
    TooLong {
        /// Its first bytes, at most 1 KiB.
        head: Vec<u8>,
        /// Its last bytes, at most 1 KiB; they never overlap `head`.
        tail: Vec<u8>,
        /// Its full length.
        bytes: u64,
    },
}

impl Line {
    /// Adds a part; keeps only the ends of a line over the limit.
    fn add(&mut self, part: &[u8]) {
        match self {
            Self::Whole(line) => line.extend_from_slice(part),
            Self::TooLong { head, tail, bytes } => {
                *bytes += part.len() as u64;
                let room = END_KEPT.saturating_sub(head.len()).min(part.len());
                let (first, rest) = part.split_at(room);
                head.extend_from_slice(first);
                let last = rest.len().saturating_sub(END_KEPT);
                tail.extend_from_slice(rest.get(last..).unwrap_or_default());
                let surplus = tail.len().saturating_sub(END_KEPT);
                tail.drain(..surplus);
            }
        }
    }

    /// Returns the number of bytes kept in memory.
    pub(crate) fn kept(&self) -> usize {
        match self {
            Self::Whole(bytes) => bytes.len(),
            Self::TooLong { head, tail, .. } => head.len() + tail.len(),
        }
    }

    /// Returns the line's full length, in bytes.
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
    /// The line is complete.
    Line(Line),
    /// The line is unfinished and already long.
    Grows,
    /// The stream ended.
    End,
}

/// Maximum length of a line, in bytes; evaluated at the beginning of each line, as it may change.
pub(crate) struct LineLimit(pub(crate) Box<dyn Fn() -> usize + Send + Sync>);

impl From<usize> for LineLimit {
    fn from(bytes: usize) -> Self {
        Self(Box::new(move || bytes))
    }
}

impl fmt::Debug for LineLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("LineLimit")
    }
}

/// Splits a stream into lines of at most `max` bytes; keeps only the ends of a longer line.
#[derive(Debug)]
pub(crate) struct LineSplitter {
    max: usize,
    /// The unfinished line.
    line: Line,
}

impl Default for LineSplitter {
    fn default() -> Self {
        Self {
            max: LINE_MAX,
            line: Line::Whole(Vec::new()),
        }
    }
}

impl LineSplitter {
    /// Consumes bytes up to the end of a line; returns their number, and the line if it is complete.
    pub(crate) fn take(&mut self, bytes: &[u8]) -> (usize, Option<Line>) {
        let end = memchr::memchr(b'\n', bytes);
        let part = end.and_then(|end| bytes.get(..end));
        self.add(part.unwrap_or(bytes));
        match end {
            Some(end) => (end + 1, Some(self.finish())),
            None => (bytes.len(), None),
        }
    }

    /// Consumes all bytes, and passes each complete line to `each`.
    pub(crate) fn take_all(&mut self, mut bytes: &[u8], mut each: impl FnMut(&Line)) {
        while !bytes.is_empty() {
            let (used, line) = self.take(bytes);
            bytes = bytes.get(used..).unwrap_or_default();
            if let Some(line) = line {
                each(&line);
            }
        }
    }

    /// Returns the unfinished line at the end of the stream.
    pub(crate) fn last(&mut self) -> Option<Line> {
        self.is_within_a_line().then(|| self.finish())
    }

    /// Returns whether a line has begun but not ended.
    pub(crate) const fn is_within_a_line(&self) -> bool {
        !matches!(&self.line, Line::Whole(line) if line.is_empty())
    }

    /// Returns whether the unfinished line is long, and stays within both limits whatever one long read adds.
    fn has_long_room(&self, max: usize) -> bool {
        match &self.line {
            Line::Whole(line) => {
                let longest = line.len().saturating_add(LONG_READ);
                line.len() >= READ && longest <= self.max.min(max)
            }
            Line::TooLong { .. } => false,
        }
    }

    /// Returns the finished line and starts the next one.
    fn finish(&mut self) -> Line {
        let mut ended = mem::replace(&mut self.line, Line::Whole(Vec::new()));
        if let Line::Whole(line) = &mut ended {
            line.pop_if(|last| *last == b'\r');
        }
        ended
    }

    /// Adds a part of a line; a line over the limit is reduced to its ends.
    fn add(&mut self, part: &[u8]) {
        if let Line::Whole(line) = &mut self.line {
            let length = line.len() + part.len();
            let ends_with_cr = part.last().or(line.last()) == Some(&b'\r');
            // The `\r` before the newline is not part of the line.
            if length > self.max + usize::from(ends_with_cr) {
                let beginning = mem::take(line);
                self.line = Line::TooLong {
                    head: Vec::with_capacity(END_KEPT),
                    tail: Vec::with_capacity(2 * END_KEPT),
                    bytes: 0,
                };
                self.line.add(&beginning);
            }
        }
        self.line.add(part);
    }
}

/// Reads lines from a stream; skips a line over the limit in constant memory, and reports it.
#[derive(Debug)]
pub(crate) struct Lines<R> {
    reader: BufReader<R>,
    limit: LineLimit,
    splitter: LineSplitter,
    /// What was read after the end of a long line.
    ahead: AheadBytes,
}

/// Bytes that were read and not yet consumed.
#[derive(Debug, Default)]
struct AheadBytes {
    bytes: Vec<u8>,
    used: usize,
}

impl AheadBytes {
    fn left(&self) -> &[u8] {
        self.bytes.get(self.used..).unwrap_or_default()
    }

    /// Consumes bytes, and frees all of them after the last one.
    fn consume(&mut self, used: usize) {
        self.used += used;
        if self.used >= self.bytes.len() {
            *self = Self::default();
        }
    }
}

impl<R: AsyncRead + Unpin> Lines<R> {
    /// Reads from `reader`; the limit does not count the newline.
    pub(crate) fn new(reader: R, limit: impl Into<LineLimit>) -> Self {
        let limit = limit.into();
        let splitter = LineSplitter {
            max: (limit.0)(),
            ..LineSplitter::default()
        };
        Self {
            reader: BufReader::with_capacity(READ, reader),
            limit,
            splitter,
            ahead: AheadBytes::default(),
        }
    }

    /// Returns the maximum length of the current or last line, in bytes.
    pub(crate) const fn max(&self) -> usize {
        self.splitter.max
    }

    /// Reads the next line; `None` at the end of the stream. Cancel-safe: no byte is lost when the future is dropped.
    /// A stream error loses an unfinished line.
    pub(crate) async fn next(&mut self) -> io::Result<Option<Line>> {
        match self.next_within(usize::MAX).await? {
            LineStep::Line(line) => Ok(Some(line)),
            LineStep::Grows | LineStep::End => Ok(None),
        }
    }

    /// Like [`Lines::next`], but stops when more than `max` bytes of an unfinished line are in memory.
    pub(crate) async fn next_within(&mut self, max: usize) -> io::Result<LineStep> {
        loop {
            if matches!(&self.splitter.line, Line::Whole(line) if line.len() > max) {
                return Ok(LineStep::Grows);
            }
            let is_ahead = !self.ahead.left().is_empty();
            if !is_ahead && self.reader.buffer().is_empty() && self.splitter.has_long_room(max) {
                if let Some(line) = self.read_long().await? {
                    return Ok(LineStep::Line(line));
                }
                continue;
            }
            let chunk = if is_ahead {
                self.ahead.left()
            } else {
                self.reader.fill_buf().await?
            };
            if chunk.is_empty() {
                return Ok(self.splitter.last().map_or(LineStep::End, LineStep::Line));
            }
            if !self.splitter.is_within_a_line() {
                self.splitter.max = (self.limit.0)();
            }
            let (used, line) = self.splitter.take(chunk);
            if is_ahead {
                self.ahead.consume(used);
            } else {
                self.reader.consume(used);
            }
            if let Some(line) = line {
                return Ok(LineStep::Line(line));
            }
        }
    }

    /// Reads more of a long line straight into it, without the buffer of short reads; returns the line if that is its end.
    async fn read_long(&mut self) -> io::Result<Option<Line>> {
        let Line::Whole(line) = &mut self.splitter.line else {
            return Ok(None);
        };
        let before = line.len();
        line.reserve(LONG_READ);
        let mut stream = self.reader.get_mut().take(LONG_READ as u64);
        if stream.read_buf(line).await? == 0 {
            return Ok(self.splitter.last());
        }
        let new = line.get(before..).unwrap_or_default();
        let Some(end) = memchr::memchr(b'\n', new) else {
            return Ok(None);
        };
        let bytes = line.split_off(before + end + 1);
        line.pop();
        self.ahead = AheadBytes { bytes, used: 0 };
        Ok(Some(self.splitter.finish()))
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
        let limit = LineLimit(Box::new(move || {
            asked.load(std::sync::atomic::Ordering::Relaxed)
        }));
        let mut lines = Lines::new(&b"abcd\nabcd\nabcd\n"[..], limit);
        for (max, fits) in [(3, false), (4, true), (3, false)] {
            most.store(max, std::sync::atomic::Ordering::Relaxed);
            let line = lines.next().await.unwrap().unwrap();
            assert_eq!((line == whole("abcd"), lines.max()), (fits, max));
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

    #[tokio::test]
    async fn long_lines_and_what_follows_them_come_whole_whatever_the_size_of_the_reads() {
        const MAX: usize = 3 * LONG_READ;
        let line = |length: usize| {
            let letters = (b'a'..=b'z').cycle().skip(length % 26);
            letters.take(length).collect::<Vec<u8>>()
        };
        let lengths = [
            3,
            READ,
            0,
            READ + 1,
            LONG_READ,
            1,
            LONG_READ + READ,
            MAX - 1,
            2,
            MAX,
        ];
        let mut stream = Vec::new();
        for (index, length) in lengths.iter().enumerate() {
            stream.extend(line(*length));
            stream.extend_from_slice(if index % 2 == 0 { b"\n" } else { b"\r\n" });
        }
        // One over the limit, and one without an end.
        stream.extend(line(MAX + 1));
        stream.push(b'\n');
        stream.extend(line(READ + 7));
        for size in [1_000, READ, LONG_READ - 1, 10 * LONG_READ] {
            let (mut far, near) = tokio::io::duplex(size);
            let sent = stream.clone();
            let sending = tokio::spawn(async move {
                let _ = tokio::io::AsyncWriteExt::write_all(&mut far, &sent).await;
            });
            let mut lines = Lines::new(near, MAX);
            for length in lengths {
                let next = lines.next().await.unwrap().unwrap();
                assert!(next == Line::Whole(line(length)), "{length} by {size}");
            }
            let over = lines.next().await.unwrap().unwrap();
            assert_eq!(over.length(), MAX + 1, "by {size}");
            let last = lines.next().await.unwrap().unwrap();
            assert!(last == Line::Whole(line(READ + 7)), "by {size}");
            assert_eq!(lines.next().await.unwrap(), None);
            sending.await.unwrap();
        }
    }
}
