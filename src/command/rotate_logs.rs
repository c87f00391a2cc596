//! `anklume rotate-logs`: keeps the logs that Incus writes of the channels bounded; the host's scheduler starts it, as `apply` set it up.

use super::output::Output;
use crate::error::{Exit, Failure};
use crate::host::proxy_logs::rotate_all;

/// Runs `anklume rotate-logs`: says nothing where all is well, as a scheduler sends a mail otherwise.
pub(crate) fn run(output: &Output) -> anyhow::Result<Exit> {
    if !rustix::process::geteuid().is_root() {
        let failure = Failure::new(Exit::Failed, "only root may rotate the logs of Incus");
        return Err(failure
            .help("run this as root: `sudo anklume rotate-logs`")
            .into());
    }
    let failed = rotate_all()?;
    for (path, why) in &failed {
        let path = path.escape_debug();
        output.failure(&format!("`{path}` cannot be rotated: {why}"), None);
    }
    Ok(if failed.is_empty() {
        Exit::Done
    } else {
        Exit::Failed
    })
}
