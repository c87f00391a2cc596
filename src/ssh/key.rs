//! Public keys: their one-line form, their fingerprints, and the signatures that they verify.

use signature::Verifier as _;
use ssh_key::public::KeyData;
use ssh_key::{Algorithm, HashAlg, Signature};

use super::Refusal;
use super::wire::WireReader;
use crate::text::is_invisible;

/// Maximum length of a key in its one-line form, in bytes: an RSA key of 4096 bits has some 720, and a comment.
const LINE_MAX: usize = 8 * 1024;
/// Lengths of an RSA modulus, in bytes, from 2048 to 4096 bits: the verifying crates take no others.
const RSA_MODULUS: std::ops::RangeInclusive<usize> = 256..=512;
/// The flag that asks for RSA with SHA-256 (OpenSSH, PROTOCOL.agent).
const RSA_SHA2_256: u32 = 2;
/// The flag that asks for RSA with SHA-512.
const RSA_SHA2_512: u32 = 4;

/// A public key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SshKey {
    key: KeyData,
    blob: Vec<u8>,
    comment: String,
}

/// The reason why a line is not a usable public key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyFault {
    /// It is something else.
    #[error("it is not the content of a `.pub` file: a type, the key in base64, a comment")]
    NotAKey,
    /// Keys of that type are not supported, nor are certificates.
    #[error("its type is not supported; use Ed25519, ECDSA, RSA, sk-ssh-ed25519 or sk-ecdsa")]
    Type,
    /// An RSA key of another size could not be verified.
    #[error("an RSA key must have 2048 to 4096 bits")]
    Size,
    /// Its comment could disturb a terminal.
    #[error("its comment has characters that are not printable")]
    Comment,
}

/// The signature is not that of this key over these bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the signature is not valid for this key")]
pub struct InvalidSignature;

impl SshKey {
    /// Parses a line such as `ssh-ed25519 AAAA… comment`.
    ///
    /// # Errors
    ///
    /// Returns what is wrong with it.
    pub fn parse(line: &str) -> Result<Self, KeyFault> {
        if line.len() > LINE_MAX {
            return Err(KeyFault::NotAKey);
        }
        let key = ssh_key::PublicKey::from_openssh(line).map_err(|_| KeyFault::NotAKey)?;
        let comment = key.comment().trim();
        if comment
            .chars()
            .any(|one| one.is_control() || is_invisible(one))
        {
            return Err(KeyFault::Comment);
        }
        Self::new(key.key_data().clone(), comment)
    }

    /// Reads the key of an agent, a host or a signature.
    ///
    /// # Errors
    ///
    /// Returns what is wrong with it.
    pub fn from_blob(blob: &[u8]) -> Result<Self, KeyFault> {
        let key = ssh_key::PublicKey::from_bytes(blob).map_err(|_| KeyFault::NotAKey)?;
        let key = Self::new(key.key_data().clone(), "")?;
        // Bytes that another reader may take for another key.
        if key.blob == blob {
            Ok(key)
        } else {
            Err(KeyFault::NotAKey)
        }
    }

    fn new(key: KeyData, comment: &str) -> Result<Self, KeyFault> {
        let is_used = matches!(
            key,
            KeyData::Ed25519(_)
                | KeyData::Ecdsa(_)
                | KeyData::Rsa(_)
                | KeyData::SkEd25519(_)
                | KeyData::SkEcdsaSha2NistP256(_)
        );
        if !is_used {
            return Err(KeyFault::Type);
        }
        if let KeyData::Rsa(rsa) = &key {
            let modulus = rsa.n.as_positive_bytes().map_or(0, <[u8]>::len);
            if !RSA_MODULUS.contains(&modulus) {
                return Err(KeyFault::Size);
            }
        }
        let blob = ssh_key::PublicKey::from(key.clone())
            .to_bytes()
            .map_err(|_| KeyFault::NotAKey)?;
        Ok(Self {
            key,
            blob,
            comment: comment.to_owned(),
        })
    }

    /// Returns the key as in SSH messages.
    #[must_use]
    pub fn blob(&self) -> &[u8] {
        &self.blob
    }

    /// Returns the text after the key, such as `name@machine`; printable.
    #[must_use]
    pub fn comment(&self) -> &str {
        &self.comment
    }

    /// Returns `SHA256:…`, as `ssh-keygen -l` prints it.
    #[must_use]
    pub fn fingerprint(&self) -> String {
        self.key.fingerprint(HashAlg::Sha256).to_string()
    }

    /// Returns whether the key is RSA, which only an agent signs with.
    #[must_use]
    pub const fn is_rsa(&self) -> bool {
        matches!(self.key, KeyData::Rsa(_))
    }

    /// Returns whether the key is in a security key, which only an agent signs with.
    #[must_use]
    pub const fn is_security_key(&self) -> bool {
        matches!(
            self.key,
            KeyData::SkEd25519(_) | KeyData::SkEcdsaSha2NistP256(_)
        )
    }

    /// Returns the algorithm of the signatures that these flags ask for.
    pub(super) fn algorithm(&self, flags: u32) -> Result<&'static str, Refusal> {
        use ssh_key::EcdsaCurve::{NistP256, NistP384, NistP521};
        let own = match self.key.algorithm() {
            Algorithm::Rsa { .. } => {
                return match flags {
                    RSA_SHA2_256 => Ok("rsa-sha2-256"),
                    RSA_SHA2_512 => Ok("rsa-sha2-512"),
                    0 => Err(Refusal::Sha1),
                    _ => Err(unfit(flags)),
                };
            }
            Algorithm::Ecdsa { curve: NistP256 } => "ecdsa-sha2-nistp256",
            Algorithm::Ecdsa { curve: NistP384 } => "ecdsa-sha2-nistp384",
            Algorithm::Ecdsa { curve: NistP521 } => "ecdsa-sha2-nistp521",
            Algorithm::SkEd25519 => "sk-ssh-ed25519@openssh.com",
            Algorithm::SkEcdsaSha2NistP256 => "sk-ecdsa-sha2-nistp256@openssh.com",
            _ => "ssh-ed25519",
        };
        if flags == 0 {
            Ok(own)
        } else {
            Err(unfit(flags))
        }
    }

    /// Verifies a signature, as in SSH messages, that these flags asked for.
    ///
    /// # Errors
    ///
    /// It is of another key, over other bytes, by another algorithm, or not a signature.
    pub fn verify_signature(
        &self,
        data: &[u8],
        flags: u32,
        signature: &[u8],
    ) -> Result<(), InvalidSignature> {
        let algorithm = self.algorithm(flags).map_err(|_| InvalidSignature)?;
        let signature = self.verify_any(data, signature)?;
        if signature.algorithm().as_str() == algorithm {
            Ok(())
        } else {
            Err(InvalidSignature)
        }
    }

    /// Verifies a signature by any algorithm of the key but SHA-1.
    pub(super) fn verify_any(
        &self,
        data: &[u8],
        signature: &[u8],
    ) -> Result<Signature, InvalidSignature> {
        if !is_whole(signature) {
            return Err(InvalidSignature);
        }
        let signature = Signature::try_from(signature).map_err(|_| InvalidSignature)?;
        let verified = self.key.verify(data, &signature);
        verified.map_err(|_| InvalidSignature)?;
        Ok(signature)
    }
}

/// Returns whether bytes are a signature and nothing else, which the decoder does not check.
fn is_whole(signature: &[u8]) -> bool {
    let mut wire = WireReader::new(signature);
    let read = |wire: &mut WireReader<'_>| {
        let algorithm = wire.text()?;
        wire.string()?;
        if algorithm.starts_with("sk-") {
            // Flags and a counter (OpenSSH, PROTOCOL.u2f).
            wire.byte()?;
            wire.number()?;
        }
        Some(())
    };
    read(&mut wire).is_some() && wire.is_empty()
}

fn unfit(flags: u32) -> Refusal {
    Refusal::Flags {
        flags,
        fits: "the key".to_owned(),
    }
}

/// Returns whether text has the form of a fingerprint, `SHA256:` and 43 characters of base64.
#[must_use]
pub fn is_fingerprint(text: &str) -> bool {
    text.parse::<ssh_key::Fingerprint>()
        .is_ok_and(|one| one.algorithm() == HashAlg::Sha256 && one.to_string() == text)
}
