//! Reads back what is about to be written, with a YAML reader that did not write it.
//!
//! A file passes when it is one document that says what infra.yml declares and what the user's text said, and no more.

use std::collections::BTreeSet;

use serde_json::{Map, Value as Declared};
use serde_yaml::{Mapping, Value};

use super::block::{self, BlockFault};

/// Checks the new text of a file against the declared values and its old text.
///
/// # Errors
///
/// The first thing that does not come back equal, with its line in the old file where there is one.
pub(super) fn verify(
    new: &str,
    old: Option<&str>,
    declared: &Map<String, Declared>,
) -> Result<(), BlockFault> {
    let user = match old {
        Some(old) => user_values(old, declared)?,
        None => Mapping::new(),
    };
    let read = mapping(new, "the file as it would be written")?;
    let count = user.len() + declared.len();
    let same = |key: &Value, value: &Value| read.get(key) == Some(value);
    let users_kept = user.iter().all(|(key, value)| same(key, value));
    let declared_kept = declared.iter().all(|(key, value)| {
        let value = serde_yaml::to_value(value);
        value.is_ok_and(|value| same(&Value::String(key.clone()), &value))
    });
    if read.len() == count && users_kept && declared_kept {
        Ok(())
    } else {
        Err(BlockFault {
            line: 1,
            message: "the file would not read back as infra.yml and your own text say".to_owned(),
            help: "move your own text out of the file, run sync, and put it back below the managed block",
        })
    }
}

/// What the user's own text says: the file without its block.
fn user_values(old: &str, declared: &Map<String, Declared>) -> Result<Mapping, BlockFault> {
    let Some(parts) = block::find(old)? else {
        let user = mapping(old, "the file")?;
        return no_declared_key(user, old, declared);
    };
    let around = parts.around();
    let user = mapping(&around, "your own text around the managed block")?;
    if parts.has_user_text() {
        is_cut_between_values(old, &user, parts.body())?;
    }
    no_declared_key(user, &around, declared)
}

/// The markers must stand between values: a value that holds both lines would be cut in two without a trace.
fn is_cut_between_values(old: &str, user: &Mapping, body: &str) -> Result<(), BlockFault> {
    let (Ok(whole), Ok(managed)) = (mapping(old, ""), mapping(body, "")) else {
        // A block that was damaged by hand is replaced; what is around it has been read.
        return Ok(());
    };
    let known = whole.iter().all(|(key, value)| {
        user.get(key).or_else(|| managed.get(key)) == Some(value)
    });
    if known && whole.len() == user.len() + managed.len() {
        return Ok(());
    }
    Err(BlockFault {
        line: 1,
        message: "the lines that begin and end the managed block are part of a value of your own".to_owned(),
        help: "indent these lines in that value",
    })
}

/// A key of the managed block must not stand in the user's text too: Ansible would take the last, whatever infra.yml says.
fn no_declared_key(
    user: Mapping,
    text: &str,
    declared: &Map<String, Declared>,
) -> Result<Mapping, BlockFault> {
    let keys: BTreeSet<&str> = user.keys().filter_map(Value::as_str).collect();
    let Some(key) = keys.into_iter().find(|key| declared.contains_key(*key)) else {
        return Ok(user);
    };
    let line = text.lines().position(|line| {
        let line = line.trim_start_matches(['"', '\'', '\u{feff}']);
        line.strip_prefix(key).is_some_and(|rest| rest.trim_start_matches(['"', '\'']).trim_start().starts_with(':'))
    });
    Err(BlockFault {
        line: line.map_or(1, |line| line + 1),
        message: format!("`{}` is declared by infra.yml and here again; Ansible would take the last of the two", key.escape_debug()),
        help: "take it out here, or change infra.yml",
    })
}

/// Reads a text as one mapping; an empty document is an empty one.
fn mapping(text: &str, what: &str) -> Result<Mapping, BlockFault> {
    match serde_yaml::from_str(text) {
        Ok(Value::Mapping(mapping)) => Ok(mapping),
        Ok(Value::Null) => Ok(Mapping::new()),
        Ok(_) => Err(BlockFault {
            line: 1,
            message: format!("{what} is no map of variables"),
            help: "write `NAME: VALUE` lines",
        }),
        Err(fault) => Err(BlockFault {
            line: fault.location().map_or(1, |place| place.line()),
            message: format!("{what} is not readable as one YAML document: {fault}"),
            help: "mend it, then run sync again",
        }),
    }
}
