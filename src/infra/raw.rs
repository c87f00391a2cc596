//! Reads the shape of an infra file: a tree of scalars, lists and maps with their source positions.
//!
//! Only this module uses the YAML reader. YAML features that a security policy must not use (duplicate keys, anchors,
//! aliases, merge keys, tags, a second document, depth bombs) are findings here; `validate` interprets the keys.
//! Reads events instead of serde types, so that a wrong type is just another finding and does not stop the reading.

mod repair;
mod shape;

use std::borrow::Cow;

use granit_parser::{ErrorKind, Event, Parser, ScalarStyle, ScanError, Span, StructureStyle};

use super::findings::{At, Code, Findings};
use crate::diagnostic::{offset, position, quote};

use shape::repeated_keys;
pub(super) use shape::{Entry, Node, NodeKind, Reading, Scalar};

/// Maximum nesting depth of lists and maps; a service's fixed arguments are at depth 9.
const DEPTH_MAX: usize = 32;
/// Maximum number of nodes in a file; 10,000 machines with two services for five consumers have about 450,000.
const NODES_MAX: usize = 2_000_000;

/// The consequence of a syntax error.
const UNREAD: &str = "nothing after this point was read, so there may be more errors";

/// A list or map that is still open.
enum ParserFrame<'a> {
    List {
        at: At,
        items: Vec<Node<'a>>,
    },
    Map {
        at: At,
        flow: bool,
        entries: Vec<Entry<'a>>,
        key: Option<(At, Scalar<'a>)>,
        /// True if the current key has been reported as unusable, so that its value is dropped.
        skip: bool,
    },
}

/// Reading stopped before the end of the file; the reason is among the findings.
struct Stopped;

/// Reads the shape of one file; `None` after a finding that makes the rest of the file meaningless.
pub(super) fn read<'a>(text: &'a str, file: u32, findings: &mut Findings) -> Option<Node<'a>> {
    let mut builder = Builder {
        text,
        file,
        findings,
        frames: Vec::new(),
        nodes: 0,
        documents: 0,
        root: None,
    };
    builder.check_line_ends().ok()?;
    let options = granit_parser::options! {
        emit_comments: false,
        emit_anchor_events: true,
        emit_unresolved_aliases: true,
        disallow_directives: true,
    };
    for event in Parser::new_from_str_with_options(text, options) {
        let taken = match event {
            Ok((event, span)) => builder.take(event, span),
            Err(fault) => builder.syntax(&fault),
        };
        taken.ok()?;
    }
    Some(builder.end())
}

struct Builder<'a, 'f> {
    text: &'a str,
    file: u32,
    findings: &'f mut Findings,
    frames: Vec<ParserFrame<'a>>,
    nodes: usize,
    documents: usize,
    root: Option<Node<'a>>,
}

impl<'a> Builder<'a, '_> {
    fn take(&mut self, event: Event<'a>, span: Span) -> Result<(), Stopped> {
        let at = self.at(&span);
        match event {
            Event::DocumentStart(..) => self.document(at),
            Event::Scalar(text, style, _, _) => {
                self.check_tag(&span);
                let plain = style == ScalarStyle::Plain;
                self.scalar(at, Scalar { text, plain })
            }
            Event::SequenceStart(..) => {
                self.check_tag(&span);
                self.open(ParserFrame::List {
                    at,
                    items: Vec::new(),
                })
            }
            Event::MappingStart(style, _, _) => {
                self.check_tag(&span);
                let flow = style == StructureStyle::Flow;
                self.open(ParserFrame::Map {
                    at,
                    flow,
                    entries: Vec::new(),
                    key: None,
                    skip: false,
                })
            }
            Event::SequenceEnd | Event::MappingEnd => self.close(),
            Event::Alias(_) | Event::UnresolvedAlias(_) => self.alias(at),
            Event::Anchor(_, name) => {
                self.findings
                    .error(Code::YamlAnchor, at, format!("anchor {}", quote(&name)))
                    .help(format!(
                        "remove {}, and write the value itself wherever {} is",
                        quote(&format!("&{name}")),
                        quote(&format!("*{name}"))
                    ));
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// Refuses a lone carriage return. It ends a line in YAML but in few editors, so locations would be wrong;
    /// in a terminal, the rest of the line would overwrite its beginning.
    fn check_line_ends(&mut self) -> Result<(), Stopped> {
        let alone = self.text.match_indices('\r').map(|(at, _)| at).find(|at| {
            let next = self.text.as_bytes().get(at + 1);
            next != Some(&b'\n')
        });
        let Some(start) = alone else {
            return Ok(());
        };
        let (line, column) = position(self.text.get(..start).unwrap_or_default());
        let at = At {
            file: self.file,
            start: clamp(start),
            end: clamp(start + 1),
            line: clamp(line),
            column: clamp(column),
        };
        let message = "a carriage return without a line feed";
        self.findings
            .error(Code::YamlSyntax, at, message)
            .help("save the file with LF or CRLF line endings");
        Err(Stopped)
    }

    fn document(&mut self, at: At) -> Result<(), Stopped> {
        self.documents += 1;
        if self.documents == 1 {
            return Ok(());
        }
        let message = "a second YAML document begins here";
        self.findings.error(Code::SecondDocument, at, message).help(
            "remove the line `---` or `...`, and write each top-level key only once: one file is one document",
        );
        Err(Stopped)
    }

    fn check_tag(&mut self, span: &Span) {
        if let Some(tag) = span.tag_span() {
            let at = self.at(&tag);
            let written = self.written(at);
            let help = if written == "!include" {
                "write the contents of that file here: anklume does not include files".to_owned()
            } else {
                format!(
                    "remove {}; put a value in quotes to make it text",
                    quote(written)
                )
            };
            self.findings
                .error(Code::YamlTag, at, "a YAML tag")
                .help(help);
        }
    }

    /// Returns the text at a place.
    fn written(&self, at: At) -> &'a str {
        let bytes = usize::try_from(at.start)
            .ok()
            .zip(usize::try_from(at.end).ok());
        bytes
            .and_then(|(start, end)| self.text.get(start..end))
            .unwrap_or_default()
    }

    fn alias(&mut self, at: At) -> Result<(), Stopped> {
        let help = format!(
            "write the value itself here instead of {}",
            quote(self.written(at))
        );
        self.findings
            .error(Code::YamlAlias, at, "a YAML alias")
            .help(help);
        let kind = NodeKind::Unusable;
        self.put(Node { at, kind })
    }

    fn scalar(&mut self, at: At, scalar: Scalar<'a>) -> Result<(), Stopped> {
        if let Some(ParserFrame::Map { key, skip, .. }) = self.frames.last_mut()
            && key.is_none()
            && !*skip
        {
            if scalar.plain && scalar.text == "<<" {
                self.findings
                    .error(Code::YamlMergeKey, at, "a YAML merge key")
                    .help("remove `<<`, and write the keys themselves here");
                *skip = true;
            } else {
                *key = Some((at, scalar));
            }
            return self.count(at);
        }
        let kind = NodeKind::Scalar(scalar);
        self.put(Node { at, kind })
    }

    fn open(&mut self, frame: ParserFrame<'a>) -> Result<(), Stopped> {
        let (ParserFrame::List { at, .. } | ParserFrame::Map { at, .. }) = &frame;
        let at = *at;
        if self.frames.len() >= DEPTH_MAX {
            return self.too_deep(at);
        }
        self.frames.push(frame);
        self.count(at)
    }

    fn too_deep(&mut self, at: At) -> Result<(), Stopped> {
        let message = format!("lists and maps are nested deeper than {DEPTH_MAX}");
        self.findings
            .error(Code::TooDeep, at, message)
            .help("remove levels: no key needs more than a dozen");
        Err(Stopped)
    }

    fn close(&mut self) -> Result<(), Stopped> {
        let (at, kind) = match self.frames.pop() {
            Some(ParserFrame::List { at, items }) => (at, NodeKind::List(items)),
            Some(ParserFrame::Map {
                at, flow, entries, ..
            }) => {
                let first = entries.first().filter(|_| !flow);
                let at = first.map_or(at, |entry| entry.at);
                let kind = match self.template(at) {
                    // Its key has already been reported.
                    Some(_) => NodeKind::Unusable,
                    None => NodeKind::Map(self.without_duplicates(entries)),
                };
                (at, kind)
            }
            None => return Ok(()),
        };
        self.put(Node { at, kind })
    }

    /// Returns the template (`{{ … }}`) at a point where YAML reads a map that has a map as its key.
    fn template(&self, at: At) -> Option<&'a str> {
        let text = self.text.get(usize::try_from(at.start).ok()?..)?;
        // Asked at the end of each map, of which there may be hundreds of thousands.
        let line = text.starts_with("{{").then(|| text.lines().next())??;
        line.get(..line.find("}}")? + "}}".len())
    }

    /// Adds a finished value to the list or map around it, or makes it the root.
    fn put(&mut self, value: Node<'a>) -> Result<(), Stopped> {
        let at = value.at;
        match self.frames.last_mut() {
            None => self.root = Some(value),
            Some(ParserFrame::List { items, .. }) => items.push(value),
            Some(ParserFrame::Map {
                at: map,
                entries,
                key,
                skip,
                ..
            }) => {
                if *skip {
                    *skip = false;
                } else if let Some((at, key)) = key.take() {
                    entries.push(Entry { at, key, value });
                } else {
                    *skip = true;
                    // An alias has already been reported.
                    if matches!(value.kind, NodeKind::Unusable) {
                        return Ok(());
                    }
                    let map = *map;
                    let help = match self.template(map) {
                        Some(template) => format!(
                            "anklume does not expand templates: write the value itself, or, as text, {}",
                            quote(&format!("\"{template}\""))
                        ),
                        None => {
                            "write a name as the key, without `?`, `[` or `{` before it".to_owned()
                        }
                    };
                    self.findings
                        .error(Code::ComplexKey, at, "a key that is not plain text")
                        .help(help);
                }
            }
        }
        self.count(at)
    }

    fn count(&mut self, at: At) -> Result<(), Stopped> {
        self.nodes += 1;
        if self.nodes <= NODES_MAX {
            return Ok(());
        }
        let message = format!("more than {NODES_MAX} keys and values");
        self.findings
            .error(Code::TooManyValues, at, message)
            .help("split the infrastructure: the limit suffices for tens of thousands of machines");
        Err(Stopped)
    }

    /// Reports duplicate keys in a map, and keeps the first of each.
    fn without_duplicates(&mut self, mut entries: Vec<Entry<'a>>) -> Vec<Entry<'a>> {
        let repeated = repeated_keys(&entries);
        let in_list = matches!(self.frames.last(), Some(ParserFrame::List { .. }));
        let item =
            (in_list && repeated.len() > 1).then_some(", or begin a second list item with `-`");
        let next = format!("keep one of them{}", item.unwrap_or_default());
        for (first, second) in &repeated {
            if let (Some(first), Some(second)) = (entries.get(*first), entries.get(*second)) {
                let message = format!("{} is already a key of this map", quote(&second.key.text));
                let line = self.findings.short(first.at);
                self.findings
                    .error(Code::DuplicateKey, second.at, message)
                    .help(format!("the first one is at {line}; {next}"));
            }
        }
        let mut repeated = repeated.iter().map(|(_, second)| *second).peekable();
        let mut index = 0;
        entries.retain(|_| {
            let is_repeated = repeated.next_if_eq(&index).is_some();
            index += 1;
            !is_repeated
        });
        entries
    }

    fn syntax(&mut self, fault: &ScanError) -> Result<(), Stopped> {
        let at = self.at(&Span::empty(*fault.marker()));
        let (code, message, next) = match fault.kind() {
            ErrorKind::RecursionLimitExceeded => return self.too_deep(at),
            ErrorKind::DirectiveDisallowed => (
                Code::YamlDirective,
                "a YAML directive".to_owned(),
                "remove this line".to_owned(),
            ),
            other => (
                Code::YamlSyntax,
                format!("this is not YAML: {other}"),
                repair::suggestion(self.text, fault.marker()),
            ),
        };
        // The YAML reader's messages quote single characters, including control characters.
        let mut escaped = String::new();
        for character in message.chars() {
            if character.is_control() {
                escaped.extend(character.escape_debug());
            } else {
                escaped.push(character);
            }
        }
        self.findings
            .error(code, at, escaped)
            .help(format!("{next}; {UNREAD}"));
        Err(Stopped)
    }

    fn end(self) -> Node<'a> {
        self.root.unwrap_or(Node {
            at: At {
                file: self.file,
                start: 0,
                end: 0,
                line: 1,
                column: 1,
            },
            kind: NodeKind::Scalar(Scalar {
                text: Cow::Borrowed(""),
                plain: true,
            }),
        })
    }

    /// Returns the location of a span, extended to at least one character if there is one.
    fn at(&self, span: &Span) -> At {
        let (line, column) = (span.start.line(), span.start.col() + 1);
        let start = span.start.byte_offset();
        let start = start.unwrap_or_else(|| offset(self.text, line, column));
        let end = span.end.byte_offset().unwrap_or(start);
        // The caret for an empty span goes under the next character, if the line has one.
        let next = self.text.get(start..).and_then(|rest| rest.chars().next());
        let min = next
            .filter(|c| *c != '\n' && *c != '\r')
            .map_or(0, char::len_utf8);
        At {
            file: self.file,
            start: clamp(start),
            end: clamp(end.max(start + min)),
            line: clamp(line),
            column: clamp(column),
        }
    }
}

fn clamp(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}
