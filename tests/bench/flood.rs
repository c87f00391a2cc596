//! Measures the effect of a flood on another caller: its p99 without a flood, during a flood of another server, and
//! during the same flood of its own server; all in one run, for each kind of flood.

use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::listening::{Ends, Peer, Server, call, p99_of, services};

/// Number of the quiet caller's calls in each part of a round.
const CALLS: u32 = 100;
/// Number of rounds. Each has all three parts, so that a busy phase of the machine affects them all alike.
const ROUNDS: u32 = 10;
/// Pause between the quiet caller's calls: it calls only now and then, far below its own limits.
const PAUSE: Duration = Duration::from_millis(2);
/// Number of the loud caller's threads.
const LOUD: usize = 4;

/// Two consumers of one provider. Neither reaches a limit, except where the flood is meant to exceed it.
const INFRA: &str = "domains:
  d:
    subnet_id: 0
    machines:
      vault:
        services:
          - {name: clipboard, tool: clipboard_get, consumers: [quiet], limits: {calls_per_minute: 1000000000, calls_per_minute_all: 1000000000}}
          - {name: free, tool: clipboard_get, consumers: [loud], limits: {calls_per_minute: 1000000000, calls_per_minute_all: 1000000000}}
          - {name: metered, tool: clipboard_get, consumers: [loud], limits: {calls_per_minute: 1}}
      quiet: {}
      loud: {}
";

/// A flood: the calls that each thread of the loud caller repeats.
struct Flood {
    what: &'static str,
    /// Number of connections per thread.
    connections: usize,
    /// Lines to write on each connection before reading as many answers.
    batch: usize,
    line: fn() -> String,
    /// True if each round opens new connections.
    anew: bool,
}

const FLOODS: [Flood; 8] = [
    Flood::of("calls", 1, 32, || call("free", "")),
    Flood::of("calls, 256 connections", 64, 2, || call("free", "")),
    Flood::of("calls over the limit", 1, 32, || call("metered", "")),
    Flood::of("refused calls", 1, 32, || call("unknown", "")),
    Flood::of("tools/list", 1, 32, || {
        "{\"jsonrpc\":\"2.0\",\"id\":0,\"method\":\"tools/list\"}\n".to_owned()
    }),
    Flood::of("garbage", 1, 32, || "x\n".to_owned()),
    Flood::of("refused calls of 1 MiB", 1, 1, || {
        call("unknown", &"x".repeat(1024 * 1024))
    }),
    Flood {
        anew: true,
        ..Flood::of("connections", 1, 1, || call("free", ""))
    },
];

impl Flood {
    const fn of(
        what: &'static str,
        connections: usize,
        batch: usize,
        line: fn() -> String,
    ) -> Self {
        Self {
            what,
            connections,
            batch,
            line,
            anew: false,
        }
    }
}

/// The quiet caller's p99 for one kind of flood.
pub(crate) struct P99 {
    /// The flood.
    pub(crate) what: &'static str,
    /// While no other caller is active.
    pub(crate) idle: Duration,
    /// While the loud caller floods another server: the cost of sharing the processors.
    pub(crate) elsewhere: Duration,
    /// While the loud caller floods the same server.
    pub(crate) here: Duration,
}

/// Measures the quiet caller's p99 for each kind of flood.
pub(crate) fn p99(anklume: impl Fn() -> Command, folder: &Path) -> Vec<P99> {
    let services = services(&anklume, folder, INFRA);
    let here = Server::start(anklume(), folder, "here", &services);
    let elsewhere = Server::start(anklume(), folder, "elsewhere", &services);
    FLOODS
        .iter()
        .map(|flood| {
            let (mut idle, mut other, mut same) = (Vec::new(), Vec::new(), Vec::new());
            for _ in 0..ROUNDS {
                idle.extend(measure(&here.socket("quiet")));
                let beside = |server: &Server, times: &mut Vec<Duration>| {
                    let loud = server.socket("loud");
                    times.extend(flood.beside(&loud, || measure(&here.socket("quiet"))));
                };
                beside(&elsewhere, &mut other);
                beside(&here, &mut same);
            }
            P99 {
                what: flood.what,
                idle: p99_of(idle),
                elsewhere: p99_of(other),
                here: p99_of(same),
            }
        })
        .collect()
}

fn measure(socket: &Path) -> Vec<Duration> {
    let mut peer = Peer::connect(socket).unwrap();
    let line = call("clipboard", "");
    (0..CALLS)
        .map(|_| {
            std::thread::sleep(PAUSE);
            let start = Instant::now();
            peer.write(&line).unwrap();
            let answer = peer.read().unwrap();
            assert!(!answer.contains("\"error\""), "{answer}");
            start.elapsed()
        })
        .collect()
}

impl Flood {
    /// Measures while the flood runs.
    fn beside<T>(&self, loud: &Path, measured: impl FnOnce() -> T) -> T {
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            for _ in 0..LOUD {
                scope.spawn(|| self.pour(loud, &stop));
            }
            let _ends = Ends(&stop);
            measured()
        })
    }

    fn pour(&self, socket: &Path, stop: &AtomicBool) {
        let lines: String = (0..self.batch)
            .map(|id| (self.line)().replacen("\"id\":0", &format!("\"id\":{id}"), 1))
            .collect();
        let connect = || {
            (0..self.connections)
                .map(|_| Peer::connect(socket))
                .collect::<std::io::Result<Vec<_>>>()
        };
        let mut peers = connect().unwrap();
        while !stop.load(Ordering::Relaxed) {
            if self.anew {
                drop(peers);
                peers = connect().unwrap_or_default();
            }
            for peer in &mut peers {
                // In a storm of connections, one may be refused.
                let _ = peer.write(&lines);
            }
            for peer in &mut peers {
                for _ in 0..self.batch {
                    let _ = peer.read();
                }
            }
        }
    }
}
