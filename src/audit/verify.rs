//! Checks that the log was not altered: finds and identifies edited, removed, reordered and inserted lines.
//!
//! Pure except for the given reader. Root on the provider can write a whole new chain: only a head
//! kept elsewhere reveals that.

use std::cmp::Ordering;
use std::io::{self, BufRead};

use super::Event;
use super::chain::{self, Head, ORIGIN};

/// Maximum length of a log line, in bytes; a longer one was not written by anklume.
pub const LINE_MAX: usize = 64 * 1024;

/// Maximum number of faults to keep, starting with the first: a forger decides how many a log has.
pub const FINDINGS_MAX: usize = 1000;

/// A fault in a line.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// Its bytes are not those that were written.
    #[error("edited: its hash does not match its bytes")]
    Edited,
    /// It is not a line of this log.
    #[error("inserted or edited: not a line of this log")]
    Foreign,
    /// Lines are missing before it.
    #[error("{count} line(s) before it were removed")]
    Removed {
        /// The number of missing lines.
        count: u64,
    },
    /// Its number is too low: it was moved, repeated or inserted.
    #[error("moved, repeated or inserted: it has number {found}, expected {expected}")]
    Misplaced {
        /// The number expected here.
        expected: u64,
        /// The number found here.
        found: u64,
    },
    /// Its number is right, but it does not continue the line before: one of the two was replaced.
    #[error("replaced: it does not continue the line before it")]
    Replaced,
    /// It lacks its newline, and nothing follows: it is still being written, was interrupted, or was cut.
    #[error(
        "unfinished: its end is missing; the next write completes it, or removes it and logs that"
    )]
    Unfinished,
    /// The log begins with it, although it is neither the first line nor the first after a rotation.
    #[error("lines before it were removed: the log cannot begin here")]
    NoBeginning,
}

/// A fault and its location.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// The file's name, as passed to [`Verifier::file`].
    pub file: String,
    /// Line in that file, from 1.
    pub line: u64,
    /// The fault there.
    pub fault: Fault,
}

/// Walks the files of a log, oldest first.
#[derive(Debug, Default)]
pub struct Verifier {
    /// The result so far.
    report: VerifyReport,
    /// The previous line; `None` before the first.
    last: Option<Head>,
    /// True if rotation has not dropped any lines.
    from_origin: bool,
    /// True if the previous line is faulty, so that the next one is not reported for the same fault.
    after_fault: bool,
    /// The hash of a line that has yet to be found.
    wanted: Option<String>,
}

/// The result of the walk.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct VerifyReport {
    /// Number of lines.
    pub lines: u64,
    /// Number of the first line that could be read; 0 if none could.
    pub first: u64,
    /// The end of the chain.
    pub head: Head,
    /// The faults in order, at most [`FINDINGS_MAX`] of them.
    pub findings: Vec<Finding>,
    /// Number of further findings.
    pub more: u64,
    /// True if the last line has no newline, as happens while it is being written.
    pub unfinished: bool,
    /// True if no line has the given head: the end was cut, the log was rewritten, or rotation dropped the line.
    pub head_missing: bool,
}

impl VerifyReport {
    /// Returns whether the log is intact.
    #[must_use]
    pub const fn is_whole(&self) -> bool {
        self.findings.is_empty() && !self.head_missing
    }
}

impl Verifier {
    /// Begins a walk; `head` is the hash of a line that must be in the log.
    #[must_use]
    pub fn new(head: Option<String>) -> Self {
        Self {
            wanted: head,
            ..Self::default()
        }
    }

    /// Requires the walk to begin with the very first line; for a log from which rotation has not dropped any file.
    #[must_use]
    pub const fn from_the_first_line(mut self) -> Self {
        self.from_origin = true;
        self
    }

    /// Walks one file; fails if it cannot be read.
    pub fn file(&mut self, name: &str, mut reader: impl BufRead) -> io::Result<()> {
        let mut number = 0_u64;
        while let Some((line, is_ended)) = next_line(&mut reader)? {
            number += 1;
            let fault = match self.line(&line) {
                None | Some(Fault::Foreign) if !is_ended => Some(Fault::Unfinished),
                fault => fault,
            };
            let report = &mut self.report;
            report.unfinished = fault == Some(Fault::Unfinished);
            if report.findings.len() == FINDINGS_MAX {
                report.more += u64::from(fault.is_some());
            } else if let Some(fault) = fault {
                report.findings.push(Finding {
                    file: name.to_owned(),
                    line: number,
                    fault,
                });
            }
        }
        self.report.lines += number;
        Ok(())
    }

    /// Ends the walk and returns the result.
    #[must_use]
    pub fn finish(self) -> VerifyReport {
        VerifyReport {
            head: self.last.unwrap_or_default(),
            head_missing: self.wanted.is_some(),
            ..self.report
        }
    }

    fn line(&mut self, bytes: &[u8]) -> Option<Fault> {
        let (line, head) = match chain::read(bytes) {
            chain::ReadLine::Whole(line, head) => (line, head),
            chain::ReadLine::Edited(head) => {
                self.step(head, true);
                return Some(Fault::Edited);
            }
            chain::ReadLine::Foreign => {
                self.after_fault = true;
                return Some(Fault::Foreign);
            }
        };
        self.wanted.take_if(|wanted| *wanted == head.hash);
        let fault = self.place(&line);
        if matches!(fault, Some(Fault::Misplaced { .. })) {
            // The following lines are compared with the line that belongs here.
            self.after_fault = true;
        } else {
            self.step(head, false);
        }
        fault
    }

    fn step(&mut self, head: Head, after_fault: bool) {
        if self.report.first == 0 {
            self.report.first = head.seq;
        }
        self.last = Some(head);
        self.after_fault = after_fault;
    }

    /// Checks that this intact line belongs after the last one.
    fn place(&self, line: &chain::LogLine) -> Option<Fault> {
        let Some(last) = &self.last else {
            let is_first = line.seq == 1 && line.previous == ORIGIN;
            return if is_first || self.after_fault {
                None
            } else if matches!(line.event, Event::Rotated { .. }) {
                let count = line.seq.saturating_sub(1);
                self.from_origin.then_some(Fault::Removed { count })
            } else {
                Some(Fault::NoBeginning)
            };
        };
        let (expected, found) = (last.seq.saturating_add(1), line.seq);
        match found.cmp(&expected) {
            Ordering::Greater => Some(Fault::Removed {
                count: found - expected,
            }),
            Ordering::Less => Some(Fault::Misplaced { expected, found }),
            Ordering::Equal => {
                (line.previous != last.hash && !self.after_fault).then_some(Fault::Replaced)
            }
        }
    }
}

/// Returns the next line, and whether it had a newline; truncates a line over [`LINE_MAX`], which makes it foreign.
pub(crate) fn next_line(reader: &mut impl BufRead) -> io::Result<Option<(Vec<u8>, bool)>> {
    let mut line = Vec::new();
    loop {
        let chunk = reader.fill_buf()?;
        if chunk.is_empty() {
            return Ok((!line.is_empty()).then_some((line, false)));
        }
        let end = chunk.iter().position(|byte| *byte == b'\n');
        let part = chunk.get(..end.unwrap_or(chunk.len())).unwrap_or(chunk);
        if line.len() <= LINE_MAX {
            line.extend_from_slice(part);
        }
        let used = part.len() + usize::from(end.is_some());
        reader.consume(used);
        if end.is_some() {
            return Ok(Some((line, true)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stop(seq: u64, previous: &str) -> String {
        let before = Head {
            seq: seq - 1,
            hash: previous.to_owned(),
        };
        let (line, _) = chain::link(&before, String::new(), Event::Stop { pid: 1 }).unwrap();
        String::from_utf8(line).unwrap()
    }

    fn report(text: &str) -> VerifyReport {
        let mut verifier = Verifier::new(None);
        verifier.file("log", text.as_bytes()).unwrap();
        verifier.finish()
    }

    #[test]
    fn a_log_begins_with_the_first_line_whose_previous_hash_is_the_origin() {
        let other = "1".repeat(64);
        for (text, is_whole) in [
            (stop(1, ORIGIN), true),
            (stop(2, ORIGIN), false),
            (stop(1, &other), false),
            (stop(2, &other), false),
        ] {
            let faults: Vec<Fault> = report(&text)
                .findings
                .into_iter()
                .map(|it| it.fault)
                .collect();
            let expected = if is_whole {
                vec![]
            } else {
                vec![Fault::NoBeginning]
            };
            assert_eq!(faults, expected, "{text}");
        }
    }

    #[test]
    fn lines_that_are_missing_are_counted() {
        let faults = |second: u64| {
            let text = stop(1, ORIGIN) + &stop(second, &"1".repeat(64));
            let finding = report(&text).findings.pop().unwrap();
            (finding.line, finding.fault)
        };
        assert_eq!(faults(7), (2, Fault::Removed { count: 5 }));
        assert_eq!(faults(2), (2, Fault::Replaced));
    }

    #[test]
    fn only_an_end_without_a_newline_is_unfinished() {
        let whole = stop(1, ORIGIN);
        assert!(!report(&whole).unfinished);
        assert!(report(whole.trim_end()).unfinished);
        assert!(!report("no line\n").unfinished);
        assert!(!report("").unfinished);
    }

    #[test]
    fn a_flood_of_faults_is_counted_and_not_kept() {
        let found = report(&"\n".repeat(FINDINGS_MAX + 7));
        assert_eq!((found.findings.len(), found.more), (FINDINGS_MAX, 7));
        assert!(!found.is_whole() && !found.unfinished);
        assert!(report(&("\n".repeat(FINDINGS_MAX + 7) + "{")).unfinished);
    }

    #[test]
    fn every_fault_says_what_was_done() {
        for (fault, words) in [
            (Fault::Edited, "edited: its hash does not match its bytes"),
            (
                Fault::Removed { count: 2 },
                "2 line(s) before it were removed",
            ),
        ] {
            assert_eq!(fault.to_string(), words);
        }
    }

    #[test]
    fn a_line_is_read_whole_up_to_its_limit_and_no_further() {
        for (length, kept) in [(65_536, 65_536), (200_000, 65_537)] {
            let text = "x".repeat(length);
            // A reader may return a line in small pieces.
            let mut reader = io::BufReader::with_capacity(1, text.as_bytes());
            let (line, is_ended) = next_line(&mut reader).unwrap().unwrap();
            assert_eq!((line.len(), is_ended), (kept, false));
        }
    }
}
