//! Ends a run on signals: after the first one, the run starts no further step; after the second, it ends immediately.

use std::cell::Cell;
use std::fs;
use std::future::poll_fn;
use std::io;
use std::pin::pin;
use std::task::Poll;

use tokio::signal::unix::{Signal, SignalKind, signal};

/// Reason for an action that was not started.
pub(crate) const LEFT: &str = "asked to stop";

/// Remembers that a run was asked to stop.
#[derive(Debug, Default)]
pub(crate) struct Interrupt(Cell<bool>);

impl Interrupt {
    /// Returns whether the run must not start another step.
    pub(crate) fn is_asked(&self) -> bool {
        self.0.get()
    }

    /// Reason for actions that were not started: the interruption if there was one, otherwise `why`.
    pub(crate) fn or<'w>(&self, why: &'w str) -> &'w str {
        if self.is_asked() { LEFT } else { why }
    }

    /// Runs work that checks [`Self::is_asked`] before each step. On the first signal, calls `tell`; the work ends by
    /// itself; after the second one, the result is `None`. Fails if signals cannot be watched.
    pub(crate) async fn run<T>(
        &self,
        work: impl Future<Output = T>,
        tell: impl Fn(),
    ) -> io::Result<Option<T>> {
        let mut signals = StopSignals::watch()?;
        let mut work = pin!(work);
        loop {
            tokio::select! {
                done = &mut work => return Ok(Some(done)),
                () = signals.next() => {
                    if self.0.replace(true) {
                        return Ok(None);
                    }
                    tell();
                }
            }
        }
    }
}

/// The stop signals, from ^C, a service manager or a closed terminal. Those that this process was started
/// to ignore (`nohup`, a shell's `&`) stay ignored.
#[derive(Debug)]
pub(crate) struct StopSignals(Vec<Signal>);

impl StopSignals {
    /// Starts watching for the signals. Fails if a system call fails.
    pub(crate) fn watch() -> io::Result<Self> {
        let ignored = ignored(&fs::read("/proc/self/status").unwrap_or_default());
        let kinds = [
            SignalKind::interrupt(),
            SignalKind::terminate(),
            SignalKind::hangup(),
        ];
        let is_ignored = |kind: &SignalKind| ignored >> (kind.as_raw_value() - 1) & 1 == 1;
        let watched = kinds.into_iter().filter(|kind| !is_ignored(kind));
        watched.map(signal).collect::<io::Result<_>>().map(Self)
    }

    /// Waits for the next signal.
    pub(crate) async fn next(&mut self) {
        poll_fn(|context| {
            let mut polls = self.0.iter_mut().map(|one| one.poll_recv(context));
            polls.find(Poll::is_ready).unwrap_or(Poll::Pending)
        })
        .await;
    }
}

/// The signals that a process ignores, one bit for each (proc(5)).
fn ignored(status: &[u8]) -> u64 {
    let mut lines = status.split(|byte| *byte == b'\n');
    let mask = lines.find_map(|line| line.strip_prefix(b"SigIgn:"));
    let mask = mask.and_then(|mask| std::str::from_utf8(mask).ok());
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use rustix::process::{Signal as Sent, getpid, kill_process};

    use super::*;

    /// Runs steps until it is asked to stop; during the second step, sends this signal to its own process.
    async fn steps(stop: &Interrupt, sent: Sent) -> u32 {
        let mut steps = 0;
        while !stop.is_asked() {
            steps += 1;
            if steps == 2 {
                kill_process(getpid(), sent).unwrap();
            }
            tokio::task::yield_now().await;
        }
        steps
    }

    #[tokio::test]
    async fn any_of_the_signals_lets_the_step_in_hand_end_and_a_second_one_does_not() {
        // A shell may make background jobs ignore some of these signals; skip those.
        let ignored = ignored(&fs::read("/proc/self/status").unwrap());
        let heard = |sent: &Sent| ignored >> (sent.as_raw() - 1) & 1 == 0;
        // The handlers stay installed for the lifetime of the process, so none of these signals ends it.
        for sent in [Sent::INT, Sent::TERM, Sent::HUP].into_iter().filter(heard) {
            let (stop, told) = (Interrupt::default(), Cell::new(0));
            let tell = || told.set(told.get() + 1);
            let done = stop.run(steps(&stop, sent), tell).await.unwrap();
            assert!(done.is_some_and(|steps| steps >= 2), "{sent:?}: {done:?}");
            assert_eq!(told.get(), 1);
            // A step that never ends.
            let never = async {
                kill_process(getpid(), sent).unwrap();
                std::future::pending::<u32>().await
            };
            assert_eq!(stop.run(never, tell).await.unwrap(), None);
            assert_eq!(told.get(), 1);
        }
    }

    #[test]
    fn what_a_process_was_started_to_ignore_is_read_from_its_status() {
        let status =
            b"Name:\ta\nSigBlk:\t0000000000000003\nSigIgn:\t0000000000001001\nSigCgt:\t0\n";
        assert_eq!(ignored(status), 0x1001);
        assert_eq!(ignored(b""), 0);
    }
}
