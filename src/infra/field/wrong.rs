//! Reports values of the wrong type, and suggests the value that was probably meant.

use crate::diagnostic::{Diagnostic, quote, verbatim};
use crate::infra::findings::{At, Code, Findings};
use crate::infra::raw::{Entry, Node, NodeKind, Reading, Scalar};

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

/// Examples of sections, by key: maps, and lists of maps.
const EXAMPLES: &[(&str, &str)] = &[
    ("domains", "{work: {subnet_id: 0}}"),
    ("machines", "{web: {}}"),
    ("global", "{base_subnet: \"10.100\"}"),
    ("addressing", "{zone_base: 100}"),
    ("resource_policy", "{mode: proportional}"),
    ("host_reserve", "{memory: 2GiB}"),
    ("file_portal", "{allowed_paths: [/home]}"),
    ("profiles", "{small: {config: {limits.cpu: 1}}}"),
    ("config", "{limits.memory: 1GiB}"),
    (
        "devices",
        "{data: {type: disk, source: /srv/data, path: /data}}",
    ),
    ("persistent_data", "{app: {path: /var/lib/app}}"),
    (
        "storage_volumes",
        "{app: {pool: default, size: 1GiB, path: /var/lib/app}}",
    ),
    ("shared_volumes", "{docs: {consumers: {work: rw}}}"),
    ("consumers", "{work: ro}"),
    ("mcp", "{uid: 1000}"),
    ("with", "{key_id: \"0123456789ABCDEF\"}"),
    ("limits", "{calls_per_minute: 60}"),
    ("services", "[{name: file_sign, tool: gpg_sign}]"),
    ("network_policies", "[{from: work, to: host, ports: all}]"),
    ("a service", "{name: file_sign, tool: gpg_sign}"),
    ("a policy", "{from: work, to: host, ports: all}"),
    ("the file", "domains: {work: {subnet_id: 0}}"),
];

/// Reports a key whose value has the wrong type; returns the finding, except for an empty value.
pub(in crate::infra) fn wrong_entry<'f>(
    entry: &Entry<'_>,
    expected: &str,
    findings: &'f mut Findings,
) -> Option<&'f mut Diagnostic> {
    let what = Expected::Key(&entry.key.text, entry.at);
    wrong_type(&entry.value, what, expected, findings)
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
pub(super) fn wrong_type<'f>(
    node: &Node<'_>,
    what: Expected<'_>,
    expected: &str,
    findings: &'f mut Findings,
) -> Option<&'f mut Diagnostic> {
    let subject = match what {
        Expected::Key(key, _) => quote(key),
        Expected::Item(item) => item.to_owned(),
    };
    let found = match &node.kind {
        NodeKind::Unusable => return None,
        NodeKind::List(_) => "a list",
        NodeKind::Map(_) => "a map",
        NodeKind::Scalar(scalar) => match scalar.reading() {
            Reading::Null => {
                let message = format!("{subject} has no value, but must be {expected}");
                let (at, help) = match what {
                    Expected::Key(_, at) if expected == A_MAP => (
                        at,
                        "indent the lines that belong to it, write `{}` if there are none, or remove the key",
                    ),
                    Expected::Key(_, at) => (at, "write a value, or remove the key"),
                    Expected::Item(_) => (node.at, "write a value, or remove it"),
                };
                findings.error(Code::EmptyValue, at, message).help(help);
                return None;
            }
            Reading::Bool(_) => "a Boolean",
            Reading::Integer | Reading::Float => "a number",
            Reading::Text => "text",
        },
    };
    let message = format!("{subject} is {found}, but must be {expected}");
    let finding = findings.error(Code::WrongType, node.at, message);
    finding.help(suggestion(node, what, expected));
    Some(finding)
}

/// Suggests how to write the value that was probably meant.
fn suggestion(node: &Node<'_>, what: Expected<'_>, expected: &str) -> String {
    match (expected, &node.kind) {
        (A_MAP, NodeKind::List(items)) => as_map(items, what),
        (A_MAP, NodeKind::Scalar(scalar)) => with_space(scalar).unwrap_or_else(|| example(what)),
        ("a list", NodeKind::Map(entries)) => as_list(entries, what),
        ("a list", NodeKind::Scalar(scalar)) => one_as_list(scalar, what),
        ("text", NodeKind::Scalar(scalar)) => {
            shown("put it in quotes", &format!("\"{}\"", scalar.text))
        }
        ("text", NodeKind::List(items)) => match items.as_slice() {
            [
                Node {
                    kind: NodeKind::Scalar(scalar),
                    ..
                },
            ] => shown("write only the value, not a list", &scalar.text),
            _ => "write one value, not a list".to_owned(),
        },
        ("text", NodeKind::Map(_)) => "write one value, not a map".to_owned(),
        ("true or false", NodeKind::Scalar(scalar)) => match scalar.text.to_lowercase().as_str() {
            "yes" | "on" | "y" | "1" => "write `true`".to_owned(),
            "no" | "off" | "n" | "0" => "write `false`".to_owned(),
            bare @ ("true" | "false") => format!("write it without quotes: `{bare}`"),
            _ => "write `true` or `false`".to_owned(),
        },
        ("true or false", _) => "write `true` or `false`".to_owned(),
        (_, NodeKind::Scalar(scalar)) if is_decimal(&scalar.text) => {
            shown("write it without quotes", &scalar.text)
        }
        _ => format!("write {expected}"),
    }
}

/// Returns the next step, with the value to write unless it cannot be shown as it is.
fn shown(how: &str, value: &str) -> String {
    match verbatim(value) {
        Some(value) => format!("{how}: {value}"),
        None => how.to_owned(),
    }
}

/// Shows how to write a section, with its own example or with placeholders.
fn example(what: Expected<'_>) -> String {
    let (Expected::Key(name, _) | Expected::Item(name)) = what;
    let own = EXAMPLES.iter().find(|(key, _)| *key == name);
    match (what, own) {
        (Expected::Key(..), Some((key, example))) => {
            format!("write its keys and values, such as `{key}: {example}`")
        }
        (Expected::Item("a service"), Some((_, example))) => {
            format!("indent consumers below `consumers:`, or write a service, such as `{example}`")
        }
        (Expected::Item(_), Some((_, example))) => {
            format!("write its keys and values, such as `{example}`")
        }
        (..) => format!(
            "write its keys and values, such as {}, or `{{}}` if there are none",
            quote(&format!("{name}: {{KEY: VALUE}}"))
        ),
    }
}

/// Corrects `key:value`.
pub(super) fn with_space(scalar: &Scalar<'_>) -> Option<String> {
    let (key, value) = scalar.text.split_once(':').filter(|_| scalar.plain)?;
    let corrected = format!("{}: {value}", key.trim_end());
    (!value.is_empty()).then(|| shown("put a space after the colon", &corrected))
}

/// Explains how to write one value as a list.
fn one_as_list(scalar: &Scalar<'_>, what: Expected<'_>) -> String {
    let text = scalar.text.as_ref();
    let text = text.trim_matches(['(', ')']);
    let after_dash = text.strip_prefix(['-', '•', '–']).filter(|_| scalar.plain);
    if let Some(first) = after_dash.and_then(|rest| rest.split_whitespace().next())
        && !first.starts_with(|c: char| c.is_ascii_digit())
    {
        return shown("begin each item with `- `", &format!("- {first}"));
    }
    if let Expected::Key(name @ ("services" | "network_policies"), _) = what
        && let Some((_, example)) = EXAMPLES.iter().find(|(key, _)| *key == name)
    {
        return format!("write a list, such as `{name}: {example}`");
    }
    shown("write a list", &format!("[{text}]"))
}

/// Explains how to write a map as a list.
fn as_list(entries: &[Entry<'_>], what: Expected<'_>) -> String {
    let of_maps = matches!(what, Expected::Key("services" | "network_policies", _));
    match entries.first() {
        None => "write `[]` for an empty list".to_owned(),
        Some(entry) if of_maps && matches!(entry.value.kind, NodeKind::Map(_)) => format!(
            "write {} instead of {}",
            quote(&format!("- name: {}", entry.key.text)),
            quote(&format!("{}:", entry.key.text))
        ),
        Some(entry) if of_maps => format!(
            "write {} instead of {} and indent the other keys by 2 more, or put `[{{` and `}}]` around the keys",
            quote(&format!("- {}:", entry.key.text)),
            quote(&format!("{}:", entry.key.text))
        ),
        Some(_) => {
            let names: Vec<_> = entries
                .iter()
                .map(|entry| entry.key.text.as_ref())
                .collect();
            shown("write a list", &format!("[{}]", names.join(", ")))
        }
    }
}

/// Explains how to write a list of named items, or of keys, as a map.
fn as_map(items: &[Node<'_>], what: Expected<'_>) -> String {
    let Some(first) = items.first() else {
        return "write `{}` for an empty map".to_owned();
    };
    match &first.kind {
        NodeKind::Map(entries) => {
            let mut names = entries.iter().filter(|_| matches!(what, Expected::Key(..)));
            let name = names.find(|entry| entry.key.text == "name");
            match name.map(|entry| &entry.value.kind) {
                Some(NodeKind::Scalar(name)) => format!(
                    "use the names as keys: {} instead of {}",
                    quote(&format!("{}:", name.text)),
                    quote(&format!("- name: {}", name.text))
                ),
                _ => "remove the list around the keys: the `-` before each, or write `{…}` instead of `[…]`"
                    .to_owned(),
            }
        }
        NodeKind::Scalar(scalar) if scalar.text.contains('=') => shown(
            "write keys and values",
            &format!("{{{}}}", scalar.text.replacen('=', ": ", 1)),
        ),
        NodeKind::Scalar(scalar) => match what {
            Expected::Key("machines", _) => {
                let names = items.iter().filter_map(|item| match &item.kind {
                    NodeKind::Scalar(scalar) => Some(format!("{}: {{}}", scalar.text)),
                    _ => None,
                });
                let names: Vec<_> = names.collect();
                shown(
                    "use the names as keys",
                    &format!("{{{}}}", names.join(", ")),
                )
            }
            Expected::Key("consumers", _) => shown(
                "use the names as keys, with `ro` or `rw`",
                &format!("{{{}: ro}}", scalar.text),
            ),
            _ => example(what),
        },
        _ => example(what),
    }
}

/// Returns the help for a domain or a machine in place of a key, or for a service's name as its key.
pub(super) fn misplaced(entry: &Entry<'_>, keys: &[&str]) -> Option<String> {
    let NodeKind::Map(entries) = &entry.value.kind else {
        return None;
    };
    if keys.contains(&"tool") {
        return Some("write `name:` before this name, and no `:` after it".to_owned());
    }
    let has = |key: &&str| entries.iter().any(|entry| entry.key.text == *key);
    let (below, marks) = if keys.contains(&"domains") {
        ("domains", ["subnet_id", "machines"].as_slice())
    } else {
        ("machines", &["ip", "type", "services", "mcp"][..])
    };
    (keys.contains(&below) && marks.iter().any(has))
        .then(|| format!("indent it below a line `{below}:`: it looks like one of them"))
}

pub(super) fn is_decimal(text: &str) -> bool {
    let digits = text.strip_prefix('-').unwrap_or(text);
    !digits.is_empty()
        && digits.bytes().all(|byte| byte.is_ascii_digit())
        && (digits == "0" || !digits.starts_with('0'))
}
