//! An infrastructure of two domains on a real Incus, for the duration of a test.

use std::path::PathBuf;
use std::process::Output;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::harness::{Anklume, Ran};
use crate::processes::processes;
use crate::project::{incus, succeeded, unhurried};

/// An infrastructure. Dropping it destroys everything in it and checks that nothing is left.
pub(crate) struct World {
    /// `project_name`.
    pub(crate) name: String,
    /// The two domains.
    pub(crate) domains: [String; 2],
    /// The first two octets of every address.
    pub(crate) base: String,
    /// Its folder on the host, instead of `/srv/anklume`.
    pub(crate) folder: tempfile::TempDir,
    /// Its `infra.yml`.
    text: String,
    /// Its `anklume.lock`.
    pub(crate) lock: Option<String>,
}

impl World {
    /// Creates a world with unique names; `text` is its file, where `{a}` and `{b}` stand for the domains.
    pub(crate) fn new(text: &str) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        // Panics if this Incus does not belong to the test.
        succeeded(&incus(["version"]));
        let mut world = Self {
            name: format!("world-{count}"),
            domains: ["a", "b"].map(|one| format!("w{count}{one}")),
            base: format!("10.{}", 130 + count),
            folder: tempfile::tempdir().unwrap(),
            text: String::new(),
            lock: None,
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

    /// Replaces the file with another one for the same infrastructure.
    pub(crate) fn declare(&mut self, text: &str) {
        let head = format!(
            "project_name: {}\nglobal: {{base_subnet: \"{}\", default_os_image: bb, persistent_data_base: {}/data}}\n",
            self.name,
            self.base,
            self.folder.path().display()
        );
        self.text = head + &self.filled(text);
    }

    /// A run of `anklume` in the file's folder.
    pub(crate) fn anklume(&self, args: &[&str]) -> Anklume {
        let mut run = Anklume::new().infra(&self.text);
        if let Some(lock) = &self.lock {
            run = run.file("anklume.lock", lock);
        }
        run.args(args.iter().copied())
    }

    /// Runs `anklume …` to completion.
    pub(crate) fn run(&self, args: &[&str]) -> Ran {
        self.anklume(args).run()
    }

    /// Runs `anklume apply`, which must succeed, and returns its result.
    #[track_caller]
    pub(crate) fn apply(&self) -> Ran {
        let ran = self.run(&["apply"]);
        assert_eq!(ran.status, 0, "{}\n{}", ran.stdout, ran.stderr);
        ran
    }

    /// Runs `anklume apply --format json`, which may fail.
    pub(crate) fn apply_json(&self) -> (i32, serde_json::Value) {
        let ran = self.run(&["apply", "--format", "json"]);
        let answer = serde_json::from_str(&ran.stdout);
        assert!(answer.is_ok(), "{ran:?}");
        (ran.status, answer.unwrap())
    }

    /// Asserts that nothing is left to do, and that checking this sends no write request.
    #[track_caller]
    pub(crate) fn is_settled(&self) {
        let (status, answer) = self.apply_json();
        assert_eq!((status, &answer["writes"]), (0, &0.into()), "{answer:#}");
        assert_eq!(answer["actions"], serde_json::json!([]), "{answer:#}");
    }

    /// The lines of the plan, sorted because machines are independent of each other.
    #[track_caller]
    pub(crate) fn plan(&self) -> Vec<String> {
        let ran = self.run(&["apply", "--dry-run"]);
        assert_eq!(ran.status, 0, "{}", ran.stderr);
        let mut lines: Vec<String> = ran.stdout.lines().map(str::to_owned).collect();
        lines.sort_unstable();
        lines
    }

    /// Runs `incus … --project DOMAIN`, which may fail.
    pub(crate) fn incus(&self, domain: usize, args: &[&str]) -> Output {
        let project = format!("--project={}", self.domains[domain]);
        let (verb, rest) = args.split_first().unwrap();
        incus([&[*verb, &project], rest].concat())
    }

    /// Runs a command in a machine; returns whether it succeeded, and its output.
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

    /// A value of a machine's configuration; empty if it is not set.
    pub(crate) fn config(&self, domain: usize, name: &str, key: &str) -> String {
        let machine = self.machine(domain, name);
        let output = self.incus(domain, &["config", "get", &machine, key]);
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }

    /// Returns whether a domain's project exists in Incus.
    pub(crate) fn is_there(&self, domain: usize) -> bool {
        incus(["project", "show", &self.domains[domain]])
            .status
            .success()
    }

    /// The process ID of a machine's first process, as the host sees it.
    #[track_caller]
    pub(crate) fn first(&self, domain: usize, name: &str) -> String {
        let machine = self.machine(domain, name);
        let args = ["list", &machine, "-c", "p", "-f", "csv"];
        let list = self.incus(domain, &args);
        String::from_utf8_lossy(&list.stdout).trim().to_owned()
    }

    /// The root folder of a running machine, as the host sees it.
    #[track_caller]
    pub(crate) fn root(&self, domain: usize, name: &str) -> PathBuf {
        format!("/proc/{}/root", self.first(domain, name)).into()
    }

    /// The process ID of `{a}-signer`'s server, as the host sees it.
    #[track_caller]
    pub(crate) fn server(&self) -> i32 {
        let namespace = |process: &str| std::fs::read_link(format!("/proc/{process}/ns/pid")).ok();
        let machine = namespace(&self.first(0, "signer"));
        let mut all = processes(|words| {
            // A supervisor's command line contains these words too, but not at its start.
            words[0] == "/opt/anklume/anklume" && words.contains(&"--listen".to_owned())
        });
        all.retain(|one| namespace(&one.to_string()) == machine);
        assert_eq!(all.len(), 1, "{all:?}");
        all[0]
    }

    /// The remains of the infrastructure in Incus and on the host.
    fn left(&self) -> Vec<String> {
        let mut left = Vec::new();
        for domain in &self.domains {
            for (kind, place) in [
                ("project", format!("/1.0/projects/{domain}")),
                ("network", format!("/1.0/networks/net-{domain}")),
                ("acl", format!("/1.0/network-acls/net-{domain}")),
            ] {
                if incus(["query", &place]).status.success() {
                    left.push(format!("{kind} of {domain}"));
                }
            }
        }
        let sockets = std::fs::read_dir("/var/lib/anklume/mcp").into_iter();
        let sockets = sockets.flatten().filter_map(Result::ok);
        left.extend(sockets.map(|one| one.path().display().to_string()));
        left
    }

    /// The names of a machine's edge devices, sorted.
    pub(crate) fn edge_devices(&self, domain: usize, machine: &str) -> Vec<String> {
        let output = self.incus(domain, &["config", "device", "list", machine]);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let mut names: Vec<String> = text
            .lines()
            .filter(|line| line.starts_with("mcp_"))
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

impl Drop for World {
    fn drop(&mut self) {
        // After a failed test, do not hide its message behind another one.
        if std::thread::panicking() || ![0, 1].into_iter().any(|domain| self.is_there(domain)) {
            return;
        }
        let ran = self.run(&["destroy", "--yes", "--force"]);
        assert_eq!(ran.status, 0, "{}\n{}", ran.stdout, ran.stderr);
        assert_eq!(self.left(), [""; 0], "{}", ran.stderr);
    }
}
