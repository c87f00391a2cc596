//! What gpg says on its status lines (`doc/DETAILS` of GnuPG), and no more of its stderr than is safe to pass on.

use super::fault::GpgFault;

/// Longest piece of gpg's own words that a caller gets to see, in characters.
const REASON_MAX: usize = 120;

/// The parts of `SIG_CREATED`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Created {
    public_key_algorithm: u8,
    digest_algorithm: u8,
    /// Seconds since 1970.
    seconds: u64,
    /// Fingerprint of the key that signed, in upper-case hexadecimal.
    pub(super) fingerprint: String,
}

impl Created {
    /// Finds and reads the line `SIG_CREATED TYPE PK HASH CLASS TIME FINGERPRINT` of a detached signature.
    pub(super) fn find(stderr: &str) -> Option<Self> {
        let line = status(stderr).find_map(|line| line.strip_prefix("SIG_CREATED "))?;
        let [kind, public_key, digest, _class, seconds, fingerprint] =
            <[&str; 6]>::try_from(line.split(' ').collect::<Vec<_>>()).ok()?;
        let shaped = matches!(fingerprint.len(), 40 | 64)
            && fingerprint.bytes().all(|byte| byte.is_ascii_hexdigit());
        (kind == "D" && shaped).then_some(())?;
        Some(Self {
            public_key_algorithm: public_key.parse().ok()?,
            digest_algorithm: digest.parse().ok()?,
            seconds: seconds.parse().ok()?,
            fingerprint: fingerprint.to_ascii_uppercase(),
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

/// Why gpg did not sign, from all that it wrote on stderr.
pub(super) fn fault(stderr: &str, key: Option<String>) -> GpgFault {
    status(stderr)
        .find_map(|line| line.strip_prefix("FAILURE sign "))
        .and_then(|code| code.split(' ').next()?.parse().ok())
        .and_then(|code| GpgFault::of_code(code, key))
        .unwrap_or_else(|| GpgFault::Failed(reason(stderr)))
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

/// Seconds since 1970 as RFC 3339 in UTC.
fn rfc3339(seconds: u64) -> String {
    const DAY: u64 = 86_400;
    let (year, month, day) = civil(seconds / DAY);
    let (hour, minute, second) = (seconds % DAY / 3600, seconds % 3600 / 60, seconds % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

/// Year, month and day of a day since 1970-01-01, by counting in years that begin in March, whose leap day is last.
const fn civil(day: u64) -> (u64, u64, u64) {
    const DAYS_OF_400_YEARS: u64 = 146_097;
    // Days since 0000-03-01.
    let day = day + 719_468;
    let era = day / DAYS_OF_400_YEARS;
    let day = day % DAYS_OF_400_YEARS;
    let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let (month, carry) = if month < 10 {
        (month + 3, 0)
    } else {
        (month - 9, 1)
    };
    (era * 400 + year + carry, month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIGNED: &str = "gpg: checking the trustdb\n\
        [GNUPG:] KEY_CONSIDERED 108352B8E8B3E84BF58DD06AF668A259B66767BB 2\n\
        [GNUPG:] BEGIN_SIGNING H8\n\
        [GNUPG:] SIG_CREATED D 22 8 00 1795354138 108352B8E8B3E84BF58DD06AF668A259B66767BB\n";

    #[test]
    fn a_created_signature_is_read_from_its_line() {
        let created = Created::find(SIGNED).unwrap();
        assert_eq!(
            created.fingerprint,
            "108352B8E8B3E84BF58DD06AF668A259B66767BB"
        );
        assert_eq!(created.algorithm(), "EdDSA with SHA256");
        assert_eq!(created.time(), "2026-11-22T13:28:58Z");
    }

    #[test]
    fn what_is_no_such_line_is_no_signature() {
        for other in [
            "",
            "SIG_CREATED D 22 8 00 1 108352B8E8B3E84BF58DD06AF668A259B66767BB",
            "[GNUPG:] SIG_CREATED S 22 8 00 1 108352B8E8B3E84BF58DD06AF668A259B66767BB",
            "[GNUPG:] SIG_CREATED D 22 8 00 1 short",
            "[GNUPG:] SIG_CREATED D 22 8 00 108352B8E8B3E84BF58DD06AF668A259B66767BB",
        ] {
            assert_eq!(Created::find(other), None, "{other}");
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
        assert!(code(54).starts_with("the secret key cannot sign"));
        assert!(code(67_108_949).contains("no pinentry"));
        assert!(code(83_918_950).contains("no pinentry"));
        assert!(code(83_886_179).contains("cancelled"));
        assert!(code(67_108_875).contains("wrong passphrase"));
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
