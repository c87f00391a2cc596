//! Speaks MCP with upstreams: one process for each caller and server, started at the first call, stopped when idle.
//!
//! An upstream is not trusted: it gets nothing but the calls that the policy grants, its requests are refused, and what it
//! sends has limits. Its tools' definitions are compared with the pinned ones before each call.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use serde_json::{Map, Value, json};
use tokio::io::{AsyncRead, AsyncWriteExt as _, ReadBuf};
use tokio::net::unix::pipe;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use super::slots::ProgramSlot;
use super::{Programs, ReportFault};
use crate::catalogue::{UpstreamServer, UpstreamTool};
use crate::child::{ChildUser, GRACE, RunningProgram, spec, start};
use crate::mcp::ANSWER_VALUES_MAX;
use crate::mcp::client::{Incoming, UpstreamAnswer, incoming, initialize_params};
use crate::mcp::framing::{Line, Lines, json as reader};
use crate::mcp::helper::ProgressSink;
use crate::name::{ServerName, ServiceTool, UpstreamToolName};
use crate::policy::Caller;
use crate::services::Services;
use crate::tool::ToolError;

/// Maximum length of a message from an upstream, in bytes: an image of 8 MiB in base64, twice.
const LINE_MAX: usize = 32 * 1024 * 1024;
/// Maximum length of a result that is passed on, in bytes: the official TypeScript clients close the connection at a line
/// of 10 MiB.
const RESULT_MAX: usize = 9 * 1024 * 1024;
/// Maximum length of a report of progress, in bytes; longer ones are dropped.
const PROGRESS_BYTES_MAX: usize = 64 * 1024;
/// Maximum number of messages and bytes that an upstream may send without answering.
const STRAY_MAX: usize = 20_000;
const STRAY_BYTES_MAX: usize = 64 * 1024 * 1024;
/// Number of bytes that wait to be written to an upstream, from which on further requests are refused.
const UNSENT_MAX: usize = 32 * 1024 * 1024;
/// Maximum time for an upstream to start, and to list its tools.
const START_MAX: Duration = Duration::from_secs(30);
/// Maximum length of its list of tools, in bytes, and number of pages.
const LIST_BYTES_MAX: usize = 8 * 1024 * 1024;
const PAGES_MAX: usize = 100;
/// Age of a list after which it is fetched again before a call, in case an upstream does not say that it has changed.
const LIST_AGE_MAX: Duration = Duration::from_secs(10);
/// Pause after the first failure of an upstream; it doubles with each further one.
const BACK_OFF: Duration = Duration::from_millis(500);
const BACK_OFF_MAX: Duration = Duration::from_secs(30);
/// A call waits for the end of a pause that is not longer than this.
const PAUSE_WAITED: Duration = Duration::from_secs(2);
/// Ends of a server that are no failures.
const STOPPED: &str = "it was stopped";
const UNNEEDED: &str = "nobody needs it any more";
const IDLE: &str = "it was idle";
/// Maximum length of a line of an upstream's error output that is written to the log, in characters.
const ERROR_LINE_SHOWN: usize = 500;
/// Maximum number of such lines per interval.
const ERROR_LINES_MAX: u32 = 50;
const ERROR_INTERVAL: Duration = Duration::from_secs(10);

/// The running upstreams.
#[derive(Default)]
pub(super) struct Upstreams {
    places: Mutex<HashMap<(Caller, ServerName), Arc<UpstreamPlace>>>,
    /// Tools whose definition was not the pinned one when they were last called, with the digest of the latter.
    changed: Mutex<BTreeMap<(ServerName, UpstreamToolName), String>>,
}

/// A caller's place for one server.
#[derive(Default)]
struct UpstreamPlace {
    /// Locked while it starts.
    upstream: tokio::sync::Mutex<Option<Upstream>>,
    failures: Mutex<UpstreamFailures>,
}

/// The failures of an upstream since it last answered.
#[derive(Default)]
struct UpstreamFailures {
    count: u32,
    /// It is not started again before this time.
    until: Option<Instant>,
}

/// A call to an upstream's tool.
pub(super) struct UpstreamCall<'a> {
    pub(super) caller: &'a Caller,
    pub(super) name: &'a ServerName,
    pub(super) server: &'a UpstreamServer,
    pub(super) tool: &'a UpstreamTool,
    pub(super) arguments: &'a Map<String, Value>,
    /// Receives the progress that the upstream reports.
    pub(super) progress: Option<ProgressSink>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Upstreams {
    /// Makes a call, and starts the server if necessary. Dropping the future cancels the call.
    pub(super) async fn call(
        &self,
        programs: &Arc<Programs>,
        call: UpstreamCall<'_>,
    ) -> Result<UpstreamAnswer, ToolError> {
        let place = {
            let mut places = lock(&self.places);
            // Places without a server and without failures are forgotten.
            places.retain(|_, place| Arc::strong_count(place) > 1 || place.is_in_use());
            let key = (call.caller.clone(), call.name.clone());
            Arc::clone(places.entry(key).or_default())
        };
        let connection = place.connection(programs, &call).await?;
        let answered = connection.call(&call).await;
        if self.note_definition(&call, answered.as_ref().err()) {
            let (server, tool) = (call.name, call.tool.name());
            (programs.report)(&format!(
                "the definition of `{server}/{tool}` is not the one that was accepted, so calls are refused"
            ));
        }
        match &answered {
            Err(UpstreamFault::Ended(why)) => connection.count_failure(why, &place),
            Err(
                UpstreamFault::TooLong(_)
                | UpstreamFault::Changed(_)
                | UpstreamFault::Missing(_)
                | UpstreamFault::Deaf,
            ) => {}
            Ok(_) => *lock(&place.failures) = UpstreamFailures::default(),
        }
        answered.map_err(ToolError::from)
    }
}

impl Upstreams {
    /// Notes whether the server still describes a called tool as it is pinned; returns whether a difference is new.
    fn note_definition(&self, call: &UpstreamCall<'_>, fault: Option<&UpstreamFault>) -> bool {
        let Ok(tool) = call.tool.name().parse() else {
            return false;
        };
        let key = (call.name.clone(), tool);
        let mut changed = lock(&self.changed);
        match fault {
            Some(UpstreamFault::Changed(_) | UpstreamFault::Missing(_)) => {
                let digest = call.tool.digest().to_owned();
                changed.insert(key, digest.clone()) != Some(digest)
            }
            Some(UpstreamFault::Ended(_) | UpstreamFault::TooLong(_) | UpstreamFault::Deaf) => {
                false
            }
            None => {
                changed.remove(&key);
                false
            }
        }
    }

    /// Stops the server that has been without a call for the longest time, so that another program can run.
    pub(super) fn stop_one(&self) {
        let places = lock(&self.places);
        let idle = places.values().filter_map(|place| {
            let upstream = place.upstream.try_lock().ok()?;
            let connection = upstream.as_ref()?.connection.clone();
            let shared = &connection.shared;
            let is_idle = shared.in_flight.load(Ordering::Relaxed) == 0;
            let used = *lock(&shared.used);
            (is_idle && !shared.stop.is_cancelled()).then_some((used, connection))
        });
        if let Some((_, connection)) = idle.min_by_key(|(used, _)| *used) {
            connection.stop();
        }
    }

    /// Returns the tools whose definition was not the one that is pinned now.
    pub(super) fn changed(&self, services: &Services) -> Vec<ServiceTool> {
        let changed = lock(&self.changed);
        let changed = changed.iter().filter_map(|((server, tool), digest)| {
            let pinned = services.servers.get(server)?.tools.get(tool)?;
            let tool = ServiceTool::Upstream(server.clone(), tool.clone());
            (pinned.digest() == *digest).then_some(tool)
        });
        changed.collect()
    }
}

impl UpstreamPlace {
    fn is_in_use(&self) -> bool {
        let runs = self.upstream.try_lock().map_or(true, |upstream| {
            upstream.as_ref().is_some_and(Upstream::is_running)
        });
        // The number of failures counts for a while, so that the pauses grow.
        let until = lock(&self.failures).until;
        runs || until.is_some_and(|until| until + BACK_OFF_MAX > Instant::now())
    }

    fn has_failed(&self) {
        let mut failures = lock(&self.failures);
        let pause = BACK_OFF.saturating_mul(1 << failures.count.min(10));
        failures.count = failures.count.saturating_add(1);
        failures.until = Some(Instant::now() + pause.min(BACK_OFF_MAX));
    }

    /// Returns the connection to the running server; starts one if none runs, or if it is declared differently by now.
    async fn connection(
        &self,
        programs: &Arc<Programs>,
        call: &UpstreamCall<'_>,
    ) -> Result<UpstreamConnection, ToolError> {
        let mut upstream = self.upstream.lock().await;
        if let Some(running) = &*upstream
            && running.is_running()
            && running.runs_as(call.server)
        {
            return Ok(running.connection.clone());
        }
        *upstream = None;
        let until = lock(&self.failures).until;
        if let Some(until) = until
            && let Some(left) = until.checked_duration_since(Instant::now())
        {
            if left <= PAUSE_WAITED {
                sleep_until(until).await;
            } else {
                let text = format!(
                    "the server `{}` has failed repeatedly; try again in {:.0} s",
                    call.name,
                    left.as_secs_f64().ceil()
                );
                return Err(ToolError::Unavailable(text));
            }
        }
        let started = Upstream::start(programs, call).await;
        if started.is_err() {
            self.has_failed();
        }
        let started = upstream.insert(started?);
        Ok(started.connection.clone())
    }
}

/// A running server.
struct Upstream {
    connection: UpstreamConnection,
    /// What it was started from.
    server: UpstreamServer,
    /// Ends it when this is dropped.
    _end: tokio_util::sync::DropGuard,
}

impl Upstream {
    fn is_running(&self) -> bool {
        !self.connection.shared.ended.is_cancelled()
    }

    fn runs_as(&self, server: &UpstreamServer) -> bool {
        let own = &self.server;
        (&own.command, &own.process, own.idle_seconds)
            == (&server.command, &server.process, server.idle_seconds)
    }

    async fn start(programs: &Arc<Programs>, call: &UpstreamCall<'_>) -> Result<Self, ToolError> {
        let slot = programs.enter_slot(call.caller).await?;
        let label = format!("`{}` (for {})", call.name, call.caller);
        let connection = connect(
            call.server,
            &programs.user,
            &programs.report,
            label,
            Some(slot),
        )
        .await?;
        let end = connection.shared.stop.clone().drop_guard();
        Ok(Self {
            connection,
            server: call.server.clone(),
            _end: end,
        })
    }
}

/// Starts a server, and completes `initialize` with it.
pub(super) async fn connect(
    server: &UpstreamServer,
    user: &ChildUser,
    report: &ReportFault,
    label: String,
    slot: Option<ProgramSlot>,
) -> Result<UpstreamConnection, ToolError> {
    let not_set_up = |why: String| {
        report(&format!("the server {label} cannot run: {why}"));
        ToolError::Unavailable(super::NOT_SET_UP.to_owned())
    };
    let spec = spec(server.command.clone(), &server.process, user);
    let mut spec = spec.map_err(|why| not_set_up(why.to_string()))?;
    // Definitions may depend on it.
    if !spec.env.iter().any(|(name, _)| name == "TZ") {
        spec.env.push(("TZ".to_owned(), "UTC".to_owned()));
    }
    let program = start(&spec, slot).await;
    let program = program.map_err(|why| not_set_up(why.to_string()))?;
    let shared = Arc::new(UpstreamShared::default());
    let (requests, queue) = mpsc::unbounded_channel();
    let idle = Duration::from_secs(server.idle_seconds.into());
    let errors = Errors::new(label.clone(), Arc::clone(report));
    tokio::spawn(run(program, queue, Arc::clone(&shared), idle, errors));
    let connection = UpstreamConnection { requests, shared };
    match timeout(START_MAX, connection.initialize()).await {
        Ok(Ok(())) => Ok(connection),
        Ok(Err(why)) => Err(not_set_up(why.to_string())),
        Err(_) => {
            connection.shared.stop.cancel();
            let seconds = START_MAX.as_secs();
            Err(not_set_up(format!(
                "it did not answer `initialize` within {seconds} s"
            )))
        }
    }
}

/// The reason why a call to an upstream has no answer.
#[derive(Debug, Clone, thiserror::Error)]
pub(super) enum UpstreamFault {
    #[error("the server that runs this tool has ended: {0}")]
    Ended(&'static str),
    #[error("the server's answer has {} MiB; at most {} MiB are passed on", .0.div_ceil(1024 * 1024), RESULT_MAX / 1024 / 1024)]
    TooLong(u64),
    #[error(
        "the definition of `{0}` has changed since it was accepted, so it is not called; the operator can accept it with `anklume mcp pin` and `anklume apply`"
    )]
    Changed(String),
    #[error("the server no longer has a tool `{0}`")]
    Missing(String),
    #[error("the server does not read the calls that already wait; try again later")]
    Deaf,
}

impl From<UpstreamFault> for ToolError {
    fn from(fault: UpstreamFault) -> Self {
        match fault {
            UpstreamFault::Deaf => Self::Busy(fault.to_string()),
            UpstreamFault::Ended(_) => Self::Unavailable(fault.to_string()),
            UpstreamFault::TooLong(_) => Self::TooLarge(fault.to_string()),
            UpstreamFault::Changed(_) | UpstreamFault::Missing(_) => {
                Self::Refused(fault.to_string())
            }
        }
    }
}

/// Sends requests to a running server.
#[derive(Clone)]
pub(super) struct UpstreamConnection {
    requests: mpsc::UnboundedSender<UpstreamOutgoing>,
    shared: Arc<UpstreamShared>,
}

/// What a server's task shares with its callers.
#[derive(Default)]
struct UpstreamShared {
    /// Cancelled to end the server.
    stop: CancellationToken,
    /// Cancelled when the server has ended.
    ended: CancellationToken,
    last_id: AtomicI64,
    /// True if the server says that its tools have changed.
    is_stale: AtomicBool,
    /// True once its failure was counted: it may fail many calls at once.
    is_counted: AtomicBool,
    in_flight: AtomicUsize,
    /// Number of bytes that wait to be written.
    unsent: AtomicUsize,
    used: Mutex<Option<Instant>>,
    listed: tokio::sync::Mutex<Option<Listed>>,
}

/// The digests of a server's tools, by their names.
struct Listed {
    since: Instant,
    digests: HashMap<String, String>,
}

/// A message to a server.
enum UpstreamOutgoing {
    Request {
        id: i64,
        line: Vec<u8>,
        waiting: Waiting,
    },
    Notification(Vec<u8>),
    /// The answer to this request is no longer wanted.
    Cancel(i64),
}

/// A request that waits for its answer.
struct Waiting {
    answer: oneshot::Sender<Result<UpstreamAnswer, UpstreamFault>>,
    progress: Option<ProgressSink>,
}

/// Cancels a request if it is dropped before the answer.
struct CancelOnDrop<'a> {
    connection: &'a UpstreamConnection,
    id: Option<i64>,
}

impl Drop for CancelOnDrop<'_> {
    fn drop(&mut self) {
        let shared = &self.connection.shared;
        shared.in_flight.fetch_sub(1, Ordering::Relaxed);
        *lock(&shared.used) = Some(Instant::now());
        if let Some(id) = self.id {
            // A server that has ended has nothing to cancel.
            let _ = self.connection.requests.send(UpstreamOutgoing::Cancel(id));
        }
    }
}

impl UpstreamConnection {
    async fn initialize(&self) -> Result<(), UpstreamFault> {
        match self
            .request("initialize", &initialize_params(), None)
            .await?
        {
            UpstreamAnswer::Result(_) => {}
            UpstreamAnswer::Error(_) => {
                return Err(UpstreamFault::Ended("it refused `initialize`"));
            }
        }
        let initialized = json!({"jsonrpc": "2.0", "method": "notifications/initialized"});
        let line = initialized.to_string().into_bytes();
        let _ = self.requests.send(UpstreamOutgoing::Notification(line));
        Ok(())
    }

    async fn call(&self, call: &UpstreamCall<'_>) -> Result<UpstreamAnswer, UpstreamFault> {
        self.check(call.tool).await?;
        let params = json!({"name": call.tool.name(), "arguments": call.arguments});
        let answer = self
            .request("tools/call", &params, call.progress.clone())
            .await?;
        let (UpstreamAnswer::Result(payload) | UpstreamAnswer::Error(payload)) = &answer;
        let length = payload.get().len();
        if length > RESULT_MAX {
            return Err(UpstreamFault::TooLong(length as u64));
        }
        Ok(answer)
    }

    /// Checks that the server's definition of a tool is the pinned one.
    async fn check(&self, tool: &UpstreamTool) -> Result<(), UpstreamFault> {
        let mut listed = self.shared.listed.lock().await;
        let is_stale = self.shared.is_stale.swap(false, Ordering::Relaxed);
        let is_recent = |listed: &Listed| listed.since.elapsed() < LIST_AGE_MAX;
        if is_stale || !listed.as_ref().is_some_and(is_recent) {
            *listed = None;
            let tools = self.tools().await?;
            let digests = tools.iter().filter_map(|tool| {
                let name = tool.get("name")?.as_str()?.to_owned();
                // One that cannot be pinned is never the pinned one.
                let digest = UpstreamTool::of(tool).map(|tool| tool.digest().to_owned());
                Some((name, digest.unwrap_or_default()))
            });
            *listed = Some(Listed {
                since: Instant::now(),
                digests: digests.collect(),
            });
        }
        let name = tool.name().to_owned();
        let digests = listed.as_ref().map(|listed| &listed.digests);
        match digests.and_then(|digests| digests.get(&name)) {
            Some(digest) if *digest == tool.digest() => Ok(()),
            Some(_) => Err(UpstreamFault::Changed(name)),
            None => Err(UpstreamFault::Missing(name)),
        }
    }

    /// Counts the failure of the server once, unless it was ended on purpose.
    fn count_failure(&self, why: &str, place: &UpstreamPlace) {
        let was_ended = [STOPPED, UNNEEDED, IDLE].contains(&why);
        if !was_ended && !self.shared.is_counted.swap(true, Ordering::Relaxed) {
            place.has_failed();
        }
    }

    /// Ends the server.
    pub(super) fn stop(&self) {
        self.shared.stop.cancel();
    }

    /// Lists the server's tools as it describes them.
    pub(super) async fn tools(&self) -> Result<Vec<Value>, UpstreamFault> {
        let listing = async {
            let mut tools = Vec::new();
            let (mut values, mut bytes) = (0, 0);
            let mut params = json!({});
            for _ in 0..PAGES_MAX {
                let answer = self.request("tools/list", &params, None).await?;
                let UpstreamAnswer::Result(page) = answer else {
                    self.stop();
                    return Err(UpstreamFault::Ended("it does not list its tools"));
                };
                // A value takes many times more memory than its text.
                values += reader::count(page.get().as_bytes()).unwrap_or(usize::MAX / 2);
                bytes += page.get().len();
                if values > ANSWER_VALUES_MAX || bytes > LIST_BYTES_MAX {
                    self.stop();
                    return Err(UpstreamFault::Ended("its list of tools is too long"));
                }
                let mut page: Value = serde_json::from_str(page.get()).unwrap_or_default();
                if let Some(Value::Array(listed)) = page.get_mut("tools") {
                    tools.append(listed);
                }
                match page.get("nextCursor") {
                    Some(cursor @ Value::String(_)) => params = json!({"cursor": cursor}),
                    _ => break,
                }
            }
            Ok(tools)
        };
        let listed = timeout(START_MAX, listing).await;
        listed.unwrap_or_else(|_| {
            self.shared.stop.cancel();
            Err(UpstreamFault::Ended("it did not list its tools in time"))
        })
    }

    /// Sends a request and waits for its answer. Dropping the future cancels the request.
    async fn request(
        &self,
        method: &str,
        params: &Value,
        progress: Option<ProgressSink>,
    ) -> Result<UpstreamAnswer, UpstreamFault> {
        let id = self.shared.last_id.fetch_add(1, Ordering::Relaxed) + 1;
        let mut params = params.clone();
        if let (Some(_), Some(params)) = (&progress, params.as_object_mut()) {
            params.insert("_meta".to_owned(), json!({"progressToken": id}));
        }
        let line = json!({"jsonrpc": "2.0", "id": id, "method": method, "params": params});
        if self.shared.unsent.load(Ordering::Relaxed) >= UNSENT_MAX {
            return Err(UpstreamFault::Deaf);
        }
        let (sender, answer) = oneshot::channel();
        let ended = UpstreamFault::Ended("try again");
        let request = UpstreamOutgoing::Request {
            id,
            line: line.to_string().into_bytes(),
            waiting: Waiting {
                answer: sender,
                progress,
            },
        };
        self.requests.send(request).map_err(|_| ended.clone())?;
        self.shared.in_flight.fetch_add(1, Ordering::Relaxed);
        let mut cancel = CancelOnDrop {
            connection: self,
            id: Some(id),
        };
        let answer = answer.await;
        cancel.id = None;
        answer.unwrap_or(Err(ended))
    }
}

/// Counts the bytes that an upstream sends without answering.
struct CountedReader {
    pipe: pipe::Receiver,
    /// The number of bytes that it may still send.
    left: Arc<AtomicUsize>,
}

impl AsyncRead for CountedReader {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.pipe).poll_read(context, buffer);
        let count = buffer.filled().len().saturating_sub(before);
        let left = self.left.load(Ordering::Relaxed);
        self.left
            .store(left.saturating_sub(count), Ordering::Relaxed);
        if left < count {
            return Poll::Ready(Err(io::ErrorKind::QuotaExceeded.into()));
        }
        read
    }
}

/// Exchanges messages with a server until it ends, is told to end, or has been idle for a while.
async fn run(
    program: RunningProgram,
    mut queue: mpsc::UnboundedReceiver<UpstreamOutgoing>,
    shared: Arc<UpstreamShared>,
    idle: Duration,
    errors: Errors,
) {
    let RunningProgram {
        stdin,
        stdout,
        stderr,
        running,
        mut end,
    } = program;
    let reporting = tokio::spawn(errors.report(stderr));
    let (unsent, lines_out) = mpsc::unbounded_channel();
    let writing = tokio::spawn(write(stdin, lines_out, Arc::clone(&shared)));
    let mut session = UpstreamSession {
        waiting: HashMap::new(),
        unsent,
        stray: 0,
        left: Arc::new(AtomicUsize::new(STRAY_BYTES_MAX)),
        shared: Arc::clone(&shared),
    };
    let reader = CountedReader {
        pipe: stdout,
        left: Arc::clone(&session.left),
    };
    let mut lines = Lines::new(reader, LINE_MAX);
    let mut last = Instant::now();
    let why = loop {
        let is_idle = session.waiting.is_empty();
        tokio::select! {
            () = shared.stop.cancelled() => break STOPPED,
            outgoing = queue.recv() => match outgoing {
                Some(outgoing) => {
                    last = Instant::now();
                    session.take(outgoing);
                }
                None => break UNNEEDED,
            },
            line = lines.next() => match line {
                Ok(Some(line)) => {
                    last = Instant::now();
                    if !session.receive(&line) {
                        break "it keeps sending without answering";
                    }
                }
                Ok(None) => break "it closed its output",
                Err(why) if why.kind() == io::ErrorKind::QuotaExceeded => {
                    break "it keeps sending without answering";
                }
                Err(_) => break "it cannot be read",
            },
            () = sleep_until(last + idle), if is_idle => break IDLE,
        }
    };
    shared.ended.cancel();
    for (_, waiting) in session.waiting.drain() {
        // The caller may be gone.
        let _ = waiting.answer.send(Err(UpstreamFault::Ended(why)));
    }
    queue.close();
    while let Ok(outgoing) = queue.try_recv() {
        if let UpstreamOutgoing::Request { waiting, .. } = outgoing {
            let _ = waiting.answer.send(Err(UpstreamFault::Ended(why)));
        }
    }
    // A server ends at the end of its input (MCP, transports); one that does not is ended.
    writing.abort();
    drop((session, lines));
    let _ = timeout(GRACE, end.ended()).await;
    drop((running, end));
    let _ = reporting.await;
}

/// Writes lines to a server, and stops it if it no longer reads.
async fn write(
    mut stdin: pipe::Sender,
    mut lines: mpsc::UnboundedReceiver<Vec<u8>>,
    shared: Arc<UpstreamShared>,
) {
    while let Some(line) = lines.recv().await {
        if stdin.write_all(&line).await.is_err() {
            shared.stop.cancel();
        }
        shared.unsent.fetch_sub(line.len(), Ordering::Relaxed);
    }
}

/// The state of the exchange with a server.
struct UpstreamSession {
    waiting: HashMap<i64, Waiting>,
    unsent: mpsc::UnboundedSender<Vec<u8>>,
    /// Number of messages since the last answer.
    stray: usize,
    left: Arc<AtomicUsize>,
    shared: Arc<UpstreamShared>,
}

impl UpstreamSession {
    fn take(&mut self, outgoing: UpstreamOutgoing) {
        match outgoing {
            UpstreamOutgoing::Request { id, line, waiting } => {
                self.waiting.insert(id, waiting);
                self.queue(line);
            }
            UpstreamOutgoing::Notification(line) => self.queue(line),
            UpstreamOutgoing::Cancel(id) => {
                if self.waiting.remove(&id).is_some() {
                    let cancelled = json!({
                        "jsonrpc": "2.0",
                        "method": "notifications/cancelled",
                        "params": {"requestId": id},
                    });
                    self.queue(cancelled.to_string().into_bytes());
                }
            }
        }
    }

    fn queue(&self, mut line: Vec<u8>) {
        line.push(b'\n');
        self.shared.unsent.fetch_add(line.len(), Ordering::Relaxed);
        // A server that no longer reads is stopped.
        let _ = self.unsent.send(line);
    }

    /// Takes a line of the server; returns false if it sends too much without answering.
    fn receive(&mut self, line: &Line) -> bool {
        self.stray += 1;
        let bytes = match line {
            Line::Whole(bytes) => bytes,
            Line::TooLong { bytes, .. } => {
                // Whose answer it is, is unknown.
                for (_, waiting) in self.waiting.drain() {
                    let _ = waiting.answer.send(Err(UpstreamFault::TooLong(*bytes)));
                }
                return true;
            }
        };
        match incoming(bytes) {
            Incoming::Answer { id, answer } => {
                if let Some(waiting) = self.waiting.remove(&id) {
                    self.stray = 0;
                    self.left.store(STRAY_BYTES_MAX, Ordering::Relaxed);
                    // The caller may be gone.
                    let _ = waiting.answer.send(Ok(answer));
                }
            }
            Incoming::Progress { token, params } => {
                let waiting = self.waiting.get(&token);
                let waiting = waiting.filter(|_| params.get().len() <= PROGRESS_BYTES_MAX);
                if let Some(progress) = waiting.and_then(|waiting| waiting.progress.as_ref()) {
                    // A caller that is slow misses some.
                    let _ = progress.try_send(params);
                }
            }
            Incoming::Asked(reply) => self.queue(reply.into_bytes()),
            Incoming::ToolsChanged => self.shared.is_stale.store(true, Ordering::Relaxed),
            Incoming::Other => {}
        }
        self.stray <= STRAY_MAX
    }
}

/// Writes an upstream's error output to the machine's log, within limits.
struct Errors {
    label: String,
    report: ReportFault,
}

impl Errors {
    fn new(label: String, report: ReportFault) -> Self {
        Self { label, report }
    }

    async fn report(self, stderr: pipe::Receiver) {
        let mut lines = Lines::new(stderr, 16 * 1024);
        let (mut since, mut count) = (Instant::now(), 0);
        while let Ok(Some(line)) = lines.next().await {
            if since.elapsed() > ERROR_INTERVAL {
                (since, count) = (Instant::now(), 0);
            }
            count += 1;
            if count > ERROR_LINES_MAX {
                continue;
            }
            let text = match &line {
                Line::Whole(bytes) => String::from_utf8_lossy(bytes).into_owned(),
                Line::TooLong { head, .. } => String::from_utf8_lossy(head).into_owned(),
            };
            // Whoever writes it to the log escapes it.
            let text: String = text.chars().take(ERROR_LINE_SHOWN).collect();
            (self.report)(&format!("the server {} says: {text}", self.label));
        }
    }
}
