//! Describes the tools to clients: titles, descriptions, hints, and JSON Schemas generated from the types.
//!
//! The schemas are plain, so that every client can read them: one type per property, no `$schema` (some validators do
//! not know 2020-12), no Rust-specific `format`, nothing nullable, no keyword that a model provider refuses.
//! [`super::check`] enforces them. A test checks the limits in the texts against the constants.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::sync::LazyLock;

use schemars::JsonSchema;
use schemars::generate::SchemaSettings;
use serde_json::{Map, Value};

use super::{
    Accepted, Clipboard, ClipboardGet, ClipboardSet, Clipped, FileAccept, FileProvide, GpgSign,
    Notified, Notify, Provided, Signed, SshSign, SshSigned,
};
use crate::name::ToolName;

/// The entry of a tool in `tools/list`.
#[derive(Debug, Clone)]
pub struct Description {
    /// A short, human-readable title, if it has one.
    pub title: Option<&'static str>,
    /// Its effect and its limits.
    pub description: Cow<'static, str>,
    /// True if it changes nothing.
    pub read_only: bool,
    /// True if it may replace something.
    pub destructive: bool,
    /// True if a second identical call has no further effect.
    pub idempotent: bool,
    /// JSON Schema of the arguments.
    pub input: Map<String, Value>,
    /// Arguments that take bytes in base64.
    pub base64: &'static [String],
    /// JSON Schema of the structured result.
    pub output: Map<String, Value>,
}

/// Describes a tool.
#[must_use]
pub fn describe(tool: ToolName) -> Description {
    let schemas = of(tool);
    let described = |title, description: &'static str| Description {
        title: Some(title),
        description: Cow::Borrowed(description),
        read_only: false,
        destructive: false,
        idempotent: false,
        input: schemas.input.clone(),
        base64: &schemas.base64,
        output: schemas.output.clone(),
    };
    match tool {
        // Not read-only: a client that runs read-only tools without asking must not sign without asking.
        ToolName::GpgSign => described(
            "Sign with GnuPG",
            "Makes a detached OpenPGP signature of the given bytes with a key that stays on the machine. \
            The text of the result, and its `signature`, is the ASCII-armored signature. \
            In one call up to 8388608 bytes; beyond that, up to 4294967296 bytes in pieces of 1048576 bytes with \
            `offset`, and `final` on the last. With `public_key`, nothing is signed, and the text is the public key.",
        ),
        // Not read-only, as `gpg_sign`.
        ToolName::SshSign => described(
            "Sign for SSH",
            "Signs the bytes that an SSH client asks its agent to sign, with a key that stays on the machine: those of Git's \
            commits and tags and, as far as the service allows, of files and logins. Everything else is refused. \
            The text of the result, and its `signature`, is the signature in base64.",
        ),
        ToolName::ClipboardGet => Description {
            read_only: true,
            idempotent: true,
            ..described(
                "Read the clipboard",
                "Returns the text on the machine's clipboard, at most 65536 bytes; if the clipboard is empty, an empty string. \
                If it holds a PNG and no plain text, returns the image, at most 3145728 bytes.",
            )
        },
        ToolName::ClipboardSet => Description {
            destructive: true,
            idempotent: true,
            ..described(
                "Set the clipboard",
                "Replaces the content of the machine's clipboard with a string of at most 65536 bytes, or with an `image`.",
            )
        },
        ToolName::FileAccept => described(
            "Hand a file in",
            "Writes a new file below the machine's portal. Never overwrites; the file appears completely or not at all. \
            The text of the result is the file's path, relative to the portal. \
            In one call up to 8388608 bytes; beyond that in pieces of 1048576 bytes with `offset`, and `final` on the last.",
        ),
        ToolName::FileProvide => Description {
            read_only: true,
            idempotent: true,
            ..described(
                "Hand a file out",
                "Reads a file below the machine's portal. The text of the result, and its `data`, is the content in base64. \
                In one call up to 3145728 bytes; larger files in pieces with `offset` and `length`, 1048576 bytes each.",
            )
        },
        ToolName::Notify => described(
            "Show a message",
            "Shows a message to the machine's user, with the caller's name before it; without a graphical session, the \
            message is noted in a file. Markup, links and line breaks in the title have no effect.",
        ),
    }
}

/// Describes a tool without the hidden arguments, which the caller does not choose.
#[must_use]
pub fn describe_without(tool: ToolName, hidden: impl Fn(&str) -> bool) -> Description {
    Description {
        input: input_without(tool, hidden),
        ..describe(tool)
    }
}

/// Returns the schema of a tool's arguments without the hidden ones, which the caller does not choose.
#[must_use]
pub(super) fn input_without(tool: ToolName, hidden: impl Fn(&str) -> bool) -> Map<String, Value> {
    let mut input = of(tool).input.clone();
    hide(&mut input, hidden);
    input
}

/// Keywords that combine schemas, of JSON Schema 2020-12 and draft 7.
const COMBINING: [&str; 10] = [
    "allOf",
    "anyOf",
    "oneOf",
    "not",
    "if",
    "then",
    "else",
    "dependentRequired",
    "dependentSchemas",
    "dependencies",
];

/// Removes arguments from a schema, and the combined schemas that name them: a caller could not satisfy these, and the
/// tool checks the call in any case.
pub fn hide(input: &mut Map<String, Value>, hidden: impl Fn(&str) -> bool) {
    let mut removed = BTreeSet::new();
    if let Some(properties) = input.get_mut("properties").and_then(Value::as_object_mut) {
        properties.retain(|name, _| {
            let is_hidden = hidden(name);
            if is_hidden {
                removed.insert(name.clone());
            }
            !is_hidden
        });
    }
    input.retain(|key, value| {
        !COMBINING.contains(&key.as_str()) || !removed.iter().any(|name| names(value, name))
    });
    if let Some(required) = input.get_mut("required").and_then(Value::as_array_mut) {
        required.retain(|name| !name.as_str().is_some_and(&hidden));
        if required.is_empty() {
            input.shift_remove("required");
        }
    }
}

/// Returns whether a name is a key or a text in a value.
fn names(value: &Value, name: &str) -> bool {
    match value {
        Value::String(text) => text == name,
        Value::Array(values) => values.iter().any(|value| names(value, name)),
        Value::Object(map) => map
            .iter()
            .any(|(key, value)| key == name || names(value, name)),
        _ => false,
    }
}

/// A tool's schemas: one for its arguments and one for its structured result.
pub(super) struct Schemas {
    pub(super) input: Map<String, Value>,
    /// Arguments that take bytes in base64.
    base64: Vec<String>,
    output: Map<String, Value>,
}

/// Returns a tool's schemas, which are built only once.
pub(super) fn of(tool: ToolName) -> &'static Schemas {
    static GPG_SIGN: LazyLock<Schemas> = LazyLock::new(make::<GpgSign, Signed>);
    static SSH_SIGN: LazyLock<Schemas> = LazyLock::new(make::<SshSign, SshSigned>);
    static CLIPBOARD_GET: LazyLock<Schemas> = LazyLock::new(make::<ClipboardGet, Clipboard>);
    static CLIPBOARD_SET: LazyLock<Schemas> = LazyLock::new(make::<ClipboardSet, Clipped>);
    static FILE_ACCEPT: LazyLock<Schemas> = LazyLock::new(make::<FileAccept, Accepted>);
    static FILE_PROVIDE: LazyLock<Schemas> = LazyLock::new(make::<FileProvide, Provided>);
    static NOTIFY: LazyLock<Schemas> = LazyLock::new(make::<Notify, Notified>);
    match tool {
        ToolName::GpgSign => &GPG_SIGN,
        ToolName::SshSign => &SSH_SIGN,
        ToolName::ClipboardGet => &CLIPBOARD_GET,
        ToolName::ClipboardSet => &CLIPBOARD_SET,
        ToolName::FileAccept => &FILE_ACCEPT,
        ToolName::FileProvide => &FILE_PROVIDE,
        ToolName::Notify => &NOTIFY,
    }
}

fn make<Input: JsonSchema, Output: JsonSchema>() -> Schemas {
    let base = SchemaSettings::draft2020_12().with(|settings| {
        settings.meta_schema = None;
        settings.inline_subschemas = true;
    });
    let input = base.clone().for_deserialize().into_generator();
    let output = base.for_serialize().into_generator();
    let (input, base64) = portable(input.into_root_schema_for::<Input>());
    let (output, _) = portable(output.into_root_schema_for::<Output>());
    Schemas {
        input,
        base64,
        output,
    }
}

/// Returns a schema's object in plain form, and the names of its base64 properties.
fn portable(schema: schemars::Schema) -> (Map<String, Value>, Vec<String>) {
    let mut base64 = Vec::new();
    let Value::Object(mut root) = schema.to_value() else {
        // The schema of a struct is an object; otherwise the test `every_schema_is_plain` fails.
        return (Map::new(), base64);
    };
    root.shift_remove("title");
    root.shift_remove("description");
    let properties = root
        .entry("properties")
        .or_insert_with(|| Map::new().into());
    for (name, property) in properties.as_object_mut().into_iter().flatten() {
        let Some(property) = property.as_object_mut() else {
            continue;
        };
        plain(property);
        // Gemini refuses every request that contains this keyword.
        if property.shift_remove("contentEncoding").is_some() {
            base64.push(name.clone());
        }
    }
    (root, base64)
}

/// Replaces "this type or null" with the type: an optional argument is omitted, never null.
fn plain(property: &mut Map<String, Value>) {
    property.shift_remove("format");
    if property.get("default").is_some_and(Value::is_null) {
        property.shift_remove("default");
    }
    let Some(Value::Array(types)) = property.get_mut("type") else {
        return;
    };
    types.retain(|name| name != "null");
    if let [only] = types.as_slice() {
        let only = only.clone();
        property.insert("type".to_owned(), only);
    }
}
