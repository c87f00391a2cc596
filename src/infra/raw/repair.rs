//! Suggests how to correct a line that is not YAML. A rewritten line is suggested only if it parses.

use granit_parser::{Parser, ScanError};

use crate::diagnostic::quote;

/// Returns the help for a syntax error on a line (counted from 1), if changing that line is enough.
pub(super) fn suggestion(text: &str, line: usize) -> Option<String> {
    let written = text.lines().nth(line.checked_sub(1)?)?;
    let indent = written.len() - written.trim_start_matches([' ', '\t']).len();
    let (indent, content) = written.split_at_checked(indent)?;
    if indent.contains('\t') {
        return Some("indent with spaces: YAML allows no tabs there".to_owned());
    }
    let above = text
        .lines()
        .take(line - 1)
        .filter(|above| !above.trim().is_empty());
    let above = above.last().unwrap_or_default();
    let indent_above = above.len() - above.trim_start_matches(' ').len();
    let candidates = [
        quoted(content).map(|value| {
            let help = format!("put the value in quotes: {}", quote(&value));
            (help, [indent, &value].concat())
        }),
        Some((
            format!(
                "end the key with a colon: {}",
                quote(&format!("{content}:"))
            ),
            format!("{written}:"),
        )),
        Some((
            "indent this line like the one above".to_owned(),
            [&" ".repeat(indent_above), content].concat(),
        )),
    ];
    let works = |corrected: &str| {
        let lines = text.split_inclusive('\n').enumerate();
        let lines = lines.map(|(index, whole)| {
            if index + 1 == line {
                whole.replacen(written, corrected, 1)
            } else {
                whole.to_owned()
            }
        });
        let text: String = lines.collect();
        first_fault(&text).is_none_or(|fault| fault.marker().line() > line)
    };
    let mut candidates = candidates.into_iter().flatten();
    let (help, _) = candidates.find(|(_, corrected)| works(corrected))?;
    Some(help)
}

/// Returns the line with its value, or its list item, in double quotes.
fn quoted(content: &str) -> Option<String> {
    let (key, value) = match content.split_once(": ") {
        Some((key, value)) => (format!("{key}: "), value),
        None => ("- ".to_owned(), content.strip_prefix("- ")?),
    };
    let (value, comment) = match value.find(" #") {
        Some(at) => value.split_at_checked(at)?,
        None => (value, ""),
    };
    let value = value.trim();
    // An unclosed list or map needs a bracket, not quotes.
    for (open, close) in [('[', ']'), ('{', '}')] {
        if value.starts_with(open) && value.matches(open).count() > value.matches(close).count() {
            return None;
        }
    }
    let inner = ['"', '\''].iter().find_map(|quote| {
        let inner = value.strip_prefix(*quote)?.strip_suffix(*quote)?;
        inner.contains(*quote).then_some(inner)
    });
    let value = inner
        .unwrap_or(value)
        .replace('\\', "\\\\")
        .replace('"', "\\\"");
    Some(format!("{key}\"{value}\"{comment}"))
}

fn first_fault(text: &str) -> Option<ScanError> {
    Parser::new_from_str(text).find_map(Result::err)
}
