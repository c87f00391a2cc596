//! `anklume mcp-helper`, hidden: the process that runs a consumer's tools of one resource. Its stdin is the socket to its server,
//! its stdout the socket to the process that speaks with the consumer.

use std::os::unix::net::UnixStream;

use super::serve::{LAST_WORK, keep_panics_short, runtime, shared};
use super::worker::{confine, sockets};
use crate::cli::McpHelperArgs;
use crate::command::output::Output;
use crate::confinement::fence;
use crate::error::Exit;
use crate::mcp::helper::{Work, serve};
use crate::mcp::monitor::Monitor as _;
use crate::mcp::monitor::remote::RemoteMonitor;
use crate::name::ToolName;

/// Threads for work that blocks.
const THREADS: usize = 8;

/// Runs `anklume mcp-helper`.
pub(crate) fn run(args: &McpHelperArgs, output: &Output) -> anyhow::Result<Exit> {
    keep_panics_short(output);
    let (server, consumer) = sockets()?;
    // The process that speaks with the consumer ends with the server, and this one when it does.
    let monitor = RemoteMonitor::new(server.into(), &args.services, || {})?;
    let mut settings = shared::settings()?;
    let policy = monitor.policy();
    settings.idle = policy.services.idle_of(&args.caller);
    settings.limit_signatures(
        policy
            .services
            .in_flight_of(&args.caller, ToolName::GpgSign),
    );
    let tools: Vec<_> = policy
        .services
        .services
        .iter()
        .map(|one| one.tool)
        .collect();
    // Looks for what it will need; no thread of it is left.
    let limits = runtime(THREADS)?.block_on(args.resource.limits(&settings, &tools));
    fence(policy.services.memory_of(&args.caller))?;
    confine(&limits, &policy)?;
    #[cfg(debug_assertions)]
    super::probe::run(args.resource.as_str(), output);
    let runtime = runtime(THREADS)?;
    let work = Work {
        caller: args.caller.clone(),
        resource: args.resource,
        monitor: &monitor,
        settings: settings.into(),
    };
    let socket = UnixStream::from(consumer);
    socket.set_nonblocking(true)?;
    runtime.block_on(async {
        serve(work, socket.try_into()?).await;
        std::io::Result::Ok(())
    })?;
    // Work that was given up takes its leave.
    runtime.shutdown_timeout(LAST_WORK);
    Ok(Exit::Done)
}
