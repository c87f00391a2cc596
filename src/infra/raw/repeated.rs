//! Which keys of a map are there twice.

use std::collections::HashMap;

use super::Entry;

/// Maps up to this size are searched for equal keys pair by pair, larger ones through a hash table.
const SMALL_MAP: usize = 12;

/// Pairs (first, repeated) of indices with equal keys, ordered by the second.
pub(super) fn repeated(entries: &[Entry<'_>]) -> Vec<(usize, usize)> {
    if entries.len() <= SMALL_MAP {
        repeated_in_small(entries)
    } else {
        repeated_in_large(entries)
    }
}

fn repeated_in_small(entries: &[Entry<'_>]) -> Vec<(usize, usize)> {
    entries
        .iter()
        .enumerate()
        .filter_map(|(second, entry)| {
            let first = entries
                .iter()
                .take(second)
                .position(|earlier| earlier.key.text == entry.key.text)?;
            Some((first, second))
        })
        .collect()
}

fn repeated_in_large(entries: &[Entry<'_>]) -> Vec<(usize, usize)> {
    let mut seen: HashMap<&str, usize> = HashMap::with_capacity(entries.len());
    let mut again = Vec::new();
    for (second, entry) in entries.iter().enumerate() {
        let first = *seen.entry(&entry.key.text).or_insert(second);
        if first != second {
            again.push((first, second));
        }
    }
    again
}
