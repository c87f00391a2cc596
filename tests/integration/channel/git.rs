//! `anklume sign`, and real git with `anklume-gpg` as its gpg, in a consumer without a secret key.

use std::fs;
use std::os::unix::fs::symlink;
use std::process::{Command, Output, Stdio};

use super::world::{Listening, World};
use crate::harness::{ANKLUME, have_program, keep_for_picture, on_a_terminal, write_program};
use crate::serve::server::Keyring;

const SIGN: &str = "{name: commits, tool: gpg_sign, consumers: [alice]}";
/// The key of the provider.
const KEY: &str = "tester@example.org";

/// A provider, and the consumer `alice`, which has git and an empty keyring of its own.
struct Alice {
    world: World,
    server: Listening,
    _keyring: Keyring,
}

impl Alice {
    /// With these services of the provider `vault`.
    fn new(services: &[&str]) -> Self {
        let keyring = Keyring::new();
        let world = World::new(services).keyring(&keyring);
        let server = world.listen();
        for folder in ["alice", "home", "keys"] {
            fs::create_dir(world.path(folder)).unwrap();
        }
        let private = std::os::unix::fs::PermissionsExt::from_mode(0o700);
        fs::set_permissions(world.path("keys"), private).unwrap();
        symlink(server.socket("alice"), world.path("alice/vault.sock")).unwrap();
        symlink(ANKLUME, world.path("bin/anklume-gpg")).unwrap();
        let path = format!("{}:{}", world.text("bin"), std::env::var("PATH").unwrap());
        let (sockets, keys, home) = (world.text("alice"), world.text("keys"), world.text("home"));
        let world = world
            .env("ANKLUME_SOCKET_DIR", sockets)
            .env("GNUPGHOME", keys)
            .env("HOME", home)
            .env("PATH", path);
        Self {
            world,
            server,
            _keyring: keyring,
        }
    }

    /// A command in alice, in a folder below that of the test.
    fn command(&self, folder: &str, program: &str, args: &[&str]) -> Command {
        let own = self.world.command(&[]);
        let mut command = Command::new(program);
        command.env_clear();
        command.envs(
            own.get_envs()
                .filter_map(|(name, value)| Some((name, value?))),
        );
        command
            .current_dir(self.world.path(folder))
            .args(args)
            .stdin(Stdio::null());
        command
    }

    fn git(&self, folder: &str, args: &[&str]) -> Output {
        self.command(folder, "git", args).output().unwrap()
    }

    /// Runs git, which must succeed.
    #[track_caller]
    fn done(&self, folder: &str, args: &[&str]) -> String {
        let output = self.git(folder, args);
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "git {args:?}: {stderr}");
        String::from_utf8(output.stdout).unwrap() + &stderr
    }

    /// A repository that signs with `anklume-gpg`, with one commit.
    fn repository(&self, name: &str) {
        fs::create_dir(self.world.path(name)).unwrap();
        self.done(name, &["init", "-q", "-b", "main"]);
        for (key, value) in [
            ("user.name", "Tester"),
            ("user.email", KEY),
            ("gpg.program", "anklume-gpg"),
        ] {
            self.done(name, &["config", key, value]);
        }
        self.commit(name, "first");
    }

    /// A signed commit.
    #[track_caller]
    fn commit(&self, name: &str, file: &str) {
        self.world.write(&format!("{name}/{file}"), file);
        self.done(name, &["add", file]);
        self.done(name, &["commit", "-q", "-S", "-m", file]);
    }

    /// Imports the provider's public key into alice's keyring.
    fn import(&self) {
        self.import_of("vault");
    }

    /// The same, of this service.
    fn import_of(&self, service: &str) {
        let key = self.world.run(&["sign", "--public-key", "-i", service]);
        assert_eq!((key.status, key.stderr.as_str()), (0, ""));
        self.world.write("key.asc", &key.stdout);
        let import = ["--batch", "--quiet", "--import", "../key.asc"];
        let imported = self.command("keys", "gpg", &import).output().unwrap();
        assert!(imported.status.success(), "{imported:?}");
    }
}

fn have_both() -> bool {
    have_program("git") && have_program("gpg")
}

#[test]
fn git_signs_over_the_channel_and_verifies_with_its_own_gpg() {
    if !have_both() {
        return;
    }
    let alice = Alice::new(&[SIGN]);
    alice.repository("repo");
    // Without the key, git says that it cannot check; with it, the signature is good.
    let unknown = alice.git("repo", &["verify-commit", "HEAD"]);
    assert!(!unknown.status.success());
    alice.import();
    let good = "Good signature from \"tester@example.org\"";
    let said = alice.done("repo", &["verify-commit", "HEAD"]);
    assert!(said.contains(good), "{said}");
    let said = alice.done("repo", &["log", "--show-signature"]);
    assert!(said.contains(good), "{said}");
    alice.done("repo", &["tag", "-s", "v1", "-m", "one"]);
    let said = alice.done("repo", &["verify-tag", "v1"]);
    assert!(said.contains(good), "{said}");
    // A merge and a rebase.
    alice.done("repo", &["checkout", "-q", "-b", "side"]);
    alice.commit("repo", "side");
    alice.done("repo", &["checkout", "-q", "main"]);
    alice.commit("repo", "second");
    alice.done("repo", &["merge", "-q", "-S", "--no-edit", "side"]);
    alice.done("repo", &["verify-commit", "HEAD"]);
    alice.done("repo", &["checkout", "-q", "side"]);
    alice.commit("repo", "third");
    alice.done("repo", &["rebase", "-q", "-S", "main"]);
    let all = alice.done("repo", &["log", "--format=%G?"]);
    assert!(all.lines().all(|line| line == "U" || line == "G"), "{all}");
    // A changed commit is not good.
    let commit = alice.done("repo", &["cat-file", "commit", "HEAD"]);
    alice
        .world
        .write("repo/changed", commit.replace("third", "thirx"));
    let forged = alice.done("repo", &["hash-object", "-t", "commit", "-w", "changed"]);
    let forged = alice.git("repo", &["verify-commit", forged.trim()]);
    assert!(!forged.status.success(), "{forged:?}");
    alice.server.end();
}

#[test]
fn the_key_that_git_names_must_be_the_one_that_signs() {
    if !have_both() {
        return;
    }
    let alice = Alice::new(&[SIGN]);
    alice.repository("repo");
    let key = alice
        .world
        .run(&["mcp", "call", "-i", "vault", "commits", "data=@/dev/null"]);
    assert_eq!(key.status, 0, "{key:?}");
    let before = alice.world.logged("call").len();
    alice.world.write("repo/next", "next");
    alice.done("repo", &["add", "next"]);
    // Git 2.39 keeps to itself what its gpg writes.
    let reason = |key: &str| {
        let args = ["--status-fd=2", "-bsau", key];
        let output = alice
            .command("repo", "anklume-gpg", &args)
            .output()
            .unwrap();
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    for other in ["0123456789ABCDEF", "Somebody <else@example.org>", "someone"] {
        let name = format!("user.signingkey={other}");
        let refused = alice.git("repo", &["-c", &name, "commit", "-S", "-m", "x"]);
        assert!(!refused.status.success());
        let stderr = reason(other);
        assert!(
            stderr.contains("the service signs with the key ")
                && stderr
                    .contains("nothing was signed; to use that key: `git config user.signingkey "),
            "{stderr}"
        );
    }
    // The public key was asked for, by Git's call and by ours, and nothing was signed.
    let calls = alice.world.logged("call");
    let after = calls.get(before..).unwrap();
    assert_eq!(after.len(), 6, "{after:#?}");
    // The command of the help makes it sign.
    let stderr = reason("x");
    let fingerprint = stderr.split("git config user.signingkey ").nth(1).unwrap();
    let fingerprint = fingerprint.split('`').next().unwrap();
    alice.done("repo", &["config", "user.signingkey", fingerprint]);
    alice.done("repo", &["commit", "-q", "-S", "-m", "x"]);
    let short = format!("0x{}!", &fingerprint.get(24..).unwrap());
    alice.done("repo", &["config", "user.signingkey", &short]);
    alice.commit("repo", "more");
    alice.server.end();
}

#[test]
fn twenty_commits_at_once_are_all_signed() {
    const COMMITS: usize = 20;
    if !have_both() {
        return;
    }
    let alice = Alice::new(&[SIGN]);
    alice.repository("repo");
    alice.import();
    let names: Vec<String> = (0..COMMITS)
        .map(|number| format!("clone{number}"))
        .collect();
    for name in &names {
        alice.done(".", &["clone", "-q", "repo", name]);
        alice.world.write(&format!("{name}/file"), name);
        alice.done(name, &["add", "file"]);
    }
    let commit = [
        "-c",
        "gpg.program=anklume-gpg",
        "-c",
        "user.name=Tester",
        "-c",
        "user.email=tester@example.org",
        "commit",
        "-q",
        "-S",
        "-m",
        "one",
    ];
    let running = names.iter().map(|name| {
        let mut command = alice.command(name, "git", &commit);
        command.stderr(Stdio::piped()).spawn().unwrap()
    });
    for child in running.collect::<Vec<_>>() {
        let output = child.wait_with_output().unwrap();
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
    for name in &names {
        alice.done(name, &["verify-commit", "HEAD"]);
    }
    alice.server.end();
}

#[test]
fn a_service_that_signs_is_found_or_named() {
    if !have_both() {
        return;
    }
    let other = "{name: releases, tool: gpg_sign, consumers: [alice]}";
    let copy = "{name: copy, tool: clipboard_set, consumers: [alice]}";
    let alice = Alice::new(&[SIGN, other, copy]);
    let world = &alice.world;
    world.write("letter", "hello");
    let several = world.run(&["sign", "letter"]);
    several.is(
        2,
        "",
        "error: several services of vault offer `gpg_sign`: commits, releases\n  = help: name one: `--service SERVICE`\n",
    );
    world
        .run(&["sign", "letter", "--service", "releases"])
        .is(0, "", "created letter.asc\n");
    let again = world.run(&["sign", "letter", "--service", "releases"]);
    again.is(
        1,
        "",
        "error: `letter.asc` already exists\n  = help: remove it, or replace it with `--force`\n",
    );
    alice.import_of("vault/commits");
    let verified = alice
        .command(".", "gpg", &["--batch", "--verify", "letter.asc", "letter"])
        .output()
        .unwrap();
    assert!(verified.status.success(), "{verified:?}");
    let none = world.run(&["sign", "letter", "--force", "--service", "copy"]);
    none.is(
        3,
        "",
        "error: no service `copy` of vault offers `gpg_sign` to this machine\n  = help: `anklume mcp list -i PROVIDER` shows the services of a provider\n",
    );
    // Git passes no flag on, so another way is named, which works.
    alice.done(".", &["init", "-q", "repo"]);
    let gpg = || {
        let args = ["--status-fd=2", "-bsau", KEY];
        let output = alice
            .command("repo", "anklume-gpg", &args)
            .output()
            .unwrap();
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    let said = gpg();
    assert!(
        said.ends_with("help: name one: `git config anklume.sign PROVIDER/SERVICE`\n"),
        "{said}"
    );
    alice.done("repo", &["config", "anklume.sign", "vault/commits"]);
    assert!(gpg().contains("SIG_CREATED"));
    let piped = world.run_with(&["sign", "-", "-i", "vault/commits"], b"hello");
    assert!(
        piped.stdout.starts_with("-----BEGIN PGP SIGNATURE-----\n"),
        "{piped:?}"
    );
    let missing = world.run(&["sign", "nowhere", "-i", "vault/commits"]);
    missing.is(
        1,
        "",
        "error: cannot read `nowhere`: No such file or directory (os error 2)\n",
    );
    world.run(&["sign"]).is(
        2,
        "",
        "error: no file is named\n  = help: name files to sign, `-` for stdin, or `--public-key`\n",
    );
    alice.server.end();
}

#[test]
fn the_terminal_shows_what_git_keeps_to_itself() {
    if !have_both() {
        return;
    }
    let alice = Alice::new(&[SIGN]);
    let script = "exec setsid -cw anklume-gpg --status-fd=2 -bsau other@example.org 2>file";
    for (version, is_told) in [("2.39.5", true), ("2.47.3", false), ("3.0.0", false)] {
        // Only this Git's version matters here.
        let git = format!("#!/bin/sh\n[ \"$1\" = --version ] && echo git version {version}\n:");
        write_program(&alice.world.path("bin/git"), git);
        let command = alice.command("", "sh", &["-c", script]);
        let (status, shown) = on_a_terminal(command, 80, None);
        assert_eq!(status, 1, "{shown}");
        let told = "anklume-gpg: error: the service signs with the key ";
        assert_eq!(shown.contains(told), is_told, "{version}: {shown}");
        assert_eq!(
            shown.contains("anklume-gpg: help: nothing was signed"),
            is_told,
            "{shown}"
        );
        let kept = fs::read_to_string(alice.world.path("file")).unwrap();
        assert!(
            kept.contains("error: the service signs with the key "),
            "{kept}"
        );
    }
    alice.server.end();
}

#[test]
fn the_consoles_of_the_page_about_git_work() {
    if !have_both() {
        return;
    }
    let alice = Alice::new(&[SIGN]);
    symlink(ANKLUME, alice.world.path("bin/anklume")).ok();
    let page = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/git.md");
    let page = fs::read_to_string(page).unwrap();
    fs::create_dir(alice.world.path("repo")).unwrap();
    alice.done("repo", &["init", "-q", "-b", "main"]);
    for (key, value) in [("user.name", "Tester"), ("user.email", KEY)] {
        alice.done("repo", &["config", "--global", key, value]);
    }
    alice.world.write("repo/release.tar.gz", "release");
    alice.done("repo", &["add", "release.tar.gz"]);
    let commands: Vec<&str> = page
        .lines()
        .filter_map(|line| line.strip_prefix("$ "))
        .collect();
    assert!(commands.len() >= 9, "{commands:?}");
    for command in commands {
        let output = alice
            .command("repo", "sh", &["-c", command])
            .output()
            .unwrap();
        assert!(output.status.success(), "`{command}`: {output:?}");
    }
    let state = alice.done("repo", &["log", "--format=%G?"]);
    assert!(["U\n", "G\n"].contains(&&*state), "{state}");
    alice.server.end();
}

#[test]
fn a_signed_commit_is_a_picture() {
    if !have_program("git") {
        return;
    }
    let alice = Alice::new(&[SIGN]);
    alice.repository("repo");
    alice.import();
    alice.world.write("repo/letter.txt", "dear");
    alice.done("repo", &["add", "letter.txt"]);
    let mut shown = String::new();
    let colours = ["-c", "color.ui=always"];
    for line in [
        "git commit -S -m Letter",
        "git log -1 --show-signature",
        "gpg --list-secret-keys",
        "anklume mcp list vault",
    ] {
        let words: Vec<&str> = line.split(' ').collect();
        let output = match words.as_slice() {
            ["git", args @ ..] => alice.done("repo", &[&colours, args].concat()),
            ["anklume", args @ ..] => alice.world.run(args).stdout,
            [program, args @ ..] => {
                let output = alice.command("repo", program, args).output().unwrap();
                String::from_utf8(output.stdout).unwrap()
            }
            [] => String::new(),
        };
        shown.extend([
            format!("\u{1b}[32mme@work-dev\u{1b}[0m:\u{1b}[34m~/repo\u{1b}[0m$ {line}\n"),
            output,
        ]);
    }
    assert!(shown.contains("Good signature from"), "{shown}");
    keep_for_picture("commit", &shown);
}
