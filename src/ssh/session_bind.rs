//! Session binds: how an OpenSSH client tells its agent to which host a connection goes (OpenSSH, PROTOCOL.agent,
//! `session-bind@openssh.com`).

use super::key::SshKey;
use super::wire::{WireReader, put_string};

/// Maximum length of a session bind, in bytes: a host key, a session identifier, and a signature.
pub const BIND_MAX: usize = 16 * 1024;

/// One session bind: the host's signature over the session proves that the client talks to that host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionBind {
    host_key: Vec<u8>,
    session_id: Vec<u8>,
    signature: Vec<u8>,
    is_forwarding: bool,
}

/// The reason why a session bind proves nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BindFault {
    /// It belongs to another session than the login.
    #[error("it belongs to another session")]
    OtherSession,
    /// It belongs to another host than the login.
    #[error("it names another host key than the login")]
    OtherHost,
    /// Its host key is not supported, for instance because it is a certificate.
    #[error("its host key is not supported, like certificates and RSA keys beyond 4096 bits")]
    HostKey,
    /// The host did not sign the session.
    #[error("the host did not sign the session")]
    Signature,
}

impl SessionBind {
    /// Reads the part of the message that follows its name; `None` if it is anything else.
    #[must_use]
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        if bytes.len() > BIND_MAX {
            return None;
        }
        let mut wire = WireReader::new(bytes);
        let bind = Self {
            host_key: wire.string()?.to_vec(),
            session_id: wire.string()?.to_vec(),
            signature: wire.string()?.to_vec(),
            is_forwarding: wire.flag()?,
        };
        wire.is_empty().then_some(bind)
    }

    /// Writes it as [`Self::parse`] reads it.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        for string in [&self.host_key, &self.session_id, &self.signature] {
            put_string(string, &mut bytes);
        }
        bytes.push(self.is_forwarding.into());
        bytes
    }

    /// Returns whether the connection is for an agent that is forwarded to the host.
    #[must_use]
    pub const fn is_forwarding(&self) -> bool {
        self.is_forwarding
    }

    /// Checks that the host signed the session identifier, as a client does before it tells its agent.
    ///
    /// # Errors
    ///
    /// Returns what is wrong with the bind.
    pub fn check(&self) -> Result<(), BindFault> {
        self.verify(&self.key()?)
    }

    fn key(&self) -> Result<SshKey, BindFault> {
        SshKey::from_blob(&self.host_key).map_err(|_| BindFault::HostKey)
    }

    /// Checks that it belongs to this session and, if one is named, to this host; returns the host's key.
    pub(super) fn host_key(
        &self,
        session_id: &[u8],
        host_key: Option<&[u8]>,
    ) -> Result<SshKey, BindFault> {
        if self.session_id != session_id {
            return Err(BindFault::OtherSession);
        }
        if host_key.is_some_and(|key| key != self.host_key) {
            return Err(BindFault::OtherHost);
        }
        self.key()
    }

    /// Checks that this key, which must be that of the host, signed the session identifier.
    pub(super) fn verify(&self, host_key: &SshKey) -> Result<(), BindFault> {
        let signed = host_key.verify_any(&self.session_id, &self.signature);
        signed.map(drop).map_err(|_| BindFault::Signature)
    }
}
