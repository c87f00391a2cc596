//! `anklume mcp list` and `anklume mcp call`: list and call a machine's tools.

use std::env;
use std::fmt::Write as _;
use std::fs::File;
use std::io;
use std::path::PathBuf;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rmcp::model::Tool;
use serde_json::{Map, Value, json};

use super::answer::{CallAnswer, report};
use super::arguments::{
    self, Arguments, RawArguments, check_pieces, check_required, escaped, typed,
};
use super::with_client::{
    ServerClient, find, interruptible, is_invalid, route, timeouts, with_client,
};
use crate::account::Account;
use crate::catalogue::{ONE_CALL_MAX, PIECE};
use crate::cli::{ChannelArgs, McpCallArgs, McpListArgs};
use crate::command::output::Output;
use crate::error::{Exit, Failure};
use crate::incus::MachineRef;
use crate::mcp::client::pieces::{self, Fetched, Fetching, Pieces, PiecesError};
use crate::mcp::client::{CALL, DryRunRequest, LIST, Wish, call_params, dry_run_messages};
use crate::mcp::{TOOL_KEY, server};
use crate::name::{MachineName, ServiceName, ToolName, closest};
use crate::text::{Foreign, first_sentence, listed};
use crate::transport::{
    self, LOCAL_REMOTE, Route, Transport, incus_exec, shell_line, this_program,
};

/// Maximum length of a tool name in a listing, in characters; MCP allows 128.
const NAME_MAX: usize = 128;
/// Maximum length of a description in a listing, in characters.
const DESCRIPTION_MAX: usize = 100;

/// Runs `anklume mcp list`.
pub(super) fn list(args: &McpListArgs, output: &Output) -> anyhow::Result<Exit> {
    let channel = ChannelArgs {
        instance: args
            .machine
            .clone()
            .or_else(|| args.channel.instance.clone()),
        ..args.channel.clone()
    };
    let args = &channel;
    if args.dry_run {
        return dry_run(args, output, async || {
            Ok((vec![request(LIST, json!({}))], Vec::new()))
        });
    }
    with_client(args, output, async |server, channel| {
        // A note, which a folder that cannot be read does not need.
        let providers = transport::providers().unwrap_or_default();
        if let (Transport::Local, [first, ..]) = (channel, providers.as_slice()) {
            output.say(&format!(
                "note: these are this machine's own tools; those of a provider: `anklume mcp list -i {}`",
                escaped(first)
            ));
        }
        if output.is_json() {
            output.json(&server.listing().await?)?;
        } else {
            match server.tools().await?.as_slice() {
                [] => output.say("no tools"),
                tools => output.answer(table(tools).as_bytes())?,
            }
            if matches!(channel, Transport::Exec(_)) {
                note_services(&server.callable().await?, output);
            }
        }
        Ok(Exit::Done)
    })
}

/// Tells the operator which services can be called besides the tools.
fn note_services(callable: &[Foreign<Tool>], output: &Output) {
    let names = callable.iter().map(|tool| &*tool.raw().name);
    let services = names.filter(|name| name.parse::<ToolName>().is_err());
    let services: Vec<&str> = services.collect();
    if !services.is_empty() {
        let services = listed(&services);
        output.say(&format!(
            "note: the machine's services can be called too: {services}"
        ));
    }
}

/// Formats one line per tool: its name, and the first sentence of its description.
fn table(tools: &[Foreign<Tool>]) -> String {
    let rows = tools.iter().map(|tool| {
        let name = tool.part(|tool| &*tool.name).one_line(NAME_MAX);
        let text = tool.part(|tool| tool.description.as_deref().unwrap_or_default());
        let text = text.part(|text| first_sentence(text));
        (name, text.one_line(DESCRIPTION_MAX))
    });
    let rows: Vec<(String, String)> = rows.collect();
    let width = rows.iter().map(|(name, _)| name.chars().count()).max();
    let width = width.unwrap_or_default();
    let lines = rows.iter().map(|(name, text)| {
        let line = format!("{name:width$}  {text}");
        line.trim_end().to_owned() + "\n"
    });
    lines.collect()
}

/// Runs `anklume mcp call`.
pub(super) fn call(args: &McpCallArgs, output: &Output) -> anyhow::Result<Exit> {
    let (named, tool) = named(args);
    if tool.is_empty() {
        let failure = Failure::new(Exit::Usage, "no tool is named");
        return Err(failure
            .help("`anklume mcp list -i MACHINE` shows a machine's tools")
            .into());
    }
    let raw = arguments::parse(&args.arguments).map_err(|fault| machine_first(args, fault))?;
    if named.dry_run {
        return dry_run(&named, output, async || requests(tool, raw).await);
    }
    with_client(&named, output, async |server, channel| {
        let answer = match ask(server, tool, raw, channel).await {
            Err(why) if why.downcast_ref().is_some_and(is_invalid) => {
                let tools = callable(server, tool, channel).await?;
                if tools.iter().any(|one| one.raw().name == tool) {
                    return Err(why);
                }
                return Err(unknown(tool, &tools, channel).into());
            }
            answer => answer?,
        };
        report(tool, answer, channel, output)
    })
}

/// Splits `MACHINE/NAME`, unless a flag selects another server; returns the channel and the tool's name.
fn named(args: &McpCallArgs) -> (ChannelArgs, &str) {
    let whole = (args.channel.clone(), args.tool.as_str());
    let Some((machine, tool)) = args.tool.split_once('/') else {
        return whole;
    };
    let is_other = args
        .channel
        .instance
        .as_deref()
        .is_some_and(|named| named != machine);
    if is_other || args.channel.socket.is_some() || machine.parse::<MachineName>().is_err() {
        return whole;
    }
    let channel = ChannelArgs {
        instance: Some(machine.to_owned()),
        ..args.channel.clone()
    };
    (channel, tool)
}

/// Explains a machine in place of the tool, as in `mcp call MACHINE NAME`.
fn machine_first(args: &McpCallArgs, fault: Failure) -> Failure {
    let (machine, name) = (args.tool.parse::<MachineName>(), args.arguments.first());
    let name = name.and_then(|name| name.parse::<ServiceName>().ok());
    match (machine, name) {
        (Ok(machine), Some(name)) if args.channel.instance.is_none() => fault.help(format!(
            "to call `{name}` of the machine `{machine}`, write `{machine}/{name}`"
        )),
        _ => fault,
    }
}

/// Lists the server's tools; if the named one is not among them, the operator's list includes the machine's services.
async fn callable(
    server: &mut ServerClient,
    name: &str,
    channel: &Transport,
) -> anyhow::Result<Vec<Foreign<Tool>>> {
    let tools = server.tools().await?;
    let is_listed = tools.iter().any(|tool| tool.raw().name == name);
    if is_listed || matches!(channel, Transport::Socket(_)) {
        return Ok(tools);
    }
    Ok(server.callable().await?)
}

/// Calls the tool in one message or in pieces. Without arguments, its schema is not needed.
async fn ask(
    server: &mut ServerClient,
    name: &str,
    raw: RawArguments,
    channel: &Transport,
) -> anyhow::Result<CallAnswer> {
    let mut failed = None;
    if raw.is_empty() {
        let called = server.call(name, Map::new(), false).await?;
        if !called.has_failed() {
            return Ok(CallAnswer::Whole(called));
        }
        failed = Some(called);
    }
    let tools = callable(server, name, channel).await?;
    let tool = tools.iter().find(|tool| tool.raw().name == name);
    let Some(tool) = tool else {
        // A tool that is not listed, but was called.
        if let Some(failed) = failed {
            return Ok(CallAnswer::Whole(failed));
        }
        return Err(unknown(name, &tools, channel).into());
    };
    let arguments = typed(raw, tool.raw()).await?;
    check_required(tool.raw(), &arguments)?;
    check_pieces(tool.raw(), &arguments)?;
    if let Some(failed) = failed {
        return Ok(CallAnswer::Whole(failed));
    }
    let Arguments { object, payload } = arguments;
    if let Some(payload) = payload {
        let sent = server
            .send_pieces(name, &object, payload, &mut |_, _| ())
            .await;
        return Ok(CallAnswer::Whole(sent.map_err(client_error)?));
    }
    if !comes_in_pieces(tool.raw(), &object) {
        return Ok(CallAnswer::Whole(server.call(name, object, false).await?));
    }
    let mut fetching = Fetching::default();
    let fetched = server
        .fetch(
            name,
            &object,
            &mut fetching,
            |_| payload_file(),
            &mut |_, _| (),
        )
        .await;
    match fetched.map_err(client_error)? {
        Fetched::Whole(called) => Ok(CallAnswer::Whole(called)),
        Fetched::Pieces(result, file) => Ok(CallAnswer::InFile { result, file }),
    }
}

/// Unwraps a client error, which `with_client` explains.
pub(in crate::command) fn client_error(why: PiecesError) -> anyhow::Error {
    match why {
        PiecesError::Client(why) => why.into(),
        other => other.into(),
    }
}

/// Creates an unnamed file for an answer of up to gigabytes; avoids `/tmp`, which many systems keep in memory.
fn payload_file() -> io::Result<File> {
    let named = env::var_os("TMPDIR").map(PathBuf::from);
    let folder = named.clone().unwrap_or_else(|| "/var/tmp".into());
    let other = || {
        tempfile::tempfile_in("/tmp")
            .ok()
            .filter(|_| named.is_none())
    };
    tempfile::tempfile_in(&folder).or_else(|why| {
        let folder = folder.display().to_string();
        let folder = folder.escape_debug();
        other().ok_or_else(|| io::Error::other(format!(
            "cannot create a temporary file in `{folder}` ({why}); set `TMPDIR` to a writable folder"
        )))
    })
}

/// Returns whether the answer may come in pieces, which it may not if the arguments select a piece.
fn comes_in_pieces(tool: &Tool, object: &Map<String, Value>) -> bool {
    let says = |name| object.contains_key(name);
    pieces::of(tool) == Pieces::Down && !says("offset") && !says("length")
}

/// Reports that the tool does not exist or is not available to this caller, which the provider does not distinguish.
fn unknown(name: &str, tools: &[Foreign<Tool>], channel: &Transport) -> Failure {
    let names: Vec<&str> = tools.iter().map(|tool| &*tool.raw().name).collect();
    let providers = transport::providers().unwrap_or_default();
    let mut help = match names.as_slice() {
        [] => "no tools are available to you".to_owned(),
        names => format!("available tools: {}", listed(names)),
    };
    let runs = |tool: &&Foreign<Tool>| {
        let behind = tool
            .raw()
            .meta
            .as_ref()
            .and_then(|meta| meta.0.get(TOOL_KEY));
        behind.and_then(Value::as_str) == Some(name)
    };
    if let Some(service) = tools.iter().find(runs) {
        let service = escaped(&service.raw().name);
        help = format!("`{service}` runs that tool here; {help}");
    } else if let Some(near) = closest(&name.to_lowercase(), names) {
        help = format!("did you mean `{}`? {help}", escaped(near));
    }
    let message = format!("Unknown tool: {}", escaped(name));
    let Transport::Socket(socket) = channel else {
        if let (Transport::Local, [_, ..]) = (channel, providers.as_slice()) {
            let known = listed(&providers);
            // Writing to a `String` cannot fail.
            let _ = write!(help, "; use `-i` for the tools of another machine: {known}");
        }
        return Failure::new(Exit::Failed, message).help(help);
    };
    let ask = explain(name, Account::machine().as_ref(), socket.provider.as_ref());
    let ask = format!("the operator can see why on the host: `{ask}`");
    Failure::new(Exit::Refused, message).help(format!("{help}; {ask}"))
}

/// Returns the command to run on the host to learn why a machine may not use a service, with the names known here.
fn explain(name: &str, caller: Option<&MachineName>, provider: Option<&MachineName>) -> String {
    // Only a valid name may appear in a command that a user may paste into a shell.
    let service = name.parse::<ServiceName>();
    let service = service.as_ref().map_or("NAME", ServiceName::as_str);
    let caller = caller.map_or("MACHINE", MachineName::as_str);
    let provider = provider.map_or_else(String::new, |name| format!(" --provider {name}"));
    format!("anklume policy explain --caller {caller} --service {service}{provider}")
}

/// Returns the requests of a call, for `--dry-run`; types come from the tools' own schemas, without a server.
async fn requests(name: &str, raw: RawArguments) -> anyhow::Result<DryRunRequests> {
    let mut remarks = Vec::new();
    if raw.is_empty() {
        let params = serde_json::to_value(call_params(name, Map::new()))?;
        return Ok((vec![request(CALL, params)], remarks));
    }
    if name.parse::<ToolName>().is_err() {
        remarks.push("the server would be asked for the argument types".to_owned());
    }
    let tool = known_tool(name);
    let Arguments {
        mut object,
        payload,
    } = typed(raw, &tool).await?;
    if let Some(mut payload) = payload {
        let piece = payload.source.read(PIECE).await?;
        object.insert(payload.name, STANDARD.encode(&piece).into());
        object.insert("offset".to_owned(), 0.into());
        object.insert("final".to_owned(), false.into());
        remarks.push("the content would be sent in pieces; this is the first".to_owned());
    }
    let wish = comes_in_pieces(&tool, &object).then_some(Wish::OneCopy(true));
    if wish.is_some() {
        object.insert("offset".to_owned(), 0.into());
        object.insert("length".to_owned(), ONE_CALL_MAX.into());
    }
    let call = DryRunRequest {
        wish,
        ..request(CALL, serde_json::to_value(call_params(name, object))?)
    };
    Ok((vec![request(LIST, json!({})), call], remarks))
}

/// Returns one of the tools as its server lists it, or any other tool without a schema.
fn known_tool(name: &str) -> Tool {
    let known = name.parse().ok().map(server::of_operator);
    known.unwrap_or_else(|| Tool::new(name.to_owned(), "", Map::new()))
}

/// The requests that would be sent, and remarks on them.
type DryRunRequests = (Vec<DryRunRequest>, Vec<String>);

const fn request(method: &'static str, params: Value) -> DryRunRequest {
    DryRunRequest {
        method,
        params,
        wish: None,
    }
}

/// Shows the command and the messages for `--dry-run`; runs nothing.
fn dry_run(
    args: &ChannelArgs,
    output: &Output,
    requests: impl AsyncFnOnce() -> anyhow::Result<DryRunRequests>,
) -> anyhow::Result<Exit> {
    let timeouts = timeouts(args)?;
    let route = route(args)?;
    interruptible(async {
        let (requests, remarks) = requests().await?;
        let channel = match find(route.clone(), timeouts, output).await {
            Ok(channel) => channel,
            Err(why) => {
                output.say(&format!("warning: {why}"));
                assumed(route)
            }
        };
        let mut text = format!("{}\n", open_command(&channel));
        for message in dry_run_messages(&requests)? {
            text.push_str(&Foreign::new(String::from_utf8_lossy(&message)).lines());
            text.push('\n');
        }
        for remark in remarks {
            output.say(&remark);
        }
        output.answer(text.as_bytes())?;
        Ok(Exit::Done)
    })
}

/// Returns the usual channel of a route, for when Incus does not answer.
fn assumed(route: Route) -> Transport {
    match route {
        Route::Local => Transport::Local,
        Route::Socket(socket) => Transport::Socket(socket),
        Route::Host { machine, project } => Transport::Exec(MachineRef {
            name: machine,
            project: project.unwrap_or_else(|| "PROJECT".to_owned()),
            status: String::new(),
        }),
    }
}

/// Returns the command that would run, quoted for a shell; for a socket, which no command opens, a comment.
fn open_command(channel: &Transport) -> String {
    match channel {
        Transport::Local => {
            let program = this_program();
            shell_line([program.as_os_str(), "mcp".as_ref(), "serve".as_ref()])
        }
        Transport::Exec(machine) => {
            let (name, value) = LOCAL_REMOTE;
            let mut argv = vec![format!("{name}={value}"), "incus".to_owned()];
            argv.extend(incus_exec(machine));
            shell_line(argv)
        }
        Transport::Socket(socket) => {
            format!("# connect to {}", shell_line([socket.path.as_os_str()]))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_that_says_why_names_what_is_known() {
        let name = |text: &str| text.parse::<MachineName>().unwrap();
        let (caller, provider) = (name("work-dev"), name("vault"));
        let cases = [
            (
                explain("sign", None, None),
                "--caller MACHINE --service sign",
            ),
            (
                explain("sign", Some(&caller), Some(&provider)),
                "--caller work-dev --service sign --provider vault",
            ),
            (
                explain("$(reboot)", Some(&caller), None),
                "--caller work-dev --service NAME",
            ),
        ];
        for (command, words) in cases {
            assert_eq!(command, format!("anklume policy explain {words}"));
        }
    }
}
