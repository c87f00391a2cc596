//! `anklume mcp serve`: this machine's tools on stdin and stdout.
//!
//! stdout carries the protocol and nothing else; whatever there is to say goes to stderr, and never any contents.

use std::fmt::Write as _;
use std::io::IsTerminal as _;
use std::panic;
use std::sync::Arc;

use anyhow::Context as _;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;

use crate::cli::{Format, McpServeArgs};
use crate::command::output::Output;
use crate::error::Exit;
use crate::mcp::server::{self, Answered, Observer, Server, Stop};
use crate::policy::Caller;
use crate::services::Services;
use crate::tool::Settings;

/// Runs `anklume mcp serve`.
pub(crate) fn run(args: &McpServeArgs, output: &Output) -> anyhow::Result<Exit> {
    let services = no_services()?;
    if args.list_tools {
        return list_tools(&services, output);
    }
    if std::io::stdin().is_terminal() {
        output.say(HINT);
    }
    keep_panics_short(output);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the server")?;
    let served = runtime.block_on(serve(services, output));
    // A read of stdin that waits in a thread of its own is not waited for.
    runtime.shutdown_background();
    served.map(|()| Exit::Done)
}

/// For a person who typed the command.
const HINT: &str = "waiting for MCP messages on stdin, one a line; Ctrl-D ends\n  \
    = help: to see the tools of this machine, run `anklume mcp list`; to call one, `anklume mcp call TOOL`";

/// The operator's connection needs no services: its tools are the five, by name.
fn no_services() -> anyhow::Result<Services> {
    Ok(Services {
        machine: "localhost".parse()?,
        services: Vec::new(),
    })
}

async fn serve(services: Services, output: &Output) -> anyhow::Result<()> {
    let cannot = "cannot watch for signals";
    let terminate = signal(SignalKind::terminate()).context(cannot)?;
    let interrupt = signal(SignalKind::interrupt()).context(cannot)?;
    let (_keeps, services) = watch::channel(Arc::new(services));
    let server = Server::new(
        Caller::Operator,
        services,
        Arc::new(Settings::from_env()),
        observer(output),
    );
    let (reader, writer) = rmcp::transport::stdio_pipes();
    let stop = Stop::default();
    tokio::select! {
        () = server.serve(reader, writer, stop.clone()) => {}
        () = end_on_signal(terminate, interrupt, &stop) => {}
    }
    Ok(())
}

/// The first signal ends the server when its calls are answered, the second one at once.
async fn end_on_signal(mut terminate: Signal, mut interrupt: Signal, stop: &Stop) {
    for end in [&stop.gently, &stop.now] {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        end.cancel();
    }
    // The connection ends by itself now.
    std::future::pending::<()>().await;
}

/// With `--verbose`, a line on stderr for each answer.
fn observer(output: &Output) -> Observer {
    if !output.verbose() {
        return Arc::new(|_| {});
    }
    let output = output.clone();
    Arc::new(move |answered| output.stderr(&line(answered)))
}

fn line(answered: &Answered) -> String {
    let Answered {
        label,
        error,
        took,
        bytes_in,
        bytes_out,
    } = answered;
    let how = error.map_or_else(
        || "answered".to_owned(),
        |code| format!("refused with {code}"),
    );
    let millis = took.as_millis();
    format!("{label}: {how} in {millis} ms, {bytes_in} bytes in, {bytes_out} bytes out")
}

/// A panic says where it happened and not what it held: its message may quote a caller's contents.
fn keep_panics_short(output: &Output) {
    let output = output.clone();
    panic::set_hook(Box::new(move |panic| {
        let place = panic
            .location()
            .map_or_else(String::new, |place| format!(" at {place}"));
        output.stderr(&format!("a call failed by a fault of anklume{place}"));
    }));
}

fn list_tools(services: &Services, output: &Output) -> anyhow::Result<Exit> {
    let tools = server::list(services, &Caller::Operator);
    match output.format() {
        Format::Json => output.json(&serde_json::json!({ "tools": tools }))?,
        Format::Text => {
            let mut text = String::new();
            for tool in tools {
                let words = tool.description.unwrap_or_default();
                // Writing to a `String` cannot fail.
                let _ = writeln!(text, "{:<15}{words}", tool.name);
            }
            output.answer(text.as_bytes())?;
        }
    }
    Ok(Exit::Done)
}
