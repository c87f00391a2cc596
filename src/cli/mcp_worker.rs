//! `anklume mcp-worker`: whom it serves.

use std::path::PathBuf;

use clap::Args;

use crate::name::MachineName;

/// `anklume mcp-worker`
#[derive(Debug, Args)]
pub struct McpWorkerArgs {
    /// The consumer
    pub caller: MachineName,
    /// The services file of the server
    pub services: PathBuf,
}
