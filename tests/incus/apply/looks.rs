//! Tests how `apply` and `doctor` read machines, and how long they wait.

use std::fs::File;
use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use rustix::fs::{FlockOperation, flock};

use super::plan::SEED;
use crate::harness::{copy_of_anklume, ended_in_time};
use crate::recorder::{Fate, Recorder};
use crate::world::World;

/// Runs `anklume …` through a recorder; returns its exit code, its stdout, and the requests for files in machines.
fn files_asked_for(
    world: &World,
    words: &[&str],
    recorder: &Recorder,
) -> (i32, String, Vec<String>) {
    let socket = recorder.socket().to_str().unwrap().to_owned();
    let ran = world.anklume(words).env("INCUS_SOCKET", socket).run();
    let mut asked = recorder.reads();
    asked.retain(|one| one.contains("/files?"));
    (ran.status, ran.stdout, asked)
}

#[test]
fn no_file_of_a_container_that_runs_is_asked_of_incus() {
    const NOTHING: &str = "nothing to do: Incus is as declared\n";
    let world = World::new(SEED);
    world.apply();
    for words in [["apply"].as_slice(), &["apply", "--dry-run"], &["doctor"]] {
        let recorder = Recorder::new(|_, _| Fate::Pass);
        let (status, _, asked) = files_asked_for(&world, words, &recorder);
        assert_eq!((status, asked), (0, Vec::new()), "{words:?}");
    }

    // If Incus then reports a different first process, anklume discards everything that it read through the old one.
    let before = Arc::new(AtomicUsize::new(0));
    let recorder = Recorder::new(move |_, line| {
        let of_signer = line.contains("signer/state?");
        if of_signer && before.fetch_add(1, Ordering::SeqCst) > 0 {
            let other =
                r#"{"type":"sync","status":"Success","status_code":200,"metadata":{"pid":1}}"#;
            return Fate::Answer(200, other.to_owned());
        }
        Fate::Pass
    });
    let (status, said, asked) = files_asked_for(&world, &["apply"], &recorder);
    assert_eq!((status, said.as_str()), (0, NOTHING));
    let program = "path=%2Fopt%2Fanklume%2Fanklume";
    assert!(
        asked
            .iter()
            .any(|one| one.contains("signer") && one.contains(program)),
        "{asked:#?}"
    );
    assert!(!asked.iter().any(|one| one.contains("-dev/")), "{asked:#?}");
    // The first process of another machine does not count as this machine's.
    let dev = world.first(1, "dev");
    let recorder = Recorder::new(move |_, line| {
        if line.contains("signer/state?") {
            let other =
                r#"{"type":"sync","status":"Success","status_code":200,"metadata":{"pid":PID}}"#;
            return Fate::Answer(200, other.replace("PID", &dev));
        }
        Fate::Pass
    });
    let (_, _, asked) = files_asked_for(&world, &["apply", "--dry-run"], &recorder);
    assert!(
        asked
            .iter()
            .any(|one| one.contains("signer") && one.contains(program)),
        "{asked:#?}"
    );

    // If the machine mounts something over a checked path, the host asks Incus instead of crossing the mount.
    assert!(world.exec(0, "signer", "mkdir -p /tmp/o && cp -a /opt/anklume/. /tmp/o/ && mount -o bind /tmp/o /opt/anklume").0);
    let recorder = Recorder::new(|_, _| Fate::Pass);
    let (_, _, asked) = files_asked_for(&world, &["apply", "--dry-run"], &recorder);
    assert!(asked.iter().any(|one| one.contains(program)), "{asked:#?}");
    assert!(world.exec(0, "signer", "umount /opt/anklume").0);
    world.is_settled();
}

#[test]
fn a_machine_that_cannot_be_read_is_read_again_and_then_left_alone() {
    /// Number of attempts to read a machine.
    const ATTEMPTS: usize = 4;
    let mut world = World::new(SEED);
    world.apply();
    let (signer, dev) = (world.machine(0, "signer"), world.machine(1, "dev"));
    // A stopped machine is read through Incus, which fails this many times, as it does while a host is starting.
    assert!(
        world
            .incus(0, &["stop", "--force", &signer])
            .status
            .success()
    );
    let failing = |times: usize| {
        let (count, machine) = (AtomicUsize::new(0), signer.clone());
        Recorder::new(move |_, line| {
            let of_signer = line.contains(&format!("/instances/{machine}/files?"));
            if of_signer && count.fetch_add(1, Ordering::SeqCst) < times {
                let body = r#"{"type":"error","error_code":500,"error":"Instance is starting"}"#;
                return Fate::Answer(500, body.to_owned());
            }
            Fate::Pass
        })
    };
    world.declare(&SEED.replace("name: sign,", "name: other,"));
    let (status, plan, _) =
        files_asked_for(&world, &["apply", "--dry-run"], &failing(ATTEMPTS - 1));
    assert_eq!(status, 0);
    assert!(
        plan.contains("services") && !plan.contains("program"),
        "{plan}"
    );
    let recorder = failing(usize::MAX);
    let (status, said, asked) = files_asked_for(&world, &["apply"], &recorder);
    assert_eq!((status, asked.len()), (1, ATTEMPTS), "{said}");
    let writes = recorder.writes();
    let into = |one: &&String| one.contains("/files?") || one.contains("/exec");
    assert_eq!(writes.iter().find(into), None, "{writes:#?}");
    let cannot = "its files cannot be read: ";
    assert!(
        world
            .exec(0, "signer", "grep -q '\"sign\"' /etc/anklume/services.json")
            .0
    );
    let (_, said, _) = files_asked_for(&world, &["doctor", &dev], &failing(usize::MAX));
    assert!(
        !said.contains(cannot),
        "a running machine is read from the host: {said}"
    );
    world.apply();
    world.is_settled();
}

#[test]
fn a_dry_run_and_doctor_wait_for_no_other_run_and_apply_does() {
    let world = World::new(SEED);
    world.apply();
    let lock = File::options()
        .read(true)
        .write(true)
        .open("/run/anklume.lock")
        .unwrap();
    flock(&lock, FlockOperation::LockExclusive).unwrap();
    let dry = world.run(&["apply", "--dry-run"]);
    dry.is(
        0,
        "nothing to do: Incus is as declared\n",
        "note: another anklume is changing Incus; the plan shows only its current state\n\
         note: nothing rotates the logs of channels between runs of `anklume apply`: \
         this host has neither systemd nor cron\n",
    );
    let doctor = world.run(&["doctor"]);
    assert_eq!(doctor.status, 0, "{doctor:?}");

    let run = world.anklume(&["apply"]);
    let mut command = run.command();
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut said = BufReader::new(child.stderr.take().unwrap());
    let mut line = String::new();
    said.read_line(&mut line).unwrap();
    assert_eq!(
        line,
        "waiting for another anklume that is changing this Incus\n"
    );
    assert!(child.try_wait().unwrap().is_none());
    drop(lock);
    let output = ended_in_time(child, &["apply".to_owned()]);
    assert!(output.status.success());
}

#[test]
fn a_member_of_the_group_sees_the_plan_and_only_root_carries_it_out() {
    let mut world = World::new(SEED);
    world.apply();
    world.declare(&SEED.replace("name: sign,", "name: other,"));
    let group = std::process::Command::new("getent")
        .args(["group", "incus-admin"])
        .output()
        .unwrap();
    let group = String::from_utf8(group.stdout).unwrap();
    let group: u32 = group.split(':').nth(2).unwrap().parse().unwrap();
    let folder = world.run(&["sync"]).folder;
    let open = std::fs::Permissions::from_mode(0o755);
    std::fs::set_permissions(folder.path(), open).unwrap();
    let program = folder.path().join("program");
    copy_of_anklume(&program);
    let member = |words: &[&str]| {
        let output = std::process::Command::new(&program)
            .args(words)
            .current_dir(folder.path())
            .uid(65534)
            .gid(group)
            .output()
            .unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        (
            output.status.code(),
            text(output.stdout),
            text(output.stderr),
        )
    };
    let (status, plan, notes) = member(&["apply", "--dry-run"]);
    assert_eq!(status, Some(0), "{notes}");
    let granted = world.filled("+ {b}-dev may call {a}-signer/other\n");
    assert!(plan.starts_with(&granted), "{plan}");
    assert!(
        notes.contains("note: only root can create channels: `sudo anklume apply`"),
        "{notes}"
    );
    let (status, plan, why) = member(&["apply"]);
    assert_eq!((status, plan.as_str()), (Some(1), ""));
    assert!(why.contains("run this as root"), "{why}");
}
