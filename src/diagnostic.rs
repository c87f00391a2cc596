//! Draws a fault in the user's file: message, place, source line and the next step.
//!
//! Faults are found in [`crate::infra`] and [`crate::edge`].

mod draw;

use std::ops::Range;
use std::sync::Arc;

pub use draw::draw;

/// Maximum length of a user text in a message, in characters; the rest is an ellipsis.
const QUOTE_MAX: usize = 80;

/// Defines codes once: the variant, and the text that users see and may rely on.
macro_rules! codes {
    ($(#[$about:meta])* $scope:vis enum $name:ident {
        $($(#[$doc:meta])* $variant:ident = $text:literal,)*
    }) => {
        $(#[$about])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        $scope enum $name {
            $($(#[$doc])* $variant,)*
        }

        impl $name {
            /// Every code, in the order of the documentation.
            #[cfg(test)]
            $scope const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// The code as it is drawn.
            $scope const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $text,)*
                }
            }
        }
    };
}
pub(crate) use codes;

/// One file of an `infra.yml` or `infra/`, as it was read.
#[derive(Debug, PartialEq, Eq)]
pub struct Source {
    /// The path as the user would write it, for messages.
    pub path: String,
    /// The whole text.
    pub text: String,
}

/// The place of something in the text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The file.
    pub source: Arc<Source>,
    /// Line, from 1.
    pub line: usize,
    /// Column in characters, from 1.
    pub column: usize,
    /// Byte range in the file; empty when only line and column are known.
    pub bytes: Range<usize>,
}

impl Place {
    /// `infra.yml:12`, for one-line messages.
    #[must_use]
    pub fn short(&self) -> String {
        format!("{}:{}", self.source.path, self.line)
    }

    /// Its start in the text; derived from line and column if no byte offset is known.
    fn byte(&self) -> usize {
        if self.bytes.start > 0 || self.line <= 1 && self.column <= 1 {
            return self.bytes.start;
        }
        offset(&self.source.text, self.line, self.column)
    }
}

/// The severity of a finding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Severity {
    /// The file is refused.
    Error,
    /// The file is read, and the user should know.
    Warning,
}

/// One finding in a user's file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Diagnostic {
    /// Error or warning.
    pub severity: Severity,
    /// Stable kebab-case code: a heading in `docs/diagnostics.md`.
    pub code: &'static str,
    /// The fault: lower case, no full stop, user input in backticks and escaped.
    pub message: String,
    /// Its place; `None` only for a file that could not be read at all.
    pub place: Option<Place>,
    /// The next step.
    pub help: Option<String>,
}

impl Diagnostic {
    /// A finding without a place and without help yet.
    pub(crate) fn new(severity: Severity, code: &'static str, message: impl Into<String>) -> Self {
        Self {
            severity,
            code,
            message: message.into(),
            place: None,
            help: None,
        }
    }

    /// Sets the next step.
    pub fn help(&mut self, help: impl Into<String>) {
        self.help = Some(help.into());
    }
}

/// Returns the line and the column in characters, both from 1, of the end of a text.
pub(crate) fn position(before: &str) -> (usize, usize) {
    let line = before.rsplit('\n').next().unwrap_or_default();
    (before.matches('\n').count() + 1, line.chars().count() + 1)
}

/// Returns the byte at a line and a column in characters, both from 1; at most the end of the text.
pub(crate) fn offset(text: &str, line: usize, column: usize) -> usize {
    let lines = text.split_inclusive('\n').take(line.saturating_sub(1));
    let above: usize = lines.map(str::len).sum();
    let rest = text.get(above..).unwrap_or_default().chars();
    let left = rest.take(column.saturating_sub(1));
    above + left.map(char::len_utf8).sum::<usize>()
}

/// Returns user text for a message: in backticks, escaped, and cut where it is long.
#[must_use]
pub fn quote(text: &str) -> String {
    let mut quoted = String::from("`");
    for (index, character) in text.chars().enumerate() {
        if index == QUOTE_MAX {
            quoted.push('…');
            break;
        }
        match character {
            // Harmless in backticks, and hard to read with a backslash.
            '\'' | '"' => quoted.push(character),
            _ => quoted.extend(character.escape_debug()),
        }
    }
    quoted.push('`');
    quoted
}

/// Every fault of a file: the whole file is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{} fault(s) in the infrastructure file", .0.len())]
pub struct Faults(pub Vec<Diagnostic>);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quoted_text_is_escaped_and_cut() {
        assert_eq!(quote("it's \"a\"\n\u{202e}"), "`it's \"a\"\\n\\u{202e}`");
        assert_eq!(quote(&"x".repeat(200)), format!("`{}…`", "x".repeat(80)));
    }
}
