//! What each tool takes and gives: typed arguments, schemas, words. No behaviour.
//!
//! At the bottom of the house, so that `infra` can check fixed arguments and `policy` can hide them
//! without knowing how a tool runs.

use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::name::ToolName;

/// Largest payload in one call, in bytes before base64; beyond it, pieces.
pub const ONE_CALL_MAX: u64 = 8 * 1024 * 1024;
/// Size of a piece, in bytes before base64 (flat memory and faster than one long line).
pub const PIECE: u64 = 1024 * 1024;
/// Largest clipboard content, in bytes of UTF-8.
pub const CLIPBOARD_MAX: usize = 64 * 1024;

/// Arguments of `gpg_sign`.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct GpgSign {
    /// Content to sign, in base64
    pub data: String,
    /// Key to sign with; default: the default key of the server's user
    pub key_id: Option<String>,
    /// In pieces: where this piece begins, in bytes
    pub offset: Option<u64>,
    /// In pieces: true on the last one, which is answered with the signature
    pub r#final: Option<bool>,
}

/// Arguments of `clipboard_get`: none.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ClipboardGet {}

/// Arguments of `clipboard_set`.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ClipboardSet {
    /// Text to put on the clipboard
    pub content: String,
}

/// Arguments of `file_accept`.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct FileAccept {
    /// Where to write, relative to the portal
    pub path: String,
    /// Content, in base64
    pub data: String,
    /// Permissions in octal, such as 0644
    pub mode: Option<String>,
    /// In pieces: where this piece begins, in bytes
    pub offset: Option<u64>,
    /// In pieces: true on the last one, which publishes the file
    pub r#final: Option<bool>,
    /// SHA-256 of the whole content, in hexadecimal; the file appears only when it matches
    pub sha256: Option<String>,
}

/// Arguments of `file_provide`.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct FileProvide {
    /// What to read, relative to the portal
    pub path: String,
    /// In pieces: where this piece begins, in bytes
    pub offset: Option<u64>,
    /// In pieces: at most this many bytes
    pub length: Option<u64>,
}

/// The words of a tool: what `tools/list` says of it.
#[derive(Debug, Clone)]
pub struct Description {
    /// A short title for people.
    pub title: &'static str,
    /// What it does and within which limits.
    pub description: &'static str,
    /// It changes nothing.
    pub read_only: bool,
    /// It may replace something.
    pub destructive: bool,
    /// The same call twice does no more than once.
    pub idempotent: bool,
    /// JSON Schema of the arguments.
    pub input: Map<String, Value>,
    /// JSON Schema of the structured result.
    pub output: Map<String, Value>,
}

/// Why a fixed argument (`with`) cannot be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FixedFault {
    /// The argument's name.
    pub argument: String,
    /// What is wrong with it, in words.
    pub message: String,
}

/// Describes a tool.
#[must_use]
pub fn describe(tool: ToolName) -> Description {
    let _ = tool;
    Description {
        title: "",
        description: "",
        read_only: false,
        destructive: false,
        idempotent: false,
        input: Map::new(),
        output: Map::new(),
    }
}

/// Checks fixed arguments against the tool's schema: known names, right types; not all need be there.
///
/// # Errors
///
/// Every fault, not the first alone.
pub fn check_fixed(tool: ToolName, with: &Map<String, Value>) -> Result<(), Vec<FixedFault>> {
    let _ = (tool, with);
    Ok(())
}
