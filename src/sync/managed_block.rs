//! Finds and replaces the managed block of a file, and keeps everything around it byte for byte.
//!
//! A marker is a whole line, so neither a value that contains its text nor a comment that quotes it counts as one.

/// First line of the block.
const BEGIN: &str = "# === MANAGED BY infra.yml ===";
/// Second line of the block.
const NOTICE: &str = "# Do not edit this section — it will be overwritten by `make sync`";
/// Last line of the block.
const END: &str = "# === END MANAGED ===";
/// Comment in a new file that tells its owner where to add variables.
const INVITATION: &str = "# Your custom variables below:";
/// A byte order mark, which some editors put at the start of a file.
const BOM: char = '\u{feff}';

/// The reason why a file's block cannot be found or replaced.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct BlockFault {
    /// Line in the file, from 1.
    pub(crate) line: usize,
    /// The fault.
    pub(crate) message: String,
    /// The next step.
    pub(crate) help: &'static str,
}

/// A file, split at its managed block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct BlockParts<'a> {
    before: &'a str,
    /// The lines from the first marker to the second, without the final line break.
    block: &'a str,
    after: &'a str,
}

/// Splits a file at its managed block; returns `None` if it has none.
///
/// # Errors
///
/// Fails if the block does not end, or begins twice, so that its extent is unknown.
pub(crate) fn find(text: &str) -> Result<Option<BlockParts<'_>>, BlockFault> {
    let mut at = text.len() - text.trim_start_matches(BOM).len();
    let mut begin: Option<(usize, usize)> = None;
    let lines = text.get(at..).unwrap_or_default().split_inclusive('\n');
    for (index, line) in lines.enumerate() {
        let marker = line.trim_end();
        match (marker, begin) {
            (BEGIN, None) => begin = Some((at, index + 1)),
            (BEGIN, Some((_, first))) => {
                return Err(BlockFault {
                    line: index + 1,
                    message: format!(
                        "a second managed block begins, but the one at line {first} has not ended"
                    ),
                    help: "keep only one block, with one first line and one last line",
                });
            }
            (END, Some((from, _))) => {
                let end = at + marker.len();
                return Ok(Some(BlockParts {
                    before: text.get(..from).unwrap_or_default(),
                    block: text.get(from..end).unwrap_or_default(),
                    after: text.get(end..).unwrap_or_default(),
                }));
            }
            _ => {}
        }
        at += line.len();
    }
    match begin {
        None => Ok(None),
        Some((_, line)) => Err(BlockFault {
            line,
            message: format!("the managed block has no end: the line `{END}` is missing"),
            help: "put that line back after the block, or delete the line that begins it",
        }),
    }
}

impl<'a> BlockParts<'a> {
    /// Returns the content of the block, without its markers.
    pub(crate) fn body(&self) -> &'a str {
        let body = self.block.strip_prefix(BEGIN).unwrap_or(self.block);
        body.strip_suffix(END).unwrap_or(body)
    }

    /// Returns the text around the block, with an empty line for each block line, so that line numbers stay valid.
    pub(crate) fn around(&self) -> String {
        let empty = "\n".repeat(self.block.matches('\n').count());
        [self.before, &empty, self.after].concat()
    }

    /// Returns whether the file contains text that `sync` did not write.
    pub(crate) fn has_user_text(&self) -> bool {
        let before = self.before.trim_start_matches(BOM).trim();
        let after = self.after.trim();
        !["", "---"].contains(&before) || !["", INVITATION].contains(&after)
    }

    /// Returns the file's text with this body in the block.
    pub(crate) fn with_body(&self, body: &str) -> String {
        let line_break = if self.block.starts_with(&format!("{BEGIN}\r\n")) {
            "\r\n"
        } else {
            "\n"
        };
        [self.before, &block(body, line_break), self.after].concat()
    }
}

fn block(body: &str, line_break: &str) -> String {
    let body = body.trim_end_matches('\n');
    let block = [BEGIN, NOTICE, body, END].join("\n");
    if line_break == "\n" {
        block
    } else {
        block.replace('\n', line_break)
    }
}

/// Returns the text of a new file.
pub(crate) fn create(body: &str) -> String {
    format!("---\n{}\n\n{INVITATION}\n", block(body, "\n"))
}

/// Inserts a block at the start of a document without one.
///
/// # Errors
///
/// Fails for an encrypted file, or a document in flow style (such as JSON): neither can contain a block.
pub(crate) fn insert(text: &str, body: &str) -> Result<String, BlockFault> {
    let (mark, text) = match text.strip_prefix(BOM) {
        Some(rest) => ("\u{feff}", rest),
        None => ("", text),
    };
    if text.trim().is_empty() {
        return Ok([mark, &create(body)].concat());
    }
    if text.starts_with("$ANSIBLE_VAULT;") {
        return Err(BlockFault {
            line: 1,
            message: "the file is encrypted by ansible-vault, so no managed block can be inserted"
                .to_owned(),
            help: "decrypt it with `ansible-vault decrypt`, and encrypt each secret with `ansible-vault encrypt_string`",
        });
    }
    let line_break = match text.find('\n') {
        Some(end) if text.get(..end).is_some_and(|line| line.ends_with('\r')) => "\r\n",
        _ => "\n",
    };
    let block = block(body, line_break);
    let start = document_start(text)?;
    let content = text.get(start.unwrap_or_default()..).unwrap_or_default();
    check_block_style(content, text.lines().count() - content.lines().count())?;
    let Some(start) = start else {
        return Ok([
            mark, "---", line_break, &block, line_break, line_break, text,
        ]
        .concat());
    };
    let (head, rest) = text.split_at_checked(start).unwrap_or((text, ""));
    let head_break = if head.ends_with('\n') { "" } else { line_break };
    let invitation = [INVITATION, line_break].concat();
    let rest = if rest.trim().is_empty() {
        &invitation
    } else {
        rest
    };
    Ok([mark, head, head_break, &block, line_break, line_break, rest].concat())
}

/// Checks that a document after `skipped` lines is not in flow style: no block mapping can precede it.
fn check_block_style(content: &str, skipped: usize) -> Result<(), BlockFault> {
    let is_content = |line: &str| !line.trim().is_empty() && !line.trim_start().starts_with('#');
    let first = content
        .lines()
        .enumerate()
        .find(|(_, line)| is_content(line));
    match first {
        Some((index, line)) if line.trim_start().starts_with('{') => Err(BlockFault {
            line: skipped + index + 1,
            message: "the document begins with `{`, so no managed block can be inserted".to_owned(),
            help: "write its variables as `NAME: VALUE` lines without braces; remove `{}`",
        }),
        _ => Ok(()),
    }
}

/// Returns the offset of the line after `---`, if the document begins with one.
fn document_start(text: &str) -> Result<Option<usize>, BlockFault> {
    let mut at = 0;
    for (index, line) in text.split_inclusive('\n').enumerate() {
        at += line.len();
        let is_preamble =
            line.trim().is_empty() || line.trim_start().starts_with('#') || line.starts_with('%');
        let Some(rest) = line.strip_prefix("---") else {
            if is_preamble {
                continue;
            }
            return Ok(None);
        };
        let content = rest.trim();
        if content.is_empty() || (rest != rest.trim_start() && content.starts_with('#')) {
            return Ok(Some(at));
        }
        if rest == rest.trim_start() {
            return Ok(None);
        }
        return Err(BlockFault {
            line: index + 1,
            message:
                "the document begins on the same line as its `---`, so no managed block can be inserted"
                    .to_owned(),
            help: "add a line break after `---`, and convert the document to block style",
        });
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn update(text: &str, body: &str) -> Result<String, BlockFault> {
        match find(text)? {
            Some(parts) => Ok(parts.with_body(body)),
            None => insert(text, body),
        }
    }

    const BODY: &str = "a: 1\n";

    fn managed(body: &str) -> String {
        block(body, "\n")
    }

    #[test]
    fn a_new_file_has_the_layout_that_users_know() {
        let expected = "---\n# === MANAGED BY infra.yml ===\n\
            # Do not edit this section — it will be overwritten by `make sync`\n\
            a: 1\n# === END MANAGED ===\n\n# Your custom variables below:\n";
        assert_eq!(create(BODY), expected);
        assert!(!find(expected).unwrap().unwrap().has_user_text());
    }

    #[test]
    fn text_around_the_block_is_kept_byte_for_byte() {
        let old = managed("b: 2\n# gone\n");
        let new = managed(BODY);
        for (before, after) in [
            ("---\n", "\n\n# Your custom variables below:\n"),
            ("", ""),
            ("", "  \t\r\nx: '\\d+'\r\n"),
            ("\u{feff}---\nx: C:\\new\n", "\ny: $1 ${0}"),
            (
                "x: 1\n\n",
                "\n# see # === END MANAGED ===\n # === MANAGED BY infra.yml ===\n",
            ),
            ("---\n", &format!("\nx: 1\n{}\n", managed("c: 3\n"))),
            ("---\n", "\n# === END MANAGED ===\n"),
            ("# === END MANAGED ===\n", "\n"),
        ] {
            let file = format!("{before}{old}{after}");
            let updated = update(&file, BODY).unwrap();
            assert_eq!(updated, format!("{before}{new}{after}"));
            assert_eq!(update(&updated, BODY).unwrap(), updated);
        }
    }

    #[test]
    fn a_block_keeps_its_files_line_ends() {
        let file = create("b: 2\n").replace('\n', "\r\n");
        assert_eq!(
            update(&file, BODY).unwrap(),
            create(BODY).replace('\n', "\r\n")
        );
        let own = "x: 1\r\ny: 2\r\n";
        let updated = update(own, BODY).unwrap();
        assert_eq!(
            updated,
            format!("---\r\n{}\r\n\r\n{own}", block(BODY, "\r\n"))
        );
    }

    #[test]
    fn a_file_without_a_block_gets_one_where_its_document_begins() {
        let new = managed(BODY);
        for (file, expected) in [
            ("", create(BODY)),
            (" \n", create(BODY)),
            ("x: 1\n", format!("---\n{new}\n\nx: 1\n")),
            ("x: 1", format!("---\n{new}\n\nx: 1")),
            ("---\nx: 1\n", format!("---\n{new}\n\nx: 1\n")),
            ("---", create(BODY)),
            (
                "# mine\n\n--- # all\nx: 1\n",
                format!("# mine\n\n--- # all\n{new}\n\nx: 1\n"),
            ),
            (
                "%YAML 1.1\n---\nx: 1\n",
                format!("%YAML 1.1\n---\n{new}\n\nx: 1\n"),
            ),
            ("# mine\n", format!("---\n{new}\n\n# mine\n")),
            ("---x: 1\n", format!("---\n{new}\n\n---x: 1\n")),
            ("\u{feff}x: 1\n", format!("\u{feff}---\n{new}\n\nx: 1\n")),
        ] {
            let updated = update(file, BODY).unwrap();
            assert_eq!(updated, expected, "{file:?}");
            assert_eq!(update(&updated, BODY).unwrap(), expected, "{file:?}");
        }
        assert_eq!(update("#\n--- {x: 1}\n", BODY).unwrap_err().line, 2);
    }

    #[test]
    fn a_block_that_is_not_whole_is_left_alone() {
        let open = format!("---\n{BEGIN}\na: 1\n");
        let fault = update(&open, BODY).unwrap_err();
        assert_eq!(
            (fault.line, fault.message.contains("has no end")),
            (2, true)
        );
        let twice = format!("{BEGIN}\na: 1\n{}", managed(BODY));
        let fault = update(&twice, BODY).unwrap_err();
        assert_eq!(
            (
                fault.line,
                fault.message.contains("a second managed block begins")
            ),
            (3, true)
        );
    }

    #[test]
    fn a_place_around_the_block_is_a_place_in_the_file() {
        let file = format!("---\nx: 1\n{}\ny: 2\n", managed("a: 1\nb: 2\n"));
        let around = find(&file).unwrap().unwrap().around();
        let line = |text: &str| text.lines().position(|line| line == "y: 2");
        assert_eq!(line(&around), line(&file));
        assert!(!around.contains("a: 1"));
    }

    #[test]
    fn what_sync_did_not_write_is_the_users() {
        let has = |before: &str, after: &str| {
            let file = format!("{before}{}{after}", managed(BODY));
            find(&file).unwrap().unwrap().has_user_text()
        };
        assert!(!has("---\n", "\n\n# Your custom variables below:\n"));
        assert!(!has("", ""));
        assert!(has("---\n", "\n# Your custom variables below:\n# a note\n"));
        assert!(has("x: 1\n", ""));
    }
}
