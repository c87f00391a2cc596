//! `ssh_sign`: signs with an SSH key of the server's user: in an agent, or in a key file.
//!
//! What is signed was judged by the policy, from the bytes themselves. A signature is verified before it is handed out.

mod agent;
mod key_file;

use std::env;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustix::process::geteuid;

use super::gpg::ssh_socket;
use super::{Settings, ToolError, ToolOutcome, ToolSession, blocking};
use crate::catalogue::{Payload, SshSign, SshSigned, parse};
use crate::policy::Grant;
use crate::ssh::{SignatureRequest, SshKey};

/// The variable that names the socket of the user's agent.
pub(super) const AGENT: &str = "SSH_AUTH_SOCK";
/// Names of an agent's socket in the runtime folder, as Debian's and other systemd units make it.
const SOCKETS: [&str; 2] = ["openssh_agent", "ssh-agent.socket"];

/// Where a key can be used.
#[derive(Debug, Clone, PartialEq, Eq)]
enum KeyPlace {
    /// In the agent with this socket.
    Agent(PathBuf),
    /// In this file.
    File(key_file::KeyFile),
}

pub(super) async fn sign(grant: &Grant, session: &ToolSession) -> Result<ToolOutcome, ToolError> {
    let arguments: SshSign = parse(grant.tool(), grant.arguments())?;
    let request = arguments.request()?;
    // Without the policy's judgement of what is signed, nothing is.
    let purpose = grant.purpose().ok_or(ToolError::Broken)?;
    let signature = match find(&session.settings, &request.key).await? {
        KeyPlace::Agent(socket) => agent::sign(&socket, &request).await?,
        KeyPlace::File(file) => file.sign(&request)?,
    };
    let SignatureRequest {
        key, data, flags, ..
    } = &request;
    // An agent may be broken, or not what it seems.
    key.verify_signature(data, *flags, &signature)
        .map_err(|_| ToolError::Refused("the provider's agent made a signature that is not of the service's key; it is withheld".to_owned()))?;
    let signature = STANDARD.encode(signature);
    let signed = SshSigned {
        signature: Payload::of(signature.clone()),
        purpose: purpose.to_string(),
    };
    ToolOutcome::new(signature, &signed)
}

/// Returns the reason why the user cannot sign with a key, given in one line; `None` if it can.
pub(crate) async fn key_fault(settings: &Settings, key: &str) -> Option<String> {
    let found = match SshKey::parse(key) {
        Ok(key) => find(settings, &key)
            .await
            .map(drop)
            .map_err(|fault| fault.to_string()),
        Err(fault) => Err(fault.to_string()),
    };
    found.err()
}

/// Finds where the key can be used. An agent that holds it comes first, because it may ask its user.
async fn find(settings: &Settings, key: &SshKey) -> Result<KeyPlace, ToolError> {
    let mut silent = false;
    for socket in sockets(settings) {
        match agent::holds(&socket, key).await {
            Ok(true) => return Ok(KeyPlace::Agent(socket)),
            Ok(false) => {}
            Err(agent::NoAnswer) => silent = true,
        }
    }
    let unfit = match file(settings, key).await? {
        key_file::Found::Usable(file) => return Ok(KeyPlace::File(file)),
        key_file::Found::Unfit(reason) => Some(reason),
        key_file::Found::Nothing => None,
    };
    // Last, because its socket must be asked for.
    if let Some(socket) = ssh_socket(settings).await
        && agent::holds(&socket, key).await == Ok(true)
    {
        return Ok(KeyPlace::Agent(socket));
    }
    Err(missing(key, unfit, silent))
}

async fn file(settings: &Settings, key: &SshKey) -> Result<key_file::Found, ToolError> {
    let Some(folder) = key_folder(settings) else {
        return Ok(key_file::Found::Nothing);
    };
    let key = key.clone();
    blocking(move |_| Ok(key_file::find(&folder, &key))).await
}

fn missing(key: &SshKey, unfit: Option<key_file::Unfit>, silent: bool) -> ToolError {
    let fingerprint = key.fingerprint();
    let reason = match unfit {
        Some(reason) => format!("its file {reason}"),
        None if silent => "its ssh-agent does not answer, and no file has it".to_owned(),
        None => "no agent and no file has it".to_owned(),
    };
    ToolError::Unavailable(format!(
        "the provider cannot sign with the key {fingerprint}: {reason}; load it there with `ssh-add`"
    ))
}

/// Returns the folder of the user's key files.
fn key_folder(settings: &Settings) -> Option<PathBuf> {
    settings.home.as_ref().map(|home| home.join(".ssh"))
}

/// Returns the sockets of agents that may run for the user.
pub(super) fn sockets(settings: &Settings) -> Vec<PathBuf> {
    let named = env::var_os(AGENT).filter(|named| !named.is_empty());
    // The runtime folder is a folder of anklume's in that of the user.
    let own = settings.runtime.parent().map(Path::to_owned);
    let usual = PathBuf::from(format!("/run/user/{}", geteuid()));
    let folders = own.into_iter().chain([usual]);
    let usual = folders.flat_map(|folder| SOCKETS.map(|name| folder.join(name)));
    let sockets = named.map(PathBuf::from).into_iter().chain(usual);
    sockets.filter(|socket| socket.exists()).collect()
}

/// Returns the folders that signing reads.
pub(super) fn key_paths(settings: &Settings) -> Vec<PathBuf> {
    key_folder(settings).into_iter().collect()
}
