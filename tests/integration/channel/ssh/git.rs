//! Git's SSH signatures, and those of files by `ssh-keygen -Y sign`.

use super::Alice;
use crate::harness::ANKLUME;

/// Makes a repository that verifies with the service's key.
fn repository(alice: &Alice) -> String {
    let public = alice.world.text(".ssh/id_ed25519.pub");
    alice.done(&format!(
        "git init -q repo && cd repo && git config user.name Tester && git config user.email t@example.org \
         && git config gpg.format ssh && git config gpg.ssh.allowedSignersFile \"$PWD/../signers\" \
         && {{ printf 't@example.org '; cat {public}; }} >../signers && cp {public} ../home/key.pub"
    ));
    public
}

#[test]
fn git_signs_with_a_key_of_the_provider_however_it_is_named() {
    let alice = Alice::with("");
    let public = repository(&alice);
    let names = [
        "git config user.signingkey ../home/key.pub".to_owned(),
        format!("git config user.signingkey \"key::$(cat {public})\""),
        "git config --unset user.signingkey; git config gpg.ssh.defaultKeyCommand 'ssh-add -L'"
            .to_owned(),
    ];
    for (index, name) in names.iter().enumerate() {
        let shown = alice.done(&format!(
            "cd repo && {name} && git commit -q --allow-empty -S -m {index} && git verify-commit HEAD \
             && git tag -s v{index} -m tag && git verify-tag v{index} && git log -1 --format=%G?%GS"
        ));
        assert_eq!(
            shown
                .matches("Good \"git\" signature for t@example.org")
                .count(),
            2,
            "{shown}"
        );
        assert!(shown.contains("Gt@example.org\n"), "{shown}");
    }
    assert_eq!(alice.purposes(), ["git"; 6]);
    // The public key alone verifies, without any agent.
    let changed = alice.agent("cd repo && git cat-file commit HEAD | sed s/Tester/Other/ | git hash-object -t commit -w --stdin | xargs git verify-commit");
    assert_ne!(changed.status, 0);
}

#[test]
fn many_commits_at_once_are_all_signed() {
    let alice = Alice::with("");
    repository(&alice);
    alice.done(
        "cd repo && git config user.signingkey ../home/key.pub && git commit -q --allow-empty -m first \
         && for i in $(seq 20); do git branch b$i && git worktree add -q ../tree$i b$i; done \
         && for i in $(seq 20); do (cd ../tree$i && git commit -q --allow-empty -S -m $i) & done; wait; \
         for i in $(seq 20); do git verify-commit b$i || exit 1; done",
    );
    assert_eq!(alice.purposes(), ["git"; 20]);
}

#[test]
fn a_namespace_that_is_not_granted_is_refused_and_both_ends_hear_why() {
    let alice = Alice::with(", allow: [git, \"file:reports\"]");
    alice.world.write("letter", "hello\n");
    let public = alice.world.text(".ssh/id_ed25519.pub");
    alice.done(&format!(
        "ssh-keygen -Y sign -n reports -f {public} letter && printf 'me ' >signers && cat {public} >>signers \
         && ssh-keygen -Y verify -n reports -f signers -I me -s letter.sig <letter && rm letter.sig"
    ));
    let refused = "the service does not sign `file:mail`, only `git`, `file:reports`; ask the operator to add it to `allow`";
    let ran = alice.agent(&format!("ssh-keygen -Y sign -n mail -f {public} letter"));
    assert_eq!(ran.status, 255, "{}", ran.stderr);
    for part in [
        format!("anklume ssh-agent: vault/commits: the provider reports: {refused}\n"),
        "agent refused operation".to_owned(),
    ] {
        assert!(ran.stderr.contains(&part), "{}", ran.stderr);
    }
    assert!(!alice.world.path("letter.sig").exists());
    assert_eq!(
        alice.purposes(),
        ["file:reports".to_owned(), format!("refused: {refused}")]
    );
    alice.world.log_is_intact();
}

#[test]
fn a_service_that_only_signs_files_signs_no_commit() {
    let alice = Alice::with(", allow: [\"file:reports\"]");
    repository(&alice);
    let ran = alice.agent("cd repo && git config user.signingkey ../home/key.pub && git commit -q --allow-empty -S -m x");
    assert_eq!(ran.status, 128, "{}", ran.stderr);
    assert!(
        ran.stderr
            .contains("does not sign `git`, only `file:reports`"),
        "{}",
        ran.stderr
    );
    assert!(
        ran.stderr.contains("agent refused operation"),
        "{}",
        ran.stderr
    );
}

#[test]
fn the_consoles_of_the_page_about_ssh_work() {
    let alice = Alice::with("");
    std::os::unix::fs::symlink(ANKLUME, alice.world.path("bin/anklume")).unwrap();
    alice.done(
        "git init -q repo && git config --global user.name Tester && git config --global user.email t@example.org",
    );
    let page = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/ssh.md");
    let page = std::fs::read_to_string(page).unwrap();
    let commands: Vec<&str> = page
        .lines()
        .filter_map(|line| line.strip_prefix("$ "))
        .collect();
    assert_eq!(commands.len(), 7, "{commands:?}");
    // Written as one would type them; what fails ends the script.
    let script = commands
        .join(" && ")
        .replace("git commit", "git commit --allow-empty");
    let script = format!("cd repo && PATH=\"$PWD/../bin:$PATH\" && {script}");
    let said = alice.done(&script);
    assert!(
        said.contains("Good \"git\" signature for t@example.org"),
        "{said}"
    );
}
