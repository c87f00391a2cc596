//! `anklume machine-ask`, hidden: what `apply` and `doctor` run inside a consumer; it asks a provider what it offers here.

use std::time::Instant;

use super::errand;
use super::mcp::converse;
use super::output::Output;
use crate::cli::{ChannelArgs, MachineAskArgs};
use crate::error::{Exit, Failure};
use crate::machine_state::Offered;

/// Runs `anklume machine-ask PROVIDER`: 0 whatever comes of it; the answer says what did.
pub(crate) fn run(args: &MachineAskArgs, output: &Output) -> anyhow::Result<Exit> {
    let channel = ChannelArgs {
        instance: Some(args.provider.clone()),
        ..ChannelArgs::default()
    };
    let mut offered = Offered::default();
    let asked = converse(&channel, output, async |server, _| {
        let began = Instant::now();
        let tools = server.tools().await?;
        offered.milliseconds = Some(began.elapsed().as_secs_f64() * 1000.0);
        offered.services = tools
            .into_iter()
            .map(|tool| tool.map(|tool| tool.name.into_owned()))
            .collect();
        Ok(Exit::Done)
    });
    if let Err(why) = asked {
        let exit = why.downcast_ref::<Failure>().map(|failure| failure.exit);
        offered = Offered {
            overloaded: exit == Some(Exit::Overloaded),
            failed: Some(format!("{why:#}").into()),
            ..Offered::default()
        };
    }
    errand::answer(output, &offered)?;
    Ok(Exit::Done)
}
