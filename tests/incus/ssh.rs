//! A signature by an SSH key of another machine.

use std::process::Command;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::world::{World, pair};

/// What Git asks an agent to sign for a commit.
pub(crate) fn commit() -> String {
    let mut data = b"SSHSIG".to_vec();
    for part in [b"git".as_slice(), b"", b"sha512", &[7; 64]] {
        data.extend(u32::try_from(part.len()).unwrap().to_be_bytes());
        data.extend(part);
    }
    STANDARD.encode(data)
}

/// A new public key, in one line, and its private key.
pub(crate) fn key_pair() -> (String, String) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("id_ed25519");
    let mut generate = Command::new("ssh-keygen");
    generate.args(["-q", "-t", "ed25519", "-N", "", "-C", "me", "-f"]);
    assert!(generate.arg(&file).status().unwrap().success());
    let read = |path| std::fs::read_to_string(path).unwrap();
    (read(file.with_extension("pub")), read(file))
}

#[test]
fn a_key_signs_in_another_machine_and_doctor_says_if_it_is_not_there() {
    let (public, private) = key_pair();
    let service = format!(
        "name: commits, tool: ssh_sign, with: {{key: \"{}\"}}",
        public.trim()
    );
    let world = World::new(&pair("mcp: {run_as: root}", &service));
    world.apply();
    let machine = world.machine(0, "signer");
    let note = format!(
        "note: `{machine}/commits` cannot sign: the provider cannot sign with the key SHA256:"
    );
    let seen = world.run(&["doctor"]);
    assert!(seen.stderr.contains(&note), "{}", seen.stderr);
    assert!(
        seen.stderr
            .contains("it is in no agent and in no file in `~/.ssh`; load it there with `ssh-add`"),
        "{}",
        seen.stderr
    );
    let call = format!(
        "anklume mcp call -i {machine} commits data:='\"{}\"' --format json 2>&1",
        commit()
    );
    let (done, said) = world.exec(1, "dev", &call);
    assert!(
        !done && said.contains("it is in no agent and in no file"),
        "{said}"
    );

    let put = format!("umask 077; mkdir -p ~/.ssh; cat > ~/.ssh/id_ed25519 <<'KEY'\n{private}KEY");
    assert!(world.exec(0, "signer", &put).0);
    let (done, said) = world.exec(1, "dev", &call);
    assert!(done && said.contains("\"purpose\": \"git\""), "{said}");
    let seen = world.run(&["doctor"]);
    assert!(!seen.stderr.contains("cannot sign"), "{}", seen.stderr);
    // The agent lists the key there, although no program asks for it.
    let (done, said) = world.exec(
        1,
        "dev",
        "anklume ssh-agent -- sh -c 'test -S $SSH_AUTH_SOCK && echo there' 2>&1",
    );
    assert!(done && said == "there\n", "{said}");
}
