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

/// Returns whether the agent on this socket has the key.
pub(super) async fn holds(
    socket: &Path,
    key: &SshKey,
    patience: Duration,
) -> Result<bool, NoAnswer> {
    match ask(socket, &AgentRequest::Identities, patience).await? {
        AgentAnswer::Identities(keys) => Ok(keys.iter().any(|(blob, _)| blob == key.blob())),
        _ => Err(NoAnswer::Silent),
    }
}

/// Has the agent on this socket sign.
pub(super) async fn sign(socket: &Path, request: &SignatureRequest) -> Result<Vec<u8>, ToolError> {
    let message = AgentRequest::Sign {
        key: request.key.blob().to_vec(),
        data: request.data.clone(),
        flags: request.flags,
    };
    match ask(socket, &message, PERSON_MAX).await {
        Ok(AgentAnswer::Signature(signature)) => Ok(signature),
        Ok(_) => {
            let text = "the provider's agent has the key, but refused to sign with it; it may be locked, or nobody confirmed";
            Err(ToolError::Refused(text.to_owned()))
        }
        Err(_) => {
            let text = "the provider's agent has the key, but gave no answer when asked to sign";
            Err(ToolError::TimedOut(text.to_owned()))
        }
    }
}

async fn ask(
    socket: &Path,
    request: &AgentRequest,
    max: Duration,
) -> Result<AgentAnswer, NoAnswer> {
    let asked = timeout(max, async {
        let mut stream = UnixStream::connect(socket).await.map_err(|why| {
            // Any other error, such as a full queue, may be that of an agent which waits for its user.
            match why.kind() {
                ErrorKind::NotFound | ErrorKind::ConnectionRefused => NoAnswer::NoAgent,
                _ => NoAnswer::Silent,
            }
        })?;
        let sent = send(&request.to_bytes(), &mut stream).await;
        sent.map_err(|_| NoAnswer::Silent)?;
        match receive(&mut stream).await {
            Ok(Some(answer)) => Ok(AgentAnswer::parse(&answer)),
            _ => Err(NoAnswer::Silent),
        }
    });
    asked.await.unwrap_or(Err(NoAnswer::Silent))
}
