//! `anklume sync`.

use crate::cli::SyncArgs;
use crate::error::Exit;

use super::output::Output;

/// Runs `anklume sync …`.
pub(crate) fn run(args: &SyncArgs, output: &Output) -> anyhow::Result<Exit> {
    anyhow::bail!("{args:?} {:?}", output.format())
}
