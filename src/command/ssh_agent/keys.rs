//! The keys of all `ssh_sign` services of this machine, and their signatures.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures_util::future::join_all;
use serde_json::{Map, Value};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use crate::cli::ChannelArgs;
use crate::command::mcp::{ServerClient, connected};
use crate::command::output::Output;
use crate::command::service::{call, services_of, structured, text};
use crate::error::Exit;
use crate::mcp::PUBLIC_KEY_KEY;
use crate::name::ToolName;
use crate::ssh::{SessionBind, SshKey};
use crate::text::escaped;
use crate::transport;

/// Maximum time for which a provider may keep the others' keys waiting.
const LIST_MAX: Duration = Duration::from_secs(3);
/// Maximum number of conversations with providers at once; providers limit a consumer's connections.
const CONVERSATIONS_MAX: usize = 4;
/// Maximum number of keys, as a client may try each of them at a host.
const KEYS_MAX: usize = 100;

/// A key, and the service that signs with it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct ServiceKey {
    provider: String,
    service: String,
    key: SshKey,
}

/// A client's request for a signature.
#[derive(Debug, Clone, Copy)]
pub(super) struct WantedSignature<'a> {
    pub(super) key: &'a [u8],
    pub(super) data: &'a [u8],
    pub(super) flags: u32,
    pub(super) binds: &'a [SessionBind],
}

/// The keys that the providers listed last.
pub(super) struct Keys {
    output: Output,
    listed: RefCell<Vec<ServiceKey>>,
    conversations: Semaphore,
}

impl Keys {
    pub(super) fn new(output: &Output) -> Rc<Self> {
        Rc::new(Self {
            output: output.clone(),
            listed: RefCell::default(),
            conversations: Semaphore::new(CONVERSATIONS_MAX),
        })
    }

    /// Asks all providers for their keys; returns each key once, with the comment that names its service.
    pub(super) async fn list(&self) -> Vec<(Vec<u8>, String)> {
        self.ask().await;
        let mut keys: Vec<(Vec<u8>, String)> = Vec::new();
        for one in self.listed.borrow().iter() {
            let blob = one.key.blob();
            if keys.len() < KEYS_MAX && !keys.iter().any(|(known, _)| known == blob) {
                let ServiceKey {
                    provider,
                    service,
                    key,
                } = one;
                let comment = format!("{} ({provider}/{service})", key.comment());
                keys.push((blob.to_vec(), comment.trim_start().to_owned()));
            }
        }
        keys
    }

    async fn ask(&self) {
        let providers = match transport::providers() {
            Ok(providers) => providers,
            Err(why) => {
                self.say(&why.to_string());
                Vec::new()
            }
        };
        let asked = providers.iter().map(|provider| self.keys_of(provider));
        let keys = join_all(asked).await.into_iter().flatten().collect();
        self.listed.replace(keys);
    }

    /// Asks a provider for its keys; a provider that does not answer is named on stderr.
    async fn keys_of(&self, provider: &str) -> Vec<ServiceKey> {
        let mut found = Vec::new();
        let asked = self.converse(provider, async |server| {
            let tools = server.tools().await?;
            for (service, key) in services_of(ToolName::SshSign, &tools, PUBLIC_KEY_KEY) {
                if let Ok(key) = SshKey::parse(key) {
                    found.push(ServiceKey {
                        provider: provider.to_owned(),
                        service: service.to_owned(),
                        key,
                    });
                }
            }
            Ok(Exit::Done)
        });
        match timeout(LIST_MAX, asked).await {
            Ok(Ok(())) => {}
            Ok(Err(why)) => self.say(&format!("{}: {why:#}", escaped(provider))),
            Err(_) => {
                let seconds = LIST_MAX.as_secs();
                self.say(&format!(
                    "{}: no answer within {seconds} s",
                    escaped(provider)
                ));
            }
        }
        found
    }

    /// Has one of the services that have the key sign; each reason why one does not is written to stderr.
    pub(super) async fn sign(&self, wanted: &WantedSignature<'_>) -> Option<Vec<u8>> {
        let mut services = self.with_key(wanted.key);
        if services.is_empty() {
            // The client knows the key from elsewhere, or a service is new.
            self.ask().await;
            services = self.with_key(wanted.key);
        }
        for one in &services {
            match self.signature_of(one, wanted).await {
                Ok(signature) => return Some(signature),
                Err(why) => self.say(&format!(
                    "{}/{}: {why:#}",
                    escaped(&one.provider),
                    escaped(&one.service)
                )),
            }
        }
        None
    }

    fn with_key(&self, key: &[u8]) -> Vec<ServiceKey> {
        let listed = self.listed.borrow();
        let fitting = listed.iter().filter(|one| one.key.blob() == key);
        fitting.cloned().collect()
    }

    async fn signature_of(
        &self,
        one: &ServiceKey,
        wanted: &WantedSignature<'_>,
    ) -> anyhow::Result<Vec<u8>> {
        let mut arguments = Map::new();
        arguments.insert("data".to_owned(), STANDARD.encode(wanted.data).into());
        if wanted.flags != 0 {
            arguments.insert("flags".to_owned(), wanted.flags.into());
        }
        if !wanted.binds.is_empty() {
            let binds = wanted.binds.iter();
            let binds = binds.map(|bind| Value::from(STANDARD.encode(bind.to_bytes())));
            arguments.insert("bind".to_owned(), binds.collect());
        }
        let mut signature = Vec::new();
        self.converse(&one.provider, async |server| {
            let called = call(server, &one.service, &arguments).await?;
            signature = STANDARD.decode(text(&structured(&called)?, "signature")?)?;
            Ok(Exit::Done)
        })
        .await?;
        Ok(signature)
    }

    /// Talks to a provider, once few enough other conversations are left.
    async fn converse(
        &self,
        provider: &str,
        talk: impl AsyncFnOnce(&mut ServerClient) -> anyhow::Result<Exit>,
    ) -> anyhow::Result<()> {
        let _place = self.conversations.acquire().await;
        let channel = ChannelArgs {
            instance: Some(provider.to_owned()),
            ..ChannelArgs::default()
        };
        connected(&channel, &self.output, async |server, _| talk(server).await).await?;
        Ok(())
    }

    /// Says why a program of another computer gets no signature.
    pub(super) fn refuse_forwarded(&self) {
        self.say("a signature was refused: the agent is forwarded to another computer");
    }

    fn say(&self, line: &str) {
        self.output.say(&format!("anklume ssh-agent: {line}"));
    }
}
