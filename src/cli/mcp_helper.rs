//! `anklume mcp-helper`: for whom, and which tools.

use std::path::PathBuf;

use clap::Args;

use crate::name::MachineName;
use crate::tool::Resource;

/// `anklume mcp-helper`
#[derive(Debug, Args)]
pub struct McpHelperArgs {
    /// The consumer
    pub caller: MachineName,
    /// What its tools touch
    #[arg(value_enum)]
    pub resource: Resource,
    /// The services file of the server
    pub services: PathBuf,
}
