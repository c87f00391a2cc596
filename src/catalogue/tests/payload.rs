//! Tests payloads: strict base64, within the limit, never printed.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::catalogue::{BadArguments, ONE_CALL_MAX, Payload};

fn decode(text: &str) -> Result<Vec<u8>, BadArguments> {
    Payload(text.to_owned()).decode()
}

#[test]
fn base64_is_strict() {
    assert_eq!(decode(""), Ok(vec![]));
    assert_eq!(decode("aGk="), Ok(b"hi".to_vec()));
    for bad in [
        "!!!", "!!!!", "aGk", "aGk==", "aGl=", "aGk=\n", " aGk=", "aG k=", "aGk=aGk=", "a", "=",
        "====", "aGk-", "aGé=",
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
        "`data` contains 8388609 bytes, but one call takes at most 8388608; send it in pieces with `offset` and `final`"
    );
}

#[test]
fn a_payload_is_never_printed() {
    let payload = Payload("c2VjcmV0".to_owned());
    assert_eq!(format!("{payload:?}"), "Payload(8 bytes of base64)");
}
