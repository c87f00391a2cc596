//! Reads gpg's status lines (`doc/DETAILS` of GnuPG), and as much of its stderr as is safe to pass on.

use super::fault::{GpgFault, rfc3339};

/// Maximum length of a piece of gpg's own words that a caller gets to see, in characters.
const REASON_MAX: usize = 120;

/// A good signature, by the parts of `VALIDSIG`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Good {
    public_key_algorithm: u8,
    digest_algorithm: u8,
    /// Seconds since 1970.
    seconds: u64,
    /// Fingerprint of the key or subkey that signed, in upper-case hexadecimal.
    pub(super) fingerprint: String,
    /// Fingerprint of the key that it belongs to.
    pub(super) key: String,
}

impl Good {
    /// Reads what a gpg that verified one message said.
    ///
    /// # Errors
    ///
    /// Why that is not exactly one good signature of bytes.
    pub(super) fn read(text: &str) -> Result<Self, &'static str> {
        let count = |keyword: &str| status(text).filter(|line| word(line) == keyword).count();
        if count("BADSIG") > 0 {
            return Err("it covers something else");
        }
        if count("NEWSIG") != 1 || count("GOODSIG") != 1 {
            return Err("it is not one good signature");
        }
        let mut valid = status(text).filter_map(|line| line.strip_prefix("VALIDSIG "));
        let (Some(line), None) = (valid.next(), valid.next()) else {
            return Err("it is not one valid signature");
        };
        Self::valid(line).ok_or("it is of an unknown form")
    }

    /// Reads `FINGERPRINT DATE TIME EXPIRES VERSION RESERVED PK HASH CLASS KEY`; the class is that of bytes.
    fn valid(line: &str) -> Option<Self> {
        let [
            fingerprint,
            _,
            seconds,
            _,
            _,
            _,
            public_key,
            digest,
            class,
            key,
        ] = <[&str; 10]>::try_from(line.split(' ').collect::<Vec<_>>()).ok()?;
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

    /// Kind of key and digest by the names of RFC 9580, such as `EdDSA with SHA512`.
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

    /// When it was signed: RFC 3339, UTC.
    pub(super) fn time(&self) -> String {
        rfc3339(self.seconds)
    }
}

/// Returns why gpg did not sign, or did not list its keys, from all that it wrote on stderr.
pub(super) fn fault(stderr: &str, key: Option<String>) -> GpgFault {
    let failed = |keyword: &str| status(stderr).find_map(|line| line.strip_prefix(keyword));
    failed("FAILURE sign ")
        .or_else(|| failed("ERROR keylist.getkey "))
        .and_then(|code| word(code).parse().ok())
        .and_then(|code| GpgFault::of_code(code, key))
        .unwrap_or_else(|| GpgFault::Failed(reason(stderr)))
}

/// Returns whether an error of the agent's (`ERR CODE WORDS`, without its first word) says that nothing talks to smartcards here.
pub(super) fn is_no_card_daemon(error: &str) -> bool {
    const NO_SCDAEMON: u32 = 119;
    let code = word(error).parse::<u32>();
    code.is_ok_and(|code| code & 0xffff == NO_SCDAEMON)
}

/// The first word of a line.
fn word(line: &str) -> &str {
    line.split(' ').next().unwrap_or_default()
}

/// The status lines without their mark.
fn status(stderr: &str) -> impl Iterator<Item = &str> {
    stderr
        .lines()
        .filter_map(|line| line.strip_prefix("[GNUPG:] "))
}

/// The end of gpg's last own line (`gpg: signing failed: No pinentry`), unless it names a path or is not plain.
fn reason(stderr: &str) -> Option<String> {
    let line = stderr
        .lines()
        .rfind(|line| line.starts_with("gpg: ") && line.contains(": "))?;
    let (_, end) = line.rsplit_once(": ")?;
    let plain = |text: char| text.is_alphanumeric() || " ,.'()-_".contains(text);
    (!end.is_empty() && end.chars().all(plain))
        .then(|| end.chars().take(REASON_MAX).collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::*;

    const VERIFIED: &str = "[GNUPG:] NEWSIG g@example.org\n\
        [GNUPG:] KEY_CONSIDERED 108352B8E8B3E84BF58DD06AF668A259B66767BB 0\n\
        [GNUPG:] SIG_ID xyz 2026-11-22 1795354138\n\
        [GNUPG:] GOODSIG F668A259B66767BB G <g@example.org>\n\
        [GNUPG:] VALIDSIG 108352B8E8B3E84BF58DD06AF668A259B66767BB 2026-11-22 1795354138 0 4 0 22 10 00 208352B8E8B3E84BF58DD06AF668A259B66767BB\n\
        [GNUPG:] TRUST_ULTIMATE 0 always\n";

    #[test]
    fn a_good_signature_is_read_from_its_lines() {
        let good = Good::read(VERIFIED).unwrap();
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
            ("", "it is not one good signature"),
            (twice.as_str(), "it is not one good signature"),
            (&without("GOODSIG "), "it is not one good signature"),
            (
                &VERIFIED.replace("GOODSIG", "EXPKEYSIG"),
                "it is not one good signature",
            ),
            (
                &VERIFIED.replace("GOODSIG", "BADSIG"),
                "it covers something else",
            ),
            (&without("VALIDSIG "), "it is not one valid signature"),
            // Of text, whose line ends and spaces do not count.
            (
                &VERIFIED.replace("10 00", "10 01"),
                "it is of an unknown form",
            ),
            (
                &VERIFIED.replace("VALIDSIG 1083", "VALIDSIG 10"),
                "it is of an unknown form",
            ),
            (
                &VERIFIED.replace("[GNUPG:] NEWSIG", "NEWSIG"),
                "it is not one good signature",
            ),
        ] {
            assert_eq!(Good::read(said), Err(why), "{said}");
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
