//! Writes the answer to stdout and everything else to stderr.
//!
//! Uses locks and `writeln!`, so that a closed pipe is an error, not a panic.

use std::io::{self, BufWriter, IsTerminal as _, Write};

use anstream::{AutoStream, ColorChoice};
use anstyle::AnsiColor;
use rustix::termios::tcgetwinsize;

use crate::cli::{Format, GlobalArgs, When};
use crate::error::Exit;
use crate::text::write_json;

/// The meaning of a word or line, shown by its colour.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Tone {
    /// Created, allowed, in order.
    Good,
    /// Changed, or worth a look.
    Changed,
    /// Removed, denied, broken.
    Bad,
}

/// Returns text in the colour of its meaning. Only [`Output::text`] and [`Output::stderr`] may print it.
pub(crate) fn paint(tone: Tone, text: &str) -> String {
    let color = match tone {
        Tone::Good => AnsiColor::Green,
        Tone::Changed => AnsiColor::Yellow,
        Tone::Bad => AnsiColor::Red,
    };
    let style = color.on_default();
    format!("{style}{text}{style:#}")
}

/// Returns a line of a plan or a diff in the colour of its first character: `+`, `~`, `-`, or `!` for a failure.
pub(crate) fn paint_line(line: &str) -> String {
    match line.chars().next() {
        Some('+') => paint(Tone::Good, line),
        Some('~') => paint(Tone::Changed, line),
        Some('-' | '!') => paint(Tone::Bad, line),
        _ => line.to_owned(),
    }
}

/// Spaces between two columns.
const GAP: usize = 2;

/// Aligns rows below their headings. A column without content is left out.
pub(crate) fn table<const N: usize>(
    headings: [&str; N],
    rows: impl IntoIterator<Item = [String; N]>,
) -> String {
    let rows: Vec<[String; N]> = rows.into_iter().collect();
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column));
        let width = cells.map(|cell| cell.chars().count()).max();
        let width = width.filter(|width| *width > 0)?;
        let heading = headings.get(column).map_or(0, |heading| heading.len());
        Some(width.max(heading) + GAP)
    };
    let widths: Vec<Option<usize>> = (0..N).map(width).collect();
    let headings = headings.map(str::to_owned);
    let mut text = String::new();
    for row in std::iter::once(&headings).chain(&rows) {
        let cells = row.iter().zip(&widths);
        let cells = cells.filter_map(|(cell, width)| Some(format!("{cell:0$}", (*width)?)));
        text.push_str(cells.collect::<String>().trim_end());
        text.push('\n');
    }
    text
}

/// The output of a command, and its format.
#[derive(Debug, Clone)]
pub(crate) struct Output {
    format: Format,
    color: ColorChoice,
    /// The flag `--quiet`.
    pub(crate) quiet: bool,
    /// The flag `--verbose`.
    pub(crate) verbose: bool,
}

impl Output {
    /// Returns the output that the global flags ask for.
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

    /// Returns the global flags that make another process of this program write as this one does; the format is not one.
    pub(crate) fn flags(&self) -> Vec<&'static str> {
        let color = match self.color {
            ColorChoice::AlwaysAnsi => &["--color", "always"][..],
            ColorChoice::Never => &["--color", "never"],
            _ => &[],
        };
        let quiet = self.quiet.then_some("--quiet");
        let verbose = self.verbose.then_some("--verbose");
        quiet
            .into_iter()
            .chain(verbose)
            .chain(color.iter().copied())
            .collect()
    }

    /// Returns whether the answer is JSON.
    pub(crate) fn is_json(&self) -> bool {
        self.format == Format::Json
    }

    /// Writes the answer to stdout unchanged.
    #[expect(
        clippy::unused_self,
        reason = "only the holder of the output may answer"
    )]
    pub(crate) fn answer(&self, bytes: &[u8]) -> io::Result<()> {
        let mut stdout = io::stdout().lock();
        stdout.write_all(bytes)?;
        stdout.flush()
    }

    /// Writes the answer to stdout in the form that the flags ask for: as JSON, or as text.
    pub(crate) fn answer_as(
        &self,
        json: &impl serde::Serialize,
        text: impl FnOnce() -> String,
    ) -> anyhow::Result<()> {
        if self.is_json() {
            self.json(json)
        } else {
            Ok(self.text(&text())?)
        }
    }

    /// Writes our own text to stdout. Its ANSI styles are removed if colours are off.
    pub(crate) fn text(&self, text: &str) -> io::Result<()> {
        let mut stdout = AutoStream::new(io::stdout().lock(), self.color);
        stdout.write_all(text.as_bytes())?;
        stdout.flush()
    }

    /// Writes a value to stdout as indented JSON with a final newline, in printable ASCII.
    #[expect(
        clippy::unused_self,
        reason = "only the holder of the output may answer"
    )]
    pub(crate) fn json(&self, value: &impl serde::Serialize) -> anyhow::Result<()> {
        let stdout = BufWriter::new(io::stdout().lock());
        // As an `io::Error`, which `is_closed_pipe` recognizes.
        Ok(write_json(stdout, value).map_err(io::Error::from)?)
    }

    /// Writes a line to stderr, except with `--quiet`.
    pub(crate) fn say(&self, line: &str) {
        if !self.quiet {
            self.stderr(line);
        }
    }

    /// Writes each note as a line to stderr, except with `--quiet`.
    pub(crate) fn notes(&self, notes: &[String]) {
        for note in notes {
            self.say(&format!("note: {note}"));
        }
    }

    /// Writes text to stderr, even with `--quiet`. Its ANSI styles are removed if colours are off.
    pub(crate) fn stderr(&self, text: &str) {
        let mut stream = AutoStream::new(io::stderr().lock(), self.color);
        // If stderr is closed, the text is lost.
        let _ = writeln!(stream, "{text}");
    }

    /// Writes a failure to stderr, in the form of a diagnostic.
    pub(crate) fn failure(&self, message: &str, help: Option<&str>) {
        self.stderr(&format!(
            "\u{1b}[1;31merror\u{1b}[0m\u{1b}[1m: {message}\u{1b}[0m"
        ));
        if let Some(help) = help {
            self.stderr(&format!("  \u{1b}[1;36m=\u{1b}[0m help: {help}"));
        }
    }

    /// Returns the width of the terminal on stderr, in columns.
    #[expect(
        clippy::unused_self,
        reason = "only the holder of the output may look at the terminal"
    )]
    pub(crate) fn columns(&self) -> Option<u16> {
        let size = tcgetwinsize(io::stderr()).ok()?;
        (size.ws_col > 0).then_some(size.ws_col)
    }

    /// Returns whether progress may be animated on stderr.
    pub(crate) fn animates(&self) -> bool {
        !self.quiet && !self.is_json() && io::stderr().is_terminal()
    }
}

/// Returns the exit code of a command that either succeeds or fails.
pub(crate) const fn done_or_failed(done: bool) -> Exit {
    if done { Exit::Done } else { Exit::Failed }
}

/// Returns whether a run ended because the reader of its output closed the pipe.
pub(crate) fn is_closed_pipe(error: &anyhow::Error) -> bool {
    error
        .chain()
        .filter_map(|cause| cause.downcast_ref::<io::Error>())
        .any(|cause| cause.kind() == io::ErrorKind::BrokenPipe)
}
