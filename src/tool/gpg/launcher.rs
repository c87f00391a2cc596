//! The launcher of the servers of GnuPG: a process beside the server that starts gpg-agent and keyboxd when a call needs them.
//!
//! They live as long as their user wants to be known by them, longer than a server, and may need what a server must not have,
//! such as a card reader. So they are started under none of its limits, and by a supervisor in no control group of its. Whoever
//! connects writes the name of one of the two and a line end, and reads a line end, which comes when it runs or cannot.
//!
//! A supervisor's launcher listens on a socket file. A server that nobody supervises starts one itself before it is confined; that
//! one listens on an abstract socket (`unix(7)`), written with a leading `@`, and ends with the server.

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

/// A server of GnuPG.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum LauncherServer {
    /// gpg-agent, which holds the secret keys.
    Agent,
    /// keyboxd, which holds the public keys where `common.conf` says so.
    Keyboxd,
}

/// The launcher's answer on success.
const DONE: &[u8] = b"\n";
/// Maximum length of a line that the launcher reads, in bytes.
const LINE_MAX: u64 = 16;
/// Maximum time that the launcher waits for it.
const LINE_WAIT: Duration = Duration::from_millis(500);
/// Maximum number of connections that it looks at at once.
const WAITING_MAX: usize = 64;
/// Maximum time that `gpgconf` may take.
const GPGCONF_MAX: Duration = Duration::from_secs(10);
/// Maximum time that a call waits for the launcher to be there: it may be starting again.
const THERE_MAX: Duration = Duration::from_secs(5);
/// Interval for checking whether it is.
const LOOK: Duration = Duration::from_millis(50);
/// Maximum time that it may take to start one: `gpgconf` gives each 5 seconds, and another call may be before us.
const LAUNCH_MAX: Duration = Duration::from_secs(15);

impl LauncherServer {
    /// Its name, as `gpgconf --launch` takes it.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Agent => "gpg-agent",
            Self::Keyboxd => "keyboxd",
        }
    }

    fn named(name: &str) -> Option<Self> {
        let mut all = [Self::Agent, Self::Keyboxd].into_iter();
        all.find(|server| server.name() == name)
    }
}

/// Has the launcher that listens there start one.
///
/// # Errors
///
/// Nobody listens there, or takes too long.
pub(super) async fn launch(socket: &Path, server: LauncherServer) -> io::Result<()> {
    let (began, address) = (Instant::now(), address(socket));
    loop {
        let told = timeout(LAUNCH_MAX, ask(&address, server)).await;
        match told.map_err(|_| io::ErrorKind::TimedOut)? {
            Ok(()) => return Ok(()),
            // It may be starting again, or have turned us away among many.
            Err(why) if began.elapsed() >= THERE_MAX => return Err(why),
            Err(_) => tokio::time::sleep(LOOK).await,
        }
    }
}

/// Asks once.
async fn ask(address: &Path, server: LauncherServer) -> io::Result<()> {
    let mut stream = UnixStream::connect(address).await?;
    stream
        .write_all(format!("{}\n", server.name()).as_bytes())
        .await?;
    stream.read_exact(&mut [0; DONE.len()]).await.map(drop)
}

/// Listens there until it is killed, or its stdin is closed where the socket is abstract, and starts what is asked for, with the environment of this process.
///
/// # Errors
///
/// The socket cannot be made: its folder is not there, or is not ours.
pub(crate) async fn serve(socket: &Path) -> io::Result<()> {
    let listener = if is_abstract(socket) {
        UnixListener::bind(address(socket))?
    } else {
        match std::fs::remove_file(socket) {
            Err(why) if why.kind() != io::ErrorKind::NotFound => return Err(why),
            _ => {}
        }
        let listener = UnixListener::bind(socket)?;
        std::fs::set_permissions(socket, Permissions::from_mode(0o600))?;
        listener
    };
    // Its server holds the other end; a signal of a server that is confined would not reach this process.
    let mut server = None;
    if is_abstract(socket) {
        let held = stdin().as_fd().try_clone_to_owned()?;
        server = Some(pipe::Receiver::from_owned_fd(held)?);
    }
    let mut server_ended = pin!(async {
        match &mut server {
            Some(server) => {
                let _ = server.read(&mut [0]).await;
            }
            None => std::future::pending().await,
        }
    });
    let (places, one_at_a_time) = (
        Arc::new(Semaphore::new(WAITING_MAX)),
        Arc::new(Mutex::new(())),
    );
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = &mut server_ended => return Ok(()),
        };
        let Ok((stream, _)) = accepted else {
            // For want of descriptors, for instance: whoever waits is there again.
            tokio::time::sleep(LOOK).await;
            continue;
        };
        // Anybody can connect to an abstract socket.
        let peer = stream.peer_cred()?.uid();
        let is_ours = peer == geteuid().as_raw() || peer == 0;
        // Whoever is turned away tries again.
        if let (true, Ok(place)) = (is_ours, Arc::clone(&places).try_acquire_owned()) {
            let one_at_a_time = Arc::clone(&one_at_a_time);
            tokio::spawn(async move {
                let _ = answer(stream, &one_at_a_time).await;
                drop(place);
            });
        }
    }
}

fn is_abstract(socket: &Path) -> bool {
    socket.as_os_str().as_bytes().starts_with(b"@")
}

/// The address as the kernel takes it.
fn address(socket: &Path) -> PathBuf {
    match socket.as_os_str().as_bytes() {
        [b'@', name @ ..] => OsString::from_vec([b"\0", name].concat()).into(),
        _ => socket.to_owned(),
    }
}

/// Starts what one connection asks for.
async fn answer(mut stream: UnixStream, one_at_a_time: &Mutex<()>) -> io::Result<()> {
    let mut line = String::new();
    let mut reader = BufReader::new((&mut stream).take(LINE_MAX));
    timeout(LINE_WAIT, reader.read_line(&mut line))
        .await
        .map_err(|_| io::ErrorKind::TimedOut)??;
    let server =
        LauncherServer::named(line.trim_end_matches('\n')).ok_or(io::ErrorKind::InvalidData)?;
    let _one = one_at_a_time.lock().await;
    let mut gpgconf = Command::new("gpgconf");
    gpgconf.env_clear().envs(environment());
    gpgconf
        .args(["--launch", server.name()])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true);
    // Why it does not run, if so, is found out by the call.
    let launched = timeout(GPGCONF_MAX, gpgconf.status()).await;
    launched.map_err(|_| io::ErrorKind::TimedOut)??;
    stream.write_all(DONE).await
}
