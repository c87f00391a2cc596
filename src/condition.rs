//! Conditions of a service: what a caller may send, beyond the tool's own checks, and until when.
//!
//! Pure: the time is an argument. A condition only refuses; it never allows what the tool or the service would refuse.

mod fit;
mod json;
mod narrow;

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Number, Value};

use crate::text::{listed, shown};
pub use fit::{ConditionMisfit, misfits};
pub use json::is_same;
use json::{compare, path};

/// Maximum length of a name or value in a message, in characters.
const SHOWN_MAX: usize = 80;

/// The conditions of a service.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Conditions {
    /// Rules for the arguments that a caller sends, by their names.
    #[serde(rename = "where", default, skip_serializing_if = "BTreeMap::is_empty")]
    pub rules: BTreeMap<String, ArgumentRule>,
    /// The arguments that a caller may send at all; `None`: any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub only: Option<BTreeSet<String>>,
    /// The time after which the service is refused like one that does not exist.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires: Option<Expiry>,
}

/// Rules for one argument; all that are set must hold.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ArgumentRule {
    /// It is this value.
    #[serde(rename = "const", default, skip_serializing_if = "Option::is_none")]
    pub constant: Option<Value>,
    /// It is one of these values.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub r#enum: Option<Vec<Value>>,
    /// It is text that begins with this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prefix: Option<String>,
    /// It is a path that is, or is below, this one; compared by components, without links.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path_under: Option<String>,
    /// It is text of at most this many characters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_length: Option<u32>,
    /// It is text of at most this many bytes of UTF-8.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_bytes: Option<u32>,
    /// It is a number of at least this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min: Option<Number>,
    /// It is a number of at most this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max: Option<Number>,
    /// It may be left out; alone: it must be left out. An argument with another rule must be sent.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub absent: bool,
}

/// A point in time, in RFC 3339.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Expiry(pub Timestamp);

impl fmt::Display for Expiry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl From<Expiry> for String {
    fn from(expiry: Expiry) -> Self {
        expiry.to_string()
    }
}

impl TryFrom<String> for Expiry {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, &'static str> {
        time(&text).map(Self)
    }
}

/// Reads a time in RFC 3339, such as `2027-01-31T18:00:00Z`; other forms of ISO 8601 are not accepted.
///
/// # Errors
///
/// Returns what is wrong.
pub fn time(text: &str) -> Result<Timestamp, &'static str> {
    let shape: String = text
        .chars()
        .map(|c| if c.is_ascii_digit() { '0' } else { c })
        .collect();
    let rest = shape.strip_prefix("0000-00-00T00:00:00");
    let rest = rest.map(|rest| match rest.strip_prefix('.') {
        Some(fraction) if fraction.starts_with('0') => fraction.trim_start_matches('0'),
        _ => rest,
    });
    if !matches!(rest, Some("Z" | "+00:00" | "-00:00")) {
        return Err("not a time in RFC 3339, such as 2027-01-31T18:00:00Z");
    }
    text.parse().map_err(|_| "there is no such time")
}

/// The condition that a call breaks.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{}` {what} (`{rule}`)", shown(.argument, SHOWN_MAX))]
pub struct BrokenCondition {
    /// The argument.
    pub argument: String,
    /// The key in `infra.yml`, such as `enum`.
    pub rule: &'static str,
    /// What it must be, such as "must begin with `a`".
    pub what: String,
}

impl Conditions {
    /// Returns whether there are none.
    #[must_use]
    pub fn is_none(&self) -> bool {
        *self == Self::default()
    }

    /// Returns whether the service has expired at this time.
    #[must_use]
    pub fn have_expired(&self, now: Timestamp) -> bool {
        self.expires.is_some_and(|expiry| now > expiry.0)
    }

    /// Checks the arguments that a caller sends, without those that are `null`. Those that the service fixes may be
    /// repeated.
    ///
    /// # Errors
    ///
    /// Returns the first broken condition, in the order of the arguments' names.
    pub fn check(
        &self,
        sent: &Map<String, Value>,
        fixed: &Map<String, Value>,
    ) -> Result<(), BrokenCondition> {
        if let Some(only) = &self.only {
            let is_listed = |name: &String| only.contains(name) || fixed.contains_key(name);
            let others = sent.keys().filter(|name| !is_listed(name));
            if let Some(argument) = others.min() {
                return Err(BrokenCondition {
                    argument: argument.clone(),
                    rule: "only",
                    what: format!("may not be sent: the service takes {}", only_text(only)),
                });
            }
        }
        for (argument, rule) in &self.rules {
            let value = sent.get(argument);
            if let Some(part) = rule.broken(value) {
                return Err(BrokenCondition {
                    argument: argument.clone(),
                    rule: part.key(),
                    what: match value {
                        Some(_) => part.describe(),
                        None => "must be sent".to_owned(),
                    },
                });
            }
        }
        Ok(())
    }

    /// Describes each condition in a few words, for people.
    #[must_use]
    pub fn describe(&self) -> Vec<String> {
        let rules = self.rules.iter().flat_map(|(name, rule)| {
            let parts = rule.parts().into_iter().map(RulePart::describe);
            let or_absent = rule.absent && !rule.is_only_absence();
            let absent = or_absent.then(|| "may be left out".to_owned());
            parts
                .chain(absent)
                .map(move |what| format!("`{name}` {what}"))
        });
        let only = self.only.as_ref().map(only_text);
        let expires = self.expires.map(|expiry| format!("until {expiry}"));
        rules.chain(only).chain(expires).collect()
    }

    /// Describes each condition like [`Conditions::describe`], and says whether the service has expired.
    #[must_use]
    pub fn describe_at(&self, now: Timestamp) -> Vec<String> {
        let expired = self.have_expired(now).then(|| "expired".to_owned());
        self.describe().into_iter().chain(expired).collect()
    }
}

fn only_text(only: &BTreeSet<String>) -> String {
    if only.is_empty() {
        return "no arguments".to_owned();
    }
    let only: Vec<String> = only.iter().map(|name| format!("`{name}`")).collect();
    format!("only {}", listed(&only))
}

impl ArgumentRule {
    /// Returns whether nothing but [`ArgumentRule::absent`] is set.
    #[must_use]
    pub fn is_only_absence(&self) -> bool {
        matches!(self.parts().as_slice(), [RulePart::Absent])
    }

    /// Returns the part that an argument breaks.
    fn broken(&self, value: Option<&Value>) -> Option<RulePart<'_>> {
        let mut parts = self.parts().into_iter();
        match value {
            Some(value) => parts.find(|part| !part.holds(value)),
            // An argument with a rule must be sent.
            None => parts.next().filter(|_| !self.absent),
        }
    }

    /// Returns what an argument that is sent must satisfy.
    fn parts(&self) -> Vec<RulePart<'_>> {
        let parts = [
            self.constant.as_ref().map(RulePart::Const),
            self.r#enum.as_deref().map(RulePart::Enum),
            self.prefix.as_deref().map(RulePart::Prefix),
            self.path_under.as_deref().map(RulePart::PathUnder),
            self.max_length.map(RulePart::MaxLength),
            self.max_bytes.map(RulePart::MaxBytes),
            self.min.as_ref().map(RulePart::Min),
            self.max.as_ref().map(RulePart::Max),
        ];
        let mut parts: Vec<RulePart<'_>> = parts.into_iter().flatten().collect();
        if parts.is_empty() && self.absent {
            parts.push(RulePart::Absent);
        }
        parts
    }
}

/// A part of a rule.
#[derive(Clone, Copy)]
enum RulePart<'a> {
    Const(&'a Value),
    Enum(&'a [Value]),
    Prefix(&'a str),
    PathUnder(&'a str),
    MaxLength(u32),
    MaxBytes(u32),
    Min(&'a Number),
    Max(&'a Number),
    Absent,
}

impl RulePart<'_> {
    /// Returns its key in `infra.yml`.
    const fn key(self) -> &'static str {
        match self {
            Self::Const(_) => "const",
            Self::Enum(_) => "enum",
            Self::Prefix(_) => "prefix",
            Self::PathUnder(_) => "path_under",
            Self::MaxLength(_) => "max_length",
            Self::MaxBytes(_) => "max_bytes",
            Self::Min(_) => "min",
            Self::Max(_) => "max",
            Self::Absent => "absent",
        }
    }

    /// Returns whether an argument satisfies it.
    fn holds(self, value: &Value) -> bool {
        let text = value.as_str();
        let order = |bound| match value {
            Value::Number(number) => Some(compare(number, bound)),
            _ => None,
        };
        match self {
            Self::Const(one) => is_same(one, value),
            Self::Enum(some) => some.iter().any(|one| is_same(one, value)),
            Self::Prefix(prefix) => text.is_some_and(|text| text.starts_with(prefix)),
            Self::PathUnder(base) => text.is_some_and(|text| is_under(text, base)),
            Self::MaxLength(max) => text.is_some_and(|text| text.chars().count() <= max as usize),
            Self::MaxBytes(max) => text.is_some_and(|text| text.len() <= max as usize),
            Self::Min(min) => order(min).is_some_and(Ordering::is_ge),
            Self::Max(max) => order(max).is_some_and(Ordering::is_le),
            Self::Absent => false,
        }
    }

    /// Says what an argument must be.
    fn describe(self) -> String {
        let text = |text: &str| shown(text, SHOWN_MAX);
        match self {
            Self::Const(value) => format!("must be {}", text(&value.to_string())),
            Self::Enum(values) => {
                let values: Vec<String> = values.iter().map(Value::to_string).collect();
                format!("must be one of {}", listed(&values))
            }
            Self::Prefix(prefix) => format!("must begin with `{}`", text(prefix)),
            Self::PathUnder(base) => format!("must be `{}` or a path below it", text(base)),
            Self::MaxLength(max) => format!("must be text of at most {max} characters"),
            Self::MaxBytes(max) => format!("must be text of at most {max} bytes"),
            Self::Min(min) => format!("must be a number of at least {min}"),
            Self::Max(max) => format!("must be a number of at most {max}"),
            Self::Absent => "must be left out".to_owned(),
        }
    }
}

/// Returns whether a path is, or is below, another one.
fn is_under(text: &str, base: &str) -> bool {
    match (path(text), path(base)) {
        (Some(path), Some(base)) => {
            path.is_absolute == base.is_absolute && path.components.starts_with(&base.components)
        }
        _ => false,
    }
}
