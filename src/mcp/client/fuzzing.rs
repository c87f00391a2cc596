//! The client fed with any bytes: what a hostile server can make it do.

#![expect(clippy::panic, reason = "what must not happen stops the fuzzer")]

use std::time::Duration;

use serde_json::Map;
use tokio::time::timeout;

use super::{Client, Patience};

/// Maximum duration of a run; a client that takes longer hangs.
const LONGEST: Duration = Duration::from_secs(20);

/// Opens a conversation, lists and calls, where all that the server says is these bytes.
///
/// # Panics
///
/// When it does not end, or would show something that a terminal obeys.
pub fn client(bytes: &[u8]) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .unwrap_or_else(|error| panic!("no runtime: {error}"));
    let talking = runtime.block_on(async { timeout(LONGEST, talk(bytes)).await });
    let said = talking.unwrap_or_else(|_| panic!("the client does not end"));
    assert!(!said.contains(|c: char| c.is_control()), "{said:?}");
}

/// The last error, in words.
async fn talk(bytes: &[u8]) -> String {
    let reader = std::io::Cursor::new(bytes.to_vec());
    let mut client = match Client::start(reader, tokio::io::sink(), Patience::default()).await {
        Ok(client) => client,
        Err(why) => return why.to_string(),
    };
    if let Err(why) = client.tools().await {
        return why.to_string();
    }
    match client.call("a", Map::new()).await {
        Ok(called) => called.is_refused().to_string(),
        Err(why) => why.to_string(),
    }
}
