//! A result with `complete` is one good signature by the requested key over all the content, whatever the user's
//! configuration says and whatever gpg does.

use std::fs;
use std::path::Path;

use base64::Engine as _;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use serde_json::json;

use super::super::script;
use super::{STANDARD, Vault, gpg, make_home};
use crate::harness::have_program;

/// A vault with two keys, and their fingerprints; the first is the default key.
fn two_keys() -> (Vault, String, String) {
    let vault = Vault::new();
    let one = vault.make_key("one@example.org", "", "never");
    let two = vault.make_key("two@example.org", "", "never");
    (vault, one, two)
}

impl Vault {
    fn configure(&self, text: &str) {
        fs::write(self.home.join("gpg.conf"), text).unwrap();
    }

    /// Replaces gpg with a script when it signs; in the script, `$@` holds the arguments.
    fn signing(&mut self, text: &str) {
        let program = self.server.folder.path().join("gpg");
        let text = format!("case \"$*\" in *--detach-sign*) {text} ;; *) exec gpg \"$@\" ;; esac");
        script(&program, &text);
        self.server.settings.gpg = program;
    }
}

#[test]
fn what_gpg_is_told_changes_neither_the_content_nor_the_signer_nor_the_place() {
    if !have_program("gpg") {
        return;
    }
    let (vault, one, two) = two_keys();
    let elsewhere = vault.server.folder.path().join("elsewhere");
    let content = b"first line\nsecond line\n";
    for lines in [
        "passphrase-fd 0".to_owned(),
        format!("output {}", elsewhere.display()),
        format!("local-user {two}"),
        format!("u {two}\nsender two@example.org"),
        "textmode".to_owned(),
        "dry-run".to_owned(),
        "no-armor\nclearsign".to_owned(),
        "digest-algo SHA1".to_owned(),
        "faked-system-time 20300101T000000".to_owned(),
        "status-fd 1\nlogger-fd 1".to_owned(),
        "pinentry-mode loopback\npassphrase-file /dev/stdin".to_owned(),
        "homedir /nowhere\nno-default-keyrings".to_owned(),
        "not-an-option".to_owned(),
        "comment -----END PGP SIGNATURE-----".to_owned(),
    ] {
        vault.configure(&lines);
        let outcome = vault
            .sign(content)
            .unwrap_or_else(|why| panic!("{lines}: {why}"));
        assert_eq!(outcome.structured["fingerprint"], json!(one), "{lines}");
        vault.verify(&outcome, content);
        assert!(!elsewhere.exists(), "{lines}");
    }
}

#[test]
fn the_default_key_is_the_one_that_the_user_names() {
    if !have_program("gpg") {
        return;
    }
    let (vault, one, two) = two_keys();
    let signer = |lines: &str| {
        vault.configure(lines);
        let outcome = vault.sign(b"hi");
        outcome.map(|outcome| {
            outcome.structured["fingerprint"]
                .as_str()
                .unwrap()
                .to_owned()
        })
    };
    assert_eq!(signer(&format!("default-key {two}")), Ok(two.clone()));
    assert_eq!(signer("default-key \"two@example.org\""), Ok(two.clone()));
    assert_eq!(
        signer(&format!("default-key {two}\ndefault-key {one}")),
        Ok(one.clone())
    );
    // The last available default key signs.
    assert_eq!(
        signer(&format!("default-key {two}\ndefault-key none@example.org")),
        Ok(two.clone())
    );
    // No other key signs instead.
    let why = signer("default-key none@example.org").unwrap_err();
    assert!(
        why.starts_with("no secret key `none@example.org`; "),
        "{why}"
    );
    let old = vault.make_key("old@example.org", "", "1d");
    let why = signer(&format!("default-key {old}")).unwrap_err();
    assert!(
        why.starts_with(&format!("the secret key `{old}` cannot sign: it expired")),
        "{why}"
    );
    // A call that names a key does not depend on a default key.
    let outcome = vault
        .server
        .call("gpg_sign", json!({"data": "aGk=", "key_id": two}));
    assert_eq!(outcome.unwrap().structured["fingerprint"], json!(two));
}

#[test]
fn keys_in_another_keyring_are_found() {
    if !have_program("gpg") {
        return;
    }
    let (vault, one, two) = two_keys();
    fs::rename(
        vault.home.join("pubring.kbx"),
        vault.home.join("my keys.kbx"),
    )
    .unwrap();
    let missing = vault.sign(b"hi").unwrap_err();
    assert!(missing.starts_with("no secret key; "), "{missing}");
    vault.configure("no-default-keyring\nkeyring \"my keys.kbx\"");
    for key in [&one, &two] {
        let outcome = vault
            .server
            .call("gpg_sign", json!({"data": "aGk=", "key_id": key}));
        vault.verify(&outcome.unwrap(), b"hi");
    }
}

#[test]
fn a_signature_that_is_not_good_is_not_handed_out() {
    if !have_program("gpg") {
        return;
    }
    let (mut vault, one, two) = two_keys();
    for (signs, why) in [
        (
            "head -c 1 >/dev/null; exec gpg \"$@\"".to_owned(),
            "it covers something else",
        ),
        (
            format!("exec gpg --local-user {two} \"$@\""),
            "there is not exactly one signature",
        ),
        (
            format!(
                "exec gpg --no-options --batch --no-autostart --status-fd 2 --armor --digest-algo SHA512 -u {two} -o - -b"
            ),
            "another key made it",
        ),
        (
            format!(
                "exec gpg --no-options --batch --no-autostart --armor --digest-algo SHA256 -u {one} -o - -b"
            ),
            "there is not exactly one good signature",
        ),
        (
            format!(
                "exec gpg --no-options --batch --no-autostart --status-fd 2 --armor --textmode --digest-algo SHA512 -u {one} -o - -b"
            ),
            "it covers something else",
        ),
        (
            "cat >/dev/null; echo no signature".to_owned(),
            "there is not exactly one signature",
        ),
    ] {
        vault.signing(&signs);
        assert_eq!(
            vault
                .sign(b"first line\nsecond line\n")
                .map(|outcome| outcome.text),
            Err(format!(
                "gpg did not make a good signature of the content: {why}; nothing was handed out. \
                 To see more, run `gpg --detach-sign` on a file on the provider, then `gpg --verify`"
            )),
            "{signs}"
        );
    }
    // The same program, now doing what it is asked to do.
    vault.signing("exec gpg \"$@\"");
    let outcome = vault.sign(b"hi").unwrap();
    vault.verify(&outcome, b"hi");
}

#[test]
fn keys_of_every_kind_sign() {
    if !have_program("gpg") {
        return;
    }
    let vault = Vault::new();
    let content: Vec<u8> = (0..=255).cycle().take(20_000).collect();
    for kind in [
        "rsa2048",
        "dsa2048",
        "nistp256",
        "nistp521",
        "brainpoolP384r1",
        "secp256k1",
        "ed25519",
    ] {
        let address = format!("{kind}@example.org");
        let made = gpg(
            &vault.home,
            &[
                "--pinentry-mode",
                "loopback",
                "--passphrase",
                "",
                "--quick-gen-key",
                &address,
                kind,
                "sign",
                "never",
            ],
        );
        assert!(made.status.success(), "{made:?}");
        let arguments =
            json!({"data": STANDARD.encode(&content), "key_id": format!("<{address}>")});
        let outcome = vault
            .server
            .call("gpg_sign", arguments)
            .unwrap_or_else(|why| panic!("{kind}: {why}"));
        vault.verify(&outcome, &content);
    }
}

#[test]
fn a_subkey_signs_and_the_one_that_is_named_with_its_mark() {
    if !have_program("gpg") {
        return;
    }
    let vault = Vault::with_key();
    let key = vault.fingerprint("signer@example.org");
    for _ in 0..2 {
        let added = gpg(
            &vault.home,
            &[
                "--pinentry-mode",
                "loopback",
                "--passphrase",
                "",
                "--quick-add-key",
                &key,
                "ed25519",
                "sign",
                "never",
            ],
        );
        assert!(added.status.success(), "{added:?}");
    }
    let listed = gpg(&vault.home, &["--with-colons", "--list-secret-keys"]);
    let listed = String::from_utf8(listed.stdout).unwrap();
    let parts: Vec<&str> = listed
        .lines()
        .filter(|line| line.starts_with("fpr:"))
        .map(|line| line.split(':').nth(9).unwrap())
        .collect();
    assert_eq!(parts.len(), 3, "{listed}");
    for part in &parts {
        for id in [format!("{part}!"), format!("0x{}!", part.split_at(24).1)] {
            let outcome = vault
                .server
                .call("gpg_sign", json!({"data": "aGk=", "key_id": id}))
                .unwrap();
            assert_eq!(outcome.structured["fingerprint"], json!(part));
            vault.verify(&outcome, b"hi");
        }
    }
    // Without the mark, one of its subkeys signs.
    let outcome = vault
        .server
        .call("gpg_sign", json!({"data": "aGk=", "key_id": key}))
        .unwrap();
    assert!(parts[1..].contains(&outcome.structured["fingerprint"].as_str().unwrap()));
}

/// Lines for `gpg.conf`: every gpg option, with values that people and programs write.
fn any_configuration(one: &str, two: &str, folder: &Path) -> impl Strategy<Value = String> + use<> {
    let dumped = gpg(folder, &["--dump-options"]);
    let options: Vec<String> = String::from_utf8(dumped.stdout)
        .unwrap()
        .lines()
        .filter_map(|line| line.trim().strip_prefix("--").map(str::to_owned))
        .collect();
    assert!(options.len() > 300, "{options:?}");
    let file = folder.join("other").display().to_string();
    let values: Vec<String> = [
        "",
        "0",
        "1",
        "2",
        "3",
        "9",
        "no",
        "yes",
        "none",
        "always",
        "auto",
        "SHA1",
        "SHA512",
        "AES256",
        "ZIP",
        "pgp",
        "direct",
        "loopback",
        "cancel",
        "ask",
        "utf-8",
        "1970-01-01",
        "20300101T000000",
        "nonsense value",
        "\"",
        "signer@example.org",
        "two@example.org",
        "@KEYWORD",
        "a=b",
        "help",
    ]
    .map(str::to_owned)
    .into_iter()
    .chain([one.to_owned(), two.to_owned(), file])
    .collect();
    let line = (prop::sample::select(options), prop::sample::select(values))
        .prop_map(|(option, value)| format!("{option} {value}"));
    prop::collection::vec(line, 1..6).prop_map(|lines| lines.join("\n") + "\n")
}

fn under_any_configuration(cases: u32) {
    if !have_program("gpg") {
        return;
    }
    let (vault, one, two) = two_keys();
    // The verifying gpg knows both keys, and none of the user's options.
    let other = vault.server.folder.path().join("other");
    make_home(&other);
    let exported = gpg(&vault.home, &["--export"]);
    let keys = other.join("keys");
    fs::write(&keys, exported.stdout).unwrap();
    assert!(
        gpg(&other, &["--import", keys.to_str().unwrap()])
            .status
            .success()
    );
    let content = b"first line\nsecond line \r\n\x00\n";
    fs::write(other.join("content"), content).unwrap();
    let mut runner = TestRunner::new(Config {
        cases,
        failure_persistence: None,
        ..Config::default()
    });
    let configurations = any_configuration(&one, &two, &vault.home);
    let done = std::cell::Cell::new(0);
    runner
        .run(&configurations, |lines| {
            vault.configure(&lines);
            let names_keys = [
                "default-key ",
                "keyring ",
                "primary-keyring ",
                "no-default-keyring ",
            ];
            let says_where = lines
                .lines()
                .any(|line| names_keys.iter().any(|name| line.starts_with(name)));
            match vault.sign(content) {
                Err(why) => prop_assert!(says_where, "{lines}: {why}"),
                Ok(outcome) => {
                    fs::write(other.join("content.asc"), &outcome.text).unwrap();
                    let paths = ["content.asc", "content"]
                        .map(|name| other.join(name).display().to_string());
                    let verified = gpg(
                        &other,
                        &["--status-fd", "1", "--verify", &paths[0], &paths[1]],
                    );
                    let status = String::from_utf8_lossy(&verified.stdout).into_owned();
                    let signer = if says_where {
                        outcome.structured["fingerprint"].as_str().unwrap()
                    } else {
                        &one
                    };
                    prop_assert_eq!(
                        status.matches("GOODSIG ").count(),
                        1,
                        "{}: {}",
                        lines,
                        status
                    );
                    prop_assert!(
                        status.contains(&format!("VALIDSIG {signer} ")),
                        "{}: {}",
                        lines,
                        status
                    );
                    done.set(done.get() + 1);
                }
            }
            Ok(())
        })
        .unwrap();
    assert!(done.get() > cases / 2, "{done:?} of {cases}");
}

#[test]
fn under_any_configuration_it_is_one_good_signature() {
    under_any_configuration(60);
}

#[test]
#[ignore = "long"]
fn under_thousands_of_configurations_it_is_one_good_signature() {
    under_any_configuration(2500);
}
