//! Limits concurrent calls and calls per minute, of each caller and in total.
//!
//! A call that may run but not now is overloaded, which is never a refusal.

mod minute;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::limits::{CALLS_PER_MINUTE, CALLS_PER_MINUTE_ALL, IN_FLIGHT, IN_FLIGHT_ALL, Limits};
use minute::Minute;

/// The scope of a limit. A service with a value of its own is counted separately.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Scope {
    caller: Option<String>,
    service: Option<String>,
}

/// The limit that was reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Full {
    /// The calls that run at once.
    AtOnce,
    /// The calls of this minute.
    Minute,
}

/// The reason why a call cannot run now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Overloaded {
    /// The limit that was reached.
    pub(crate) kind: Full,
    /// Which limit it met, in words.
    pub(crate) limit: String,
    /// When to try again.
    pub(crate) retry_after: Duration,
}

/// The counters of a server.
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

/// When a place in flight may be free again: nobody knows; a second is soon enough to ask.
const RETRY_IN_FLIGHT: Duration = Duration::from_secs(1);

/// When a connection may be free again: as soon as a call.
const RETRY_CONNECTION: Duration = RETRY_IN_FLIGHT;

/// So many of something, in words.
fn counted(count: u32, one: &str, of_whom: &str) -> String {
    let plural = if count == 1 { "" } else { "s" };
    format!("{count} {one}{plural} {of_whom}")
}

/// The answer on a connection beyond the `most` that a caller may have at once.
pub(crate) fn too_many_connections(most: usize) -> Overloaded {
    let most = u32::try_from(most).unwrap_or(u32::MAX);
    Overloaded {
        kind: Full::AtOnce,
        limit: counted(most, "connection", "of this caller at once"),
        retry_after: RETRY_CONNECTION,
    }
}

/// A call's place among those that run; given back when dropped.
#[derive(Debug)]
pub(crate) struct RunningCall {
    gate: Arc<ConcurrencyLimiter>,
    scopes: [Scope; 2],
}

impl Drop for RunningCall {
    fn drop(&mut self) {
        let mut counters = self.gate.lock();
        for scope in &self.scopes {
            let left = counters.running.get(scope).map_or(0, |count| count - 1);
            if left == 0 {
                counters.running.remove(scope);
            } else if let Some(count) = counters.running.get_mut(scope) {
                *count = left;
            }
        }
    }
}

impl ConcurrencyLimiter {
    fn lock(&self) -> std::sync::MutexGuard<'_, Counters> {
        self.counters.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets a call in, or says why not; then nothing is counted.
    pub(crate) fn enter(
        self: &Arc<Self>,
        caller: &str,
        service: &str,
        limits: &Limits,
    ) -> Result<RunningCall, Overloaded> {
        self.enter_at(caller, service, limits, self.began.elapsed())
    }

    /// The same at a time of one's own (since the gate was made).
    fn enter_at(
        self: &Arc<Self>,
        caller: &str,
        service: &str,
        limits: &Limits,
        now: Duration,
    ) -> Result<RunningCall, Overloaded> {
        let scope = |own: bool, caller: Option<&str>| Scope {
            caller: caller.map(str::to_owned),
            service: own.then(|| service.to_owned()),
        };
        let rates = [
            (
                scope(limits.calls_per_minute.is_some(), Some(caller)),
                limits.calls_per_minute.unwrap_or(CALLS_PER_MINUTE),
                "of this caller in a minute",
            ),
            (
                scope(limits.calls_per_minute_all.is_some(), None),
                limits.calls_per_minute_all.unwrap_or(CALLS_PER_MINUTE_ALL),
                "of all callers in a minute",
            ),
        ];
        let places = [
            (
                scope(limits.in_flight.is_some(), Some(caller)),
                limits.in_flight.unwrap_or(IN_FLIGHT),
                "of this caller at once",
            ),
            (
                scope(limits.in_flight_all.is_some(), None),
                limits.in_flight_all.unwrap_or(IN_FLIGHT_ALL),
                "of all callers at once",
            ),
        ];
        let mut counters = self.lock();
        for (scope, limit, of_whom) in &places {
            if counters.running.get(scope).copied().unwrap_or_default() >= *limit {
                return Err(Overloaded {
                    kind: Full::AtOnce,
                    limit: counted(*limit, "call", of_whom),
                    retry_after: RETRY_IN_FLIGHT,
                });
            }
        }
        for (scope, limit, of_whom) in &rates {
            let minute = counters.minutes.entry(scope.clone()).or_default();
            if let Some(retry_after) = minute.wait(*limit, now) {
                return Err(Overloaded {
                    kind: Full::Minute,
                    limit: counted(*limit, "call", of_whom),
                    retry_after,
                });
            }
        }
        for (scope, ..) in rates {
            counters.minutes.entry(scope).or_default().add(now);
        }
        let scopes = places.map(|(scope, _, _)| scope);
        for scope in &scopes {
            *counters.running.entry(scope.clone()).or_default() += 1;
        }
        Ok(RunningCall {
            gate: Arc::clone(self),
            scopes,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits(per_minute: Option<u32>, in_flight: Option<u32>) -> Limits {
        Limits {
            calls_per_minute: per_minute,
            in_flight,
            ..Limits::default()
        }
    }

    const START: Duration = Duration::from_secs(7);

    #[test]
    fn a_burst_gets_its_share_and_the_rest_is_told_when_to_come_back() {
        let gate = Arc::new(ConcurrencyLimiter::default());
        let limits = limits(Some(100), None);
        let (ok, late): (Vec<_>, Vec<_>) = (0..300)
            .map(|_| gate.enter_at("a", "s", &limits, START))
            .partition(Result::is_ok);
        assert_eq!((ok.len(), late.len()), (100, 200));
        let Some(Err(overloaded)) = late.into_iter().next() else {
            panic!("no error");
        };
        assert_eq!(overloaded.limit, "100 calls of this caller in a minute");
        // All of the burst counts for a minute, and not a second longer.
        assert_eq!(overloaded.retry_after, Duration::from_secs(61));
        let again = START + overloaded.retry_after;
        let before = again.saturating_sub(Duration::from_millis(1));
        assert!(gate.enter_at("a", "s", &limits, before).is_err());
        let ok = (0..300).filter(|_| gate.enter_at("a", "s", &limits, again).is_ok());
        assert_eq!(ok.count(), 100);
        assert!(
            gate.enter_at("b", "s", &limits, START).is_ok(),
            "another caller"
        );
        assert!(
            gate.enter_at("a", "t", &Limits::default(), START).is_ok(),
            "another service"
        );
    }

    #[test]
    fn a_place_is_free_again_when_the_call_ends() {
        let gate = Arc::new(ConcurrencyLimiter::default());
        let limits = limits(None, Some(2));
        let first = gate.enter_at("a", "s", &limits, START).unwrap();
        let _second = gate.enter_at("a", "s", &limits, START).unwrap();
        let third = gate.enter_at("a", "s", &limits, START).unwrap_err();
        assert_eq!(third.limit, "2 calls of this caller at once");
        drop(first);
        assert!(gate.enter_at("a", "s", &limits, START).is_ok());
    }

    #[test]
    fn the_limit_of_all_holds_over_callers() {
        let gate = Arc::new(ConcurrencyLimiter::default());
        let limits = Limits {
            in_flight_all: Some(3),
            ..Limits::default()
        };
        let running: Vec<_> = ["a", "b", "c"]
            .iter()
            .map(|caller| gate.enter_at(caller, "s", &limits, START).unwrap())
            .collect();
        assert!(gate.enter_at("d", "s", &limits, START).is_err());
        drop(running);
        assert!(gate.lock().running.is_empty());
    }
}
