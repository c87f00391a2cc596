//! Starts the process that serves one consumer, and tells it to end.

use std::ffi::OsString;
use std::path::Path;

use rustix::process::Signal;

use crate::name::MachineName;

/// The command that the process runs; its stdin is the socket to its server, its stdout the socket that consumers connect to.
pub(crate) const COMMAND: &str = "mcp-worker";
/// Accept no more connections, and end when those that are there have ended.
pub(crate) const STOP_ACCEPTING: Signal = Signal::USR1;
/// Read no more requests; the running calls are answered first.
pub(crate) const DRAIN: Signal = Signal::TERM;
/// End the running calls as well.
pub(crate) const ABORT: Signal = Signal::INT;

/// The variable by which the C library's allocator gives memory back as soon as it is free, and keeps none for each thread
/// (`man mallopt`): what a flood took, it does not keep.
pub(crate) const ALLOCATOR: (&str, &str) = (
    "GLIBC_TUNABLES",
    "glibc.malloc.arena_max=1:glibc.malloc.mmap_threshold=65536:glibc.malloc.trim_threshold=65536",
);

/// The arguments of the process that serves `caller` by the services file `services`.
pub(crate) fn arguments(caller: &MachineName, services: &Path, verbose: bool) -> Vec<OsString> {
    let mut arguments: Vec<OsString> =
        vec![COMMAND.into(), caller.as_str().into(), services.into()];
    if verbose {
        arguments.push("--verbose".into());
    }
    arguments
}
