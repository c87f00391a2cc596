//! Incus's side of the connection, any bytes: an Incus of another version, or something else at its socket.

#![expect(clippy::panic, reason = "what must not happen stops the fuzzer")]

use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixListener;
use tokio::time::timeout;

use super::Incus;

/// Maximum duration of a run; a reader that takes longer hangs.
const LONGEST: Duration = Duration::from_secs(20);
/// Time-out for each answer: it comes at once, or never.
const PATIENCE: Duration = Duration::from_millis(20);

/// Reads all that Incus has, where its answer to each request are these bytes.
///
/// # Panics
///
/// When it does not end.
pub fn answers(bytes: &[u8]) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap_or_else(|error| panic!("no runtime: {error}"));
    let folder = tempfile::tempdir().unwrap_or_else(|error| panic!("no folder: {error}"));
    let socket = folder.path().join("socket");
    let asking = async {
        let listener = UnixListener::bind(&socket).unwrap_or_else(|error| panic!("{error}"));
        let bytes = bytes.to_vec();
        let answering = tokio::spawn(async move {
            let Ok((mut stream, _)) = listener.accept().await else {
                return;
            };
            let mut request = [0; 4096];
            while stream.read(&mut request).await.is_ok_and(|read| read > 0) {
                if stream.write_all(&bytes).await.is_err() || bytes.is_empty() {
                    return;
                }
            }
        });
        if let Ok(mut incus) = Incus::connect(socket.clone(), PATIENCE).await {
            // Either is as good: it ends.
            let _ = incus.server().await;
            let _ = incus.state().await;
        }
        answering.abort();
    };
    let asked = runtime.block_on(async { timeout(LONGEST, asking).await });
    assert!(asked.is_ok(), "the reader does not end");
}
