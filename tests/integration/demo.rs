//! `make demo` runs to completion, shows everything that it promises, and leaves nothing behind.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::harness::{ANKLUME, have_program, scrub};

#[test]
fn the_demo_shows_the_main_job_and_leaves_nothing() {
    if !have_program("gpg") {
        return;
    }
    let home = tempfile::tempdir().unwrap();
    let mut demo = Command::new("sh");
    scrub(&mut demo, home.path());
    let output = demo
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/demo.sh"))
        .arg(ANKLUME)
        // A display that does not exist; the demo must not try to use it.
        .env("DISPLAY", ":4711")
        .env("WAYLAND_DISPLAY", "wayland-4711")
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let shown = String::from_utf8(output.stdout).unwrap();
    assert!(
        output.status.success(),
        "{shown}\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
    for expected in [
        "10 files: 10 created\nexit code 0\n",
        "nothing to do: 10 files up to date\nexit code 0\n",
        "error[unknown-consumer]: `pro-dve` is not a machine in this file\n",
        "allowed: `pro-dev` is a consumer of `file_sign` on `vault-signer` (infra.yml:9)\nexit code 0\n",
        "its consumers: work-dev\nexit code 1\n",
        "gpg: Good signature from \"Demo <demo@example.invalid>\"",
        "\n$ anklume mcp call clipboard_get\nbonjour\nexit code 0\n",
        "base64 -d\nminutes of the meeting\nexit code 0\n",
        "{\"jsonrpc\":\"2.0\",\"id\":1,\"result\":{\"tools\":[{\"name\":\"gpg_sign\"",
        "error: Unknown tool: clipboard\n",
        "  refused  pro-dev  clipboard (clipboard_get)  not a consumer\n",
        "  allowed  work-dev  file_sign (gpg_sign)  done, ",
        "\nintact: ",
    ] {
        assert!(shown.contains(expected), "{expected:?} is not in:\n{shown}");
    }

    let folder = shown
        .split("happens in ")
        .nth(1)
        .unwrap()
        .split_whitespace()
        .next()
        .unwrap();
    assert!(folder.starts_with("/tmp/anklume-demo."), "{folder}");
    assert!(!Path::new(folder).exists(), "{folder} is still there");
    // An agent needs a moment to exit after being told to.
    let deadline = Instant::now() + Duration::from_secs(30);
    while let Some(line) = running(folder) {
        assert!(Instant::now() < deadline, "still running: {line}");
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(
        std::fs::read_dir(home.path()).unwrap().count(),
        0,
        "nothing of the user's was touched"
    );
}

/// The command line of a process, if any process has this folder in it.
fn running(folder: &str) -> Option<String> {
    let processes = std::fs::read_dir("/proc").unwrap();
    // Most entries are not processes, and processes may exit during the search.
    let lines = processes.map(|process| {
        let line = std::fs::read(process.unwrap().path().join("cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&line).replace('\0', " ")
    });
    lines.into_iter().find(|line| line.contains(folder))
}
