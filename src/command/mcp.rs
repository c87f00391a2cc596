//! `anklume mcp`.

mod serve;

use crate::cli::McpCommand;
use crate::error::Exit;

use super::output::Output;

/// Runs `anklume mcp …`.
pub(crate) fn run(command: &McpCommand, output: &Output) -> anyhow::Result<Exit> {
    match command {
        McpCommand::Serve(args) => serve::run(args, output),
        McpCommand::List(args) => anyhow::bail!("{args:?}"),
        McpCommand::Call(args) => anyhow::bail!("{args:?}"),
    }
}
