//! Reports values of the wrong type, and suggests the value that was probably meant.

use crate::diagnostic::quote;
use crate::infra::findings::{At, Code, Findings};
use crate::infra::raw::{Entry, Node, NodeKind, Reading};

/// Describes the expected type of a section.
pub(super) const A_MAP: &str = "a map of keys and values";

/// The subject of a wrong-type message, and the location to report for an empty value.
#[derive(Debug, Clone, Copy)]
pub(super) enum Expected<'w> {
    /// The value of a key.
    Key(&'w str, At),
    /// A list item, or the file.
    Item(&'static str),
}

/// Reports a key whose value has the wrong type.
pub(in crate::infra) fn wrong_entry(entry: &Entry<'_>, expected: &str, findings: &mut Findings) {
    let what = Expected::Key(&entry.key.text, entry.at);
    wrong_type(&entry.value, what, expected, findings);
}

/// Reports a list item that has the wrong type.
pub(in crate::infra) fn wrong_item(
    node: &Node<'_>,
    what: &'static str,
    expected: &str,
    findings: &mut Findings,
) {
    wrong_type(node, Expected::Item(what), expected, findings);
}

/// Reports a value that has the wrong type; ignores an unusable one, which has already been reported.
pub(super) fn wrong_type(
    node: &Node<'_>,
    what: Expected<'_>,
    expected: &str,
    findings: &mut Findings,
) {
    let subject = match what {
        Expected::Key(key, _) => quote(key),
        Expected::Item(item) => item.to_owned(),
    };
    let found = match &node.kind {
        NodeKind::Unusable => return,
        NodeKind::List(_) => "a list",
        NodeKind::Map(_) => "a map",
        NodeKind::Scalar(scalar) => match scalar.reading() {
            Reading::Null => {
                let message = format!("{subject} has no value, but must be {expected}");
                let (at, help) = match what {
                    Expected::Key(_, at) if expected == A_MAP => {
                        (at, "write `{}` for an empty map, or remove the key")
                    }
                    Expected::Key(_, at) => (at, "write a value, or remove the key"),
                    Expected::Item(_) => (node.at, "write a value, or remove it"),
                };
                findings.error(Code::EmptyValue, at, message).help(help);
                return;
            }
            Reading::Bool(_) => "a Boolean",
            Reading::Integer | Reading::Float => "a number",
            Reading::Text => "text",
        },
    };
    let message = format!("{subject} is {found}, but must be {expected}");
    let finding = findings.error(Code::WrongType, node.at, message);
    if let Some(help) = suggestion(node, expected) {
        finding.help(help);
    }
}

/// Suggests how to write the value that was probably meant.
fn suggestion(node: &Node<'_>, expected: &str) -> Option<String> {
    let scalar = match &node.kind {
        NodeKind::Scalar(scalar) => scalar,
        NodeKind::List(items) if expected == A_MAP => return Some(names_as_keys(items)),
        _ => return None,
    };
    let written = quote(&scalar.text);
    let bare = written.trim_matches('`');
    match expected {
        "text" => Some(format!("put it in quotes: `\"{bare}\"`")),
        "a list" => Some(format!("write a list: `[{bare}]`")),
        "true or false" if ["yes", "on"].contains(&bare.to_lowercase().as_str()) => {
            Some("write `true`".to_owned())
        }
        "true or false" if ["no", "off"].contains(&bare.to_lowercase().as_str()) => {
            Some("write `false`".to_owned())
        }
        A_MAP => {
            let (key, value) = scalar.text.split_once(':')?;
            (!value.is_empty()).then(|| {
                let corrected = format!("{}: {}", key.trim_end(), value);
                format!("put a space after the colon: {}", quote(&corrected))
            })
        }
        "a whole number" if is_decimal(&scalar.text) => Some(format!("without quotes: `{bare}`")),
        _ => None,
    }
}

/// Explains how to write a list of named items, or of keys, as a map.
fn names_as_keys(items: &[Node<'_>]) -> String {
    let first = items.first().and_then(|item| match &item.kind {
        NodeKind::Scalar(scalar) => Some((scalar.text.to_string(), "")),
        NodeKind::Map(entries) => {
            let name = entries.iter().find(|entry| entry.key.text == "name")?;
            match &name.value.kind {
                NodeKind::Scalar(scalar) => Some((scalar.text.to_string(), "name: ")),
                _ => None,
            }
        }
        _ => None,
    });
    match first {
        Some((name, key)) if !name.contains([':', '=']) => format!(
            "use the names as keys: {} instead of {}",
            quote(&format!("{name}:")),
            quote(&format!("- {key}{name}"))
        ),
        _ => "write `KEY: VALUE` lines, without `-` before them".to_owned(),
    }
}

pub(super) fn is_decimal(text: &str) -> bool {
    let digits = text.strip_prefix('-').unwrap_or(text);
    !digits.is_empty()
        && digits.bytes().all(|byte| byte.is_ascii_digit())
        && (digits == "0" || !digits.starts_with('0'))
}
