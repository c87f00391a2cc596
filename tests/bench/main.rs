//! `make bench`: measures durations against two yardsticks from the same run: the floor (the minimum that the system
//! needs) and a Python peer. Asserts nothing; on a busy machine, the ratios are still useful.
//! `cargo bench -- list declared calls signatures upstream files flood attack apply edge` selects groups; without names, all groups run.
#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::print_stderr,
    clippy::disallowed_methods,
    reason = "a measurement that fails ends the bench; a table and how far it is are printed; processes are started and files read to be measured"
)]

mod apply;
mod attack;
mod declare;
mod edge;
mod flood;
mod listening;
mod session;
mod signature;
mod table;
mod transfer;
mod upstream;
mod yardstick;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use table::{Row, Table};
use yardstick::Python;

/// The program to measure: the optimised build that `cargo bench` makes.
const ANKLUME: &str = env!("CARGO_BIN_EXE_anklume");

/// Names another build of the program, which is attacked for comparison.
const BEFORE: &str = "ANKLUME_BENCH_BEFORE";

/// Number of machines in an infrastructure, and number of measurements of it.
const SIZES: [(usize, usize); 3] = [(10, 15), (1_000, 5), (10_000, 3)];

/// Number of measurements of a run that only reads.
const LOOKS: usize = 5;

fn main() {
    if edge::plays_a_part() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let python = Python::find();
    let mut table = Table::default();
    // cargo itself passes `--bench`.
    let picked: Vec<String> = std::env::args()
        .skip(1)
        .filter(|word| !word.starts_with('-'))
        .collect();
    let wanted = |group: &str| picked.is_empty() || picked.iter().any(|word| word == group);
    if wanted("list") {
        cold_list(&mut table, folder.path(), python.as_ref());
    }
    for (machines, rounds) in SIZES.into_iter().filter(|_| wanted("declared")) {
        declared(&mut table, folder.path(), python.as_ref(), machines, rounds);
    }
    if wanted("calls") {
        calls(&mut table, folder.path(), python.as_ref());
    }
    if wanted("signatures") {
        signatures(&mut table, folder.path());
    }
    if wanted("upstream") {
        for times in upstream::times(|| anklume(folder.path()), folder.path()) {
            table.push(Row {
                what: times.what.to_owned(),
                ours: times.ours,
                floor: ("the same call to the server itself", times.direct),
                expected: "≤ 1.5 × floor",
                peer: ("", None),
            });
        }
    }
    if wanted("files") {
        files(&mut table, folder.path());
    }
    if wanted("flood") {
        flood(&mut table, folder.path());
    }
    if wanted("apply") || wanted("edge") {
        if apply::is_possible() {
            machines(&mut table, folder.path(), &wanted);
        } else {
            eprintln!(
                "skipped: apply, edge: they need root and an Incus of their own (make bench)"
            );
        }
    }
    print!("{table}");
    if wanted("attack") {
        println!(
            "\n{}",
            attack::costs(|| anklume(folder.path()), folder.path())
        );
        if let Some(before) = std::env::var_os(BEFORE) {
            let folder = tempfile::tempdir().unwrap();
            let before = || clean(before.clone().into(), folder.path());
            println!(
                "the same of the other program:\n{}",
                attack::costs(before, folder.path())
            );
        }
    }
}

/// Measures `apply` against a shell script, and a call over an edge against bare proxies.
fn machines(table: &mut Table, folder: &Path, wanted: &impl Fn(&str) -> bool) {
    for machines in [2, 10, 30].into_iter().filter(|_| wanted("apply")) {
        let times = apply::measure(|| anklume(folder), folder, machines);
        let script = ("the same by an incus script", times.script);
        for (how, ours) in [("fresh", times.fresh), ("repeated", times.repeated)] {
            table.push(Row {
                what: format!("apply, {machines} machines, {how}"),
                ours,
                floor: script,
                expected: "",
                peer: ("", None),
            });
        }
    }
    if wanted("apply") {
        let looks = apply::looks(|| anklume(folder), folder, LOOKS);
        for (what, ours, expected) in [
            ("apply, repeated", looks.apply, "≤ 0.6 s"),
            ("doctor", looks.doctor, "≤ 1.2 s"),
        ] {
            table.push(Row {
                what: format!("{what}, 30 machines, 30 channels"),
                ours,
                floor: ("`incus list` of them", looks.list),
                expected,
                peer: ("", None),
            });
        }
    }
    if wanted("edge") {
        apply::with_an_edge(
            || anklume(folder),
            folder,
            || {
                let times = edge::measure();
                table.push(Row {
                    what: "a call over an edge".to_owned(),
                    ours: times.call,
                    floor: ("an echo over two bare proxies", times.echo),
                    expected: "",
                    peer: ("", None),
                });
                table.push(Row {
                    what: "connect over an edge, first answer".to_owned(),
                    ours: times.connect,
                    floor: ("an echo over two bare proxies", times.connect_echo),
                    expected: "",
                    peer: ("", None),
                });
                let floor = "the bytes over two bare proxies, synced";
                transfers(
                    table,
                    " over an edge",
                    edge::SIZE,
                    &edge::measure_files(),
                    floor,
                );
            },
        );
    }
}

/// Measures a client and a server that start, shake hands, list and exit, against two programs that do nothing.
fn cold_list(table: &mut Table, folder: &Path, python: Option<&Python>) {
    let (mut ours, mut floor, mut peer) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..40 {
        floor.push(timed(|| {
            for _ in 0..2 {
                assert!(Command::new("/bin/true").status().unwrap().success());
            }
        }));
        ours.push(timed(|| run(anklume(folder).args(["mcp", "list"]))));
        if let Some(python) = python.filter(|_| round % 8 == 0) {
            peer.push(timed(|| run(&mut python.client(folder))));
        }
    }
    table.push(Row {
        what: "mcp list, cold".to_owned(),
        ours: median(ours),
        floor: ("two fork+execs", median(floor)),
        expected: "≤ 3 × floor",
        peer: (
            "Python SDK, both ends",
            (!peer.is_empty()).then(|| median(peer)),
        ),
    });
}

/// Measures a caller's slowest calls during a flood of its server, against a flood of another server and no flood.
fn flood(table: &mut Table, folder: &Path) {
    for times in flood::p99(|| anklume(folder), folder) {
        table.push(Row {
            what: format!("p99, flood of {}", times.what),
            ours: times.here,
            floor: ("the flood on another server", times.elsewhere),
            expected: "≈ floor",
            peer: ("nobody floods", Some(times.idle)),
        });
    }
}

/// Measures `policy check` and `sync` on a generated declaration.
fn declared(
    table: &mut Table,
    folder: &Path,
    python: Option<&Python>,
    machines: usize,
    rounds: usize,
) {
    let folder = folder.join(machines.to_string());
    std::fs::create_dir(&folder).unwrap();
    let infra = folder.join("infra.yml");
    std::fs::write(&infra, declare::infra(machines)).unwrap();
    policy_check(table, &folder, &infra, python, machines, rounds);
    sync(table, &folder, &infra, python, machines, rounds);
}

fn policy_check(
    table: &mut Table,
    folder: &Path,
    infra: &Path,
    python: Option<&Python>,
    machines: usize,
    rounds: usize,
) {
    let (provider, service, caller) = declare::a_grant(machines);
    let ours = measured(rounds, || {
        let mut check = anklume(folder);
        check.args([
            "policy",
            "check",
            "--caller",
            &caller,
            "--service",
            service,
            "--provider",
            &provider,
        ]);
        run(check.arg("--infra").arg(infra));
    });
    let floor = measured(rounds, || run(Command::new("/bin/cat").arg(infra)));
    let peer = python.map(|python| measured(rounds.min(3), || run(&mut python.reader(infra))));
    table.push(Row {
        what: format!("policy check, {machines} machines"),
        ours,
        floor: ("cat of the file", floor),
        expected: if machines == 10_000 { "< 0.5 s" } else { "" },
        peer: ("PyYAML reads it (C loader)", peer),
    });
}

fn sync(
    table: &mut Table,
    folder: &Path,
    infra: &Path,
    python: Option<&Python>,
    machines: usize,
    rounds: usize,
) {
    let (mut fresh, mut again, mut write, mut read, mut peer) =
        (Vec::new(), Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for round in 0..rounds {
        let place = |name: &str| folder.join(format!("{name}-{round}"));
        let sync = || {
            let base = place("sync");
            std::fs::create_dir_all(&base).unwrap();
            timed(|| {
                let mut sync = anklume(folder);
                sync.arg("sync").arg("--infra").arg(infra);
                run(sync.arg("--base-dir").arg(&base));
            })
        };
        fresh.push(sync());
        again.push(sync());
        let files = yardstick::files_below(&place("sync"));
        write.push(timed(|| yardstick::write_files(&files, &place("plain"))));
        read.push(timed(|| drop(yardstick::files_below(&place("plain")))));
        if let Some(python) = python {
            peer.push(timed(|| run(&mut python.writer(infra, &place("peer")))));
        }
        // The folders stay until the end, because ext4 is slow to create files where others were just deleted.
    }
    let peer = python.map(|_| median(peer));
    table.push(Row {
        what: format!("sync, {machines} machines, fresh"),
        ours: median(fresh),
        floor: ("the same files, written", median(write)),
        expected: if machines == 10_000 { "< 3 s" } else { "" },
        peer: ("PyYAML reads, writes a file each (C)", peer),
    });
    table.push(Row {
        what: format!("sync, {machines} machines, repeated"),
        ours: median(again),
        floor: ("the same files, read", median(read)),
        expected: if machines == 10_000 { "< 1.5 s" } else { "" },
        peer: ("", None),
    });
}

/// Measures one small call on an open session: one at a time, and sixteen in flight.
fn calls(table: &mut Table, folder: &Path, python: Option<&Python>) {
    for (in_flight, label) in [(1, "a call, one at a time"), (16, "a call, 16 in flight")] {
        let ours = session::time_per_call(anklume(folder).args(["mcp", "serve"]), 4_000, in_flight);
        let floor = session::time_per_line(&mut Command::new("/bin/cat"), 4_000, in_flight);
        let peer =
            python.map(|python| session::time_per_call(&mut python.server(folder), 400, in_flight));
        table.push(Row {
            what: format!("{label} ({:.0}/s)", 1.0 / ours.as_secs_f64()),
            ours,
            floor: ("the line through a bare pipe", floor),
            expected: "",
            peer: ("Python SDK server", peer),
        });
    }
}

/// Measures a file that is sent over a channel, and fetched.
fn files(table: &mut Table, folder: &Path) {
    let times = transfer::times(|| anklume(folder), folder);
    transfers(
        table,
        "",
        transfer::SIZE,
        &times,
        "the bytes through a socket, synced",
    );
}

fn transfers(
    table: &mut Table,
    place: &str,
    size: u32,
    times: &transfer::Times,
    floor: &'static str,
) {
    let mebibytes = size / 1024 / 1024;
    for (what, ours) in [("file push", times.push), ("file pull", times.pull)] {
        let rate = f64::from(size) / ours.as_secs_f64() / 1e6;
        table.push(Row {
            what: format!("{what}{place}, {mebibytes} MiB ({rate:.0} MB/s)"),
            ours,
            floor: (floor, times.floor),
            expected: "≤ 1.5 × floor",
            peer: ("", None),
        });
    }
}

/// Measures the signature of a commit by an SSH key.
fn signatures(table: &mut Table, folder: &Path) {
    let Some(times) = signature::times(|| anklume(folder), folder) else {
        return;
    };
    for (place, ours) in [("an agent", times.agent), ("a file", times.file)] {
        table.push(Row {
            what: format!("ssh-keygen -Y sign, key in {place} elsewhere"),
            ours,
            floor: ("the same with a local ssh-agent", times.floor),
            expected: "≤ 1.3 × floor",
            peer: ("", None),
        });
    }
}

/// `anklume` with a clean environment: no display, and its own runtime folder.
fn anklume(folder: &Path) -> Command {
    clean(ANKLUME.into(), folder)
}

fn clean(program: PathBuf, folder: &Path) -> Command {
    let mut command = Command::new(program);
    command
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_default())
        .env("HOME", folder)
        .env("XDG_RUNTIME_DIR", folder)
        .current_dir(folder);
    command
}

/// Runs a command to completion and discards its output.
#[track_caller]
fn run(command: &mut Command) {
    let output = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{command:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}

fn timed(work: impl FnOnce()) -> Duration {
    let start = Instant::now();
    work();
    start.elapsed()
}

fn measured(rounds: usize, mut work: impl FnMut()) -> Duration {
    median((0..rounds).map(|_| timed(&mut work)).collect())
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times.get(times.len() / 2).copied().unwrap_or_default()
}
