//! Makes a signature: chooses the signer first, and verifies the signature before it is handed out.

use std::io;
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::fs::{Access, access};
use tokio::sync::OwnedSemaphorePermit;

use super::fault::{CardFault, GpgFault, NoAgent, SOCKET_MAX};
use super::launcher::LauncherServer;
use super::message::Message;
use super::output::{self, GoodSignature, Signer};
use super::process::{GnuPg, RunningGpg};
use crate::catalogue::{SIGN_MAX, Signed};
use crate::tool::{Settings, ToolError, ToolOutcome};

/// A signature in progress: one gpg signs the content, and another verifies it with the signature that follows.
#[derive(Debug)]
pub(in crate::tool) struct Signing {
    gnupg: GnuPg,
    /// The key as the caller named it.
    pub(super) key: Option<String>,
    signer: Signer,
    signs: RunningGpg,
    verifies: RunningGpg,
    message: Message,
    /// Length of the content so far, in bytes.
    pub(super) size: u64,
    /// Its caller's permits: one for a signature, and one for a piecewise signature.
    _permits: Vec<OwnedSemaphorePermit>,
}

impl Signing {
    /// Begins a signature by this key, whose form the catalogue has checked, or else by the default key.
    pub(super) async fn begin(
        settings: &Arc<Settings>,
        key: Option<String>,
        permits: Vec<OwnedSemaphorePermit>,
    ) -> Result<Self, ToolError> {
        let started = async move {
            let gnupg = GnuPg::find(settings, key.as_deref()).await?;
            has_agent(&gnupg).await?;
            let signer = signer(&gnupg, key.as_deref()).await?;
            let user = signer.user();
            let sign = [
                "--status-fd",
                "2",
                "--armor",
                "--no-textmode",
                // Must be known before the first byte, so that the other gpg can verify the stream.
                "--digest-algo",
                "SHA512",
                "--local-user",
                &user,
                "--output",
                "-",
                "--detach-sign",
            ];
            let signs = gnupg.gpg(&sign, Stdio::piped())?;
            let verify = ["--status-fd", "1", "--trust-model", "always", "--verify"];
            let mut verifies = gnupg.gpg(&verify, Stdio::piped())?;
            let (message, start) = Message::new();
            verifies.feed(&start).await;
            Ok(Self {
                gnupg,
                key,
                signer,
                signs,
                verifies,
                message,
                size: 0,
                _permits: permits,
            })
        };
        within(settings.gpg_wait, started).await?
    }

    /// Feeds content to both programs; fails permanently beyond the limit, or if gpg refuses.
    pub(super) async fn take(mut self, data: &[u8]) -> Result<Self, ToolError> {
        self.size = grown(self.size, data)?;
        let part = self.message.add(data);
        let fed = async { tokio::join!(self.signs.feed(data), self.verifies.feed(&part)) };
        // A verifier that stops reading is noticed at the end.
        let (fed, _) = within(self.gnupg.settings.gpg_wait, fed).await?;
        if fed {
            return Ok(self);
        }
        // gpg ended before it had read everything: its output states the reason.
        match self.finish().await {
            Ok(_) => Err(GpgFault::Failed(None).into()),
            Err(reason) => Err(reason),
        }
    }

    /// Ends the content and waits for the signature and its verification.
    pub(super) async fn finish(self) -> Result<ToolOutcome, ToolError> {
        within(self.gnupg.settings.gpg_wait, self.complete()).await?
    }

    async fn complete(mut self) -> Result<ToolOutcome, ToolError> {
        let signed = self.signs.end().await?;
        if !signed.success || signed.stdout.is_empty() {
            let fault = output::fault(&signed.stderr, self.key);
            return Err(with_card(&self.gnupg, fault, self.signer.card)
                .await?
                .into());
        }
        let Some(rest) = self.message.end(&signed.stdout) else {
            return Err(GpgFault::NotGood("there is not exactly one signature").into());
        };
        self.verifies.feed(&rest).await;
        let verified = self.verifies.end().await?;
        let good = GoodSignature::read(&verified.stdout).map_err(GpgFault::NotGood)?;
        if !verified.success {
            return Err(GpgFault::NotGood("gpg does not consider it good").into());
        }
        if !self.signer.is(&good.fingerprint, &good.key) {
            return Err(GpgFault::NotGood("another key made it").into());
        }
        let signature = Signed {
            size: self.size,
            complete: true,
            signature: Some(signed.stdout.clone()),
            algorithm: Some(good.algorithm()),
            time: Some(good.time()),
            public_key: Some(export(&self.gnupg, &good.key).await?),
            fingerprint: Some(good.fingerprint),
            ..Signed::default()
        };
        ToolOutcome::new(signed.stdout, &signature)
    }
}

/// Returns the public part of the key that would sign; signs nothing.
pub(super) async fn public_key(
    settings: &Arc<Settings>,
    key: Option<String>,
) -> Result<ToolOutcome, ToolError> {
    let found = async move {
        let gnupg = GnuPg::find(settings, key.as_deref()).await?;
        has_agent(&gnupg).await?;
        let signer = signer(&gnupg, key.as_deref()).await?;
        let armored = export(&gnupg, &signer.key).await?;
        let list = [
            "--with-colons",
            "--with-subkey-fingerprint",
            "--list-keys",
            "--",
        ];
        let listed = gnupg.run(&[&list[..], &[&*signer.key]].concat()).await?;
        if !listed.success {
            return Err(GpgFault::Failed(None).into());
        }
        let public = output::public(&listed.stdout);
        let answer = Signed {
            complete: true,
            certifies: Some(signer.certifies),
            fingerprint: Some(signer.key),
            public_key: Some(armored.clone()),
            fingerprints: Some(match signer.exactly {
                Some(subkey) => vec![subkey],
                None => public.fingerprints,
            }),
            user_ids: Some(public.user_ids),
            ..Signed::default()
        };
        ToolOutcome::new(armored, &answer)
    };
    within(settings.gpg_wait, found).await?
}

/// Adds the length of more content, up to the limit for a signature.
fn grown(size: u64, more: &[u8]) -> Result<u64, ToolError> {
    let size = size.saturating_add(u64::try_from(more.len()).unwrap_or(u64::MAX));
    if size > SIGN_MAX {
        return Err(ToolError::TooLarge(format!(
            "a signature covers at most {SIGN_MAX} bytes; sign a digest of the content instead"
        )));
    }
    Ok(size)
}

/// Waits for gpg, up to a time limit.
async fn within<T>(limit: Duration, work: impl Future<Output = T>) -> Result<T, ToolError> {
    tokio::time::timeout(limit, work).await.map_err(|_| {
        ToolError::TimedOut(format!(
            "gpg did not answer within {} s and was killed; a pinentry may be waiting for a passphrase on the provider",
            limit.as_secs()
        ))
    })
}

/// Starts gpg-agent, and keyboxd if it keeps the public keys, unless they are running. They outlive this process, so a
/// passphrase is asked for only once.
async fn has_agent(gnupg: &GnuPg) -> Result<(), ToolError> {
    if gnupg.configuration.uses_keyboxd {
        // If keyboxd does not start, gpg itself reports that.
        gnupg.launch(LauncherServer::Keyboxd).await?;
    }
    if answers(gnupg).await? {
        return Ok(());
    }
    gnupg.launch(LauncherServer::Agent).await?;
    if answers(gnupg).await? {
        return Ok(());
    }
    let socket = gnupg.folder("agent-socket").await?;
    let bytes = socket.as_os_str().len();
    if bytes > SOCKET_MAX {
        return Err(GpgFault::NoAgent(NoAgent::LongPath { bytes }).into());
    }
    let home = gnupg.home().await?;
    let folders = [Some(home.as_path()), socket.parent()];
    let refused = |folder: &Path| access(folder, Access::WRITE_OK).err();
    let refused = folders.into_iter().flatten().find_map(refused);
    let fault = refused.map(|errno| NoAgent::ReadOnly(io::Error::from(errno).kind()));
    Err(GpgFault::NoAgent(fault.unwrap_or(NoAgent::Other)).into())
}

/// Returns whether gpg-agent is running.
async fn answers(gnupg: &GnuPg) -> Result<bool, ToolError> {
    let answered = gnupg.agent("GETINFO pid").await?;
    Ok(answered.stdout.lines().any(|line| line == "OK"))
}

/// Chooses the signer: the requested key, or the default one.
async fn signer(gnupg: &GnuPg, key: Option<&str>) -> Result<Signer, ToolError> {
    // As gpg does: the last default key that exists or, if `gpg.conf` names none, the first key that can sign.
    let defaults = &gnupg.configuration.default_keys;
    if key.is_some() || defaults.is_empty() {
        return choose(gnupg, key).await;
    }
    for named in defaults {
        match choose(gnupg, Some(named)).await {
            Err(ToolError::Gpg(GpgFault::NoSecretKey(_))) => {}
            chosen => return chosen,
        }
    }
    // Any other key would sign without the user's knowledge.
    Err(GpgFault::NoSecretKey(defaults.first().cloned()).into())
}

/// Chooses the first usable secret key that gpg knows by this name, or exactly one subkey if `!` follows an ID;
/// without a name, the first of all.
async fn choose(gnupg: &GnuPg, named: Option<&str>) -> Result<Signer, ToolError> {
    let id = named.and_then(|named| named.strip_suffix('!'));
    let exactly = id.map(|id| id.strip_prefix("0x").unwrap_or(id));
    let name = id.or(named);
    let options = ["--status-fd", "2", "--with-colons"];
    let list = ["--with-subkey-fingerprint", "--list-secret-keys", "--"];
    let arguments: Vec<&str> = options.into_iter().chain(list).chain(name).collect();
    let listed = gnupg.run(&arguments).await?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let now = now.map_or(0, |since| since.as_secs());
    let name = name.map(str::to_owned);
    let chosen = output::choose(&output::read_keys(&listed.stdout), exactly, now);
    chosen.map_err(|why| match why {
        Some((key, why)) => GpgFault::Unusable { key, why }.into(),
        None if listed.success => GpgFault::NoSecretKey(name).into(),
        None => output::fault(&listed.stderr, name).into(),
    })
}

/// Returns the fault, or that of the smartcard that holds the secret key.
async fn with_card(
    gnupg: &GnuPg,
    fault: GpgFault,
    card: Option<String>,
) -> Result<GpgFault, ToolError> {
    let Some(serial) = card else {
        return Ok(fault);
    };
    let answer = gnupg.agent("SCD SERIALNO").await?.stdout;
    let line = |start: &str| answer.lines().find_map(|line| line.strip_prefix(start));
    let why = match (line("S SERIALNO "), line("ERR ")) {
        (Some(inserted), _) if inserted.split(' ').next() != Some(&serial) => CardFault::Other,
        (Some(_), _) if fault == GpgFault::NoPinentry => CardFault::Locked,
        (Some(_), _) => return Ok(fault),
        (None, Some(error)) if output::is_no_card_daemon(error) => CardFault::NoDaemon,
        (None, _) => CardFault::Absent,
    };
    Ok(GpgFault::Card { serial, why })
}

/// Returns the public part of a key, ASCII-armored.
async fn export(gnupg: &GnuPg, key: &str) -> Result<String, ToolError> {
    let options = ["--armor", "--export-options", "export-minimal"];
    let arguments = [options.as_slice(), &["--export", key]].concat();
    let ended = gnupg.run(&arguments).await?;
    if ended.success && !ended.stdout.is_empty() {
        Ok(ended.stdout)
    } else {
        Err(GpgFault::Failed(Some("the public key cannot be exported".to_owned())).into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signature_in_pieces_has_a_limit() {
        assert_eq!(grown(SIGN_MAX - 2, b"xy").unwrap(), SIGN_MAX);
        assert_eq!(
            grown(SIGN_MAX - 1, b"xy").unwrap_err().to_string(),
            "a signature covers at most 4294967296 bytes; sign a digest of the content instead"
        );
    }
}
