//! The agent's socket, which only its user can use.

use std::fs;
use std::io;
use std::os::unix::fs::FileTypeExt as _;
use std::os::unix::net::UnixStream as BlockingStream;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::Mode;
use rustix::process::{geteuid, umask};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio::task::spawn_local;

use super::keys::Keys;
use super::{cannot_listen, connection};
use crate::error::Failure;
use crate::tool::{Settings, runtime_folder};

/// Maximum number of clients at once; others wait.
const CLIENTS_MAX: usize = 256;
/// Pause after a client could not be accepted, for instance because no descriptors are left.
const PAUSE: Duration = Duration::from_millis(50);

/// A socket on which the agent listens; dropping it removes it.
pub(super) struct AgentSocket {
    listener: UnixListener,
    path: PathBuf,
}

impl AgentSocket {
    /// Listens on a path or, without one, in the user's runtime folder.
    pub(super) fn bind(named: Option<&Path>) -> Result<Self, Failure> {
        let path = match named {
            Some(path) => std::path::absolute(path).map_err(|why| cannot_listen(path, &why))?,
            None => usual()?,
        };
        if is_stale(&path) {
            fs::remove_file(&path).map_err(|why| cannot_listen(&path, &why))?;
        }
        // No moment passes in which others may connect.
        let before = umask(Mode::RWXG | Mode::RWXO | Mode::XUSR);
        let bound = UnixListener::bind(&path);
        umask(before);
        let listener = bound.map_err(|why| {
            let failure = cannot_listen(&path, &why);
            match why.kind() {
                io::ErrorKind::AddrInUse => {
                    failure.help("another agent listens there; use it, or end it")
                }
                _ => failure.help("name another place: `-a SOCKET`"),
            }
        })?;
        Ok(Self { listener, path })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Serves every client of this user, for ever.
    pub(super) async fn serve(&self, keys: &Rc<Keys>) {
        let places = Arc::new(Semaphore::new(CLIENTS_MAX));
        loop {
            let Ok(place) = Arc::clone(&places).acquire_owned().await else {
                return;
            };
            match self.listener.accept().await {
                Ok((stream, _)) if is_ours(&stream) => {
                    let keys = Rc::clone(keys);
                    spawn_local(async move {
                        connection::serve(stream, &keys).await;
                        drop(place);
                    });
                }
                Ok(_) => {}
                Err(_) => tokio::time::sleep(PAUSE).await,
            }
        }
    }
}

impl Drop for AgentSocket {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

/// Returns the usual place of this process's socket.
fn usual() -> Result<PathBuf, Failure> {
    let settings = Settings::from_env();
    let runtime = settings.map_or_else(|_| "/run/anklume".into(), |settings| settings.runtime);
    let path = runtime.join(format!("ssh-agent.{}", std::process::id()));
    runtime_folder(&runtime)
        .map_err(|why| cannot_listen(&path, &why).help("name another place: `-a SOCKET`"))?;
    Ok(path)
}

/// Returns whether a path is a socket on which nothing listens, such as that of an agent that was killed.
fn is_stale(path: &Path) -> bool {
    let is_socket = fs::symlink_metadata(path).is_ok_and(|it| it.file_type().is_socket());
    let refused = |why: io::Error| why.kind() == io::ErrorKind::ConnectionRefused;
    is_socket && BlockingStream::connect(path).is_err_and(refused)
}

/// Returns whether the client is this user or root.
fn is_ours(stream: &UnixStream) -> bool {
    let user = stream.peer_cred().map(|peer| peer.uid());
    user.is_ok_and(|user| user == 0 || user == geteuid().as_raw())
}
