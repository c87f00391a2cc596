//! Runs this program's side of a remote call: it reads one line, writes one, and waits until its stdin ends.
//!
//! The other half is [`crate::transport::RemoteExec`], which says why.

use std::io::{self, BufRead as _, Read as _};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde::Serialize;

use super::output::Output;

/// Maximum length of a line that is heard, in bytes: a services file and a little.
const HEARD_MAX: u64 = 32 * 1024 * 1024;
/// Maximum duration of the wait after the answer: whoever asked has had it by then, or is gone.
const STAY_MAX: Duration = Duration::from_secs(10);

/// The line of whoever sent this.
pub(super) fn heard() -> io::Result<Vec<u8>> {
    let mut line = Vec::new();
    let mut stdin = io::stdin().lock().take(HEARD_MAX);
    stdin.read_until(b'\n', &mut line)?;
    Ok(line)
}

/// Says the answer, and stays until stdin ends.
pub(super) fn answer(output: &Output, answer: &impl Serialize) -> anyhow::Result<()> {
    let mut line = serde_json::to_vec(answer)?;
    line.push(b'\n');
    output.answer(&line)?;
    stay();
    Ok(())
}

/// Until stdin ends or fails, or the time is over.
fn stay() {
    let end = Instant::now() + STAY_MAX;
    let mut stdin = io::stdin().lock();
    let mut rest = [0; 1024];
    while let Some(left) = end.checked_duration_since(Instant::now()) {
        let ready = {
            let mut streams = [PollFd::new(&stdin, PollFlags::IN)];
            poll(&mut streams, Timespec::try_from(left).ok().as_ref())
        };
        if !ready.is_ok_and(|ready| ready > 0) || !stdin.read(&mut rest).is_ok_and(|read| read > 0)
        {
            return;
        }
    }
}
