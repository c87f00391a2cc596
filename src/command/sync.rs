//! `anklume sync`: the files that Ansible reads, as infra.yml says.
//!
//! First everything is read, computed and read back; only then is anything changed, and then all of it or nothing.

mod report;

use std::path::Path;

use crate::cli::SyncArgs;
use crate::edge;
use crate::error::Exit;
use crate::inventory;
use crate::sync::tree::{Access, FileTree};
use crate::sync::{self, FileState, PlannedFile, orphans};

use super::open_infra;
use super::output::Output;

/// Runs `anklume sync`.
pub(crate) fn run(args: &SyncArgs, output: &Output) -> anyhow::Result<Exit> {
    let read = open_infra(&args.infra, output)?;
    let edges = edge::edges(&read.infra)?;
    let files = inventory::files(&read.infra, &edges);
    let base = args.base_dir.as_deref().unwrap_or(&read.folder);
    // The folder of a bare `infra.yml`.
    let base = if base.as_os_str().is_empty() {
        Path::new(".")
    } else {
        base
    };
    let mode = Mode::of(args);
    let access = if mode == Mode::Write {
        Access::Write
    } else {
        Access::Read
    };
    let mut tree = FileTree::open(base, access).map_err(|fault| sync::failure(&fault))?;
    let plan = planned(&tree, &files, output)?;
    let orphans = orphans::find(
        &tree,
        &inventory::known_paths(&read.infra),
        args.clean_orphans,
    )
    .map_err(|fault| sync::failure(&fault))?;
    if mode == Mode::Write {
        sync::write(&mut tree, &plan, &orphans).map_err(|fault| sync::failure(&fault))?;
    }
    report::report(mode, &plan, &orphans, output)?;
    let differs = plan.iter().any(|file| file.state != FileState::Unchanged);
    Ok(if mode == Mode::Check && differs {
        Exit::Differs
    } else {
        Exit::Done
    })
}

/// How a run treats differences.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    /// Changes the files.
    Write,
    /// Shows what would change.
    Show,
    /// Says whether anything would change.
    Check,
}

impl Mode {
    const fn of(args: &SyncArgs) -> Self {
        match (args.check, args.dry_run) {
            (true, _) => Self::Check,
            (false, true) => Self::Show,
            (false, false) => Self::Write,
        }
    }
}

/// Compares every file with what it should say. All faults are shown, the last as the error.
fn planned(
    tree: &FileTree,
    files: &[inventory::GeneratedFile<'_>],
    output: &Output,
) -> anyhow::Result<Vec<PlannedFile>> {
    sync::plan(tree, files).map_err(|(faults, last)| {
        for fault in faults {
            output.failure(&fault.message, fault.help.as_deref());
        }
        last.into()
    })
}
