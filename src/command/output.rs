//! The answer goes to stdout, everything else to stderr.
//!
//! Written through locks with `writeln!`, so that a closed pipe is an error to handle and not a panic.

use std::io::{self, BufWriter, IsTerminal as _, Write};

use anstream::{AutoStream, ColorChoice};

use crate::cli::{Format, GlobalArgs, When};
use crate::text::write_json;

/// The output of a command, and its format.
#[derive(Debug, Clone)]
pub(crate) struct Output {
    format: Format,
    color: ColorChoice,
    quiet: bool,
    verbose: bool,
}

impl Output {
    /// The output that the global flags ask for.
    pub(crate) fn new(args: &GlobalArgs) -> Self {
        let color = match args.color {
            When::Auto => ColorChoice::Auto,
            When::Always => ColorChoice::AlwaysAnsi,
            When::Never => ColorChoice::Never,
        };
        Self {
            format: args.format,
            color,
            quiet: args.quiet,
            verbose: args.verbose,
        }
    }

    /// Form of the answer.
    pub(crate) const fn format(&self) -> Format {
        self.format
    }

    /// Returns whether `--verbose` was given.
    pub(crate) const fn verbose(&self) -> bool {
        self.verbose
    }

    /// Returns whether `--quiet` was given.
    pub(crate) const fn quiet(&self) -> bool {
        self.quiet
    }

    /// Writes the answer to stdout as it is.
    #[expect(clippy::unused_self, reason = "whoever answers holds the output")]
    pub(crate) fn answer(&self, bytes: &[u8]) -> io::Result<()> {
        let mut stdout = io::stdout().lock();
        stdout.write_all(bytes)?;
        stdout.flush()
    }

    /// Writes a value to stdout as indented JSON and a newline, in printable ASCII.
    #[expect(clippy::unused_self, reason = "whoever answers holds the output")]
    pub(crate) fn json(&self, value: &impl serde::Serialize) -> anyhow::Result<()> {
        let stdout = BufWriter::new(io::stdout().lock());
        // As the system said it: a closed pipe is looked for.
        Ok(write_json(stdout, value).map_err(io::Error::from)?)
    }

    /// A line on stderr for whoever watches; not with `--quiet`.
    pub(crate) fn say(&self, line: &str) {
        if !self.quiet {
            self.stderr(line);
        }
    }

    /// Text on stderr whatever the flags say. It may hold ANSI styles; they go where colours do.
    pub(crate) fn stderr(&self, text: &str) {
        let mut stream = AutoStream::new(io::stderr().lock(), self.color);
        // A closed stderr leaves nobody to tell.
        let _ = writeln!(stream, "{text}");
    }

    /// A failure, in the form of a diagnostic.
    pub(crate) fn failure(&self, message: &str, help: Option<&str>) {
        self.stderr(&format!(
            "\u{1b}[1;31merror\u{1b}[0m\u{1b}[1m: {message}\u{1b}[0m"
        ));
        if let Some(help) = help {
            self.stderr(&format!("  \u{1b}[1;36m=\u{1b}[0m help: {help}"));
        }
    }

    /// Returns whether lines for whoever watches may move on a terminal.
    pub(crate) fn animates(&self) -> bool {
        !self.quiet && self.format == Format::Text && io::stderr().is_terminal()
    }
}

/// Returns whether a run ended because the reader of its output went away.
pub(crate) fn is_closed_pipe(error: &anyhow::Error) -> bool {
    error
        .chain()
        .filter_map(|cause| cause.downcast_ref::<io::Error>())
        .any(|cause| cause.kind() == io::ErrorKind::BrokenPipe)
}
