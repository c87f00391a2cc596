//! Typed access to a map's keys: a value of the wrong type becomes a finding, and reading continues.
//!
//! The rules for each section are in `validate`.

mod wrong;

use std::ops::RangeInclusive;

use serde_json::{Map, Number, Value};

use super::findings::{At, Code, Findings};
use super::raw::{Entry, Node, NodeKind, Reading};
use crate::diagnostic::{Severity, quote, verbatim};

use wrong::{A_MAP, Expected, is_decimal, misplaced, with_space, wrong_type};
pub(super) use wrong::{wrong_entry, wrong_item};

/// Sections, each with keys that people often misplace.
const HOMES: [(&str, &[&str]); 5] = [
    ("a machine", &["services", "mcp"]),
    ("a service", &["consumers", "tool", "with", "limits"]),
    ("a domain", &["machines"]),
    ("`global`", &["default_os_image", "base_subnet"]),
    ("`global`", &["addressing", "firewall_mode"]),
];

/// A section's map.
#[derive(Debug, Clone, Copy)]
pub(super) struct Fields<'t, 'a> {
    /// Location of the section.
    pub(super) at: At,
    entries: &'t [Entry<'a>],
    /// True for a section that grants something; unknown keys and empty values in it are errors.
    strict: bool,
}

/// Text and its location.
#[derive(Debug, Clone, Copy)]
pub(super) struct Text<'t> {
    /// The text.
    pub(super) text: &'t str,
    /// Its location.
    pub(super) at: At,
}

impl<'t, 'a> Fields<'t, 'a> {
    /// Reads a key's value as a map.
    pub(super) fn of(entry: &'t Entry<'a>, findings: &mut Findings) -> Option<Self> {
        let what = Expected::Key(&entry.key.text, entry.at);
        Self::of_what(&entry.value, what, findings)
    }

    /// Reads the value of a name as a map with these keys; reports a key in place of a name.
    pub(super) fn of_named(
        entry: &'t Entry<'a>,
        owner: &str,
        keys: &[&str],
        findings: &mut Findings,
    ) -> Option<Self> {
        let key = entry.key.text.as_ref();
        let is_known = |own: &Entry<'_>| keys.contains(&own.key.text.as_ref());
        let is_named = match &entry.value.kind {
            NodeKind::Map(own) => own.is_empty() || own.iter().any(is_known),
            _ => is_null(&entry.value),
        };
        if is_named || !keys.contains(&key) && home_of(key).is_none() {
            return Self::of(entry, findings);
        }
        let home = home_of(key).unwrap_or(owner);
        let message = format!("`{key}` is a key of {home}, but is where a name belongs");
        let help = format!("indent this line below the name: `{key}` is a key of {home}");
        let finding = findings.error(Code::WrongType, entry.at, message);
        finding.help(help);
        None
    }

    /// Reads a list item, or the file, as a map; `what` names it in messages.
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

    /// A section without keys.
    pub(super) const fn none(at: At) -> Self {
        Self {
            at,
            entries: &[],
            strict: false,
        }
    }

    /// The same section, except that unknown keys and empty values are faults.
    pub(super) const fn strict(mut self) -> Self {
        self.strict = true;
        self
    }

    /// Reports keys unknown to the section.
    pub(super) fn known(&self, section: &str, keys: &[&str], findings: &mut Findings) {
        for entry in self.entries {
            let key = entry.key.text.as_ref();
            if keys.contains(&key) {
                continue;
            }
            let message = format!("{} is not a key of {section}", quote(key));
            let severity = if self.strict || grants(key, &entry.value) {
                Severity::Error
            } else {
                Severity::Warning
            };
            let help = if let Some(help) = misplaced(entry, keys).or_else(|| with_space(&entry.key))
            {
                help
            } else if let Some(home) = home_of(key) {
                format!("it is a key of {home}: move it there")
            } else if let Some(near) = findings.closest(key, keys.iter().copied()) {
                format!("did you mean `{near}`?")
            } else {
                format!("the keys are: {}", keys.join(", "))
            };
            findings
                .add(severity, Code::UnknownKey, entry.at, message)
                .help(help);
        }
    }

    /// All entries, in file order.
    pub(super) fn entries(&self) -> &'t [Entry<'a>] {
        self.entries
    }

    /// Returns a key's entry, with or without a value.
    pub(super) fn entry(&self, key: &str) -> Option<&'t Entry<'a>> {
        self.entries.iter().find(|entry| entry.key.text == key)
    }

    /// The location of a key's value, if the condition is true.
    pub(super) fn place_if(&self, key: &str, condition: bool) -> Option<At> {
        let entry = self.entry(key).filter(|_| condition)?;
        Some(entry.value.at)
    }

    /// Returns a key's entry. Outside strict sections, an empty value causes a warning and counts as missing.
    pub(super) fn filled(&self, key: &str, findings: &mut Findings) -> Option<&'t Entry<'a>> {
        let entry = self.entry(key)?;
        if self.strict || !is_null(&entry.value) {
            return Some(entry);
        }
        let message = format!("{} has no value and is ignored", quote(key));
        findings
            .warning(Code::EmptyValue, entry.at, message)
            .help("write a value, or remove the key");
        None
    }

    /// Returns which of these keys have an empty list or map as their value.
    pub(super) fn empty(&self, keys: &[&'static str]) -> Vec<&'static str> {
        let is_empty = |key: &&str| match self.entry(key).map(|entry| &entry.value.kind) {
            Some(NodeKind::Map(entries)) => entries.is_empty(),
            Some(NodeKind::List(items)) => items.is_empty(),
            _ => false,
        };
        keys.iter().copied().filter(is_empty).collect()
    }

    /// Text: quoted, or plain and not a number, Boolean or null.
    pub(super) fn text(&self, key: &str, findings: &mut Findings) -> Option<Text<'t>> {
        text_entry(self.filled(key, findings)?, findings)
    }

    /// Text of a certain form; `help` describes it if a number or a Boolean is there instead.
    pub(super) fn text_like(
        &self,
        key: &str,
        help: impl Fn() -> String,
        findings: &mut Findings,
    ) -> Option<Text<'t>> {
        text_entry_like(self.filled(key, findings)?, help, findings)
    }

    /// A scalar as the text passed to Incus and Ansible.
    pub(super) fn incus_text(&self, key: &str, findings: &mut Findings) -> Option<String> {
        incus_text(self.filled(key, findings)?, findings)
    }

    /// Records which of these keys, which anklume does not apply, are present. Each key is prefixed with its section.
    pub(super) fn note_unapplied(&self, keys: &[&'static str], findings: &mut Findings) {
        for key in keys {
            let own = key.rsplit('.').next().unwrap_or(key);
            if let Some(entry) = self.entry(own) {
                findings.unapplied(key, entry.at);
            }
        }
    }

    /// One of a fixed set of text values.
    pub(super) fn choice(
        &self,
        key: &str,
        choices: &[&'static str],
        findings: &mut Findings,
    ) -> Option<&'static str> {
        let help = || format!("write one of: {}", choices.join(", "));
        let written = self.text_like(key, help, findings)?;
        let found = choices.iter().find(|choice| **choice == written.text);
        if found.is_none() {
            let message = format!(
                "{} is not a valid value for {}",
                quote(written.text),
                quote(key)
            );
            findings
                .error(Code::InvalidValue, written.at, message)
                .help(help());
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

    /// A whole number in a range.
    pub(super) fn integer<T: TryFrom<i64> + Into<i64> + Copy>(
        &self,
        key: &str,
        range: RangeInclusive<T>,
        findings: &mut Findings,
    ) -> Option<T> {
        let entry = self.filled(key, findings)?;
        let (min, max): (i64, i64) = ((*range.start()).into(), (*range.end()).into());
        let help = if max == i64::MAX {
            format!("write a whole number of at least {min}")
        } else if min == max {
            format!("write `{min}`, or remove the key")
        } else {
            format!("write a whole number from {min} to {max}")
        };
        let written = match &entry.value.kind {
            NodeKind::Scalar(scalar) if scalar.reading() == Reading::Integer => &scalar.text,
            kind => {
                let finding = wrong_entry(entry, "a whole number", findings);
                let in_range = |text: &str| {
                    let number = text.parse::<i64>();
                    is_decimal(text) && number.is_ok_and(|n| (min..=max).contains(&n))
                };
                let is_quoted = matches!(kind, NodeKind::Scalar(scalar) if in_range(&scalar.text));
                if let Some(finding) = finding.filter(|_| !is_quoted) {
                    finding.help(help);
                }
                return None;
            }
        };
        if !is_decimal(written) {
            let message = format!(
                "{} is ambiguous: YAML readers disagree on its value",
                quote(written)
            );
            findings
                .error(Code::AmbiguousNumber, entry.value.at, message)
                .help("write it in decimal digits, without `+` or leading zeros");
            return None;
        }
        let number = written.parse().ok();
        if let Some(number) = number.filter(|number| (min..=max).contains(number)) {
            return number.try_into().ok();
        }
        let message = format!("{} is outside the range of {}", quote(written), quote(key));
        findings
            .error(Code::OutOfRange, entry.value.at, message)
            .help(help);
        None
    }

    /// An amount of memory in bytes, written as a number or as `64MiB`.
    pub(super) fn size(
        &self,
        key: &str,
        range: RangeInclusive<u64>,
        findings: &mut Findings,
    ) -> Option<u64> {
        let entry = self.filled(key, findings)?;
        let (min, max) = (range.start() / MEBIBYTE, range.end() / MEBIBYTE);
        let help = format!("write an amount from `{min}MiB` to `{max}MiB`, or the same in bytes");
        let NodeKind::Scalar(scalar) = &entry.value.kind else {
            if let Some(finding) = wrong_entry(entry, "an amount of memory", findings) {
                finding.help(help);
            }
            return None;
        };
        let bytes = bytes(&scalar.text);
        if bytes.is_some_and(|bytes| range.contains(&bytes)) {
            return bytes;
        }
        let written = quote(&scalar.text);
        let message = match bytes {
            Some(_) => format!("{written} is outside the range of {}", quote(key)),
            None => format!("{written} is not an amount of memory"),
        };
        findings
            .error(Code::OutOfRange, entry.value.at, message)
            .help(help);
        None
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

    /// A map; its keys are not checked yet.
    pub(super) fn map(&self, key: &str, findings: &mut Findings) -> Option<Self> {
        let entry = self.filled(key, findings)?;
        let mut fields = Self::of(entry, findings)?;
        fields.strict = self.strict;
        Some(fields)
    }

    /// An absolute path without control characters.
    pub(super) fn absolute_path(&self, key: &str, findings: &mut Findings) -> Option<Text<'t>> {
        const HELP: &str = "write a path that begins with `/`, without control characters";
        let written = self.text_like(key, || HELP.to_owned(), findings)?;
        if !written.text.starts_with('/') || written.text.contains(char::is_control) {
            let message = format!("{} is not an absolute path", quote(written.text));
            findings
                .error(Code::InvalidPath, written.at, message)
                .help(HELP);
            return None;
        }
        Some(written)
    }
}

/// Returns the section to which a misplaced key belongs.
fn home_of(key: &str) -> Option<&'static str> {
    let home = HOMES.iter().find(|(_, keys)| keys.contains(&key));
    home.map(|(home, _)| *home)
}

/// Returns whether a key, or one below it, grants something: if it is unknown, it must not just be ignored.
fn grants(key: &str, value: &Node<'_>) -> bool {
    let below = |entry: &Entry<'_>| grants(&entry.key.text, &entry.value);
    home_of(key).is_some_and(|home| home != "`global`")
        || match &value.kind {
            NodeKind::Map(entries) => entries.iter().any(below),
            NodeKind::List(items) => items.iter().any(|item| grants("", item)),
            _ => false,
        }
}

/// Bytes in a mebibyte.
const MEBIBYTE: u64 = 1024 * 1024;

/// Parses decimal digits with an optional binary unit.
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

/// Returns a key's value as text.
pub(super) fn text_entry<'t>(entry: &'t Entry<'_>, findings: &mut Findings) -> Option<Text<'t>> {
    text(
        &entry.value,
        Expected::Key(&entry.key.text, entry.at),
        findings,
    )
}

/// Returns a key's value as text of a certain form; see [`Fields::text_like`].
pub(super) fn text_entry_like<'t>(
    entry: &'t Entry<'_>,
    help: impl Fn() -> String,
    findings: &mut Findings,
) -> Option<Text<'t>> {
    if let Some(text) = as_text(&entry.value) {
        return Some(text);
    }
    let is_scalar = matches!(entry.value.kind, NodeKind::Scalar(_));
    let finding = wrong_entry(entry, "text", findings);
    if let Some(finding) = finding.filter(|_| is_scalar) {
        finding.help(help());
    }
    None
}

/// Returns the text of a list item.
pub(super) fn text_item<'t>(
    node: &'t Node<'_>,
    what: &'static str,
    findings: &mut Findings,
) -> Option<Text<'t>> {
    text(node, Expected::Item(what), findings)
}

/// Returns a key that YAML reads as text, such as a name.
pub(super) fn text_key<'t>(
    entry: &'t Entry<'_>,
    what: &'static str,
    findings: &mut Findings,
) -> Option<&'t str> {
    if entry.key.reading() == Reading::Text {
        return Some(&entry.key.text);
    }
    let kind = NodeKind::Scalar(entry.key.clone());
    wrong_item(&Node { at: entry.at, kind }, what, "text", findings);
    None
}

fn text<'t>(node: &'t Node<'_>, what: Expected<'_>, findings: &mut Findings) -> Option<Text<'t>> {
    let text = as_text(node);
    if text.is_none() {
        wrong_type(node, what, "text", findings);
    }
    text
}

fn as_text<'t>(node: &'t Node<'_>) -> Option<Text<'t>> {
    match &node.kind {
        NodeKind::Scalar(scalar) if scalar.reading() == Reading::Text => Some(Text {
            text: &scalar.text,
            at: node.at,
        }),
        _ => None,
    }
}

/// A scalar as text for Incus and Ansible: Booleans in lower case, anything else as written.
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

/// The value of a key that Incus knows, as text; a map suggests the key's full name.
pub(super) fn incus_value(entry: &Entry<'_>, findings: &mut Findings) -> Option<String> {
    let NodeKind::Map(entries) = &entry.value.kind else {
        return incus_text(entry, findings);
    };
    let key = quote(&entry.key.text);
    let finding = findings.error(
        Code::WrongType,
        entry.value.at,
        format!("{key} is a map, but must be text"),
    );
    let line = entries.first().and_then(|first| match &first.value.kind {
        NodeKind::Scalar(value) => verbatim(&format!(
            "{}.{}: {}",
            entry.key.text, first.key.text, value.text
        )),
        _ => None,
    });
    finding.help(match line {
        Some(line) => format!("write the whole key on one line: {line}"),
        None => {
            "write text, or the whole key on one line, such as `limits.memory: 1GiB`".to_owned()
        }
    });
    None
}

/// Returns whether a value is empty or null.
pub(super) fn is_null(node: &Node<'_>) -> bool {
    matches!(&node.kind, NodeKind::Scalar(scalar) if scalar.reading() == Reading::Null)
}

/// Converts a value to JSON, for keys that are passed on as written.
pub(super) fn json(node: &Node<'_>) -> Value {
    match &node.kind {
        NodeKind::Scalar(scalar) => json_scalar(&scalar.text, scalar.reading()),
        NodeKind::List(items) => Value::Array(items.iter().map(json).collect()),
        NodeKind::Map(entries) => Value::Object(json_map(entries)),
        NodeKind::Unusable => Value::Null,
    }
}

/// Converts a map to JSON.
pub(super) fn json_map(entries: &[Entry<'_>]) -> Map<String, Value> {
    entries
        .iter()
        .map(|entry| (entry.key.text.clone().into_owned(), json(&entry.value)))
        .collect()
}

fn json_scalar(text: &str, reading: Reading) -> Value {
    let as_text = || Value::String(text.to_owned());
    match reading {
        Reading::Null => Value::Null,
        Reading::Bool(value) => Value::Bool(value),
        Reading::Integer => text
            .parse::<i64>()
            .map(Value::from)
            .or_else(|_| text.parse::<u64>().map(Value::from))
            .unwrap_or_else(|_| as_text()),
        Reading::Float => text
            .parse()
            .ok()
            .and_then(Number::from_f64)
            .map_or_else(as_text, Value::Number),
        Reading::Text => as_text(),
    }
}
