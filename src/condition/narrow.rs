//! Shows a service's conditions in the schema of its arguments.

use serde_json::{Map, Number, Value};

use super::json::{compare, is_same};
use super::{ArgumentRule, Conditions, RulePart};
use crate::catalogue::hide;

impl Conditions {
    /// Narrows the schema of a tool's arguments to what a caller may send. Whatever a schema cannot say in keywords that
    /// all clients know is said in the description of the argument.
    pub fn narrow(&self, input: &mut Map<String, Value>) {
        if let Some(only) = &self.only {
            hide(input, |name| !only.contains(name));
        }
        if self.only.is_some() || !self.rules.is_empty() {
            input.insert("additionalProperties".to_owned(), false.into());
        }
        hide(input, |name| {
            let rule = self.rules.get(name);
            rule.is_some_and(ArgumentRule::is_only_absence)
        });
        for (name, rule) in &self.rules {
            if !rule.is_only_absence() {
                rule.narrow(name, input);
            }
        }
    }
}

impl ArgumentRule {
    fn narrow(&self, name: &str, input: &mut Map<String, Value>) {
        let properties = input
            .entry("properties")
            .or_insert_with(|| Map::new().into());
        let Some(properties) = properties.as_object_mut() else {
            return;
        };
        let property = properties.entry(name).or_insert_with(|| Map::new().into());
        if !property.is_object() {
            *property = Map::new().into();
        }
        if let Some(property) = property.as_object_mut() {
            self.narrow_property(property);
        }
        if !self.absent {
            let required = input
                .entry("required")
                .or_insert_with(|| Value::Array(Vec::new()));
            if let Some(required) = required.as_array_mut()
                && !required.iter().any(|one| one == name)
            {
                required.push(name.into());
            }
        }
    }

    fn narrow_property(&self, property: &mut Map<String, Value>) {
        // `const` is `enum` too: some model providers do not know it.
        let constant = self.constant.iter().cloned().collect::<Vec<_>>();
        for allowed in [
            Some(constant).filter(|one| !one.is_empty()),
            self.r#enum.clone(),
        ] {
            let Some(mut allowed) = allowed else { continue };
            if let Some(Value::Array(before)) = property.get("enum") {
                let both = |one: &Value| before.iter().any(|other| is_same(one, other));
                // Some providers refuse an empty list.
                if allowed.iter().any(both) {
                    allowed.retain(both);
                }
            }
            property.insert("enum".to_owned(), allowed.into());
        }
        let longest = [self.max_length, self.max_bytes]
            .into_iter()
            .flatten()
            .min();
        let longest = longest.map(Number::from);
        bound(property, "maxLength", longest.as_ref(), true);
        bound(property, "minimum", self.min.as_ref(), false);
        bound(property, "maximum", self.max.as_ref(), true);
        let said = self.parts().into_iter().filter(|part| {
            matches!(
                part,
                RulePart::Prefix(_) | RulePart::PathUnder(_) | RulePart::MaxBytes(_)
            )
        });
        let said: Vec<String> = said
            .map(|part| format!("It {}.", part.describe()))
            .collect();
        if !said.is_empty() {
            let before = property.get("description").and_then(Value::as_str);
            let before = before.map(|text| format!("{}. ", text.trim_end_matches('.')));
            let description = before.unwrap_or_default() + &said.join(" ");
            property.insert("description".to_owned(), description.into());
        }
    }
}

/// Sets a bound unless a stricter one is there.
fn bound(property: &mut Map<String, Value>, key: &str, bound: Option<&Number>, is_upper: bool) {
    let Some(bound) = bound else { return };
    let is_looser = match property.get(key) {
        Some(Value::Number(before)) => compare(before, bound).is_gt() == is_upper,
        _ => true,
    };
    if is_looser {
        property.insert(key.to_owned(), bound.clone().into());
    }
}
