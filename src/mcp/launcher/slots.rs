//! Limits the number of programs that run at the same time, and shares them among callers.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, timeout_at};

use crate::policy::Caller;
use crate::tool::ToolError;

/// Maximum time for which a call waits for another program to end.
const WAIT_MAX: Duration = Duration::from_secs(10);

/// The running programs.
#[derive(Debug, Default)]
pub(super) struct ProgramSlots {
    state: Mutex<SlotState>,
    freed: Notify,
}

#[derive(Debug, Default)]
struct SlotState {
    /// Number of running programs for each caller that has any.
    running: HashMap<Caller, u32>,
    /// Number of waiting calls for each caller that has any.
    waiting: HashMap<Caller, u32>,
}

/// A running program's slot, which is free again when this is dropped.
#[derive(Debug)]
pub(super) struct ProgramSlot {
    slots: Arc<ProgramSlots>,
    caller: Caller,
}

/// A call that waits for a slot, until this is dropped.
struct SlotWait<'a> {
    slots: &'a ProgramSlots,
    caller: &'a Caller,
}

impl SlotState {
    fn all(&self) -> u32 {
        self.running.values().sum()
    }

    fn running_of(&self, caller: &Caller) -> u32 {
        self.running.get(caller).copied().unwrap_or_default()
    }

    /// Returns whether a caller may run one more of `max` programs. The last slot is for a caller that has none, and
    /// callers with fewer programs come first.
    fn admits(&self, caller: &Caller, max: u32) -> bool {
        let (all, own) = (self.all(), self.running_of(caller));
        let is_kept = own > 0 && max > 1 && all + 1 == max;
        let others = self.waiting.keys().filter(|other| *other != caller);
        let comes_first = |other: &Caller| self.running_of(other) < own;
        all < max && !is_kept && !others.into_iter().any(comes_first)
    }
}

/// Counts one less, and forgets a caller without any.
pub(super) fn decrease(counts: &mut HashMap<Caller, u32>, caller: &Caller) {
    if let Some(count) = counts.get_mut(caller) {
        *count -= 1;
        if *count == 0 {
            counts.remove(caller);
        }
    }
}

impl ProgramSlots {
    /// Waits until a caller may run one more of `max` programs; `make_room` may end one meanwhile. Fails if that takes too
    /// long.
    pub(super) async fn enter(
        self: &Arc<Self>,
        caller: &Caller,
        max: impl Fn() -> u32,
        make_room: impl Fn(),
    ) -> Result<ProgramSlot, ToolError> {
        let end = Instant::now() + WAIT_MAX;
        let mut waiting = None;
        loop {
            let freed = self.freed.notified();
            let max = max();
            if let Some(slot) = self.try_enter(caller, max) {
                return Ok(slot);
            }
            waiting.get_or_insert_with(|| self.wait(caller));
            make_room();
            if timeout_at(end, freed).await.is_err() {
                let text = format!(
                    "this machine already runs as many programs as it allows ({max} for all callers); try again later"
                );
                return Err(ToolError::Busy(text));
            }
        }
    }

    /// Returns the number of running programs.
    pub(super) fn running(&self) -> u32 {
        self.state().all()
    }

    fn state(&self) -> MutexGuard<'_, SlotState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn try_enter(self: &Arc<Self>, caller: &Caller, max: u32) -> Option<ProgramSlot> {
        let mut state = self.state();
        state.admits(caller, max).then(|| {
            *state.running.entry(caller.clone()).or_default() += 1;
            ProgramSlot {
                slots: Arc::clone(self),
                caller: caller.clone(),
            }
        })
    }

    fn wait<'a>(&'a self, caller: &'a Caller) -> SlotWait<'a> {
        let mut state = self.state();
        *state.waiting.entry(caller.clone()).or_default() += 1;
        drop(state);
        SlotWait {
            slots: self,
            caller,
        }
    }
}

impl Drop for SlotWait<'_> {
    fn drop(&mut self) {
        decrease(&mut self.slots.state().waiting, self.caller);
        // Others may have waited behind it.
        self.slots.freed.notify_waiters();
    }
}

impl Drop for ProgramSlot {
    fn drop(&mut self) {
        decrease(&mut self.slots.state().running, &self.caller);
        self.slots.freed.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_slot_is_for_a_caller_that_has_none() {
        let slots = Arc::new(ProgramSlots::default());
        let caller = |name: &str| Caller::Consumer(name.parse().unwrap());
        let (alice, bob) = (caller("alice"), caller("bob"));
        let held: Vec<_> = (0..4).map_while(|_| slots.try_enter(&alice, 3)).collect();
        assert_eq!(held.len(), 2);
        let last = slots.try_enter(&bob, 3).unwrap();
        assert!(slots.try_enter(&bob, 3).is_none());
        drop((held, last));
        assert_eq!(slots.running(), 0);
        // Where there is only one, anybody gets it.
        assert!(slots.try_enter(&alice, 1).is_some());
    }

    #[test]
    fn callers_with_fewer_programs_come_first() {
        let slots = Arc::new(ProgramSlots::default());
        let caller = |name: &str| Caller::Consumer(name.parse().unwrap());
        let (alice, bob) = (caller("alice"), caller("bob"));
        let _held = slots.try_enter(&alice, 9).unwrap();
        let waiting = slots.wait(&bob);
        assert!(slots.try_enter(&alice, 9).is_none());
        let _bobs = slots.try_enter(&bob, 9).unwrap();
        // Now both have the same number.
        assert!(slots.try_enter(&alice, 9).is_some());
        drop(waiting);
        assert!(slots.state().waiting.is_empty());
    }
}
