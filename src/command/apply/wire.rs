//! A channel as the host sees it: the processes that carry its bytes, and whether the provider's server answers.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt as _;
use std::time::{Duration, Instant};

use tokio::net::UnixStream;
use tokio::time::timeout;

use crate::edge::Edge;
use crate::mcp::client::{Client, Patience};

/// How long a provider's server may take to answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// What came of asking a provider over the host's socket of an edge.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Answer {
    /// Its server listed its tools, after this time.
    Tools(Duration),
    /// Nobody answered, though the provider's device carries bytes.
    Silent,
    /// The socket is there, and no process behind it.
    NoProcess,
    /// There is no socket.
    NoSocket,
    /// This user may not ask.
    NotAllowed,
}

/// Asks the provider of an edge what it offers to the consumer, over the host's socket of the edge.
pub(super) async fn ask(edge: &Edge) -> Answer {
    let began = Instant::now();
    let stream = match UnixStream::connect(edge.host_socket()).await {
        Ok(stream) => stream,
        Err(why) => {
            return match why.kind() {
                ErrorKind::NotFound => Answer::NoSocket,
                ErrorKind::PermissionDenied => Answer::NotAllowed,
                _ => Answer::NoProcess,
            };
        }
    };
    let patience = Patience {
        first: PATIENCE,
        call: PATIENCE,
    };
    // Not `into_split`: its write half ends the stream when it is dropped.
    let (reader, writer) = tokio::io::split(stream);
    let listed = async {
        let mut client = Client::start(reader, writer, patience).await?;
        client.tools().await
    };
    match timeout(PATIENCE, listed).await {
        Ok(Ok(_)) => Answer::Tools(began.elapsed()),
        Ok(Err(_)) | Err(_) => Answer::Silent,
    }
}

/// Whether a process of the host carries a consumer's bytes out of the machine whose first process that is.
///
/// Only root can make a process of the edge's user, so whatever bears its number is what Incus started.
pub(super) fn carries(edge: &Edge, first: u32) -> bool {
    // Others may not see it (`hidepid` of proc(5)): what cannot be looked at is taken for sound.
    if !rustix::process::geteuid().is_root() {
        return true;
    }
    let Ok(entries) = fs::read_dir("/proc") else {
        return true;
    };
    let listen = format!("unix:{}", edge.consumer_socket());
    let connect = format!("unix:{}", edge.host_socket());
    let mut processes = entries
        .filter_map(Result::ok)
        .filter(|entry| entry.metadata().is_ok_and(|is| is.uid() == edge.uid));
    processes.any(|entry| {
        let words = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let words: Vec<&[u8]> = words.split(|byte| *byte == 0).collect();
        let has = |word: &str| words.contains(&word.as_bytes());
        has(&listen) && has(&connect) && has(&first.to_string())
    })
}
