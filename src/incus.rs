//! Talks to Incus through its REST API: HTTP over the daemon's Unix socket, which no other module opens.
//!
//! Streams go through the `incus` program, in [`crate::transport`].

mod change;
mod connection;
mod file;
mod machine;
mod object;
pub(crate) mod state;

pub(crate) use connection::{Incus, Writes, socket_path};
pub(crate) use file::{EntryKind, FileEntry, FileOwner};
pub(crate) use machine::{FindError, MachineRef, Power, find};
pub(crate) use object::{ConfigMap, DEFAULT_PROJECT, Devices, Direction, Edit, Object, as_object};
pub(crate) use state::State;

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use crate::text::Foreign;

/// Maximum length of the displayed reason why an answer cannot be read, in characters.
const WHY_SHOWN: usize = 300;

type IncusResult<T> = Result<T, IncusError>;

/// The reason why Incus gave no usable answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum IncusError {
    #[error("Incus is not running on this computer (no socket at `{}`)", .0.display().to_string().escape_debug())]
    NoSocket(PathBuf),
    #[error("no permission to talk to Incus (socket `{}`)", .0.display().to_string().escape_debug())]
    NoPermission(PathBuf),
    #[error("Incus is not running (nothing listens on `{}`)", .0.display().to_string().escape_debug())]
    NotListening(PathBuf),
    #[error("Incus did not answer within {} s (socket `{}`)", .1.as_secs_f64(), .0.display().to_string().escape_debug())]
    Silent(PathBuf, Duration),
    #[error("the connection to Incus failed: {0}")]
    Connection(#[source] io::Error),
    #[error("Incus sent an answer that is not HTTP: {0}")]
    NotHttp(#[source] hyper::Error),
    /// The daemon closed the connection, either immediately or during an exchange.
    #[error("Incus closed the connection without an answer")]
    Closed(#[source] hyper::Error),
    #[error("the answer from Incus is larger than {} MiB", connection::ANSWER_MAX / 1024 / 1024)]
    TooLarge,
    /// The answer does not match the API.
    #[error("the answer from Incus to `{path}` cannot be read: {}", why.shown(WHY_SHOWN))]
    Answer {
        path: String,
        /// May quote the answer.
        why: Foreign,
    },
    #[error("Incus reports: {} (HTTP {code})", message.escaped())]
    Refused { code: u16, message: Foreign },
    /// An Incus operation failed.
    #[error("Incus reports: {}", .0.escaped())]
    Failed(Foreign),
    /// An entry in a machine is no longer the one that anklume created.
    #[error("machine altered: `{}` in it is not a folder", .0.escape_debug())]
    Altered(String),
    /// A machine is not running after this many starts.
    #[error("Incus started it {0} times, but it is not running")]
    NotUp(usize),
    #[error("Incus has not finished within {} s; it may still do so", .0.as_secs())]
    Slow(Duration),
}

impl IncusError {
    /// Returns whether Incus's own message contains this text.
    fn says(&self, text: &str) -> bool {
        match self {
            Self::Refused { message, .. } | Self::Failed(message) => message.raw().contains(text),
            _ => false,
        }
    }
}

impl From<hyper::Error> for IncusError {
    fn from(why: hyper::Error) -> Self {
        if why.is_parse() {
            Self::NotHttp(why)
        } else {
            Self::Closed(why)
        }
    }
}
