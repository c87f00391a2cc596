//! An Incus project with machines from the image `bb`, for the duration of a test.

use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use crate::harness::ANKLUME;

/// The image of the machines: busybox, no libc.
const IMAGE: &str = "bb";

/// Runs `incus` and returns its output.
///
/// # Panics
/// Panics if this Incus does not belong to the test, because the test would change it.
#[track_caller]
pub(crate) fn incus<S: AsRef<str>>(args: impl IntoIterator<Item = S>) -> Output {
    assert!(
        std::env::var_os("ANKLUME_TEST_INCUS").is_some(),
        "no Incus of the test's own: run it by `sh tests/run.sh`, or `sh tests/incus/private.sh COMMAND`"
    );
    let mut command = Command::new("incus");
    for arg in args {
        command.arg(arg.as_ref());
    }
    command.stdin(Stdio::null()).output().unwrap()
}

/// Makes a command exit a moment later: on a busy host, Incus loses the output of one that exits before its streams
/// are joined (lxd #11422).
pub(crate) fn unhurried(command: &str) -> String {
    format!("({command}\n); status=$?; sleep 0.2; exit $status")
}

/// A project; dropping this value removes the project and everything in it.
pub(crate) struct Project {
    /// Its name, unique to this run.
    pub(crate) name: String,
}

impl Project {
    /// Creates an empty project.
    pub(crate) fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let project = Self {
            name: format!("t-client-{}-{count}", std::process::id()),
        };
        let features = [
            "features.images=false",
            "features.profiles=false",
            "features.networks=false",
            "features.storage.volumes=true",
            "features.storage.buckets=true",
        ];
        let mut args = vec!["project", "create", &project.name];
        for feature in features {
            args.extend(["-c", feature]);
        }
        succeeded(&incus(args));
        project
    }

    /// Runs `incus … --project THIS`, which must succeed, and returns its stdout.
    #[track_caller]
    pub(crate) fn incus(&self, args: &[&str]) -> String {
        let project = format!("--project={}", self.name);
        let (verb, rest) = args.split_first().unwrap();
        let output = incus([&[*verb, &project], rest].concat());
        succeeded(&output);
        String::from_utf8(output.stdout).unwrap()
    }

    /// Creates a machine and starts it.
    #[track_caller]
    pub(crate) fn machine(&self, name: &str) {
        self.incus(&["create", "-q", IMAGE, name]);
        self.incus(&["start", "-q", name]);
    }

    /// Creates a machine, starts it, and pushes the program as the documentation describes.
    #[track_caller]
    pub(crate) fn provider(&self, name: &str) {
        self.machine(name);
        self.push(ANKLUME, name);
    }

    /// Pushes a program to its usual place in a machine.
    #[track_caller]
    pub(crate) fn push(&self, program: &str, name: &str) {
        let target = format!("{name}/opt/anklume/anklume");
        let recipe = "push -q -p --mode 0755 --uid 0 --gid 0";
        let recipe: Vec<&str> = recipe.split(' ').collect();
        self.incus(&[&["file"], &recipe[..], &[program, &target]].concat());
    }

    /// Runs a command in a machine, which must succeed, and returns its stdout.
    #[track_caller]
    pub(crate) fn exec(&self, name: &str, command: &str) -> String {
        self.incus(&["exec", name, "-T", "--", "sh", "-c", &unhurried(command)])
    }
}

impl Drop for Project {
    fn drop(&mut self) {
        // After a failed test, do not hide its message behind another one.
        if std::thread::panicking() {
            return;
        }
        let project = format!("--project={}", self.name);
        let list = incus(["list", &project, "-c", "n", "-f", "csv"]);
        for name in String::from_utf8_lossy(&list.stdout).lines() {
            succeeded(&incus(["delete", "--force", &project, name]));
        }
        succeeded(&incus(["project", "delete", &self.name]));
    }
}

/// Asserts that a command succeeded.
#[track_caller]
pub(crate) fn succeeded(output: &Output) {
    assert!(output.status.success(), "{output:?}");
}
