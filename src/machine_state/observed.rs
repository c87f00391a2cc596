//! What was found in a machine.

use std::collections::BTreeMap;

use super::{Identity, Rights};
use crate::digest::sha256;
use crate::text::Foreign;

/// What was found in a machine; nothing, where it is not there yet.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ObservedMachine {
    /// True if the machine runs.
    pub runs: bool,
    /// SHA-256 of the program.
    pub program: Option<String>,
    /// What is ours and has another owner or other rights than it was given, and folders above it that keep the caller out.
    pub odd: BTreeMap<String, Rights>,
    /// Where the link leads.
    pub link: Option<String>,
    /// Who the machine is told to be.
    pub identity: Option<Identity>,
    /// The services file.
    pub services: Option<FoundServices>,
    /// The files that its supervisor starts the server and what it needs by: their paths and texts.
    pub units: BTreeMap<String, String>,
    /// Whether it serves.
    pub serving: Serving,
    /// What the kernel keeps its server from, in the server's words.
    pub confinement: Option<String>,
}

/// A services file that was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FoundServices {
    /// SHA-256 of its bytes.
    pub sha256: String,
    /// What it serves, in the machine's words.
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

/// What a machine's server says of itself, and whether it answers.
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
        /// Why a newer one was refused.
        refused: Option<Foreign>,
    },
}
