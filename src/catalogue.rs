//! Defines the arguments, the results and the description of each tool; no tool runs here.
//!
//! Being below `infra` and `policy`, it lets them check and hide fixed arguments without knowing how a tool runs.

mod check;
mod definition;
mod own_tool;
mod path;
mod schema;
mod upstream;

use base64::engine::general_purpose::STANDARD;
use base64::{DecodeError, Engine as _};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::ssh::{
    BIND_MAX, DATA_MAX, KeyFault, KeyUse, NotSignable, SessionBind, SignatureRequest, SshKey,
};

pub use check::{
    FixedFault, alternative, gives_offers, operator_only, parse, parse_without_data, repeats_key,
};
pub use definition::Definition;
pub use own_tool::{
    ArgumentType, CommandElement, CommandLine, ELEMENT_MAX, ElementFault, OwnArgument, OwnOutput,
    OwnTool, ProcessSettings, STDERR_KEPT, STDIN_MAX, STDOUT_MAX,
};
pub use path::PortalPath;
pub use schema::{Description, describe, describe_without, hide};
pub use upstream::{DefinitionFault, UPSTREAM_IDLE, UpstreamServer, UpstreamTool};

/// Maximum size of a payload in one call, in bytes before base64; a larger one is sent in pieces.
pub const ONE_CALL_MAX: u64 = 8 * 1024 * 1024;
/// Maximum size of a payload that an answer carries twice, as text and as a structured result, in bytes before base64:
/// the line stays below 10 MiB, beyond which the official TypeScript clients close the connection.
pub const TWO_COPIES_MAX: u64 = 3 * 1024 * 1024;
/// Size of a piece, in bytes before base64.
pub const PIECE: u64 = 1024 * 1024;
/// The MIME type of images on a clipboard.
pub const PNG: &str = "image/png";
/// The first bytes of every PNG (RFC 2083, section 3.1).
pub const PNG_START: &[u8] = b"\x89PNG\r\n\x1a\n";
/// Maximum size of a text on a clipboard, in bytes of UTF-8.
pub const CLIPBOARD_MAX: usize = 64 * 1024;
/// Maximum size of content that `gpg_sign` signs in pieces, in bytes.
pub const SIGN_MAX: u64 = 4 * 1024 * 1024 * 1024;
/// The `path` of `file_provide` that stands for the folder in which all files of a caller are.
pub const WHOLE_PORTAL: &str = ".";
/// Maximum size of a message's title, in bytes of UTF-8.
pub const TITLE_MAX: usize = 200;
/// Maximum size of a message's other text, in bytes of UTF-8.
pub const BODY_MAX: usize = 2000;
/// The argument of `clipboard_get` that a service's `offered_only` fixes.
pub const OFFERED_ONLY: &str = "offered_only";
/// The argument of `clipboard_set` that names a machine.
pub const OFFER_TO: &str = "offer_to";
/// Largest integer that every JSON reader represents exactly (2^53 - 1).
const EXACT_MAX: u64 = 9_007_199_254_740_991;

/// Regular expression for the key ids that [`check::check_some`] accepts.
const KEY_ID: &str = "^(0x)?([0-9A-Fa-f]{16}|[0-9A-Fa-f]{40}|[0-9A-Fa-f]{64})!?$\
    |^<[A-Za-z0-9._+-]{1,128}@[A-Za-z0-9._+-]{1,128}>$";

/// Arguments of `gpg_sign`.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct GpgSign {
    /// Content to sign, in base64 (with padding, no line breaks); at most 8388608 bytes in one call
    pub data: Payload,
    /// Key to sign with: a fingerprint, a long key id or `<address>`; default: the default key of the server's user
    #[schemars(regex(pattern = KEY_ID))]
    pub key_id: Option<String>,
    /// When sending in pieces: this piece's offset, in bytes; 0 for the first, then the number of bytes sent so far
    #[schemars(range(max = EXACT_MAX))]
    pub offset: Option<u64>,
    /// When sending in pieces: true for the last one; its answer contains the signature
    pub r#final: Option<bool>,
    /// True to sign nothing and return the public key with its fingerprints and user IDs; `data` must then be empty
    pub public_key: Option<bool>,
}

/// Arguments of `ssh_sign`.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SshSign {
    /// The bytes that an SSH client asks its agent to sign, in base64; at most 8192 bytes
    pub data: Payload,
    /// Flags of the agent protocol: 0 (default) or, for RSA keys, 2 (SHA-256) or 4 (SHA-512)
    #[schemars(range(max = 4))]
    pub flags: Option<u32>,
    /// For a login: the content of the `session-bind@openssh.com` messages that the client sent, in order, in base64
    pub bind: Option<Vec<String>>,
    /// The public key to sign with, in one line
    pub key: String,
    /// What may be signed: `git`, `file:NAMESPACE`, `login`; default: only `git`
    pub allow: Option<Vec<String>>,
    /// Fingerprints (`SHA256:…`) of the keys of the hosts to which logins may be signed
    pub hosts: Option<Vec<String>>,
}

impl SshSign {
    /// Reads the arguments of a call that [`parse`] has checked. What is too long is refused before it is decoded.
    ///
    /// # Errors
    ///
    /// Returns the first fault.
    pub fn request(&self) -> Result<SignatureRequest, BadArguments> {
        if decoded_length(self.data.as_str()) > DATA_MAX as u64 {
            return Err(NotSignable::TooLong.to_string().into());
        }
        let allow = match &self.allow {
            Some(allow) => allow.iter().map(|text| KeyUse::parse(text)).collect(),
            None => Ok(vec![KeyUse::Git]),
        };
        let binds = self.bind.iter().flatten();
        let binds = binds.map(|text| session_bind(text)).collect();
        Ok(SignatureRequest {
            key: SshKey::parse(&self.key).map_err(|fault| bad_key(&fault))?,
            allow: allow?,
            hosts: self.hosts.clone().unwrap_or_default(),
            data: self.data.decode()?,
            flags: self.flags.unwrap_or_default(),
            binds: Option::ok_or(binds, "`bind` is not a list of session binds in base64")?,
        })
    }
}

fn session_bind(text: &str) -> Option<SessionBind> {
    let fits = decoded_length(text) <= BIND_MAX as u64;
    SessionBind::parse(&STANDARD.decode(Some(text).filter(|_| fits)?).ok()?)
}

fn bad_key(fault: &KeyFault) -> String {
    format!("`key` is unusable: {fault}")
}

/// Arguments of `clipboard_get`.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ClipboardGet {
    /// Also return content that a password manager marked as a password; default false
    pub passwords: Option<bool>,
    /// Return only a text that was offered to the caller within the last minute, and return it once; default false
    pub offered_only: Option<bool>,
}

/// Arguments of `clipboard_set`.
#[derive(Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ClipboardSet {
    /// Text to put on the clipboard, at most 65536 bytes of UTF-8
    pub content: Option<String>,
    /// Instead of text, an image to put on the clipboard of a display: a PNG in base64, at most 8388608 bytes
    pub image: Option<Payload>,
    /// A machine to offer the text to, for a minute, instead of putting it on the clipboard
    pub offer_to: Option<String>,
}

impl std::fmt::Debug for ClipboardSet {
    /// Shows the length of the content, never the content.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let text = self.content.as_ref().map(String::len);
        let image = self.image.as_ref().map(Payload::encoded_length);
        write!(f, "ClipboardSet({} bytes)", text.or(image).unwrap_or(0))
    }
}

/// Arguments of `file_accept`.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct FileAccept {
    /// Where to write: a path below the portal, such as `reports/july.pdf`
    pub path: String,
    /// Content, in base64 (with padding, no line breaks); at most 8388608 bytes in one call
    pub data: Payload,
    /// Permissions in octal, such as 0640; default 0644; no setuid, setgid or sticky bit
    #[schemars(regex(pattern = r"^0?[0-7]{3}$"))]
    pub mode: Option<String>,
    /// When sending in pieces: this piece's offset, in bytes; 0 for the first, then the number of bytes sent so far
    #[schemars(range(max = EXACT_MAX))]
    pub offset: Option<u64>,
    /// When sending in pieces: true for the last one, which publishes the file
    pub r#final: Option<bool>,
    /// Size of the whole content, in bytes; with it, a file that does not fit is refused at its first piece, which may be empty
    #[schemars(range(max = EXACT_MAX))]
    pub size: Option<u64>,
    /// SHA-256 of the whole content, in hexadecimal; the file appears only when it matches
    #[schemars(regex(pattern = r"^[0-9A-Fa-f]{64}$"))]
    pub sha256: Option<String>,
    /// Time of the file's last change: RFC 3339, such as 2026-07-01T12:00:00Z; default: now
    pub modified: Option<String>,
    /// When sending in pieces, with `size` in the empty first piece: true to keep what was received if the connection breaks, and to go on with what an earlier connection left; the answer's `size` is the offset of the next piece, its `sha256` that of what was received. A `final` piece before the end discards it
    pub resume: Option<bool>,
    /// True to create a folder; `data` must then be empty
    pub folder: Option<bool>,
}

/// Arguments of `file_provide`.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct FileProvide {
    /// File to read: a path below the portal, such as `reports/july.pdf`
    pub path: String,
    /// When reading in pieces: this piece's offset, in bytes; with `entries`, the number of entries to skip
    #[schemars(range(max = EXACT_MAX))]
    pub offset: Option<u64>,
    /// When reading in pieces: the maximum number of bytes; one answer returns up to 3145728; default 1048576
    #[schemars(range(min = 1, max = ONE_CALL_MAX))]
    pub length: Option<u64>,
    /// True to go on at `offset` after a connection broke, up to 4294967296: the digest then covers what precedes `offset` too
    pub resume: Option<bool>,
    /// True to list a folder instead of reading a file: up to 1000 entries, in the order of their names; the `path` `.` is the whole portal
    pub entries: Option<bool>,
}

/// Arguments of `notify`.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Notify {
    /// The message in a few words, at most 200 bytes of UTF-8; the caller's name is put before it
    pub title: String,
    /// More text, at most 2000 bytes of UTF-8
    pub body: Option<String>,
}

/// Output of `gpg_sign`.
#[derive(Debug, Clone, Default, Serialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct Signed {
    /// Bytes received so far; once complete, the number of bytes signed
    pub size: u64,
    /// True once the signature is present; false while more pieces are expected
    pub complete: bool,
    /// The detached signature, ASCII-armored; present once complete
    #[serde(skip_serializing_if = "Option::is_none")]
    pub signature: Option<String>,
    /// Fingerprint of the signing key, in hexadecimal
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fingerprint: Option<String>,
    /// Key and digest algorithms, such as `EdDSA with SHA512`
    #[serde(skip_serializing_if = "Option::is_none")]
    pub algorithm: Option<String>,
    /// Time of signing: RFC 3339, UTC
    #[serde(skip_serializing_if = "Option::is_none")]
    pub time: Option<String>,
    /// The signing key's public part, ASCII-armored, so that the signature can be verified
    #[serde(skip_serializing_if = "Option::is_none")]
    pub public_key: Option<String>,
    /// With `public_key` requested: the fingerprints of the key and of its subkeys that can sign, in hexadecimal
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fingerprints: Option<Vec<String>>,
    /// With `public_key` requested: true if what signs can also certify keys, as a primary key can
    #[serde(skip_serializing_if = "Option::is_none")]
    pub certifies: Option<bool>,
    /// With `public_key` requested: the user IDs of the key
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user_ids: Option<Vec<String>>,
}

/// Output of `ssh_sign`.
#[derive(Debug, Clone, Serialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct SshSigned {
    /// The signature in the agent's wire format, in base64
    pub signature: Payload,
    /// What it is for: `git`, `file:NAMESPACE`, or `login to SHA256:… as USER`
    pub purpose: String,
}

/// Output of `clipboard_get`.
#[derive(Clone, Serialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct Clipboard {
    /// The text on the clipboard; empty if an image is there, or nothing
    pub text: String,
    /// Length of the text in bytes of UTF-8, or of the image
    pub bytes: u64,
    /// The image on the clipboard: a PNG in base64; omitted if only one copy was requested, which is the result's image
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image: Option<Payload>,
}

impl std::fmt::Debug for Clipboard {
    /// Shows the length of the text, never the text.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Clipboard({} bytes)", self.bytes)
    }
}

/// Output of `clipboard_set`.
#[derive(Debug, Clone, Serialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct Clipped {
    /// Length of the text in bytes of UTF-8, or of the image
    pub bytes: u64,
}

/// Output of `file_accept`.
#[derive(Debug, Clone, Serialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct Accepted {
    /// Path of the file, relative to the portal
    pub path: String,
    /// Bytes received so far; once complete, size of the file
    pub size: u64,
    /// True once the file is in place; false while more pieces are expected
    pub complete: bool,
    /// SHA-256 of the file, in hexadecimal; present once complete; with `resume`, that of what was received
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
    /// True if a file with this path and the announced `sha256` was there already, so that nothing was written
    #[serde(skip_serializing_if = "Option::is_none")]
    pub existed: Option<bool>,
}

/// Output of `file_provide`.
#[derive(Debug, Clone, Default, Serialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct Provided {
    /// Path of the file, relative to the portal
    pub path: String,
    /// Size of the whole file in bytes; of a folder, the number of its entries
    pub size: u64,
    /// Offset of this piece, in bytes; of a folder, the number of entries skipped
    pub offset: u64,
    /// Bytes in this piece; of a folder, entries in this answer
    pub length: u64,
    /// True if this piece reaches the end
    pub complete: bool,
    /// The content of this piece, in base64; omitted if only one copy was requested, which is then the result's text
    #[serde(skip_serializing_if = "Option::is_none")]
    pub data: Option<Payload>,
    /// SHA-256 of the whole file, in hexadecimal; present with the last piece if the pieces were read in order from 0
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
    /// Permissions of the file in octal, without special bits
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mode: Option<String>,
    /// Time of the file's last change: RFC 3339, UTC
    #[serde(skip_serializing_if = "Option::is_none")]
    pub modified: Option<String>,
    /// With `entries` requested: the names of the folder's files and, with a `/` at the end, of its folders
    #[serde(skip_serializing_if = "Option::is_none")]
    pub entries: Option<Vec<String>>,
    /// With `entries` requested: the number of entries that cannot be read, such as links, and are not listed
    #[serde(skip_serializing_if = "Option::is_none")]
    pub left_out: Option<u64>,
}

/// Parses the time of a file's last change.
///
/// # Errors
///
/// It is not a time in RFC 3339.
pub fn time_of_change(text: &str) -> Result<jiff::Timestamp, BadArguments> {
    text.parse()
        .map_err(|_| "`modified` is not a time in RFC 3339, such as 2026-07-01T12:00:00Z".into())
}

/// Formats the time of a file's last change, in seconds since 1970 and nanoseconds; `None` if RFC 3339 cannot express it.
#[must_use]
pub fn changed_at(second: i64, nanosecond: u64) -> Option<String> {
    let nanosecond = i32::try_from(nanosecond).ok()?;
    let time = jiff::Timestamp::new(second, nanosecond).ok()?;
    Some(time.to_string())
}

/// Output of `notify`.
#[derive(Debug, Clone, Serialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct Notified {
    /// True if the message was shown; false if it was only noted in a file, because the user has no session
    pub shown: bool,
}

/// Bytes in base64 that have not been decoded yet.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
#[schemars(inline, extend("contentEncoding" = "base64"))]
pub struct Payload(String);

impl Payload {
    /// Wraps base64 text.
    #[must_use]
    pub const fn of(base64: String) -> Self {
        Self(base64)
    }

    /// Decodes strict RFC 4648 base64 with padding, at most [`ONE_CALL_MAX`] bytes.
    ///
    /// # Errors
    ///
    /// Returns the fault; the message does not repeat any of the content.
    pub fn decode(&self) -> Result<Vec<u8>, BadArguments> {
        Self::decode_text(&self.0)
    }

    /// Decodes text as [`Self::decode`] does.
    ///
    /// # Errors
    ///
    /// Returns the fault; the message does not repeat any of the content.
    pub fn decode_text(text: &str) -> Result<Vec<u8>, BadArguments> {
        let bytes = decoded_length(text);
        if bytes > ONE_CALL_MAX {
            return Err(BadArguments::from(format!(
                "`data` contains {bytes} bytes, but one call takes at most {ONE_CALL_MAX}; \
                 send it in pieces with `offset` and `final`"
            )));
        }
        STANDARD
            .decode(text)
            .map_err(|fault| refusal(&fault).into())
    }

    /// Decodes text as [`Self::decode_text`] does, if it is a PNG; the image itself is not decoded.
    ///
    /// # Errors
    ///
    /// Returns the fault; the message does not repeat any of the content.
    pub fn decode_png(text: &str) -> Result<Vec<u8>, BadArguments> {
        if decoded_length(text) > ONE_CALL_MAX {
            return Err(format!("`image` has more than {ONE_CALL_MAX} bytes").into());
        }
        let png = STANDARD.decode(text);
        let png = png.map_err(|_| BadArguments::from("`image` is not in base64"))?;
        if png.starts_with(PNG_START) {
            Ok(png)
        } else {
            Err("`image` is not a PNG".into())
        }
    }

    /// Returns the base64 text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Returns the length of the base64 text, in bytes.
    #[must_use]
    pub const fn encoded_length(&self) -> usize {
        self.0.len()
    }
}

impl std::fmt::Debug for Payload {
    /// Shows the length, never the content.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Payload({} bytes of base64)", self.0.len())
    }
}

/// Returns the decoded length of base64 text, in bytes.
fn decoded_length(text: &str) -> u64 {
    let padding = text.bytes().rev().take_while(|byte| *byte == b'=').count();
    let digits = u64::try_from(text.len().saturating_sub(padding)).unwrap_or(u64::MAX);
    // Four digits encode three bytes; the decoder checks an incomplete group.
    digits / 4 * 3 + digits % 4 * 3 / 4
}

/// Returns the reason why text is not valid base64, with the position but never the character.
fn refusal(fault: &DecodeError) -> String {
    let reason = match fault {
        DecodeError::InvalidByte(at, _) => {
            format!("character {} is not allowed there", at.saturating_add(1))
        }
        DecodeError::InvalidLastSymbol { .. } => "its last character has stray bits".to_owned(),
        DecodeError::InvalidLength(_) => "it ends in the middle of a group of four".to_owned(),
        DecodeError::InvalidPadding => "its padding with `=` is wrong".to_owned(),
    };
    format!("`data` is not base64 (with padding, no spaces, no line breaks): {reason}")
}

/// Faults in the arguments of a call: all of them, if the arguments are checked together.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", listed(.0))]
pub struct BadArguments(pub Vec<String>);

impl<T: Into<String>> From<T> for BadArguments {
    fn from(fault: T) -> Self {
        Self(vec![fault.into()])
    }
}

/// Joins the first faults: a caller that sends a million must not get a million back.
fn listed(faults: &[String]) -> String {
    const FAULTS_MAX: usize = 10;
    match faults.split_at_checked(FAULTS_MAX) {
        Some((first, more)) if !more.is_empty() => {
            format!("{}; and {} more", first.join("; "), more.len())
        }
        _ => faults.join("; "),
    }
}

#[cfg(test)]
mod tests;
