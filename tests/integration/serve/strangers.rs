//! Third-party clients, each with its own command line, and the official conformance suite.

use std::collections::BTreeSet;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::harness::{ANKLUME, have, have_program, python, scrub};

/// A program from a package in `target/node`, run by node.
pub(crate) fn node_program(package: &str, file: &str) -> Option<(&'static str, PathBuf)> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("target/node/node_modules")
        .join(package)
        .join(file);
    let there = have(&format!("{package} (target/node)"), path.exists());
    (there && have_program("node")).then_some(("node", path))
}

/// Runs a client, and returns its output.
fn said(client: &mut Command, folder: &Path) -> String {
    scrub(client, folder);
    let ran = client.output().unwrap();
    let said = String::from_utf8_lossy(&ran.stdout).into_owned();
    let errors = String::from_utf8_lossy(&ran.stderr);
    assert!(ran.status.success(), "{client:?}: {said}{errors}");
    said
}

/// Makes a client list the tools, set the clipboard and read it again, each time with a new server.
fn shares_a_clipboard(client: impl Fn(&[String], Call<'_>) -> Command) {
    let folder = tempfile::tempdir().unwrap();
    // Some clients do not pass the environment on to the programs that they start.
    let runtime = format!("XDG_RUNTIME_DIR={}", folder.path().display());
    let server = ["env", &runtime, ANKLUME, "mcp", "serve"].map(str::to_owned);
    let listed = said(&mut client(&server, Call::List), folder.path());
    let listed = listed.replace('-', "_");
    assert!(
        listed.contains("clipboard_get") && listed.contains("file_accept"),
        "{listed}"
    );
    said(
        &mut client(&server, Call::Set("bonjour \u{e9}t\u{e9}")),
        folder.path(),
    );
    let got = said(&mut client(&server, Call::Get), folder.path());
    // Unchanged, or escaped in JSON.
    assert!(
        got.contains("bonjour \u{e9}t\u{e9}") || got.contains("bonjour \\u00e9t\\u00e9"),
        "{got}"
    );
}

/// The task of a client.
enum Call<'a> {
    List,
    Set(&'a str),
    Get,
}

#[test]
fn the_inspector_s_command_line() {
    let package = "@modelcontextprotocol/inspector";
    let Some((node, program)) = node_program(package, "clients/launcher/build/index.js") else {
        return;
    };
    shares_a_clipboard(|server, call| {
        let mut command = Command::new(node);
        command.arg(&program).arg("--cli").args(server);
        match call {
            Call::List => command.args(["--method", "tools/list"]),
            Call::Set(text) => command
                .args(["--method", "tools/call", "--tool-name", "clipboard_set"])
                .args(["--tool-arg", &format!("content={text}")]),
            Call::Get => command.args(["--method", "tools/call", "--tool-name", "clipboard_get"]),
        };
        command
    });
}

#[test]
fn mcporter() {
    let Some((node, program)) = node_program("mcporter", "dist/cli.js") else {
        return;
    };
    shares_a_clipboard(|server, call| {
        let mut command = Command::new(node);
        command.arg(&program);
        let line = server.join(" ");
        match call {
            Call::List => command.args(["list", "--stdio", &line]),
            Call::Set(text) => command
                .args(["call", "--stdio", &line, "clipboard_set"])
                .arg(format!("content={text}")),
            Call::Get => command.args([
                "call",
                "--stdio",
                &line,
                "clipboard_get",
                "--output",
                "json",
            ]),
        };
        command
    });
}

#[test]
fn mcp2cli() {
    let Some(program) = python("mcp2cli") else {
        return;
    };
    shares_a_clipboard(|server, call| {
        let mut command = Command::new(&program);
        command.args(["--mcp-stdio", &server.join(" ")]);
        match call {
            Call::List => command.arg("--list"),
            Call::Set(text) => command.args(["clipboard-set", "--content", text]),
            Call::Get => command.arg("clipboard-get"),
        };
        command
    });
}

#[test]
fn fastmcp() {
    let Some(program) = python("fastmcp") else {
        return;
    };
    shares_a_clipboard(|server, call| {
        let mut command = Command::new(&program);
        let line = server.join(" ");
        match call {
            Call::List => command.args(["list", "--command", &line]),
            Call::Set(text) => command
                .args(["call", "--command", &line, "--target", "clipboard_set"])
                .args([
                    "--input-json",
                    &serde_json::json!({"content": text}).to_string(),
                ]),
            Call::Get => command.args([
                "call",
                "--command",
                &line,
                "--target",
                "clipboard_get",
                "--json",
            ]),
        };
        command
    });
}

/// The server scenarios that must pass: those for the features that anklume or the bridge supports.
const CONFORMS: [&str; 5] = [
    "dns-rebinding-protection",
    "server-initialize",
    "ping",
    "tools-list",
    "server-sse-multiple-streams",
];
/// The scenarios that must fail because anklume lacks their features: logging, completion, resources, prompts,
/// questions to the client, and the suite's own tools.
const DOES_NOT: [&str; 25] = [
    "completion-complete",
    "elicitation-sep1034-defaults",
    "elicitation-sep1330-enums",
    "logging-set-level",
    "prompts-get-embedded-resource",
    "prompts-get-simple",
    "prompts-get-with-args",
    "prompts-get-with-image",
    "prompts-list",
    "resources-list",
    "resources-read-binary",
    "resources-read-text",
    "resources-subscribe",
    "resources-templates-read",
    "resources-unsubscribe",
    "tools-call-audio",
    "tools-call-elicitation",
    "tools-call-embedded-resource",
    "tools-call-error",
    "tools-call-image",
    "tools-call-mixed-content",
    "tools-call-sampling",
    "tools-call-simple-text",
    "tools-call-with-logging",
    "tools-call-with-progress",
];

#[test]
fn the_official_conformance_suite_passes_where_we_speak_and_nowhere_else() {
    let suite = node_program("@modelcontextprotocol/conformance", "dist/index.js");
    let (Some((node, suite)), Some(python)) = (suite, python("python")) else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let mut bridge = Command::new(python);
    scrub(&mut bridge, folder.path());
    let mut bridge = bridge
        .arg(concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/tests/clients/bridge.py"
        ))
        .args([ANKLUME, "mcp", "serve"])
        .env("XDG_RUNTIME_DIR", folder.path())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut url = String::new();
    BufReader::new(bridge.stdout.take().unwrap())
        .read_line(&mut url)
        .unwrap();
    let mut command = Command::new(node);
    scrub(&mut command, folder.path());
    command.arg(suite).args(["server", "--url", url.trim()]);
    let ran = command.current_dir(folder.path()).output().unwrap();
    // The bridge exits when its stdin ends.
    drop(bridge.stdin.take());
    assert!(bridge.wait().unwrap().success());
    let said = String::from_utf8_lossy(&ran.stdout);
    let (_, summary) = said
        .split_once("=== SUMMARY ===")
        .unwrap_or_else(|| panic!("{said}"));
    let marked = |mark: &str| -> BTreeSet<&str> {
        let lines = summary.lines().filter_map(|line| line.strip_prefix(mark));
        lines
            .filter_map(|line| Some(line.split_once(':')?.0))
            .collect()
    };
    assert_eq!(marked("\u{2713} "), BTreeSet::from(CONFORMS), "{said}");
    assert_eq!(marked("\u{2717} "), BTreeSet::from(DOES_NOT), "{said}");
}
