//! Defines the command line: subcommands, flags and help texts. Contains no behaviour.

mod infra;
mod internal;
mod mcp;

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

pub use infra::{
    ApplyArgs, DestroyArgs, DoctorArgs, InfraArgs, PolicyCheckArgs, PolicyCommand, StatusArgs,
    SyncArgs,
};
pub use internal::{ClipboardAction, InternalCommand};
pub use mcp::{
    AgentClient, AuditCommand, AuditShowArgs, AuditVerifyArgs, ChannelArgs, ClipboardArgs,
    ClipboardCommand, ClipboardOfferArgs, FileCommand, FileListArgs, FilePullArgs, FilePushArgs,
    LogArgs, McpCallArgs, McpCommand, McpConfigArgs, McpConnectArgs, McpListArgs, McpPinArgs,
    McpServeArgs, ServiceArgs, SignArgs, SshAgentArgs,
};

/// Version and commit.
pub const VERSION: &str = concat!(env!("CARGO_PKG_VERSION"), " (", env!("ANKLUME_COMMIT"), ")");
/// The same, with the versions of MCP that servers and clients speak.
pub const LONG_VERSION: &str = concat!(
    env!("CARGO_PKG_VERSION"),
    " (",
    env!("ANKLUME_COMMIT"),
    ")\nMCP 2024-11-05, 2025-03-26, 2025-06-18, 2025-11-25, 2026-07-28"
);

/// Lets machines offer a few services to each other, and to nobody else.
#[derive(Debug, Parser)]
#[command(
    name = "anklume",
    version = VERSION,
    long_version = LONG_VERSION,
    about,
    long_about = "Lets machines offer a few services to each other, and to nobody else.\n\n\
        The services and their consumers are declared in infra.yml, the file that also creates the machines. \
        A call is MCP over a channel that exists for that pair of machines alone.",
    after_help = "Examples:\n  anklume init                                     # writes infra.yml\n  anklume apply                                    # creates the machines and their channels\n  anklume status\n  anklume mcp call vault-signer/clipboard_get      # in a consumer",
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
    /// Output format: text, for people, or json, for programs [default: text]
    #[arg(long, global = true, value_enum, default_value_t = Format::Text, hide_default_value = true,
        hide_possible_values = true, value_name = "FORM", display_order = 90, help_heading = "Global options")]
    pub format: Format,
    /// When to use colours: auto (on a terminal, unless NO_COLOR is set), always or never [default: auto]
    #[arg(long, global = true, value_enum, default_value_t = When::Auto, hide_default_value = true,
        hide_possible_values = true, value_name = "WHEN", display_order = 91, help_heading = "Global options")]
    pub color: When,
    /// Print errors only
    #[arg(
        short,
        long,
        global = true,
        conflicts_with = "verbose",
        display_order = 92,
        help_heading = "Global options"
    )]
    pub quiet: bool,
    /// Print more
    #[arg(
        short,
        long,
        global = true,
        display_order = 93,
        help_heading = "Global options"
    )]
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

/// A shell with completions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum CompletionShell {
    /// Bash 4.4 or later
    Bash,
    /// Elvish
    Elvish,
    /// Fish
    Fish,
    /// PowerShell
    Powershell,
    /// Zsh
    Zsh,
}

/// The subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Write a commented infra.yml to start with
    #[command(after_help = "Examples:\n  anklume init    # in an empty folder")]
    Init,
    /// Show the machines, the channels between them, and who may call what
    Status(StatusArgs),
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
    #[command(after_help = "Examples:\n  source <(anklume completions bash)    # for this shell")]
    Completions {
        /// The shell
        #[arg(value_enum)]
        shell: CompletionShell,
    },
    /// Print a manual page
    #[command(
        after_help = "Examples:\n  anklume man | man -l -\n  anklume man infra.yml | man -l -\n  anklume man --dir ~/.local/share/man    # writes all pages"
    )]
    Man {
        /// The page: a command, or infra.yml [default: the page of the program]
        #[arg(value_name = "PAGE")]
        page: Option<String>,
        /// Write all pages below this folder, in man1 and man5
        #[arg(long, value_name = "DIR", conflicts_with = "page")]
        dir: Option<PathBuf>,
    },
    /// The hidden subcommands.
    #[command(flatten)]
    Internal(InternalCommand),
}
