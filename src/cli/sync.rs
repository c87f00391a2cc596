//! `anklume sync`: its flags.

use std::path::PathBuf;

use clap::Args;

use super::InfraArgs;

/// `anklume sync`
#[derive(Debug, Args)]
pub struct SyncArgs {
    /// Path of the infrastructure's declaration.
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
