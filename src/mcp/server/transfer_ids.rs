//! Tells which logged calls are pieces of one transfer, without revealing its path.

use std::collections::VecDeque;
use std::hash::{BuildHasher as _, RandomState};
use std::sync::{Mutex, PoisonError};

use serde_json::{Map, Value};

use crate::text::Foreign;

/// Maximum number of transfers that are told apart on one connection; beyond it, the oldest one is forgotten.
const MAX: usize = 32;

/// The transfers of one connection.
#[derive(Default)]
pub(super) struct TransferIds {
    hasher: RandomState,
    known: Mutex<KnownTransfers>,
}

#[derive(Default)]
struct KnownTransfers {
    transfers: VecDeque<KnownTransfer>,
    /// Number of transfers that have begun.
    begun: u64,
}

struct KnownTransfer {
    /// Of the service and the path.
    key: u64,
    number: u64,
    /// True if it has only been announced: an empty piece had the size.
    is_announced: bool,
}

impl TransferIds {
    /// Returns the id of the transfer of which a call is a piece, according to its arguments.
    pub(super) fn of(&self, service: &str, arguments: &Map<String, Value>) -> Option<Foreign> {
        let offset = arguments.get("offset")?;
        if arguments.contains_key("entries") {
            return None;
        }
        let path = arguments.get("path").and_then(Value::as_str);
        let key = self.hasher.hash_one((service, path));
        let is_empty = arguments.get("data").and_then(Value::as_str) == Some("");
        let is_announced = is_empty && arguments.contains_key("size");
        // A panic elsewhere leaves it intact.
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let number = known.piece(key, *offset == 0, is_announced);
        Some(format!("{:016x}", self.hasher.hash_one(number)).into())
    }
}

impl KnownTransfers {
    /// Returns the number of the transfer to which a piece belongs.
    fn piece(&mut self, key: u64, is_first: bool, is_announced: bool) -> u64 {
        let at = self.transfers.iter().position(|known| known.key == key);
        let known = at.and_then(|at| self.transfers.remove(at));
        let goes_on = known.filter(|known| !is_first || known.is_announced);
        let number = goes_on.map_or_else(
            || {
                self.begun += 1;
                self.begun
            },
            |known| known.number,
        );
        if self.transfers.len() >= MAX {
            self.transfers.pop_front();
        }
        self.transfers.push_back(KnownTransfer {
            key,
            number,
            is_announced,
        });
        number
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn each_first_piece_begins_another_transfer() {
        let ids = TransferIds::default();
        let of = |arguments: Value| {
            let arguments = arguments.as_object().unwrap();
            ids.of("inbox", arguments)
                .map(|id: Foreign| id.raw().clone())
        };
        let piece = |path: &str, offset: u64| of(json!({"path": path, "offset": offset})).unwrap();
        let (a, b) = (piece("a", 0), piece("b", 0));
        assert_ne!(a, b);
        assert_eq!([piece("a", 3), piece("b", 3)], [a.clone(), b]);
        let again = piece("a", 0);
        assert_ne!(again, a);
        assert_eq!(piece("a", 3), again);
        // One that was announced begins only once.
        let announced = of(json!({"path": "c", "offset": 0, "data": "", "size": 9})).unwrap();
        let first = json!({"path": "c", "offset": 0, "data": "aGk=", "size": 9});
        assert_eq!(of(first.clone()).unwrap(), announced);
        assert_ne!(of(first).unwrap(), announced);
        // A signature has no path.
        assert_eq!(of(json!({"offset": 0})), of(json!({"offset": 3})));
        // Calls that are no pieces.
        assert_eq!(of(json!({"path": "a"})), None);
        assert_eq!(of(json!({"path": "a", "offset": 0, "entries": true})), None);
    }

    #[test]
    fn only_the_latest_transfers_of_a_connection_are_told_apart() {
        let ids = TransferIds::default();
        for path in 0..1000 {
            let arguments = json!({"path": path.to_string(), "offset": 0});
            ids.of("inbox", arguments.as_object().unwrap()).unwrap();
        }
        assert_eq!(ids.known.lock().unwrap().transfers.len(), MAX);
    }
}
