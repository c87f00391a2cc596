//! Floods of calls that do not run become counted lines, and those become few: evidence stays, the disk does not fill,
//! and older lines are not pushed out.
//!
//! Pure: the clock comes in as an argument.

use std::collections::BTreeMap;
use std::time::Duration;

use super::Verdict;
use crate::text::Foreign;

/// Lines about calls of one caller that did not run that may be written at once.
pub const LINES_AT_ONCE: u32 = 40;
/// Interval for one more, from then on.
pub const LINE_EVERY: Duration = Duration::from_secs(60);
/// Of those at once, the lines that tell of one call. The rest is for counts, and room for all that one caller can have.
pub const OWN_LINES: u32 = 20;
/// Time for which calls are counted before the counts are due.
pub const WINDOW: Duration = Duration::from_secs(60);
/// Different names counted apart for one caller; those beyond are counted together.
pub const NAMES_MAX: usize = 16;
/// The name under which the rest is counted.
pub const OTHER_NAMES: &str = "(others)";
/// The reason where there are several.
pub const OTHER_REASONS: &str = "(several)";

/// The key for counting calls together.
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
    /// The call that did not run.
    pub kind: CallKind,
    /// The number of times.
    pub count: u64,
}

/// The calls that did not run, of every caller.
#[derive(Debug, Default)]
pub struct Floods {
    callers: BTreeMap<String, CallerCalls>,
}

/// Those of one caller. All times are since the start of the process.
#[derive(Debug, Default)]
struct CallerCalls {
    /// When all lines at once may be written again: each line that was written puts it off.
    rested: Duration,
    /// When what was counted is due.
    due: Duration,
    counted: BTreeMap<CallKind, u64>,
}

impl Floods {
    /// Notes a call that did not run at `now` (since the start of the process). True: it gets a line of its own.
    pub fn refused(&mut self, caller: &str, kind: CallKind, now: Duration) -> bool {
        let calls = self.callers.entry(caller.to_owned()).or_default();
        if calls.may_write(1, OWN_LINES, now) {
            calls.writes(1, now);
            return true;
        }
        calls.count(kind, 1, now);
        false
    }

    /// Counts calls without a line of their own.
    pub fn counted(&mut self, counted: Counted, now: Duration) {
        let calls = self.callers.entry(counted.caller).or_default();
        calls.count(counted.kind, counted.count, now);
    }

    /// Takes back what could not be written at `now`; it is due again at once.
    pub fn put_back(&mut self, counted: Counted, now: Duration) {
        let calls = self.callers.entry(counted.caller).or_default();
        calls.rested = calls.rested.saturating_sub(LINE_EVERY);
        calls.count(counted.kind, counted.count, now);
        calls.due = now;
    }

    /// Takes what is to be written at `now`.
    pub fn due(&mut self, now: Duration) -> Vec<Counted> {
        let mut due = Vec::new();
        for (caller, calls) in &mut self.callers {
            let lines = u32::try_from(calls.counted.len()).unwrap_or(u32::MAX);
            if lines > 0 && now >= calls.due && calls.may_write(lines, LINES_AT_ONCE, now) {
                calls.writes(lines, now);
                due.extend(calls.take(caller));
            }
        }
        self.callers
            .retain(|_, calls| !calls.counted.is_empty() || calls.rested > now);
        due
    }

    /// Takes everything: the server ends.
    pub fn rest(&mut self) -> Vec<Counted> {
        let mut callers = std::mem::take(&mut self.callers);
        let rest = callers
            .iter_mut()
            .flat_map(|(caller, calls)| calls.take(caller));
        rest.collect()
    }
}

impl CallerCalls {
    /// Returns whether so many lines may be written, when so many may be at once.
    fn may_write(&self, lines: u32, at_once: u32, now: Duration) -> bool {
        let written = self.rested.saturating_sub(now);
        written + LINE_EVERY * lines <= LINE_EVERY * at_once
    }

    fn writes(&mut self, lines: u32, now: Duration) {
        self.rested = self.rested.max(now) + LINE_EVERY * lines;
    }

    fn count(&mut self, kind: CallKind, count: u64, now: Duration) {
        if self.counted.is_empty() {
            self.due = now + WINDOW;
        }
        let kind = self.known(kind);
        let counted = self.counted.entry(kind).or_default();
        *counted = counted.saturating_add(count);
    }

    /// As what a call is counted: its own kind, or one that there is already when there are too many.
    fn known(&self, mut kind: CallKind) -> CallKind {
        if self.counted.len() < NAMES_MAX || self.counted.contains_key(&kind) {
            return kind;
        }
        kind.name = OTHER_NAMES.into();
        if self.counted.len() > NAMES_MAX && !self.counted.contains_key(&kind) {
            // From here on, one for each decision at most.
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
                // Now all over, now with a name that stays.
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
        // More are counted meanwhile.
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
