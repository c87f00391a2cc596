//! One file is the whole program: it needs no loader, no libc, and no other file on the system.

use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use crate::harness::{ANKLUME, have};

/// The optimised program from `make build`.
const RELEASE: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/target/x86_64-unknown-linux-gnu/release/anklume"
);

/// The programs that must be static: the one under test, and the release build if it exists.
fn programs() -> Vec<&'static str> {
    let release = have("the release (`make build`)", Path::new(RELEASE).is_file());
    [Some(ANKLUME), release.then_some(RELEASE)]
        .into_iter()
        .flatten()
        .collect()
}

#[test]
fn the_program_asks_for_no_loader() {
    programs().into_iter().for_each(asks_for_no_loader);
}

fn asks_for_no_loader(program: &str) {
    let binary = std::fs::read(program).unwrap();
    assert_eq!(
        binary.get(..6).unwrap(),
        b"\x7fELF\x02\x01",
        "a 64-bit little-endian ELF file"
    );
    let at = usize::try_from(number(&binary, 32, 8)).unwrap();
    let size = usize::try_from(number(&binary, 54, 2)).unwrap();
    let count = usize::try_from(number(&binary, 56, 2)).unwrap();
    assert!(count > 0);
    let interpreter = 3;
    for header in 0..count {
        assert_ne!(
            number(&binary, at + header * size, 4),
            interpreter,
            "the program names a loader: it is not static"
        );
    }
}

#[test]
fn it_runs_in_an_empty_root() {
    let root = tempfile::tempdir().unwrap();
    if !have(
        "the right to change the root folder",
        in_root(root.path(), &["/nothing"], "").is_some(),
    ) {
        return;
    }
    for program in programs() {
        runs_alone(program, root.path());
    }
}

fn runs_alone(program: &str, root: &Path) {
    // A separate process writes the file: a child of another thread could inherit a descriptor open for writing.
    let copied = Command::new("cp").arg(program).arg(root).status().unwrap();
    assert!(copied.success());
    let version = in_root(root, &["/anklume", "-V"], "").unwrap();
    // A release may be of another commit.
    let shown = text(&version.stdout);
    assert!(
        version.status.success() && shown.starts_with("anklume "),
        "{version:?}"
    );

    // The one-line deployment test from the documentation.
    let message = "{\"jsonrpc\":\"2.0\",\"method\":\"tools/list\",\"id\":1,\"params\":{}}\n";
    let list = in_root(root, &["/anklume", "mcp", "serve"], message).unwrap();
    assert_eq!(list.status.code(), Some(0), "{list:?}");
    let answer: serde_json::Value = serde_json::from_slice(&list.stdout).unwrap();
    let names: Vec<&str> = answer
        .pointer("/result/tools")
        .unwrap()
        .as_array()
        .unwrap()
        .iter()
        .map(|tool| tool["name"].as_str().unwrap())
        .collect();
    assert_eq!(
        names,
        [
            "gpg_sign",
            "clipboard_get",
            "clipboard_set",
            "file_accept",
            "file_provide"
        ]
    );
}

/// Reads a little-endian number from the file.
fn number(file: &[u8], at: usize, width: usize) -> u64 {
    let bytes = file.get(at..at + width).unwrap();
    bytes
        .iter()
        .rev()
        .fold(0, |sum, byte| sum << 8 | u64::from(*byte))
}

/// Runs a program with `root` as its root folder and an empty environment; `None` if this machine does not allow it.
fn in_root(root: &Path, argv: &[&str], stdin: &str) -> Option<Output> {
    // As root, this is chroot(2); as another user, it needs a user namespace, which some machines forbid.
    let mut unshare = Command::new("unshare");
    unshare
        .args(["--user", "--map-root-user", "--root"])
        .arg(root)
        .args(argv);
    let mut chroot = Command::new("chroot");
    chroot.arg(root).args(argv);
    let mut command = if rustix::process::geteuid().is_root() {
        chroot
    } else {
        unshare
    };
    let mut child = command
        .env_clear()
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .ok()?;
    // Writing fails if the program exits without reading; its output shows what happened.
    let _ = child.stdin.take().unwrap().write_all(stdin.as_bytes());
    let output = child.wait_with_output().unwrap();
    // 127: changing the root folder worked, but that folder does not contain the program.
    let refused = output.status.code() != Some(127) && argv == ["/nothing"];
    (!refused).then_some(output)
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}
