//! Checks paths below the portal as text, before any of them reaches the system.
//!
//! A name must not contain invisible characters that change how it reads: controls, direction changes, fillers.
//! Invisible characters are allowed where a script needs them: the joiners of Persian and Hindi under the rules
//! for domain names (RFC 5892, appendix A.1 and A.2), the emoji joiner and selectors under those for emoji (UTS #51).

use std::fmt;

use unicode_joining_type::{JoiningType, get_joining_type};
use unicode_normalization::char::canonical_combining_class;
use unicode_properties::UnicodeEmoji as _;

use super::BadArguments;
use crate::text::{escaped, is_invisible};

/// Maximum number of components in one path: its folders plus the file.
const COMPONENTS_MAX: usize = 16;
/// Maximum length of a file or folder name, in bytes (Linux `NAME_MAX`).
const COMPONENT_BYTES_MAX: usize = 255;
/// Maximum length of a path, in bytes.
const PATH_BYTES_MAX: usize = 1024;

/// A relative path of display-safe names, none of which leads upwards.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct PortalPath(String);

impl PortalPath {
    /// Checks a path that a caller sent.
    ///
    /// # Errors
    ///
    /// Returns the first fault, and a similar legal path if one exists.
    pub fn new(text: &str) -> Result<Self, BadArguments> {
        let Some(fault) = fault(text) else {
            return Ok(Self(text.to_owned()));
        };
        let hint = proposed(text).map(|path| format!("; try `{}`", escaped(&path)));
        Err(format!("{fault}{}", hint.unwrap_or_default()).into())
    }

    /// Returns this path prefixed with a folder, whose name must be safe.
    #[must_use]
    pub fn below(&self, folder: &str) -> Self {
        Self(format!("{folder}/{}", self.0))
    }

    /// Returns the folders that lead to the file, outermost first, and the file's name.
    #[must_use]
    pub fn split(&self) -> (Vec<&str>, &str) {
        match self.0.rsplit_once('/') {
            Some((folders, name)) => (folders.split('/').collect(), name),
            None => (Vec::new(), &self.0),
        }
    }

    /// Returns the path as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for PortalPath {
    /// Writes the path in escaped form, as shown in messages.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&escaped(&self.0))
    }
}

fn fault(text: &str) -> Option<String> {
    if text.is_empty() {
        return Some("the path is empty".to_owned());
    }
    let length = text.len();
    if length > PATH_BYTES_MAX {
        return Some(format!(
            "the path has {length} bytes; at most {PATH_BYTES_MAX} are allowed"
        ));
    }
    if text.starts_with('/') {
        let escaped = escaped(text);
        return Some(format!(
            "the path must be relative to the portal, not `{escaped}`"
        ));
    }
    let depth = text.split('/').count();
    if depth > COMPONENTS_MAX {
        return Some(format!(
            "the path is {depth} names deep; at most {COMPONENTS_MAX} are allowed"
        ));
    }
    let fault = text.split('/').find_map(component_fault)?;
    Some(format!(
        "the path `{}` is not allowed: {fault}",
        escaped(text)
    ))
}

fn component_fault(name: &str) -> Option<String> {
    if name.is_empty() {
        return Some("it has an empty name (`//`, or `/` at the end)".to_owned());
    }
    if name == "." || name == ".." {
        return Some(format!("it contains the name `{name}`"));
    }
    let length = name.len();
    if length > COMPONENT_BYTES_MAX {
        return Some(format!(
            "a name in it has {length} bytes, but at most {COMPONENT_BYTES_MAX} are allowed"
        ));
    }
    if name.starts_with('-') {
        let message = "a name must not begin with `-`, which programs take for an option";
        return Some(message.to_owned());
    }
    let is_space = |character: char| character == ' ' || is_unusual_space(character);
    if name.starts_with(is_space) || name.ends_with(is_space) {
        return Some("a name must not begin or end with a space".to_owned());
    }
    let illegible = u32::from(first_illegible(name)?);
    Some(format!(
        "it contains the character U+{illegible:04X}, which is invisible or misleading there"
    ))
}

/// Returns a legal path similar to this illegal one.
fn proposed(path: &str) -> Option<String> {
    // Does not process arbitrarily long text.
    if path.len() > PATH_BYTES_MAX {
        return None;
    }
    let names = path.split('/').map(|name| {
        let name = legible(name);
        let name = name.trim();
        match name.strip_prefix('-') {
            Some(rest) => format!("_{rest}"),
            None => name.to_owned(),
        }
    });
    let other = names.collect::<Vec<_>>().join("/");
    (other != path && fault(&other).is_none()).then_some(other)
}

/// Spaces that occur in names: from macOS (before "PM"), East Asian text and word processors.
const SPACES: [char; 3] = ['\u{a0}', '\u{202f}', '\u{3000}'];
const NON_JOINER: char = '\u{200c}';
const JOINER: char = '\u{200d}';
/// Select whether a character is displayed as text or as an emoji.
const SELECTORS: [char; 2] = ['\u{fe0e}', '\u{fe0f}'];
/// Draws a key around a digit.
const KEYCAP: char = '\u{20e3}';
/// Combining class of signs that suppress the vowel of an Indic letter.
const VIRAMA: u8 = 9;

/// Returns whether a character is a space other than U+0020.
fn is_unusual_space(character: char) -> bool {
    character.is_whitespace() && character != ' ' && !character.is_control()
}

/// Returns the first invisible or misleading character.
fn first_illegible(name: &str) -> Option<char> {
    let characters: Vec<char> = name.chars().collect();
    let at = (0..characters.len()).find(|at| !is_legible(&characters, *at))?;
    characters.get(at).copied()
}

/// Returns the name with its illegible characters replaced or removed; it may still be illegal.
fn legible(name: &str) -> String {
    let characters: Vec<char> = name.chars().collect();
    let replace = |(at, character): (usize, &char)| match *character {
        legible if is_legible(&characters, at) => Some(legible),
        space if is_unusual_space(space) => Some(' '),
        control if control.is_control() => Some('_'),
        _ => None,
    };
    characters.iter().enumerate().filter_map(replace).collect()
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

/// Consults the standard library's table of printable characters; a combining mark is printable after a letter.
fn is_printable(before: &[char], character: char) -> bool {
    let mut text = String::from(if before.is_empty() { "" } else { "a" });
    text.push(character);
    text.escape_debug().eq(text.chars())
}

fn follows_virama(before: &[char]) -> bool {
    let last = before.last();
    last.is_some_and(|last| canonical_combining_class(*last) == VIRAMA)
}

/// Returns whether the letters on both sides would join, ignoring transparent characters between them.
fn is_between_joined(before: &[char], after: &[char]) -> bool {
    use JoiningType::{DualJoining, LeftJoining, RightJoining, Transparent};
    let visible = |kind: &JoiningType| *kind != Transparent;
    let joining = |character: &char| get_joining_type(*character);
    let left = before.iter().rev().map(joining).find(visible);
    let right = after.iter().map(joining).find(visible);
    matches!(left, Some(LeftJoining | DualJoining))
        && matches!(right, Some(RightJoining | DualJoining))
}

fn is_between_emoji(before: &[char], after: &[char]) -> bool {
    let mut before = before.iter().rev();
    let last = before.find(|character| !SELECTORS.contains(character));
    last.is_some_and(|last| is_emoji(*last)) && after.first().is_some_and(|next| is_emoji(*next))
}

fn is_selected(before: &[char], after: &[char]) -> bool {
    before.last().is_some_and(|last| {
        let is_key = matches!(last, '0'..='9' | '#' | '*') && after.first() == Some(&KEYCAP);
        is_emoji(*last) || is_key
    })
}

/// Returns whether a character is an emoji; a digit, which can be part of one, is not.
fn is_emoji(character: char) -> bool {
    !character.is_ascii() && character.is_emoji_char()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ordinary_names_of_all_languages_are_paths() {
        for good in [
            "a",
            ".hidden",
            "a/b/c.txt",
            "with space.txt",
            "résumé.pdf",
            "re\u{301}sume\u{301}.pdf",
            "日本語/ファイル",
            "it's \"quoted\" \\ so",
            "a:b*c?",
            "..a",
            "a..",
            "a\u{a0}b",
            "\u{2b50}\u{fe0f}/\u{1f468}\u{200d}\u{1f469}.png",
            &"x".repeat(255),
        ] {
            assert!(PortalPath::new(good).is_ok(), "{good:?}");
        }
    }

    #[test]
    fn what_leads_out_or_misleads_is_refused() {
        for (bad, why) in [
            ("", "the path is empty"),
            (
                "/etc/passwd",
                "the path must be relative to the portal, not `/etc/passwd`",
            ),
            (
                "a//b",
                "the path `a//b` is not allowed: it has an empty name (`//`, or `/` at the end)",
            ),
            (
                "a/",
                "the path `a/` is not allowed: it has an empty name (`//`, or `/` at the end)",
            ),
            (
                "..",
                "the path `..` is not allowed: it contains the name `..`",
            ),
            (
                "a/../b",
                "the path `a/../b` is not allowed: it contains the name `..`",
            ),
            (
                "./a",
                "the path `./a` is not allowed: it contains the name `.`",
            ),
            (
                "-rf",
                "the path `-rf` is not allowed: a name must not begin with `-`, which programs take for an option; try `_rf`",
            ),
            (
                "a/ b",
                "the path `a/ b` is not allowed: a name must not begin or end with a space; try `a/b`",
            ),
            (
                "a\0b",
                "the path `a\\0b` is not allowed: it contains the character U+0000, which is invisible or misleading there; try `a_b`",
            ),
            (
                "a\n",
                "the path `a\\n` is not allowed: it contains the character U+000A, which is invisible or misleading there; try `a_`",
            ),
            (
                "gpj.\u{202e}exe",
                "the path `gpj.\\u{202e}exe` is not allowed: it contains the character U+202E, which is invisible or misleading there; try `gpj.exe`",
            ),
        ] {
            assert_eq!(
                PortalPath::new(bad).unwrap_err().to_string(),
                why,
                "{bad:?}"
            );
        }
        for bad in [
            "\u{1b}[31m",
            "a\u{200b}b",
            "a\u{200d}b",
            "\u{feff}a",
            "a\u{2028}b",
            "a\u{85}b",
            "a\u{ad}b",
            "a\u{e0001}b",
            "a\u{3164}b",
            "a\u{fe0f}",
            "\u{301}a",
            "a\u{e000}b",
            "a\u{fffe}b",
        ] {
            assert!(PortalPath::new(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn lengths_and_depths_are_exact() {
        assert!(PortalPath::new(&"x".repeat(256)).is_err());
        assert!(PortalPath::new(&vec!["x"; 16].join("/")).is_ok());
        assert!(PortalPath::new(&vec!["x"; 17].join("/")).is_err());
        assert!(PortalPath::new(&vec!["x".repeat(204); 5].join("/")).is_ok());
        assert!(PortalPath::new(&vec!["x".repeat(205); 5].join("/")).is_err());
    }

    #[test]
    fn a_path_splits_into_folders_and_a_name() {
        let path = PortalPath::new("a/b/c").unwrap();
        assert_eq!(path.split(), (vec!["a", "b"], "c"));
        assert_eq!(path.below("incoming/work").as_str(), "incoming/work/a/b/c");
        assert_eq!(PortalPath::new("c").unwrap().split(), (vec![], "c"));
    }

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
            // The first letter never joins the next one, so the character would be invisible.
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
