//! Bytes in base64, as they come in a call: decoded strictly, never printed.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{BadArguments, ONE_CALL_MAX};

/// Bytes in base64, not decoded yet.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
#[schemars(inline, extend("contentEncoding" = "base64"))]
pub struct Payload(String);

impl Payload {
    /// Wraps base64.
    #[must_use]
    pub const fn of(base64: String) -> Self {
        Self(base64)
    }

    /// Decodes strict RFC 4648 base64 with padding, at most [`ONE_CALL_MAX`] bytes.
    ///
    /// # Errors
    ///
    /// Its fault; the message repeats nothing of the content.
    pub fn decode(&self) -> Result<Vec<u8>, BadArguments> {
        decode(&self.0)
    }

    /// Returns the length in base64, in bytes.
    #[must_use]
    pub const fn encoded_length(&self) -> usize {
        self.0.len()
    }
}

impl fmt::Debug for Payload {
    /// Shows the length, never the content.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Payload({} bytes of base64)", self.0.len())
    }
}

/// See [`Payload::decode`].
pub(super) fn decode(text: &str) -> Result<Vec<u8>, BadArguments> {
    let bytes = decoded_length(text);
    if bytes > ONE_CALL_MAX {
        return Err(BadArguments::from(format!(
            "`data` holds {bytes} bytes, and one call takes at most {ONE_CALL_MAX}; \
             send it in pieces with `offset` and `final`"
        )));
    }
    STANDARD
        .decode(text)
        .map_err(|fault| refusal(&fault).into())
}

/// Returns the length of a text of base64 once decoded, in bytes.
fn decoded_length(text: &str) -> u64 {
    let padding = text.bytes().rev().take_while(|byte| *byte == b'=').count();
    let digits = u64::try_from(text.len().saturating_sub(padding)).unwrap_or(u64::MAX);
    // Four digits hold three bytes; the decoder judges an incomplete group.
    digits / 4 * 3 + digits % 4 * 3 / 4
}

/// Returns why a text is not base64: the place, never the character.
fn refusal(fault: &base64::DecodeError) -> String {
    use base64::DecodeError;
    let reason = match fault {
        DecodeError::InvalidByte(at, _) => {
            format!("character {} is not allowed there", at.saturating_add(1))
        }
        DecodeError::InvalidLastSymbol { .. } => "its last character carries stray bits".to_owned(),
        DecodeError::InvalidLength(_) => "it ends in the middle of a group of four".to_owned(),
        DecodeError::InvalidPadding => "its padding with `=` is wrong".to_owned(),
    };
    format!("`data` is not base64 (with padding, no spaces, no line breaks): {reason}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_is_strict() {
        assert_eq!(decode(""), Ok(vec![]));
        assert_eq!(decode("aGk="), Ok(b"hi".to_vec()));
        for bad in [
            "!!!", "!!!!", "aGk", "aGk==", "aGl=", "aGk=\n", " aGk=", "aG k=", "aGk=aGk=", "a",
            "=", "====", "aGk-", "aGé=",
        ] {
            let refused = decode(bad).unwrap_err().to_string();
            assert!(
                refused.starts_with("`data` is not base64 ("),
                "{bad:?}: {refused}"
            );
        }
    }

    #[test]
    fn the_limit_is_of_decoded_bytes_and_exact() {
        let most = usize::try_from(ONE_CALL_MAX).unwrap();
        let fits = STANDARD.encode(vec![0; most]);
        assert_eq!(decode(&fits).unwrap().len(), most);
        let refused = decode(&STANDARD.encode(vec![0; most + 1]))
            .unwrap_err()
            .to_string();
        assert_eq!(
            refused,
            "`data` holds 8388609 bytes, and one call takes at most 8388608; send it in pieces with `offset` and `final`"
        );
    }

    #[test]
    fn a_payload_is_never_printed() {
        let payload = Payload("c2VjcmV0".to_owned());
        assert_eq!(format!("{payload:?}"), "Payload(8 bytes of base64)");
    }
}
