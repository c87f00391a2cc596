//! Reads back a file about to be written, with a YAML parser independent of the writer.
//!
//! A file passes if it is a single document with exactly the values declared by infra.yml and those in the user's text.

use std::collections::BTreeSet;

use serde_json::{Map, Value as Declared};
use serde_yaml::{Mapping, Value};

use super::managed_block::{self, BlockFault};
use crate::inventory::{FilePath, UNSAFE, is_template};

/// The variables that infra.yml declares for the groups that enclose a file's machine or group, with the group's file.
pub(super) type EnclosingKeys<'a> = Vec<(&'a FilePath, &'a BTreeSet<String>)>;

/// Checks the new text of a file against the declared values and its old text.
///
/// # Errors
///
/// Returns the first difference, with its line in the old file if known.
pub(crate) fn verify(
    new: &str,
    old: Option<&str>,
    declared: &Map<String, Declared>,
    enclosing: &EnclosingKeys<'_>,
) -> Result<(), BlockFault> {
    let user = match old {
        Some(old) => user_values(old, declared, enclosing)?,
        None => Mapping::new(),
    };
    let read = mapping(new, "the file as it would be written")?;
    let count = user.len() + declared.len();
    let users_kept = user.iter().all(|(key, value)| read.get(key) == Some(value));
    if read.len() == count && users_kept && holds(&read, declared) {
        Ok(())
    } else {
        Err(BlockFault {
            line: 1,
            message:
                "the file would not read back with the values of infra.yml and of your own text"
                    .to_owned(),
            help: "move your own text out of the file, run sync, and put it back below the managed block",
        })
    }
}

/// Returns whether the managed block of a file has exactly the declared values, in any style.
pub(crate) fn is_current(text: &str, declared: &Map<String, Declared>) -> bool {
    let Ok(Some(parts)) = managed_block::find(text) else {
        return false;
    };
    let values = mapping(parts.body(), "");
    values.is_ok_and(|values| values.len() == declared.len() && holds(&values, declared))
}

fn holds(read: &Mapping, declared: &Map<String, Declared>) -> bool {
    declared.iter().all(|(key, value)| {
        read.get(key.as_str())
            .is_some_and(|read| is_same(value, read))
    })
}

/// Returns whether a value reads back as declared, including its type.
fn is_same(declared: &Declared, read: &Value) -> bool {
    match (declared, read) {
        (Declared::Null, Value::Null) => true,
        (Declared::Bool(declared), Value::Bool(read)) => declared == read,
        (Declared::String(declared), Value::String(read)) => {
            declared == read && !is_template(declared)
        }
        (Declared::String(declared), Value::Tagged(read)) => {
            read.tag == UNSAFE && read.value.as_str() == Some(declared) && is_template(declared)
        }
        (Declared::Number(declared), Value::Number(read)) => {
            (
                declared.is_f64(),
                declared.as_i64(),
                declared.as_u64(),
                declared.as_f64(),
            ) == (read.is_f64(), read.as_i64(), read.as_u64(), read.as_f64())
        }
        (Declared::Array(declared), Value::Sequence(read)) => {
            let mut pairs = declared.iter().zip(read);
            declared.len() == read.len() && pairs.all(|(declared, read)| is_same(declared, read))
        }
        (Declared::Object(declared), Value::Mapping(read)) => {
            declared.len() == read.len() && holds(read, declared)
        }
        _ => false,
    }
}

/// Returns the values in the user's own text, that is, in the file without its block.
fn user_values(
    old: &str,
    declared: &Map<String, Declared>,
    enclosing: &EnclosingKeys<'_>,
) -> Result<Mapping, BlockFault> {
    let Some(parts) = managed_block::find(old)? else {
        let user = mapping(old, "the file")?;
        return no_declared_key(user, old, declared, enclosing);
    };
    let around = parts.around();
    let user = mapping(&around, "your own text around the managed block")?;
    if parts.has_user_text() {
        is_cut_between_values(old, &user, parts.body())?;
    }
    no_declared_key(user, &around, declared, enclosing)
}

/// Checks that both markers are between values: a value that contained both lines would lose its middle part.
fn is_cut_between_values(old: &str, user: &Mapping, body: &str) -> Result<(), BlockFault> {
    let (Ok(whole), Ok(managed)) = (mapping(old, ""), mapping(body, "")) else {
        // A block damaged by hand is replaced; the text around it has already been read.
        return Ok(());
    };
    let known = whole
        .iter()
        .all(|(key, value)| user.get(key).or_else(|| managed.get(key)) == Some(value));
    if known && whole.len() == user.len() + managed.len() {
        return Ok(());
    }
    Err(BlockFault {
        line: 1,
        message: "the lines that begin and end the managed block are part of a value of your own"
            .to_owned(),
        help: "indent these lines in that value",
    })
}

/// Checks that the user's text sets no variable of infra.yml: Ansible would use the user's value.
fn no_declared_key(
    user: Mapping,
    text: &str,
    declared: &Map<String, Declared>,
    enclosing: &EnclosingKeys<'_>,
) -> Result<Mapping, BlockFault> {
    for key in user.keys().filter_map(Value::as_str) {
        let group = enclosing.iter().find(|(_, keys)| keys.contains(key));
        let message = match group {
            _ if declared.contains_key(key) => {
                "is declared by infra.yml and here again; Ansible would use the last one".to_owned()
            }
            Some((file, _)) => {
                format!("is declared by infra.yml in `{file}`; Ansible would use this one instead")
            }
            None => continue,
        };
        let key = key.escape_debug();
        return Err(BlockFault {
            line: line_of(&key.to_string(), text),
            message: format!("`{key}` {message}"),
            help: "remove it here, or change infra.yml",
        });
    }
    Ok(user)
}

/// Returns the line that sets a variable, from 1.
fn line_of(key: &str, text: &str) -> usize {
    let sets = |line: &str| {
        let line = line.trim_start_matches(['"', '\'', '\u{feff}']);
        line.strip_prefix(key).is_some_and(|rest| {
            let rest = rest.trim_start_matches(['"', '\'']).trim_start();
            rest.starts_with(':')
        })
    };
    text.lines().position(sets).map_or(1, |line| line + 1)
}

/// Parses text as one mapping; an empty document counts as an empty mapping.
fn mapping(text: &str, what: &str) -> Result<Mapping, BlockFault> {
    // A byte order mark is not part of the document.
    match serde_yaml::from_str(text.trim_start_matches('\u{feff}')) {
        Ok(Value::Mapping(mapping)) => Ok(mapping),
        Ok(Value::Null) => Ok(Mapping::new()),
        Ok(_) => Err(BlockFault {
            line: 1,
            message: format!("{what} is not a map of variables"),
            help: "write `NAME: VALUE` lines",
        }),
        Err(fault) => match second_document(text) {
            Some(line) => Err(BlockFault {
                line,
                message: format!("{what} contains a second YAML document"),
                help: "remove this line, or move the text after it to another file",
            }),
            None => Err(BlockFault {
                line: fault.location().map_or(1, |place| place.line()),
                message: format!("{what} is not readable as one YAML document: {fault}"),
                help: "fix it, then run sync again",
            }),
        },
    }
}

/// Returns the line at which a second document begins, from 1.
fn second_document(text: &str) -> Option<usize> {
    let mut has_content = false;
    for (index, line) in text.lines().enumerate() {
        let begins = line.trim_end() == "---" || line.starts_with("--- ");
        if line.trim_end() == "..." || begins && has_content {
            return Some(index + 1);
        }
        has_content |= begins || !line.trim().is_empty() && !line.starts_with('#');
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn declared() -> Map<String, Declared> {
        let value = json!({ "a": "1", "b": [1, true, null, 1.5, u64::MAX], "c": { "d": "x" } });
        value.as_object().cloned().unwrap()
    }

    const BODY: &str = "a: '1'\nb: [1, true, null, 1.5, 18446744073709551615]\nc: {d: x}\n";

    /// Returns the fault found in a file with this user text before and after the block.
    fn fault(before: &str, after: &str) -> Option<(usize, String)> {
        let block = managed_block::create(BODY);
        let block = block
            .trim_start_matches("---\n")
            .split("\n\n")
            .next()
            .unwrap();
        let file = format!("{before}{block}{after}");
        let fault = verify(&file, Some(&file), &declared(), &Vec::new()).err()?;
        Some((fault.line, fault.message))
    }

    #[test]
    fn a_new_file_reads_back() {
        assert_eq!(
            verify(&managed_block::create(BODY), None, &declared(), &Vec::new()),
            Ok(())
        );
    }

    #[test]
    fn a_value_of_another_type_or_an_absent_one_is_seen() {
        for (from, to) in [
            ("'1'", "1"),
            ("[1,", "[1.0,"),
            ("true", "'true'"),
            ("null", "''"),
            ("d: x", "d: y"),
            ("{d: x}", "{d: x, e: 1}"),
            ("{d: x}", "{}"),
            ("c: {d: x}\n", ""),
            ("c: {d: x}\n", "c: {d: x}\nf: 1\n"),
            ("5, 18446744073709551615", "5"),
        ] {
            let body = BODY.replace(from, to);
            assert_ne!(body, BODY);
            assert!(
                verify(
                    &managed_block::create(&body),
                    None,
                    &declared(),
                    &Vec::new()
                )
                .is_err(),
                "{body}"
            );
        }
    }

    #[test]
    fn what_users_write_around_the_block_reads_back() {
        for (before, after) in [
            ("---\n", "\n\nx: '\\d+'\ny: C:\\new\n"),
            ("\u{feff}---\nx: 1\n", "\r\ny: 2\r\n"),
            (
                "",
                "\nsecret: !vault |\n  $ANSIBLE_VAULT;1.1;AES256\n  6162\n",
            ),
            ("", "\nx: &a {z: .nan}\ny: {<<: *a}\n1: 2\nnull: 3\n"),
            (
                "",
                "\nx: \"# === END MANAGED ===\"\ny: |\n  # === MANAGED BY infra.yml ===\n  # === END MANAGED ===\n",
            ),
            ("", "\n# a: commented out\n"),
        ] {
            assert_eq!(fault(before, after), None, "{before:?} {after:?}");
        }
    }

    #[test]
    fn text_that_ansible_would_read_otherwise_is_refused_with_its_line() {
        for (before, after, line, message) in [
            (
                "---\n",
                "\nx: 1\na: 2\n",
                9,
                "`a` is declared by infra.yml and here again",
            ),
            (
                "\"a\" : 2\n",
                "\n",
                1,
                "`a` is declared by infra.yml and here again",
            ),
            ("", "\nx: 1\nx: 2\n", 7, "duplicate entry"),
            ("", "\nx: [1\n", 0, "is not readable as one YAML document"),
            ("", "\n---\nx: 1\n", 0, "contains a second YAML document"),
            ("", "\n...\nx: 1\n", 0, "contains a second YAML document"),
            ("", "\n- x\n", 1, "is not a map of variables"),
            (
                "",
                "\nx: \u{1b}[31m\n",
                0,
                "is not readable as one YAML document",
            ),
            ("x: \"\n", "\n\"\n", 1, "are part of a value of your own"),
        ] {
            let (found, said) =
                fault(before, after).unwrap_or_else(|| panic!("{before:?} {after:?}"));
            assert!(said.contains(message), "{said}");
            assert!(line == 0 || found == line, "{found}: {said}");
        }
    }
}
