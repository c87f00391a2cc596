//! Signatures of `ssh-keygen -Y sign` over a channel, against those of a local ssh-agent.

use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::listening::{self, Server};

const ROUNDS: usize = 41;
/// Maximum time for an agent to start.
const PATIENCE: Duration = Duration::from_secs(20);

/// Medians of one signature.
pub(crate) struct Times {
    /// By `anklume ssh-agent`, whose provider has the key in OpenSSH's agent.
    pub(crate) agent: Duration,
    /// The same, with the key in a file.
    pub(crate) file: Duration,
    /// By OpenSSH's agent, which has the key.
    pub(crate) floor: Duration,
}

/// An agent that ends when this is dropped.
struct Agent(Child);

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Starts an agent that listens on a socket.
fn agent(mut command: Command, socket: &Path) -> Agent {
    command.args(["-D", "-a"]).arg(socket);
    command.stdin(Stdio::null()).stdout(Stdio::null());
    let agent = Agent(command.spawn().unwrap());
    let begun = Instant::now();
    while !socket.exists() {
        assert!(
            begun.elapsed() < PATIENCE,
            "no agent at {}",
            socket.display()
        );
        std::thread::sleep(Duration::from_millis(10));
    }
    agent
}

/// Measures signatures with the namespace of Git, in turns. `None` without OpenSSH.
pub(crate) fn times(anklume: impl Fn() -> Command, folder: &Path) -> Option<Times> {
    Command::new("ssh-keygen").arg("-?").output().ok()?;
    // The home folder of the provider's user, as `anklume` sets it.
    let keys = folder.join(".ssh");
    std::fs::create_dir(&keys).unwrap();
    let key = keys.join("id_ed25519");
    let mut generate = Command::new("ssh-keygen");
    crate::run(
        generate
            .args(["-q", "-t", "ed25519", "-N", "", "-C", "bench", "-f"])
            .arg(&key),
    );
    let folder = folder.join("signature");
    std::fs::create_dir(&folder).unwrap();
    // Without the private key beside it.
    let public = folder.join("key.pub");
    let line = std::fs::read_to_string(key.with_extension("pub")).unwrap();
    std::fs::write(&public, &line).unwrap();
    let infra = format!(
        "
domains:
  d:
    subnet_id: 0
    machines:
      vault:
        services:
          - {{name: commits, tool: ssh_sign, consumers: [quiet, loud], with: {{key: \"{}\"}}, limits: {{calls_per_minute: 10000}}}}
      quiet: {{}}
      loud: {{}}
",
        line.trim()
    );
    let services = listening::services(&anklume, &folder, &infra);
    let local = folder.join("local");
    let _theirs = agent(Command::new("ssh-agent"), &local);
    let mut add = Command::new("ssh-add");
    crate::run(add.arg("-q").arg(&key).env("SSH_AUTH_SOCK", &local));
    let letter = folder.join("letter");
    std::fs::write(&letter, "hello\n").unwrap();
    let sign = |socket: &Path| {
        let _ = std::fs::remove_file(letter.with_extension("sig"));
        let mut sign = Command::new("ssh-keygen");
        sign.args(["-Y", "sign", "-n", "git", "-f"])
            .arg(&public)
            .arg(&letter);
        crate::timed(|| crate::run(sign.env("SSH_AUTH_SOCK", socket)))
    };
    let (mut with_agent, mut with_file, mut floor) = (Vec::new(), Vec::new(), Vec::new());
    for (name, has_agent) in [("agent", true), ("file", false)] {
        let mut serve = anklume();
        if has_agent {
            serve.env("SSH_AUTH_SOCK", &local);
        }
        let server = Server::start(serve, &folder, &format!("sockets-{name}"), &services);
        let sockets = folder.join(name);
        std::fs::create_dir(&sockets).unwrap();
        symlink(server.socket("quiet"), sockets.join("vault.sock")).unwrap();
        let remote = folder.join(format!("{name}.sock"));
        let mut start = anklume();
        start.env("ANKLUME_SOCKET_DIR", &sockets).arg("ssh-agent");
        let _ours = agent(start, &remote);
        // The first signature starts processes of the provider.
        sign(&remote);
        for _ in 0..ROUNDS {
            let ours = if has_agent {
                &mut with_agent
            } else {
                &mut with_file
            };
            ours.push(sign(&remote));
            floor.push(sign(&local));
        }
    }
    Some(Times {
        agent: crate::median(with_agent),
        file: crate::median(with_file),
        floor: crate::median(floor),
    })
}
