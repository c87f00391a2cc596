//! Runs a parsed command line and reports the result.
//!
//! One file a noun. Nothing below `command` prints or ends the process.

mod apply;
mod audit;
mod clipboard_holder;
mod destroy;
mod doctor;
mod errand;
mod foreign_reader;
mod gpg_agent_launcher;
mod machine_ask;
mod machine_root;
mod machine_setup;
mod manual;
mod mcp;
pub(crate) mod output;
mod policy;
mod rotate_logs;
mod sync;

use std::ffi::OsString;

use clap::Parser as _;

use crate::cli::{Cli, Command, CompletionsArgs, InfraArgs};
use crate::diagnostic::{self, Faults};
use crate::error::{Exit, Failure};
use crate::infra::{self, ReadInfra};
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
        Command::Destroy(args) => destroy::run(args, output),
        Command::Doctor(args) => doctor::run(args, output),
        Command::Policy(command) => policy::run(command, output),
        Command::Mcp(command) => mcp::run(command, output),
        Command::Audit(command) => audit::run(command, output),
        Command::Completions(args) => print_completions(args, output),
        Command::Man => print_manual(output),
        Command::RotateLogs => rotate_logs::run(output),
        Command::MachineAsk(args) => machine_ask::run(args, output),
        Command::MachineRoot(args) => machine_root::run(args),
        Command::MachineSetup => machine_setup::run(output),
        Command::ClipboardHolder(args) => clipboard_holder::run(args, output),
        Command::ForeignReader => foreign_reader::run(),
        Command::GpgAgentLauncher(args) => gpg_agent_launcher::run(args),
        Command::McpWorker(args) => mcp::work(args, output),
        Command::McpHelper(args) => mcp::help(args, output),
    }
}

fn print_completions(args: &CompletionsArgs, output: &Output) -> anyhow::Result<Exit> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut manual::shown(), "anklume", &mut script);
    output.answer(&script)?;
    Ok(Exit::Done)
}

fn print_manual(output: &Output) -> anyhow::Result<Exit> {
    output.answer(&manual::page()?)?;
    Ok(Exit::Done)
}

/// Maximum number of warnings that are drawn without `--verbose`: more of them push the rest off the screen.
const WARNINGS_SHOWN: usize = 20;

/// Reads the infrastructure that the flags name; its warnings go to stderr, its faults are the error.
fn open_infra(args: &InfraArgs, output: &Output) -> anyhow::Result<ReadInfra> {
    let read = infra::open(args.infra.as_deref())?;
    if !read.warnings.is_empty() {
        let all = read.warnings.as_slice();
        let (shown, more) = match all.split_at_checked(WARNINGS_SHOWN) {
            Some(parts) if !output.verbose() => parts,
            _ => (all, [].as_slice()),
        };
        output.say(&diagnostic::draw(shown, true));
        match more.len() {
            0 => {}
            1 => output.say("1 more warning; -v shows all"),
            more => output.say(&format!("{more} more warnings; -v shows all")),
        }
    }
    Ok(read)
}

/// Help and version go to stdout and are no fault; anything else is a usage error.
fn report_usage(wrong: &clap::Error) -> Exit {
    // A closed stderr leaves nobody to tell.
    let _ = wrong.print();
    if wrong.use_stderr() {
        Exit::Usage
    } else {
        Exit::Done
    }
}

/// Turns the error of a run into text on stderr and an exit.
fn report(error: &anyhow::Error, output: &Output) -> Exit {
    if output::is_closed_pipe(error) {
        // Whoever read our answer has seen enough.
        return Exit::Done;
    }
    if let Some(Faults(found)) = error.downcast_ref::<Faults>() {
        // Styled always: the stream takes the colours out where they do not go.
        output.stderr(&diagnostic::draw(found, true));
        return Exit::Failed;
    }
    let failure = error.downcast_ref::<Failure>();
    output.failure(
        &format!("{error:#}"),
        failure.and_then(|f| f.help.as_deref()),
    );
    failure.map_or(Exit::Failed, |f| f.exit)
}
