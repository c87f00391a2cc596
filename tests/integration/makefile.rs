//! The Makefile is only a wrapper, and never executes a value that a user passes in a variable.
//!
//! A test runs a copy of the Makefile next to an `anklume` that is a recorder, which writes its exact argv to a file.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::{Command, Output};

use crate::harness::{have_program, scrub, write_program};

const BUILT: &str = "target/x86_64-unknown-linux-gnu/release/anklume";

/// Writes its arguments to a file, each followed by a NUL, and answers on stdout.
const RECORDER: &str = "#!/bin/sh\nfor argument; do printf '%s\\0' \"$argument\"; done > argv\necho \"answer to $1\"\n";

/// Strings that would run `touch pwned` if make or a shell ever interpreted them.
const HOSTILE: [&str; 16] = [
    "bonjour",
    "$(shell touch pwned)",
    "$$(shell touch pwned)",
    "${shell touch pwned}",
    "$(touch pwned)",
    "`touch pwned`",
    "; touch pwned",
    "' ; touch pwned ; '",
    "\" ; touch pwned ; \"",
    "a\ntouch pwned\n",
    "a\n\ttouch pwned",
    "$(eval X := $(shell touch pwned))$X",
    "-x --infra=/etc/passwd",
    "& touch pwned # * ? ~ [a-z] \\ \\n %",
    r#"{"content": "it's $5 \"quoted\" $(shell touch pwned)"}"#,
    "é ☕ \u{1b}[31m",
];

/// Every variable that a wrapping target reads: target, variable, other requirements, and argv with `@` as the value.
const WRAPPED: [(&str, &str, &[&str], &[&str]); 15] = [
    ("sync", "INFRA", &[], &["sync", "--infra=@"]),
    ("apply", "INFRA", &[], &["apply", "--infra=@"]),
    ("doctor", "INFRA", &[], &["doctor", "--infra=@"]),
    (
        "policy-list",
        "INFRA",
        &[],
        &["policy", "list", "--infra=@"],
    ),
    (
        "policy-check",
        "CALLER",
        &["SERVICE=s"],
        &["policy", "check", "--caller=@", "--service=s"],
    ),
    (
        "policy-check",
        "SERVICE",
        &["CALLER=c"],
        &["policy", "check", "--caller=c", "--service=@"],
    ),
    (
        "policy-check",
        "PROVIDER",
        &["CALLER=c", "SERVICE=s"],
        &[
            "policy",
            "check",
            "--caller=c",
            "--service=s",
            "--provider=@",
        ],
    ),
    (
        "policy-check",
        "INFRA",
        &["CALLER=c", "SERVICE=s"],
        &["policy", "check", "--caller=c", "--service=s", "--infra=@"],
    ),
    ("mcp-list", "I", &[], &["mcp", "list", "--instance=@"]),
    (
        "mcp-list",
        "P",
        &["I=i"],
        &["mcp", "list", "--instance=i", "--project=@"],
    ),
    (
        "mcp-call",
        "I",
        &["TOOL=t"],
        &["mcp", "call", "--instance=@", "--", "t"],
    ),
    (
        "mcp-call",
        "P",
        &["I=i", "TOOL=t"],
        &["mcp", "call", "--instance=i", "--project=@", "--", "t"],
    ),
    (
        "mcp-call",
        "TOOL",
        &["I=i"],
        &["mcp", "call", "--instance=i", "--", "@"],
    ),
    (
        "mcp-call",
        "ARGS",
        &["I=i", "TOOL=t"],
        &["mcp", "call", "--instance=i", "--", "t", "@"],
    ),
    // A variable that the Makefile does not read: make passes it on, and it is as harmless as the others.
    ("sync", "UNKNOWN", &[], &["sync"]),
];

/// How make receives a variable.
#[derive(Debug, Clone, Copy)]
enum Way {
    CommandLine,
    Environment,
}

#[test]
fn whatever_a_variable_holds_arrives_as_it_is_and_runs_nothing() {
    if !have_program("make") {
        return;
    }
    let house = House::new();
    for (target, variable, besides, expected) in WRAPPED {
        for value in HOSTILE {
            for way in [Way::CommandLine, Way::Environment] {
                let output = house.make(way, target, variable, value, besides);
                let expected: Vec<String> = expected
                    .iter()
                    .map(|argument| argument.replace('@', value))
                    .collect();
                let case = format!("make {target} {variable}={value:?} by {way:?}: {output:?}");
                assert!(output.status.success(), "{case}");
                assert_eq!(house.recorded(), expected, "{case}");
                assert_eq!(
                    String::from_utf8_lossy(&output.stdout),
                    format!("answer to {}\n", expected[0]),
                    "{case}"
                );
                house.is_unharmed(&case);
            }
        }
    }
}

#[test]
fn install_takes_its_folders_as_they_are() {
    if !have_program("make") {
        return;
    }
    for value in HOSTILE {
        for way in [Way::CommandLine, Way::Environment] {
            for variable in ["PREFIX", "DESTDIR"] {
                let house = House::new();
                let at = format!("{}/{value}", house.path().display());
                let output = house.make(way, "install", variable, &at, &[]);
                let case = format!("make install {variable}={at:?} by {way:?}: {output:?}");
                assert!(output.status.success(), "{case}");
                let prefix = if variable == "PREFIX" {
                    at.clone()
                } else {
                    format!("{at}/usr/local")
                };
                for (file, content) in [
                    ("bin/anklume", RECORDER),
                    (
                        "share/bash-completion/completions/anklume",
                        "answer to completions\n",
                    ),
                    (
                        "share/zsh/site-functions/_anklume",
                        "answer to completions\n",
                    ),
                    (
                        "share/fish/vendor_completions.d/anklume.fish",
                        "answer to completions\n",
                    ),
                ] {
                    let path = format!("{prefix}/{file}");
                    assert_eq!(
                        std::fs::read_to_string(&path).unwrap(),
                        content,
                        "{path}: {case}"
                    );
                }
                let pages = format!("{prefix}/share/man");
                assert_eq!(
                    house.recorded(),
                    ["man", "--quiet", "--dir", &pages],
                    "{case}"
                );
                house.is_unharmed(&case);
            }
        }
    }
}

#[test]
fn install_refuses_a_folder_that_begins_like_an_option() {
    if !have_program("make") {
        return;
    }
    let house = House::new();
    let output = house.make(
        Way::CommandLine,
        "install",
        "PREFIX",
        "--target-directory=/",
        &[],
    );
    assert_eq!(output.status.code(), Some(2));
    assert!(
        String::from_utf8_lossy(&output.stderr)
            .starts_with("make install: `--target-directory=/` is not an absolute path: give PREFIX=/… or DESTDIR=/…\n"),
        "{output:?}"
    );
}

#[test]
fn the_makefiles_own_words_cannot_be_replaced() {
    if !have_program("make") {
        return;
    }
    let house = House::new();
    for variable in [
        "SHELL",
        ".SHELLFLAGS",
        "MAKEOVERRIDES",
        "anklume",
        "release",
        "dev",
        "built",
        "sources",
        "infra",
        "machine",
        "outside",
        "v",
        "anklume_name",
        "CARGO_TARGET_DIR",
    ] {
        let output = house.make(
            Way::CommandLine,
            "sync",
            variable,
            "touch pwned; ./pwn",
            &["INFRA=i"],
        );
        assert!(output.status.success(), "{variable}: {output:?}");
        assert_eq!(house.recorded(), ["sync", "--infra=i"], "{variable}");
        house.is_unharmed(variable);
    }
}

/// A fake cargo that records its arguments and environment, and installs the recorder as the built program.
const CARGO: &str = "#!/bin/sh\n\
    echo \"$* ${CARGO_TARGET_DIR-} ${RUSTFLAGS-}${CARGO_BUILD_TARGET-}\" >> cargo\n\
    mkdir -p target/x86_64-unknown-linux-gnu/debug\n\
    install -m 0755 recorder target/x86_64-unknown-linux-gnu/debug/anklume\n";

#[test]
fn what_is_missing_or_older_than_its_sources_is_built_first_and_always_static() {
    if !have_program("make") {
        return;
    }
    let house = House::new();
    std::fs::remove_file(house.path().join(BUILT)).unwrap();
    std::fs::create_dir_all(house.path().join("bin")).unwrap();
    house.executable("recorder", RECORDER);
    house.executable("bin/cargo", CARGO);
    let path = format!(
        "{}/bin:{}",
        house.path().display(),
        std::env::var("PATH").unwrap()
    );
    let sync = || {
        let mut make = Command::new("make");
        scrub(&mut make, house.path());
        make.env("PATH", &path)
            .env("RUSTFLAGS", "-O")
            .env("CARGO_BUILD_TARGET", "other")
            .env("CARGO_TARGET_DIR", "/elsewhere");
        let output = make.current_dir(house.path()).arg("sync").output().unwrap();
        assert!(output.status.success(), "{output:?}");
        assert_eq!(house.recorded(), ["sync"]);
        std::fs::read_to_string(house.path().join("cargo")).unwrap()
    };
    assert_eq!(sync(), "build target \n");
    assert_eq!(
        sync(),
        "build target \n",
        "what is there is not built again"
    );

    // A source that is newer than the binary, whatever the clock says, is noticed, even the most deeply nested one.
    let now = std::time::SystemTime::now();
    let later = now + std::time::Duration::from_secs(3600);
    let mut builds = "build target \n".to_owned();
    for name in ["Cargo.toml", &deepest_source()] {
        let path = house.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        let source = std::fs::File::create(path).unwrap();
        source.set_modified(later).unwrap();
        builds.push_str("build target \n");
        assert_eq!(sync(), builds, "{name}");
        source.set_modified(std::time::UNIX_EPOCH).unwrap();
    }
    assert_eq!(sync(), builds);
}

/// The most deeply nested source file in this tree.
fn deepest_source() -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut folders = vec![root.join("src")];
    let mut sources = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                let source = path.strip_prefix(root).unwrap();
                sources.push(source.to_str().unwrap().to_owned());
            }
        }
    }
    let deepest = sources
        .into_iter()
        .max_by_key(|path| path.matches('/').count());
    deepest.unwrap()
}

#[test]
fn every_variable_that_the_makefile_reads_is_tried_here() {
    let makefile =
        std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/Makefile")).unwrap();
    let mut read = BTreeSet::new();
    for (at, _) in makefile.match_indices('$') {
        let name: String = makefile
            .split_at(at + 1)
            .1
            .trim_start_matches(['$', '{', '('])
            .chars()
            .take_while(|c| c.is_ascii_uppercase() || *c == '_')
            .collect();
        if !name.is_empty() {
            read.insert(name);
        }
    }
    let mut tried: BTreeSet<String> = WRAPPED.iter().map(|row| row.1.to_owned()).collect();
    tried.remove("UNKNOWN");
    tried.extend(["PREFIX".to_owned(), "DESTDIR".to_owned()]);
    assert_eq!(read, tried);
}

#[test]
fn a_missing_value_is_named() {
    if !have_program("make") {
        return;
    }
    for (target, given, message) in [
        (
            "mcp-list",
            vec![],
            "make mcp-list: I= is missing: the machine to ask, as in `make mcp-list I=vault-signer`",
        ),
        (
            "mcp-call",
            vec!["TOOL=clipboard_get"],
            "make mcp-call: I= is missing: the machine to call, as in `make mcp-call I=vault-signer TOOL=clipboard_get`",
        ),
        (
            "mcp-call",
            vec!["I=v"],
            "make mcp-call: TOOL= is missing: the tool to call; `make mcp-list I=…` names them",
        ),
        (
            "policy-check",
            vec!["SERVICE=s"],
            "make policy-check: CALLER= is missing: the machine that calls",
        ),
        (
            "policy-check",
            vec!["CALLER=c"],
            "make policy-check: SERVICE= is missing: the service that it calls",
        ),
    ] {
        let output = House::new().make(Way::CommandLine, target, "UNKNOWN", "", &given);
        assert_eq!(output.status.code(), Some(2), "{output:?}");
        assert_eq!(
            String::from_utf8_lossy(&output.stderr).lines().next(),
            Some(message)
        );
        assert_eq!(output.stdout, b"");
    }
}

#[test]
fn help_names_every_target_and_is_what_make_alone_does() {
    if !have_program("make") {
        return;
    }
    let makefile =
        std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/Makefile")).unwrap();
    let house = House::new();
    let help = Command::new("make")
        .current_dir(house.path())
        .output()
        .unwrap();
    let help = String::from_utf8(help.stdout).unwrap();
    let phony = makefile
        .lines()
        .find_map(|line| line.strip_prefix(".PHONY: "))
        .unwrap();
    for target in phony.split(' ') {
        assert!(
            help.lines()
                .any(|line| line.starts_with(&format!("  {target} "))),
            "{target} is not in:\n{help}"
        );
    }
}

/// A folder with the Makefile and the recorder.
struct House(tempfile::TempDir);

impl House {
    fn new() -> Self {
        let house = Self(tempfile::tempdir().unwrap());
        let makefile = concat!(env!("CARGO_MANIFEST_DIR"), "/Makefile");
        std::fs::copy(makefile, house.path().join("Makefile")).unwrap();
        let built = house.path().join(BUILT);
        std::fs::create_dir_all(built.parent().unwrap()).unwrap();
        house.executable(BUILT, RECORDER);
        house.executable("pwn", "#!/bin/sh\ntouch pwned\n");
        house
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn executable(&self, path: &str, content: &str) {
        write_program(&self.path().join(path), content);
    }

    fn make(
        &self,
        way: Way,
        target: &str,
        variable: &str,
        value: &str,
        besides: &[&str],
    ) -> Output {
        let mut make = Command::new("make");
        scrub(&mut make, self.path());
        make.current_dir(self.path()).arg(target).args(besides);
        match way {
            Way::CommandLine => make.arg(format!("{variable}={value}")),
            Way::Environment => make.env(variable, value),
        };
        make.output().unwrap()
    }

    fn recorded(&self) -> Vec<String> {
        let argv = std::fs::read_to_string(self.path().join("argv")).unwrap();
        argv.split_terminator('\0').map(str::to_owned).collect()
    }

    #[track_caller]
    fn is_unharmed(&self, case: &str) {
        assert!(
            !self.path().join("pwned").exists(),
            "something was run: {case}"
        );
    }
}
