//! A provider `vault` in its own folder: its services, its log, and its servers.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::peer::Peer;
use crate::harness::{ANKLUME, scrub, write_program};
use crate::serve::server::Keyring;

/// Longer than any step takes on the slowest machine; only a hang exceeds it.
pub(super) const PATIENCE: Duration = Duration::from_secs(60);
/// Pause between two checks of a condition.
const LOOK: Duration = Duration::from_millis(10);

/// Machines that may be consumers.
const CONSUMERS: [&str; 11] = [
    "alice", "bob", "carol", "c1", "c2", "c3", "c4", "c5", "c6", "c7", "c8",
];

/// Waits until a condition holds.
#[track_caller]
pub(super) fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < PATIENCE, "never: {what}");
        std::thread::sleep(LOOK);
    }
}

/// A provider's folder.
pub(super) struct World {
    folder: tempfile::TempDir,
    env: BTreeMap<String, String>,
    mcp: String,
}

/// The result of a run.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Ended {
    pub(super) status: i32,
    pub(super) stdout: String,
    pub(super) stderr: String,
}

impl Ended {
    /// Asserts the whole result: exit code, stdout, stderr.
    #[track_caller]
    pub(super) fn is(&self, status: i32, stdout: &str, stderr: &str) {
        assert_eq!(
            (self.status, self.stdout.as_str(), self.stderr.as_str()),
            (status, stdout, stderr),
            "stdout:\n{}\nstderr:\n{}",
            self.stdout,
            self.stderr
        );
    }
}

impl World {
    /// A provider of these services, each written as an `infra.yml` map on one line.
    pub(super) fn new(services: &[&str]) -> Self {
        Self::with_mcp(services, "{}")
    }

    /// The same, with this `mcp:` map in `infra.yml`.
    pub(super) fn with_mcp(services: &[&str], mcp: &str) -> Self {
        let mut world = Self::empty();
        mcp.clone_into(&mut world.mcp);
        world.policy(services);
        world
    }

    /// A folder for a provider without services.
    pub(super) fn empty() -> Self {
        let world = Self {
            folder: tempfile::tempdir().unwrap(),
            env: BTreeMap::new(),
            mcp: "{}".to_owned(),
        };
        for name in ["log", "run", "portal", "bin"] {
            fs::create_dir(world.path(name)).unwrap();
            let private = fs::Permissions::from_mode(0o700);
            fs::set_permissions(world.path(name), private).unwrap();
        }
        world
    }

    /// Writes `infra.yml` with this `mcp:` map and these services, without putting them in force.
    pub(super) fn prepare(&mut self, mcp: impl Into<String>, services: &[&str]) {
        self.mcp = mcp.into();
        self.write_infra(services);
    }

    /// Puts these services in force, with this `mcp:` map in `infra.yml`.
    pub(super) fn declare(&mut self, mcp: impl Into<String>, services: &[&str]) {
        self.mcp = mcp.into();
        self.policy(services);
    }

    /// Sets an environment variable for everything that runs here from now on.
    pub(super) fn env(mut self, name: &str, value: impl Into<String>) -> Self {
        self.env.insert(name.to_owned(), value.into());
        self
    }

    /// A path in the folder.
    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The same, as a string.
    pub(super) fn text(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().to_owned()
    }

    /// Writes a file below the folder.
    pub(super) fn write(&self, name: &str, content: impl AsRef<[u8]>) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }

    /// Makes gpg use this keyring.
    pub(super) fn keyring(self, keyring: &Keyring) -> Self {
        self.env("GNUPGHOME", keyring.path().to_str().unwrap())
    }

    /// Makes gpg wait for a file `go` before it begins to sign.
    pub(super) fn held_gpg(self) -> Self {
        let (go, world) = (self.text("go"), self.text(""));
        // Limited, so that it does not long outlive its test.
        let wait = format!(
            "case \"$*\" in *--detach-sign*)\ni=0\n\
             while [ ! -e '{go}' ] && [ -e '{world}' ] && [ $i -lt 600 ]; do sleep 0.1; i=$((i+1)); done;; esac"
        );
        self.gpg_after(&wait)
    }

    /// Returns whether such a gpg is waiting, judged from the process list because it writes nothing.
    pub(super) fn gpg_waits(&self) -> bool {
        let gpg = self.text("bin/gpg").into_bytes();
        all_processes()
            .map(words_of)
            .any(|words| words.contains(&gpg) && words.iter().any(|word| word == b"--detach-sign"))
    }

    /// Makes gpg sign with a delay of `seconds`.
    pub(super) fn slow_gpg(self, seconds: u32) -> Self {
        self.gpg_after(&format!(
            "case \"$*\" in *--detach-sign*) sleep {seconds};; esac"
        ))
    }

    fn gpg_after(self, shell: &str) -> Self {
        let path = std::env::var("PATH").unwrap();
        let gpg = std::env::split_paths(&path)
            .map(|folder| folder.join("gpg"))
            .find(|gpg| gpg.is_file())
            .unwrap();
        let script = format!("#!/bin/sh\n{shell}\nexec {} \"$@\"\n", gpg.display());
        write_program(&self.path("bin/gpg"), script);
        let bin = self.text("bin");
        self.env("PATH", format!("{bin}:{path}"))
    }

    /// The services file for these services, as `policy export` prints it.
    pub(super) fn export(&self, services: &[&str]) -> Vec<u8> {
        self.write_infra(services);
        let ran = self.run(&["policy", "export", "--machine", "vault"]);
        assert_eq!((ran.status, ran.stderr.as_str()), (0, ""));
        ran.stdout.into_bytes()
    }

    fn write_infra(&self, services: &[&str]) {
        let listed: Vec<String> = services
            .iter()
            .map(|service| format!("          - {service}\n"))
            .collect();
        let others = CONSUMERS.map(|name| format!("      {name}: {{}}\n"));
        let services = if services.is_empty() {
            "        services: []\n".to_owned()
        } else {
            format!("        services:\n{}", listed.concat())
        };
        let mcp = &self.mcp;
        let infra = format!(
            "domains:\n  d:\n    subnet_id: 0\n    machines:\n      vault:\n        mcp: {mcp}\n{services}{}",
            others.concat()
        );
        self.write("infra.yml", infra);
    }

    /// Puts these services in force: writes a new file and renames it over the old one.
    pub(super) fn policy(&self, services: &[&str]) {
        self.policy_bytes(&self.export(services));
    }

    /// The same, with arbitrary bytes.
    pub(super) fn policy_bytes(&self, bytes: &[u8]) {
        self.write("services.new", bytes);
        fs::rename(self.path("services.new"), self.path("services.json")).unwrap();
    }

    /// A command that runs the binary in this folder.
    pub(super) fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(ANKLUME);
        command.args(args).current_dir(self.folder.path());
        scrub(&mut command, self.folder.path());
        command
            .env("ANKLUME_AUDIT_LOG", self.path("log/audit.jsonl"))
            .env("ANKLUME_MCP_PORTAL", self.path("portal"))
            .env("XDG_RUNTIME_DIR", self.path("run"))
            .env("ANKLUME_SOCKET_DIR", self.path("sockets"))
            .envs(&self.env)
            .stdin(Stdio::null());
        command
    }

    /// Sets the same arguments, folder and environment on another command that runs anklume.
    pub(super) fn through(&self, command: &mut Command, args: &[&str]) {
        let own = self.command(args);
        command.args(own.get_args());
        command.current_dir(own.get_current_dir().unwrap());
        for (name, value) in own.get_envs() {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
    }

    /// Runs the binary until it exits, with empty stdin.
    #[track_caller]
    pub(super) fn run(&self, args: &[&str]) -> Ended {
        self.run_with(args, b"")
    }

    /// Runs the binary until it exits, with `input` on stdin.
    #[track_caller]
    pub(super) fn run_with(&self, args: &[&str], input: &[u8]) -> Ended {
        let mut command = self.command(args);
        command.stdin(file_of(input));
        ended(command)
    }

    /// Starts `mcp serve --listen` and waits until it is serving.
    #[track_caller]
    pub(super) fn listen(&self) -> Listening {
        let args = ["mcp", "serve", "--listen", "sockets"];
        let args = [&args[..], &["--services", "services.json"]].concat();
        self.listen_by(self.command(&args))
    }

    /// The same, with a custom command.
    #[track_caller]
    pub(super) fn listen_by(&self, mut command: Command) -> Listening {
        let mut listening = self.begin(&mut command);
        let begun = Instant::now();
        while !listening.stderr().contains("serving in") {
            let ended = listening.child.try_wait().unwrap();
            assert!(
                ended.is_none() && begun.elapsed() < PATIENCE,
                "it does not serve ({ended:?}): {}",
                listening.stderr()
            );
            std::thread::sleep(LOOK);
        }
        listening
    }

    /// Starts a server without waiting until it is serving.
    pub(super) fn begin(&self, command: &mut Command) -> Listening {
        let stderr = tempfile::NamedTempFile::new_in(self.folder.path()).unwrap();
        let child = command
            .stdout(Stdio::null())
            .stderr(stderr.reopen().unwrap())
            .spawn()
            .unwrap();
        Listening {
            child,
            sockets: self.path("sockets"),
            stderr,
        }
    }

    /// The lines of the log, as JSON.
    #[track_caller]
    pub(super) fn log(&self) -> Vec<Value> {
        let text = String::from_utf8(fs::read(self.path("log/audit.jsonl")).unwrap()).unwrap();
        text.lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    }

    /// The log lines for one kind of event.
    #[track_caller]
    pub(super) fn logged(&self, event: &str) -> Vec<Value> {
        let mut lines = self.log();
        lines.retain(|line| line["event"] == event);
        lines
    }

    /// Asserts that `audit verify` finds the log intact.
    #[track_caller]
    pub(super) fn log_is_intact(&self) {
        let ran = self.run(&["audit", "verify"]);
        assert!(
            ran.status == 0 && ran.stdout.starts_with("intact: "),
            "{ran:?}"
        );
    }

    /// The text on the provider's clipboard; `None` if nothing was ever put there.
    pub(super) fn clipboard(&self) -> Option<String> {
        let found = fs::read(self.path("run/anklume/clipboard")).ok()?;
        Some(String::from_utf8(found).unwrap())
    }
}

/// A server in a world; dropping this value kills it.
pub(super) struct Listening {
    child: Child,
    sockets: PathBuf,
    stderr: tempfile::NamedTempFile,
}

impl Listening {
    /// A consumer's socket.
    pub(super) fn socket(&self, consumer: &str) -> PathBuf {
        self.sockets.join(format!("{consumer}.sock"))
    }

    /// Connects as a consumer.
    #[track_caller]
    pub(super) fn peer(&self, consumer: &str) -> Peer {
        Peer::connect(&self.socket(consumer))
    }

    /// Its process ID.
    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Its output on stderr so far.
    pub(super) fn stderr(&self) -> String {
        String::from_utf8(fs::read(self.stderr.path()).unwrap()).unwrap()
    }

    /// Sends a signal.
    pub(super) fn signal(&self, name: &str) {
        let status = Command::new("kill")
            .args([format!("-{name}"), self.pid().to_string()])
            .status()
            .unwrap();
        assert!(status.success());
    }

    /// The process ID of a consumer's worker, if it is running.
    pub(super) fn worker(&self, consumer: &str) -> Option<u32> {
        let words = ["mcp-worker", consumer].map(str::as_bytes);
        let mut all = self.workers().into_iter();
        all.find(|process| {
            words_of(*process)
                .get(1..3)
                .is_some_and(|said| said == words)
        })
    }

    /// The server and its workers.
    pub(super) fn processes(&self) -> Vec<u32> {
        let mut processes = self.workers();
        processes.push(self.pid());
        processes
    }

    /// The process ID of a consumer's helper for one resource, if it is running.
    pub(super) fn helper(&self, consumer: &str, resource: &str) -> Option<u32> {
        let words = ["mcp-helper", consumer, resource].map(str::as_bytes);
        let mut all = self.workers().into_iter();
        all.find(|process| {
            words_of(*process)
                .get(1..4)
                .is_some_and(|said| said == words)
        })
    }

    fn workers(&self) -> Vec<u32> {
        let own = self.pid();
        let threads = fs::read_dir(format!("/proc/{own}/task")).unwrap();
        let children = threads.map(|thread| {
            // A thread that has just exited has no children.
            fs::read_to_string(thread.unwrap().path().join("children")).unwrap_or_default()
        });
        let children: Vec<String> = children.collect();
        let children = children
            .iter()
            .flat_map(|children| children.split_whitespace());
        let children = children.map(|pid| pid.parse().unwrap());
        children
            .filter(|child| {
                words_of(*child)
                    .get(1)
                    .is_some_and(|word| word.starts_with(b"mcp-"))
            })
            .collect()
    }

    /// The peak memory of the server and its workers so far, in KiB.
    pub(super) fn peak_kib(&self) -> u64 {
        let processes = self.processes().into_iter();
        processes.map(|process| number_of(process, "VmHWM:")).sum()
    }

    /// Waits for the server to exit; returns its exit code, or -1 if a signal killed it.
    #[track_caller]
    pub(super) fn wait(&mut self) -> i32 {
        wait(&mut self.child)
    }

    /// Shuts the server down cleanly.
    #[track_caller]
    pub(super) fn end(mut self) {
        self.signal("TERM");
        assert_eq!(self.wait(), 0, "{}", self.stderr());
    }
}

/// The processes of this machine.
pub(super) fn all_processes() -> impl Iterator<Item = u32> {
    let processes = fs::read_dir("/proc").unwrap();
    processes.filter_map(|entry| entry.unwrap().file_name().to_str()?.parse().ok())
}

/// The parent of a process; `None` if the process is gone.
pub(super) fn parent_of(process: u32) -> Option<u32> {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    let (_, fields) = stat.rsplit_once(") ")?;
    fields.split(' ').nth(1)?.parse().ok()
}

/// A process's command line; right after the process starts, this is still its server's.
pub(super) fn words_of(process: u32) -> Vec<Vec<u8>> {
    let words = fs::read(format!("/proc/{process}/cmdline")).unwrap_or_default();
    words.split(|byte| *byte == 0).map(<[u8]>::to_vec).collect()
}

/// Sends a signal to a process.
#[track_caller]
pub(super) fn signal(process: u32, name: &str) {
    let kill = Command::new("kill")
        .args([format!("-{name}"), process.to_string()])
        .status();
    assert!(kill.unwrap().success());
}

/// Reads a number from `/proc/PID/status`; 0 for a process that has exited.
pub(super) fn number_of(process: u32, key: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix(key));
    let number = line.and_then(|line| line.split_whitespace().next());
    number.map_or(0, |number| number.parse().unwrap())
}

impl Drop for Listening {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Waits for a child, and kills it if it does not exit.
#[track_caller]
pub(super) fn wait(child: &mut Child) -> i32 {
    let begun = Instant::now();
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return status.code().unwrap_or(-1);
        }
        if begun.elapsed() > PATIENCE {
            child.kill().unwrap();
            child.wait().unwrap();
            panic!("it does not end");
        }
        std::thread::sleep(LOOK);
    }
}

/// Runs a command until it exits; its stdin is left as set.
#[track_caller]
pub(super) fn ended(mut command: Command) -> Ended {
    let (stdout, stderr) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
    let mut child = command
        .stdout(stdout.try_clone().unwrap())
        .stderr(stderr.try_clone().unwrap())
        .spawn()
        .unwrap();
    let status = wait(&mut child);
    let text = |mut file: fs::File| {
        let mut text = String::new();
        file.seek(SeekFrom::Start(0)).unwrap();
        file.read_to_string(&mut text).unwrap();
        text
    };
    Ended {
        status,
        stdout: text(stdout),
        stderr: text(stderr),
    }
}

/// A file with this content, positioned at its beginning.
pub(super) fn file_of(content: &[u8]) -> fs::File {
    let mut file = tempfile::tempfile().unwrap();
    std::io::Write::write_all(&mut file, content).unwrap();
    file.seek(SeekFrom::Start(0)).unwrap();
    file
}

/// The lines of a log file, without their newlines.
pub(super) fn lines_of(path: &Path) -> Vec<String> {
    let text = String::from_utf8(fs::read(path).unwrap()).unwrap();
    text.lines().map(str::to_owned).collect()
}
