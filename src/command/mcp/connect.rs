//! `anklume mcp connect`: stdin and stdout of any MCP client, joined to a provider's socket.

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{FileType, fstat};

use super::converse::{cannot_reach, find, interruptible, patience, unreachable, watch, way};
use crate::channel;
use crate::cli::{ChannelArgs, McpConnectArgs};
use crate::command::output::Output;
use crate::error::{Exit, Failure};
use crate::mcp::relay::{Client, Ended, Provider, relay};

/// Runs `anklume mcp connect`: 0 when every request was answered, 4 when the provider vanished.
pub(super) fn run(args: &McpConnectArgs, output: &Output) -> anyhow::Result<Exit> {
    let wanted = ChannelArgs {
        instance: args.provider.clone(),
        project: args.project.clone(),
        socket: args.socket.clone(),
        timeout: args.timeout,
        dry_run: false,
    };
    if wanted.instance.is_none() && wanted.socket.is_none() {
        return Err(
            Failure::new(Exit::Usage, "neither a provider nor a socket is named")
                .help("`anklume mcp connect PROVIDER`, or `anklume mcp connect --socket PATH`")
                .into(),
        );
    }
    let patience = patience(&wanted)?;
    let way = way(&wanted)?;
    interruptible(async {
        let channel = find(way, patience, output).await?;
        let opened = channel::open(channel, patience.first, watch(output))
            .await
            .map_err(|why| unreachable(&why))?;
        let (input, output) = rmcp::transport::stdio_pipes();
        let client = Client {
            input,
            output,
            gone: nobody_writes,
        };
        let provider = Provider {
            reader: opened.reader,
            writer: opened.writer,
        };
        let ended = relay(client, provider, patience.call).await?;
        match ended {
            Ended::InOrder | Ended::Unheard => {
                opened.end.calm().await;
                Ok(Exit::Done)
            }
            Ended::Vanished {
                unanswered: 0,
                spoke: true,
            } => Err(vanished("it closed the connection")),
            Ended::Vanished { spoke: false, .. } => {
                Err(unreachable(&opened.end.died(patience.first).await))
            }
            Ended::Vanished { unanswered, .. } => Err(vanished(&format!(
                "it closed the connection and owes {unanswered} answer(s)"
            ))),
            Ended::Silent { .. } => Err(unreachable(&opened.end.silent(patience.call))),
        }
    })
}

/// Whether nobody writes into our stdin any more, though there may be much in it to read.
fn nobody_writes() -> bool {
    let stdin = rustix::stdio::stdin();
    let is_file = fstat(stdin)
        .is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile);
    let mut ends = [PollFd::new(&stdin, PollFlags::RDHUP)];
    // Where it cannot be asked, there is somebody.
    let asked = poll(&mut ends, Some(&Timespec::default()));
    let gone = PollFlags::HUP | PollFlags::RDHUP | PollFlags::ERR;
    is_file || (asked.is_ok() && ends.iter().any(|end| end.revents().intersects(gone)))
}

fn vanished(how: &str) -> anyhow::Error {
    Failure::new(Exit::Unavailable, cannot_reach(&how)).into()
}
