//! `gpg_sign`: a detached signature by the GnuPG of the server's user and its agent.
//!
//! The command line is built from checked fields and never from a caller's text; content goes in on stdin and is
//! written nowhere, so a signature of gigabytes in pieces needs no more memory than one of a line. What is handed out as a
//! signature was verified by a second gpg that read the same content.

mod configuration;
mod fault;
mod keys;
pub(crate) mod launcher;
mod message;
mod process;
mod signature;
mod status;

use std::path::PathBuf;
use std::sync::Arc;

use tokio::sync::OwnedSemaphorePermit;

use crate::catalogue::{GpgSign, Payload, SIGN_MAX, Signed, parse};
use crate::policy::Grant;
use crate::text;

use super::pieces::{self, TransferStep, TransferTurn};
use super::{Settings, ToolError, ToolOutcome, ToolSession, blocking};
use configuration::Configuration;
use process::GnuPg;
use signature::{Making, Signature};

pub use fault::{CardFault, GpgFault, NoAgent, UnfitKey};

/// Maximum number of signatures in pieces at once on one connection.
pub(super) const TRANSFERS_MAX: usize = 4;
/// Maximum number of signatures in pieces at once of one caller, over all its connections: each is a gpg that waits.
pub(super) const WAITING_MAX: usize = 16;
/// Payloads longer than this, in bytes of base64, are decoded on a thread of their own.
const DECODE_APART: usize = 64 * 1024;

/// A signature whose content comes in pieces: gpg waits for more.
#[derive(Debug)]
pub(super) struct Signing {
    making: Making,
    size: u64,
    key: Option<String>,
    /// Its places among those of its caller: as a signature, and as one that comes in pieces.
    places: Vec<OwnedSemaphorePermit>,
}

/// The folders of GnuPG for the server's user.
#[derive(Debug, Default)]
pub(super) struct Folders {
    /// The folder of keys.
    pub(super) home: Option<PathBuf>,
    /// Keyrings that `gpg.conf` names elsewhere.
    pub(super) keyrings: Vec<PathBuf>,
}

/// Finds them.
pub(super) async fn folders(settings: &Settings) -> Folders {
    let gnupg = GnuPg::again(settings, Configuration::default());
    let Ok(home) = gnupg.home().await else {
        return Folders::default();
    };
    // What cannot be read is told by the call, which reads it again.
    let configuration = Configuration::read(&home).unwrap_or_default();
    Folders {
        keyrings: configuration.files(&home),
        home: Some(home),
    }
}

/// Runs `gpg_sign`.
pub(super) async fn sign(grant: &Grant, session: &ToolSession) -> Result<ToolOutcome, ToolError> {
    let arguments: GpgSign = parse(grant.tool(), grant.arguments())?;
    let settings = &session.settings;
    let Some(offset) = arguments.offset else {
        if arguments.r#final.is_some() {
            return Err(ToolError::Arguments(
                "`final` without `offset`: a piece says where it begins".to_owned(),
            ));
        }
        let data = decode(arguments.data).await?;
        let place = place(settings)?;
        let mut signing = Signing::start(settings, arguments.key_id).await?;
        signing.places.push(place);
        return signing.take(settings, &data).await?.finish(settings).await;
    };
    // Known by what was called: one at a time for each service.
    let (turn, step) =
        session
            .signatures
            .take(grant.name(), &format!("`{}`", grant.name()), offset)?;
    let last = arguments.r#final == Some(true);
    piece(settings, turn, step, arguments, last).await
}

/// A place among the signatures that may be under way at once.
fn place(settings: &Settings) -> Result<OwnedSemaphorePermit, ToolError> {
    let place = Arc::clone(&settings.signatures).try_acquire_owned();
    place.map_err(|_| {
        ToolError::Busy(
            "signatures in pieces take all places that `in_flight` gives this caller; finish one first"
                .to_owned(),
        )
    })
}

/// One piece of a signature.
async fn piece(
    settings: &Settings,
    turn: TransferTurn<Signing>,
    step: TransferStep<Signing>,
    arguments: GpgSign,
    last: bool,
) -> Result<ToolOutcome, ToolError> {
    let data = match decode(arguments.data).await.and_then(|data| {
        pieces::not_empty(&data, last)?;
        Ok(data)
    }) {
        Ok(data) => data,
        Err(refused) => {
            // A bad piece is no reason to lose the good ones.
            if let TransferStep::Continue(signing) = step {
                let size = signing.size;
                turn.wait(size, signing);
            }
            return Err(refused);
        }
    };
    let signing = match step {
        TransferStep::Begin => {
            let waits = Arc::clone(&settings.open_signatures).try_acquire_owned();
            let waits = waits.map_err(|_| {
                ToolError::Busy(format!(
                    "{WAITING_MAX} signatures in pieces are under way for this caller, over all its connections; finish one first"
                ))
            })?;
            let place = place(settings)?;
            let mut signing = Signing::start(settings, arguments.key_id).await?;
            signing.places = vec![waits, place];
            signing
        }
        // The gpg that waits signs with the first piece's key whatever a later one says.
        TransferStep::Continue(signing)
            if arguments.key_id.is_some() && arguments.key_id != signing.key =>
        {
            let size = signing.size;
            turn.wait(size, signing);
            return Err(pieces::contradicts("key_id"));
        }
        TransferStep::Continue(signing) => signing,
    };
    let signing = signing.take(settings, &data).await?;
    if last {
        return signing.finish(settings).await;
    }
    let size = signing.size;
    turn.wait(size, signing);
    let taken = Signed {
        size,
        complete: false,
        signature: None,
        fingerprint: None,
        algorithm: None,
        time: None,
        public_key: None,
    };
    ToolOutcome::new(
        format!("{} taken; the next piece begins there", text::bytes(size)),
        &taken,
    )
}

impl Signing {
    async fn start(settings: &Settings, key: Option<String>) -> Result<Self, ToolError> {
        let making = within(settings, Making::begin(settings, key.as_deref())).await??;
        let size = 0;
        Ok(Self {
            making,
            size,
            key,
            places: Vec::new(),
        })
    }

    /// Feeds gpg; over the limit or after a refusal by gpg, the transfer is over.
    async fn take(mut self, settings: &Settings, data: &[u8]) -> Result<Self, ToolError> {
        self.size = grown(self.size, data)?;
        let fed = within(settings, self.making.feed(data)).await?;
        if fed {
            return Ok(self);
        }
        // It ended before it had read everything: its last words say why.
        match self.finish(settings).await {
            Ok(_) => Err(ToolError::Gpg(GpgFault::Failed(None))),
            Err(why) => Err(why),
        }
    }

    /// Ends the content and waits for the signature.
    async fn finish(self, settings: &Settings) -> Result<ToolOutcome, ToolError> {
        let made = within(settings, self.making.finish(settings, self.key)).await??;
        let Signature {
            text,
            good,
            public_key,
        } = made;
        let signed = Signed {
            size: self.size,
            complete: true,
            signature: Some(text.clone()),
            algorithm: Some(good.algorithm()),
            time: Some(good.time()),
            fingerprint: Some(good.fingerprint),
            public_key: Some(public_key),
        };
        ToolOutcome::new(text, &signed)
    }
}

/// Adds content to a signature, up to its limit.
fn grown(size: u64, more: &[u8]) -> Result<u64, ToolError> {
    let size = size.saturating_add(u64::try_from(more.len()).unwrap_or(u64::MAX));
    if size > SIGN_MAX {
        return Err(ToolError::TooLarge(format!(
            "a signature covers at most {SIGN_MAX} bytes; sign a digest of the content instead"
        )));
    }
    Ok(size)
}

/// Decodes a payload, a long one away from the thread that serves.
async fn decode(data: Payload) -> Result<Vec<u8>, ToolError> {
    if data.encoded_length() <= DECODE_APART {
        return Ok(data.decode()?);
    }
    blocking::run(move |_| Ok(data.decode()?)).await
}

/// Waits no longer than gpg may take.
async fn within<T>(settings: &Settings, work: impl Future<Output = T>) -> Result<T, ToolError> {
    let limit = settings.gpg_wait;
    tokio::time::timeout(limit, work).await.map_err(|_| {
        ToolError::TimedOut(format!(
            "gpg did not answer within {} s and was ended; a pinentry may be waiting for a passphrase on the provider",
            limit.as_secs()
        ))
    })
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
