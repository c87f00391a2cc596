//! Checks a service's conditions: `where`, `only` and `expires`. Unknown keys are faults.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Number, Value};

use crate::catalogue::Definition;
use crate::condition::{ArgumentRule, Conditions, Expiry, is_same, misfits};
use crate::diagnostic::quote;
use crate::infra::ArgumentPlaces;
use crate::infra::field::{self, Fields, Text};
use crate::infra::findings::{At, Code, Findings};
use crate::infra::raw::{Entry, Node, NodeKind};

/// The keys of a rule.
const RULE_KEYS: [&str; 9] = [
    "const",
    "enum",
    "prefix",
    "path_under",
    "max_length",
    "max_bytes",
    "min",
    "max",
    "absent",
];
const VALUE: &str = "write a value other than null, or `absent: true`";
const TIME: &str =
    "write a date and a time with their offset from UTC, such as `2027-01-31T18:00:00Z`";

/// Reads a service's conditions, and checks them against its tool, if that is known.
pub(super) fn conditions(
    fields: Fields<'_, '_>,
    definition: Option<Definition<'_>>,
    with: &Map<String, Value>,
    findings: &mut Findings,
) -> Conditions {
    let conditions = Conditions {
        rules: rules(fields, findings),
        only: only(fields, findings),
        expires: expires(fields, findings),
    };
    for misfit in misfits(&conditions, definition, with) {
        let at = place(fields, &misfit.argument, misfit.key);
        findings
            .error(Code::InvalidCondition, at, misfit.message)
            .help(misfit.help);
    }
    conditions
}

/// Returns the locations that a check against a definition which is read later may name.
pub(super) fn places(
    fields: Fields<'_, '_>,
    conditions: &Conditions,
    findings: &Findings,
) -> ArgumentPlaces {
    let rules = conditions.rules.keys().flat_map(|name| {
        let keys = RULE_KEYS.into_iter().map(Some);
        keys.chain([None]).map(move |key| (name, key))
    });
    let only = conditions.only.iter().flatten().map(|name| (name, None));
    let all = rules.chain(only).filter_map(|(name, key)| {
        let place = findings.place(place(fields, name, key))?;
        Some(((name.clone(), key), place))
    });
    let only = fields.entry("only");
    ArgumentPlaces {
        conditions: all.collect(),
        only: only.and_then(|only| findings.place(only.at)),
        ..ArgumentPlaces::default()
    }
}

/// Returns the location of an argument in the conditions, or of a key of its rule.
fn place(fields: Fields<'_, '_>, argument: &str, key: Option<&str>) -> At {
    let rule = map(fields.entry("where")).and_then(|rules| entry(rules, argument));
    let part = rule.and_then(|rule| entry(map(Some(rule))?, key?));
    let listed = fields.entry("only");
    let item = listed.and_then(|only| match &only.value.kind {
        NodeKind::List(items) => {
            let mut items = items.iter();
            items.find(|item| field::json(item) == argument)
        }
        _ => None,
    });
    let rule = part.or(rule).map(|entry| entry.at);
    let at = rule.or(item.map(|item| item.at));
    at.or(listed.map(|only| only.at)).unwrap_or(fields.at)
}

fn map<'t, 'a>(entry: Option<&'t Entry<'a>>) -> Option<&'t [Entry<'a>]> {
    match &entry?.value.kind {
        NodeKind::Map(entries) => Some(entries),
        _ => None,
    }
}

fn entry<'t, 'a>(entries: &'t [Entry<'a>], key: &str) -> Option<&'t Entry<'a>> {
    entries.iter().find(|entry| entry.key.text == key)
}

fn rules(fields: Fields<'_, '_>, findings: &mut Findings) -> BTreeMap<String, ArgumentRule> {
    let Some(rules) = fields.map("where", findings) else {
        return BTreeMap::new();
    };
    let mut read = BTreeMap::new();
    for entry in rules.entries() {
        let Some(name) = field::text_key(entry, "the name of an argument", findings) else {
            continue;
        };
        let Some(fields) = Fields::of_named(entry, "a rule", &RULE_KEYS, findings) else {
            continue;
        };
        let fields = fields.strict();
        let before = findings.count();
        fields.known("a rule", &RULE_KEYS, findings);
        let rule = rule(fields, findings);
        // A rule with a fault says less than was meant.
        if findings.count() == before {
            read.insert(name.to_owned(), rule);
        }
    }
    read
}

fn rule(fields: Fields<'_, '_>, findings: &mut Findings) -> ArgumentRule {
    let text = |key, findings: &mut Findings| {
        let Text { text, at } = fields.text(key, findings)?;
        if text.is_empty() {
            let message = format!("`{key}` is empty");
            findings
                .error(Code::InvalidCondition, at, message)
                .help("write some text, or remove it");
            return None;
        }
        Some(text.to_owned())
    };
    ArgumentRule {
        constant: fields
            .entry("const")
            .and_then(|entry| value(&entry.value, findings)),
        r#enum: values(fields, findings),
        prefix: text("prefix", findings),
        path_under: text("path_under", findings),
        max_length: fields.integer("max_length", 0..=u32::MAX, findings),
        max_bytes: fields.integer("max_bytes", 0..=u32::MAX, findings),
        min: number(fields, "min", findings),
        max: number(fields, "max", findings),
        absent: absent(fields, findings),
    }
}

fn value(node: &Node<'_>, findings: &mut Findings) -> Option<Value> {
    let value = field::json(node);
    if value.is_null() {
        let message = "null stands for an argument that is left out";
        findings
            .error(Code::InvalidCondition, node.at, message)
            .help(VALUE);
        return None;
    }
    Some(value)
}

fn values(fields: Fields<'_, '_>, findings: &mut Findings) -> Option<Vec<Value>> {
    fields.entry("enum")?;
    let mut values: Vec<Value> = Vec::new();
    for item in fields.list("enum", findings)? {
        let Some(value) = value(item, findings) else {
            continue;
        };
        if values.iter().any(|other| is_same(other, &value)) {
            let message = format!("{} is listed twice", quote(&value.to_string()));
            findings
                .error(Code::DuplicateItem, item.at, message)
                .help("list it once");
        } else {
            values.push(value);
        }
    }
    Some(values)
}

fn number(fields: Fields<'_, '_>, key: &str, findings: &mut Findings) -> Option<Number> {
    let entry = fields.filled(key, findings)?;
    if let Value::Number(number) = field::json(&entry.value) {
        return Some(number);
    }
    let message = format!("`{key}` is not a number");
    findings
        .error(Code::InvalidCondition, entry.value.at, message)
        .help("write a number, without quotes");
    None
}

fn absent(fields: Fields<'_, '_>, findings: &mut Findings) -> bool {
    let is_absent = fields.flag("absent", findings);
    if is_absent == Some(false) {
        let at = fields.entry("absent").map_or(fields.at, |entry| entry.at);
        let message = "`absent` can only be true: an argument with another rule must be sent";
        findings
            .error(Code::InvalidCondition, at, message)
            .help("remove it");
    }
    is_absent.unwrap_or_default()
}

fn only(fields: Fields<'_, '_>, findings: &mut Findings) -> Option<BTreeSet<String>> {
    fields.entry("only")?;
    let mut only = BTreeSet::new();
    for item in fields.list("only", findings)? {
        let Some(Text { text, at }) = field::text_item(item, "an argument", findings) else {
            continue;
        };
        if !only.insert(text.to_owned()) {
            let message = format!("{} is listed twice", quote(text));
            findings
                .error(Code::DuplicateItem, at, message)
                .help("list it once");
        }
    }
    Some(only)
}

fn expires(fields: Fields<'_, '_>, findings: &mut Findings) -> Option<Expiry> {
    let Text { text, at } = fields.text_like("expires", || TIME.to_owned(), findings)?;
    let expiry = Expiry::try_from(text.to_owned());
    if let Err(why) = expiry {
        let message = format!("{}: {why}", quote(text));
        findings
            .error(Code::InvalidCondition, at, message)
            .help(TIME);
    }
    expiry.ok()
}
