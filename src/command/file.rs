//! `anklume file`: sends files and folders to another machine, and fetches them from it.

mod list;
mod pull;
mod push;

use std::fs::Permissions;
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use tempfile::NamedTempFile;

use super::output::Output;
use crate::cli::FileCommand;
use crate::error::{Exit, Failure};

/// Maximum number of files and folders of one run.
const FILES_MAX: usize = 100_000;
/// The permissions that are transferred; the others are special.
const MODE: u32 = 0o777;
/// Permissions of a new file.
const NEW_MODE: u32 = 0o644;

/// Runs `anklume file …`.
pub(super) fn run(command: &FileCommand, output: &Output) -> anyhow::Result<Exit> {
    match command {
        FileCommand::Push(args) => push::run(args, output),
        FileCommand::Pull(args) => pull::run(args, output),
        FileCommand::List(args) => list::run(args, output),
    }
}

/// Returns a path as it is shown in a message.
pub(super) fn shown(path: &Path) -> String {
    path.display().to_string().escape_debug().to_string()
}

pub(super) fn unreadable(shown: &str, why: &io::Error) -> Failure {
    Failure::new(Exit::Failed, format!("cannot read `{shown}`: {why}"))
}

pub(super) fn unwritable(path: &Path, why: &io::Error) -> Failure {
    Failure::new(
        Exit::Failed,
        format!("cannot write `{}`: {why}", shown(path)),
    )
}

/// Creates a temporary file in a folder.
pub(super) fn fresh(folder: &Path) -> io::Result<NamedTempFile> {
    tempfile::Builder::new()
        .prefix(".anklume-")
        .permissions(Permissions::from_mode(NEW_MODE))
        .tempfile_in(folder)
}

/// Refuses more files than one run transfers.
fn check_count(count: usize) -> Result<(), Failure> {
    if count <= FILES_MAX {
        return Ok(());
    }
    let message = format!("these are more than {FILES_MAX} files");
    Err(Failure::new(Exit::Failed, message).help("make an archive of them"))
}
