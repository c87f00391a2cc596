//! Whatever ends a run, the next one finishes the work; whatever fails, the rest continues.

use std::path::PathBuf;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicUsize, Ordering};

use rustix::process::{Pid, Signal, kill_process};

use super::plan::SEED;
use crate::harness::Ran;
use crate::project::incus;
use crate::recorder::{Fate, Recorder};
use crate::world::World;

/// A domain with two machines, a channel between them, and a volume.
const SMALL: &str = r"
domains:
  {a}:
    subnet_id: 1
    ephemeral: true
    profiles:
      small: {config: {limits.cpu: 1}}
    machines:
      {a}-signer:
        services: [{name: sign, tool: gpg_sign, consumers: [{a}-dev]}]
      {a}-dev:
        profiles: [default, small]
        storage_volumes: {data: {size: 10MiB, path: /data}}
";

/// More runs than any test needs.
const ENOUGH: usize = 100;

/// Runs `anklume …` and kills it when its write request `at` has reached Incus; returns whether it was killed.
fn killed(world: &World, args: &[&str], at: usize) -> bool {
    let target = Arc::new(AtomicI32::new(0));
    let victim = Arc::clone(&target);
    let recorder = Recorder::new(move |number, _| {
        if number != at {
            return Fate::Pass;
        }
        while victim.load(Ordering::SeqCst) == 0 {
            std::thread::yield_now();
        }
        Fate::Lose
    });
    let writes = || recorder.writes().len();
    let run = world
        .anklume(args)
        .env("INCUS_SOCKET", recorder.socket().to_str().unwrap());
    let said = run.path().join("stderr");
    let mut child = run
        .command()
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(std::fs::File::create(&said).unwrap())
        .spawn()
        .unwrap();
    let pid = i32::try_from(child.id()).unwrap();
    loop {
        if writes() >= at {
            // The request is on its way to Incus, but its sender is killed before the answer arrives.
            kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL).unwrap();
            target.store(pid, Ordering::SeqCst);
            child.wait().unwrap();
            return true;
        }
        if let Some(status) = child.try_wait().unwrap() {
            let said = std::fs::read_to_string(&said).unwrap();
            assert!(status.success(), "{status:?} {at} {said}");
            return false;
        }
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
}

/// The number of running DNS servers for a world's networks.
fn name_servers(world: &World) -> usize {
    let mut found = 0;
    for process in std::fs::read_dir("/proc").unwrap() {
        let words = std::fs::read(process.unwrap().path().join("cmdline")).unwrap_or_default();
        let words = String::from_utf8_lossy(&words).into_owned();
        let mut bridges = world.domains.iter();
        let serves = |domain| words.contains(&format!("--interface=net-{domain}\0"));
        found += usize::from(words.contains("dnsmasq") && bridges.any(serves));
    }
    found
}

#[test]
fn killed_at_every_request_the_next_run_goes_on() {
    let world = World::new(SMALL);
    // Each run is killed at its first write request; the next one begins with the state that this leaves in Incus.
    let runs = (1..ENOUGH)
        .take_while(|_| killed(&world, &["apply"], 1))
        .count();
    assert!(runs > 10, "{runs}");
    world.apply();
    world.is_settled();
    assert_eq!(name_servers(&world), 1);
    let runs = (1..ENOUGH)
        .take_while(|_| killed(&world, &["destroy", "--yes", "--force"], 1))
        .count();
    assert!(runs > 5, "{runs}");
    // Incus leaves a DNS server behind if a network is deleted twice at the same time.
    assert_eq!(name_servers(&world), 0);
    let ran = world.run(&["destroy", "--yes"]);
    ran.answers("nothing to delete: anklume created nothing in Incus for this file\n");
}

#[test]
fn asked_to_stop_it_ends_the_step_in_hand_and_asked_again_it_does_not() {
    let world = World::new(SEED);
    let stopped_by = |signals: &[Signal]| {
        let free = Arc::new(AtomicBool::new(false));
        let is_free = Arc::clone(&free);
        let recorder = Recorder::new(move |number, _| {
            while number == 6 && !is_free.load(Ordering::SeqCst) {
                std::thread::sleep(std::time::Duration::from_millis(5));
            }
            Fate::Pass
        });
        let socket = recorder.socket().to_str().unwrap().to_owned();
        let run = world.anklume(&["apply"]).env("INCUS_SOCKET", socket);
        let said = run.path().join("stderr");
        let said = || std::fs::read_to_string(&said).unwrap_or_default();
        let mut command = run.command();
        command.stdin(Stdio::null()).stdout(Stdio::null());
        command.stderr(std::fs::File::create(run.path().join("stderr")).unwrap());
        let mut child = command.spawn().unwrap();
        let pid = Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap();
        let until = |is: &dyn Fn() -> bool| {
            while !is() {
                std::thread::sleep(std::time::Duration::from_millis(5));
            }
        };
        until(&|| recorder.writes().len() >= 6);
        for signal in signals {
            kill_process(pid, *signal).unwrap();
            until(&|| said().contains("stopping once the running steps have ended"));
        }
        // After a second signal, the run exits without waiting for the answer.
        free.store(signals.len() == 1, Ordering::SeqCst);
        let status = child.wait().unwrap();
        free.store(true, Ordering::SeqCst);
        (status.code(), said(), recorder.writes().len())
    };
    let (code, said, writes) = stopped_by(&[Signal::HUP]);
    assert_eq!(code, Some(130), "{said}");
    // Two domains are created concurrently, so the other one's step may be in progress too.
    assert!((6..=8).contains(&writes), "{writes} {said}");
    let (_, after) = said
        .split_once("interrupt again to stop immediately\n")
        .unwrap();
    assert!(after.contains("+ network net-"), "{said}");
    assert!(said.contains(": skipped, asked to stop\n"), "{said}");
    let help = "  = help: run the command again: it resumes where it stopped\n";
    let end = format!(" steps were not started\n{help}");
    assert!(
        said.contains("\nerror: stopped: ") && said.ends_with(&end),
        "{said}"
    );
    let (code, said, _) = stopped_by(&[Signal::TERM, Signal::INT]);
    assert_eq!(code, Some(130), "{said}");
    let end = format!("error: stopped before the running steps ended\n{help}");
    assert!(said.ends_with(&end) && !said.contains("skipped"), "{said}");
    world.apply();
    world.is_settled();
}

/// Kills a run after `first` write requests, the next after `step` more, and so on, each in a new world. After each
/// kill, the next run must finish. Returns the number of requests after which the last run was killed.
fn killed_after_each(text: &str, first: usize, step: usize) -> usize {
    let mut last = 0;
    for at in (first..ENOUGH).step_by(step) {
        let world = World::new(text);
        let was_killed = killed(&world, &["apply"], at);
        world.apply();
        world.is_settled();
        if !was_killed {
            break;
        }
        last = at;
    }
    last
}

// Four tests, so that four daemons share the work.

#[test]
fn killed_after_request_1_or_each_fourth_from_there_the_next_run_finishes() {
    assert!(killed_after_each(SMALL, 1, 4) > 10);
}

#[test]
fn killed_after_request_2_or_each_fourth_from_there_the_next_run_finishes() {
    assert!(killed_after_each(SMALL, 2, 4) > 10);
}

#[test]
fn killed_after_request_3_or_each_fourth_from_there_the_next_run_finishes() {
    assert!(killed_after_each(SMALL, 3, 4) > 10);
}

#[test]
fn killed_after_request_4_or_each_fourth_from_there_the_next_run_finishes() {
    assert!(killed_after_each(SMALL, 4, 4) > 10);
}

#[test]
#[ignore = "long"]
fn killed_after_n_requests_for_every_n_in_a_larger_world_the_next_run_finishes() {
    assert!(killed_after_each(SEED, 1, 1) > 10);
}

#[test]
fn one_machine_that_does_not_start_stops_no_other() {
    let broken = SEED.replace(
        "config: {limits.memory: 1GiB}",
        "config: {raw.lxc: lxc.init.cmd = /nowhere}",
    );
    let mut world = World::new(&broken);
    let (dev, project) = (world.machine(1, "dev"), world.domains[1].clone());
    let ran = world.run(&["apply"]);
    assert_eq!(ran.status, 1, "{}", ran.stderr);
    let more = format!("see more: `incus info {dev} --project {project} --show-log`");
    assert!(ran.stderr.contains(&more), "{}", ran.stderr);
    assert!(
        ran.stderr
            .contains(&format!("change machine {dev}: Incus reports: ")),
        "{}",
        ran.stderr
    );
    assert!(world.exec(0, "signer", "true").0, "the other machine runs");
    world.declare(SEED);
    world.apply();
    world.is_settled();
}

#[test]
fn a_machine_that_has_just_failed_to_start_is_not_taken_for_running() {
    let world = World::new(SEED);
    world.apply();
    let dev = world.machine(1, "dev");
    let by_hand = |args: &[&str]| world.incus(1, args).status.success();
    assert!(by_hand(&["stop", "--force", &dev]));
    // LXC starts the machine only if this command succeeds.
    let folder = tempfile::tempdir().unwrap();
    let fixed = folder.path().join("fixed");
    let hook = format!("raw.lxc=lxc.hook.mount = /bin/test -e {}", fixed.display());
    assert!(by_hand(&["config", "set", &dev, &hook]));
    assert!(!by_hand(&["start", &dev]));
    // For the next half second, Incus reports the machine as running.
    std::fs::write(&fixed, "").unwrap();
    world.apply();
    world.is_settled();
    assert!(world.exec(1, "dev", "true").0);
}

/// Starts a stopped machine through an Incus that gives this answer to the first `starts` attempts but does nothing.
fn started_after(world: &World, starts: usize, code: u16, answer: &'static str) -> Ran {
    let dev = world.machine(1, "dev");
    assert!(world.incus(1, &["stop", "--force", &dev]).status.success());
    let left = AtomicUsize::new(starts);
    let recorder = Recorder::new(move |number, line| {
        let starts = number > 0 && line.contains("/state?");
        let one_less = |left: usize| left.checked_sub(1).filter(|_| starts);
        match left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, one_less) {
            Ok(_) => Fate::Answer(code, answer.to_owned()),
            Err(_) => Fate::Pass,
        }
    });
    let socket = recorder.socket().to_str().unwrap().to_owned();
    let run = world.anklume(&["apply"]).env("INCUS_SOCKET", socket);
    run.run()
}

const STARTED: &str = r#"{"type":"sync","status":"Success","status_code":200,"metadata":{}}"#;

#[test]
fn a_machine_is_started_again_where_a_start_was_none() {
    const RUNS: &str = r#"{"type":"error","error":"The instance is already running"}"#;
    let world = World::new(SEED);
    world.apply();
    for (code, answer) in [(200, STARTED), (400, RUNS)] {
        let ran = started_after(&world, 1, code, answer);
        assert_eq!(ran.status, 0, "{}", ran.stderr);
        world.is_settled();
    }
}

#[test]
fn a_machine_that_does_not_stay_up_is_said_not_to_run() {
    let world = World::new(SEED);
    world.apply();
    let ran = started_after(&world, 100, 200, STARTED);
    assert_eq!(ran.status, 1, "{}", ran.stderr);
    let dev = world.machine(1, "dev");
    let why = format!("change machine {dev}: Incus started it 3 times, but it is not running\n");
    assert!(ran.stderr.contains(&why), "{}", ran.stderr);
}

#[test]
fn a_full_disk_is_said_and_the_next_run_finishes() {
    let folder = tempfile::tempdir().unwrap();
    let pool = Pool::new(folder.path().to_owned());
    let on_it = format!(
        "devices: {{root: {{type: disk, path: /, pool: {}}}}}",
        pool.name
    );
    let world = World::new(&SEED.replace("boot_autostart: true", &on_it));
    let ran = world.run(&["apply"]);
    assert_eq!(ran.status, 1, "{}", ran.stderr);
    assert!(
        ran.stderr.contains("run out of disk space"),
        "{}",
        ran.stderr
    );
    assert!(world.exec(0, "signer", "true").0, "the other machine runs");
    pool.grow();
    world.apply();
    world.is_settled();
    drop(world);
}

/// A storage pool on a file system that is too small for a machine.
struct Pool {
    name: String,
    folder: PathBuf,
}

impl Pool {
    fn new(folder: PathBuf) -> Self {
        let name = format!("t-apply-{}", std::process::id());
        mount(&["-t", "tmpfs", "-o", "size=400k", "none"], &folder);
        let source = format!("source={}", folder.display());
        let made = incus(["storage", "create", &name, "dir", &source]);
        assert!(made.status.success(), "{made:?}");
        Self { name, folder }
    }

    fn grow(&self) {
        mount(&["-o", "remount,size=64m"], &self.folder);
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        incus(["storage", "delete", &self.name]);
        let unmounted = std::process::Command::new("umount")
            .arg(&self.folder)
            .status();
        assert!(unmounted.is_ok());
    }
}

#[track_caller]
fn mount(options: &[&str], folder: &std::path::Path) {
    let status = std::process::Command::new("mount")
        .args(options)
        .arg(folder)
        .status()
        .unwrap();
    assert!(status.success());
}

#[test]
fn an_incus_that_stops_in_the_middle_fails_the_rest_and_the_next_run_finishes() {
    let world = World::new(SEED);
    // Incus's answers to the eighth write request and all later ones are lost.
    let recorder = Recorder::new(|number, _| if number < 8 { Fate::Pass } else { Fate::Lose });
    let ran = world
        .anklume(&["apply"])
        .env("INCUS_SOCKET", recorder.socket().to_str().unwrap())
        .run();
    assert_eq!(ran.status, 1, "{}", ran.stderr);
    assert!(ran.stderr.contains("steps failed"), "{}", ran.stderr);
    world.apply();
    world.is_settled();
}
