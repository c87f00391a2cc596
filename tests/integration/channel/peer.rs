//! A client that uses no library: it writes bytes to a socket, and reads lines from it.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;

use serde_json::{Value, json};

use super::world::PATIENCE;

/// One connection.
pub(super) struct Peer {
    reader: BufReader<UnixStream>,
    writer: UnixStream,
}

/// A call as one line.
pub(super) fn call(id: impl Into<Value>, name: &str, arguments: &Value) -> String {
    let params = json!({"name": name, "arguments": arguments});
    json!({"jsonrpc": "2.0", "id": id.into(), "method": "tools/call", "params": params}).to_string()
}

/// The cancellation of a request as one line.
pub(super) fn cancel(id: impl Into<Value>) -> String {
    let params = json!({"requestId": id.into()});
    json!({"jsonrpc": "2.0", "method": "notifications/cancelled", "params": params}).to_string()
}

impl Peer {
    /// Connects; every read and write has a time limit.
    #[track_caller]
    pub(super) fn connect(socket: &Path) -> Self {
        let writer = UnixStream::connect(socket).unwrap();
        writer.set_read_timeout(Some(PATIENCE)).unwrap();
        writer.set_write_timeout(Some(PATIENCE)).unwrap();
        Self {
            reader: BufReader::new(writer.try_clone().unwrap()),
            writer,
        }
    }

    /// Writes bytes.
    #[track_caller]
    pub(super) fn write(&mut self, bytes: &[u8]) {
        self.writer.write_all(bytes).unwrap();
    }

    /// Writes one line.
    #[track_caller]
    pub(super) fn send(&mut self, line: impl AsRef<[u8]>) {
        self.write(&[line.as_ref(), b"\n"].concat());
    }

    /// Reads the next line with its newline; empty once the server has closed the connection.
    #[track_caller]
    pub(super) fn line(&mut self) -> String {
        let mut line = String::new();
        match self.reader.read_line(&mut line) {
            Ok(_) => line,
            Err(fault) if fault.kind() == std::io::ErrorKind::ConnectionReset => String::new(),
            Err(fault) => panic!("no answer: {fault}"),
        }
    }

    /// Reads the next message.
    #[track_caller]
    pub(super) fn receive(&mut self) -> Value {
        let line = self.line();
        serde_json::from_str(&line).unwrap_or_else(|fault| panic!("{fault}: {line:?}"))
    }

    /// Writes one line, and reads the next message.
    #[track_caller]
    pub(super) fn ask(&mut self, line: impl AsRef<[u8]>) -> Value {
        self.send(line);
        self.receive()
    }

    /// Makes a call.
    #[track_caller]
    pub(super) fn call(&mut self, name: &str, arguments: &Value) -> Value {
        self.ask(call(1, name, arguments))
    }

    /// Requests the tool list.
    #[track_caller]
    pub(super) fn list(&mut self) -> Value {
        self.ask(r#"{"jsonrpc":"2.0","id":1,"method":"tools/list"}"#)
    }

    /// Reads a line in pieces of 64 KiB, with a pause before each.
    #[track_caller]
    pub(super) fn slowly(&mut self, pause: std::time::Duration) -> String {
        let mut line = Vec::new();
        while line.last() != Some(&b'\n') {
            std::thread::sleep(pause);
            let mut piece = vec![0; 64 * 1024];
            let read = self.reader.read(&mut piece).unwrap();
            assert!(read > 0, "the connection has ended");
            line.extend(&piece[..read]);
        }
        String::from_utf8(line).unwrap()
    }

    /// Reads until the connection ends.
    #[track_caller]
    pub(super) fn rest(&mut self) -> String {
        let mut rest = String::new();
        self.reader.read_to_string(&mut rest).unwrap();
        rest
    }

    /// Asserts that the connection is open and works.
    #[track_caller]
    pub(super) fn lives(&mut self) {
        let answer = self.ask(r#"{"jsonrpc":"2.0","id":"alive","method":"ping"}"#);
        assert_eq!(
            answer,
            json!({"jsonrpc": "2.0", "id": "alive", "result": {}})
        );
    }

    /// Half-closes the connection: no more requests follow.
    #[track_caller]
    pub(super) fn ends(&mut self) {
        self.writer.shutdown(std::net::Shutdown::Write).unwrap();
    }

    /// Asserts that the server closes the connection without another message.
    #[track_caller]
    pub(super) fn gets_closed(mut self) {
        let mut rest = Vec::new();
        match self.reader.read_to_end(&mut rest) {
            Ok(_) => {}
            Err(fault) if fault.kind() == std::io::ErrorKind::ConnectionReset => {}
            Err(fault) => panic!("it stays open: {fault}"),
        }
        assert_eq!(String::from_utf8_lossy(&rest), "");
    }
}
