//! JSON Schemas from the types, in the form that every client reads.
//!
//! Plain: one type a property, no `$schema` (some validators know no 2020-12), no `format` that only Rust knows,
//! nothing nullable, no keyword that a model's provider refuses. What a schema says is enforced by [`super::check`].

use std::sync::LazyLock;

use schemars::JsonSchema;
use schemars::generate::SchemaSettings;
use serde_json::{Map, Value};

use super::{
    Accepted, Clipboard, ClipboardGet, ClipboardSet, Clipped, FileAccept, FileProvide, GpgSign,
    Provided, Signed,
};
use crate::name::ToolName;

/// The keyword of JSON Schema for texts that hold bytes.
pub(super) const ENCODING: &str = "contentEncoding";

/// The input and output of a tool.
pub(super) struct Schemas {
    /// Of the arguments.
    pub(super) input: Map<String, Value>,
    /// Arguments that take bytes, as base64.
    pub(super) base64: Vec<String>,
    /// Of the structured result.
    pub(super) output: Map<String, Value>,
}

/// The schemas of a tool, made once.
pub(super) fn of(tool: ToolName) -> &'static Schemas {
    static GPG_SIGN: LazyLock<Schemas> = LazyLock::new(make::<GpgSign, Signed>);
    static CLIPBOARD_GET: LazyLock<Schemas> = LazyLock::new(make::<ClipboardGet, Clipboard>);
    static CLIPBOARD_SET: LazyLock<Schemas> = LazyLock::new(make::<ClipboardSet, Clipped>);
    static FILE_ACCEPT: LazyLock<Schemas> = LazyLock::new(make::<FileAccept, Accepted>);
    static FILE_PROVIDE: LazyLock<Schemas> = LazyLock::new(make::<FileProvide, Provided>);
    match tool {
        ToolName::GpgSign => &GPG_SIGN,
        ToolName::ClipboardGet => &CLIPBOARD_GET,
        ToolName::ClipboardSet => &CLIPBOARD_SET,
        ToolName::FileAccept => &FILE_ACCEPT,
        ToolName::FileProvide => &FILE_PROVIDE,
    }
}

/// The properties of an object's schema.
pub(super) fn properties(schema: &Map<String, Value>) -> Option<&Map<String, Value>> {
    schema.get("properties").and_then(Value::as_object)
}

/// Returns whether an object's schema requires a property.
pub(super) fn requires(schema: &Map<String, Value>, property: &str) -> bool {
    schema
        .get("required")
        .and_then(Value::as_array)
        .is_some_and(|required| required.iter().any(|name| name == property))
}

/// Takes properties out of an object's schema.
pub(super) fn hide(schema: &mut Map<String, Value>, hidden: impl Fn(&str) -> bool) {
    if let Some(properties) = schema.get_mut("properties").and_then(Value::as_object_mut) {
        properties.retain(|name, _| !hidden(name));
    }
    if let Some(required) = schema.get_mut("required").and_then(Value::as_array_mut) {
        required.retain(|name| !name.as_str().is_some_and(&hidden));
        if required.is_empty() {
            schema.shift_remove("required");
        }
    }
}

fn make<Input: JsonSchema, Output: JsonSchema>() -> Schemas {
    let base = SchemaSettings::draft2020_12().with(|settings| {
        settings.meta_schema = None;
        settings.inline_subschemas = true;
    });
    let input = base.clone().for_deserialize().into_generator();
    let output = base.for_serialize().into_generator();
    let mut input = portable(input.into_root_schema_for::<Input>());
    let mut output = portable(output.into_root_schema_for::<Output>());
    take_base64(&mut output);
    Schemas {
        base64: take_base64(&mut input),
        input,
        output,
    }
}

/// The object behind a schema, plain: see the head of this file.
fn portable(schema: schemars::Schema) -> Map<String, Value> {
    let Value::Object(mut root) = schema.to_value() else {
        // The schema of a struct is an object; `every_schema_is_plain` would see it if it were not.
        return Map::new();
    };
    root.shift_remove("title");
    root.shift_remove("description");
    let properties = root
        .entry("properties")
        .or_insert_with(|| Value::Object(Map::new()));
    for property in properties
        .as_object_mut()
        .into_iter()
        .flat_map(Map::values_mut)
    {
        if let Some(property) = property.as_object_mut() {
            plain(property);
        }
    }
    root
}

/// Takes the mark of what is in base64 off, and gives their names: Gemini refuses every request with such a schema.
fn take_base64(schema: &mut Map<String, Value>) -> Vec<String> {
    let properties = schema.get_mut("properties").and_then(Value::as_object_mut);
    let marked = properties.into_iter().flatten().filter_map(|(name, it)| {
        it.as_object_mut()?.shift_remove(ENCODING)?;
        Some(name.clone())
    });
    marked.collect()
}

/// One type instead of "this or null": what is not sent is not there.
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
