//! The commands that read `infra.yml`: `anklume sync`, `apply`, `destroy`, `doctor`, `policy`.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use jiff::Timestamp;

use crate::condition::time;

/// The path of `infra.yml`.
#[derive(Debug, Clone, Args)]
pub struct InfraArgs {
    /// The infra.yml file or infra/ folder [default: ./infra.yml, then ./infra/]
    #[arg(long, value_name = "PATH")]
    pub infra: Option<PathBuf>,
}

/// `anklume sync`
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  anklume sync --dry-run     # shows what would change\n  anklume sync"
)]
pub struct SyncArgs {
    /// The path of `infra.yml`.
    #[command(flatten)]
    pub infra: InfraArgs,
    /// Folder to write inventory/, group_vars/ and host_vars/ into [default: the folder that contains infra.yml]
    #[arg(long, value_name = "DIR")]
    pub base_dir: Option<PathBuf>,
    /// Write nothing; exit 6 if a file would change
    #[arg(long, conflicts_with_all = ["dry_run", "clean_orphans"])]
    pub check: bool,
    /// Write nothing; show the difference
    #[arg(long)]
    pub dry_run: bool,
    /// Remove files of machines and domains that are no longer declared, except protected files
    #[arg(long)]
    pub clean_orphans: bool,
}

/// `anklume apply`
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  anklume apply --dry-run    # shows the plan\n  anklume apply")]
pub struct ApplyArgs {
    /// The path of `infra.yml`.
    #[command(flatten)]
    pub infra: InfraArgs,
    /// Change nothing; show the plan: + creates, ~ changes, - removes
    #[arg(long)]
    pub dry_run: bool,
    /// With --dry-run: exit 6 if the plan is not empty
    #[arg(long, requires = "dry_run")]
    pub exit_code: bool,
    /// Take over a machine, or a domain's project and network, that already exists in Incus
    #[arg(long, value_name = "NAME")]
    pub adopt: Vec<String>,
}

/// `anklume destroy`
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  anklume destroy -i work-dev")]
pub struct DestroyArgs {
    /// The path of `infra.yml`.
    #[command(flatten)]
    pub infra: InfraArgs,
    /// Delete only this domain, with everything in it; with -i, only that machine in it
    #[arg(long, value_name = "DOMAIN")]
    pub domain: Option<String>,
    /// Delete only this machine, with its volumes
    #[arg(short = 'i', long, alias = "instance", value_name = "MACHINE")]
    pub machine: Option<String>,
    /// Do not ask for confirmation
    #[arg(short, long)]
    pub yes: bool,
    /// Also delete machines that are not ephemeral
    #[arg(long)]
    pub force: bool,
}

/// `anklume doctor`
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  anklume doctor\n  anklume doctor work-dev    # only its channels"
)]
pub struct DoctorArgs {
    /// The path of `infra.yml`.
    #[command(flatten)]
    pub infra: InfraArgs,
    /// Check only the channels of these machines
    #[arg(value_name = "MACHINE")]
    pub machines: Vec<String>,
}

/// `anklume policy …`
#[derive(Debug, Subcommand)]
pub enum PolicyCommand {
    /// May this caller use this service? Exits with 0 if allowed, 1 if denied or on error
    Check(PolicyCheckArgs),
    /// List all declared services
    List(InfraArgs),
    /// Explain why a call is allowed or denied, and what would change that
    Explain(PolicyCheckArgs),
    /// Print the services file that a machine's server reads
    Export {
        /// The machine
        #[arg(long, value_name = "MACHINE")]
        machine: String,
        /// The path of `infra.yml`.
        #[command(flatten)]
        infra: InfraArgs,
    },
}

/// `anklume policy check`
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  anklume policy check --caller work-dev --service vault-signer/file_sign"
)]
pub struct PolicyCheckArgs {
    /// The calling machine
    #[arg(long, value_name = "MACHINE")]
    pub caller: String,
    /// The service, as NAME or PROVIDER/NAME
    #[arg(long, value_name = "SERVICE")]
    pub service: String,
    /// The machine that offers the service; needed only if several do
    #[arg(long, value_name = "MACHINE")]
    pub provider: Option<String>,
    /// Arguments of the call, as a JSON object; without it, only the caller and the time are checked
    #[arg(long, value_name = "JSON")]
    pub args: Option<String>,
    /// The time of the call, in RFC 3339, such as 2027-01-31T18:00:00Z [default: now]
    #[arg(long, value_name = "TIME", value_parser = time)]
    pub at: Option<Timestamp>,
    /// The path of `infra.yml`.
    #[command(flatten)]
    pub infra: InfraArgs,
}
