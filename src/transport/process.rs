//! A server that this program started: its last words, and its end.

use std::collections::VecDeque;
use std::fmt;
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

/// Time that a server gets to end after its stdin was closed.
const CALM_END: Duration = Duration::from_secs(2);
/// Time that a server gets to end after SIGTERM, before it is asked again.
const ASKED_AGAIN: Duration = Duration::from_millis(200);
/// Time that it gets after the second SIGTERM, before it is killed.
const ASKED_END: Duration = Duration::from_millis(800);
/// Time that the kernel gets to end what was killed.
const KILLED_END: Duration = Duration::from_secs(1);
/// Time to wait for the rest of a server's stderr after its end.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// Interval for checking for the end while nothing else can run.
const LOOK: Duration = Duration::from_millis(2);
/// Lines of a server's stderr that are kept as its last words.
const WORDS_LINES: usize = 8;
/// Maximum length of a line of a server's stderr that is kept or passed on, in bytes.
const WORDS_LINE_MAX: usize = 1024;
/// Maximum number of bytes of a server's stderr that are passed on with `--verbose`.
const WATCHED_MAX: usize = 1024 * 1024;

/// Gets each line that a server says on stderr, as it comes and unescaped.
pub(crate) struct Watch(Box<dyn Fn(&str) + Send + Sync>);

impl Watch {
    /// Hands each line to `line`.
    pub(crate) fn new(line: impl Fn(&str) + Send + Sync + 'static) -> Self {
        Self(Box::new(line))
    }

    pub(super) fn line(&self, text: &str) {
        (self.0)(text);
    }
}

impl fmt::Debug for Watch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Watch")
    }
}

/// A child of ours. Dropped, it is asked to end, then killed.
#[derive(Debug)]
pub(super) struct ServerProcess {
    child: Child,
    words: LastWords,
    listener: JoinHandle<()>,
}

/// The last lines of a server's stderr.
#[derive(Debug, Clone, Default)]
struct LastWords(Arc<Mutex<VecDeque<Foreign>>>);

impl ServerProcess {
    /// Takes over a child just started, and listens to its stderr.
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

    /// Waits for the end of a child whose stdin was closed, and for all that it had to say. `None`: it had to be ended.
    pub(super) async fn end(mut self) -> (Option<ExitStatus>, Vec<Foreign>) {
        let status = timeout(CALM_END, self.child.wait()).await;
        // Whoever else holds its stderr open is not waited for.
        let _ = timeout(LAST_WORDS, &mut self.listener).await;
        let words = self.words.all();
        (status.ok().and_then(Result::ok), words)
    }

    /// Its output so far.
    pub(super) fn words(&self) -> Vec<Foreign> {
        self.words.all()
    }
}

impl Drop for ServerProcess {
    /// Blocks for a moment: whoever drops a running server is about to end, and leaves nothing behind.
    fn drop(&mut self) {
        self.listener.abort();
        let id = self.child.id().and_then(|id| i32::try_from(id).ok());
        let Some(pid) = id.and_then(Pid::from_raw) else {
            return;
        };
        // The first signal lets a server end its calls, the second does not.
        for patience in [ASKED_AGAIN, ASKED_END] {
            let _ = kill_process(pid, Signal::TERM);
            if self.ends_within(patience) {
                return;
            }
        }
        let _ = self.child.start_kill();
        self.ends_within(KILLED_END);
    }
}

impl ServerProcess {
    /// Waits where nothing else can run.
    fn ends_within(&mut self, patience: Duration) -> bool {
        let start = Instant::now();
        while matches!(self.child.try_wait(), Ok(None)) {
            if start.elapsed() >= patience {
                return false;
            }
            sleep(LOOK);
        }
        true
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
            watch.line(&text);
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
                // What a line has beyond its limit goes by.
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
        listen(said.as_slice(), words.clone(), Watch::new(|_| {})).await;
        let mut expected: Vec<Foreign> = (993..1000)
            .map(|n| Foreign::from(format!("line {n}")))
            .collect();
        expected.push("x".repeat(WORDS_LINE_MAX).into());
        assert_eq!(words.all(), expected);
    }
}
