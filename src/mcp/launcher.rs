//! The launcher: the process that runs the machine's own programs for a server's callers.
//!
//! A worker may neither start programs nor become another user, and a program must not inherit its confinement. So the
//! launcher is a service of its own. A server connects each worker to it and says for which caller; the launcher decides
//! again whether a call is granted, so that a worker gets nothing from it that its caller may not have anyway.
//!
//! A supervisor's launcher listens on a socket file. An unsupervised server starts its own before it is confined; that
//! launcher listens on an abstract socket (`unix(7)`), written with a leading `@`, and ends with the server.

mod command;
mod definitions;
mod slots;
mod upstream;

use std::collections::{BTreeSet, HashMap};
use std::ffi::OsString;
use std::io::{self, Write as _};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::{SocketAddr, UnixListener as StdListener, UnixStream as StdStream};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures_util::future::BoxFuture;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::io::AsyncWriteExt as _;
use tokio::net::unix::UCred;
use tokio::net::{UnixListener, UnixStream};
use tokio::time::{sleep, timeout};

use crate::catalogue::Definition;
use crate::child::{ChildUser, is_program};
use crate::ipc::{framed, receive, receive_async};
use crate::machine_state::LAUNCHER;
use crate::mcp::client::ProgressSink;
use crate::mcp::helper::{CallOutcome, CallSession, ToolResult, Work, serve};
use crate::mcp::policy_watcher::{Policy, PolicyWatcher};
use crate::name::{MachineName, ServiceTool};
use crate::policy::{self, Caller, Grant};
use crate::tool::{Copies, Resource, ToolError};
pub(crate) use definitions::definitions;
use slots::{ProgramSlot, ProgramSlots, decrease};
use upstream::{UpstreamCall, UpstreamTarget, Upstreams};

/// Maximum time for which a server tries to reach the launcher, which may be restarting.
const CONNECT_MAX: Duration = Duration::from_secs(2);
/// Interval between attempts, and pause after a failed accept.
const RETRY_INTERVAL: Duration = Duration::from_millis(50);
/// Maximum time for the first message on a connection.
const HELLO_MAX: Duration = Duration::from_secs(5);
/// Maximum length of that message, in bytes.
const HELLO_BYTES: u32 = 1024;
/// Maximum length of a status, in bytes.
const STATUS_BYTES: u32 = 1024 * 1024;
/// Maximum number of connections for one caller: one, and those of earlier workers that are about to end.
const CONNECTIONS_MAX: u32 = 8;
/// Maximum number of calls that one connection runs or lets wait at the same time.
const CALLS_MAX: usize = 32;

/// The first message on a connection.
#[derive(Debug, Serialize, Deserialize)]
enum LauncherHello {
    /// Calls follow.
    Calls {
        /// The consumer that the connection is for; `None`: the operator.
        consumer: Option<MachineName>,
    },
    /// Answer with the launcher's status.
    Status,
}

/// The status of a launcher, for `mcp status`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LauncherStatus {
    /// Number of programs and servers that run.
    pub(crate) running: u32,
    /// Tools whose definition was not the pinned one when they were last called.
    pub(crate) changed: Vec<ServiceTool>,
}

/// Asks the launcher at this address for its status.
///
/// # Errors
///
/// Nothing answers there.
pub(crate) fn status(address: &Path) -> io::Result<LauncherStatus> {
    let mut stream = StdStream::connect_addr(&socket_address(address)?)?;
    check_listener(&stream)?;
    stream.set_read_timeout(Some(HELLO_MAX))?;
    stream.write_all(&framed(&LauncherHello::Status)?)?;
    receive(&mut io::BufReader::new(stream), STATUS_BYTES)
}

/// Fails if neither root nor this process's user listens there: anybody may use the name of an abstract socket while no
/// launcher does.
fn check_listener(stream: &StdStream) -> io::Result<()> {
    let listener = rustix::net::sockopt::socket_peercred(stream)?.uid;
    if listener.is_root() || listener == rustix::process::geteuid() {
        return Ok(());
    }
    Err(io::ErrorKind::PermissionDenied.into())
}

/// Returns the kernel's form of a socket's address.
fn socket_address(address: &Path) -> io::Result<SocketAddr> {
    match address.as_os_str().as_bytes().strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name),
        None => SocketAddr::from_pathname(address),
    }
}

/// Connects to the launcher at this address on behalf of a caller.
///
/// # Errors
///
/// Nothing listens there.
pub(crate) fn connect(address: &Path, caller: &Caller) -> io::Result<StdStream> {
    let began = Instant::now();
    let socket = socket_address(address)?;
    let mut stream = loop {
        match StdStream::connect_addr(&socket) {
            Err(_) if began.elapsed() < CONNECT_MAX => std::thread::sleep(RETRY_INTERVAL),
            connected => break connected?,
        }
    };
    check_listener(&stream)?;
    let consumer = match caller {
        Caller::Operator => None,
        Caller::Consumer(name) => Some(name.clone()),
    };
    stream.write_all(&framed(&LauncherHello::Calls { consumer })?)?;
    Ok(stream)
}

/// Listens at this address.
///
/// # Errors
///
/// The socket cannot be created: its folder is missing, or something else is in its place.
pub(crate) fn listen(address: &Path) -> io::Result<UnixListener> {
    let is_file = !address.as_os_str().as_bytes().starts_with(b"@");
    if is_file {
        match std::fs::remove_file(address) {
            Err(why) if why.kind() != io::ErrorKind::NotFound => return Err(why),
            _ => {}
        }
    }
    let listener = StdListener::bind_addr(&socket_address(address)?)?;
    if is_file {
        // The launcher, which is root, cannot give the socket to the server's user. It checks who connects.
        use std::os::unix::fs::PermissionsExt as _;
        std::fs::set_permissions(address, std::fs::Permissions::from_mode(0o666))?;
    }
    listener.set_nonblocking(true)?;
    listener.try_into()
}

/// Returns the arguments of the launcher at this address for the services file `services`.
pub(crate) fn arguments(address: &Path, services: &Path) -> Vec<OsString> {
    vec![LAUNCHER.into(), address.into(), services.into()]
}

/// Reports to the machine's log why a program cannot run as declared.
pub(crate) type ReportFault = Arc<dyn Fn(&str) + Send + Sync>;

/// The state of a launcher.
pub(crate) struct Launcher {
    pub(crate) policy: Arc<PolicyWatcher>,
    /// The user of programs without one of their own.
    pub(crate) user: ChildUser,
    /// The user of the server, who alone may connect, besides root.
    pub(crate) server: u32,
    pub(crate) report: ReportFault,
}

impl Launcher {
    /// Serves the connections of servers.
    pub(crate) async fn serve(self, listener: UnixListener) {
        let server = self.server;
        let programs = Arc::new(Programs {
            policy: self.policy,
            user: self.user,
            report: self.report,
            slots: Arc::default(),
            upstreams: Upstreams::default(),
        });
        let connections = Arc::new(Connections::default());
        loop {
            let Ok((stream, _)) = listener.accept().await else {
                // For instance, no file descriptors are left; the server is accepted later.
                sleep(RETRY_INTERVAL).await;
                continue;
            };
            if stream
                .peer_cred()
                .is_ok_and(|peer| may_connect(&peer, server))
            {
                let (programs, connections) = (Arc::clone(&programs), Arc::clone(&connections));
                tokio::spawn(attend(stream, programs, connections));
            }
        }
    }
}

/// Returns whether a peer is a server, whose user has the ID `server`, rather than a program that runs as that user.
fn may_connect(peer: &UCred, server: u32) -> bool {
    let is_program = peer.pid().is_none_or(is_program);
    (peer.uid() == 0 || peer.uid() == server) && !is_program
}

/// Serves one connection.
async fn attend(mut stream: UnixStream, programs: Arc<Programs>, connections: Arc<Connections>) {
    let hello = timeout(HELLO_MAX, receive_async(&mut stream, HELLO_BYTES)).await;
    let consumer = match hello {
        Ok(Ok(LauncherHello::Calls { consumer })) => consumer,
        Ok(Ok(LauncherHello::Status)) => {
            if let Ok(status) = framed(&programs.status()) {
                // The peer may be gone.
                let _ = timeout(HELLO_MAX, stream.write_all(&status)).await;
            }
            return;
        }
        Ok(Err(_)) | Err(_) => return,
    };
    let caller = consumer.map_or(Caller::Operator, Caller::Consumer);
    let Some(_place) = connections.enter(&caller) else {
        return;
    };
    let session: Arc<dyn CallSession> = Arc::new(ProgramSession(Arc::clone(&programs)));
    let work = Work {
        caller: caller.clone(),
        resource: Resource::Programs,
        policy: &|| programs.policy.current(),
        session: &|| Arc::clone(&session),
        calls_max: CALLS_MAX,
        changed: &|| {
            programs.check_again(&caller);
            programs.changed(Some(&caller))
        },
    };
    serve(work, stream).await;
}

/// The number of connections for each caller.
#[derive(Default)]
struct Connections(Mutex<HashMap<Caller, u32>>);

/// A connection's place, which is free again when this is dropped.
struct ConnectionPlace {
    connections: Arc<Connections>,
    caller: Caller,
}

impl Connections {
    fn enter(self: &Arc<Self>, caller: &Caller) -> Option<ConnectionPlace> {
        let mut open = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = open.entry(caller.clone()).or_default();
        if *count == CONNECTIONS_MAX {
            return None;
        }
        *count += 1;
        Some(ConnectionPlace {
            connections: Arc::clone(self),
            caller: caller.clone(),
        })
    }
}

impl Drop for ConnectionPlace {
    fn drop(&mut self) {
        let mut open = self
            .connections
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        decrease(&mut open, &self.caller);
    }
}

/// The machine's own programs.
struct Programs {
    policy: Arc<PolicyWatcher>,
    user: ChildUser,
    report: ReportFault,
    slots: Arc<ProgramSlots>,
    upstreams: Upstreams,
}

/// The answer to a caller if a program cannot run as declared; the machine's own log has the reason, which may name
/// paths.
const NOT_SET_UP: &str =
    "this tool cannot run on its machine as declared; the log of `anklume-run` there says why";

/// The calls of one connection to the machine's own programs.
struct ProgramSession(Arc<Programs>);

impl CallSession for ProgramSession {
    fn run(
        self: Arc<Self>,
        grant: Grant,
        _copies: Copies,
        progress: Option<ProgressSink>,
    ) -> BoxFuture<'static, ToolResult> {
        Box::pin(async move { Arc::clone(&self.0).run(&grant, progress).await })
    }

    fn is_idle(&self) -> bool {
        true
    }
}

impl Programs {
    /// Waits until one more program may run for a caller; stops an idle server if there is no room.
    async fn enter_slot(&self, caller: &Caller) -> Result<ProgramSlot, ToolError> {
        let max = || self.policy.current().services.children_max();
        self.slots
            .enter(caller, max, || self.upstreams.stop_one())
            .await
    }

    fn status(&self) -> LauncherStatus {
        LauncherStatus {
            running: self.slots.running(),
            changed: self.changed(None),
        }
    }

    /// Returns the tools whose definition was not the pinned one when it was last checked, for this caller or for any.
    fn changed(&self, caller: Option<&Caller>) -> Vec<ServiceTool> {
        let policy = self.policy.current();
        let changed = self.upstreams.changed(&policy.services, caller);
        changed.into_iter().collect()
    }

    /// Checks the changed tools that a caller may use again, those for which it is time.
    fn check_again(self: &Arc<Self>, caller: &Caller) {
        let policy = self.policy.current();
        let offers = policy::offers(&policy.services, caller, Timestamp::now());
        let tools: BTreeSet<ServiceTool> = offers.into_iter().map(|offer| offer.tool).collect();
        for tool in tools {
            let ServiceTool::Upstream(name, tool_name) = &tool else {
                continue;
            };
            if !self.upstreams.claim_check(caller, name, tool_name) {
                continue;
            }
            let (programs, policy, caller) =
                (Arc::clone(self), Arc::clone(&policy), caller.clone());
            tokio::spawn(async move {
                if let Some(target) = upstream_target(&policy, &caller, &tool) {
                    programs.upstreams.check(&programs, &target).await;
                }
            });
        }
    }

    async fn run(self: Arc<Self>, grant: &Grant, progress: Option<ProgressSink>) -> ToolResult {
        let policy = self.policy.current();
        if let Some(Definition::Own(tool)) = policy.services.definition(grant.tool()) {
            let slot = self.enter_slot(grant.caller()).await?;
            let outcome = command::run(grant, tool, &self, slot).await;
            return outcome.map(CallOutcome::Tool);
        }
        let target = upstream_target(&policy, grant.caller(), grant.tool());
        let call = UpstreamCall {
            target: target.ok_or(ToolError::Broken)?,
            arguments: grant.arguments(),
            progress,
        };
        let answer = self.upstreams.call(&self, call).await;
        answer.map(CallOutcome::Upstream)
    }
}

/// Returns an upstream's tool; `None` if this is none, or unknown, which a valid services file rules out.
fn upstream_target<'a>(
    policy: &'a Policy,
    caller: &'a Caller,
    tool: &'a ServiceTool,
) -> Option<UpstreamTarget<'a>> {
    let (ServiceTool::Upstream(name, _), Some(Definition::Upstream(definition))) =
        (tool, policy.services.definition(tool))
    else {
        return None;
    };
    Some(UpstreamTarget {
        caller,
        name,
        server: policy.services.servers.get(name)?,
        tool: definition,
    })
}
