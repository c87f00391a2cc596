//! The hidden subcommands, which anklume itself starts.

use std::path::PathBuf;

use clap::{Subcommand, ValueEnum};

use crate::name::MachineName;
use crate::tool::Resource;

/// The hidden subcommands.
#[derive(Debug, Subcommand)]
pub enum InternalCommand {
    /// Rotate the logs that Incus writes for the channels; started by the host's scheduler
    #[command(hide = true)]
    RotateLogs,
    /// Set up this machine by the order on stdin; started by apply, inside a machine
    #[command(hide = true)]
    MachineSetup,
    /// Ask a provider what it offers this machine; started by apply and doctor, inside a machine
    #[command(hide = true)]
    MachineAsk {
        /// The provider
        provider: String,
    },
    /// Read the files of a machine through its first process; started by apply and doctor, on the host
    #[command(hide = true)]
    MachineRoot {
        /// The machine's first process
        first: u32,
        /// The name of the machine's cgroup
        cgroup: String,
    },
    /// Parse the output of machines, without rights; started by apply and doctor
    #[command(hide = true)]
    ForeignReader,
    /// Hold a text on the clipboard of the display, or read it; started by the clipboard tools
    #[command(hide = true)]
    ClipboardHolder {
        /// The action on the clipboard
        #[arg(value_enum)]
        action: ClipboardAction,
    },
    /// Start the gpg-agent of a server when a call needs it; started by the supervisor of a machine
    #[command(hide = true)]
    GpgAgentLauncher {
        /// The socket to listen on, in a folder that its user alone can enter; an abstract one begins with `@`
        socket: PathBuf,
    },
    /// Serve one consumer; started by mcp serve --listen
    #[command(hide = true)]
    McpWorker {
        /// The consumer
        caller: MachineName,
        /// The services file of the server
        services: PathBuf,
    },
    /// Run the tools of one consumer; started by mcp serve --listen
    #[command(hide = true)]
    McpHelper {
        /// The consumer
        caller: MachineName,
        /// The resource that its tools use
        #[arg(value_enum)]
        resource: Resource,
        /// The services file of the server
        services: PathBuf,
    },
}

/// An action on the clipboard of the display.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ClipboardAction {
    /// Print the clipboard's content, unless it is marked as a password
    Read,
    /// Print the clipboard's content
    ReadPassword,
    /// Hold the text from stdin on it until something else is put there
    Hold,
}
