//! An infrastructure of two domains on the real Incus, for as long as a test needs it.
#![expect(clippy::indexing_slicing, reason = "a failed index is a failed test")]

use std::fs::File;
use std::process::Output;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::harness::{Anklume, Ran};
use crate::project::{incus, unhurried};

/// An infrastructure; dropped, it is gone with everything in it.
pub(crate) struct World {
    /// `project_name`.
    pub(crate) name: String,
    /// The two domains.
    pub(crate) domains: [String; 2],
    /// The first two parts of every address.
    pub(crate) base: String,
    /// What it has on the host, in the place of `/srv/anklume`.
    pub(crate) folder: tempfile::TempDir,
    /// Held while the addresses are its own.
    _claim: File,
    /// Its `infra.yml`.
    text: String,
}

impl World {
    /// Names for an infrastructure that nobody else has; `text` is its file, where `{a}` and `{b}` are the domains.
    pub(crate) fn new(text: &str) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let number = std::process::id().wrapping_mul(31).wrapping_add(count);
        let tag: String = [number / 900 % 30, number / 30 % 30, number % 30]
            .into_iter()
            .map(|digit| char::from_digit(digit, 36).unwrap())
            .collect();
        let (second, claim) = claim(number);
        let mut world = Self {
            name: format!("t-apply-{}-{count}", std::process::id()),
            domains: ["a", "b"].map(|one| format!("t-apply{tag}{one}")),
            base: format!("10.{second}"),
            folder: tempfile::tempdir().unwrap(),
            _claim: claim,
            text: String::new(),
        };
        world.declare(text);
        world
    }

    /// The machine that the file calls `{a}-NAME` or `{b}-NAME`.
    pub(crate) fn machine(&self, domain: usize, name: &str) -> String {
        format!("{}-{name}", self.domains[domain])
    }

    /// Text with the names filled in.
    pub(crate) fn filled(&self, text: &str) -> String {
        text.replace("{a}", &self.domains[0])
            .replace("{b}", &self.domains[1])
            .replace("{base}", &self.base)
            .replace("{folder}", self.folder.path().to_str().unwrap())
    }

    /// Another file for the same infrastructure.
    pub(crate) fn declare(&mut self, text: &str) {
        let head = format!(
            "project_name: {}\nglobal: {{base_subnet: \"{}\", default_os_image: bb, persistent_data_base: {}/data}}\n",
            self.name,
            self.base,
            self.folder.path().display()
        );
        self.text = head + &self.filled(text);
    }

    /// A run of `anklume` beside the file.
    pub(crate) fn anklume(&self, args: &[&str]) -> Anklume {
        Anklume::new().infra(&self.text).args(args.iter().copied())
    }

    /// Runs `anklume …` to the end; that it waited for another test's run is no part of what came out.
    pub(crate) fn run(&self, args: &[&str]) -> Ran {
        settled(self.anklume(args).run())
    }

    /// `anklume apply`, which must succeed; its answer.
    #[track_caller]
    pub(crate) fn apply(&self) -> Ran {
        let ran = self.run(&["apply"]);
        assert_eq!(ran.status, 0, "{}\n{}", ran.stdout, ran.stderr);
        ran
    }

    /// `anklume apply --format json`, whatever comes of it.
    pub(crate) fn apply_json(&self) -> (i32, serde_json::Value) {
        let ran = self.run(&["apply", "--format", "json"]);
        let answer = serde_json::from_str(&ran.stdout);
        assert!(answer.is_ok(), "{ran:?}");
        (ran.status, answer.unwrap())
    }

    /// Nothing is left to do, and looking sends no writing request.
    #[track_caller]
    pub(crate) fn is_settled(&self) {
        let (status, answer) = self.apply_json();
        assert_eq!((status, &answer["writes"]), (0, &0.into()), "{answer:#}");
        // A socket that another test's machine left when it was deleted by hand is everybody's to sweep.
        let actions = answer["actions"].as_array().unwrap();
        assert!(
            actions.iter().all(|action| action["kind"] == "socket"),
            "{answer:#}"
        );
    }

    /// The plan but for sockets that other tests left, sorted: machines are independent of each other.
    #[track_caller]
    pub(crate) fn plan(&self) -> Vec<String> {
        let ran = self.run(&["apply", "--dry-run"]);
        assert_eq!(ran.status, 0, "{}", ran.stderr);
        let lines = ran
            .stdout
            .lines()
            .filter(|line| !line.starts_with("- socket "));
        let mut lines: Vec<String> = lines.map(str::to_owned).collect();
        lines.sort_unstable();
        lines
    }

    /// Runs `incus … --project DOMAIN`; whatever comes of it.
    pub(crate) fn incus(&self, domain: usize, args: &[&str]) -> Output {
        let project = format!("--project={}", self.domains[domain]);
        let (verb, rest) = args.split_first().unwrap();
        incus([&[*verb, &project], rest].concat())
    }

    /// Runs a command in a machine: whether it succeeded, and its output.
    pub(crate) fn exec(&self, domain: usize, name: &str, command: &str) -> (bool, String) {
        let machine = self.machine(domain, name);
        let args = [
            "exec",
            &machine,
            "-T",
            "--",
            "sh",
            "-c",
            &unhurried(command),
        ];
        let output = self.incus(domain, &args);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        (output.status.success(), text)
    }

    /// A value of a machine's configuration; empty where it is not set.
    pub(crate) fn config(&self, domain: usize, name: &str, key: &str) -> String {
        let machine = self.machine(domain, name);
        let output = self.incus(domain, &["config", "get", &machine, key]);
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }

    /// Whether a domain's project is on Incus.
    pub(crate) fn is_there(&self, domain: usize) -> bool {
        incus(["project", "show", &self.domains[domain]])
            .status
            .success()
    }

    /// The names of the devices of edges on a machine, sorted.
    pub(crate) fn edge_devices(&self, domain: usize, machine: &str) -> Vec<String> {
        let output = self.incus(domain, &["config", "device", "list", machine]);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let mut names: Vec<String> = text
            .lines()
            .filter(|line| line.starts_with("mcp-"))
            .map(str::to_owned)
            .collect();
        names.sort_unstable();
        names
    }
}

/// A machine `{a}-signer` with these keys, which offers one service to the machine `{b}-dev`.
pub(crate) fn pair(signer: &str, service: &str) -> String {
    format!(
        "
domains:
  {{a}}:
    subnet_id: 1
    ephemeral: true
    machines:
      {{a}}-signer: {{{signer}, services: [{{{service}, consumers: [{{b}}-dev]}}]}}
  {{b}}:
    subnet_id: 2
    ephemeral: true
    machines:
      {{b}}-dev: {{}}
"
    )
}

/// Kills the process that carries the bytes of an edge at one of its ends, and waits until it is gone; `socket` is the
/// edge's on the host.
pub(crate) fn kill_proxy(provider: bool, socket: &str) {
    // The provider's listens on the host's socket, the consumer's connects to it.
    let (first, last) = ("forkproxy\0--\0", format!("unix:{socket}\0"));
    let mut killed = 0;
    for process in std::fs::read_dir("/proc").unwrap().filter_map(Result::ok) {
        let words = std::fs::read(process.path().join("cmdline")).unwrap_or_default();
        let words = String::from_utf8_lossy(&words).into_owned();
        let Some((_, addresses)) = words.split_once(first) else {
            continue;
        };
        let listens = addresses.split('\0').nth(2) == Some(last.trim_end_matches('\0'));
        if !addresses.contains(&last) || listens != provider {
            continue;
        }
        let pid = process.file_name().to_str().unwrap().parse().unwrap();
        let pid = rustix::process::Pid::from_raw(pid).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
        while process.path().join("exe").exists() {
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        killed += 1;
    }
    assert_eq!(killed, 1);
}

/// The second part of addresses that no other test has now, also of another run of the tests.
fn claim(number: u32) -> (u32, File) {
    /// The first of the numbers that tests take, and how many there are.
    const SECOND: (u32, u32) = (130, 100);
    let claimed = (0..SECOND.1).find_map(|step| {
        let second = SECOND.0 + (number + step) % SECOND.1;
        let path = std::env::temp_dir().join(format!("anklume-tests-10.{second}"));
        let file = File::create(path).unwrap();
        file.try_lock().is_ok().then_some((second, file))
    });
    claimed.unwrap()
}

/// What came out of a run, but for its having waited.
pub(crate) fn settled(mut ran: Ran) -> Ran {
    let waited = "waiting for another anklume that changes this Incus\n";
    ran.stderr = ran.stderr.replace(waited, "");
    ran
}

impl Drop for World {
    fn drop(&mut self) {
        self.run(&["destroy", "--yes", "--force"]);
        // What a test made by hand is nobody's: `destroy` leaves it, and what it uses.
        let mut left = false;
        for domain in &self.domains {
            let project = format!("--project={domain}");
            let list = incus(["list", &project, "-c", "n", "-f", "csv"]);
            for name in String::from_utf8_lossy(&list.stdout).lines() {
                let key = "security.protection.delete=";
                incus(["config", "set", &project, name, key]);
                incus(["delete", "--force", &project, name]);
                left = true;
            }
        }
        if left {
            self.run(&["destroy", "--yes", "--force"]);
        }
        for domain in &self.domains {
            incus(["network", "delete", &format!("net-{domain}")]);
            incus(["network", "acl", "delete", &format!("net-{domain}")]);
            incus(["project", "delete", domain]);
        }
    }
}
