//! The child process that parses machine output: it has no privileges and little memory, and nothing else is at risk.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::process::{Child, Command, Stdio};

use crate::harness::{ANKLUME, have};

struct Reader {
    child: Child,
    answers: BufReader<std::process::ChildStdout>,
}

impl Drop for Reader {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Reader {
    fn new() -> Self {
        let mut child = Command::new(ANKLUME)
            .arg("foreign-reader")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let answers = BufReader::new(child.stdout.take().unwrap());
        Self { child, answers }
    }

    /// Returns the reader's answer to this text; `None` if it has exited.
    fn ask(&mut self, kind: &str, text: &[u8]) -> Option<String> {
        let bytes = text.len();
        let line = format!("{{\"kind\":{kind},\"bytes\":{bytes}}}\n");
        let mut stdin = self.child.stdin.as_ref().unwrap();
        // A reader that has exited reads nothing more.
        let _ = stdin
            .write_all(line.as_bytes())
            .and_then(|()| stdin.write_all(text));
        let mut line = String::new();
        self.answers.read_line(&mut line).unwrap();
        let answered: serde_json::Value = serde_json::from_str(&line).ok()?;
        let Some(bytes) = answered.get("bytes")?.as_u64() else {
            return Some("none".to_owned());
        };
        let mut answer = String::new();
        (&mut self.answers)
            .take(bytes)
            .read_to_string(&mut answer)
            .unwrap();
        Some(answer)
    }
}

#[test]
fn what_machines_say_is_read_without_rights() {
    if !have("root", rustix::process::geteuid().is_root()) {
        return;
    }
    let mut reader = Reader::new();
    assert_eq!(reader.ask("\"status\"", b"{}").unwrap(), "none");
    let status = format!("/proc/{}/status", reader.child.id());
    let status = std::fs::read_to_string(status).unwrap();
    let has = |line: &str| {
        let line = line.replace(' ', "\t");
        assert!(
            status.lines().any(|one| one.trim_end() == line),
            "{line}: {status}"
        );
    };
    has("Uid: 65534 65534 65534 65534");
    has("Gid: 65534 65534 65534 65534");
    has("Groups:");
    has("CapEff: 0000000000000000");
    has("CapPrm: 0000000000000000");
    has("Seccomp: 2");
    has("NoNewPrivs: 1");
    let limits = format!("/proc/{}/limits", reader.child.id());
    let limits = std::fs::read_to_string(limits).unwrap();
    let data = limits
        .lines()
        .find(|line| line.starts_with("Max data size"));
    let data: Vec<&str> = data.unwrap().split_whitespace().collect();
    assert_eq!(data[3..5], ["134217728", "134217728"]);
}

#[test]
fn it_answers_with_what_it_wrote_itself_or_ends() {
    let mut reader = Reader::new();
    let said = r#"{"digest": "d", "refused": null, "failed": ["a", 1], "more": [[]]}"#;
    assert_eq!(
        reader.ask("\"status\"", said.as_bytes()).unwrap(),
        r#"{"digest":"d","refused":null,"failed":["a"],"unlogged":null,"confinement":null}"#
    );
    let deep = [b"[".repeat(1_000_000), b"]".repeat(1_000_000)].concat();
    for kind in ["status", "identity", "report", "offered"] {
        let kind = format!("\"{kind}\"");
        for text in [&deep[..], b"", b"\xff", b"null", b"[1]"] {
            assert_eq!(reader.ask(&kind, text).unwrap(), "none", "{kind}");
        }
    }
    // Empty lines are faults; they are counted, but not kept.
    assert_eq!(reader.ask(r#"{"log":null}"#, b"").unwrap(), "");
    assert_eq!(
        reader
            .ask("\"log_file\"", &vec![b'\n'; 32 * 1024 * 1024])
            .unwrap(),
        ""
    );
    let seen = reader.ask("\"log_end\"", b"").unwrap();
    assert!(seen.contains("\"faults\":33554432,"), "{seen}");
    // More than its memory limit allows.
    assert_eq!(
        reader.ask("\"status\"", &vec![b' '; 200 * 1024 * 1024]),
        None
    );
}
