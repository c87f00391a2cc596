//! A real SSH server on this computer, which accepts some keys of users.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use rustix::process::geteuid;

use super::Alice;
use crate::channel::world::signal;
use crate::harness::have;

/// A running server.
pub(super) struct Sshd {
    child: Child,
    port: u16,
    /// Its host key, as `SHA256:…`.
    pub(super) host: String,
}

/// Finds the server's program.
fn program() -> Option<PathBuf> {
    let unpacked = concat!(env!("CARGO_MANIFEST_DIR"), "/target/openssh/usr/sbin/sshd");
    ["/usr/sbin/sshd", unpacked]
        .map(PathBuf::from)
        .into_iter()
        .find(|path| path.exists())
}

/// Returns the fingerprint of a public key's file.
pub(super) fn fingerprint(path: &str) -> String {
    let output = Command::new("ssh-keygen")
        .args(["-lf", path])
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    text.split(' ').nth(1).unwrap().to_owned()
}

impl Sshd {
    /// Makes the host key `NAME`; the server accepts every key of the provider.
    pub(super) fn start(alice: &Alice, name: &str) -> Option<Self> {
        let program = program();
        have("sshd", program.is_some());
        let program = program?;
        let world = &alice.world;
        let host = world.text(name);
        let made = Command::new("ssh-keygen")
            .args(["-q", "-t", "ed25519", "-N", "", "-f", &host])
            .status();
        assert!(made.unwrap().success());
        // Free a moment ago.
        let port = TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap()
            .port();
        let keys: String = fs::read_dir(world.path(".ssh"))
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .filter(|path| path.extension().is_some_and(|it| it == "pub"))
            .map(|path| fs::read_to_string(path).unwrap())
            .collect();
        world.write(&format!("{name}.keys"), keys);
        let mut config = format!(
            "ListenAddress 127.0.0.1:{port}\nHostKey {host}\nAuthorizedKeysFile {}\nStrictModes no\nUsePAM no\n\
             PasswordAuthentication no\nKbdInteractiveAuthentication no\nPidFile none\nPermitRootLogin yes\n",
            world.text(&format!("{name}.keys"))
        );
        // Since OpenSSH 9.8, the server has more programs.
        let folder = program.ancestors().nth(3).unwrap().join("usr/lib/openssh");
        for (key, file) in [
            ("SshdSessionPath", "sshd-session"),
            ("SshdAuthPath", "sshd-auth"),
        ] {
            let path = folder.join(file);
            if path.exists() {
                config.extend([key, " ", path.to_str().unwrap(), "\n"]);
            }
        }
        world.write(&format!("{name}.conf"), config);
        let passwd = fs::read_to_string("/etc/passwd").unwrap()
            + "sshd:x:65533:65534::/run/sshd:/usr/sbin/nologin\n";
        world.write(&format!("{name}.passwd"), passwd);
        let mut command = Command::new("unshare");
        // As root, the server wants a user and a folder of its own.
        let script = "mount -t tmpfs none /run && mkdir -m 755 /run/sshd && mount --bind \"$1\" /etc/passwd && shift && exec \"$@\"";
        if geteuid().is_root() {
            let passwd = world.text(&format!("{name}.passwd"));
            command
                .args(["-m", "sh", "-c", script, "sh", &passwd])
                .arg(&program);
        } else {
            command = Command::new(&program);
        }
        let libraries = program
            .ancestors()
            .nth(3)
            .unwrap()
            .join("usr/lib/x86_64-linux-gnu");
        let mut child = command
            .args(["-D", "-e", "-f", &world.text(&format!("{name}.conf"))])
            .env("LD_LIBRARY_PATH", libraries)
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut log = BufReader::new(child.stderr.take().unwrap()).lines();
        let listens = |line: &String| line.contains("Server listening");
        let mut seen = Vec::new();
        let found = log
            .by_ref()
            .map(Result::unwrap)
            .inspect(|line| seen.push(line.clone()))
            .any(|line| listens(&line));
        assert!(found, "{seen:?}");
        // Nobody may stop reading what it says.
        std::thread::spawn(move || log.for_each(drop));
        Some(Self {
            child,
            port,
            host: fingerprint(&format!("{host}.pub")),
        })
    }

    /// A command that logs in and runs something there.
    pub(super) fn ssh(&self, options: &str, command: &str) -> String {
        format!(
            "ssh -F /dev/null -o BatchMode=yes -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null \
             -o LogLevel=ERROR -p {} {options} \"$(id -un)@127.0.0.1\" '{command}'",
            self.port
        )
    }
}

impl Drop for Sshd {
    fn drop(&mut self) {
        signal(self.child.id(), "TERM");
        let _ = self.child.wait();
    }
}
