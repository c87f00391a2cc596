//! The secret keys that gpg lists (`doc/DETAILS` of GnuPG, "Format of the colon listings"): which of them signs, and why none can.

use super::fault::UnfitKey;

/// A secret key with its subkeys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct GpgKey {
    /// The key itself.
    primary: KeyPart,
    subkeys: Vec<KeyPart>,
    /// True if gpg takes it for signing as it is now: an `S` among its capabilities.
    signs: bool,
    disabled: bool,
}

/// A key or subkey.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct KeyPart {
    fingerprint: String,
    validity: char,
    /// Seconds since 1970.
    created: u64,
    /// Seconds since 1970; `None`: never.
    expires: Option<u64>,
    /// It was made to sign.
    for_signing: bool,
    /// Where its secret is: `+` here, `#` nowhere, else the serial number of a smartcard.
    token: String,
}

/// The key that will sign.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Signer {
    /// Fingerprint of the key, in upper-case hexadecimal.
    pub(super) key: String,
    /// Fingerprint of the one subkey that may sign; `None`: gpg chooses among the key's own.
    pub(super) exactly: Option<String>,
    /// Serial number of the smartcard on which the secret is.
    pub(super) card: Option<String>,
}

impl Signer {
    /// The value of `--local-user`.
    pub(super) fn user(&self) -> String {
        self.exactly
            .as_ref()
            .map_or_else(|| self.key.clone(), |subkey| format!("{subkey}!"))
    }

    /// Returns whether a signature by this subkey of this key is by the signer.
    pub(super) fn is(&self, subkey: &str, key: &str) -> bool {
        self.key == key && self.exactly.as_ref().is_none_or(|exact| exact == subkey)
    }
}

/// Reads a listing of secret keys with their fingerprints.
pub(super) fn read(listing: &str) -> Vec<GpgKey> {
    let mut keys: Vec<GpgKey> = Vec::new();
    for line in listing.lines() {
        let fields: Vec<&str> = line.split(':').collect();
        let field = |number: usize| fields.get(number - 1).copied().unwrap_or_default();
        match field(1) {
            "sec" => keys.push(GpgKey {
                primary: KeyPart::read(&field),
                subkeys: Vec::new(),
                signs: field(12).contains('S'),
                disabled: field(12).contains('D'),
            }),
            "ssb" => {
                if let Some(key) = keys.last_mut() {
                    key.subkeys.push(KeyPart::read(&field));
                }
            }
            "fpr" => {
                if let Some(key) = keys.last_mut() {
                    let part = key.subkeys.last_mut().unwrap_or(&mut key.primary);
                    part.fingerprint = field(10).to_ascii_uppercase();
                }
            }
            _ => {}
        }
    }
    keys
}

/// The one of these keys that signs, at this time in seconds since 1970; with `exactly`, by this subkey (a fingerprint or the
/// end of one).
///
/// `Err(None)`: there is none. Otherwise why the first of them cannot sign, and its fingerprint.
pub(super) fn choose(
    keys: &[GpgKey],
    exactly: Option<&str>,
    now: u64,
) -> Result<Signer, Option<(String, UnfitKey)>> {
    let mut first = None;
    for key in keys {
        match key.signer(exactly, now) {
            Ok(signer) => return Ok(signer),
            Err(why) => {
                let named = exactly.and_then(|id| key.part(id)).unwrap_or(&key.primary);
                first.get_or_insert((named.fingerprint.clone(), why));
            }
        }
    }
    Err(first)
}

impl GpgKey {
    /// The key or subkey of this fingerprint, or end of one.
    fn part(&self, id: &str) -> Option<&KeyPart> {
        let id = id.to_ascii_uppercase();
        self.parts().find(|part| part.fingerprint.ends_with(&id))
    }

    fn parts(&self) -> impl Iterator<Item = &KeyPart> {
        std::iter::once(&self.primary).chain(&self.subkeys)
    }

    fn signer(&self, exactly: Option<&str>, now: u64) -> Result<Signer, UnfitKey> {
        if self.disabled {
            return Err(UnfitKey::Disabled);
        }
        // What is wrong with the key is so with each of its subkeys.
        self.primary.check(now)?;
        let exact = match exactly {
            Some(id) => Some(self.part(id).ok_or(UnfitKey::NotForSigning)?),
            None => None,
        };
        let mut why = UnfitKey::NotForSigning;
        let mut card = None;
        let mut any = false;
        let may_sign = |part: &&KeyPart| part.for_signing && exact.is_none_or(|it| it == *part);
        for part in self.parts().filter(may_sign) {
            match part.check(now).and_then(|()| part.secret()) {
                Ok(token) => {
                    any = true;
                    // The last usable one is the newest, which gpg takes.
                    card = token;
                }
                Err(fault) => why = fault,
            }
        }
        if !any || (exact.is_none() && !self.signs) {
            return Err(why);
        }
        Ok(Signer {
            key: self.primary.fingerprint.clone(),
            exactly: exact.map(|part| part.fingerprint.clone()),
            card,
        })
    }
}

impl KeyPart {
    fn read<'a>(field: &impl Fn(usize) -> &'a str) -> Self {
        Self {
            fingerprint: String::new(),
            validity: field(2).chars().next().unwrap_or('-'),
            created: field(6).parse().unwrap_or(0),
            expires: field(7).parse().ok(),
            for_signing: field(12).contains('s'),
            token: field(15).to_owned(),
        }
    }

    /// Whether it may sign now.
    fn check(&self, now: u64) -> Result<(), UnfitKey> {
        match self.validity {
            'r' => Err(UnfitKey::Revoked),
            _ if self.created > now => Err(UnfitKey::Future(self.created)),
            'e' => Err(UnfitKey::Expired(self.expires)),
            'i' => Err(UnfitKey::Invalid),
            _ => Ok(()),
        }
    }

    /// The smartcard that holds its secret, if one does.
    fn secret(&self) -> Result<Option<String>, UnfitKey> {
        match self.token.as_str() {
            "+" | "" => Ok(None),
            "#" => Err(UnfitKey::Elsewhere),
            serial => Ok(Some(serial.to_owned())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = 1_800_000_000;
    const A: &str = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";
    const B: &str = "BBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBB";

    /// A key with a subkey, as gpg lists them: validity, creation, expiry, capabilities, token.
    fn listed(key: [&str; 5], subkey: [&str; 5]) -> String {
        let record = |kind: &str, id: &str, [validity, created, expires, can, token]: [&str; 5]| {
            format!(
                "{kind}:{validity}:255:22:0:{created}:{expires}::u:::{can}:::{token}::ed25519:::0:\nfpr:::::::::{id}:\n"
            )
        };
        record("sec", A, key) + &record("ssb", B, subkey)
    }

    #[track_caller]
    fn chosen(listing: &str, exactly: Option<&str>) -> Result<Signer, Option<(String, UnfitKey)>> {
        choose(&read(listing), exactly, NOW)
    }

    #[test]
    fn a_key_signs_with_what_it_has_for_that() {
        let signer = |exactly: Option<&str>, card: Option<&str>| Signer {
            key: A.to_owned(),
            exactly: exactly.map(str::to_owned),
            card: card.map(str::to_owned),
        };
        let good = ["u", "1600000000", "", "scSC", "+"];
        let encrypts = ["u", "1600000000", "", "e", "+"];
        let one = listed(good, encrypts);
        assert_eq!(chosen(&one, None), Ok(signer(None, None)));
        assert_eq!(chosen(&one, None).unwrap().user(), A);
        // A key that is kept offline signs by its subkey; one on a card is named by its card.
        let offline = ["u", "1600000000", "", "cSC", "#"];
        let subkey = ["u", "1600000000", "", "s", "D2760001"];
        let two = listed(offline, subkey);
        assert_eq!(chosen(&two, None), Ok(signer(None, Some("D2760001"))));
        let exact = chosen(&two, Some("bbbbbbbbbbbbbbbb")).unwrap();
        assert_eq!(exact, signer(Some(B), Some("D2760001")));
        assert_eq!(exact.user(), format!("{B}!"));
        assert!(exact.is(B, A) && !exact.is(A, A) && !exact.is(B, B));
        let any = signer(None, None);
        assert!(any.is(B, A) && any.is(A, A) && !any.is(A, B));
    }

    #[test]
    fn why_a_key_cannot_sign_is_known() {
        let fine = ["u", "1600000000", "", "e", "+"];
        for (key, subkey, exactly, why) in [
            (
                ["e", "1600000000", "1700000000", "sc", "+"],
                fine,
                None,
                UnfitKey::Expired(Some(1_700_000_000)),
            ),
            (
                ["r", "1600000000", "", "sc", "+"],
                fine,
                None,
                UnfitKey::Revoked,
            ),
            (
                ["i", "1900000000", "", "sca", "+"],
                fine,
                None,
                UnfitKey::Future(1_900_000_000),
            ),
            (
                ["i", "1600000000", "", "sc", "+"],
                fine,
                None,
                UnfitKey::Invalid,
            ),
            (
                ["u", "1600000000", "", "scSCD", "+"],
                fine,
                None,
                UnfitKey::Disabled,
            ),
            (
                ["u", "1600000000", "", "cEC", "+"],
                fine,
                None,
                UnfitKey::NotForSigning,
            ),
            (
                ["u", "1600000000", "", "cC", "+"],
                ["e", "1600000000", "1700000000", "s", "+"],
                None,
                UnfitKey::Expired(Some(1_700_000_000)),
            ),
            (
                ["u", "1600000000", "", "cC", "+"],
                ["r", "1600000000", "", "s", "+"],
                None,
                UnfitKey::Revoked,
            ),
            (
                ["u", "1600000000", "", "scSC", "#"],
                fine,
                None,
                UnfitKey::Elsewhere,
            ),
            (
                ["u", "1600000000", "", "scSC", "+"],
                fine,
                Some(B),
                UnfitKey::NotForSigning,
            ),
        ] {
            let listing = listed(key, subkey);
            assert_eq!(
                chosen(&listing, exactly),
                Err(Some((exactly.unwrap_or(A).to_owned(), why))),
                "{listing}"
            );
        }
        assert_eq!(chosen("", None), Err(None));
        assert_eq!(
            chosen("tru::1:1:0:3:1:5\nfpr:::::::::X:\nnonsense\n", None),
            Err(None)
        );
    }

    #[test]
    fn the_first_that_can_sign_is_the_default() {
        let expired = "sec:e:255:22:0:1600000000:1700000000::u:::sc:::+:\nfpr:::::::::AA:\n";
        let good = "sec:u:255:22:0:1600000000:::u:::scSC:::+:\nfpr:::::::::BB:\n";
        let signer = chosen(&format!("{expired}{good}{good}"), None).unwrap();
        assert_eq!(signer.key, "BB");
        let none = chosen(&format!("{expired}{expired}"), None);
        assert_eq!(
            none,
            Err(Some((
                "AA".to_owned(),
                UnfitKey::Expired(Some(1_700_000_000))
            )))
        );
    }
}
