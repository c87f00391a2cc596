//! Floods of calls that do not run become counted lines: evidence stays, the disk does not fill.
//!
//! Pure: the clock comes in as an argument.

use std::collections::BTreeMap;
use std::time::Duration;

use super::Verdict;

/// Such calls of one caller that get a line of their own in a window; those beyond are counted.
pub const OWN_LINES: u32 = 20;
/// Length of a window.
pub const WINDOW: Duration = Duration::from_secs(60);
/// Different names counted apart for one caller in a window; those beyond are counted together.
pub const NAMES_MAX: usize = 16;
/// The name under which the rest is counted.
pub const OTHER_NAMES: &str = "(others)";

/// What is counted together.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Kind {
    /// The name that was called.
    pub name: String,
    /// What was decided.
    pub decision: Verdict,
    /// Why.
    pub reason: String,
}

/// A counted line to write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Counted {
    /// Who called.
    pub caller: String,
    /// What did not run.
    pub kind: Kind,
    /// How often.
    pub count: u64,
}

/// The calls that did not run, of every caller in its current window.
#[derive(Debug, Default)]
pub struct Floods {
    callers: BTreeMap<String, Window>,
}

#[derive(Debug)]
struct Window {
    /// When it is over, since the start of the process.
    over: Duration,
    own: u32,
    counted: BTreeMap<Kind, u64>,
}

impl Floods {
    /// Notes a call that did not run at `now` (since the start of the process). True: it gets a line of its own.
    pub fn refused(&mut self, caller: &str, kind: Kind, now: Duration) -> bool {
        let window = self.window(caller, now);
        if window.own < OWN_LINES {
            window.own += 1;
            return true;
        }
        window.count(kind, 1);
        false
    }

    /// Counts calls without a line of their own.
    pub fn counted(&mut self, counted: Counted, now: Duration) {
        self.window(&counted.caller, now)
            .count(counted.kind, counted.count);
    }

    /// Takes back what could not be written at `now`; it is due again at once.
    pub fn put_back(&mut self, counted: Counted, now: Duration) {
        self.window(&counted.caller, now).over = now;
        self.counted(counted, now);
    }

    /// Takes what is to be written at `now`: the windows that are over.
    pub fn due(&mut self, now: Duration) -> Vec<Counted> {
        self.take(|window| now >= window.over)
    }

    /// Takes everything: the server ends.
    pub fn rest(&mut self) -> Vec<Counted> {
        self.take(|_| true)
    }

    fn window(&mut self, caller: &str, now: Duration) -> &mut Window {
        self.callers.entry(caller.to_owned()).or_insert(Window {
            over: now.saturating_add(WINDOW),
            own: 0,
            counted: BTreeMap::new(),
        })
    }

    fn take(&mut self, over: impl Fn(&Window) -> bool) -> Vec<Counted> {
        let done: Vec<String> = self
            .callers
            .iter()
            .filter(|(_, window)| over(window))
            .map(|(caller, _)| caller.clone())
            .collect();
        done.into_iter()
            .filter_map(|caller| self.callers.remove_entry(&caller))
            .flat_map(|(caller, window)| {
                window
                    .counted
                    .into_iter()
                    .map(move |(kind, count)| Counted {
                        caller: caller.clone(),
                        kind,
                        count,
                    })
            })
            .collect()
    }
}

impl Window {
    fn count(&mut self, kind: Kind, count: u64) {
        let full = self.counted.len() >= NAMES_MAX && !self.counted.contains_key(&kind);
        let kind = if full {
            Kind {
                name: OTHER_NAMES.to_owned(),
                ..kind
            }
        } else {
            kind
        };
        let counted = self.counted.entry(kind).or_default();
        *counted = counted.saturating_add(count);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kind(name: &str) -> Kind {
        Kind {
            name: name.to_owned(),
            decision: Verdict::Refused,
            reason: "not a consumer".to_owned(),
        }
    }

    #[test]
    fn own_lines_and_counted_lines_add_up() {
        let mut floods = Floods::default();
        let calls = 300;
        let own = (0..calls)
            .filter(|i| floods.refused("a", kind(&format!("s{}", i % 3)), Duration::ZERO))
            .count() as u64;
        assert_eq!(own, u64::from(OWN_LINES));
        assert_eq!(floods.due(Duration::from_secs(59)), []);
        let counted: u64 = floods.due(WINDOW).iter().map(|line| line.count).sum();
        assert_eq!(own + counted, calls);
        assert_eq!(floods.rest(), []);
    }

    #[test]
    fn a_flood_of_names_is_bounded_and_one_caller_does_not_use_up_the_share_of_another() {
        let mut floods = Floods::default();
        for i in 0..10_000 {
            floods.refused("a", kind(&i.to_string()), Duration::ZERO);
        }
        assert!(floods.refused("b", kind("x"), Duration::ZERO));
        let lines = floods.rest();
        assert_eq!(lines.len(), NAMES_MAX + 1);
        let total: u64 = lines.iter().map(|line| line.count).sum();
        assert_eq!(total + u64::from(OWN_LINES), 10_000);
    }
    #[test]
    fn what_was_put_back_is_due_at_once_and_loses_nothing() {
        let mut floods = Floods::default();
        for _ in 0..50 {
            floods.refused("a", kind("x"), Duration::ZERO);
        }
        let due = floods.due(WINDOW);
        // A new window has begun meanwhile.
        assert!(floods.refused("a", kind("x"), WINDOW));
        for counted in due.clone() {
            floods.put_back(counted, WINDOW);
        }
        assert_eq!(floods.due(WINDOW), due);
        assert_eq!(floods.rest(), []);
    }
}
