//! Reads what is to be signed. The formats are those of OpenSSH 9.2 (PROTOCOL.sshsig, RFC 4252 section 7, PROTOCOL
//! section 3.1); a byte that does not belong to one of them is refused.
//!
//! The two formats cannot be confused: `SSHS`, read as the length of a login's session identifier, is 1.4 GB.

use super::wire::WireReader;

/// Maximum length of what is signed, in bytes: a login with two large RSA keys and a long user name fits.
pub const DATA_MAX: usize = 8 * 1024;
/// The beginning of what `ssh-keygen -Y sign` signs.
const SSHSIG: &[u8] = b"SSHSIG";
/// Maximum length of a namespace, in bytes.
const NAMESPACE_MAX: usize = 128;
/// Maximum length of a user's name, in bytes.
const USER_MAX: usize = 256;
/// The lengths of the digests that may identify a session: SHA-1, SHA-256, SHA-384, SHA-512.
const SESSION_LENGTHS: [usize; 4] = [20, 32, 48, 64];
/// The number of `SSH_MSG_USERAUTH_REQUEST`.
const USERAUTH_REQUEST: u8 = 50;
const SERVICE: &str = "ssh-connection";
const PUBLIC_KEY: &str = "publickey";
const HOST_BOUND: &str = "publickey-hostbound-v00@openssh.com";

/// What is to be signed.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Signable {
    /// The digest of a file, a commit or a tag.
    Content {
        /// What the signature is valid for.
        namespace: String,
    },
    Login(Login),
}

/// A login to an SSH server.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Login {
    pub(super) session_id: Vec<u8>,
    pub(super) user: String,
    /// The algorithm of the signature.
    pub(super) algorithm: String,
    /// The user's key.
    pub(super) key: Vec<u8>,
    /// The host's key, which not every client and server agree to send.
    pub(super) host_key: Option<Vec<u8>>,
}

/// The bytes are not of a kind that is signed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NotSignable {
    /// They are too many.
    #[error("the data to sign is longer than {DATA_MAX} bytes")]
    TooLong,
    /// They begin as SSHSIG does, and go on otherwise.
    #[error("the data to sign is malformed SSHSIG data")]
    Content,
    /// They are neither SSHSIG nor a login.
    #[error("the data to sign is neither SSHSIG data (a file, commit or tag) nor a login request")]
    Unknown,
}

/// Reads the bytes to sign.
pub(super) fn parse(data: &[u8]) -> Result<Signable, NotSignable> {
    if data.len() > DATA_MAX {
        return Err(NotSignable::TooLong);
    }
    if data.starts_with(SSHSIG) {
        as_content(data).ok_or(NotSignable::Content)
    } else {
        as_login(data).ok_or(NotSignable::Unknown)
    }
}

/// Reads SSHSIG data.
pub(super) fn as_content(data: &[u8]) -> Option<Signable> {
    content(WireReader::new(data.strip_prefix(SSHSIG)?))
}

/// Reads the request of a login.
pub(super) fn as_login(data: &[u8]) -> Option<Signable> {
    login(WireReader::new(data))
}

fn content(mut wire: WireReader<'_>) -> Option<Signable> {
    let namespace = wire.text()?;
    let reserved = wire.string()?;
    let digest_length = match wire.text()? {
        "sha256" => 32,
        "sha512" => 64,
        _ => return None,
    };
    let digest = wire.string()?;
    let is_known = is_namespace(namespace)
        && reserved.is_empty()
        && digest.len() == digest_length
        && wire.is_empty();
    let namespace = namespace.to_owned();
    is_known.then_some(Signable::Content { namespace })
}

fn is_namespace_byte(byte: u8) -> bool {
    // A `*` would look like a wildcard in `allow`.
    byte.is_ascii_graphic() && byte != b'*'
}

/// Returns whether text can be a namespace: printable ASCII without spaces.
pub(super) fn is_namespace(text: &str) -> bool {
    (1..=NAMESPACE_MAX).contains(&text.len()) && text.bytes().all(is_namespace_byte)
}

fn login(mut wire: WireReader<'_>) -> Option<Signable> {
    let session_id = wire.string()?.to_vec();
    let message = wire.byte()?;
    let user = wire.text()?.to_owned();
    let service = wire.text()?;
    let method = wire.text()?;
    let has_signature = wire.byte()?;
    let algorithm = wire.text()?.to_owned();
    let key = wire.string()?.to_vec();
    let host_key = match method {
        PUBLIC_KEY => None,
        HOST_BOUND => Some(wire.string()?.to_vec()),
        _ => return None,
    };
    let is_user = (1..=USER_MAX).contains(&user.len()) && !user.chars().any(char::is_control);
    let is_known = SESSION_LENGTHS.contains(&session_id.len())
        && message == USERAUTH_REQUEST
        && is_user
        && service == SERVICE
        && has_signature == 1
        && wire.is_empty();
    let login = Login {
        session_id,
        user,
        algorithm,
        key,
        host_key,
    };
    is_known.then_some(Signable::Login(login))
}
