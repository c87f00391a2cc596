//! `anklume audit …`: the log of calls, shown and verified.

mod show;
mod verify;

use crate::cli::AuditCommand;
use crate::error::Exit;

use super::output::Output;

/// Runs `anklume audit …`.
pub(crate) fn run(command: &AuditCommand, output: &Output) -> anyhow::Result<Exit> {
    match command {
        AuditCommand::Show(args) => show::run(args, output),
        AuditCommand::Verify(args) => verify::run(args, output),
    }
}
