//! The catalogue as a whole: schemas plain and enforced, faults in words.

use serde_json::json;

use super::*;

fn map(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(map) => map,
        other => panic!("{other}"),
    }
}

/// The faults of a call's arguments.
fn faults(tool: ToolName, arguments: Value) -> Vec<String> {
    let arguments = map(arguments);
    let parsed = match tool {
        ToolName::GpgSign => parse::<GpgSign>(tool, &arguments).map(drop),
        ToolName::ClipboardGet => parse::<ClipboardGet>(tool, &arguments).map(drop),
        ToolName::ClipboardSet => parse::<ClipboardSet>(tool, &arguments).map(drop),
        ToolName::FileAccept => parse::<FileAccept>(tool, &arguments).map(drop),
        ToolName::FileProvide => parse::<FileProvide>(tool, &arguments).map(drop),
    };
    parsed.err().map(|bad| bad.0).unwrap_or_default()
}

/// Every key and value of a schema, at any depth.
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
                let odd = [
                    "$schema", "$defs", "$ref", "format", "default", "nullable", "anyOf", "oneOf",
                ];
                assert!(!odd.contains(&key), "{tool}: {key}: {value}");
                assert!(!value.is_null(), "{tool}: {key}");
            });
        }
    }
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
                "type": "string",
                "contentEncoding": "base64"
            },
            "mode": {
                "description": "Permissions in octal, such as 0640; default 0644; no setuid, setgid or sticky bit",
                "type": "string",
                "pattern": "^0?[0-7]{3}$"
            },
            "offset": {
                "description": "In pieces: where this piece begins, in bytes; 0 on the first, then the sum of what was sent",
                "type": "integer",
                "minimum": 0,
                "maximum": 9_007_199_254_740_991_u64
            },
            "final": {
                "description": "In pieces: true on the last one, which publishes the file",
                "type": "boolean"
            },
            "sha256": {
                "description": "SHA-256 of the whole content, in hexadecimal; the file appears only when it matches",
                "type": "string",
                "pattern": "^[0-9A-Fa-f]{64}$"
            }
        },
        "additionalProperties": false,
        "required": ["path", "data"]
    });
    assert_eq!(Value::Object(describe(ToolName::FileAccept).input), wanted);
    // The order is that of the declaration, for people who read a listing.
    let input = describe(ToolName::FileAccept).input;
    let names: Vec<_> = properties_of(&input).keys().collect();
    assert_eq!(names, ["path", "data", "mode", "offset", "final", "sha256"]);
}

#[test]
fn a_tool_without_arguments_has_an_empty_closed_object() {
    let wanted = json!({"type": "object", "properties": {}, "additionalProperties": false});
    assert_eq!(
        Value::Object(describe(ToolName::ClipboardGet).input),
        wanted
    );
}

#[test]
fn hidden_arguments_leave_properties_and_required() {
    let all = describe(ToolName::FileAccept).input;
    assert_eq!(input_without(ToolName::FileAccept, |_| false), all);
    let less = input_without(ToolName::FileAccept, |name| {
        name == "path" || name == "mode"
    });
    assert_eq!(less["required"], json!(["data"]));
    let names: Vec<_> = properties_of(&less).keys().collect();
    assert_eq!(names, ["data", "offset", "final", "sha256"]);
    let none = input_without(ToolName::ClipboardSet, |_| true);
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
    for tool in [
        ToolName::GpgSign,
        ToolName::FileAccept,
        ToolName::FileProvide,
    ] {
        said(tool, &ONE_CALL_MAX);
        said(tool, &PIECE);
    }
    said(ToolName::GpgSign, &SIGN_MAX);
    said(ToolName::ClipboardGet, &CLIPBOARD_MAX);
    said(ToolName::ClipboardSet, &CLIPBOARD_MAX);
    let set = describe(ToolName::ClipboardSet).input;
    assert!(
        set["properties"]["content"]["description"]
            .to_string()
            .contains("65536")
    );
    let provide = describe(ToolName::FileProvide).input;
    assert!(
        provide["properties"]["length"]["description"]
            .to_string()
            .contains("1048576")
    );
}

#[test]
fn only_reading_is_read_only() {
    let read_only: Vec<_> = ToolName::ALL
        .into_iter()
        .filter(|tool| describe(*tool).read_only)
        .collect();
    assert_eq!(read_only, [ToolName::ClipboardGet, ToolName::FileProvide]);
}

#[test]
fn good_arguments_are_read() {
    let accept: FileAccept = parse(
        ToolName::FileAccept,
        &map(json!({"path": "a/b", "data": "aGk=", "mode": "0600", "offset": 0, "final": true})),
    )
    .unwrap();
    assert_eq!(accept.path, "a/b");
    assert_eq!(accept.data.decode().unwrap(), b"hi");
    assert_eq!(
        (accept.mode.as_deref(), accept.offset, accept.r#final),
        (Some("0600"), Some(0), Some(true))
    );
    assert_eq!(faults(ToolName::ClipboardGet, json!({})), [""; 0]);
}

#[test]
fn every_fault_of_a_call_is_said_in_words() {
    for (tool, arguments, said) in [
        (ToolName::GpgSign, json!({}), "missing argument `data`"),
        (
            ToolName::GpgSign,
            json!({"data": "", "kye_id": "x"}),
            "unknown argument `kye_id`; closest: `key_id`",
        ),
        (
            ToolName::FileProvide,
            json!({"path": "a", "zzz\u{1b}": 1}),
            "unknown argument `zzz\\u{1b}`; `file_provide` takes `path`, `offset`, `length`",
        ),
        (
            ToolName::ClipboardGet,
            json!({"x": 1}),
            "unknown argument `x`; `clipboard_get` takes no arguments",
        ),
        (
            ToolName::ClipboardSet,
            json!({"content": 5}),
            "`content` must be a text, not a number",
        ),
        (
            ToolName::ClipboardSet,
            json!({"content": null}),
            "`content` must be a text, not null; leave it out instead",
        ),
        (
            ToolName::FileProvide,
            json!({"path": "a", "offset": "1"}),
            "`offset` must be a whole number, not a text",
        ),
        (
            ToolName::FileProvide,
            json!({"path": "a", "offset": null}),
            "`offset` must be a whole number, not null; leave it out instead",
        ),
        (
            ToolName::FileProvide,
            json!({"path": "a", "offset": 1.5}),
            "`offset` must be a whole number, not a number with a fraction or an exponent",
        ),
        (
            ToolName::FileProvide,
            json!({"path": "a", "offset": -1}),
            "`offset` must be between 0 and 9007199254740991, not -1",
        ),
        (
            ToolName::FileProvide,
            json!({"path": "a", "offset": u64::MAX}),
            "`offset` must be between 0 and 9007199254740991, not 18446744073709551615",
        ),
        (
            ToolName::FileProvide,
            json!({"path": "a", "length": 0}),
            "`length` must be between 1 and 8388608, not 0",
        ),
        (
            ToolName::FileProvide,
            json!({"path": "a", "length": 8_388_609}),
            "`length` must be between 1 and 8388608, not 8388609",
        ),
        (
            ToolName::FileAccept,
            json!({"path": "a", "data": "", "final": "yes"}),
            "`final` must be true or false, not a text",
        ),
        (
            ToolName::FileAccept,
            json!({"path": "a", "data": "", "sha256": "abc"}),
            "`sha256` must be 64 hexadecimal digits",
        ),
        (
            ToolName::FileAccept,
            json!({"path": "../a", "data": ""}),
            "`path` is `../a`, and `..` is not allowed in it",
        ),
    ] {
        assert_eq!(faults(tool, arguments), [said]);
    }
    let many = faults(
        ToolName::FileAccept,
        json!({"mode": 7, "path": "/x", "nope!": true}),
    );
    assert_eq!(
        many,
        [
            "missing argument `data`",
            "`mode` must be a text, not a number",
            "`path` must be relative to the portal, not `/x`",
            "unknown argument `nope!`; `file_accept` takes `path`, `data`, `mode`, `offset`, `final`, `sha256`",
        ]
    );
}

#[test]
fn the_clipboard_limit_says_both_sizes() {
    assert_eq!(
        faults(
            ToolName::ClipboardSet,
            json!({"content": "x".repeat(CLIPBOARD_MAX)})
        ),
        [""; 0]
    );
    let long = "é".repeat(CLIPBOARD_MAX / 2) + "x";
    assert_eq!(
        faults(ToolName::ClipboardSet, json!({"content": long})),
        ["`content` has 65537 bytes, and the clipboard takes at most 65536"]
    );
}

#[test]
fn modes_are_three_octal_digits_and_nothing_else() {
    let fault = |mode: &str| {
        faults(
            ToolName::FileAccept,
            json!({"path": "a", "data": "", "mode": mode}),
        )
    };
    for good in ["644", "0644", "000", "0777", "777"] {
        assert_eq!(fault(good), [""; 0], "{good}");
    }
    // The first four gave setuid or were written before they were refused by the forerunner.
    for bad in [
        "-3023", "-1", "4755", "rwx", "04755", "1777", "+644", "0o644", "64", "0644\n", " 644",
        "8", "", "06 44", "６44",
    ] {
        assert_eq!(fault(bad).len(), 1, "{bad:?}");
    }
    assert_eq!(
        fault("-3023"),
        [
            "`mode` must be three octal digits such as 644 (no setuid, setgid or sticky bit), not `-3023`"
        ]
    );
}

#[test]
fn key_ids_are_fingerprints_long_ids_or_addresses_and_never_options() {
    let fault = |key: &str| faults(ToolName::GpgSign, json!({"data": "", "key_id": key}));
    let fingerprint = "0123456789ABCDEF0123456789abcdef01234567";
    for good in [
        fingerprint,
        &format!("0x{fingerprint}"),
        &format!("{fingerprint}!"),
        "0123456789ABCDEF",
        &"a".repeat(64),
        "<signer@example.org>",
    ] {
        assert_eq!(fault(good), [""; 0], "{good}");
    }
    for bad in [
        "-0123456789ABCDEF",
        "--homedir=/tmp",
        "-u",
        "",
        "01234567",
        "signer",
        "signer@example.org",
        "<a b@c>",
        "<@c>",
        "<a@>",
        "<a@b@c>",
        "<-a@b",
        "=Name",
        "*",
        "&0123456789ABCDEF",
        "0123456789ABCDEF ",
        "0x",
        "!",
        "0123456789ABCDEF\n",
        "<a@b\n>",
    ] {
        assert_eq!(fault(bad).len(), 1, "{bad:?}");
    }
}

#[test]
fn fixed_arguments_are_held_to_the_same_rules() {
    let check = |tool, with: Value| check_fixed(tool, &map(with));
    assert_eq!(
        check(ToolName::GpgSign, json!({"key_id": "0123456789ABCDEF"})),
        Ok(())
    );
    assert_eq!(
        check(ToolName::FileProvide, json!({"path": "report.pdf"})),
        Ok(())
    );
    assert_eq!(check(ToolName::FileAccept, json!({"mode": "0600"})), Ok(()));
    assert_eq!(check(ToolName::ClipboardGet, json!({})), Ok(()));
    let fault = |argument: &str, message: &str| FixedFault {
        argument: argument.to_owned(),
        message: message.to_owned(),
    };
    assert_eq!(
        check(
            ToolName::FileAccept,
            json!({"mod": "0600", "mode": 600, "path": "/etc/x", "data": "!!!", "offset": 0, "final": true})
        ),
        Err(vec![
            fault("mod", "unknown argument `mod`; closest: `mode`"),
            fault("mode", "`mode` must be a text, not a number"),
            fault(
                "path",
                "`path` must be relative to the portal, not `/etc/x`"
            ),
            fault(
                "data",
                "`data` is not base64 (with padding, no spaces, no line breaks): character 1 is not allowed there"
            ),
            fault(
                "offset",
                "`offset` belongs to one transfer and cannot be fixed"
            ),
            fault(
                "final",
                "`final` belongs to one transfer and cannot be fixed"
            ),
        ])
    );
    let signer = check(ToolName::GpgSign, json!({"key_id": "release key"})).unwrap_err();
    assert_eq!(signer.len(), 1);
    assert!(
        signer[0].message.ends_with("not `release key`"),
        "{}",
        signer[0].message
    );
}

#[test]
fn arguments_never_print_what_they_hold() {
    let set: ClipboardSet =
        parse(ToolName::ClipboardSet, &map(json!({"content": "secret"}))).unwrap();
    let sign: GpgSign = parse(ToolName::GpgSign, &map(json!({"data": "c2VjcmV0"}))).unwrap();
    let shown = format!("{set:?} {sign:?}");
    assert!(
        !shown.contains("secret") && !shown.contains("c2VjcmV0"),
        "{shown}"
    );
}
