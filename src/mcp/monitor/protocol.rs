//! Defines the protocol between a worker and its server: one request, one response, each as length-prefixed JSON.

use serde::{Deserialize, Serialize};

use super::AdmitError;
use crate::audit::{Call, CallEnd};
use crate::services::Services;
use crate::tool::Resource;

/// Maximum length of a request, in bytes: a call's log line has bounded names and reasons.
pub(super) const REQUEST_MAX: u32 = 64 * 1024;
/// Maximum length of a response, in bytes: one consumer's services, from a file of at most 16 MiB.
pub(super) const RESPONSE_MAX: u32 = 32 * 1024 * 1024;

/// A worker's requests to its server.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum MonitorRequest {
    /// Send the policy in force.
    Policy,
    Admit(Box<Call>),
    /// Log how this call ended; its answer is sent afterwards.
    Ended {
        /// The call's place from [`Response::Admit`].
        place: u64,
        end: CallEnd,
    },
    /// Log that this call ended with its connection.
    Abandoned {
        place: u64,
    },
    /// Log a call that did not run.
    Log(Box<Call>),
    /// Start the helper that runs the tools for this resource.
    Helper(Resource),
    /// Lend the part of this consumer's memory that is not reserved for it.
    Borrow,
    /// Take that memory back.
    GiveBack,
}

/// The server's response.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Response {
    Policy {
        /// The part of the policy that concerns this consumer.
        services: Services,
        /// The digest of the whole policy.
        digest: String,
        /// True if the policy remains valid until its file changes.
        settled: bool,
    },
    /// The place of the running call, or the reason why it does not run.
    Admit(Result<u64, AdmitError>),
    /// The call could not be logged.
    Unlogged,
    /// True if the memory is lent.
    Lent(bool),
    /// The socket to the helper is attached to this message.
    Helper,
    /// The helper could not be started, for this reason.
    NoHelper(String),
    Done,
}
