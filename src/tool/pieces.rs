//! Transfers that span several calls on one connection: in order, one piece at a time, a few transfers at once.
//!
//! A piece waits while another one of its transfer is processed. One out of order is refused and the transfer continues;
//! only a second first piece ends it, so that pieces from two senders never mix under one name.

use std::collections::HashMap;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::Notify;
use tokio::task::{self, AbortHandle};
use tokio::time::sleep;

use super::ToolError;
use crate::catalogue::BadArguments;
use crate::text;

type Slots<T> = HashMap<String, Slot<T>>;

/// The transfers of one connection, by name.
#[derive(Debug)]
pub(super) struct Transfers<T> {
    slots: Arc<Mutex<Slots<T>>>,
    /// Notified when a piece has been processed.
    processed: Arc<Notify>,
    max: usize,
    /// Time for which a transfer waits for its next piece before it is dropped, with its gpg or its unpublished file.
    idle: Duration,
}

#[derive(Debug)]
enum Slot<T> {
    /// A piece is being processed.
    Taken,
    /// Waiting for the piece at this offset, until the timer drops it.
    Waiting {
        next: u64,
        transfer: T,
        timer: Option<Timer>,
    },
}

#[derive(Debug)]
struct Timer(AbortHandle);

impl Drop for Timer {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// The right to process the next piece. Dropping it without [`TransferTurn::wait`] ends the transfer.
#[derive(Debug)]
pub(super) struct TransferTurn<T> {
    slots: Arc<Mutex<Slots<T>>>,
    processed: Arc<Notify>,
    /// True if the slot is no longer this turn's: the next piece may have taken it since.
    is_passed_on: bool,
    name: String,
    idle: Duration,
}

/// A turn, and the transfer that was waiting for it.
type Taken<T> = (TransferTurn<T>, Option<T>);

impl<T> Transfers<T> {
    /// Creates room for `max` transfers, each dropped once it has waited `idle` for a piece.
    pub(super) fn new(max: usize, idle: Duration) -> Self {
        Self {
            slots: Arc::default(),
            processed: Arc::default(),
            max,
            idle,
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        lock(&self.slots).is_empty()
    }

    /// Takes the turn for a piece that begins at `offset`, once no other piece of the transfer is being processed;
    /// `displayed` is the name in messages.
    ///
    /// Returns the transfer that was waiting for the piece; `None` for the first piece.
    pub(super) async fn take(
        &self,
        name: &str,
        displayed: &str,
        offset: u64,
    ) -> Result<(TransferTurn<T>, Option<T>), ToolError> {
        loop {
            let mut processed = pin!(self.processed.notified());
            // From now on, a notification counts.
            processed.as_mut().enable();
            if let Some(taken) = self.take_now(name, displayed, offset)? {
                return Ok(taken);
            }
            processed.await;
        }
    }

    /// Takes the turn; returns `None` while another piece of the transfer is being processed.
    fn take_now(
        &self,
        name: &str,
        displayed: &str,
        offset: u64,
    ) -> Result<Option<Taken<T>>, ToolError> {
        let mut slots = lock(&self.slots);
        let transfer = match (slots.remove(name), offset) {
            (None, 0) if slots.len() >= self.max => {
                return Err(ToolError::Busy(format!(
                    "{} transfers are under way on this connection; finish one first",
                    self.max
                )));
            }
            (None, 0) => None,
            (None, _) => {
                return Err(ToolError::OutOfOrder(format!(
                    "no transfer of {displayed} is under way on this connection (an idle one is abandoned after {} s); begin at offset 0",
                    self.idle.as_secs()
                )));
            }
            (Some(Slot::Taken), _) => {
                slots.insert(name.to_owned(), Slot::Taken);
                return Ok(None);
            }
            // A transfer of 0 bytes so far has only been announced.
            (Some(Slot::Waiting { next, .. }), 0) if next > 0 => {
                return Err(ToolError::OutOfOrder(format!(
                    "a transfer of {displayed} was already under way on this connection and was cancelled; begin again at offset 0"
                )));
            }
            (Some(Slot::Waiting { next, transfer, .. }), _) if next == offset => Some(transfer),
            (Some(waiting @ Slot::Waiting { next, .. }), _) => {
                slots.insert(name.to_owned(), waiting);
                return Err(ToolError::OutOfOrder(format!(
                    "the next piece of {displayed} begins at offset {next}, not {offset}"
                )));
            }
        };
        slots.insert(name.to_owned(), Slot::Taken);
        let turn = TransferTurn {
            slots: Arc::clone(&self.slots),
            processed: Arc::clone(&self.processed),
            is_passed_on: false,
            idle: self.idle,
            name: name.to_owned(),
        };
        Ok(Some((turn, transfer)))
    }
}

impl<T: Send + 'static> TransferTurn<T> {
    /// Lets the transfer wait for the piece at `next`, for at most the idle time.
    pub(super) fn wait(mut self, next: u64, transfer: T) {
        let (slots, name, idle) = (Arc::downgrade(&self.slots), self.name.clone(), self.idle);
        // Tools always run in a runtime; unit tests without one need no timer.
        let timer = Handle::try_current().ok().map(|runtime| {
            let timer = runtime.spawn(async move {
                sleep(idle).await;
                let given_up = slots.upgrade().and_then(|slots| give_up(&slots, &name));
                // Not under the lock, so that nobody has to wait while the transfer is being dropped.
                drop(given_up);
            });
            Timer(timer.abort_handle())
        });
        let waiting = Slot::Waiting {
            next,
            transfer,
            timer,
        };
        lock(&self.slots).insert(self.name.clone(), waiting);
        self.is_passed_on = true;
        // Dropping `self` notifies those who wait for the turn.
    }
}

/// Removes the transfer whose timer is the current task.
fn give_up<T>(slots: &Mutex<Slots<T>>, name: &str) -> Option<Slot<T>> {
    let mut slots = lock(slots);
    let Some(Slot::Waiting { timer, .. }) = slots.get(name) else {
        return None;
    };
    let is_ours = timer
        .as_ref()
        .is_some_and(|timer| timer.0.id() == task::id());
    is_ours.then(|| slots.remove(name)).flatten()
}

impl<T> Drop for TransferTurn<T> {
    fn drop(&mut self) {
        if !self.is_passed_on {
            lock(&self.slots).remove(&self.name);
        }
        self.processed.notify_waiters();
    }
}

/// Refuses `final` in a call that is not a piece.
pub(super) fn not_final(last: Option<bool>) -> Result<(), BadArguments> {
    match last {
        None => Ok(()),
        Some(_) => Err("`final` without `offset`: a piece must state where it begins".into()),
    }
}

/// Refuses an empty piece unless it is the last one: it would not advance the transfer.
pub(super) fn not_empty(data: Vec<u8>, last: bool) -> Result<Vec<u8>, BadArguments> {
    if data.is_empty() && !last {
        return Err("`data` is empty, but only the last piece (`final`) may be".into());
    }
    Ok(data)
}

pub(super) fn contradicts(name: &str) -> ToolError {
    BadArguments::from(format!("`{name}` differs from that of an earlier piece")).into()
}

/// Formats the progress of a transfer, for its caller.
pub(super) fn progress(size: u64) -> String {
    format!(
        "{} received; the next piece begins at that offset",
        text::bytes(size)
    )
}

/// Locks a map even if it is poisoned: a panic elsewhere leaves it intact.
fn lock<T>(slots: &Mutex<Slots<T>>) -> MutexGuard<'_, Slots<T>> {
    slots.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::IDLE;

    fn refused<T: std::fmt::Debug>(transfers: &Transfers<T>, name: &str, offset: u64) -> String {
        let refused = transfers.take_now(name, &format!("`{name}`"), offset);
        refused.unwrap_err().to_string()
    }

    fn taken<T>(transfers: &Transfers<T>, name: &str, offset: u64) -> Taken<T> {
        let taken = transfers.take_now(name, &format!("`{name}`"), offset);
        taken.unwrap().unwrap()
    }

    #[test]
    fn pieces_follow_each_other() {
        let transfers = Transfers::new(2, IDLE);
        let (turn, step) = taken(&transfers, "a", 0);
        assert!(step.is_none());
        turn.wait(3, "abc");
        assert_eq!(
            refused(&transfers, "a", 2),
            "the next piece of `a` begins at offset 3, not 2"
        );
        assert_eq!(
            refused(&transfers, "a", 4),
            "the next piece of `a` begins at offset 3, not 4"
        );
        let (turn, step) = taken(&transfers, "a", 3);
        assert!(matches!(step, Some("abc")));
        drop(turn);
        assert_eq!(
            refused(&transfers, "a", 3),
            "no transfer of `a` is under way on this connection (an idle one is abandoned after 60 s); begin at offset 0"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_transfer_that_waits_too_long_is_given_up_and_one_that_goes_on_is_not() {
        let transfers = Transfers::new(2, IDLE);
        for name in ["a", "b"] {
            let name = name.to_owned();
            taken(&transfers, &name, 0).0.wait(1, ());
        }
        sleep(IDLE / 2).await;
        taken(&transfers, "b", 1).0.wait(2, ());
        sleep(IDLE / 10 * 9).await;
        assert!(refused(&transfers, "a", 1).starts_with("no transfer of `a` is under way"));
        assert!(matches!(taken(&transfers, "b", 2).1, Some(())));
    }

    #[test]
    fn two_senders_of_one_name_are_never_mixed() {
        let transfers = Transfers::new(2, IDLE);
        taken(&transfers, "a", 0).0.wait(3, "one");
        assert_eq!(
            refused(&transfers, "a", 0),
            "a transfer of `a` was already under way on this connection and was cancelled; begin again at offset 0"
        );
        // The first sender's next piece finds no transfer.
        assert!(refused(&transfers, "a", 3).starts_with("no transfer of `a`"));
        taken(&transfers, "a", 0).0.wait(5, "two");
        assert!(matches!(taken(&transfers, "a", 5).1, Some("two")));
    }

    #[test]
    fn one_piece_at_a_time_and_few_transfers_at_once() {
        let transfers: Transfers<()> = Transfers::new(2, IDLE);
        let (turn, _) = taken(&transfers, "a", 0);
        // The next piece waits for its turn.
        for offset in [0, 1] {
            assert!(transfers.take_now("a", "`a`", offset).unwrap().is_none());
        }
        taken(&transfers, "b", 0).0.wait(1, ());
        assert_eq!(
            refused(&transfers, "c", 0),
            "2 transfers are under way on this connection; finish one first"
        );
        drop(turn);
        taken(&transfers, "c", 0);
    }

    #[test]
    fn a_turn_that_was_passed_on_leaves_the_next_one_alone() {
        for _ in 0..300 {
            let transfers = Transfers::new(2, IDLE);
            let (turn, _) = taken(&transfers, "a", 0);
            std::thread::scope(|scope| {
                scope.spawn(|| turn.wait(3, ()));
                // The next piece, in the very moment in which its turn comes.
                let next = loop {
                    if let Some(next) = transfers.take_now("a", "`a`", 3).unwrap() {
                        break next;
                    }
                };
                // Long enough for the first turn to be dropped.
                std::thread::yield_now();
                next.0.wait(6, ());
            });
            assert!(taken(&transfers, "a", 6).1.is_some());
        }
    }

    #[tokio::test]
    async fn a_piece_waits_while_the_one_before_it_is_processed() {
        let transfers = Transfers::new(2, IDLE);
        let (turn, _) = taken(&transfers, "a", 0);
        let next = transfers.take("a", "`a`", 3);
        let process = async {
            tokio::task::yield_now().await;
            turn.wait(3, "abc");
        };
        let (next, ()) = tokio::join!(next, process);
        assert_eq!(next.unwrap().1, Some("abc"));
        // One whose predecessor fails finds no transfer.
        let after = transfers.take("a", "`a`", 6);
        assert!(after.await.is_err());
    }
}
