//! Builds the state that a server's connections share: its policy, its log, its tools.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::audit::{AuditError, Event, LOG, Log, bounded_reason};
use crate::cli::McpServeArgs;
use crate::command::output::Output;
use crate::confinement::InForce;
use crate::error::{Exit, Failure};
use crate::infra::Confinement;
use crate::machine_state::{LAUNCHER_SOCKET, PROGRAM_LAUNCHER, SERVICES};
use crate::mcp::concurrency::ConcurrencyLimiter;
use crate::mcp::helper::Helpers;
use crate::mcp::listen::ServerState;
use crate::mcp::monitor::Monitor;
use crate::mcp::policy_watcher::{OnChange, PolicyError, PolicyWatcher};
use crate::mcp::recorder::{Complain, Recorder};
use crate::mcp::server::{AnsweredRequest, Observer, RequestOutcome, Shared};
use crate::services::Services;
use crate::tool::Settings;

/// Minimum interval between messages about a log that cannot be written.
const COMPLAIN_INTERVAL: Duration = Duration::from_secs(10);

/// Builds the state of a server for consumers: a watched services file and a log, which is required unless waived.
pub(super) fn state(
    args: &McpServeArgs,
    confinement: InForce,
    agent_launcher: Option<String>,
    program_launcher: Option<String>,
    output: &Output,
) -> anyhow::Result<ServerState> {
    // Fails early on settings that the consumers' processes would reject.
    settings()?;
    let path = services_path(args);
    let policy = PolicyWatcher::read(&path).map_err(|error| broken_policy(&error))?;
    if let Some(why) = confinement.missing()
        && policy.confinement == Confinement::Required
    {
        return Err(unconfined(&why).into());
    }
    if path.symlink_metadata().is_err() {
        let name = path.display().to_string();
        output.say(&format!(
            "warning: `{}` does not exist: no consumer is served until it does",
            name.escape_debug()
        ));
    }
    let recorder = Arc::new(required_log(args, &policy, output)?);
    let watcher = Arc::new(PolicyWatcher::new(
        &path,
        policy,
        on_change(&recorder, output),
    ));
    let policy = watcher.current();
    let started = Event::Start {
        version: env!("CARGO_PKG_VERSION").into(),
        pid: std::process::id(),
        policy: policy.digest.as_str().into(),
    };
    recorder
        .append(started, policy.services.allow_unlogged)
        .map_err(|error| no_log(&error))?;
    let program_launcher = program_launcher.map(PathBuf::from);
    let program_launcher = program_launcher.or_else(|| supervised_launcher(&path));
    Ok(ServerState {
        services: path,
        watcher,
        recorder,
        limiter: Arc::new(ConcurrencyLimiter::default()),
        loans: Arc::default(),
        confinement,
        agent_launcher,
        program_launcher: program_launcher.unwrap_or_else(|| LAUNCHER_SOCKET.into()),
        verbose: output.verbose,
    })
}

/// Returns the path of the services file.
pub(super) fn services_path(args: &McpServeArgs) -> PathBuf {
    args.services.clone().unwrap_or_else(|| SERVICES.into())
}

/// Returns the address of the launcher that the machine's supervisor runs for this services file, if there is one.
pub(super) fn supervised_launcher(services: &Path) -> Option<PathBuf> {
    if let Some(address) = std::env::var_os(PROGRAM_LAUNCHER) {
        return Some(address.into());
    }
    // The operator's calls do not have the variable.
    let is_there = services == Path::new(SERVICES) && Path::new(LAUNCHER_SOCKET).exists();
    is_there.then(|| LAUNCHER_SOCKET.into())
}

/// Builds the state that a caller's connections share.
pub(in crate::command::mcp) fn shared(
    monitor: impl Monitor + 'static,
    settings: Settings,
    helpers: Option<Helpers>,
    output: &Output,
) -> Arc<Shared> {
    Arc::new(Shared {
        monitor: Box::new(monitor),
        settings: Arc::new(settings),
        helpers: helpers.map(Arc::new),
        observer: observer(output),
    })
}

/// Returns the recorder of the operator's own server, with a log if one can be opened.
pub(super) fn operators_log(args: &McpServeArgs, output: &Output) -> anyhow::Result<Arc<Recorder>> {
    let log = match &args.audit_log {
        Some(path) => Some(Log::open(path).map_err(|error| no_log(&error))?),
        None => Log::open(Path::new(LOG)).ok(),
    };
    Ok(Arc::new(Recorder::new(log, false, complain(output))))
}

/// Reads the tools' settings from the environment.
pub(in crate::command::mcp) fn settings() -> Result<Settings, Failure> {
    Settings::from_env().map_err(|relative| Failure::new(Exit::Usage, relative.to_string()))
}

fn required_log(
    args: &McpServeArgs,
    policy: &Services,
    output: &Output,
) -> Result<Recorder, Failure> {
    let path = args.audit_log.clone().unwrap_or_else(|| LOG.into());
    let complain = complain(output);
    match Log::open(&path) {
        Ok(log) => Ok(Recorder::new(Some(log), true, complain)),
        // The first attempt to write a line reports that the log cannot be opened.
        Err(_) if policy.allow_unlogged => Ok(Recorder::waiting_for(path, complain)),
        Err(error) => Err(no_log(&error)),
    }
}

fn no_log(error: &AuditError) -> Failure {
    Failure::new(Exit::Failed, error.to_string()).help(
        "no call runs unlogged: make its folder writable, or name another log with --audit-log; \
         `mcp: {allow_unlogged: true}` in infra.yml lets calls run without it",
    )
}

/// Reports that a server is not confined, although it must be.
pub(in crate::command::mcp) fn unconfined(why: &str) -> Failure {
    let text = format!("this server must be confined, but is not: {why}");
    Failure::new(Exit::Failed, text)
        .help("`mcp: {confinement: available}` in infra.yml lets it serve anyway")
}

fn broken_policy(error: &PolicyError) -> Failure {
    Failure::new(Exit::Failed, error.to_string()).help(
        "a server does not start with an invalid policy; `anklume policy export --machine NAME` on the host prints the file",
    )
}

/// Reports a policy change, as an error if it was refused.
fn on_change(recorder: &Arc<Recorder>, output: &Output) -> OnChange {
    let (recorder, output) = (Arc::clone(recorder), output.clone());
    Box::new(move |policy, error| {
        let refused = error.map(ToString::to_string);
        match &refused {
            None => output.say(&format!("policy {} is in force", policy.digest)),
            Some(reason) => output.stderr(&format!(
                "error: {}\n  = note: the policy {} stays in force",
                reason.escape_debug(),
                policy.digest
            )),
        }
        let event = Event::Reload {
            policy: policy.digest.as_str().into(),
            refused: refused.as_deref().map(bounded_reason),
        };
        // Each call checks again whether it may run without a log.
        let _ = recorder.append(event, true);
    })
}

/// Reports on stderr that the log cannot be written, at most once per interval.
fn complain(output: &Output) -> Complain {
    let output = output.clone();
    let last: Mutex<Option<Instant>> = Mutex::new(None);
    Box::new(move |error| {
        let mut last = last.lock().unwrap_or_else(PoisonError::into_inner);
        if last.is_none_or(|last| last.elapsed() >= COMPLAIN_INTERVAL) {
            *last = Some(Instant::now());
            output.stderr(&format!("error: {error}"));
        }
    })
}

/// With `--verbose`, writes a line to stderr for each answer.
fn observer(output: &Output) -> Observer {
    if !output.verbose {
        return Arc::new(|_| {});
    }
    let output = output.clone();
    Arc::new(move |answered| output.stderr(&line(answered)))
}

fn line(answered: &AnsweredRequest) -> String {
    let outcome = match answered.outcome {
        RequestOutcome::Done => "done".to_owned(),
        RequestOutcome::Failed => "failed".to_owned(),
        RequestOutcome::Refused(code) => format!("refused with {code}"),
    };
    format!(
        "{}: {outcome} in {} ms, {} bytes in, {} bytes out",
        answered.label,
        answered.took.as_millis(),
        answered.bytes_in,
        answered.bytes_out
    )
}
