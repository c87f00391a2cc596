//! Checks the YAML that `sync` writes with PyYAML and serde_yaml: both read back the same values.

use std::io::Write as _;
use std::process::{Command, Stdio};

use anklume::inventory::to_yaml;
use proptest::prelude::*;
use proptest::strategy::ValueTree as _;
use proptest::test_runner::TestRunner;
use serde_json::{Map, Value, json};

use crate::harness::python;

/// Texts that some YAML reader misreads, folds, or refuses.
pub(super) const NASTY: &[&str] = &[
    "",
    " ",
    "  ",
    "~",
    "null",
    "Null",
    "NULL",
    "nUll",
    "yes",
    "Yes",
    "no",
    "NO",
    "on",
    "off",
    "OFF",
    "y",
    "n",
    "true",
    "True",
    "TRUE",
    "false",
    "tRue",
    "=",
    "<<",
    "-",
    "--",
    "---",
    "--- a",
    "...",
    "... a",
    "?",
    "? a",
    "?a",
    ":",
    ":a",
    "a:",
    "a: b",
    "a:b",
    "#",
    "# a",
    "a #b",
    "a#b",
    "!",
    "!a",
    "&a",
    "*a",
    "|",
    ">",
    "'",
    "\"",
    "it's",
    "%a",
    "@a",
    "`a",
    "[",
    "[a]",
    "{a}",
    ",a",
    "a,b",
    "0",
    "-0",
    "+1",
    "1",
    "007",
    "08",
    "0777",
    "0_7",
    "1_000",
    "1__0",
    "_1",
    "0o17",
    "0o8",
    "0x1f",
    "0X1F",
    "0x",
    "0x_",
    "0b101",
    "0b12",
    "-0b1",
    "1e3",
    "1e+3",
    "1.5e3",
    "1.5e+3",
    "1E3",
    "1e",
    ".5",
    "+.5",
    "-.5",
    "5.",
    "1.2.3",
    ".",
    "..",
    "._",
    "1._5",
    ".inf",
    "-.INF",
    ".Inf",
    ".iNf",
    ".nan",
    ".NaN",
    "+.nan",
    "inf",
    "nan",
    "NaN",
    "Infinity",
    "12:30:45",
    "1:30",
    "01:30",
    "0:0",
    "60:60",
    "1:60",
    "190:20:30.15",
    "1:2.",
    "+12:30",
    "2026-01-31",
    "2026-1-31",
    "2026-1-3",
    "2026-01-31T12:30:45",
    "2026-01-31 12:30:45.5 +01:00",
    "2026-01-31 1:30:45Z",
    "2026-01-31 noon",
    "2026-13-99",
    "2026-01-31T12:30:45 ",
    "2026-01-31  12:30:45 Z",
    "2026-01-31 12:30:45 +1",
    "10.100",
    "10.100.0.0/24",
    "10.0.0.1",
    "fd00::1",
    "aa:bb:cc:dd:ee:ff",
    "11:22:33:44:55:06",
    "images:debian/13",
    "0 3 * * *",
    "* * * * *",
    "30d",
    "2GiB",
    "a\n",
    "\n",
    "\n\n",
    "a\nb",
    "a\n\nb",
    "a\n\n\nb\n\n",
    "\na",
    "a \nb",
    "a\n b",
    "a\n  ",
    " a",
    "a ",
    "\ta",
    "a\tb",
    "a\t",
    "a\rb",
    "a\r\nb",
    "\u{85}",
    "a\u{85}b",
    "a\u{2028}b",
    "a\u{2029}b\n",
    "\u{feff}",
    "\u{feff}a",
    "a\u{feff}b",
    "\0",
    "\u{7}\u{8}\u{b}",
    "\u{1b}[31m",
    "\u{7f}",
    "\u{80}",
    "\u{9f}",
    "\u{a0}",
    "\u{ad}",
    "é",
    "日本語",
    "🎉",
    "a🎉b\t",
    "\u{fffd}",
    "\u{fffe}",
    "\u{ffff}",
    "\u{10ffff}",
    "\u{e000}",
    "C:\\new\\table",
    "\\d+",
    "${x} {{ y }}",
    "{{ y }}",
    "{% raw %}",
    "{#",
    "a {# b #} c",
    "{{ lookup('pipe', 'id') }}\n",
    "## template: jinja\n#cloud-config\nhostname: {{ v1.local_hostname }}\n",
    "# === END MANAGED ===",
    "a\n# === END MANAGED ===\nb",
    "# === MANAGED BY infra.yml ===",
    "a\n---\nb",
    "a\n...\nb",
    "a: |\n  b",
    "- a\n- b",
];

fn text() -> impl Strategy<Value = String> {
    prop_oneof![
        4 => proptest::sample::select(NASTY).prop_map(str::to_owned),
        2 => "[-+.:0-9eExob_T Z]{0,12}",
        2 => "[a-c \n'\"#:\\\\-]{0,12}",
        2 => "(?s).{0,12}",
        1 => "[a-c \n:#]{0,4}(\\{\\{|\\{%|\\{#)[a-c \n:#}%]{0,6}",
        // Long enough to be folded, in each style.
        1 => "([a-z]{1,9} {1,2}){8,30}[a-z]",
        1 => "([a-z']{1,9}[ \n]){8,30}: [a-z]",
        1 => "([a-z\"\t\\\\]{1,9} ?){8,30}",
        1 => "[a-z]{100,130}( [a-z]{100})?",
    ]
}

fn value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        6 => text().prop_map(Value::String),
        1 => any::<bool>().prop_map(Value::Bool),
        1 => any::<i64>().prop_map(|number| json!(number)),
        1 => any::<u64>().prop_map(|number| json!(number)),
        1 => prop_oneof![any::<f64>(), -1e6..1e6, Just(0.1), Just(1e16), Just(1e-5), Just(-0.0)]
            .prop_filter("JSON has no others", |number| number.is_finite())
            .prop_map(|number| json!(number)),
        1 => Just(Value::Null),
    ];
    leaf.prop_recursive(4, 24, 5, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..5).prop_map(Value::Array),
            proptest::collection::vec((text(), inner), 0..5)
                .prop_map(|pairs| Value::Object(pairs.into_iter().collect())),
        ]
    })
}

fn mapping() -> impl Strategy<Value = Map<String, Value>> {
    proptest::collection::vec((text(), value()), 1..5).prop_map(|pairs| pairs.into_iter().collect())
}

/// Every unusual text as a key, a value, an item, and deeply nested; then the requested number of random mappings.
fn cases() -> Vec<Map<String, Value>> {
    let count = if std::env::var_os("ANKLUME_TEST_LONG").is_some() {
        50_000
    } else {
        3_000
    };
    let object = |value: Value| value.as_object().cloned().unwrap();
    let mut cases: Vec<_> = NASTY
        .iter()
        .map(|text| object(json!({ *text: text, "list": [text, [text], {*text: [text]}], "map": { "a": { *text: null } } })))
        .collect();
    let mut runner = TestRunner::deterministic();
    let random = (0..count).map(|_| mapping().new_tree(&mut runner).unwrap().current());
    cases.extend(random);
    cases
}

#[test]
fn serde_yaml_reads_back_what_is_written() {
    for case in cases() {
        let written = to_yaml(&case).unwrap();
        let read: serde_yaml::Value =
            serde_yaml::from_str(&written).unwrap_or_else(|fault| panic!("{fault}: {written:?}"));
        let expected = serde_yaml::to_value(&case).unwrap();
        assert_eq!(read, marked(expected), "{written:?}");
    }
}

/// Marks each text that Ansible would evaluate.
fn marked(value: serde_yaml::Value) -> serde_yaml::Value {
    use serde_yaml::Value;
    match value {
        Value::String(text) if ["{{", "{%", "{#"].iter().any(|mark| text.contains(mark)) => {
            let tag = serde_yaml::value::Tag::new("unsafe");
            let value = Value::String(text);
            Value::Tagged(Box::new(serde_yaml::value::TaggedValue { tag, value }))
        }
        Value::Sequence(items) => items.into_iter().map(marked).collect(),
        Value::Mapping(pairs) => {
            let pairs = pairs.into_iter();
            Value::Mapping(pairs.map(|(key, value)| (key, marked(value))).collect())
        }
        value => value,
    }
}

#[test]
fn pyyaml_reads_back_what_is_written() {
    let Some(python) = python("python3") else {
        return;
    };
    let mut child = Command::new(python)
        .arg(concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/tests/python/read_back.py"
        ))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let writer = std::thread::spawn(move || {
        for case in cases() {
            let line = json!({ "text": to_yaml(&case).unwrap(), "value": case });
            writeln!(stdin, "{line}").unwrap();
        }
    });
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap();
    assert!(output.status.success());
    let fault = String::from_utf8(output.stdout).unwrap();
    assert!(fault.is_empty(), "{fault}");
}
