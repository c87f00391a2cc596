//! How fast a caller is read: what costs the server work and is no call that runs, such as lists, refusals and
//! garbage, is read at a steady pace when there is much of it. So a flood waits in its own sockets.
//!
//! Calls that run have limits of their own ([`crate::mcp::concurrency`]) and are not counted here. How much of what a caller sent is in
//! memory at once is counted too, whether it is whole, runs, or never comes to an end.

mod memory;

use std::io;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::limits::{MESSAGES_AT_ONCE, MESSAGES_PER_SECOND};
use memory::Pools;

pub(crate) use memory::{Lender, MemoryPermit};

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
/// Bytes of a message that every connection may read; what is longer takes memory of its caller's.
pub(crate) const SHORT: usize = 16 * 1024;
/// The pace of one caller, over all its connections.
#[derive(Debug)]
pub(crate) struct ReadThrottle {
    memory: Pools,
    /// When all that was read so far would be done, at one message a [`MESSAGE`].
    done: Mutex<Instant>,
}

impl Default for ReadThrottle {
    fn default() -> Self {
        Self::of(Pools::default())
    }
}

impl ReadThrottle {
    /// Of a caller that may have so many bytes in memory, part of them borrowed.
    pub(crate) fn with_memory(bytes: u64, lender: Box<dyn Lender>) -> Self {
        Self::of(Pools::of(bytes, lender))
    }

    fn of(memory: Pools) -> Self {
        Self {
            memory,
            done: Mutex::new(Instant::now()),
        }
    }

    /// Waits for the memory of a message that may have so many bytes: all at once, so that each that has begun can end.
    ///
    /// # Errors
    ///
    /// None; the semaphore is never closed.
    pub(crate) async fn room(&self, bytes: usize) -> io::Result<MemoryPermit> {
        self.memory.long.room(bytes).await
    }

    /// Waits for the memory of a parsed request of so many bytes. Memory is taken in this order, so that nobody waits in a
    /// circle: long message, request, answer.
    ///
    /// # Errors
    ///
    /// As [`ReadThrottle::room`].
    pub(crate) async fn request(&self, bytes: usize) -> io::Result<MemoryPermit> {
        self.memory.requests.room(bytes).await
    }

    /// Waits for the memory of an answer of so many bytes.
    ///
    /// # Errors
    ///
    /// As [`ReadThrottle::room`].
    pub(crate) async fn answer(&self, bytes: usize) -> io::Result<MemoryPermit> {
        self.memory.answers.room(bytes).await
    }

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
        let pace = ReadThrottle::default();
        *pace.done.lock().unwrap() = now;
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
    fn the_page_says_the_same() {
        const PAGE: &str = include_str!("../../docs/channel.md");
        // Line breaks of the page do not matter.
        let page = PAGE.split_whitespace().collect::<Vec<_>>().join(" ");
        let (part, short) = (BYTES / 1024, SHORT / 1024);
        for said in [
            format!("once more for each {part} KiB, at most {MESSAGE_MAX} times"),
            format!("a new connection counts as {CONNECTION} messages"),
            format!("Messages over {short} KiB use this memory"),
        ] {
            assert!(page.contains(&said), "{said}");
        }
    }

    #[test]
    fn calls_that_run_are_not_counted() {
        let now = Instant::now();
        let pace = ReadThrottle::default();
        *pace.done.lock().unwrap() = now;
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
