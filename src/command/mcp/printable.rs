//! Text of a server's, made fit for a terminal: nothing in it moves the cursor, sets a title or turns the line around.

use std::fmt::Write as _;

use serde::ser::Error as _;
use serde_json::Value;

/// The text with every character that a terminal obeys written as `\u{…}`; newlines and tabs stay.
pub(super) fn printable(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for character in text.chars() {
        if character == '\n' || character == '\t' || !is_obeyed(character) {
            safe.push(character);
        } else {
            safe.extend(character.escape_default());
        }
    }
    safe
}

/// A value as indented JSON and a newline, in which what a terminal obeys is written as `\uXXXX`: the same value.
pub(super) fn in_json(value: &Value) -> serde_json::Result<String> {
    let mut safe = String::new();
    for character in serde_json::to_string_pretty(value)?.chars() {
        if character == '\n' || !is_obeyed(character) {
            safe.push(character);
            continue;
        }
        // Outside of strings JSON has none of these.
        for unit in character.encode_utf16(&mut [0; 2]) {
            write!(safe, "\\u{unit:04x}").map_err(serde_json::Error::custom)?;
        }
    }
    safe.push('\n');
    Ok(safe)
}

/// The text on one line of at most `most` characters.
pub(super) fn one_line(text: &str, most: usize) -> String {
    let line = text.trim_start().lines().next().unwrap_or_default();
    let mut cut: String = line.chars().take(most).collect();
    if line.chars().nth(most).is_some() {
        cut.pop();
        cut.push('…');
    }
    printable(&cut.replace('\t', " "))
}

/// The first sentence of a text: the rest is for whoever asks for JSON.
pub(super) fn first_sentence(text: &str) -> &str {
    let line = text.trim_start().lines().next().unwrap_or_default();
    line.split_inclusive(". ").next().unwrap_or(line).trim_end()
}

/// Control characters, and those that change the direction or the place of what follows.
fn is_obeyed(character: char) -> bool {
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

#[cfg(test)]
mod tests {
    use super::*;

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
            assert_eq!(printable(text), expected);
        }
    }

    #[test]
    fn json_stays_the_same_value() {
        let value = Value::from("é\u{1b}\u{9b}\u{202e}\u{e0001}\u{7f}");
        let text = in_json(&value).unwrap();
        assert_eq!(text, "\"é\\u001b\\u009b\\u202e\\udb40\\udc01\\u007f\"\n");
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
        assert_eq!(one_line("\n first\nsecond", 9), "first");
        assert_eq!(one_line("abcdef", 4), "abc…");
        assert_eq!(one_line("a\tb\u{1b}\r\nc", 9), "a b\\u{1b}");
        assert_eq!(one_line("", 9), "");
    }
}
