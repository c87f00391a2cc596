//! Asks an SSH agent of the server's user, whose answers are not trusted.

use std::path::Path;
use std::time::Duration;

use tokio::net::UnixStream;
use tokio::time::timeout;

use crate::ssh::agent_protocol::{AgentAnswer, AgentRequest, receive, send};
use crate::ssh::{SignatureRequest, SshKey};
use crate::tool::ToolError;

/// Maximum time for which an agent may look up its keys.
const LIST_MAX: Duration = Duration::from_secs(2);
/// Maximum time for a signature: an agent may ask its user to confirm, or to touch a security key.
const SIGN_MAX: Duration = Duration::from_secs(60);

/// Nothing listens on the socket, or it does not answer in time as an agent does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct NoAnswer;

/// Returns whether the agent on this socket has the key.
pub(super) async fn holds(socket: &Path, key: &SshKey) -> Result<bool, NoAnswer> {
    match ask(socket, &AgentRequest::Identities, LIST_MAX).await? {
        AgentAnswer::Identities(keys) => Ok(keys.iter().any(|(blob, _)| blob == key.blob())),
        _ => Err(NoAnswer),
    }
}

/// Has the agent on this socket sign.
pub(super) async fn sign(socket: &Path, request: &SignatureRequest) -> Result<Vec<u8>, ToolError> {
    let message = AgentRequest::Sign {
        key: request.key.blob().to_vec(),
        data: request.data.clone(),
        flags: request.flags,
    };
    match ask(socket, &message, SIGN_MAX).await {
        Ok(AgentAnswer::Signature(signature)) => Ok(signature),
        Ok(_) => {
            let text = "the provider's agent has the key, but refused to sign with it";
            Err(ToolError::Refused(text.to_owned()))
        }
        Err(NoAnswer) => {
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
        let mut stream = UnixStream::connect(socket).await?;
        send(&request.to_bytes(), &mut stream).await?;
        receive(&mut stream).await
    });
    match asked.await {
        Ok(Ok(Some(answer))) => Ok(AgentAnswer::parse(&answer)),
        _ => Err(NoAnswer),
    }
}
