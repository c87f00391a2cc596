//! `anklume gpg-agent-launcher`: where it listens.

use std::path::PathBuf;

use clap::Args;

/// `anklume gpg-agent-launcher`
#[derive(Debug, Args)]
pub struct GpgAgentLauncherArgs {
    /// The socket to listen on, in a folder that its user alone can enter; an abstract one begins with `@`
    pub socket: PathBuf,
}
