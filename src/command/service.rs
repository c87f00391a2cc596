//! Finds the service with a tool among those that the providers of this machine offer to it, and calls it.

use std::ffi::OsStr;
use std::io;
use std::path::Path;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rmcp::model::Tool;
use serde_json::{Map, Value};

use super::mcp::{ServerClient, client_error, interruptible, text_out, unreachable, with_client};
use super::output::Output;
use crate::cli::{ChannelArgs, ServiceArgs};
use crate::digest::sha256;
use crate::error::{Exit, Failure};
use crate::mcp::OVERLOADED;
use crate::mcp::TOOL_KEY;
use crate::mcp::client::pieces::{ArgumentPayload, Moved, PayloadSource, PiecesError};
use crate::mcp::client::{Called, ClientError};
use crate::name::{MachineName, ServiceName, ToolName};
use crate::text::{Foreign, escaped, listed};
use crate::transport::{self, RouteContext, Transport};

/// Length from which content is sent in pieces, in bytes: one caller may have fewer transfers than calls at once.
const WHOLE_MAX: u64 = 1024 * 1024;
/// Number of times that an overloaded provider is called again, and the pause before each.
const OVERLOADED_TRIES: u32 = 60;
const OVERLOADED_PAUSE: Duration = Duration::from_millis(500);
/// Pauses before a broken connection is opened again, without progress in between: a machine takes some seconds to restart.
const BROKEN_PAUSES: [Duration; 6] = [
    Duration::from_millis(500),
    Duration::from_secs(1),
    Duration::from_secs(2),
    Duration::from_secs(5),
    Duration::from_secs(10),
    Duration::from_secs(30),
];
/// Maximum number of connections of one run.
const CONNECTIONS_MAX: usize = 100;

/// A service, as far as the user named it, and the way to it.
#[derive(Debug, Clone, Default)]
pub(super) struct NamedService {
    service: Option<String>,
    /// Its machine is the provider; `None` if that is not named.
    channel: ChannelArgs,
    /// How a user can name it, if not by the flags `-i` and `--service`.
    naming: Option<&'static str>,
}

impl NamedService {
    /// Reads the arguments; `otherwise` is what names the service if they do not.
    pub(super) fn of(args: &ServiceArgs, otherwise: &str) -> Result<Self, Failure> {
        let name = Self::parse(args.instance.as_deref().unwrap_or(otherwise))?;
        Ok(Self {
            service: args.service.clone().or(name.service),
            channel: ChannelArgs {
                instance: name.channel.instance,
                project: args.project.clone(),
                socket: args.socket.clone(),
                timeout: args.timeout,
                dry_run: false,
            },
            naming: None,
        })
    }

    /// Reads a command's words, of which the first may name the provider in the place of `-i`: `PROVIDER` or
    /// `PROVIDER/SERVICE`. Returns the service, and the other words.
    pub(super) fn of_words<'w, W: AsRef<OsStr>>(
        args: &ServiceArgs,
        words: &'w [W],
        kind: WordKind,
        otherwise: &str,
    ) -> anyhow::Result<(Self, &'w [W])> {
        let mut args = args.clone();
        let mut rest = words;
        if args.instance.is_none()
            && args.socket.is_none()
            && let Some((first, others)) = words.split_first()
            && let Some(provider) = provider_word(first.as_ref(), kind, !others.is_empty())?
        {
            args.instance = Some(provider.to_owned());
            rest = others;
        }
        Ok((Self::of(&args, otherwise)?, rest))
    }

    /// Sets how a user can name the service, for a program without these flags.
    pub(super) fn named_by(self, naming: &'static str) -> Self {
        let naming = Some(naming);
        Self { naming, ..self }
    }

    /// Parses `PROVIDER` or `PROVIDER/SERVICE`; an empty text names nothing.
    pub(super) fn parse(text: &str) -> Result<Self, Failure> {
        if text.is_empty() {
            return Ok(Self::default());
        }
        let (provider, service) = match text.split_once('/') {
            Some((provider, service)) => (provider, Some(service)),
            None => (text, None),
        };
        if provider.is_empty() || service.is_some_and(str::is_empty) {
            let message = format!("`{}` does not name a service", escaped(text));
            let help = "write it as PROVIDER or PROVIDER/SERVICE";
            return Err(Failure::new(Exit::Usage, message).help(help));
        }
        Ok(Self {
            service: service.map(str::to_owned),
            channel: ChannelArgs {
                instance: Some(provider.to_owned()),
                ..ChannelArgs::default()
            },
            naming: None,
        })
    }

    /// Names the only provider that offers a service with this tool, if neither a provider nor a socket is named.
    fn choose_provider(
        &mut self,
        tool: ToolName,
        otherwise: &str,
        output: &Output,
    ) -> anyhow::Result<()> {
        if self.channel.instance.is_none() && self.channel.socket.is_none() {
            self.channel.instance = Some(only_provider(tool, self, otherwise, output)?);
        }
        Ok(())
    }
}

/// The words that may follow the provider on a command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum WordKind {
    /// Paths of this machine.
    Files,
    /// Names in the provider.
    Names,
}

/// Returns the first word of a command if it names a provider: in a machine, one of its providers; on the host, which has
/// none by default, any machine. A word that may also be a file is refused; alone on the host, it is the file.
fn provider_word(word: &OsStr, kind: WordKind, has_others: bool) -> anyhow::Result<Option<&str>> {
    let Some(text) = word.to_str() else {
        return Ok(None);
    };
    let (provider, service) = match text.split_once('/') {
        Some((provider, service)) => (provider, Some(service)),
        None => (text, None),
    };
    let is_service = service.is_none_or(|name| name.parse::<ServiceName>().is_ok());
    if !is_service || provider.parse::<MachineName>().is_err() {
        return Ok(None);
    }
    let is_file = kind == WordKind::Files && Path::new(word).symlink_metadata().is_ok();
    if RouteContext::look().has_sockets() {
        let providers = transport::providers().map_err(|why| unreachable(&why))?;
        if !providers.iter().any(|one| one == provider) {
            return Ok(None);
        }
    }
    if is_file && (has_others || RouteContext::look().has_sockets()) {
        let message = format!("`{text}` is a file here, and may name the provider `{provider}`");
        let help = format!("write the file as `./{text}`, or the provider as `-i {text}`");
        return Err(Failure::new(Exit::Usage, message).help(help).into());
    }
    Ok(Some(text).filter(|_| !is_file))
}

/// Finds the only service with this tool that `name` allows, and runs `work` with its name over its channel. `otherwise` is
/// another way to name it, for a help.
pub(super) fn with_service(
    tool: ToolName,
    name: &NamedService,
    otherwise: &str,
    output: &Output,
    work: impl AsyncFnOnce(&mut ServerClient, &str) -> anyhow::Result<Exit>,
) -> anyhow::Result<Exit> {
    let mut name = name.clone();
    name.choose_provider(tool, otherwise, output)?;
    with_client(&name.channel, output, async |server, transport| {
        let tools = match transport {
            Transport::Socket(_) => server.tools().await?,
            Transport::Local | Transport::Exec(_) => server.callable().await?,
        };
        let service = only_service(tool, &tools, &name)?;
        work(server, &service).await
    })
}

/// Runs `work` as [`with_service`] does, again over another connection when one breaks after the first had opened: `work`
/// goes on with its state. `advanced` is the number of bytes or steps that it has done.
pub(super) fn with_service_again<S>(
    tool: ToolName,
    name: &NamedService,
    output: &Output,
    state: &mut S,
    advanced: fn(&S) -> u64,
    work: &impl AsyncFn(&mut ServerClient, &str, &mut S) -> anyhow::Result<Exit>,
) -> anyhow::Result<Exit> {
    let (mut tries, mut last) = (0, None);
    let mut connections = 0;
    let mut has_opened = false;
    // What is chosen for the first connection stays, even if another provider offers the tool meanwhile.
    let mut name = name.clone();
    name.choose_provider(tool, "", output)?;
    loop {
        let mut chosen = name.service.clone();
        let result = with_service(tool, &name, "", output, async |server, service| {
            has_opened = true;
            chosen = Some(service.to_owned());
            work(server, service, state).await
        });
        name.service = chosen;
        let why = match result {
            Err(why) if has_opened && is_broken(&why) => why,
            result => return result,
        };
        let now = Some(advanced(state));
        if now != last {
            (tries, last) = (0, now);
        }
        connections += 1;
        // A provider must not be able to keep this going for ever.
        let pause = BROKEN_PAUSES.get(tries);
        let Some(pause) = pause.filter(|_| connections < CONNECTIONS_MAX) else {
            return Err(why);
        };
        tries += 1;
        output.say(&format!("{why}; trying again in {} s", pause.as_secs_f64()));
        let slept = interruptible(async {
            tokio::time::sleep(*pause).await;
            Ok(Exit::Done)
        })?;
        if slept != Exit::Done {
            return Ok(slept);
        }
    }
}

/// Returns whether a connection ended before its work did, could not be opened, or carried more calls than its provider
/// can run.
fn is_broken(why: &anyhow::Error) -> bool {
    match why.downcast_ref::<ClientError>() {
        Some(ClientError::Closed | ClientError::Silent(_) | ClientError::Stream(_)) => true,
        Some(why) => is_overload(why),
        None => why
            .downcast_ref::<Failure>()
            .is_some_and(|failure| failure.exit == Exit::Unavailable),
    }
}

/// Returns whether the provider refused a call only because it is overloaded; nothing ran.
fn is_overload(why: &ClientError) -> bool {
    matches!(why, ClientError::Refused { refusal, .. } if refusal.raw().code.0 == OVERLOADED)
}

/// Returns the only provider of this machine that offers a service with this tool.
fn only_provider(
    tool: ToolName,
    name: &NamedService,
    otherwise: &str,
    output: &Output,
) -> anyhow::Result<String> {
    let help = name.naming.map_or_else(
        || format!("name it: `-i PROVIDER`{otherwise}"),
        |naming| format!("name it: {naming}"),
    );
    let providers = transport::providers().map_err(|why| unreachable(&why))?;
    if providers.is_empty() {
        let message = format!("no provider of `{tool}` is named");
        return Err(Failure::new(Exit::Usage, message).help(help).into());
    }
    let (mut found, mut silent) = (Vec::new(), Vec::new());
    for provider in &providers {
        let channel = ChannelArgs {
            instance: Some(provider.clone()),
            ..name.channel.clone()
        };
        let mut offers = false;
        let asked = with_client(&channel, output, async |server, _| {
            let tools = server.tools().await?;
            offers = with_tool(tool, &tools, name.service.as_deref())
                .next()
                .is_some();
            Ok(Exit::Done)
        });
        match asked {
            Ok(Exit::Done) if offers => found.push(provider.clone()),
            Ok(Exit::Done) => {}
            Ok(exit) => return Err(Failure::new(exit, "interrupted").into()),
            Err(why) => silent.push(why),
        }
    }
    match found.as_slice() {
        // The services of a silent provider are unknown, so it may be the one.
        [] | [_] if !silent.is_empty() => Err(silent.remove(0)),
        [only] => Ok(only.clone()),
        [] => Err(none(tool, &listed(&providers), name.service.as_deref()).into()),
        several => {
            let message = format!("several providers offer `{tool}`: {}", listed(several));
            Err(Failure::new(Exit::Usage, message).help(help).into())
        }
    }
}

/// `providers` are escaped.
fn none(tool: ToolName, providers: &str, service: Option<&str>) -> Failure {
    let (named, help) = match service {
        None => (
            String::new(),
            format!("ask the operator for a service with `tool: {tool}`"),
        ),
        Some(service) => (
            format!(" `{}`", escaped(service)),
            "`anklume mcp list -i PROVIDER` shows the services of a provider".to_owned(),
        ),
    };
    let message = format!("no service{named} of {providers} offers `{tool}` to this machine");
    Failure::new(Exit::Refused, message).help(help)
}

/// The services with a tool, each with the text that it has under a key of its `_meta`.
pub(super) fn services_of<'t>(
    tool: ToolName,
    tools: &'t [Foreign<Tool>],
    key: &'t str,
) -> impl Iterator<Item = (&'t str, &'t str)> {
    let tools = tools.iter().map(Foreign::raw);
    tools.filter_map(move |one| {
        let meta = one.meta.as_ref()?;
        let text = |key: &str| meta.0.get(key).and_then(Value::as_str);
        let is_wanted = text(TOOL_KEY) == Some(tool.as_str());
        Some((&*one.name, text(key)?)).filter(|_| is_wanted)
    })
}

/// The names of the services with a tool; with a name, only that one.
fn with_tool<'t>(
    tool: ToolName,
    tools: &'t [Foreign<Tool>],
    only: Option<&'t str>,
) -> impl Iterator<Item = &'t str> {
    let names = services_of(tool, tools, TOOL_KEY).map(|(name, _)| name);
    names.filter(move |name| only.is_none_or(|only| only == *name))
}

fn only_service(
    tool: ToolName,
    tools: &[Foreign<Tool>],
    name: &NamedService,
) -> Result<String, Failure> {
    let named = name.service.as_deref();
    let all: Vec<&str> = with_tool(tool, tools, named).collect();
    // The operator may call the tool itself as well as the services.
    let services: Vec<&str> = all
        .iter()
        .copied()
        .filter(|name| *name != tool.as_str())
        .collect();
    let provider = name.channel.instance.as_deref();
    let provider = provider.map_or_else(|| "the provider".to_owned(), escaped);
    match (services.as_slice(), all.as_slice(), named) {
        ([only], ..) | ([], [only], _) => Ok((*only).to_owned()),
        ([], _, None) => Err(none(tool, &provider, None)),
        ([], _, Some(named)) => {
            let message = format!(
                "`{}` is not a service of {provider} that offers `{tool}` to this machine",
                escaped(named)
            );
            let others: Vec<&str> = with_tool(tool, tools, None).collect();
            let help = match others.as_slice() {
                [] => "`anklume mcp list -i PROVIDER` shows the services of a provider".to_owned(),
                some => format!("it offers: {}", listed(some)),
            };
            Err(Failure::new(Exit::Refused, message).help(help))
        }
        (several, ..) => {
            let several = listed(several);
            let message = format!("several services of {provider} offer `{tool}`: {several}");
            let naming = name.naming.unwrap_or("`--service SERVICE`");
            Err(Failure::new(Exit::Usage, message).help(format!("name one: {naming}")))
        }
    }
}

/// Calls a service; repeats the call while the provider says that it is overloaded, which runs nothing.
pub(super) async fn call(
    server: &mut ServerClient,
    service: &str,
    arguments: &Map<String, Value>,
) -> anyhow::Result<Called> {
    let mut left = OVERLOADED_TRIES;
    loop {
        match server.call(service, arguments.clone(), false).await {
            Err(why) if is_overload(&why) && left > 0 => {
                left -= 1;
                tokio::time::sleep(OVERLOADED_PAUSE).await;
            }
            called => return Ok(called?),
        }
    }
}

/// Calls a service with the argument `data`: in one call if it is short, else in pieces. `is_file` is true for a tool that
/// takes the size and the digest of the whole, and keeps a file whose connection breaks.
pub(super) async fn send(
    server: &mut ServerClient,
    service: &str,
    mut arguments: Map<String, Value>,
    mut source: PayloadSource,
    is_file: bool,
    moved: Moved<'_>,
) -> anyhow::Result<Called> {
    let start = source
        .read(WHOLE_MAX)
        .await
        .map_err(|why| client_error(PiecesError::Read(why)))?;
    if u64::try_from(start.len()).unwrap_or(u64::MAX) < WHOLE_MAX {
        if is_file {
            arguments.insert("sha256".to_owned(), sha256(&start).into());
        }
        arguments.insert("data".to_owned(), STANDARD.encode(start).into());
        return call(server, service, &arguments).await;
    }
    let payload = ArgumentPayload {
        name: "data".to_owned(),
        size: is_file,
        digest: is_file,
        resume: is_file,
        source: source.after(start),
    };
    let sent = server
        .send_pieces(service, &arguments, payload, moved)
        .await;
    sent.map_err(client_error)
}

/// Returns the structured result of a call; the words of a tool that failed are the failure.
pub(super) fn structured(called: &Called) -> Result<Map<String, Value>, Failure> {
    let result = called.result.raw();
    if called.has_failed() {
        let blocks = result.content.iter().filter_map(|block| block.as_text());
        let words: Vec<&str> = blocks.map(|text| text.text.as_str()).collect();
        let words = Foreign::new(words.join(" ")).shown(crate::mcp::client::WORDS_SHOWN);
        return Err(Failure::new(
            Exit::Failed,
            format!("the provider reports: {words}"),
        ));
    }
    let structured = result
        .structured_content
        .as_ref()
        .and_then(Value::as_object);
    structured.cloned().ok_or_else(incomplete)
}

/// Prints a text of another machine, escaped if stdout is a terminal.
pub(super) fn print(text: &str, output: &Output) -> io::Result<()> {
    output.answer(text_out(&Foreign::new(text.to_owned())).as_bytes())
}

/// Returns a text of a result.
pub(super) fn text(result: &Map<String, Value>, key: &str) -> Result<String, Failure> {
    let text = result.get(key).and_then(Value::as_str);
    text.map(str::to_owned).ok_or_else(incomplete)
}

fn incomplete() -> Failure {
    Failure::new(Exit::Failed, "the provider's answer is incomplete")
        .help("its anklume may be older than this one: `anklume apply` on the host installs this one there")
}
