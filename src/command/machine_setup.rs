//! `anklume machine-setup`, hidden: what `apply` runs inside a machine, with the order on stdin and the report on stdout.

use super::errand;
use super::output::Output;
use crate::error::{Exit, Failure};
use crate::machine_state::Sent;
use crate::setup;

/// Runs `anklume machine-setup`: 0 done, 1 something failed; the report says what.
pub(crate) fn run(output: &Output) -> anyhow::Result<Exit> {
    if !rustix::process::geteuid().is_root() {
        let failure = Failure::new(Exit::Failed, "only root can put a machine in order");
        return Err(failure.help("`anklume apply` on the host does it").into());
    }
    let sent: Sent = serde_json::from_slice(&errand::heard()?).map_err(|why| {
        Failure::new(Exit::Usage, format!("what is on stdin is no order: {why}"))
            .help("`anklume apply` on the host gives one")
    })?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let report = runtime.block_on(setup::carry_out(&sent));
    errand::answer(output, &report)?;
    let done = report.altered.is_none() && report.failed.is_none();
    Ok(if done { Exit::Done } else { Exit::Failed })
}
