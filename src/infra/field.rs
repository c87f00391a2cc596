//! Typed access to the keys of a map: what has the wrong type is a finding, and the rest is read on.
//!
//! No rule of a section lives here.

mod json;
mod wrong;

use std::ops::RangeInclusive;

use super::code::Code;
use super::findings::{At, Findings};
use super::raw::{Entry, Node, NodeKind, Reading};
use crate::diagnostic::quote;

pub(super) use json::{json, json_map};
use wrong::{A_MAP, Expected, is_decimal, wrong_type};
pub(super) use wrong::{wrong_entry, wrong_item};

/// The map of a section.
#[derive(Debug, Clone, Copy)]
pub(super) struct Fields<'t, 'a> {
    /// Place of the section.
    pub(super) at: At,
    entries: &'t [Entry<'a>],
    /// A section that grants something: an unknown key or an empty value refuses the file.
    strict: bool,
}

/// Text and where it is written.
#[derive(Debug, Clone, Copy)]
pub(super) struct Text<'t> {
    /// The text.
    pub(super) text: &'t str,
    /// Where.
    pub(super) at: At,
}

impl<'t, 'a> Fields<'t, 'a> {
    /// The map that a key holds.
    pub(super) fn of(entry: &'t Entry<'a>, findings: &mut Findings) -> Option<Self> {
        let what = Expected::Key(&entry.key.text, entry.at);
        Self::of_what(&entry.value, what, findings)
    }

    /// The map that an item of a list is, or the file; `what` says which.
    pub(super) fn of_item(
        node: &'t Node<'a>,
        what: &'static str,
        findings: &mut Findings,
    ) -> Option<Self> {
        Self::of_what(node, Expected::Item(what), findings)
    }

    fn of_what(node: &'t Node<'a>, what: Expected<'_>, findings: &mut Findings) -> Option<Self> {
        if let NodeKind::Map(entries) = &node.kind {
            return Some(Self {
                at: node.at,
                entries,
                strict: false,
            });
        }
        wrong_type(node, what, A_MAP, findings);
        None
    }

    /// No keys at all.
    pub(super) const fn none(at: At) -> Self {
        Self {
            at,
            entries: &[],
            strict: false,
        }
    }

    /// The same section, with unknown keys and empty values as faults.
    pub(super) const fn strict(mut self) -> Self {
        self.strict = true;
        self
    }

    /// Reports keys that the section does not have.
    pub(super) fn known(&self, section: &str, keys: &[&str], findings: &mut Findings) {
        for entry in self.entries {
            let key = entry.key.text.as_ref();
            if keys.contains(&key) {
                continue;
            }
            let message = format!("{} is not a key of {section}", quote(key));
            let near = findings.closest(key, keys.iter().copied());
            let found = if self.strict {
                findings.error(Code::UnknownKey, entry.at, message)
            } else {
                findings.warning(Code::UnknownKey, entry.at, message)
            };
            match near {
                Some(near) => found.help(format!("did you mean `{near}`?")),
                None => found.help(format!("the keys are: {}", keys.join(", "))),
            }
        }
    }

    /// All entries in the order of the file.
    pub(super) fn entries(&self) -> &'t [Entry<'a>] {
        self.entries
    }

    /// The entry of a key, whatever it holds.
    pub(super) fn entry(&self, key: &str) -> Option<&'t Entry<'a>> {
        self.entries.iter().find(|entry| entry.key.text == key)
    }

    /// The entry of a key that holds something. One that is written empty is as if it were not written, and said so.
    pub(super) fn filled(&self, key: &str, findings: &mut Findings) -> Option<&'t Entry<'a>> {
        let entry = self.entry(key)?;
        if self.strict || !is_null(&entry.value) {
            return Some(entry);
        }
        findings
            .warning(
                Code::EmptyValue,
                entry.at,
                format!(
                    "{} has no value and is read as if it were not there",
                    quote(key)
                ),
            )
            .help("write a value, or take the key away");
        None
    }

    /// Text: quoted, or plain and nothing else.
    pub(super) fn text(&self, key: &str, findings: &mut Findings) -> Option<Text<'t>> {
        let entry = self.filled(key, findings)?;
        text_entry(entry, findings)
    }

    /// Text out of a fixed choice.
    pub(super) fn choice(
        &self,
        key: &str,
        choices: &[&'static str],
        findings: &mut Findings,
    ) -> Option<&'static str> {
        let written = self.text(key, findings)?;
        let found = choices.iter().find(|choice| **choice == written.text);
        if found.is_none() {
            let message = format!("{} is no value of {}", quote(written.text), quote(key));
            findings
                .error(Code::InvalidValue, written.at, message)
                .help(format!("one of: {}", choices.join(", ")));
        }
        found.copied()
    }

    /// `true` or `false`.
    pub(super) fn flag(&self, key: &str, findings: &mut Findings) -> Option<bool> {
        let entry = self.filled(key, findings)?;
        if let NodeKind::Scalar(scalar) = &entry.value.kind
            && let Reading::Bool(value) = scalar.reading()
        {
            return Some(value);
        }
        wrong_entry(entry, "true or false", findings);
        None
    }

    /// A whole number in a range, and where it is.
    pub(super) fn integer(
        &self,
        key: &str,
        range: RangeInclusive<i64>,
        findings: &mut Findings,
    ) -> Option<(i64, At)> {
        let entry = self.filled(key, findings)?;
        let at = entry.value.at;
        let written = match &entry.value.kind {
            NodeKind::Scalar(scalar) if scalar.reading() == Reading::Integer => &scalar.text,
            _ => {
                wrong_entry(entry, "a whole number", findings);
                return None;
            }
        };
        if !is_decimal(written) {
            findings
                .error(
                    Code::AmbiguousNumber,
                    at,
                    format!("{} is not the same number to every reader", quote(written)),
                )
                .help("write it in decimal digits, without `+` and without a zero in front");
            return None;
        }
        match written.parse::<i64>() {
            Ok(number) if range.contains(&number) => Some((number, at)),
            _ => {
                let message = format!("{} is outside the range of {}", quote(written), quote(key));
                let (least, most) = range.into_inner();
                let help = if most == i64::MAX {
                    format!("{least} or more")
                } else {
                    format!("{least} to {most}")
                };
                findings.error(Code::OutOfRange, at, message).help(help);
                None
            }
        }
    }

    /// An amount of memory in bytes, written so or as `64MiB`.
    pub(super) fn size(
        &self,
        key: &str,
        range: RangeInclusive<u64>,
        findings: &mut Findings,
    ) -> Option<u64> {
        let entry = self.filled(key, findings)?;
        let NodeKind::Scalar(scalar) = &entry.value.kind else {
            wrong_entry(entry, "an amount of memory such as `64MiB`", findings);
            return None;
        };
        match bytes(&scalar.text) {
            Some(bytes) if range.contains(&bytes) => Some(bytes),
            found => {
                let (least, most) = range.into_inner();
                let message = match found {
                    Some(_) => format!(
                        "{} is outside the range of {}",
                        quote(&scalar.text),
                        quote(key)
                    ),
                    None => format!("{} is no amount of memory", quote(&scalar.text)),
                };
                let mebibytes = |bytes: u64| format!("{}MiB", bytes / MEBIBYTE);
                findings
                    .error(Code::OutOfRange, entry.value.at, message)
                    .help(format!(
                        "`{}` to `{}`, or the same in bytes",
                        mebibytes(least),
                        mebibytes(most)
                    ));
                None
            }
        }
    }

    /// A list.
    pub(super) fn list(&self, key: &str, findings: &mut Findings) -> Option<&'t [Node<'a>]> {
        let entry = self.filled(key, findings)?;
        if let NodeKind::List(items) = &entry.value.kind {
            return Some(items);
        }
        wrong_entry(entry, "a list", findings);
        None
    }

    /// A map, its keys not yet looked at.
    pub(super) fn map(&self, key: &str, findings: &mut Findings) -> Option<Self> {
        let entry = self.filled(key, findings)?;
        let mut fields = Self::of(entry, findings)?;
        fields.strict = self.strict;
        Some(fields)
    }

    /// A path that begins at the root, of printable characters.
    pub(super) fn absolute_path(&self, key: &str, findings: &mut Findings) -> Option<Text<'t>> {
        let written = self.text(key, findings)?;
        let shaped = written.text.starts_with('/') && !written.text.chars().any(char::is_control);
        if !shaped {
            findings
                .error(
                    Code::InvalidPath,
                    written.at,
                    format!("{} is no absolute path", quote(written.text)),
                )
                .help("a path begins with `/` and holds no control characters");
            return None;
        }
        Some(written)
    }
}

/// Bytes in a mebibyte.
const MEBIBYTE: u64 = 1024 * 1024;

/// Decimal digits, and maybe a binary unit.
fn bytes(text: &str) -> Option<u64> {
    let units = [("KiB", 1024), ("MiB", MEBIBYTE), ("GiB", 1024 * MEBIBYTE)];
    let unit = units
        .iter()
        .find_map(|(unit, size)| Some((text.strip_suffix(unit)?, *size)));
    let (number, size) = unit.unwrap_or((text, 1));
    if !is_decimal(number) {
        return None;
    }
    number.parse::<u64>().ok()?.checked_mul(size)
}

/// The value of a key that is text.
pub(super) fn text_entry<'t>(entry: &'t Entry<'_>, findings: &mut Findings) -> Option<Text<'t>> {
    text(
        &entry.value,
        Expected::Key(&entry.key.text, entry.at),
        findings,
    )
}

/// An item of a list that is text.
pub(super) fn text_item<'t>(
    node: &'t Node<'_>,
    what: &'static str,
    findings: &mut Findings,
) -> Option<Text<'t>> {
    text(node, Expected::Item(what), findings)
}

/// A key that is text to YAML, such as a name.
pub(super) fn text_key<'t>(
    entry: &'t Entry<'_>,
    what: &'static str,
    findings: &mut Findings,
) -> Option<Text<'t>> {
    let node = Node {
        at: entry.at,
        kind: NodeKind::Scalar(entry.key.clone()),
    };
    text(&node, Expected::Item(what), findings)?;
    Some(Text {
        text: &entry.key.text,
        at: entry.at,
    })
}

fn text<'t>(node: &'t Node<'_>, what: Expected<'_>, findings: &mut Findings) -> Option<Text<'t>> {
    match &node.kind {
        NodeKind::Scalar(scalar) if scalar.reading() == Reading::Text => Some(Text {
            text: &scalar.text,
            at: node.at,
        }),
        _ => {
            wrong_type(node, what, "text", findings);
            None
        }
    }
}

/// A scalar as the text that Incus and Ansible get: truth values in small letters, anything else as it is written.
pub(super) fn incus_text(entry: &Entry<'_>, findings: &mut Findings) -> Option<String> {
    if let NodeKind::Scalar(scalar) = &entry.value.kind {
        match scalar.reading() {
            Reading::Bool(value) => return Some(value.to_string()),
            Reading::Null => {}
            Reading::Integer | Reading::Float | Reading::Text => {
                return Some(scalar.text.clone().into_owned());
            }
        }
    }
    wrong_entry(entry, "text", findings);
    None
}

/// Returns whether a value is written empty.
pub(super) fn is_null(node: &Node<'_>) -> bool {
    matches!(&node.kind, NodeKind::Scalar(scalar) if scalar.reading() == Reading::Null)
}
