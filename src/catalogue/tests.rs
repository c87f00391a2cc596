//! Tests the tool descriptions: plain schemas, and texts that match the limits.

mod arguments;
mod payload;

use serde_json::{Map, Value, json};

use super::*;
use crate::name::ToolName;

fn map(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(map) => map,
        other => panic!("{other}"),
    }
}

/// Visits every key and value of a schema, at any depth.
fn walk(value: &Value, visit: &mut impl FnMut(&str, &Value)) {
    match value {
        Value::Object(object) => {
            for (key, inner) in object {
                visit(key, inner);
                walk(inner, visit);
            }
        }
        Value::Array(list) => list.iter().for_each(|inner| walk(inner, visit)),
        _ => {}
    }
}

#[test]
fn every_schema_is_plain() {
    for tool in ToolName::ALL {
        let described = describe(tool);
        for schema in [described.input, described.output] {
            assert_eq!(schema["type"], "object", "{tool}");
            assert_eq!(schema["additionalProperties"], false, "{tool}");
            for (name, property) in properties_of(&schema) {
                assert!(property["type"].is_string(), "{tool} {name}: {property}");
                assert!(
                    property["description"].as_str().unwrap().len() > 10,
                    "{tool} {name}"
                );
            }
            walk(&Value::Object(schema), &mut |key, value| {
                assert!(!value.is_null(), "{tool}: {key}");
            });
        }
    }
}

/// A model provider, and the keywords that it accepts in a tool's schema.
struct Provider {
    name: &'static str,
    keywords: &'static [&'static str],
}

const PROVIDERS: [Provider; 3] = [
    // `Schema` of the Gemini API (https://ai.google.dev/api/caching#Schema; google-genai 3.6, `types.Schema`). Any
    // other keyword makes the whole request fail with 400 "Unknown name".
    Provider {
        name: "Gemini",
        keywords: &[
            "type",
            "format",
            "title",
            "description",
            "nullable",
            "enum",
            "items",
            "minItems",
            "maxItems",
            "properties",
            "required",
            "additionalProperties",
            "minProperties",
            "maxProperties",
            "minLength",
            "maxLength",
            "pattern",
            "minimum",
            "maximum",
            "anyOf",
            "default",
            "example",
            "propertyOrdering",
        ],
    },
    // https://platform.openai.com/docs/guides/structured-outputs#supported-schemas, for `strict: true`; without it,
    // every keyword is accepted. Strict clients make every property required and use `null` for an omitted one
    // (openai-agents 0.24, `strict_schema.py`).
    Provider {
        name: "OpenAI",
        keywords: &[
            "type",
            "title",
            "description",
            "enum",
            "const",
            "anyOf",
            "items",
            "minItems",
            "maxItems",
            "properties",
            "required",
            "additionalProperties",
            "pattern",
            "format",
            "multipleOf",
            "minimum",
            "maximum",
            "exclusiveMinimum",
            "exclusiveMaximum",
        ],
    },
    // https://docs.claude.com/en/docs/agents-and-tools/tool-use/implement-tool-use: JSON Schema 2020-12, but no
    // `oneOf`, `allOf` or `anyOf` at the top level. The schemas need only the keywords listed here.
    Provider {
        name: "Anthropic",
        keywords: &[
            "type",
            "title",
            "description",
            "enum",
            "const",
            "items",
            "properties",
            "required",
            "additionalProperties",
            "pattern",
            "minimum",
            "maximum",
        ],
    },
];

/// Returns the keywords of a schema and of its properties' schemas; property names are not keywords.
fn keywords(schema: &Map<String, Value>) -> Vec<String> {
    let mut all: Vec<String> = schema.keys().cloned().collect();
    for property in properties_of(schema).values() {
        all.extend(property.as_object().unwrap().keys().cloned());
    }
    all
}

#[test]
fn schemas_hold_only_what_every_provider_of_models_takes() {
    for tool in ToolName::ALL {
        let input = describe(tool).input;
        for Provider {
            name,
            keywords: taken,
        } in PROVIDERS
        {
            for keyword in keywords(&input) {
                assert!(
                    taken.contains(&keyword.as_str()),
                    "{name}, {tool}: {keyword}"
                );
            }
        }
        for (name, property) in properties_of(&input) {
            // OpenAI and Anthropic accept these characters in property names, up to 64 of them.
            let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
            assert!(
                name.len() <= 64 && name.bytes().all(plain),
                "{tool}: {name}"
            );
            // A nested property would need the same checks.
            assert!(property.get("properties").is_none(), "{tool}: {name}");
            // Strict modes do not support look-around in patterns.
            let pattern = property["pattern"].as_str().unwrap_or_default();
            assert!(!pattern.contains("(?"), "{tool}: {name}: {pattern}");
        }
    }
}

#[test]
fn arguments_of_bytes_are_marked_outside_of_the_schema() {
    let marked = |tool| describe(tool).base64.to_vec();
    assert_eq!(marked(ToolName::GpgSign), ["data"]);
    assert_eq!(marked(ToolName::SshSign), ["data"]);
    assert_eq!(marked(ToolName::FileAccept), ["data"]);
    assert!(marked(ToolName::FileProvide).is_empty());
    assert_eq!(marked(ToolName::ClipboardSet), ["image"]);
}

fn properties_of(schema: &Map<String, Value>) -> &Map<String, Value> {
    schema["properties"].as_object().unwrap()
}

#[test]
fn the_input_of_file_accept_is_this() {
    let wanted = json!({
        "type": "object",
        "properties": {
            "path": {
                "description": "Where to write: a path below the portal, such as `reports/july.pdf`",
                "type": "string"
            },
            "data": {
                "description": "Content, in base64 (with padding, no line breaks); at most 8388608 bytes in one call",
                "type": "string"
            },
            "mode": {
                "description": "Permissions in octal, such as 0640; default 0644; no setuid, setgid or sticky bit",
                "type": "string",
                "pattern": "^0?[0-7]{3}$"
            },
            "offset": {
                "description": "When sending in pieces: this piece's offset, in bytes; 0 for the first, then the number of bytes sent so far",
                "type": "integer",
                "minimum": 0,
                "maximum": 9_007_199_254_740_991_u64
            },
            "final": {
                "description": "When sending in pieces: true for the last one, which publishes the file",
                "type": "boolean"
            },
            "size": {
                "description": "Size of the whole content, in bytes; with it, a file that does not fit is refused at its first piece, which may be empty",
                "type": "integer",
                "minimum": 0,
                "maximum": 9_007_199_254_740_991_u64
            },
            "sha256": {
                "description": "SHA-256 of the whole content, in hexadecimal; the file appears only when it matches",
                "type": "string",
                "pattern": "^[0-9A-Fa-f]{64}$"
            },
            "modified": {
                "description": "Time of the file's last change: RFC 3339, such as 2026-07-01T12:00:00Z; default: now",
                "type": "string"
            },
            "resume": {
                "description": "When sending in pieces, with `size` in the empty first piece: true to keep what was received if the connection breaks, and to go on with what an earlier connection left; the answer's `size` is the offset of the next piece, its `sha256` that of what was received. A `final` piece before the end discards it",
                "type": "boolean"
            },
            "folder": {
                "description": "True to create a folder; `data` must then be empty",
                "type": "boolean"
            }
        },
        "additionalProperties": false,
        "required": ["path", "data"]
    });
    assert_eq!(Value::Object(describe(ToolName::FileAccept).input), wanted);
    // In declaration order, for people who read a listing.
    let input = describe(ToolName::FileAccept).input;
    let names: Vec<_> = properties_of(&input).keys().collect();
    assert_eq!(
        names,
        [
            "path", "data", "mode", "offset", "final", "size", "sha256", "modified", "resume",
            "folder"
        ]
    );
}

#[test]
fn a_tool_without_arguments_has_an_empty_closed_object() {
    let wanted = json!({"type": "object", "properties": {}, "additionalProperties": false});
    // A consumer's view: arguments that it may not choose are hidden.
    let seen = schema::input_without(ToolName::ClipboardGet, |_| true);
    assert_eq!(Value::Object(seen), wanted);
}

#[test]
fn hidden_arguments_leave_properties_and_required() {
    let all = describe(ToolName::FileAccept).input;
    assert_eq!(schema::input_without(ToolName::FileAccept, |_| false), all);
    let less = schema::input_without(ToolName::FileAccept, |name| {
        name == "path" || name == "mode"
    });
    assert_eq!(less["required"], json!(["data"]));
    let names: Vec<_> = properties_of(&less).keys().collect();
    assert_eq!(
        names,
        [
            "data", "offset", "final", "size", "sha256", "modified", "resume", "folder"
        ]
    );
    let none = schema::input_without(ToolName::ClipboardSet, |_| true);
    assert_eq!(
        Value::Object(none),
        json!({"type": "object", "properties": {}, "additionalProperties": false})
    );
}

#[test]
fn the_limits_in_the_words_are_the_limits() {
    let said = |tool, limit: &dyn ToString| {
        let text = describe(tool).description;
        assert!(text.contains(&limit.to_string()), "{tool}: {text}");
    };
    for (tool, limit) in [
        (ToolName::GpgSign, ONE_CALL_MAX),
        (ToolName::FileAccept, ONE_CALL_MAX),
        (ToolName::FileProvide, TWO_COPIES_MAX),
    ] {
        said(tool, &limit);
        said(tool, &PIECE);
    }
    said(ToolName::GpgSign, &SIGN_MAX);
    said(ToolName::ClipboardGet, &CLIPBOARD_MAX);
    said(ToolName::ClipboardGet, &TWO_COPIES_MAX);
    said(ToolName::ClipboardSet, &CLIPBOARD_MAX);
    let set = describe(ToolName::ClipboardSet).input;
    assert!(
        set["properties"]["content"]["description"]
            .to_string()
            .contains("65536")
    );
    let image = set["properties"]["image"]["description"].to_string();
    assert!(image.contains(&ONE_CALL_MAX.to_string()), "{image}");
    let provide = describe(ToolName::FileProvide).input;
    let length = provide["properties"]["length"]["description"].to_string();
    for limit in [PIECE, TWO_COPIES_MAX] {
        assert!(length.contains(&limit.to_string()), "{length}");
    }
}

#[test]
fn only_reading_is_read_only() {
    let read_only: Vec<_> = ToolName::ALL
        .into_iter()
        .filter(|tool| describe(*tool).read_only)
        .collect();
    assert_eq!(read_only, [ToolName::ClipboardGet, ToolName::FileProvide]);
}
