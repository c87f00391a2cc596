//! Calls of the last minute, counted by the second: never more than the limit in any 60 s, in constant memory.

use std::time::Duration;

/// Seconds that are counted apart: 60 whole ones, and the one that runs.
const PARTS: usize = 61;
/// The same, as a number of seconds.
const SECONDS: u64 = PARTS as u64;

/// The calls of the last 60 seconds, and of the part of the second before them that is not over yet.
#[derive(Debug, Clone)]
pub(super) struct Minute {
    /// Calls in each second; that of second `n` is at `n` modulo [`PARTS`].
    counts: [u32; PARTS],
    /// The second that runs.
    now: u64,
}

impl Default for Minute {
    fn default() -> Self {
        Self {
            counts: [0; PARTS],
            now: 0,
        }
    }
}

impl Minute {
    /// Returns the time until one more call is within `limit`; `None`: it is now.
    pub(super) fn wait(&mut self, limit: u32, now: Duration) -> Option<Duration> {
        self.forget(now);
        let mut calls: u64 = self.counts.iter().map(|count| u64::from(*count)).sum();
        if calls < u64::from(limit) {
            return None;
        }
        // The oldest second first: it is the next to be over.
        let oldest = self.now + 1;
        let over = (oldest..oldest + SECONDS).find(|second| {
            calls -= u64::from(self.part(*second).map_or(0, |count| *count));
            calls < u64::from(limit)
        });
        let over = Duration::from_secs(over.unwrap_or(oldest + SECONDS - 1));
        // Its place is that of a second to come.
        Some(over.saturating_sub(now))
    }

    /// Counts a call.
    pub(super) fn add(&mut self, now: Duration) {
        self.forget(now);
        if let Some(count) = self.part(self.now) {
            *count = count.saturating_add(1);
        }
    }

    /// Lets go of the seconds that are over.
    fn forget(&mut self, now: Duration) {
        // Whoever looked at the clock before another and counts after it counts with it.
        let now = now.as_secs().max(self.now);
        for second in (self.now + 1..=now).take(self.counts.len()) {
            if let Some(count) = self.part(second) {
                *count = 0;
            }
        }
        self.now = now;
    }

    fn part(&mut self, second: u64) -> Option<&mut u32> {
        let place = usize::try_from(second % SECONDS).ok()?;
        self.counts.get_mut(place)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(milliseconds: u64) -> Duration {
        Duration::from_millis(milliseconds)
    }

    #[test]
    fn a_burst_counts_for_a_minute_and_the_wait_is_until_there_is_room() {
        let mut minute = Minute::default();
        for _ in 0..3 {
            assert_eq!(minute.wait(4, at(500)), None);
            minute.add(at(500));
        }
        minute.add(at(30_200));
        assert_eq!(minute.wait(4, at(30_200)), Some(at(61_000 - 30_200)));
        assert_eq!(minute.wait(4, at(60_999)), Some(at(1)));
        // Lowered, it waits for the others too.
        assert_eq!(minute.wait(1, at(60_999)), Some(at(91_000 - 60_999)));
        assert_eq!(minute.wait(4, at(61_000)), None);
        assert_eq!(minute.wait(1, at(61_000)), Some(at(30_000)));
        assert_eq!(minute.wait(1, at(91_000)), None);
        // Far later, and a clock that was looked at before.
        minute.add(at(1_000_000));
        assert_eq!(minute.wait(1, at(999_999)), Some(at(61_001)));
    }

    proptest! {
        #[test]
        fn in_no_60_seconds_there_are_more_than_the_limit(
            limit in 1_u32..30,
            steps in proptest::collection::vec(0_u64..4000, 1..500),
        ) {
            let mut minute = Minute::default();
            let mut now = 0;
            let mut calls: Vec<u64> = Vec::new();
            for step in steps {
                now += step;
                if let Some(wait) = minute.wait(limit, at(now)) {
                    // Whoever waits so long gets in, and whoever waits a little less does not.
                    let free = at(now) + wait;
                    prop_assert!(minute.clone().wait(limit, free).is_none());
                    prop_assert!(minute.clone().wait(limit, free.saturating_sub(at(1))).is_some());
                    // No later than a second after there is room.
                    let before = calls.iter().filter(|call| at(**call + 61_000) > free).count();
                    prop_assert!(before >= limit as usize - 1);
                } else {
                    minute.add(at(now));
                    calls.push(now);
                    let last = calls.iter().filter(|call| **call + 60_000 > now).count();
                    prop_assert!(last <= limit as usize, "{last} calls in a minute");
                }
            }
        }
    }
}
