//! Two machines call each other for half an hour, while what they depend on is killed and restarted at random.

use std::io::Write as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::channel::{BOTH, paste};
use crate::daemon;
use crate::processes::{kill, processes};
use crate::world::World;

/// Duration of the soak, in minutes, if `ANKLUME_SOAK_MINUTES` does not say another.
const MINUTES: u64 = 30;
/// Maximum memory of a server's processes together, in KiB.
const MEMORY_MAX: u64 = 96 * 1024;

/// What happened to the calls of one machine.
#[derive(Debug, Default)]
struct Calls {
    answered: usize,
    failed: usize,
}

/// Calls the other machine until `stop`; an answer must be the caller's own text.
fn call(world: &World, domain: usize, name: &str, other: &str, stop: &AtomicBool) -> Calls {
    let mut calls = Calls::default();
    for number in 0.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let text = format!("{name}-{number}");
        match paste(world, domain, name, other, &text) {
            (true, answer) => {
                assert_eq!(answer, text, "another answer");
                calls.answered += 1;
            }
            // A call that fails says so, and never with the text of another one; `incus exec` itself fails after the
            // answer if Incus ends.
            (false, words) => {
                let words = words.replace(&text, "");
                assert!(!words.contains(&format!("{name}-")), "{words}");
                calls.failed += 1;
                thread::sleep(Duration::from_millis(200));
            }
        }
    }
    calls
}

/// Random numbers that are the same in each run (xorshift64, by Marsaglia).
fn random(state: &mut u64, below: u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    (*state >> 16) % below
}

/// Breaks something; returns what.
fn disturb(world: &World, kind: u64, side: usize) -> String {
    let name = ["one", "two"][side];
    let machine = world.machine(side, name);
    match kind {
        0 => {
            world.incus(side, &["restart", "--force", &machine]);
            format!("restarted {machine}")
        }
        1 => {
            let server = "kill -9 $(ps | sed -n 's/^ *\\([0-9]*\\) .*[m]cp serve.*/\\1/p')";
            world.exec(side, name, server);
            format!("killed the server of {machine}")
        }
        2 => {
            daemon::crash();
            daemon::start();
            "restarted Incus".to_owned()
        }
        3 => {
            let worker = "kill -9 $(ps | sed -n 's/^ *\\([0-9]*\\) .*[m]cp-worker.*/\\1/p')";
            world.exec(side, name, worker);
            format!("killed the worker of {machine}")
        }
        _ => {
            let proxies = processes(|argv| argv.get(1).is_some_and(|word| word == "forkproxy"));
            if let Some(one) = proxies.get(side).copied() {
                kill(one);
            }
            "killed a proxy".to_owned()
        }
    }
}

/// The memory of the server's processes in a machine, in KiB.
fn memory(world: &World, side: usize) -> u64 {
    let sum = r#"for one in /proc/[0-9]*; do grep -q "^anklume" $one/comm 2>/dev/null && \
        sed -n 's/^RssAnon: *\([0-9]*\) kB/\1/p' $one/status; done | { sum=0; while read kb; do sum=$((sum + kb)); done; echo $sum; }"#;
    let (_, kib) = world.exec(side, ["one", "two"][side], sum);
    kib.trim().parse().unwrap()
}

#[test]
#[ignore = "long"]
fn channels_survive_half_an_hour_of_restarts_at_random() {
    let minutes =
        std::env::var("ANKLUME_SOAK_MINUTES").map_or(MINUTES, |text| text.parse().unwrap());
    let world = World::new(BOTH);
    world.apply();
    let (one, two) = (world.machine(0, "one"), world.machine(1, "two"));
    let end = Instant::now() + Duration::from_secs(minutes * 60);
    let stop = AtomicBool::new(false);
    let mut state = 0x2545_f491_4f6c_dd1d;
    let mut disturbances = 0;
    let (from_one, from_two) = thread::scope(|scope| {
        let first = scope.spawn(|| call(&world, 0, "one", &two, &stop));
        let second = scope.spawn(|| call(&world, 1, "two", &one, &stop));
        while Instant::now() < end {
            thread::sleep(Duration::from_millis(500 + random(&mut state, 4000)));
            let side = usize::try_from(random(&mut state, 2)).unwrap();
            let what = disturb(&world, random(&mut state, 5), side);
            // One apply mends everything that only an operator can.
            let ran = world.anklume(&["apply"]).run();
            assert_eq!(
                ran.status, 0,
                "after it {what}: {}{}",
                ran.stdout, ran.stderr
            );
            world.is_settled();
            disturbances += 1;
        }
        stop.store(true, Ordering::Relaxed);
        (first.join().unwrap(), second.join().unwrap())
    });
    let report =
        format!("{disturbances} disturbances; from one: {from_one:?}; from two: {from_two:?}\n");
    std::io::stderr().write_all(report.as_bytes()).unwrap();
    assert!(disturbances > minutes * 2, "{disturbances}");
    for (side, name, other, calls) in [(0, "one", &two, from_two), (1, "two", &one, from_one)] {
        assert!(calls.answered > calls.failed, "{calls:?}");
        assert_eq!(
            paste(&world, side, name, other, "last"),
            (true, "last".to_owned())
        );
        let (intact, report) = world.exec(side, name, "anklume audit verify");
        assert!(intact && report.starts_with("intact: "), "{report}");
        // Each answer has its line: two calls for each text.
        let count = "anklume audit show --decision allowed --format json | wc -l";
        let logged: usize = world.exec(side, name, count).1.trim().parse().unwrap();
        assert!(logged >= calls.answered * 2, "{logged} lines, {calls:?}");
        let memory = memory(&world, side);
        assert!(memory < MEMORY_MAX, "{name}: {memory} KiB");
    }
}
