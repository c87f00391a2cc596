//! `anklume ssh-agent`: an SSH agent without keys, whose signatures are made by the `ssh_sign` services of other machines.
//!
//! It lists the public keys of these services and passes requests for signatures on; the providers decide. It refuses
//! everything else that agents do.

mod background;
mod connection;
mod keys;
mod socket;

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
use keys::Keys;
use socket::AgentSocket;

/// Variables by which SSH programs find an agent, as ssh-agent(1) sets them.
const SOCKET: &str = "SSH_AUTH_SOCK";
const PROCESS: &str = "SSH_AGENT_PID";

/// Runs `anklume ssh-agent`.
pub(super) fn run(args: &SshAgentArgs, output: &Output) -> anyhow::Result<Exit> {
    if args.foreground || args.child_of.is_some() {
        return serve(args, output);
    }
    let agent = background::start(args)?;
    if let [program, arguments @ ..] = args.command.as_slice() {
        return Err(background::replace(program, arguments, &agent).into());
    }
    announce(&agent.socket, agent.process, output)?;
    Ok(Exit::Done)
}

/// Serves until a signal asks to stop, or the process ends on behalf of which this one was started.
fn serve(args: &SshAgentArgs, output: &Output) -> anyhow::Result<Exit> {
    interruptible(async {
        let socket = AgentSocket::bind(args.socket.as_deref())?;
        match args.child_of {
            // The parent, which waits for this line, announces the agent.
            Some(_) => output.answer(format!("{}\n", socket.path().display()).as_bytes())?,
            None => announce(socket.path(), std::process::id(), output)?,
        }
        let ended = ended(args.child_of.unwrap_or_default());
        if args.child_of.is_some() {
            background::detach()?;
        }
        let (keys, tasks) = (Keys::new(output), LocalSet::new());
        tokio::select! {
            () = tasks.run_until(socket.serve(&keys)) => {}
            () = ended => {}
        }
        Ok(Exit::Done)
    })
}

/// Waits until a process ends; forever if the number is 0.
async fn ended(process: i32) {
    let Some(process) = Pid::from_raw(process) else {
        return std::future::pending().await;
    };
    // A process that cannot be watched has ended already. The descriptor is readable once it has (pidfd_open(2)).
    let Ok(process) = pidfd_open(process, PidfdFlags::empty()) else {
        return;
    };
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
