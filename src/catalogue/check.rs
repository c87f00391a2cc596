//! Checks a tool's arguments, both those of a call and those in a service's `with`, by the same rules.

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::path::PortalPath;
use super::{
    BODY_MAX, BadArguments, CLIPBOARD_MAX, OFFER_TO, OFFERED_ONLY, Payload, TITLE_MAX,
    WHOLE_PORTAL, bad_key, schema, time_of_change,
};
use crate::name::{ServiceTool, ToolName, closest};
use crate::ssh::{KeyUse, SshKey, is_fingerprint};
use crate::text::shown;

/// Arguments that belong to one call or transfer, and so cannot be fixed for all.
const OF_ONE_CALL: [&str; 6] = ["offset", "final", "length", "resume", "bind", "flags"];
/// Maximum number of session binds in a call, as in OpenSSH.
const BINDS_MAX: usize = 16;
/// Maximum number of entries in another list.
const LIST_MAX: usize = 1000;
/// Maximum length of a caller's text when a message quotes it back, in characters.
const SHOWN_MAX: usize = 80;

/// The reason an argument cannot be fixed by `with`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FixedFault {
    /// The argument's name.
    pub argument: String,
    /// Its fault, in words.
    pub message: String,
}

/// Reads the arguments of a call: known names, right types, allowed values, nothing missing.
///
/// Base64 is decoded later, by [`Payload::decode`].
///
/// # Errors
///
/// Returns every fault, not just the first.
pub fn parse<T: DeserializeOwned>(
    tool: ToolName,
    arguments: &Map<String, Value>,
) -> Result<T, BadArguments> {
    check_all(tool, arguments)?;
    read(arguments)
}

/// Reads the arguments of a call as [`parse`] does, but leaves `data`, which may be large, empty.
///
/// # Errors
///
/// Returns every fault, not just the first.
pub fn parse_without_data<T: DeserializeOwned>(
    tool: ToolName,
    arguments: &Map<String, Value>,
) -> Result<T, BadArguments> {
    check_all(tool, arguments)?;
    let others = arguments.iter().map(|(name, value)| match name.as_str() {
        "data" => (name.clone(), "".into()),
        _ => (name.clone(), value.clone()),
    });
    read(&others.collect())
}

/// Returns whether a service with these fixed arguments gives only what is offered to its caller.
#[must_use]
pub fn gives_offers(tool: &ServiceTool, with: &Map<String, Value>) -> bool {
    tool.is(ToolName::ClipboardGet) && with.get(OFFERED_ONLY) == Some(&Value::Bool(true))
}

/// Returns whether only a service's `with` or the operator may set an argument: consumers choose neither the signing
/// key and what it signs nor what of a clipboard is returned, and offer nothing to others.
#[must_use]
pub fn operator_only(tool: ToolName, argument: &str) -> bool {
    matches!(
        (tool, argument),
        (ToolName::GpgSign, "key_id")
            | (ToolName::SshSign, "key" | "allow" | "hosts")
            | (ToolName::ClipboardGet, "passwords" | OFFERED_ONLY)
            | (ToolName::ClipboardSet, OFFER_TO)
    )
}

fn check_all(tool: ToolName, arguments: &Map<String, Value>) -> Result<(), BadArguments> {
    let missing = missing(tool, arguments).map(|name| format!("missing argument `{name}`"));
    refuse(missing.chain(faults(tool, arguments)))
}

/// Reads arguments in which no fault was found, so that this cannot fail; if it does, the call is refused anyway.
fn read<T: DeserializeOwned>(arguments: &Map<String, Value>) -> Result<T, BadArguments> {
    let integers = arguments.iter().filter_map(|(name, value)| {
        let integer = Value::from(integer(value)?);
        (*value != integer).then(|| (name.clone(), integer))
    });
    let rewritten: Map<String, Value> = integers.collect();
    let refused = |error: serde_json::Error| BadArguments::from(error.to_string());
    if rewritten.is_empty() {
        return T::deserialize(arguments).map_err(refused);
    }
    let mut arguments = arguments.clone();
    arguments.extend(rewritten);
    T::deserialize(&arguments).map_err(refused)
}

/// Returns a number as an integer in the JSON Schema sense: `1.0` is an integer.
pub(super) fn integer(value: &Value) -> Option<u64> {
    if let Some(number) = value.as_u64() {
        return Some(number);
    }
    // Adding zero turns -0 into 0.
    let number = value.as_f64()? + 0.0;
    // A number without a fraction prints as an integer; one beyond `u64` has too many digits to be parsed.
    number.to_string().parse().ok()
}

/// Checks the arguments that were sent: known names, right types, allowed values. Any may be missing.
///
/// # Errors
///
/// Returns every fault, not just the first.
pub(super) fn check_some(
    tool: ToolName,
    arguments: &Map<String, Value>,
) -> Result<(), BadArguments> {
    refuse(faults(tool, arguments))
}

/// Checks fixed arguments against the tool's schema and returns every fault. Any argument may be missing.
#[must_use]
pub(super) fn check_fixed(tool: ToolName, with: &Map<String, Value>) -> Vec<FixedFault> {
    let faults = with.iter().filter_map(|(name, value)| {
        Some(FixedFault {
            message: fault(tool, name, value).or_else(|| fixed_fault(tool, name, value))?,
            argument: name.clone(),
        })
    });
    faults.collect()
}

pub(super) fn refuse(faults: impl Iterator<Item = String>) -> Result<(), BadArguments> {
    let faults: Vec<String> = faults.collect();
    if faults.is_empty() {
        Ok(())
    } else {
        Err(BadArguments(faults))
    }
}

fn faults(tool: ToolName, arguments: &Map<String, Value>) -> impl Iterator<Item = String> {
    arguments
        .iter()
        .filter_map(move |(name, value)| fault(tool, name, value))
}

fn missing(tool: ToolName, arguments: &Map<String, Value>) -> impl Iterator<Item = &'static str> {
    let required = schema::of(tool).input.get("required");
    let required = required.and_then(Value::as_array).into_iter().flatten();
    let names = required.filter_map(Value::as_str);
    names.filter(|name| !arguments.contains_key(*name))
}

fn fault(tool: ToolName, name: &str, value: &Value) -> Option<String> {
    let known = schema::of(tool).input.get("properties")?.as_object()?;
    let Some(property) = known.get(name) else {
        return Some(unknown(tool, name, known));
    };
    type_fault(name, property, value)
        .or_else(|| range_fault(name, property, value))
        .or_else(|| length_fault(name, value))
        .or_else(|| {
            let mut texts = texts(value);
            texts.find_map(|text| text_fault(tool, name, text))
        })
}

/// Returns a text, or the texts of a list.
fn texts(value: &Value) -> impl Iterator<Item = &str> {
    let list = value.as_array().map_or(&[][..], Vec::as_slice);
    value
        .as_str()
        .into_iter()
        .chain(list.iter().filter_map(Value::as_str))
}

fn unknown(tool: ToolName, name: &str, known: &Map<String, Value>) -> String {
    let names: Vec<&str> = known.keys().map(String::as_str).collect();
    unknown_argument(&format!("`{tool}`"), name, &names)
}

/// Refuses an unknown argument of a tool and names the closest known one, or lists them all.
pub(super) fn unknown_argument(tool: &str, name: &str, known: &[&str]) -> String {
    let hint = match closest(name, known.iter().copied()) {
        Some(near) => format!("closest: `{near}`"),
        None if known.is_empty() => format!("{tool} takes no arguments"),
        None => format!("{tool} takes `{}`", known.join("`, `")),
    };
    format!("unknown argument `{}`; {hint}", shown(name, SHOWN_MAX))
}

fn type_fault(name: &str, property: &Value, value: &Value) -> Option<String> {
    let (fits, expected) = match property.get("type").and_then(Value::as_str) {
        Some("string") => (value.is_string(), "a string"),
        Some("boolean") => (value.is_boolean(), "true or false"),
        Some("integer") => (is_whole(value), "a whole number"),
        // Every list is one of texts.
        Some("array") => (is_list_of_texts(value), "a list of strings"),
        // An unknown type would be a bug in anklume, so the argument is refused.
        _ => (false, "of another type"),
    };
    (!fits).then(|| format!("`{name}` must be {expected}, not {}", kind(value)))
}

fn is_list_of_texts(value: &Value) -> bool {
    let list = value.as_array();
    list.is_some_and(|list| list.iter().all(Value::is_string))
}

fn length_fault(name: &str, value: &Value) -> Option<String> {
    let count = value.as_array()?.len();
    let max = if name == "bind" { BINDS_MAX } else { LIST_MAX };
    (count > max).then(|| format!("`{name}` has {count} entries; at most {max} are taken"))
}

pub(super) fn is_whole(value: &Value) -> bool {
    value.is_i64() || value.as_f64().is_some_and(|number| number.fract() == 0.0)
}

pub(super) fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null; leave it out instead",
        Value::Bool(_) => "true or false",
        Value::Number(number) if number.is_f64() => "a number with a fraction",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list of something else; quote an entry that contains `: `",
        Value::Object(_) => "an object",
    }
}

fn range_fault(name: &str, property: &Value, value: &Value) -> Option<String> {
    if !value.is_number() {
        return None;
    }
    let bound = |key| property.get(key).and_then(Value::as_u64);
    let min = bound("minimum").unwrap_or(0);
    let max = bound("maximum").unwrap_or(u64::MAX);
    // A negative number is not a `u64`.
    let fits = integer(value).is_some_and(|number| (min..=max).contains(&number));
    (!fits).then(|| format!("`{name}` must be between {min} and {max}, not {value}"))
}

/// Refuses text that its argument does not allow. Base64 is not checked here.
fn text_fault(tool: ToolName, name: &str, text: &str) -> Option<String> {
    let (length, shown) = (text.len(), || shown(text, SHOWN_MAX));
    match name {
        "path" if tool == ToolName::FileProvide && text == WHOLE_PORTAL => None,
        "path" => PortalPath::new(text).err().map(|bad| bad.to_string()),
        "key" => SshKey::parse(text).err().map(|fault| bad_key(&fault)),
        "allow" => KeyUse::parse(text)
            .err()
            .map(|fault| format!("`allow`: {fault}")),
        "hosts" if !is_fingerprint(text) => Some(format!(
            "`hosts`: `{}` is not a fingerprint: `SHA256:` and 43 characters, the second word that `ssh-keygen -lf FILE.pub` prints",
            shown()
        )),
        "mode" if !is_mode(text) => Some(format!(
            "`mode` must be three octal digits such as 644 (no setuid, setgid or sticky bit), not `{}`",
            shown()
        )),
        "modified" => time_of_change(text).err().map(|bad| bad.to_string()),
        "sha256" if length != 64 || !is_hexadecimal(text) => {
            Some("`sha256` must be 64 hexadecimal digits".to_owned())
        }
        "key_id" if key_digits(text).is_none() && !is_address(text) => Some(format!(
            "`key_id` must be a fingerprint (40 or 64 hexadecimal digits), a long key id (16) or \
             `<name@example.org>`, not `{}`",
            shown()
        )),
        "title" if text.trim().is_empty() => Some("`title` is empty".to_owned()),
        "title" if length > TITLE_MAX => Some(format!(
            "`title` has {length} bytes; at most {TITLE_MAX} are shown"
        )),
        "body" if length > BODY_MAX => Some(format!(
            "`body` has {length} bytes; at most {BODY_MAX} are shown"
        )),
        "content" if length > CLIPBOARD_MAX => Some(format!(
            "`content` has {length} bytes, but the clipboard takes at most {CLIPBOARD_MAX}"
        )),
        _ => None,
    }
}

fn is_mode(text: &str) -> bool {
    let digits = text.strip_prefix('0').filter(|rest| rest.len() == 3);
    let digits = digits.unwrap_or(text);
    digits.len() == 3 && digits.bytes().all(|byte| matches!(byte, b'0'..=b'7'))
}

fn is_hexadecimal(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// Returns the digits (no `0x`) of a fingerprint (40 or 64) or long key id (16), and whether `!` (this subkey) follows.
fn key_digits(text: &str) -> Option<(&str, bool)> {
    let digits = text.strip_prefix("0x").unwrap_or(text);
    let exact = digits.ends_with('!');
    let digits = digits.strip_suffix('!').unwrap_or(digits);
    let is_key = matches!(digits.len(), 16 | 40 | 64) && is_hexadecimal(digits);
    is_key.then_some((digits, exact))
}

/// Returns the argument in whose place another one stands; of the two, a call has one.
#[must_use]
pub fn alternative(tool: ToolName, argument: &str) -> Option<&'static str> {
    match (tool, argument) {
        (ToolName::ClipboardSet, "content") => Some("image"),
        (ToolName::ClipboardSet, "image") => Some("content"),
        _ => None,
    }
}

/// Returns whether a `key_id` names the fixed key: the digits are the same, however they are written.
#[must_use]
pub fn repeats_key(fixed: &str, sent: &str) -> bool {
    match (key_digits(fixed), key_digits(sent)) {
        (Some((fixed, exactly)), Some((sent, exact))) => {
            fixed.eq_ignore_ascii_case(sent) && (exactly || !exact)
        }
        _ => fixed == sent,
    }
}

/// Returns whether text has the form `<name@host>`.
fn is_address(text: &str) -> bool {
    let is_part = |text: &str| {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._+-".contains(&byte);
        !text.is_empty() && text.len() <= 128 && text.bytes().all(allowed)
    };
    text.strip_prefix('<')
        .and_then(|rest| rest.strip_suffix('>'))
        .and_then(|address| address.split_once('@'))
        .is_some_and(|(name, host)| is_part(name) && is_part(host))
}

/// Refuses a valid value that cannot be fixed.
fn fixed_fault(tool: ToolName, name: &str, value: &Value) -> Option<String> {
    if OF_ONE_CALL.contains(&name) || (tool, name) == (ToolName::SshSign, "data") {
        return Some(format!("`{name}` belongs to one call and cannot be fixed"));
    }
    let payload = value.as_str()?;
    let decoded = match name {
        "data" => Payload::decode_text(payload),
        "image" => Payload::decode_png(payload),
        _ => return None,
    };
    decoded.err().map(|bad| bad.to_string())
}
