//! A server from `servers.py` behind a socket, for the duration of a test.

use std::io::{BufRead as _, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

/// The script with the servers.
const SERVERS: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/tests/integration/client/servers.py"
);

/// A running server; dropping this value kills it.
pub(super) struct Server {
    child: Child,
    folder: tempfile::TempDir,
}

impl Server {
    /// Starts a server of this kind, and waits until it is listening.
    pub(super) fn start(kind: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut child = Command::new("python3")
            .args([SERVERS, kind])
            .arg(folder.path().join("far.sock"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap())
            .read_line(&mut line)
            .unwrap();
        assert_eq!(line, "ready\n", "{kind}");
        Self { child, folder }
    }

    /// The path of the server's socket.
    pub(super) fn socket(&self) -> String {
        self.folder.path().join("far.sock").to_str().unwrap().into()
    }

    /// The folder that contains the socket.
    pub(super) fn folder(&self) -> PathBuf {
        self.folder.path().to_owned()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
