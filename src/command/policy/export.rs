//! `anklume policy export`: the services file that a machine's server reads.

use super::question::known_machine;
use crate::cli::PolicyExportArgs;
use crate::command::{open_infra, output::Output};
use crate::error::Exit;
use crate::services::Services;

/// Runs `anklume policy export`. The answer is a file for a program: the same in every format.
pub(crate) fn run(args: &PolicyExportArgs, output: &Output) -> anyhow::Result<Exit> {
    let infra = open_infra(&args.infra, output)?.infra;
    let machine = known_machine(&infra, &args.machine, "provider")?;
    let services = Services::of(machine);
    if services.services.is_empty() {
        output.say(&format!("note: `{}` offers no services", machine.name));
    }
    output.answer(&services.to_file())?;
    Ok(Exit::Done)
}
