//! `anklume mcp`.

mod answer;
mod arguments;
mod call;
mod connect;
mod dry_run;
mod helper;
mod list;
#[cfg(debug_assertions)]
mod probe;
mod raw_args;
mod serve;
mod status;
mod with_client;
mod worker;

pub(super) use helper::run as help;
pub(super) use with_client::converse;
pub(super) use worker::run as work;

use crate::cli::McpCommand;
use crate::error::Exit;

use super::output::Output;

/// Runs `anklume mcp …`.
pub(crate) fn run(command: &McpCommand, output: &Output) -> anyhow::Result<Exit> {
    match command {
        McpCommand::Serve(args) => serve::run(args, output),
        McpCommand::List(args) => list::run(args, output),
        McpCommand::Call(args) => call::run(args, output),
        McpCommand::Connect(args) => connect::run(args, output),
        McpCommand::Status(args) => status::run(args, output),
    }
}
