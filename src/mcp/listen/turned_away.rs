//! A connection beyond its caller's limit: its first request is answered with "overloaded", then it ends.

use std::time::Duration;

use serde::Deserialize;
use serde_json::value::RawValue;
use tokio::io::AsyncWriteExt as _;
use tokio::net::UnixStream;
use tokio::time::timeout;

use crate::mcp::server::overloaded;
use crate::mcp::wire::{Line, Lines};

/// Connections of one caller that are answered so at once; those beyond wait to be accepted.
pub(super) const AT_ONCE: usize = 32;
/// Longest first request that is looked at, in bytes.
const LINE_MAX: usize = 64 * 1024;
/// How long the first request may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// When to try again.
const RETRY: Duration = Duration::from_secs(1);

#[derive(Deserialize)]
struct Envelope<'a> {
    #[serde(borrow)]
    id: Option<&'a RawValue>,
}

/// Answers the first request of a connection.
pub(super) async fn answer(stream: UnixStream) {
    // A client that is slow or gone has no claim to an answer.
    let _ = timeout(PATIENCE, answer_first(stream)).await;
}

async fn answer_first(stream: UnixStream) -> Option<()> {
    let (reader, mut writer) = stream.into_split();
    let mut lines = Lines::new(reader, LINE_MAX);
    let line = lines.next().await.ok()??;
    let Line::Whole(line) = line else { return None };
    let envelope: Envelope<'_> = serde_json::from_slice(&line).ok()?;
    let error = overloaded("the connections of this caller at once", RETRY);
    let error = serde_json::to_string(&error).ok()?;
    let id = envelope.id.map_or("null", RawValue::get);
    let text = format!("{{\"jsonrpc\":\"2.0\",\"id\":{id},\"error\":{error}}}\n");
    writer.write_all(text.as_bytes()).await.ok()?;
    writer.shutdown().await.ok()
}
