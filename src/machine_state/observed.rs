//! Models what was found in a machine.

use std::collections::BTreeMap;

use super::{Identity, Rights};
use crate::digest::sha256;
use crate::text::Foreign;

/// The content found in a machine; empty if it does not exist yet.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ObservedMachine {
    /// True if the machine runs.
    pub runs: bool,
    /// SHA-256 of the program.
    pub program: Option<String>,
    /// What is ours and has another owner or other rights than it was given, and folders above it that keep the caller out.
    pub odd: BTreeMap<String, Rights>,
    /// Target of the link.
    pub link: Option<String>,
    /// The identity given to the machine.
    pub identity: Option<Identity>,
    /// The services file.
    pub services: Option<FoundServices>,
    /// The files that its supervisor starts the server and what it needs by: their paths and texts.
    pub units: BTreeMap<String, String>,
    /// Whether it serves.
    pub serving: Serving,
    /// The confinement of its server, in the server's words.
    pub confinement: Option<String>,
}

/// A services file that was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FoundServices {
    /// SHA-256 of its bytes.
    pub sha256: String,
    /// Its services, in the machine's words.
    pub shown: Foreign,
}

impl FoundServices {
    /// A file of ours.
    #[must_use]
    pub fn of(text: &str) -> Self {
        Self::with(
            text.as_bytes(),
            super::summary(text.as_bytes()).map(Foreign::from),
        )
    }

    /// A file with what it was read as.
    #[must_use]
    pub fn with(bytes: &[u8], shown: Option<Foreign>) -> Self {
        Self {
            sha256: sha256(bytes),
            shown: shown.unwrap_or_else(|| "(unreadable)".into()),
        }
    }
}

/// The state of a machine's server, in its own words.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Serving {
    /// Nothing is known: nobody looked, or there is no way to ask.
    #[default]
    Unknown,
    /// No server answers.
    Silent,
    /// A server answers, by the policy of this digest; `refused`: a newer one was not taken.
    Policy {
        /// SHA-256 of the policy.
        digest: Foreign,
        /// The reason why a newer one was refused.
        refused: Option<Foreign>,
    },
}
