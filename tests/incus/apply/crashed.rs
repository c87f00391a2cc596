//! Incus itself crashes and comes back: in the middle of a run, and while channels are in use.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::json;

use super::plan::SEED;
use crate::connection::Connection;
use crate::daemon;
use crate::recorder::{Fate, Recorder};
use crate::world::World;

/// When the crashed daemon restarts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Back {
    /// Immediately, while the run continues.
    AtOnce,
    /// After the run has ended.
    Later,
}

/// Runs `anklume apply` with an Incus that crashes before write request `at`; returns the exit code and stderr.
fn crashes(world: &World, at: usize, back: Back) -> (i32, String) {
    let crashed = Arc::new(AtomicBool::new(false));
    let once = Arc::clone(&crashed);
    let recorder = Recorder::new(move |number, _| {
        if number >= at && !once.swap(true, Ordering::SeqCst) {
            daemon::crash();
            if back == Back::AtOnce {
                daemon::start();
            }
        }
        Fate::Pass
    });
    let socket = recorder.socket().to_str().unwrap().to_owned();
    let ran = world.anklume(&["apply"]).env("INCUS_SOCKET", socket).run();
    assert!(crashed.load(Ordering::SeqCst), "{at}: {ran:?}");
    if back == Back::Later {
        daemon::start();
    }
    (ran.status, ran.stderr)
}

#[test]
fn incus_crashes_in_the_middle_of_a_run_and_the_next_one_finishes() {
    for (at, back) in [
        (2, Back::Later),
        (9, Back::AtOnce),
        (13, Back::Later),
        (16, Back::AtOnce),
    ] {
        let world = World::new(SEED);
        let (status, stderr) = crashes(&world, at, back);
        assert_eq!(status, 1, "{at} {back:?}: {stderr}");
        assert!(stderr.contains("steps failed"), "{at} {back:?}: {stderr}");
        world.apply();
        world.is_settled();
        let list = format!("anklume mcp list -i {}", world.machine(0, "signer"));
        assert!(world.exec(1, "dev", &list).0, "{at} {back:?}");
    }
}

#[test]
fn channels_in_use_do_not_notice_that_incus_crashes_and_comes_back() {
    let world = World::new(&SEED.replace("tool: gpg_sign", "tool: clipboard_set"));
    world.apply();
    let copy = json!({"content": "x"});
    let mut living = Connection::open(&world, "dev");
    living.call("sign", &copy);
    let first = world.first(1, "dev");
    daemon::crash();
    living.call("sign", &copy);
    // A new connection works too, because no bytes pass through the daemon.
    let socket = format!(
        "/proc/{first}/root/srv/anklume/mcp/{}.sock",
        world.machine(0, "signer")
    );
    Connection::at(&socket).call("sign", &copy);
    daemon::start();
    living.call("sign", &copy);
    world.is_settled();
    let ran = world.run(&["doctor"]);
    assert_eq!(ran.status, 0, "{ran:?}");
    living.call("sign", &copy);
}
