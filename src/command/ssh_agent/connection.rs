//! Serves one client: lists keys, passes on requests for signatures, and remembers to which hosts the client connects.

use tokio::net::UnixStream;

use super::keys::{Keys, WantedSignature};
use crate::ssh::SessionBind;
use crate::ssh::agent_protocol::{AgentAnswer, AgentRequest, receive, send};

/// Maximum number of session binds on one connection, as in OpenSSH.
const BINDS_MAX: usize = 16;

/// Answers a client until it closes the connection or sends something that is not a message.
pub(super) async fn serve(mut stream: UnixStream, keys: &Keys) {
    let mut client = AgentClient::default();
    while let Ok(Some(message)) = receive(&mut stream).await {
        let answer = client.answer(AgentRequest::parse(&message), keys).await;
        if send(&answer.to_bytes(), &mut stream).await.is_err() {
            return;
        }
    }
}

/// What a client told about its connection.
#[derive(Debug, Default)]
struct AgentClient {
    binds: Vec<SessionBind>,
    /// True once it cannot be known that requests come from this machine.
    is_foreign: bool,
}

impl AgentClient {
    async fn answer(&mut self, request: AgentRequest, keys: &Keys) -> AgentAnswer {
        match request {
            AgentRequest::Bind(bind) => self.bind(bind),
            // A forwarded agent serves programs of another computer; OpenSSH says so with a bind, since 8.9.
            AgentRequest::Identities if self.is_foreign => AgentAnswer::Identities(Vec::new()),
            AgentRequest::Identities => AgentAnswer::Identities(keys.list().await),
            AgentRequest::Sign { key, data, flags } if !self.is_foreign => {
                let wanted = WantedSignature {
                    key: &key,
                    data: &data,
                    flags,
                    binds: &self.binds,
                };
                let signature = keys.sign(&wanted).await;
                signature.map_or(AgentAnswer::Failure, AgentAnswer::Signature)
            }
            AgentRequest::Sign { .. } => {
                keys.refuse_forwarded();
                AgentAnswer::Failure
            }
            AgentRequest::Other => AgentAnswer::Failure,
        }
    }

    fn bind(&mut self, bind: SessionBind) -> AgentAnswer {
        if bind.is_forwarding() || self.binds.len() >= BINDS_MAX || !bind.is_signed() {
            self.is_foreign = true;
        }
        if bind.is_forwarding() || !self.is_foreign {
            self.binds.push(bind);
            AgentAnswer::Success
        } else {
            AgentAnswer::Failure
        }
    }
}
