//! Without `-i`, the server is a child of the client, and the tools are those of this computer.

use std::path::Path;
use std::process::{Command, Stdio};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::MEMORY;
use crate::harness::{Anklume, have_program, scrub};

/// More than fits in one call.
const LARGE: usize = 9 * 1024 * 1024 + 1;

/// This many bytes, in a sequence that repeats only every 251 bytes.
fn bytes(count: usize) -> Vec<u8> {
    (0_u8..=250).cycle().take(count).collect()
}

#[test]
fn the_five_tools_are_listed_in_order() {
    let ran = Anklume::new().args(["mcp", "list"]).run();
    assert_eq!((ran.status, ran.stderr.as_str()), (0, ""));
    let names: Vec<&str> = ran
        .stdout
        .lines()
        .filter_map(|line| line.split_whitespace().next())
        .collect();
    let five = [
        "gpg_sign",
        "clipboard_get",
        "clipboard_set",
        "file_accept",
        "file_provide",
    ];
    assert_eq!(names, five);
}

#[test]
fn an_unknown_tool_names_those_there_are() {
    let there =
        "available tools: gpg_sign, clipboard_get, clipboard_set, file_accept, file_provide";
    for arguments in [
        &["clipbord_get", "a=1"][..],
        &["clipbord_get"],
        &["clipbord_get", "{}"],
    ] {
        let ran = Anklume::new()
            .args(["mcp", "call"])
            .args(arguments.iter().copied())
            .run();
        let message = format!(
            "error: Unknown tool: clipbord_get\n  = help: did you mean `clipboard_get`? {there}\n"
        );
        ran.is(1, "", &message);
    }
    let ran = Anklume::new().args(["mcp", "call", "\u{1b}"]).run();
    let message = format!("error: Unknown tool: \\u{{1b}}\n  = help: {there}\n");
    ran.is(1, "", &message);
}

#[test]
fn files_of_any_size_go_in_and_come_out() {
    let portal = tempfile::tempdir().unwrap();
    let mcp = |words: &[&str]| {
        Anklume::new()
            .args(["mcp", "call"])
            .args(words.iter().copied())
            .env("ANKLUME_MCP_PORTAL", portal.path().to_str().unwrap())
            .memory(MEMORY)
    };
    for (path, size) in [("empty", 0), ("small", 1), ("large", LARGE)] {
        let content = bytes(size);
        let path = format!("path={path}");
        let ran = mcp(&["file_accept", &path, "data=@f"]).file("f", &content);
        let ran = ran.run();
        assert_eq!((ran.status, ran.stderr.as_str()), (0, ""));
        let ran = mcp(&["file_provide", &path]).run();
        assert_eq!((ran.status, ran.stderr.as_str()), (0, ""));
        assert!(ran.stdout == STANDARD.encode(&content), "{path}");
        // An existing file is never overwritten, not even piece by piece.
        let ran = mcp(&["file_accept", &path, "data=@f"]).file("f", "other");
        let ran = ran.run();
        assert_eq!((ran.status, ran.stdout.as_str()), (1, ""), "{ran:?}");
    }
    let object = format!(
        r#"{{"path":"object","data":"{}"}}"#,
        STANDARD.encode(bytes(LARGE))
    );
    let ran = mcp(&["file_accept", "-"]).stdin(object).run();
    assert_eq!((ran.status, ran.stderr.as_str()), (0, ""));
    assert!(std::fs::read(portal.path().join("object")).unwrap() == bytes(LARGE));
    // A caller that asks for one piece gets only that piece.
    let words = ["file_provide", "path=large", "offset=1", "length=3"];
    let note = format!("note: 3 of {LARGE} bytes; the rest begins at offset 4\n");
    mcp(&words).run().is(0, &STANDARD.encode([1, 2, 3]), &note);
    // A piece alone would be lost with the connection.
    let ran = mcp(&["file_accept", "path=piece", "data=-", "offset=0"]).run();
    let message = "error: a transfer in pieces ends with the connection, and so with this command\n  = help: leave out \
        `offset` and `final`: large content is sent in pieces automatically\n";
    ran.is(2, "", message);
}

#[test]
fn a_temporary_file_is_made_only_for_what_comes_in_pieces_and_its_folder_is_named() {
    let portal = tempfile::tempdir().unwrap();
    std::fs::write(portal.path().join("small"), "x").unwrap();
    std::fs::write(portal.path().join("large"), bytes(LARGE)).unwrap();
    let fetch = |name: &str, folder: &str| {
        let path = format!("path={name}");
        let run = Anklume::new().args(["mcp", "call", "file_provide", &path]);
        run.env("ANKLUME_MCP_PORTAL", portal.path().to_str().unwrap())
            .env("TMPDIR", folder)
            .run()
    };
    fetch("small", "/nowhere").is(0, &STANDARD.encode("x"), "");
    let ran = fetch("large", "/nowhere");
    assert_eq!((ran.status, ran.stdout.as_str()), (1, ""));
    assert!(
        ran.stderr.starts_with(
            "error: the content cannot be stored: cannot create a temporary file in `/nowhere` ("
        ) && ran.stderr.contains("set `TMPDIR` to a writable folder"),
        "{}",
        ran.stderr
    );
    // The folder of the help's command works.
    let ran = fetch("large", portal.path().to_str().unwrap());
    assert_eq!((ran.status, ran.stderr.as_str()), (0, ""));
}

#[test]
fn a_signature_over_content_of_any_size_verifies() {
    if !have_program("gpg") {
        return;
    }
    let keyring = Keyring::new();
    for size in [2, LARGE] {
        let ran = Anklume::new()
            .file("f", bytes(size))
            .args(["mcp", "call", "gpg_sign", "data=@f"])
            .env("GNUPGHOME", keyring.home())
            .run();
        assert_eq!((ran.status, ran.stderr.as_str()), (0, ""));
        std::fs::write(ran.folder.path().join("f.asc"), &ran.stdout).unwrap();
        keyring.gpg(&["--verify", "f.asc", "f"], ran.folder.path());
    }
}

#[test]
fn a_folder_of_keys_that_is_not_there_is_said_to_be_that() {
    let uid = rustix::process::geteuid();
    for (variable, path, what) in [
        ("GNUPGHOME", "missing", "a folder that does not exist"),
        ("GNUPGHOME", "file", "something that is not a folder"),
        ("GNUPGHOME", "file/keys", "a folder that cannot be reached"),
        ("HOME", "missing", "a folder that does not exist"),
    ] {
        let run =
            Anklume::new()
                .file("file", "")
                .args(["mcp", "call", "gpg_sign", "data:=\"aGk=\""]);
        let path = run.path().join(path);
        let ran = run.env(variable, path.to_str().unwrap()).run();
        let said = format!(
            "error: `gpg_sign` failed: `{variable}` names {what} on the provider, so gpg has no keys there; \
             create that folder for the server's user (uid {uid}), or start the server with `GNUPGHOME` set to its key folder\n"
        );
        ran.is(1, "", &said);
    }
}

/// A temporary keyring with one key; dropping it stops its agent.
struct Keyring(tempfile::TempDir);

impl Keyring {
    fn new() -> Self {
        let keyring = Self(tempfile::tempdir().unwrap());
        let key = [
            "--quick-generate-key",
            "test@example.org",
            "ed25519",
            "sign",
            "never",
        ];
        let words = [&["--batch", "--passphrase", ""], &key[..]].concat();
        keyring.gpg(&words, keyring.0.path());
        keyring
    }

    fn home(&self) -> &str {
        self.0.path().to_str().unwrap()
    }

    #[track_caller]
    fn gpg(&self, words: &[&str], folder: &Path) {
        let output = self.command("gpg").args(words).current_dir(folder).output();
        let output = output.unwrap();
        assert!(output.status.success(), "{output:?}");
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        scrub(&mut command, self.0.path());
        command.env("GNUPGHOME", self.home()).stdin(Stdio::null());
        command
    }
}

impl Drop for Keyring {
    fn drop(&mut self) {
        let _ = self.command("gpgconf").args(["--kill", "all"]).output();
    }
}
