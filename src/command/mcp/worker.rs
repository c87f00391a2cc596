//! `anklume mcp-worker`, hidden: the process that serves one consumer. Its stdin is the socket to its server, its stdout the
//! socket that the consumer connects to.

use std::fs::File;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::UnixListener;
use std::sync::Arc;

use anyhow::Context as _;
use rustix::process::{Signal, set_parent_process_death_signal};
use rustix::stdio::{dup2_stdin, dup2_stdout, stdin, stdout};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use super::serve::{LAST_WORK, keep_panics_short, runtime, shared};
use crate::cli::McpWorkerArgs;
use crate::command::output::Output;
use crate::confinement::{self, AllowedCalls, InForce, ProcessLimits, fence};
use crate::error::Exit;
use crate::infra::Confinement;
use crate::mcp::helper::Helpers;
use crate::mcp::monitor::Monitor as _;
use crate::mcp::monitor::remote::RemoteMonitor;
use crate::mcp::policy_watcher::Policy;
use crate::mcp::server::Shutdown;
use crate::mcp::throttle::ReadThrottle;
use crate::mcp::worker::{ABORT, Acceptor, DRAIN, STOP_ACCEPTING};
use crate::tool::{Resource, portal_limits};

/// Threads for work that blocks: as many as the tools of one connection that run at a time.
const THREADS: usize = 8;

/// Runs `anklume mcp-worker`.
pub(crate) fn run(args: &McpWorkerArgs, output: &Output) -> anyhow::Result<Exit> {
    // Nothing runs that no server logs.
    set_parent_process_death_signal(Some(Signal::KILL))?;
    keep_panics_short(output);
    let (server, listener) = sockets()?;
    let (stop, lost) = (Shutdown::default(), CancellationToken::new());
    let (without_server, ends) = (lost.clone(), stop.clone());
    let monitor = RemoteMonitor::new(server.into(), &args.services, move || {
        without_server.cancel();
        ends.graceful.cancel();
        ends.immediate.cancel();
    })?;
    let mut settings = shared::settings()?;
    let policy = monitor.policy();
    settings.idle = policy.services.idle_of(&args.caller);
    let granted = policy.services.services.iter();
    let mut granted = granted.map(|service| Resource::of(service.tool));
    // A portal that is not there yet is out of reach for good: what comes for it goes to a process that begins later.
    let has_portal =
        granted.any(|resource| resource == Resource::Portal) && settings.portal.is_dir();
    let own = has_portal.then_some(Resource::Portal);
    let limits = match own {
        Some(_) => portal_limits(&settings),
        None => NOTHING,
    };
    let memory = policy.services.memory_of(&args.caller);
    fence(memory)?;
    confine(&limits, &policy)?;
    #[cfg(debug_assertions)]
    super::probe::run("worker", output);
    let runtime = runtime(THREADS)?;
    let helpers = Helpers::new(own, settings.idle, monitor.starts_helpers());
    let throttle = Arc::new(ReadThrottle::with_memory(
        memory,
        Box::new(monitor.lender()),
    ));
    let shared = shared::shared(monitor, settings, Some(helpers), output);
    let ended = runtime.block_on(async {
        let close = orders(&stop)?;
        let acceptor = Acceptor {
            caller: args.caller.clone(),
            listener: UnixListener::from(listener).try_into()?,
            shared,
            throttle,
            connections: stop,
        };
        acceptor.run(close).await;
        anyhow::ensure!(!lost.is_cancelled(), "the server does not respond");
        Ok(())
    });
    // Work that was given up takes its leave.
    runtime.shutdown_timeout(LAST_WORK);
    ended.map(|()| Exit::Done)
}

/// Neither files nor programs.
const NOTHING: ProcessLimits = ProcessLimits {
    calls: AllowedCalls::Worker { files: false },
    files: Some(Vec::new()),
    network: false,
};

/// Takes stdin and stdout, which are sockets, and leaves nothing there.
pub(super) fn sockets() -> anyhow::Result<(OwnedFd, OwnedFd)> {
    let both = (
        stdin().try_clone_to_owned()?,
        stdout().as_fd().try_clone_to_owned()?,
    );
    let null = File::options().read(true).write(true).open("/dev/null")?;
    dup2_stdin(&null)?;
    dup2_stdout(&null)?;
    Ok(both)
}

/// Limits this process for good.
pub(super) fn confine(limits: &ProcessLimits, policy: &Policy) -> anyhow::Result<InForce> {
    let in_force = confinement::enter(limits).context("cannot be confined")?;
    match in_force.missing() {
        Some(why) if policy.services.confinement == Confinement::Required => {
            Err(shared::unconfined(&why).into())
        }
        _ => Ok(in_force),
    }
}

/// What the server's signals are to bring about.
fn orders(stop: &Shutdown) -> anyhow::Result<CancellationToken> {
    let close = CancellationToken::new();
    let orders = [
        (STOP_ACCEPTING, vec![close.clone()]),
        (DRAIN, vec![stop.graceful.clone()]),
        (ABORT, vec![stop.graceful.clone(), stop.immediate.clone()]),
    ];
    for (order, tokens) in orders {
        let mut given = signal(SignalKind::from_raw(order.as_raw()))?;
        tokio::spawn(async move {
            if given.recv().await.is_some() {
                tokens.iter().for_each(CancellationToken::cancel);
            }
        });
    }
    Ok(close)
}
