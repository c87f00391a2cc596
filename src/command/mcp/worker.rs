//! The processes for one consumer, both hidden subcommands: `anklume mcp-worker`, which talks to it, and
//! `anklume mcp-helper`, which runs its tools for one resource.
//!
//! The stdin of both is the socket to their server. A worker's stdout is the socket that the consumer connects to;
//! a helper's is the socket to the worker.

use std::fs::File;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;

use anyhow::Context as _;
use jiff::Timestamp;
use rustix::process::{Signal, set_parent_process_death_signal};
use rustix::stdio::{dup2_stdin, dup2_stdout, stdin, stdout};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use super::serve::{CLEANUP_TIMEOUT, redact_panics, runtime, shared};
use crate::command::output::Output;
use crate::confinement::{self, ProcessLimits, fence};
use crate::error::Exit;
use crate::infra::Confinement;
use crate::mcp::helper::{Helpers, Work, serve};
use crate::mcp::monitor::Monitor as _;
use crate::mcp::monitor::remote::RemoteMonitor;
use crate::mcp::policy_watcher::Policy;
use crate::mcp::server::Shutdown;
use crate::mcp::throttle::ReadThrottle;
use crate::mcp::worker::{ABORT, Acceptor, DRAIN, STOP_ACCEPTING};
use crate::name::{MachineName, ServiceTool, ToolName};
use crate::policy::Caller;
use crate::tool::{NOTHING, Resource, ToolSession, portal_limits};

/// Threads for blocking work: as many as the tools that one connection can run at a time.
const THREADS: usize = 8;

/// Runs `anklume mcp-worker`.
pub(crate) fn run_worker(
    caller: &MachineName,
    services: &Path,
    output: &Output,
) -> anyhow::Result<Exit> {
    // Nothing may run without a server to log it.
    set_parent_process_death_signal(Some(Signal::KILL))?;
    redact_panics(output);
    let (server, listener) = take_sockets()?;
    let (stop, lost) = (Shutdown::default(), CancellationToken::new());
    let (on_loss, ends) = (lost.clone(), stop.clone());
    let monitor = RemoteMonitor::new(server.into(), services, move || {
        on_loss.cancel();
        ends.graceful.cancel();
        ends.immediate.cancel();
    })?;
    let mut settings = shared::settings()?;
    let policy = monitor.policy();
    settings.idle = policy.services.idle_of(caller);
    let mut granted = policy.services.services.iter();
    // A portal that does not exist yet stays out of reach; calls to it go to a process that is started later.
    let now = Timestamp::now();
    let has_portal = granted.any(|service| {
        service.serves_at(caller, now) && Resource::of(&service.tool) == Resource::Portal
    }) && settings.portal.is_dir();
    let (own, limits) = if has_portal {
        (Some(Resource::Portal), portal_limits(&settings))
    } else {
        (None, NOTHING)
    };
    let memory = policy.services.memory_of(caller);
    confine(memory, &limits, &policy)?;
    #[cfg(debug_assertions)]
    probe::run("worker", output);
    let runtime = runtime(THREADS)?;
    let helpers = Helpers::new(
        move |resource| own == Some(resource),
        settings.idle,
        monitor.starts_helpers(),
    );
    let lender = Box::new(monitor.lender());
    let throttle = Arc::new(ReadThrottle::with_memory(memory, lender));
    let shared = shared::shared(monitor, settings, Some(helpers), output);
    let ended = runtime.block_on(async {
        let close = watch_orders(&stop)?;
        let acceptor = Acceptor {
            caller: caller.clone(),
            listener: UnixListener::from(listener).try_into()?,
            shared,
            throttle,
            connections: stop,
        };
        acceptor.run(close).await;
        anyhow::ensure!(!lost.is_cancelled(), "the server does not respond");
        Ok(Exit::Done)
    });
    // Cancelled work gets time to clean up.
    runtime.shutdown_timeout(CLEANUP_TIMEOUT);
    ended
}

/// Runs `anklume mcp-helper`.
pub(crate) fn run_helper(
    caller: &MachineName,
    resource: Resource,
    services: &Path,
    output: &Output,
) -> anyhow::Result<Exit> {
    redact_panics(output);
    let (server, consumer) = take_sockets()?;
    // The worker ends when the server does, and this process ends when the worker does.
    let monitor = RemoteMonitor::new(server.into(), services, || {})?;
    let mut settings = shared::settings()?;
    let policy = monitor.policy();
    settings.idle = policy.services.idle_of(caller);
    settings.limit_signatures(policy.services.in_flight_of(caller, ToolName::GpgSign));
    let tools = policy.services.services.iter().map(|one| one.tool.clone());
    let tools: Vec<ServiceTool> = tools.collect();
    // Uses a separate runtime, so that none of its threads are left when the process is confined.
    let limits = runtime(THREADS)?.block_on(resource.limits(&settings, &tools));
    confine(policy.services.memory_of(caller), &limits, &policy)?;
    #[cfg(debug_assertions)]
    probe::run(resource.as_str(), output);
    let runtime = runtime(THREADS)?;
    let settings = Arc::new(settings);
    let work = Work {
        changed: &Vec::new,
        caller: Caller::Consumer(caller.clone()),
        resource,
        policy: &|| monitor.policy(),
        session: &|| Arc::new(ToolSession::new(Arc::clone(&settings))),
        // The worker limits them.
        calls_max: usize::MAX,
    };
    let socket = UnixStream::from(consumer);
    socket.set_nonblocking(true)?;
    runtime.block_on(async {
        serve(work, socket.try_into()?).await;
        std::io::Result::Ok(())
    })?;
    // Cancelled work gets time to clean up.
    runtime.shutdown_timeout(CLEANUP_TIMEOUT);
    Ok(Exit::Done)
}

/// Takes stdin and stdout, which are sockets, and replaces them with `/dev/null`.
fn take_sockets() -> anyhow::Result<(OwnedFd, OwnedFd)> {
    let both = (
        stdin().try_clone_to_owned()?,
        stdout().as_fd().try_clone_to_owned()?,
    );
    let null = File::options().read(true).write(true).open("/dev/null")?;
    dup2_stdin(&null)?;
    dup2_stdout(&null)?;
    Ok(both)
}

/// Confines this process permanently, with this memory budget in bytes.
fn confine(memory: u64, limits: &ProcessLimits, policy: &Policy) -> anyhow::Result<()> {
    fence(memory)?;
    let in_force = confinement::enter(limits).context("cannot be confined")?;
    match in_force.missing() {
        Some(why) if policy.services.confinement == Confinement::Required => {
            Err(shared::unconfined(&why).into())
        }
        _ => Ok(()),
    }
}

/// Obeys the server's signals; the returned token is cancelled when the worker must stop accepting connections.
fn watch_orders(stop: &Shutdown) -> anyhow::Result<CancellationToken> {
    let close = CancellationToken::new();
    let orders = [
        (STOP_ACCEPTING, vec![close.clone()]),
        (DRAIN, vec![stop.graceful.clone()]),
        (ABORT, vec![stop.graceful.clone(), stop.immediate.clone()]),
    ];
    for (order, tokens) in orders {
        let mut received = signal(SignalKind::from_raw(order.as_raw()))?;
        tokio::spawn(async move {
            if received.recv().await.is_some() {
                tokens.iter().for_each(CancellationToken::cancel);
            }
        });
    }
    Ok(close)
}

/// Probes what a confined process can still do, for the tests; in debug builds only.
#[cfg(debug_assertions)]
mod probe {
    use std::fs::File;
    use std::net::TcpStream;
    use std::os::unix::fs::PermissionsExt as _;
    use std::os::unix::net::{UnixDatagram, UnixStream};
    use std::path::Path;

    use rustix::fs::{Mode, OFlags, fchmod, open};
    use rustix::process::{Pid, test_kill_process};

    use crate::command::output::Output;

    /// The variable that lists the attempts, one per line: a verb and its object.
    const VARIABLE: &str = "ANKLUME_PROBE";

    /// Makes each attempt and writes its result to stderr.
    pub(super) fn run(process: &str, output: &Output) {
        let attempts = std::env::var(VARIABLE).unwrap_or_default();
        for attempt in attempts.lines() {
            let (verb, object) = attempt.split_once(' ').unwrap_or((attempt, ""));
            let result = attempted(verb, object);
            let result = result.map_or_else(|why| why.to_string(), |()| "done".to_owned());
            output.stderr(&format!("probe {process}: {attempt}: {result}"));
        }
    }

    fn attempted(verb: &str, object: &str) -> std::io::Result<()> {
        let path = Path::new(object);
        match verb {
            "read" => File::open(path).map(drop),
            "append" => File::options().append(true).open(path).map(drop),
            "make" => File::create(path).map(drop),
            "connect" => UnixStream::connect(path).map(drop),
            "datagram" => {
                let (one, _) = UnixDatagram::pair()?;
                one.send_to(b"x", path).map(drop)
            }
            "mode" => std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o4755)),
            "neither" => {
                let flags = OFlags::from_bits_retain(3);
                Ok(fchmod(open(path, flags, Mode::empty())?, Mode::RWXU)?)
            }
            "tcp" => TcpStream::connect(object).map(drop),
            "run" => run_program(path),
            "signal" => {
                let process = object.parse().ok().and_then(Pid::from_raw);
                let process = process.ok_or(std::io::ErrorKind::InvalidInput)?;
                Ok(test_kill_process(process)?)
            }
            _ => Err(std::io::ErrorKind::InvalidInput.into()),
        }
    }

    fn run_program(path: &Path) -> std::io::Result<()> {
        #[expect(clippy::disallowed_methods, reason = "it must not run")]
        let mut command = std::process::Command::new(path);
        command.status().map(drop)
    }
}
