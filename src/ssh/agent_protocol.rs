//! The protocol of SSH agents (draft-ietf-sshm-ssh-agent): its messages, as far as they are used here, from both ends.

use std::io;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::time::timeout;

use super::SessionBind;
use super::wire::{WireReader, put_string};

/// Maximum length of a message, in bytes, as in OpenSSH.
const MESSAGE_MAX: u32 = 256 * 1024;
/// Maximum time for the rest of a message that has begun.
const MESSAGE_TIME: Duration = Duration::from_secs(10);
/// Maximum number of keys that are read from an agent.
const KEYS_MAX: usize = 1000;

const FAILURE: u8 = 5;
const SUCCESS: u8 = 6;
const REQUEST_IDENTITIES: u8 = 11;
const IDENTITIES_ANSWER: u8 = 12;
const SIGN_REQUEST: u8 = 13;
const SIGN_RESPONSE: u8 = 14;
const EXTENSION: u8 = 27;
const SESSION_BIND: &str = "session-bind@openssh.com";

/// A client's request.
#[derive(Debug, PartialEq, Eq)]
pub enum AgentRequest {
    /// List the keys.
    Identities,
    /// Sign with a key.
    Sign {
        /// The public key.
        key: Vec<u8>,
        /// The bytes to sign.
        data: Vec<u8>,
        /// The wanted algorithm.
        flags: u32,
    },
    /// The connection goes to a host.
    Bind(SessionBind),
    /// The same, but it cannot be read.
    UnreadableBind,
    /// Anything else: add, remove, lock, …
    Other,
}

/// An agent's answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AgentAnswer {
    /// The request was refused, or is not known.
    Failure,
    /// It was carried out.
    Success,
    /// Public keys, each with its comment.
    Identities(Vec<(Vec<u8>, String)>),
    /// A signature.
    Signature(Vec<u8>),
}

impl AgentRequest {
    /// Reads a message; one that is cut or has bytes left is `Other`, as is one of another type.
    #[must_use]
    pub fn parse(message: &[u8]) -> Self {
        Self::known(WireReader::new(message)).unwrap_or(Self::Other)
    }

    fn known(mut wire: WireReader<'_>) -> Option<Self> {
        let request = match wire.byte()? {
            REQUEST_IDENTITIES => Self::Identities,
            SIGN_REQUEST => Self::Sign {
                key: wire.string()?.to_vec(),
                data: wire.string()?.to_vec(),
                flags: wire.number()?,
            },
            EXTENSION if wire.text()? == SESSION_BIND => {
                let bind = SessionBind::parse(wire.rest());
                return Some(bind.map_or(Self::UnreadableBind, Self::Bind));
            }
            _ => return None,
        };
        wire.is_empty().then_some(request)
    }

    /// Writes the message; what could not be read is an empty one.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        match self {
            Self::Identities => bytes.push(REQUEST_IDENTITIES),
            Self::Sign { key, data, flags } => {
                bytes.push(SIGN_REQUEST);
                put_string(key, &mut bytes);
                put_string(data, &mut bytes);
                bytes.extend(flags.to_be_bytes());
            }
            Self::Bind(bind) => {
                bytes.push(EXTENSION);
                put_string(SESSION_BIND.as_bytes(), &mut bytes);
                bytes.extend(bind.to_bytes());
            }
            Self::UnreadableBind | Self::Other => {}
        }
        bytes
    }
}

impl AgentAnswer {
    /// Reads a message; anything that is not known, cut or too long is a failure.
    #[must_use]
    pub fn parse(message: &[u8]) -> Self {
        Self::known(WireReader::new(message)).unwrap_or(Self::Failure)
    }

    fn known(mut wire: WireReader<'_>) -> Option<Self> {
        let answer = match wire.byte()? {
            SUCCESS => Self::Success,
            IDENTITIES_ANSWER => {
                let count = usize::try_from(wire.number()?).ok()?;
                let mut keys = Vec::new();
                for _ in 0..count.min(KEYS_MAX) {
                    let key = wire.string()?.to_vec();
                    let comment = String::from_utf8_lossy(wire.string()?).into_owned();
                    keys.push((key, comment));
                }
                return Some(Self::Identities(keys));
            }
            SIGN_RESPONSE => Self::Signature(wire.string()?.to_vec()),
            _ => return None,
        };
        wire.is_empty().then_some(answer)
    }

    /// Writes the message.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        match self {
            Self::Failure => bytes.push(FAILURE),
            Self::Success => bytes.push(SUCCESS),
            Self::Identities(keys) => {
                bytes.push(IDENTITIES_ANSWER);
                let count = u32::try_from(keys.len()).unwrap_or(u32::MAX);
                bytes.extend(count.to_be_bytes());
                for (key, comment) in keys {
                    put_string(key, &mut bytes);
                    put_string(comment.as_bytes(), &mut bytes);
                }
            }
            Self::Signature(signature) => {
                bytes.push(SIGN_RESPONSE);
                put_string(signature, &mut bytes);
            }
        }
        bytes
    }
}

/// Receives a message, without its length; `None` if the peer closed the connection between two messages.
///
/// # Errors
///
/// The connection fails or ends within a message, or the message is empty, longer than 256 KiB, or takes more than 10 s
/// once it has begun.
pub async fn receive(from: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<Vec<u8>>> {
    let mut length = [0; 4];
    if from.read(length.get_mut(..1).unwrap_or_default()).await? == 0 {
        return Ok(None);
    }
    let rest = timeout(MESSAGE_TIME, async {
        from.read_exact(length.get_mut(1..).unwrap_or_default())
            .await?;
        let length = u32::from_be_bytes(length);
        if length == 0 || length > MESSAGE_MAX {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let mut message = Vec::new();
        from.take(length.into()).read_to_end(&mut message).await?;
        if u32::try_from(message.len()) == Ok(length) {
            Ok(message)
        } else {
            Err(io::Error::from(io::ErrorKind::UnexpectedEof))
        }
    });
    rest.await?.map(Some)
}

/// Sends a message with its length.
///
/// # Errors
///
/// The connection fails.
pub async fn send(message: &[u8], to: &mut (impl AsyncWrite + Unpin)) -> io::Result<()> {
    let mut framed = Vec::with_capacity(4 + message.len());
    put_string(message, &mut framed);
    to.write_all(&framed).await?;
    to.flush().await
}
