//! `anklume policy …`: its flags.

use clap::{Args, Subcommand};

use super::InfraArgs;

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
    /// Path of the infrastructure's declaration.
    #[command(flatten)]
    pub infra: InfraArgs,
}

/// `anklume policy list`
#[derive(Debug, Args)]
pub struct PolicyListArgs {
    /// Path of the infrastructure's declaration.
    #[command(flatten)]
    pub infra: InfraArgs,
}

/// `anklume policy export`
#[derive(Debug, Args)]
pub struct PolicyExportArgs {
    /// The machine
    #[arg(long, value_name = "MACHINE")]
    pub machine: String,
    /// Path of the infrastructure's declaration.
    #[command(flatten)]
    pub infra: InfraArgs,
}
