//! Limits the memory that one caller may use across all its connections: long messages, parsed requests, answers.
//!
//! Each has its own part of the caller's budget, and memory is taken in this order, so that callers cannot deadlock.
//! Part of the budget always belongs to the caller ([`MEMORY_RESERVED`]); the rest is borrowed from the server in one
//! piece and returned when no longer needed, so a caller that has borrowed never waits for another caller.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::limits::MEMORY_RESERVED;

/// Minimum for answers, in bytes: one answer with the largest payload, held twice: as base64 and inside the message.
const ANSWER_MIN: u64 = 24 * 1024 * 1024;
/// Unit in which memory is counted, in bytes.
const PART: u64 = 1024;
/// Interval between attempts to borrow memory that the server has lent to others.
const RETRY: Duration = Duration::from_millis(50);

/// Lends a caller the part of its budget beyond [`MEMORY_RESERVED`].
pub(crate) trait Lender: Send + Sync {
    /// Lends it if enough is free; returns whether it did.
    fn borrow(&self) -> bool;

    /// Takes it back.
    fn give_back(&self);
}

/// The lender for a server with a single caller, whose memory no other caller needs.
pub(super) struct Alone;

impl Lender for Alone {
    fn borrow(&self) -> bool {
        true
    }

    fn give_back(&self) {}
}

/// Some of a caller's memory, freed when dropped.
pub(crate) struct MemoryPermit {
    permit: OwnedSemaphorePermit,
    budget: Arc<MemoryBudget>,
}

impl MemoryPermit {
    /// Releases all but this many bytes.
    pub(crate) fn shrink(mut self, bytes: usize) -> Option<Self> {
        let needed = self.permit.split(usize::try_from(parts(bytes)).ok()?);
        match needed {
            Some(permit) => Some(Self {
                permit,
                budget: Arc::clone(&self.budget),
            }),
            // The permit is already smaller.
            None => Some(self),
        }
    }
}

impl Drop for MemoryPermit {
    fn drop(&mut self) {
        self.budget.release(self.permit.num_permits());
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

#[derive(Default)]
struct MemoryState {
    used: u64,
    borrowed: bool,
}

impl MemoryBudget {
    fn state(&self) -> MutexGuard<'_, MemoryState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reserves more parts if they belong to the caller or can be borrowed; returns whether it did.
    fn try_reserve(&self, parts: u64) -> bool {
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

    fn release(&self, parts: usize) {
        let mut state = self.state();
        let parts = u64::try_from(parts).unwrap_or_default();
        state.used = state.used.saturating_sub(parts);
        if state.borrowed && state.used <= MEMORY_RESERVED / PART {
            state.borrowed = false;
            self.lender.give_back();
        }
    }
}

/// A part of the budget, shared by a caller's connections.
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

    /// Waits until this many bytes are free at once, or the whole pool if it has fewer, so that each message that has
    /// begun can be completed. Never fails: the semaphore is never closed.
    pub(super) async fn acquire(&self, bytes: usize) -> io::Result<MemoryPermit> {
        let parts = parts(bytes).min(self.parts);
        let permits = u32::try_from(parts).unwrap_or(u32::MAX);
        let acquired = Arc::clone(&self.free).acquire_many_owned(permits).await;
        let permit = acquired.map_err(io::Error::other)?;
        while !self.budget.try_reserve(parts) {
            tokio::time::sleep(RETRY).await;
        }
        Ok(MemoryPermit {
            permit,
            budget: Arc::clone(&self.budget),
        })
    }
}

/// The three parts of a caller's budget.
pub(super) struct Pools {
    /// Long messages, until they are answered.
    pub(super) long: MemoryPool,
    /// Parsed requests, until they are answered.
    pub(super) requests: MemoryPool,
    /// Large answers, until they are written.
    pub(super) answers: MemoryPool,
}

impl Pools {
    /// Divides a caller's budget, in bytes: an eighth for parsed requests, an eighth for the helpers that get the same
    /// requests, three eighths for answers (or enough for one answer if that is more), and the rest for messages.
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
    use crate::limits::{MEMORY, MEMORY_MIN};

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
        let first = pools.long.acquire(10 * MIB).await.unwrap();
        let second = pools.requests.acquire(6 * MIB).await.unwrap();
        assert_eq!(lent(), 0);
        // Nothing is left to lend: a request for more waits until the bank lends again.
        let third = pools.answers.acquire(MIB);
        let mut third = std::pin::pin!(third);
        let waited = tokio::time::timeout(Duration::from_secs(5), &mut third).await;
        assert!(waited.is_err());
        bank.empty.store(false, Ordering::Relaxed);
        let third = third.await.unwrap();
        assert_eq!(lent(), 1);
        let fourth = pools.long.acquire(14 * MIB).await.unwrap();
        assert_eq!(lent(), 1);
        drop((first, second));
        assert_eq!(lent(), 0);
        // A request for everything gets all that the pool may have, and no more.
        drop((third, fourth));
        let all = pools.long.acquire(usize::MAX).await.unwrap();
        assert_eq!(lent(), 1);
        let small = all.shrink(MIB);
        assert_eq!(lent(), 0);
        drop(small);
        assert_eq!(pools.long.budget.state().used, 0);
    }
}
