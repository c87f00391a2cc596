//! `anklume mcp serve`: this machine's tools on stdin and stdout, or on a socket for each consumer.
//!
//! stdout carries the protocol and nothing else; whatever there is to say goes to stderr, and never any contents.

pub(super) mod shared;

use std::fmt::Write as _;
use std::io::{IsTerminal as _, Read as _};
use std::os::unix::process::CommandExt as _;
use std::panic;
use std::path::Path;
use std::pin::pin;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::{MissedTickBehavior, interval};

use crate::audit::Event;
use crate::cli::{Format, McpServeArgs};
use crate::command::output::Output;
use crate::confinement::{self, AllowedCalls, InForce, ProcessLimits};
use crate::digest::hex;
use crate::error::{Exit, Failure};
use crate::machine_state::{LAUNCH, SERVICES};
use crate::mcp::concurrency::ConcurrencyLimiter;
use crate::mcp::listen::folder::{FolderError, SocketFolder};
use crate::mcp::listen::{Listening, ServerState};
use crate::mcp::monitor::{Local, PolicySource};
use crate::mcp::policy_watcher::Policy;
use crate::mcp::recorder::Recorder;
use crate::mcp::server::{self, Server, Shutdown};
use crate::name::MachineName;
use crate::policy::Caller;
use crate::services::Services;
use crate::setup::account::Account;
use crate::setup::surroundings;
use crate::text::first_sentence;
use crate::tool::{Display, has_gnupg};

/// Threads for work that blocks: a few more than the tools of one connection that run at a time.
const THREADS: usize = 16;

/// How often to check for due counted lines.
const COUNT: Duration = Duration::from_secs(1);

/// How long work that was given up may take to clean up behind itself.
pub(super) const LAST_WORK: Duration = Duration::from_millis(500);

/// Runs `anklume mcp serve`.
pub(crate) fn run(args: &McpServeArgs, output: &Output) -> anyhow::Result<Exit> {
    if args.list_tools {
        return list_tools(&no_services()?, output);
    }
    as_the_server_of_this_machine(args)?;
    keep_panics_short(output);
    let confined = match &args.listen {
        Some(_) => confine()?,
        // Whoever started it and asks over its stdin is the operator, or speaks for one consumer.
        None => Confined::default(),
    };
    let runtime = runtime(THREADS)?;
    let served = runtime.block_on(async {
        match &args.listen {
            Some(folder) => listen(folder, args, confined, output).await,
            None => serve(args, output).await,
        }
    });
    // Work that was given up takes its leave; a read of stdin that waits in a thread of its own is not waited for.
    runtime.shutdown_timeout(LAST_WORK);
    served.map(|()| Exit::Done)
}

/// One thread that serves, and so many for work that blocks.
pub(super) fn runtime(blocking: usize) -> anyhow::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(blocking)
        .build()
        .context("cannot start the server")
}

/// The result of confining a server.
#[derive(Debug, Default)]
struct Confined {
    /// Its confinement.
    in_force: InForce,
    /// Where the launcher of the agent listens that it started before.
    launcher: Option<Launcher>,
}

/// What starts the agent, until this value is dropped.
#[derive(Debug)]
struct Launcher {
    /// The socket on which it listens.
    name: String,
    _stdin: Option<std::process::ChildStdin>,
}

/// Limits the server to what it and the processes that it starts may need for any policy.
fn confine() -> anyhow::Result<Confined> {
    let settings = shared::settings()?;
    let display = settings.display.as_ref();
    let launcher = match settings.agent_launcher {
        None if has_gnupg(&settings) => Some(launcher()?),
        _ => None,
    };
    let limits = ProcessLimits {
        calls: AllowedCalls::Server,
        files: None,
        network: display.is_some_and(Display::is_remote),
    };
    Ok(Confined {
        in_force: confinement::enter(&limits).context("cannot be confined")?,
        launcher,
    })
}

/// Starts what starts the agent, so that this is not held to what the server is.
fn launcher() -> anyhow::Result<Launcher> {
    let mut random = [0; 16];
    let mut file = std::fs::File::open("/dev/urandom")?;
    file.read_exact(&mut random)?;
    let name = format!("@anklume-gpg-agent-{}", hex(&random));
    let mut command = tokio::process::Command::new("/proc/self/exe");
    command
        .arg0("anklume")
        .args([LAUNCH, &name])
        .process_group(0)
        .stdin(Stdio::piped())
        .stdout(Stdio::null());
    let started = command.as_std_mut().spawn();
    let mut process = started.context("cannot start the launcher of gpg-agent")?;
    Ok(Launcher {
        _stdin: process.stdin.take(),
        name,
    })
}

/// The operator of a provider asks for the portal, the clipboard and the keys of the user that serves, wherever the call comes
/// from: this process becomes that user, with the surroundings of their server.
fn as_the_server_of_this_machine(args: &McpServeArgs) -> anyhow::Result<()> {
    let operator = args.listen.is_none() && args.caller.is_none();
    if !operator || !Path::new(SERVICES).exists() {
        return Ok(());
    }
    let Some(account) = Account::of_this_machine()? else {
        return Ok(());
    };
    let user = rustix::process::geteuid();
    let is_account = user.as_raw() == account.uid;
    if !is_account && !user.is_root() {
        // Somebody else, who has a clipboard and keys of their own.
        return Ok(());
    }
    let theirs = surroundings(&account);
    if is_account && theirs.are_ours() {
        return Ok(());
    }
    let mut command = tokio::process::Command::new("/proc/self/exe");
    let same = command.arg0("anklume").args(std::env::args_os().skip(1));
    let same = account.runs(same, &theirs);
    if !is_account {
        // Where root was, they may have no business.
        same.current_dir("/");
    }
    // Comes back only where it fails.
    let why = same.as_std_mut().exec();
    Err(why).with_context(|| format!("cannot become the user `{}`", account.name.escape_debug()))
}

/// For a person who typed the command.
const HINT: &str = "waiting for MCP messages on stdin, one a line; Ctrl-D ends\n  \
    = help: to see the tools of this machine, run `anklume mcp list`; to call one, `anklume mcp call TOOL`";

/// The operator's connection needs no services: its tools are the five, by name.
fn no_services() -> anyhow::Result<Services> {
    Ok(Services::none("localhost".parse()?))
}

/// One caller on stdin and stdout: the operator, or the consumer that whoever started us names.
async fn serve(args: &McpServeArgs, output: &Output) -> anyhow::Result<()> {
    if std::io::stdin().is_terminal() {
        output.say(HINT);
    }
    let stop = stop_on_signal()?;
    let (reader, writer) = rmcp::transport::stdio_pipes();
    let gate = Arc::new(ConcurrencyLimiter::default());
    // The operator's log begins and ends with no line of its own.
    let (caller, policy, recorder, last): (_, PolicySource, _, _) = match &args.caller {
        None => {
            let policy = Policy::new(no_services()?);
            let policy: PolicySource = Box::new(move || Arc::clone(&policy));
            let recorder = shared::operators_log(args, output)?;
            (Caller::Operator, policy, recorder, None)
        }
        Some(caller) => {
            let caller = Caller::Consumer(caller_name(caller)?);
            let ServerState { live, recorder, .. } =
                shared::state(args, InForce::default(), None, output)?;
            let policy: PolicySource = Box::new(move || live.current());
            (caller, policy, recorder, Some(stopped()))
        }
    };
    let monitor = Local {
        caller: caller.clone(),
        policy,
        recorder: Arc::clone(&recorder),
        limiter: gate,
    };
    let server = Server::new(
        caller,
        shared::shared(monitor, shared::settings()?, None, output),
    );
    counting(|| recorder.count(), server.serve(reader, writer, stop)).await;
    end_log(&recorder, last, output);
    Ok(())
}

/// Serves, and writes the counted lines of the log when they are due.
async fn counting(count: impl Fn(), serving: impl Future<Output = ()>) {
    let mut serving = pin!(serving);
    let mut ticks = interval(COUNT);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = &mut serving => return,
            _ = ticks.tick() => count(),
        }
    }
}

fn caller_name(text: &str) -> Result<MachineName, Failure> {
    text.parse().map_err(|fault| {
        let shown = text.escape_debug();
        Failure::new(Exit::Usage, format!("`--caller {shown}`: {fault}"))
    })
}

/// A socket for each consumer, until a signal ends it.
async fn listen(
    path: &Path,
    args: &McpServeArgs,
    confined: Confined,
    output: &Output,
) -> anyhow::Result<()> {
    let folder = SocketFolder::take(path).map_err(|error| no_folder(&error))?;
    let launcher = confined.launcher;
    let at = launcher.as_ref().map(|launcher| launcher.name.clone());
    let state = shared::state(args, confined.in_force, at, output)?;
    let recorder = Arc::clone(&state.recorder);
    let listening = Listening::new(folder, state, stop_on_signal()?);
    let shown = path.display();
    let ready = || {
        output.say(&format!("serving in `{shown}`"));
        // Where nobody waits for the word, it goes nowhere.
        let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
    };
    let complain = |text: &str| output.stderr(&format!("error: {}", text.escape_debug()));
    let ended = listening.run(ready, complain).await;
    end_log(&recorder, Some(stopped()), output);
    drop(launcher);
    ended.map_err(|error| no_folder(&error))?;
    Ok(())
}

fn no_folder(error: &FolderError) -> Failure {
    let failure = Failure::new(Exit::Failed, error.to_string());
    match error {
        FolderError::Taken(_) => failure
            .help("one server serves a folder; `anklume mcp status` shows what that one serves"),
        FolderError::NotOurs(_) => {
            failure.help("name a folder that this user may make its own with --listen")
        }
        FolderError::Foreign { .. } => {
            failure.help("a server closes its folder to others; name one that is empty, or not there yet, with --listen")
        }
        FolderError::InTheWay(_) => {
            failure.help("move it away: a server removes sockets and nothing else")
        }
        FolderError::PathTooLong { .. } => {
            failure.help("name a folder with a shorter path with --listen")
        }
        FolderError::Io { .. } => failure,
    }
}

/// The last lines of the log: what is still to be written or counted, and the end. What cannot be written is said, so
/// that whoever keeps this server's stderr has it.
fn end_log(recorder: &Recorder, stop: Option<Event>, output: &Output) {
    for line in recorder.end(stop) {
        output.stderr(&format!("error: not in the log: {line}"));
    }
}

fn stopped() -> Event {
    Event::Stop {
        pid: std::process::id(),
    }
}

/// The first signal ends the server when its calls are answered, the second one at once.
pub(super) fn stop_on_signal() -> anyhow::Result<Shutdown> {
    let cannot = "cannot watch for signals";
    let terminate = signal(SignalKind::terminate()).context(cannot)?;
    let interrupt = signal(SignalKind::interrupt()).context(cannot)?;
    let stop = Shutdown::default();
    tokio::spawn(end_on_signal(terminate, interrupt, stop.clone()));
    Ok(stop)
}

async fn end_on_signal(mut terminate: Signal, mut interrupt: Signal, stop: Shutdown) {
    for end in [&stop.graceful, &stop.immediate] {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        end.cancel();
    }
}

/// A panic says where it happened and not what it held: its message may quote a caller's contents.
pub(super) fn keep_panics_short(output: &Output) {
    let output = output.clone();
    panic::set_hook(Box::new(move |panic| {
        let place = panic
            .location()
            .map_or_else(String::new, |place| format!(" at {place}"));
        output.stderr(&format!("a call failed by a fault of anklume{place}"));
    }));
}

fn list_tools(services: &Services, output: &Output) -> anyhow::Result<Exit> {
    let tools = server::list(services, &Caller::Operator);
    match output.format() {
        Format::Json => output.json(&serde_json::json!({ "tools": tools }))?,
        Format::Text => {
            let mut text = String::new();
            for tool in tools {
                let words = tool.description.unwrap_or_default();
                // Writing to a `String` cannot fail.
                let _ = writeln!(text, "{:<15}{}", tool.name, first_sentence(&words));
            }
            output.answer(text.as_bytes())?;
        }
    }
    Ok(Exit::Done)
}

#[cfg(test)]
mod tests {
    use tokio::sync::Semaphore;

    use super::*;

    #[tokio::test]
    async fn counted_lines_are_looked_for_again_and_again_while_it_serves() {
        let looked = Semaphore::new(0);
        let served = async { looked.acquire_many(2).await.unwrap().forget() };
        counting(|| looked.add_permits(1), served).await;
        assert_eq!(looked.available_permits(), 0);
    }
}
