//! How fast a caller is read: what costs the server work and is no call that runs, such as lists, refusals and
//! garbage, is read at a steady pace when there is much of it. So a flood waits in its own sockets.
//!
//! Calls that run have limits of their own ([`crate::mcp::gate`]) and are not counted here. How much of a caller's long
//! messages is in memory at once is counted for all of them, whether they are whole, run, or never come to an end.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
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
/// Bytes of a message that every connection may read; what is longer shares [`LONG`].
pub(crate) const SHORT: usize = 16 * 1024;
/// Bytes that the long messages of one caller may have in memory, until they are answered. A single one may have more,
/// where its limit is larger.
pub(crate) const LONG: usize = 32 * 1024 * 1024;
/// Bytes that the parsed requests of one caller may have in memory, until they are answered.
const REQUESTS: usize = 8 * 1024 * 1024;
/// Bytes that the large answers of one caller may have in memory, until they are written.
const ANSWERS: usize = 24 * 1024 * 1024;
/// Memory is counted in parts of so many bytes.
const PART: usize = 1024;

/// Some of a caller's memory; free again when it is dropped.
#[derive(Debug)]
pub(crate) struct Room(OwnedSemaphorePermit);

impl Room {
    /// Gives back what so many bytes do not need.
    pub(crate) fn shrink(mut self, bytes: usize) -> Option<Self> {
        // All of it where it does not have as much.
        self.0.split(bytes.div_ceil(PART)).map(Self).or(Some(self))
    }
}

/// A pool of memory that the connections of a caller share.
#[derive(Debug)]
struct Memory {
    parts: usize,
    free: Arc<Semaphore>,
}

impl Memory {
    fn of(bytes: usize) -> Self {
        let parts = bytes / PART;
        Self {
            parts,
            free: Arc::new(Semaphore::new(parts)),
        }
    }

    /// Waits for so many bytes at once; for all there are where there are not as many.
    async fn room(&self, bytes: usize) -> io::Result<Room> {
        let parts = bytes.div_ceil(PART).min(self.parts);
        let parts = u32::try_from(parts).unwrap_or(u32::MAX);
        let taken = Arc::clone(&self.free).acquire_many_owned(parts);
        taken.await.map(Room).map_err(io::Error::other)
    }
}

/// The pace of one caller, over all its connections.
#[derive(Debug)]
pub(crate) struct Pace {
    long: Memory,
    requests: Memory,
    answers: Memory,
    /// When all that was read so far would be done, at one message a [`MESSAGE`].
    done: Mutex<Instant>,
}

impl Default for Pace {
    fn default() -> Self {
        Self::from(Instant::now())
    }
}

impl Pace {
    fn from(now: Instant) -> Self {
        Self {
            long: Memory::of(LONG),
            requests: Memory::of(REQUESTS),
            answers: Memory::of(ANSWERS),
            done: Mutex::new(now),
        }
    }

    /// Waits for the memory of a message that may have so many bytes: all at once, so that each that has begun can end.
    ///
    /// # Errors
    ///
    /// None; the semaphore is never closed.
    pub(crate) async fn room(&self, bytes: usize) -> io::Result<Room> {
        self.long.room(bytes).await
    }

    /// Waits for the memory of a parsed request of so many bytes. Memory is taken in this order, so that nobody waits in a
    /// circle: long message, request, answer.
    ///
    /// # Errors
    ///
    /// As [`Pace::room`].
    pub(crate) async fn request(&self, bytes: usize) -> io::Result<Room> {
        self.requests.room(bytes).await
    }

    /// Waits for the memory of an answer of so many bytes.
    ///
    /// # Errors
    ///
    /// As [`Pace::room`].
    pub(crate) async fn answer(&self, bytes: usize) -> io::Result<Room> {
        self.answers.room(bytes).await
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
        let pace = Pace::from(now);
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
        let (part, short, long) = (BYTES / 1024, SHORT / 1024, LONG / 1024 / 1024);
        let (requests, answers) = (REQUESTS / 1024 / 1024, ANSWERS / 1024 / 1024);
        for said in [
            format!("once more for each {part} KiB, {MESSAGE_MAX} times at most"),
            format!("a new connection counts as {CONNECTION} messages"),
            format!("Messages beyond {short} KiB share memory of {long} MiB for each caller"),
            format!(
                "Parsed requests share {requests} MiB in the same way, and answers of `file_provide` and `clipboard_get` beyond {short} KiB share {answers} MiB"
            ),
        ] {
            assert!(PAGE.contains(&said), "{said}");
        }
    }

    #[test]
    fn calls_that_run_are_not_counted() {
        let now = Instant::now();
        let pace = Pace::from(now);
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
