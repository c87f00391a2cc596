//! The user's own text around the managed block survives, whatever it contains, or the run refuses and says where.

use super::{FILES_OF_ONE, HEAD, ONE, QUICK_START, again, tree};
use crate::harness::Anklume;

const FILE: &str = "host_vars/work-dev.yml";

/// The managed block of [`FILE`], from its first line to its last.
fn block() -> String {
    let ran = Anklume::new().infra(ONE).args(["sync"]).run();
    let text = ran.read(FILE);
    let (head, _) = text.split_once("\n\n").unwrap();
    head.strip_prefix("---\n").unwrap().to_owned()
}

/// An older block with outdated contents.
fn old_block() -> String {
    block().replace("instance_description: \"\"", "instance_description: old")
}

#[test]
fn user_text_around_the_block_is_kept_to_the_byte() {
    let (old, new) = (old_block(), block());
    assert_ne!(old, new);
    for (before, after) in [
        ("---\n", "\n\n# Your custom variables below:\nx: 1\n"),
        ("---\n", "\n\nno_newline_at_the_end: 1"),
        ("---\n", ""),
        ("", "\n"),
        ("---\nbefore: 1\n\n", "\nafter: 2\n"),
        ("\u{feff}---\n", "\nx: 1\n"),
        ("%YAML 1.1\n# a comment\n---\n", "\nx: 1\n...\n"),
        (
            "---\n",
            "\nwin: C:\\new\\table\ndigits: \\d+\ngroup: \\1 \\g<0> $1 ${x} &\n",
        ),
        (
            "---\n",
            "\nx: \"a\\n# === END MANAGED ===\\nb\"\ny: |\n  # === MANAGED BY infra.yml ===\n",
        ),
        (
            "---\n",
            "\n# mine ends with # === END MANAGED ===\n# === END MANAGED ===\n",
        ),
        (
            "---\n",
            "\nsecret: !vault |\n  $ANSIBLE_VAULT;1.1;AES256\n  3662\nraw: !unsafe '{{ x }}'\n",
        ),
        (
            "---\n",
            "\nbase: &b {x: 1}\nmore:\n  <<: *b\n  y: 012\ntime: 12:30:45\nno: off\n",
        ),
        ("---\n", "\nx: é 日本語 🎉\n"),
    ] {
        let file = |block: &str| format!("{before}{block}{after}");
        let first = Anklume::new()
            .infra(ONE)
            .file(FILE, file(&old))
            .args(["sync"])
            .run();
        assert_eq!(
            (first.status, first.stderr.as_str()),
            (0, ""),
            "{before:?} {after:?}"
        );
        assert_eq!(first.read(FILE), file(&new));
        let second = again(first, []).run();
        second.answers("nothing to do: 4 files up to date\n");
        assert_eq!(second.read(FILE), file(&new));
    }
}

#[test]
fn a_file_with_windows_line_ends_keeps_them() {
    let file = |block: &str| format!("---\n{block}\n\nx: 1\n").replace('\n', "\r\n");
    let ran = Anklume::new()
        .infra(ONE)
        .file(FILE, file(&old_block()))
        .args(["sync"])
        .run();
    assert_eq!((ran.status, ran.stderr.as_str()), (0, ""));
    assert_eq!(ran.read(FILE), file(&block()));
}

#[test]
fn a_file_without_a_block_gets_one_and_stays_one_document() {
    let block = block();
    for (own, expected) in [
        ("x: 1\n", format!("---\n{block}\n\nx: 1\n")),
        ("---\nx: 1", format!("---\n{block}\n\nx: 1")),
        (
            "# mine\n---\nx: 1\n",
            format!("# mine\n---\n{block}\n\nx: 1\n"),
        ),
        (
            "\u{feff}---\nx: 1\n",
            format!("\u{feff}---\n{block}\n\nx: 1\n"),
        ),
        (
            "",
            format!("---\n{block}\n\n# Your custom variables below:\n"),
        ),
    ] {
        let first = Anklume::new()
            .infra(ONE)
            .file(FILE, own)
            .args(["sync"])
            .run();
        assert_eq!((first.status, first.stderr.as_str()), (0, ""), "{own:?}");
        assert_eq!(first.read(FILE), expected);
        again(first, [])
            .run()
            .answers("nothing to do: 4 files up to date\n");
    }
}

#[test]
fn a_file_that_cannot_be_kept_right_is_refused_with_its_line_and_nothing_is_written() {
    let block = block();
    let head = "---\n# === MANAGED BY infra.yml ===\n";
    for (own, message) in [
        (
            format!("{head}instance_name: x\n"),
            ":2: the managed block has no end: the line `# === END MANAGED ===` is missing",
        ),
        (
            format!("{head}x: 1\n---\n{block}\n"),
            ":5: a second managed block begins, but the one at line 2 has not ended",
        ),
        (
            format!("---\n{block}\nx: 1\n{block}\n"),
            ":14: `instance_name` is declared by infra.yml and here again",
        ),
        (
            format!("---\n{block}\n\ninstance_ip: 10.0.0.1\nx: 1\ninstance_type: vm\n"),
            ":14: `instance_type` is declared by infra.yml and here again",
        ),
        (
            format!("---\n{block}\n\nx: [1\n"),
            "your own text around the managed block is not readable as one YAML document",
        ),
        (
            format!("---\n{block}\n\nx: 1\nx: 2\n"),
            "duplicate entry with key \"x\"",
        ),
        (
            format!("---\n{block}\n---\nx: 1\n"),
            "contains a second YAML document",
        ),
        (
            "--- {x: 1}\n".to_owned(),
            ":1: the document begins on the same line as its `---`",
        ),
        ("- x\n".to_owned(), "is not a map of variables"),
        (
            "x: \u{1b}[2J\n".to_owned(),
            "is not readable as one YAML document",
        ),
    ] {
        let ran = Anklume::new()
            .infra(ONE)
            .file(FILE, &own)
            .args(["sync"])
            .run();
        assert_eq!((ran.status, ran.stdout.as_str()), (1, ""), "{own:?}");
        assert!(
            ran.stderr.starts_with("error: host_vars/work-dev.yml:"),
            "{}",
            ran.stderr
        );
        assert!(ran.stderr.contains(message), "{own:?}: {}", ran.stderr);
        assert!(ran.stderr.contains("\n  = help: "), "{}", ran.stderr);
        assert_eq!(ran.stderr.lines().count(), 2, "{}", ran.stderr);
        assert!(!ran.stderr.contains('\u{1b}'));
        let left = tree(ran.folder.path());
        assert_eq!(left.len(), 1);
        assert_eq!(left[FILE], own.as_bytes());
    }
}

#[test]
fn all_files_at_fault_are_named_at_once() {
    let open = format!("{HEAD}x: 1\n");
    let ran = Anklume::new()
        .infra(QUICK_START)
        .file("host_vars/work-dev.yml", &open)
        .file("host_vars/pro-dev.yml", &open)
        .args(["sync"])
        .run();
    assert_eq!((ran.status, ran.stdout.as_str()), (1, ""));
    let faults: Vec<_> = ran
        .stderr
        .lines()
        .filter(|line| line.starts_with("error: "))
        .collect();
    assert!(
        faults[0].starts_with("error: host_vars/work-dev.yml:2: "),
        "{}",
        ran.stderr
    );
    assert!(
        faults[1].starts_with("error: host_vars/pro-dev.yml:2: "),
        "{}",
        ran.stderr
    );
}

#[test]
fn text_that_is_not_utf_8_is_refused() {
    let ran = Anklume::new()
        .infra(ONE)
        .file(FILE, b"x: \xff\n")
        .args(["sync"])
        .run();
    ran.is(
        1,
        "",
        "error: `host_vars/work-dev.yml` is not UTF-8: first invalid byte in line 1, at position 4 of the file\n  = help: save the file as UTF-8\n",
    );
    assert_eq!(tree(ran.folder.path()).len(), 1);
    assert_eq!(FILES_OF_ONE.len(), 4);
}
