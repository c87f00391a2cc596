//! The completions in real shells, and what they know.

use std::path::Path;
use std::process::Command;

use crate::harness::{ANKLUME, Anklume, have_program, scrub, typed};

const INFRA: &str = "domains:
  work:
    subnet_id: 1
    machines:
      work-dev: {}
  vault:
    subnet_id: 2
    machines:
      vault-signer:
        services:
          - {name: file_sign, tool: gpg_sign, consumers: [work-dev], with: {key_id: 0123456789ABCDEF}}
          - {name: paste, tool: clipboard_get, consumers: [work-dev]}
";

/// A command line up to the cursor, and what the shell adds to its last word.
const LINES: [(&str, &str); 6] = [
    ("anklume mcp call vault-si", "gner"),
    ("anklume mcp call vault-signer/f", "ile_sign"),
    ("anklume policy check wor", "k-dev"),
    ("anklume destroy --domain vau", "lt"),
    ("anklume mcp call -i vault-signer pas", "te"),
    (
        "anklume mcp call vault-signer/file_sign data=@lett",
        "er.txt",
    ),
];

/// Starts an interactive shell with a terminal of its own, in a folder with the files.
fn shell(words: &[&str], folder: &Path) -> Command {
    let mut command = Command::new("setsid");
    command.arg("--ctty").args(words);
    with_anklume(command, folder)
}

/// Puts the program first on the PATH of a command.
fn with_anklume(mut command: Command, folder: &Path) -> Command {
    command.current_dir(folder);
    scrub(&mut command, folder);
    let programs = Path::new(ANKLUME).parent().unwrap();
    let path = std::env::var("PATH").unwrap();
    command.env("PATH", format!("{}:{path}", programs.display()));
    command.env("TERM", "dumb").env("HOME", folder);
    command
}

/// Completes each line in a shell that is set up with this line.
#[track_caller]
fn completes(words: &[&str], set_up: &str) {
    if !have_program(words.first().unwrap()) {
        return;
    }
    let house = Anklume::new().infra(INFRA).file("letter.txt", "dear");
    let folder = house.into_folder();
    let ready = (format!("{set_up}; echo rea''dy\r"), "ready".to_owned());
    let lines = LINES.iter().map(|(line, added)| {
        // ^U forgets the line before.
        (format!("\u{15}{line}\t"), (*added).to_owned())
    });
    let steps: Vec<(String, String)> = std::iter::once(ready).chain(lines).collect();
    typed(shell(words, folder.path()), &steps);
}

#[test]
fn bash_completes_also_files_after_an_at_sign_and_within_quotes() {
    let bash = ["bash", "--norc", "--noprofile", "-i"];
    let set_up = "source <(anklume completions bash)";
    completes(&bash, set_up);
    if !have_program("bash") {
        return;
    }
    let folder = Anklume::new()
        .infra(INFRA)
        .file("letter.txt", "dear")
        .into_folder();
    let steps = [
        (format!("{set_up}; echo rea''dy\r"), "ready"),
        (
            "anklume mcp call a/b \"data=@lett\t".to_owned(),
            "data=@letter.txt",
        ),
    ]
    .map(|(keys, shown)| (keys, shown.to_owned()));
    typed(shell(&bash, folder.path()), &steps);
}

#[test]
fn zsh_completes() {
    completes(
        &["zsh", "-f", "-i"],
        "autoload -U compinit; compinit -u; source <(anklume completions zsh)",
    );
}

#[test]
fn elvish_completes() {
    completes(
        // Without the daemon that keeps its history.
        &[
            "elvish",
            "-norc",
            "-sock",
            "/proc/none",
            "-db",
            "/proc/none",
        ],
        "eval (anklume completions elvish | slurp)",
    );
}

#[test]
fn fish_completes() {
    if !have_program("fish") {
        return;
    }
    let folder = Anklume::new()
        .infra(INFRA)
        .file("letter.txt", "dear")
        .into_folder();
    for (line, added) in LINES {
        // fish itself tells what it would complete.
        let script = format!("anklume completions fish | source; complete -C '{line}'");
        let mut fish = with_anklume(Command::new("fish"), folder.path());
        let output = fish.args(["--private", "-c", &script]).output().unwrap();
        let shown = String::from_utf8(output.stdout).unwrap();
        let words = shown.lines().map(|line| line.split('\t').next().unwrap());
        let completed = format!("{}{added}", line.rsplit(' ').next().unwrap());
        assert_eq!(words.collect::<Vec<_>>(), [completed], "{line}");
    }
}

/// Asks as the script of fish does, which passes on the words alone.
fn candidates(line: &str) -> Vec<String> {
    let words = line.split(' ').map(str::to_owned);
    let asked = Anklume::new().infra(INFRA).env("_ANKLUME_COMPLETE", "fish");
    let ran = asked.args(["--".to_owned()].into_iter().chain(words)).run();
    assert_eq!((ran.status, ran.stderr.as_str()), (0, ""), "{line}");
    let words = ran.stdout.lines();
    words
        .map(|line| line.split('\t').next().unwrap().to_owned())
        .collect()
}

#[test]
fn machines_services_tools_and_arguments_are_candidates() {
    assert_eq!(candidates("anklume mcp list v"), ["vault-signer"]);
    assert_eq!(candidates("anklume doctor w"), ["work-dev"]);
    assert_eq!(
        candidates("anklume policy check work-dev vault-signer/"),
        ["vault-signer/file_sign", "vault-signer/paste"]
    );
    assert_eq!(
        candidates("anklume sign -i vault-signer --service f"),
        ["file_sign"]
    );
    // The service fixes the key.
    let arguments = candidates("anklume mcp call vault-signer/file_sign ");
    for argument in ["data=", "data=@", "final:=true"] {
        assert!(arguments.contains(&argument.to_owned()), "{arguments:?}");
    }
    assert!(
        !arguments.iter().any(|one| one.starts_with("key_id")),
        "{arguments:?}"
    );
    assert_eq!(
        candidates("anklume mcp call nobody/none d"),
        Vec::<String>::new()
    );
    assert_eq!(candidates("anklume man in"), ["infra.yml", "init"]);
    assert!(!candidates("anklume m").contains(&"mcp-worker".to_owned()));
}
