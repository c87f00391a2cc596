//! `gpg_sign`: a detached signature, made by GnuPG and its agent as the server's user.
//!
//! The command line is built from checked fields, never from a caller's text. Content goes through stdin and is never
//! stored, so signing gigabytes in pieces needs no more memory than signing a line. A second gpg reads the same content
//! and verifies each signature before it is handed out.

mod fault;
pub(crate) mod launcher;
mod message;
mod output;
mod process;
mod signature;

use std::path::PathBuf;
use std::sync::Arc;

use tokio::sync::OwnedSemaphorePermit;

use crate::catalogue::{BadArguments, GpgSign, Payload, Signed, parse};
use crate::name::ToolName;
use crate::policy::Grant;

use super::pieces;
use super::{Settings, ToolError, ToolOutcome, ToolSession, blocking};
use launcher::LauncherServer;
use process::{Configuration, GnuPg};

pub use fault::{CardFault, GpgFault, NoAgent, UnfitKey};
pub(super) use signature::Signing;

/// Maximum number of simultaneous piecewise signatures on one connection.
pub(super) const TRANSFERS_MAX: usize = 4;
/// Maximum number of a caller's piecewise signatures at once, across all its connections: each keeps a gpg waiting.
pub(super) const WAITING_MAX: usize = 16;
/// Maximum length of a payload that is decoded on the serving thread, in bytes of base64.
const DECODE_APART: usize = 64 * 1024;

/// Finds the key folder of the server's user, and the keyrings that `gpg.conf` names elsewhere.
pub(super) async fn key_paths(settings: &Settings) -> Vec<PathBuf> {
    let gnupg = GnuPg::new(Arc::new(settings.clone()));
    let Ok(home) = gnupg.home().await else {
        return Vec::new();
    };
    // The call itself reads the configuration again, and reports any fault.
    let keyrings = Configuration::read(&home).unwrap_or_default().files(&home);
    [vec![home], keyrings].concat()
}

/// Returns the socket on which gpg-agent speaks the protocol of SSH agents, once it runs; `None` if it does not.
pub(super) async fn ssh_socket(settings: &Settings) -> Option<PathBuf> {
    let gnupg = GnuPg::new(Arc::new(settings.clone()));
    let socket = gnupg.folder("agent-ssh-socket").await.ok()?;
    // A socket may be left of an agent that was killed.
    gnupg.launch(LauncherServer::Agent).await.ok()?;
    socket.exists().then_some(socket)
}

pub(super) async fn sign(grant: &Grant, session: &ToolSession) -> Result<ToolOutcome, ToolError> {
    let arguments: GpgSign = parse(ToolName::GpgSign, grant.arguments())?;
    let (settings, key) = (&session.settings, arguments.key_id);
    if arguments.public_key == Some(true) {
        if arguments.data.encoded_length() > 0 || arguments.offset.is_some() {
            let fault = "with `public_key`, `data` must be empty and there is no `offset`";
            return Err(BadArguments::from(fault).into());
        }
        return signature::public_key(settings, key).await;
    }
    let Some(offset) = arguments.offset else {
        pieces::not_final(arguments.r#final)?;
        let data = decode(arguments.data).await?;
        let signing = Signing::begin(settings, key, vec![permit(settings)?]).await?;
        return signing.take(&data).await?.finish().await;
    };
    let last = arguments.r#final == Some(true);
    // One transfer at a time for each service.
    let displayed = format!("`{}`", grant.name());
    let (turn, signing) = session
        .signatures
        .take(grant.name(), &displayed, offset)
        .await?;
    let mut data = decode(arguments.data).await;
    data = data.and_then(|data| Ok(pieces::not_empty(data, last)?));
    // The waiting gpg signs with the first piece's key, regardless of the key that a later piece requests.
    let differs = |waiting: &Signing| key.is_some() && waiting.key != key;
    if signing.as_ref().is_some_and(differs) {
        data = data.and(Err(pieces::contradicts("key_id")));
    }
    let (data, signing) = match (data, signing) {
        (Ok(data), Some(signing)) => (data, signing),
        (Ok(data), None) => {
            let open = Arc::clone(&settings.open_signatures).try_acquire_owned();
            let open = open.map_err(|_| {
                ToolError::Busy(format!(
                    "{WAITING_MAX} signatures in pieces are under way for this caller, across all its connections; finish one first"
                ))
            })?;
            let permits = vec![open, permit(settings)?];
            (data, Signing::begin(settings, key, permits).await?)
        }
        (Err(refused), signing) => {
            // A bad piece must not discard the good ones.
            if let Some(signing) = signing {
                turn.wait(signing.size, signing);
            }
            return Err(refused);
        }
    };
    let signing = signing.take(&data).await?;
    if last {
        return signing.finish().await;
    }
    let size = signing.size;
    turn.wait(size, signing);
    let signed = Signed {
        size,
        ..Signed::default()
    };
    ToolOutcome::new(pieces::progress(size), &signed)
}

/// Acquires a permit for one more simultaneous signature.
fn permit(settings: &Settings) -> Result<OwnedSemaphorePermit, ToolError> {
    let permit = Arc::clone(&settings.signatures).try_acquire_owned();
    permit.map_err(|_| {
        ToolError::Busy(
            "signatures in pieces use up this caller's `in_flight` limit; finish one first"
                .to_owned(),
        )
    })
}

/// Decodes a payload; uses a separate thread for a long one.
async fn decode(data: Payload) -> Result<Vec<u8>, ToolError> {
    if data.encoded_length() <= DECODE_APART {
        return Ok(data.decode()?);
    }
    blocking(move |_| Ok(data.decode()?)).await
}
