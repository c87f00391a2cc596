//! Finds and uses key files (`openssh-key-v1`) of the server's user.

use std::ffi::OsString;
use std::fmt;
use std::fs::{self, File};
use std::io::Read as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;

use rustix::fs::OFlags;
use rustix::process::geteuid;
use signature::Signer as _;
use ssh_key::{PrivateKey, Signature};

use crate::dir::OTHERS;
use crate::ssh::{SignatureRequest, SshKey};
use crate::tool::ToolError;

/// Maximum number of files that are looked at.
const FILES_MAX: usize = 1000;
/// Maximum number of entries of the folder that are read.
const ENTRIES_MAX: usize = 100_000;
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
pub(super) enum KeyLookup {
    /// A file with the private key.
    Usable(KeyFile),
    /// A file with it that is not used.
    Unusable(UnusableFile),
    /// No file with it.
    Nothing,
}

/// The reason why a key file is not used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum UnusableFile {
    /// A passphrase would be needed.
    #[error("is protected by a passphrase; load it there with `ssh-add`")]
    Encrypted,
    /// As in OpenSSH, such a file is not used.
    #[error("can be read by others, or is not the user's; make it private: `chmod 600`")]
    Open,
    /// Only an agent uses such a key.
    #[error(
        "holds an RSA or security key, which signs only through an agent; load it there with `ssh-add`"
    )]
    AgentOnly,
}

/// Finds the private key among the files of a folder.
pub(super) fn find(folder: &Path, key: &SshKey) -> KeyLookup {
    let Ok(entries) = fs::read_dir(folder) else {
        return KeyLookup::Nothing;
    };
    let names = entries
        .take(ENTRIES_MAX)
        .flatten()
        .map(|entry| entry.file_name());
    let mut names: Vec<OsString> = names.collect();
    // The usual names first.
    names.sort_by_cached_key(|name| (!name.as_bytes().starts_with(b"id_"), name.clone()));
    let paths = names.iter().take(FILES_MAX).map(|name| folder.join(name));
    let mut unusable = None;
    for path in paths {
        match look(&path, key) {
            Some(Ok(file)) => return KeyLookup::Usable(file),
            Some(Err(reason)) => unusable = Some(reason),
            None => {}
        }
    }
    unusable.map_or(KeyLookup::Nothing, KeyLookup::Unusable)
}

/// Reads a file; `None` if it does not contain this key. Uses no [`crate::dir::Dir`]: a process that may start programs is
/// denied `openat2`.
fn look(path: &Path, key: &SshKey) -> Option<Result<KeyFile, UnusableFile>> {
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
        Err(UnusableFile::AgentOnly)
    } else if !is_private {
        Err(UnusableFile::Open)
    } else if private.is_encrypted() {
        Err(UnusableFile::Encrypted)
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
