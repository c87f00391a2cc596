//! Records every call: one JSON line each, in a hash chain.
//!
//! The log holds no contents: arguments appear as a keyed digest, payloads as sizes. Several processes may
//! write to one log: each locks the file and rereads its end.

pub mod chain;
pub mod flood;
mod store;
pub mod verify;

use std::collections::BTreeMap;
use std::fmt;

use hmac::{Hmac, KeyInit as _, Mac as _};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use sha2::Sha256;

use crate::digest::{Digester, hex};
use crate::text::Foreign;

pub use store::{AuditError, KEEP, LOG, Log, ROTATE_AT, files, may_have_dropped, now};

/// Maximum length of a name in a line, in bytes as written; a longer one is cut.
const NAME_MAX: usize = 128;
/// Maximum length of a reason in a line, in bytes as written: a services file must not make lines arbitrarily long.
const REASON_MAX: usize = 1024;

/// An event in the log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// A server started.
    Start {
        /// Its version.
        version: Foreign,
        /// Its process.
        pid: u32,
        /// Digest of its policy.
        policy: Foreign,
    },
    /// A server stopped cleanly.
    Stop {
        /// Its process.
        pid: u32,
    },
    /// A server reread its services file.
    Reload {
        /// Digest of the policy in force.
        policy: Foreign,
        /// The reason the file was refused; the old policy stays in force.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        refused: Option<Foreign>,
    },
    /// A call.
    Call(Box<Call>),
    /// Calls that did not run and have no line of their own.
    Counted {
        /// The caller.
        caller: Foreign,
        /// The name that was called.
        service: Foreign,
        /// The decision.
        decision: Verdict,
        /// The reason.
        reason: Foreign,
        /// Number of calls.
        count: u64,
    },
    /// The log continues in a new file.
    Rotated {
        /// Size of the previous file, in bytes.
        bytes: u64,
    },
    /// The last line was incomplete (a crash, a full disk) and was removed.
    Torn {
        /// Bytes removed.
        bytes: u64,
    },
}

/// A logged call.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Call {
    /// The request's id on its connection, as JSON text.
    pub id: Foreign,
    /// The caller, identified by the channel.
    pub caller: Foreign,
    /// The name that was called.
    pub service: Foreign,
    /// The tool that would run; absent if the name is unknown.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub tool: Option<Foreign>,
    /// The decision.
    pub decision: Verdict,
    /// The reason, worded for the operator.
    pub reason: Foreign,
    /// Digest of the policy behind the decision.
    pub policy: Foreign,
    /// The outcome.
    pub outcome: Outcome,
    /// Size of the request, in bytes.
    pub bytes_in: u64,
    /// Size of the answer's text, in bytes.
    pub bytes_out: u64,
    /// Microseconds from the request to the answer.
    pub duration_us: u64,
    /// The same for all pieces that one connection sends or fetches of one payload; absent for other calls.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub transfer: Option<Foreign>,
    /// Whether the transfer was complete with this piece; absent for other calls, and in logs of earlier versions.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub completes: Option<bool>,
    /// What a signature of `ssh_sign` is for; absent for other tools, and for calls that did not run.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub purpose: Option<Foreign>,
    /// SHA-256 of the arguments, sealed with the machine's key ([`SealKey::seal`]), in hexadecimal.
    pub arguments: Foreign,
}

/// The decision.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// The call was allowed to run.
    Allowed,
    /// The call was not allowed to run.
    Refused,
    /// The call was allowed, but the server was overloaded.
    Overloaded,
}

impl Verdict {
    /// Returns the word used in the log.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Allowed => "allowed",
            Self::Refused => "refused",
            Self::Overloaded => "overloaded",
        }
    }
}

/// The outcome of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// The tool succeeded.
    Done,
    /// The tool failed.
    Failed,
    /// The caller cancelled it, or disconnected.
    Cancelled,
    /// It exceeded its time limit.
    TimedOut,
    /// No tool ran.
    NotRun,
}

/// How a call ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct CallEnd {
    /// The outcome.
    pub outcome: Outcome,
    /// Size of the answer's text, in bytes.
    pub bytes_out: u64,
    /// Whether a transfer was complete with this call; `None` if it is not a piece of one.
    pub completes: Option<bool>,
}

impl From<Outcome> for CallEnd {
    fn from(outcome: Outcome) -> Self {
        Self {
            outcome,
            bytes_out: 0,
            completes: None,
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Done => "done",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
            Self::TimedOut => "timed out",
            Self::NotRun => "not run",
        })
    }
}

/// The machine's key for argument digests: equal arguments can be recognised, but contents cannot be guessed.
#[derive(Clone)]
pub struct SealKey([u8; 32]);

impl fmt::Debug for SealKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key(…)")
    }
}

impl SealKey {
    /// Seals the digest of a call's arguments ([`digest_of`]): without the key, a guess cannot be checked against it.
    #[must_use]
    pub fn seal(&self, digest: &str) -> String {
        let sealed = Hmac::<Sha256>::new_from_slice(&self.0).map(|mut mac| {
            mac.update(digest.as_bytes());
            hex(&mac.finalize().into_bytes())
        });
        // HMAC accepts a key of any length.
        sealed.unwrap_or_default()
    }
}

/// Returns whether JSON writes a text without escapes. Looks at every byte, which is faster than stopping at the first.
fn is_plain(text: &str) -> bool {
    let is_special = |byte: u8| byte < b' ' || byte == b'"' || byte == b'\\';
    !text
        .bytes()
        .fold(false, |special, byte| special | is_special(byte))
}

/// Returns the SHA-256 of a call's arguments, in hexadecimal; the order of members does not matter.
#[must_use]
pub fn digest_of(arguments: &Map<String, Value>) -> String {
    let sorted: BTreeMap<&String, &Value> = arguments.iter().collect();
    let mut digester = Digester::default();
    // As JSON, which is unambiguous, and incrementally, because arguments may be large. Writing cannot fail.
    digester.add(b"{");
    for (index, (name, value)) in sorted.into_iter().enumerate() {
        digester.add(if index == 0 { b"" } else { b"," });
        let _ = serde_json::to_writer(&mut digester, name);
        digester.add(b":");
        match value {
            // A long payload needs no escapes, which are looked for byte by byte.
            Value::String(text) if is_plain(text) => {
                digester.add(b"\"");
                digester.add(text.as_bytes());
                digester.add(b"\"");
            }
            value => {
                let _ = serde_json::to_writer(&mut digester, value);
            }
        }
    }
    digester.add(b"}");
    digester.end()
}

/// Shortens a caller-supplied name to the maximum length in a line; escapes count as written.
#[must_use]
pub fn bounded(name: &str) -> Foreign {
    cut(name, NAME_MAX).into()
}

/// Shortens a reason likewise, because it may quote foreign text.
#[must_use]
pub fn bounded_reason(reason: &str) -> Foreign {
    cut(reason, REASON_MAX).into()
}

fn cut(text: &str, max: usize) -> String {
    let mut room = max;
    let fits = |character: &char| {
        let left = room.checked_sub(written(*character));
        room = left.unwrap_or_default();
        left.is_some()
    };
    text.chars().take_while(fits).collect()
}

/// Returns the maximum number of bytes that a character takes in a line.
const fn written(character: char) -> usize {
    /// `\u` and four digits.
    const ESCAPE: usize = 6;
    match character {
        '"' | '\\' => 2,
        ' '..='~' => 1,
        _ => character.len_utf16() * ESCAPE,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_cut_by_what_it_takes_in_a_line() {
        for (part, fit) in [
            ("x", 128),
            ("\"", 64),
            ("\\", 64),
            ("\n", 21),
            ("é", 21),
            ("\u{1f600}", 10),
        ] {
            assert_eq!(
                bounded(&part.repeat(200)).raw(),
                &part.repeat(fit),
                "{part:?}"
            );
            let stop = Event::Counted {
                caller: "".into(),
                service: bounded(&part.repeat(200)),
                decision: Verdict::Refused,
                reason: "".into(),
                count: 1,
            };
            let empty = Event::Counted {
                caller: "".into(),
                service: "".into(),
                decision: Verdict::Refused,
                reason: "".into(),
                count: 1,
            };
            let length = |event| chain::unlinked("", &event).len();
            assert!(length(stop) - length(empty) <= NAME_MAX, "{part:?}");
        }
    }
}
