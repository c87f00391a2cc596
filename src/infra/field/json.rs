//! A value as JSON has it: what is handed on as it is written.

use serde_json::{Map, Number, Value};

use crate::infra::raw::{Entry, Node, NodeKind, Reading};

/// A value as JSON has it: what is handed on as written.
pub(in crate::infra) fn json(node: &Node<'_>) -> Value {
    match &node.kind {
        NodeKind::Scalar(scalar) => json_scalar(&scalar.text, scalar.reading()),
        NodeKind::List(items) => Value::Array(items.iter().map(json).collect()),
        NodeKind::Map(entries) => Value::Object(json_map(entries)),
        NodeKind::Unusable => Value::Null,
    }
}

/// A map as JSON has it.
pub(in crate::infra) fn json_map(entries: &[Entry<'_>]) -> Map<String, Value> {
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
