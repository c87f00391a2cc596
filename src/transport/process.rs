//! Runs a server process: keeps its last output, and ends it.

use std::collections::VecDeque;
use std::process::ExitStatus;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::process::Child;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::text::Foreign;

/// Time for a server to end after its stdin was closed.
const CALM_END: Duration = Duration::from_secs(2);
/// Time between the first SIGTERM and the second.
const FIRST_TERM: Duration = Duration::from_millis(200);
/// Time between the second SIGTERM and SIGKILL.
const SECOND_TERM: Duration = Duration::from_millis(800);
/// Time for the kernel to end a killed process.
const KILLED_END: Duration = Duration::from_secs(1);
/// Time for the rest of a server's stderr after its end.
const LAST_WORDS_TIME: Duration = Duration::from_secs(1);
/// Interval for polling a process that is being ended.
const POLL: Duration = Duration::from_millis(2);
/// Maximum number of lines of a server's stderr that are kept.
const WORDS_LINES: usize = 8;
/// Maximum length of a line of a server's stderr that is kept or passed on, in bytes.
const WORDS_LINE_MAX: usize = 1024;
/// Maximum number of bytes of a server's stderr that are passed on with `--verbose`.
const WATCHED_MAX: usize = 1024 * 1024;

/// Receives each line that a server writes to stderr, unescaped.
pub(crate) type Watch = Box<dyn Fn(&str) + Send + Sync>;

/// A child process; dropped, it is terminated, then killed.
pub(super) struct ServerProcess {
    child: Child,
    words: LastWords,
    listener: JoinHandle<()>,
}

/// The last lines of a server's stderr.
#[derive(Clone, Default)]
struct LastWords(Arc<Mutex<VecDeque<Foreign>>>);

impl ServerProcess {
    /// Takes over a new child process, and reads its stderr.
    pub(super) fn new(mut child: Child, watch: Watch) -> Self {
        let words = LastWords::default();
        let listener = match child.stderr.take() {
            Some(stderr) => tokio::spawn(listen(stderr, words.clone(), watch)),
            None => tokio::spawn(async {}),
        };
        Self {
            child,
            words,
            listener,
        }
    }

    /// Waits for a process whose stdin was closed to end, and for its stderr. The status is `None` if it does not end.
    pub(super) async fn end(mut self) -> (Option<ExitStatus>, Vec<Foreign>) {
        let status = timeout(CALM_END, self.child.wait()).await;
        // Another process may hold its stderr open.
        let _ = timeout(LAST_WORDS_TIME, &mut self.listener).await;
        let words = self.words.all();
        (status.ok().and_then(Result::ok), words)
    }

    /// Returns the last lines of its stderr so far.
    pub(super) fn words(&self) -> Vec<Foreign> {
        self.words.all()
    }

    /// Waits, blocking, for the end; returns whether it came in time.
    fn ends_within(&mut self, time: Duration) -> bool {
        let start = Instant::now();
        while matches!(self.child.try_wait(), Ok(None)) {
            if start.elapsed() >= time {
                return false;
            }
            sleep(POLL);
        }
        true
    }
}

impl Drop for ServerProcess {
    /// Blocks for a moment: this program is about to end, and leaves no process behind.
    fn drop(&mut self) {
        self.listener.abort();
        let id = self.child.id().and_then(|id| i32::try_from(id).ok());
        let Some(pid) = id.and_then(Pid::from_raw) else {
            return;
        };
        // The first signal lets a server end its calls, the second does not.
        for time in [FIRST_TERM, SECOND_TERM] {
            let _ = kill_process(pid, Signal::TERM);
            if self.ends_within(time) {
                return;
            }
        }
        let _ = self.child.start_kill();
        self.ends_within(KILLED_END);
    }
}

impl LastWords {
    fn add(&self, line: String) {
        let mut lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if lines.len() == WORDS_LINES {
            lines.pop_front();
        }
        lines.push_back(line.into());
    }

    fn all(&self) -> Vec<Foreign> {
        let lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        lines.iter().cloned().collect()
    }
}

async fn listen(mut stderr: impl AsyncRead + Unpin, words: LastWords, watch: Watch) {
    let mut chunk = vec![0; WORDS_LINE_MAX];
    let mut line = Vec::new();
    let mut watched = 0;
    let mut tell = |line: &mut Vec<u8>| {
        let text = String::from_utf8_lossy(line).trim_end().to_owned();
        line.clear();
        if text.is_empty() {
            return;
        }
        watched += text.len();
        if watched <= WATCHED_MAX {
            watch(&text);
        }
        words.add(text);
    };
    while let Ok(read) = stderr.read(&mut chunk).await {
        if read == 0 {
            break;
        }
        for byte in chunk.iter().take(read) {
            match byte {
                b'\n' => tell(&mut line),
                // The rest of a long line is dropped.
                _ if line.len() == WORDS_LINE_MAX => {}
                byte => line.push(*byte),
            }
        }
    }
    tell(&mut line);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_last_lines_are_kept_and_long_ones_are_cut() {
        let mut said = Vec::new();
        for number in 0..1000 {
            said.extend(format!("line {number}\n").bytes());
        }
        said.extend(vec![b'x'; 10 * WORDS_LINE_MAX]);
        let words = LastWords::default();
        listen(said.as_slice(), words.clone(), Box::new(|_| {})).await;
        let mut expected: Vec<Foreign> = (993..1000)
            .map(|n| Foreign::from(format!("line {n}")))
            .collect();
        expected.push("x".repeat(WORDS_LINE_MAX).into());
        assert_eq!(words.all(), expected);
    }
}
