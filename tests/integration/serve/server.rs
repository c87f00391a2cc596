//! A running server, and a conversation with it.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::path::Path;
use std::process::{Child, ChildStdin, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use serde_json::Value;

use crate::harness::Anklume;

/// Longer than any answer takes on the slowest machine; only a server that hangs exceeds it.
const PATIENCE: Duration = Duration::from_secs(60);

/// A running `anklume mcp serve`.
pub(super) struct Server {
    child: Child,
    stdin: Option<ChildStdin>,
    lines: Receiver<String>,
    folder: Anklume,
}

/// How a server ended.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Ended {
    /// The exit code; -1 if a signal ended the server.
    pub(super) status: i32,
    /// Lines of stdout that the test did not read.
    pub(super) rest: Vec<String>,
    /// All of stderr.
    pub(super) stderr: String,
}

impl Server {
    /// Starts a server with this command: `mcp serve`, possibly with more arguments.
    pub(super) fn start(anklume: Anklume) -> Self {
        let mut child = anklume
            .command()
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            for line in stdout.lines() {
                let Ok(line) = line else { return };
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        Self {
            stdin: child.stdin.take(),
            child,
            lines,
            folder: anklume,
        }
    }

    /// A server in an empty folder.
    pub(super) fn new() -> Self {
        Self::start(Anklume::new().args(["mcp", "serve"]))
    }

    /// The server's working folder.
    pub(super) fn path(&self) -> std::path::PathBuf {
        self.folder.path()
    }

    /// Its process ID.
    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Writes bytes.
    pub(super) fn write(&mut self, bytes: &[u8]) {
        self.stdin.as_mut().unwrap().write_all(bytes).unwrap();
    }

    /// Writes one line.
    pub(super) fn send(&mut self, line: impl AsRef<[u8]>) {
        self.write(line.as_ref());
        self.write(b"\n");
    }

    /// Reads the next line, unchanged.
    #[track_caller]
    pub(super) fn line(&self) -> String {
        self.lines
            .recv_timeout(PATIENCE)
            .expect("an answer in time")
    }

    /// Reads the next message.
    #[track_caller]
    pub(super) fn receive(&self) -> Value {
        let line = self.line();
        serde_json::from_str(&line).unwrap_or_else(|fault| panic!("{fault}: {line}"))
    }

    /// Writes one line, and reads the next message.
    #[track_caller]
    pub(super) fn ask(&mut self, line: impl AsRef<[u8]>) -> Value {
        self.send(line);
        self.receive()
    }

    /// The writer for requests, for use in another thread.
    pub(super) fn take_stdin(&mut self) -> ChildStdin {
        self.stdin.take().unwrap()
    }

    /// Its peak memory so far, in KiB.
    pub(super) fn peak_kib(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = status
            .lines()
            .find(|line| line.starts_with("VmHWM:"))
            .unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    }

    /// Closes the server's stdin.
    pub(super) fn close_stdin(&mut self) {
        self.stdin = None;
    }

    /// Sends a signal.
    pub(super) fn signal(&self, name: &str) {
        let status = std::process::Command::new("kill")
            .args([format!("-{name}"), self.pid().to_string()])
            .status()
            .unwrap();
        assert!(status.success());
    }

    /// Closes the server's stdin, and waits for it to exit.
    #[track_caller]
    pub(super) fn end(mut self) -> Ended {
        self.close_stdin();
        self.wait()
    }

    /// Waits for the server to exit, without closing its stdin.
    #[track_caller]
    pub(super) fn wait(mut self) -> Ended {
        let mut rest = Vec::new();
        loop {
            match self.lines.recv_timeout(PATIENCE) {
                Ok(line) => rest.push(line),
                Err(std::sync::mpsc::RecvTimeoutError::Disconnected) => break,
                Err(std::sync::mpsc::RecvTimeoutError::Timeout) => {
                    self.child.kill().unwrap();
                    panic!("the server does not end; so far: {rest:?}");
                }
            }
        }
        let mut stderr = String::new();
        let mut pipe = self.child.stderr.take().unwrap();
        pipe.read_to_string(&mut stderr).unwrap();
        let status = self.child.wait().unwrap().code().unwrap_or(-1);
        Ended {
            status,
            rest,
            stderr,
        }
    }

    /// Closes stdin, and asserts that the server exits with 0 and without further output on stdout or stderr.
    #[track_caller]
    pub(super) fn ends_quietly(self) {
        let quietly = Ended {
            status: 0,
            rest: Vec::new(),
            stderr: String::new(),
        };
        assert_eq!(self.end(), quietly);
    }
}

/// A temporary GnuPG home with one key, which has no passphrase; dropping it stops its agent.
pub(crate) struct Keyring {
    folder: tempfile::TempDir,
}

impl Keyring {
    /// Creates the home and the key.
    pub(crate) fn new() -> Self {
        let keyring = Self {
            folder: tempfile::tempdir().unwrap(),
        };
        keyring.gpg(&[
            "--batch",
            "--quiet",
            "--passphrase",
            "",
            "--quick-generate-key",
            "tester@example.org",
            "ed25519",
            "sign",
            "never",
        ]);
        keyring
    }

    /// The path of the GnuPG home.
    pub(crate) fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Returns whether a detached signature of `content` is good.
    pub(crate) fn verifies(&self, content: &[u8], signature: &str) -> bool {
        let folder = tempfile::tempdir().unwrap();
        let (signed, detached) = (folder.path().join("signed"), folder.path().join("detached"));
        std::fs::write(&signed, content).unwrap();
        std::fs::write(&detached, signature).unwrap();
        let args = [
            "--verify",
            detached.to_str().unwrap(),
            signed.to_str().unwrap(),
        ];
        self.run("gpg", &args)
    }

    #[track_caller]
    fn gpg(&self, args: &[&str]) {
        assert!(self.run("gpg", args), "gpg {args:?}");
    }

    fn run(&self, program: &str, args: &[&str]) -> bool {
        let ran = std::process::Command::new(program)
            .args(args)
            .env("GNUPGHOME", self.path())
            .output()
            .unwrap();
        ran.status.success()
    }
}

impl Drop for Keyring {
    fn drop(&mut self) {
        self.run("gpgconf", &["--kill", "all"]);
    }
}
