//! Finds and uses key files (`openssh-key-v1`) of the server's user.

use std::fmt;
use std::fs::{self, File};
use std::io::Read as _;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;
use rustix::process::geteuid;
use signature::Signer as _;
use ssh_key::{PrivateKey, Signature};

use crate::dir::OTHERS;
use crate::ssh::{SignatureRequest, SshKey};
use crate::tool::ToolError;

/// Maximum number of files that are looked at.
const FILES_MAX: usize = 1000;
/// Maximum size of a key file, in bytes.
const FILE_MAX: u64 = 64 * 1024;

/// A private key that can be used.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct KeyFile(Box<PrivateKey>);

impl fmt::Debug for KeyFile {
    /// Shows nothing of the key.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("KeyFile")
    }
}

/// What the folder has of a key.
#[derive(Debug)]
pub(super) enum Found {
    /// A file with the private key.
    Usable(KeyFile),
    /// A file with it that is not used.
    Unfit(Unfit),
    /// No file with it.
    Nothing,
}

/// The reason why a key file is not used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Unfit {
    /// A passphrase would be needed.
    #[error("is protected by a passphrase")]
    Encrypted,
    /// As in OpenSSH, such a file is not used.
    #[error("can be read by others")]
    Open,
    /// Only an agent uses such a key.
    #[error("is of an RSA key or a security key, which only an agent uses")]
    AgentOnly,
}

/// Finds the private key among the files of a folder.
pub(super) fn find(folder: &Path, key: &SshKey) -> Found {
    let Ok(entries) = fs::read_dir(folder) else {
        return Found::Nothing;
    };
    let paths = entries.take(FILES_MAX).flatten().map(|entry| entry.path());
    let mut paths: Vec<PathBuf> = paths.collect();
    paths.sort();
    let mut unfit = None;
    for path in &paths {
        match look(path, key) {
            Some(Ok(file)) => return Found::Usable(file),
            Some(Err(reason)) => unfit = Some(reason),
            None => {}
        }
    }
    unfit.map_or(Found::Nothing, Found::Unfit)
}

/// Reads a file; `None` if it has not this key. `openat2` is not for a process that may start programs.
fn look(path: &Path, key: &SshKey) -> Option<Result<KeyFile, Unfit>> {
    // Neither a pipe nor a device is waited for.
    let flags = OFlags::NONBLOCK | OFlags::NOCTTY;
    let flags = i32::try_from(flags.bits()).ok()?;
    let file = File::options()
        .read(true)
        .custom_flags(flags)
        .open(path)
        .ok()?;
    let entry = file.metadata().ok()?;
    if !entry.is_file() || entry.len() > FILE_MAX {
        return None;
    }
    let is_private = entry.uid() == geteuid().as_raw() && entry.mode() & OTHERS == 0;
    let mut content = Vec::new();
    file.take(FILE_MAX).read_to_end(&mut content).ok()?;
    let private = PrivateKey::from_openssh(content).ok()?;
    let public = private.public_key().to_bytes().ok()?;
    if public != key.blob() {
        return None;
    }
    Some(if key.is_rsa() || key.is_security_key() {
        Err(Unfit::AgentOnly)
    } else if !is_private {
        Err(Unfit::Open)
    } else if private.is_encrypted() {
        Err(Unfit::Encrypted)
    } else {
        Ok(KeyFile(Box::new(private)))
    })
}

impl KeyFile {
    pub(super) fn sign(&self, request: &SignatureRequest) -> Result<Vec<u8>, ToolError> {
        let signed = self.0.try_sign(&request.data).ok();
        let signed: Option<Signature> = signed;
        let bytes = signed.and_then(|signature| Vec::try_from(signature).ok());
        bytes.ok_or(ToolError::Broken)
    }
}
