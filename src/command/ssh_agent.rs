//! `anklume ssh-agent`: an SSH agent without keys, whose signatures are made by the `ssh_sign` services of other machines.
//!
//! It lists the public keys of these services and forwards signing requests; the providers decide. It refuses everything
//! else that agents do.

mod background;
mod connection;
mod provider_keys;
mod socket;

use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use serde_json::json;
use tokio::task::{LocalSet, spawn_blocking};

use super::mcp::interruptible;
use super::output::Output;
use crate::cli::SshAgentArgs;
use crate::error::{Exit, Failure};
use crate::transport::shell_line;
use provider_keys::ProviderKeys;
use socket::AgentSocket;

/// Variables by which SSH programs find an agent, as ssh-agent(1) sets them.
const SOCKET: &str = "SSH_AUTH_SOCK";
const PROCESS: &str = "SSH_AGENT_PID";

/// Runs `anklume ssh-agent`.
pub(super) fn run(args: &SshAgentArgs, output: &Output) -> anyhow::Result<Exit> {
    if args.foreground || args.child_of.is_some() {
        return serve(args, output);
    }
    let Some(agent) = background::start(args, output)? else {
        // It has said why.
        return Ok(Exit::Failed);
    };
    if let [program, arguments @ ..] = args.command.as_slice() {
        return Err(background::replace(program, arguments, &agent).into());
    }
    if let Err(why) = announce(&agent.socket, agent.process, output) {
        // Nobody would know it.
        agent.end();
        return Err(why);
    }
    Ok(Exit::Done)
}

/// Serves until a signal arrives or the watched process exits.
fn serve(args: &SshAgentArgs, output: &Output) -> anyhow::Result<Exit> {
    let parent = args.child_of.and_then(Pid::from_raw);
    // Opened before the parent goes on, so that its number is not another process's.
    let parent = parent.map(|parent| pidfd_open(parent, PidfdFlags::empty()));
    let parent = parent.transpose()?;
    interruptible(async {
        let socket = AgentSocket::bind(args.socket.as_deref()).await?;
        if args.child_of.is_some() {
            // The parent waits for this line, and announces the agent.
            output.answer(&[socket.path().as_os_str().as_bytes(), b"\n"].concat())?;
            background::detach(parent.is_some())?;
        } else {
            announce(socket.path(), std::process::id(), output)?;
        }
        let (keys, tasks) = (ProviderKeys::new(output), LocalSet::new());
        tokio::select! {
            () = tasks.run_until(socket.serve(&keys)) => {}
            () = ended(parent) => {}
        }
        Ok(Exit::Done)
    })
}

/// Waits until a process ends; forever without one.
async fn ended(process: Option<OwnedFd>) {
    let Some(process) = process else {
        return std::future::pending().await;
    };
    // The descriptor is readable once the process has ended (pidfd_open(2)).
    let waiting = spawn_blocking(move || {
        let mut watched = [PollFd::new(&process, PollFlags::IN)];
        while poll(&mut watched, None) == Err(Errno::INTR) {}
    });
    let _ = waiting.await;
}

/// Prints how programs find the agent, in the form of ssh-agent(1), for a shell to evaluate.
fn announce(socket: &Path, process: u32, output: &Output) -> anyhow::Result<()> {
    let json = json!({"socket": socket.to_string_lossy(), "pid": process});
    output.answer_as(&json, || {
        let socket = shell_line([socket]);
        format!(
            "{SOCKET}={socket}; export {SOCKET};\n{PROCESS}={process}; export {PROCESS};\n\
             echo Agent pid {process};\n"
        )
    })
}

/// The failure for an agent that cannot listen on its socket.
fn cannot_listen(socket: &Path, why: &impl std::fmt::Display) -> Failure {
    let shown = crate::text::escaped(&socket.to_string_lossy());
    Failure::new(Exit::Failed, format!("cannot listen on `{shown}`: {why}"))
}
