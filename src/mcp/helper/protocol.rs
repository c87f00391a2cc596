//! Defines the protocol between a worker and its helper: JSON after its length, in both directions at any time.

use std::borrow::Cow;
use std::io;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use tokio::io::{AsyncRead, AsyncReadExt as _};

use crate::limits::MESSAGE_BYTES_MAX;
use crate::tool::{Copies, ToolOutcome};

/// Maximum length of an order, in bytes: the arguments of the longest message that a services file allows, and what stands around them.
pub(super) const ORDER_MAX: u32 = MESSAGE_BYTES_MAX + 64 * 1024;
/// Maximum length of a report, in bytes: the largest payload of one answer twice, in base64.
pub(super) const REPORT_MAX: u32 = 32 * 1024 * 1024;

/// A worker's orders to its helper.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum HelperOrder<'a> {
    /// Run a tool.
    Call {
        /// Its number, for its report.
        id: u64,
        /// The connection: what comes in pieces belongs to it.
        connection: u64,
        /// The service.
        service: Cow<'a, str>,
        /// The caller's input.
        arguments: Cow<'a, Map<String, Value>>,
        /// Number of copies of a large payload in the answer.
        copies: Copies,
    },
    /// Nobody waits for this call any more.
    Cancel {
        /// Its number.
        id: u64,
    },
    /// This connection has ended.
    Close {
        /// Its number.
        connection: u64,
    },
}

/// The end of a call.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct HelperReport {
    /// Its number.
    pub(super) id: u64,
    /// The connection.
    pub(super) connection: u64,
    /// Its result, or why it failed; `None`: it was cancelled.
    pub(super) result: Option<Result<ToolOutcome, String>>,
    /// True if its connection has something in pieces that waits for more.
    pub(super) waits: bool,
}

/// Receives a message of at most so many bytes.
///
/// # Errors
///
/// The end of the stream, a message that is too long or none of these, and what the socket answers.
pub(super) async fn receive<T: DeserializeOwned>(
    from: &mut (impl AsyncRead + Unpin),
    most: u32,
) -> io::Result<T> {
    let length = from.read_u32_le().await?;
    if length > most {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut bytes = Vec::new();
    from.take(length.into()).read_to_end(&mut bytes).await?;
    Ok(serde_json::from_slice(&bytes)?)
}
