//! The commands for servers, their clients and their logs: `anklume mcp …` and `anklume audit …`.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::builder::PossibleValue;
use clap::{ArgGroup, Args, Subcommand, ValueEnum};

use super::infra::InfraArgs;
use crate::audit::Verdict;
use crate::name::MachineName;

/// `anklume mcp …`
#[derive(Debug, Subcommand)]
pub enum McpCommand {
    /// Serve this machine's tools on stdin and stdout
    Serve(McpServeArgs),
    /// List the tools of a machine
    List(McpListArgs),
    /// Call a tool of a machine
    Call(McpCallArgs),
    /// Connect stdin and stdout to a provider, for any MCP client
    Connect(McpConnectArgs),
    /// Print or write the entry with which an MCP client starts `mcp connect`
    Config(McpConfigArgs),
    /// Show and accept the definitions of MCP servers' tools that services offer
    Pin(McpPinArgs),
    /// Show the services of this machine's server and their consumers
    #[command(after_help = "Examples:\n  anklume mcp status    # in a provider")]
    Status {
        /// The server's socket folder
        #[arg(
            long = "listen",
            value_name = "DIR",
            default_value = "/run/anklume/mcp"
        )]
        folder: PathBuf,
    },
}

/// `anklume mcp config`
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  anklume mcp config claude            # prints the entry\n  anklume mcp config vscode --write    # adds it to .vscode/mcp.json"
)]
pub struct McpConfigArgs {
    /// The MCP client
    #[arg(value_name = "CLIENT")]
    pub client: AgentClient,
    /// The provider to connect to [default: all providers of this machine]
    #[arg(value_name = "PROVIDER")]
    pub provider: Option<MachineName>,
    /// Add the entry to the client's file in this folder; an entry of that name is not replaced
    #[arg(long)]
    pub write: bool,
    /// The file to change [default: the client's file in the current folder]
    #[arg(long, value_name = "FILE", requires = "write")]
    pub config_file: Option<PathBuf>,
    /// The folder of the client's files [default: the project's folder]
    #[arg(long, value_name = "DIR")]
    pub files: Option<PathBuf>,
}

/// An MCP client with a file of its own for servers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum AgentClient {
    /// Claude Code: `.mcp.json`
    Claude,
    /// Codex: `.codex/config.toml`
    Codex,
    /// Gemini CLI: `.gemini/settings.json`
    Gemini,
    /// Visual Studio Code: `.vscode/mcp.json`
    Vscode,
    /// Cursor: `.cursor/mcp.json`
    Cursor,
}

/// `anklume mcp pin`
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  anklume mcp pin             # shows what is new, and asks\n  anklume mcp pin --check     # exit 6 if a definition differs"
)]
pub struct McpPinArgs {
    /// The path of `infra.yml`.
    #[command(flatten)]
    pub infra: InfraArgs,
    /// Ask only the servers of this machine [default: of all machines]
    #[arg(value_name = "MACHINE", conflicts_with = "instance")]
    pub machine: Option<String>,
    /// Ask only the servers of this machine, as MACHINE
    #[arg(short, long, alias = "machine", value_name = "MACHINE")]
    pub instance: Option<String>,
    /// Accept all definitions without asking
    #[arg(long, conflicts_with = "check")]
    pub yes: bool,
    /// Write nothing; exit 6 if a definition differs from the pinned one
    #[arg(long)]
    pub check: bool,
}

/// `anklume mcp serve`
#[derive(Debug, Args)]
#[group(skip)]
#[command(
    group = ArgGroup::new("consumers").args(["listen", "caller"]),
    after_help = "Examples:\n  anklume mcp serve --list-tools"
)]
pub struct McpServeArgs {
    /// Print the tools and exit
    #[arg(long, conflicts_with_all = ["listen", "caller", "services"])]
    pub list_tools: bool,
    /// Create a socket for each consumer in this folder [default: /run/anklume/mcp]
    #[arg(long, value_name = "DIR", num_args = 0..=1, default_missing_value = "/run/anklume/mcp")]
    pub listen: Option<PathBuf>,
    /// Serve this consumer on stdin and stdout, as the services file allows
    #[arg(long, value_name = "MACHINE", conflicts_with = "listen")]
    pub caller: Option<String>,
    /// The services file, as `policy export` writes it [default: /etc/anklume/services.json]
    #[arg(long, value_name = "FILE", requires = "consumers")]
    pub services: Option<PathBuf>,
    /// The audit log [default: /var/log/anklume/audit.jsonl]
    #[arg(long, value_name = "FILE", env = "ANKLUME_AUDIT_LOG")]
    pub audit_log: Option<PathBuf>,
}

/// The channel to use.
#[derive(Debug, Clone, Default, Args)]
#[group(skip)]
#[command(group = ArgGroup::new("server").args(["instance", "socket"]).multiple(true))]
pub struct ChannelArgs {
    /// The machine; without it, this program starts its own server on this computer
    #[arg(short, long, alias = "machine", value_name = "MACHINE")]
    pub instance: Option<String>,
    /// The machine's Incus project [default: found by asking Incus]
    #[arg(long, value_name = "PROJECT")]
    pub project: Option<String>,
    /// A provider's socket; overrides the machine and its project
    #[arg(long, value_name = "PATH")]
    pub socket: Option<PathBuf>,
    /// Seconds to wait for an answer without progress [default: 5 for the first answer, 30 for a call]
    #[arg(long, value_name = "SECONDS")]
    pub timeout: Option<f64>,
    /// Show the command and the messages, but run nothing
    #[arg(long)]
    pub dry_run: bool,
}

/// Which service to call, for a command that calls one in a provider.
#[derive(Debug, Clone, Args)]
pub struct ServiceArgs {
    /// The provider, or PROVIDER/SERVICE, as in front of the other words
    #[arg(short, long, alias = "machine", value_name = "PROVIDER")]
    pub instance: Option<String>,
    /// The service [default: the provider's only one]
    #[arg(long, value_name = "SERVICE")]
    pub service: Option<String>,
    /// The provider's Incus project, on the host [default: found by asking Incus]
    #[arg(long, value_name = "PROJECT")]
    pub project: Option<String>,
    /// A provider's socket; overrides the provider and its project
    #[arg(long, value_name = "PATH")]
    pub socket: Option<PathBuf>,
    /// Seconds to wait for an answer without progress [default: 5 for the first answer, 30 for a call]
    #[arg(long, value_name = "SECONDS")]
    pub timeout: Option<f64>,
}

/// `anklume mcp list`
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  anklume mcp list vault-signer")]
pub struct McpListArgs {
    /// The machine, as with -i
    #[arg(value_name = "MACHINE", conflicts_with_all = ["instance", "socket"])]
    pub machine: Option<String>,
    /// The channel to use.
    #[command(flatten)]
    pub channel: ChannelArgs,
}

/// `anklume mcp call`
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  anklume mcp call vault-signer/file_sign data=@letter.txt > letter.txt.asc\n  anklume mcp call vault-signer/clipboard_get\n  date | anklume mcp call vault-signer/clipboard_set content=-"
)]
pub struct McpCallArgs {
    /// The channel to use.
    #[command(flatten)]
    pub channel: ChannelArgs,
    /// The tool or service; MACHINE/NAME is the same as -i MACHINE NAME
    #[arg(value_name = "TOOL")]
    pub tool: String,
    /// One JSON object, or key=value, key=@FILE, key=- (stdin), key:=JSON; `-` alone reads the object from stdin
    #[arg(value_name = "ARGS")]
    pub arguments: Vec<String>,
}

/// `anklume mcp connect`
#[derive(Debug, Args)]
#[group(skip)]
#[command(
    group = ArgGroup::new("server").args(["provider", "instance", "socket"]).multiple(true),
    after_help = "Examples:\n  anklume mcp connect vault-signer    # as the command of an MCP client\n  anklume mcp connect --files .       # all providers of this machine, for an agent"
)]
pub struct McpConnectArgs {
    /// The provider to connect to; in a machine, without one: all of its providers, whose tools are named PROVIDER__SERVICE
    #[arg(value_name = "PROVIDER", conflicts_with = "instance")]
    pub provider: Option<String>,
    /// The provider, as in the other commands
    #[arg(short, long, alias = "machine", value_name = "PROVIDER")]
    pub instance: Option<String>,
    /// The machine's Incus project, on the host [default: found by asking Incus]
    #[arg(long, value_name = "PROJECT", requires = "server")]
    pub project: Option<String>,
    /// A provider's socket; overrides the machine and its project
    #[arg(long, value_name = "PATH")]
    pub socket: Option<PathBuf>,
    /// The folder of the client's files: tools take and create files below it, instead of content in base64
    #[arg(long, value_name = "DIR")]
    pub files: Option<PathBuf>,
    /// Seconds to wait for a silent provider once stdin has ended [default: 30]
    #[arg(long, value_name = "SECONDS")]
    pub timeout: Option<f64>,
}

/// `anklume sign`
#[derive(Debug, Args)]
#[command(
    override_usage = "anklume sign [OPTIONS] [PROVIDER[/SERVICE]] FILE...|--public-key",
    after_help = "Examples:\n  anklume sign vault-signer release.tar.gz    # writes release.tar.gz.asc\n  anklume sign vault-signer --public-key | gpg --import"
)]
pub struct SignArgs {
    /// The provider, if not given by -i, and the files, each of which gets FILE.asc beside it; `-` signs stdin and prints
    /// the signature
    #[arg(value_name = "FILE")]
    pub files: Vec<PathBuf>,
    /// Print the public key; nothing is signed
    #[arg(long)]
    pub public_key: bool,
    /// Replace signatures that exist
    #[arg(long)]
    pub force: bool,
    /// The service to call.
    #[command(flatten)]
    pub service: ServiceArgs,
}

/// `anklume ssh-agent`
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  anklume ssh-agent -- git commit -S    # for one command\n  anklume ssh-agent                     # for a shell: eval \"$(anklume ssh-agent)\"\n  anklume ssh-agent -D -a /run/user/1000/agent.sock"
)]
pub struct SshAgentArgs {
    /// Run in the foreground
    #[arg(short = 'D', long, conflicts_with = "command")]
    pub foreground: bool,
    /// Listen on this socket [default: anklume/ssh-agent.PID in $XDG_RUNTIME_DIR, else in /run/user/UID]
    #[arg(short = 'a', long, value_name = "SOCKET")]
    pub socket: Option<PathBuf>,
    /// Write the socket's path to stdout, go to the background, and exit with this process; 0: with none
    #[arg(long, hide = true, conflicts_with = "command")]
    pub child_of: Option<i32>,
    /// Run this command with an agent that exits when the command does
    #[arg(trailing_var_arg = true, value_name = "COMMAND")]
    pub command: Vec<OsString>,
}

/// `anklume file …`
#[derive(Debug, Subcommand)]
pub enum FileCommand {
    /// Send files and folders
    Push(FilePushArgs),
    /// Fetch files and folders
    Pull(FilePullArgs),
    /// List the files that can be fetched
    List(FileListArgs),
}

/// `anklume file push`
#[derive(Debug, Args)]
#[command(
    override_usage = "anklume file push [OPTIONS] [PROVIDER[/SERVICE]] FILE...",
    after_help = "Examples:\n  anklume file push vault-signer release.tar.gz photos\n  tar -c photos | anklume file push vault-signer - --name photos.tar"
)]
pub struct FilePushArgs {
    /// The provider, if not given by -i, and files, and folders with everything in them; `-` is stdin
    #[arg(value_name = "FILE", required = true)]
    pub files: Vec<PathBuf>,
    /// The name, or the path, that it gets in the provider [default: its own name]
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,
    /// The service to call.
    #[command(flatten)]
    pub service: ServiceArgs,
}

/// `anklume file pull`
#[derive(Debug, Args)]
#[command(
    override_usage = "anklume file pull [OPTIONS] [PROVIDER[/SERVICE]] NAME...",
    after_help = "Examples:\n  anklume file pull vault-signer reports/july.pdf -o ~/Documents"
)]
pub struct FilePullArgs {
    /// The provider, if not given by -i, and names of files and folders in the provider's portal; `anklume file list` shows them
    #[arg(value_name = "NAME", required = true)]
    pub names: Vec<String>,
    /// The folder to write to; `-` is stdout [default: the current folder]
    #[arg(short, long, value_name = "DIR")]
    pub output: Option<PathBuf>,
    /// The service to call.
    #[command(flatten)]
    pub service: ServiceArgs,
}

/// `anklume file list`
#[derive(Debug, Args)]
#[command(
    override_usage = "anklume file list [OPTIONS] [PROVIDER[/SERVICE]] [FOLDER]",
    after_help = "Examples:\n  anklume file list vault-signer\n  anklume file list vault-signer reports"
)]
pub struct FileListArgs {
    /// The provider, if not given by -i, and a folder in its portal [default: everything that this machine may fetch]
    #[arg(value_name = "FOLDER", num_args = 0..=2)]
    pub names: Vec<String>,
    /// The service to call.
    #[command(flatten)]
    pub service: ServiceArgs,
}

/// `anklume clipboard …`
#[derive(Debug, Subcommand)]
pub enum ClipboardCommand {
    /// Print the text, or the image (PNG), on the clipboard of a provider
    #[command(
        after_help = "Examples:\n  anklume clipboard get vault-signer > letter.txt\n  anklume clipboard get vault-signer > picture.png"
    )]
    Get(ClipboardArgs),
    /// Set the clipboard of a provider to the text, or the image (PNG), on stdin
    #[command(
        after_help = "Examples:\n  anklume clipboard set vault-signer < letter.txt\n  anklume clipboard set vault-signer < picture.png"
    )]
    Set(ClipboardArgs),
    /// In a provider: offer the clipboard to a consumer, once and for a minute
    #[command(
        after_help = "Examples:\n  anklume clipboard offer --to work-dev\n  printf %s secret | anklume clipboard offer --to work-dev -"
    )]
    Offer(ClipboardOfferArgs),
}

/// `anklume clipboard offer`
#[derive(Debug, Args)]
#[command(override_usage = "anklume clipboard offer [OPTIONS] --to <MACHINE> [PROVIDER] [-]")]
pub struct ClipboardOfferArgs {
    /// The consumer
    #[arg(long, value_name = "MACHINE")]
    pub to: String,
    /// The provider, on the host [default: this machine]; `-` offers the text on stdin instead of the clipboard
    #[arg(value_name = "PROVIDER", num_args = 0..=2)]
    pub words: Vec<String>,
    /// The provider, on the host, as PROVIDER
    #[arg(short, long, alias = "machine", value_name = "PROVIDER")]
    pub instance: Option<String>,
    /// The provider's Incus project [default: found by asking Incus]
    #[arg(long, value_name = "PROJECT")]
    pub project: Option<String>,
}

/// Arguments of `anklume clipboard get` and `set`
#[derive(Debug, Args)]
pub struct ClipboardArgs {
    /// The provider, or PROVIDER/SERVICE [default: the only one that offers such a service]
    #[arg(value_name = "PROVIDER", conflicts_with_all = ["instance", "socket"])]
    pub provider: Option<String>,
    /// The service to call.
    #[command(flatten)]
    pub service: ServiceArgs,
}

/// `anklume audit …`
#[derive(Debug, Subcommand)]
pub enum AuditCommand {
    /// Show the calls
    Show(AuditShowArgs),
    /// Find edited, removed, moved and inserted lines; exits with 0 if the log is intact
    Verify(AuditVerifyArgs),
}

/// The log.
#[derive(Debug, Clone, Args)]
pub struct LogArgs {
    /// The log, including its older files (FILE.1, FILE.2 ...)
    #[arg(
        long,
        value_name = "FILE",
        env = "ANKLUME_AUDIT_LOG",
        default_value = "/var/log/anklume/audit.jsonl"
    )]
    pub file: PathBuf,
}

/// `anklume audit show`
#[derive(Debug, Clone, Args)]
#[command(
    after_help = "Examples:\n  anklume audit show vault-signer --since 2h --decision refused\n  anklume audit show vault-signer -n 20 -f    # the newest lines, and then each new one"
)]
#[group(skip)]
#[command(group = ArgGroup::new("named").args(["provider", "instance"]))]
pub struct AuditShowArgs {
    /// The provider whose log to show, on the host; without it, the log of this computer
    #[arg(value_name = "PROVIDER")]
    pub provider: Option<String>,
    /// The provider, as PROVIDER
    #[arg(short, long, alias = "machine", value_name = "PROVIDER")]
    pub instance: Option<String>,
    /// The machine's Incus project [default: found by asking Incus]
    #[arg(long, value_name = "PROJECT", requires = "named")]
    pub project: Option<String>,
    /// End with an empty line, and wait until stdin is closed: for the host, which would lose output otherwise.
    #[arg(long, hide = true)]
    pub remote: bool,
    /// The log.
    #[command(flatten)]
    pub log: LogArgs,
    /// Show only this caller's calls; '(operator)' for the operator's own
    #[arg(long, value_name = "MACHINE")]
    pub caller: Option<String>,
    /// Show only calls to this service
    #[arg(long, value_name = "SERVICE")]
    pub service: Option<String>,
    /// Show only calls since this time: 2026-11-22T10:00:00Z, or 90s, 15m, 2h, 7d ago
    #[arg(long, value_name = "TIME")]
    pub since: Option<String>,
    /// Show only calls with this decision
    #[arg(long, value_enum, value_name = "DECISION")]
    pub decision: Option<Verdict>,
    /// Show only the last N of these lines
    #[arg(short = 'n', long, value_name = "N")]
    pub lines: Option<usize>,
    /// Then show each new line, until interrupted
    #[arg(short, long)]
    pub follow: bool,
}

impl ValueEnum for Verdict {
    fn value_variants<'a>() -> &'a [Self] {
        &[Self::Allowed, Self::Refused, Self::Overloaded]
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        let help = match self {
            Self::Allowed => "The call could run",
            Self::Refused => "It could not",
            Self::Overloaded => "The server was overloaded",
        };
        Some(PossibleValue::new(self.as_str()).help(help))
    }
}

/// `anklume audit verify`
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  anklume audit verify    # in the provider; prints the hash of the newest line"
)]
pub struct AuditVerifyArgs {
    /// The log.
    #[command(flatten)]
    pub log: LogArgs,
    /// A hash that an earlier verify printed; its line must still be in the log
    #[arg(long, value_name = "HASH")]
    pub head: Option<String>,
}
