//! Runs a [`Grant`] with one of the tools, and nothing else.
//!
//! [`crate::policy`] has decided that the call may run; a tool checks the arguments before it does anything.

pub(crate) mod clipboard;
mod file;
mod gpg;
mod notify;
mod pieces;
mod resource;
mod runtime;
mod settings;
mod ssh;
#[cfg(test)]
mod testing;

use std::io;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use tokio_util::sync::CancellationToken;

use crate::catalogue::{BadArguments, ONE_CALL_MAX, STDOUT_MAX, TWO_COPIES_MAX};
use crate::name::{ServiceTool, ToolName};
use crate::policy::Grant;
use crate::text;

pub(crate) use gpg::launcher as gpg_launcher;
pub use gpg::{CardFault, GpgFault, NoAgent, UnfitKey};
pub use resource::Resource;
pub(crate) use resource::{NOTHING, has_gnupg, portal_limits};
pub(crate) use runtime::runtime_folder;
pub(crate) use settings::environment;
pub use settings::{Display, GpgHome, RelativePortal, Settings, Surroundings};
pub(crate) use ssh::key_fault as ssh_key_fault;

/// One connection's piecewise transfers, shared by its calls. Dropping it removes their temporary files.
#[derive(Debug)]
pub struct ToolSession {
    settings: Arc<Settings>,
    signatures: pieces::Transfers<gpg::Signing>,
    uploads: pieces::Transfers<file::Upload>,
    reads: file::Reads,
}

impl ToolSession {
    /// Creates a session without transfers.
    #[must_use]
    pub fn new(settings: Arc<Settings>) -> Self {
        let idle = settings.idle;
        Self {
            settings,
            signatures: pieces::Transfers::new(gpg::TRANSFERS_MAX, idle),
            uploads: pieces::Transfers::new(file::TRANSFERS_MAX, idle),
            reads: file::Reads::default(),
        }
    }

    /// Returns whether no transfer is waiting for its next piece.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.signatures.is_empty() && self.uploads.is_empty() && self.reads.is_empty()
    }
}

/// The result of a tool.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ToolOutcome {
    /// The payload as text, unchanged for shell users; of an image, its base64.
    pub text: String,
    /// True if `text` is a PNG in base64.
    #[serde(default)]
    pub is_png: bool,
    /// The payload with sizes, digests and fingerprints, according to the tool's output schema.
    pub structured: Map<String, Value>,
}

impl ToolOutcome {
    fn new(text: String, structured: &impl Serialize) -> Result<Self, ToolError> {
        match serde_json::to_value(structured) {
            Ok(Value::Object(structured)) => Ok(Self {
                text,
                is_png: false,
                structured,
            }),
            _ => Err(ToolError::Broken),
        }
    }
}

impl std::fmt::Debug for ToolOutcome {
    /// Shows the length of the text and the names of the fields, never their content.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Outcome")
            .field("text", &format_args!("{} bytes", self.text.len()))
            .field("is_png", &self.is_png)
            .field("structured", &self.structured.keys())
            .finish()
    }
}

/// The number of copies of a large payload in an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Copies {
    /// In the content blocks only, at the client's request.
    One,
    /// In the content blocks and in the structured result: a client shows only one of them to a model, and does not say which.
    Two,
}

impl Copies {
    /// Returns the maximum payload size of one answer, in bytes before base64.
    const fn payload_max(self) -> u64 {
        match self {
            Self::One => ONE_CALL_MAX,
            Self::Two => TWO_COPIES_MAX,
        }
    }

    /// Returns how much memory an answer with this payload takes, in bytes: the payload, and its base64, once or twice.
    fn memory_of(self, payload: u64) -> usize {
        let count = if self == Self::One { 1 } else { 2 };
        usize::try_from(payload + count * payload.div_ceil(3) * 4).unwrap_or(usize::MAX)
    }
}

/// The reason why a tool failed. The caller sees its text, which names no path on the server except below the portal.
#[derive(Debug, thiserror::Error)]
pub enum ToolError {
    /// The arguments were refused; nothing was done.
    #[error(transparent)]
    Arguments(#[from] BadArguments),
    /// No such file below the portal.
    #[error("no file `{path}` in the portal")]
    NotFound {
        /// Relative to the portal.
        path: String,
    },
    /// The name is taken, and nothing is overwritten.
    #[error("`{path}` already exists, and nothing is overwritten; choose another name")]
    Exists {
        /// Relative to the portal.
        path: String,
    },
    /// The tool refuses an entry of this type: a symbolic link, a device, a file with two names.
    #[error("{0}")]
    Refused(String),
    /// The payload exceeds the limit for a call, a transfer or the clipboard.
    #[error("{0}")]
    TooLarge(String),
    /// The piece does not follow the previous one.
    #[error("{0}")]
    OutOfOrder(String),
    /// The file changed while it was read, or between two pieces.
    #[error("`{path}` changed while it was read; begin again")]
    Changed {
        /// Relative to the portal.
        path: String,
    },
    /// The content does not have the announced digest.
    #[error("the SHA-256 of the content is {actual}, not {announced}; nothing was written")]
    Digest {
        /// In hexadecimal.
        actual: String,
        /// In hexadecimal.
        announced: String,
    },
    /// The file would exceed the caller's share of the portal.
    #[error("`{folder}` holds {}, and {} more would exceed its limit of {}; {}", text::size(*used), text::size(*wanted), text::size(*limit),
        if wanted > limit { "send a smaller file" } else { "remove files from it on the provider" })]
    Quota {
        /// Relative to the portal.
        folder: String,
        /// Bytes used or reserved.
        used: u64,
        /// Bytes requested.
        wanted: u64,
        /// Bytes allowed.
        limit: u64,
    },
    /// Too many simultaneous transfers on this connection.
    #[error("{0}")]
    Busy(String),
    /// Something that the tool needs is missing: a program, the portal, the display.
    #[error("{0}")]
    Unavailable(String),
    /// gpg did not sign.
    #[error(transparent)]
    Gpg(#[from] GpgFault),
    /// The machine's own program failed; what it printed follows.
    #[error("{0}")]
    Program(String),
    /// The tool took too long.
    #[error("{0}")]
    TimedOut(String),
    /// A system call failed.
    #[error("cannot {doing}: {cause}")]
    System {
        /// The operation, without a path on the server.
        doing: String,
        /// The reason why it failed.
        cause: io::Error,
    },
    /// The message from another process of this server, which ran the tool.
    #[error("{0}")]
    Told(String),
    /// The call was cancelled while it was running.
    #[error("the call was cancelled")]
    Cancelled,
    /// A bug in anklume itself.
    #[error("the tool failed because of a bug in anklume")]
    Broken,
}

impl ToolError {
    /// Returns the error kind as one stable word, for logs.
    #[must_use]
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Arguments(_) => "arguments",
            Self::NotFound { .. } => "not-found",
            Self::Exists { .. } => "exists",
            Self::Refused(_) => "refused",
            Self::TooLarge(_) => "too-large",
            Self::OutOfOrder(_) => "out-of-order",
            Self::Changed { .. } => "changed",
            Self::Digest { .. } => "digest",
            Self::Quota { .. } => "quota",
            Self::Busy(_) => "busy",
            Self::Unavailable(_) => "unavailable",
            Self::Gpg(_) => "gpg",
            Self::Program(_) => "program",
            Self::TimedOut(_) => "timed-out",
            Self::System { .. } => "system",
            Self::Told(_) => "told",
            Self::Cancelled => "cancelled",
            Self::Broken => "broken",
        }
    }

    /// Wraps a system error with the operation that failed.
    fn system(doing: impl Into<String>, cause: impl Into<io::Error>) -> Self {
        Self::System {
            doing: doing.into(),
            cause: cause.into(),
        }
    }
}

/// Returns the maximum size of a grant's answer in memory, in bytes; 0 for a tool without large answers.
#[must_use]
pub fn largest_answer(grant: &Grant, session: &ToolSession, copies: Copies) -> usize {
    let tool = match grant.tool() {
        ServiceTool::BuiltIn(tool) => tool,
        ServiceTool::Own(_) => return 2 * STDOUT_MAX,
        // Counted when it is there: most are small.
        ServiceTool::Upstream(..) => return 0,
    };
    match tool {
        ToolName::FileProvide => file::largest_answer(grant.arguments(), copies),
        ToolName::ClipboardGet => {
            clipboard::largest_answer(grant.arguments(), &session.settings, copies)
        }
        ToolName::GpgSign
        | ToolName::SshSign
        | ToolName::ClipboardSet
        | ToolName::FileAccept
        | ToolName::Notify => 0,
    }
}

/// Runs a grant's tool, which must be one of anklume's. Dropping the future ends everything that it has started.
///
/// # Errors
///
/// Fails if the tool fails; the message is for the caller.
pub async fn run(
    grant: &Grant,
    session: &ToolSession,
    copies: Copies,
) -> Result<ToolOutcome, ToolError> {
    let Some(tool) = grant.tool().built_in() else {
        return Err(ToolError::Broken);
    };
    match tool {
        ToolName::GpgSign => gpg::sign(grant, session).await,
        ToolName::SshSign => ssh::sign(grant, session).await,
        ToolName::ClipboardGet => clipboard::get(grant, session, copies).await,
        ToolName::ClipboardSet => clipboard::set(grant, session).await,
        ToolName::FileAccept => file::accept(grant, session).await,
        ToolName::FileProvide => file::provide(grant, session, copies).await,
        ToolName::Notify => notify::notify(grant, session).await,
    }
}

/// Tells blocking work to stop once the future waiting for it is dropped.
#[derive(Debug, Default)]
struct BlockingStop(CancellationToken);

impl BlockingStop {
    /// Fails once nobody is waiting for the work. Must be called before every lasting effect.
    fn check(&self) -> Result<(), ToolError> {
        if self.0.is_cancelled() {
            Err(ToolError::Cancelled)
        } else {
            Ok(())
        }
    }
}

/// Runs blocking work on its own thread, not on the serving thread.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce(&BlockingStop) -> Result<T, ToolError> + Send + 'static,
) -> Result<T, ToolError> {
    let stop = BlockingStop::default();
    let _cancel_on_drop = stop.0.clone().drop_guard();
    let done = tokio::task::spawn_blocking(move || work(&stop)).await;
    // The work panicked, or the runtime is shutting down.
    done.unwrap_or(Err(ToolError::Broken))
}
