//! Work that blocks, away from the one thread that serves; told to stop when nobody waits for it any more.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::ToolError;

/// Says whether whoever asked for the work still waits for it.
#[derive(Debug, Clone, Default)]
pub(super) struct BlockingStop(Arc<AtomicBool>);

impl BlockingStop {
    /// Fails once nobody waits any more. To be asked before anything that stays.
    pub(super) fn check(&self) -> Result<(), ToolError> {
        if self.0.load(Ordering::Acquire) {
            Err(ToolError::Cancelled)
        } else {
            Ok(())
        }
    }
}

/// Raises the flag when the waiting future is dropped.
struct Waiting(BlockingStop);

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.0.store(true, Ordering::Release);
    }
}

/// Runs blocking work on a thread of its own.
pub(super) async fn run<T: Send + 'static>(
    work: impl FnOnce(&BlockingStop) -> Result<T, ToolError> + Send + 'static,
) -> Result<T, ToolError> {
    let stop = BlockingStop::default();
    let waiting = Waiting(stop.clone());
    let done = tokio::task::spawn_blocking(move || work(&stop)).await;
    drop(waiting);
    // A panic there, or a runtime that ends.
    done.unwrap_or(Err(ToolError::Broken))
}
