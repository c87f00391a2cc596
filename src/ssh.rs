//! SSH keys: what they may sign, how a signature is verified, and the protocol of their agents.
//!
//! A client's agent signs any bytes, so what a signature is for can only be learnt from those bytes. [`authorize`] is the one
//! place that does so, and refuses every byte that it does not know.

pub mod agent_protocol;
mod key;
mod session_bind;
mod signable;
mod wire;

use std::fmt;

use crate::text::{listed, shown};

pub use key::{InvalidSignature, KeyFault, SshKey, is_fingerprint};
pub use session_bind::{BIND_MAX, BindFault, SessionBind};
pub use signable::{DATA_MAX, NotSignable};

use signable::{Login, Signable};

/// The namespace of Git's signatures (`gpg.format = ssh`).
const GIT: &str = "git";
/// What stands before another namespace.
const FILE: &str = "file:";
/// The word for logins.
const LOGIN: &str = "login";
/// Maximum length of a namespace or a user in a message, in characters.
const SHOWN_MAX: usize = 80;

/// One of the things that a service may sign.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KeyUse {
    /// Commits and tags of Git: SSHSIG with the namespace `git`.
    Git,
    /// SSHSIG with this other namespace, as `ssh-keygen -Y sign -n NAMESPACE` makes.
    File(String),
    /// Logins to the hosts that the service names.
    Login,
}

impl KeyUse {
    /// Parses `git`, `file:NAMESPACE` or `login`.
    ///
    /// # Errors
    ///
    /// Returns what is wrong with the text.
    pub fn parse(text: &str) -> Result<Self, String> {
        match text {
            GIT => Ok(Self::Git),
            LOGIN => Ok(Self::Login),
            _ => match text.strip_prefix(FILE) {
                Some(GIT) => Err("write `git`, not `file:git`".to_owned()),
                Some(namespace) if signable::is_namespace(namespace) => {
                    Ok(Self::File(namespace.to_owned()))
                }
                _ => Err(format!(
                    "`{}` is not `git`, `login` or `file:NAMESPACE`, such as `file:releases`",
                    shown(text, SHOWN_MAX)
                )),
            },
        }
    }
}

impl fmt::Display for KeyUse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Git => f.write_str(GIT),
            Self::File(namespace) => write!(f, "{FILE}{namespace}"),
            Self::Login => f.write_str(LOGIN),
        }
    }
}

/// What one signature is for, as far as its bytes say so.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Purpose {
    /// A file, a commit or a tag.
    Content(KeyUse),
    /// A login as this user to the host with this key.
    Login {
        /// The account on the host.
        user: String,
        /// `SHA256:…`
        host: String,
    },
}

impl Purpose {
    /// Returns the same text, with the user as the client wrote it: at most 256 bytes, for the log.
    #[must_use]
    pub fn unescaped(&self) -> String {
        match self {
            Self::Content(content) => content.to_string(),
            // The user comes last, so that no name looks like another host.
            Self::Login { user, host } => format!("login to {host} as {user}"),
        }
    }
}

impl fmt::Display for Purpose {
    /// Writes, for example, `git`, `file:email`, or `login to SHA256:… as root`, in printable characters.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Content(key_use) => key_use.fmt(f),
            Self::Login { user, host } => {
                write!(f, "login to {host} as {}", shown(user, SHOWN_MAX))
            }
        }
    }
}

/// A request for a signature, and what the service allows.
#[derive(Debug, Clone)]
pub struct SignatureRequest {
    /// The service's key.
    pub key: SshKey,
    /// What it may sign.
    pub allow: Vec<KeyUse>,
    /// Fingerprints of the host keys to which logins may be signed.
    pub hosts: Vec<String>,
    /// The bytes to sign.
    pub data: Vec<u8>,
    /// The flags of the agent protocol: 0, or for RSA 2 (SHA-256) or 4 (SHA-512).
    pub flags: u32,
    /// What a client told its agent about its connection, in order.
    pub binds: Vec<SessionBind>,
}

/// The reason why something is not signed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The bytes are not of a kind that is ever signed.
    #[error(transparent)]
    NotSignable(#[from] NotSignable),
    /// The service does not allow it.
    #[error(
        "the service does not sign `{purpose}`, only {allowed}; ask the operator to add it to `allow`"
    )]
    NotAllowed {
        /// What it would be for.
        purpose: String,
        /// What is allowed, for a message.
        allowed: String,
    },
    /// The host is not listed.
    #[error(
        "the service does not sign {purpose}; ask the operator to add that host key to `hosts`"
    )]
    OtherHost {
        /// What it would be for.
        purpose: Purpose,
    },
    /// The login names another key.
    #[error("the login is for a different key than the service's")]
    OtherKey,
    /// RSA with SHA-1.
    #[error("RSA signatures with SHA-1 are refused; the client must ask for SHA-256 or SHA-512")]
    Sha1,
    /// The flags do not fit the key or the signed algorithm.
    #[error("the flags {flags} are not valid for {fits}")]
    Flags {
        /// As received.
        flags: u32,
        /// What they do not fit.
        fits: String,
    },
    /// The client did not say to which host its connection goes.
    #[error(
        "a login is signed only for a client that proves which host it talks to, as OpenSSH 8.9 and later do"
    )]
    Unbound,
    /// The connection to the agent came from another host.
    #[error("a login is not signed for a forwarded agent")]
    Forwarded,
    /// The session bind belongs to another session or host, or its signature is wrong.
    #[error("the session bind is invalid: {0}")]
    Bind(BindFault),
}

/// Decides what a signature would be for, and whether the service may make it.
///
/// # Errors
///
/// Returns the reason why nothing is signed; it repeats only names, cut and escaped.
pub fn authorize(request: &SignatureRequest) -> Result<Purpose, Refusal> {
    let algorithm = request.key.algorithm(request.flags)?;
    match signable::parse(&request.data)? {
        Signable::Content { namespace } => {
            let key_use = if namespace == GIT {
                KeyUse::Git
            } else {
                KeyUse::File(namespace)
            };
            allowed(request, &key_use)?;
            Ok(Purpose::Content(key_use))
        }
        Signable::Login(login) => {
            allowed(request, &KeyUse::Login)?;
            authorize_login(request, &login, algorithm)
        }
    }
}

fn allowed(request: &SignatureRequest, key_use: &KeyUse) -> Result<(), Refusal> {
    if request.allow.contains(key_use) {
        return Ok(());
    }
    let allowed = match request.allow.as_slice() {
        [] => "nothing".to_owned(),
        some => listed(
            &some
                .iter()
                .map(|key_use| format!("`{key_use}`"))
                .collect::<Vec<_>>(),
        ),
    };
    Err(Refusal::NotAllowed {
        purpose: key_use.to_string(),
        allowed,
    })
}

fn authorize_login(
    request: &SignatureRequest,
    login: &Login,
    algorithm: &str,
) -> Result<Purpose, Refusal> {
    if login.key != request.key.blob() {
        return Err(Refusal::OtherKey);
    }
    if login.algorithm != algorithm {
        return Err(Refusal::Flags {
            flags: request.flags,
            fits: format!("the algorithm `{}`", shown(&login.algorithm, SHOWN_MAX)),
        });
    }
    if request.binds.iter().any(SessionBind::is_forwarding) {
        return Err(Refusal::Forwarded);
    }
    let bind = request.binds.last().ok_or(Refusal::Unbound)?;
    let host_key = bind
        .host_key(&login.session_id, login.host_key.as_deref())
        .map_err(Refusal::Bind)?;
    let host = host_key.fingerprint();
    let is_listed = request.hosts.contains(&host);
    let user = login.user.clone();
    let purpose = Purpose::Login { user, host };
    if !is_listed {
        return Err(Refusal::OtherHost { purpose });
    }
    bind.verify(&host_key).map_err(Refusal::Bind)?;
    Ok(purpose)
}

#[cfg(test)]
mod tests;
