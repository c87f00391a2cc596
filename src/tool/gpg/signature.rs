//! A signature while it is made: by whom is decided before, and whether it is good before anybody gets it.

use std::io;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::fs::{Access, access};

use super::configuration::Configuration;
use super::fault::{CardFault, GpgFault, NoAgent, SOCKET_MAX};
use super::keys::{self, Signer};
use super::launcher::LauncherServer;
use super::message::Message;
use super::process::{GnuPg, RunningGpg};
use super::status::{self, Good};
use crate::tool::{Settings, ToolError};

/// A signature in the making: one gpg signs what comes, another verifies it with the signature behind it.
#[derive(Debug)]
pub(super) struct Making {
    configuration: Configuration,
    signer: Signer,
    signs: RunningGpg,
    verifies: RunningGpg,
    message: Message,
}

/// A good signature.
#[derive(Debug)]
pub(super) struct Signature {
    /// ASCII-armored.
    pub(super) text: String,
    pub(super) good: Good,
    /// The public part of the key that made it, ASCII-armored.
    pub(super) public_key: String,
}

impl Making {
    /// Begins a signature by this key, which the catalogue has checked; without one, by the default key.
    pub(super) async fn begin(settings: &Settings, key: Option<&str>) -> Result<Self, ToolError> {
        let gnupg = GnuPg::find(settings, key).await?;
        has_agent(&gnupg).await?;
        let signer = signer(&gnupg, key).await?;
        let user = signer.user();
        let signs = gnupg.feed(&[
            "--status-fd",
            "2",
            "--armor",
            "--no-textmode",
            // Known before the first byte, so that the other gpg can follow.
            "--digest-algo",
            "SHA512",
            "--local-user",
            &user,
            "--output",
            "-",
            "--detach-sign",
        ])?;
        let mut verifies =
            gnupg.feed(&["--status-fd", "1", "--trust-model", "always", "--verify"])?;
        let (message, start) = Message::new();
        verifies.feed(&start).await;
        Ok(Self {
            configuration: gnupg.configuration,
            signer,
            signs,
            verifies,
            message,
        })
    }

    /// Feeds content; false when the gpg that signs has stopped reading.
    pub(super) async fn feed(&mut self, data: &[u8]) -> bool {
        let part = self.message.add(data);
        // One that verifies no more is heard of at the end.
        let (fed, _) = tokio::join!(self.signs.feed(data), self.verifies.feed(&part));
        fed
    }

    /// Ends the content and waits for the signature and what it is worth.
    pub(super) async fn finish(
        mut self,
        settings: &Settings,
        key: Option<String>,
    ) -> Result<Signature, ToolError> {
        let gnupg = GnuPg::again(settings, self.configuration);
        let signed = self.signs.end().await?;
        if !signed.success || signed.stdout.is_empty() {
            let fault = status::fault(&signed.stderr, key);
            return Err(with_card(&gnupg, fault, self.signer.card).await?.into());
        }
        let Some(rest) = self.message.end(&signed.stdout) else {
            return Err(GpgFault::NotGood("it is not one signature").into());
        };
        self.verifies.feed(&rest).await;
        let verified = self.verifies.end().await?;
        let good = Good::read(&verified.stdout).map_err(GpgFault::NotGood)?;
        if !verified.success {
            return Err(GpgFault::NotGood("gpg does not take it for good").into());
        }
        if !self.signer.is(&good.fingerprint, &good.key) {
            return Err(GpgFault::NotGood("another key made it").into());
        }
        let public_key = export(&gnupg, &good.key).await?;
        Ok(Signature {
            text: signed.stdout,
            good,
            public_key,
        })
    }
}

/// Sees to it that gpg-agent runs, and keyboxd where it keeps the public keys. They go on when we end, so that a passphrase is
/// asked for once.
async fn has_agent(gnupg: &GnuPg<'_>) -> Result<(), ToolError> {
    if gnupg.configuration.is_by_keyboxd {
        // One that does not start is told of by gpg itself.
        gnupg.launch(LauncherServer::Keyboxd).await?;
    }
    if answers(gnupg).await? {
        return Ok(());
    }
    gnupg.launch(LauncherServer::Agent).await?;
    if answers(gnupg).await? {
        return Ok(());
    }
    let uid = rustix::process::geteuid().as_raw();
    let socket = gnupg.folder("agent-socket").await?;
    let bytes = socket.as_os_str().len();
    if bytes > SOCKET_MAX {
        return Err(GpgFault::NoAgent(NoAgent::LongPath { bytes, uid }).into());
    }
    let home = gnupg.home().await?;
    let folders = [Some(home.as_path()), socket.parent()];
    let why = folders.into_iter().flatten().find_map(unwritable);
    Err(GpgFault::NoAgent(why.map_or(NoAgent::Other, |why| {
        let why = why.to_string();
        NoAgent::ReadOnly { why, uid }
    }))
    .into())
}

/// Returns whether gpg-agent runs.
async fn answers(gnupg: &GnuPg<'_>) -> Result<bool, ToolError> {
    let answered = gnupg.agent("GETINFO pid").await?;
    Ok(answered.stdout.lines().any(|line| line == "OK"))
}

/// Returns why a folder cannot be written to.
fn unwritable(folder: &Path) -> Option<io::ErrorKind> {
    let refused = access(folder, Access::WRITE_OK).err()?;
    Some(io::Error::from(refused).kind())
}

/// Who signs: the key that was asked for, or the default one.
async fn signer(gnupg: &GnuPg<'_>, key: Option<&str>) -> Result<Signer, ToolError> {
    let Some(asked) = key else {
        // As gpg does it: the last that there is of those that the user names, else the first that can sign.
        for named in &gnupg.configuration.default_keys {
            match choose(gnupg, named).await {
                Err(ToolError::Gpg(GpgFault::NoSecretKey { .. })) => {}
                chosen => return chosen,
            }
        }
        let named = gnupg.configuration.default_keys.first();
        return match named {
            // Another key than one that the user names would sign in silence.
            Some(named) => Err(GpgFault::no_secret_key(Some(named.clone())).into()),
            None => first(gnupg, None, None).await,
        };
    };
    choose(gnupg, asked).await
}

/// The key that is named; by exactly one subkey where `!` follows its id.
async fn choose(gnupg: &GnuPg<'_>, named: &str) -> Result<Signer, ToolError> {
    let id = named.strip_suffix('!');
    let exactly = id.map(|id| id.strip_prefix("0x").unwrap_or(id));
    first(gnupg, Some(id.unwrap_or(named)), exactly).await
}

/// The first usable of the secret keys that gpg knows by this name; without one, of all.
async fn first(
    gnupg: &GnuPg<'_>,
    name: Option<&str>,
    exactly: Option<&str>,
) -> Result<Signer, ToolError> {
    let mut arguments = vec![
        "--status-fd",
        "2",
        "--with-colons",
        "--with-subkey-fingerprint",
        "--list-secret-keys",
        "--",
    ];
    arguments.extend(name);
    let listed = gnupg.run(&arguments).await?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let now = now.map_or(0, |since| since.as_secs());
    let named = name.map(str::to_owned);
    let chosen = keys::choose(&keys::read(&listed.stdout), exactly, now);
    chosen.map_err(|why| match why {
        Some((key, why)) => GpgFault::Unusable { key, why }.into(),
        None if listed.success => GpgFault::no_secret_key(named).into(),
        None => status::fault(&listed.stderr, named).into(),
    })
}

/// The same fault, or what is wrong with the smartcard that holds the secret.
async fn with_card(
    gnupg: &GnuPg<'_>,
    fault: GpgFault,
    card: Option<String>,
) -> Result<GpgFault, ToolError> {
    let Some(serial) = card else {
        return Ok(fault);
    };
    let asked = gnupg.agent("SCD SERIALNO").await?;
    let line = |start: &str| {
        asked
            .stdout
            .lines()
            .find_map(|line| line.strip_prefix(start))
    };
    let why = match (line("S SERIALNO "), line("ERR ")) {
        (Some(found), _) if found.split(' ').next() != Some(&serial) => CardFault::Other,
        (Some(_), _) if fault == GpgFault::NoPinentry => CardFault::Locked,
        (Some(_), _) => return Ok(fault),
        (None, Some(error)) if status::is_no_card_daemon(error) => CardFault::NoDaemon,
        (None, _) => CardFault::Absent,
    };
    Ok(GpgFault::Card { serial, why })
}

/// The public part of a key, ASCII-armored.
async fn export(gnupg: &GnuPg<'_>, key: &str) -> Result<String, ToolError> {
    let arguments = [
        "--armor",
        "--export-options",
        "export-minimal",
        "--export",
        key,
    ];
    let ended = gnupg.run(&arguments).await?;
    if ended.success && !ended.stdout.is_empty() {
        Ok(ended.stdout)
    } else {
        Err(GpgFault::Failed(Some("no public key to go with the signature".to_owned())).into())
    }
}
