//! Explains why gpg did not sign, based on the codes that it reports, and suggests the next step.

use std::io;

use jiff::Timestamp;
use rustix::process::geteuid;

use crate::machine_state::AGENT_UNIT;
use crate::tool::GpgHome;

/// The reason why gpg did not sign.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GpgFault {
    /// gpg has no such secret key.
    #[error(
        "no secret key{}; import or create one for the server's user (uid {}) on the provider",
        named(.0.as_deref()),
        geteuid()
    )]
    NoSecretKey(
        /// The requested key; `None`: the default key.
        Option<String>,
    ),
    /// The key folder is missing; gpg would report a missing key.
    #[error(
        "`{variable}` names {what} on the provider, so gpg has no keys there; create that folder for the server's user \
         (uid {}), or start the server with `GNUPGHOME` set to its key folder",
        geteuid()
    )]
    NoHome {
        /// The variable that names the folder; the path itself is withheld from the caller.
        variable: &'static str,
        /// The entry found instead.
        what: &'static str,
    },
    /// The key exists, but cannot sign.
    #[error("the secret key `{key}` cannot sign: {}", why.message(.key))]
    Unusable {
        /// Its fingerprint.
        key: String,
        /// The reason why it cannot sign.
        why: UnfitKey,
    },
    /// The secret key is on a smartcard that does not sign.
    #[error("the secret key is on the smartcard {serial}, {why}")]
    Card {
        /// The card's serial number.
        serial: String,
        /// The reason why it does not sign.
        why: CardFault,
    },
    /// gpg's output is not a good signature of the content.
    #[error(
        "gpg did not make a good signature of the content: {0}; nothing was handed out. \
         To see more, run `gpg --detach-sign` on a file on the provider, then `gpg --verify`"
    )]
    NotGood(&'static str),
    /// The user's `gpg.conf`, which may set the default key, cannot be read.
    #[error(
        "`gpg.conf` cannot be read on the provider: {0}; it may set the default key, so nothing is signed without it"
    )]
    Configuration(String),
    /// Nothing can ask for the key's passphrase.
    #[error(
        "the key needs a passphrase, and no pinentry can ask for it on the provider; unlock the key there first, \
         install a graphical pinentry, or use a key without a passphrase"
    )]
    NoPinentry,
    /// The user cancelled the prompt.
    #[error("the passphrase prompt was cancelled on the provider")]
    Cancelled,
    /// Nobody answered the prompt.
    #[error("the passphrase prompt on the provider was not answered")]
    Unanswered,
    /// The passphrase was wrong.
    #[error("wrong passphrase for the key on the provider")]
    Passphrase,
    /// gpg-agent, which holds the keys, is not running and cannot be started.
    #[error("gpg-agent cannot be started on the provider: {0}")]
    NoAgent(NoAgent),
    /// Another fault.
    #[error("gpg failed{}", reason(.0.as_deref()))]
    Failed(
        /// gpg's own message, sanitized.
        Option<String>,
    ),
}

/// The reason why an existing key cannot sign.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UnfitKey {
    /// It or its signing subkey expired at this time, in seconds since 1970.
    Expired(Option<u64>),
    /// It is revoked.
    Revoked,
    /// Its user has disabled it.
    Disabled,
    /// Its creation time is in the future, in seconds since 1970.
    Future(u64),
    /// Neither it nor any subkey is meant for signing.
    NotForSigning,
    /// Its secret part is missing.
    Elsewhere,
    /// It lacks a required part, such as its self-signature.
    Invalid,
}

impl UnfitKey {
    /// Returns the fault and the next step.
    fn message(self, key: &str) -> String {
        match self {
            Self::Expired(when) => {
                let when = when.map(|when| format!(" on {}", date(when)));
                let when = when.unwrap_or_default();
                format!(
                    "it expired{when}; extend it on the provider with `gpg --quick-set-expire {key} 1y`, \
                     and its subkeys with `gpg --quick-set-expire {key} 1y '*'`"
                )
            }
            Self::Revoked => "it is revoked; create another on the provider".to_owned(),
            Self::Disabled => {
                format!("it is disabled; `gpg --edit-key {key} enable save` on the provider enables it")
            }
            Self::Future(when) => format!(
                "it was created on {}, which is in the future; the clock of the provider, or of the machine that made the key, is wrong",
                date(when)
            ),
            Self::NotForSigning => format!(
                "neither it nor any of its subkeys can sign; `gpg --quick-add-key {key} ed25519 sign` on the provider adds one"
            ),
            Self::Elsewhere => {
                "the provider has only the public key and a stub of the secret key; import the secret key there"
                    .to_owned()
            }
            Self::Invalid => {
                "gpg calls it invalid; `gpg --list-secret-keys` on the provider shows the details".to_owned()
            }
        }
    }
}

/// The reason why a smartcard does not sign.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CardFault {
    /// No card is inserted.
    #[error("which is not in any of the provider's readers; insert it")]
    Absent,
    /// Another card is inserted.
    #[error("and another one is in the provider's reader; insert the right one")]
    Other,
    /// scdaemon is not installed.
    #[error(
        "and scdaemon, which talks to smartcards, is not installed on the provider; install it"
    )]
    NoDaemon,
    /// The card is inserted, but nothing can ask for its PIN.
    #[error(
        "and no pinentry can ask for its PIN on the provider; unlock it there first, or install a graphical pinentry"
    )]
    Locked,
}

/// The reason why gpg-agent cannot be started.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoAgent {
    /// Its socket path is too long.
    #[error(
        "its socket path is {bytes} bytes long, but at most {SOCKET_MAX} are allowed; \
         move the key folder to a shorter path, or log in there once so that `/run/user/{}` exists",
        geteuid()
    )]
    LongPath {
        /// Its length.
        bytes: usize,
    },
    /// It cannot write to the key folder or its socket folder; contains the system error.
    #[error(
        "it cannot write to its key folder or its socket's folder ({0}); make both writable for the server's user (uid {uid})",
        uid = geteuid()
    )]
    ReadOnly(io::ErrorKind),
    /// Its launcher is not answering.
    #[error(
        "the service `{AGENT_UNIT}`, which starts it, does not answer ({0}); restart that service there"
    )]
    Launcher(String),
    /// Another reason.
    #[error("run `gpg-connect-agent /bye` as the server's user to see why")]
    Other,
}

/// Maximum length of a Unix socket path, in bytes (`sun_path` of `unix(7)` without its final zero).
pub(super) const SOCKET_MAX: usize = 107;

fn named(key: Option<&str>) -> String {
    key.map(|key| format!(" `{}`", key.escape_debug()))
        .unwrap_or_default()
}

fn reason(text: Option<&str>) -> String {
    text.map(|text| format!(": {text}")).unwrap_or_default()
}

impl GpgFault {
    /// Returns the fault in gpg's home folder, if there is one.
    pub(super) fn of_home(home: &GpgHome) -> Option<Self> {
        let what = match home.path.metadata() {
            Ok(entry) if entry.is_dir() => return None,
            Ok(_) => "something that is not a folder",
            Err(why) if why.kind() == io::ErrorKind::NotFound => "a folder that does not exist",
            Err(_) => "a folder that cannot be reached",
        };
        let variable = home.variable;
        Some(Self::NoHome { variable, what })
    }

    /// Maps a libgpg-error code (from its `err-codes.h`) to a signing fault; `None` for any other code.
    pub(super) fn of_code(number: u32, key: Option<String>) -> Option<Self> {
        // Low 16 bits: the code; above them, the program that reported it.
        let fault = match number & 0xffff {
            // GPG_ERR_BAD_PASSPHRASE
            11 => Self::Passphrase,
            // GPG_ERR_NO_SECKEY
            17 => Self::NoSecretKey(key),
            // GPG_ERR_TIMEOUT
            62 => Self::Unanswered,
            // GPG_ERR_NO_AGENT, GPG_ERR_AGENT
            77 | 78 => Self::NoAgent(NoAgent::Other),
            // GPG_ERR_NO_PIN_ENTRY, GPG_ERR_PIN_ENTRY, and ENOTTY from pinentry-curses without a terminal
            85 | 86 | 0x8066 => Self::NoPinentry,
            // GPG_ERR_CANCELED, GPG_ERR_FULLY_CANCELED
            99 | 198 => Self::Cancelled,
            _ => return None,
        };
        Some(fault)
    }
}

/// Formats seconds since 1970 as RFC 3339 in UTC, or as a plain number if the time is beyond the calendar.
pub(super) fn rfc3339(seconds: u64) -> String {
    let time = i64::try_from(seconds).ok();
    let time = time.and_then(|seconds| Timestamp::from_second(seconds).ok());
    time.map_or_else(|| seconds.to_string(), |time| time.to_string())
}

/// Returns the UTC date of a time in seconds since 1970.
fn date(seconds: u64) -> String {
    let time = rfc3339(seconds);
    time.split('T').next().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_those_of_the_calendar() {
        for (seconds, time) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_399, "2000-02-28T23:59:59Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (951_868_800, "2000-03-01T00:00:00Z"),
            (1_709_164_800, "2024-02-29T00:00:00Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
            (4_294_967_295, "2106-02-07T06:28:15Z"),
        ] {
            assert_eq!(rfc3339(seconds), time);
        }
    }
}
