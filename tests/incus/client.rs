//! `anklume mcp list -i` and `mcp call -i`, from the host into machines.

use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustix::process::{Pid, Signal, kill_process};

use crate::harness::{ANKLUME, Anklume, Ran, copy_of_anklume};
use crate::project::Project;

/// Memory limit in KiB for a client and its `incus`, with the stacks of the many threads that Go starts under load.
const MEMORY: u32 = 512 * 1024;

/// A unique payload that does not compress.
fn bytes(count: usize) -> Vec<u8> {
    let mut state: u64 = 0x9e37_79b9_7f4a_7c15;
    let next = || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        state.to_be_bytes()[0]
    };
    std::iter::repeat_with(next).take(count).collect()
}

/// A run of `anklume mcp …` with these words, followed by these arguments.
fn mcp(words: &str, more: &[&str]) -> Anklume {
    Anklume::new()
        .args(["mcp"])
        .args(words.split(' '))
        .args(more.iter().copied())
}

#[track_caller]
fn is_unreachable(ran: &Ran, message: &str) {
    ran.is(
        4,
        "",
        &format!("error: Cannot reach MCP server: {message}\n"),
    );
}

/// The command in backticks at the end of a failure's help.
#[track_caller]
fn helpful_command(ran: &Ran) -> String {
    let (_, command) = ran.stderr.split_once("help: ").unwrap();
    let (_, command) = command.split_once('`').unwrap();
    command.trim_end().trim_end_matches('`').to_owned()
}

#[track_caller]
fn run_in_shell(command: &str) {
    let output = Command::new("sh").args(["-c", command]).output().unwrap();
    assert!(output.status.success(), "{command}: {output:?}");
}

#[test]
fn the_deployment_test_of_the_documentation_answers() {
    let project = Project::new();
    project.provider("signer");
    let message = r#"{"jsonrpc":"2.0","method":"tools/list","id":1,"params":{}}"#;
    let mut exec = Command::new("incus")
        .args(["exec", "signer", "--project", &project.name, "--"])
        .args(["/opt/anklume/anklume", "mcp", "serve"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    writeln!(exec.stdin.take().unwrap(), "{message}").unwrap();
    let output = exec.wait_with_output().unwrap();
    let answer: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((output.status.code(), &answer["id"]), (Some(0), &1.into()));
    assert_eq!(answer["result"]["tools"].as_array().unwrap().len(), 5);
}

#[test]
fn a_machine_is_found_listed_and_called() {
    let project = Project::new();
    let name = format!("{}-signer", project.name);
    project.provider(&name);
    let local = Anklume::new().args(["mcp", "list"]).run();
    let ran = mcp("list -i", &[&name]).run();
    ran.answers(&local.stdout);
    mcp("list -i", &[&name, "--project", &project.name])
        .run()
        .answers(&local.stdout);

    // A remote daemon that the user's configuration prefers is not used.
    let remote = "default-remote: other\nremotes:\n  other:\n    addr: https://127.0.0.1:1\n    protocol: incus\n";
    let ran = mcp("list -i", &[&name]).file(".config/incus/config.yml", remote);
    ran.run().answers(&local.stdout);

    let text = "bonjour\r\né \u{1b}[2J no newline";
    let content = format!("content={text}");
    let ran = mcp("call clipboard_set -i", &[&name, &content]).run();
    assert_eq!((ran.status, ran.stderr.as_str()), (0, ""), "{ran:?}");
    mcp("call clipboard_get -i", &[&name]).run().answers(text);
    let object = r#"{"content": "bonjour"}"#;
    let ran = mcp("call clipboard_set -i", &[&name, object]).run();
    assert_eq!(ran.status, 0, "{ran:?}");
    mcp("call clipboard_get -i", &[&name])
        .run()
        .answers("bonjour");

    let ran = mcp("call gpg_sign -i", &[&name, "data:=\"aGk=\""]).run();
    assert_eq!((ran.status, ran.stdout.as_str()), (1, ""), "{ran:?}");
    assert!(
        ran.stderr.starts_with("error: `gpg_sign` failed: "),
        "{ran:?}"
    );
    assert!(ran.stderr.contains("gpg"), "{ran:?}");
}

#[test]
fn files_of_any_size_go_in_and_come_out() {
    let project = Project::new();
    let name = format!("{}-box", project.name);
    project.provider(&name);
    project.exec(&name, "mkdir -p /srv/anklume/portal");
    // An empty file, one too large for a command-line argument, and one too large for a single call.
    for size in [0, 200 * 1024, 9 * 1024 * 1024 + 1] {
        let content = bytes(size);
        let path = format!("path=f{size}");
        let ran = mcp("call file_accept -i", &[&name, &path, "data=@big"])
            .file("big", &content)
            .memory(MEMORY)
            .run();
        assert_eq!((ran.status, ran.stderr.as_str()), (0, ""), "{ran:?}");
        let there = project.exec(&name, &format!("wc -c </srv/anklume/portal/f{size}"));
        assert_eq!(there.trim(), size.to_string());
        let ran = mcp("call file_provide -i", &[&name, &path])
            .memory(MEMORY)
            .run();
        assert_eq!((ran.status, ran.stderr.as_str()), (0, ""));
        assert!(ran.stdout == STANDARD.encode(&content), "{size}");
    }
    let ran = mcp("call file_accept -i", &[&name, "path=s", "data=-"])
        .stdin(bytes(9 * 1024 * 1024))
        .run();
    assert_eq!((ran.status, ran.stderr.as_str()), (0, ""), "{ran:?}");
    let ran = mcp(
        "call file_provide -i",
        &[&name, "path=s", "--format", "json"],
    )
    .run();
    let result: serde_json::Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!(result["structuredContent"]["size"], 9 * 1024 * 1024);
    let text = result["content"][0]["text"].as_str().unwrap();
    assert!(STANDARD.decode(text).unwrap() == bytes(9 * 1024 * 1024));
    let ran = mcp("call file_provide -i", &[&name, "path=nowhere"]).run();
    assert_eq!((ran.status, ran.stdout.as_str()), (1, ""), "{ran:?}");
    assert!(
        ran.stderr.starts_with("error: `file_provide` failed: "),
        "{ran:?}"
    );
}

#[test]
fn one_name_in_two_projects_must_be_told_apart() {
    let (one, other) = (Project::new(), Project::new());
    let name = format!("{}-twin", one.name);
    one.provider(&name);
    other.machine(&name);
    let mut projects = [one.name.as_str(), other.name.as_str()];
    projects.sort_unstable();
    let [first, second] = projects;
    let message = format!(
        "`{name}` is a machine in several projects: {first}, {second}\n  = help: choose one: `--project {first}` or `--project {second}`"
    );
    is_unreachable(&mcp("list -i", &[&name]).run(), &message);
    let ran = mcp("list -i", &[&name, "--project", &one.name]).run();
    assert_eq!(ran.stdout.lines().count(), 5, "{ran:?}");
    let ran = mcp("list -i", &[&name, "--project", &other.name]).run();
    let begin = format!(
        "error: Cannot reach MCP server: `/opt/anklume/anklume` does not exist in machine `{name}`\n"
    );
    assert!(ran.stderr.starts_with(&begin), "{ran:?}");
}

#[test]
fn a_machine_that_cannot_serve_says_why_and_what_to_do() {
    let project = Project::new();
    let name = format!("{}-box", project.name);
    let here = &project.name;
    project.machine(&name);

    let missing = mcp("list -i", &[&name]).run();
    let recipe = format!(
        "incus file push -p --mode 0755 --uid 0 --gid 0 {ANKLUME} {name}/opt/anklume/anklume --project {here}"
    );
    let message = format!(
        "`/opt/anklume/anklume` does not exist in machine `{name}`\n  = help: install this program there: `{recipe}`"
    );
    is_unreachable(&missing, &message);
    run_in_shell(&helpful_command(&missing));
    assert_eq!(mcp("list -i", &[&name]).run().status, 0);

    project.exec(&name, "chmod 0644 /opt/anklume/anklume");
    let locked = mcp("list -i", &[&name]).run();
    let message = format!(
        "`/opt/anklume/anklume` in machine `{name}` is not executable\n  = help: `incus exec {name} --project {here} -- chmod 0755 /opt/anklume/anklume`"
    );
    is_unreachable(&locked, &message);
    run_in_shell(&helpful_command(&locked));
    assert_eq!(mcp("list -i", &[&name]).run().status, 0);

    project.incus(&["pause", &name]);
    let frozen = mcp("list -i", &[&name]).run();
    let message =
        format!("machine `{name}` is frozen\n  = help: `incus resume {name} --project {here}`");
    is_unreachable(&frozen, &message);
    run_in_shell(&helpful_command(&frozen));
    assert_eq!(mcp("list -i", &[&name]).run().status, 0);

    project.incus(&["stop", "--force", &name]);
    let stopped = mcp("list -i", &[&name]).run();
    let message =
        format!("machine `{name}` is stopped\n  = help: `incus start {name} --project {here}`");
    is_unreachable(&stopped, &message);
    run_in_shell(&helpful_command(&stopped));
    assert_eq!(mcp("list -i", &[&name]).run().status, 0);
}

#[test]
fn a_name_that_means_no_machine_is_told_with_the_closest() {
    let project = Project::new();
    let name = format!("{}-box", project.name);
    project.incus(&["create", "-q", "bb", &name]);
    let wrong = format!("{}-bxo", project.name);
    let near = format!(
        "did you mean `{name}` (project `{}`)? `incus list --all-projects` shows all",
        project.name
    );
    let message = format!("no machine `{wrong}`\n  = help: {near}");
    is_unreachable(&mcp("list -i", &[&wrong]).run(), &message);
    let ran = mcp("list -i", &[&wrong, "--project", &project.name]).run();
    let message = format!(
        "no machine `{wrong}` in project `{}`\n  = help: {near}",
        project.name
    );
    is_unreachable(&ran, &message);
    let wrong = format!("{}x", project.name);
    let ran = mcp("list -i", &[&name, "--project", &wrong]).run();
    let message = format!(
        "no Incus project `{wrong}`\n  = help: did you mean `{}`?",
        project.name
    );
    is_unreachable(&ran, &message);
    for hostile in ["--help", "a b", "x:y", "../x", "é"] {
        let ran = mcp("list", &[&format!("--instance={hostile}")]).run();
        assert_eq!((ran.status, ran.stdout.as_str()), (4, ""), "{ran:?}");
        let begin = format!("error: Cannot reach MCP server: no machine `{hostile}`\n");
        assert!(ran.stderr.starts_with(&begin), "{ran:?}");
    }
}

#[test]
fn a_user_without_permission_is_told_so() {
    let folder = tempfile::tempdir().unwrap();
    let everyone = std::fs::Permissions::from_mode(0o755);
    std::fs::set_permissions(folder.path(), everyone).unwrap();
    // The user may not have access to the source folder.
    let program = folder.path().join("anklume");
    copy_of_anklume(&program);
    let output = Command::new("setpriv")
        .args(["--reuid=65534", "--regid=65534", "--clear-groups"])
        .arg(&program)
        .args(["mcp", "list", "-i", "box"])
        .current_dir(folder.path())
        .env_remove("INCUS_SOCKET")
        .output()
        .unwrap();
    let help = "run this as root or as a member of the group `incus-admin` (its members are root on this computer)";
    let begin = "error: Cannot reach MCP server: no permission to talk to Incus (socket `";
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(4));
    assert!(said.starts_with(begin), "{said}");
    assert!(said.ends_with(&format!("`)\n  = help: {help}\n")), "{said}");
}

#[test]
fn a_machine_with_another_program_in_its_place_cannot_hurt() {
    let project = Project::new();
    let name = format!("{}-evil", project.name);
    project.machine(&name);
    let script = |text: &str| {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), format!("#!/bin/sh\n{text}\n")).unwrap();
        project.push(file.path().to_str().unwrap(), &name);
    };
    script("printf 'last \\033[2J words' >&2; exit 5");
    let message = "the server ended without an answer (exit code 5); its last output:\n  | last \\u{1b}[2J words";
    is_unreachable(&mcp("list -i", &[&name]).run(), message);
    script("cat >/dev/zero");
    let message = "no answer within 2 s\n  = help: wait longer with `--timeout SECONDS`";
    is_unreachable(&mcp("list --timeout 2 -i", &[&name]).run(), message);
    let text = "exec yes | tr -d '\\n'";
    script(text);
    let ran = mcp("list --timeout 2 -i", &[&name]).memory(MEMORY).run();
    is_unreachable(&ran, message);
    script("exec /nowhere");
    let ran = mcp("list -i", &[&name]).run();
    let message = "`/opt/anklume/anklume` exists in machine";
    assert!(ran.stderr.contains(message), "{ran:?}");
}

#[test]
fn an_interrupted_call_leaves_nothing_in_the_machine() {
    let project = Project::new();
    let name = format!("{}-slow", project.name);
    project.machine(&name);
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "#!/bin/sh\nexec sleep 98765\n").unwrap();
    project.push(file.path().to_str().unwrap(), &name);
    let sleepers = || project.exec(&name, "ps | grep -c '[s]leep 98765' || true");
    let mut client = mcp("call x --timeout 60 -i", &[&name])
        .command()
        .stdin(Stdio::null())
        .spawn()
        .unwrap();
    until("it runs", || sleepers().trim() == "1");
    let id = Pid::from_raw(i32::try_from(client.id()).unwrap()).unwrap();
    kill_process(id, Signal::INT).unwrap();
    assert_eq!(client.wait().unwrap().code(), Some(130));
    until("it is gone", || sleepers().trim() == "0");
}

/// Waits for an event that has no deadline of its own.
#[track_caller]
fn until(what: &str, holds: impl Fn() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < Duration::from_secs(30), "not: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}
