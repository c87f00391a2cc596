//! The tree of an infra file, and the meaning of its scalars; independent of the YAML reader.

use std::borrow::Cow;
use std::collections::HashMap;

use crate::infra::findings::At;

/// A value and its location.
#[derive(Debug)]
pub(in crate::infra) struct Node<'a> {
    /// Its location; for a block map, that of the first key; for a block list, that of the first `-`.
    pub(in crate::infra) at: At,
    /// The value.
    pub(in crate::infra) kind: NodeKind<'a>,
}

/// The type of a value.
#[derive(Debug)]
pub(in crate::infra) enum NodeKind<'a> {
    /// Text, a number, a Boolean or nothing.
    Scalar(Scalar<'a>),
    /// `[…]` or lines with `-`.
    List(Vec<Node<'a>>),
    /// `{…}` or lines with `key:`.
    Map(Vec<Entry<'a>>),
    /// An alias, which has already been reported.
    Unusable,
}

/// A key and its value.
#[derive(Debug)]
pub(in crate::infra) struct Entry<'a> {
    /// Location of the key.
    pub(in crate::infra) at: At,
    /// The key.
    pub(in crate::infra) key: Scalar<'a>,
    /// Its value.
    pub(in crate::infra) value: Node<'a>,
}

/// A scalar as written.
#[derive(Debug, Clone)]
pub(in crate::infra) struct Scalar<'a> {
    /// The text, with escapes resolved.
    pub(in crate::infra) text: Cow<'a, str>,
    /// True if it is neither quoted nor a block scalar: it may be a number, a Boolean, or nothing.
    pub(in crate::infra) plain: bool,
}

/// The type of a plain scalar according to the YAML 1.2 core schema; a quoted one is always text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::infra) enum Reading {
    /// Nothing, `~` or `null`.
    Null,
    /// `true` or `false`.
    Bool(bool),
    /// A whole number, in any notation.
    Integer,
    /// Any other number.
    Float,
    /// Anything else.
    Text,
}

impl Scalar<'_> {
    /// Returns its type according to YAML 1.2.
    pub(in crate::infra) fn reading(&self) -> Reading {
        if !self.plain {
            return Reading::Text;
        }
        match self.text.as_ref() {
            "" | "~" | "null" | "Null" | "NULL" => Reading::Null,
            "true" | "True" | "TRUE" => Reading::Bool(true),
            "false" | "False" | "FALSE" => Reading::Bool(false),
            text if is_integer(text) => Reading::Integer,
            text if is_float(text) => Reading::Float,
            _ => Reading::Text,
        }
    }
}

/// Maps up to this size are searched for equal keys pair by pair, larger ones with a hash table.
const SMALL_MAP: usize = 12;

/// Returns the index pairs (first, repeated) of equal keys, ordered by the second index.
pub(super) fn repeated_keys(entries: &[Entry<'_>]) -> Vec<(usize, usize)> {
    let is_small = entries.len() <= SMALL_MAP;
    let capacity = if is_small { 0 } else { entries.len() };
    let mut seen: HashMap<&str, usize> = HashMap::with_capacity(capacity);
    let mut first_of = |second: usize, key| {
        if is_small {
            let mut earlier = entries.iter().take(second);
            earlier.position(|entry| entry.key.text == key)
        } else {
            Some(*seen.entry(key).or_insert(second)).filter(|first| *first != second)
        }
    };
    entries
        .iter()
        .enumerate()
        .filter_map(|(second, entry)| Some((first_of(second, entry.key.text.as_ref())?, second)))
        .collect()
}

fn is_integer(text: &str) -> bool {
    let digits = |text: &str, radix| !text.is_empty() && text.chars().all(|c| c.is_digit(radix));
    if let Some(octal) = text.strip_prefix("0o") {
        return digits(octal, 8);
    }
    if let Some(hexadecimal) = text.strip_prefix("0x") {
        return digits(hexadecimal, 16);
    }
    digits(text.strip_prefix(['-', '+']).unwrap_or(text), 10)
}

fn is_float(text: &str) -> bool {
    let unsigned = text.strip_prefix(['-', '+']).unwrap_or(text);
    let named = [".inf", ".Inf", ".INF", ".nan", ".NaN", ".NAN"];
    let begins = unsigned.starts_with(|c: char| c.is_ascii_digit() || c == '.');
    named.contains(&unsigned)
        || (begins
            && unsigned.contains(|c: char| c.is_ascii_digit())
            && unsigned
                .chars()
                .all(|c| c.is_ascii_digit() || matches!(c, '.' | 'e' | 'E' | '-' | '+'))
            && unsigned.parse::<f64>().is_ok())
}
