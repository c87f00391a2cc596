//! A conversation with a server, from the flags of the command line to its end; and why there was none, in words.

use std::io;
use std::time::Duration;

use rmcp::model::{ErrorCode, ErrorData};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::signal::unix::{SignalKind, signal};

use crate::cli::ChannelArgs;
use crate::command::output::Output;
use crate::error::{Exit, Failure};
use crate::mcp::LINE_MAX;
use crate::mcp::client::pieces::PiecesError;
use crate::mcp::client::{Client, ClientError, Timeouts};
use crate::mcp::server::OVERLOADED;
use crate::text::Foreign;
use crate::transport::{self, Route, RouteContext, Transport, Unreachable, WantedMachine, Watch};

/// Maximum time-out that a user may ask for, in seconds: a day.
const TIMEOUT_MAX: f64 = 86_400.0;

/// A server that answered.
pub(in crate::command) type ServerClient =
    Client<Box<dyn AsyncRead + Send + Unpin>, Box<dyn AsyncWrite + Send + Unpin>>;

/// The reason why a conversation ended without what was asked for.
#[derive(Debug, thiserror::Error)]
pub(in crate::command) enum BrokenCall {
    /// The protocol or the stream.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// Anything else.
    #[error(transparent)]
    Other(#[from] anyhow::Error),
}

impl From<Failure> for BrokenCall {
    fn from(failure: Failure) -> Self {
        Self::Other(failure.into())
    }
}

impl From<io::Error> for BrokenCall {
    fn from(why: io::Error) -> Self {
        Self::Other(why.into())
    }
}

impl From<PiecesError> for BrokenCall {
    fn from(why: PiecesError) -> Self {
        match why {
            PiecesError::Client(why) => Self::Client(why),
            PiecesError::Read(_) | PiecesError::TooLarge | PiecesError::Keep(_) => {
                Self::Other(why.into())
            }
        }
    }
}

/// Opens the channel that the flags ask for and talks over it; ends what was started, whatever happens.
pub(in crate::command) fn converse(
    args: &ChannelArgs,
    output: &Output,
    talk: impl AsyncFnOnce(&mut ServerClient, &Transport) -> Result<Exit, BrokenCall>,
) -> anyhow::Result<Exit> {
    let patience = patience(args)?;
    let way = way(args)?;
    let conversation = async {
        let channel = find(way, patience, output).await?;
        hold(channel, patience, output, talk).await
    };
    interruptible(conversation)
}

/// The way that the flags ask for.
pub(super) fn way(args: &ChannelArgs) -> Result<Route, Failure> {
    let wanted = WantedMachine {
        instance: args.instance.as_deref(),
        project: args.project.as_deref(),
        socket: args.socket.as_deref(),
    };
    transport::way(wanted, &RouteContext::look())
        .map_err(|fault| Failure::new(Exit::Usage, fault.to_string()))
}

/// Time to wait.
pub(super) fn patience(args: &ChannelArgs) -> Result<Timeouts, Failure> {
    let Some(seconds) = args.timeout else {
        return Ok(Timeouts::default());
    };
    let given = (seconds > 0.0 && seconds <= TIMEOUT_MAX)
        .then(|| Duration::from_secs_f64(seconds))
        .filter(|given| !given.is_zero());
    let Some(given) = given else {
        let message =
            format!("`--timeout` is more than 0 and at most {TIMEOUT_MAX} seconds, not {seconds}");
        return Err(Failure::new(Exit::Usage, message));
    };
    Ok(Timeouts {
        first: given,
        call: given,
    })
}

/// Runs to the end, or to the first signal that asks to stop; then everything that was started is ended.
pub(super) fn interruptible(
    work: impl Future<Output = anyhow::Result<Exit>>,
) -> anyhow::Result<Exit> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let result = runtime.block_on(async {
        let mut asked = Vec::new();
        for kind in [
            SignalKind::interrupt(),
            SignalKind::terminate(),
            SignalKind::hangup(),
        ] {
            asked.push(signal(kind)?);
        }
        let any = std::future::poll_fn(|context| {
            let ready = asked
                .iter_mut()
                .any(|one| one.poll_recv(context).is_ready());
            if ready {
                std::task::Poll::Ready(())
            } else {
                std::task::Poll::Pending
            }
        });
        tokio::select! {
            result = work => result,
            () = any => Ok(Exit::Interrupted),
        }
    });
    // A thread that still reads stdin is not waited for.
    runtime.shutdown_background();
    result
}

/// From a way to a channel: which machine it is.
pub(super) async fn find(
    way: Route,
    patience: Timeouts,
    output: &Output,
) -> anyhow::Result<Transport> {
    let channel = transport::resolve(way, patience.first)
        .await
        .map_err(|why| unreachable(&why))?;
    if let (Transport::Exec(machine), true) = (&channel, output.verbose()) {
        output.say(&format!(
            "machine `{}` is in project `{}`",
            machine.name, machine.project
        ));
    }
    Ok(channel)
}

async fn hold(
    channel: Transport,
    patience: Timeouts,
    output: &Output,
    talk: impl AsyncFnOnce(&mut ServerClient, &Transport) -> Result<Exit, BrokenCall>,
) -> anyhow::Result<Exit> {
    let opened = transport::open(channel, patience.first, watch(output))
        .await
        .map_err(|why| unreachable(&why))?;
    let end = opened.end;
    let (mut spoke, mut called) = (false, false);
    let spoken = match Client::start(opened.reader, opened.writer, patience, LINE_MAX).await {
        Ok(mut client) => {
            spoke = true;
            let spoken = talk(&mut client, &end.channel).await;
            called = client.has_called();
            spoken
        }
        Err(why) => Err(why.into()),
    };
    // The streams are closed by now, and only now: a server that waits for the end of its stdin ends.
    let fault = match spoken {
        Ok(exit) => {
            end.calm().await;
            return Ok(exit);
        }
        Err(BrokenCall::Client(fault)) => fault,
        Err(BrokenCall::Other(error)) => return Err(error),
    };
    let failure = match fault {
        // Somebody serves there, or did a moment ago.
        ClientError::Closed if spoke && matches!(end.channel, Transport::Socket(_)) => {
            Failure::new(Exit::Unavailable, cannot_reach(&fault))
                .help("ask whoever runs the provider")
        }
        ClientError::Closed => failure(&end.died(patience.first).await),
        ClientError::Silent(waited) => failure(&end.silent(waited)),
        ClientError::Refused { .. } => {
            let failure = refused(&fault);
            end.calm().await;
            return Err(failure.into());
        }
        // This one answered.
        ClientError::Malformed { .. } => {
            return Err(Failure::new(Exit::Unavailable, cannot_reach(&fault)).into());
        }
        other => Failure::new(Exit::Unavailable, cannot_reach(&other)),
    };
    Err(maybe_done(failure, called).into())
}

/// An error of the protocol. What the policy refuses is told by an unknown tool; overloaded is no refusal, and the same call
/// may be made again.
fn refused(fault: &ClientError) -> Failure {
    match fault {
        ClientError::Refused { refusal, .. } if refusal.raw().code.0 == OVERLOADED => {
            let words = refusal.part(|refusal| &*refusal.message).escaped();
            let failure = Failure::new(Exit::Overloaded, format!("the provider is {words}"));
            failure.help("nothing was refused; the same call may be made again")
        }
        ClientError::Refused { refusal, .. } => {
            let failure = Failure::new(Exit::Failed, fault.to_string());
            match ran_unlogged(refusal.raw()) {
                Some(true) => failure.help(format!(
                    "what it does is done: look before you make it again; {ITS_LOG}"
                )),
                Some(false) => failure.help(format!("nothing was done; {ITS_LOG}")),
                None => failure,
            }
        }
        _ => Failure::new(Exit::Failed, fault.to_string()),
    }
}

/// Who can mend a log that cannot be written.
const ITS_LOG: &str = "whoever runs the provider sees what is wrong with the log";

/// Returns whether a call ran that the provider could not log; nothing where that is not what it says.
fn ran_unlogged(refusal: &ErrorData) -> Option<bool> {
    let data = refusal.data.as_ref()?;
    (data.get("logged")?.as_bool() == Some(false)).then(|| data.get("ran")?.as_bool())?
}

/// Passes a server's stderr on for whoever wants to see more.
pub(super) fn watch(output: &Output) -> Watch {
    let output = output.clone();
    Box::new(move |line| {
        if output.verbose() {
            output.say(&Foreign::new(line).lines());
        }
    })
}

pub(super) fn cannot_reach(why: &impl std::fmt::Display) -> String {
    format!("Cannot reach MCP server: {why}")
}

fn failure(why: &Unreachable) -> Failure {
    let failure = Failure::new(Exit::Unavailable, cannot_reach(why));
    match why.help() {
        Some(help) => failure.help(help),
        None => failure,
    }
}

pub(super) fn unreachable(why: &Unreachable) -> anyhow::Error {
    failure(why).into()
}

/// A call whose answer did not come may have been carried out all the same.
fn maybe_done(failure: Failure, called: bool) -> Failure {
    if !called {
        return failure;
    }
    let warning = "the call may have been carried out";
    let help = match &failure.help {
        Some(help) => format!("{warning}; {help}"),
        None => warning.to_owned(),
    };
    failure.help(help)
}

/// Returns whether the server says by this that a request cannot be: an unknown tool, or parameters out of shape.
pub(super) fn is_invalid(fault: &ClientError) -> bool {
    matches!(fault, ClientError::Refused { refusal, .. } if refusal.raw().code == ErrorCode::INVALID_PARAMS)
}
