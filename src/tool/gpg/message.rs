//! Streams a signed OpenPGP message (RFC 9580 §5.4, §10.3): content first, signature last, so that a signature over
//! content of any size can be verified in constant memory while it is being made.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

/// The signature type for bytes, as opposed to lines of text.
const BINARY: u8 = 0;
/// OpenPGP's number for the digest algorithm SHA-512.
const SHA512: u8 = 10;
/// Minimum part length in a packet of unknown length, as an exponent of two; the standard requires 512 bytes.
const PART_MIN: u32 = 13;
/// Maximum part length, likewise.
const PART_MAX: u32 = 30;
/// First bytes of three packets: the announcement of a signature after the content, the content, and the signature.
const ONE_PASS: u8 = 0xc4;
const LITERAL: u8 = 0xcb;
const SIGNATURE: u8 = 0xc2;

#[derive(Debug)]
pub(super) struct Message {
    /// Content that does not yet fill a part.
    pending: Vec<u8>,
}

impl Message {
    /// Begins a message that will be signed with SHA-512, and returns its first bytes.
    pub(super) fn new() -> (Self, Vec<u8>) {
        // Not known yet; the verifier reads them from the signature.
        let (any_algorithm, any_key) = (0, [0; 8]);
        let mut start = vec![ONE_PASS, 13, 3, BINARY, SHA512, any_algorithm];
        start.extend_from_slice(&any_key);
        // 1: no other signature follows.
        start.extend([1, LITERAL]);
        // Binary content, no name, no time.
        let pending = vec![b'b', 0, 0, 0, 0, 0];
        (Self { pending }, start)
    }

    /// Adds content, and returns the complete parts of the message.
    pub(super) fn add(&mut self, content: &[u8]) -> Vec<u8> {
        self.pending.extend_from_slice(content);
        let mut out = Vec::with_capacity(content.len());
        loop {
            let power = self.pending.len().checked_ilog2().unwrap_or(0);
            if power < PART_MIN {
                return out;
            }
            let power = power.min(PART_MAX);
            // At most 30, so it fits.
            out.push(0xe0 | u8::try_from(power).unwrap_or(0));
            out.extend(self.pending.drain(..1 << power));
        }
    }

    /// Returns the rest of the message: the last content, and the signature from its ASCII armor; `None` unless the
    /// armor contains exactly one signature.
    pub(super) fn end(self, armored: &str) -> Option<Vec<u8>> {
        let signature = one_signature(armored)?;
        Some([long(self.pending.len())?, self.pending, signature].concat())
    }
}

/// Encodes a length in five bytes.
fn long(length: usize) -> Option<Vec<u8>> {
    let length = u32::try_from(length).ok()?;
    Some([&[0xff], length.to_be_bytes().as_slice()].concat())
}

/// Returns the only signature packet in ASCII armor, converted to the current packet format.
fn one_signature(armored: &str) -> Option<Vec<u8>> {
    let body = armored
        .strip_prefix("-----BEGIN PGP SIGNATURE-----\n")?
        .strip_suffix("-----END PGP SIGNATURE-----\n")?;
    // Headers such as `Comment:` end with an empty line.
    let (_, body) = body.split_once("\n\n").or_else(|| body.split_once('\n'))?;
    // The last line may be a checksum, which begins with `=`.
    let lines = body.lines().filter(|line| !line.starts_with('='));
    let bytes = STANDARD.decode(lines.collect::<String>()).ok()?;
    let contents = contents(&bytes)?;
    Some([&[SIGNATURE], long(contents.len())?.as_slice(), contents].concat())
}

/// Returns the contents of a signature packet in either format (RFC 9580 §4.2), if nothing follows the packet.
fn contents(bytes: &[u8]) -> Option<&[u8]> {
    let (&tag, rest) = bytes.split_first()?;
    let (length, rest) = match tag {
        // A signature in the legacy format, whose length has 1, 2 or 4 bytes.
        0x88..=0x8a => big_endian(rest, 1 << (tag & 3))?,
        SIGNATURE => match *rest.first()? {
            0..=191 => big_endian(rest, 1)?,
            192..=223 => {
                let (both, rest) = big_endian(rest, 2)?;
                (both.checked_sub(0xc000)? + 192, rest)
            }
            255 => big_endian(rest.get(1..)?, 4)?,
            _ => return None,
        },
        _ => return None,
    };
    (rest.len() == length).then_some(rest)
}

/// Reads a number from the first bytes, and returns it with the remaining bytes.
fn big_endian(bytes: &[u8], count: usize) -> Option<(usize, &[u8])> {
    let (number, rest) = bytes.split_at_checked(count)?;
    let fold = |sum: usize, byte: &u8| sum.checked_mul(256)?.checked_add(usize::from(*byte));
    Some((number.iter().try_fold(0, fold)?, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the data of a message's second packet, joined from its parts, and the bytes after the packet.
    fn content(message: &[u8]) -> (Vec<u8>, Vec<u8>) {
        let mut rest = &message[16..];
        let mut all = Vec::new();
        loop {
            match rest[0] {
                255 => {
                    let (length, after) = big_endian(&rest[1..], 4).unwrap();
                    all.extend_from_slice(&after[..length]);
                    return (all.split_off(6), after[length..].to_vec());
                }
                part => {
                    let length = 1 << (part & 31);
                    assert!(part >= 224 && length >= 512, "{part}");
                    all.extend_from_slice(&rest[1..=length]);
                    rest = &rest[1 + length..];
                }
            }
        }
    }

    fn armored(bytes: &[u8]) -> String {
        let body = STANDARD.encode(bytes);
        format!(
            "-----BEGIN PGP SIGNATURE-----\nComment: x\n\n{body}\n=AAAA\n-----END PGP SIGNATURE-----\n"
        )
    }

    #[test]
    fn content_of_any_length_comes_in_parts_and_whole() {
        for pieces in [
            &[][..],
            &[1],
            &[8185, 1],
            &[8186],
            &[8187, 100_000, 3],
            &[1 << 20, 1 << 20],
        ] {
            let (mut message, mut out) = Message::new();
            let mut expected = Vec::new();
            for (byte, length) in (0..).zip(pieces) {
                let piece = vec![byte; *length];
                out.extend(message.add(&piece));
                expected.extend(piece);
            }
            out.extend(message.end(&armored(&[0x88, 2, 4, 0])).unwrap());
            assert_eq!(
                content(&out),
                (expected, vec![SIGNATURE, 255, 0, 0, 0, 2, 4, 0]),
                "{pieces:?}"
            );
        }
    }

    #[test]
    fn exactly_one_signature_is_taken_in_every_form_of_its_length() {
        let long = |head: &[u8], length: usize| {
            let mut packet = head.to_vec();
            packet.resize(head.len() + length, 7);
            packet
        };
        for good in [
            vec![0x88, 1, 7],
            long(&[0x89, 1, 0], 256),
            vec![0x8a, 0, 0, 0, 1, 7],
            vec![SIGNATURE, 1, 7],
            long(&[SIGNATURE, 192, 0], 192),
            long(&[SIGNATURE, 255, 0, 0, 1, 0], 256),
        ] {
            let taken = one_signature(&armored(&good)).unwrap();
            assert!(taken[6..].iter().all(|byte| *byte == 7), "{good:?}");
        }
        for bad in [
            vec![],
            vec![0x88],
            vec![0x88, 2, 7],
            vec![0x88, 1, 7, 0x88, 1, 7],
            vec![0x8b, 7],
            vec![SIGNATURE, 224, 7],
            vec![0x98, 1, 7],
        ] {
            assert_eq!(one_signature(&armored(&bad)), None, "{bad:?}");
        }
        assert_eq!(one_signature("no armor"), None);
        assert_eq!(
            one_signature(&armored(&[0x88, 1, 7]).replace("iAEH", "!")),
            None
        );
    }
}
