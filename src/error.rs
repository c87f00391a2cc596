//! Defines the exit codes and the failures that users see; `command/` turns the modules' typed errors into [`Failure`].

use std::error::Error;
use std::iter::successors;
use std::process::ExitCode;

/// The exit code of a run; `docs/commands.md` lists the same codes.
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
    /// The provider is overloaded; the same call may succeed later.
    Overloaded = 5,
    /// Something differs from the declaration (`sync --check` and similar commands).
    Differs = 6,
    /// Interrupted by a signal (^C); started processes are terminated.
    Interrupted = 130,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// Joins an error and its causes, except those that it already names.
pub(crate) fn with_causes(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    for cause in successors(error.source(), |&cause| cause.source()) {
        let cause = cause.to_string();
        if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    text
}

/// A failure for the user: the fault and its location, the next step, and the exit code.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// The exit code of the run.
    pub exit: Exit,
    /// The fault and its location, without a full stop; user input is escaped and in backticks.
    pub message: String,
    /// The next step.
    pub help: Option<String>,
    /// The file and the line that the message names, for programs.
    pub place: Option<(String, usize)>,
}

/// Several failures of one run, in order.
#[derive(Debug, thiserror::Error)]
#[error("{} failures", .0.len())]
pub struct Failures(pub Vec<Failure>);

impl Failure {
    /// Creates a failure without help.
    pub fn new(exit: Exit, message: impl Into<String>) -> Self {
        Self {
            exit,
            message: message.into(),
            help: None,
            place: None,
        }
    }

    /// Sets the next step.
    #[must_use]
    pub fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }
}
