//! Transfers that come in several calls of one connection: in order, one piece at a time, few at once.
//!
//! A piece that does not fit is refused and the transfer goes on; only a second beginning ends it, so that two
//! senders of one name can never be mixed into one file.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::task::AbortHandle;
use tokio::time::sleep;

use super::ToolError;

/// By the name of the transfer.
type Slots<T> = HashMap<String, Slot<T>>;

/// The transfers of one connection, by name.
#[derive(Debug)]
pub(super) struct Transfers<T> {
    slots: Arc<Mutex<Slots<T>>>,
    most: usize,
    /// Time that a transfer waits for its next piece; then it is dropped with what it holds (a gpg, an unpublished file).
    idle: Duration,
}

#[derive(Debug)]
enum Slot<T> {
    /// A piece is being worked on.
    Taken,
    /// Waits for the piece at this offset.
    Waiting {
        next: u64,
        transfer: T,
        /// Tells one wait from another.
        wait: Arc<()>,
        /// Gives the transfer up.
        _timer: Option<Timer>,
    },
}

/// A task that ends with this value.
#[derive(Debug)]
struct Timer(AbortHandle);

impl Drop for Timer {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// The right to work on the next piece. Dropped without [`TransferTurn::wait`], the transfer is over.
#[derive(Debug)]
pub(super) struct TransferTurn<T> {
    slots: Arc<Mutex<Slots<T>>>,
    name: String,
    idle: Duration,
}

/// Whether a piece begins a transfer or goes on with one.
#[derive(Debug)]
pub(super) enum TransferStep<T> {
    /// The first piece.
    Begin,
    /// A later one.
    Continue(T),
}

impl<T> Transfers<T> {
    /// No transfers yet, and room for `most`, each of which is given up that has waited for so long.
    pub(super) fn new(most: usize, idle: Duration) -> Self {
        Self {
            slots: Arc::default(),
            most,
            idle,
        }
    }

    /// Returns whether none is under way.
    pub(super) fn is_empty(&self) -> bool {
        self.slots
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .is_empty()
    }

    /// Takes the turn for a piece that begins at `offset`.
    ///
    /// `shown` is the name as messages show it.
    pub(super) fn take(
        &self,
        name: &str,
        shown: &str,
        offset: u64,
    ) -> Result<(TransferTurn<T>, TransferStep<T>), ToolError> {
        let mut slots = lock(&self.slots);
        let step = if offset == 0 {
            begin(&mut slots, name, shown, self.most)?
        } else {
            resume(&mut slots, name, shown, offset, self.idle)?
        };
        slots.insert(name.to_owned(), Slot::Taken);
        let turn = TransferTurn {
            slots: Arc::clone(&self.slots),
            idle: self.idle,
            name: name.to_owned(),
        };
        Ok((turn, step))
    }
}

fn begin<T>(
    slots: &mut Slots<T>,
    name: &str,
    shown: &str,
    most: usize,
) -> Result<TransferStep<T>, ToolError> {
    match slots.get(name) {
        Some(Slot::Taken) => Err(taken(shown)),
        Some(Slot::Waiting { .. }) => {
            slots.remove(name);
            Err(ToolError::OutOfOrder(format!(
                "a transfer of {shown} had begun already on this connection; it is given up, begin again at offset 0"
            )))
        }
        None if slots.len() >= most => Err(ToolError::Busy(format!(
            "{most} transfers are under way on this connection; finish one first"
        ))),
        None => Ok(TransferStep::Begin),
    }
}

fn resume<T>(
    slots: &mut Slots<T>,
    name: &str,
    shown: &str,
    offset: u64,
    idle: Duration,
) -> Result<TransferStep<T>, ToolError> {
    match slots.remove(name) {
        None => Err(ToolError::OutOfOrder(format!(
            "no transfer of {shown} is under way on this connection (one that waits for {} s is given up); begin at offset 0",
            idle.as_secs()
        ))),
        Some(Slot::Taken) => {
            slots.insert(name.to_owned(), Slot::Taken);
            Err(taken(shown))
        }
        Some(Slot::Waiting { next, transfer, .. }) if next == offset => {
            Ok(TransferStep::Continue(transfer))
        }
        Some(waiting @ Slot::Waiting { next, .. }) => {
            slots.insert(name.to_owned(), waiting);
            Err(ToolError::OutOfOrder(format!(
                "the next piece of {shown} begins at offset {next}, not {offset}"
            )))
        }
    }
}

fn taken(shown: &str) -> ToolError {
    ToolError::OutOfOrder(format!(
        "another piece of {shown} is still being worked on; send the next one after its answer"
    ))
}

impl<T: Send + 'static> TransferTurn<T> {
    /// Puts the transfer down until the piece at `next` comes, but not for ever.
    pub(super) fn wait(self, next: u64, transfer: T) {
        let wait = Arc::new(());
        let since = Arc::clone(&wait);
        let (slots, name, idle) = (Arc::downgrade(&self.slots), self.name.clone(), self.idle);
        // Tools run in a runtime; where there is none, nothing waits long.
        let timer = Handle::try_current().ok().map(|runtime| {
            let timer = runtime.spawn(async move {
                sleep(idle).await;
                give_up(&slots, &name, &since);
            });
            Timer(timer.abort_handle())
        });
        let waiting = Slot::Waiting {
            next,
            transfer,
            wait,
            _timer: timer,
        };
        lock(&self.slots).insert(self.name.clone(), waiting);
    }
}

/// Gives up a transfer that has waited since then.
fn give_up<T>(slots: &Weak<Mutex<Slots<T>>>, name: &str, since: &Arc<()>) {
    let Some(slots) = slots.upgrade() else {
        return;
    };
    let mut slots = lock(&slots);
    let waits = match slots.get(name) {
        Some(Slot::Waiting { wait, .. }) => Arc::ptr_eq(wait, since),
        Some(Slot::Taken) | None => false,
    };
    let given_up = if waits { slots.remove(name) } else { None };
    drop(slots);
    // What it holds is let go of while nobody waits for the others.
    drop(given_up);
}

impl<T> Drop for TransferTurn<T> {
    fn drop(&mut self) {
        let mut slots = lock(&self.slots);
        if matches!(slots.get(&self.name), Some(Slot::Taken)) {
            slots.remove(&self.name);
        }
    }
}

/// Refuses a piece without content that is not the last: nothing would have moved on.
pub(super) fn not_empty(data: &[u8], last: bool) -> Result<(), ToolError> {
    if data.is_empty() && !last {
        return Err(ToolError::Arguments(
            "`data` is empty, and only the last piece (`final`) may be".to_owned(),
        ));
    }
    Ok(())
}

/// Pieces must not contradict each other.
pub(super) fn contradicts(name: &str) -> ToolError {
    ToolError::Arguments(format!("`{name}` differs from that of an earlier piece"))
}

/// A panic elsewhere leaves a map that is still a map.
fn lock<T>(slots: &Mutex<Slots<T>>) -> MutexGuard<'_, Slots<T>> {
    slots.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::IDLE;

    fn refused<T: std::fmt::Debug>(transfers: &Transfers<T>, name: &str, offset: u64) -> String {
        transfers
            .take(name, &format!("`{name}`"), offset)
            .unwrap_err()
            .to_string()
    }

    #[test]
    fn pieces_follow_each_other() {
        let transfers = Transfers::new(2, IDLE);
        let (turn, step) = transfers.take("a", "`a`", 0).unwrap();
        assert!(matches!(step, TransferStep::Begin));
        turn.wait(3, "abc");
        assert_eq!(
            refused(&transfers, "a", 2),
            "the next piece of `a` begins at offset 3, not 2"
        );
        assert_eq!(
            refused(&transfers, "a", 4),
            "the next piece of `a` begins at offset 3, not 4"
        );
        let (turn, step) = transfers.take("a", "`a`", 3).unwrap();
        assert!(matches!(step, TransferStep::Continue("abc")));
        drop(turn);
        assert_eq!(
            refused(&transfers, "a", 3),
            "no transfer of `a` is under way on this connection (one that waits for 60 s is given up); begin at offset 0"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_transfer_that_waits_too_long_is_given_up_and_one_that_goes_on_is_not() {
        let transfers = Transfers::new(2, IDLE);
        for name in ["a", "b"] {
            let name = name.to_owned();
            transfers.take(&name, "", 0).unwrap().0.wait(1, ());
        }
        sleep(IDLE / 2).await;
        transfers.take("b", "", 1).unwrap().0.wait(2, ());
        sleep(IDLE / 10 * 9).await;
        assert!(refused(&transfers, "a", 1).starts_with("no transfer of `a` is under way"));
        assert!(matches!(
            transfers.take("b", "", 2).unwrap().1,
            TransferStep::Continue(())
        ));
    }

    #[test]
    fn two_senders_of_one_name_are_never_mixed() {
        let transfers = Transfers::new(2, IDLE);
        transfers.take("a", "`a`", 0).unwrap().0.wait(3, "one");
        assert_eq!(
            refused(&transfers, "a", 0),
            "a transfer of `a` had begun already on this connection; it is given up, begin again at offset 0"
        );
        // The first sender's next piece finds nothing to go on with.
        assert!(refused(&transfers, "a", 3).starts_with("no transfer of `a`"));
        transfers.take("a", "`a`", 0).unwrap().0.wait(5, "two");
        assert!(matches!(
            transfers.take("a", "`a`", 5).unwrap().1,
            TransferStep::Continue("two")
        ));
    }

    #[test]
    fn one_piece_at_a_time_and_few_transfers_at_once() {
        let transfers: Transfers<()> = Transfers::new(2, IDLE);
        let (turn, _) = transfers.take("a", "`a`", 0).unwrap();
        for offset in [0, 1] {
            assert_eq!(
                refused(&transfers, "a", offset),
                "another piece of `a` is still being worked on; send the next one after its answer"
            );
        }
        transfers.take("b", "`b`", 0).unwrap().0.wait(1, ());
        assert_eq!(
            refused(&transfers, "c", 0),
            "2 transfers are under way on this connection; finish one first"
        );
        drop(turn);
        assert!(transfers.take("c", "`c`", 0).is_ok());
    }
}
