//! `anklume policy …`: questions to the policy of an `infra.yml`.
//!
//! Decides nothing itself: every answer is that of `policy::decide`.

mod check;
mod list;

use crate::cli::PolicyCommand;
use crate::error::Exit;

use super::output::Output;

/// Runs `anklume policy …`.
pub(crate) fn run(command: &PolicyCommand, output: &Output) -> anyhow::Result<Exit> {
    match command {
        PolicyCommand::Check(args) => check::run(args, output),
        PolicyCommand::List(args) => list::run(args, output),
    }
}
