//! `anklume sync`: generates the files that Ansible reads from `infra.yml`.
//!
//! Reads, computes and reads back everything first; only then makes all changes, or none.

use std::fmt::Write as _;
use std::path::Path;

use diffy::{DiffOptions, PatchFormatter};
use jiff::Timestamp;
use serde::Serialize;

use super::open_infra;
use super::output::{Output, paint_line};
use crate::catalogue::gives_offers;
use crate::cli::SyncArgs;
use crate::edge;
use crate::error::Exit;
use crate::infra::{DeclaredService, Infra};
use crate::inventory::{self, FilePath};
use crate::mcp::gateway::{TOOL_NAME_SAFE, tool_name};
use crate::name::{MachineName, ToolName};
use crate::sync::orphans::{self, Fate, Orphan};
use crate::sync::tree::{Access, FileTree};
use crate::sync::{self, FileState, PlannedFile};

/// Maximum number of changes listed without `--verbose`.
const LISTED_MAX: usize = 40;
/// Number of context lines around a change in a diff.
const CONTEXT: usize = 3;

/// Runs `anklume sync`.
pub(crate) fn run(args: &SyncArgs, output: &Output) -> anyhow::Result<Exit> {
    let read = open_infra(&args.infra, output)?;
    let edges = edge::edges(&read.infra)?;
    for note in open_clipboards(&read.infra)
        .into_iter()
        .chain(expired(&read.infra, Timestamp::now()))
        .chain(long_names(&read.infra))
    {
        output.say(&note);
    }
    let files = inventory::files(&read.infra, &edges);
    let base = args.base_dir.as_deref().unwrap_or(&read.folder);
    // The parent path of a bare `infra.yml` is empty.
    let base = if base.as_os_str().is_empty() {
        Path::new(".")
    } else {
        base
    };
    let (mode, access) = match (args.check, args.dry_run) {
        (true, _) => (Mode::Check, Access::Read),
        (false, true) => (Mode::Show, Access::Read),
        (false, false) => (Mode::Write, Access::Write),
    };
    let mut tree = FileTree::open(base, access).map_err(|fault| sync::failure(&fault))?;
    let plan = sync::plan(&tree, &files)?;
    let known = inventory::known_paths(&read.infra);
    let orphans =
        orphans::find(&tree, &known, args.clean_orphans).map_err(|fault| sync::failure(&fault))?;
    if mode == Mode::Write {
        sync::write(&mut tree, &plan, &orphans).map_err(|fault| sync::failure(&fault))?;
    }
    let report = SyncReport {
        mode,
        plan: &plan,
        orphans: &orphans,
    };
    report.print(output)?;
    let differs = mode == Mode::Check && report.written().next().is_some();
    Ok(if differs { Exit::Differs } else { Exit::Done })
}

/// How differences are handled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    /// Changes the files.
    Write,
    /// Shows the changes without making them.
    Show,
    /// Reports through the exit code whether anything would change.
    Check,
}

/// The changes of a run, done or planned.
struct SyncReport<'a> {
    mode: Mode,
    plan: &'a [PlannedFile],
    orphans: &'a [Orphan],
}

/// The report of a run, as JSON.
#[derive(Debug, Serialize)]
struct SyncAnswer<'a> {
    /// True if anything on disk was changed.
    written: bool,
    files: Vec<SyncEntry<'a>>,
    orphans: Vec<SyncEntry<'a>>,
}

/// Returns all services, each with its machine.
fn services(infra: &Infra) -> impl Iterator<Item = (&MachineName, &DeclaredService)> {
    infra.machines().flat_map(|(_, machine)| {
        let services = machine.services.iter();
        services.map(move |service| (&machine.name, service))
    })
}

/// Returns a note on each service that has expired at this time.
fn expired(infra: &Infra, now: Timestamp) -> Vec<String> {
    let over = services(infra).filter(|(_, service)| service.conditions.have_expired(now));
    let note = |(machine, service): (&MachineName, &DeclaredService)| {
        let expiry = service.conditions.expires.map(|expiry| expiry.to_string());
        format!(
            "note: `{machine}/{}` expired at {} ({}), so calls are refused",
            service.name,
            expiry.unwrap_or_default(),
            service.place.short()
        )
    };
    over.map(note).collect()
}

/// Returns a note on the tools whose name for an agent may be too long: clients put a prefix before it, and some model
/// APIs accept 64 characters.
fn long_names(infra: &Infra) -> Option<String> {
    let names = services(infra)
        .filter(|(_, service)| !service.consumers.is_empty())
        .map(|(machine, service)| tool_name(machine.as_str(), service.name.as_str()));
    let mut long = names.filter(|name| name.len() > TOOL_NAME_SAFE);
    let first = long.next()?;
    let count = long.count() + 1;
    Some(format!(
        "note: {count} name(s) of tools for agents have more than {TOOL_NAME_SAFE} characters, such as `{first}`; some MCP \
         clients cannot call them"
    ))
}

/// Returns a note on the services that return whatever is on a clipboard.
fn open_clipboards(infra: &Infra) -> Option<String> {
    let is_open = |service: &DeclaredService| {
        service.tool.is(ToolName::ClipboardGet)
            && !gives_offers(&service.tool, &service.with)
            && !service.consumers.is_empty()
    };
    let mut open = services(infra).filter(|(_, service)| is_open(service));
    let (machine, service) = open.next()?;
    let more = match open.count() {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    Some(format!(
        "note: the consumers of `{machine}/{}`{more} may read what is copied there at any time ({}); \
         with `offered_only: true`, only what is offered to them",
        service.name,
        service.place.short()
    ))
}

#[derive(Debug, Serialize)]
struct SyncEntry<'a> {
    path: String,
    state: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    diff: Option<String>,
}

impl<'a> SyncReport<'a> {
    fn print(&self, output: &Output) -> anyhow::Result<()> {
        self.say_orphans(output);
        match self.plan.iter().filter(|file| file.restyled).count() {
            0 => {}
            1 => {
                output.say("note: 1 file changes only in its YAML style; its values stay the same");
            }
            count => output.say(&format!(
                "note: {count} files change only in their YAML style; their values stay the same"
            )),
        }
        if output.is_json() {
            return output.json(&self.json());
        }
        let summary = self.summary();
        if self.mode == Mode::Show {
            // The answer is the diff alone, as input for `git apply` or `patch -p1`.
            let written = self.written().map(diff_of_file);
            let diffs = written.chain(self.removed().map(diff_of_orphan));
            let diffs: String = diffs.collect();
            let lines = diffs.split_inclusive('\n').map(paint_diff);
            output.text(&lines.collect::<String>())?;
            output.say(&summary);
        } else if !output.quiet {
            let text = self.lines(output.verbose) + &summary + "\n";
            output.text(&text)?;
        }
        Ok(())
    }

    fn say_orphans(&self, output: &Output) {
        for orphan in self.orphans {
            let kept = match &orphan.fate {
                Fate::Removed => continue,
                Fate::Left => String::new(),
                Fate::Kept(reason) => format!("; kept ({})", reason.escape_debug()),
            };
            let name = name(&orphan.path);
            output.say(&format!(
                "orphan: {name} does not belong to anything declared{kept}"
            ));
        }
        if self.orphans.iter().any(|orphan| orphan.fate == Fate::Left) {
            output.say("  = help: `anklume sync --clean-orphans` removes those that are not kept");
        }
    }

    /// Returns the files that are created or updated.
    fn written(&self) -> impl Iterator<Item = &'a PlannedFile> {
        let plan = self.plan.iter();
        plan.filter(|file| file.state != FileState::Unchanged)
    }

    /// Returns the orphans that are removed.
    fn removed(&self) -> impl Iterator<Item = &'a Orphan> {
        let orphans = self.orphans.iter();
        orphans.filter(|orphan| orphan.fate == Fate::Removed)
    }

    /// Formats one line for each change, up to a limit unless `verbose` is set.
    fn lines(&self, verbose: bool) -> String {
        let (created, updated) = match self.mode {
            Mode::Write => ("created", "updated"),
            Mode::Show | Mode::Check => ("missing", "differs"),
        };
        let written = self.written().map(|file| match file.state {
            FileState::Created => (created, &file.path),
            _ => (updated, &file.path),
        });
        let removed = self.removed().map(|orphan| ("removed", &orphan.path));
        let changes: Vec<(&str, &FilePath)> = written.chain(removed).collect();
        let listed = if verbose { changes.len() } else { LISTED_MAX };
        let mut text = String::new();
        for (word, path) in changes.iter().take(listed) {
            let _ = writeln!(text, "{word} {}", name(path));
        }
        if let Some(more @ 1..) = changes.len().checked_sub(listed) {
            let _ = writeln!(text, "… and {more} more (all with --verbose)");
        }
        text
    }

    /// Formats the last line: the number of files in each state.
    fn summary(&self) -> String {
        let count = |state| self.plan.iter().filter(|file| file.state == state).count();
        let unchanged = count(FileState::Unchanged);
        let states = [
            (count(FileState::Created), "created", "to create"),
            (count(FileState::Updated), "updated", "to update"),
            (self.removed().count(), "removed", "to remove"),
            (unchanged, "unchanged", "unchanged"),
        ];
        let all: usize = states.iter().map(|(number, ..)| number).sum();
        let files = if all == 1 { "file" } else { "files" };
        if all == unchanged {
            return format!("nothing to do: {all} {files} up to date");
        }
        let is_done = self.mode == Mode::Write;
        let parts: Vec<String> = states
            .iter()
            .filter(|(number, ..)| *number > 0)
            .map(|(number, done, would)| format!("{number} {}", if is_done { done } else { would }))
            .collect();
        let end = if is_done { "" } else { "; nothing was written" };
        format!("{all} {files}: {}{end}", parts.join(", "))
    }

    fn json(&self) -> SyncAnswer<'a> {
        let shows = self.mode == Mode::Show;
        let files = self.plan.iter().map(|file| {
            let (state, differs) = match file.state {
                FileState::Created => ("created", true),
                FileState::Updated => ("updated", true),
                FileState::Unchanged => ("unchanged", false),
            };
            SyncEntry {
                path: file.path.to_string(),
                state,
                reason: None,
                diff: (shows && differs).then(|| diff_of_file(file)),
            }
        });
        let orphans = self.orphans.iter().map(|orphan| {
            let (state, reason) = match &orphan.fate {
                Fate::Left => ("left", None),
                Fate::Removed => ("removed", None),
                Fate::Kept(reason) => ("kept", Some(reason.as_str())),
            };
            SyncEntry {
                path: orphan.path.to_string(),
                state,
                reason,
                diff: (shows && orphan.fate == Fate::Removed).then(|| diff_of_orphan(orphan)),
            }
        });
        let changed = self.written().next().is_some() || self.removed().next().is_some();
        SyncAnswer {
            written: self.mode == Mode::Write && changed,
            files: files.collect(),
            orphans: orphans.collect(),
        }
    }
}

/// Returns a line of a diff in its colour.
fn paint_diff(line: &str) -> String {
    let (text, end) = match line.strip_suffix('\n') {
        Some(text) => (text, "\n"),
        None => (line, ""),
    };
    paint_line(text) + end
}

/// Escapes a path for a terminal, because its name may come from the disk.
fn name(path: &FilePath) -> String {
    path.to_string().escape_debug().to_string()
}

fn diff_of_file(file: &PlannedFile) -> String {
    let old = file.found.as_ref().map(|found| found.text.as_str());
    diff(&file.path, old, Some(&file.new))
}

fn diff_of_orphan(orphan: &Orphan) -> String {
    diff(&orphan.path, Some(&orphan.found.text), None)
}

/// Formats a change as `git diff` shows it.
fn diff(path: &FilePath, old: Option<&str>, new: Option<&str>) -> String {
    let side = |letter: char, text: Option<&str>| match text {
        Some(_) => format!("{letter}/{}", name(path)),
        None => "/dev/null".to_owned(),
    };
    let (old_text, new_text) = (old.unwrap_or_default(), new.unwrap_or_default());
    let change = DiffOptions::new()
        .set_context_len(CONTEXT)
        .set_original_filename(side('a', old))
        .set_modified_filename(side('b', new))
        .create_patch(old_text, new_text);
    let format = PatchFormatter::new().suppress_blank_empty(false);
    format.fmt_patch(&change).to_string()
}
