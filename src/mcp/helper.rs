//! A process that runs a consumer's tools of one resource, beside the process that speaks with the consumer.
//!
//! What reads a stranger's bytes and what holds keys or a clipboard are two processes, each limited to its own part: the first
//! opens no socket and starts no program, the second decides again whether the call is granted. The server starts it when the
//! first asks for it, and only where the policy grants the consumer a tool of that resource.

mod client;
mod protocol;
mod serve;

use std::ffi::OsString;
use std::path::Path;

use crate::name::MachineName;
use crate::tool::Resource;

pub(crate) use client::{Connection, Helpers};
pub(crate) use serve::{Work, serve};

/// The command that the process runs; its stdin is the socket to the server, its stdout the socket to the consumer's process.
pub(crate) const COMMAND: &str = "mcp-helper";

/// The arguments of the process that runs `caller`'s tools of `resource` by the services file `services`.
pub(crate) fn arguments(
    caller: &MachineName,
    resource: Resource,
    services: &Path,
) -> Vec<OsString> {
    vec![
        COMMAND.into(),
        caller.as_str().into(),
        resource.as_str().into(),
        services.into(),
    ]
}
