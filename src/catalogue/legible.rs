//! Which characters of a name show as what they are, and what a name could be called in which some do not. Pure.
//!
//! Refused are those that change how a name reads without being seen: controls, changes of direction, fillers. What is
//! invisible and belongs to the writing is taken where it does: the joiners of Persian and Hindi by the rules for domain
//! names (RFC 5892, appendix A.1 and A.2), the joiner and the selectors of emoji by those for emoji (UTS #51).

use unicode_joining_type::{JoiningType, get_joining_type};
use unicode_normalization::char::canonical_combining_class;
use unicode_properties::UnicodeEmoji as _;

use crate::text::is_invisible;

/// Spaces that people's programs put into names: of macOS before "PM", of East Asian text, of word processors.
const SPACES: [char; 3] = ['\u{a0}', '\u{202f}', '\u{3000}'];
const NON_JOINER: char = '\u{200c}';
const JOINER: char = '\u{200d}';
/// Ask for the form of a character as a text, or as an emoji.
const SELECTORS: [char; 2] = ['\u{fe0e}', '\u{fe0f}'];
/// Draws a key around a digit.
const KEYCAP: char = '\u{20e3}';
/// The class of signs that take the vowel off a letter of an Indic script.
const VIRAMA: u8 = 9;

/// Returns whether a character is a space, though not the usual one.
pub(super) fn is_odd_space(character: char) -> bool {
    character.is_whitespace() && character != ' ' && !character.is_control()
}

/// The first character that does not show as what it is.
pub(super) fn first_illegible(name: &str) -> Option<char> {
    let characters: Vec<char> = name.chars().collect();
    let at = (0..characters.len()).find(|at| !is_legible(&characters, *at))?;
    characters.get(at).copied()
}

/// The name without what is illegible in it; it may still not be one.
pub(super) fn legible(name: &str) -> String {
    let characters: Vec<char> = name.chars().collect();
    let all = characters.iter().enumerate().filter_map(|(at, character)| {
        if is_legible(&characters, at) {
            Some(*character)
        } else if is_odd_space(*character) {
            Some(' ')
        } else if character.is_control() {
            Some('_')
        } else {
            None
        }
    });
    all.collect()
}

fn is_legible(characters: &[char], at: usize) -> bool {
    let Some((before, [character, after @ ..])) = characters.split_at_checked(at) else {
        return false;
    };
    match *character {
        ' ' | '\'' | '"' | '\\' => true,
        NON_JOINER => follows_virama(before) || is_between_joined(before, after),
        JOINER => follows_virama(before) || is_between_emoji(before, after),
        selector if SELECTORS.contains(&selector) => is_selected(before, after),
        space if SPACES.contains(&space) => true,
        other => is_printable(before, other) && !is_invisible(other),
    }
}

/// By the standard library's table of what prints as itself. After a letter a combining mark is as it should be.
fn is_printable(before: &[char], character: char) -> bool {
    let mut shown = String::from(if before.is_empty() { "" } else { "a" });
    shown.push(character);
    shown.escape_debug().eq(shown.chars())
}

fn follows_virama(before: &[char]) -> bool {
    before
        .last()
        .is_some_and(|last| canonical_combining_class(*last) == VIRAMA)
}

/// Returns whether letters on both sides would join, signs between them aside.
fn is_between_joined(before: &[char], after: &[char]) -> bool {
    let types = |characters: &mut dyn Iterator<Item = &char>| {
        let mut types = characters.map(|character| get_joining_type(*character));
        types.find(|kind| *kind != JoiningType::Transparent)
    };
    let left = types(&mut before.iter().rev());
    let right = types(&mut after.iter());
    matches!(
        left,
        Some(JoiningType::LeftJoining | JoiningType::DualJoining)
    ) && matches!(
        right,
        Some(JoiningType::RightJoining | JoiningType::DualJoining)
    )
}

fn is_between_emoji(before: &[char], after: &[char]) -> bool {
    let mut before = before.iter().rev();
    let last = before.find(|character| !SELECTORS.contains(character));
    last.is_some_and(|last| is_emoji(*last)) && after.first().is_some_and(|next| is_emoji(*next))
}

fn is_selected(before: &[char], after: &[char]) -> bool {
    let Some(last) = before.last() else {
        return false;
    };
    let is_key = matches!(last, '0'..='9' | '#' | '*') && after.first() == Some(&KEYCAP);
    is_emoji(*last) || is_key
}

/// Returns whether a character is a picture; digits, which can be part of one, are none.
fn is_emoji(character: char) -> bool {
    !character.is_ascii() && character.is_emoji_char()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_belongs_to_the_writing_is_legible() {
        for good in [
            "\u{2b50}\u{fe0f}.txt",
            "\u{1f468}\u{200d}\u{1f469}\u{200d}\u{1f467}.png",
            "\u{1f469}\u{1f3fd}\u{200d}\u{1f680}",
            "\u{2764}\u{fe0f}\u{200d}\u{1f525}",
            "1\u{fe0f}\u{20e3}",
            "\u{1f1eb}\u{1f1f7}",
            "\u{0645}\u{06cc}\u{200c}\u{062e}\u{0648}\u{0627}\u{0647}\u{0645}.txt",
            "\u{0915}\u{094d}\u{200d}\u{0937}",
            "\u{0915}\u{094d}\u{200c}\u{0937}",
            "Capture 10.30\u{202f}AM.png",
            "\u{65e5}\u{672c}\u{3000}\u{8a9e}.txt",
            "a\u{a0}b",
            "re\u{301}sume\u{301}",
        ] {
            assert_eq!(first_illegible(good), None, "{good:?}");
            assert_eq!(legible(good), good);
        }
    }

    #[test]
    fn what_changes_how_a_name_reads_is_not() {
        for (bad, character, proposed) in [
            ("a\u{200d}b", '\u{200d}', "ab"),
            ("a\u{200c}b", '\u{200c}', "ab"),
            // After this letter none joins, so nobody would see it.
            ("\u{0627}\u{200c}\u{0645}", '\u{200c}', "\u{0627}\u{0645}"),
            ("a\u{fe0f}", '\u{fe0f}', "a"),
            ("1\u{fe0f}", '\u{fe0f}', "1"),
            ("\u{200d}\u{1f469}", '\u{200d}', "\u{1f469}"),
            ("\u{1f469}\u{200d}", '\u{200d}', "\u{1f469}"),
            ("gpj.\u{202e}exe", '\u{202e}', "gpj.exe"),
            ("a\u{200b}b", '\u{200b}', "ab"),
            ("a\u{3164}b", '\u{3164}', "ab"),
            ("a\u{2003}b", '\u{2003}', "a b"),
            ("a\nb", '\n', "a_b"),
            ("a\u{e0001}b", '\u{e0001}', "ab"),
        ] {
            assert_eq!(first_illegible(bad), Some(character), "{bad:?}");
            assert_eq!(legible(bad), proposed);
            assert_eq!(first_illegible(proposed), None);
        }
    }
}
