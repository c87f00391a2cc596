//! `anklume apply`, `destroy`, `doctor`: what is done to the machines of an infra, and how they are.

use clap::Args;

use super::InfraArgs;

/// `anklume apply`
#[derive(Debug, Args)]
pub struct ApplyArgs {
    /// Path of the infrastructure's declaration.
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
    /// Path of the infrastructure's declaration.
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

/// `anklume machine-ask`
#[derive(Debug, Args)]
pub struct MachineAskArgs {
    /// The provider
    pub provider: String,
}

/// `anklume machine-root`
#[derive(Debug, Args)]
pub struct MachineRootArgs {
    /// The machine's first process
    pub first: u32,
    /// The name of the machine's cgroup
    pub cgroup: String,
}

/// `anklume doctor`
#[derive(Debug, Args)]
pub struct DoctorArgs {
    /// Path of the infrastructure's declaration.
    #[command(flatten)]
    pub infra: InfraArgs,
    /// Only the channels of these machines
    #[arg(value_name = "MACHINE")]
    pub machines: Vec<String>,
}
