//! Asks an SSH agent of the server's user, whose answers are not trusted.

use std::io::ErrorKind;
use std::path::Path;
use std::time::Duration;

use tokio::net::UnixStream;
use tokio::time::timeout;

use crate::ssh::agent_protocol::{AgentAnswer, AgentRequest, receive, send};
use crate::ssh::{SignatureRequest, SshKey};
use crate::tool::ToolError;

/// Maximum time for an answer: an agent may ask its user to confirm, or to touch a security key, and meanwhile answer nothing.
pub(super) const PERSON_MAX: Duration = Duration::from_secs(60);

/// The reason why there is no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NoAnswer {
    /// Nothing listens on the socket.
    NoAgent,
    /// There is an agent, which does not answer as one does, or not in time.
    Silent,
}

/// A connection to an agent that has a key.
#[derive(Debug)]
pub(super) struct KeyAgent(UnixStream);

impl KeyAgent {
    /// Connects to the agent on this socket; `None` if it does not have the key.
    pub(super) async fn with_key(
        socket: &Path,
        key: &SshKey,
        patience: Duration,
    ) -> Result<Option<Self>, NoAnswer> {
        let found = timeout(patience, async {
            let stream = UnixStream::connect(socket).await.map_err(|why| {
                // Any other error, such as a full queue, may be that of an agent which waits for its user.
                match why.kind() {
                    ErrorKind::NotFound | ErrorKind::ConnectionRefused => NoAnswer::NoAgent,
                    _ => NoAnswer::Silent,
                }
            })?;
            let mut agent = Self(stream);
            match agent.ask(&AgentRequest::Identities).await? {
                AgentAnswer::Identities(keys) => {
                    let has_key = keys.iter().any(|(blob, _)| blob == key.blob());
                    Ok(has_key.then_some(agent))
                }
                _ => Err(NoAnswer::Silent),
            }
        });
        found.await.unwrap_or(Err(NoAnswer::Silent))
    }

    /// Has the agent sign.
    pub(super) async fn sign(mut self, request: &SignatureRequest) -> Result<Vec<u8>, ToolError> {
        let message = AgentRequest::Sign {
            key: request.key.blob().to_vec(),
            data: request.data.clone(),
            flags: request.flags,
        };
        match timeout(PERSON_MAX, self.ask(&message)).await {
            Ok(Ok(AgentAnswer::Signature(signature))) => Ok(signature),
            Ok(Ok(_)) => {
                let text = "the provider's agent has the key, but refused to sign with it; it may be locked, or nobody confirmed";
                Err(ToolError::Refused(text.to_owned()))
            }
            Ok(Err(_)) | Err(_) => {
                let text =
                    "the provider's agent has the key, but gave no answer when asked to sign";
                Err(ToolError::TimedOut(text.to_owned()))
            }
        }
    }

    async fn ask(&mut self, request: &AgentRequest) -> Result<AgentAnswer, NoAnswer> {
        let sent = send(&request.to_bytes(), &mut self.0).await;
        sent.map_err(|_| NoAnswer::Silent)?;
        match receive(&mut self.0).await {
            Ok(Some(answer)) => Ok(AgentAnswer::parse(&answer)),
            _ => Err(NoAnswer::Silent),
        }
    }
}
