//! Defines findings in the user's file and draws them: message, location, source line with a caret, and the next step.
//!
//! [`crate::infra`], [`crate::edge`] and `plan` create the findings.

use std::ops::Range;
use std::sync::Arc;

use annotate_snippets::renderer::{DEFAULT_HELP_STYLE, DEFAULT_LINE_NUM_STYLE, Style};
use annotate_snippets::{AnnotationKind, Group, Level, Renderer, Snippet};

/// Maximum length of user text in a message, in characters; an ellipsis replaces the rest.
const QUOTE_MAX: usize = 80;
/// Maximum number of characters on either side of the location; the renderer then truncates the line to the page width.
const LINE_MAX: usize = 400;

/// Defines each code once: the variant, and the text that users see and may rely on.
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
            /// Every code, in the same order as in the documentation.
            #[cfg(test)]
            $scope const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// The code as displayed.
            $scope const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $text,)*
                }
            }
        }
    };
}
pub(crate) use codes;

/// An `infra.yml` file, or one file in `infra/`, as it was read.
#[derive(Debug, PartialEq, Eq)]
pub struct Source {
    /// The path as the user would write it, for messages.
    pub path: String,
    /// The whole text.
    pub text: String,
}

/// A location in the text.
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
    /// Returns the location in the form `infra.yml:12`, for one-line messages.
    #[must_use]
    pub fn short(&self) -> String {
        format!("{}:{}", self.source.path, self.line)
    }

    /// Returns its start in the text, derived from line and column if no byte offset is known.
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
    /// The file is accepted, but the user should know.
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
    /// Its location; `None` only for a file that could not be read at all.
    pub place: Option<Place>,
    /// The next step.
    pub help: Option<String>,
}

impl Diagnostic {
    /// Creates a finding without a location or help.
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

/// Returns the line and the column (in characters) of the end of the text, both from 1.
pub(crate) fn position(before: &str) -> (usize, usize) {
    let line = before.rsplit('\n').next().unwrap_or_default();
    (before.matches('\n').count() + 1, line.chars().count() + 1)
}

/// Returns the byte offset of a line and a column (in characters), both from 1; at most the end of the text.
pub(crate) fn offset(text: &str, line: usize, column: usize) -> usize {
    let lines = text.split_inclusive('\n').take(line.saturating_sub(1));
    let above: usize = lines.map(str::len).sum();
    let rest = text.get(above..).unwrap_or_default().chars();
    let left = rest.take(column.saturating_sub(1));
    above + left.map(char::len_utf8).sum::<usize>()
}

/// Quotes user text for a message: in backticks, escaped, and truncated if it is long.
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

/// Quotes text that the user is to write; `None` if [`quote`] would show it differently.
pub(crate) fn verbatim(text: &str) -> Option<String> {
    let quoted = quote(text);
    (quoted.strip_prefix('`')?.strip_suffix('`')? == text).then_some(quoted)
}

/// All faults in a file; the whole file is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{} fault(s) in the infrastructure file", .0.len())]
pub struct Faults(pub Vec<Diagnostic>);

impl Faults {
    /// Returns whether the only fault is that nothing was found to read.
    #[must_use]
    pub fn is_not_found(&self) -> bool {
        matches!(self.0.as_slice(), [only] if only.code == "not-found")
    }
}

/// Draws findings like rustc: title, location, source line, caret, help. Blank lines separate them; no final newline.
#[must_use]
pub fn draw(diagnostics: &[Diagnostic], styled: bool) -> String {
    let drawn: Vec<String> = diagnostics
        .iter()
        .map(|diagnostic| draw_one(diagnostic, styled))
        .collect();
    drawn.join("\n\n")
}

/// Counts the findings by severity (`9 errors, 2 warnings`); returns `None` for a single one, which needs no count.
#[must_use]
pub fn count(diagnostics: &[Diagnostic]) -> Option<String> {
    if diagnostics.len() < 2 {
        return None;
    }
    let of = |severity, name: &str| {
        let found = diagnostics.iter().filter(|one| one.severity == severity);
        match found.count() {
            0 => None,
            1 => Some(format!("1 {name}")),
            some => Some(format!("{some} {name}s")),
        }
    };
    let counts = [
        of(Severity::Error, "error"),
        of(Severity::Warning, "warning"),
    ];
    Some(counts.into_iter().flatten().collect::<Vec<_>>().join(", "))
}

fn draw_one(diagnostic: &Diagnostic, styled: bool) -> String {
    let level = match diagnostic.severity {
        Severity::Error => Level::ERROR,
        Severity::Warning => Level::WARNING,
    };
    let title = level
        .primary_title(printable(&diagnostic.message))
        .id(diagnostic.code);
    let renderer = if styled {
        Renderer::styled()
    } else {
        Renderer::plain()
    };
    let frame = Frame::new(diagnostic.place.as_ref(), styled);
    let mut drawn = match &diagnostic.place {
        Some(place) => {
            let line = SourceLine::of(place);
            let snippet = Snippet::source(line.text)
                .line_start(place.line)
                .annotation(AnnotationKind::Primary.span(line.span));
            let body = renderer.render(&[title.element(snippet)]);
            let (title, body) = body.split_once('\n').unwrap_or((&body, ""));
            format!("{title}\n{}\n{body}", frame.arrow(place))
        }
        None => renderer.render(&[Group::with_title(title)]),
    };
    if let Some(help) = &diagnostic.help {
        drawn.push('\n');
        drawn.push_str(&frame.help(&printable(help)));
    }
    drawn
}

/// The lines above and below a source line, drawn here because truncating the line shifts its columns.
struct Frame {
    /// Width of the line number, in digits.
    width: usize,
    line: Style,
    help: Style,
}

impl Frame {
    fn new(place: Option<&Place>, styled: bool) -> Self {
        let width = place.map_or(1, |place| place.line.to_string().len());
        let (line, help) = if styled {
            (DEFAULT_LINE_NUM_STYLE, DEFAULT_HELP_STYLE)
        } else {
            (Style::new(), Style::new())
        };
        Self { width, line, help }
    }

    fn arrow(&self, place: &Place) -> String {
        let Self { width, line, .. } = self;
        let path = printable(&place.source.path);
        format!(
            "{:width$}{line}-->{line:#} {path}:{}:{}",
            "", place.line, place.column
        )
    }

    fn help(&self, text: &str) -> String {
        let Self { width, line, help } = self;
        format!("{:width$} {line}={line:#} {help}help{help:#}: {text}", "")
    }
}

/// The drawn part of a line, and the bytes in it that carets mark.
struct SourceLine {
    text: String,
    span: Range<usize>,
}

impl SourceLine {
    /// Returns the line of a location, or only the part around the location if the line is long.
    fn of(place: &Place) -> Self {
        let text = place.source.text.as_str();
        let (before, after) = text.split_at_checked(place.byte()).unwrap_or((text, ""));
        let before = before.rsplit('\n').next().unwrap_or_default();
        let before = last_chars(before, LINE_MAX);
        let after = after.split('\n').next().unwrap_or_default();
        let after = first_chars(after.strip_suffix('\r').unwrap_or(after), LINE_MAX);
        let (marked, after) = after
            .split_at_checked(place.bytes.len())
            .unwrap_or((after, ""));
        let (before, marked) = (visible(before), visible(marked));
        Self {
            span: before.len()..before.len() + marked.len(),
            text: format!("{before}{marked}{}", visible(after)),
        }
    }
}

/// Replaces characters that are invisible or reverse the text; the renderer itself replaces ASCII control characters.
fn visible(line: &str) -> String {
    let hidden = |c: char| {
        matches!(c,
            '\u{80}'..='\u{9f}' | '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}'
            | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}'
            | '\u{e0000}'..='\u{e007f}')
    };
    line.replace(hidden, "\u{fffd}")
}

fn first_chars(text: &str, count: usize) -> &str {
    let end = text.char_indices().nth(count).map(|(end, _)| end);
    end.and_then(|end| text.get(..end)).unwrap_or(text)
}

fn last_chars(text: &str, count: usize) -> &str {
    let start = text.char_indices().rev().nth(count.saturating_sub(1));
    start
        .and_then(|(start, _)| text.get(start..))
        .unwrap_or(text)
}

/// Escapes the characters that a terminal would interpret or hide.
fn printable(text: &str) -> String {
    let mut printable = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '\'' | '"' | '\\' => printable.push(character),
            _ => printable.extend(character.escape_debug()),
        }
    }
    printable
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Creates a finding at the first `mark` in some text.
    fn at(text: &str, mark: &str) -> Diagnostic {
        let (before, _) = text.split_once(mark).unwrap();
        let start = before.len();
        let line = before.rsplit('\n').next().unwrap();
        Diagnostic {
            severity: Severity::Error,
            code: "some-code",
            message: "something is wrong".to_owned(),
            place: Some(Place {
                source: Arc::new(Source {
                    path: "infra.yml".to_owned(),
                    text: text.to_owned(),
                }),
                line: before.matches('\n').count() + 1,
                column: line.chars().count() + 1,
                bytes: start..start + mark.len(),
            }),
            help: Some("fix it".to_owned()),
        }
    }

    #[track_caller]
    fn drawn(text: &str, mark: &str, expected: &str) {
        assert_eq!(draw(&[at(text, mark)], false), expected);
    }

    #[test]
    fn a_place_is_its_line_with_a_caret() {
        let expected = "\
error[some-code]: something is wrong
 --> infra.yml:2:7
  |
2 |   b: [c, d]
  |       ^
  = help: fix it";
        drawn("a:\n  b: [c, d]\n", "c", expected);
        drawn("a:\r\n  b: [c, d]\r\n", "c", expected);
    }

    #[test]
    fn wide_characters_and_tabs_move_the_caret() {
        let expected = "\
error[some-code]: something is wrong
 --> infra.yml:1:8
  |
1 | 日本é:      x
  |             ^
  = help: fix it";
        drawn("日本é: \t x", "x", expected);
    }

    #[test]
    fn several_lines_are_marked_on_the_first() {
        let expected = "\
error[some-code]: something is wrong
 --> infra.yml:1:4
  |
1 | a: |
  |    ^
  = help: fix it";
        drawn("a: |\n  text\n  text\n", "|\n  text\n  text\n", expected);
    }

    #[test]
    fn the_end_of_a_file_is_a_place() {
        let mut end = at("a: [b", "b");
        let place = end.place.as_mut().unwrap();
        (place.column, place.bytes) = (6, 5..5);
        let expected = "\
error[some-code]: something is wrong
 --> infra.yml:1:6
  |
1 | a: [b
  |      ^
  = help: fix it";
        assert_eq!(draw(&[end], false), expected);
    }

    #[test]
    fn a_place_without_bytes_is_found_by_line_and_column() {
        let mut found = at("a: 1\nbé: [x]\n", "x");
        found.place.as_mut().unwrap().bytes = 0..0;
        let expected = "\
error[some-code]: something is wrong
 --> infra.yml:2:6
  |
2 | bé: [x]
  |      ^
  = help: fix it";
        assert_eq!(draw(&[found], false), expected);
    }

    #[test]
    fn what_would_hurt_a_terminal_is_shown() {
        let mut found = at("a: \u{1b}[1m\u{202e}\u{200b}x", "x");
        found.message = "odd \u{1b}[2J \u{202e} it's \\n".to_owned();
        found.help = Some("\u{7}\n".to_owned());
        let place = found.place.as_mut().unwrap();
        place.source = Arc::new(Source {
            path: "\u{1b}c".to_owned(),
            text: place.source.text.clone(),
        });
        let expected = "\
error[some-code]: odd \\u{1b}[2J \\u{202e} it's \\n
 --> \\u{1b}c:1:10
  |
1 | a: ␛[1m��x
  |          ^
  = help: \\u{7}\\n";
        assert_eq!(draw(&[found], false), expected);
    }

    #[test]
    fn a_long_line_is_cut_around_the_place() {
        let text = format!("{}X{}", "a".repeat(1_000_000), "b".repeat(1_000_000));
        let drawn = draw(&[at(&text, "X")], false);
        assert!(
            drawn.starts_with("error[some-code]: something is wrong\n --> infra.yml:1:1000001\n")
        );
        assert!(drawn.contains("aaaXbbb"), "{drawn}");
        assert!(
            drawn.lines().all(|line| line.chars().count() < 200),
            "{drawn}"
        );
        let whole = draw(&[at(&text, &text)], false);
        assert!(whole.len() < 2000, "{whole}");
    }

    #[test]
    fn two_findings_have_a_blank_line_between_them_and_a_warning_says_so() {
        let mut warning = at("a", "a");
        warning.severity = Severity::Warning;
        warning.help = None;
        let mut without_place = at("a", "a");
        without_place.place = None;
        let expected = "\
warning[some-code]: something is wrong
 --> infra.yml:1:1
  |
1 | a
  | ^

error[some-code]: something is wrong
  = help: fix it";
        assert_eq!(draw(&[warning, without_place], false), expected);
    }

    #[test]
    fn styles_change_nothing_but_colours() {
        let found = [at("a: b", "b")];
        let styled = draw(&found, true);
        assert!(styled.contains("\u{1b}["));
        let plain = anstream::adapter::strip_str(&styled).to_string();
        assert_eq!(plain, draw(&found, false));
    }

    #[test]
    fn quoted_text_is_escaped_and_cut() {
        assert_eq!(quote("it's \"a\"\n\u{202e}"), "`it's \"a\"\\n\\u{202e}`");
        assert_eq!(quote(&"x".repeat(200)), format!("`{}…`", "x".repeat(80)));
    }
}
