//! Implements a subset of MCP: JSON-RPC 2.0, one message per line; [`crate::policy`] authorizes the calls.
//!
//! The methods are `initialize` or `server/discover`, `ping`, `tools/list` and `tools/call`.

pub(crate) mod client;
pub(crate) mod concurrency;
pub(crate) mod framing;
pub(crate) mod gateway;
pub(crate) mod helper;
pub(crate) mod launcher;
pub(crate) mod listen;
pub(crate) mod monitor;
pub(crate) mod policy_watcher;
pub(crate) mod recorder;
pub(crate) mod relay;
pub(crate) mod server;
pub(crate) mod throttle;
pub(crate) mod worker;

use std::time::Duration;

use crate::limits;

/// Maximum length of a message that a client or, by default, a server reads, in bytes, without the newline.
pub(crate) const LINE_MAX: usize = 16 * 1024 * 1024;
// The documented value.
const _: () = assert!(LINE_MAX as u64 == limits::MESSAGE_BYTES);
/// Maximum nesting depth of arrays and objects in one message.
pub(crate) const DEPTH_MAX: usize = 100;
/// Maximum number of values (strings, numbers, arrays, objects) in one message; no tool call needs even a hundred.
pub(crate) const VALUES_MAX: usize = 10_000;
/// Maximum number of values in an answer that a client parses: a list of a thousand services fits.
pub(crate) const ANSWER_VALUES_MAX: usize = 100_000;
/// Maximum length of a request id, in bytes.
pub(crate) const ID_MAX: usize = 1024;
/// Key in a tool's `_meta`: the tool behind a service's name.
pub(crate) const TOOL_KEY: &str = "anklume/tool";
/// Key in a tool's `_meta`: its arguments that take bytes, as base64.
pub(crate) const BASE64_KEY: &str = "anklume/base64";
/// Key in a tool's `_meta`: the public key of a service that signs for SSH, in one line.
pub(crate) const PUBLIC_KEY_KEY: &str = "anklume/public_key";
/// Key in the `_meta` of the operator's `tools/list`: `true` asks for the machine's services too.
pub(crate) const SERVICES_KEY: &str = "anklume/services";
/// Key in a call's `_meta`: true if the client wants a large payload only in the result's text.
pub(crate) const ONE_COPY_KEY: &str = "anklume/one_copy";
/// Key in the `_meta` of a result that comes from the policy, not from a tool.
pub(crate) const DECISION_KEY: &str = "anklume/decision";
/// Value of [`DECISION_KEY`] if the policy refuses an argument.
pub(crate) const REFUSED: &str = "refused";

/// Code of the "overloaded" error (JSON-RPC leaves -32000 to -32099 to servers).
pub(crate) const OVERLOADED: i32 = -32010;
/// Key in the data of an error: `false` if the call could not be logged.
pub(crate) const LOGGED: &str = "logged";
/// Beginning of the keys in `_meta` that only this program's servers set.
pub(crate) const OWN_KEYS: &str = "anklume/";

/// Limits of one connection.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ConnectionLimits {
    /// Maximum length of a request, in bytes, without the newline, unless a service sets another limit.
    pub(crate) line: usize,
    /// Maximum number of requests in flight; reading pauses at this limit.
    pub(crate) in_flight: usize,
    /// Maximum size of those requests, in bytes; reading pauses at this limit.
    pub(crate) in_flight_bytes: usize,
    /// Slots for running tools; each tool keeps its slots until its answer is written.
    pub(crate) running: u32,
    /// Time for running calls to finish after the last request.
    pub(crate) drain: Duration,
    /// Time for running calls to finish after the server is told to stop.
    pub(crate) stop: Duration,
    /// Interval between progress reports for a caller that asked for them.
    pub(crate) progress: Duration,
}

impl ConnectionLimits {
    pub(crate) const DEFAULT: Self = Self {
        line: LINE_MAX,
        in_flight: limits::IN_FLIGHT_CONNECTION,
        in_flight_bytes: 16 * 1024 * 1024,
        running: 8,
        drain: Duration::from_secs(60),
        stop: Duration::from_secs(20),
        progress: Duration::from_secs(2),
    };
}

/// Maximum length of another server's result that is passed on, in bytes: the official TypeScript clients close the
/// connection at a line of 10 MiB.
pub(crate) const RESULT_MAX: usize = 9 * 1024 * 1024;

/// Truncates a peer's text to 100 characters and escapes it, for an answer to the peer or for a log.
pub(crate) fn shown(text: &str) -> String {
    crate::text::shown(text, 100)
}
