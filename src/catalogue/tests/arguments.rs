//! Tests call arguments: each is accepted, or refused with a message.

use serde_json::{Value, json};

use super::map;
use crate::catalogue::*;
use crate::name::ToolName;

/// Returns the faults in a call's arguments.
fn faults(tool: ToolName, arguments: Value) -> Vec<String> {
    let arguments = map(arguments);
    let parsed = match tool {
        ToolName::GpgSign => parse::<GpgSign>(tool, &arguments).map(drop),
        ToolName::SshSign => parse::<SshSign>(tool, &arguments).map(drop),
        ToolName::ClipboardGet => parse::<ClipboardGet>(tool, &arguments).map(drop),
        ToolName::ClipboardSet => parse::<ClipboardSet>(tool, &arguments).map(drop),
        ToolName::FileAccept => parse::<FileAccept>(tool, &arguments).map(drop),
        ToolName::FileProvide => parse::<FileProvide>(tool, &arguments).map(drop),
        ToolName::Notify => parse::<Notify>(tool, &arguments).map(drop),
    };
    parsed.err().map(|bad| bad.0).unwrap_or_default()
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
fn a_number_without_a_fraction_is_whole_however_it_is_written() {
    let read = |arguments: &str| {
        let arguments: Value = serde_json::from_str(arguments).unwrap();
        parse::<FileProvide>(ToolName::FileProvide, &map(arguments))
            .map(|it| (it.offset, it.length))
            .map_err(|bad| bad.to_string())
    };
    for (offset, value) in [
        ("0", 0),
        ("0.0", 0),
        ("-0.0", 0),
        ("1e3", 1000),
        ("1048576.0", 1_048_576),
        ("9007199254740991.0", EXACT_MAX),
    ] {
        let arguments = format!(r#"{{"path":"a","offset":{offset}}}"#);
        assert_eq!(read(&arguments), Ok((Some(value), None)), "{offset}");
    }
    for (length, fault) in [
        (
            "0.5",
            "must be a whole number, not a number with a fraction",
        ),
        ("-1.0", "must be between 1 and 8388608, not -1.0"),
        ("1e300", "must be between 1 and 8388608, not 1e+300"),
    ] {
        let arguments = format!(r#"{{"path":"a","length":{length}}}"#);
        assert_eq!(read(&arguments), Err(format!("`length` {fault}")));
    }
}

#[test]
fn only_file_provide_takes_the_whole_portal() {
    let refused = faults(ToolName::FileAccept, json!({"path": ".", "data": ""}));
    assert_eq!(
        refused,
        ["the path `.` is not allowed: it contains the name `.`"]
    );
    let taken = json!({"path": ".", "entries": true});
    assert!(faults(ToolName::FileProvide, taken).is_empty());
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
            "unknown argument `zzz\\u{1b}`; `file_provide` takes `path`, `offset`, `length`, `resume`, `entries`",
        ),
        (
            ToolName::ClipboardGet,
            json!({"x": 1}),
            "unknown argument `x`; `clipboard_get` takes `passwords`, `offered_only`",
        ),
        (
            ToolName::ClipboardSet,
            json!({"content": 5}),
            "`content` must be a string, not a number",
        ),
        (
            ToolName::ClipboardSet,
            json!({"content": null}),
            "`content` must be a string, not null; leave it out instead",
        ),
        (
            ToolName::FileProvide,
            json!({"path": "a", "offset": "1"}),
            "`offset` must be a whole number, not a string",
        ),
        (
            ToolName::FileProvide,
            json!({"path": "a", "offset": null}),
            "`offset` must be a whole number, not null; leave it out instead",
        ),
        (
            ToolName::FileProvide,
            json!({"path": "a", "offset": 1.5}),
            "`offset` must be a whole number, not a number with a fraction",
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
            "`final` must be true or false, not a string",
        ),
        (
            ToolName::FileAccept,
            json!({"path": "a", "data": "", "sha256": "abc"}),
            "`sha256` must be 64 hexadecimal digits",
        ),
        (
            ToolName::FileAccept,
            json!({"path": "../a", "data": ""}),
            "the path `../a` is not allowed: it contains the name `..`",
        ),
        (
            ToolName::FileAccept,
            json!({"path": "a", "data": "", "modified": "yesterday"}),
            "`modified` is not a time in RFC 3339, such as 2026-07-01T12:00:00Z",
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
            "`mode` must be a string, not a number",
            "the path must be relative to the portal, not `/x`",
            "unknown argument `nope!`; `file_accept` takes `path`, `data`, `mode`, `offset`, `final`, `size`, `sha256`, `modified`, `resume`, `folder`",
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
        ["`content` has 65537 bytes, but the clipboard takes at most 65536"]
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
    // An earlier anklume set setuid for some of the first four, and refused the others only after writing the file.
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
    let check = |tool, with: Value| Definition::BuiltIn(tool).check_fixed(&map(with));
    assert_eq!(
        check(ToolName::GpgSign, json!({"key_id": "0123456789ABCDEF"})),
        vec![]
    );
    assert_eq!(
        check(ToolName::FileProvide, json!({"path": "report.pdf"})),
        vec![]
    );
    assert_eq!(check(ToolName::FileAccept, json!({"mode": "0600"})), vec![]);
    assert_eq!(check(ToolName::ClipboardGet, json!({})), vec![]);
    let fault = |argument: &str, message: &str| FixedFault {
        argument: argument.to_owned(),
        message: message.to_owned(),
    };
    assert_eq!(
        check(
            ToolName::FileAccept,
            json!({"mod": "0600", "mode": 600, "path": "/etc/x", "data": "!!!", "offset": 0, "final": true})
        ),
        vec![
            fault("mod", "unknown argument `mod`; closest: `mode`"),
            fault("mode", "`mode` must be a string, not a number"),
            fault(
                "path",
                "the path must be relative to the portal, not `/etc/x`"
            ),
            fault(
                "data",
                "`data` is not base64 (with padding, no spaces, no line breaks): character 1 is not allowed there"
            ),
            fault("offset", "`offset` belongs to one call and cannot be fixed"),
            fault("final", "`final` belongs to one call and cannot be fixed"),
        ]
    );
    let signer = check(ToolName::GpgSign, json!({"key_id": "release key"}));
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

#[test]
fn a_million_faults_are_told_in_few_words() {
    let arguments: serde_json::Map<String, Value> = (0..1_000_000)
        .map(|number| (format!("\u{1b}{number}"), Value::Null))
        .collect();
    let Err(refused) = parse::<ClipboardGet>(ToolName::ClipboardGet, &arguments) else {
        panic!("taken");
    };
    let told = refused.to_string();
    assert!(told.ends_with("; and 999990 more"), "{told}");
    let long = map(json!({"x".repeat(1_000_000): 1}));
    let Err(refused) = parse::<ClipboardGet>(ToolName::ClipboardGet, &long) else {
        panic!("taken");
    };
    assert!(told.len() < 1_000 && refused.to_string().len() < 1_000);
}
