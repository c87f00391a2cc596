//! Where a key is: in an ssh-agent, in gpg-agent, in a file, or nowhere.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::process::{Child, Command, Stdio};

use super::{Alice, ed25519, key, provider, service};
use crate::channel::world::{World, signal};
use crate::harness::have_program;
use crate::serve::server::Keyring;

/// A real ssh-agent of the provider, with its keys; their files are removed.
struct SshAgent(Child);

impl SshAgent {
    fn start(world: &World, keys: &[&str]) -> Self {
        let socket = world.text("agent.sock");
        let mut command = Command::new("ssh-agent");
        command
            .args(["-D", "-a", &socket])
            .stdin(Stdio::null())
            .stdout(Stdio::null());
        let agent = Self(command.spawn().unwrap());
        super::until("the agent listens", || world.path("agent.sock").exists());
        for key in keys {
            let path = world.path(&format!(".ssh/{key}"));
            let mut add = Command::new("ssh-add");
            add.args(["-q"]).arg(&path).env("SSH_AUTH_SOCK", &socket);
            assert!(add.status().unwrap().success());
            fs::remove_file(path).unwrap();
        }
        agent
    }
}

impl Drop for SshAgent {
    fn drop(&mut self) {
        signal(self.0.id(), "TERM");
        let _ = self.0.wait();
    }
}

/// Signs a file with that key of the provider, and verifies the signature.
fn signs(alice: &Alice, name: &str) -> String {
    let public = alice.world.text(&format!(".ssh/{name}.pub"));
    alice.world.write("letter", "hello\n");
    let script = format!(
        "rm -f letter.sig; ssh-keygen -Y sign -n git -f {public} letter && printf 'me ' >signers && cat {public} >>signers \
         && ssh-keygen -Y verify -n git -f signers -I me -s letter.sig <letter"
    );
    let ran = alice.agent(&script);
    ran.stdout + &ran.stderr
}

#[test]
fn keys_of_every_kind_sign_from_an_ssh_agent() {
    let world = provider();
    let kinds: [(&str, &[&str]); 5] = [
        ("ed25519", &["-t", "ed25519"]),
        ("p256", &["-t", "ecdsa", "-b", "256"]),
        ("p384", &["-t", "ecdsa", "-b", "384"]),
        ("p521", &["-t", "ecdsa", "-b", "521"]),
        ("rsa", &["-t", "rsa", "-b", "2048"]),
    ];
    let services = kinds.map(|(name, kind)| service(name, &key(&world, name, kind), ""));
    let agent = SshAgent::start(&world, &kinds.map(|(name, _)| name));
    let socket = world.text("agent.sock");
    let alice = Alice::new(
        world.env("SSH_AUTH_SOCK", socket),
        &services.each_ref().map(String::as_str),
    );
    for (name, _) in kinds {
        let said = signs(&alice, name);
        assert!(said.contains("Good \"git\" signature"), "{name}: {said}");
    }
    drop(agent);
    let said = signs(&alice, "rsa");
    assert!(
        said.contains("in no agent and in no file in `~/.ssh`; load it there with `ssh-add`"),
        "{said}"
    );
    // A socket on which nothing listens, as a killed agent leaves it.
    drop(std::os::unix::net::UnixListener::bind(alice.world.path("agent.sock")).unwrap());
    let said = signs(&alice, "rsa");
    assert!(
        said.contains("in no agent and in no file in `~/.ssh`"),
        "{said}"
    );
}

#[test]
fn keys_sign_from_files_as_far_as_openssh_would_use_them() {
    let world = provider();
    let kinds: [(&str, &[&str]); 4] = [
        ("p384", &["-t", "ecdsa", "-b", "384"]),
        ("rsa", &["-t", "rsa", "-b", "2048"]),
        ("locked", &["-t", "ed25519"]),
        ("open", &["-t", "ed25519"]),
    ];
    let services = kinds.map(|(name, kind)| service(name, &key(&world, name, kind), ""));
    let locked = world.text(".ssh/locked");
    let mut passphrase = Command::new("ssh-keygen");
    passphrase
        .args(["-q", "-p", "-P", "", "-N", "secret", "-f", &locked])
        .stdout(Stdio::null());
    assert!(passphrase.status().unwrap().success());
    fs::set_permissions(world.path(".ssh/open"), fs::Permissions::from_mode(0o644)).unwrap();
    let alice = Alice::new(world, &services.each_ref().map(String::as_str));
    let said = signs(&alice, "p384");
    assert!(said.contains("Good \"git\" signature"), "{said}");
    for (name, reason) in [
        (
            "rsa",
            "holds an RSA or security key, which signs only through an agent; load it there with `ssh-add`",
        ),
        (
            "locked",
            "is protected by a passphrase; load it there with `ssh-add`",
        ),
        (
            "open",
            "can be read by others, or is not the user's; make it private: `chmod 600`",
        ),
    ] {
        let said = signs(&alice, name);
        assert!(
            said.contains(&format!(": its file {reason}")),
            "{name}: {said}"
        );
    }
    fs::set_permissions(
        alice.world.path(".ssh/open"),
        fs::Permissions::from_mode(0o600),
    )
    .unwrap();
    let said = signs(&alice, "open");
    assert!(said.contains("Good \"git\" signature"), "{said}");
    fs::remove_file(alice.world.path(".ssh/p384")).unwrap();
    let said = signs(&alice, "p384");
    assert!(
        said.contains("in no agent and in no file in `~/.ssh`; load it there with `ssh-add`"),
        "{said}"
    );
}

#[test]
fn a_key_of_gpg_agent_signs() {
    if !have_program("gpg-agent") {
        return;
    }
    let keyring = Keyring::new();
    let home = keyring.path().to_str().unwrap().to_owned();
    let world = provider().keyring(&keyring);
    let ran = |program: &str, args: &[&str]| {
        let mut command = Command::new(program);
        command
            .args(args)
            .env("GNUPGHOME", &home)
            .stdin(Stdio::null());
        let output = command.output().unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    fs::write(
        keyring.path().join("gpg-agent.conf"),
        "enable-ssh-support\n",
    )
    .unwrap();
    ran("gpgconf", &["--kill", "gpg-agent"]);
    let user = "ssh <ssh@example.org>";
    ran(
        "gpg",
        &[
            "--batch",
            "--passphrase",
            "",
            "--quick-generate-key",
            user,
            "ed25519",
            "cert",
            "never",
        ],
    );
    let listed = ran("gpg", &["--list-keys", "--with-colons", user]);
    let primary = listed
        .lines()
        .find_map(|line| line.strip_prefix("fpr:"))
        .unwrap()
        .trim_matches(':')
        .to_owned();
    ran(
        "gpg",
        &[
            "--batch",
            "--passphrase",
            "",
            "--quick-add-key",
            &primary,
            "ed25519",
            "auth",
            "never",
        ],
    );
    let listed = ran(
        "gpg",
        &["--list-keys", "--with-colons", "--with-keygrip", user],
    );
    let grip = listed
        .lines()
        .filter_map(|line| line.strip_prefix("grp:"))
        .next_back()
        .unwrap();
    fs::write(
        keyring.path().join("sshcontrol"),
        format!("{}\n", grip.trim_matches(':')),
    )
    .unwrap();
    ran("gpgconf", &["--kill", "gpg-agent"]);
    let public = ran("gpg", &["--export-ssh-key", user]);
    fs::create_dir_all(world.path(".ssh")).unwrap();
    world.write(".ssh/gpg.pub", &public);
    let alice = Alice::new(world, &[&service("gpg", public.trim(), "")]);
    let said = signs(&alice, "gpg");
    assert!(said.contains("Good \"git\" signature"), "{said}");
}

#[test]
fn an_agent_that_has_the_key_and_refuses_is_not_passed_by() {
    let world = provider();
    let commits = service("commits", &ed25519(&world), "");
    // With a copy of the file, which is not to be used.
    fs::copy(world.path(".ssh/id_ed25519"), world.path(".ssh/copy")).unwrap();
    let agent = SshAgent::start(&world, &[]);
    let socket = world.text("agent.sock");
    // Each use is to be confirmed, and there is nobody who could.
    let mut add = Command::new("ssh-add");
    add.args(["-q", "-c"])
        .arg(world.path(".ssh/id_ed25519"))
        .env("SSH_AUTH_SOCK", &socket);
    assert!(add.status().unwrap().success());
    let alice = Alice::new(world.env("SSH_AUTH_SOCK", socket), &[&commits]);
    let said = signs(&alice, "id_ed25519");
    assert!(
        said.contains("the provider's agent has the key, but refused to sign with it"),
        "{said}"
    );
    drop(agent);
    let said = signs(&alice, "id_ed25519");
    assert!(said.contains("Good \"git\" signature"), "{said}");
}

#[test]
fn a_key_that_comes_later_is_found() {
    let elsewhere = provider();
    let public = ed25519(&elsewhere);
    let world = provider();
    let alice = Alice::new(world, &[&service("commits", &public, "")]);
    // A call starts the process that reads the keys, before there is a folder of them.
    let missing =
        alice.agent("ssh-add -L >public.pub; ssh-keygen -Y sign -n git -f public.pub <public.pub");
    assert!(
        missing
            .stderr
            .contains("in no agent and in no file in `~/.ssh`; load it there with `ssh-add`"),
        "{}",
        missing.stderr
    );
    let folder = alice.world.path(".ssh");
    let mode = fs::metadata(&folder).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o700);
    for name in ["id_ed25519", "id_ed25519.pub"] {
        fs::copy(elsewhere.path(&format!(".ssh/{name}")), folder.join(name)).unwrap();
    }
    let said = signs(&alice, "id_ed25519");
    assert!(said.contains("Good \"git\" signature"), "{said}");
}

#[test]
fn an_agent_that_waits_for_its_user_is_not_passed_over_for_a_file() {
    let world = provider();
    let commits = service("commits", &ed25519(&world), "");
    // It accepts connections and says nothing, as ssh-agent does while it asks its user to confirm another signature.
    let silent = std::os::unix::net::UnixListener::bind(world.path("agent.sock")).unwrap();
    let socket = world.text("agent.sock");
    let short = commits.replacen("with:", "limits: {call_seconds: 2}, with:", 1);
    let alice = Alice::new(world.env("SSH_AUTH_SOCK", socket), &[&short]);
    let said = signs(&alice, "id_ed25519");
    assert!(
        said.contains("it was stopped after 2 s, the maximum duration"),
        "{said}"
    );
    drop(silent);
    // One that closes connections is silent, too.
    fs::remove_file(alice.world.path("agent.sock")).unwrap();
    let rude = std::os::unix::net::UnixListener::bind(alice.world.path("agent.sock")).unwrap();
    let closing = std::thread::spawn(move || drop(rude.accept().unwrap()));
    let said = signs(&alice, "id_ed25519");
    assert!(said.contains("its SSH agent does not answer"), "{said}");
    closing.join().unwrap();
    // The file is there, as the positive control shows.
    let said = signs(&alice, "id_ed25519");
    assert!(said.contains("Good \"git\" signature"), "{said}");
}
