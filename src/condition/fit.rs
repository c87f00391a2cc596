//! Checks whether conditions fit the tool that they are about, so that a mistake is found before it refuses every call.

use std::collections::BTreeSet;

use serde_json::{Map, Value};

use super::json::{compare, path};
use super::{ArgumentRule, Conditions, RulePart};
use crate::catalogue::{Definition, operator_only};
use crate::text::listed;

/// A condition that makes no sense for its tool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConditionMisfit {
    /// The argument.
    pub argument: String,
    /// The key of the rule; `None`: the argument is in `only`, or the whole rule is meant.
    pub key: Option<&'static str>,
    /// What is wrong.
    pub message: String,
    /// What mends it.
    pub help: &'static str,
}

const REMOVE: &str = "correct the argument's name, or remove it";
const TAKEN: &str = "write a value that the tool takes";
const REFUSES_ALL: &str = "correct the rule: no value satisfies it";
const NOT_SENT: &str = "remove it: a rule is about what a caller sends";

/// Finds conditions that do not fit a tool with these fixed arguments. Without a definition, only what the conditions say
/// themselves is checked.
#[must_use]
pub fn misfits(
    conditions: &Conditions,
    definition: Option<Definition<'_>>,
    with: &Map<String, Value>,
) -> Vec<ConditionMisfit> {
    let schema = definition.map(|definition| Schema::of(definition, with));
    let mut misfits = Vec::new();
    let only = conditions.only.iter().flatten().map(|name| (name, None));
    let rules = conditions.rules.iter();
    let rules = rules.map(|(name, rule)| (name, Some(rule)));
    for (name, rule) in only.chain(rules) {
        let mut add = |key, message, help| {
            misfits.push(ConditionMisfit {
                argument: name.clone(),
                key,
                message,
                help,
            });
        };
        if let Some(schema) = &schema
            && let Some((message, help)) = schema.misfit(name)
        {
            add(None, message, help);
            continue;
        }
        if with.contains_key(name) {
            add(None, format!("`{name}` is fixed by `with`"), NOT_SENT);
            continue;
        }
        let Some(rule) = rule else { continue };
        let is_listed = |only: &BTreeSet<String>| only.contains(name);
        if !rule.absent && !conditions.only.as_ref().is_none_or(is_listed) {
            let message = format!("`{name}` must be sent, but `only` does not list it");
            add(None, message, "add it to `only`");
        }
        if let Some(schema) = &schema
            && let Some((key, message, help)) = schema.rule_misfit(name, rule)
        {
            add(Some(key), message, help);
        } else if *rule == ArgumentRule::default() {
            let message = format!("the rule for `{name}` says nothing");
            add(
                None,
                message,
                "add a rule, such as `prefix` or `enum`, or remove the argument",
            );
        } else if let Some((key, message)) = contradiction(rule) {
            add(Some(key), message, REFUSES_ALL);
        }
    }
    if let (Some(schema), Some(only)) = (&schema, &conditions.only) {
        for name in schema.required.iter().filter(|name| !only.contains(*name)) {
            misfits.push(ConditionMisfit {
                argument: name.clone(),
                key: None,
                message: format!("the tool requires `{name}`, but `only` does not list it"),
                help: "add it to `only`, or set it in `with`",
            });
        }
    }
    misfits
}

/// The arguments of a tool that a caller may send.
struct Schema<'a> {
    definition: Definition<'a>,
    properties: Map<String, Value>,
    /// False if the tool takes arguments that it does not name.
    is_complete: bool,
    required: Vec<String>,
}

impl<'a> Schema<'a> {
    fn of(definition: Definition<'a>, with: &Map<String, Value>) -> Self {
        let mut input = definition.input();
        let properties = match input.shift_remove("properties") {
            Some(Value::Object(properties)) => Some(properties),
            _ => None,
        };
        let required = input.get("required").and_then(Value::as_array);
        let required = required.into_iter().flatten().filter_map(Value::as_str);
        let required = required.filter(|name| !with.contains_key(*name));
        Self {
            definition,
            is_complete: properties.is_some(),
            properties: properties.unwrap_or_default(),
            required: required.map(str::to_owned).collect(),
        }
    }

    /// Returns why a caller never sends an argument.
    fn misfit(&self, name: &str) -> Option<(String, &'static str)> {
        if self.is_complete && !self.properties.contains_key(name) {
            let known: Vec<&str> = self.properties.keys().map(String::as_str).collect();
            return Some((self.definition.unknown_argument(name, &known), REMOVE));
        }
        match self.definition {
            Definition::BuiltIn(tool) if operator_only(tool, name) => {
                let message = format!("consumers may not set `{name}`");
                Some((message, "remove it, or set it in `with`"))
            }
            _ => None,
        }
    }

    /// Returns the first part of a rule that does not fit the argument's type.
    fn rule_misfit(
        &self,
        name: &str,
        rule: &ArgumentRule,
    ) -> Option<(&'static str, String, &'static str)> {
        if rule.is_only_absence() && self.required.iter().any(|one| one == name) {
            let message = format!("the tool requires `{name}`, but this rule forbids it");
            return Some(("absent", message, "remove the rule: it refuses every call"));
        }
        let kind = self.properties.get(name).and_then(|one| one.get("type"));
        let kind = kind.and_then(Value::as_str);
        for part in rule.parts() {
            let (types, of): (&[&str], _) = match part {
                RulePart::Prefix(_)
                | RulePart::PathUnder(_)
                | RulePart::MaxLength(_)
                | RulePart::MaxBytes(_) => (&["string"], "text"),
                RulePart::Min(_) | RulePart::Max(_) => (&["number", "integer"], "numbers"),
                RulePart::Const(_) | RulePart::Enum(_) | RulePart::Absent => continue,
            };
            if let Some(kind) = kind.filter(|kind| !types.contains(kind)) {
                let key = part.key();
                let message = format!("`{key}` is for {of}, but `{name}` is of type {kind}");
                return Some((key, message, "remove it, or use `const` or `enum`"));
            }
        }
        let fault = |value: Value| {
            let argument = Map::from_iter([(name.to_owned(), value)]);
            self.definition.check_some(&argument).err()
        };
        let constant = rule.constant.iter().map(|value| ("const", value));
        let some = rule.r#enum.iter().flatten().map(|value| ("enum", value));
        let mut values = constant.chain(some);
        if let Some((key, fault)) =
            values.find_map(|(key, value)| Some((key, fault(value.clone())?)))
        {
            return Some((key, fault.to_string(), TAKEN));
        }
        // What a built-in tool takes as a path does not depend on the names of its components.
        if let (Some(base), Definition::BuiltIn(_)) = (&rule.path_under, self.definition)
            && let Some(base) = path(base)
        {
            // Only the components count, however the rule is written.
            let root = if base.is_absolute { "/" } else { "" };
            let folder = format!("{root}{}", base.components.join("/"));
            let below = match base.components.as_slice() {
                [] => format!("{root}a"),
                _ => format!("{folder}/a"),
            };
            if let (Some(fault), Some(_)) = (fault(folder.into()), fault(below.into())) {
                return Some(("path_under", fault.to_string(), TAKEN));
            }
        }
        self.refuses_all(name, rule)
    }

    /// Returns the part of a rule that no value satisfies which the argument's schema names.
    fn refuses_all(
        &self,
        name: &str,
        rule: &ArgumentRule,
    ) -> Option<(&'static str, String, &'static str)> {
        let schema = self.properties.get(name)?;
        let refused =
            |key, what: String| Some((key, format!("`{name}` of the tool {what}"), REFUSES_ALL));
        let named = schema
            .get("enum")
            .and_then(Value::as_array)
            .map(Vec::as_slice);
        let named = named.or(schema.get("const").map(std::slice::from_ref));
        if let Some(named) = named.filter(|named| !named.is_empty()) {
            let mut broken = named.iter().map(|value| rule.broken(Some(value)));
            let first = broken.next().flatten();
            if let Some(part) = first.filter(|_| broken.all(|part| part.is_some())) {
                let values: Vec<String> = named.iter().map(Value::to_string).collect();
                return refused(part.key(), format!("takes only {}", listed(&values)));
            }
        }
        let bound = |key| match schema.get(key) {
            Some(Value::Number(bound)) => Some(bound),
            _ => None,
        };
        match (&rule.min, bound("maximum"), &rule.max, bound("minimum")) {
            (Some(min), Some(max), ..) if compare(min, max).is_gt() => {
                refused("min", format!("takes at most {max}"))
            }
            (_, _, Some(max), Some(min)) if compare(max, min).is_lt() => {
                refused("max", format!("takes at least {min}"))
            }
            _ => None,
        }
    }
}

/// Returns why no value satisfies a rule.
fn contradiction(rule: &ArgumentRule) -> Option<(&'static str, String)> {
    if rule
        .path_under
        .as_deref()
        .is_some_and(|base| path(base).is_none())
    {
        let message = "`path_under` is not a path without `..`".to_owned();
        return Some(("path_under", message));
    }
    if let (Some(min), Some(max)) = (&rule.min, &rule.max)
        && compare(min, max).is_gt()
    {
        return Some(("max", format!("`max` is {max}, but `min` is {min}")));
    }
    if let Some(prefix) = &rule.prefix {
        let is_longer =
            |max: Option<u32>, length: usize| max.is_some_and(|max| length > max as usize);
        if is_longer(rule.max_length, prefix.chars().count())
            || is_longer(rule.max_bytes, prefix.len())
        {
            return Some((
                "prefix",
                "`prefix` is longer than the argument may be".to_owned(),
            ));
        }
    }
    if let (Some(prefix), Some(base)) = (&rule.prefix, &rule.path_under)
        && !may_lead_below(prefix, base)
    {
        let message = "no path below `path_under` begins with `prefix`";
        return Some(("prefix", message.to_owned()));
    }
    let constant = rule.constant.as_slice();
    for (key, values) in [
        ("const", constant),
        ("enum", rule.r#enum.as_deref().unwrap_or_default()),
    ] {
        let broken = |value| rule.broken(Some(value));
        if !values.is_empty() && values.iter().all(|value| broken(value).is_some()) {
            let message = format!("no value of `{key}` satisfies the rest of the rule");
            return Some((key, message));
        }
    }
    rule.r#enum
        .as_ref()
        .filter(|values| values.is_empty())
        .map(|_| ("enum", "`enum` is empty, so no value is allowed".to_owned()))
}

/// Returns whether some text that begins with a prefix is a path that is, or is below, another one.
fn may_lead_below(prefix: &str, base: &str) -> bool {
    // The last component may go on after the prefix.
    let (whole, begun) = prefix
        .rsplit_once('/')
        .map_or(("", prefix), |(whole, begun)| {
            (prefix.get(..=whole.len()).unwrap_or(whole), begun)
        });
    let (Some(base), false) = (path(base), whole.contains('\0') || begun.contains('\0')) else {
        return false;
    };
    let components: Vec<&str> = whole
        .split('/')
        .filter(|part| !["", "."].contains(part))
        .collect();
    if prefix.starts_with('/') != base.is_absolute || components.contains(&"..") {
        return false;
    }
    let mut rest = base.components.iter();
    for component in components {
        match rest.next() {
            Some(next) if *next != component => return false,
            // The prefix is below the path already.
            None => return true,
            Some(_) => {}
        }
    }
    rest.next()
        .is_none_or(|next| next.starts_with(begun) || begun == ".")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_may_lead_below_a_path() {
        for (prefix, base) in [
            ("/", "/srv"),
            ("/s", "/srv"),
            ("/srv", "/srv"),
            ("/srv/", "/srv"),
            ("/srv/app", "/srv"),
            ("/srv/app/x/", "/srv//app/"),
            ("/.", "/srv"),
            ("/./s", "/srv"),
            ("/srv/..", "/srv"),
            ("a", "."),
            ("src/", "./src"),
            ("//s", "/srv"),
        ] {
            assert!(may_lead_below(prefix, base), "{prefix} {base}");
        }
        for (prefix, base) in [
            ("srv", "/srv"),
            ("/srv", "srv"),
            ("/t", "/srv"),
            ("/srvx", "/srv"),
            ("/etc/x", "/srv"),
            ("/srv/../", "/srv"),
            ("/srv/ap/", "/srv/app"),
            ("a\0", "."),
        ] {
            assert!(!may_lead_below(prefix, base), "{prefix} {base}");
        }
    }
}
