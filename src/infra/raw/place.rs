//! Where something is in a file, from what the YAML reader says of it.

use granit_parser::Span;

use crate::infra::findings::At;

/// The place of a span; at least one character where one is written there.
pub(super) fn place(text: &str, file: u32, span: &Span) -> At {
    let start = span
        .start
        .byte_offset()
        .unwrap_or_else(|| byte_of(text, span.start.line(), span.start.col()));
    let end = span.end.byte_offset().unwrap_or(start);
    // Where nothing is written the caret is under the next character, if there is one.
    let next = text.get(start..).and_then(|rest| rest.chars().next());
    let least = next
        .filter(|c| *c != '\n' && *c != '\r')
        .map_or(0, char::len_utf8);
    let end = end.max(start + least);
    At {
        file,
        start: clamp(start),
        end: clamp(end),
        line: clamp(span.start.line()),
        column: clamp(span.start.col() + 1),
    }
}

/// The byte at which a line (from 1) and column (characters, from 0) begin, at most the end of the text.
fn byte_of(text: &str, line: usize, column: usize) -> usize {
    let mut start = 0;
    for part in text.split_inclusive('\n').take(line.saturating_sub(1)) {
        start += part.len();
    }
    let rest = text.get(start..).unwrap_or_default();
    start + rest.chars().take(column).map(char::len_utf8).sum::<usize>()
}

/// A number as places keep it.
pub(super) fn clamp(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}
