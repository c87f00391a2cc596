//! Values → YAML in the bytes that `PyYAML`'s block style gives: what users' files and their diffs already look like.
//!
//! Scalars are plain, single-quoted or double-quoted, folded at column 80, lists are indented below their key, a null
//! is nothing. A text is quoted where a YAML 1.1 reader or the core schema of YAML 1.2 would take it for something
//! else, and escaped where either would take a character of it for a line break.

mod scalar;
mod words;

use serde_json::{Map, Value};

use scalar::{Position, ScalarRole};

/// Spaces that a level is indented by.
const INDENT: usize = 2;
/// From this many characters on, a key is written after `? ` on a line of its own (128 less the tag `!!str`).
const LONG_KEY: usize = 123;

/// Writes a block mapping with its final newline; `{}` when it is empty.
#[must_use]
pub fn write(values: &Map<String, Value>) -> String {
    let mut writer = Writer {
        text: String::new(),
        column: 0,
        at_start: true,
    };
    if values.is_empty() {
        writer.text.push_str("{}");
    } else {
        writer.mapping(values, 0);
    }
    writer.text.push('\n');
    writer.text
}

struct Writer {
    text: String,
    /// Characters on the last line.
    column: usize,
    /// The last line holds indentation, `- `, `? ` or `: ` alone: a collection may begin on it.
    at_start: bool,
}

impl Writer {
    /// Begins a line at `indent`, unless a collection may begin where the writer stands.
    fn start_line(&mut self, indent: usize) {
        if !self.at_start {
            self.text.push('\n');
            self.text.extend(std::iter::repeat_n(' ', indent));
            self.column = indent;
        }
        self.at_start = false;
    }

    /// Writes ASCII text.
    fn put(&mut self, text: &str) {
        self.text.push_str(text);
        self.column += text.len();
    }

    fn mapping(&mut self, values: &Map<String, Value>, indent: usize) {
        for (key, value) in values {
            self.start_line(indent);
            if is_simple_key(key) {
                self.scalar(key, indent, ScalarRole::Key);
                self.put(":");
                self.value(value, indent);
            } else {
                self.put("?");
                self.text(key, indent);
                self.start_line(indent);
                self.put(":");
                self.compact_value(value, indent);
            }
        }
    }

    /// A value after `key:`; collections go to the next line.
    fn value(&mut self, value: &Value, indent: usize) {
        match value {
            Value::Object(values) if !values.is_empty() => self.mapping(values, indent + INDENT),
            Value::Array(items) if !items.is_empty() => self.list(items, indent + INDENT),
            leaf => self.leaf(leaf, indent),
        }
    }

    /// A value after `-` or `:` alone; collections begin on the same line.
    fn compact_value(&mut self, value: &Value, indent: usize) {
        let is_collection = match value {
            Value::Object(values) => !values.is_empty(),
            Value::Array(items) => !items.is_empty(),
            _ => false,
        };
        if is_collection {
            self.put(" ");
            self.at_start = true;
        }
        self.value(value, indent);
    }

    fn list(&mut self, items: &[Value], indent: usize) {
        for item in items {
            self.start_line(indent);
            self.put("-");
            self.compact_value(item, indent);
        }
    }

    /// A value on the line that the writer stands on.
    fn leaf(&mut self, value: &Value, indent: usize) {
        match value {
            Value::Null => {}
            Value::Bool(true) => self.put(" true"),
            Value::Bool(false) => self.put(" false"),
            Value::Number(number) => {
                self.put(" ");
                self.put(&words::number(number));
            }
            Value::String(text) => self.text(text, indent),
            Value::Array(_) => self.put(" []"),
            Value::Object(_) => self.put(" {}"),
        }
    }

    fn text(&mut self, text: &str, indent: usize) {
        self.put(" ");
        self.scalar(text, indent, ScalarRole::Value);
    }

    fn scalar(&mut self, text: &str, indent: usize, role: ScalarRole) {
        let position = Position {
            column: self.column,
            indent: indent + INDENT,
            role,
        };
        self.column = scalar::write(text, position, &mut self.text);
    }
}

fn is_simple_key(key: &str) -> bool {
    !key.is_empty() && key.chars().count() < LONG_KEY && !key.contains(scalar::is_break)
}

#[cfg(test)]
mod tests;
