//! The helpers of a consumer's process, as that process sees them.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::fmt;
use std::io;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::io::AsyncWriteExt as _;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use super::protocol::{HelperOrder, HelperReport, REPORT_MAX, receive};
use crate::mcp::monitor::framed;
use crate::policy::Grant;
use crate::tool::{Copies, Resource, ToolError, ToolOutcome};

/// Time for which an idle helper is kept.
const IDLE: Duration = Duration::from_secs(3);

/// Has the server start a helper; the socket to it.
type Start = Box<dyn Fn(Resource) -> io::Result<UnixStream> + Send + Sync>;

/// Runs the tools that this process cannot run itself.
pub(crate) struct Helpers {
    start: Start,
    /// The resource that this process may touch itself.
    own: Option<Resource>,
    /// Idle deadline of transfers in pieces.
    pieces: Duration,
    running: Mutex<HashMap<Resource, Arc<Helper>>>,
    numbers: AtomicU64,
}

impl fmt::Debug for Helpers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Helpers").finish_non_exhaustive()
    }
}

/// One of them.
struct Helper {
    /// Calls on their way, one at a time: what waits is in its call's own memory.
    calls: mpsc::Sender<(u64, Vec<u8>)>,
    /// Short orders, which wait for nothing.
    notes: mpsc::UnboundedSender<Vec<u8>>,
    /// Its socket, to close it at once.
    socket: UnixStream,
    /// It has ended, or is about to.
    ended: CancellationToken,
    state: Mutex<HelperState>,
}

struct HelperState {
    waiting: HashMap<u64, oneshot::Sender<Result<ToolOutcome, ToolError>>>,
    /// The connections with something in pieces.
    busy: HashSet<u64>,
    /// Maximum time that it waits.
    pieces: Duration,
    /// When the last call ended.
    since: Instant,
}

/// The helpers, for one connection; what it has there in pieces ends with it.
#[derive(Debug)]
pub(crate) struct Connection {
    helpers: Arc<Helpers>,
    number: u64,
}

impl Helpers {
    /// None yet; `start` has the server start one.
    pub(crate) fn new(
        own: Option<Resource>,
        pieces: Duration,
        start: impl Fn(Resource) -> io::Result<UnixStream> + Send + Sync + 'static,
    ) -> Self {
        Self {
            start: Box::new(start),
            own,
            pieces,
            running: Mutex::default(),
            numbers: AtomicU64::default(),
        }
    }

    fn number(&self) -> u64 {
        self.numbers.fetch_add(1, Ordering::Relaxed)
    }

    /// The one for a resource; started where none runs.
    fn of(self: &Arc<Self>, resource: Resource) -> io::Result<Arc<Helper>> {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(helper) = running
            .get(&resource)
            .filter(|helper| !helper.ended.is_cancelled())
        {
            return Ok(Arc::clone(helper));
        }
        let socket = (self.start)(resource)?;
        socket.set_nonblocking(true)?;
        let both = tokio::net::UnixStream::from_std(socket.try_clone()?)?;
        let (reader, writer) = both.into_split();
        let (calls, queue) = mpsc::channel(1);
        let (notes, short) = mpsc::unbounded_channel();
        let helper = Arc::new(Helper {
            calls,
            notes,
            socket,
            ended: CancellationToken::new(),
            state: Mutex::new(HelperState {
                waiting: HashMap::new(),
                busy: HashSet::new(),
                pieces: self.pieces,
                since: Instant::now(),
            }),
        });
        tokio::spawn(Arc::clone(&helper).write(queue, short, writer));
        tokio::spawn(Arc::clone(&helper).read(reader));
        running.insert(resource, Arc::clone(&helper));
        Ok(helper)
    }
}

impl Connection {
    /// A connection that has nothing there yet.
    pub(crate) fn new(helpers: Arc<Helpers>) -> Self {
        let number = helpers.number();
        Self { helpers, number }
    }

    /// Runs the tool of a grant, where this process may not run it itself.
    pub(crate) async fn run(
        &self,
        grant: &Grant,
        copies: Copies,
    ) -> Option<Result<ToolOutcome, ToolError>> {
        let resource = Resource::of(grant.tool());
        if self.helpers.own == Some(resource) {
            return None;
        }
        Some(self.ask(resource, grant, copies).await)
    }

    async fn ask(
        &self,
        resource: Resource,
        grant: &Grant,
        copies: Copies,
    ) -> Result<ToolOutcome, ToolError> {
        let id = self.helpers.number();
        let order = HelperOrder::Call {
            id,
            connection: self.number,
            service: grant.name().into(),
            arguments: Cow::Borrowed(grant.arguments()),
            copies,
        };
        let order = framed(&order).map_err(|_| ToolError::Broken)?;
        let helper = self.helpers.of(resource).map_err(not_started)?;
        let (result, answer) = oneshot::channel();
        helper.state().waiting.insert(id, result);
        let _given_up = GivenUp {
            helper: &helper,
            id,
        };
        if helper.calls.send((id, order)).await.is_err() || helper.ended.is_cancelled() {
            return Err(ended());
        }
        answer.await.unwrap_or_else(|_| Err(ended()))
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        let close = HelperOrder::Close {
            connection: self.number,
        };
        let running = self.helpers.running.lock();
        for helper in running.unwrap_or_else(PoisonError::into_inner).values() {
            helper.state().busy.remove(&self.number);
            helper.tell(&close);
        }
    }
}

/// Takes a call back that nobody waits for any more.
struct GivenUp<'a> {
    helper: &'a Helper,
    id: u64,
}

impl Drop for GivenUp<'_> {
    fn drop(&mut self) {
        let mut state = self.helper.state();
        let ran = state.waiting.remove(&self.id).is_none();
        state.since = Instant::now();
        drop(state);
        if !ran {
            self.helper.tell(&HelperOrder::Cancel { id: self.id });
        }
    }
}

impl Helper {
    fn state(&self) -> MutexGuard<'_, HelperState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tell(&self, order: &HelperOrder<'_>) {
        if let Ok(order) = framed(order) {
            // One that has ended has nothing to end.
            let _ = self.notes.send(order);
        }
    }

    /// Writes orders until it has ended. A call that nobody waits for any more is not begun.
    async fn write(
        self: Arc<Self>,
        mut calls: mpsc::Receiver<(u64, Vec<u8>)>,
        mut notes: mpsc::UnboundedReceiver<Vec<u8>>,
        mut writer: OwnedWriteHalf,
    ) {
        loop {
            let order = tokio::select! {
                biased;
                () = self.ended.cancelled() => return,
                Some(note) = notes.recv() => note,
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

    /// Hands its reports on until it ends, or has had nothing to do for a while.
    async fn read(self: Arc<Self>, reader: OwnedReadHalf) {
        let mut reader = tokio::io::BufReader::new(reader);
        let mut report = Box::pin(read_one(&mut reader));
        loop {
            let idle = self.state().idle_until();
            let soon = Instant::now() + IDLE;
            let look = idle.map_or(soon, |idle| idle.min(soon));
            tokio::select! {
                read = &mut report => {
                    drop(report);
                    let Ok(read) = read else { break };
                    self.take(read);
                    report = Box::pin(read_one(&mut reader));
                }
                () = sleep_until(look) => {
                    let state = self.state();
                    if state.idle_until().is_some_and(|until| until <= Instant::now()) {
                        // While nobody can begin to wait: who begins then sees it.
                        self.ended.cancel();
                        // Whoever wants another one waits for the end of this one, and this process with it.
                        let _ = self.socket.shutdown(Shutdown::Both);
                        break;
                    }
                }
            }
        }
        self.ended.cancel();
        // Whoever waits hears of it.
        self.state().waiting.clear();
    }

    fn take(&self, report: HelperReport) {
        let mut state = self.state();
        state.since = Instant::now();
        let waiting = state.waiting.remove(&report.id);
        // Of a connection that has ended, nothing waits.
        if report.waits && waiting.is_some() {
            state.busy.insert(report.connection);
        } else if !report.waits {
            state.busy.remove(&report.connection);
        }
        if let (Some(waiting), Some(result)) = (waiting, report.result) {
            // Whoever waited may have gone.
            let _ = waiting.send(result.map_err(ToolError::Told));
        }
    }
}

impl HelperState {
    /// When it has had nothing to do for long enough; what comes in pieces is given up on its own side by then.
    fn idle_until(&self) -> Option<Instant> {
        let pieces = if self.busy.is_empty() {
            Duration::ZERO
        } else {
            self.pieces
        };
        self.waiting.is_empty().then(|| self.since + pieces + IDLE)
    }
}

async fn read_one(reader: &mut tokio::io::BufReader<OwnedReadHalf>) -> io::Result<HelperReport> {
    receive(reader, REPORT_MAX).await
}

fn not_started(why: io::Error) -> ToolError {
    ToolError::System {
        doing: "start the process that runs this tool".to_owned(),
        cause: why,
    }
}

fn ended() -> ToolError {
    ToolError::Unavailable("the process that runs this tool has ended; try again".to_owned())
}
