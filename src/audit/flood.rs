//! Replaces floods of calls that do not run with a few counted lines: evidence is kept, the disk does not fill up,
//! and older lines are not pushed out.
//!
//! Pure: the current time is an argument.

use std::collections::BTreeMap;
use std::time::Duration;

use super::Verdict;
use crate::text::Foreign;

/// Maximum burst of lines about one caller's calls that did not run.
pub const LINES_AT_ONCE: u32 = 40;
/// Interval between further lines after a burst.
pub const LINE_EVERY: Duration = Duration::from_secs(60);
/// Number of lines in a burst that may each report one call. The rest are for counts, and suffice for all counts of one caller.
pub const OWN_LINES: u32 = 20;
/// Time during which calls are counted before the counts are due.
pub const WINDOW: Duration = Duration::from_secs(60);
/// Maximum number of call kinds counted separately for one caller; the rest are counted together.
pub const NAMES_MAX: usize = 16;
/// The name under which the rest are counted.
pub const OTHER_NAMES: &str = "(others)";
/// The reason recorded for calls with several different reasons.
pub const OTHER_REASONS: &str = "(several)";

/// The key by which calls are counted together.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct CallKind {
    /// The name that was called.
    pub name: Foreign,
    /// The decision.
    pub decision: Verdict,
    /// The reason.
    pub reason: Foreign,
}

/// A counted line to write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Counted {
    /// The caller.
    pub caller: String,
    /// The kind of the calls that did not run.
    pub kind: CallKind,
    /// The number of these calls.
    pub count: u64,
}

/// Every caller's calls that did not run.
#[derive(Debug, Default)]
pub struct Floods {
    callers: BTreeMap<String, CallerCalls>,
}

/// One caller's calls. All times are measured from the start of the process.
#[derive(Debug, Default)]
struct CallerCalls {
    /// Time from which a full burst may be written again; each written line postpones it.
    replenished: Duration,
    /// Time at which the counts are due.
    due: Duration,
    counted: BTreeMap<CallKind, u64>,
}

impl Floods {
    /// Records, at `now` (since the process started), a call that did not run; returns whether it gets its own line.
    pub fn refused(&mut self, caller: &str, kind: CallKind, now: Duration) -> bool {
        let calls = self.callers.entry(caller.to_owned()).or_default();
        let has_line = calls.book(1, OWN_LINES, now);
        if !has_line {
            calls.count(kind, 1, now);
        }
        has_line
    }

    /// Counts calls without a line of their own.
    pub fn counted(&mut self, counted: Counted, now: Duration) {
        let calls = self.callers.entry(counted.caller).or_default();
        calls.count(counted.kind, counted.count, now);
    }

    /// Takes back a line that could not be written at `now`; it is immediately due again.
    pub fn put_back(&mut self, counted: Counted, now: Duration) {
        let calls = self.callers.entry(counted.caller).or_default();
        calls.replenished = calls.replenished.saturating_sub(LINE_EVERY);
        calls.count(counted.kind, counted.count, now);
        calls.due = now;
    }

    /// Removes and returns the counts to be written at `now`.
    pub fn due(&mut self, now: Duration) -> Vec<Counted> {
        let mut due = Vec::new();
        for (caller, calls) in &mut self.callers {
            let lines = u32::try_from(calls.counted.len()).unwrap_or(u32::MAX);
            if lines > 0 && now >= calls.due && calls.book(lines, LINES_AT_ONCE, now) {
                due.extend(calls.take(caller));
            }
        }
        self.callers
            .retain(|_, calls| !calls.counted.is_empty() || calls.replenished > now);
        due
    }

    /// Removes and returns all counts, for when the server stops.
    pub fn rest(&mut self) -> Vec<Counted> {
        let callers = std::mem::take(&mut self.callers).into_iter();
        callers
            .flat_map(|(caller, mut calls)| calls.take(&caller))
            .collect()
    }
}

impl CallerCalls {
    /// Books this many lines if they fit into a burst of `at_once`; returns whether they do.
    fn book(&mut self, lines: u32, at_once: u32, now: Duration) -> bool {
        let written = self.replenished.saturating_sub(now);
        let fits = written + LINE_EVERY * lines <= LINE_EVERY * at_once;
        if fits {
            self.replenished = self.replenished.max(now) + LINE_EVERY * lines;
        }
        fits
    }

    fn count(&mut self, kind: CallKind, count: u64, now: Duration) {
        if self.counted.is_empty() {
            self.due = now + WINDOW;
        }
        let kind = self.known(kind);
        let counted = self.counted.entry(kind).or_default();
        *counted = counted.saturating_add(count);
    }

    /// Returns the kind under which to count a call: its own, or a collective one once the maximum is reached.
    fn known(&self, mut kind: CallKind) -> CallKind {
        if self.counted.len() < NAMES_MAX || self.counted.contains_key(&kind) {
            return kind;
        }
        kind.name = OTHER_NAMES.into();
        if self.counted.len() > NAMES_MAX && !self.counted.contains_key(&kind) {
            // From here on, there is at most one kind for each decision.
            kind.reason = OTHER_REASONS.into();
        }
        kind
    }

    fn take(&mut self, caller: &str) -> impl Iterator<Item = Counted> + use<> {
        let caller = caller.to_owned();
        let counted = std::mem::take(&mut self.counted).into_iter();
        counted.map(move |(kind, count)| Counted {
            caller: caller.clone(),
            kind,
            count,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kind(name: &str) -> CallKind {
        CallKind {
            name: name.into(),
            decision: Verdict::Refused,
            reason: "not a consumer".into(),
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
    fn whatever_is_counted_can_be_written_at_once() {
        let mut floods = Floods::default();
        let verdicts = [Verdict::Allowed, Verdict::Refused, Verdict::Overloaded];
        for i in 0..3_000 {
            let kind = CallKind {
                name: i.to_string().into(),
                decision: verdicts[i % 3],
                reason: i.to_string().into(),
            };
            floods.refused("a", kind, Duration::ZERO);
        }
        let lines = floods.due(WINDOW).len();
        assert!(
            (NAMES_MAX..=(LINES_AT_ONCE - OWN_LINES) as usize).contains(&lines),
            "{lines}"
        );
        assert_eq!(floods.rest(), []);
    }

    #[test]
    fn a_flood_without_end_writes_a_line_a_minute_and_no_call_is_lost() {
        let mut floods = Floods::default();
        let (mut calls, mut own, mut counted, mut counts) = (0, 0, 0, 0);
        let day = 24 * 60 * 60;
        for second in 0..day {
            let now = Duration::from_secs(second);
            for _ in 0..5 {
                // Alternates hourly between 40 names and a single one.
                let name = if second % 7_200 < 3_600 {
                    calls % 40
                } else {
                    0
                };
                own += u64::from(floods.refused("a", kind(&name.to_string()), now));
                calls += 1;
            }
            let due = floods.due(now);
            counted += due.len() as u64;
            counts += due.iter().map(|line| line.count).sum::<u64>();
        }
        counts += floods.rest().iter().map(|line| line.count).sum::<u64>();
        assert_eq!(own + counts, calls);
        let lines = own + counted;
        let most = u64::from(LINES_AT_ONCE) + day / LINE_EVERY.as_secs();
        assert!((most / 2..=most).contains(&lines), "{lines} of {most}");
    }

    #[test]
    fn who_was_quiet_has_lines_of_its_own_again_and_is_forgotten() {
        let mut floods = Floods::default();
        let own = |floods: &mut Floods, now| {
            (0..100)
                .filter(|_| floods.refused("a", kind("x"), now))
                .count()
        };
        assert_eq!(own(&mut floods, Duration::ZERO), 20);
        assert_eq!(floods.due(WINDOW).len(), 1);
        assert_eq!(own(&mut floods, LINE_EVERY * 5), 4);
        floods.due(LINE_EVERY * 60);
        floods.due(LINE_EVERY * 120);
        assert!(floods.callers.is_empty());
        assert_eq!(own(&mut floods, LINE_EVERY * 120), 20);
    }

    #[test]
    fn what_was_put_back_is_due_at_once_and_loses_nothing() {
        let mut floods = Floods::default();
        for _ in 0..50 {
            floods.refused("a", kind("x"), Duration::ZERO);
        }
        let due = floods.due(WINDOW);
        assert_eq!(due.len(), 1);
        // More calls are counted meanwhile.
        for _ in 0..50 {
            floods.refused("a", kind("x"), WINDOW);
        }
        for counted in due {
            floods.put_back(counted, WINDOW);
        }
        let again: u64 = floods.due(WINDOW).iter().map(|line| line.count).sum();
        assert_eq!(again, 30 + 50);
        assert_eq!(floods.rest(), []);
    }
}
