//! Starts the agent as a process of its own, and runs a command in place of this one.

use std::ffi::{OsStr, OsString};
use std::io::{self, IsTerminal as _};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use rustix::process::{Pid, Signal, kill_process, setsid};
use rustix::stdio::{dup2_stderr, dup2_stdout};
use tokio::io::AsyncReadExt as _;

use super::{PROCESS, SOCKET};
use crate::cli::SshAgentArgs;
use crate::command::output::Output;
use crate::error::{Exit, Failure};
use crate::session::block_on;
use crate::transport::this_program_again;

/// Maximum length of the line that an agent writes when it listens, in bytes.
const LINE_MAX: u64 = 4096;

/// A running agent.
pub(super) struct BackgroundAgent {
    pub(super) socket: PathBuf,
    pub(super) process: u32,
}

impl BackgroundAgent {
    pub(super) fn end(&self) {
        let process = i32::try_from(self.process).ok().and_then(Pid::from_raw);
        // It may have ended by itself.
        let _ = process.map(|process| kill_process(process, Signal::TERM));
    }
}

/// Starts the agent; returns once it listens, or `None` if it has said why it cannot. With a command, the agent exits when
/// the command does.
pub(super) fn start(
    args: &SshAgentArgs,
    output: &Output,
) -> anyhow::Result<Option<BackgroundAgent>> {
    block_on(async {
        let until = if args.command.is_empty() {
            0
        } else {
            std::process::id()
        };
        let mut command = this_program_again();
        command.args(["ssh-agent", "--child-of", &until.to_string()]);
        command.args(output.flags());
        if let Some(socket) = &args.socket {
            command.arg("-a").arg(socket);
        }
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        let mut child = command.spawn()?;
        let mut line = Vec::new();
        if let Some(stdout) = child.stdout.take() {
            stdout.take(LINE_MAX).read_to_end(&mut line).await?;
        }
        let socket = line.strip_suffix(b"\n");
        Ok(socket
            .zip(child.id())
            .map(|(socket, process)| BackgroundAgent {
                socket: OsStr::from_bytes(socket).into(),
                process,
            }))
    })
}

/// Leaves the terminal's session, and closes stdout, for which the parent waits. Warnings go to a terminal or, with a
/// command, where the command's go; another stderr might be a pipe whose reader waits for the agent to end.
pub(super) fn detach(has_command: bool) -> io::Result<()> {
    setsid()?;
    let null = std::fs::File::options().write(true).open("/dev/null")?;
    dup2_stdout(&null)?;
    if !has_command && !io::stderr().is_terminal() {
        dup2_stderr(&null)?;
    }
    Ok(())
}

/// Runs a command in place of this process; returns only the reason why it cannot.
pub(super) fn replace(
    program: &OsString,
    arguments: &[OsString],
    agent: &BackgroundAgent,
) -> Failure {
    #[expect(
        clippy::disallowed_methods,
        reason = "runs what the user names, as the user's shell would"
    )]
    let mut command = Command::new(program);
    command
        .args(arguments)
        .env(SOCKET, &agent.socket)
        .env(PROCESS, agent.process.to_string());
    let why = command.exec();
    let shown = crate::text::escaped(&program.to_string_lossy());
    Failure::new(Exit::Failed, format!("cannot run `{shown}`: {why}"))
}
