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
    /// Set up this machine as ordered on stdin; started by apply, inside a machine
    #[command(hide = true)]
    MachineSetup,
    /// Ask a provider what it offers this machine; started by apply and doctor, inside a machine
    #[command(hide = true)]
    MachineAsk {
        /// The provider
        provider: String,
    },
    /// Look up the key that signs, as this machine's server user; started by doctor, inside a machine
    #[command(hide = true)]
    MachineKey {
        /// The key that the service fixes
        key: Option<String>,
    },
    /// Check that an SSH key can be used, as this machine's server user; started by doctor, inside a machine
    #[command(hide = true)]
    MachineSshKey {
        /// The public key in one line
        key: String,
    },
    /// Ask the MCP servers of this machine for the definitions of their tools, as requested on stdin; started by mcp pin,
    /// inside a machine
    #[command(hide = true)]
    MachineDefinitions,
    /// Read a machine's files through its first process; started by apply and doctor, on the host
    #[command(hide = true)]
    MachineRoot {
        /// The machine's first process
        first: u32,
        /// The name of the machine's cgroup
        cgroup: String,
    },
    /// Parse the output of machines, without privileges; started by apply and doctor
    #[command(hide = true)]
    ForeignReader,
    /// Hold content on the display's clipboard, or read it; started by the clipboard tools
    #[command(hide = true)]
    ClipboardHolder {
        /// The action on the clipboard
        #[arg(value_enum)]
        action: ClipboardAction,
    },
    /// Start a server's gpg-agent when a call needs it; started by the machine's supervisor
    #[command(hide = true)]
    GpgAgentLauncher {
        /// The socket to listen on, in a folder that only its user can enter; an abstract one begins with `@`
        socket: PathBuf,
    },
    /// Run the programs of this machine's services; started by the machine's supervisor
    #[command(hide = true)]
    ProgramLauncher {
        /// The socket to listen on; an abstract one begins with `@`
        address: PathBuf,
        /// The server's services file
        services: PathBuf,
    },
    /// Serve one consumer; started by mcp serve --listen
    #[command(hide = true)]
    McpWorker {
        /// The consumer
        caller: MachineName,
        /// The server's services file
        services: PathBuf,
    },
    /// Run the tools for one consumer; started by mcp serve --listen
    #[command(hide = true)]
    McpHelper {
        /// The consumer
        caller: MachineName,
        /// The resource that these tools use
        #[arg(value_enum)]
        resource: Resource,
        /// The server's services file
        services: PathBuf,
    },
}

/// An action on the display's clipboard.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ClipboardAction {
    /// Print the clipboard's content, unless it is marked as a password
    Read,
    /// Print the clipboard's content
    ReadPassword,
    /// Hold the text from stdin on the clipboard until something else replaces it
    Hold,
    /// Hold the PNG from stdin on the clipboard until something else replaces it
    HoldImage,
}
