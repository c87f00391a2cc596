//! `anklume sync`: the files that Ansible reads, as infra.yml says.
//!
//! First everything is read, computed and read back; only then is anything changed, and then all of it or nothing.

mod block;
mod commit;
mod orphan;
mod report;
mod tree;
mod verify;

use std::num::NonZero;
use std::path::Path;

use crate::cli::SyncArgs;
use crate::edge;
use crate::error::{Exit, Failure};
use crate::inventory::{self, FilePath, GeneratedFile, yaml};

use super::open_infra;
use super::output::Output;
use block::BlockFault;
use commit::Change;
use orphan::{Fate, Orphan};
use tree::{Access, Found, Tree, TreeFault};

/// Fewer files than these are not worth a thread of their own.
const SHARE_MIN: usize = 200;

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
    let mut tree = Tree::open(base, access).map_err(|fault| failure(&fault))?;
    let plan = plan(&tree, &files, output)?;
    let orphans = orphan::find(
        &tree,
        &inventory::known_paths(&read.infra),
        args.clean_orphans,
    )
    .map_err(|fault| failure(&fault))?;
    if mode == Mode::Write {
        commit::commit(&mut tree, &changes(&plan, &orphans)).map_err(|fault| failure(&fault))?;
    }
    report::report(mode, &plan, &orphans, output)?;
    let differs = plan.iter().any(|file| file.state != State::Unchanged);
    Ok(if mode == Mode::Check && differs {
        Exit::Differs
    } else {
        Exit::Done
    })
}

/// What a run does with what it finds.
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

/// What becomes of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Created,
    Updated,
    Unchanged,
}

/// A file as it is and as it should be.
#[derive(Debug)]
struct Planned {
    path: FilePath,
    found: Option<Found>,
    new: String,
    state: State,
}

/// Compares every file with what it should say. All faults are shown, the last as the error.
fn plan(tree: &Tree, files: &[GeneratedFile<'_>], output: &Output) -> anyhow::Result<Vec<Planned>> {
    let mut plan = Vec::with_capacity(files.len());
    let mut faults = Vec::new();
    for result in on_all_cores(files, |file| planned(tree, file)) {
        match result {
            Ok(planned) => plan.push(planned),
            Err(fault) => faults.push(fault),
        }
    }
    let Some(last) = faults.pop() else {
        return Ok(plan);
    };
    for fault in faults {
        output.failure(&fault.message, fault.help.as_deref());
    }
    Err(last.into())
}

/// Does the same for every file, in the order of the files; many files are shared out, since most of a run is reading back.
fn on_all_cores<T: Send>(
    files: &[GeneratedFile<'_>],
    work: impl Fn(&GeneratedFile<'_>) -> T + Sync,
) -> Vec<T> {
    let cores = std::thread::available_parallelism().map_or(1, NonZero::get);
    let share = files.len().div_ceil(cores).max(SHARE_MIN);
    std::thread::scope(|scope| {
        let work = &work;
        let shares = files.chunks(share);
        let threads: Vec<_> = shares
            .map(|share| scope.spawn(move || share.iter().map(work).collect::<Vec<T>>()))
            .collect();
        let mut done = Vec::with_capacity(files.len());
        for thread in threads {
            match thread.join() {
                Ok(share) => done.extend(share),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        done
    })
}

fn planned(tree: &Tree, file: &GeneratedFile<'_>) -> Result<Planned, Failure> {
    let path = file.path.clone();
    let found = tree.read(&path).map_err(|fault| failure(&fault))?;
    let in_file = |fault: BlockFault| block_failure(&path, &fault);
    let values = file.values();
    let body = yaml::write(&values);
    let Some(found) = found else {
        let new = block::create(&body);
        verify::verify(&new, None, &values).map_err(in_file)?;
        return Ok(Planned {
            path,
            found: None,
            new,
            state: State::Created,
        });
    };
    let new = block::update(&found.text, &body).map_err(in_file)?;
    let state = if new == found.text {
        State::Unchanged
    } else {
        State::Updated
    };
    // What sync alone wrote has been read back when it was written.
    let parts = block::find(&found.text).map_err(in_file)?;
    if state == State::Updated || parts.is_some_and(|parts| parts.has_user_text()) {
        verify::verify(&new, Some(&found.text), &values).map_err(in_file)?;
    }
    Ok(Planned {
        path,
        found: Some(found),
        new,
        state,
    })
}

fn changes(plan: &[Planned], orphans: &[Orphan]) -> Vec<Change> {
    let written = plan.iter().filter_map(|file| {
        let (path, text) = (file.path.clone(), file.new.clone());
        match (&file.found, file.state) {
            (_, State::Unchanged) => None,
            (None, _) => Some(Change::Create { path, text }),
            (Some(found), _) => Some(Change::Update {
                path,
                text,
                seen: found.identity,
                owner: found.owner,
            }),
        }
    });
    let removed = orphans
        .iter()
        .filter(|orphan| orphan.fate == Fate::Removed)
        .map(|orphan| Change::Remove {
            path: orphan.path.clone(),
            seen: orphan.found.identity,
        });
    written.chain(removed).collect()
}

fn failure(fault: &TreeFault) -> Failure {
    let help = fault.help();
    let message = match std::error::Error::source(fault) {
        Some(cause) => format!("{fault}: {cause}"),
        None => fault.to_string(),
    };
    let failure = Failure::new(Exit::Failed, message);
    match help {
        Some(help) => failure.help(help),
        None => failure,
    }
}

fn block_failure(path: &FilePath, fault: &BlockFault) -> Failure {
    let message = format!("{path}:{}: {}", fault.line, fault.message);
    Failure::new(Exit::Failed, message).help(fault.help)
}
