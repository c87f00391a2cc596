//! Selects and opens the route to a machine: this program's own server, `incus exec`, or a socket.
//!
//! Opens the way and ends what it started. What goes over it is [`crate::mcp`]'s matter.

mod command;
mod open;
mod process;
mod program;
mod remote_exec;
mod route;
mod unreachable;

pub(crate) use command::{LOCAL_REMOTE, incus_exec, shell_line, this_program};
pub(crate) use open::{OpenTransport, open, providers, resolve};
pub(crate) use process::Watch;
pub(crate) use program::{incus, program};
pub(crate) use remote_exec::RemoteExec;
pub(crate) use route::{Route, RouteContext, WantedMachine, way};
pub(crate) use unreachable::Unreachable;

use std::path::PathBuf;

use crate::incus::MachineRef;
use crate::name::MachineName;

/// A way to a server, with everything that is needed to go it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Transport {
    /// A child of this very program, on stdin and stdout.
    Local,
    /// `incus exec` into a machine, on stdin and stdout.
    Exec(MachineRef),
    /// A socket: a consumer's way to a provider.
    Socket(Socket),
}

/// A provider's socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Socket {
    /// Its place.
    pub(crate) path: PathBuf,
    /// Its owner; `None` if it was named by its path.
    pub(crate) provider: Option<MachineName>,
}
