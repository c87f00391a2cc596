//! `ssh_sign`: signs with an SSH key of the server's user: in an agent, or in a key file.
//!
//! The policy has read from the bytes what the signature is for. A signature is verified before it is handed out.

mod agent;
mod key_file;

use std::collections::HashSet;
use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::gpg::ssh_socket;
use super::runtime::user_folders;
use super::{Settings, ToolError, ToolOutcome, ToolSession, blocking};
use crate::catalogue::{Payload, SshSign, SshSigned, parse};
use crate::name::ToolName;
use crate::policy::Grant;
use crate::ssh::{SignatureRequest, SshKey};
use agent::{KeyAgent, NoAnswer, PERSON_MAX};

/// The variable that names the socket of the user's agent.
pub(super) const AGENT: &str = "SSH_AUTH_SOCK";
/// Names of an agent's socket in the runtime folder, as Debian's and other systemd units make it.
const SOCKETS: [&str; 2] = ["openssh_agent", "ssh-agent.socket"];

/// Where a key can be used.
#[derive(Debug)]
enum KeyLocation {
    /// In this agent.
    Agent(KeyAgent),
    /// In this file.
    File(key_file::KeyFile),
}

pub(super) async fn sign(grant: &Grant, session: &ToolSession) -> Result<ToolOutcome, ToolError> {
    let arguments: SshSign = parse(ToolName::SshSign, grant.arguments())?;
    let request = arguments.request()?;
    // Nothing is signed without the policy's authorization.
    let purpose = grant.purpose().ok_or(ToolError::Broken)?;
    let signature = match find(&session.settings, &request.key, PERSON_MAX).await? {
        KeyLocation::Agent(agent) => agent.sign(&request).await?,
        KeyLocation::File(file) => file.sign(&request)?,
    };
    let SignatureRequest {
        key, data, flags, ..
    } = &request;
    // An agent may be broken, or not what it seems.
    if key.verify_signature(data, *flags, &signature).is_err() {
        let text = "the provider's agent returned a signature that is not valid for the service's key; it was discarded";
        return Err(ToolError::Refused(text.to_owned()));
    }
    let signature = STANDARD.encode(signature);
    let signed = SshSigned {
        signature: Payload::of(signature.clone()),
        purpose: purpose.to_string(),
    };
    ToolOutcome::new(signature, &signed)
}

/// Returns the reason why the user cannot sign with a key, given on one line; `None` if it can. `patience` is for agents.
pub(crate) async fn key_fault(
    settings: &Settings,
    key: &str,
    patience: Duration,
) -> Option<String> {
    let found = match SshKey::parse(key) {
        Ok(key) => find(settings, &key, patience)
            .await
            .map(drop)
            .map_err(|fault| fault.to_string()),
        Err(fault) => Err(fault.to_string()),
    };
    found.err()
}

/// Finds where the key can be used. An agent that has it, or that does not say so because it waits for its user, is not passed
/// over for another place: it may ask before each use.
async fn find(
    settings: &Settings,
    key: &SshKey,
    patience: Duration,
) -> Result<KeyLocation, ToolError> {
    for socket in sockets(settings) {
        if let Some(agent) = agent_with(&socket, key, patience).await? {
            return Ok(KeyLocation::Agent(agent));
        }
    }
    let unusable = match file(settings, key).await? {
        key_file::KeyLookup::Usable(file) => return Ok(KeyLocation::File(file)),
        key_file::KeyLookup::Unusable(reason) => Some(reason),
        key_file::KeyLookup::Nothing => None,
    };
    // Last, because its socket must be asked for.
    if let Some(socket) = ssh_socket(settings).await
        && let Some(agent) = agent_with(&socket, key, patience).await?
    {
        return Ok(KeyLocation::Agent(agent));
    }
    Err(missing(key, unusable))
}

/// Returns the agent on a socket, if it has the key. Fails if it does not answer.
async fn agent_with(
    socket: &Path,
    key: &SshKey,
    patience: Duration,
) -> Result<Option<KeyAgent>, ToolError> {
    match KeyAgent::with_key(socket, key, patience).await {
        Ok(agent) => Ok(agent),
        // An agent that was killed leaves its socket.
        Err(NoAnswer::NoAgent) => Ok(None),
        Err(NoAnswer::Silent) => {
            let key = key.fingerprint();
            Err(ToolError::TimedOut(format!(
                "the provider cannot sign with the key {key}: its SSH agent does not answer; it may be waiting for its user, \
                 or must be restarted"
            )))
        }
    }
}

async fn file(settings: &Settings, key: &SshKey) -> Result<key_file::KeyLookup, ToolError> {
    let Some(folder) = key_folder(settings) else {
        return Ok(key_file::KeyLookup::Nothing);
    };
    let key = key.clone();
    blocking(move |_| Ok(key_file::find(&folder, &key))).await
}

fn missing(key: &SshKey, unusable: Option<key_file::UnusableFile>) -> ToolError {
    let fingerprint = key.fingerprint();
    let reason = unusable.map_or_else(
        || "it is in no agent and in no file in `~/.ssh`; load it there with `ssh-add`".to_owned(),
        |reason| format!("its file {reason}"),
    );
    ToolError::Unavailable(format!(
        "the provider cannot sign with the key {fingerprint}: {reason}"
    ))
}

/// Returns the folder of the user's key files.
pub(super) fn key_folder(settings: &Settings) -> Option<PathBuf> {
    settings.home.as_ref().map(|home| home.join(".ssh"))
}

/// Returns the sockets of agents that may run for the user.
fn sockets(settings: &Settings) -> Vec<PathBuf> {
    let named = env::var_os(AGENT).filter(|named| !named.is_empty());
    let folders = user_folders(&settings.runtime);
    let usual = folders.flat_map(|folder| SOCKETS.map(|name| folder.join(name)));
    let sockets = named.map(PathBuf::from).into_iter().chain(usual);
    let mut known = HashSet::new();
    // Two of these names often lead to one socket.
    let sockets =
        sockets.filter(|socket| fs::canonicalize(socket).is_ok_and(|it| known.insert(it)));
    sockets.collect()
}
