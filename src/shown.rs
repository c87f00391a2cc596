//! Text as people read it in a message: a stranger's words made harmless, numbers with their unit. Nothing is decided here.

use std::fmt::Display;
use std::ops::RangeInclusive;

/// Characters that the standard library prints as they are, and that show nothing or only in company: fillers, selectors.
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

/// Whether a character shows nothing by itself, though it counts as printable.
pub(crate) fn is_invisible(character: char) -> bool {
    INVISIBLE.iter().any(|range| range.contains(&character))
}

/// A text with everything escaped that would not show as what it is.
pub(crate) fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        if is_invisible(character) {
            escaped.extend(character.escape_unicode());
        } else {
            escaped.extend(character.escape_debug());
        }
    }
    escaped
}

/// A stranger's text as it may be repeated: escaped, and cut after `most` characters.
pub(crate) fn shown(text: &str, most: usize) -> String {
    let end = text
        .char_indices()
        .nth(most)
        .map_or(text.len(), |(at, _)| at);
    let mut shown = escaped(text.get(..end).unwrap_or(text));
    if text.chars().nth(most).is_some() {
        shown.push('…');
    }
    shown
}

/// A number of bytes, in words.
pub(crate) fn bytes<N: Copy + Display + PartialEq + From<u8>>(number: N) -> String {
    if number == N::from(1) {
        "1 byte".to_owned()
    } else {
        format!("{number} bytes")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stranger_s_text_is_escaped_and_cut() {
        assert_eq!(shown("a\u{1b}é", 3), "a\\u{1b}é");
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
