//! Explains why gpg did not sign, from the codes that it reports, with the next step.

use std::io;

use jiff::Timestamp;

use crate::machine_state::AGENT_UNIT;
use crate::tool::GpgHome;

/// The reason why gpg did not sign.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GpgFault {
    /// There is no such secret key.
    #[error(
        "no secret key{}; import or create one for the user that serves (uid {uid}) on the provider",
        named(.key.as_deref())
    )]
    NoSecretKey {
        /// The requested key; `None`: the default key.
        key: Option<String>,
        /// The user whose keys were searched.
        uid: u32,
    },
    /// gpg has no place for its keys. It would say that it has no key.
    #[error(
        "`{variable}` names {what} on the provider, so gpg has no keys there; make that folder for the user that serves \
         (uid {uid}), or start the server with `GNUPGHOME` set to the folder of its keys"
    )]
    NoHome {
        /// The variable that names the place; the path is not the caller's business.
        variable: &'static str,
        /// The entry found instead.
        what: &'static str,
        /// The user that serves.
        uid: u32,
    },
    /// The key is there and cannot sign.
    #[error("the secret key `{key}` cannot sign: {}", why.words(.key))]
    Unusable {
        /// Its fingerprint.
        key: String,
        /// The reason why it cannot.
        why: UnfitKey,
    },
    /// The secret is on a smartcard.
    #[error("the secret key is on the smartcard {serial}, {why}")]
    Card {
        /// The card's serial number.
        serial: String,
        /// The reason why it does not sign.
        why: CardFault,
    },
    /// gpg's output is not a good signature of the content.
    #[error(
        "gpg made no good signature of what was sent: {0}; nothing was handed out. \
         `gpg --detach-sign` of a file on the provider, and `gpg --verify` of that, show more"
    )]
    NotGood(&'static str),
    /// The user's `gpg.conf` says which key signs, and cannot be read.
    #[error(
        "`gpg.conf` cannot be read on the provider: {0}; it may set the default key, so nothing is signed without it"
    )]
    Configuration(String),
    /// The key has a passphrase and there is no way to ask for it.
    #[error(
        "the key needs a passphrase, and no pinentry can ask for it on the provider; unlock the key there first, \
         install a graphical pinentry, or use a key without a passphrase"
    )]
    NoPinentry,
    /// The answer was no.
    #[error("the passphrase prompt was cancelled on the provider")]
    Cancelled,
    /// Nobody answered the prompt.
    #[error("nobody answered the passphrase prompt on the provider")]
    Unanswered,
    /// The passphrase was wrong.
    #[error("wrong passphrase for the key on the provider")]
    Passphrase,
    /// gpg-agent, which holds the keys, does not run and cannot be started.
    #[error("gpg-agent cannot be started on the provider: {0}")]
    NoAgent(NoAgent),
    /// Something else.
    #[error("gpg failed{}", reason(.0.as_deref()))]
    Failed(
        /// gpg's own words, cleaned.
        Option<String>,
    ),
}

/// The reason why a key that is there cannot sign.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UnfitKey {
    /// It, or the subkey that signs, expired, at this time in seconds since 1970.
    Expired(Option<u64>),
    /// It is revoked.
    Revoked,
    /// Its user disabled it.
    Disabled,
    /// It will be created at this time in seconds since 1970.
    Future(u64),
    /// Neither it nor a subkey is for signing.
    NotForSigning,
    /// Its secret part is not there.
    Elsewhere,
    /// It lacks what every key has, such as its signature of itself.
    Invalid,
}

impl UnfitKey {
    /// The fault and the next step.
    fn words(self, key: &str) -> String {
        match self {
            Self::Expired(when) => {
                let when = when.map_or_else(String::new, |when| format!(" on {}", date(when)));
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
                "it was created on {}, which is in the future; the provider's clock is wrong, or that of the machine \
                 which made the key was",
                date(when)
            ),
            Self::NotForSigning => format!(
                "neither it nor a subkey of it is for signing; `gpg --quick-add-key {key} ed25519 sign` on the provider adds one"
            ),
            Self::Elsewhere => {
                "the provider has only the public key and a stub of the secret key; import the secret key there"
                    .to_owned()
            }
            Self::Invalid => {
                "gpg calls it invalid; `gpg --list-secret-keys` on the provider shows more".to_owned()
            }
        }
    }
}

/// The reason why a smartcard does not sign.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CardFault {
    /// It is not there.
    #[error("which is in no reader of the provider; insert it")]
    Absent,
    /// Another is there.
    #[error("and another one is in the provider's reader; insert the right one")]
    Other,
    /// scdaemon is not installed.
    #[error(
        "and scdaemon, which talks to smartcards, is not installed on the provider; install it"
    )]
    NoDaemon,
    /// It is there, and nobody could be asked for its PIN.
    #[error(
        "whose PIN no pinentry can ask for on the provider; unlock it there first, or install a graphical pinentry"
    )]
    Locked,
}

/// The reason why gpg-agent cannot be started.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoAgent {
    /// The path of its socket is too long.
    #[error(
        "the path of its socket has {bytes} bytes, and {SOCKET_MAX} is the most; \
         move the folder of keys to a shorter path, or log in there once so that `/run/user/{uid}` exists"
    )]
    LongPath {
        /// Its length.
        bytes: usize,
        /// The user that serves.
        uid: u32,
    },
    /// It may not write where its socket and its locks are.
    #[error(
        "it cannot write to the folder of keys ({why}); make it writable for the user that serves (uid {uid})"
    )]
    ReadOnly {
        /// The system's error.
        why: String,
        /// The user that serves.
        uid: u32,
    },
    /// Its launcher does not answer.
    #[error(
        "the service `{AGENT_UNIT}`, which starts it, does not answer ({0}); restart that there"
    )]
    Launcher(String),
    /// Something else.
    #[error("`gpg-connect-agent /bye`, as the user that serves, says why")]
    Other,
}

/// Maximum length of a path of a Unix socket, in bytes (`sun_path` of `unix(7)`, without the zero at its end).
pub(super) const SOCKET_MAX: usize = 107;

fn named(key: Option<&str>) -> String {
    key.map(|key| format!(" `{}`", key.escape_debug()))
        .unwrap_or_default()
}

fn reason(text: Option<&str>) -> String {
    text.map(|text| format!(": {text}")).unwrap_or_default()
}

/// Codes of libgpg-error (its `err-codes.h`), without the part that says which program reported them.
mod code {
    pub(super) const BAD_PASSPHRASE: u32 = 11;
    pub(super) const NO_SECRET_KEY: u32 = 17;
    pub(super) const TIMEOUT: u32 = 62;
    pub(super) const NO_AGENT: u32 = 77;
    pub(super) const AGENT: u32 = 78;
    pub(super) const NO_PINENTRY: u32 = 85;
    pub(super) const PINENTRY: u32 = 86;
    pub(super) const CANCELED: u32 = 99;
    pub(super) const FULLY_CANCELED: u32 = 198;
    /// A system's errno: "not a terminal", which pinentry-curses says where there is none.
    pub(super) const NOT_A_TERMINAL: u32 = 0x8066;
    /// Low 16 bits: the code; above them, the source.
    pub(super) const MASK: u32 = 0xffff;
}

impl GpgFault {
    /// Returns the fault of gpg's home folder, if there is one.
    pub(super) fn of_home(home: &GpgHome) -> Option<Self> {
        let what = match home.path.metadata() {
            Ok(there) if there.is_dir() => return None,
            Ok(_) => "something that is no folder",
            Err(why) if why.kind() == io::ErrorKind::NotFound => "a folder that does not exist",
            Err(_) => "a folder that cannot be reached",
        };
        Some(Self::NoHome {
            variable: home.variable,
            what,
            uid: rustix::process::geteuid().as_raw(),
        })
    }

    /// There is no such secret key.
    pub(super) fn no_secret_key(key: Option<String>) -> Self {
        Self::NoSecretKey {
            key,
            uid: rustix::process::geteuid().as_raw(),
        }
    }

    /// Maps a code of libgpg-error to a fault of signing; `None` if there is none.
    pub(super) fn of_code(number: u32, key: Option<String>) -> Option<Self> {
        let fault = match number & code::MASK {
            code::NO_SECRET_KEY => Self::no_secret_key(key),
            code::NO_PINENTRY | code::PINENTRY | code::NOT_A_TERMINAL => Self::NoPinentry,
            code::CANCELED | code::FULLY_CANCELED => Self::Cancelled,
            code::TIMEOUT => Self::Unanswered,
            code::BAD_PASSPHRASE => Self::Passphrase,
            code::NO_AGENT | code::AGENT => Self::NoAgent(NoAgent::Other),
            _ => return None,
        };
        Some(fault)
    }
}

/// Seconds since 1970 as RFC 3339 in UTC; a time that no calendar has as its number.
pub(super) fn rfc3339(seconds: u64) -> String {
    let time = i64::try_from(seconds).ok().map(Timestamp::from_second);
    time.and_then(Result::ok)
        .map_or_else(|| seconds.to_string(), |time| time.to_string())
}

/// The day of a time in seconds since 1970, in UTC.
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
