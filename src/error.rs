//! Defines how a run ends: the exit codes and the failure that the user reads.
//!
//! Rooms have typed errors of their own; [`Failure`] is what `command/` makes of them.

use std::process::ExitCode;

/// The exit code of a run. The table in `docs/commands.md` is this enum.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// Done, or allowed.
    Done = 0,
    /// Failed; for `policy check`: denied or error.
    Failed = 1,
    /// The command line is wrong.
    Usage = 2,
    /// The provider refused the call (client commands on a consumer's channel).
    Refused = 3,
    /// The provider cannot be reached or did not answer in time.
    Unavailable = 4,
    /// The provider has too much to do; the same call may succeed later.
    Overloaded = 5,
    /// Something differs from what is declared (`sync --check` and its like).
    Differs = 6,
    /// Asked to stop by a signal (^C); what was started is ended.
    Interrupted = 130,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// A failure as the user reads it: what is wrong and where, what to do next, and how the run ends.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// The exit code of the run.
    pub exit: Exit,
    /// The fault and its place; no full stop, user input in backticks and escaped.
    pub message: String,
    /// The next step.
    pub help: Option<String>,
}

impl Failure {
    /// A failure with its exit and message, and no help yet.
    pub fn new(exit: Exit, message: impl Into<String>) -> Self {
        Self {
            exit,
            message: message.into(),
            help: None,
        }
    }

    /// The same failure with what to do next.
    #[must_use]
    pub fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }
}
