//! Limits the requests of callers to a server: defaults, and the values that a service sets.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Maximum size of a message (one line), in bytes: 8 MiB of payload in base64, and room around it.
pub const MESSAGE_BYTES: u64 = 16 * 1024 * 1024;
/// Maximum size of a message that a service may allow, in bytes.
pub const MESSAGE_BYTES_MAX: u32 = 256 * 1024 * 1024;
/// Calls of one caller per minute: enough for 1 GiB in pieces of 1 MiB.
pub const CALLS_PER_MINUTE: u32 = 12_000;
/// Calls of all callers per minute.
pub const CALLS_PER_MINUTE_ALL: u32 = 48_000;
/// Calls of one caller at once, over all its connections.
pub const IN_FLIGHT: u32 = 128;
/// Calls of all callers at once.
pub const IN_FLIGHT_ALL: u32 = 512;
/// Calls of one connection at once; further requests are not read (back-pressure).
pub const IN_FLIGHT_CONNECTION: usize = 64;
/// Maximum duration of one call: a person may have to fetch a smart card.
pub const CALL_TIME: Duration = Duration::from_secs(300);
/// Time for the running calls of a server with consumers to end at its shutdown; its supervisor waits longer.
pub const STOP_TIME: Duration = Duration::from_secs(80);
/// Connections of one caller at once.
pub const CONNECTIONS: u32 = 256;
/// Maximum burst of one caller's messages that run nothing: lists, refusals, invalid messages.
pub const MESSAGES_AT_ONCE: u32 = 1_000;
/// Number of such messages beyond the burst that are read per second; the others wait unread.
pub const MESSAGES_PER_SECOND: u64 = 2_000;

/// Idle deadline of transfers in pieces.
pub const IDLE: Duration = Duration::from_secs(60);
/// Memory of a server that one caller may use, in bytes.
pub const MEMORY: u64 = 64 * 1024 * 1024;
/// Minimum of that memory, in bytes: the needs of one call with the largest payload.
pub const MEMORY_MIN: u64 = 48 * 1024 * 1024;
/// Memory of a server that all callers may use, in bytes.
pub const MEMORY_ALL: u64 = 256 * 1024 * 1024;
/// Maximum of [`MEMORY`] and [`MEMORY_ALL`], in bytes.
pub const MEMORY_MAX: u64 = 1024 * 1024 * 1024 * 1024;
/// Memory reserved for each caller, in bytes.
pub const MEMORY_RESERVED: u64 = 16 * 1024 * 1024;

/// The limits that a service sets (`limits:` in `infra.yml`); the others have their defaults.
///
/// Limits of a connection (`message_bytes`, `connections`, `idle_seconds`, `memory`) apply before a service is named:
/// the largest value of the caller's services counts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Limits {
    /// Maximum size of a message, in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message_bytes: Option<u64>,
    /// Calls of one caller to this service per minute.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub calls_per_minute: Option<u32>,
    /// Calls of all callers to this service per minute.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub calls_per_minute_all: Option<u32>,
    /// Calls of one caller to this service at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub in_flight: Option<u32>,
    /// Calls of all callers to this service at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub in_flight_all: Option<u32>,
    /// Maximum duration of one call, in seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub call_seconds: Option<u32>,
    /// Connections of one caller at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connections: Option<u32>,
    /// Maximum wait for the next piece of a transfer, in seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idle_seconds: Option<u32>,
    /// Memory of one caller, in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<u64>,
}

impl Limits {
    /// Every key of `limits:`, in the order of the documentation.
    pub const KEYS: [&str; 9] = [
        "message_bytes",
        "calls_per_minute",
        "calls_per_minute_all",
        "in_flight",
        "in_flight_all",
        "call_seconds",
        "connections",
        "idle_seconds",
        "memory",
    ];

    /// Returns whether no limit is set.
    #[must_use]
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }

    /// Returns the maximum duration of one call.
    #[must_use]
    pub fn call_time(&self) -> Duration {
        self.call_seconds
            .map_or(CALL_TIME, |seconds| Duration::from_secs(seconds.into()))
    }
}
