//! Starts the agent as a process of its own, and runs a command in place of this one.

use std::ffi::OsString;
use std::io;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use std::io::IsTerminal as _;

use rustix::process::setsid;
use tokio::io::AsyncReadExt as _;

use super::{PROCESS, SOCKET};
use crate::cli::SshAgentArgs;
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

/// Starts the agent, which ends with this process if that goes on as a command; returns once it listens.
pub(super) fn start(args: &SshAgentArgs) -> anyhow::Result<BackgroundAgent> {
    block_on(async {
        let until = if args.command.is_empty() {
            0
        } else {
            std::process::id()
        };
        let mut command = this_program_again();
        command.args(["ssh-agent", "--child-of", &until.to_string()]);
        if let Some(socket) = &args.socket {
            command.arg("-a").arg(socket);
        }
        // Refusals are for the person at the terminal; a pipe would wait for the agent to end.
        let stderr = if io::stderr().is_terminal() || until != 0 {
            Stdio::inherit()
        } else {
            Stdio::null()
        };
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(stderr);
        let mut child = command.spawn()?;
        let mut line = String::new();
        if let Some(stdout) = child.stdout.take() {
            stdout.take(LINE_MAX).read_to_string(&mut line).await?;
        }
        let (Some(socket), Some(process)) = (line.strip_suffix('\n'), child.id()) else {
            let failure = Failure::new(Exit::Failed, "the agent did not start");
            let help = "`anklume ssh-agent -D` with the same options says why";
            return Err(failure.help(help).into());
        };
        Ok(BackgroundAgent {
            socket: socket.into(),
            process,
        })
    })
}

/// Leaves the terminal's session, and closes stdout, for which the parent waits.
pub(super) fn detach() -> io::Result<()> {
    setsid()?;
    let null = std::fs::File::options().write(true).open("/dev/null")?;
    rustix::stdio::dup2_stdout(&null)?;
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
