//! The test's own Incus daemon, ended and started again in the middle of things.

use std::process::{Command, Stdio};

use crate::processes::kill;

/// Where tests/incus/private.sh keeps the daemon's process number.
const PID: &str = "/run/incusd.pid";

/// Kills the daemon, as a crash would; its machines and their proxies live on.
#[track_caller]
pub(crate) fn crash() {
    assert!(
        std::env::var_os("ANKLUME_TEST_INCUS").is_some(),
        "this daemon does not belong to the test"
    );
    let pid = std::fs::read_to_string(PID).unwrap();
    kill(pid.trim().parse().unwrap());
}

/// Starts it again, and waits until it answers.
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
