//! Limits the memory that one caller may use over all its connections: long messages, parsed requests, answers.
//!
//! Each of the three has its own part of the caller's budget, so that nobody waits in a circle: memory is taken in this order. A part
//! of the budget is the caller's at any time ([`MEMORY_RESERVED`]); what goes beyond that is borrowed from the server, all of it at once, and
//! given back when it is not needed. So whoever has borrowed waits for no other caller.

use std::fmt;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::limits::{MEMORY, MEMORY_RESERVED};

/// Least for answers, in bytes: one of the largest payload, in its message and in base64.
const ANSWER_MIN: u64 = 24 * 1024 * 1024;
/// Memory is counted in parts of so many bytes.
const PART: u64 = 1024;
/// Interval for asking again for memory that the server has lent to others.
const LOOK: Duration = Duration::from_millis(50);

/// Who lends a caller what its budget has beyond [`MEMORY_RESERVED`].
pub(crate) trait Lender: Send + Sync {
    /// Lends it, if others leave as much.
    fn borrow(&self) -> bool;

    /// Takes it back.
    fn give_back(&self);
}

/// A server of one caller, whose memory nobody else needs.
pub(crate) struct Alone;

impl Lender for Alone {
    fn borrow(&self) -> bool {
        true
    }

    fn give_back(&self) {}
}

/// Some of a caller's memory; free again when it is dropped.
#[derive(Debug)]
pub(crate) struct MemoryPermit {
    permit: OwnedSemaphorePermit,
    budget: Arc<MemoryBudget>,
}

impl MemoryPermit {
    /// Gives back what so many bytes do not need.
    pub(crate) fn shrink(mut self, bytes: usize) -> Option<Self> {
        let kept = self.permit.split(usize::try_from(parts(bytes)).ok()?);
        match kept {
            Some(permit) => Some(Self {
                permit,
                budget: Arc::clone(&self.budget),
            }),
            // It does not have as much.
            None => Some(self),
        }
    }
}

impl Drop for MemoryPermit {
    fn drop(&mut self) {
        self.budget.less(self.permit.num_permits());
    }
}

fn parts(bytes: usize) -> u64 {
    u64::try_from(bytes).unwrap_or(u64::MAX).div_ceil(PART)
}

/// A caller's memory, counted in parts.
struct MemoryBudget {
    lender: Box<dyn Lender>,
    state: Mutex<MemoryState>,
}

#[derive(Debug, Default)]
struct MemoryState {
    used: u64,
    borrowed: bool,
}

impl fmt::Debug for MemoryBudget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Budget").finish_non_exhaustive()
    }
}

impl MemoryBudget {
    fn state(&self) -> MutexGuard<'_, MemoryState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts more, if that is the caller's or can be borrowed.
    fn try_more(&self, parts: u64) -> bool {
        let mut state = self.state();
        let used = state.used.saturating_add(parts);
        if used > MEMORY_RESERVED / PART && !state.borrowed {
            state.borrowed = self.lender.borrow();
            if !state.borrowed {
                return false;
            }
        }
        state.used = used;
        true
    }

    fn less(&self, parts: usize) {
        let mut state = self.state();
        state.used = state
            .used
            .saturating_sub(u64::try_from(parts).unwrap_or_default());
        if state.borrowed && state.used <= MEMORY_RESERVED / PART {
            state.borrowed = false;
            self.lender.give_back();
        }
    }
}

/// A part of the budget, which the connections of a caller share.
#[derive(Debug)]
pub(super) struct MemoryPool {
    parts: u64,
    free: Arc<Semaphore>,
    budget: Arc<MemoryBudget>,
}

impl MemoryPool {
    fn of(bytes: u64, budget: &Arc<MemoryBudget>) -> Self {
        let parts = (bytes / PART).min(Semaphore::MAX_PERMITS as u64);
        Self {
            parts,
            free: Arc::new(Semaphore::new(usize::try_from(parts).unwrap_or_default())),
            budget: Arc::clone(budget),
        }
    }

    /// Waits for so many bytes at once; for all there are where there are not as many.
    ///
    /// # Errors
    ///
    /// None; the semaphore is never closed.
    pub(super) async fn room(&self, bytes: usize) -> io::Result<MemoryPermit> {
        let parts = parts(bytes).min(self.parts);
        let taken = u32::try_from(parts).unwrap_or(u32::MAX);
        let taken = Arc::clone(&self.free).acquire_many_owned(taken);
        let permit = taken.await.map_err(io::Error::other)?;
        while !self.budget.try_more(parts) {
            tokio::time::sleep(LOOK).await;
        }
        Ok(MemoryPermit {
            permit,
            budget: Arc::clone(&self.budget),
        })
    }
}

/// The three parts of a caller's budget.
#[derive(Debug)]
pub(super) struct Pools {
    /// Messages that are long, until they are answered.
    pub(super) long: MemoryPool,
    /// Parsed requests, until they are answered.
    pub(super) requests: MemoryPool,
    /// Large answers, until they are written.
    pub(super) answers: MemoryPool,
}

impl Default for Pools {
    fn default() -> Self {
        Self::of(MEMORY, Box::new(Alone))
    }
}

impl Pools {
    /// Of a caller that may have so many bytes in all: an eighth for what was parsed, as much again for the process that runs its
    /// tools and gets the same requests, three eighths or what one answer needs for answers, and the rest for messages.
    pub(super) fn of(bytes: u64, lender: Box<dyn Lender>) -> Self {
        let budget = Arc::new(MemoryBudget {
            lender,
            state: Mutex::default(),
        });
        let requests = bytes / 8;
        let answers = (bytes / 8 * 3).max(ANSWER_MIN);
        let long = bytes.saturating_sub(answers + 2 * requests);
        Self {
            long: MemoryPool::of(long, &budget),
            requests: MemoryPool::of(requests, &budget),
            answers: MemoryPool::of(answers, &budget),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

    use super::*;
    use crate::catalogue::ONE_CALL_MAX;
    use crate::limits::MEMORY_MIN;

    const MIB: usize = 1024 * 1024;

    #[derive(Clone, Default)]
    struct Bank {
        empty: Arc<AtomicBool>,
        lent: Arc<AtomicU32>,
    }

    impl Lender for Bank {
        fn borrow(&self) -> bool {
            let lends = !self.empty.load(Ordering::Relaxed);
            self.lent.fetch_add(u32::from(lends), Ordering::Relaxed);
            lends
        }

        fn give_back(&self) {
            self.lent.fetch_sub(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn the_least_budget_holds_one_call_of_the_largest_payload() {
        let base64 = ONE_CALL_MAX.div_ceil(3) * 4;
        for budget in [MEMORY_MIN, MEMORY, 4 * MEMORY] {
            let pools = Pools::of(budget, Box::new(Alone));
            assert!(pools.long.parts * PART > base64, "{budget}");
            assert!(pools.answers.parts * PART > 2 * base64, "{budget}");
            let all = pools.long.parts + pools.requests.parts * 2 + pools.answers.parts;
            assert!(all * PART <= budget, "{budget}");
        }
        let pools = Pools::of(MEMORY_MIN - 1024 * 1024, Box::new(Alone));
        assert!(pools.long.parts * PART < base64 + 1024 * 1024);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_reserved_is_there_at_any_time_and_the_rest_is_borrowed_while_it_is_needed() {
        let bank = Bank::default();
        let pools = Pools::of(MEMORY, Box::new(bank.clone()));
        let lent = || bank.lent.load(Ordering::Relaxed);
        bank.empty.store(true, Ordering::Relaxed);
        let first = pools.long.room(10 * MIB).await.unwrap();
        let second = pools.requests.room(6 * MIB).await.unwrap();
        assert_eq!(lent(), 0);
        // Nothing is left: who wants more waits, and gets it when others have given back.
        let third = pools.answers.room(MIB);
        let mut third = std::pin::pin!(third);
        let waited = tokio::time::timeout(Duration::from_secs(5), &mut third).await;
        assert!(waited.is_err());
        bank.empty.store(false, Ordering::Relaxed);
        let third = third.await.unwrap();
        assert_eq!(lent(), 1);
        let fourth = pools.long.room(14 * MIB).await.unwrap();
        assert_eq!(lent(), 1);
        drop((first, second));
        assert_eq!(lent(), 0);
        // All that it may have, and no more.
        drop((third, fourth));
        let all = pools.long.room(usize::MAX).await.unwrap();
        assert_eq!(lent(), 1);
        let small = all.shrink(MIB);
        assert_eq!(lent(), 0);
        drop(small);
        assert_eq!(pools.long.budget.state().used, 0);
    }
}
