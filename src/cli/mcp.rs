//! `anklume mcp …`: its flags, and which channel to use.

use std::path::PathBuf;

use clap::{ArgGroup, Args, Subcommand};

/// `anklume mcp …`
#[derive(Debug, Subcommand)]
pub enum McpCommand {
    /// Serve this machine's tools on stdin and stdout
    Serve(McpServeArgs),
    /// List the tools of a machine
    List(McpListArgs),
    /// Call a tool of a machine
    Call(McpCallArgs),
    /// Join stdin and stdout to a provider, for any MCP client
    Connect(McpConnectArgs),
    /// Say what the server of this machine serves to whom
    Status(McpStatusArgs),
}

/// `anklume mcp serve`
#[derive(Debug, Args)]
#[group(skip)]
#[command(group = ArgGroup::new("consumers").args(["listen", "caller"]))]
pub struct McpServeArgs {
    /// Print the tools and end
    #[arg(long, conflicts_with_all = ["listen", "caller", "services"])]
    pub list_tools: bool,
    /// Make a socket for each consumer in this folder [default: /run/anklume/mcp]
    #[arg(long, value_name = "DIR", num_args = 0..=1, default_missing_value = "/run/anklume/mcp")]
    pub listen: Option<PathBuf>,
    /// Serve this consumer on stdin and stdout, by the services file
    #[arg(long, value_name = "MACHINE", conflicts_with = "listen")]
    pub caller: Option<String>,
    /// The services file, as `policy export` writes it [default: /etc/anklume/services.json]
    #[arg(long, value_name = "FILE", requires = "consumers")]
    pub services: Option<PathBuf>,
    /// The log of calls [default: /var/log/anklume/audit.jsonl]
    #[arg(long, value_name = "FILE", env = "ANKLUME_AUDIT_LOG")]
    pub audit_log: Option<PathBuf>,
}

/// The channel to use.
#[derive(Debug, Clone, Default, Args)]
#[group(skip)]
#[command(group = ArgGroup::new("server").args(["instance", "socket"]).multiple(true))]
pub struct ChannelArgs {
    /// The machine; without it, a server of this program's own on this computer
    #[arg(short, long, alias = "machine", value_name = "MACHINE")]
    pub instance: Option<String>,
    /// The Incus project of the machine [default: found by asking Incus]
    #[arg(long, value_name = "PROJECT", requires = "server")]
    pub project: Option<String>,
    /// The socket of a provider, whatever else is said
    #[arg(long, value_name = "PATH")]
    pub socket: Option<PathBuf>,
    /// Seconds to wait for an answer without progress [default: 5 for the first answer, 30 for a call]
    #[arg(long, value_name = "SECONDS")]
    pub timeout: Option<f64>,
    /// Show the command and the messages, run nothing
    #[arg(long)]
    pub dry_run: bool,
}

/// `anklume mcp list`
#[derive(Debug, Args)]
pub struct McpListArgs {
    /// The channel to use.
    #[command(flatten)]
    pub channel: ChannelArgs,
}

/// `anklume mcp call`
#[derive(Debug, Args)]
pub struct McpCallArgs {
    /// The channel to use.
    #[command(flatten)]
    pub channel: ChannelArgs,
    /// The tool
    pub tool: String,
    /// One JSON object, or key=value, key=@FILE, key=- (stdin), key:=JSON; `-` alone reads the object from stdin
    #[arg(value_name = "ARGS")]
    pub arguments: Vec<String>,
}

/// `anklume mcp connect`
#[derive(Debug, Args)]
#[group(skip)]
#[command(group = ArgGroup::new("server").args(["provider", "socket"]).multiple(true))]
pub struct McpConnectArgs {
    /// The machine whose services to use
    #[arg(value_name = "PROVIDER")]
    pub provider: Option<String>,
    /// The Incus project of the machine, on the host [default: found by asking Incus]
    #[arg(long, value_name = "PROJECT", requires = "server")]
    pub project: Option<String>,
    /// The socket of a provider, whatever else is said
    #[arg(long, value_name = "PATH")]
    pub socket: Option<PathBuf>,
    /// Seconds of silence to bear once stdin has ended [default: 30]
    #[arg(long, value_name = "SECONDS")]
    pub timeout: Option<f64>,
}

/// `anklume mcp status`
#[derive(Debug, Args)]
pub struct McpStatusArgs {
    /// The folder of the server's sockets
    #[arg(
        long = "listen",
        value_name = "DIR",
        default_value = "/run/anklume/mcp"
    )]
    pub folder: PathBuf,
}
