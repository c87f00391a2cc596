//! The hidden subcommands, which anklume itself starts.
//!
//! `machine-setup`, `machine-ask` and `machine-key` are the machine's side of [`crate::transport::RemoteExec`], which explains the
//! exchange: they read at most one line, write one, and wait until stdin ends.

use std::fs::File;
use std::io::{self, BufRead as _, Read as _};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::stdio::{dup2_stderr, dup2_stdin, dup2_stdout};
use serde::Serialize;

use super::mcp;
use super::output::{Output, done_or_failed};
use crate::catalogue::{CLIPBOARD_MAX, ONE_CALL_MAX};
use crate::cli::{ChannelArgs, ClipboardAction, InternalCommand};
use crate::error::{Exit, Failure};
use crate::host::proxy_logs::rotate_all;
use crate::machine_state::{Offered, Sent};
use crate::session::block_on;
use crate::tool::clipboard::{HolderAnswer, display};
use crate::tool::gpg_launcher;
use crate::{foreign, machine_root, setup};

/// Maximum length of a setup request, in bytes: a services file and a little more.
const ORDER_MAX: u64 = 32 * 1024 * 1024;
/// Maximum time to wait for the end of stdin after the answer: by then, the peer has read the answer or is gone.
const EOF_TIMEOUT: Duration = Duration::from_secs(10);

/// Runs a hidden subcommand.
pub(crate) fn run(command: &InternalCommand, output: &Output) -> anyhow::Result<Exit> {
    match command {
        InternalCommand::RotateLogs => return rotate_logs(output),
        InternalCommand::MachineSetup => return machine_setup(output),
        InternalCommand::McpWorker { caller, services } => {
            return mcp::run_worker(caller, services, output);
        }
        InternalCommand::McpHelper {
            caller,
            resource,
            services,
        } => return mcp::run_helper(caller, *resource, services, output),
        InternalCommand::ProgramLauncher { address, services } => {
            return mcp::run_launcher(address, services, output);
        }
        InternalCommand::MachineAsk { provider } => machine_ask(provider, output)?,
        InternalCommand::MachineKey { key } => {
            answer(output, &mcp::signing_key(key.as_deref())?)?;
        }
        InternalCommand::MachineSshKey { key } => answer(output, &mcp::ssh_key(key)?)?,
        InternalCommand::MachineDefinitions => {
            // Locked only meanwhile: the answer waits for the end of stdin.
            let report = mcp::definitions(&mut io::stdin().lock())?;
            answer(output, &report)?;
        }
        InternalCommand::MachineRoot { first, cgroup } => {
            machine_root::serve(*first, cgroup, io::stdin().lock(), io::stdout().lock())?;
        }
        InternalCommand::ForeignReader => {
            foreign::serve(io::stdin().lock(), io::stdout().lock())?;
        }
        InternalCommand::ClipboardHolder { action } => match action {
            ClipboardAction::Read => output.answer(&display::read(false).write())?,
            ClipboardAction::ReadPassword => output.answer(&display::read(true).write())?,
            ClipboardAction::Hold => hold_clipboard(output, false)?,
            ClipboardAction::HoldImage => hold_clipboard(output, true)?,
        },
        InternalCommand::GpgAgentLauncher { socket } => block_on(async {
            let served = gpg_launcher::serve(socket).await;
            served.with_context(|| format!("cannot listen on `{}`", socket.display()))
        })?,
    }
    Ok(Exit::Done)
}

/// Rotates the logs; silent on success, because a scheduler mails any output.
fn rotate_logs(output: &Output) -> anyhow::Result<Exit> {
    require_root(
        "only root may rotate Incus's logs",
        "run this as root: `sudo anklume rotate-logs`",
    )?;
    let failed = rotate_all()?;
    for (path, why) in &failed {
        let path = path.escape_debug();
        output.failure(&format!("`{path}` cannot be rotated: {why}"), None);
    }
    Ok(done_or_failed(failed.is_empty()))
}

/// Carries out the setup request on stdin and writes the report to stdout.
fn machine_setup(output: &Output) -> anyhow::Result<Exit> {
    require_root(
        "only root can set up a machine",
        "run `anklume apply` on the host instead",
    )?;
    let mut line = Vec::new();
    io::stdin()
        .lock()
        .take(ORDER_MAX)
        .read_until(b'\n', &mut line)?;
    let sent: Sent = serde_json::from_slice(&line).map_err(|why| {
        Failure::new(
            Exit::Usage,
            format!("stdin does not contain a valid setup request: {why}"),
        )
        .help("`anklume apply` on the host sends one")
    })?;
    let report = block_on(async { Ok(setup::carry_out(&sent).await) })?;
    answer(output, &report)?;
    let done = report.altered.is_none() && report.failed.is_none();
    Ok(done_or_failed(done))
}

fn require_root(message: &str, help: &str) -> Result<(), Failure> {
    if rustix::process::geteuid().is_root() {
        return Ok(());
    }
    Err(Failure::new(Exit::Failed, message).help(help))
}

/// Asks a provider for the services that it offers this machine. The answer contains the failure, if any.
fn machine_ask(provider: &str, output: &Output) -> anyhow::Result<()> {
    let channel = ChannelArgs {
        instance: Some(provider.to_owned()),
        ..ChannelArgs::default()
    };
    let mut offered = Offered::default();
    let asked = mcp::with_client(&channel, output, async |server, _| {
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
    answer(output, &offered)
}

/// Writes the answer, then waits until stdin ends or fails, or the time runs out.
fn answer(output: &Output, answer: &impl Serialize) -> anyhow::Result<()> {
    let mut line = serde_json::to_vec(answer)?;
    line.push(b'\n');
    output.answer(&line)?;
    let end = Instant::now() + EOF_TIMEOUT;
    let mut stdin = io::stdin().lock();
    let mut rest = [0; 1024];
    while let Some(left) = end.checked_duration_since(Instant::now()) {
        let ready = {
            let mut streams = [PollFd::new(&stdin, PollFlags::IN)];
            poll(&mut streams, Timespec::try_from(left).ok().as_ref())
        };
        if !ready.is_ok_and(|ready| ready > 0) || !stdin.read(&mut rest).is_ok_and(|read| read > 0)
        {
            break;
        }
    }
    Ok(())
}

/// Holds the text, or the image, from stdin on the clipboard. Leaves the server's session and folder, because this
/// process outlives both.
fn hold_clipboard(output: &Output, is_image: bool) -> anyhow::Result<()> {
    // Fails only if this process already leads a process group.
    let _ = rustix::process::setsid();
    std::env::set_current_dir("/")?;
    let max = if is_image {
        ONE_CALL_MAX
    } else {
        u64::try_from(CLIPBOARD_MAX)?
    };
    let mut stdin = io::stdin().lock();
    let mut length = [0; size_of::<u64>()];
    stdin.read_exact(&mut length)?;
    let length = u64::from_le_bytes(length).min(max);
    let mut content = Vec::new();
    stdin.take(length).read_to_end(&mut content)?;
    anyhow::ensure!(content.len() as u64 == length, "the content ended early");
    let mut answered = Ok(());
    let answer = |answer: HolderAnswer| answered = answer_and_detach(output, &answer);
    if is_image {
        display::hold_image(content, answer);
    } else {
        display::hold(String::from_utf8(content)?, answer);
    }
    answered
}

/// Answers, then releases stdin, stdout and stderr, so that no process waits for them to close.
fn answer_and_detach(output: &Output, answer: &HolderAnswer) -> anyhow::Result<()> {
    output.answer(&answer.write())?;
    let null = File::options().read(true).write(true).open("/dev/null")?;
    dup2_stdin(&null)?;
    dup2_stdout(&null)?;
    Ok(dup2_stderr(&null)?)
}
