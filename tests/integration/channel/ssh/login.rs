//! Logins through a real SSH client and server.

use super::sshd::Sshd;
use super::until;
use super::{Alice, ed25519, provider, service};

/// A consumer whose service allows `allow`, with a host that is listed and one that is not.
fn with_hosts(allow: &str) -> Option<(Alice, Sshd, Sshd)> {
    let world = provider();
    let key = ed25519(&world);
    let alice = Alice::new(world, &["{name: notes, tool: notify, consumers: [bob]}"]);
    let (listed, other) = (
        Sshd::start(&alice, "listed")?,
        Sshd::start(&alice, "other")?,
    );
    let hosts = if allow.contains("login") {
        format!(", hosts: [\"{}\"]", listed.host)
    } else {
        String::new()
    };
    alice.world.policy(&[&service(
        "deploy",
        &key,
        &format!(", allow: [{allow}]{hosts}"),
    )]);
    let socket = alice.server.socket("alice");
    until("the provider serves alice", || socket.exists());
    Some((alice, listed, other))
}

#[test]
fn a_login_is_signed_for_a_listed_host_and_no_other() {
    let Some((alice, listed, other)) = with_hosts("login") else {
        return;
    };
    alice.agent(&listed.ssh("", "echo in")).is(0, "in\n", "");
    let refused = alice.agent(&other.ssh("", "echo in"));
    assert_eq!(
        (refused.status, refused.stdout.as_str()),
        (255, ""),
        "{}",
        refused.stderr
    );
    let user = whoami();
    let why = format!(
        "the service does not sign login to {} as {user}; ask the operator to add that host key to `hosts`",
        other.host
    );
    assert!(
        refused.stderr.contains(&format!(
            "anklume ssh-agent: vault/deploy: the provider reports: {why}\n"
        )),
        "{}",
        refused.stderr
    );
    assert!(
        refused.stderr.contains("Permission denied (publickey)"),
        "{}",
        refused.stderr
    );
    let granted = format!("login to {} as {user}", listed.host);
    assert_eq!(alice.purposes(), [granted, format!("refused: {why}")]);
    // Which hosts are granted says nothing about commits.
    let sign = alice.agent(&format!(
        "echo x | ssh-keygen -Y sign -n git -f {}",
        alice.world.text(".ssh/id_ed25519.pub")
    ));
    assert!(
        sign.stderr.contains("does not sign `git`, only `login`"),
        "{}",
        sign.stderr
    );
}

#[test]
fn without_login_a_key_opens_no_host() {
    let Some((alice, listed, _)) = with_hosts("git") else {
        return;
    };
    let refused = alice.agent(&listed.ssh("", "echo in"));
    assert_eq!((refused.status, refused.stdout.as_str()), (255, ""));
    assert!(
        refused.stderr.contains("does not sign `login`, only `git`"),
        "{}",
        refused.stderr
    );
}

#[test]
fn a_forwarded_agent_lends_no_key() {
    let Some((alice, listed, _)) = with_hosts("login, git") else {
        return;
    };
    // The host can list keys with the same command where it has an agent: the positive control.
    let local = alice.agent("ssh-add -l");
    assert_eq!(local.status, 0, "{}", local.stderr);
    // Without the private key beside it, which is readable there because the host is this computer.
    let public = alice.world.text("public.pub");
    alice.done("cp .ssh/id_ed25519.pub public.pub");
    let there = format!(
        "test -S \"$SSH_AUTH_SOCK\" && ssh-add -l; echo x | ssh-keygen -q -Y sign -n git -f {public}"
    );
    let ran = alice.agent(&listed.ssh("-A", &there));
    assert_eq!(ran.status, 255, "{}", ran.stderr);
    assert_eq!(
        ran.stdout, "The agent has no identities.\n",
        "{}",
        ran.stderr
    );
    assert!(
        ran.stderr.contains("No private key found"),
        "{}",
        ran.stderr
    );
    // From there to the same host again.
    let again = listed.ssh("", "echo in").replace('\'', "");
    let ran = alice.agent(&listed.ssh("-A", &again));
    assert_eq!(
        (ran.status, ran.stdout.as_str()),
        (255, ""),
        "{}",
        ran.stderr
    );
    let granted = format!("login to {} as {}", listed.host, whoami());
    assert_eq!(alice.purposes(), [granted.clone(), granted]);
}

fn whoami() -> String {
    let output = std::process::Command::new("id")
        .arg("-un")
        .output()
        .unwrap();
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}
