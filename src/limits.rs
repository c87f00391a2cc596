//! Limits what a caller may ask of a server: defaults, and what a service sets instead.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Maximum size of a message, in bytes of one line: 8 MiB of payload in base64, and room around it.
pub const MESSAGE_BYTES: u64 = 16 * 1024 * 1024;
/// Maximum size of a message that a service may allow, in bytes.
pub const MESSAGE_BYTES_MAX: u32 = 256 * 1024 * 1024;
/// Calls of one caller in a minute; 1 GiB in pieces of 1 MiB fits.
pub const CALLS_PER_MINUTE: u32 = 12_000;
/// Calls of all callers in a minute.
pub const CALLS_PER_MINUTE_ALL: u32 = 48_000;
/// Calls of one caller that run at once, over all its connections.
pub const IN_FLIGHT: u32 = 128;
/// Calls of all callers that run at once.
pub const IN_FLIGHT_ALL: u32 = 512;
/// Calls of one connection that run at once; what is beyond is not read (back-pressure).
pub const IN_FLIGHT_CONNECTION: usize = 64;
/// Maximum duration of one call: a person may have to find a card for a pinentry.
pub const CALL_TIME: Duration = Duration::from_secs(300);
/// How long the running calls of a server with consumers may still take when it is told to end; whoever ends it waits longer.
pub const STOP_TIME: Duration = Duration::from_secs(80);
/// Connections of one caller at once.
pub const CONNECTIONS: u32 = 256;
/// Messages of one caller that are read at once although they run nothing: lists, refusals, what is no message.
pub const MESSAGES_AT_ONCE: u32 = 1_000;
/// Such messages beyond them that are read in a second; the others wait unread.
pub const MESSAGES_PER_SECOND: u64 = 2_000;

/// Idle deadline of transfers in pieces.
pub const IDLE: Duration = Duration::from_secs(60);
/// Memory that one caller may make a server keep, in bytes.
pub const MEMORY: u64 = 64 * 1024 * 1024;
/// Least of it, in bytes: what one call of the largest payload needs.
pub const MEMORY_MIN: u64 = 48 * 1024 * 1024;
/// Memory that all callers of a server may make it keep, in bytes.
pub const MEMORY_ALL: u64 = 256 * 1024 * 1024;
/// Most of either, in bytes.
pub const MEMORY_MAX: u64 = 1024 * 1024 * 1024 * 1024;
/// Memory reserved for each caller, in bytes.
pub const MEMORY_RESERVED: u64 = 16 * 1024 * 1024;

/// What a service sets otherwise (`limits:` in `infra.yml`); what is not set is the default.
///
/// What holds for a connection before a service is named (`message_bytes`, `connections`, `idle_seconds`, `memory`) is the largest
/// value of the caller's services.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Limits {
    /// Largest message, in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message_bytes: Option<u64>,
    /// Calls of one caller to this service in a minute.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub calls_per_minute: Option<u32>,
    /// Calls of all callers to this service in a minute.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub calls_per_minute_all: Option<u32>,
    /// Calls of one caller to this service at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub in_flight: Option<u32>,
    /// Calls of all callers to this service at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub in_flight_all: Option<u32>,
    /// LineLimit run of one call, in seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub call_seconds: Option<u32>,
    /// Connections of one caller at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connections: Option<u32>,
    /// LineLimit wait for the next piece of what comes in pieces, in seconds.
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

    /// Nothing is set.
    #[must_use]
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }

    /// LineLimit run of one call.
    #[must_use]
    pub fn call_time(&self) -> Duration {
        self.call_seconds
            .map_or(CALL_TIME, |seconds| Duration::from_secs(seconds.into()))
    }
}
