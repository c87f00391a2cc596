//! Bytes in base64, as they come in a call: decoded strictly, never printed.

use std::borrow::Cow;
use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

use super::ONE_CALL_MAX;
use super::schema::ENCODING;

/// Bytes in base64 that nobody has decoded yet.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Payload(String);

impl Payload {
    /// Bytes that are in base64 already.
    #[must_use]
    pub const fn of(base64: String) -> Self {
        Self(base64)
    }

    /// The bytes: strict RFC 4648 base64 with padding, at most [`ONE_CALL_MAX`] of them.
    ///
    /// # Errors
    ///
    /// What is wrong with it, in words that hold nothing of the content.
    pub fn decode(&self) -> Result<Vec<u8>, String> {
        decode(&self.0)
    }

    /// Length in base64, in bytes.
    #[must_use]
    pub const fn encoded_length(&self) -> usize {
        self.0.len()
    }
}

impl JsonSchema for Payload {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "Payload".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({"type": "string", ENCODING: "base64"})
    }
}

impl fmt::Debug for Payload {
    /// Says how long it is, never what it says.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Payload({} bytes of base64)", self.0.len())
    }
}

/// See [`Payload::decode`].
pub(super) fn decode(text: &str) -> Result<Vec<u8>, String> {
    let bytes = decoded_length(text);
    if bytes > ONE_CALL_MAX {
        return Err(format!(
            "`data` holds {bytes} bytes, and one call takes at most {ONE_CALL_MAX}; \
             send it in pieces with `offset` and `final`"
        ));
    }
    STANDARD.decode(text).map_err(|fault| refusal(&fault))
}

/// What a text of base64 decodes to, in bytes, padding taken off.
fn decoded_length(text: &str) -> u64 {
    let padding = text.bytes().rev().take_while(|byte| *byte == b'=').count();
    let digits = u64::try_from(text.len().saturating_sub(padding)).unwrap_or(u64::MAX);
    // Four digits hold three bytes; what is left over is judged by the decoder.
    digits / 4 * 3 + digits % 4 * 3 / 4
}

/// Returns why a text is no base64: the place, never the character.
fn refusal(fault: &base64::DecodeError) -> String {
    use base64::DecodeError;
    let what = match fault {
        DecodeError::InvalidByte(at, _) => {
            format!("character {} is not allowed there", at.saturating_add(1))
        }
        DecodeError::InvalidLastSymbol { .. } => "its last character carries stray bits".to_owned(),
        DecodeError::InvalidLength(_) => "it ends in the middle of a group of four".to_owned(),
        DecodeError::InvalidPadding => "its padding with `=` is wrong".to_owned(),
    };
    format!("`data` is not base64 (with padding, no spaces, no line breaks): {what}")
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
            let refused = decode(bad).unwrap_err();
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
        let refused = decode(&STANDARD.encode(vec![0; most + 1])).unwrap_err();
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
