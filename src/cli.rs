//! All of argv: subcommands, flags, help texts. No behaviour.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

/// Machines that serve each other a few things, and nobody else.
#[derive(Debug, Parser)]
#[command(
    name = "anklume",
    version,
    about,
    long_about = "Machines that serve each other a few things, and nobody else.\n\n\
        What may be asked of whom is declared in infra.yml, the file that also creates the machines. \
        A call is MCP over a channel that exists for that pair of machines alone.",
    subcommand_required = true,
    arg_required_else_help = true,
    max_term_width = 100
)]
pub struct Cli {
    /// What every subcommand understands.
    #[command(flatten)]
    pub global: GlobalArgs,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// Flags of every subcommand.
#[derive(Debug, Clone, Args)]
pub struct GlobalArgs {
    /// Form of the answer
    #[arg(long, global = true, value_enum, default_value_t = Format::Text, value_name = "FORM")]
    pub format: Format,
    /// When to use colours
    #[arg(long, global = true, value_enum, default_value_t = When::Auto, value_name = "WHEN")]
    pub color: When,
    /// Say less: errors only
    #[arg(short, long, global = true, conflicts_with = "verbose")]
    pub quiet: bool,
    /// Say more
    #[arg(short, long, global = true)]
    pub verbose: bool,
}

/// Form of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people
    Text,
    /// For programs
    Json,
}

/// When to use colours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum When {
    /// On a terminal, unless NO_COLOR is set
    Auto,
    /// Always
    Always,
    /// Never
    Never,
}

/// The subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Check infra.yml and write the files that Ansible reads
    Sync(SyncArgs),
    /// Make Incus match infra.yml; touches only what differs, and only what anklume made
    Apply(ApplyArgs),
    /// Delete what apply made
    Destroy(DestroyArgs),
    /// Ask and show who may call what
    #[command(subcommand, arg_required_else_help = true)]
    Policy(PolicyCommand),
    /// Serve tools, list them, call them
    #[command(subcommand, arg_required_else_help = true)]
    Mcp(McpCommand),
    /// Show and verify the log of calls
    #[command(subcommand, arg_required_else_help = true)]
    Audit(AuditCommand),
    /// Print a completion script for a shell
    Completions(CompletionsArgs),
    /// Print the manual page
    Man,
    /// Put this machine in order by the order on stdin; started by apply, inside a machine
    #[command(hide = true)]
    MachineSetup,
    /// Hold a text on the clipboard of the display, or read it; started by the clipboard tools
    #[command(hide = true)]
    ClipboardHolder(ClipboardHolderArgs),
}

/// Where the infrastructure is declared.
#[derive(Debug, Clone, Args)]
pub struct InfraArgs {
    /// The infra.yml file or infra/ folder [default: ./infra.yml, then ./infra/]
    #[arg(long, value_name = "PATH")]
    pub infra: Option<PathBuf>,
}

/// `anklume sync`
#[derive(Debug, Args)]
pub struct SyncArgs {
    /// Where the infrastructure is declared.
    #[command(flatten)]
    pub infra: InfraArgs,
    /// Folder to write inventory/, group_vars/ and host_vars/ into [default: the folder of infra.yml]
    #[arg(long, value_name = "DIR")]
    pub base_dir: Option<PathBuf>,
    /// Write nothing; exit 6 where a file would change
    #[arg(long, conflicts_with_all = ["dry_run", "clean_orphans"])]
    pub check: bool,
    /// Write nothing; show the difference
    #[arg(long)]
    pub dry_run: bool,
    /// Remove files of machines and domains that are no longer declared, but for protected ones
    #[arg(long)]
    pub clean_orphans: bool,
}

/// `anklume apply`
#[derive(Debug, Args)]
pub struct ApplyArgs {
    /// Where the infrastructure is declared.
    #[command(flatten)]
    pub infra: InfraArgs,
    /// Change nothing; show the plan: + is made, ~ is changed, - is removed
    #[arg(long)]
    pub dry_run: bool,
    /// With --dry-run: exit 6 where there is something to do
    #[arg(long, requires = "dry_run")]
    pub exit_code: bool,
    /// Take over a machine, or a domain's project and network, that is on Incus already
    #[arg(long, value_name = "NAME")]
    pub adopt: Vec<String>,
}

/// `anklume destroy`
#[derive(Debug, Args)]
pub struct DestroyArgs {
    /// Where the infrastructure is declared.
    #[command(flatten)]
    pub infra: InfraArgs,
    /// Only this domain, with everything in it
    #[arg(long, value_name = "DOMAIN", conflicts_with = "machine")]
    pub domain: Option<String>,
    /// Only this machine, with its volumes
    #[arg(long, value_name = "MACHINE")]
    pub machine: Option<String>,
    /// Do not ask
    #[arg(short, long)]
    pub yes: bool,
    /// Also machines that are not ephemeral
    #[arg(long)]
    pub force: bool,
}

/// `anklume policy …`
#[derive(Debug, Subcommand)]
pub enum PolicyCommand {
    /// May this caller use this service? 0 allowed, 1 denied or error
    Check(PolicyCheckArgs),
    /// List all declared services
    List(PolicyListArgs),
    /// Say why a call is allowed or denied, and what would change that
    Explain(PolicyCheckArgs),
    /// Print the services file that a machine's server reads
    Export(PolicyExportArgs),
}

/// `anklume policy check`
#[derive(Debug, Args)]
pub struct PolicyCheckArgs {
    /// The machine that calls
    #[arg(long, value_name = "MACHINE")]
    pub caller: String,
    /// The service, as NAME or PROVIDER/NAME
    #[arg(long, value_name = "SERVICE")]
    pub service: String,
    /// The machine that offers the service; needed only where several do
    #[arg(long, value_name = "MACHINE")]
    pub provider: Option<String>,
    /// Arguments of the call, as a JSON object: those that the service fixes are denied, wrong ones are an error; none need be there
    #[arg(long, value_name = "JSON")]
    pub args: Option<String>,
    /// Where the infrastructure is declared.
    #[command(flatten)]
    pub infra: InfraArgs,
}

/// `anklume policy list`
#[derive(Debug, Args)]
pub struct PolicyListArgs {
    /// Where the infrastructure is declared.
    #[command(flatten)]
    pub infra: InfraArgs,
}

/// `anklume policy export`
#[derive(Debug, Args)]
pub struct PolicyExportArgs {
    /// The machine
    #[arg(long, value_name = "MACHINE")]
    pub machine: String,
    /// Where the infrastructure is declared.
    #[command(flatten)]
    pub infra: InfraArgs,
}

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
    #[arg(long, value_name = "FILE")]
    pub services: Option<PathBuf>,
    /// The log of calls [default: /var/log/anklume/audit.jsonl]
    #[arg(long, value_name = "FILE", env = "ANKLUME_AUDIT_LOG")]
    pub audit_log: Option<PathBuf>,
}

/// Which channel to use.
#[derive(Debug, Clone, Args)]
pub struct ChannelArgs {
    /// The machine; without it, a server of this program's own on this computer
    #[arg(short, long, alias = "machine", value_name = "MACHINE")]
    pub instance: Option<String>,
    /// The Incus project of the machine [default: found by asking Incus]
    #[arg(long, value_name = "PROJECT", requires = "instance")]
    pub project: Option<String>,
    /// The socket of a provider, whatever else is said
    #[arg(long, value_name = "PATH", conflicts_with_all = ["instance", "project"])]
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
    /// Which channel to use.
    #[command(flatten)]
    pub channel: ChannelArgs,
}

/// `anklume mcp call`
#[derive(Debug, Args)]
pub struct McpCallArgs {
    /// Which channel to use.
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
pub struct McpConnectArgs {
    /// The machine whose services to use
    #[arg(value_name = "PROVIDER")]
    pub provider: Option<String>,
    /// The Incus project of the machine, on the host [default: found by asking Incus]
    #[arg(long, value_name = "PROJECT", requires = "provider")]
    pub project: Option<String>,
    /// The socket of a provider, whatever else is said
    #[arg(long, value_name = "PATH", conflicts_with = "provider")]
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

/// `anklume completions`
#[derive(Debug, Args)]
pub struct CompletionsArgs {
    /// The shell
    pub shell: clap_complete::Shell,
}

/// `anklume audit …`
#[derive(Debug, Subcommand)]
pub enum AuditCommand {
    /// Show the calls
    Show(AuditShowArgs),
    /// Find edited, removed, moved and inserted lines: 0 whole, 1 not
    Verify(AuditVerifyArgs),
}

/// Which log.
#[derive(Debug, Clone, Args)]
pub struct LogArgs {
    /// The log; its older files (FILE.1, FILE.2 ...) belong to it
    #[arg(
        long,
        value_name = "FILE",
        env = "ANKLUME_AUDIT_LOG",
        default_value = "/var/log/anklume/audit.jsonl"
    )]
    pub file: PathBuf,
}

/// `anklume audit show`
#[derive(Debug, Args)]
pub struct AuditShowArgs {
    /// Which log.
    #[command(flatten)]
    pub log: LogArgs,
    /// Calls of this caller only
    #[arg(long, value_name = "MACHINE")]
    pub caller: Option<String>,
    /// Calls of this service only
    #[arg(long, value_name = "SERVICE")]
    pub service: Option<String>,
    /// Not older than this: 2026-11-22T10:00:00Z, or 90s, 15m, 2h, 7d ago
    #[arg(long, value_name = "TIME")]
    pub since: Option<String>,
    /// Calls with this decision only
    #[arg(long, value_enum, value_name = "DECISION")]
    pub decision: Option<DecisionFilter>,
}

/// A decision to look for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum DecisionFilter {
    /// The call could run
    Allowed,
    /// It could not
    Refused,
    /// The server had too much to do
    Overloaded,
}

impl DecisionFilter {
    /// The word in the log.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Allowed => "allowed",
            Self::Refused => "refused",
            Self::Overloaded => "overloaded",
        }
    }
}

/// `anklume audit verify`
#[derive(Debug, Args)]
pub struct AuditVerifyArgs {
    /// Which log.
    #[command(flatten)]
    pub log: LogArgs,
    /// A hash that an earlier verify printed; its line must still be there
    #[arg(long, value_name = "HASH")]
    pub head: Option<String>,
}

/// `anklume clipboard-holder`
#[derive(Debug, Args)]
pub struct ClipboardHolderArgs {
    /// What to do with the clipboard
    #[arg(value_enum)]
    pub errand: ClipboardErrand,
}

/// What a process is sent to the display for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ClipboardErrand {
    /// Print what is on the clipboard
    Read,
    /// Hold the text from stdin on it until something else is put there
    Hold,
}
