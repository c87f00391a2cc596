//! `anklume mcp`.

use crate::cli::McpCommand;
use crate::error::Exit;

use super::output::Output;

/// Runs `anklume mcp …`.
pub(crate) fn run(args: &McpCommand, output: &Output) -> anyhow::Result<Exit> {
    anyhow::bail!("{args:?} {:?}", output.format())
}
