//! What the connections of a server share: its policy, its log, its tools.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::audit::{AuditError, Event, LOG, Log, bounded_reason};
use crate::cli::McpServeArgs;
use crate::command::output::Output;
use crate::confinement::InForce;
use crate::error::{Exit, Failure};
use crate::infra::Confinement;
use crate::machine_state::SERVICES;
use crate::mcp::concurrency::ConcurrencyLimiter;
use crate::mcp::helper::Helpers;
use crate::mcp::listen::ServerState;
use crate::mcp::monitor::Monitor;
use crate::mcp::policy_watcher::{OnChange, PolicyError, PolicyWatcher};
use crate::mcp::recorder::{Complain, Recorder};
use crate::mcp::server::{AnsweredRequest, Observer, RequestOutcome, Shared};
use crate::services::Services;
use crate::tool::Settings;

/// A log that cannot be written is told of this often at most.
const COMPLAIN_EVERY: Duration = Duration::from_secs(10);

/// The server of consumers' channels: a services file that is followed, and a log without which no call runs.
pub(super) fn state(
    args: &McpServeArgs,
    confinement: InForce,
    launcher: Option<String>,
    output: &Output,
) -> anyhow::Result<ServerState> {
    // What the processes of consumers would refuse is refused here.
    settings()?;
    let path = args.services.clone().unwrap_or_else(|| SERVICES.into());
    let policy = PolicyWatcher::read(&path).map_err(|error| broken_policy(&error))?;
    if let Some(why) = confinement.missing()
        && policy.confinement == Confinement::Required
    {
        return Err(unconfined(&why).into());
    }
    if path.symlink_metadata().is_err() {
        let shown = path.display().to_string();
        output.say(&format!(
            "warning: there is no file `{}`: nobody is served until it comes",
            shown.escape_debug()
        ));
    }
    let recorder = Arc::new(required_log(args, &policy, output)?);
    let live = Arc::new(PolicyWatcher::new(
        &path,
        policy,
        on_change(&recorder, output),
    ));
    let policy = live.current();
    let started = Event::Start {
        version: env!("CARGO_PKG_VERSION").into(),
        pid: std::process::id(),
        policy: policy.digest.as_str().into(),
    };
    recorder
        .append(started, policy.services.allow_unlogged)
        .map_err(|error| no_log(&error))?;
    Ok(ServerState {
        services: path,
        live,
        recorder,
        gate: Arc::new(ConcurrencyLimiter::default()),
        loans: Arc::default(),
        confinement,
        launcher,
        verbose: output.verbose(),
    })
}

/// What the connections of a caller share that asks `monitor`.
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

/// The log of the operator's own server, where there is one.
pub(super) fn operators_log(args: &McpServeArgs, output: &Output) -> anyhow::Result<Arc<Recorder>> {
    let log = match &args.audit_log {
        Some(path) => Some(Log::open(path).map_err(|error| no_log(&error))?),
        None => Log::open(Path::new(LOG)).ok(),
    };
    Ok(Arc::new(Recorder::new(log, false, complain(output))))
}

/// Reads the settings of the tools from the environment.
pub(in crate::command::mcp) fn settings() -> Result<Settings, Failure> {
    Settings::from_env().map_err(|relative| Failure::new(Exit::Usage, relative.to_string()))
}

fn required_log(
    args: &McpServeArgs,
    policy: &Services,
    output: &Output,
) -> anyhow::Result<Recorder> {
    let path = args.audit_log.clone().unwrap_or_else(|| PathBuf::from(LOG));
    let complain = complain(output);
    match Log::open(&path) {
        Ok(log) => Ok(Recorder::new(Some(log), true, complain)),
        // Its first line tells that it cannot be opened.
        Err(_) if policy.allow_unlogged => Ok(Recorder::waiting_for(path, complain)),
        Err(error) => Err(no_log(&error).into()),
    }
}

fn no_log(error: &AuditError) -> Failure {
    Failure::new(Exit::Failed, error.to_string()).help(
        "no call runs unseen: make its folder writable, or name another with --audit-log; \
         `mcp: {allow_unlogged: true}` in infra.yml lets calls run all the same",
    )
}

/// A server that must be confined, and is not.
pub(in crate::command::mcp) fn unconfined(why: &str) -> Failure {
    let text = format!("this server must be confined, and is not: {why}");
    Failure::new(Exit::Failed, text)
        .help("`mcp: {confinement: available}` in infra.yml lets it serve all the same")
}

fn broken_policy(error: &PolicyError) -> Failure {
    Failure::new(Exit::Failed, error.to_string()).help(
        "a server does not start by a broken policy; `anklume policy export --machine NAME` on the host writes the file",
    )
}

/// Tells of a change of the policy, loudly when it was refused.
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
        // Whether calls may go on without a log is asked at each call.
        let _ = recorder.append(event, true);
    })
}

/// Says on stderr that the log cannot be written, but not for every call.
fn complain(output: &Output) -> Complain {
    let output = output.clone();
    let last: Mutex<Option<Instant>> = Mutex::new(None);
    Box::new(move |error| {
        let mut last = last.lock().unwrap_or_else(PoisonError::into_inner);
        if last.is_none_or(|last| last.elapsed() >= COMPLAIN_EVERY) {
            *last = Some(Instant::now());
            output.stderr(&format!("error: {error}"));
        }
    })
}

/// With `--verbose`, a line on stderr for each answer.
fn observer(output: &Output) -> Observer {
    if !output.verbose() {
        return Arc::new(|_| {});
    }
    let output = output.clone();
    Arc::new(move |answered| output.stderr(&line(answered)))
}

fn line(answered: &AnsweredRequest) -> String {
    let AnsweredRequest {
        label,
        outcome,
        took,
        bytes_in,
        bytes_out,
    } = answered;
    let outcome = match outcome {
        RequestOutcome::Done => "done".to_owned(),
        RequestOutcome::Failed => "failed".to_owned(),
        RequestOutcome::Refused(code) => format!("refused with {code}"),
    };
    let millis = took.as_millis();
    format!("{label}: {outcome} in {millis} ms, {bytes_in} bytes in, {bytes_out} bytes out")
}
