//! `anklume mcp serve`: serves this machine's tools on stdin and stdout, or on a socket for each consumer.
//!
//! stdout carries only the protocol; messages go to stderr and never include contents.

pub(super) mod shared;

use std::ffi::OsString;
use std::io::{IsTerminal as _, Read as _};
use std::os::unix::process::CommandExt as _;
use std::panic;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::process::Stdio;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use anyhow::Context as _;
use tokio::time::{MissedTickBehavior, interval};

use crate::account::Account;
use crate::audit::Event;
use crate::cli::McpServeArgs;
use crate::command::output::Output;
use crate::confinement::{self, AllowedCalls, InForce, ProcessLimits};
use crate::digest::hex;
use crate::error::{Exit, Failure};
use crate::machine_state::{LAUNCH, SERVICES};
use crate::mcp;
use crate::mcp::concurrency::ConcurrencyLimiter;
use crate::mcp::helper::Helpers;
use crate::mcp::listen::Listening;
use crate::mcp::listen::folder::{FolderError, SocketFolder};
use crate::mcp::monitor::{Local, PolicySource};
use crate::mcp::policy_watcher::Policy;
use crate::mcp::policy_watcher::PolicyWatcher;
use crate::mcp::recorder::Recorder;
use crate::mcp::server::{self, Server, Shutdown};
use crate::name::MachineName;
use crate::policy::Caller;
use crate::services::Services;
use crate::session::interrupt::StopSignals;
use crate::setup::surroundings;
use crate::text::{escaped, first_sentence};
use crate::tool::{Display, Resource, has_gnupg};

/// Threads for blocking work: twice the number of tools that one connection can run at a time.
const THREADS: usize = 16;

/// Interval between checks for counted lines that are due.
const COUNT_INTERVAL: Duration = Duration::from_secs(1);

/// Maximum time that cancelled work may take to clean up.
pub(super) const CLEANUP_TIMEOUT: Duration = Duration::from_millis(500);

/// Runs `anklume mcp serve`.
pub(crate) fn run(args: &McpServeArgs, output: &Output) -> anyhow::Result<Exit> {
    if args.list_tools {
        return list_tools(output);
    }
    // The operator's calls use the portal, clipboard and keys of that user, wherever they come from.
    if args.listen.is_none() && args.caller.is_none() {
        become_the_server_user()?;
    }
    redact_panics(output);
    let services = shared::services_path(args);
    let (in_force, launchers) = match &args.listen {
        Some(_) => confine(&services)?,
        // The client on stdin is the operator, or speaks for one consumer.
        None => (InForce::default(), Launchers::default()),
    };
    let runtime = runtime(THREADS)?;
    let served = runtime.block_on(async {
        match &args.listen {
            Some(folder) => listen(folder, args, in_force, launchers, output).await,
            None => serve(args, output).await,
        }
    });
    // Gives cancelled work time to clean up, but does not wait for a thread that is still reading stdin.
    runtime.shutdown_timeout(CLEANUP_TIMEOUT);
    served.map(|()| Exit::Done)
}

/// Builds a runtime with one serving thread and this many threads for blocking work.
pub(super) fn runtime(blocking: usize) -> anyhow::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(blocking)
        .build()
        .context("cannot start the server")
}

/// The launchers that the server has started itself, because no supervisor has.
#[derive(Debug, Default)]
struct Launchers {
    agent: Option<OwnLauncher>,
    programs: Option<OwnLauncher>,
}

/// A launcher that runs until this value is dropped.
#[derive(Debug)]
struct OwnLauncher {
    /// The socket on which it listens.
    name: String,
    _stdin: Option<std::process::ChildStdin>,
}

/// Limits the server to what it and its child processes may need for any policy. First starts the launchers, unlimited.
fn confine(services: &Path) -> anyhow::Result<(InForce, Launchers)> {
    let settings = shared::settings()?;
    let mut launchers = Launchers::default();
    if settings.agent_launcher.is_none() && has_gnupg() {
        let launcher = OwnLauncher::start("gpg-agent", |name| vec![LAUNCH.into(), name.into()]);
        launchers.agent = Some(launcher?);
    }
    if shared::supervised_launcher(services).is_none() {
        launchers.programs = Some(program_launcher(services)?);
    }
    let limits = ProcessLimits {
        calls: AllowedCalls::Server,
        files: None,
        network: settings.display.as_ref().is_some_and(Display::is_remote),
    };
    let in_force = confinement::enter(&limits).context("cannot be confined")?;
    Ok((in_force, launchers))
}

/// Starts a launcher of the programs that this services file names.
fn program_launcher(services: &Path) -> anyhow::Result<OwnLauncher> {
    OwnLauncher::start("programs", |name| {
        mcp::launcher::arguments(Path::new(name), services)
    })
}

impl OwnLauncher {
    /// Starts this program with the arguments of a launcher that listens on an abstract socket.
    fn start(kind: &str, arguments: impl FnOnce(&str) -> Vec<OsString>) -> anyhow::Result<Self> {
        let mut random = [0; 16];
        let mut file = std::fs::File::open("/dev/urandom")?;
        file.read_exact(&mut random)?;
        let name = format!("@anklume-{kind}-{}", hex(&random));
        let mut command = tokio::process::Command::new("/proc/self/exe");
        command
            .arg0("anklume")
            .args(arguments(&name))
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::null());
        let started = command.as_std_mut().spawn();
        let mut process =
            started.with_context(|| format!("cannot start the launcher of {kind}"))?;
        Ok(Self {
            _stdin: process.stdin.take(),
            name,
        })
    }
}

/// Becomes this machine's server user, with that user's environment.
pub(super) fn become_the_server_user() -> anyhow::Result<()> {
    if !Path::new(SERVICES).exists() {
        return Ok(());
    }
    let Some(account) = Account::of_this_machine()? else {
        return Ok(());
    };
    let user = rustix::process::geteuid();
    let is_account = user.as_raw() == account.uid;
    if !is_account && !user.is_root() {
        // Another user has their own clipboard and keys.
        return Ok(());
    }
    let environment = surroundings(&account);
    if is_account && environment.are_ours() {
        return Ok(());
    }
    let mut command = tokio::process::Command::new("/proc/self/exe");
    command.arg0("anklume").args(std::env::args_os().skip(1));
    let command = account.runs(&mut command, &environment);
    if !is_account {
        // The user may not have access to root's folder.
        command.current_dir("/");
    }
    // Returns only on failure.
    let why = command.as_std_mut().exec();
    Err(why).with_context(|| format!("cannot become the user `{}`", account.name.escape_debug()))
}

/// Hint for a person at a terminal.
const HINT: &str = "waiting for MCP messages on stdin, one a line; Ctrl-D ends\n  \
    = help: to see the tools of this machine, run `anklume mcp list`; to call one, `anklume mcp call TOOL`";

/// Returns the services that the operator may call by name, besides the tools: those of this machine, if any.
fn operators_services(output: &Output) -> anyhow::Result<Services> {
    match PolicyWatcher::read(Path::new(SERVICES)) {
        Ok(services) => Ok(services),
        Err(why) => {
            // The tools work without them.
            output.say(&format!(
                "warning: no services can be called by name: {why}"
            ));
            Ok(Services::none("localhost".parse()?))
        }
    }
}

/// Serves one caller on stdin and stdout: the operator, or the consumer that `--caller` names.
async fn serve(args: &McpServeArgs, output: &Output) -> anyhow::Result<()> {
    if std::io::stdin().is_terminal() {
        output.say(HINT);
    }
    let stop = stop_on_signal()?;
    let (reader, writer) = rmcp::transport::stdio_pipes();
    let limiter = Arc::new(ConcurrencyLimiter::default());
    // The operator's connection writes no start or stop lines.
    let (caller, policy, recorder, last): (_, PolicySource, _, _) = match &args.caller {
        None => {
            let policy = Policy::new(operators_services(output)?);
            let policy: PolicySource = Box::new(move || Arc::clone(&policy));
            let recorder = shared::operators_log(args, output)?;
            (Caller::Operator, policy, recorder, None)
        }
        Some(caller) => {
            let caller: MachineName = caller.parse().map_err(|fault| {
                let message = format!("`--caller {}`: {fault}", caller.escape_debug());
                Failure::new(Exit::Usage, message)
            })?;
            let state = shared::state(args, InForce::default(), None, None, output)?;
            let policy: PolicySource = Box::new(move || state.watcher.current());
            (
                Caller::Consumer(caller),
                policy,
                state.recorder,
                Some(stopped()),
            )
        }
    };
    let monitor = Local {
        caller: caller.clone(),
        policy,
        recorder: Arc::clone(&recorder),
        limiter,
    };
    let settings = shared::settings()?;
    let helpers = program_helpers(&caller, shared::services_path(args), settings.idle);
    let server = Server::new(
        caller,
        shared::shared(monitor, settings, Some(helpers), output),
    );
    counting(|| recorder.count(), server.serve(reader, writer, stop)).await;
    end_log(&recorder, last, output);
    Ok(())
}

/// Lets this process run all tools itself, except the machine's own programs: for these, it asks the machine's launcher, or
/// starts one at the first call.
fn program_helpers(caller: &Caller, services: PathBuf, pieces: Duration) -> Helpers {
    let (caller, own) = (caller.clone(), OnceLock::new());
    let connect = move |_| {
        if let Some(address) = shared::supervised_launcher(&services) {
            return mcp::launcher::connect(&address, &caller);
        }
        let started = own.get_or_init(|| program_launcher(&services));
        let launcher = started
            .as_ref()
            .map_err(|why| std::io::Error::other(why.to_string()))?;
        mcp::launcher::connect(Path::new(&launcher.name), &caller)
    };
    Helpers::new(|resource| resource != Resource::Programs, pieces, connect)
}

/// Serves, and writes counted lines to the log when they are due.
async fn counting(count: impl Fn(), serving: impl Future<Output = ()>) {
    let mut serving = pin!(serving);
    let mut ticks = interval(COUNT_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = &mut serving => return,
            _ = ticks.tick() => count(),
        }
    }
}

/// Serves on a socket for each consumer until a signal stops it.
async fn listen(
    path: &Path,
    args: &McpServeArgs,
    in_force: InForce,
    launchers: Launchers,
    output: &Output,
) -> anyhow::Result<()> {
    let folder = SocketFolder::take(path).map_err(|error| no_folder(&error))?;
    let name = |launcher: &Option<OwnLauncher>| launcher.as_ref().map(|one| one.name.clone());
    let (agent, programs) = (name(&launchers.agent), name(&launchers.programs));
    let state = shared::state(args, in_force, agent, programs, output)?;
    let recorder = Arc::clone(&state.recorder);
    let listening = Listening::new(folder, state, stop_on_signal()?);
    let ready = || {
        output.say(&format!("serving in `{}`", path.display()));
        // Does nothing if no supervisor is waiting for it.
        let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
    };
    let complain = |text: &str| output.stderr(&format!("error: {}", escaped(text)));
    let ended = listening.run(ready, complain).await;
    end_log(&recorder, Some(stopped()), output);
    drop(launchers);
    Ok(ended.map_err(|error| no_folder(&error))?)
}

fn no_folder(error: &FolderError) -> Failure {
    let help = match error {
        FolderError::Taken(_) => {
            "only one server can use a folder; `anklume mcp status` shows what it serves"
        }
        FolderError::NotOurs(_) => {
            "name a new folder, or one that belongs to this user, with --listen"
        }
        FolderError::Foreign { .. } => {
            "a server denies others access to its folder; name an empty or new folder with --listen"
        }
        FolderError::InTheWay(_) => "move it away: a server removes only sockets",
        FolderError::PathTooLong { .. } => "use --listen to name a folder with a shorter path",
        FolderError::Io { .. } => return Failure::new(Exit::Failed, error.to_string()),
    };
    Failure::new(Exit::Failed, error.to_string()).help(help)
}

/// Writes the last log lines (unwritten lines, pending counts, the stop event); prints those that fail to stderr.
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

/// Stops the server on a signal: on the first, once its calls are answered; on the second, immediately.
fn stop_on_signal() -> anyhow::Result<Shutdown> {
    let mut signals = StopSignals::watch().context("cannot watch for signals")?;
    let stop = Shutdown::default();
    let tokens = [stop.graceful.clone(), stop.immediate.clone()];
    tokio::spawn(async move {
        for token in tokens {
            signals.next().await;
            token.cancel();
        }
    });
    Ok(stop)
}

/// Makes a panic report only its location, because its message may quote a caller's contents.
pub(super) fn redact_panics(output: &Output) {
    let output = output.clone();
    panic::set_hook(Box::new(move |panic| {
        let place = panic.location();
        let place = place.map_or_else(String::new, |place| format!(" at {place}"));
        output.stderr(&format!("a call failed because of a bug in anklume{place}"));
    }));
}

fn list_tools(output: &Output) -> anyhow::Result<Exit> {
    let tools = server::list(&Services::none("localhost".parse()?), &Caller::Operator);
    output.answer_as(&serde_json::json!({ "tools": tools }), || {
        let lines = tools.iter().map(|tool| {
            let description = tool.description.as_deref().unwrap_or_default();
            format!("{:<15}{}\n", tool.name, first_sentence(description))
        });
        lines.collect()
    })?;
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
