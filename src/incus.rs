//! Speaks to Incus over its REST API: HTTP on the daemon's Unix socket.
//!
//! The only room that opens that socket. Streams go through the `incus` program, in [`crate::transport`].

mod change;
mod connection;
mod file;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing;
mod machine;
mod model;
mod object;
mod power;
mod socket;
pub(crate) mod state;

pub(crate) use connection::{Incus, Writes};
pub(crate) use file::{EntryKind, FileEntry, FileOwner};
pub(crate) use machine::{FindError, find};
pub(crate) use model::MachineRef;
pub(crate) use object::{ConfigMap, DEFAULT_PROJECT, Devices, Direction, Edit, Object, as_object};
pub(crate) use power::Power;
pub(crate) use socket::socket_path;
pub(crate) use state::State;

use crate::text::Foreign;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

impl From<hyper::Error> for IncusError {
    fn from(why: hyper::Error) -> Self {
        if why.is_parse() {
            Self::NotHttp(why)
        } else {
            Self::Closed(why)
        }
    }
}

/// Characters that are shown of why an answer cannot be read.
const WHY_SHOWN: usize = 300;

/// The reason why Incus gave no usable answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum IncusError {
    /// Nothing is at the socket's path.
    #[error("Incus is not running on this computer (no socket at `{}`)", .0.display().to_string().escape_debug())]
    NoSocket(PathBuf),
    /// The socket is there and this user may not use it.
    #[error("no permission to talk to Incus (socket `{}`)", .0.display().to_string().escape_debug())]
    NoPermission(PathBuf),
    /// The socket is there and nobody listens.
    #[error("Incus is not running (nobody listens on `{}`)", .0.display().to_string().escape_debug())]
    NotListening(PathBuf),
    /// The daemon took the request and is silent.
    #[error("Incus did not answer within {} s (socket `{}`)", .1.as_secs_f64(), .0.display().to_string().escape_debug())]
    Silent(PathBuf, Duration),
    /// The connection broke.
    #[error("the connection to Incus failed: {0}")]
    Connection(#[source] io::Error),
    /// The answer is not HTTP.
    #[error("Incus sent what is not HTTP: {0}")]
    NotHttp(#[source] hyper::Error),
    /// The daemon closed the connection, or never meant to talk.
    #[error("Incus closed the connection without an answer")]
    Closed(#[source] hyper::Error),
    /// The answer has more bytes than are read.
    #[error("the answer of Incus is larger than {} MiB", connection::ANSWER_MAX / 1024 / 1024)]
    TooLarge,
    /// The answer is not what the API promises.
    #[error("the answer of Incus to `{path}` cannot be read: {}", why.shown(WHY_SHOWN))]
    Answer {
        /// The request.
        path: String,
        /// Why; it may quote the answer.
        why: Foreign,
    },
    /// Incus refused, in its words.
    #[error("Incus says: {} (HTTP {code})", message.escaped())]
    Refused {
        /// HTTP status.
        code: u16,
        /// Its words.
        message: Foreign,
    },
    /// An Incus operation failed; the error is in Incus's words.
    #[error("Incus says: {}", .0.escaped())]
    Failed(Foreign),
    /// A path in a machine is not what anklume made there.
    #[error("machine altered: `{}` in it is not a folder", .0.escape_debug())]
    Altered(String),
    /// A machine was started, as often as this, and does not run.
    #[error("Incus started it {0} times, but it is not running")]
    NotUp(usize),
    /// An Incus operation does not end.
    #[error("Incus has not finished within {} s; it may still do so", .0.as_secs())]
    Slow(Duration),
}
