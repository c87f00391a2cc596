//! Formats text for messages: escapes foreign text, and writes numbers with their units.

use std::fmt::Display;
use std::io::{self, Write};
use std::ops::RangeInclusive;

use serde::{Deserialize, Serialize};

/// Text from another machine, a server or a log. It has no `Display`, so code that prints it must choose an escaping.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Foreign<T = String>(T);

impl<T> Foreign<T> {
    /// Marks a value as foreign.
    pub const fn new(value: T) -> Self {
        Self(value)
    }

    /// Returns the value, to be compared, tested or passed on as data; not for printing.
    pub const fn raw(&self) -> &T {
        &self.0
    }

    /// Transforms the value, which stays foreign.
    pub fn map<U>(self, change: impl FnOnce(T) -> U) -> Foreign<U> {
        Foreign(change(self.0))
    }

    /// Returns a part of the value, which stays foreign.
    pub fn part<'a, U>(&'a self, part: impl FnOnce(&'a T) -> U) -> Foreign<U> {
        Foreign(part(&self.0))
    }
}

impl From<String> for Foreign {
    fn from(text: String) -> Self {
        Self(text)
    }
}

impl From<&str> for Foreign {
    fn from(text: &str) -> Self {
        Self(text.to_owned())
    }
}

impl<T: AsRef<str>> Foreign<T> {
    /// Escapes the text as [`escaped`] does.
    pub fn escaped(&self) -> String {
        escaped(self.0.as_ref())
    }

    /// Cuts the text after `max` characters and escapes it.
    pub fn shown(&self, max: usize) -> String {
        shown(self.0.as_ref(), max)
    }

    /// Escapes every character that controls a terminal, except newlines and tabs.
    pub fn lines(&self) -> String {
        let text = self.0.as_ref();
        let mut safe = String::with_capacity(text.len());
        for character in text.chars() {
            if character == '\n' || character == '\t' || !is_control(character) {
                safe.push(character);
            } else {
                safe.extend(character.escape_default());
            }
        }
        safe
    }

    /// Returns the first non-blank line, shortened to `max` characters and escaped as by [`Foreign::lines`].
    pub fn one_line(&self, max: usize) -> String {
        let text = self.0.as_ref();
        let line = text.trim_start().lines().next().unwrap_or_default();
        let mut cut: String = line.chars().take(max).collect();
        if line.chars().nth(max).is_some() {
            cut.pop();
            cut.push('…');
        }
        Foreign(cut.replace('\t', " ")).lines()
    }
}

/// Writes a value as indented JSON plus a newline, in printable ASCII; other characters become `\uXXXX`.
pub(crate) fn write_json(mut to: impl Write, value: &impl Serialize) -> serde_json::Result<()> {
    serde_json::to_writer_pretty(Ascii(&mut to), value)?;
    to.write_all(b"\n")
        .and_then(|()| to.flush())
        .map_err(serde_json::Error::io)
}

/// Escapes JSON characters outside printable ASCII, which occur only in strings.
struct Ascii<W>(W);

impl<W: Write> Write for Ascii<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let text = match str::from_utf8(bytes) {
            Ok(text) => text,
            Err(fault) => str::from_utf8(bytes.get(..fault.valid_up_to()).unwrap_or_default())
                .ok()
                .filter(|text| !text.is_empty())
                .ok_or(io::ErrorKind::InvalidData)?,
        };
        let mut rest = text;
        while let Some(at) = rest.find(|character| !matches!(character, '\n' | ' '..='~')) {
            let (plain, other) = rest.split_at(at);
            self.0.write_all(plain.as_bytes())?;
            let mut characters = other.chars();
            let character = characters.next().unwrap_or_default();
            for unit in character.encode_utf16(&mut [0; 2]) {
                write!(self.0, "\\u{unit:04x}")?;
            }
            rest = characters.as_str();
        }
        self.0.write_all(rest.as_bytes())?;
        Ok(text.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

/// Characters that are invisible by themselves but not escaped by the standard library: fillers and selectors.
const INVISIBLE: [RangeInclusive<char>; 8] = [
    '\u{17b4}'..='\u{17b5}',
    '\u{180b}'..='\u{180f}',
    '\u{115f}'..='\u{1160}',
    '\u{3164}'..='\u{3164}',
    '\u{ffa0}'..='\u{ffa0}',
    '\u{2800}'..='\u{2800}',
    '\u{fe00}'..='\u{fe0f}',
    '\u{e0100}'..='\u{e01ef}',
];

/// Returns whether a character is invisible by itself, though it counts as printable.
pub(crate) fn is_invisible(character: char) -> bool {
    INVISIBLE.iter().any(|range| range.contains(&character))
}

/// Escapes control and invisible characters and backslashes, on one line; keeps quotes: messages quote with backticks.
pub(crate) fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '"' | '\'' => escaped.push(character),
            _ if is_invisible(character) => escaped.extend(character.escape_unicode()),
            _ => escaped.extend(character.escape_debug()),
        }
    }
    escaped
}

/// Cuts text after `max` characters and escapes it as [`escaped`] does.
pub(crate) fn shown(text: &str, max: usize) -> String {
    match text.char_indices().nth(max) {
        Some((end, _)) => format!("{}…", escaped(text.get(..end).unwrap_or(text))),
        None => escaped(text),
    }
}

/// Joins names for a message: the first ones, each escaped and cut as [`shown`] does, and the number of the others.
pub(crate) fn listed(names: &[impl AsRef<str>]) -> String {
    /// Maximum length of a name, in characters.
    const NAME_MAX: usize = 80;
    /// Maximum number of names.
    const NAMES_MAX: usize = 24;
    let first = names.iter().take(NAMES_MAX);
    let first: Vec<String> = first.map(|name| shown(name.as_ref(), NAME_MAX)).collect();
    match names.len().saturating_sub(NAMES_MAX) {
        0 => first.join(", "),
        more => format!("{} and {more} more", first.join(", ")),
    }
}

/// Returns the first sentence of the text.
pub(crate) fn first_sentence(text: &str) -> &str {
    let line = text.trim_start().lines().next().unwrap_or_default();
    line.split_inclusive(". ").next().unwrap_or(line).trim_end()
}

/// Returns whether a character controls a terminal, or changes the direction or position of the text after it.
fn is_control(character: char) -> bool {
    character.is_control()
        || matches!(
            character,
            '\u{61c}'
                | '\u{200b}'
                | '\u{200e}'
                | '\u{200f}'
                | '\u{2028}'..='\u{202e}'
                | '\u{2060}'..='\u{206f}'
                | '\u{feff}'
                | '\u{fff9}'..='\u{fffb}'
                | '\u{e0000}'..='\u{e007f}'
        )
}

/// Formats a size: exactly below 1 MiB, and with one decimal beyond.
pub(crate) fn size(number: u64) -> String {
    const MIB: u64 = 1024 * 1024;
    let decimal = |unit: u64| {
        let tenths = number / (unit / 10);
        format!("{}.{}", tenths / 10, tenths % 10)
    };
    match number {
        0..MIB => bytes(number),
        MIB..0x4000_0000 => format!("{} MiB", decimal(MIB)),
        _ => format!("{} GiB", decimal(1024 * MIB)),
    }
}

/// Formats a byte count.
pub(crate) fn bytes<N: Copy + Display + PartialEq + From<u8>>(number: N) -> String {
    if number == N::from(1) {
        "1 byte".to_owned()
    } else {
        format!("{number} bytes")
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;
    use static_assertions::assert_not_impl_any;

    use super::*;

    // Code that prints foreign text must choose an escaping.
    assert_not_impl_any!(Foreign: Display);
    assert_not_impl_any!(Foreign<&str>: Display);

    #[test]
    fn only_the_first_names_are_listed() {
        let names = |count: usize| vec!["a\u{1b}"; count];
        assert_eq!(listed(&names(2)), "a\\u{1b}, a\\u{1b}");
        assert!(listed(&names(24)).ends_with("a\\u{1b}"));
        assert!(listed(&names(25)).ends_with("a\\u{1b} and 1 more"));
        assert_eq!(listed(&["x".repeat(81)]), format!("{}…", "x".repeat(80)));
    }

    #[test]
    fn what_a_terminal_obeys_is_written_out_and_the_rest_stays() {
        let cases = [
            ("a\n\tb", "a\n\tb"),
            ("é \"q\" \\ 日本 e\u{301}", "é \"q\" \\ 日本 e\u{301}"),
            ("\u{1b}[2J", "\\u{1b}[2J"),
            ("\u{9b}2J\r\u{7f}", "\\u{9b}2J\\r\\u{7f}"),
            ("\u{202e}txt", "\\u{202e}txt"),
        ];
        for (text, expected) in cases {
            assert_eq!(Foreign::new(text).lines(), expected);
        }
    }

    #[test]
    fn json_stays_the_same_value() {
        let value = Value::from("é\u{1b}\u{9b}\u{202e}\u{e0001}\u{7f}");
        let mut text = Vec::new();
        write_json(&mut text, &value).unwrap();
        let text = String::from_utf8(text).unwrap();
        assert_eq!(
            text,
            "\"\\u00e9\\u001b\\u009b\\u202e\\udb40\\udc01\\u007f\"\n"
        );
        assert_eq!(serde_json::from_str::<Value>(&text).unwrap(), value);
    }

    #[test]
    fn the_first_sentence_ends_at_its_full_stop() {
        assert_eq!(
            first_sentence("Takes 1.5 MB. Gives it back."),
            "Takes 1.5 MB."
        );
        assert_eq!(first_sentence("\n All of it.\nMore"), "All of it.");
        assert_eq!(first_sentence(""), "");
    }

    #[test]
    fn one_line_is_one_line() {
        assert_eq!(Foreign::new("\n first\nsecond").one_line(9), "first");
        assert_eq!(Foreign::new("abcdef").one_line(4), "abc…");
        assert_eq!(Foreign::new("a\tb\u{1b}\r\nc").one_line(9), "a b\\u{1b}");
        assert_eq!(Foreign::new("").one_line(9), "");
    }

    #[test]
    fn a_stranger_s_text_is_escaped_and_cut() {
        assert_eq!(shown("a\u{1b}é", 3), "a\\u{1b}é");
        assert_eq!(shown(r#"{"a": 'b'}\"#, 20), r#"{"a": 'b'}\\"#);
        assert_eq!(shown("éééé", 3), "ééé…");
        assert_eq!(
            shown("\u{3164}\u{fe0f}\u{202e}", 3),
            "\\u{3164}\\u{fe0f}\\u{202e}"
        );
        assert_eq!(shown("", 0), "");
    }

    #[test]
    fn one_byte_is_one_byte() {
        let words = [0_u64, 1, 2].map(bytes);
        assert_eq!(words, ["0 bytes", "1 byte", "2 bytes"]);
    }
}
