//! The test's own Incus daemon, which can be stopped and restarted at any time.

use std::process::{Command, Stdio};

use crate::processes::kill;

/// The file in which tests/incus/private.sh records the daemon's process ID.
const PID: &str = "/run/incusd.pid";

/// Kills the daemon as a crash would; its machines and their proxies keep running.
#[track_caller]
pub(crate) fn crash() {
    assert!(
        std::env::var_os("ANKLUME_TEST_INCUS").is_some(),
        "this daemon does not belong to the test"
    );
    let pid = std::fs::read_to_string(PID).unwrap();
    kill(pid.trim().parse().unwrap());
}

/// Restarts the daemon, and waits until it answers.
#[track_caller]
pub(crate) fn start() {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/incus/private.sh");
    let started = Command::new("sh")
        .args([script, "--start"])
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert!(started.status.success(), "{started:?}");
}
