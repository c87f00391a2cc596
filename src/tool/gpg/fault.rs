//! Why gpg did not sign, from the codes that it reports, with what to do next.

use std::io;

use crate::tool::GpgHome;

/// Why gpg did not sign.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GpgFault {
    /// There is no such secret key.
    #[error(
        "no secret key{}; import or create one for the user that serves (uid {uid}) on the provider",
        named(.key.as_deref())
    )]
    NoSecretKey {
        /// What was asked for; `None`: the default key.
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
        /// What is there instead.
        what: &'static str,
        /// The user that serves.
        uid: u32,
    },
    /// The key is there and must not sign: expired, revoked, or not for signing.
    #[error(
        "the secret key{} cannot sign: it is expired, revoked or not for signing; renew it on the provider",
        named(.key.as_deref())
    )]
    Unusable {
        /// What was asked for; `None`: the default key.
        key: Option<String>,
    },
    /// The key has a passphrase and there is no way to ask for it.
    #[error(
        "the key needs a passphrase, and no pinentry can ask for it on the provider; unlock the key there first, \
         install a graphical pinentry, or use a key without a passphrase"
    )]
    NoPinentry,
    /// Whoever was asked said no.
    #[error("the passphrase prompt was cancelled on the provider")]
    Cancelled,
    /// Nobody answered the prompt.
    #[error("nobody answered the passphrase prompt on the provider")]
    Unanswered,
    /// The passphrase was wrong.
    #[error("wrong passphrase for the key on the provider")]
    Passphrase,
    /// gpg-agent cannot be reached.
    #[error(
        "gpg cannot reach its agent on the provider; run `gpgconf --launch gpg-agent` as the user that serves"
    )]
    NoAgent,
    /// Something else.
    #[error("gpg failed{}", reason(.0.as_deref()))]
    Failed(
        /// gpg's own words, cleaned.
        Option<String>,
    ),
}

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
    pub(super) const UNUSABLE_PUBLIC_KEY: u32 = 53;
    pub(super) const UNUSABLE_SECRET_KEY: u32 = 54;
    pub(super) const TIMEOUT: u32 = 62;
    pub(super) const NO_AGENT: u32 = 77;
    pub(super) const AGENT: u32 = 78;
    pub(super) const NO_PINENTRY: u32 = 85;
    pub(super) const PINENTRY: u32 = 86;
    pub(super) const CANCELED: u32 = 99;
    pub(super) const KEY_EXPIRED: u32 = 153;
    pub(super) const FULLY_CANCELED: u32 = 198;
    /// A system's errno: "not a terminal", which pinentry-curses says where there is none.
    pub(super) const NOT_A_TERMINAL: u32 = 0x8066;
    /// Low 16 bits: the code; above them, the source.
    pub(super) const MASK: u32 = 0xffff;
}

impl GpgFault {
    /// What is wrong with the folder that gpg starts from, if anything is.
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

    /// What a code of libgpg-error means for a signature; `None`: nothing that this room has words for.
    pub(super) fn of_code(number: u32, key: Option<String>) -> Option<Self> {
        let fault = match number & code::MASK {
            code::NO_SECRET_KEY => Self::NoSecretKey {
                key,
                uid: rustix::process::geteuid().as_raw(),
            },
            code::UNUSABLE_PUBLIC_KEY | code::UNUSABLE_SECRET_KEY | code::KEY_EXPIRED => {
                Self::Unusable { key }
            }
            code::NO_PINENTRY | code::PINENTRY | code::NOT_A_TERMINAL => Self::NoPinentry,
            code::CANCELED | code::FULLY_CANCELED => Self::Cancelled,
            code::TIMEOUT => Self::Unanswered,
            code::BAD_PASSPHRASE => Self::Passphrase,
            code::NO_AGENT | code::AGENT => Self::NoAgent,
            _ => return None,
        };
        Some(fault)
    }
}
