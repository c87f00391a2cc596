//! Limits callers' requests to a server: the defaults, and the values that a service sets.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Maximum size of a message (one line), in bytes: 8 MiB of payload in base64, plus overhead.
pub const MESSAGE_BYTES: u64 = 16 * 1024 * 1024;
/// Largest maximum message size that a service may set, in bytes.
pub const MESSAGE_BYTES_MAX: u32 = 256 * 1024 * 1024;
/// Maximum calls per minute from one caller: enough for 1 GiB in 1 MiB pieces.
pub const CALLS_PER_MINUTE: u32 = 12_000;
/// The same for a service that shows messages, which would otherwise cover the screen.
pub const MESSAGES_SHOWN_PER_MINUTE: u32 = 20;
/// Maximum calls per minute from all callers.
pub const CALLS_PER_MINUTE_ALL: u32 = 48_000;
/// Maximum concurrent calls from one caller, across all its connections.
pub const IN_FLIGHT: u32 = 128;
/// Maximum concurrent calls from all callers.
pub const IN_FLIGHT_ALL: u32 = 512;
/// Maximum concurrent calls on one connection; further requests are not read (back-pressure).
pub const IN_FLIGHT_CONNECTION: usize = 64;
/// Maximum duration of one call: a person may have to fetch a smart card.
pub const CALL_TIME: Duration = Duration::from_secs(300);
/// Time that a call may take beyond the time limit of the machine's own tool, to end the tool's processes.
pub const OVERTIME: Duration = Duration::from_secs(5);
/// Maximum number of a machine's own programs that run at the same time.
pub const CHILDREN: u32 = 8;
/// Largest such number that a machine may set.
pub const CHILDREN_MAX: u32 = 1024;
/// Maximum duration of a call to a machine's own tool, in seconds.
pub const TOOL_SECONDS: u32 = 60;
/// Largest such duration that a tool may set, in seconds.
pub const TOOL_SECONDS_MAX: u32 = 24 * 60 * 60;
/// Memory of all processes of one of the machine's own programs, in bytes.
pub const PROGRAM_MEMORY: u64 = 256 * 1024 * 1024;
/// Smallest such memory that can be set, in bytes.
pub const PROGRAM_MEMORY_MIN: u64 = 16 * 1024 * 1024;
/// Time for running calls to finish when a server with consumers shuts down; its supervisor waits longer.
pub const STOP_TIME: Duration = Duration::from_secs(80);
/// Maximum concurrent connections from one caller.
pub const CONNECTIONS: u32 = 256;
/// Maximum burst of one caller's messages that run nothing: lists, refusals, invalid messages.
pub const MESSAGES_AT_ONCE: u32 = 1_000;
/// Number of such messages read per second beyond the burst; the others wait unread.
pub const MESSAGES_PER_SECOND: u64 = 2_000;

/// Idle timeout of piecewise transfers.
pub const IDLE: Duration = Duration::from_secs(60);
/// Server memory that one caller may use, in bytes.
pub const MEMORY: u64 = 64 * 1024 * 1024;
/// Minimum for that limit, in bytes: enough for one call with the largest payload.
pub const MEMORY_MIN: u64 = 48 * 1024 * 1024;
/// Server memory that all callers together may use, in bytes.
pub const MEMORY_ALL: u64 = 256 * 1024 * 1024;
/// Largest memory limit that a machine may set, in bytes.
pub const MEMORY_MAX: u64 = 1024 * 1024 * 1024 * 1024;
/// Memory reserved for each caller, in bytes.
pub const MEMORY_RESERVED: u64 = 16 * 1024 * 1024;

/// The limits that a service sets (`limits:` in `infra.yml`); the others keep their defaults.
///
/// Connection limits (`message_bytes`, `connections`, `idle_seconds`, `memory`) apply before a service is named, so
/// the largest value among the caller's services counts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Limits {
    /// Maximum size of a message, in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message_bytes: Option<u64>,
    /// Maximum calls per minute from one caller to this service.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub calls_per_minute: Option<u32>,
    /// Maximum calls per minute from all callers to this service.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub calls_per_minute_all: Option<u32>,
    /// Maximum concurrent calls from one caller to this service.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub in_flight: Option<u32>,
    /// Maximum concurrent calls from all callers to this service.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub in_flight_all: Option<u32>,
    /// Maximum duration of one call, in seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub call_seconds: Option<u32>,
    /// Maximum concurrent connections from one caller.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connections: Option<u32>,
    /// Maximum wait for the next piece of a transfer, in seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idle_seconds: Option<u32>,
    /// Memory that one caller may use, in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<u64>,
}

impl Limits {
    /// All keys of `limits:`, in documentation order.
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
}
