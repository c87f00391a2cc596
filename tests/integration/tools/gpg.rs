//! Tests `gpg_sign` with a real gpg, its agent, and custom pinentries.

mod causes;
mod honest;

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use anklume::tool::{Copies, GpgHome, ToolOutcome};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::{Server, eventually, runs, script};
use crate::harness::have_program;

/// A server with its own GnuPG home; dropping it stops the agent.
struct Vault {
    server: Server,
    home: PathBuf,
}

impl Drop for Vault {
    fn drop(&mut self) {
        for home in [&self.home, &self.server.folder.path().join("other")] {
            let _ = Command::new("gpgconf")
                .arg("--homedir")
                .arg(home)
                .args(["--kill", "all"])
                .stderr(Stdio::null())
                .status();
        }
    }
}

impl Vault {
    /// A vault without keys.
    fn new() -> Self {
        let mut server = Server::new();
        let home = server.folder.path().join("gnupg");
        make_home(&home);
        server.settings.gpg_home = Some(GpgHome {
            variable: "GNUPGHOME",
            path: home.clone(),
        });
        Self { server, home }
    }

    /// A vault with one key, which has no passphrase.
    fn with_key() -> Self {
        let vault = Self::new();
        vault.make_key("signer@example.org", "", "never");
        vault
    }

    /// Creates a key dated years in the past, and returns its fingerprint.
    fn make_key(&self, address: &str, passphrase: &str, expires: &str) -> String {
        let how = ["--pinentry-mode", "loopback", "--passphrase", passphrase];
        let when = ["--faked-system-time", "20200101T000000"];
        let what = ["--quick-gen-key", address, "ed25519", "sign", expires];
        let made = gpg(&self.home, &[&how[..], &when, &what].concat());
        assert!(made.status.success(), "{made:?}");
        self.fingerprint(address)
    }

    /// The fingerprint of a key.
    fn fingerprint(&self, address: &str) -> String {
        let listed = gpg(&self.home, &["--with-colons", "--list-keys", address]);
        let listed = String::from_utf8(listed.stdout).unwrap();
        let line = listed
            .lines()
            .find(|line| line.starts_with("fpr:"))
            .unwrap();
        line.split(':').nth(9).unwrap().to_owned()
    }

    /// Sets the agent's pinentry to this script or, for `None`, to a program that does not exist.
    fn pinentry(&self, text: Option<&str>) {
        let path = self.server.folder.path().join("pinentry");
        if let Some(text) = text {
            script(&path, text);
        }
        let line = format!("pinentry-program {}\n", path.display());
        std::fs::write(self.home.join("gpg-agent.conf"), line).unwrap();
        let status = Command::new("gpgconf")
            .arg("--homedir")
            .arg(&self.home)
            .args(["--kill", "gpg-agent"])
            .status();
        assert!(status.unwrap().success());
    }

    fn sign(&self, bytes: &[u8]) -> Result<ToolOutcome, String> {
        self.server
            .call("gpg_sign", json!({"data": STANDARD.encode(bytes)}))
    }

    /// Verifies an outcome with nothing but the data that the caller received.
    fn verify(&self, outcome: &ToolOutcome, bytes: &[u8]) {
        let folder = self.server.folder.path();
        let home = folder.join("other");
        make_home(&home);
        let files = ["key.asc", "content", "content.asc"].map(|name| folder.join(name));
        std::fs::write(
            &files[0],
            outcome.structured["public_key"].as_str().unwrap(),
        )
        .unwrap();
        std::fs::write(&files[1], bytes).unwrap();
        std::fs::write(&files[2], &outcome.text).unwrap();
        let [key, content, signature] = files.each_ref().map(|path| path.to_str().unwrap());
        let imported = gpg(&home, &["--import", key]);
        assert!(imported.status.success(), "{imported:?}");
        let verified = gpg(&home, &["--status-fd", "1", "--verify", signature, content]);
        let status = String::from_utf8(verified.stdout).unwrap();
        let fingerprint = outcome.structured["fingerprint"].as_str().unwrap();
        assert!(
            status.contains(&format!("[GNUPG:] VALIDSIG {fingerprint} ")),
            "{status}"
        );
    }
}

fn make_home(path: &Path) {
    use std::os::unix::fs::DirBuilderExt as _;
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .unwrap();
}

fn gpg(home: &Path, arguments: &[&str]) -> Output {
    Command::new("gpg")
        .arg("--homedir")
        .arg(home)
        .args(["--batch", "--quiet", "--no-tty"])
        .args(arguments)
        .output()
        .unwrap()
}

/// A pinentry that answers GETPIN with these lines.
fn answering(lines: &str) -> String {
    format!(
        "echo 'OK'\nwhile read -r word rest; do case $word in\n\
         GETPIN) {lines} ;;\nBYE) echo OK; exit ;;\n*) echo OK ;;\nesac; done"
    )
}

#[test]
fn a_signature_verifies_with_what_the_caller_got() {
    if !have_program("gpg") {
        return;
    }
    let vault = Vault::with_key();
    let outcome = vault.sign(b"hello\r\n").unwrap();
    assert!(
        outcome.text.starts_with("-----BEGIN PGP SIGNATURE-----\n"),
        "{}",
        outcome.text
    );
    vault.verify(&outcome, b"hello\r\n");
    let said = &outcome.structured;
    assert_eq!(
        (&said["size"], &said["complete"]),
        (&json!(7), &json!(true))
    );
    let algorithm = said["algorithm"].as_str().unwrap();
    assert!(algorithm.starts_with("EdDSA with SHA"), "{algorithm}");
    let time = said["time"].as_str().unwrap();
    assert!(
        time.starts_with("20") && time.ends_with('Z') && time.len() == 20,
        "{time}"
    );
    let keys: Vec<_> = said.keys().collect();
    assert_eq!(
        keys,
        [
            "size",
            "complete",
            "signature",
            "fingerprint",
            "algorithm",
            "time",
            "public_key"
        ]
    );
}

#[test]
fn what_is_no_base64_is_not_signed_and_an_honest_nothing_is() {
    if !have_program("gpg") {
        return;
    }
    let vault = Vault::with_key();
    for bad in ["!!!", "aGk", "aGk=\n"] {
        let refused = vault
            .server
            .call("gpg_sign", json!({"data": bad}))
            .unwrap_err();
        assert!(refused.starts_with("`data` is not base64"), "{refused}");
    }
    let outcome = vault.sign(b"").unwrap();
    vault.verify(&outcome, b"");
}

#[test]
fn the_key_is_the_one_that_was_named() {
    if !have_program("gpg") {
        return;
    }
    let vault = Vault::with_key();
    let second = vault.make_key("second@example.org", "", "never");
    for name in [
        second.clone(),
        format!("0x{}", second.split_at(24).1),
        "<second@example.org>".to_owned(),
    ] {
        let arguments = json!({"data": "aGk=", "key_id": name});
        let outcome = vault.server.call("gpg_sign", arguments).unwrap();
        assert_eq!(outcome.structured["fingerprint"], json!(second), "{name}");
        vault.verify(&outcome, b"hi");
    }
    let default = vault.sign(b"hi").unwrap();
    assert_ne!(default.structured["fingerprint"], json!(second));
}

#[test]
fn a_missing_or_unfit_key_is_said_with_what_to_do() {
    if !have_program("gpg") {
        return;
    }
    let uid = rustix::process::geteuid();
    let vault = Vault::new();
    assert_eq!(
        vault.sign(b"hi").unwrap_err(),
        format!(
            "no secret key; import or create one for the server's user (uid {uid}) on the provider"
        )
    );
    let missing = "0123456789ABCDEF0123456789ABCDEF01234567";
    let refused = vault
        .server
        .call("gpg_sign", json!({"data": "aGk=", "key_id": missing}))
        .unwrap_err();
    assert!(
        refused.starts_with(&format!("no secret key `{missing}`; ")),
        "{refused}"
    );
    // More data than fits in the pipe before gpg exits; gpg's last message is still read.
    let refused = vault.sign(&vec![0; 4_000_000]).unwrap_err();
    assert!(refused.starts_with("no secret key; "), "{refused}");
    let old = vault.make_key("old@example.org", "", "1d");
    let refused = vault
        .server
        .call("gpg_sign", json!({"data": "aGk=", "key_id": old}))
        .unwrap_err();
    assert_eq!(
        refused,
        format!(
            "the secret key `{old}` cannot sign: it expired on 2020-01-02; extend it on the provider with \
             `gpg --quick-set-expire {old} 1y`, and its subkeys with `gpg --quick-set-expire {old} 1y '*'`"
        )
    );
}

#[test]
fn a_key_id_can_never_be_an_option() {
    let mut server = Server::new();
    let record = server.folder.path().join("record");
    let text = format!(
        "for word; do echo \"$word\"; done > '{}'; exit 1",
        record.display()
    );
    fake(&mut server, &text);
    for bad in [
        "-0123456789ABCDEF",
        "--homedir=/tmp",
        "-u",
        "0123456789ABCDEF --yes",
    ] {
        let refused = server
            .call("gpg_sign", json!({"data": "aGk=", "key_id": bad}))
            .unwrap_err();
        assert!(
            refused.starts_with("`key_id` must be a fingerprint"),
            "{refused}"
        );
    }
    assert!(!record.exists(), "nothing was started");
    let _ = server.call(
        "gpg_sign",
        json!({"data": "aGk=", "key_id": "0x0123456789ABCDEF"}),
    );
    let words = std::fs::read_to_string(&record).unwrap();
    assert_eq!(
        words.lines().collect::<Vec<_>>(),
        [
            "--no-options",
            "--batch",
            "--no-tty",
            "--disable-dirmngr",
            "--no-autostart",
            "--no-auto-check-trustdb",
            "--lock-never",
            "--no-random-seed-file",
            "--trust-model",
            "always",
            "--status-fd",
            "2",
            "--with-colons",
            "--with-subkey-fingerprint",
            "--list-secret-keys",
            "--",
            "0x0123456789ABCDEF",
        ]
    );
}

#[test]
fn pieces_make_one_signature() {
    if !have_program("gpg") {
        return;
    }
    let vault = Vault::with_key();
    let whole: Vec<u8> = (0..=255).cycle().take(3_000_000).collect();
    let connection = vault.server.connect();
    let piece = |offset: usize, bytes: &[u8], last: bool| {
        let arguments = json!({"data": STANDARD.encode(bytes), "offset": offset, "final": last});
        connection.call("gpg_sign", arguments)
    };
    let first = piece(0, &whole[..1_000_000], false).unwrap();
    assert_eq!(
        first.text,
        "1000000 bytes received; the next piece begins at that offset"
    );
    assert_eq!(
        Value::Object(first.structured),
        json!({"size": 1_000_000, "complete": false})
    );
    assert_eq!(
        piece(999_999, b"x", true).unwrap_err(),
        "the next piece of `gpg_sign` begins at offset 1000000, not 999999"
    );
    // A bad piece does not lose the data that was sent before it.
    let bad = json!({"data": "!!!", "offset": 1_000_000});
    assert!(
        connection
            .call("gpg_sign", bad)
            .unwrap_err()
            .contains("not base64")
    );
    assert_eq!(
        piece(1_000_000, b"", false).unwrap_err(),
        "`data` is empty, but only the last piece (`final`) may be"
    );
    let other = json!({"data": "aGk=", "offset": 1_000_000, "key_id": "<other@example.org>"});
    assert_eq!(
        connection.call("gpg_sign", other).unwrap_err(),
        "`key_id` differs from that of an earlier piece"
    );
    piece(1_000_000, &whole[1_000_000..2_000_000], false).unwrap();
    let last = piece(2_000_000, &whole[2_000_000..], true).unwrap();
    assert_eq!(last.structured["size"], json!(3_000_000));
    vault.verify(&last, &whole);
    assert_eq!(
        piece(3_000_000, b"", true).unwrap_err(),
        "no transfer of `gpg_sign` is under way on this connection (an idle one is abandoned after 60 s); begin at offset 0"
    );
}

#[test]
fn signatures_at_once_do_not_disturb_each_other() {
    if !have_program("gpg") {
        return;
    }
    let vault = Vault::with_key();
    let calls = (0..6).map(|index| ("gpg_sign", json!({"data": STANDARD.encode([index])})));
    let outcomes = vault.server.connect().call_all(calls.collect());
    for (index, outcome) in (0_u8..).zip(outcomes) {
        vault.verify(&outcome.unwrap(), &[index]);
    }
}

#[test]
fn a_passphrase_is_asked_for_and_every_way_out_is_said() {
    if !have_program("gpg") {
        return;
    }
    let vault = Vault::new();
    vault.make_key("locked@example.org", "open sesame", "never");
    vault.pinentry(None);
    let refused = vault.sign(b"hi").unwrap_err();
    assert!(
        refused.starts_with("the key needs a passphrase, and no pinentry can ask for it"),
        "{refused}"
    );
    vault.pinentry(Some(&answering(
        "echo 'ERR 83886179 Operation cancelled <Pinentry>'",
    )));
    assert_eq!(
        vault.sign(b"hi").unwrap_err(),
        "the passphrase prompt was cancelled on the provider"
    );
    vault.pinentry(Some(&answering("echo 'D wrong'; echo OK")));
    assert_eq!(
        vault.sign(b"hi").unwrap_err(),
        "wrong passphrase for the key on the provider"
    );
    vault.pinentry(Some(&answering("echo 'D open sesame'; echo OK")));
    let outcome = vault.sign(b"hi").unwrap();
    vault.verify(&outcome, b"hi");
}

#[test]
fn errors_hold_nothing_of_the_server() {
    let mut server = Server::new();
    fake(
        &mut server,
        "echo \"gpg: can't open: $0\" >&2; printf 'gpg: x: \\033[31mred\\n' >&2; exit 2",
    );
    assert_eq!(
        server
            .call("gpg_sign", json!({"data": "aGk="}))
            .unwrap_err(),
        "gpg failed"
    );
    server.settings.gpg = server.folder.path().join("missing");
    assert_eq!(
        server
            .call("gpg_sign", json!({"data": "aGk="}))
            .unwrap_err(),
        "gpg is not installed on the provider; install GnuPG there"
    );
}

/// Replaces GnuPG programs with scripts: a gpg with this behaviour, and an agent that is running.
fn fake(server: &mut Server, gpg: &str) {
    let folder = server.folder.path();
    let program = |name: &str, text: &str| {
        let path = folder.join(name);
        script(&path, text);
        path
    };
    server.settings.gpg = program("gpg", gpg);
    server.settings.gpg_connect_agent = program("gpg-connect-agent", "echo OK");
    server.settings.gpg_home = Some(GpgHome {
        variable: "GNUPGHOME",
        path: folder.to_owned(),
    });
}

/// A gpg that has a key but never signs: a script and its child, which record their process IDs.
fn slow(server: &mut Server) -> impl Fn() -> Vec<u32> + use<> {
    let numbers = server.folder.path().join("numbers");
    let text = format!(
        "case \"$*\" in\n\
         *--list-secret-keys*) printf 'sec:u:255:22:0:1:::u:::scSC:::+:\\nfpr:::::::::{1}:\\n' ;;\n\
         *--verify*) cat >/dev/null ;;\n\
         *) sleep 1000 & echo $$ $! > '{0}.new'; mv '{0}.new' '{0}'; wait ;;\nesac",
        numbers.display(),
        "A".repeat(40)
    );
    fake(server, &text);
    move || {
        let text = std::fs::read_to_string(&numbers).unwrap_or_default();
        text.split_whitespace()
            .map(|number| number.parse().unwrap())
            .collect()
    }
}

#[test]
fn a_call_that_is_given_up_ends_its_gpg() {
    let mut server = Server::new();
    let numbers = slow(&mut server);
    let connection = server.connect();
    connection.give_up_when("gpg_sign", json!({"data": "aGk="}), || {
        !numbers().is_empty()
    });
    assert_eq!(numbers().len(), 2);
    eventually("gpg and its child have ended", || {
        !numbers().into_iter().any(runs)
    });
}

#[test]
fn a_gpg_that_takes_too_long_is_ended() {
    let mut server = Server::new();
    let numbers = slow(&mut server);
    server.settings.gpg_wait = Duration::from_millis(500);
    assert_eq!(
        server
            .call("gpg_sign", json!({"data": "aGk="}))
            .unwrap_err(),
        "gpg did not answer within 0 s and was killed; a pinentry may be waiting for a passphrase on the provider"
    );
    eventually("gpg and its child have ended", || {
        !numbers().into_iter().any(runs)
    });
}

#[test]
fn pieces_that_nobody_ends_end_with_their_connection() {
    let mut server = Server::new();
    let numbers = slow(&mut server);
    let connection = server.connect();
    connection
        .call("gpg_sign", json!({"data": "aGk=", "offset": 0}))
        .unwrap();
    eventually("gpg runs", || !numbers().is_empty());
    assert!(numbers().into_iter().all(runs));
    drop(connection);
    eventually("gpg and its child have ended", || {
        !numbers().into_iter().any(runs)
    });
}

#[test]
fn while_gpg_waits_the_others_are_served() {
    let mut server = Server::new();
    let numbers = slow(&mut server);
    let connection = server.connect();
    let waiting = super::grant("gpg_sign", json!({"data": "aGk="}));
    let other = super::grant("clipboard_get", json!({}));
    connection.runtime.block_on(async {
        tokio::select! {
            outcome = anklume::tool::run(&waiting, &connection.session, Copies::Two) => panic!("ended: {outcome:?}"),
            outcome = async {
                while numbers().is_empty() {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                anklume::tool::run(&other, &connection.session, Copies::Two).await
            } => assert_eq!(outcome.unwrap().text, ""),
        }
    });
}
