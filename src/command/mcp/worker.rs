//! `anklume mcp-worker`, hidden: the process that serves one consumer. Its stdin is the socket to its server, its stdout the
//! socket that the consumer connects to.

use std::fs::File;
use std::os::fd::AsFd as _;
use std::os::unix::net::{UnixListener, UnixStream};

use anyhow::Context as _;
use rustix::process::{Signal, set_parent_process_death_signal};
use rustix::stdio::{dup2_stdin, dup2_stdout, stdin, stdout};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use super::serve::{LAST_WORK, keep_panics_short, shared};
use crate::cli::McpWorkerArgs;
use crate::command::output::Output;
use crate::error::Exit;
use crate::mcp::accept::Accepting;
use crate::mcp::monitor::remote::Remote;
use crate::mcp::server::Stop;
use crate::mcp::worker::{ABORT, DRAIN, STOP_ACCEPTING};

/// Threads for work that blocks: as many as the tools of one connection that run at a time.
const THREADS: usize = 8;

/// Runs `anklume mcp-worker`.
pub(crate) fn run(args: &McpWorkerArgs, output: &Output) -> anyhow::Result<Exit> {
    // Nothing runs that no server logs.
    set_parent_process_death_signal(Some(Signal::KILL))?;
    keep_panics_short(output);
    let server = UnixStream::from(stdin().try_clone_to_owned()?);
    let listener = UnixListener::from(stdout().as_fd().try_clone_to_owned()?);
    let null = File::options().read(true).write(true).open("/dev/null")?;
    dup2_stdin(&null)?;
    dup2_stdout(&null)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(THREADS)
        .build()
        .context("cannot start")?;
    let ended = runtime.block_on(serve(args, server, listener, output));
    // Work that was given up takes its leave.
    runtime.shutdown_timeout(LAST_WORK);
    ended.map(|()| Exit::Done)
}

async fn serve(
    args: &McpWorkerArgs,
    server: UnixStream,
    listener: UnixListener,
    output: &Output,
) -> anyhow::Result<()> {
    let (close, stop) = orders()?;
    let lost = CancellationToken::new();
    let (without_server, ends) = (lost.clone(), stop.clone());
    let monitor = Remote::new(server, &args.services, move || {
        without_server.cancel();
        ends.gently.cancel();
        ends.now.cancel();
    })?;
    let accepting = Accepting {
        caller: args.caller.clone(),
        listener: listener.try_into()?,
        shared: shared::shared(monitor, output)?,
        connections: stop,
    };
    accepting.run(close).await;
    anyhow::ensure!(!lost.is_cancelled(), "the server does not respond");
    Ok(())
}

/// What the server's signals are to bring about.
fn orders() -> anyhow::Result<(CancellationToken, Stop)> {
    let (close, stop) = (CancellationToken::new(), Stop::default());
    let orders = [
        (STOP_ACCEPTING, vec![close.clone()]),
        (DRAIN, vec![stop.gently.clone()]),
        (ABORT, vec![stop.gently.clone(), stop.now.clone()]),
    ];
    for (order, tokens) in orders {
        let mut given = signal(SignalKind::from_raw(order.as_raw()))?;
        tokio::spawn(async move {
            if given.recv().await.is_some() {
                tokens.iter().for_each(CancellationToken::cancel);
            }
        });
    }
    Ok((close, stop))
}
