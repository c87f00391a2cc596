//! A connection over a channel, starting at the consumer's own socket.

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use serde_json::{Value, json};

use crate::world::World;

/// Maximum time to wait for an answer.
const TIMEOUT: Duration = Duration::from_secs(60);

/// A connection that stays open.
pub(crate) struct Connection {
    stream: BufReader<UnixStream>,
    last: u64,
}

impl Connection {
    /// Connects the machine `{b}-NAME` to `{a}-signer`, and completes the handshake.
    #[track_caller]
    pub(crate) fn open(world: &World, consumer: &str) -> Self {
        let first = world.first(1, consumer);
        let socket = format!(
            "/proc/{first}/root/srv/anklume/mcp/{}.sock",
            world.machine(0, "signer")
        );
        Self::at(&socket)
    }

    /// Connects to a socket, and completes the handshake.
    #[track_caller]
    pub(crate) fn at(socket: &str) -> Self {
        let stream = UnixStream::connect(socket).unwrap();
        stream.set_read_timeout(Some(TIMEOUT)).unwrap();
        stream.set_write_timeout(Some(TIMEOUT)).unwrap();
        let mut connection = Self {
            stream: BufReader::new(stream),
            last: 0,
        };
        let client = json!({"name": "test", "version": "1"});
        let hello =
            json!({"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": client});
        let answer = connection.ask("initialize", &hello);
        assert_eq!(
            answer["result"]["serverInfo"]["name"], "anklume",
            "{answer}"
        );
        connection.send(&json!({"jsonrpc": "2.0", "method": "notifications/initialized"}));
        connection
    }

    fn send(&mut self, message: &Value) {
        writeln!(self.stream.get_mut(), "{message}").unwrap();
    }

    /// Sends a request and returns its answer.
    #[track_caller]
    pub(crate) fn ask(&mut self, method: &str, params: &Value) -> Value {
        self.last += 1;
        let id = self.last;
        self.send(&json!({"jsonrpc": "2.0", "id": id, "method": method, "params": params}));
        loop {
            let mut line = String::new();
            assert!(
                self.stream.read_line(&mut line).unwrap() > 0,
                "the connection is closed"
            );
            let answer: Value = serde_json::from_str(&line).unwrap();
            if answer["id"] == id {
                return answer;
            }
        }
    }

    /// Makes a call, which must not fail, and returns its result.
    #[track_caller]
    pub(crate) fn call(&mut self, service: &str, arguments: &Value) -> Value {
        let answer = self.ask(
            "tools/call",
            &json!({"name": service, "arguments": arguments}),
        );
        assert_eq!(answer["result"]["isError"], false, "{answer}");
        answer["result"].clone()
    }

    /// Returns whether the other end closes the connection.
    pub(crate) fn is_closed(&mut self) -> bool {
        let mut rest = String::new();
        self.stream.read_line(&mut rest).unwrap_or_default() == 0
    }

    /// The listed services.
    #[track_caller]
    pub(crate) fn services(&mut self) -> Vec<String> {
        let answer = self.ask("tools/list", &json!({}));
        let tools = answer["result"]["tools"].as_array().unwrap();
        let names = tools
            .iter()
            .map(|tool| tool["name"].as_str().unwrap().to_owned());
        names.collect()
    }
}
