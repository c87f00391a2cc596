//! Measures `anklume apply` on a real Incus against a plain shell script of `incus` commands with the same result.

use std::fmt::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use super::{measured, timed};

/// Measurements for a given number of machines.
pub(crate) struct Times {
    /// `apply` from scratch: all machines and their edges.
    pub(crate) fresh: Duration,
    /// `apply` again, with nothing to do.
    pub(crate) repeated: Duration,
    /// The script.
    pub(crate) script: Duration,
}

/// Returns whether a real Incus with the tests' image exists and this process may use it.
pub(crate) fn is_possible() -> bool {
    let image = incus(&["image", "alias", "list", "-f", "csv"]);
    image.is_some_and(|list| list.lines().any(|line| line.starts_with("bb,")))
        && rustix::process::geteuid().is_root()
}

/// Runs `incus` and returns its stdout if it succeeded.
pub(crate) fn incus(args: &[&str]) -> Option<String> {
    let output = Command::new("incus")
        .args(args)
        .stdin(Stdio::null())
        .output()
        .ok()?;
    output
        .status
        .success()
        .then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

/// An infrastructure of `machines` machines in two domains; `consumers` names the consumers of each machine.
fn infra(machines: usize, consumers: impl Fn(usize) -> Vec<String>) -> String {
    let mut text =
        "project_name: bench\nglobal: {default_os_image: bb, base_subnet: \"10.97\"}\ndomains:\n"
            .to_owned();
    for domain in 0..2 {
        let _ = write!(
            text,
            "  bench{domain}:\n    subnet_id: {domain}\n    ephemeral: true\n    machines:\n"
        );
        for machine in (domain..machines).step_by(2) {
            let _ = writeln!(
                text,
                "      {}:\n        services: [{{name: paste, tool: clipboard_get, consumers: [{consumers}]}}, \
                 {{name: inbox, tool: file_accept, consumers: [{consumers}]}}, \
                 {{name: outbox, tool: file_provide, consumers: [{consumers}]}}]",
                name(machine),
                consumers = consumers(machine).join(", ")
            );
        }
    }
    text
}

/// A chain of machines: each serves the next one.
pub(crate) fn declared(machines: usize) -> String {
    let next = |machine| (machine + 1..machines).take(1).map(name).collect();
    infra(machines, next)
}

/// Times of runs that change nothing: thirty machines, ten of which are providers, and thirty channels.
pub(crate) struct Looks {
    /// `apply` with nothing to do.
    pub(crate) apply: Duration,
    /// `doctor` with no fault to report.
    pub(crate) doctor: Duration,
    /// `incus list` for the same machines.
    pub(crate) list: Duration,
}

/// An infrastructure of thirty machines: each of the first ten serves three of the others.
fn many_channels() -> String {
    const MACHINES: usize = 30;
    const PROVIDERS: usize = 10;
    let consumers = |machine: usize| {
        let served = (0..3).filter(|_| machine < PROVIDERS);
        let served = served.map(|step| (2 * machine + step) % (MACHINES - PROVIDERS));
        served.map(|number| name(PROVIDERS + number)).collect()
    };
    infra(MACHINES, consumers)
}

/// Runs `anklume …` on this file; it must succeed.
fn run(mut anklume: Command, words: &[&str], infra: &Path) {
    anklume.args(words).arg("--infra").arg(infra);
    let output = anklume.stdin(Stdio::null()).output().unwrap();
    assert!(output.status.success(), "{output:?}");
}

/// Measures runs that only read.
pub(crate) fn looks(anklume: impl Fn() -> Command, folder: &Path, rounds: usize) -> Looks {
    let infra = folder.join("infra.yml");
    std::fs::write(&infra, many_channels()).unwrap();
    let run = |words: &[&str]| run(anklume(), words, &infra);
    run(&["apply"]);
    let looks = Looks {
        apply: measured(rounds, || run(&["apply"])),
        doctor: measured(rounds, || run(&["doctor"])),
        list: measured(rounds, || {
            assert!(incus(&["list", "--all-projects"]).is_some());
        }),
    };
    run(&["destroy", "--yes", "--force"]);
    looks
}

/// The name of a machine.
pub(crate) fn name(machine: usize) -> String {
    format!("bench{}-m{machine}", machine % 2)
}

/// Measures `apply` and the script for a given number of machines.
pub(crate) fn measure(anklume: impl Fn() -> Command, folder: &Path, machines: usize) -> Times {
    let infra = folder.join("infra.yml");
    std::fs::write(&infra, declared(machines)).unwrap();
    let run = |words: &[&str]| run(anklume(), words, &infra);
    let destroy = || run(&["destroy", "--yes", "--force"]);
    destroy();
    let fresh = timed(|| run(&["apply"]));
    let repeated = timed(|| run(&["apply"]));
    destroy();
    let program = anklume().get_program().to_string_lossy().into_owned();
    let text = script(machines, &program, &infra.to_string_lossy());
    let script = timed(|| shell(&text));
    shell(&undo(machines));
    Times {
        fresh,
        repeated,
        script,
    }
}

fn shell(script: &str) {
    let output = Command::new("/bin/sh")
        .args(["-ec", script])
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
}

/// The script that a person would write for the same result: no checks, no isolation, one step after another.
fn script(machines: usize, program: &str, infra: &str) -> String {
    let mut text = String::from("mkdir -p /var/lib/anklume/mcp\n");
    for domain in 0..2 {
        let _ = write!(
            text,
            "incus -q project create bench{domain} -c features.images=false -c features.networks=false
             incus -q network create net-bench{domain} ipv4.address=10.97.{domain}.254/24 ipv6.address=none
             incus -q profile device add default root disk path=/ pool=default --project bench{domain}\n"
        );
    }
    for machine in 0..machines {
        let (name, project) = (name(machine), format!("bench{}", machine % 2));
        let _ = write!(
            text,
            "incus -q launch bb {name} --project {project} -n net-{project}
             incus -q file push -p --mode 0755 --uid 0 --gid 0 {program} {name}/opt/anklume/anklume --project {project}
             {program} policy export --machine {name} --infra {infra} | incus -q file push -p --mode 0644 --uid 0 --gid 0 - {name}/etc/anklume/services.json --project {project}
             incus exec {name} --project {project} -T -- sh -c 'mkdir -p /var/log/anklume /srv/anklume/mcp; setsid /opt/anklume/anklume mcp serve --listen >/dev/null 2>&1 </dev/null &'\n"
        );
    }
    for machine in 0..machines.saturating_sub(1) {
        let (provider, consumer) = (name(machine), name(machine + 1));
        let projects = [machine % 2, (machine + 1) % 2];
        let uid = 2_000_000_000 + machine;
        let host = format!("unix:/var/lib/anklume/mcp/bench{machine}.sock");
        let _ = write!(
            text,
            "incus -q config device add {provider} mcp_{machine} proxy --project bench{} bind=host listen={host} connect=unix:/run/anklume/mcp/{consumer}.sock uid={uid} gid={uid} mode=0600
             incus -q config device add {consumer} mcp_{machine} proxy --project bench{} bind=instance listen=unix:/srv/anklume/mcp/{provider}.sock connect={host} uid=0 gid=0 mode=0600 security.uid={uid} security.gid={uid}
             incus exec {consumer} --project bench{} -T -- /opt/anklume/anklume mcp list --socket /srv/anklume/mcp/{provider}.sock >/dev/null 2>&1 || :\n",
            projects[0], projects[1], projects[1]
        );
    }
    text
}

/// Removes everything that the script created.
fn undo(machines: usize) -> String {
    let mut text = String::new();
    for machine in 0..machines {
        let _ = writeln!(
            text,
            "incus -q delete --force {} --project bench{}",
            name(machine),
            machine % 2
        );
    }
    for domain in 0..2 {
        let _ = write!(
            text,
            "incus -q network delete net-bench{domain}\nincus -q project delete bench{domain}\n"
        );
    }
    text.push_str("rm -f /var/lib/anklume/mcp/bench*.sock\n");
    text
}

/// Creates two machines with an edge, runs `during`, and destroys everything.
pub(crate) fn with_an_edge(anklume: impl Fn() -> Command, folder: &Path, during: impl FnOnce()) {
    let infra = folder.join("infra.yml");
    std::fs::write(&infra, declared(2)).unwrap();
    let run = |words: &[&str]| run(anklume(), words, &infra);
    run(&["apply"]);
    during();
    run(&["destroy", "--yes", "--force"]);
}
