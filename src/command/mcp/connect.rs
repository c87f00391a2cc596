//! `anklume mcp connect`: connects the stdin and stdout of any MCP client to a provider's socket, or serves it all providers
//! of this machine.

use std::io::IsTerminal as _;
use std::sync::Arc;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{FileType, fstat};

use super::with_client::{
    CANNOT_REACH, cannot_reach, find, interruptible, route, timeouts, unavailable, unreachable,
    watch,
};
use crate::cli::{ChannelArgs, McpConnectArgs};
use crate::command::output::Output;
use crate::error::{Exit, Failure};
use crate::mcp::client::Timeouts;
use crate::mcp::gateway::{CALL_MAX, FileFolder, Gateway, Providers};
use crate::mcp::relay::{Relay, RelayEnd};
use crate::text::escaped;
use crate::transport::{self, OpenTransport, Route, RouteContext};

/// Interval for looking whether the client still reads.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// Hint for a person at a terminal.
const HINT: &str = "waiting for MCP messages on stdin, one a line; Ctrl-D ends\n  \
    = help: this is the command for an MCP client; to call a service yourself: `anklume mcp call -i PROVIDER NAME`";

/// Runs `anklume mcp connect`; returns 0 if all requests were answered, 4 if the provider and the client are gone.
pub(super) fn run(args: &McpConnectArgs, output: &Output) -> anyhow::Result<Exit> {
    let wanted = ChannelArgs {
        instance: args.provider.clone().or_else(|| args.instance.clone()),
        project: args.project.clone(),
        socket: args.socket.clone(),
        timeout: args.timeout,
        dry_run: false,
    };
    let names_none = wanted.instance.is_none() && wanted.socket.is_none();
    if names_none && !RouteContext::look().has_sockets() {
        let failure = Failure::new(Exit::Usage, "neither a provider nor a socket is named");
        let help = "`anklume mcp connect PROVIDER`, or `anklume mcp connect --socket PATH`; inside a machine, neither is needed";
        return Err(failure.help(help).into());
    }
    if std::io::stdin().is_terminal() {
        output.say(HINT);
    }
    let timeouts = timeouts(&wanted)?;
    if names_none || args.files.is_some() {
        return serve_gateway(args, wanted, timeouts, output);
    }
    let route = route(&wanted)?;
    interruptible(async {
        let (input, stdout) = rmcp::transport::stdio_pipes();
        let mut relay = Relay::new(input, stdout, nobody_writes);
        let mut opened = open(&route, timeouts, output).await?;
        let mut is_first = true;
        loop {
            let OpenTransport {
                reader,
                writer,
                end,
            } = opened;
            let ended = relay.run(reader, writer, timeouts.call).await?;
            let mut continues = match ended {
                RelayEnd::InOrder | RelayEnd::Unheard => {
                    end.calm().await;
                    return Ok(Exit::Done);
                }
                RelayEnd::Silent { .. } => {
                    return Err(unreachable(&end.silent(timeouts.call)).into());
                }
                RelayEnd::NotGreeted => relay.refuse(NOT_GREETED).await?,
                RelayEnd::Closed => relay.refuse(CLOSED).await?,
                // A provider that never answered may not exist: reports that immediately, while somebody is watching.
                RelayEnd::Vanished { spoke: false, .. } if is_first => {
                    relay.give_up(LOST).await;
                    return Err(unreachable(&end.died(timeouts.first).await).into());
                }
                RelayEnd::Vanished { unanswered, .. } => {
                    let how = match unanswered {
                        0 => "it closed the connection".to_owned(),
                        count => {
                            format!("it closed the connection without answering {count} request(s)")
                        }
                    };
                    if !relay.is_open() {
                        relay.give_up(LOST).await;
                        return Err(unavailable(&how).into());
                    }
                    output.say(&format!(
                        "{}; the next message connects again",
                        cannot_reach(&how)
                    ));
                    relay.outlive(LOST).await?
                }
            };
            is_first = false;
            opened = loop {
                if !continues {
                    return Ok(Exit::Done);
                }
                match open(&route, timeouts, output).await {
                    Ok(opened) => break opened,
                    Err(why) => continues = relay.refuse(&why.to_string()).await?,
                }
            };
        }
    })
}

/// Serves all providers as one MCP server, or one of them with files instead of content.
fn serve_gateway(
    args: &McpConnectArgs,
    wanted: ChannelArgs,
    timeouts: Timeouts,
    output: &Output,
) -> anyhow::Result<Exit> {
    let files = args.files.as_deref().map(|folder| {
        FileFolder::open(folder).map_err(|why| {
            let folder = folder.display().to_string();
            let message = format!("cannot open the folder `{}`: {why}", folder.escape_debug());
            Failure::new(Exit::Failed, message).help("name a folder that exists with `--files`")
        })
    });
    let files = files.transpose()?.map(Arc::new);
    let one = wanted.instance.clone().or_else(|| {
        let socket = wanted.socket.as_deref()?;
        Some(socket.display().to_string())
    });
    let providers = match &one {
        Some(name) => {
            // Reports what is wrong with the flags.
            route(&wanted)?;
            Providers::One(name.clone())
        }
        None => Providers::All(Box::new(|| {
            transport::providers().map_err(|why| why.to_string())
        })),
    };
    let is_all = one.is_none();
    let (output, report) = (output.clone(), output.clone());
    let gateway = Gateway {
        providers,
        timeouts: Timeouts {
            call: wanted.timeout.map_or(CALL_MAX, |_| timeouts.call),
            ..timeouts
        },
        files,
        report: Box::new(move |text| report.say(&format!("note: {}", escaped(text)))),
        open: Box::new(move |name| {
            let mut wanted = wanted.clone();
            if is_all {
                wanted.instance = Some(name);
            }
            let output = output.clone();
            Box::pin(async move {
                let opened = async { open(&route(&wanted)?, timeouts, &output).await };
                opened.await.map_err(in_one_line)
            })
        }),
    };
    interruptible(async {
        if let Some(name) = one {
            // One that never answered may not exist: reports that immediately, while somebody is watching.
            let opened = (gateway.open)(name).await;
            opened.map_err(|why| unavailable(&why))?.end.calm().await;
        }
        let (input, stdout) = rmcp::transport::stdio_pipes();
        tokio::select! {
            () = gateway.serve(input, stdout) => {}
            () = nobody_reads() => {}
        }
        Ok(Exit::Done)
    })
}

/// Writes a failure to reach a provider as a part of a sentence.
fn in_one_line(failure: Failure) -> String {
    let why = failure.message.strip_prefix(CANNOT_REACH);
    let why = why.unwrap_or(&failure.message);
    match failure.help {
        Some(help) => format!("{why}; {help}"),
        None => why.to_owned(),
    }
}

/// The message for a client whose provider answers the handshake differently after a reconnection.
const NOT_GREETED: &str = "the provider no longer answers as it did when this connection began; the next message tries again";

/// The message for a client when its provider closes the connection during reconnection.
const CLOSED: &str =
    "Cannot reach MCP server: it closed the connection; the next message tries again";

/// The message for a client about the requests in flight when its provider disconnected.
const LOST: &str = "the provider closed the connection before it answered: the call may have been carried out; \
    the next message connects again";

/// Opens the channel to wherever the provider is now.
async fn open(
    route: &Route,
    timeouts: Timeouts,
    output: &Output,
) -> Result<OpenTransport, Failure> {
    let channel = find(route.clone(), timeouts, output).await?;
    transport::open(channel, timeouts.first, watch(output))
        .await
        .map_err(|why| unreachable(&why))
}

/// Waits until the reader of our stdout is gone.
async fn nobody_reads() {
    let stdout = rustix::stdio::stdout();
    let gone = PollFlags::ERR | PollFlags::HUP;
    loop {
        tokio::time::sleep(LOOK_INTERVAL).await;
        // Both are reported without being asked for (poll(2)): an error by a pipe, a hangup by a socket.
        let mut ends = [PollFd::new(&stdout, PollFlags::empty())];
        let polled = poll(&mut ends, Some(&Timespec::default()));
        if polled.is_ok() && ends.iter().any(|end| end.revents().intersects(gone)) {
            return;
        }
    }
}

/// Returns whether the writer of our stdin is gone, though stdin may still hold data.
fn nobody_writes() -> bool {
    let stdin = rustix::stdio::stdin();
    let is_file = fstat(stdin)
        .is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile);
    let mut ends = [PollFd::new(&stdin, PollFlags::RDHUP)];
    // On error, assumes that there is a writer.
    let polled = poll(&mut ends, Some(&Timespec::default()));
    let gone = PollFlags::HUP | PollFlags::RDHUP | PollFlags::ERR;
    is_file || (polled.is_ok() && ends.iter().any(|end| end.revents().intersects(gone)))
}
