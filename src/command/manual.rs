//! Generates the completion scripts and a single manual page for all subcommands.

use std::io::{self, Write as _};

use clap::CommandFactory as _;
use clap_mangen::{Man, roff};

use crate::cli::Cli;
use crate::error::Exit;

/// Meanings of the exit codes, for the manual page; `docs/commands.md` has the same table.
const EXITS: [(Exit, &str); 8] = [
    (Exit::Done, "done, or allowed"),
    (Exit::Failed, "failed; for policy check: denied or error"),
    (Exit::Usage, "the command line is wrong"),
    (Exit::Refused, "the provider refused the call"),
    (
        Exit::Unavailable,
        "the provider cannot be reached, or did not answer in time",
    ),
    (
        Exit::Overloaded,
        "the provider is overloaded; the same call may succeed later",
    ),
    (
        Exit::Differs,
        "something differs from what is declared (sync --check, apply --dry-run --exit-code)",
    ),
    (Exit::Interrupted, "interrupted"),
];

/// Generates a completion script.
pub(super) fn completions(shell: clap_complete::Shell) -> Vec<u8> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut visible(), "anklume", &mut script);
    script
}

/// Returns the command line without the hidden subcommands, which clap hides only from its help.
fn visible() -> clap::Command {
    let whole = Cli::command();
    let subcommands = whole.get_subcommands().filter(|one| !one.is_hide_set());
    clap::Command::new("anklume")
        .version(env!("CARGO_PKG_VERSION"))
        .about(whole.get_about().cloned().unwrap_or_default())
        .long_about(whole.get_long_about().cloned().unwrap_or_default())
        .subcommand_required(true)
        .args(whole.get_arguments().cloned())
        .subcommands(subcommands.cloned())
}

/// Generates the manual page, as roff.
pub(super) fn page() -> io::Result<Vec<u8>> {
    let mut whole = visible().disable_help_subcommand(true);
    whole.build();
    let mut page = Vec::new();
    let root = Man::new(whole.clone());
    root.render_title(&mut page)?;
    root.render_name_section(&mut page)?;
    root.render_synopsis_section(&mut page)?;
    root.render_description_section(&mut page)?;
    root.render_options_section(&mut page)?;
    add_subcommands(&whole, &mut page)?;
    add_exits(&mut page)?;
    root.render_version_section(&mut page)?;
    Ok(page)
}

/// Adds a section for each subcommand that has no subcommands of its own.
fn add_subcommands(above: &clap::Command, page: &mut Vec<u8>) -> io::Result<()> {
    for command in above.get_subcommands() {
        if command.has_subcommands() {
            add_subcommands(command, page)?;
        } else {
            add_subcommand(command, page)?;
        }
    }
    Ok(())
}

fn add_subcommand(command: &clap::Command, page: &mut Vec<u8>) -> io::Result<()> {
    let name = command.get_bin_name().unwrap_or_else(|| command.get_name());
    let about = command.get_about().map(ToString::to_string);
    let mut heading = roff::Roff::new();
    heading.control("SH", [name]);
    heading.text([roff::roman(about.unwrap_or_default())]);
    heading.control("PP", []);
    heading.to_writer(page)?;
    // The flags of every subcommand are described once, above.
    let own = command.clone().mut_args(|argument| {
        let everywhere = argument.is_global_set() || argument.get_id() == "help";
        let is_hidden = argument.is_hide_set();
        argument.hide(everywhere || is_hidden)
    });
    let man = Man::new(own);
    let mut sections = Vec::new();
    man.render_synopsis_section(&mut sections)?;
    man.render_options_section(&mut sections)?;
    man.render_extra_section(&mut sections)?;
    for line in sections.split_inclusive(|byte| *byte == b'\n') {
        // Their headings would end this subcommand's section.
        match line {
            b".SH SYNOPSIS\n" | b".SH OPTIONS\n" => {}
            b".SH EXTRA\n" => page.write_all(b".PP\n")?,
            _ => page.write_all(line)?,
        }
    }
    Ok(())
}

fn add_exits(page: &mut Vec<u8>) -> io::Result<()> {
    let mut exits = roff::Roff::new();
    exits.control("SH", ["EXIT STATUS"]);
    for (exit, meaning) in EXITS {
        exits.control("TP", []);
        exits.text([roff::bold((exit as u8).to_string())]);
        exits.text([roff::roman(meaning)]);
    }
    exits.to_writer(page)
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    fn examples(command: &clap::Command, found: &mut Vec<String>) {
        let help = command.get_after_help().map(ToString::to_string);
        let lines = help.iter().flat_map(|help| help.lines().skip(1));
        found.extend(lines.map(|line| line.trim().to_owned()));
        command
            .get_subcommands()
            .for_each(|below| examples(below, found));
    }

    #[test]
    fn the_examples_in_the_help_are_command_lines() {
        let mut found = Vec::new();
        examples(&Cli::command(), &mut found);
        assert!(found.len() > 10, "{found:?}");
        for example in found {
            let line = example.split(['#', '>', '<']).next().unwrap();
            let mut parts = line.split('|').map(str::trim_start);
            let ours = parts.find(|part| part.starts_with("anklume ")).unwrap();
            let parsed = Cli::try_parse_from(ours.split_whitespace());
            assert!(parsed.is_ok(), "{example}: {:?}", parsed.err());
        }
    }
}
