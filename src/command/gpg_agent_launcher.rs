//! `anklume gpg-agent-launcher`, hidden: starts the agent that the calls of `gpg_sign` use, beside their server.

use anyhow::Context as _;

use crate::cli::GpgAgentLauncherArgs;
use crate::error::Exit;
use crate::tool::gpg_launcher;

/// Runs `anklume gpg-agent-launcher SOCKET`, until it is ended.
pub(crate) fn run(args: &GpgAgentLauncherArgs) -> anyhow::Result<Exit> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime
        .block_on(gpg_launcher::serve(&args.socket))
        .with_context(|| format!("cannot listen on `{}`", args.socket.display()))?;
    Ok(Exit::Done)
}
