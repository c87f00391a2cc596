//! Turns a page of the book into a manual page: headings, paragraphs, tables, lists and code, which is all that it uses.

use std::fmt::Write as _;

/// Returns the manual page of a text in Markdown, whose first line is its title.
pub(super) fn page(name: &str, section: u8, text: &str) -> String {
    let mut page = Page {
        roff: format!(
            ".TH {name} {section}\n.SH NAME\n{name} \\- the file that declares machines and their services\n.SH DESCRIPTION\n"
        ),
        is_code: false,
        heads: None,
    };
    for line in text.lines().skip(1) {
        page.line(line);
    }
    page.roff
}

struct Page {
    roff: String,
    /// Within a code block.
    is_code: bool,
    /// Within a table: whether its headings and their rule have been read.
    heads: Option<usize>,
}

impl Page {
    fn line(&mut self, line: &str) {
        if line.starts_with("```") {
            self.control(if self.is_code {
                "fi\n.RE"
            } else {
                "PP\n.RS 4\n.nf"
            });
            self.is_code = !self.is_code;
        } else if self.is_code {
            self.text(&escaped(line));
        } else if let Some(row) = line.strip_prefix("| ") {
            self.row(row);
        } else if line.starts_with("|---") {
            self.heads = Some(2);
        } else {
            self.heads = None;
            if let Some(heading) = line.strip_prefix("### ") {
                self.control(&format!("SS \"{}\"", inline(heading)));
            } else if let Some(heading) = line.strip_prefix("## ") {
                self.control(&format!("SH \"{}\"", inline(&heading.to_uppercase())));
            } else if let Some(item) = line.strip_prefix("- ") {
                self.control("IP \\(bu 2");
                self.text(&inline(item));
            } else if line.is_empty() {
                self.control("PP");
            } else {
                self.text(&inline(line.trim_start()));
            }
        }
    }

    /// Adds a row of a table: its first cell is a term, and the others say what it means.
    fn row(&mut self, row: &str) {
        if self.heads.is_none() {
            // The headings, of which the reader needs none.
            self.heads = Some(1);
            return;
        }
        // A `|` in a cell would be written as `\|`; no page has one.
        let mut cells = row.trim_end_matches('|').split('|').map(str::trim);
        let term = cells.next().unwrap_or_default();
        let rest: Vec<&str> = cells.filter(|cell| !cell.is_empty()).collect();
        self.control("TP");
        self.text(&inline(term));
        self.text(&inline(&rest.join(". ")));
    }

    fn control(&mut self, request: &str) {
        // Writing to a `String` cannot fail.
        let _ = writeln!(self.roff, ".{request}");
    }

    /// Adds a line of text, which must not look like a request.
    fn text(&mut self, text: &str) {
        if text.starts_with(['.', '\'']) {
            self.roff.push_str("\\&");
        }
        let _ = writeln!(self.roff, "{text}");
    }
}

/// Escapes text for roff.
fn escaped(text: &str) -> String {
    text.replace('\\', "\\e").replace('-', "\\-")
}

/// Renders code and strong text in bold, and links by their text.
fn inline(text: &str) -> String {
    let mut rendered = String::new();
    let mut is_bold = false;
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let next = if let Some(after) = rest.strip_prefix("**") {
            is_bold = !is_bold;
            rendered.push_str(if is_bold { "\\fB" } else { "\\fR" });
            after
        } else if let Some((code, after)) = between(rest, "`", "`") {
            let _ = write!(rendered, "\\fB{}\\fR", escaped(code));
            after
        } else if let Some((label, after)) = between(rest, "[", "](") {
            rendered.push_str(&inline(label));
            after.split_once(')').map_or(after, |(_, after)| after)
        } else if let Some(after) = rest.strip_prefix("\\*") {
            rendered.push('*');
            after
        } else {
            rendered.push_str(&escaped(first.encode_utf8(&mut [0; 4])));
            rest.get(first.len_utf8()..).unwrap_or_default()
        };
        rest = next;
    }
    rendered
}

/// Returns what is between two marks, of which the first begins the text, and what follows.
fn between<'t>(text: &'t str, open: &str, close: &str) -> Option<(&'t str, &'t str)> {
    text.strip_prefix(open)?.split_once(close)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_of_the_book_becomes_a_manual_page() {
        let text = "# title\n\nA `key` and **b** [there](x.md).\n.dot\n\n## Top level\n\n| key | value | |\n|---|---|---|\n\
            | `a-b` | text | see \\*below |\n\n### More\n\n- one\n  two\n\n```yaml\n.a: \\\n```\n";
        let expected = ".PP\nA \\fBkey\\fR and \\fBb\\fR there.\n\\&.dot\n.PP\n.SH \"TOP LEVEL\"\n.PP\n\
            .TP\n\\fBa\\-b\\fR\ntext. see *below\n.PP\n.SS \"More\"\n.PP\n.IP \\(bu 2\none\ntwo\n.PP\n\
            .PP\n.RS 4\n.nf\n\\&.a: \\e\n.fi\n.RE\n";
        let page = page("x", 5, text);
        assert_eq!(page.split_once(".SH DESCRIPTION\n").unwrap().1, expected);
    }
}
