//! Reasons why a key cannot sign: each gets its own message, with advice.

use std::fs;
use std::path::Path;

use serde_json::json;

use super::{Vault, gpg, make_home};
use crate::harness::have_program;

/// The error when this key of the vault is asked to sign.
fn refused(vault: &Vault, key: &str) -> String {
    let arguments = json!({"data": "aGk=", "key_id": key});
    vault.server.call("gpg_sign", arguments).unwrap_err()
}

/// The file of the vault's only secret key.
fn secret_file(home: &Path) -> std::path::PathBuf {
    let mut files = fs::read_dir(home.join("private-keys-v1.d")).unwrap();
    files.next().unwrap().unwrap().path()
}

#[test]
fn what_is_wrong_with_a_key_is_said() {
    if !have_program("gpg") {
        return;
    }
    let vault = Vault::new();
    let make = |how: &[&str]| {
        let secret = ["--pinentry-mode", "loopback", "--passphrase", ""];
        let made = gpg(&vault.home, &[&secret[..], how].concat());
        assert!(made.status.success(), "{made:?}");
        vault.fingerprint(how.iter().find(|word| word.contains('@')).unwrap())
    };
    let future = make(&[
        "--faked-system-time",
        "20400101T000000",
        "--quick-gen-key",
        "f@example.org",
        "ed25519",
        "sign",
        "never",
    ]);
    let certifies = make(&[
        "--quick-gen-key",
        "c@example.org",
        "ed25519",
        "cert",
        "never",
    ]);
    let disabled = make(&[
        "--quick-gen-key",
        "d@example.org",
        "ed25519",
        "sign",
        "never",
    ]);
    let edited = gpg(
        &vault.home,
        &[
            "--command-fd",
            "0",
            "--edit-key",
            &disabled,
            "disable",
            "save",
        ],
    );
    assert!(edited.status.success(), "{edited:?}");
    let revoked = make(&[
        "--quick-gen-key",
        "r@example.org",
        "ed25519",
        "sign",
        "never",
    ]);
    // gpg creates the certificate with the key, and puts a colon before its armor to prevent accidental use.
    let certificate = vault.home.join(format!("openpgp-revocs.d/{revoked}.rev"));
    let text = fs::read_to_string(&certificate)
        .unwrap()
        .replace(":-----", "-----");
    fs::write(&certificate, text).unwrap();
    let imported = gpg(&vault.home, &["--import", certificate.to_str().unwrap()]);
    assert!(imported.status.success(), "{imported:?}");
    for (key, why) in [
        (&future, "it was created on 2040-01-01, which is in the future; the clock of the provider, or of the machine that made the key, is wrong".to_owned()),
        (&certifies, format!("neither it nor any of its subkeys can sign; `gpg --quick-add-key {certifies} ed25519 sign` on the provider adds one")),
        (&disabled, format!("it is disabled; `gpg --edit-key {disabled} enable save` on the provider enables it")),
        (&revoked, "it is revoked; create another on the provider".to_owned()),
    ] {
        assert_eq!(refused(&vault, key), format!("the secret key `{key}` cannot sign: {why}"));
    }
    // None of them is the default key; the error names the first if no other exists.
    assert!(
        vault
            .sign(b"hi")
            .unwrap_err()
            .contains(&format!("`{future}` cannot sign: it was created"))
    );
    let good = vault.make_key("good@example.org", "", "never");
    assert_eq!(
        vault.sign(b"hi").unwrap().structured["fingerprint"],
        json!(good)
    );
    // The advice in the errors works.
    for advice in [
        &["--edit-key", &disabled, "enable", "save"][..],
        &[
            "--pinentry-mode",
            "loopback",
            "--passphrase",
            "",
            "--quick-add-key",
            &certifies,
            "ed25519",
            "sign",
        ],
    ] {
        let done = gpg(&vault.home, advice);
        assert!(done.status.success(), "{done:?}");
    }
    for key in [&disabled, &certifies] {
        let arguments = json!({"data": "aGk=", "key_id": key});
        vault.server.call("gpg_sign", arguments).unwrap();
    }
}

#[test]
fn an_expired_key_signs_again_after_what_the_error_advises() {
    if !have_program("gpg") {
        return;
    }
    let vault = Vault::new();
    let old = vault.make_key("old@example.org", "", "1d");
    let said = vault.sign(b"hi").unwrap_err();
    assert!(
        said.contains("it expired on 2020-01-02; extend it"),
        "{said}"
    );
    let extended = gpg(
        &vault.home,
        &[
            "--pinentry-mode",
            "loopback",
            "--passphrase",
            "",
            "--quick-set-expire",
            &old,
            "1y",
        ],
    );
    assert!(extended.status.success(), "{extended:?}");
    vault.sign(b"hi").unwrap();
}

#[test]
fn a_secret_that_is_elsewhere_is_said_to_be_there() {
    if !have_program("gpg") {
        return;
    }
    let vault = Vault::with_key();
    let key = vault.fingerprint("signer@example.org");
    let file = secret_file(&vault.home);
    let secret = fs::read_to_string(&file).unwrap();
    let (_, public) = secret.split_once("(q").unwrap();
    let public = public.split('#').nth(1).unwrap();
    // A stub for a key on a smartcard, as gpg-agent writes it: the public part, and the card's number.
    let serial = "D2760001240103040006112233440000";
    let note = format!(
        "Key: (shadowed-private-key (ecc (curve Ed25519)(flags eddsa)(q #{}#)(shadowed t1-v1 (#{serial}# OPENPGP.1))))\n",
        public.replace(char::is_whitespace, "")
    );
    fs::write(&file, note).unwrap();
    let said = refused(&vault, &key);
    let card = format!("the secret key is on the smartcard {serial}, ");
    let why = said.strip_prefix(&card).unwrap_or_else(|| panic!("{said}"));
    assert!(
        [
            "which is not in any of the provider's readers; insert it",
            "and scdaemon, which talks to smartcards, is not installed on the provider; install it"
        ]
        .contains(&why),
        "{said}"
    );
    // The public part alone is not a secret key.
    fs::remove_file(&file).unwrap();
    let said = refused(&vault, &key);
    assert!(
        said.starts_with(&format!("no secret key `{key}`; ")),
        "{said}"
    );
}

#[test]
fn why_no_agent_can_be_started_is_said() {
    let uid = rustix::process::geteuid();
    if !have_program("gpg") {
        return;
    }
    let mut vault = Vault::with_key();
    let long = vault.server.folder.path().join("x".repeat(100));
    make_home(&long);
    vault.server.settings.gpg_home.as_mut().unwrap().path = long.clone();
    let said = vault.sign(b"hi").unwrap_err();
    // In a login session's folder, the socket path is short, wherever the keys are.
    let login = Path::new("/run/user").join(uid.to_string()).exists();
    let bytes = long.join("S.gpg-agent").as_os_str().len();
    let expected = if login {
        "no secret key; ".to_owned()
    } else {
        format!(
            "gpg-agent cannot be started on the provider: its socket path is {bytes} bytes long, but at most 107 are allowed; \
             move the key folder to a shorter path, or log in there once so that `/run/user/{uid}` exists"
        )
    };
    assert!(said.starts_with(&expected), "{said}");
    let ended = std::process::Command::new("gpgconf")
        .arg("--homedir")
        .arg(&long)
        .args(["--kill", "all"])
        .status();
    assert!(ended.is_ok());
}

#[test]
fn a_folder_of_keys_that_is_not_there_or_not_readable_is_no_empty_one() {
    if !have_program("gpg") {
        return;
    }
    let mut vault = Vault::with_key();
    fs::create_dir(vault.home.join("gpg.conf")).unwrap();
    assert_eq!(
        vault.sign(b"hi").unwrap_err(),
        "`gpg.conf` cannot be read on the provider: it is not a file; it may set the default key, so nothing is signed without it"
    );
    fs::remove_dir(vault.home.join("gpg.conf")).unwrap();
    vault.sign(b"hi").unwrap();
    // The folder in the user's home, which does not exist yet.
    let home = vault.server.settings.gpg_home.as_mut().unwrap();
    (home.variable, home.path) = ("HOME", vault.server.folder.path().join("run"));
    fs::create_dir(&home.path).unwrap();
    let said = vault.sign(b"hi").unwrap_err();
    assert!(said.starts_with("no secret key; "), "{said}");
}

/// The launcher for a vault's agent; dropping this value kills it.
struct Launcher(std::process::Child);

impl Drop for Launcher {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Launcher {
    fn start(vault: &Vault, socket: &Path) -> Self {
        let program = std::process::Command::new(env!("CARGO_BIN_EXE_anklume"))
            .arg("gpg-agent-launcher")
            .arg(socket)
            .env("GNUPGHOME", &vault.home)
            .spawn();
        Self(program.unwrap())
    }
}

#[test]
fn a_launcher_starts_the_agent_and_nobody_else_does() {
    if !have_program("gpg") {
        return;
    }
    let mut vault = Vault::with_key();
    vault.pinentry(None);
    let socket = vault.server.folder.path().join("launcher");
    vault.server.settings.agent_launcher = Some(socket.clone());
    assert_eq!(
        vault.sign(b"hi").unwrap_err(),
        "gpg-agent cannot be started on the provider: the service `anklume-gpg-agent`, which starts it, \
         does not answer (No such file or directory (os error 2)); restart that service there"
    );
    // A call waits for a launcher that is starting, and other clients cannot delay the launcher for long.
    let launcher = Launcher::start(&vault, &socket);
    vault.sign(b"hi").unwrap();
    let silent = std::os::unix::net::UnixStream::connect(&socket).unwrap();
    for nonsense in ["gpg-agent --daemon sh\n", "\n", "keyboxd"] {
        let mut stream = std::os::unix::net::UnixStream::connect(&socket).unwrap();
        std::io::Write::write_all(&mut stream, nonsense.as_bytes()).unwrap();
    }
    // This stops the agent.
    vault.pinentry(None);
    vault.sign(b"hi").unwrap();
    drop(silent);
    // A running agent needs no launcher.
    drop(launcher);
    vault.sign(b"hi").unwrap();
    vault.pinentry(None);
    let said = vault.sign(b"hi").unwrap_err();
    assert!(
        said.contains("(Connection refused (os error 111))"),
        "{said}"
    );
    // A leftover socket does no harm.
    let _launcher = Launcher::start(&vault, &socket);
    vault.sign(b"hi").unwrap();
}
