//! The logs that Incus writes of channels on the host.

use std::io::Write as _;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::net::UnixStream;

use super::{Patient, kill};
use crate::harness::Anklume;
use crate::project::have_incus;

/// From where on the doctor complains, in bytes.
const LIMIT: u64 = 10 * 1024 * 1024;
/// Bytes of a block of a file.
const BLOCK: u64 = 512;

/// Connects from the consumer's end, again and again, until the provider's log on the host is so large.
fn flood(patient: &Patient, log: &str, bytes: u64) {
    let entry = format!(
        "/proc/{}/root/srv/anklume/mcp/{}.sock",
        patient.first(1, "dev"),
        patient.signer()
    );
    while std::fs::metadata(log).unwrap().len() < bytes {
        for _ in 0..500 {
            // Whether the other end takes a byte is no matter.
            let _ = UnixStream::connect(&entry).and_then(|mut stream| stream.write_all(b"x"));
        }
    }
}

#[test]
fn the_logs_of_a_channel_stay_small() {
    if !have_incus() {
        return;
    }
    let patient = Patient::new();
    a_log_that_a_consumer_floods_is_named_rotated_and_bounded(&patient);
    the_host_rotates_the_logs_between_two_runs(&patient);
}

fn a_log_that_a_consumer_floods_is_named_rotated_and_bounded(patient: &Patient) {
    let log = format!(
        "/var/log/incus/{}_{}/proxy.{}.log",
        patient.world.domains[0],
        patient.signer(),
        patient.device
    );
    kill(patient.server());
    flood(patient, &log, LIMIT + LIMIT / 10);
    // The server is what is broken first.
    patient.ails("server", "does not answer");
    let start = "setsid /opt/anklume/anklume mcp serve --listen /run/anklume/mcp </dev/null >/dev/null 2>&1 & \
                 until [ -e /run/anklume/mcp/.status.json ]; do :; done";
    patient.exec(
        0,
        "signer",
        &format!("rm /run/anklume/mcp/.status.json; {start}"),
    );
    patient.recovers("log", &format!("`{log}` takes 1"));
    let is = std::fs::metadata(&log).unwrap();
    assert!(
        is.len() < LIMIT / 10 && is.blocks() * BLOCK < LIMIT / 10,
        "{is:?}"
    );
    let kept = std::fs::metadata(format!("{log}.1")).unwrap();
    assert_eq!((kept.len(), kept.mode() & 0o777), (1024 * 1024, 0o600));

    // What the host's scheduler does, while the flood goes on: the writer goes on at the beginning.
    kill(patient.server());
    flood(patient, &log, LIMIT + LIMIT / 10);
    let rotated = Anklume::new().args(["rotate-logs"]).run();
    assert_eq!(
        (rotated.status, rotated.stdout, rotated.stderr),
        (0, String::new(), String::new())
    );
    assert!(std::fs::metadata(&log).unwrap().len() < LIMIT / 10);
    flood(patient, &log, 4096);
    let is = std::fs::metadata(&log).unwrap();
    assert!(is.len() < LIMIT / 10, "{is:?}");
    patient.is_mended();
}

fn the_host_rotates_the_logs_between_two_runs(patient: &Patient) {
    let files = [
        "/etc/cron.d/anklume",
        "/etc/systemd/system/anklume-logs.service",
    ];
    let text = files.iter().find_map(|file| std::fs::read(file).ok());
    let text = String::from_utf8(text.unwrap_or_default()).unwrap();
    let line = text
        .lines()
        .find_map(|line| line.strip_suffix(" rotate-logs"));
    // Where this program is not root's alone, or there is no scheduler, that is said instead.
    if let Some(line) = line {
        let program = line.rsplit([' ', '=']).next().unwrap();
        assert!(std::path::Path::new(program).is_file(), "{text}");
    } else {
        let ran = patient.world.run(&["doctor"]);
        let said = "nothing rotates the logs of channels between two runs of `anklume apply`: ";
        assert!(ran.stderr.contains(said), "{ran:?}");
    }
}
