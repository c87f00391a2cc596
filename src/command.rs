//! Runs a parsed command line and reports the result.
//!
//! Only this module prints or ends the process.

mod apply;
mod audit;
mod bar;
mod clipboard;
mod complete;
mod doctor;
mod file;
mod git_gpg;
mod init;
mod internal;
mod manual;
mod mcp;
pub(crate) mod output;
mod policy;
mod service;
mod sign;
mod ssh_agent;
mod status;
mod sync;

use std::ffi::{OsStr, OsString};
use std::io::Write as _;
use std::path::Path;

use clap::error::ErrorKind;
use clap::{ColorChoice, CommandFactory as _, FromArgMatches as _};
use serde::Serialize;
use serde_json::json;

use crate::account::Account;
use crate::child;
use crate::cli::{Cli, Command, GlobalArgs, InfraArgs, McpCommand};
use crate::diagnostic::{self, Diagnostic, Faults, Severity};
use crate::error::{Exit, Failure, Failures, with_causes};
use crate::infra::{self, ReadInfra};
use crate::machine_state::SERVICES;
use crate::name::{MachineName, closest};
use crate::text::{escaped, write_json};
use crate::transport::{self, RouteContext, shell_line};
use output::Output;

/// Parses, runs and reports.
pub(crate) fn main(args: impl IntoIterator<Item = OsString>) -> Exit {
    let args: Vec<OsString> = args.into_iter().collect();
    if git_gpg::is_called(args.first()) {
        return as_gpg(args.get(1..).unwrap_or_default());
    }
    if let [_, command] = args.as_slice()
        && let Some(ended) = beside_a_program(command)
    {
        return ended;
    }
    if let Some(ended) = complete::answer(&args) {
        return ended;
    }
    let color = match flag(&args, "--color") {
        Some("always") => ColorChoice::Always,
        Some("never") => ColorChoice::Never,
        _ => ColorChoice::Auto,
    };
    let parser = Cli::command().color(color);
    let matches = parser.try_get_matches_from(&args);
    let cli = match matches.and_then(|matches| Cli::from_arg_matches(&matches)) {
        Ok(cli) => cli,
        Err(wrong) => return report_usage(&wrong, flag(&args, "--format") == Some("json")),
    };
    let output = Output::new(&cli.global);
    match run(&cli.command, &output) {
        Ok(exit) => exit,
        Err(error) => report(&error, &cli.command, &output),
    }
}

/// Runs a process that stands beside one of the machine's programs, for as long as that runs, or starts it: without the
/// parser, which takes half a megabyte.
fn beside_a_program(command: &OsStr) -> Option<Exit> {
    let run = match command.to_str()? {
        child::REAPER => child::run_reaper,
        child::EXEC => child::run_exec,
        _ => return None,
    };
    // The process that started it learns of a failure from the socket between them.
    Some(if run().is_ok() {
        Exit::Done
    } else {
        Exit::Failed
    })
}

/// Runs this program as git's gpg, whose command line has no flags of ours.
fn as_gpg(args: &[OsString]) -> Exit {
    let output = Output::new(&GlobalArgs::default());
    match git_gpg::run(args, &output) {
        Ok(exit) => exit,
        Err(error) => {
            git_gpg::tell_terminal(&error);
            report_failures(&error, false, &output)
        }
    }
}

/// Returns the last value of a global flag, for a command line that may not be valid.
fn flag<'a>(args: &'a [OsString], name: &str) -> Option<&'a str> {
    let args = args
        .iter()
        .skip(1)
        .map(|arg| arg.to_str().unwrap_or_default());
    let args: Vec<&str> = args.take_while(|arg| *arg != "--").collect();
    let mut values =
        args.iter()
            .enumerate()
            .filter_map(|(index, arg)| match arg.strip_prefix(name)? {
                "" => args.get(index + 1).copied(),
                rest => rest.strip_prefix('='),
            });
    values.next_back()
}

fn run(command: &Command, output: &Output) -> anyhow::Result<Exit> {
    match command {
        Command::Init => init::run(output),
        Command::Status(args) => status::run(args, output),
        Command::Sync(args) => sync::run(args, output),
        Command::Apply(args) => apply::run(args, output),
        Command::Destroy(args) => apply::destroy(args, output),
        Command::Doctor(args) => doctor::run(args, output),
        Command::Policy(command) => policy::run(command, output),
        Command::Mcp(command) => mcp::run(command, output),
        Command::Audit(command) => audit::run(command, output),
        Command::Sign(args) => sign::run(args, output),
        Command::SshAgent(args) => ssh_agent::run(args, output),
        Command::File(command) => file::run(command, output),
        Command::Clipboard(command) => clipboard::run(command, output),
        Command::Completions { shell } => {
            output.answer(&complete::script(*shell)?)?;
            Ok(Exit::Done)
        }
        Command::Man { page, dir } => {
            match dir {
                Some(dir) => {
                    let pages = manual::write_pages(dir)?;
                    output.say(&format!("wrote {} pages", pages.len()));
                }
                None => output.answer(&manual::page(page.as_deref())?)?,
            }
            Ok(Exit::Done)
        }
        Command::Internal(command) => internal::run(command, output),
    }
}

/// Maximum number of warnings without `--verbose`: more would push everything else off the screen.
const WARNINGS_MAX: usize = 20;

/// Reads the infrastructure that the flags name and writes its warnings to stderr; fails if it has faults.
fn open_infra(args: &InfraArgs, output: &Output) -> anyhow::Result<ReadInfra> {
    let mut read = infra::open(args.infra.as_deref()).map_err(|faults| {
        let is_absent = args.infra.is_none() && faults.is_not_found();
        match (is_absent, on_host_only()) {
            (true, Some(failure)) => anyhow::Error::from(failure),
            _ => faults.into(),
        }
    })?;
    if let Some(path) = &args.infra {
        let flag = shell_line([OsStr::new("--infra"), path.as_os_str()]);
        read.infra.flag = format!(" {}", escaped(&flag));
    }
    if !read.warnings.is_empty() {
        let all = read.warnings.as_slice();
        let (drawn, more) = match all.split_at_checked(WARNINGS_MAX) {
            Some(parts) if !output.verbose => parts,
            _ => (all, [].as_slice()),
        };
        output.say(&diagnostic::draw(drawn, true));
        match (diagnostic::count(all), more.len()) {
            (Some(count), 0) => output.say(&format!("\n{count}")),
            (Some(count), _) => {
                let shown = drawn.len();
                output.say(&format!(
                    "\n{count}, of which {shown} are shown; -v shows all"
                ));
            }
            (None, _) => {}
        }
    }
    Ok(read)
}

/// Returns the failure of a command that needs the host, if this is a machine.
fn on_host_only() -> Option<Failure> {
    if !RouteContext::look().in_machine {
        return None;
    }
    let name = Account::machine().map_or_else(String::new, |name| format!(" `{name}`"));
    let message =
        format!("this is the machine{name}: run this command on the host, next to `infra.yml`");
    let uses = match transport::providers() {
        Err(why) => return Some(Failure::new(Exit::Failed, message).help(why.to_string())),
        Ok(providers) => providers.into_iter().next(),
    };
    let uses =
        uses.map(|provider| format!("`anklume mcp list -i {provider}` shows what it may use"));
    let offers = Path::new(SERVICES).exists();
    let offers = offers.then(|| "`anklume mcp status` shows what it offers".to_owned());
    let help: Vec<String> = uses.into_iter().chain(offers).collect();
    let help = match help.as_slice() {
        [] => "this machine offers no service and may use none".to_owned(),
        some => format!("here, {}", some.join(", and ")),
    };
    Some(Failure::new(Exit::Failed, message).help(help))
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
fn report_usage(wrong: &clap::Error, is_json: bool) -> Exit {
    if wrong.kind() == ErrorKind::MissingSubcommand {
        // Clap would list the hidden subcommands too.
        let failure = "error: no command given; `anklume --help` lists the commands";
        let _ = writeln!(std::io::stderr(), "{failure}");
    } else {
        // If stderr is closed, the message is lost.
        let _ = wrong.print();
    }
    if !wrong.use_stderr() {
        return Exit::Done;
    }
    if is_json {
        let text = wrong.to_string();
        let text = text.strip_prefix("error: ").unwrap_or(&text);
        let (text, _) = text.split_once("\n\nUsage:").unwrap_or((text, ""));
        let (message, tips) = text.split_once("\n\n").unwrap_or((text, ""));
        let message = message.lines().map(str::trim).collect::<Vec<_>>().join(" ");
        let help = tips.trim().trim_start_matches("tip: ");
        let help = (!help.is_empty()).then_some(help);
        print_json_failures(&[FailureEntry::new(&message, help)]);
    }
    Exit::Usage
}

/// Prints a run's error to stderr, with `--format json` also to stdout, and returns the exit code.
fn report(error: &anyhow::Error, command: &Command, output: &Output) -> Exit {
    if output::is_closed_pipe(error) {
        // The reader stopped reading, which is not an error.
        return Exit::Done;
    }
    report_failures(error, output.is_json() && answers_in_json(command), output)
}

fn report_failures(error: &anyhow::Error, is_json: bool, output: &Output) -> Exit {
    if let Some(Faults(faults)) = error.downcast_ref::<Faults>() {
        let is_error = |one: &&Diagnostic| one.severity == Severity::Error || !output.quiet;
        let drawn: Vec<Diagnostic> = faults.iter().filter(is_error).cloned().collect();
        // Always styled: `stderr` removes the colours if they are off.
        output.stderr(&diagnostic::draw(&drawn, true));
        if let Some(count) = diagnostic::count(&drawn) {
            output.stderr(&format!("\n{count}"));
        }
        if is_json {
            let entries: Vec<_> = faults.iter().map(FailureEntry::of).collect();
            print_json_failures(&entries);
        }
        return Exit::Failed;
    }
    let unnamed = Failure::new(Exit::Failed, with_causes(error.as_ref()));
    let failures = match (
        error.downcast_ref::<Failures>(),
        error.downcast_ref::<Failure>(),
    ) {
        (Some(Failures(failures)), _) => failures.as_slice(),
        (None, Some(failure)) => std::slice::from_ref(failure),
        (None, None) => std::slice::from_ref(&unnamed),
    };
    for failure in failures {
        output.failure(&failure.message, failure.help.as_deref());
    }
    if is_json {
        let entries = failures.iter().map(|failure| FailureEntry {
            file: failure.place.as_ref().map(|(file, _)| file.as_str()),
            line: failure.place.as_ref().map(|(_, line)| *line),
            ..FailureEntry::new(&failure.message, failure.help.as_deref())
        });
        print_json_failures(&entries.collect::<Vec<_>>());
    }
    failures
        .first()
        .map_or(Exit::Failed, |failure| failure.exit)
}

/// Returns whether a command's stdout holds its answer, and no protocol or other text.
const fn answers_in_json(command: &Command) -> bool {
    !matches!(
        command,
        Command::Mcp(McpCommand::Serve(_) | McpCommand::Connect(_))
            | Command::Completions { .. }
            | Command::Man { .. }
            | Command::Internal(_)
    )
}

/// A failure as JSON.
#[derive(Debug, Serialize)]
struct FailureEntry<'a> {
    severity: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    code: Option<&'a str>,
    message: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    file: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    line: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    column: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    help: Option<&'a str>,
}

impl<'a> FailureEntry<'a> {
    const fn new(message: &'a str, help: Option<&'a str>) -> Self {
        Self {
            severity: "error",
            code: None,
            message,
            file: None,
            line: None,
            column: None,
            help,
        }
    }

    fn of(finding: &'a Diagnostic) -> Self {
        let place = finding.place.as_ref();
        Self {
            severity: match finding.severity {
                Severity::Error => "error",
                Severity::Warning => "warning",
            },
            code: Some(finding.code),
            file: place.map(|place| place.source.path.as_str()),
            line: place.map(|place| place.line),
            column: place.map(|place| place.column),
            ..Self::new(&finding.message, finding.help.as_deref())
        }
    }
}

fn print_json_failures(entries: &[FailureEntry<'_>]) {
    // The failure was already written to stderr.
    let _ = write_json(std::io::stdout().lock(), &json!({ "errors": entries }));
}
