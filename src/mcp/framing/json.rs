//! Reads JSON strictly: duplicate keys and deep nesting are faults.
//!
//! If two readers disagreed on which of two duplicate keys counts, a policy could be bypassed.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::fmt;

use rmcp::model::RequestId;
use serde::de::{DeserializeSeed, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::error::Category;
use serde_json::value::RawValue;
use serde_json::{Map, Value};

use crate::mcp::{DEPTH_MAX, ID_MAX, VALUES_MAX, shown};

/// The UTF-8 byte order mark, which a reader may ignore (RFC 8259 §8.1).
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// Maximum length of an id's JSON text, in bytes: every byte may be escaped.
pub(crate) const ID_WRITTEN_MAX: usize = 6 * ID_MAX + 2;

/// The reason why bytes are not accepted as JSON.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum JsonFault {
    /// Not JSON, or not UTF-8.
    #[error("{0}")]
    Syntax(String),
    /// JSON with duplicate keys, too many values or nesting that is too deep.
    #[error("{0}")]
    Refused(String),
}

/// Strips a byte order mark and surrounding white space.
pub(crate) fn trim(bytes: &[u8]) -> &[u8] {
    bytes
        .strip_prefix(BYTE_ORDER_MARK)
        .unwrap_or(bytes)
        .trim_ascii()
}

/// Reads one JSON value.
pub(crate) fn read(bytes: &[u8]) -> Result<Value, JsonFault> {
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    let values = &Cell::new(0);
    let strict = Strict { depth: 0, values };
    strict
        .deserialize(&mut deserializer)
        .and_then(|value| deserializer.end().map(|()| value))
        .map_err(|fault| match fault.classify() {
            Category::Data => JsonFault::Refused(fault.to_string()),
            Category::Syntax | Category::Eof | Category::Io => JsonFault::Syntax(fault.to_string()),
        })
}

/// Reads one JSON object.
pub(crate) fn read_object(bytes: &[u8]) -> Result<Map<String, Value>, JsonFault> {
    match read(bytes)? {
        Value::Object(object) => Ok(object),
        _ => Err(JsonFault::Refused(
            "the text is another kind of JSON value".to_owned(),
        )),
    }
}

/// Returns whether JSON begins like an object. Checked first, because a serde error would quote a whole string.
pub(crate) fn begins_object(bytes: &[u8]) -> bool {
    trim(bytes).first() == Some(&b'{')
}

/// Reads a value at a given nesting depth.
#[derive(Clone, Copy)]
struct Strict<'c> {
    depth: usize,
    /// Values read so far, at all depths.
    values: &'c Cell<usize>,
}

impl Strict<'_> {
    fn deeper<E: serde::de::Error>(self) -> Result<Self, E> {
        if self.depth == DEPTH_MAX {
            return Err(E::custom(format_args!(
                "nested more than {DEPTH_MAX} levels deep"
            )));
        }
        Ok(Self {
            depth: self.depth + 1,
            values: self.values,
        })
    }
}

impl<'de> DeserializeSeed<'de> for Strict<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        // A value takes many times the memory of its text: a line of empty arrays must not become a gigabyte.
        let values = self.values.get() + 1;
        if values > VALUES_MAX {
            return Err(D::Error::custom(format_args!(
                "more than {VALUES_MAX} values in one message"
            )));
        }
        self.values.set(values);
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Strict<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let deeper = self.deeper()?;
        let mut array = Vec::new();
        while let Some(item) = items.next_element_seed(deeper)? {
            array.push(item);
        }
        Ok(Value::Array(array))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let deeper = self.deeper()?;
        let mut object = Map::new();
        while let Some(key) = entries.next_key::<String>()? {
            if object.contains_key(&key) {
                return Err(A::Error::custom(format_args!(
                    "duplicate key `{}`",
                    shown(&key)
                )));
            }
            let value = entries.next_value_seed(deeper)?;
            object.insert(key, value);
        }
        Ok(Value::Object(object))
    }
}

/// Returns an upper bound on the number of values in JSON, without parsing it; `None` if it is nested too deeply.
pub(crate) fn count(json: &[u8]) -> Option<usize> {
    let (mut at, mut depth, mut values) = (0, 0_usize, 1);
    while let Some(byte) = json.get(at) {
        at += 1;
        match byte {
            b'"' => at = end_of_string(json, at - 1)?,
            b'[' | b'{' => {
                depth += 1;
                values += 1;
            }
            b']' | b'}' => depth = depth.saturating_sub(1),
            b',' => values += 1,
            _ => {}
        }
        if depth > DEPTH_MAX {
            return None;
        }
    }
    Some(values)
}

/// Returns whether JSON has a string of more than `max` bytes in an unexpected place: a serde error quotes all of a
/// mistyped string, at several times its length. Values of `payload` keys and below `free` keys may be long.
pub(crate) fn has_long_text(json: &[u8], max: usize, payload: &[&str], free: &[&str]) -> bool {
    let is_one_of = |key: &[u8], keys: &[&str]| {
        let key = key.strip_prefix(b"\"");
        let key = key.and_then(|key| key.strip_suffix(b"\""));
        key.is_some_and(|key| keys.iter().any(|name| name.as_bytes() == key))
    };
    let (mut at, mut depth) = (0, 0_usize);
    let mut key: &[u8] = b"";
    // The depth of the value of a `free` key.
    let mut free_above = None;
    while let Some(byte) = json.get(at) {
        match byte {
            b'[' | b'{' => {
                if free_above.is_none() && is_one_of(key, free) {
                    free_above = Some(depth);
                }
                depth += 1;
                key = b"";
            }
            b']' | b'}' => {
                depth = depth.saturating_sub(1);
                if free_above == Some(depth) {
                    free_above = None;
                }
                key = b"";
            }
            b',' => key = b"",
            b'"' => {
                let end = end_of_string(json, at).unwrap_or(json.len());
                let text = json.get(at..end).unwrap_or_default();
                let rest = json.get(end..).unwrap_or_default().trim_ascii_start();
                let is_key = rest.first() == Some(&b':');
                let is_free = free_above.is_some() || (!is_key && is_one_of(key, payload));
                if text.len() > max && !is_free {
                    return true;
                }
                if is_key {
                    key = text;
                }
                at = end;
                continue;
            }
            _ => {}
        }
        at += 1;
    }
    false
}

/// Reads the JSON text of an id.
fn id_of(text: &[u8]) -> Option<RequestId> {
    if text.len() > ID_WRITTEN_MAX || matches!(text.first(), Some(b'{' | b'[')) {
        return None;
    }
    as_id(&serde_json::from_slice(text).ok()?)
}

/// Converts a JSON value to a request id: a string of at most 1 KiB, or a 64-bit integer.
pub(crate) fn as_id(value: &Value) -> Option<RequestId> {
    match value {
        Value::Number(number) => number.as_i64().map(RequestId::Number),
        Value::String(text) if text.len() <= ID_MAX => {
            Some(RequestId::String(text.as_str().into()))
        }
        _ => None,
    }
}

/// Searches a refused or invalid message for its id: the outermost object's member `id`, if all strings and brackets
/// before it are closed.
pub(crate) fn find_id_in(bytes: &[u8]) -> Option<RequestId> {
    let bytes = trim(bytes);
    if bytes.first() != Some(&b'{') {
        return None;
    }
    let (mut depth, mut at) = (0_usize, 0_usize);
    // True if the next string is a key of the outermost object.
    let mut is_key = false;
    while let Some(byte) = bytes.get(at) {
        match byte {
            b'{' | b'[' => {
                depth += 1;
                is_key = depth == 1;
            }
            b'}' | b']' => {
                depth = depth.checked_sub(1).filter(|depth| *depth > 0)?;
                is_key = false;
            }
            b',' => is_key = depth == 1,
            b'"' => {
                let end = end_of_string(bytes, at)?;
                let text = bytes.get(at..end)?;
                let rest = bytes.get(end..)?.trim_ascii_start();
                if is_key && let Some(value) = rest.strip_prefix(b":") {
                    is_key = false;
                    if serde_json::from_slice::<String>(text).is_ok_and(|key| key == "id") {
                        return id_of(scalar(value.trim_ascii_start())?);
                    }
                }
                at = end;
                continue;
            }
            _ => {}
        }
        at += 1;
    }
    None
}

/// Returns the string or number at the beginning of JSON text that continues after it.
fn scalar(json: &[u8]) -> Option<&[u8]> {
    let end = if json.first()? == &b'"' {
        end_of_string(json, 0)?
    } else {
        let ends = |byte: &u8| matches!(byte, b',' | b'}') || byte.is_ascii_whitespace();
        json.iter().position(ends)?
    };
    json.get(..end)
}

/// Returns the end of the string that begins with a quote at `start`.
fn end_of_string(bytes: &[u8], start: usize) -> Option<usize> {
    let mut at = start + 1;
    loop {
        at += memchr::memchr2(b'"', b'\\', bytes.get(at..)?)?;
        match bytes.get(at)? {
            b'"' => return Some(at + 1),
            _ => at += 2,
        }
    }
}

/// Searches the ends of a message for its id: the outermost object's member `id`, near the beginning or at the end.
pub(crate) fn find_id(head: &[u8], tail: &[u8]) -> Option<RequestId> {
    find_id_in(head).or_else(|| id_from_back(tail))
}

/// Reads `"id":…}` at the very end; an inner object's `id` would be followed by too many braces.
fn id_from_back(tail: &[u8]) -> Option<RequestId> {
    const KEY: &[u8] = b"\"id\"";
    let start = tail.windows(KEY.len()).rposition(|window| window == KEY)?;
    let mut object = vec![b'{'];
    object.extend_from_slice(tail.get(start..)?);
    let members: BTreeMap<String, &RawValue> = serde_json::from_slice(&object).ok()?;
    id_of(members.get("id")?.get().as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_serde_json_reads_is_read_alike() {
        for text in [
            r#"{"a":[1,-2,3.5,"x",null,true,{}],"b":{"c":"\u00e9"}}"#,
            "42",
            "[]",
            "18446744073709551615",
        ] {
            let value: Value = serde_json::from_str(text).unwrap();
            assert_eq!(read(text.as_bytes()), Ok(value), "{text}");
        }
    }

    #[test]
    fn values_are_counted_without_being_made() {
        for (text, values) in [
            ("1", Some(1)),
            (r#""a,[{\",""#, Some(1)),
            (r#"{"a":1,"b":[2,3]}"#, Some(5)),
            (&"[".repeat(DEPTH_MAX), Some(DEPTH_MAX + 1)),
            (&"[".repeat(DEPTH_MAX + 1), None),
            (r#""no end"#, None),
        ] {
            assert_eq!(count(text.as_bytes()), values, "{text}");
        }
        let many = format!("[{}0]", r#"{"":0},"#.repeat(1000));
        assert!(count(many.as_bytes()).unwrap() >= 2002);
    }

    #[test]
    fn a_long_text_is_seen_where_nobody_sends_one() {
        let long = "x".repeat(10);
        for (text, seen) in [
            (format!(r#"{{"tools":"{long}"}}"#), true),
            (format!(r#"{{"tools":"short","{long}":1}}"#), true),
            (format!(r#"["{long}"]"#), true),
            (format!(r#"{{"text" : "{long}"}}"#), false),
            (format!(r#"{{"text":["{long}"]}}"#), true),
            (format!(r#"{{"text":1,"other":"{long}"}}"#), true),
            (format!(r#"{{"free":{{"a":["{long}"]}}}}"#), false),
            (format!(r#"{{"free":[],"b":["{long}"]}}"#), true),
            (format!(r#"{{"free":"{long}"}}"#), true),
            (format!(r#"{{"a":"{long}"#), true),
            (r#"{"a":"short"}"#.to_owned(), false),
        ] {
            let found = has_long_text(text.as_bytes(), 10, &["text"], &["free"]);
            assert_eq!(found, seen, "{text}");
        }
    }

    #[test]
    fn an_id_that_is_too_long_for_one_is_not_made() {
        let long = format!(r#""{}""#, "x".repeat(ID_MAX + 1));
        let escaped = format!(r#""{}""#, r"\u0078".repeat(ID_MAX));
        assert_eq!(id_of(br"7"), Some(RequestId::Number(7)));
        assert_eq!(
            id_of(escaped.as_bytes()),
            Some(RequestId::String("x".repeat(ID_MAX).into()))
        );
        for none in ["[1]", "{}", "1.5", "null", "", long.as_str()] {
            assert_eq!(id_of(none.as_bytes()), None, "{none}");
        }
    }

    #[test]
    fn faults_are_told_apart() {
        let deep = format!("{}{}", "[".repeat(101), "]".repeat(101));
        let cases: [(&[u8], JsonFault); 5] = [
            (
                b"{\"a\":1,\"a\":2}",
                JsonFault::Refused("duplicate key `a` at line 1 column 10".to_owned()),
            ),
            (
                deep.as_bytes(),
                JsonFault::Refused(
                    "nested more than 100 levels deep at line 1 column 102".to_owned(),
                ),
            ),
            (
                b"{\"a\":",
                JsonFault::Syntax("EOF while parsing a value at line 1 column 5".to_owned()),
            ),
            (
                b"\"\xff\"",
                JsonFault::Syntax("invalid unicode code point at line 1 column 2".to_owned()),
            ),
            (
                b"1 2",
                JsonFault::Syntax("trailing characters at line 1 column 3".to_owned()),
            ),
        ];
        for (bytes, fault) in cases {
            assert_eq!(read(bytes), Err(fault));
        }
    }

    #[test]
    fn the_id_is_found_at_either_end_and_nowhere_else() {
        let number = Some(RequestId::Number(7));
        let text = Some(RequestId::String("x".into()));
        let cases: [(&str, &str, Option<RequestId>); 8] = [
            (
                r#"{"jsonrpc":"2.0","id":7,"method":"x","params":{"data":"AAAA"#,
                "",
                number.clone(),
            ),
            (r#"{"params":{"id":1},"id":"x","more":["#, "", text.clone()),
            (
                r#"{"params":{"id":1,"data":"AAAA"#,
                r#"AAAA"},"id":"x"}"#,
                text,
            ),
            (
                r#"{"params":{"data":"AAAA"#,
                r#"AA"},"id":7,"jsonrpc":"2.0"}"#,
                number,
            ),
            (r#"{"params":{"data":"AAAA"#, r#"AA","id":7}}"#, None),
            (r#"{"params":{"data":"AAAA"#, r#"AA\"id\":7}"#, None),
            (r#"{"id":1.5,"params":"#, "", None),
            ("", "", None),
        ];
        for (head, tail, id) in cases {
            assert_eq!(
                find_id(head.as_bytes(), tail.as_bytes()),
                id,
                "{head} … {tail}"
            );
        }
    }

    #[test]
    fn the_id_of_a_line_that_is_no_json_is_that_of_its_outermost_object() {
        let number = |number| Some(RequestId::Number(number));
        let text = Some(RequestId::String("id".into()));
        for (line, id) in [
            (r#"{"id":7,"method":"a","params":{"da"#, number(7)),
            (r#"{"params":{"a":NaN},"id":7}"#, number(7)),
            (r#"{"params":{"a":NaN},"id":"id"}"#, text),
            (r#"{"params":{"a":NaN},"id":7,"method":"id"}"#, number(7)),
            (r#"{"params":{"a":NaN},"\u0069d":7}"#, number(7)),
            (r#"{"\ud800":{"id":8},"id":7, "x":NaN}"#, number(7)),
            (r#"{"a":NaN,"id":7}garbage"#, number(7)),
            (r#"{"params":NaN,"id":1,"id":2}"#, number(1)),
            (r#" {"a":"\"id\":8}","id" : 7}"#, number(7)),
            (r#"{"params":{"x":"a","id":7}"#, None),
            (r#"{"params":[NaN,{"id":7}"#, None),
            (r#"{"a":NaN,"b":{"c":"}","id":5}"#, None),
            (r#"{"a":NaN,"id":{"id":7}"#, None),
            (r#""id":7}"#, None),
            (r#"{"a":1}{"id":8}"#, None),
            (r#"[{"id":8}]"#, None),
            (r#"{"a":"id":8}"#, None),
            (r#"{"id""#, None),
            (r#"{"id":"#, None),
            (r#"{"a"#, None),
            ("", None),
        ] {
            assert_eq!(find_id_in(line.as_bytes()), id, "{line}");
        }
    }

    #[test]
    fn a_line_of_many_values_is_refused_before_it_becomes_large() {
        let many = format!("[{}[]]", "[],".repeat(VALUES_MAX));
        let Err(JsonFault::Refused(why)) = read(many.as_bytes()) else {
            panic!("read");
        };
        assert!(why.starts_with("more than 10000 values"), "{why}");
        let enough = format!("[{}[]]", "[],".repeat(VALUES_MAX - 2));
        assert!(read(enough.as_bytes()).is_ok());
    }
}
