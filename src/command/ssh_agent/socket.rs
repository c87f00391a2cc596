//! The agent's socket, which only its user can use.

use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::Mode;
use rustix::process::{geteuid, umask};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio::task::spawn_local;
use tokio::time::timeout;

use super::provider_keys::ProviderKeys;
use super::{cannot_listen, connection};
use crate::error::{Exit, Failure};
use crate::tool::{Settings, runtime_folder};

/// Maximum number of clients at once; others wait.
const CLIENTS_MAX: usize = 256;
/// Maximum time to find out whether an agent listens on a socket.
const CONNECT_MAX: Duration = Duration::from_secs(1);
/// Maximum number of connections that another machine may use, through a forwarded agent; further ones are closed.
const FORWARDED_MAX: usize = 16;
/// Pause after a client could not be accepted, for instance because no descriptors are left.
const PAUSE: Duration = Duration::from_millis(50);

/// A socket on which the agent listens; dropping it removes it.
pub(super) struct AgentSocket {
    listener: UnixListener,
    path: PathBuf,
    /// The socket's own number, so that a successor's is not removed.
    inode: Option<u64>,
}

impl AgentSocket {
    /// Listens on a path or, without one, in the user's runtime folder.
    pub(super) async fn bind(named: Option<&Path>) -> Result<Self, Failure> {
        let path = match named {
            Some(path) => std::path::absolute(path).map_err(|why| cannot_listen(path, &why))?,
            None => default_path()?,
        };
        if path.to_str().is_none() {
            return Err(cannot_listen(&path, &"the path is not UTF-8"));
        }
        if is_stale(&path).await {
            fs::remove_file(&path).map_err(|why| cannot_listen(&path, &why))?;
        }
        // The umask applies when the socket is created, so others can never connect.
        let before = umask(Mode::RWXG | Mode::RWXO | Mode::XUSR);
        let bound = UnixListener::bind(&path);
        umask(before);
        let listener = bound.map_err(|why| {
            let failure = cannot_listen(&path, &why);
            match why.kind() {
                io::ErrorKind::AddrInUse if is_socket(&path) => {
                    failure.help("another agent listens there; use it, or end it")
                }
                _ => failure.help("choose another path with `-a SOCKET`"),
            }
        })?;
        let inode = inode(&path);
        Ok(Self {
            listener,
            path,
            inode,
        })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Serves every client of this user, for ever.
    pub(super) async fn serve(&self, keys: &Rc<ProviderKeys>) {
        let places = Arc::new(Semaphore::new(CLIENTS_MAX));
        let forwarded = Arc::new(Semaphore::new(FORWARDED_MAX));
        loop {
            let Ok(place) = Arc::clone(&places).acquire_owned().await else {
                return;
            };
            match self.listener.accept().await {
                Ok((stream, _)) if is_ours(&stream) => {
                    let (keys, forwarded) = (Rc::clone(keys), Arc::clone(&forwarded));
                    spawn_local(async move {
                        connection::serve(stream, &keys, &forwarded).await;
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
        if inode(&self.path) == self.inode {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Returns the default path of this process's socket, whose folder it makes.
fn default_path() -> Result<PathBuf, Failure> {
    let settings = Settings::from_env();
    let settings = settings.map_err(|why| Failure::new(Exit::Failed, why.to_string()))?;
    let path = settings
        .runtime
        .join(format!("ssh-agent.{}", std::process::id()));
    runtime_folder(&settings.runtime)
        .map_err(|why| cannot_listen(&path, &why).help("choose another path with `-a SOCKET`"))?;
    Ok(path)
}

fn is_socket(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|it| it.file_type().is_socket())
}

fn inode(path: &Path) -> Option<u64> {
    fs::symlink_metadata(path).map(|it| it.ino()).ok()
}

/// Returns whether a path is a socket on which nothing listens, such as that of an agent that was killed.
async fn is_stale(path: &Path) -> bool {
    let connected = timeout(CONNECT_MAX, UnixStream::connect(path));
    let refused = |why: io::Error| why.kind() == io::ErrorKind::ConnectionRefused;
    is_socket(path)
        && connected
            .await
            .is_ok_and(|connected| connected.is_err_and(refused))
}

/// Returns whether the client is this user or root.
fn is_ours(stream: &UnixStream) -> bool {
    let user = stream.peer_cred().map(|peer| peer.uid());
    user.is_ok_and(|user| user == 0 || user == geteuid().as_raw())
}
