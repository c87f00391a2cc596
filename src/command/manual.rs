//! Generates the manual pages: one of the program, one for each noun, and one of `infra.yml`.

mod markdown;

use std::fs;
use std::io::{self, Write as _};
use std::path::Path;

use clap::CommandFactory as _;
use clap_mangen::{Man, roff};

use crate::cli::Cli;
use crate::error::{Exit, Failure};

/// The page of `anklume-gpg`.
const GPG: &str = "gpg";
/// The page of `infra.yml`.
const INFRA: &str = "infra.yml";
/// Its text, which the book has too.
const INFRA_TEXT: &str = include_str!("../../docs/infra.md");

/// Meanings of the exit codes; `docs/commands.md` has the same table.
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

/// A file or an environment variable, and the nouns that use it; none: all.
type Used = (&'static [&'static str], &'static str, &'static str);

const FILES: [Used; 10] = [
    (
        &["sync", "apply", "destroy", "doctor", "status", "policy"],
        "./infra.yml, ./infra/",
        "the declaration: infra.yml(5)",
    ),
    (
        &["sync", "apply", "doctor", "policy", "mcp"],
        "anklume.lock",
        "beside infra.yml: the definitions of MCP servers' tools that were accepted with anklume mcp pin",
    ),
    (
        &["mcp", "apply"],
        "/etc/anklume/services.json",
        "in a provider: its services and their consumers, as apply wrote them",
    ),
    (
        &["mcp"],
        "/run/anklume/mcp/",
        "in a provider: a socket for each consumer",
    ),
    (
        &["mcp", "file", "sign", "clipboard", "ssh-agent", "status"],
        "/srv/anklume/mcp/",
        "in a consumer: a socket for each provider",
    ),
    (
        &["file"],
        "/srv/anklume/portal/",
        "in a provider: incoming/CONSUMER receives pushed files; outgoing/CONSUMER and outgoing/all are offered",
    ),
    (
        &["audit", "mcp"],
        "/var/log/anklume/audit.jsonl",
        "in a provider: the log of all calls; older files end in .1, .2 …",
    ),
    (
        &["apply", "doctor", "audit"],
        "/var/lib/anklume/",
        "on the host: the channels' sockets, and what is known of the providers' logs",
    ),
    (
        &["apply", "destroy", "doctor"],
        "/run/anklume.lock",
        "on the host: held while a run changes Incus",
    ),
    (
        &["ssh-agent"],
        "$XDG_RUNTIME_DIR/anklume/",
        "the sockets of the agents",
    ),
];

const ENVIRONMENT: [Used; 7] = [
    (
        &["sign"],
        "ANKLUME_SIGN",
        "the service that signs, as PROVIDER or PROVIDER/SERVICE, for sign and anklume-gpg",
    ),
    (
        &["mcp"],
        "ANKLUME_MCP_PORTAL",
        "in a server: the portal's folder in the place of /srv/anklume/portal",
    ),
    (
        &["mcp", "file", "sign", "clipboard", "ssh-agent", "status"],
        "ANKLUME_SOCKET_DIR",
        "the folder of the providers' sockets in the place of /srv/anklume/mcp",
    ),
    (
        &["audit", "mcp"],
        "ANKLUME_AUDIT_LOG",
        "the log in the place of /var/log/anklume/audit.jsonl",
    ),
    (
        &["apply", "destroy", "doctor", "status", "mcp"],
        "INCUS_SOCKET, INCUS_DIR",
        "the socket of Incus, or the folder that contains unix.socket",
    ),
    (&[], "NO_COLOR", "if it is not empty, no colours are used"),
    (
        &[],
        "COLUMNS",
        "the width of help texts, if stdout is no terminal",
    ),
];

/// Returns the command line without the hidden subcommands, which clap hides only from its help.
pub(super) fn visible() -> clap::Command {
    let whole = Cli::command();
    let subcommands = whole.get_subcommands().filter(|one| !one.is_hide_set());
    clap::Command::new("anklume")
        .version(crate::cli::VERSION)
        .long_version(crate::cli::LONG_VERSION)
        .about(whole.get_about().cloned().unwrap_or_default())
        .long_about(whole.get_long_about().cloned().unwrap_or_default())
        .after_help(whole.get_after_help().cloned().unwrap_or_default())
        .subcommand_required(true)
        .args(whole.get_arguments().cloned())
        .subcommands(subcommands.cloned())
}

/// Returns a page, as roff: that of the program, of a noun, or of `infra.yml`.
pub(super) fn page(name: Option<&str>) -> anyhow::Result<Vec<u8>> {
    let whole = built();
    let name = name.map(|name| name.strip_prefix("anklume-").unwrap_or(name));
    match name {
        None | Some("anklume") => Ok(of_program(&whole)?),
        Some(INFRA) => Ok(of_infra()?),
        Some(GPG) => Ok(of_gpg()?),
        Some(name) => {
            let noun = whole.find_subcommand(name).ok_or_else(|| {
                let message = format!("there is no page `{}`", name.escape_debug());
                let help = format!("the pages are: {}", names(&whole).join(", "));
                Failure::new(Exit::Usage, message).help(help)
            })?;
            Ok(of_noun(noun)?)
        }
    }
}

/// Writes all pages below a folder, in `man1` and `man5`, which are created if necessary.
pub(super) fn write_pages(folder: &Path) -> anyhow::Result<Vec<String>> {
    let whole = built();
    let mut pages = vec![
        ("anklume.1".to_owned(), page(None)?),
        (format!("{INFRA}.5"), of_infra()?),
        (format!("anklume-{GPG}.1"), of_gpg()?),
    ];
    for noun in nouns(&whole) {
        pages.push((format!("anklume-{}.1", noun.get_name()), of_noun(noun)?));
    }
    let failed = |why: io::Error| {
        let message = format!("cannot write into `{}`: {why}", folder.display());
        Failure::new(Exit::Failed, message)
    };
    for (name, page) in &pages {
        let (_, section) = name.rsplit_once('.').unwrap_or((name, "1"));
        let section = folder.join(format!("man{section}"));
        fs::create_dir_all(&section).map_err(failed)?;
        fs::write(section.join(name), page).map_err(failed)?;
    }
    Ok(pages.into_iter().map(|(name, _)| name).collect())
}

fn built() -> clap::Command {
    let mut whole = visible().disable_help_subcommand(true);
    whole.build();
    whole
}

/// Returns the names of the pages, except that of the program.
pub(super) fn page_names() -> Vec<String> {
    names(&built()).into_iter().map(str::to_owned).collect()
}

fn names(whole: &clap::Command) -> Vec<&str> {
    let nouns = nouns(whole).map(clap::Command::get_name);
    [INFRA].into_iter().chain(nouns).chain([GPG]).collect()
}

/// Returns the page of `infra.yml`: the chapter of the book, with the file that `anklume init` writes as the example.
fn of_infra() -> io::Result<Vec<u8>> {
    let mut page = markdown::page(INFRA, 5, INFRA_TEXT).into_bytes();
    let mut end = roff::Roff::new();
    end.control("SH", ["EXAMPLES"]);
    end.control("nf", []);
    for line in super::init::TEMPLATE.lines() {
        end.text([roff::roman(line)]);
    }
    end.control("fi", []);
    end.control("SH", ["SEE ALSO"]);
    end.text([roff::roman(
        "anklume(1), anklume-apply(1), anklume-policy(1)",
    )]);
    end.to_writer(&mut page)?;
    Ok(page)
}

/// Returns the page of `anklume-gpg`, which has no command line of its own.
fn of_gpg() -> io::Result<Vec<u8>> {
    let mut page = roff::Roff::new();
    page.control("TH", ["anklume-gpg", "1"]);
    for (heading, text) in [
        (
            "NAME",
            "anklume-gpg - sign Git's commits and tags with a key of another machine",
        ),
        ("SYNOPSIS", "git config --global gpg.program anklume-gpg"),
        (
            "DESCRIPTION",
            "Git runs this program in the place of gpg. It signs with the key of the service that signs: the only one of this \
             machine's providers, or the one that ANKLUME_SIGN or Git's setting anklume.sign names, as PROVIDER or \
             PROVIDER/SERVICE. Everything else, such as verifying, is left to this machine's own gpg.",
        ),
        (
            "EXAMPLES",
            "git -c gpg.program=anklume-gpg commit -S -m message",
        ),
    ] {
        page.control("SH", [heading]);
        page.text([roff::roman(text)]);
    }
    let mut bytes = Vec::new();
    page.to_writer(&mut bytes)?;
    add_end("sign", &mut bytes)?;
    let mut see = roff::Roff::new();
    see.control("SH", ["SEE ALSO"]);
    see.text([roff::roman(
        "anklume(1), anklume-sign(1), git-config(1), gpg(1)",
    )]);
    see.to_writer(&mut bytes)?;
    Ok(bytes)
}

/// The subcommands with a page.
fn nouns(whole: &clap::Command) -> impl Iterator<Item = &clap::Command> {
    whole.get_subcommands()
}

/// Returns the subcommands that run something: the noun itself, or those below it.
fn leaves(noun: &clap::Command) -> Vec<&clap::Command> {
    if noun.has_subcommands() {
        noun.get_subcommands().flat_map(leaves).collect()
    } else {
        vec![noun]
    }
}

fn of_program(whole: &clap::Command) -> io::Result<Vec<u8>> {
    let mut page = Vec::new();
    let man = Man::new(whole.clone());
    man.render_title(&mut page)?;
    man.render_name_section(&mut page)?;
    man.render_synopsis_section(&mut page)?;
    man.render_description_section(&mut page)?;
    let mut commands = roff::Roff::new();
    commands.control("SH", ["COMMANDS"]);
    for noun in nouns(whole) {
        commands.control("TP", []);
        commands.text([roff::bold(format!("anklume-{}(1)", noun.get_name()))]);
        commands.text([roff::roman(about(noun))]);
    }
    commands.to_writer(&mut page)?;
    man.render_options_section(&mut page)?;
    add_examples(&[whole], &mut page)?;
    add_end("anklume", &mut page)?;
    let mut see = roff::Roff::new();
    see.control("SH", ["SEE ALSO"]);
    see.text([roff::bold("infra.yml"), roff::roman("(5)")]);
    see.to_writer(&mut page)?;
    man.render_version_section(&mut page)?;
    Ok(page)
}

fn of_noun(noun: &clap::Command) -> io::Result<Vec<u8>> {
    let name = format!("anklume-{}", noun.get_name());
    let leaves = leaves(noun);
    let mut page = Vec::new();
    Man::new(clap::Command::new(name.clone()).version(env!("CARGO_PKG_VERSION")))
        .render_title(&mut page)?;
    let mut head = roff::Roff::new();
    head.control("SH", ["NAME"]);
    head.text([roff::roman(format!("{name} - {}", about(noun)))]);
    head.control("SH", ["SYNOPSIS"]);
    for leaf in &leaves {
        let mut leaf = (*leaf).clone();
        let usage = leaf.render_usage().to_string();
        let lines = usage
            .lines()
            .map(|line| line.trim().trim_start_matches("Usage: "));
        for line in lines.filter(|line| !line.is_empty()) {
            head.text([roff::bold(line)]);
            head.control("br", []);
        }
    }
    head.to_writer(&mut page)?;
    if noun.has_subcommands() {
        for leaf in &leaves {
            let mut heading = roff::Roff::new();
            heading.control(
                "SH",
                [leaf.get_bin_name().unwrap_or_else(|| leaf.get_name())],
            );
            heading.text([roff::roman(about(leaf))]);
            heading.to_writer(&mut page)?;
            add_options(leaf, None, &mut page)?;
        }
    } else {
        let mut heading = roff::Roff::new();
        heading.control("SH", ["DESCRIPTION"]);
        heading.text([roff::roman(about(noun))]);
        heading.to_writer(&mut page)?;
        add_options(noun, Some("OPTIONS"), &mut page)?;
    }
    let mut global = roff::Roff::new();
    global.control("SH", ["GLOBAL OPTIONS"]);
    global.text([
        roff::roman("All commands take "),
        roff::bold("--format"),
        roff::roman(", "),
        roff::bold("--color"),
        roff::roman(", "),
        roff::bold("--quiet"),
        roff::roman(" and "),
        roff::bold("--verbose"),
        roff::roman(": anklume(1)."),
    ]);
    global.to_writer(&mut page)?;
    add_examples(&leaves, &mut page)?;
    add_end(noun.get_name(), &mut page)?;
    let mut see = roff::Roff::new();
    see.control("SH", ["SEE ALSO"]);
    see.text([roff::roman("anklume(1), infra.yml(5)")]);
    see.to_writer(&mut page)?;
    Ok(page)
}

fn about(command: &clap::Command) -> String {
    let about = command.get_about();
    about.map(ToString::to_string).unwrap_or_default()
}

/// Adds a command's own options, below this heading or below the last one.
fn add_options(
    command: &clap::Command,
    heading: Option<&str>,
    page: &mut Vec<u8>,
) -> io::Result<()> {
    let own = command.clone().mut_args(|argument| {
        let everywhere = argument.is_global_set() || argument.get_id() == "help";
        let is_hidden = argument.is_hide_set();
        argument.hide(everywhere || is_hidden)
    });
    let mut section = Vec::new();
    Man::new(own).render_options_section(&mut section)?;
    for line in section.split_inclusive(|byte| *byte == b'\n') {
        match (line, heading) {
            // Its own heading would end the section of the subcommand.
            (b".SH OPTIONS\n", None) => page.write_all(b".PP\n")?,
            (line, _) => page.write_all(line)?,
        }
    }
    Ok(())
}

/// Adds the examples of these commands' help texts.
fn add_examples(commands: &[&clap::Command], page: &mut Vec<u8>) -> io::Result<()> {
    let mut section = roff::Roff::new();
    section.control("SH", ["EXAMPLES"]);
    section.control("nf", []);
    for command in commands {
        let help = command.get_after_help().map(ToString::to_string);
        let lines = help.iter().flat_map(|help| help.lines().skip(1));
        for line in lines {
            section.text([roff::roman(line.trim())]);
        }
    }
    section.control("fi", []);
    section.to_writer(page)
}

/// Adds the files, the environment and the exit codes.
fn add_end(noun: &str, page: &mut Vec<u8>) -> io::Result<()> {
    let of_noun =
        |(nouns, ..): &&Used| nouns.is_empty() || noun == "anklume" || nouns.contains(&noun);
    let mut end = roff::Roff::new();
    let mut add = |heading: &str, entries: &mut dyn Iterator<Item = (String, &str)>| {
        let mut entries = entries.peekable();
        if entries.peek().is_some() {
            end.control("SH", [heading]);
        }
        for (name, meaning) in entries {
            end.control("TP", []);
            end.text([roff::bold(name)]);
            end.text([roff::roman(meaning)]);
        }
    };
    let used = |(_, name, meaning): &Used| ((*name).to_owned(), *meaning);
    add("FILES", &mut FILES.iter().filter(of_noun).map(used));
    add(
        "ENVIRONMENT",
        &mut ENVIRONMENT.iter().filter(of_noun).map(used),
    );
    let codes = EXITS.iter();
    add(
        "EXIT STATUS",
        &mut codes.map(|(exit, meaning)| ((*exit as u8).to_string(), *meaning)),
    );
    end.to_writer(page)
}

/// Returns the nouns that the tables of files and of the environment name.
#[cfg(test)]
fn named() -> std::collections::BTreeSet<&'static str> {
    let used = FILES.iter().chain(&ENVIRONMENT);
    used.flat_map(|(nouns, ..)| nouns.iter().copied()).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use clap::Parser as _;

    use super::*;

    /// Returns the examples of all commands, and fails for a command without any.
    fn examples(command: &clap::Command, found: &mut Vec<String>) {
        let help = command.get_after_help().map(ToString::to_string);
        let lines = help.iter().flat_map(|help| help.lines().skip(1));
        let before = found.len();
        found.extend(lines.map(|line| line.trim().to_owned()));
        let has_own = found.len() > before || command.has_subcommands();
        assert!(has_own || command.is_hide_set(), "{}", command.get_name());
        command
            .get_subcommands()
            .for_each(|below| examples(below, found));
    }

    #[test]
    fn every_command_has_examples_which_are_command_lines() {
        let mut found = Vec::new();
        examples(&Cli::command(), &mut found);
        assert!(found.len() > 30, "{found:?}");
        for example in found {
            let line = example.split(['#', '>', '<']).next().unwrap();
            let mut parts = line.split('|').map(str::trim_start);
            let Some(ours) = parts.find(|part| part.starts_with("anklume ")) else {
                assert!(example.contains("<(anklume completions"), "{example}");
                continue;
            };
            let words = ours.replace('\'', "");
            let parsed = Cli::try_parse_from(words.split_whitespace());
            assert!(parsed.is_ok(), "{example}: {:?}", parsed.err());
        }
    }

    #[test]
    fn the_version_names_all_versions_of_mcp() {
        let known = rmcp::model::ProtocolVersion::KNOWN_VERSIONS.iter();
        let known: Vec<&str> = known.map(rmcp::model::ProtocolVersion::as_str).collect();
        let (_, named) = crate::cli::LONG_VERSION.split_once("\nMCP ").unwrap();
        assert_eq!(named, known.join(", "));
    }

    #[test]
    fn every_page_has_its_sections() {
        let whole = built();
        let nouns: BTreeSet<&str> = nouns(&whole).map(clap::Command::get_name).collect();
        assert!(named().is_subset(&nouns), "{:?}", named());
        for noun in nouns {
            let page = String::from_utf8(page(Some(noun)).unwrap()).unwrap();
            for heading in [
                "NAME",
                "SYNOPSIS",
                "EXAMPLES",
                "ENVIRONMENT",
                "EXIT STATUS",
                "SEE ALSO",
            ] {
                let heading = format!(".SH {heading}\n")
                    .replace("EXIT STATUS", "\"EXIT STATUS\"")
                    .replace("SEE ALSO", "\"SEE ALSO\"");
                assert!(page.contains(&heading), "{noun}: {heading}: {page}");
            }
        }
    }
}
