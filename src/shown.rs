//! Text as people read it in a message: a stranger's words made harmless, numbers with their unit. Nothing is decided here.

use std::fmt::Display;

/// A stranger's text as it may be repeated: escaped, and cut after `most` characters.
pub(crate) fn shown(text: &str, most: usize) -> String {
    let mut shown: String = text
        .chars()
        .take(most)
        .flat_map(char::escape_debug)
        .collect();
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
        assert_eq!(shown("", 0), "");
    }

    #[test]
    fn one_byte_is_one_byte() {
        let words = [0_u64, 1, 2].map(bytes);
        assert_eq!(words, ["0 bytes", "1 byte", "2 bytes"]);
    }
}
