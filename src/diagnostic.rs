//! A fault in the user's file: what is wrong, where, and what to do; drawn with its source line.
//!
//! Collecting and drawing only: which text is a fault is decided in [`crate::infra`].

use std::ops::Range;
use std::sync::Arc;

use annotate_snippets::renderer::{DEFAULT_HELP_STYLE, DEFAULT_LINE_NUM_STYLE, Style};
use annotate_snippets::{AnnotationKind, Group, Level, Renderer, Snippet};

/// Longest user text in a message, in characters; the rest is an ellipsis.
const QUOTE_MAX: usize = 80;
/// Most of a source line that is looked at, in characters on either side of the place; the drawing cuts it to the width of a page.
const LINE_MAX: usize = 400;

/// One file of an `infra.yml` or `infra/`, as it was read.
#[derive(Debug, PartialEq, Eq)]
pub struct Source {
    /// The path as the user would write it, for messages.
    pub path: String,
    /// The whole text.
    pub text: String,
}

/// Where something was written.
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

    /// Where it begins in the text; found by line and column where no bytes are known.
    fn byte(&self) -> usize {
        if self.bytes.start > 0 || self.line <= 1 && self.column <= 1 {
            return self.bytes.start;
        }
        let lines = self.source.text.split_inclusive('\n');
        let above: usize = lines.take(self.line.saturating_sub(1)).map(str::len).sum();
        let line = self.source.text.get(above..).unwrap_or_default();
        let left = line.chars().take(self.column.saturating_sub(1));
        above + left.map(char::len_utf8).sum::<usize>()
    }
}

/// How bad a finding is.
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
    /// What is wrong; lower case, no full stop, user input in backticks and escaped.
    pub message: String,
    /// Where; `None` only for a file that could not be read at all.
    pub place: Option<Place>,
    /// What to do next.
    pub help: Option<String>,
}

impl Diagnostic {
    /// Says what to do next.
    pub fn help(&mut self, help: impl Into<String>) {
        self.help = Some(help.into());
    }
}

/// User text for a message: in backticks, escaped, and cut where it is long.
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

/// Draws findings as rustc does: title, place, source line, caret, help; a blank line between two. No newline at the end.
#[must_use]
pub fn draw(diagnostics: &[Diagnostic], styled: bool) -> String {
    let drawn: Vec<String> = diagnostics
        .iter()
        .map(|diagnostic| draw_one(diagnostic, styled))
        .collect();
    drawn.join("\n\n")
}

fn draw_one(diagnostic: &Diagnostic, styled: bool) -> String {
    let level = match diagnostic.severity {
        Severity::Error => Level::ERROR,
        Severity::Warning => Level::WARNING,
    };
    let title = level
        .primary_title(diagnostic.message.as_str())
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
        drawn.push_str(&frame.help(help));
    }
    drawn
}

/// What is drawn around a source line: its own, because a line that was cut knows no column.
struct Frame {
    /// Digits of the line number.
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

/// The part of a line that is drawn, and the bytes of it that get a caret.
struct SourceLine {
    text: String,
    span: Range<usize>,
}

impl SourceLine {
    /// The line of a place; of a long one only what is around the place.
    fn of(place: &Place) -> Self {
        let text = place.source.text.as_str();
        let (before, after) = text.split_at_checked(place.byte()).unwrap_or((text, ""));
        let before = before.rsplit('\n').next().unwrap_or_default();
        let before = last_chars(before, LINE_MAX);
        let after = after.split('\n').next().unwrap_or_default();
        let after = first_chars(after.strip_suffix('\r').unwrap_or(after), LINE_MAX);
        let marked = after.get(..place.bytes.len()).unwrap_or(after);
        Self {
            text: format!("{before}{after}"),
            span: before.len()..before.len() + marked.len(),
        }
    }
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

/// A path that may hold anything, for a terminal.
fn printable(path: &str) -> String {
    path.chars().flat_map(char::escape_debug).collect()
}

/// Every fault of a file: the whole file is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{} fault(s) in the infrastructure file", .0.len())]
pub struct Faults(pub Vec<Diagnostic>);
