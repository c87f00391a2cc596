//! Opens the channel that the flags ask for, talks to the server and ends what was started; explains failures.

use std::fmt::Display;
use std::pin::{Pin, pin};
use std::time::Duration;

use rmcp::model::{ErrorCode, ErrorData, Tool};
use tokio::io::{AsyncRead, AsyncWrite};

use crate::account::Account;
use crate::cli::ChannelArgs;
use crate::command::output::Output;
use crate::error::{Exit, Failure};
use crate::incus::MachineRef;
use crate::mcp::client::{Client, ClientError, Timeouts};
use crate::mcp::{LINE_MAX, LOGGED, OVERLOADED};
use crate::session::block_on;
use crate::session::interrupt::StopSignals;
use crate::text::Foreign;
use crate::transport::{
    self, Route, RouteContext, Transport, TransportEnd, Unreachable, WantedMachine, Watch,
};

/// Maximum of `--timeout`, in seconds: a day.
const TIMEOUT_MAX: f64 = 86_400.0;

/// A client of a server that answered.
pub(in crate::command) type ServerClient =
    Client<Box<dyn AsyncRead + Send + Unpin>, Box<dyn AsyncWrite + Send + Unpin>>;

/// Opens the channel that the flags ask for and runs `talk` over it; always ends what was started.
pub(in crate::command) fn with_client(
    args: &ChannelArgs,
    output: &Output,
    talk: impl AsyncFnOnce(&mut ServerClient, &Transport) -> anyhow::Result<Exit>,
) -> anyhow::Result<Exit> {
    interruptible(connected(args, output, talk))
}

/// Does the same on a runtime that exists.
pub(in crate::command) async fn connected(
    args: &ChannelArgs,
    output: &Output,
    talk: impl AsyncFnOnce(&mut ServerClient, &Transport) -> anyhow::Result<Exit>,
) -> anyhow::Result<Exit> {
    let timeouts = timeouts(args)?;
    let channel = find(route(args)?, timeouts, output).await?;
    let opened = transport::open(channel, timeouts.first, watch(output))
        .await
        .map_err(|why| unreachable(&why))?;
    let mut talked = Talked {
        end: opened.end,
        timeout: timeouts.first,
        has_started: false,
        has_called: false,
    };
    let result = match Client::start(opened.reader, opened.writer, timeouts, LINE_MAX).await {
        Ok(mut client) => {
            talked.has_started = true;
            let result = talk(&mut client, &talked.end.channel).await;
            talked.has_called = client.has_called();
            result
        }
        Err(why) => Err(why.into()),
    };
    // The streams are closed only now, which stops a server that is waiting for its stdin to end.
    talked.finish(result).await
}

/// Returns the tools that a provider of this machine offers to it. The limit is for everything: a provider that keeps
/// sending does not extend it.
pub(in crate::command) async fn offered(
    provider: &str,
    limit: Duration,
    output: &Output,
) -> anyhow::Result<Vec<Foreign<Tool>>> {
    let channel = ChannelArgs {
        instance: Some(provider.to_owned()),
        timeout: Some(limit.as_secs_f64()),
        ..ChannelArgs::default()
    };
    let mut tools = Vec::new();
    let asked = connected(&channel, output, async |server, _| {
        tools = server.tools().await?;
        Ok(Exit::Done)
    });
    let silent = |_| unavailable(&format!("no whole answer within {} s", limit.as_secs()));
    let asked = tokio::time::timeout(limit, asked).await.map_err(silent);
    asked??;
    Ok(tools)
}

/// Returns the route that the flags ask for.
pub(super) fn route(args: &ChannelArgs) -> Result<Route, Failure> {
    if args.project.is_some() && args.instance.is_none() && args.socket.is_none() {
        let failure = Failure::new(Exit::Usage, "`--project` names no machine");
        return Err(failure.help("name the machine too: `-i MACHINE`"));
    }
    let context = RouteContext::look();
    let own = Account::machine().filter(|_| args.socket.is_none());
    if let Some(own) = own.filter(|own| args.instance.as_deref() == Some(own.as_str())) {
        let failure = Failure::new(Exit::Usage, format!("`{own}` is this machine itself"));
        return Err(failure.help("leave out `-i` to use its own tools"));
    }
    let wanted = WantedMachine {
        instance: args.instance.as_deref(),
        project: args.project.as_deref(),
        socket: args.socket.as_deref(),
    };
    transport::way(wanted, &context).map_err(|fault| Failure::new(Exit::Usage, fault.to_string()))
}

/// Returns the timeouts that the flags ask for.
pub(super) fn timeouts(args: &ChannelArgs) -> Result<Timeouts, Failure> {
    let Some(seconds) = args.timeout else {
        return Ok(Timeouts::default());
    };
    let timeout = (seconds > 0.0 && seconds <= TIMEOUT_MAX)
        .then(|| Duration::from_secs_f64(seconds))
        .filter(|timeout| !timeout.is_zero());
    let Some(timeout) = timeout else {
        let message = format!(
            "`--timeout` must be more than 0 and at most {TIMEOUT_MAX} seconds, not {seconds}"
        );
        return Err(Failure::new(Exit::Usage, message));
    };
    Ok(Timeouts {
        first: timeout,
        call: timeout,
    })
}

/// Runs `work` until it ends or a signal asks to stop; then ends everything that was started.
pub(in crate::command) fn interruptible(
    work: impl Future<Output = anyhow::Result<Exit>>,
) -> anyhow::Result<Exit> {
    // One runtime for the work of all commands, instead of a compiled copy for each.
    let work: Pin<&mut dyn Future<Output = anyhow::Result<Exit>>> = pin!(work);
    block_on(async {
        let mut signals = StopSignals::watch()?;
        tokio::select! {
            result = work => result,
            () = signals.next() => Ok(Exit::Interrupted),
        }
    })
}

/// Resolves a route to the channel of a machine.
pub(super) async fn find(
    route: Route,
    timeouts: Timeouts,
    output: &Output,
) -> Result<Transport, Failure> {
    let channel = transport::resolve(route, timeouts.first)
        .await
        .map_err(|why| unreachable(&why))?;
    if let (Transport::Exec(machine), true) = (&channel, output.verbose) {
        output.say(&format!(
            "machine `{}` is in project `{}`",
            machine.name, machine.project
        ));
    }
    Ok(channel)
}

/// Finds a running machine by its name on the host; a machine has no Incus to ask.
pub(in crate::command) async fn machine_on_host(
    name: &str,
    project: Option<&str>,
) -> Result<MachineRef, Failure> {
    let route = Route::Host {
        machine: name.to_owned(),
        project: project.map(str::to_owned),
    };
    let failed = |why: &Unreachable| Failure {
        help: why.help(),
        ..Failure::new(Exit::Unavailable, why.to_string())
    };
    match transport::resolve(route, Timeouts::default().first).await {
        Ok(Transport::Exec(machine)) if machine.runs() => Ok(machine),
        Ok(Transport::Exec(machine)) => Err(failed(&Unreachable::NotRunning(machine))),
        Ok(Transport::Local | Transport::Socket(_)) => {
            Err(Failure::new(Exit::Failed, "not a machine on this host"))
        }
        Err(why) => Err(failed(&why)),
    }
}

/// A conversation that has ended.
struct Talked {
    end: TransportEnd,
    /// Timeout for the first answer.
    timeout: Duration,
    has_started: bool,
    has_called: bool,
}

impl Talked {
    /// Ends what was started for the conversation, and explains its failure; the client's error stays its cause.
    async fn finish(self, result: anyhow::Result<Exit>) -> anyhow::Result<Exit> {
        let Self {
            end,
            timeout,
            has_started,
            has_called,
        } = self;
        let fault = match result {
            Ok(exit) => {
                end.calm().await;
                return Ok(exit);
            }
            Err(error) => error.downcast::<ClientError>()?,
        };
        let failure = match &fault {
            // A server is listening there, or was a moment ago.
            ClientError::Closed if has_started && matches!(end.channel, Transport::Socket(_)) => {
                unavailable(&fault).help("ask the operator")
            }
            ClientError::Closed => unreachable(&end.died(timeout).await),
            ClientError::Silent(waited) => unreachable(&end.silent(*waited)),
            ClientError::Refused { refusal, .. } => {
                end.calm().await;
                refused(&fault, refusal)
            }
            other => unavailable(other),
        };
        let has_answered = matches!(
            fault,
            ClientError::Refused { .. } | ClientError::Malformed { .. }
        );
        let error = anyhow::Error::from(fault);
        if !has_called || has_answered {
            return Err(error.context(failure));
        }
        let warning = "the call may have been carried out";
        let help = match &failure.help {
            Some(help) => format!("{warning}; {help}"),
            None => warning.to_owned(),
        };
        Err(error.context(failure.help(help)))
    }
}

/// Explains a protocol error. A refused service looks like an unknown tool; an overloaded server refuses nothing.
fn refused(fault: &ClientError, refusal: &Foreign<ErrorData>) -> Failure {
    if refusal.raw().code.0 == OVERLOADED {
        let words = refusal.part(|refusal| &*refusal.message).escaped();
        return Failure::new(Exit::Overloaded, format!("the provider is {words}"))
            .help("nothing was refused; try the same call again");
    }
    let failure = Failure::new(Exit::Failed, fault.to_string());
    match ran_unlogged(refusal.raw()) {
        Some(true) => failure.help(format!(
            "the call was carried out; check its effect before you repeat it; {ITS_LOG}"
        )),
        Some(false) => failure.help(format!("nothing was done; {ITS_LOG}")),
        None => failure,
    }
}

/// Help for a log that cannot be written.
const ITS_LOG: &str = "the operator can see what is wrong with its log";

/// Returns whether a call that the provider could not log did run; `None` if it reports no such problem.
fn ran_unlogged(refusal: &ErrorData) -> Option<bool> {
    let data = refusal.data.as_ref()?;
    (data.get(LOGGED)?.as_bool() == Some(false)).then(|| data.get("ran")?.as_bool())?
}

/// With `--verbose`, passes on a server's stderr.
pub(super) fn watch(output: &Output) -> Watch {
    let output = output.clone();
    Box::new(move |line| {
        if output.verbose {
            output.say(&Foreign::new(line).lines());
        }
    })
}

/// The beginning of a message about a server that cannot be reached.
pub(super) const CANNOT_REACH: &str = "Cannot reach MCP server: ";

pub(super) fn cannot_reach(why: &impl Display) -> String {
    format!("{CANNOT_REACH}{why}")
}

pub(super) fn unavailable(why: &impl Display) -> Failure {
    Failure::new(Exit::Unavailable, cannot_reach(why))
}

pub(in crate::command) fn unreachable(why: &Unreachable) -> Failure {
    let help = why.help();
    Failure {
        help,
        ..unavailable(why)
    }
}

/// Returns whether the server rejects a request as invalid: an unknown tool, or malformed parameters.
pub(in crate::command) fn is_invalid(fault: &ClientError) -> bool {
    matches!(fault, ClientError::Refused { refusal, .. } if refusal.raw().code == ErrorCode::INVALID_PARAMS)
}
