//! Asks the server on behalf of a worker.

use std::io::{self, BufReader};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use super::protocol::{MonitorRequest, RESPONSE_MAX, Response};
use super::{AdmitError, Admitted, LogError, Monitor};
use crate::audit::{Call, CallEnd};
use crate::ipc::{SpinRead, receive, send};
use crate::mcp::policy_watcher::{Loaded, Policy, PolicyError, PolicyWatcher};
use crate::mcp::throttle::Lender;
use crate::tool::Resource;

/// The socket to the server, for one request at a time: blocking is cheaper than handing it to another thread.
struct ServerSocket {
    socket: Mutex<BufReader<SpinRead<UnixStream>>>,
    /// Called when the server is gone.
    lost: Box<dyn Fn() + Send + Sync>,
}

impl ServerSocket {
    fn ask(&self, request: &MonitorRequest) -> io::Result<Response> {
        let mut socket = self.socket.lock().unwrap_or_else(PoisonError::into_inner);
        let answer = send(&socket.get_ref().socket, request, None)
            .and_then(|()| receive(&mut *socket, RESPONSE_MAX));
        if answer.is_err() {
            // The socket may still contain a partial response.
            let _ = socket.get_ref().socket.shutdown(Shutdown::Both);
            (self.lost)();
        }
        answer
    }

    fn log(&self, request: &MonitorRequest) -> Result<(), LogError> {
        match self.ask(request) {
            Ok(Response::Done) => Ok(()),
            _ => Err(LogError),
        }
    }

    fn policy(&self, services: &Path) -> Result<Loaded, PolicyError> {
        let io = |source| PolicyError::Io {
            path: services.to_owned(),
            source,
        };
        match self.ask(&MonitorRequest::Policy).map_err(io)? {
            Response::Policy {
                services,
                digest,
                settled,
            } => Ok(Loaded {
                policy: Arc::new(Policy { services, digest }),
                settled,
            }),
            _ => Err(io(io::ErrorKind::InvalidData.into())),
        }
    }

    fn start_helper(&self, resource: Resource) -> io::Result<UnixStream> {
        let answer = self.ask(&MonitorRequest::Helper(resource))?;
        let mut socket = self.socket.lock().unwrap_or_else(PoisonError::into_inner);
        let descriptor = socket.get_mut().take_descriptor();
        match (answer, descriptor) {
            (Response::Helper, Some(socket)) => Ok(socket.into()),
            (Response::NoHelper(why), _) => Err(io::Error::other(why)),
            _ => Err(io::ErrorKind::InvalidData.into()),
        }
    }
}

impl Lender for Arc<ServerSocket> {
    fn borrow(&self) -> bool {
        matches!(self.ask(&MonitorRequest::Borrow), Ok(Response::Lent(true)))
    }

    fn give_back(&self) {
        // A server that is gone has lent nothing.
        let _ = self.ask(&MonitorRequest::GiveBack);
    }
}

/// The server as seen by its worker.
pub(crate) struct RemoteMonitor {
    server: Arc<ServerSocket>,
    /// The consumer's part of the policy, requested again when the services file has changed.
    watcher: PolicyWatcher,
}

impl RemoteMonitor {
    /// Requests the policy now and after each change to the file `services`. Calls `lost` when the server is gone:
    /// from then on, no call runs. Fails if the server is already gone.
    pub(crate) fn new(
        socket: UnixStream,
        services: &Path,
        lost: impl Fn() + Send + Sync + 'static,
    ) -> Result<Self, PolicyError> {
        let server = Arc::new(ServerSocket {
            socket: Mutex::new(BufReader::new(SpinRead::new(socket))),
            lost: Box::new(lost),
        });
        let (source, path) = (Arc::clone(&server), services.to_owned());
        let read = move || source.policy(&path);
        let first = read()?.policy;
        Ok(Self {
            server,
            watcher: PolicyWatcher::with_reader(
                services,
                Box::new(read),
                first,
                Box::new(|_, _| {}),
            ),
        })
    }

    /// Returns the lender of this process's memory.
    pub(crate) fn lender(&self) -> impl Lender + 'static {
        Arc::clone(&self.server)
    }

    /// Returns a function that asks the server to start a helper.
    pub(crate) fn starts_helpers(
        &self,
    ) -> impl Fn(Resource) -> io::Result<UnixStream> + Send + Sync + 'static {
        let server = Arc::clone(&self.server);
        move |resource| server.start_helper(resource)
    }
}

impl Monitor for RemoteMonitor {
    fn policy(&self) -> Arc<Policy> {
        self.watcher.current()
    }

    fn refreshed_policy(&self) -> Arc<Policy> {
        self.watcher.invalidate();
        self.watcher.current()
    }

    fn admit(&self, line: Call) -> Result<Box<dyn Admitted>, AdmitError> {
        let request = MonitorRequest::Admit(Box::new(line));
        let Ok(Response::Admit(admitted)) = self.server.ask(&request) else {
            return Err(AdmitError::Unlogged);
        };
        if matches!(admitted, Err(AdmitError::Changed)) {
            self.watcher.invalidate();
        }
        Ok(Box::new(RemoteCall {
            server: Arc::clone(&self.server),
            place: Some(admitted?),
        }))
    }

    fn log(&self, line: Call) -> Result<(), LogError> {
        self.server.log(&MonitorRequest::Log(Box::new(line)))
    }
}

/// A call that the server has admitted.
struct RemoteCall {
    server: Arc<ServerSocket>,
    /// `None` once it has ended.
    place: Option<u64>,
}

impl Admitted for RemoteCall {
    fn ended(mut self: Box<Self>, end: CallEnd) -> Result<(), LogError> {
        let place = self.place.take();
        let ended = place.map(|place| MonitorRequest::Ended { place, end });
        ended.map_or(Ok(()), |ended| self.server.log(&ended))
    }
}

impl Drop for RemoteCall {
    fn drop(&mut self) {
        if let Some(place) = self.place.take() {
            // A server that is gone has nothing to free.
            let _ = self.server.ask(&MonitorRequest::Abandoned { place });
        }
    }
}
