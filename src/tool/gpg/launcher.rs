//! The launcher: a process next to the server that starts gpg-agent and keyboxd, GnuPG's servers, when needed.
//!
//! They outlive a server, because they remember passphrases, and may need access that a server lacks, such as to a card
//! reader. So they run without its limits, and outside its control group if a supervisor starts the launcher. A client
//! writes one of the two names and a newline, and reads a newline once that server is running or cannot be started.
//!
//! A supervisor's launcher listens on a socket file. An unsupervised server starts its own before it is confined; that
//! launcher listens on an abstract socket (`unix(7)`), written with a leading `@`, and ends with the server.

use std::ffi::OsString;
use std::fs::Permissions;
use std::io;
use std::os::fd::AsFd as _;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::process::geteuid;
use rustix::stdio::stdin;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::unix::pipe;
use tokio::net::{UnixListener, UnixStream};
use tokio::process::Command;
use tokio::sync::{Mutex, Semaphore};
use tokio::time::timeout;

use crate::tool::environment;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum LauncherServer {
    /// gpg-agent, which holds the secret keys.
    Agent,
    /// keyboxd, which holds the public keys if `common.conf` says so.
    Keyboxd,
}

/// The program that names GnuPG's folders and starts its servers.
pub(in crate::tool) const GPGCONF: &str = "gpgconf";
/// The launcher's answer once `gpgconf` has ended.
const DONE: &[u8] = b"\n";
/// Maximum length of a line that the launcher reads, in bytes.
const LINE_MAX: u64 = 16;
/// Maximum time for which the launcher waits for that line.
const LINE_WAIT: Duration = Duration::from_millis(500);
/// Maximum number of simultaneous connections.
const WAITING_MAX: usize = 64;
/// Maximum time that `gpgconf` may take.
const GPGCONF_MAX: Duration = Duration::from_secs(10);
/// Maximum time for which a call tries to reach the launcher, which may be restarting.
const CONNECT_MAX: Duration = Duration::from_secs(5);
/// Interval between attempts.
const RETRY_INTERVAL: Duration = Duration::from_millis(50);
/// Maximum duration of a launch: `gpgconf` allows each server 5 seconds, and another call may come first.
const LAUNCH_MAX: Duration = Duration::from_secs(15);

impl LauncherServer {
    /// Returns its name for `gpgconf --launch`.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Agent => "gpg-agent",
            Self::Keyboxd => "keyboxd",
        }
    }
}

/// Asks the launcher on this socket to start a server.
///
/// # Errors
///
/// Nothing is listening there, or the launch takes too long.
pub(super) async fn launch(socket: &Path, server: LauncherServer) -> io::Result<()> {
    let began = Instant::now();
    let address = abstract_address(socket).unwrap_or_else(|| socket.to_owned());
    loop {
        match timeout(LAUNCH_MAX, request(&address, server)).await? {
            // The launcher may be restarting, or may have refused this connection as one too many.
            Err(_) if began.elapsed() < CONNECT_MAX => tokio::time::sleep(RETRY_INTERVAL).await,
            launched => return launched,
        }
    }
}

async fn request(address: &Path, server: LauncherServer) -> io::Result<()> {
    let mut stream = UnixStream::connect(address).await?;
    let line = format!("{}\n", server.name());
    stream.write_all(line.as_bytes()).await?;
    stream.read_exact(&mut [0; DONE.len()]).await.map(drop)
}

/// Listens on this socket until it is killed or, if the socket is abstract, its stdin is closed; starts the requested
/// servers with the environment of this process.
///
/// # Errors
///
/// The socket cannot be created: its folder is missing or belongs to another user.
pub(crate) async fn serve(socket: &Path) -> io::Result<()> {
    // The server holds the other end of stdin; once confined, it cannot signal this process.
    let (listener, mut server) = if let Some(address) = abstract_address(socket) {
        let listener = UnixListener::bind(address)?;
        let stdin = stdin().as_fd().try_clone_to_owned()?;
        (listener, Some(pipe::Receiver::from_owned_fd(stdin)?))
    } else {
        match std::fs::remove_file(socket) {
            Err(why) if why.kind() != io::ErrorKind::NotFound => return Err(why),
            _ => {}
        }
        let listener = UnixListener::bind(socket)?;
        std::fs::set_permissions(socket, Permissions::from_mode(0o600))?;
        (listener, None)
    };
    let mut server_ended = pin!(async {
        match &mut server {
            Some(server) => drop(server.read(&mut [0]).await),
            None => std::future::pending().await,
        }
    });
    let places = Arc::new(Semaphore::new(WAITING_MAX));
    let one_at_a_time = Arc::new(Mutex::new(()));
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = &mut server_ended => return Ok(()),
        };
        let Ok((stream, _)) = accepted else {
            // For instance, no file descriptors are left; the client is accepted later.
            tokio::time::sleep(RETRY_INTERVAL).await;
            continue;
        };
        // Anyone can connect to an abstract socket.
        let peer = stream.peer_cred()?.uid();
        let is_ours = peer == geteuid().as_raw() || peer == 0;
        // A refused client tries again.
        if let (true, Ok(place)) = (is_ours, Arc::clone(&places).try_acquire_owned()) {
            let one_at_a_time = Arc::clone(&one_at_a_time);
            tokio::spawn(async move {
                let _ = answer(stream, &one_at_a_time).await;
                drop(place);
            });
        }
    }
}

/// Returns the kernel's form of an abstract socket's address; `None` if the socket is a file.
fn abstract_address(socket: &Path) -> Option<PathBuf> {
    let name = socket.as_os_str().as_bytes().strip_prefix(b"@")?;
    Some(OsString::from_vec([b"\0", name].concat()).into())
}

/// Starts the server that one connection requests.
async fn answer(mut stream: UnixStream, one_at_a_time: &Mutex<()>) -> io::Result<()> {
    let mut line = String::new();
    let mut reader = BufReader::new((&mut stream).take(LINE_MAX));
    timeout(LINE_WAIT, reader.read_line(&mut line)).await??;
    let name = line.trim_end_matches('\n');
    let mut servers = [LauncherServer::Agent, LauncherServer::Keyboxd].into_iter();
    let server = servers.find(|server| server.name() == name);
    let server = server.ok_or(io::ErrorKind::InvalidData)?;
    let _one = one_at_a_time.lock().await;
    let mut gpgconf = Command::new(GPGCONF);
    gpgconf.env_clear().envs(environment());
    gpgconf
        .args(["--launch", server.name()])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true);
    // The call itself finds out why a server is not running.
    timeout(GPGCONF_MAX, gpgconf.status()).await??;
    stream.write_all(DONE).await
}
