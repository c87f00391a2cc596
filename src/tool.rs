//! The tools: runs a [`Grant`], nothing else.

use std::path::PathBuf;
use std::sync::Arc;

use serde_json::{Map, Value};

use crate::policy::Grant;

/// Where the tools of this server work.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The only folder that `file_accept` and `file_provide` see (`ANKLUME_MCP_PORTAL`).
    pub portal: PathBuf,
    /// Folder of the clipboard file where there is no display (`$XDG_RUNTIME_DIR/anklume`).
    pub runtime: PathBuf,
}

/// State of one connection: what came in pieces so far. Dropped with the connection, and its temporary files with it.
#[derive(Debug)]
pub struct Session {
    settings: Arc<Settings>,
}

impl Session {
    /// A connection that has sent nothing.
    #[must_use]
    pub const fn new(settings: Arc<Settings>) -> Self {
        Self { settings }
    }
}

/// What a tool gives back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// What a shell user wants as it is; payloads go here and nowhere else.
    pub text: String,
    /// The rest: sizes, digests, fingerprints; fits the tool's output schema.
    pub structured: Map<String, Value>,
}

/// Why a tool failed; its text goes to the caller and names no path of the server but those below the portal.
#[derive(Debug, thiserror::Error)]
pub enum ToolError {
    /// The arguments are refused; nothing was touched.
    #[error("{0}")]
    Arguments(String),
}

/// Runs the tool of a grant. Dropping the future ends what it started.
///
/// # Errors
///
/// Whatever the tool could not do, in words for its caller.
#[expect(clippy::unused_async, reason = "skeleton")]
pub async fn run(grant: &Grant, session: &Session) -> Result<Outcome, ToolError> {
    let _ = (grant, &session.settings);
    Err(ToolError::Arguments(String::new()))
}
