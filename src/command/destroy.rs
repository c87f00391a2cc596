//! `anklume destroy`: deletes what `apply` made, on request.

use std::io::{IsTerminal as _, Write as _};

use super::apply::progress::Progress;
use super::apply::{open_session, print, to_the_end};
use super::open_infra;
use super::output::Output;
use crate::apply;
use crate::apply::outcome::RunReport;
use crate::cli::DestroyArgs;
use crate::error::{Exit, Failure};
use crate::host::log_timer::is_scheduled;
use crate::plan::{Action, Deletions, Selection, destroy};
use crate::session::block_on;

/// Nothing that was asked for is there.
const NOTHING: &str =
    "nothing to delete: there is nothing on Incus that anklume made for this file";
/// Input that counts as agreement.
const YES: &str = "yes";

/// Runs `anklume destroy`.
pub(crate) fn run(args: &DestroyArgs, output: &Output) -> anyhow::Result<Exit> {
    let infra = open_infra(&args.infra, output)?.infra;
    let selection = match (&args.domain, &args.machine) {
        (Some(domain), _) => Selection::Domain(domain),
        (_, Some(machine)) => Selection::Machine(machine),
        _ => Selection::All,
    };
    block_on(async {
        let session = open_session(output)
            .await?
            .locked(|line| output.say(line))
            .await?;
        let state = session.state(&infra.project).await?;
        let deletions = destroy(&infra.project, &state, selection, is_scheduled());
        for note in &deletions.notes {
            output.say(&format!("note: {note}"));
        }
        if deletions.actions().next().is_none() {
            return nothing(selection, &infra.project, &deletions, output);
        }
        // Who agrees beforehand sees each line when it is done.
        if !args.yes {
            show(&deletions, output);
        }
        refuse_protected(&deletions, args.force)?;
        if !args.yes {
            agree()?;
        }
        let progress = Progress::new(output, deletions.actions().count());
        let steps = apply::destroy(&session, &deletions, &progress);
        let report = to_the_end(&session, &progress, steps).await?;
        print(&report, NOTHING, &deletions.notes, session.writes(), output)
    })
}

fn nothing(
    selection: Selection<'_>,
    project: &str,
    deletions: &Deletions,
    output: &Output,
) -> anyhow::Result<Exit> {
    let (kind, name) = match selection {
        Selection::All => {
            return print(&RunReport::default(), NOTHING, &deletions.notes, 0, output);
        }
        Selection::Domain(name) => ("domain", name),
        Selection::Machine(name) => ("machine", name),
    };
    let message = format!(
        "there is no {kind} `{}` on Incus that anklume made for `{}`",
        name.escape_debug(),
        project.escape_debug()
    );
    let help = "`incus list --all-projects` shows all machines";
    Err(Failure::new(Exit::Failed, message).help(help).into())
}

/// Lists what will be deleted, before asking.
fn show(deletions: &Deletions, output: &Output) {
    for line in deletions.actions().flat_map(Action::lines) {
        output.say(&line);
    }
}

fn refuse_protected(deletions: &Deletions, force: bool) -> anyhow::Result<()> {
    let protected: Vec<&str> = deletions
        .machines
        .iter()
        .filter_map(|action| match action {
            Action::Delete {
                object,
                protected: true,
                ..
            } => Some(object.name()),
            _ => None,
        })
        .collect();
    if force || protected.is_empty() {
        return Ok(());
    }
    let message = format!(
        "not ephemeral, and so not deleted: {}",
        protected.join(", ").escape_debug()
    );
    let help = "`--force` deletes them all the same; nothing was deleted";
    Err(Failure::new(Exit::Failed, message).help(help).into())
}

/// Asks at the terminal.
fn agree() -> anyhow::Result<()> {
    let stdin = std::io::stdin();
    if !stdin.is_terminal() {
        let failure = Failure::new(Exit::Usage, "there is no terminal to ask on");
        return Err(failure.help("`--yes` deletes without asking").into());
    }
    let mut stderr = std::io::stderr().lock();
    write!(stderr, "delete all of this? type `{YES}`: ")?;
    stderr.flush()?;
    let mut answer = String::new();
    stdin.read_line(&mut answer)?;
    if answer.trim() == YES {
        return Ok(());
    }
    Err(Failure::new(Exit::Failed, "nothing was deleted").into())
}
