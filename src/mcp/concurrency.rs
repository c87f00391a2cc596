//! Limits concurrent calls and calls per minute, per caller and in total.
//!
//! A call that is allowed but cannot run now is answered with an overload error, never with a refusal.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::limits::{CALLS_PER_MINUTE, CALLS_PER_MINUTE_ALL, IN_FLIGHT, IN_FLIGHT_ALL, Limits};

/// Retry delay when a limit on concurrent calls or connections is reached: it is unknown when a running one will end.
const RETRY: Duration = Duration::from_secs(1);

/// The scope of a limit. A service with its own value is counted separately.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Scope {
    caller: Option<String>,
    service: Option<String>,
}

/// The kind of limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum LimitKind {
    /// On concurrent calls or connections.
    AtOnce,
    /// On calls per minute.
    Minute,
}

/// The reason why a call cannot run now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Overloaded {
    pub(crate) kind: LimitKind,
    pub(crate) limit: String,
    /// Time until the caller may try again.
    pub(crate) retry_after: Duration,
}

impl Overloaded {
    fn new(kind: LimitKind, max: u32, things: &str, whose: &str, retry_after: Duration) -> Self {
        let plural = if max == 1 { "" } else { "s" };
        let period = match kind {
            LimitKind::AtOnce => "at once",
            LimitKind::Minute => "per minute",
        };
        Self {
            kind,
            limit: format!("{max} {things}{plural} {whose} {period}"),
            retry_after,
        }
    }
}

/// Builds the answer to a connection beyond the `max` that a caller may have open.
pub(crate) fn too_many_connections(max: usize) -> Overloaded {
    let max = u32::try_from(max).unwrap_or(u32::MAX);
    let kind = LimitKind::AtOnce;
    Overloaded::new(kind, max, "connection", "from this caller", RETRY)
}

/// A server's counters.
#[derive(Debug)]
pub(crate) struct ConcurrencyLimiter {
    counters: Mutex<Counters>,
    began: Instant,
}

impl Default for ConcurrencyLimiter {
    fn default() -> Self {
        Self {
            counters: Mutex::default(),
            began: Instant::now(),
        }
    }
}

#[derive(Debug, Default)]
struct Counters {
    running: HashMap<Scope, u32>,
    minutes: HashMap<Scope, Minute>,
}

/// A place among the running calls, freed when dropped.
#[derive(Debug)]
pub(crate) struct RunningCall {
    limiter: Arc<ConcurrencyLimiter>,
    scopes: [Scope; 2],
}

impl Drop for RunningCall {
    fn drop(&mut self) {
        let mut counters = self.limiter.lock();
        for scope in &self.scopes {
            if let Some(count) = counters.running.get_mut(scope) {
                *count -= 1;
                if *count == 0 {
                    counters.running.remove(scope);
                }
            }
        }
    }
}

impl ConcurrencyLimiter {
    fn lock(&self) -> MutexGuard<'_, Counters> {
        self.counters.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Admits a call, or counts nothing and returns the limit reached.
    pub(crate) fn enter(
        self: &Arc<Self>,
        caller: &str,
        service: &str,
        limits: &Limits,
    ) -> Result<RunningCall, Overloaded> {
        self.enter_at(caller, service, limits, self.began.elapsed())
    }

    /// Like [`Self::enter`], at a given time since the limiter's creation.
    fn enter_at(
        self: &Arc<Self>,
        caller: &str,
        service: &str,
        limits: &Limits,
        now: Duration,
    ) -> Result<RunningCall, Overloaded> {
        let scope = |caller: Option<&str>, own: Option<u32>| Scope {
            caller: caller.map(str::to_owned),
            service: own.map(|_| service.to_owned()),
        };
        let of_caller = |own: Option<u32>, default| {
            let scope = scope(Some(caller), own);
            (scope, own.unwrap_or(default), "from this caller")
        };
        let of_all = |own: Option<u32>, default| {
            let scope = scope(None, own);
            (scope, own.unwrap_or(default), "from all callers")
        };
        let rates = [
            of_caller(limits.calls_per_minute, CALLS_PER_MINUTE),
            of_all(limits.calls_per_minute_all, CALLS_PER_MINUTE_ALL),
        ];
        let places = [
            of_caller(limits.in_flight, IN_FLIGHT),
            of_all(limits.in_flight_all, IN_FLIGHT_ALL),
        ];
        let mut counters = self.lock();
        for (scope, max, whose) in &places {
            if counters.running.get(scope).copied().unwrap_or_default() >= *max {
                let kind = LimitKind::AtOnce;
                return Err(Overloaded::new(kind, *max, "call", whose, RETRY));
            }
        }
        for (scope, max, whose) in &rates {
            let minute = counters.minutes.entry(scope.clone()).or_default();
            if let Some(wait) = minute.wait(*max, now) {
                let kind = LimitKind::Minute;
                return Err(Overloaded::new(kind, *max, "call", whose, wait));
            }
        }
        for (scope, ..) in rates {
            counters.minutes.entry(scope).or_default().add(now);
        }
        let scopes = places.map(|(scope, ..)| scope);
        for scope in &scopes {
            *counters.running.entry(scope.clone()).or_default() += 1;
        }
        Ok(RunningCall {
            limiter: Arc::clone(self),
            scopes,
        })
    }
}

/// Number of seconds counted separately: 60 full ones and the current one.
const SECONDS: usize = 61;

/// The calls in the current second and the 60 before it: never more than the limit in any 60 s, in constant memory.
#[derive(Debug, Clone)]
struct Minute {
    /// Calls in each second; those in second `n` are at index `n` modulo [`SECONDS`].
    counts: [u32; SECONDS],
    now: u64,
}

impl Default for Minute {
    fn default() -> Self {
        Self {
            counts: [0; SECONDS],
            now: 0,
        }
    }
}

impl Minute {
    /// Returns the time until one more call is within `limit`; `None` if it already is.
    fn wait(&mut self, limit: u32, now: Duration) -> Option<Duration> {
        self.forget(now);
        let mut calls: u64 = self.counts.iter().map(|count| u64::from(*count)).sum();
        if calls < u64::from(limit) {
            return None;
        }
        // Starts at the oldest second, which expires first.
        let oldest = self.now + 1;
        let last = self.now + SECONDS as u64;
        let over = (oldest..=last).find(|second| {
            calls -= u64::from(self.count(*second).map_or(0, |count| *count));
            calls < u64::from(limit)
        });
        // A past second shares its slot with a future one, and expires when that one begins.
        Some(Duration::from_secs(over.unwrap_or(last)).saturating_sub(now))
    }

    /// Counts a call.
    fn add(&mut self, now: Duration) {
        self.forget(now);
        if let Some(count) = self.count(self.now) {
            *count = count.saturating_add(1);
        }
    }

    /// Clears the expired seconds.
    fn forget(&mut self, now: Duration) {
        // Another thread may already have counted a call at a later time: time never goes backwards.
        let now = now.as_secs().max(self.now);
        for second in (self.now + 1..=now).take(SECONDS) {
            if let Some(count) = self.count(second) {
                *count = 0;
            }
        }
        self.now = now;
    }

    fn count(&mut self, second: u64) -> Option<&mut u32> {
        let index = usize::try_from(second % SECONDS as u64).ok()?;
        self.counts.get_mut(index)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn limits(per_minute: Option<u32>, in_flight: Option<u32>) -> Limits {
        Limits {
            calls_per_minute: per_minute,
            in_flight,
            ..Limits::default()
        }
    }

    const START: Duration = Duration::from_secs(7);

    fn at(milliseconds: u64) -> Duration {
        Duration::from_millis(milliseconds)
    }

    #[test]
    fn a_burst_gets_its_share_and_the_rest_is_told_when_to_come_back() {
        let limiter = Arc::new(ConcurrencyLimiter::default());
        let limits = limits(Some(100), None);
        let (ok, late): (Vec<_>, Vec<_>) = (0..300)
            .map(|_| limiter.enter_at("a", "s", &limits, START))
            .partition(Result::is_ok);
        assert_eq!((ok.len(), late.len()), (100, 200));
        let Some(Err(overloaded)) = late.into_iter().next() else {
            panic!("no error");
        };
        assert_eq!(overloaded.limit, "100 calls from this caller per minute");
        // The whole burst counts for 61 seconds: its own and the 60 after it.
        assert_eq!(overloaded.retry_after, Duration::from_secs(61));
        let again = START + overloaded.retry_after;
        let before = again.saturating_sub(Duration::from_millis(1));
        assert!(limiter.enter_at("a", "s", &limits, before).is_err());
        let ok = (0..300).filter(|_| limiter.enter_at("a", "s", &limits, again).is_ok());
        assert_eq!(ok.count(), 100);
        assert!(
            limiter.enter_at("b", "s", &limits, START).is_ok(),
            "another caller"
        );
        assert!(
            limiter
                .enter_at("a", "t", &Limits::default(), START)
                .is_ok(),
            "another service"
        );
    }

    #[test]
    fn a_place_is_free_again_when_the_call_ends() {
        let limiter = Arc::new(ConcurrencyLimiter::default());
        let limits = limits(None, Some(2));
        let first = limiter.enter_at("a", "s", &limits, START).unwrap();
        let _second = limiter.enter_at("a", "s", &limits, START).unwrap();
        let third = limiter.enter_at("a", "s", &limits, START).unwrap_err();
        assert_eq!(third.limit, "2 calls from this caller at once");
        drop(first);
        assert!(limiter.enter_at("a", "s", &limits, START).is_ok());
    }

    #[test]
    fn the_limit_of_all_holds_over_callers() {
        let limiter = Arc::new(ConcurrencyLimiter::default());
        let limits = Limits {
            in_flight_all: Some(3),
            ..Limits::default()
        };
        let running: Vec<_> = ["a", "b", "c"]
            .iter()
            .map(|caller| limiter.enter_at(caller, "s", &limits, START).unwrap())
            .collect();
        assert!(limiter.enter_at("d", "s", &limits, START).is_err());
        drop(running);
        assert!(limiter.lock().running.is_empty());
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
        // A lower limit also waits for the later call.
        assert_eq!(minute.wait(1, at(60_999)), Some(at(91_000 - 60_999)));
        assert_eq!(minute.wait(4, at(61_000)), None);
        assert_eq!(minute.wait(1, at(61_000)), Some(at(30_000)));
        assert_eq!(minute.wait(1, at(91_000)), None);
        // Much later: the time passed in was read before the last call.
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
                    // A call that waits this long runs; one that waits a millisecond less does not.
                    let free = at(now) + wait;
                    prop_assert!(minute.clone().wait(limit, free).is_none());
                    prop_assert!(minute.clone().wait(limit, free.saturating_sub(at(1))).is_some());
                    // The wait ends at most a second after the limit allows the call.
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
