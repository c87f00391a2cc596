//! Limits the number of programs that run at the same time.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, timeout_at};

use crate::tool::ToolError;

/// Maximum time for which a call waits for another program to end.
const WAIT_MAX: Duration = Duration::from_secs(10);

/// The number of running programs.
#[derive(Debug, Default)]
pub(super) struct ProgramSlots {
    running: Mutex<u32>,
    freed: Notify,
}

/// A running program's slot, which is free again when this is dropped.
#[derive(Debug)]
pub(super) struct ProgramSlot(Arc<ProgramSlots>);

impl ProgramSlots {
    /// Waits until fewer programs than `max` run; `make_room` may end one meanwhile. Fails if that takes too long.
    pub(super) async fn enter(
        self: &Arc<Self>,
        max: impl Fn() -> u32,
        make_room: impl Fn(),
    ) -> Result<ProgramSlot, ToolError> {
        let end = Instant::now() + WAIT_MAX;
        loop {
            let freed = self.freed.notified();
            let max = max();
            if let Some(slot) = self.try_enter(max) {
                return Ok(slot);
            }
            make_room();
            if timeout_at(end, freed).await.is_err() {
                let text = format!(
                    "this machine already runs as many programs as it allows ({max}); try again later"
                );
                return Err(ToolError::Busy(text));
            }
        }
    }

    /// Returns the number of running programs.
    pub(super) fn running(&self) -> u32 {
        *self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn try_enter(self: &Arc<Self>, max: u32) -> Option<ProgramSlot> {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        (*running < max).then(|| {
            *running += 1;
            ProgramSlot(Arc::clone(self))
        })
    }
}

impl Drop for ProgramSlot {
    fn drop(&mut self) {
        let mut running = self
            .0
            .running
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        *running -= 1;
        drop(running);
        self.0.freed.notify_one();
    }
}
