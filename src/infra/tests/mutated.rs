//! Tests mutated files: each is either accepted or refused with a code and a location; none causes a panic.
//!
//! Runs 12,000 cases by default, or a hundred times as many with `ANKLUME_TEST_LONG=1`.

use proptest::prelude::{Just, Strategy, any, prop_oneof};
use proptest::sample::{Index, select};
use proptest::test_runner::{Config, TestRunner};

use super::{EXAMPLE, PRO, QUICK_START};
use crate::diagnostic::{Faults, Severity, draw};
use crate::infra::open::decode_for_tests;
use crate::infra::parse;

/// Tokens that have a meaning in YAML, in numbers or in rules.
const TOKENS: &[&str] = &[
    ":",
    ": ",
    "- ",
    "[",
    "]",
    "{",
    "}",
    ",",
    "\n",
    "\t",
    "\r\n",
    "'",
    "\"",
    "|\n",
    ">-\n",
    "&a ",
    "*a",
    "<<: *a",
    "!!str ",
    "!",
    "%YAML 1.2\n---\n",
    "---\n",
    "...\n",
    "#",
    "? ",
    "~",
    "null",
    "true",
    "yes",
    "0x10",
    "010",
    "-1",
    "99999999999999999999",
    "1e999",
    ".nan",
    "\u{feff}",
    "\u{0}",
    "\u{1b}[31m",
    "\u{202e}",
    "é",
    "☕",
    "\u{2028}",
    "all",
    "localhost",
    "work-dev",
    "vault",
    "gpg_sign",
    "10.100.0.254",
    "255.255.255.255",
    "/",
    "..",
    "security.privileged",
    "consumers",
    "services",
    "mcp",
    "a\\nb",
    "\\x61",
];

/// A change to a file.
#[derive(Debug, Clone)]
enum Change {
    /// A byte is replaced.
    Byte(Index, u8),
    /// A token is inserted.
    Insert(Index, &'static str),
    /// Some bytes are removed.
    Remove(Index, usize),
    /// A line is duplicated.
    DoubleLine(Index),
    /// A line is removed.
    RemoveLine(Index),
    /// Two lines are swapped.
    SwapLines(Index, Index),
    /// The indentation of a line is changed.
    Indent(Index, usize),
    /// The value of a line is replaced.
    Value(Index, &'static str),
    /// The file is truncated here.
    Cut(Index),
}

fn change() -> impl Strategy<Value = Change> {
    let at = any::<Index>;
    prop_oneof![
        (at(), any::<u8>()).prop_map(|(at, byte)| Change::Byte(at, byte)),
        (at(), select(TOKENS)).prop_map(|(at, token)| Change::Insert(at, token)),
        (at(), 1..40_usize).prop_map(|(at, count)| Change::Remove(at, count)),
        at().prop_map(Change::DoubleLine),
        at().prop_map(Change::RemoveLine),
        (at(), at()).prop_map(|(one, other)| Change::SwapLines(one, other)),
        (at(), 0..12_usize).prop_map(|(at, depth)| Change::Indent(at, depth)),
        (at(), select(TOKENS)).prop_map(|(at, token)| Change::Value(at, token)),
        at().prop_map(Change::Cut),
    ]
}

fn apply(bytes: &mut Vec<u8>, change: &Change) {
    if bytes.is_empty() {
        return;
    }
    let mut lines: Vec<Vec<u8>> = bytes
        .split_inclusive(|b| *b == b'\n')
        .map(Vec::from)
        .collect();
    let count = lines.len();
    match change {
        Change::Byte(at, byte) => {
            let at = at.index(bytes.len());
            bytes[at] = *byte;
        }
        Change::Insert(at, token) => {
            let at = at.index(bytes.len());
            bytes.splice(at..at, token.bytes());
        }
        Change::Remove(at, count) => {
            let at = at.index(bytes.len());
            let end = (at + count).min(bytes.len());
            bytes.drain(at..end);
        }
        Change::DoubleLine(at) => lines.insert(at.index(count), lines[at.index(count)].clone()),
        Change::RemoveLine(at) => drop(lines.remove(at.index(count))),
        Change::SwapLines(one, other) => lines.swap(one.index(count), other.index(count)),
        Change::Indent(at, depth) => {
            let line = &mut lines[at.index(count)];
            let text = line.iter().position(|b| *b != b' ').unwrap_or(line.len());
            line.splice(..text, vec![b' '; *depth]);
        }
        Change::Value(at, token) => {
            let line = &mut lines[at.index(count)];
            if let Some(colon) = line.iter().position(|b| *b == b':') {
                line.truncate(colon + 1);
                line.push(b' ');
                line.extend(token.bytes());
                line.push(b'\n');
            }
        }
        Change::Cut(at) => bytes.truncate(at.index(bytes.len())),
    }
    let by_bytes = matches!(
        change,
        Change::Byte(..) | Change::Insert(..) | Change::Remove(..) | Change::Cut(_)
    );
    if !by_bytes {
        *bytes = lines.concat();
    }
}

/// Reads a file's bytes as [`crate::infra::open`] does.
fn read(bytes: &[u8]) -> Result<(), Faults> {
    let text = decode_for_tests(bytes).map_err(|fault| Faults(vec![fault]))?;
    parse("infra.yml", &text).map(drop)
}

fn check(bytes: &[u8]) {
    let Err(Faults(faults)) = read(bytes) else {
        return;
    };
    assert!(faults.iter().any(|fault| fault.severity == Severity::Error));
    for fault in &faults {
        assert!(!fault.code.is_empty() && !fault.message.is_empty());
        let place = fault.place.as_ref().unwrap();
        let lines = place.source.text.split('\n').count();
        assert!(
            (1..=lines).contains(&place.line) && place.column >= 1,
            "{place:?}"
        );
        assert!(
            place.source.text.get(place.bytes.clone()).is_some(),
            "{place:?}"
        );
        let harmless = |c: char| !c.is_control() && c != '\u{202e}' && c != '\u{2028}';
        let help = fault.help.as_deref().unwrap_or_default();
        assert!(
            fault.message.chars().chain(help.chars()).all(harmless),
            "{fault:?}"
        );
        let drawn = draw(std::slice::from_ref(fault), false);
        assert!(drawn.chars().all(|c| c == '\n' || harmless(c)), "{drawn:?}");
        let header = format!("--> infra.yml:{}:{}\n", place.line, place.column);
        assert!(drawn.contains(&header), "{drawn}");
    }
}

#[test]
fn a_mutated_file_is_read_or_refused_with_a_place() {
    let times = if std::env::var_os("ANKLUME_TEST_LONG").is_some() {
        100
    } else {
        1
    };
    let mut runner = TestRunner::new(Config {
        cases: 12_000 * times,
        failure_persistence: None,
        ..Config::default()
    });
    let seeds = [
        QUICK_START.to_owned(),
        format!("{QUICK_START}{PRO}"),
        EXAMPLE.to_owned(),
    ];
    let seed = (0..seeds.len()).prop_flat_map(move |which| Just(seeds[which].clone()));
    let files = (seed, proptest::collection::vec(change(), 1..6));
    let outcome = runner.run(&files, |(seed, changes)| {
        let mut bytes = seed.into_bytes();
        for change in &changes {
            apply(&mut bytes, change);
        }
        check(&bytes);
        Ok(())
    });
    outcome.unwrap();
}
