//! One text as a YAML scalar: which style it needs, and how that style writes and folds it.

use super::words;

/// Column after which a scalar goes on in the next line.
const WIDTH: usize = 80;

/// Place of a scalar.
#[derive(Clone, Copy)]
pub(super) struct Position {
    /// Characters before it on its line.
    pub(super) column: usize,
    /// Spaces before its further lines.
    pub(super) indent: usize,
    /// Its purpose.
    pub(super) role: ScalarRole,
}

/// The purpose of a scalar.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum ScalarRole {
    /// A key before its `:`, never folded.
    Key,
    /// Anything else.
    Value,
}

/// Characters that some YAML reader takes for a line break.
pub(super) const fn is_break(character: char) -> bool {
    matches!(character, '\n' | '\u{85}' | '\u{2028}' | '\u{2029}')
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Style {
    Plain,
    Single,
    Double,
}

/// Writes `text` and gives the column after it.
pub(super) fn write(text: &str, position: Position, out: &mut String) -> usize {
    if is_obviously_plain(text) {
        out.push_str(text);
        return position.column + text.len();
    }
    let mut folded = Folded {
        out,
        column: position.column,
        indent: position.indent,
        split: position.role == ScalarRole::Value,
    };
    let characters: Vec<char> = text.chars().collect();
    match style(text, &characters) {
        Style::Plain => folded.plain(&characters),
        Style::Single => folded.single(&characters),
        Style::Double => folded.double(&characters),
    }
    folded.column
}

/// Returns whether a text is plain at first sight, as nearly all are: lower case first, nothing special after it, no word of YAML's.
fn is_obviously_plain(text: &str) -> bool {
    let harmless =
        |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.' | b'/' | b':');
    text.starts_with(|first: char| first.is_ascii_lowercase())
        && text.bytes().all(harmless)
        && !text.ends_with(':')
        && !words::is_word(text)
}

fn style(text: &str, characters: &[char]) -> Style {
    if needs_escapes(characters) {
        Style::Double
    } else if is_plain(text, characters) {
        Style::Plain
    } else {
        Style::Single
    }
}

/// Returns whether only a double-quoted scalar can hold the text: characters that do not print, that a reader takes for a line
/// break (other than the newline), or a space beside a newline, which folding would eat.
fn needs_escapes(characters: &[char]) -> bool {
    let beside = characters
        .windows(2)
        .any(|pair| matches!(pair, [' ', '\n'] | ['\n', ' ']));
    beside || characters.iter().any(|&character| is_special(character))
}

/// Returns whether a character must be escaped.
const fn is_special(character: char) -> bool {
    !matches!(character,
        '\n' | ' '..='~' | '\u{a0}'..='\u{2027}' | '\u{202a}'..='\u{d7ff}' | '\u{e000}'..='\u{fefe}'
        | '\u{ff00}'..='\u{fffd}' | '\u{10000}'..='\u{10fffe}')
}

/// Returns whether the text can stand without quotes in a block and means itself.
fn is_plain(text: &str, characters: &[char]) -> bool {
    let (Some(first), Some(last)) = (characters.first(), characters.last()) else {
        return false;
    };
    let edges = *first == ' ' || *last == ' ' || text.contains('\n');
    let marker = text.starts_with("---") || text.starts_with("...");
    !edges && !marker && !has_indicator(characters) && !words::means_something_else(text)
}

/// Returns whether a character means structure where it stands.
fn has_indicator(characters: &[char]) -> bool {
    let before_space = |index: usize| matches!(characters.get(index + 1), None | Some(' '));
    let after_space =
        |index: usize| index.checked_sub(1).and_then(|at| characters.get(at)) == Some(&' ');
    let mut indexed = characters.iter().enumerate();
    indexed.any(|(index, character)| match character {
        '#' | ',' | '[' | ']' | '{' | '}' | '&' | '*' | '!' | '|' | '>' | '\'' | '"' | '%'
        | '@' | '`'
            if index == 0 =>
        {
            true
        }
        '?' | '-' if index == 0 => before_space(index),
        ':' => before_space(index),
        '#' => after_space(index),
        _ => false,
    })
}

/// Writes characters and folds lines.
struct Folded<'a> {
    out: &'a mut String,
    column: usize,
    indent: usize,
    split: bool,
}

impl Folded<'_> {
    fn put(&mut self, character: char) {
        self.out.push(character);
        self.column += 1;
    }

    fn put_text(&mut self, text: &str) {
        text.chars().for_each(|character| self.put(character));
    }

    fn next_line(&mut self) {
        self.out.push('\n');
        self.out.extend(std::iter::repeat_n(' ', self.indent));
        self.column = self.indent;
    }

    /// Returns whether a line may be broken instead of the single space at `index`.
    fn breaks_at(&self, characters: &[char], index: usize) -> bool {
        let is_space = |at: Option<usize>| at.and_then(|at| characters.get(at)) == Some(&' ');
        self.split
            && self.column > WIDTH
            && is_space(Some(index))
            && !is_space(index.checked_sub(1))
            && !is_space(Some(index + 1))
    }

    fn plain(&mut self, characters: &[char]) {
        for (index, &character) in characters.iter().enumerate() {
            if self.breaks_at(characters, index) {
                self.next_line();
            } else {
                self.put(character);
            }
        }
    }

    /// A run of newlines takes one more line than it has, since a single line break reads as a space.
    fn single(&mut self, characters: &[char]) {
        self.put('\'');
        for (index, &character) in characters.iter().enumerate() {
            let inner = index > 0 && index + 1 < characters.len();
            match character {
                '\'' => self.put_text("''"),
                '\n' => self.newline(characters, index),
                ' ' if inner && self.breaks_at(characters, index) => self.next_line(),
                other => self.put(other),
            }
        }
        self.put('\'');
    }

    fn newline(&mut self, characters: &[char], index: usize) {
        let is_newline = |at: Option<usize>| at.and_then(|at| characters.get(at)) == Some(&'\n');
        if !is_newline(index.checked_sub(1)) {
            self.out.push('\n');
        }
        if is_newline(Some(index + 1)) {
            self.out.push('\n');
        } else {
            self.next_line();
        }
    }

    /// Characters wait (`waiting`) until an escape, or the end, shows where the line may be broken.
    fn double(&mut self, characters: &[char]) {
        self.put('"');
        let last = characters.len().saturating_sub(1);
        let mut waiting = String::new();
        for (index, &character) in characters.iter().enumerate() {
            let escape = escape(character);
            if let Some(escape) = &escape {
                self.put_text(&waiting);
                waiting.clear();
                self.put_text(escape);
            }
            let may_break =
                self.split && index > 0 && index < last && (character == ' ' || waiting.is_empty());
            // An escape counts one column less, as it does in PyYAML.
            let before = self.column + waiting.chars().count() - usize::from(escape.is_some());
            if may_break && before > WIDTH {
                self.put_text(&waiting);
                waiting.clear();
                self.put('\\');
                self.next_line();
                let next = if escape.is_some() {
                    characters.get(index + 1)
                } else {
                    Some(&character)
                };
                if next == Some(&' ') {
                    self.put('\\');
                }
            }
            if escape.is_none() {
                waiting.push(character);
            }
        }
        self.put_text(&waiting);
        self.put('"');
    }
}

/// How a double-quoted scalar writes a character that it does not write as it is.
fn escape(character: char) -> Option<String> {
    let short = match character {
        '\0' => '0',
        '\u{7}' => 'a',
        '\u{8}' => 'b',
        '\t' => 't',
        '\n' => 'n',
        '\u{b}' => 'v',
        '\u{c}' => 'f',
        '\r' => 'r',
        '\u{1b}' => 'e',
        '"' => '"',
        '\\' => '\\',
        '\u{85}' => 'N',
        '\u{2028}' => 'L',
        '\u{2029}' => 'P',
        ' '..='~' | '\u{a0}'..='\u{d7ff}' | '\u{e000}'..='\u{fefe}' | '\u{ff00}'..='\u{fffd}' => {
            return None;
        }
        other => return Some(numbered(u32::from(other))),
    };
    Some(format!("\\{short}"))
}

fn numbered(code: u32) -> String {
    match code {
        0..=0xff => format!("\\x{code:02X}"),
        0x100..=0xffff => format!("\\u{code:04X}"),
        _ => format!("\\U{code:08X}"),
    }
}
