//! Completes command lines: clap's engine asks for the names that this machine knows, each time that a user asks.
//!
//! On the host, the names are those of `infra.yml`; in a machine, those of its providers, which are asked.

use std::ffi::{OsStr, OsString};
use std::io;
use std::sync::Arc;
use std::time::Duration;

use clap_complete::CompleteEnv;
use clap_complete::engine::{
    ArgValueCompleter, CompletionCandidate, PathCompleter, ValueCompleter as _,
};
use clap_complete::env::Shells;
use serde_json::{Map, Value};

use super::manual;
use super::mcp::offered;
use super::output::Output;
use crate::cli::{CompletionShell, GlobalArgs};
use crate::error::Exit;
use crate::infra;
use crate::name::MachineName;
use crate::services::Services;
use crate::session::block_on;
use crate::transport::{self, RouteContext};

/// The variable with which a shell's script asks; its value is the shell.
const VARIABLE: &str = "_ANKLUME_COMPLETE";
/// The index of the word to complete, which the engine's scripts set for some shells.
const INDEX: &str = "_CLAP_COMPLETE_INDEX";
/// The program's name.
const PROGRAM: &str = "anklume";
/// Bash splits words at `=`, `@` and `:`, so that the engine's own script completes nothing in `data=@f`.
const BASH: &str = include_str!("complete/anklume.bash");
/// Maximum wait for a provider: a user waits for the answer.
const ASK_MAX: Duration = Duration::from_secs(1);
/// Maximum number of names that another machine adds, and the maximum length of each.
const NAMES_MAX: usize = 1000;
const NAME_MAX: usize = 64;

/// Returns the script with which a shell asks.
pub(super) fn script(shell: CompletionShell) -> io::Result<Vec<u8>> {
    let name = match shell {
        CompletionShell::Bash => return Ok(BASH.replace("VARIABLE", VARIABLE).into_bytes()),
        CompletionShell::Elvish => "elvish",
        CompletionShell::Fish => "fish",
        CompletionShell::Powershell => "powershell",
        CompletionShell::Zsh => "zsh",
    };
    let shells = Shells::builtins();
    let mut script = Vec::new();
    if let Some(shell) = shells.completer(name) {
        shell.write_registration(VARIABLE, PROGRAM, PROGRAM, PROGRAM, &mut script)?;
    }
    Ok(script)
}

/// Answers a shell's script; `None` if this is another run.
pub(super) fn answer(args: &[OsString]) -> Option<Exit> {
    let shell = std::env::var(VARIABLE).ok()?;
    // Any other run, whose environment has the variable by mistake.
    if args.get(1).is_none_or(|first| first != "--")
        || Shells::builtins().completer(&shell).is_none()
    {
        return None;
    }
    let line = Arc::new(BegunLine::of(args));
    let completing = CompleteEnv::with_factory(|| with_completers(manual::visible(), &line));
    let completing = completing.var(VARIABLE).bin(PROGRAM).completer(PROGRAM);
    let folder = std::env::current_dir().ok();
    let answered = completing.try_complete(args.iter().cloned(), folder.as_deref());
    // A message would be in the middle of the user's line.
    Some(if answered.is_ok() {
        Exit::Done
    } else {
        Exit::Failed
    })
}

/// What a word of the command line may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum WordMeaning {
    Machine,
    Domain,
    /// `PROVIDER`, or `PROVIDER/SERVICE`.
    Provider,
    /// A service of the provider that other words name.
    Service,
    /// The tool of `mcp call`: a provider and a service, or a service of the provider that `-i` names.
    Tool,
    /// An argument of that tool.
    Argument,
    /// A provider, or a file here.
    ProviderOrFile,
    /// A manual page.
    Page,
}

impl WordMeaning {
    /// Returns the meaning of an argument, by the name that the help gives its value.
    fn of(argument: &clap::Arg) -> Option<Self> {
        let names = argument.get_value_names().unwrap_or_default();
        Some(match names.first().map(AsRef::as_ref) {
            Some("MACHINE" | "CALLER") => Self::Machine,
            Some("DOMAIN" | "PROJECT") => Self::Domain,
            Some("PROVIDER" | "PROVIDER/SERVICE" | "FOLDER" | "NAME") => Self::Provider,
            Some("SERVICE") => Self::Service,
            Some("TOOL") => Self::Tool,
            Some("ARGS") => Self::Argument,
            Some("PAGE") => Self::Page,
            Some("FILE") if argument.is_positional() => Self::ProviderOrFile,
            _ => return None,
        })
    }
}

/// Gives the arguments of a command, and of those below it, their completers.
fn with_completers(command: clap::Command, line: &Arc<BegunLine>) -> clap::Command {
    let command = command.mut_args(|argument| match WordMeaning::of(&argument) {
        Some(meaning) => {
            let line = Arc::clone(line);
            let complete = move |begun: &OsStr| line.candidates(meaning, begun);
            argument.add(ArgValueCompleter::new(complete))
        }
        None => argument,
    });
    let below: Vec<String> = command
        .get_subcommands()
        .map(|below| below.get_name().to_owned())
        .collect();
    below.into_iter().fold(command, |command, name| {
        command.mut_subcommand(name, |below| with_completers(below, line))
    })
}

/// The words before the one to complete.
#[derive(Debug)]
struct BegunLine(Vec<String>);

impl BegunLine {
    fn of(args: &[OsString]) -> Self {
        let words = args.iter().skip_while(|arg| *arg != "--").skip(1);
        let words: Vec<String> = words
            .map(|word| word.to_string_lossy().into_owned())
            .collect();
        let index = std::env::var(INDEX).ok().and_then(|text| text.parse().ok());
        let index = index.unwrap_or_else(|| words.len().saturating_sub(1));
        Self(words.into_iter().take(index).collect())
    }

    /// Returns the value of the last of these options.
    fn option(&self, names: &[&str]) -> Option<&str> {
        let words = self.0.iter().enumerate();
        let mut values = words.filter_map(|(at, word)| match word.split_once('=') {
            Some((name, value)) => names.contains(&name).then_some(value),
            None if names.contains(&word.as_str()) => self.0.get(at + 1).map(String::as_str),
            None => None,
        });
        values.next_back()
    }

    /// Returns the provider that an option names.
    fn provider(&self) -> Option<&str> {
        let name = self.option(&["-i", "--instance", "--machine", "--provider"])?;
        Some(name.split('/').next().unwrap_or(name))
    }

    /// Returns the provider and the service of `mcp call`.
    fn called(&self) -> Option<(&str, &str)> {
        let after = self.0.iter().skip_while(|word| *word != "call").skip(1);
        let mut is_value = false;
        let mut words = after.filter(|word| {
            let is_word = !is_value && !word.starts_with('-');
            is_value = word.starts_with('-') && !word.contains('=') && *word != "--dry-run";
            is_word
        });
        let tool = words.next()?;
        match (self.provider(), tool.split_once('/')) {
            (Some(provider), _) => Some((provider, tool)),
            (None, named) => named,
        }
    }

    fn candidates(&self, meaning: WordMeaning, begun: &OsStr) -> Vec<CompletionCandidate> {
        let text = begun.to_str().unwrap_or_default();
        let machines = || Known::of(self).machines();
        let names = match meaning {
            WordMeaning::Machine => machines(),
            WordMeaning::Page => manual::page_names(),
            WordMeaning::Domain => Known::of(self).domains(),
            WordMeaning::Provider => self.providers(text),
            WordMeaning::Service => {
                let provider = self.provider().map(str::to_owned);
                provider.map_or_else(Vec::new, |provider| Known::of(self).services(&provider))
            }
            WordMeaning::Tool => match self.provider() {
                Some(provider) => Known::of(self).services(provider),
                None => self.providers(text),
            },
            WordMeaning::Argument => return self.arguments(text),
            WordMeaning::ProviderOrFile => {
                let names = beginning(self.providers(text), text);
                return names
                    .chain(files(&PathCompleter::any().stdio(), begun))
                    .collect();
            }
        };
        beginning(names, text).collect()
    }

    /// Returns the providers, or, after `PROVIDER/`, its services.
    fn providers(&self, begun: &str) -> Vec<String> {
        let known = Known::of(self);
        let Some((provider, _)) = begun.split_once('/') else {
            return known.providers();
        };
        let services = known.services(provider).into_iter();
        services
            .map(|service| format!("{provider}/{service}"))
            .collect()
    }

    /// Returns the arguments of the called tool, and the values of one that is begun.
    fn arguments(&self, begun: &str) -> Vec<CompletionCandidate> {
        if let Some((name, path)) = begun.split_once("=@") {
            // No shell replaces a `~` there.
            if path.starts_with('~') {
                return Vec::new();
            }
            let prefix = format!("{name}=@");
            return files(&PathCompleter::file(), OsStr::new(path))
                .map(|file| file.add_prefix(prefix.clone()))
                .collect();
        }
        let Some((provider, service)) = self.called() else {
            return Vec::new();
        };
        let schema = Known::of(self).schema(provider, service);
        let properties = schema.get("properties").and_then(Value::as_object);
        let mut words = Vec::new();
        for (name, property) in properties.into_iter().flatten() {
            if !is_plain(name) {
                continue;
            }
            let values = property.get("enum").and_then(Value::as_array);
            let values: Vec<&str> = values
                .into_iter()
                .flatten()
                .filter_map(Value::as_str)
                .filter(|value| is_plain(value))
                .collect();
            match property.get("type").and_then(Value::as_str) {
                Some("string") if !values.is_empty() => {
                    words.extend(values.iter().map(|value| format!("{name}={value}")));
                }
                Some("boolean") => {
                    words.extend(["true", "false"].map(|value| format!("{name}:={value}")));
                }
                Some("string") => words.extend([format!("{name}="), format!("{name}=@")]),
                _ => words.push(format!("{name}:=")),
            }
        }
        words.truncate(NAMES_MAX);
        beginning(words, begun).collect()
    }
}

/// Completes a path. A name with a line break would be read as two candidates.
fn files(completer: &PathCompleter, begun: &OsStr) -> impl Iterator<Item = CompletionCandidate> {
    let files = completer.complete(begun).into_iter();
    files.filter(|file| !file.get_value().as_encoded_bytes().contains(&b'\n'))
}

fn beginning(names: Vec<String>, begun: &str) -> impl Iterator<Item = CompletionCandidate> {
    let names: Vec<CompletionCandidate> = names
        .into_iter()
        .filter(|name| name.starts_with(begun))
        .map(CompletionCandidate::new)
        .collect();
    names.into_iter()
}

/// Returns whether a text of another machine may be put on a command line: neither a shell nor this
/// program gives it another meaning.
fn is_plain(text: &str) -> bool {
    let is_safe = |c: char| c.is_ascii_alphanumeric() || "_.-".contains(c);
    let is_option = text.starts_with('-');
    !text.is_empty() && !is_option && text.len() <= NAME_MAX && text.chars().all(is_safe)
}

/// Where the names come from.
enum Known {
    /// `infra.yml`.
    Declared(Box<infra::Infra>),
    /// The providers of this machine.
    Reachable,
    Nothing,
}

impl Known {
    fn of(line: &BegunLine) -> Self {
        if RouteContext::look().has_sockets() {
            return Self::Reachable;
        }
        let path = line.option(&["--infra"]).map(std::path::Path::new);
        match infra::open(path) {
            Ok(read) => Self::Declared(Box::new(read.infra)),
            Err(_) => Self::Nothing,
        }
    }

    fn machines(&self) -> Vec<String> {
        match self {
            Self::Declared(infra) => infra
                .machines()
                .map(|(_, machine)| machine.name.to_string())
                .collect(),
            Self::Reachable => transport::providers().unwrap_or_default(),
            Self::Nothing => Vec::new(),
        }
    }

    fn domains(&self) -> Vec<String> {
        let Self::Declared(infra) = self else {
            return Vec::new();
        };
        let domains = infra.domains.iter();
        domains.map(|domain| domain.name.to_string()).collect()
    }

    fn providers(&self) -> Vec<String> {
        let Self::Declared(infra) = self else {
            return self.machines();
        };
        let providers = infra.machines().map(|(_, machine)| machine);
        providers
            .filter(|machine| !machine.services.is_empty())
            .map(|machine| machine.name.to_string())
            .collect()
    }

    fn services(&self, provider: &str) -> Vec<String> {
        match self {
            Self::Declared(infra) => {
                let machine = infra.machine(provider);
                let services = machine.map(|(_, machine)| machine.services.as_slice());
                let services = services.unwrap_or_default().iter();
                services.map(|service| service.name.to_string()).collect()
            }
            Self::Reachable => listed(provider).into_iter().map(|(name, _)| name).collect(),
            Self::Nothing => Vec::new(),
        }
    }

    /// Returns the schema of a service's arguments.
    fn schema(&self, provider: &str, service: &str) -> Map<String, Value> {
        match self {
            Self::Declared(infra) => infra
                .machine(provider)
                .and_then(|(_, machine)| {
                    let services = Services::of(machine);
                    let service = services.service(service)?;
                    let mut input = services.definition(&service.tool)?.input();
                    service.conditions.narrow(&mut input);
                    crate::catalogue::hide(&mut input, |name| service.with.contains_key(name));
                    Some(input)
                })
                .unwrap_or_default(),
            Self::Reachable => {
                let mut listed = listed(provider).into_iter();
                let found = listed.find(|(name, _)| name == service);
                found.map(|(_, schema)| schema).unwrap_or_default()
            }
            Self::Nothing => Map::new(),
        }
    }
}

/// Asks a provider of this machine for its services and the schemas of their arguments.
fn listed(provider: &str) -> Vec<(String, Map<String, Value>)> {
    if provider.parse::<MachineName>().is_err() {
        return Vec::new();
    }
    let quiet = Output::new(&GlobalArgs {
        quiet: true,
        ..GlobalArgs::default()
    });
    // A provider that does not answer offers nothing to complete.
    let tools = block_on(offered(provider, ASK_MAX, &quiet)).unwrap_or_default();
    let tools = tools.iter().map(crate::text::Foreign::raw);
    let tools = tools.filter(|tool| is_plain(&tool.name)).take(NAMES_MAX);
    tools
        .map(|tool| (tool.name.to_string(), (*tool.input_schema).clone()))
        .collect()
}
