//! Serves one client: lists keys, forwards signing requests, and remembers to which hosts the client connects.

use std::sync::Arc;
use std::time::Duration;

use tokio::net::UnixStream;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::spawn_local;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::provider_keys::{ProviderKeys, WantedSignature};
use crate::ssh::SessionBind;
use crate::ssh::agent_protocol::{AgentAnswer, AgentRequest, receive, send};

/// Maximum number of session binds on one connection, as in OpenSSH.
const BINDS_MAX: usize = 16;
/// Idle deadline for a connection that another machine may use: it must not keep local clients out.
const FORWARDED_IDLE: Duration = Duration::from_secs(60);
/// Idle deadline for other connections.
const IDLE: Duration = Duration::from_secs(60 * 60);
/// Time that a client has for its first message.
const FIRST_MAX: Duration = Duration::from_secs(10);

/// Answers a client until it closes the connection or sends something that is not a message.
/// `forwarded` limits the connections that another machine may use.
pub(super) async fn serve(stream: UnixStream, keys: &ProviderKeys, forwarded: &Arc<Semaphore>) {
    let (mut reader, mut writer) = stream.into_split();
    let (requests, mut queue) = mpsc::channel(1);
    let closed = CancellationToken::new();
    let ends = closed.clone().drop_guard();
    // A client that hangs up must not keep a person waiting at the provider.
    let reading = spawn_local(async move {
        while let Ok(Some(message)) = receive(&mut reader).await {
            if requests.send(message).await.is_err() {
                break;
            }
        }
        drop(ends);
    });
    let mut client = ClientState::default();
    let (mut permit, mut idle) = (None, FIRST_MAX);
    loop {
        let Ok(Some(message)) = timeout(idle, queue.recv()).await else {
            break;
        };
        let answer = tokio::select! {
            answer = client.answer(AgentRequest::parse(&message), keys) => answer,
            () = closed.cancelled() => break,
        };
        if send(&answer.to_bytes(), &mut writer).await.is_err() {
            break;
        }
        idle = IDLE;
        if client.may_be_forwarded {
            idle = FORWARDED_IDLE;
            permit = permit.or_else(|| Arc::clone(forwarded).try_acquire_owned().ok());
            if permit.is_none() {
                break;
            }
        }
    }
    reading.abort();
}

/// What a client told about its connection.
#[derive(Debug, Default)]
struct ClientState {
    binds: Vec<SessionBind>,
    /// True once it cannot be ruled out that another machine uses the connection.
    may_be_forwarded: bool,
}

impl ClientState {
    async fn answer(&mut self, request: AgentRequest, keys: &ProviderKeys) -> AgentAnswer {
        match request {
            AgentRequest::Bind(bind) => self.bind(bind, keys),
            AgentRequest::UnreadableBind => {
                self.distrust();
                keys.warn("a session bind cannot be read; this connection gets no keys");
                AgentAnswer::Failure
            }
            AgentRequest::Identities if self.may_be_forwarded => {
                AgentAnswer::Identities(Vec::new())
            }
            AgentRequest::Identities => AgentAnswer::Identities(keys.list().await),
            AgentRequest::Sign { .. } if self.may_be_forwarded => {
                keys.warn("a signature was refused: another machine may use this connection");
                AgentAnswer::Failure
            }
            AgentRequest::Sign { key, data, flags } => {
                let wanted = WantedSignature {
                    key: &key,
                    data: &data,
                    flags,
                    binds: &self.binds,
                };
                let signature = keys.sign(&wanted).await;
                signature.map_or(AgentAnswer::Failure, AgentAnswer::Signature)
            }
            AgentRequest::Other => AgentAnswer::Failure,
        }
    }

    /// Notes to which host the client connects. A forwarded agent serves programs of that host; OpenSSH says so since 8.9.
    fn bind(&mut self, bind: SessionBind, keys: &ProviderKeys) -> AgentAnswer {
        if bind.is_forwarding() {
            self.distrust();
            return AgentAnswer::Success;
        }
        let fault = match bind.check() {
            Err(fault) => fault.to_string(),
            Ok(()) if self.binds.len() >= BINDS_MAX => format!("it is the {BINDS_MAX}th and more"),
            Ok(()) if self.may_be_forwarded => return AgentAnswer::Failure,
            Ok(()) => {
                self.binds.push(bind);
                return AgentAnswer::Success;
            }
        };
        if !self.may_be_forwarded {
            keys.warn(&format!(
                "a session bind is invalid: {fault}; this connection gets no keys"
            ));
        }
        self.distrust();
        AgentAnswer::Failure
    }

    fn distrust(&mut self) {
        self.may_be_forwarded = true;
        self.binds.clear();
    }
}
