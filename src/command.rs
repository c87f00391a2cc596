//! Runs a parsed command line and reports the result.
//!
//! Only this module prints or ends the process.

mod apply;
mod audit;
mod doctor;
mod internal;
mod manual;
mod mcp;
pub(crate) mod output;
mod policy;
mod sync;

use std::ffi::OsString;

use clap::Parser as _;

use crate::cli::{Cli, Command, InfraArgs};
use crate::diagnostic::{self, Faults};
use crate::error::{Exit, Failure};
use crate::infra::{self, ReadInfra};
use crate::name::{MachineName, closest};
use output::Output;

/// Parses, runs and reports.
pub(crate) fn main(args: impl IntoIterator<Item = OsString>) -> Exit {
    let cli = match Cli::try_parse_from(args) {
        Ok(cli) => cli,
        Err(wrong) => return report_usage(&wrong),
    };
    let output = Output::new(&cli.global);
    match run(&cli.command, &output) {
        Ok(exit) => exit,
        Err(error) => report(&error, &output),
    }
}

fn run(command: &Command, output: &Output) -> anyhow::Result<Exit> {
    match command {
        Command::Sync(args) => sync::run(args, output),
        Command::Apply(args) => apply::run(args, output),
        Command::Destroy(args) => apply::destroy(args, output),
        Command::Doctor(args) => doctor::run(args, output),
        Command::Policy(command) => policy::run(command, output),
        Command::Mcp(command) => mcp::run(command, output),
        Command::Audit(command) => audit::run(command, output),
        Command::Completions { shell } => {
            output.answer(&manual::completions(*shell))?;
            Ok(Exit::Done)
        }
        Command::Man => {
            output.answer(&manual::page()?)?;
            Ok(Exit::Done)
        }
        Command::Internal(command) => internal::run(command, output),
    }
}

/// Maximum number of warnings without `--verbose`: more would push everything else off the screen.
const WARNINGS_MAX: usize = 20;

/// Reads the infrastructure that the flags name and writes its warnings to stderr; fails if it has faults.
fn open_infra(args: &InfraArgs, output: &Output) -> anyhow::Result<ReadInfra> {
    let read = infra::open(args.infra.as_deref())?;
    if !read.warnings.is_empty() {
        let all = read.warnings.as_slice();
        let (drawn, more) = match all.split_at_checked(WARNINGS_MAX) {
            Some(parts) if !output.verbose => parts,
            _ => (all, [].as_slice()),
        };
        output.say(&diagnostic::draw(drawn, true));
        match more.len() {
            0 => {}
            1 => output.say("1 more warning; -v shows all"),
            more => output.say(&format!("{more} more warnings; -v shows all")),
        }
    }
    Ok(read)
}

/// Returns the help for an unknown name: the closest known one, or `otherwise`.
fn or_closest<'a>(name: &str, known: impl IntoIterator<Item = &'a str>, otherwise: &str) -> String {
    closest(name, known).map_or_else(
        || otherwise.to_owned(),
        |near| format!("did you mean `{near}`?"),
    )
}

/// Joins names with commas; returns `none` if there are no names.
fn joined(names: &[MachineName], none: &str) -> String {
    let names: Vec<&str> = names.iter().map(MachineName::as_str).collect();
    match names.as_slice() {
        [] => none.to_owned(),
        names => names.join(", "),
    }
}

/// Prints a usage error, or help or the version, which are not errors.
fn report_usage(wrong: &clap::Error) -> Exit {
    // If stderr is closed, the message is lost.
    let _ = wrong.print();
    if wrong.use_stderr() {
        Exit::Usage
    } else {
        Exit::Done
    }
}

/// Prints a run's error to stderr and returns the exit code.
fn report(error: &anyhow::Error, output: &Output) -> Exit {
    if output::is_closed_pipe(error) {
        // The reader stopped reading, which is not an error.
        return Exit::Done;
    }
    if let Some(Faults(faults)) = error.downcast_ref::<Faults>() {
        // Always styled: `stderr` removes the colours if they are off.
        output.stderr(&diagnostic::draw(faults, true));
        return Exit::Failed;
    }
    let failure = error.downcast_ref::<Failure>();
    output.failure(
        &format!("{error:#}"),
        failure.and_then(|f| f.help.as_deref()),
    );
    failure.map_or(Exit::Failed, |f| f.exit)
}
