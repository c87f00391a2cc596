//! `anklume policy`.

use crate::cli::PolicyCommand;
use crate::error::Exit;

use super::output::Output;

/// Runs `anklume policy …`.
pub(crate) fn run(args: &PolicyCommand, output: &Output) -> anyhow::Result<Exit> {
    anyhow::bail!("{args:?} {:?}", output.format())
}
