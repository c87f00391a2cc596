//! `anklume audit …`: the log of calls, shown and verified.

mod show;
mod verify;

use std::io;
use std::path::{Path, PathBuf};

use crate::audit;
use crate::cli::AuditCommand;
use crate::error::{Exit, Failure};

use super::output::Output;

/// Runs `anklume audit …`.
pub(crate) fn run(command: &AuditCommand, output: &Output) -> anyhow::Result<Exit> {
    match command {
        AuditCommand::Show(args) => show::run(args, output),
        AuditCommand::Verify(args) => verify::run(args, output),
    }
}

/// The files of a log, oldest first: one at least.
fn files(path: &Path) -> Result<Vec<PathBuf>, Failure> {
    let files = audit::files(path).map_err(|why| hidden(path, &why))?;
    if files.is_empty() {
        let shown = path.display();
        let none = Failure::new(Exit::Failed, format!("there is no audit log `{shown}`"));
        return Err(none.help("a server writes it where it runs; name another with --file"));
    }
    Ok(files)
}

/// Whether there is a log cannot be seen.
fn hidden(path: &Path, why: &io::Error) -> Failure {
    let shown = path.display();
    let failure = Failure::new(
        Exit::Failed,
        format!("whether there is an audit log `{shown}` cannot be seen: {why}"),
    );
    failure.help("its server's user may, and root")
}
