//! Session binds: how an OpenSSH client tells its agent to which host a connection goes (OpenSSH, PROTOCOL.agent,
//! `session-bind@openssh.com`).

use super::key::SshKey;
use super::wire::{Wire, put};

/// Maximum length of a session bind, in bytes: a host key, a session, and a signature.
const BIND_MAX: usize = 16 * 1024;

/// One session bind: the host's signature over the session proves that the client talks to that host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionBind {
    host_key: Vec<u8>,
    session: Vec<u8>,
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
    /// Its host key is of a type that is not used here, such as a certificate.
    #[error("the type of its host key is not used here")]
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
        let mut wire = Wire::new(bytes);
        let bind = Self {
            host_key: wire.string()?.to_vec(),
            session: wire.string()?.to_vec(),
            signature: wire.string()?.to_vec(),
            is_forwarding: wire.flag()?,
        };
        wire.is_empty().then_some(bind)
    }

    /// Writes it as [`Self::parse`] reads it.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        for string in [&self.host_key, &self.session, &self.signature] {
            put(string, &mut bytes);
        }
        bytes.push(self.is_forwarding.into());
        bytes
    }

    /// Returns whether the connection is for an agent that is forwarded to the host.
    #[must_use]
    pub const fn is_forwarding(&self) -> bool {
        self.is_forwarding
    }

    /// Returns whether the host signed the session.
    #[must_use]
    pub fn is_signed(&self) -> bool {
        self.host().is_ok()
    }

    /// Checks that the host signed the session; returns its key.
    fn host(&self) -> Result<SshKey, BindFault> {
        let host = SshKey::of_blob(&self.host_key).map_err(|_| BindFault::HostKey)?;
        let signed = host.verify_any(&self.session, &self.signature);
        signed.map_err(|_| BindFault::Signature)?;
        Ok(host)
    }

    /// Checks that it belongs to this session and, if one is named, to this host; returns the host key's fingerprint.
    pub(super) fn verify(
        &self,
        session: &[u8],
        host_key: Option<&[u8]>,
    ) -> Result<String, BindFault> {
        if self.session != session {
            return Err(BindFault::OtherSession);
        }
        if host_key.is_some_and(|key| key != self.host_key) {
            return Err(BindFault::OtherHost);
        }
        Ok(self.host()?.fingerprint())
    }
}
