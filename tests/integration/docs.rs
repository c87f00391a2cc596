//! Checks the docs: console blocks work, paths and links exist, and the architecture page matches the source.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::harness::{ANKLUME, Anklume, scrub};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

#[test]
fn the_consoles_of_the_readme_show_what_happens() {
    let readme = read("README.md");
    let folder = tempfile::tempdir().unwrap();
    let desk = folder.path().join("demo");
    for made in ["demo", "bin"] {
        std::fs::create_dir(folder.path().join(made)).unwrap();
    }
    std::os::unix::fs::symlink(ANKLUME, folder.path().join("bin/anklume")).unwrap();

    let consoles = blocks(&readme, "console");
    assert!(consoles.len() >= 3, "the quick start has its consoles");
    for console in consoles {
        let shown = Shown::parse(&console);
        let printed = run_in_shell(&desk, &shown);
        for (command, (shown, printed)) in
            shown.commands.iter().zip(shown.outputs.iter().zip(printed))
        {
            assert!(
                matches(shown, &printed),
                "README.md shows this for `{command}`:\n{shown}\nbut it prints:\n{printed}"
            );
        }
    }
    let infra = std::fs::read_to_string(desk.join("infra.yml")).unwrap();
    assert_eq!(infra, blocks(&readme, "yaml").remove(0));
}

#[test]
fn an_ellipsis_in_a_console_stands_for_any_lines() {
    assert!(matches("a\n…\nd\n", "a\nb\nc\nd\n"));
    assert!(matches("a\n…\n", "a\n"));
    assert!(!matches("a\n…\nd\n", "a\nb\nc\n"));
    assert!(!matches("a\n", "a\nb\n"));
    assert!(!matches("", "a\n"));
}

#[test]
fn paths_named_in_the_docs_exist() {
    let mut named = 0;
    for (page, text) in pages() {
        for path in quoted(&text).filter(|word| is_path_of_the_tree(word)) {
            named += 1;
            assert!(
                Path::new(ROOT).join(path).exists(),
                "{page} names `{path}`, which does not exist"
            );
        }
    }
    assert!(
        named > 20,
        "only {named} paths found: are they still in backticks?"
    );
}

#[test]
fn each_promise_names_a_test_that_is_there() {
    let tests: String = files_below("tests")
        .iter()
        .filter(|file| Path::new(file).extension().is_some_and(|ext| ext == "rs"))
        .map(|file| read(file))
        .collect();
    let page = read("docs/security.md");
    let named: Vec<&str> = quoted(&page)
        .filter(|word| word.matches('_').count() > 3 && !word.contains(' '))
        .collect();
    assert!(named.len() > 15, "{named:?}");
    for name in named {
        assert!(
            tests.contains(&format!("fn {name}()")),
            "`{name}` is not a test"
        );
    }
}

#[test]
fn pages_named_in_the_source_exist() {
    for file in files_below("src") {
        let text = read(&file);
        for page in quoted(&text).filter(|word| word.starts_with("docs/")) {
            assert!(
                Path::new(ROOT).join(page).exists(),
                "{file} names `{page}`, which does not exist"
            );
        }
    }
}

#[test]
fn every_source_file_is_on_the_map() {
    let map = read("docs/architecture.md");
    let on_the_map: BTreeSet<&str> = quoted(&map)
        .filter(|word| word.starts_with("src/"))
        .collect();
    for file in files_below("src") {
        let covered = on_the_map
            .iter()
            .any(|named| *named == file || (named.ends_with('/') && file.starts_with(named)));
        assert!(
            covered,
            "{file} is not in docs/architecture.md, nor is its folder"
        );
    }
}

#[test]
fn every_program_that_a_test_asks_for_is_provided_by_the_setup() {
    let setup = read("tests/setup.sh");
    let asked = files_below("tests")
        .into_iter()
        .filter(|file| Path::new(file).extension().is_some_and(|end| end == "rs"));
    for file in asked {
        for call in read(&file).split("have_program(\"").skip(1) {
            let program = leading_name(call);
            assert!(
                setup.contains(&format!("need {program} "))
                    || (program == "node" && setup.contains("provide_node")),
                "{file} asks for `{program}`, which tests/setup.sh does not provide"
            );
        }
    }
}

#[test]
fn links_lead_somewhere() {
    for (page, text) in pages() {
        for target in links(&text).filter(|target| !target.contains("://")) {
            let (file, heading) = target.split_once('#').unwrap_or((target, ""));
            let path = if file.is_empty() {
                page.clone()
            } else {
                let folder = Path::new(&page).parent().unwrap();
                folder.join(file).to_str().unwrap().to_owned()
            };
            assert!(
                Path::new(ROOT).join(&path).exists(),
                "{page} links to `{target}`, which does not exist"
            );
            assert!(
                heading.is_empty() || headings(&read(&path)).contains(heading),
                "{page} links to `{target}`, but there is no such heading"
            );
        }
    }
}

#[test]
fn every_page_is_linked_from_the_readme_or_another_page() {
    let mut linked = BTreeSet::new();
    for (page, text) in pages() {
        let folder = Path::new(&page).parent().unwrap();
        for target in links(&text) {
            let file = folder.join(target.split('#').next().unwrap());
            let file = file.to_str().unwrap().to_owned();
            // Links from a page to itself do not count.
            if file != page {
                linked.insert(file);
            }
        }
    }
    for page in files_below("docs") {
        assert!(linked.contains(&page), "no page links to {page}");
    }
}

#[test]
fn the_exit_codes_of_the_docs_are_those_of_the_program() {
    let enum_text = read("src/error.rs");
    let in_the_program: Vec<String> = enum_text
        .lines()
        .filter_map(|line| {
            line.trim()
                .strip_suffix(',')?
                .split_once(" = ")
                .map(|(_, code)| code.to_owned())
        })
        .collect();
    for page in ["README.md", "docs/commands.md"] {
        let text = read(page);
        let table = text.split("| exit code | meaning |").nth(1).unwrap();
        let shown: Vec<String> = table
            .lines()
            .skip(2)
            .map_while(|line| {
                line.strip_prefix("| ")?
                    .split_once(" | ")
                    .map(|(code, _)| code.to_owned())
            })
            .collect();
        assert_eq!(shown, in_the_program, "{page}");
    }
}

#[test]
fn every_subcommand_is_on_the_page_of_commands() {
    let page = read("docs/commands.md");
    for command in subcommands(&[]) {
        assert!(
            page.contains(&format!("| `anklume {command}")),
            "docs/commands.md does not show `anklume {command}`"
        );
    }
}

/// The subcommands in the help, with nested subcommands in place of their parents.
fn subcommands(above: &[&str]) -> Vec<String> {
    let ran = Anklume::new()
        .args(above.iter().copied().chain(["--help"]))
        .run();
    let Some((_, listed)) = ran.stdout.split_once("Commands:\n") else {
        return vec![above.join(" ")];
    };
    let names = listed
        .lines()
        .map_while(|line| line.split_whitespace().next());
    let names = names.filter(|name| *name != "help");
    names
        .flat_map(|name| subcommands(&[above, &[name]].concat()))
        .collect()
}

#[test]
fn the_example_is_a_whole_infra_file() {
    let ran = Anklume::new()
        .infra(&read("infra.example.yml"))
        .args(["sync"])
        .run();
    assert_eq!(ran.status, 0, "{}", ran.stderr);
}

#[test]
fn no_host_of_a_registry_and_no_path_of_one_machine_is_written_down() {
    // Split in two, so that the search does not find this list.
    let forbidden = [
        concat!("registry.np", "mjs"),
        concat!("crates", ".io"),
        concat!("pyp", "i.org"),
        concat!("pythonho", "sted"),
        concat!("deb.deb", "ian.org"),
        concat!("node", "source"),
        concat!("/wo", "rk/"),
    ];
    for folder in ["src", "tests", "docs", ".ci", ".cargo"] {
        // Cargo writes the registry's name into its lock files.
        let files = files_below(folder).into_iter();
        for file in files.filter(|file| !file.ends_with("/Cargo.lock")) {
            nothing_of(&forbidden, &file);
        }
    }
    for file in [
        "Cargo.toml",
        "Makefile",
        "README.md",
        "infra.example.yml",
        ".clippy.toml",
        ".gitignore",
    ] {
        nothing_of(&forbidden, file);
    }
}

#[track_caller]
fn nothing_of(forbidden: &[&str], file: &str) {
    let bytes = std::fs::read(Path::new(ROOT).join(file)).unwrap();
    let text = String::from_utf8_lossy(&bytes);
    for word in forbidden {
        // `incoming/work/report` is not an absolute path.
        let named = text.match_indices(word).any(|(at, _)| {
            let before = text.split_at(at).0.chars().next_back();
            !(word.starts_with('/') && before.is_some_and(char::is_alphanumeric))
        });
        assert!(!named, "{file} names `{word}`");
    }
}

/// A console block: the commands after `$ `, and the output shown after each.
struct Shown {
    commands: Vec<String>,
    outputs: Vec<String>,
}

impl Shown {
    fn parse(console: &str) -> Self {
        let mut shown = Self {
            commands: Vec::new(),
            outputs: Vec::new(),
        };
        for line in console.lines() {
            if let Some(command) = line.strip_prefix("$ ") {
                shown.commands.push(command.to_owned());
                shown.outputs.push(String::new());
            } else {
                let output = shown.outputs.last_mut().unwrap();
                output.push_str(line);
                output.push('\n');
            }
        }
        shown
    }
}

/// Runs the commands in one shell, with stdout and stderr combined, and returns the output of each.
fn run_in_shell(desk: &Path, shown: &Shown) -> Vec<String> {
    let folder = desk.parent().unwrap();
    let mut script = String::from("exec 2>&1\ncode=0\n");
    for command in &shown.commands {
        // The exit code of the previous command is available, as in an interactive shell.
        script.extend(["(exit $code)\n", command, "\ncode=$?\nprintf '\\0'\n"]);
    }
    let mut shell = Command::new("sh");
    scrub(&mut shell, folder);
    let path = format!(
        "{}:{}",
        folder.join("bin").display(),
        std::env::var("PATH").unwrap()
    );
    let output = shell
        .args(["-c", &script])
        .env("PATH", path)
        .current_dir(desk)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let printed = String::from_utf8(output.stdout).unwrap();
    let printed: Vec<String> = printed.split_terminator('\0').map(str::to_owned).collect();
    assert_eq!(printed.len(), shown.commands.len(), "{printed:?}");
    printed
}

/// Returns whether `printed` equals `shown`, where a line `…` matches any number of lines.
fn matches(shown: &str, printed: &str) -> bool {
    let mut parts = shown.split_inclusive('\n').collect::<Vec<_>>();
    let Some(at) = parts.iter().position(|line| *line == "…\n") else {
        return shown == printed;
    };
    let after = parts.split_off(at + 1).concat();
    parts.pop();
    let before = parts.concat();
    let Some(rest) = printed.strip_prefix(&before) else {
        return false;
    };
    let ends = std::iter::once(0).chain(rest.match_indices('\n').map(|(at, _)| at + 1));
    let mut rests = ends.map(|end| rest.split_at(end).1);
    rests.any(|rest| matches(&after, rest))
}

/// README.md and every page of docs/.
fn pages() -> Vec<(String, String)> {
    let mut pages = vec!["README.md".to_owned()];
    pages.extend(
        files_below("docs")
            .into_iter()
            .filter(|file| Path::new(file).extension().is_some_and(|end| end == "md")),
    );
    pages
        .into_iter()
        .map(|page| (page.clone(), read(&page)))
        .collect()
}

/// Regular files below a folder in the tree, as paths from the root, except for files that tools create.
fn files_below(folder: &str) -> Vec<String> {
    let mut files = Vec::new();
    let mut folders = vec![PathBuf::from(folder)];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(Path::new(ROOT).join(&folder)).unwrap() {
            let entry = entry.unwrap();
            let path = folder.join(entry.file_name());
            if entry.file_type().unwrap().is_dir() {
                // Folders that tools create and git ignores.
                if ![
                    "__pycache__",
                    "node_modules",
                    "target",
                    "corpus",
                    "artifacts",
                ]
                .contains(&entry.file_name().to_str().unwrap())
                {
                    folders.push(path);
                }
            } else if entry.file_name() != "Cargo.lock" {
                files.push(path.to_str().unwrap().to_owned());
            }
        }
    }
    files.sort();
    files
}

fn read(path: &str) -> String {
    std::fs::read_to_string(Path::new(ROOT).join(path)).unwrap()
}

/// The contents of the fenced blocks in one language.
fn blocks(text: &str, language: &str) -> Vec<String> {
    let fence = format!("```{language}\n");
    text.split(&fence)
        .skip(1)
        .map(|rest| rest.split("```").next().unwrap().to_owned())
        .collect()
}

/// The text in single backticks.
fn quoted(text: &str) -> impl Iterator<Item = &str> {
    text.lines()
        .flat_map(|line| line.split('`').skip(1).step_by(2))
}

/// Returns whether a word is a path such as `src/…`, `tests/…` or `docs/…`, without patterns or placeholders.
fn is_path_of_the_tree(word: &str) -> bool {
    ["src/", "tests/", "docs/", ".ci/", ".cargo/"]
        .iter()
        .any(|folder| word.starts_with(folder))
        && word
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || "/._-".contains(c))
}

/// Targets of `[text](target)`.
fn links(text: &str) -> impl Iterator<Item = &str> {
    text.split("](")
        .skip(1)
        .filter_map(|rest| rest.split_once(')').map(|(target, _)| target))
}

/// The anchors of a page's headings.
fn headings(text: &str) -> BTreeSet<String> {
    text.lines()
        .filter_map(|line| line.strip_prefix('#'))
        .map(|line| {
            let words = line
                .trim_start_matches('#')
                .trim()
                .to_lowercase()
                .replace(' ', "-");
            words
                .chars()
                .filter(|c| c.is_alphanumeric() || *c == '-' || *c == '_')
                .collect()
        })
        .collect()
}

fn leading_name(text: &str) -> &str {
    let end = text
        .find(|c: char| !c.is_ascii_alphanumeric() && c != '_')
        .unwrap_or(text.len());
    text.split_at(end).0
}

#[test]
fn messages_on_the_page_about_trouble_are_those_of_the_program() {
    let page = read("docs/troubleshooting.md");
    let sources: String = files_below("src").iter().map(|file| read(file)).collect();
    // A literal may go on in the next line.
    let sources: String = sources.split("\\\n").map(str::trim_start).collect();
    let rows = page.lines().filter_map(|line| line.strip_prefix("| `"));
    let mut messages = 0;
    for row in rows {
        let (message, _) = row.split_once("` |").unwrap();
        for part in message
            .split('…')
            .map(str::trim)
            .filter(|part| part.len() > 3)
        {
            assert!(
                sources.contains(part),
                "no message has {part:?}, of {message:?}"
            );
        }
        messages += 1;
    }
    assert!(messages > 40, "{messages}");
}
