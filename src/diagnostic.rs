//! A fault in the user's file: what is wrong, where, and what to do; drawn with its source line.
//!
//! Collecting and drawing only: which text is a fault is decided in [`crate::infra`].

use std::ops::Range;
use std::sync::Arc;

/// One file of an `infra.yml` or `infra/`, as it was read.
#[derive(Debug, PartialEq, Eq)]
pub struct Source {
    /// The path as the user would write it, for messages.
    pub path: String,
    /// The whole text.
    pub text: String,
}

/// Where something was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The file.
    pub source: Arc<Source>,
    /// Line, from 1.
    pub line: usize,
    /// Column in characters, from 1.
    pub column: usize,
    /// Byte range in the file; empty when only line and column are known.
    pub bytes: Range<usize>,
}

impl Place {
    /// `infra.yml:12`, for one-line messages.
    #[must_use]
    pub fn short(&self) -> String {
        format!("{}:{}", self.source.path, self.line)
    }
}

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Severity {
    /// The file is refused.
    Error,
    /// The file is read, and the user should know.
    Warning,
}

/// One finding in a user's file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Diagnostic {
    /// Error or warning.
    pub severity: Severity,
    /// Stable kebab-case code: a heading in `docs/diagnostics.md`.
    pub code: &'static str,
    /// What is wrong; lower case, no full stop, user input in backticks and escaped.
    pub message: String,
    /// Where; `None` only for a file that could not be read at all.
    pub place: Option<Place>,
    /// What to do next.
    pub help: Option<String>,
}

/// Every fault of a file: the whole file is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{} fault(s) in the infrastructure file", .0.len())]
pub struct Faults(pub Vec<Diagnostic>);
