//! Defines the hash chain: the format of a log line, and the check that each line follows the previous one.
//!
//! Pure: bytes in, verdicts out. A line is a JSON object whose last member is `hash`, the SHA-256 of the
//! line's bytes without that member; `previous` is the hash of the previous line. The check thus needs no second
//! serialisation, and any changed byte is detected.

use std::fmt::Write as _;

use serde::{Deserialize, Serialize};

use super::Event;
use crate::digest::sha256;

/// The `previous` of the very first line.
pub const ORIGIN: &str = "0000000000000000000000000000000000000000000000000000000000000000";

/// The text before the hash at the end of a line.
const HASH_MEMBER: &str = ",\"hash\":\"";
/// The text after the hash.
const LINE_END: &str = "\"}";
/// Length of a SHA-256 hash in hexadecimal.
const HASH_LENGTH: usize = 64;

/// The end of a chain, which the next line continues.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head {
    /// Number of the last line; 0 before the first.
    pub seq: u64,
    /// Hash of the last line.
    pub hash: String,
}

impl Default for Head {
    /// The head before the first line.
    fn default() -> Self {
        Self {
            seq: 0,
            hash: ORIGIN.to_owned(),
        }
    }
}

/// One line of the log, without its hash.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogLine {
    /// Number of the line in the whole chain, counting from 1 across rotated files.
    pub seq: u64,
    /// The time: RFC 3339, UTC, with microseconds.
    pub time: String,
    /// The event.
    #[serde(flatten)]
    pub event: Event,
    /// Hash of the previous line.
    pub previous: String,
}

impl LogLine {
    /// Returns whether this line follows `head`.
    #[must_use]
    pub fn continues(&self, head: &Head) -> bool {
        self.seq == head.seq.saturating_add(1) && self.previous == head.hash
    }
}

/// Writes the line that continues `head`; returns its bytes, including the newline, and the new head. Fails only on
/// values that serde_json cannot write, which these types never hold.
pub fn link(head: &Head, time: String, event: Event) -> serde_json::Result<(Vec<u8>, Head)> {
    let line = LogLine {
        seq: head.seq.saturating_add(1),
        time,
        event,
        previous: head.hash.clone(),
    };
    let mut text = plain(&serde_json::to_string(&line)?);
    let hash = sha256(&text);
    // The closing brace follows the hash.
    text.pop();
    text.extend([HASH_MEMBER, &hash, LINE_END, "\n"]);
    let seq = line.seq;
    Ok((text.into_bytes(), Head { seq, hash }))
}

/// Formats an event that could not be logged, outside the chain.
#[must_use]
pub fn unlinked(time: &str, event: &Event) -> String {
    #[derive(Serialize)]
    struct Unlinked<'a> {
        time: &'a str,
        #[serde(flatten)]
        event: &'a Event,
    }
    // These types hold nothing that JSON cannot represent.
    plain(&serde_json::to_string(&Unlinked { time, event }).unwrap_or_default())
}

/// Rewrites JSON in printable ASCII: JSON allows raw line separators, C1 controls and bidirectional controls,
/// which could make a reader of the file see lines that do not exist.
fn plain(json: &str) -> String {
    let mut text =
        String::with_capacity(json.len() + LINE_END.len() + HASH_MEMBER.len() + HASH_LENGTH);
    for character in json.chars() {
        if matches!(character, ' '..='~') {
            text.push(character);
            continue;
        }
        // Such a character occurs only in strings, where an escape is equivalent.
        for unit in character.encode_utf16(&mut [0; 2]) {
            let _ = write!(text, "\\u{unit:04x}");
        }
    }
    text
}

/// Rewrites a line in printable ASCII; the JSON stays equivalent.
#[must_use]
pub fn printable(line: &[u8]) -> Vec<u8> {
    // Valid JSON contains these raw characters only between tokens; in strings they are escaped.
    let text = String::from_utf8_lossy(line).replace(['\t', '\r'], " ");
    plain(&text).into_bytes()
}

/// The result of reading a line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ReadLine {
    /// A line whose hash matches its bytes.
    Whole(LogLine, Head),
    /// A line in the log's format whose hash does not match: its bytes were changed.
    Edited(Head),
    /// Not a line of this log.
    Foreign,
}

/// Reads a line (without newline) and checks its hash.
#[must_use]
pub fn read(bytes: &[u8]) -> ReadLine {
    let Some((body, written)) = split(bytes) else {
        return ReadLine::Foreign;
    };
    let Ok(line) = serde_json::from_slice::<LogLine>(&body) else {
        return ReadLine::Foreign;
    };
    let head = Head {
        seq: line.seq,
        hash: written.to_owned(),
    };
    if sha256(&body) == written {
        ReadLine::Whole(line, head)
    } else {
        ReadLine::Edited(head)
    }
}

/// Splits a line into the bytes that the hash covers and the hash itself.
fn split(bytes: &[u8]) -> Option<(Vec<u8>, &str)> {
    let text = bytes.strip_suffix(LINE_END.as_bytes())?;
    let (front, hash) = text.split_at_checked(text.len().checked_sub(HASH_LENGTH)?)?;
    let body = front.strip_suffix(HASH_MEMBER.as_bytes())?;
    let hash = std::str::from_utf8(hash).ok()?;
    let hexadecimal = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
    hash.bytes()
        .all(hexadecimal)
        .then(|| ([body, b"}"].concat(), hash))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_next_number_with_the_last_hash_continues_a_head() {
        let head = Head {
            seq: 6,
            hash: "6".repeat(HASH_LENGTH),
        };
        let line = |seq, previous: &str| LogLine {
            seq,
            time: String::new(),
            event: Event::Stop { pid: 1 },
            previous: previous.to_owned(),
        };
        assert!(line(7, &head.hash).continues(&head));
        assert!(!line(8, &head.hash).continues(&head));
        assert!(!line(7, ORIGIN).continues(&head));
        assert!(!line(8, ORIGIN).continues(&head));
    }

    #[test]
    fn an_event_outside_a_chain_is_one_line_of_printable_ascii() {
        let event = Event::Reload {
            policy: "p".into(),
            refused: Some("\u{2028}\u{1f600}".into()),
        };
        assert_eq!(
            unlinked("now", &event),
            r#"{"time":"now","event":"reload","policy":"p","refused":"\u2028\ud83d\ude00"}"#
        );
    }
}
