//! What of MCP anklume speaks: JSON-RPC 2.0, one message a line, `initialize` or `server/discover`,
//! `ping`, `tools/list`, `tools/call`; and the limits of both ends.
//!
//! Nothing here decides who may call what; that is [`crate::policy`].

pub(crate) mod client;
pub(crate) mod wire;

/// Longest message that a server or a client reads, in bytes without its newline:
/// a payload of 8 MiB in base64, and its frame.
pub(crate) const LINE_MAX: usize = 16 * 1024 * 1024;
