//! `anklume mcp`.

mod answer;
mod arguments;
mod call;
mod converse;
mod given;
mod list;
mod printable;
mod rehearse;

use crate::cli::McpCommand;
use crate::error::Exit;

use super::output::Output;

/// Runs `anklume mcp …`.
pub(crate) fn run(command: &McpCommand, output: &Output) -> anyhow::Result<Exit> {
    match command {
        McpCommand::Serve(args) => anyhow::bail!("{args:?}"),
        McpCommand::List(args) => list::run(args, output),
        McpCommand::Call(args) => call::run(args, output),
    }
}
