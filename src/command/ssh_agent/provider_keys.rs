//! The keys of all `ssh_sign` services of this machine, and their signatures.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, HashSet};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures_util::future::join_all;
use serde_json::{Map, Value};
use tokio::sync::{Mutex, Semaphore};
use tokio::time::timeout;

use crate::cli::ChannelArgs;
use crate::command::mcp::{ServerClient, connected, is_invalid};
use crate::command::output::Output;
use crate::command::service::{call, services_of, structured, text};
use crate::error::{Exit, Failure};
use crate::mcp::PUBLIC_KEY_KEY;
use crate::mcp::client::ClientError;
use crate::name::{ServiceName, ToolName};
use crate::ssh::{SessionBind, SshKey};
use crate::text::escaped;
use crate::transport;

/// How long a provider may take to list its keys.
const LIST_MAX: Duration = Duration::from_secs(3);
/// How long a list is used before the providers are asked again: a rebase signs many commits in a second.
const LIST_AGE: Duration = Duration::from_secs(1);
/// Maximum number of signatures that one provider makes at once; providers limit a consumer's connections.
const SIGNATURES_MAX: usize = 4;
/// Maximum number of keys of one provider.
const KEYS_MAX: usize = 20;
/// Maximum length of the keys and comments that a client gets, in bytes; clients accept messages of 256 KiB.
const LIST_BYTES_MAX: usize = 200 * 1024;

/// A key, and the service that signs with it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct ServiceKey {
    provider: String,
    service: ServiceName,
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

/// Why nobody signed.
#[derive(Default)]
struct Unsigned {
    /// One for each service that was asked.
    reasons: Vec<String>,
    /// True if one of them is not there any more.
    is_gone: bool,
}

/// The keys that the providers listed last.
pub(super) struct ProviderKeys {
    output: Output,
    listed: RefCell<Vec<ServiceKey>>,
    /// Number of times that the providers were asked.
    rounds: Cell<u64>,
    /// The time of the last one.
    asked: Cell<Option<Instant>>,
    asking: Mutex<()>,
    signatures: RefCell<HashMap<String, Arc<Semaphore>>>,
}

impl ProviderKeys {
    pub(super) fn new(output: &Output) -> Rc<Self> {
        Rc::new(Self {
            output: output.clone(),
            listed: RefCell::default(),
            rounds: Cell::default(),
            asked: Cell::default(),
            asking: Mutex::default(),
            signatures: RefCell::default(),
        })
    }

    /// Returns each key of the providers once, with a comment that names its service.
    pub(super) async fn list(&self) -> Vec<(Vec<u8>, String)> {
        // Without any key, the reason is said each time.
        if self.is_old() || self.listed.borrow().is_empty() {
            self.ask().await;
        }
        let (mut keys, mut bytes) = (Vec::<(Vec<u8>, String)>::new(), 0);
        for one in self.listed.borrow().iter() {
            let blob = one.key.blob();
            let (provider, service) = (&one.provider, &one.service);
            let comment = format!("{provider}/{service} {}", one.key.comment());
            bytes += blob.len() + comment.len();
            if bytes <= LIST_BYTES_MAX && !keys.iter().any(|(known, _)| known == blob) {
                keys.push((blob.to_vec(), comment.trim_end().to_owned()));
            }
        }
        keys
    }

    /// Asks all providers, at the same time. Clients that wait for the same answers share them.
    async fn ask(&self) {
        let before = self.rounds.get();
        let _one_at_a_time = self.asking.lock().await;
        // Of two rounds, the second began after this call.
        if self.rounds.get() > before + 1 {
            return;
        }
        let providers = transport::providers().unwrap_or_else(|why| {
            self.warn(&why.to_string());
            Vec::new()
        });
        let asked = providers.iter().map(|provider| self.keys_of(provider));
        let keys: Vec<ServiceKey> = join_all(asked).await.into_iter().flatten().collect();
        if keys.is_empty() {
            self.warn(
                "no provider offers this machine an `ssh_sign` service; ask the operator for one",
            );
        }
        self.listed.replace(keys);
        self.rounds.set(self.rounds.get() + 1);
        self.asked.set(Some(Instant::now()));
    }

    /// Asks a provider for its keys. One that fails is named on stderr; one that is slow keeps those that it had.
    async fn keys_of(&self, provider: &str) -> Vec<ServiceKey> {
        let mut found = Vec::new();
        let asked = self.connect(provider, async |server| {
            let tools = server.tools().await?;
            for (service, key) in services_of(ToolName::SshSign, &tools, PUBLIC_KEY_KEY) {
                // A hostile provider may send anything.
                if let (Ok(service), Ok(key)) = (service.parse(), SshKey::parse(key))
                    && found.len() < KEYS_MAX
                {
                    found.push(ServiceKey {
                        provider: provider.to_owned(),
                        service,
                        key,
                    });
                }
            }
            Ok(Exit::Done)
        });
        match timeout(LIST_MAX, asked).await {
            Ok(Ok(())) => found,
            Ok(Err(why)) => {
                self.warn(&format!("{}: {}", escaped(provider), reason(&why)));
                Vec::new()
            }
            Err(_) => {
                let seconds = LIST_MAX.as_secs();
                self.warn(&format!(
                    "{}: no answer within {seconds} s",
                    escaped(provider)
                ));
                let listed = self.listed.borrow();
                let known = listed.iter().filter(|one| one.provider == provider);
                known.cloned().collect()
            }
        }
    }

    /// Asks the services with this key in turn until one signs. If none does, writes the reasons to stderr.
    pub(super) async fn sign(&self, wanted: &WantedSignature<'_>) -> Option<Vec<u8>> {
        let mut services = self.with_key(wanted.key);
        if services.is_empty() && self.is_old() {
            // The client knows the key from elsewhere, or a service is new.
            self.ask().await;
            services = self.with_key(wanted.key);
        }
        let mut asked = self.ask_each(&services, wanted).await;
        if asked.as_ref().is_err_and(|refused| refused.is_gone) && self.is_old() {
            // A service was renamed or removed since the last list.
            self.ask().await;
            services = self.with_key(wanted.key);
            asked = self.ask_each(&services, wanted).await;
        }
        let mut reasons = match asked {
            Ok(signature) => return Some(signature),
            Err(refused) => refused.reasons,
        };
        if services.is_empty() {
            let key = SshKey::from_blob(wanted.key);
            let key = key.map_or_else(|_| "this key".to_owned(), |key| key.fingerprint());
            reasons.push(format!(
                "no service signs with {key}; ask the operator for one"
            ));
        }
        for reason in &reasons {
            self.warn(reason);
        }
        None
    }

    /// Asks services in turn until one signs. A provider whose answer is not a refusal by its policy is asked only once: a
    /// person may have said no there.
    async fn ask_each(
        &self,
        services: &[ServiceKey],
        wanted: &WantedSignature<'_>,
    ) -> Result<Vec<u8>, Unsigned> {
        let (mut unsigned, mut done) = (Unsigned::default(), HashSet::new());
        for one in services {
            let (provider, service) = (&one.provider, &one.service);
            if done.contains(provider) {
                continue;
            }
            let (why, is_refused) = match self.signature_of(one, wanted).await {
                Ok(signature) => return Ok(signature),
                Err(failed) => failed,
            };
            let client = why.downcast_ref::<ClientError>();
            unsigned.is_gone |= client.is_some_and(is_invalid);
            let reason = format!("{}/{service}: {}", escaped(provider), reason(&why));
            unsigned.reasons.push(reason);
            if !is_refused {
                done.insert(provider);
            }
        }
        Err(unsigned)
    }

    /// Returns whether the list is so old that the providers are asked again.
    fn is_old(&self) -> bool {
        self.asked
            .get()
            .is_none_or(|asked| asked.elapsed() > LIST_AGE)
    }

    fn with_key(&self, key: &[u8]) -> Vec<ServiceKey> {
        let listed = self.listed.borrow();
        let fitting = listed.iter().filter(|one| one.key.blob() == key);
        fitting.cloned().collect()
    }

    /// Has a service sign. The error says whether the service's policy refused.
    async fn signature_of(
        &self,
        one: &ServiceKey,
        wanted: &WantedSignature<'_>,
    ) -> Result<Vec<u8>, (anyhow::Error, bool)> {
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
        let permits = {
            let mut permits = self.signatures.borrow_mut();
            let permits = permits.entry(one.provider.clone());
            Arc::clone(permits.or_insert_with(|| Arc::new(Semaphore::new(SIGNATURES_MAX))))
        };
        let _permit = permits.acquire().await;
        let (mut signature, mut is_refused) = (Vec::new(), false);
        let asked = self.connect(&one.provider, async |server| {
            let called = call(server, one.service.as_str(), &arguments).await?;
            is_refused = called.is_refused();
            signature = STANDARD.decode(text(&structured(&called)?, "signature")?)?;
            // Another provider may have listed this key.
            one.key
                .verify_signature(wanted.data, wanted.flags, &signature)
                .context("the provider's answer is not a signature with this key")?;
            Ok(Exit::Done)
        });
        match asked.await {
            Ok(()) => Ok(signature),
            Err(why) => Err((why, is_refused)),
        }
    }

    async fn connect(
        &self,
        provider: &str,
        talk: impl AsyncFnOnce(&mut ServerClient) -> anyhow::Result<Exit>,
    ) -> anyhow::Result<()> {
        let channel = ChannelArgs {
            instance: Some(provider.to_owned()),
            ..ChannelArgs::default()
        };
        connected(&channel, &self.output, async |server, _| talk(server).await).await?;
        Ok(())
    }

    /// Tells the person who started the agent.
    pub(super) fn warn(&self, line: &str) {
        self.output.say(&format!("anklume ssh-agent: {line}"));
    }
}

/// Returns the reason of a failure, and its next step.
fn reason(why: &anyhow::Error) -> String {
    match why.downcast_ref::<Failure>() {
        Some(Failure {
            message,
            help: Some(help),
            ..
        }) => format!("{message}; {help}"),
        _ => format!("{why:#}"),
    }
}
