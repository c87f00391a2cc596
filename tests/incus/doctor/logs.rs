//! The logs that Incus writes for channels on the host.

use std::io::Write as _;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};

use super::{PAIR, Patient};
use crate::harness::{Anklume, copy_of_anklume, scrub, write_program};
use crate::processes::kill;
use crate::world::World;

/// Minimum size of a log that the doctor reports, in bytes.
const LIMIT: u64 = 10 * 1024 * 1024;
/// Size of a file system block, in bytes.
const BLOCK: u64 = 512;

/// Connects repeatedly from the consumer until the provider's log on the host reaches this size.
fn flood(patient: &Patient, log: &str, bytes: u64) {
    let entry = format!(
        "/proc/{}/root/srv/anklume/mcp/{}.sock",
        patient.world.first(1, "dev"),
        patient.signer()
    );
    while std::fs::metadata(log).unwrap().len() < bytes {
        for _ in 0..500 {
            // It does not matter whether the other end accepts the byte.
            let _ = UnixStream::connect(&entry).and_then(|mut stream| stream.write_all(b"x"));
        }
    }
}

#[test]
fn a_log_that_a_consumer_floods_is_named_rotated_and_bounded() {
    let patient = Patient::new();
    let log = format!(
        "/var/log/incus/{}_{}/proxy.{}.log",
        patient.world.domains[0],
        patient.signer(),
        patient.device
    );
    kill(patient.server());
    flood(&patient, &log, LIMIT + LIMIT / 10);
    // The missing server is reported first.
    patient.ails("server", "does not answer");
    let start = "setsid /opt/anklume/anklume mcp serve --listen /run/anklume/mcp </dev/null >/dev/null 2>&1 & \
                 until [ -e /run/anklume/mcp/.status.json ]; do :; done";
    patient.exec(
        0,
        "signer",
        &format!("rm /run/anklume/mcp/.status.json; {start}"),
    );
    patient.recovers("log", &format!("`{log}` takes up 1"));
    let is = std::fs::metadata(&log).unwrap();
    assert!(
        is.len() < LIMIT / 10 && is.blocks() * BLOCK < LIMIT / 10,
        "{is:?}"
    );
    let kept = std::fs::metadata(format!("{log}.1")).unwrap();
    assert_eq!((kept.len(), kept.mode() & 0o777), (1024 * 1024, 0o600));

    // Rotate the log as the host's scheduler would: the writer then continues at the beginning of the file.
    kill(patient.server());
    flood(&patient, &log, LIMIT + LIMIT / 10);
    let rotated = Anklume::new().args(["rotate-logs"]).run();
    assert_eq!(
        (rotated.status, rotated.stdout, rotated.stderr),
        (0, String::new(), String::new())
    );
    assert!(std::fs::metadata(&log).unwrap().len() < LIMIT / 10);
    flood(&patient, &log, 4096);
    let is = std::fs::metadata(&log).unwrap();
    assert!(is.len() < LIMIT / 10, "{is:?}");
    patient.is_mended();
}

/// The content of the cron file.
const CRON: &str = "/etc/cron.d/anklume";
/// The doctor's note if nothing rotates the logs.
const NOTHING: &str = "nothing rotates the logs of channels between runs of `anklume apply`: ";

#[test]
fn the_host_s_cron_rotates_the_logs_by_a_program_that_is_root_s_alone() {
    // The scheduler runs as root, so it must not run a program that somebody else could change.
    std::fs::create_dir("/etc/cron.d").unwrap();
    let open = tempfile::Builder::new().tempdir_in("/run/tmp").unwrap();
    let theirs = open.path().join("anklume");
    copy_of_anklume(&theirs);
    let patient = World::new(PAIR);
    let by = |program: &Path, words: &[&str]| {
        let run = patient.anklume(words);
        let mut command = Command::new(program);
        command.args(words).current_dir(run.path());
        scrub(&mut command, &run.path());
        let output = command.stdin(Stdio::null()).output().unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        (
            output.status.code(),
            text(output.stdout) + &text(output.stderr),
        )
    };
    let (status, said) = by(&theirs, &["apply"]);
    assert_eq!(status, Some(0), "{said}");
    assert!(!Path::new(CRON).exists());
    let (_, said) = by(&theirs, &["doctor"]);
    let why = format!(
        "{NOTHING}users other than root can change `{}`\n",
        theirs.display()
    );
    assert!(said.contains(&why), "{said}");

    let own = Path::new("/run/own/anklume");
    copy_of_anklume(own);
    let (status, said) = by(own, &["apply"]);
    assert_eq!(
        (status, said.contains("rotation of the channels' logs")),
        (Some(0), true),
        "{said}"
    );
    let text = std::fs::read_to_string(CRON).unwrap();
    let line = text.lines().last().unwrap();
    assert_eq!(line, "*/2 * * * * root /run/own/anklume rotate-logs");
    let (_, said) = by(own, &["doctor"]);
    assert!(
        said.contains(&format!("{NOTHING}cron is not running on this host\n")),
        "{said}"
    );
    // The command in the cron file works.
    let command = line.split_once(" root ").unwrap().1;
    let ran = Command::new("sh")
        .args(["-c", command])
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert!(
        ran.status.success() && ran.stdout.is_empty() && ran.stderr.is_empty(),
        "{ran:?}"
    );

    // While cron is running, the doctor shows no such note.
    write_program(
        Path::new("/run/own/cron"),
        std::fs::read("/bin/sleep").unwrap(),
    );
    let mut cron = Command::new("/run/own/cron").arg("1000").spawn().unwrap();
    let (status, said) = by(own, &["doctor"]);
    assert_eq!((status, said.contains(NOTHING)), (Some(0), false), "{said}");
    cron.kill().unwrap();
    cron.wait().unwrap();

    let (status, said) = by(own, &["destroy", "--yes", "--force"]);
    assert_eq!(
        (status, Path::new(CRON).exists()),
        (Some(0), false),
        "{said}"
    );
}
