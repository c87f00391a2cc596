//! Gathers every finding of a file, in whatever order the rules meet them, and gives them back in file order.

use std::sync::Arc;

use super::Unapplied;
use super::code::Code;
use crate::diagnostic::{Diagnostic, Faults, Place, Severity, Source};
use crate::name::closest;

/// Maximum number of findings that are kept. A file with more is not read by anybody; what is beyond is counted.
const FINDINGS_MAX: usize = 10_000;

/// Maximum number of names that are compared for a "did you mean": nobody reads the ten-thousandth, and it takes time.
const COMPARISONS_MAX: usize = 200_000;
/// Maximum length of a text that is compared, in bytes: no name is longer.
const COMPARED_MAX: usize = 64;

/// Where something is written: a [`Place`] without its file's text, so that each node of a large file can have one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct At {
    /// Which of the sources.
    pub(super) file: u32,
    /// First byte.
    pub(super) start: u32,
    /// First byte after it.
    pub(super) end: u32,
    /// Line, from 1.
    pub(super) line: u32,
    /// Column in characters, from 1.
    pub(super) column: u32,
}

/// The findings so far, and the files that they are about.
#[derive(Debug)]
pub(super) struct Findings {
    sources: Vec<Arc<Source>>,
    found: Vec<(At, Diagnostic)>,
    beyond: usize,
    scratch: Diagnostic,
    unapplied: Vec<(&'static str, At)>,
    comparisons: usize,
}

impl Findings {
    /// Nothing found yet in these files.
    pub(super) fn new(sources: Vec<Arc<Source>>) -> Self {
        Self {
            sources,
            found: Vec::new(),
            beyond: 0,
            scratch: diagnostic(Severity::Error, Code::TooManyFindings, String::new()),
            unapplied: Vec::new(),
            comparisons: COMPARISONS_MAX,
        }
    }

    /// The full place of something.
    pub(super) fn place(&self, at: At) -> Option<Place> {
        let source = self.sources.get(at.file as usize)?;
        Some(Place {
            source: Arc::clone(source),
            line: at.line as usize,
            column: at.column as usize,
            bytes: at.start as usize..at.end as usize,
        })
    }

    /// `infra.yml:12`, for messages that point at a second place.
    pub(super) fn short(&self, at: At) -> String {
        self.sources
            .get(at.file as usize)
            .map(|source| format!("{}:{}", source.path, at.line))
            .unwrap_or_default()
    }

    /// Adds a fault: the file is refused.
    pub(super) fn error(
        &mut self,
        code: Code,
        at: At,
        message: impl Into<String>,
    ) -> &mut Diagnostic {
        self.add(Severity::Error, code, at, message.into())
    }

    /// Adds a warning: the file is read.
    pub(super) fn warning(
        &mut self,
        code: Code,
        at: At,
        message: impl Into<String>,
    ) -> &mut Diagnostic {
        self.add(Severity::Warning, code, at, message.into())
    }

    /// Adds a finding of this severity.
    pub(super) fn add(
        &mut self,
        severity: Severity,
        code: Code,
        at: At,
        message: String,
    ) -> &mut Diagnostic {
        if self.found.len() >= FINDINGS_MAX {
            self.beyond += 1;
            return &mut self.scratch;
        }
        let mut new = diagnostic(severity, code, message);
        new.place = self.place(at);
        self.found.push((at, new));
        self.found
            .last_mut()
            .map_or(&mut self.scratch, |(_, last)| last)
    }

    /// Remembers a key that is read and checked, and that anklume itself does nothing with: the first place of each.
    pub(super) fn unapplied(&mut self, key: &'static str, at: At) {
        if self.unapplied.iter().all(|(known, _)| *known != key) {
            self.unapplied.push((key, at));
        }
    }

    /// The keys that anklume itself does nothing with, in the order of the file.
    pub(super) fn take_unapplied(&mut self) -> Vec<Unapplied> {
        let mut unapplied = std::mem::take(&mut self.unapplied);
        unapplied.sort_by_key(|(_, at)| (at.file, at.start));
        let with_place = |(key, at)| {
            Some(Unapplied {
                key,
                place: self.place(at)?,
            })
        };
        unapplied.into_iter().filter_map(with_place).collect()
    }

    /// The candidate that a mistyped text most likely meant.
    pub(super) fn closest<'t>(
        &mut self,
        text: &str,
        candidates: impl IntoIterator<Item = &'t str>,
    ) -> Option<&'t str> {
        if text.len() > COMPARED_MAX {
            return None;
        }
        let budget = self.comparisons;
        let mut compared = 0;
        let near = closest(
            text,
            candidates
                .into_iter()
                .take(budget)
                .inspect(|_| compared += 1)
                .filter(|candidate| candidate.len() <= COMPARED_MAX),
        );
        self.comparisons -= compared;
        near
    }

    /// Returns whether so many more names may be compared.
    pub(super) fn may_compare(&mut self, names: usize) -> bool {
        let left = self.comparisons.checked_sub(names);
        self.comparisons = left.unwrap_or(self.comparisons);
        left.is_some()
    }

    /// The name of the input in messages.
    pub(super) fn this_file(&self) -> &'static str {
        if self.sources.len() > 1 {
            "these files"
        } else {
            "this file"
        }
    }

    /// Returns whether the file is refused.
    pub(super) fn has_errors(&self) -> bool {
        self.beyond > 0
            || self
                .found
                .iter()
                .any(|(_, found)| found.severity == Severity::Error)
    }

    /// Everything found, in file order: the warnings of a good file, or the faults (and warnings) of a refused one.
    pub(super) fn finish(mut self) -> Result<Vec<Diagnostic>, Faults> {
        let refused = self.has_errors();
        self.found
            .sort_by_key(|(at, _)| (at.file, at.start, at.line, at.column));
        // What a shared volume does wrong, it does on each of its machines.
        self.found.dedup();
        let mut all: Vec<Diagnostic> = self.found.into_iter().map(|(_, found)| found).collect();
        if self.beyond > 0 {
            let message = format!("{} more findings are not shown", self.beyond);
            let mut rest = diagnostic(Severity::Error, Code::TooManyFindings, message);
            rest.help("mend these first");
            all.push(rest);
        }
        if refused { Err(Faults(all)) } else { Ok(all) }
    }
}

fn diagnostic(severity: Severity, code: Code, message: String) -> Diagnostic {
    Diagnostic {
        severity,
        code: code.as_str(),
        message,
        place: None,
        help: None,
    }
}
