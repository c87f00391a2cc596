//! Tests what is signed and what is refused.

use proptest::prelude::*;
use sha2::Digest as _;
use signature::Signer as _;
use ssh_key::PrivateKey;
use ssh_key::private::{Ed25519Keypair, KeypairData};

use super::wire::put_string;
use super::*;

/// A private key, always the same for a seed.
fn private(seed: u8) -> PrivateKey {
    let pair = KeypairData::Ed25519(Ed25519Keypair::from_seed(&[seed; 32]));
    PrivateKey::new(pair, "test").unwrap()
}

fn public(seed: u8) -> SshKey {
    SshKey::parse(&private(seed).public_key().to_openssh().unwrap()).unwrap()
}

fn signed_by(seed: u8, data: &[u8]) -> Vec<u8> {
    let signature: ssh_key::Signature = private(seed).try_sign(data).unwrap();
    signature.try_into().unwrap()
}

fn strings(parts: &[&[u8]]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for part in parts {
        put_string(part, &mut bytes);
    }
    bytes
}

/// What `ssh-keygen -Y sign -n NAMESPACE` signs.
fn content(namespace: &str) -> Vec<u8> {
    let rest = strings(&[namespace.as_bytes(), b"", b"sha512", &[9; 64]]);
    [b"SSHSIG".as_slice(), &rest].concat()
}

const USER: u8 = 1;
const HOST: u8 = 2;
const SESSION: [u8; 32] = [3; 32];

/// What `ssh` signs to log in, with the host's key if `bound`.
fn login(session: &[u8], key: &[u8], host: Option<&[u8]>) -> Vec<u8> {
    let method = if host.is_some() {
        "publickey-hostbound-v00@openssh.com"
    } else {
        "publickey"
    };
    let mut bytes = strings(&[session]);
    bytes.push(50);
    bytes.extend(strings(&[b"root", b"ssh-connection", method.as_bytes()]));
    bytes.push(1);
    bytes.extend(strings(&[b"ssh-ed25519", key]));
    bytes.extend(host.map(|host| strings(&[host])).unwrap_or_default());
    bytes
}

fn bind(session: &[u8], host: u8, is_forwarding: bool) -> SessionBind {
    let signature = signed_by(host, session);
    let mut bytes = strings(&[public(host).blob(), session, &signature]);
    bytes.push(is_forwarding.into());
    SessionBind::parse(&bytes).unwrap()
}

/// A request to a service that signs everything, for the host.
fn request(data: Vec<u8>) -> SignatureRequest {
    SignatureRequest {
        key: public(USER),
        allow: vec![KeyUse::Git, KeyUse::File("x".to_owned()), KeyUse::Login],
        hosts: vec![public(HOST).fingerprint()],
        data,
        flags: 0,
        binds: vec![bind(&SESSION, HOST, false)],
    }
}

fn bound_login() -> SignatureRequest {
    let (user, host) = (public(USER), public(HOST));
    request(login(&SESSION, user.blob(), Some(host.blob())))
}

fn refusal(request: &SignatureRequest) -> String {
    authorize(request).unwrap_err().to_string()
}

#[test]
fn a_purpose_is_read_from_the_bytes() {
    let purpose = |request: &SignatureRequest| authorize(request).unwrap().to_string();
    assert_eq!(purpose(&request(content("git"))), "git");
    assert_eq!(purpose(&request(content("x"))), "file:x");
    let expected = format!("login to {} as root", public(HOST).fingerprint());
    assert_eq!(purpose(&bound_login()), expected);
    // As older clients and servers do it.
    let unbound = login(&SESSION, public(USER).blob(), None);
    assert_eq!(purpose(&request(unbound)), expected);
}

#[test]
fn what_the_service_does_not_allow_is_refused() {
    let only = |allow: &[KeyUse], data| {
        let allow = allow.to_vec();
        refusal(&SignatureRequest {
            allow,
            ..request(data)
        })
    };
    assert_eq!(
        only(&[KeyUse::Git], content("x")),
        "the service does not sign `file:x`, only `git`; ask the operator to add it to `allow`"
    );
    assert_eq!(
        only(
            &[KeyUse::File("y".to_owned()), KeyUse::Login],
            content("git")
        ),
        "the service does not sign `git`, only `file:y`, `login`; ask the operator to add it to `allow`"
    );
    assert_eq!(
        only(&[KeyUse::Git], bound_login().data),
        "the service does not sign `login`, only `git`; ask the operator to add it to `allow`"
    );
    assert_eq!(
        only(&[], content("git")),
        "the service does not sign `git`, only nothing; ask the operator to add it to `allow`"
    );
}

#[test]
fn a_login_is_bound_to_its_session_and_its_host() {
    let (user, host) = (public(USER), public(HOST));
    assert!(authorize(&bound_login()).is_ok());
    let with = |binds: Vec<SessionBind>| {
        refusal(&SignatureRequest {
            binds,
            ..bound_login()
        })
    };
    assert!(with(vec![]).contains("proves which host it talks to"));
    let other = bind(&[4; 32], HOST, false);
    assert_eq!(
        with(vec![other]),
        "the session bind is invalid: it belongs to another session"
    );
    let elsewhere = bind(&SESSION, 5, false);
    assert_eq!(
        with(vec![elsewhere.clone()]),
        "the session bind is invalid: it names another host key than the login"
    );
    // A bind of that session which another key signed.
    let mut bytes = strings(&[host.blob(), &SESSION, &signed_by(5, &SESSION)]);
    bytes.push(0);
    let forged = SessionBind::parse(&bytes).unwrap();
    assert_eq!(
        with(vec![forged]),
        "the session bind is invalid: the host did not sign the session"
    );
    let forwarding = bind(&SESSION, HOST, true);
    let binds = vec![forwarding, bind(&SESSION, HOST, false)];
    assert_eq!(with(binds), "a login is not signed for a forwarded agent");
    // A host that is not listed, which the older form of a login does not name.
    let unlisted = SignatureRequest {
        binds: vec![elsewhere],
        ..request(login(&SESSION, user.blob(), None))
    };
    let expected = format!(
        "the service does not sign login to {} as root; ask the operator to add that host key to `hosts`",
        public(5).fingerprint()
    );
    assert_eq!(refusal(&unlisted), expected);
    let other_key = request(login(&SESSION, public(6).blob(), Some(host.blob())));
    assert_eq!(
        refusal(&other_key),
        "the login is for a different key than the service's"
    );
}

#[test]
fn flags_must_fit_the_key() {
    for flags in [1, 2, 4, u32::MAX] {
        let request = SignatureRequest {
            flags,
            ..request(content("git"))
        };
        assert_eq!(
            refusal(&request),
            format!("the flags {flags} are not valid for the key")
        );
    }
}

#[test]
fn a_byte_more_or_less_is_refused() {
    for request in [request(content("git")), bound_login()] {
        assert!(authorize(&request).is_ok());
        let whole = request.data.clone();
        for end in 0..whole.len() {
            let data = whole[..end].to_vec();
            assert!(
                authorize(&SignatureRequest {
                    data,
                    ..request.clone()
                })
                .is_err(),
                "{end}"
            );
        }
        for more in [0, b'x', 255] {
            let data = [whole.as_slice(), &[more]].concat();
            assert!(
                authorize(&SignatureRequest {
                    data,
                    ..request.clone()
                })
                .is_err()
            );
        }
        // Among these are a length beyond the end, a reserved field and a flag that are not known. Only the digest may be any.
        for at in 0..whole.len() {
            let mut data = whole.clone();
            data[at] ^= 0x80;
            let changed = SignatureRequest {
                data,
                ..request.clone()
            };
            let is_digest = whole.starts_with(b"SSHSIG") && at >= whole.len() - 64;
            assert_eq!(authorize(&changed).is_ok(), is_digest, "{at}");
        }
    }
    let long = request(vec![0; DATA_MAX + 1]);
    assert_eq!(refusal(&long), "the data to sign is longer than 8192 bytes");
}

#[test]
fn a_namespace_is_printable() {
    for bad in ["", "a b", "a\n", "é", "*", "\u{1b}", &"x".repeat(129)] {
        assert!(
            refusal(&request(content(bad))).contains("malformed SSHSIG data"),
            "{bad:?}"
        );
        assert!(KeyUse::parse(&format!("file:{bad}")).is_err(), "{bad:?}");
    }
    assert!(KeyUse::parse("file:git").is_err());
    assert!(KeyUse::parse("logins").is_err());
    assert_eq!(KeyUse::parse("file:a@b").unwrap().to_string(), "file:a@b");
}

#[test]
fn keys_are_read_from_one_line() {
    let line = private(1).public_key().to_openssh().unwrap();
    let key = SshKey::parse(&line).unwrap();
    assert_eq!((key.comment(), key.blob()), ("test", public(1).blob()));
    assert!(is_fingerprint(&key.fingerprint()));
    for bad in [
        "",
        "ssh-ed25519",
        "ssh-ed25519 AAAA",
        "no key",
        line.get(..60).unwrap(),
        &"x".repeat(9000),
    ] {
        assert_eq!(SshKey::parse(bad), Err(KeyFault::NotAKey), "{bad}");
    }
    assert_eq!(
        SshKey::parse(&format!("{line}\u{1b}[31m")),
        Err(KeyFault::Comment)
    );
    for bad in [
        "SHA256:",
        "MD5:00",
        key.fingerprint().get(..40).unwrap(),
        "sha256:x",
    ] {
        assert!(!is_fingerprint(bad), "{bad}");
    }
}

#[test]
fn only_the_key_s_own_signature_is_one() {
    let (key, data) = (public(1), b"data");
    let signature = signed_by(1, data);
    assert_eq!(key.verify_signature(data, 0, &signature), Ok(()));
    let refused = Err(InvalidSignature);
    assert_eq!(key.verify_signature(b"other", 0, &signature), refused);
    assert_eq!(key.verify_signature(data, 0, &signed_by(2, data)), refused);
    assert_eq!(key.verify_signature(data, 2, &signature), refused);
    assert_eq!(
        key.verify_signature(data, 0, &[&signature[..], &[0]].concat()),
        refused
    );
    assert_eq!(key.verify_signature(data, 0, &[]), refused);
}

/// A public key of a security key, and its signature over data.
fn security_key(seed: u8, data: &[u8]) -> (SshKey, Vec<u8>) {
    const KIND: &[u8] = b"sk-ssh-ed25519@openssh.com";
    let plain = public(seed);
    let mut point = wire::WireReader::new(plain.blob());
    let point = [point.string(), point.string()][1].unwrap();
    let key = SshKey::from_blob(&strings(&[KIND, point, b"ssh:"])).unwrap();
    // A touch, and a counter (OpenSSH, PROTOCOL.u2f).
    let trailer = [1, 0, 0, 0, 9];
    let digest = |bytes: &[u8]| sha2::Sha256::digest(bytes).to_vec();
    let signed = [digest(b"ssh:"), trailer.to_vec(), digest(data)].concat();
    let plain = signed_by(seed, &signed);
    let mut signature = wire::WireReader::new(&plain);
    let signature = [signature.string(), signature.string()][1].unwrap();
    let signature = [strings(&[KIND, signature]), trailer.to_vec()].concat();
    (key, signature)
}

#[test]
fn a_security_key_s_signature_is_verified() {
    let (key, signature) = security_key(1, b"data");
    assert!(key.is_security_key());
    assert_eq!(key.verify_signature(b"data", 0, &signature), Ok(()));
    let refused = Err(InvalidSignature);
    assert_eq!(key.verify_signature(b"other", 0, &signature), refused);
    let longer = [signature.as_slice(), &[0]].concat();
    assert_eq!(key.verify_signature(b"data", 0, &longer), refused);
    assert_eq!(
        key.verify_signature(b"data", 0, &signed_by(1, b"data")),
        refused
    );
}

#[test]
fn an_rsa_key_has_a_size_that_can_be_verified() {
    let rsa = |bytes: usize| {
        strings(&[
            b"ssh-rsa",
            &[1, 0, 1],
            &[&[0], &vec![0xff; bytes][..]].concat(),
        ])
    };
    assert!(SshKey::from_blob(&rsa(256)).is_ok());
    assert!(SshKey::from_blob(&rsa(512)).is_ok());
    for bytes in [128, 513, 1024] {
        assert!(SshKey::from_blob(&rsa(bytes)).is_err(), "{bytes}");
    }
}

proptest! {
    #[test]
    fn no_bytes_are_a_file_and_a_login(
        at in 0_usize..400,
        byte in any::<u8>(),
        is_file in any::<bool>(),
        more in prop::collection::vec(any::<u8>(), 0..8),
    ) {
        let mut data = if is_file { content("git") } else { bound_login().data };
        if let Some(one) = data.get_mut(at) {
            *one = byte;
        }
        data.extend(more);
        // Each reader gets the same bytes, whatever they begin with.
        let is_login = signable::as_login(&data).is_some();
        let is_content = signable::as_content(&data).is_some();
        prop_assert!(!(is_login && is_content));
    }

    #[test]
    fn no_change_of_a_message_makes_the_parser_panic(
        at in 0_usize..400,
        byte in any::<u8>(),
        end in 0_usize..400,
    ) {
        let bind = bind(&SESSION, HOST, false).to_bytes();
        for mut data in [content("git"), bound_login().data, bind, public(USER).blob().to_vec()] {
            if let Some(one) = data.get_mut(at) {
                *one = byte;
            }
            data.truncate(end);
            let _ = authorize(&request(data.clone()));
            let _ = SessionBind::parse(&data).map(|bind| bind.check());
            let _ = agent_protocol::AgentRequest::parse(&data);
            let _ = agent_protocol::AgentAnswer::parse(&data);
            let _ = SshKey::from_blob(&data);
        }
    }
}
