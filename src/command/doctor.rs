//! `anklume doctor`: walks every channel and says the first thing on its way that is broken, and what mends it.
//!
//! Changes nothing but what the host knows of the providers' logs of calls. Devices, processes, sockets and logs are looked at from the host; what only a machine can say is asked
//! there, within bounds, and shown as the machine's word.

mod report;

use super::apply::open_session;
use super::open_infra;
use super::output::Output;
use crate::cli::{DoctorArgs, InfraArgs};
use crate::doctor::examine;
use crate::edge::{Edge, edges};
use crate::error::{Exit, Failure};
use crate::infra::Infra;
use crate::name::closest;
use crate::session::block_on;
use crate::transport::shell_line;

/// Runs `anklume doctor`.
pub(crate) fn run(args: &DoctorArgs, output: &Output) -> anyhow::Result<Exit> {
    let infra = open_infra(&args.infra, output)?.infra;
    let edges = edges(&infra)?;
    let chosen = chosen(&infra, &edges, &args.machines)?;
    if chosen.is_empty() {
        return report::nothing(&args.machines, output);
    }
    let apply = apply_command(&args.infra);
    let (healths, notes) = block_on(async {
        let session = open_session(output).await?;
        examine(&session, &infra, &edges, &chosen, &apply).await
    })?;
    report::print(&healths, &notes, output)
}

/// The edges that were asked for.
fn chosen<'e>(infra: &Infra, edges: &'e [Edge], names: &[String]) -> anyhow::Result<Vec<&'e Edge>> {
    for name in names {
        if infra.machine(name).is_none() {
            let message = format!("`{}` is no machine of this file", name.escape_debug());
            let machines = infra.machines().map(|(_, machine)| machine.name.as_str());
            let failure = Failure::new(Exit::Usage, message);
            return Err(match closest(name, machines) {
                Some(near) => failure.help(format!("did you mean `{near}`?")),
                None => failure.help("`anklume policy list` shows who serves whom"),
            }
            .into());
        }
    }
    let is_chosen = |edge: &&Edge| {
        let ends = [&edge.consumer, &edge.provider];
        let is_end = |name: &String| ends.iter().any(|end| end.machine.as_str() == name);
        names.is_empty() || names.iter().any(is_end)
    };
    Ok(edges.iter().filter(is_chosen).collect())
}

/// The command that mends nearly everything.
fn apply_command(infra: &InfraArgs) -> String {
    let path = infra.infra.as_ref().map(|path| path.to_string_lossy());
    let mut words = vec!["anklume", "apply"];
    if let Some(path) = &path {
        words.extend(["--infra", path]);
    }
    shell_line(words)
}
