//! Reads gpg's output (see GnuPG's `doc/DETAILS`): its listing of secret keys, its status lines, and as much of its
//! stderr as is safe to pass on.

use super::fault::{GpgFault, UnfitKey, rfc3339};

/// Maximum length of gpg's own words in a message to a caller, in characters.
const REASON_MAX: usize = 120;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct GpgKey {
    primary: KeyPart,
    subkeys: Vec<KeyPart>,
    /// True if gpg would sign with it now: an `S` among its capabilities.
    signs: bool,
    disabled: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct KeyPart {
    fingerprint: String,
    validity: char,
    /// Seconds since 1970.
    created: u64,
    /// Seconds since 1970; `None`: never.
    expires: Option<u64>,
    for_signing: bool,
    for_certifying: bool,
    /// The location of its secret: `+` for here, `#` for nowhere, otherwise the serial number of a smartcard.
    token: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Signer {
    /// Fingerprint of the key, in upper-case hexadecimal.
    pub(super) key: String,
    /// Fingerprint of the one subkey that may sign; `None`: gpg chooses.
    pub(super) exactly: Option<String>,
    /// Serial number of the smartcard that holds the secret.
    pub(super) card: Option<String>,
    /// True if the key or subkey that signs can also certify keys.
    pub(super) certifies: bool,
}

impl Signer {
    /// Returns the value of `--local-user`.
    pub(super) fn user(&self) -> String {
        match &self.exactly {
            Some(subkey) => format!("{subkey}!"),
            None => self.key.clone(),
        }
    }

    /// Returns whether a signature by this subkey of this key is the signer's.
    pub(super) fn is(&self, subkey: &str, key: &str) -> bool {
        self.key == key && self.exactly.as_ref().is_none_or(|exact| exact == subkey)
    }
}

/// Maximum number of fingerprints or user IDs of a key that are passed on.
const PARTS_MAX: usize = 64;

/// The names of a key.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct PublicNames {
    /// Of the key and its subkeys that can sign.
    pub(super) fingerprints: Vec<String>,
    /// Those that are neither revoked nor expired.
    pub(super) user_ids: Vec<String>,
}

/// Reads a listing of one public key with its fingerprints.
pub(super) fn public(listing: &str) -> PublicNames {
    let mut names = PublicNames::default();
    let mut counts = false;
    for line in listing.lines() {
        let fields: Vec<&str> = line.split(':').collect();
        let field = |number: usize| fields.get(number - 1).copied().unwrap_or_default();
        let is_valid = !field(2).starts_with(['r', 'e', 'i']);
        match field(1) {
            "pub" => counts = true,
            "sub" => counts = is_valid && field(12).contains('s'),
            "fpr" if counts && names.fingerprints.len() < PARTS_MAX => {
                names.fingerprints.push(field(10).to_ascii_uppercase());
            }
            "uid" if is_valid && names.user_ids.len() < PARTS_MAX => {
                names.user_ids.push(unescaped(field(10)));
            }
            _ => {}
        }
    }
    names
}

/// Decodes the `\xHH` of a field; anything else stays as it is.
fn unescaped(field: &str) -> String {
    let mut bytes = Vec::new();
    let mut parts = field.split("\\x");
    bytes.extend_from_slice(parts.next().unwrap_or_default().as_bytes());
    for part in parts {
        let code = part
            .get(..2)
            .and_then(|code| u8::from_str_radix(code, 16).ok());
        if let (Some(code), Some(rest)) = (code, part.get(2..)) {
            bytes.push(code);
            bytes.extend_from_slice(rest.as_bytes());
        } else {
            bytes.extend_from_slice(b"\\x");
            bytes.extend_from_slice(part.as_bytes());
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Reads a listing of secret keys with their fingerprints.
pub(super) fn read_keys(listing: &str) -> Vec<GpgKey> {
    let mut keys: Vec<GpgKey> = Vec::new();
    for line in listing.lines() {
        let fields: Vec<&str> = line.split(':').collect();
        let field = |number: usize| fields.get(number - 1).copied().unwrap_or_default();
        match (field(1), keys.last_mut()) {
            ("sec", _) => keys.push(GpgKey {
                primary: KeyPart::read(&field),
                subkeys: Vec::new(),
                signs: field(12).contains('S'),
                disabled: field(12).contains('D'),
            }),
            ("ssb", Some(key)) => key.subkeys.push(KeyPart::read(&field)),
            ("fpr", Some(key)) => {
                let part = key.subkeys.last_mut().unwrap_or(&mut key.primary);
                part.fingerprint = field(10).to_ascii_uppercase();
            }
            _ => {}
        }
    }
    keys
}

/// Chooses the first key that can sign at this time, in seconds since 1970; with `exactly`, only with this subkey (a
/// fingerprint or the end of one).
///
/// # Errors
///
/// `None` if there are no keys; otherwise the first key's fingerprint, and the reason why that key cannot sign.
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
    /// Returns the key or subkey whose fingerprint is or ends with this ID.
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
        // A fault in the primary key affects all its subkeys.
        self.primary.check(now)?;
        let exact = exactly.map(|id| self.part(id).ok_or(UnfitKey::NotForSigning));
        let exact = exact.transpose()?;
        let mut why = UnfitKey::NotForSigning;
        let mut card = None;
        let may_sign = |part: &&KeyPart| part.for_signing && exact.is_none_or(|it| it == *part);
        for part in self.parts().filter(may_sign) {
            match part.check(now).and_then(|()| part.secret()) {
                // The last usable one is the newest, which gpg uses.
                Ok(token) => card = Some((token, part.for_certifying)),
                Err(fault) => why = fault,
            }
        }
        match card {
            Some((card, certifies)) if exact.is_some() || self.signs => Ok(Signer {
                key: self.primary.fingerprint.clone(),
                exactly: exact.map(|part| part.fingerprint.clone()),
                card,
                certifies,
            }),
            _ => Err(why),
        }
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
            for_certifying: field(12).contains('c'),
            token: field(15).to_owned(),
        }
    }

    /// Refuses a key that cannot sign now.
    fn check(&self, now: u64) -> Result<(), UnfitKey> {
        match self.validity {
            'r' => Err(UnfitKey::Revoked),
            _ if self.created > now => Err(UnfitKey::Future(self.created)),
            'e' => Err(UnfitKey::Expired(self.expires)),
            'i' => Err(UnfitKey::Invalid),
            _ => Ok(()),
        }
    }

    /// Returns the serial number of the smartcard that holds its secret, if one does.
    fn secret(&self) -> Result<Option<String>, UnfitKey> {
        match self.token.as_str() {
            "+" | "" => Ok(None),
            "#" => Err(UnfitKey::Elsewhere),
            serial => Ok(Some(serial.to_owned())),
        }
    }
}

/// A good signature, described by the fields of `VALIDSIG`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct GoodSignature {
    public_key_algorithm: u8,
    digest_algorithm: u8,
    /// Seconds since 1970.
    seconds: u64,
    /// Fingerprint of the key or subkey that signed, in upper-case hexadecimal.
    pub(super) fingerprint: String,
    /// Fingerprint of the key that it belongs to.
    pub(super) key: String,
}

impl GoodSignature {
    /// Reads the status lines of a gpg that has verified one message.
    ///
    /// # Errors
    ///
    /// The reason why they do not report exactly one good signature of bytes.
    pub(super) fn read(text: &str) -> Result<Self, &'static str> {
        let count = |keyword: &str| status(text).filter(|line| word(line) == keyword).count();
        if count("BADSIG") > 0 {
            return Err("it covers something else");
        }
        if count("NEWSIG") != 1 || count("GOODSIG") != 1 {
            return Err("there is not exactly one good signature");
        }
        let mut valid = status(text).filter_map(|line| line.strip_prefix("VALIDSIG "));
        let (Some(line), None) = (valid.next(), valid.next()) else {
            return Err("there is not exactly one valid signature");
        };
        Self::valid(line).ok_or("its format is unknown")
    }

    /// Reads `FINGERPRINT DATE TIME EXPIRES VERSION RESERVED PK HASH CLASS KEY`; the class must be the type for bytes.
    fn valid(line: &str) -> Option<Self> {
        let fields: Vec<&str> = line.split(' ').collect();
        let [fingerprint, _, seconds, .., public_key, digest, class, key] =
            <[&str; 10]>::try_from(fields).ok()?;
        let is_fingerprint = |text: &str| {
            matches!(text.len(), 40 | 64) && text.bytes().all(|byte| byte.is_ascii_hexdigit())
        };
        (class == "00" && is_fingerprint(fingerprint) && is_fingerprint(key)).then_some(())?;
        Some(Self {
            public_key_algorithm: public_key.parse().ok()?,
            digest_algorithm: digest.parse().ok()?,
            seconds: seconds.parse().ok()?,
            fingerprint: fingerprint.to_ascii_uppercase(),
            key: key.to_ascii_uppercase(),
        })
    }

    /// Names the key and digest algorithms as RFC 9580 does, such as `EdDSA with SHA512`.
    pub(super) fn algorithm(&self) -> String {
        let key = match self.public_key_algorithm {
            1 | 3 => "RSA",
            17 => "DSA",
            19 => "ECDSA",
            22 => "EdDSA",
            27 => "Ed25519",
            28 => "Ed448",
            _ => "unknown",
        };
        let digest = match self.digest_algorithm {
            1 => "MD5",
            2 => "SHA1",
            3 => "RIPEMD160",
            8 => "SHA256",
            9 => "SHA384",
            10 => "SHA512",
            11 => "SHA224",
            12 => "SHA3-256",
            14 => "SHA3-512",
            _ => "unknown",
        };
        format!("{key} with {digest}")
    }

    /// Returns the time of the signature, in RFC 3339 format and UTC.
    pub(super) fn time(&self) -> String {
        rfc3339(self.seconds)
    }
}

/// Determines from gpg's stderr why it did not sign or did not list its keys.
pub(super) fn fault(stderr: &str, key: Option<String>) -> GpgFault {
    let failed = |keyword: &str| status(stderr).find_map(|line| line.strip_prefix(keyword));
    failed("FAILURE sign ")
        .or_else(|| failed("ERROR keylist.getkey "))
        .and_then(|code| word(code).parse().ok())
        .and_then(|code| GpgFault::of_code(code, key))
        .unwrap_or_else(|| GpgFault::Failed(reason(stderr)))
}

/// Returns whether an agent error (`CODE WORDS`) says that scdaemon, which talks to smartcards, is missing.
pub(super) fn is_no_card_daemon(error: &str) -> bool {
    const NO_SCDAEMON: u32 = 119;
    let code = word(error).parse::<u32>();
    code.is_ok_and(|code| code & 0xffff == NO_SCDAEMON)
}

fn word(line: &str) -> &str {
    line.split(' ').next().unwrap_or_default()
}

/// Returns the status lines without their prefix.
fn status(stderr: &str) -> impl Iterator<Item = &str> {
    stderr
        .lines()
        .filter_map(|line| line.strip_prefix("[GNUPG:] "))
}

/// Returns the end of the last line from gpg itself (`gpg: signing failed: No pinentry`), if plain and without paths.
fn reason(stderr: &str) -> Option<String> {
    let line = stderr
        .lines()
        .rfind(|line| line.starts_with("gpg: ") && line.contains(": "))?;
    let (_, end) = line.rsplit_once(": ")?;
    let plain = |text: char| text.is_alphanumeric() || " ,.'()-_".contains(text);
    let is_plain = !end.is_empty() && end.chars().all(plain);
    is_plain.then(|| end.chars().take(REASON_MAX).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = 1_800_000_000;
    const A: &str = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";
    const B: &str = "BBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBB";

    /// Returns gpg's listing of a key and a subkey: the validity, creation, expiry, capabilities and token of each.
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
        choose(&read_keys(listing), exactly, NOW)
    }

    #[test]
    fn a_key_signs_with_what_it_has_for_that() {
        let signer = |exactly: Option<&str>, card: Option<&str>| Signer {
            key: A.to_owned(),
            exactly: exactly.map(str::to_owned),
            card: card.map(str::to_owned),
            // Here, what is on no card is the primary key.
            certifies: card.is_none(),
        };
        let good = ["u", "1600000000", "", "scSC", "+"];
        let encrypts = ["u", "1600000000", "", "e", "+"];
        let one = listed(good, encrypts);
        assert_eq!(chosen(&one, None), Ok(signer(None, None)));
        assert_eq!(chosen(&one, None).unwrap().user(), A);
        // An offline key signs with its subkey; a key on a card is identified by its card.
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

    const VERIFIED: &str = "[GNUPG:] NEWSIG g@example.org\n\
        [GNUPG:] KEY_CONSIDERED 108352B8E8B3E84BF58DD06AF668A259B66767BB 0\n\
        [GNUPG:] SIG_ID xyz 2026-11-22 1795354138\n\
        [GNUPG:] GOODSIG F668A259B66767BB G <g@example.org>\n\
        [GNUPG:] VALIDSIG 108352B8E8B3E84BF58DD06AF668A259B66767BB 2026-11-22 1795354138 0 4 0 22 10 00 208352B8E8B3E84BF58DD06AF668A259B66767BB\n\
        [GNUPG:] TRUST_ULTIMATE 0 always\n";

    #[test]
    fn a_good_signature_is_read_from_its_lines() {
        let good = GoodSignature::read(VERIFIED).unwrap();
        assert_eq!(good.fingerprint, "108352B8E8B3E84BF58DD06AF668A259B66767BB");
        assert_eq!(good.key, "208352B8E8B3E84BF58DD06AF668A259B66767BB");
        assert_eq!(good.algorithm(), "EdDSA with SHA512");
        assert_eq!(good.time(), "2026-11-22T13:28:58Z");
    }

    #[test]
    fn what_is_not_one_good_signature_of_bytes_is_none() {
        let twice = VERIFIED.repeat(2);
        let without = |line: &str| VERIFIED.replace(line, "OTHER ");
        for (said, why) in [
            ("", "there is not exactly one good signature"),
            (twice.as_str(), "there is not exactly one good signature"),
            (
                &without("GOODSIG "),
                "there is not exactly one good signature",
            ),
            (
                &VERIFIED.replace("GOODSIG", "EXPKEYSIG"),
                "there is not exactly one good signature",
            ),
            (
                &VERIFIED.replace("GOODSIG", "BADSIG"),
                "it covers something else",
            ),
            (
                &without("VALIDSIG "),
                "there is not exactly one valid signature",
            ),
            // A text signature, which ignores line endings and trailing spaces.
            (&VERIFIED.replace("10 00", "10 01"), "its format is unknown"),
            (
                &VERIFIED.replace("VALIDSIG 1083", "VALIDSIG 10"),
                "its format is unknown",
            ),
            (
                &VERIFIED.replace("[GNUPG:] NEWSIG", "NEWSIG"),
                "there is not exactly one good signature",
            ),
        ] {
            assert_eq!(GoodSignature::read(said), Err(why), "{said}");
        }
    }

    #[test]
    fn failures_have_words_and_a_next_step() {
        let said = |stderr: &str| fault(stderr, None).to_string();
        let code = |code: u32| {
            said(&format!(
                "gpg: signing failed: x\n[GNUPG:] FAILURE sign {code}\n"
            ))
        };
        assert!(code(17).starts_with("no secret key; import or create one"));
        assert!(code(67_108_949).contains("no pinentry"));
        assert!(code(83_918_950).contains("no pinentry"));
        assert!(code(83_886_179).contains("cancelled"));
        assert!(code(67_108_875).contains("wrong passphrase"));
        let listed = said("[GNUPG:] ERROR keylist.getkey 33554509\n");
        assert!(
            listed.starts_with("gpg-agent cannot be started"),
            "{listed}"
        );
        let key = Some("0123456789ABCDEF".to_owned());
        let named = fault("[GNUPG:] FAILURE sign 17", key).to_string();
        assert!(
            named.starts_with("no secret key `0123456789ABCDEF`; "),
            "{named}"
        );
    }

    #[test]
    fn gpgs_own_words_are_passed_on_only_when_they_are_plain() {
        let said = |stderr: &str| fault(stderr, None).to_string();
        assert_eq!(
            said("gpg: signing failed: Not enough core\n"),
            "gpg failed: Not enough core"
        );
        assert_eq!(said("gpg: can't open: /root/.gnupg/x\n"), "gpg failed");
        assert_eq!(said("gpg: bad: \u{1b}[31mred\n"), "gpg failed");
        assert_eq!(said("sh: 1: no\n"), "gpg failed");
        assert_eq!(said(""), "gpg failed");
    }
}
