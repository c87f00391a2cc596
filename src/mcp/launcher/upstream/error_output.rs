//! Writes an upstream's error output to the machine's log, within limits.

use std::time::Duration;

use tokio::net::unix::pipe;
use tokio::time::Instant;

use crate::mcp::framing::{Line, Lines};
use crate::mcp::launcher::ReportFault;

/// Maximum length of a line that is read, and of its part that is written, in bytes and characters.
const LINE_MAX: usize = 16 * 1024;
const SHOWN_MAX: usize = 500;
/// Maximum number of lines per interval.
const LINES_MAX: u32 = 50;
const INTERVAL: Duration = Duration::from_secs(10);

/// Where an upstream's error output goes.
pub(super) struct ErrorOutput {
    /// The name of the server in messages.
    pub(super) label: String,
    pub(super) report: ReportFault,
}

impl ErrorOutput {
    /// Passes on what the server writes to stderr, until it closes it.
    pub(super) async fn pass_on(self, stderr: pipe::Receiver) {
        let mut lines = Lines::new(stderr, LINE_MAX);
        let (mut since, mut count) = (Instant::now(), 0);
        while let Ok(Some(line)) = lines.next().await {
            if since.elapsed() > INTERVAL {
                (since, count) = (Instant::now(), 0);
            }
            count += 1;
            if count > LINES_MAX {
                continue;
            }
            let (Line::Whole(bytes) | Line::TooLong { head: bytes, .. }) = &line;
            let text = String::from_utf8_lossy(bytes);
            // Whoever writes it to the log escapes it.
            let text: String = text.chars().take(SHOWN_MAX).collect();
            (self.report)(&format!("the server {} says: {text}", self.label));
        }
    }
}
