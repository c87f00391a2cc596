//! Starts a worker's helpers and sends them its calls.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::io;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncWriteExt as _, BufReader};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use super::{HelperOrder, HelperReport, REPORT_MAX, ToolResult};
use crate::ipc::{framed, receive_async};
use crate::mcp::client::ProgressSink;
use crate::name::ServiceTool;
use crate::policy::Grant;
use crate::tool::{Copies, Resource, ToolError};

/// Time for which an idle helper keeps running.
const IDLE: Duration = Duration::from_secs(3);

/// Runs the tools that this process cannot run itself.
pub(crate) struct Helpers {
    /// Asks the server to start a helper and returns the socket to it.
    start: Box<dyn Fn(Resource) -> io::Result<UnixStream> + Send + Sync>,
    /// Returns whether this process may use a resource itself.
    own: Box<dyn Fn(Resource) -> bool + Send + Sync>,
    /// Idle timeout of piecewise transfers.
    pieces: Duration,
    running: Mutex<HashMap<Resource, Arc<Helper>>>,
    numbers: AtomicU64,
}

/// A running helper.
struct Helper {
    /// A queue of one call; further calls wait in their senders.
    calls: mpsc::Sender<(u64, Vec<u8>)>,
    /// Short orders, which never wait.
    orders: mpsc::UnboundedSender<Vec<u8>>,
    /// The helper's socket, for closing it immediately.
    socket: UnixStream,
    /// Cancelled when the helper has ended or is about to end.
    ended: CancellationToken,
    state: Mutex<HelperState>,
}

struct HelperState {
    waiting: HashMap<u64, CallReceiver>,
    /// Receivers of the tools that have changed.
    asked: HashMap<u64, oneshot::Sender<Vec<ServiceTool>>>,
    /// The connections with an unfinished piecewise transfer.
    busy: HashSet<u64>,
    /// Idle timeout of such a transfer.
    pieces: Duration,
    /// The time at which the last call ended.
    since: Instant,
}

/// Receives what a helper reports about a call.
struct CallReceiver {
    result: oneshot::Sender<ToolResult>,
    progress: Option<ProgressSink>,
}

/// One connection's access to the helpers; its piecewise transfers end with it.
pub(crate) struct Connection {
    helpers: Arc<Helpers>,
    number: u64,
}

impl Helpers {
    /// Creates the set of helpers without starting any.
    pub(crate) fn new(
        own: impl Fn(Resource) -> bool + Send + Sync + 'static,
        pieces: Duration,
        start: impl Fn(Resource) -> io::Result<UnixStream> + Send + Sync + 'static,
    ) -> Self {
        Self {
            start: Box::new(start),
            own: Box::new(own),
            pieces,
            running: Mutex::default(),
            numbers: AtomicU64::default(),
        }
    }

    fn number(&self) -> u64 {
        self.numbers.fetch_add(1, Ordering::Relaxed)
    }

    /// Returns the helper for a resource; starts it if none is running.
    fn of(self: &Arc<Self>, resource: Resource) -> io::Result<Arc<Helper>> {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(helper) = running.get(&resource)
            && !helper.ended.is_cancelled()
        {
            return Ok(Arc::clone(helper));
        }
        let socket = (self.start)(resource)?;
        socket.set_nonblocking(true)?;
        let stream = tokio::net::UnixStream::from_std(socket.try_clone()?)?;
        let (reader, writer) = stream.into_split();
        let (calls, queued_calls) = mpsc::channel(1);
        let (orders, queued_orders) = mpsc::unbounded_channel();
        let helper = Arc::new(Helper {
            calls,
            orders,
            socket,
            ended: CancellationToken::new(),
            state: Mutex::new(HelperState {
                waiting: HashMap::new(),
                asked: HashMap::new(),
                busy: HashSet::new(),
                pieces: self.pieces,
                since: Instant::now(),
            }),
        });
        tokio::spawn(Arc::clone(&helper).write(queued_calls, queued_orders, writer));
        tokio::spawn(Arc::clone(&helper).read(reader));
        running.insert(resource, Arc::clone(&helper));
        Ok(helper)
    }
}

impl Connection {
    pub(crate) fn new(helpers: Arc<Helpers>) -> Self {
        let number = helpers.number();
        Self { helpers, number }
    }

    /// Returns whether a helper, not this process, runs this tool.
    pub(crate) fn runs(&self, tool: &ServiceTool) -> bool {
        !(self.helpers.own)(Resource::of(tool))
    }

    /// Runs a grant's tool in a helper.
    pub(crate) async fn run(
        &self,
        grant: &Grant,
        copies: Copies,
        progress: Option<ProgressSink>,
    ) -> ToolResult {
        let id = self.helpers.number();
        let order = HelperOrder::Call {
            id,
            connection: self.number,
            service: grant.name().into(),
            arguments: Cow::Borrowed(grant.arguments()),
            copies,
            progress: progress.is_some(),
        };
        let order = framed(&order).map_err(|_| ToolError::Broken)?;
        let helper = self.helpers.of(Resource::of(grant.tool()));
        let helper = helper.map_err(|cause| ToolError::System {
            doing: "start the process that runs this tool".to_owned(),
            cause,
        })?;
        let (sender, result) = oneshot::channel();
        let receiver = CallReceiver {
            result: sender,
            progress,
        };
        helper.state().waiting.insert(id, receiver);
        let _waiting = WaitingCall {
            helper: &helper,
            id,
        };
        if helper.calls.send((id, order)).await.is_ok()
            && !helper.ended.is_cancelled()
            && let Ok(result) = result.await
        {
            return result;
        }
        let ended = "the process that runs this tool has ended; try again";
        Err(ToolError::Unavailable(ended.to_owned()))
    }
}

impl Connection {
    /// Returns the machine's tools whose definition has changed since it was accepted, as far as the launcher knows.
    pub(crate) async fn changed(&self) -> Vec<ServiceTool> {
        let Ok(helper) = self.helpers.of(Resource::Programs) else {
            return Vec::new();
        };
        let id = self.helpers.number();
        let (sender, changed) = oneshot::channel();
        helper.state().asked.insert(id, sender);
        helper.order(&HelperOrder::Changed { id });
        // A launcher that has just ended knows of none.
        changed.await.unwrap_or_default()
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        let connection = self.number;
        let running = self.helpers.running.lock();
        for helper in running.unwrap_or_else(PoisonError::into_inner).values() {
            helper.state().busy.remove(&connection);
            helper.order(&HelperOrder::Close { connection });
        }
    }
}

/// A call that is waiting for its result; dropping this value earlier cancels the call.
struct WaitingCall<'a> {
    helper: &'a Helper,
    id: u64,
}

impl Drop for WaitingCall<'_> {
    fn drop(&mut self) {
        let mut state = self.helper.state();
        let ran = state.waiting.remove(&self.id).is_none();
        state.since = Instant::now();
        drop(state);
        if !ran {
            self.helper.order(&HelperOrder::Cancel { id: self.id });
        }
    }
}

impl Helper {
    fn state(&self) -> MutexGuard<'_, HelperState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn order(&self, order: &HelperOrder<'_>) {
        if let Ok(order) = framed(order) {
            // A helper that has ended has nothing to cancel or close.
            let _ = self.orders.send(order);
        }
    }

    /// Writes calls and orders until the helper has ended; skips cancelled calls.
    async fn write(
        self: Arc<Self>,
        mut calls: mpsc::Receiver<(u64, Vec<u8>)>,
        mut orders: mpsc::UnboundedReceiver<Vec<u8>>,
        mut writer: OwnedWriteHalf,
    ) {
        loop {
            let order = tokio::select! {
                biased;
                () = self.ended.cancelled() => return,
                Some(order) = orders.recv() => order,
                Some((id, call)) = calls.recv() => {
                    if !self.state().waiting.contains_key(&id) {
                        continue;
                    }
                    call
                }
                else => return,
            };
            if writer.write_all(&order).await.is_err() {
                return;
            }
        }
    }

    /// Passes on the helper's reports until the helper ends or has been idle for a while.
    async fn read(self: Arc<Self>, reader: OwnedReadHalf) {
        let mut reader = BufReader::new(reader);
        let mut report = Box::pin(receive_async(&mut reader, REPORT_MAX));
        loop {
            let idle = self.state().idle_until();
            let soon = Instant::now() + IDLE;
            let next_check = idle.map_or(soon, |idle| idle.min(soon));
            tokio::select! {
                read = &mut report => {
                    drop(report);
                    let Ok(read) = read else { break };
                    self.take(read);
                    report = Box::pin(receive_async(&mut reader, REPORT_MAX));
                }
                () = sleep_until(next_check) => {
                    let state = self.state();
                    if state.idle_until().is_some_and(|until| until <= Instant::now()) {
                        // Under the lock, so that no call starts waiting now; later calls see the cancellation.
                        self.ended.cancel();
                        // The next helper for the resource starts after this one has ended.
                        let _ = self.socket.shutdown(Shutdown::Both);
                        break;
                    }
                }
            }
        }
        self.ended.cancel();
        // Fails the waiting calls.
        let mut state = self.state();
        state.waiting.clear();
        state.asked.clear();
    }

    fn take(&self, report: HelperReport) {
        let mut state = self.state();
        state.since = Instant::now();
        let (id, connection, result, waits) = match report {
            HelperReport::Ended {
                id,
                connection,
                result,
                waits,
            } => (id, connection, result, waits),
            HelperReport::Progress { id, params } => {
                let waiting = state.waiting.get(&id);
                if let Some(progress) = waiting.and_then(|waiting| waiting.progress.as_ref()) {
                    // A caller that is slow misses some.
                    let _ = progress.try_send(params);
                }
                return;
            }
            HelperReport::Changed { id, tools } => {
                if let Some(asked) = state.asked.remove(&id) {
                    // The request may have been cancelled.
                    let _ = asked.send(tools);
                }
                return;
            }
        };
        let waiting = state.waiting.remove(&id);
        // A connection that has ended is not waiting, so it is not busy.
        if waits && waiting.is_some() {
            state.busy.insert(connection);
        } else if !waits {
            state.busy.remove(&connection);
        }
        if let (Some(waiting), Some(result)) = (waiting, result) {
            // The call may have been cancelled.
            let _ = waiting
                .result
                .send(result.map_err(|text| ToolError::Told(text.0)));
        }
    }
}

impl HelperState {
    /// Returns the time at which the helper counts as idle; by then, it has itself given up piecewise transfers.
    fn idle_until(&self) -> Option<Instant> {
        let pieces = if self.busy.is_empty() {
            Duration::ZERO
        } else {
            self.pieces
        };
        (self.waiting.is_empty() && self.asked.is_empty()).then(|| self.since + pieces + IDLE)
    }
}
