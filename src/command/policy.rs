//! `anklume policy …`: questions to the policy of an `infra.yml`.
//!
//! Decides nothing itself: every answer is that of `policy::decide`.

mod check;
mod explain;
mod export;
mod list;
mod question;

use crate::cli::PolicyCommand;
use crate::error::Exit;

use super::output::Output;

/// Runs `anklume policy …`.
pub(crate) fn run(command: &PolicyCommand, output: &Output) -> anyhow::Result<Exit> {
    match command {
        PolicyCommand::Check(args) => check::run(args, output),
        PolicyCommand::List(args) => list::run(args, output),
        PolicyCommand::Explain(args) => explain::run(args, output),
        PolicyCommand::Export(args) => export::run(args, output),
    }
}
