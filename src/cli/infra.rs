//! The commands that read `infra.yml`: `anklume sync`, `apply`, `destroy`, `doctor`, `policy`.

use std::path::PathBuf;

use clap::{ArgGroup, Args, Subcommand};
use jiff::Timestamp;

use crate::condition::time;

/// The path of `infra.yml`.
#[derive(Debug, Clone, Args)]
pub struct InfraArgs {
    /// The infra.yml file or infra/ folder [default: ./infra.yml, then ./infra/]
    #[arg(long, value_name = "PATH")]
    pub infra: Option<PathBuf>,
}

/// `anklume status`
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  anklume status    # on the host: of infra.yml; in a machine: of its providers"
)]
pub struct StatusArgs {
    /// The path of `infra.yml`.
    #[command(flatten)]
    pub infra: InfraArgs,
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
#[command(after_help = "Examples:\n  anklume destroy work-dev\n  anklume destroy --domain work")]
pub struct DestroyArgs {
    /// Delete only this machine, with its volumes [default: all machines]
    #[arg(value_name = "MACHINE", conflicts_with = "machine")]
    pub only: Option<String>,
    /// The path of `infra.yml`.
    #[command(flatten)]
    pub infra: InfraArgs,
    /// Delete only this domain, with everything in it; with MACHINE, only that machine in it
    #[arg(long, value_name = "DOMAIN")]
    pub domain: Option<String>,
    /// Delete only this machine, as MACHINE
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
    #[command(
        override_usage = "anklume policy check [OPTIONS] CALLER [PROVIDER/]SERVICE",
        after_help = "Examples:\n  anklume policy check work-dev vault-signer/file_sign\n  anklume policy check work-dev vault-signer/file_sign --args '{\"data\":\"aGk=\"}'"
    )]
    Check(PolicyCheckArgs),
    /// List all declared services
    #[command(after_help = "Examples:\n  anklume policy list")]
    List(InfraArgs),
    /// Explain why a call is allowed or denied, and what would change that
    #[command(
        override_usage = "anklume policy explain [OPTIONS] CALLER [PROVIDER/]SERVICE",
        after_help = "Examples:\n  anklume policy explain work-dev vault-signer/file_sign"
    )]
    Explain(PolicyCheckArgs),
    /// Print the services file that a machine's server reads
    #[command(
        override_usage = "anklume policy export [OPTIONS] MACHINE",
        after_help = "Examples:\n  anklume policy export vault-signer",
        group = ArgGroup::new("exported").args(["name", "machine"]).required(true)
    )]
    Export {
        /// The machine
        #[arg(value_name = "MACHINE")]
        name: Option<String>,
        /// The machine, as MACHINE
        #[arg(short = 'i', long, alias = "instance", value_name = "MACHINE")]
        machine: Option<String>,
        /// The path of `infra.yml`.
        #[command(flatten)]
        infra: InfraArgs,
    },
}

/// `anklume policy check`
#[derive(Debug, Args)]
pub struct PolicyCheckArgs {
    /// The calling machine
    #[arg(value_name = "CALLER", required_unless_present = "caller")]
    pub from: Option<String>,
    /// The service, as SERVICE or PROVIDER/SERVICE
    #[arg(value_name = "PROVIDER/SERVICE", required_unless_present = "service")]
    pub to: Option<String>,
    /// The calling machine, as CALLER
    #[arg(long, value_name = "MACHINE", conflicts_with_all = ["from", "to"])]
    pub caller: Option<String>,
    /// The service, as SERVICE or PROVIDER/SERVICE
    #[arg(long, value_name = "SERVICE", conflicts_with = "to")]
    pub service: Option<String>,
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
