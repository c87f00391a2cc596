//! Parses argv: subcommands, flags and help texts, one file per noun. No behaviour.

mod audit;
mod clipboard_holder;
mod gpg_agent_launcher;
mod machines;
mod mcp;
mod mcp_helper;
mod mcp_worker;
mod policy;
mod sync;

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

pub use audit::{AuditCommand, AuditShowArgs, AuditVerifyArgs, LogArgs};
pub use clipboard_holder::{ClipboardErrand, ClipboardHolderArgs};
pub use gpg_agent_launcher::GpgAgentLauncherArgs;
pub use machines::{ApplyArgs, DestroyArgs, DoctorArgs, MachineAskArgs, MachineRootArgs};
pub use mcp::{
    ChannelArgs, McpCallArgs, McpCommand, McpConnectArgs, McpListArgs, McpServeArgs, McpStatusArgs,
};
pub use mcp_helper::McpHelperArgs;
pub use mcp_worker::McpWorkerArgs;
pub use policy::{PolicyCheckArgs, PolicyCommand, PolicyExportArgs, PolicyListArgs};
pub use sync::SyncArgs;

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
    /// Flags of every subcommand.
    #[command(flatten)]
    pub global: GlobalArgs,
    /// The next step.
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
    /// Walk every channel from the consumer's end, and say what is broken and what mends it
    Doctor(DoctorArgs),
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
    /// Rotate the logs that Incus writes of the channels; started by the host's scheduler
    #[command(hide = true)]
    RotateLogs,
    /// Put this machine in order by the order on stdin; started by apply, inside a machine
    #[command(hide = true)]
    MachineSetup,
    /// Ask a provider what it offers this machine; started by apply and doctor, inside a machine
    #[command(hide = true)]
    MachineAsk(MachineAskArgs),
    /// Look at the files of a machine through its first process; started by apply and doctor, on the host
    #[command(hide = true)]
    MachineRoot(MachineRootArgs),
    /// Read what machines say, without rights; started by apply and doctor
    #[command(hide = true)]
    ForeignReader,
    /// Hold a text on the clipboard of the display, or read it; started by the clipboard tools
    #[command(hide = true)]
    ClipboardHolder(ClipboardHolderArgs),
    /// Start the gpg-agent of a server when a call needs it; started by the supervisor of a machine
    #[command(hide = true)]
    GpgAgentLauncher(GpgAgentLauncherArgs),
    /// Serve one consumer; started by mcp serve --listen
    #[command(hide = true)]
    McpWorker(McpWorkerArgs),
    /// Run the tools of one consumer; started by mcp serve --listen
    #[command(hide = true)]
    McpHelper(McpHelperArgs),
}

/// Path of the infrastructure's declaration.
#[derive(Debug, Clone, Args)]
pub struct InfraArgs {
    /// The infra.yml file or infra/ folder [default: ./infra.yml, then ./infra/]
    #[arg(long, value_name = "PATH")]
    pub infra: Option<PathBuf>,
}

/// `anklume completions`
#[derive(Debug, Args)]
pub struct CompletionsArgs {
    /// The shell
    pub shell: clap_complete::Shell,
}
