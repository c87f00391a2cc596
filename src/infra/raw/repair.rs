//! Suggests how to correct text that is not YAML. Each suggestion is tried first: with it, reading gets past the line.

use granit_parser::{Marker, Parser, ScanError};

use crate::diagnostic::verbatim;
use crate::infra::TOP;
use crate::infra::findings::LOOKALIKE;

/// The next step if no suggestion works.
const LOOK: &str =
    "check the indentation, quotes and brackets of this line and of the lines above it";
const BACKTICKS: &str = "remove the lines that begin with three backticks";
const CONFLICT: &str = "remove the lines that begin with `<<<<<<<`, `=======` and `>>>>>>>`, and keep one version of the lines that they enclose";
const DASH: &str = "remove the `-` if this is a key, or begin all items of the list with `-`";
const NO_KEY: &str = "if it continues the value above, indent it deeper than that key; otherwise remove what is neither a key nor a list item";
/// Common mistakes (`\n`: at the beginning of a line), what YAML accepts in their place, and the help.
const SLIPS: &[(&str, &str, &str)] = &[
    ("\n```", "#", BACKTICKS),
    ("\n<<<<<<<", "#", CONFLICT),
    ("\n=======", "#", CONFLICT),
    ("\n>>>>>>>", "#", CONFLICT),
    ("\n//", "#", "begin the comment with `#`"),
    ("\n;", "#", "begin the comment with `#`"),
    ("\n• ", "- ", "begin the list item with `-`"),
    ("\n– ", "- ", "begin the list item with `-`"),
    ("\n* ", "- ", "begin the list item with `-`"),
    ("\n- - ", "- ", "remove the second `-`"),
    ("\n-", "- ", "put a space after the `-`"),
    (": - ", ": #", "put the `-` on a new line below the key"),
    ("=", ": ", "write `:` instead of `=`"),
    ("\u{a0}", " ", LOOKALIKE),
    ("“", "\"", LOOKALIKE),
    (",,", ",", "remove the extra comma"),
    ("[,", "[", "remove the extra comma"),
    ("\\", "\\\\", "double each `\\`, or use single quotes"),
];
/// Maximum number of lines to search for a bracket that is still open.
const OPEN_MAX: usize = 50;

/// Maximum amount of text that is read to try repairs, in bytes; three are tried in any case.
const TRIED_MAX: usize = 64 * 1024 * 1024;

/// A corrected line, and its description.
struct Repair {
    help: String,
    /// Index of the line.
    index: usize,
    corrected: String,
}

/// The lines of the text, and the location of its first error.
struct BrokenText<'a> {
    text: &'a str,
    lines: Vec<&'a str>,
    /// Index of the line.
    here: usize,
    /// Index of the last line above it that is neither empty nor a comment.
    above: Option<usize>,
    /// The line up to the error, and from the error on.
    before: &'a str,
    after: &'a str,
}

/// Returns the next step for a syntax error: a correction of one line that solves it, if there is one.
pub(super) fn suggestion(text: &str, marker: &Marker) -> String {
    let Some(broken) = BrokenText::new(text, marker) else {
        return LOOK.to_owned();
    };
    let (indent, _) = split_indent(broken.before);
    if indent.contains('\t') {
        return "indent with spaces: YAML allows no tabs there".to_owned();
    }
    if indent.is_empty() && text.starts_with(' ') {
        return "write `domains:` above the first line, or do not indent it".to_owned();
    }
    let tries = (TRIED_MAX / text.len().max(1)).max(3);
    let mut repairs = broken.repairs().take(tries);
    let found = repairs.find(|repair| broken.is_solved_by(repair));
    let is_item = broken.line(broken.here).trim_start().starts_with("- ");
    let look = if is_item { DASH } else { LOOK };
    found.map_or_else(|| look.to_owned(), |repair| repair.help)
}

impl<'a> BrokenText<'a> {
    fn new(text: &'a str, marker: &Marker) -> Option<Self> {
        let lines: Vec<&str> = text.lines().collect();
        let here = marker
            .line()
            .checked_sub(1)?
            .min(lines.len().checked_sub(1)?);
        let line = *lines.get(here)?;
        let column = line.char_indices().nth(marker.col());
        let column = column.map_or(line.len(), |(at, _)| at);
        let (before, after) = line.split_at_checked(column)?;
        let above = (0..here).rev().find(|index| {
            let line = lines.get(*index).map_or("", |line| line.trim_start());
            !line.is_empty() && !line.starts_with('#')
        });
        Some(Self {
            text,
            lines,
            here,
            above,
            before,
            after,
        })
    }

    /// The repairs in the order in which they are tried.
    fn repairs(&self) -> impl Iterator<Item = Repair> + '_ {
        let near = || [Some(self.here), self.above].into_iter().flatten();
        let in_line = self.in_line().into_iter();
        let quotes = (0..=self.here)
            .rev()
            .filter_map(|index| self.unclosed_quote(index))
            .take(2);
        let last = self.lines.len().checked_sub(1);
        let brackets = self
            .above
            .into_iter()
            .chain(last)
            .chain([self.here])
            .filter_map(|index| self.unclosed_bracket(index));
        in_line
            .chain(near().flat_map(|index| self.slips(index)))
            .chain(quotes)
            .chain(near().filter_map(|index| self.space_after_colon(index)))
            .chain(self.in_flow())
            .chain(brackets)
            .chain(self.quoted())
            .chain(near().filter_map(|index| self.colon(index)))
            .chain(self.outdented())
            .chain(self.indented())
    }

    fn line(&self, index: usize) -> &'a str {
        self.lines.get(index).copied().unwrap_or_default()
    }

    /// A repair that shows the corrected part of the line, unless it cannot be shown as it is.
    fn shown(&self, how: &str, index: usize, corrected: String, part: &str) -> Repair {
        let line = if index == self.here {
            String::new()
        } else {
            format!(" in line {}", index + 1)
        };
        let part = verbatim(part.trim()).filter(|part| part != "``");
        let part = part.map_or(String::new(), |part| format!(": {part}"));
        Repair {
            help: format!("{how}{line}{part}"),
            index,
            corrected,
        }
    }

    fn whole(&self, how: &str, index: usize, corrected: String) -> Repair {
        let part = corrected.clone();
        self.shown(how, index, corrected, &part)
    }

    /// Characters that have no place in the line.
    fn in_line(&self) -> Vec<Repair> {
        let repair = |help: String, corrected: String| Repair {
            help,
            index: self.here,
            corrected,
        };
        let mut repairs = Vec::new();
        let mut rest = self.after.chars();
        if rest.next().is_some_and(char::is_control) {
            let corrected = [self.before, rest.as_str()].concat();
            repairs.push(repair("remove the control character".to_owned(), corrected));
        }
        let line = self.line(self.here);
        let misfit = brackets(line, &mut Vec::new()).and_then(|at| line.split_at_checked(at));
        if let Some((before, after)) = misfit {
            let (found, other) = if after.starts_with(']') {
                (']', "}")
            } else {
                ('}', "]")
            };
            let rest = after.strip_prefix(found).unwrap_or_default();
            let corrected = [before, rest].concat();
            repairs.push(self.whole(&format!("remove the `{found}`"), self.here, corrected));
            let corrected = [before, other, rest].concat();
            let help = format!("write `{other}` instead of `{found}`");
            repairs.push(self.whole(&help, self.here, corrected));
        }
        repairs
    }

    /// Corrections of mistakes that YAML reports as something else.
    fn slips(&self, index: usize) -> impl Iterator<Item = Repair> {
        let (indent, content) = split_indent(self.line(index));
        let line = format!("\n{}", content.replace('”', "“"));
        SLIPS.iter().filter_map(move |(slip, instead, help)| {
            let corrected = line.contains(slip).then(|| line.replace(slip, instead))?;
            let corrected = format!("{indent}{}", corrected.trim_start_matches('\n'));
            Some(self.shown(help, index, corrected, ""))
        })
    }

    /// A value that begins with a quote and does not end with it.
    fn unclosed_quote(&self, index: usize) -> Option<Repair> {
        let line = self.line(index);
        let (_, value) = value(line)?;
        let quote = value.chars().next().filter(|c| matches!(c, '"' | '\''))?;
        let is_open = value.matches(quote).count() == 1;
        let corrected = format!("{}{quote}", line.trim_end());
        is_open.then(|| self.whole("end the value with a quote", index, corrected))
    }

    fn space_after_colon(&self, index: usize) -> Option<Repair> {
        let line = self.line(index);
        let (indent, content) = split_indent(line);
        let (key, value) = content.split_once(':')?;
        let is_key = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
        let is_missing = key.chars().all(is_key) && value.starts_with(|c: char| !c.is_whitespace());
        let corrected = format!("{indent}{key}: {value}");
        is_missing.then(|| self.whole("put a space after the colon", index, corrected))
    }

    /// Repairs in `[…]` or `{…}`: a missing comma, or quotes.
    fn in_flow(&self) -> Vec<Repair> {
        let mut repairs = Vec::new();
        if !self.before.contains(['[', '{']) {
            return repairs;
        }
        if let Some((left, right)) = self.before.rsplit_once(' ') {
            let corrected = format!("{}, {right}{}", left.trim_end(), self.after);
            repairs.push(self.whole("put a comma between the values", self.here, corrected));
        }
        let end = self.after.find([',', ']', '}']).unwrap_or(self.after.len());
        if let Some((token, rest)) = self.after.split_at_checked(end) {
            let token = token.trim_end();
            let open = token.chars().next().filter(|c| matches!(c, '"' | '\''));
            let (how, part) = match open {
                Some(quote) => ("end the value with a quote", format!("{token}{quote}")),
                None => ("put the value in quotes", in_quotes(token)),
            };
            let corrected = [self.before, &part, rest].concat();
            if !matches!(token, "" | "|" | ">") {
                repairs.push(self.shown(how, self.here, corrected, &part));
            }
        }
        repairs
    }

    /// Brackets that are still open at the end of the line.
    fn unclosed_bracket(&self, index: usize) -> Option<Repair> {
        let first = index.saturating_sub(OPEN_MAX);
        let closing = (first..=index).rev().find_map(|from| {
            let closing = closing(self.lines.get(from..=index)?);
            (!closing.is_empty()).then_some(closing)
        })?;
        let corrected = format!("{}{closing}", self.line(index).trim_end());
        let how = format!("add the missing `{closing}`");
        Some(self.whole(&how, index, corrected))
    }

    /// The value, or the list item, in quotes.
    fn quoted(&self) -> Option<Repair> {
        let line = self.line(self.here);
        let (key, value) = value(line)?;
        let (value, comment) = match value.find(" #") {
            Some(at) => value.split_at_checked(at)?,
            None => (value, ""),
        };
        let value = value.trim();
        if value.starts_with(['[', '{']) {
            return None;
        }
        let inner = ['"', '\''].iter().find_map(|quote| {
            let inner = value.strip_prefix(*quote)?.strip_suffix(*quote)?;
            inner.contains(*quote).then_some(inner)
        });
        let quoted = in_quotes(inner.unwrap_or(value));
        let corrected = [key, &quoted, comment].concat();
        Some(self.whole("put the value in quotes", self.here, corrected))
    }

    /// A colon after a name that has lines of its own; any other line without a colon is not a key.
    fn colon(&self, index: usize) -> Option<Repair> {
        let (line, next) = (self.line(index).trim_end(), self.line(index + 1));
        let has_lines = width(next) > width(line) || next.trim_start().starts_with("- ");
        if line.contains(':') {
            None
        } else if has_lines && !line.trim_start().contains(' ') {
            Some(self.whole("end the key with a colon", index, format!("{line}:")))
        } else {
            Some(self.shown(NO_KEY, index, "#".to_owned(), ""))
        }
    }

    /// A line above that is too far to the left: a domain, or the first line below a key.
    fn outdented(&self) -> Option<Repair> {
        let own = width(self.line(self.here));
        let above = (0..self.here).rev().map(|index| (index, self.line(index)));
        let mut above = above.filter(|(_, line)| line.trim_start().starts_with(|c| c != '#'));
        let (index, line) = above.find(|(_, line)| width(line) < own)?;
        let (_, before) = above.next()?;
        let is_domain = width(line) == 0 && !TOP.iter().any(|key| line.starts_with(key));
        let is_first = width(line) == width(before) && before.trim_end().ends_with(':');
        (is_domain || is_first).then(|| self.at_width(index, own))
    }

    /// The line with the indentation of a line above it, the most similar one first.
    fn indented(&self) -> Vec<Repair> {
        let Some(above) = self.above else {
            return Vec::new();
        };
        let mut widths: Vec<usize> = Vec::new();
        for index in (0..=above).rev() {
            let (width, (_, content)) = (width(self.line(index)), split_indent(self.line(index)));
            let is_outer = widths.last().is_none_or(|last| width < *last);
            let is_like = content.contains(':') == self.line(self.here).contains(':');
            if !content.is_empty() && !content.starts_with('#') && is_outer && is_like {
                // The keys of a list item follow its first one.
                widths.extend(content.starts_with("- ").then_some(width + 2));
                widths.push(width);
            }
        }
        let own = width(self.line(self.here));
        widths.retain(|width| (1..=4).contains(&width.abs_diff(own)));
        widths.sort_by_key(|width| width.abs_diff(own));
        let widths = widths.into_iter().take(6);
        let repairs = widths.map(|width| self.at_width(self.here, width));
        repairs.collect()
    }

    fn at_width(&self, index: usize, width: usize) -> Repair {
        let (_, content) = split_indent(self.line(index));
        let how = match width {
            0 => "do not indent the text".to_owned(),
            1 => "indent the text with 1 space".to_owned(),
            _ => format!("indent the text with {width} spaces"),
        };
        self.shown(&how, index, " ".repeat(width) + content, "")
    }

    /// Returns whether the text is read beyond the line with the error.
    fn is_solved_by(&self, repair: &Repair) -> bool {
        let mut text = String::with_capacity(self.text.len() + repair.corrected.len());
        for (index, whole) in self.text.split_inclusive('\n').enumerate() {
            if index == repair.index {
                text.push_str(&repair.corrected);
                text.push_str(whole.strip_prefix(self.line(index)).unwrap_or("\n"));
            } else {
                text.push_str(whole);
            }
        }
        first_fault(&text).is_none_or(|fault| fault.marker().line() > self.here + 1)
    }
}

fn split_indent(line: &str) -> (&str, &str) {
    let indent = line.len() - line.trim_start_matches([' ', '\t']).len();
    line.split_at_checked(indent).unwrap_or(("", line))
}

fn width(line: &str) -> usize {
    let (indent, _) = split_indent(line);
    indent.len()
}

/// Splits a line into its key, or the mark of a list item, and its value.
fn value(line: &str) -> Option<(&str, &str)> {
    let (indent, content) = split_indent(line);
    let key = match content.find(": ") {
        Some(colon) => colon + ": ".len(),
        None => content.starts_with("- ").then_some("- ".len())?,
    };
    let (key, value) = line.split_at_checked(indent.len() + key)?;
    (!key.contains(['[', '{'])).then_some((key, value))
}

/// Returns the text in quotes: double ones, unless it would need an escape there.
fn in_quotes(text: &str) -> String {
    if text.contains(['"', '\\']) {
        format!("'{}'", text.replace('\'', "''"))
    } else {
        format!("\"{text}\"")
    }
}

/// Returns what closes the brackets that are open at the end of these lines.
fn closing(lines: &[&str]) -> String {
    let mut open = Vec::new();
    for line in lines {
        brackets(line, &mut open);
    }
    open.into_iter().rev().collect()
}

/// Keeps track of what closes the open brackets; returns the place of the first closing bracket that does not match.
fn brackets(line: &str, open: &mut Vec<char>) -> Option<usize> {
    let (mut quote, mut before, mut misfit) = (None, ' ', None);
    for (at, character) in line.char_indices() {
        match (quote, character) {
            (Some(mark), _) => quote = (mark != character).then_some(mark),
            (None, '"' | '\'') if !before.is_alphanumeric() => quote = Some(character),
            (None, '#') if before == ' ' => break,
            (None, '[') => open.push(']'),
            (None, '{') => open.push('}'),
            (None, ']' | '}') if open.pop() != Some(character) => misfit = misfit.or(Some(at)),
            _ => {}
        }
        before = character;
    }
    misfit
}

fn first_fault(text: &str) -> Option<ScanError> {
    Parser::new_from_str(text).find_map(Result::err)
}
