//! Prints which files changed and which are no longer declared: as text, as a diff, or as JSON.

use std::fmt::Write as _;

use serde::Serialize;
use similar::TextDiff;

use crate::cli::Format;
use crate::inventory::FilePath;

use super::{Mode, Output};
use crate::sync::orphans::{Fate, Orphan};
use crate::sync::{FileState, PlannedFile};

/// More changes than these are counted, and listed with `--verbose` only.
const LISTED: usize = 40;
/// Lines around a change in a diff.
const CONTEXT: usize = 3;

/// Says what was done, or would be.
pub(super) fn report(
    mode: Mode,
    plan: &[PlannedFile],
    orphans: &[Orphan],
    output: &Output,
) -> anyhow::Result<()> {
    say_orphans(orphans, output);
    if output.format() == Format::Json {
        return output.json(&json(mode, plan, orphans));
    }
    let summary = summary(mode, plan, orphans);
    if mode == Mode::Show {
        // The diff alone is the answer, for whoever applies it.
        output.answer(diffs(plan, orphans).as_bytes())?;
        output.say(&summary);
    } else if !output.quiet() {
        let text = lines(mode, plan, orphans, output.verbose()) + &summary + "\n";
        output.answer(text.as_bytes())?;
    }
    Ok(())
}

fn say_orphans(orphans: &[Orphan], output: &Output) {
    let mut some_left = false;
    for orphan in orphans {
        match &orphan.fate {
            Fate::Removed => {}
            Fate::Left => {
                some_left = true;
                output.say(&format!(
                    "orphan: {} belongs to nothing that is declared",
                    name(&orphan.path)
                ));
            }
            Fate::Kept(reason) => output.say(&format!(
                "orphan: {} belongs to nothing that is declared; kept ({})",
                name(&orphan.path),
                reason.escape_debug()
            )),
        }
    }
    if some_left {
        output.say("  = help: `anklume sync --clean-orphans` removes those that are not kept");
    }
}

/// A path whose name came from the disk, harmless for a terminal.
fn name(path: &FilePath) -> String {
    path.to_string().escape_debug().to_string()
}

/// One line for each change, where there are few.
fn lines(mode: Mode, plan: &[PlannedFile], orphans: &[Orphan], verbose: bool) -> String {
    let changes = changes(mode, plan, orphans);
    let listed = if verbose { changes.len() } else { LISTED };
    let mut text = String::new();
    for (word, path) in changes.iter().take(listed) {
        let _ = writeln!(text, "{word} {path}");
    }
    if changes.len() > listed {
        let _ = writeln!(
            text,
            "… and {} more (all with --verbose)",
            changes.len() - listed
        );
    }
    text
}

/// Every change, in order, with its word.
fn changes(mode: Mode, plan: &[PlannedFile], orphans: &[Orphan]) -> Vec<(&'static str, String)> {
    let word = |state| match (mode, state) {
        (_, FileState::Unchanged) => None,
        (Mode::Write, FileState::Created) => Some("created"),
        (Mode::Write, FileState::Updated) => Some("updated"),
        (_, FileState::Created) => Some("missing"),
        (_, FileState::Updated) => Some("differs"),
    };
    let written = plan
        .iter()
        .filter_map(|file| Some((word(file.state)?, name(&file.path))));
    let removed = removed(orphans).map(|orphan| ("removed", name(&orphan.path)));
    written.chain(removed).collect()
}

fn removed(orphans: &[Orphan]) -> impl Iterator<Item = &Orphan> {
    orphans.iter().filter(|orphan| orphan.fate == Fate::Removed)
}

/// The last line: the whole run in numbers.
fn summary(mode: Mode, plan: &[PlannedFile], orphans: &[Orphan]) -> String {
    let count = |state| plan.iter().filter(|file| file.state == state).count();
    let (created, updated, unchanged) = (
        count(FileState::Created),
        count(FileState::Updated),
        count(FileState::Unchanged),
    );
    let removed = removed(orphans).count();
    if created + updated + removed == 0 {
        return format!("nothing to do: {} up to date", files(unchanged));
    }
    let mut parts = Vec::new();
    for (number, done, would) in [
        (created, "created", "to create"),
        (updated, "updated", "to update"),
        (removed, "removed", "to remove"),
        (unchanged, "unchanged", "unchanged"),
    ] {
        if number > 0 {
            parts.push(format!(
                "{number} {}",
                if mode == Mode::Write { done } else { would }
            ));
        }
    }
    let end = if mode == Mode::Write {
        ""
    } else {
        "; nothing was written"
    };
    format!(
        "{}: {}{end}",
        files(created + updated + removed + unchanged),
        parts.join(", ")
    )
}

fn files(number: usize) -> String {
    if number == 1 {
        "1 file".to_owned()
    } else {
        format!("{number} files")
    }
}

/// The changes as `git diff` shows them, so that `git apply` and `patch -p1` take them.
fn diffs(plan: &[PlannedFile], orphans: &[Orphan]) -> String {
    let mut text = String::new();
    for file in plan
        .iter()
        .filter(|file| file.state != FileState::Unchanged)
    {
        let old = file.found.as_ref().map(|found| found.text.as_str());
        text.push_str(&diff(&file.path, old, Some(&file.new)));
    }
    for orphan in removed(orphans) {
        text.push_str(&diff(&orphan.path, Some(&orphan.found.text), None));
    }
    text
}

fn diff(path: &FilePath, old: Option<&str>, new: Option<&str>) -> String {
    let side = |letter: char, text: Option<&str>| match text {
        Some(_) => format!("{letter}/{}", name(path)),
        None => "/dev/null".to_owned(),
    };
    TextDiff::from_lines(old.unwrap_or_default(), new.unwrap_or_default())
        .unified_diff()
        .context_radius(CONTEXT)
        .header(&side('a', old), &side('b', new))
        .to_string()
}

/// A run as JSON.
#[derive(Debug, Serialize)]
struct SyncAnswer {
    /// True if anything was changed on the disk.
    written: bool,
    files: Vec<FileAnswer>,
    orphans: Vec<OrphanFile>,
}

#[derive(Debug, Serialize)]
struct FileAnswer {
    path: String,
    state: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    diff: Option<String>,
}

#[derive(Debug, Serialize)]
struct OrphanFile {
    path: String,
    state: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    diff: Option<String>,
}

fn json(mode: Mode, plan: &[PlannedFile], orphans: &[Orphan]) -> SyncAnswer {
    let file = |file: &PlannedFile| {
        let old = file.found.as_ref().map(|found| found.text.as_str());
        let (state, differs) = match file.state {
            FileState::Created => ("created", true),
            FileState::Updated => ("updated", true),
            FileState::Unchanged => ("unchanged", false),
        };
        FileAnswer {
            path: file.path.to_string(),
            state,
            diff: (mode == Mode::Show && differs).then(|| diff(&file.path, old, Some(&file.new))),
        }
    };
    let orphan = |orphan: &Orphan| {
        let (state, reason) = match &orphan.fate {
            Fate::Left => ("left", None),
            Fate::Removed => ("removed", None),
            Fate::Kept(reason) => ("kept", Some(reason.clone())),
        };
        let goes = mode == Mode::Show && orphan.fate == Fate::Removed;
        OrphanFile {
            path: orphan.path.to_string(),
            state,
            reason,
            diff: goes.then(|| diff(&orphan.path, Some(&orphan.found.text), None)),
        }
    };
    let changed = plan.iter().any(|file| file.state != FileState::Unchanged)
        || removed(orphans).next().is_some();
    SyncAnswer {
        written: mode == Mode::Write && changed,
        files: plan.iter().map(file).collect(),
        orphans: orphans.iter().map(orphan).collect(),
    }
}
