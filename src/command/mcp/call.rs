//! `anklume mcp call`: a tool of a machine.

use std::env;
use std::fmt::Write as _;
use std::fs::File;
use std::io;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rmcp::model::{CallToolRequestParams, Tool};
use serde_json::{Map, Value, json};

use super::answer::{CallAnswer, report};
use super::arguments::{Arguments, typed};
use super::dry_run::{DryRunRequests, asked, rehearse};
use super::raw_args::{self, Given, shown};
use super::with_client::{BrokenCall, ServerClient, converse, is_invalid};
use crate::catalogue::{ONE_CALL_MAX, PIECE};
use crate::cli::McpCallArgs;
use crate::command::output::Output;
use crate::error::{Exit, Failure};
use crate::mcp::client::pieces::{self, Fetched, Pieces, PiecesError};
use crate::mcp::client::{CALL, DryRunRequest, LIST, call_params};
use crate::mcp::server;
use crate::name::{MachineName, ServiceName, ToolName, closest};
use crate::setup::account::Account;
use crate::text::Foreign;
use crate::transport::{self, Transport};

/// Tools that are named where there is no such tool.
const TOOLS_SHOWN: usize = 40;

/// Runs `anklume mcp call`.
pub(super) fn run(args: &McpCallArgs, output: &Output) -> anyhow::Result<Exit> {
    let given = raw_args::parse(&args.arguments)?;
    if args.channel.dry_run {
        return rehearse(&args.channel, output, async || {
            requests(&args.tool, given).await
        });
    }
    converse(&args.channel, output, async |server, channel| {
        let answer = match ask(server, &args.tool, given, channel).await {
            Err(BrokenCall::Client(fault)) if is_invalid(&fault) => {
                let tools = server.tools().await?;
                if tools.iter().any(|tool| tool.raw().name == args.tool) {
                    return Err(fault.into());
                }
                return Err(unknown(&args.tool, &tools, channel).into());
            }
            answer => answer?,
        };
        Ok(report(&args.tool, answer, channel, output)?)
    })
}

/// Calls the tool in one message or in pieces; without arguments nothing needs to be known of it.
async fn ask(
    server: &mut ServerClient,
    name: &str,
    given: Given,
    channel: &Transport,
) -> Result<CallAnswer, BrokenCall> {
    if given.is_nothing() {
        return Ok(CallAnswer::Whole(
            server.call(name, Map::new(), false).await?,
        ));
    }
    let tools = server.tools().await?;
    let Some(tool) = tools.iter().find(|tool| tool.raw().name == name) else {
        return Err(unknown(name, &tools, channel).into());
    };
    let Arguments { object, payload } = typed(given, tool.raw()).await?;
    if let Some(payload) = payload {
        let argument = (payload.name.as_str(), payload.digest);
        let sent = server.send_pieces(name, &object, argument, payload.source);
        return Ok(CallAnswer::Whole(sent.await?));
    }
    if !goes_down(tool.raw(), &object) {
        return Ok(CallAnswer::Whole(server.call(name, object, false).await?));
    }
    let mut file = kept_file().map_err(PiecesError::Keep)?;
    match server.fetch(name, &object, &mut file).await? {
        Fetched::Whole(called) => Ok(CallAnswer::Whole(called)),
        Fetched::Pieces(result) => Ok(CallAnswer::Kept { result, file }),
    }
}

/// A file without a name for an answer that may have gigabytes: not in `/tmp`, which is memory on many systems.
fn kept_file() -> io::Result<File> {
    if env::var_os("TMPDIR").is_some() {
        return tempfile::tempfile();
    }
    tempfile::tempfile_in("/var/tmp").or_else(|_| tempfile::tempfile())
}

/// Returns whether the answer may come in pieces; not where the caller says which piece.
fn goes_down(tool: &Tool, object: &Map<String, Value>) -> bool {
    let says = |name| object.contains_key(name);
    pieces::of(tool) == Pieces::Down && !says("offset") && !says("length")
}

/// No such tool, or none for this caller: the provider gives the same answer to both.
fn unknown(name: &str, tools: &[Foreign<Tool>], channel: &Transport) -> Failure {
    let names: Vec<&str> = tools.iter().map(|tool| &*tool.raw().name).collect();
    let listed: Vec<String> = names
        .iter()
        .take(TOOLS_SHOWN)
        .map(|name| shown(name))
        .collect();
    let providers = transport::providers();
    let mut help = match listed.len() {
        0 => "no tools are available to you".to_owned(),
        _ => format!("available tools: {}", listed.join(", ")),
    };
    if let Some(near) = closest(name, names) {
        help = format!("did you mean `{}`? {help}", shown(near));
    }
    let message = format!("Unknown tool: {}", shown(name));
    let Transport::Socket(socket) = channel else {
        if let (Transport::Local, [_, ..]) = (channel, providers.as_slice()) {
            let known = shown(&providers.join(", "));
            // Writing to a `String` cannot fail.
            let _ = write!(help, "; with `-i` those of another machine: {known}");
        }
        return Failure::new(Exit::Failed, message).help(help);
    };
    let ask = explain(name, Account::machine().as_ref(), socket.provider.as_ref());
    let ask = format!("whoever runs the host can say why: `{ask}` there");
    Failure::new(Exit::Refused, message).help(format!("{help}; {ask}"))
}

/// The command that says on the host why a machine may not use a service, as far as its ends are known here.
fn explain(name: &str, caller: Option<&MachineName>, provider: Option<&MachineName>) -> String {
    // What is no service's name is not put into a command for somebody to type.
    let service = name.parse::<ServiceName>();
    let service = service.as_ref().map_or("NAME", ServiceName::as_str);
    let caller = caller.map_or("MACHINE", MachineName::as_str);
    let provider = provider.map_or_else(String::new, |name| format!(" --provider {name}"));
    format!("anklume policy explain --caller {caller} --service {service}{provider}")
}

/// The requests of a call, for `--dry-run`; types come from the five tools' own schemas, as no server is asked.
async fn requests(name: &str, given: Given) -> anyhow::Result<DryRunRequests> {
    let mut remarks = Vec::new();
    if given.is_nothing() {
        return Ok((vec![asked(CALL, call_value(name, Map::new())?)], remarks));
    }
    let known = name.parse::<ToolName>().is_ok();
    if !known {
        remarks.push("the server would be asked for the types of the arguments".to_owned());
    }
    let tool = described(name);
    let Arguments {
        mut object,
        payload,
    } = typed(given, &tool).await?;
    if let Some(mut payload) = payload {
        let piece = payload.source.read(PIECE).await?;
        object.insert(payload.name, STANDARD.encode(&piece).into());
        object.insert("offset".to_owned(), 0.into());
        object.insert("final".to_owned(), false.into());
        remarks.push("this is the first of the pieces in which the content would go".to_owned());
    }
    let one_copy = goes_down(&tool, &object);
    if one_copy {
        object.insert("offset".to_owned(), 0.into());
        object.insert("length".to_owned(), ONE_CALL_MAX.into());
    }
    let call = DryRunRequest {
        one_copy,
        ..asked(CALL, call_value(name, object)?)
    };
    Ok((vec![asked(LIST, json!({})), call], remarks))
}

fn call_value(name: &str, object: Map<String, Value>) -> serde_json::Result<Value> {
    let params: CallToolRequestParams = call_params(name, object);
    serde_json::to_value(params)
}

/// One of the five tools as its server lists it; another tool with nothing known of it.
fn described(name: &str) -> Tool {
    let known = name.parse().ok().map(server::of_operator);
    known.unwrap_or_else(|| Tool::new(name.to_owned(), "", Map::new()))
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
