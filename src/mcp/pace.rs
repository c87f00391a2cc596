//! How fast a caller is read: what costs the server work and is no call that runs, such as lists, refusals and
//! garbage, is read at a steady pace when there is much of it. So a flood waits in its own sockets.
//!
//! Calls that run have limits of their own ([`crate::mcp::gate`]) and are not counted here.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::limits::{MESSAGES_AT_ONCE, MESSAGES_PER_SECOND};

/// Time of one small message.
const MESSAGE: Duration = Duration::from_micros(1_000_000 / MESSAGES_PER_SECOND);
/// Time of all that is read before any of it waits.
const AT_ONCE: Duration = MESSAGE.saturating_mul(MESSAGES_AT_ONCE);
/// Bytes that take as long as one message.
const BYTES: usize = 64 * 1024;
/// A message takes no longer than this many small ones, however long it is.
const MESSAGE_MAX: u32 = 256;
/// A connection that is accepted takes as long as this many messages.
const CONNECTION: u32 = 5;
/// The pace of one caller, over all its connections.
#[derive(Debug)]
pub(crate) struct Pace {
    /// When all that was read so far would be done, at one message a [`MESSAGE`].
    done: Mutex<Instant>,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            done: Mutex::new(Instant::now()),
        }
    }
}

impl Pace {
    /// Takes the turn of a message of so many bytes: when it may be read.
    pub(crate) fn message(&self, bytes: usize) -> Instant {
        self.turn(cost(bytes), Instant::now())
    }

    /// Takes the turn of a connection: when it may be served.
    pub(crate) fn connection(&self) -> Instant {
        self.turn(MESSAGE * CONNECTION, Instant::now())
    }

    /// A message of so many bytes was a call that runs: it is not counted.
    pub(crate) fn runs(&self, bytes: usize) {
        let mut done = self.done.lock().unwrap_or_else(PoisonError::into_inner);
        *done = done.checked_sub(cost(bytes)).unwrap_or(*done);
    }

    fn turn(&self, cost: Duration, now: Instant) -> Instant {
        let mut done = self.done.lock().unwrap_or_else(PoisonError::into_inner);
        // What was not used in time is gone.
        let begins = now.max(*done);
        *done = begins + cost;
        begins.checked_sub(AT_ONCE).map_or(now, |at| at.max(now))
    }
}

fn cost(bytes: usize) -> Duration {
    let parts = u32::try_from(bytes / BYTES).unwrap_or(MESSAGE_MAX);
    MESSAGE * parts.saturating_add(1).min(MESSAGE_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_is_read_at_once_and_the_rest_at_a_pace() {
        let now = Instant::now();
        let pace = Pace {
            done: Mutex::new(now),
        };
        let burst = MESSAGES_AT_ONCE;
        for _ in 0..=burst {
            assert_eq!(pace.turn(cost(10), now), now);
        }
        assert_eq!(pace.turn(cost(10), now), now + MESSAGE);
        assert_eq!(pace.turn(cost(10), now), now + 2 * MESSAGE);
        // Whoever stops for a while has the whole burst again, and no more.
        let later = now + 2 * AT_ONCE;
        for _ in 0..=burst {
            assert_eq!(pace.turn(cost(10), later), later);
        }
        assert!(pace.turn(cost(10), later) > later);
    }

    #[test]
    fn calls_that_run_are_not_counted() {
        let now = Instant::now();
        let pace = Pace {
            done: Mutex::new(now),
        };
        for _ in 0..100_000 {
            assert_eq!(pace.turn(cost(5 * BYTES), now), now);
            pace.runs(5 * BYTES);
        }
    }

    #[test]
    fn a_long_message_takes_longer_within_bounds() {
        assert_eq!(cost(0), MESSAGE);
        assert_eq!(cost(16 * BYTES), 17 * MESSAGE);
        assert_eq!(cost(usize::MAX), MESSAGE_MAX * MESSAGE);
    }
}
