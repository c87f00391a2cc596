//! Runs blocking work away from the one thread that serves, and stops it when nobody waits for it any more.

use tokio_util::sync::CancellationToken;

use super::ToolError;

/// Tells blocking work to stop, once the future that waits for it was dropped.
#[derive(Debug, Default)]
pub(super) struct BlockingStop(CancellationToken);

impl BlockingStop {
    /// Fails once nobody waits any more. To be called before every lasting effect.
    pub(super) fn check(&self) -> Result<(), ToolError> {
        if self.0.is_cancelled() {
            Err(ToolError::Cancelled)
        } else {
            Ok(())
        }
    }
}

/// Runs blocking work on a thread of its own.
pub(super) async fn run<T: Send + 'static>(
    work: impl FnOnce(&BlockingStop) -> Result<T, ToolError> + Send + 'static,
) -> Result<T, ToolError> {
    let stop = BlockingStop::default();
    let _cancel_on_drop = stop.0.clone().drop_guard();
    let done = tokio::task::spawn_blocking(move || work(&stop)).await;
    // The work panicked, or the runtime ends.
    done.unwrap_or(Err(ToolError::Broken))
}
