//! Defines the command line: subcommands, flags and help texts. Contains no behaviour.

mod infra;
mod internal;
mod mcp;

use clap::{Args, Parser, Subcommand, ValueEnum};

pub use infra::{
    ApplyArgs, DestroyArgs, DoctorArgs, InfraArgs, PolicyCheckArgs, PolicyCommand, SyncArgs,
};
pub use internal::{ClipboardAction, InternalCommand};
pub use mcp::{
    AgentClient, AuditCommand, AuditShowArgs, AuditVerifyArgs, ChannelArgs, ClipboardArgs,
    ClipboardCommand, ClipboardOfferArgs, FileCommand, FileListArgs, FilePullArgs, FilePushArgs,
    LogArgs, McpCallArgs, McpCommand, McpConfigArgs, McpConnectArgs, McpListArgs, McpPinArgs,
    McpServeArgs, ServiceArgs, SignArgs, SshAgentArgs,
};

/// Lets machines offer a few services to each other, and to nobody else.
#[derive(Debug, Parser)]
#[command(
    name = "anklume",
    version,
    about,
    long_about = "Lets machines offer a few services to each other, and to nobody else.\n\n\
        The services and their consumers are declared in infra.yml, the file that also creates the machines. \
        A call is MCP over a channel that exists for that pair of machines alone.",
    subcommand_required = true,
    arg_required_else_help = true,
    max_term_width = 100
)]
pub struct Cli {
    /// Flags common to all subcommands.
    #[command(flatten)]
    pub global: GlobalArgs,
    /// The subcommand.
    #[command(subcommand)]
    pub command: Command,
}

/// Flags common to all subcommands.
#[derive(Debug, Clone, Default, Args)]
pub struct GlobalArgs {
    /// Output format
    #[arg(long, global = true, value_enum, default_value_t = Format::Text, value_name = "FORM", display_order = 90)]
    pub format: Format,
    /// When to use colours
    #[arg(long, global = true, value_enum, default_value_t = When::Auto, value_name = "WHEN", display_order = 91)]
    pub color: When,
    /// Print errors only
    #[arg(
        short,
        long,
        global = true,
        conflicts_with = "verbose",
        display_order = 92
    )]
    pub quiet: bool,
    /// Print more
    #[arg(short, long, global = true, display_order = 93)]
    pub verbose: bool,
}

/// Output format.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people
    #[default]
    Text,
    /// For programs
    Json,
}

/// When to use colours.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum When {
    /// On a terminal, unless NO_COLOR is set
    #[default]
    Auto,
    /// Always
    Always,
    /// Never
    Never,
}

/// The subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Write a starter infra.yml
    Init,
    /// Check infra.yml and write the files that Ansible reads
    Sync(SyncArgs),
    /// Make Incus match infra.yml; touches only what differs, and only what anklume made
    Apply(ApplyArgs),
    /// Delete what apply made
    Destroy(DestroyArgs),
    /// Check every channel from the consumer's end; report what is broken and how to fix it
    Doctor(DoctorArgs),
    /// Show and check the permissions to call services
    #[command(subcommand, arg_required_else_help = true)]
    Policy(PolicyCommand),
    /// Serve tools, list them, call them
    #[command(subcommand, arg_required_else_help = true)]
    Mcp(McpCommand),
    /// Show and verify the audit log
    #[command(subcommand, arg_required_else_help = true)]
    Audit(AuditCommand),
    /// Sign files with a key of another machine
    Sign(SignArgs),
    /// Start an SSH agent whose keys stay on other machines
    SshAgent(SshAgentArgs),
    /// Send files to another machine, or fetch files from it
    #[command(subcommand, arg_required_else_help = true)]
    File(FileCommand),
    /// Print or set the clipboard of another machine
    #[command(subcommand, arg_required_else_help = true)]
    Clipboard(ClipboardCommand),
    /// Print a completion script for a shell
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Print the manual page
    Man,
    /// The hidden subcommands.
    #[command(flatten)]
    Internal(InternalCommand),
}
