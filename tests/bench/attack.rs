//! Measures the cost of the worst caller: the memory that it makes its provider hold, and its effect on another caller.

use std::fmt::{self, Display, Formatter};
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::thread::{CpuSet, sched_setaffinity};

use super::listening::{Ends, Peer, Server, call, call_with, p99_of, services};
use super::median;

/// Number of the attacker's connections: as many as a caller may have.
const CONNECTIONS: usize = 256;
/// Duration of an attack.
const ATTACK: Duration = Duration::from_secs(4);
/// Interval after which an attack starts over with new connections.
const CYCLE: Duration = Duration::from_secs(2);
/// Time after an attack within which memory must return to normal.
const AFTER: Duration = Duration::from_secs(5);
/// Pause between the quiet caller's calls.
const PAUSE: Duration = Duration::from_millis(2);
/// Number of measurements of a tool under attack; the best one counts.
const ROUNDS: usize = 5;
/// Number of files in the attacker's folder.
const FILES: usize = 262_144;

/// A provider whose two callers may use all tools.
const INFRA: &str = "domains:
  d:
    subnet_id: 0
    machines:
      vault:
        services:
          - {name: sign, tool: gpg_sign, consumers: [quiet, loud], LIMITS}
          - {name: get, tool: clipboard_get, consumers: [quiet, loud], LIMITS}
          - {name: set, tool: clipboard_set, consumers: [quiet, loud], LIMITS}
          - {name: accept, tool: file_accept, consumers: [quiet, loud], LIMITS}
          - {name: provide, tool: file_provide, consumers: [quiet, loud], LIMITS}
      quiet: {}
      loud: {}
";

/// High enough that no call is refused.
const FREE: &str = "limits: {calls_per_minute: 1000000000, calls_per_minute_all: 1000000000}";

/// The attacker's behaviour on a connection.
struct Attack {
    what: &'static str,
    /// All the bytes to send, given the number of the connection.
    sent: fn(usize) -> Vec<u8>,
    /// Maximum number of bytes to read at a time.
    reads: usize,
}

const ATTACKS: [Attack; 9] = [
    Attack::of("waiting calls with trees of values", 0, |_| {
        let tree = format!(
            "{{\"content\":1,\"more\":[{}{{}}]}}",
            "{\"a\":0},".repeat(1500)
        );
        call_with("set", &tree).repeat(60).into_bytes()
    }),
    Attack::of("huge initialize", 0, |_| {
        let text = "x".repeat(1024 * 1024);
        format!(
            "{{\"jsonrpc\":\"2.0\",\"id\":0,\"method\":\"initialize\",\"params\":{{\"protocolVersion\":\"2025-11-25\",\
             \"capabilities\":{{\"experimental\":{{\"x\":{{\"y\":\"{text}\"}}}}}},\"clientInfo\":{{\"name\":\"{text}\",\"version\":\"1\"}}}}}}\n"
        )
        .into_bytes()
    }),
    Attack::of("unread answers of 2 MiB", 0, |_| {
        call_with("provide", "{\"path\":\"large\"}")
            .repeat(60)
            .into_bytes()
    }),
    Attack::of("unread lists", 0, |_| {
        "{\"jsonrpc\":\"2.0\",\"id\":0,\"method\":\"tools/list\"}\n"
            .repeat(60)
            .into_bytes()
    }),
    Attack::of("half a line of 15 MiB", 0, |_| vec![b'x'; 15 * 1024 * 1024]),
    Attack::of("answers read slowly", 512, |_| {
        call_with("provide", "{\"path\":\"large\"}")
            .repeat(60)
            .into_bytes()
    }),
    Attack::of("unfinished signatures", 65_536, |_| {
        call_with("sign", "{\"data\":\"AAAA\",\"offset\":0,\"final\":false}").into_bytes()
    }),
    Attack::of("unfinished files", 65_536, |connection| {
        let line = |file: usize| {
            call_with(
                "accept",
                &format!(
                    "{{\"path\":\"u{connection}-{file}\",\"data\":\"AAAA\",\"offset\":0,\"final\":false}}"
                ),
            )
        };
        (0..8).map(line).collect::<String>().into_bytes()
    }),
    Attack::of("262,144 files in its folder", 65_536, |connection| {
        let line = |file: usize| {
            let arguments = format!("{{\"path\":\"f{connection}-{file}\",\"data\":\"AAAA\"}}");
            call_with("accept", &arguments)
        };
        (0..60).map(line).collect::<String>().into_bytes()
    }),
];

impl Attack {
    const fn of(what: &'static str, reads: usize, sent: fn(usize) -> Vec<u8>) -> Self {
        Self { what, sent, reads }
    }
}

/// A tool as the quiet caller uses it; `line` returns its n-th call.
struct Tool {
    what: &'static str,
    line: fn(usize) -> String,
    calls: usize,
}

const TOOLS: [Tool; 5] = [
    Tool {
        what: "file_provide",
        line: |_| call_with("provide", "{\"path\":\"small\"}"),
        calls: 400,
    },
    Tool {
        what: "file_accept",
        line: |n| {
            call_with(
                "accept",
                &format!("{{\"path\":\"q{n}\",\"data\":\"AAAA\"}}"),
            )
        },
        calls: 400,
    },
    Tool {
        what: "clipboard_set",
        line: |_| call("set", "text"),
        calls: 200,
    },
    Tool {
        what: "clipboard_get",
        line: |_| call("get", ""),
        calls: 200,
    },
    Tool {
        what: "gpg_sign",
        line: |_| call_with("sign", "{\"data\":\"AAAA\"}"),
        calls: 50,
    },
];

/// Measurements of one program.
pub(crate) struct Costs {
    idle: f64,
    caller: f64,
    connection: f64,
    /// Calls per second on one connection: one at a time, and sixteen in flight.
    calls: [f64; 2],
    attacks: Vec<(&'static str, f64, f64, Duration)>,
    tools: Vec<(&'static str, Duration, Duration, Duration)>,
}

/// Runs each attack separately against a server, and then all attacks at once.
pub(crate) fn costs(anklume: impl Fn() -> Command, folder: &Path) -> Costs {
    let scene = Scene::new(folder);
    let services = services(&anklume, folder, &INFRA.replace("LIMITS", FREE));
    let mut serve = anklume();
    scene.set(&mut serve);
    let server = Server::start(serve, folder, "attacked", &services);
    settle();
    let idle = mebibytes(&server);
    let quiet = Peer::connect(&server.socket("quiet")).unwrap();
    let loud = Peer::connect(&server.socket("loud")).unwrap();
    settle();
    let two = mebibytes(&server);
    let more: Vec<Peer> = (0..64)
        .map(|_| Peer::connect(&server.socket("loud")).unwrap())
        .collect();
    settle();
    let connection = (mebibytes(&server) - two) / 64.0;
    drop((quiet, loud, more));
    let calls = [1, 16].map(|in_flight| calls_per_second(&server, in_flight));
    let mut numbers = 0..;
    let unhurt: Vec<Duration> = TOOLS
        .iter()
        .map(|tool| {
            // The first call starts the processes that the tool needs.
            let times = tool.measure(&server, &mut numbers, || {});
            median(times.into_iter().skip(1).collect())
        })
        .collect();
    let provide = &TOOLS[0];
    let attacks = ATTACKS.iter().map(|attack| {
        if attack.what.ends_with("folder") {
            scene.fill();
        }
        let mut peak = 0.0_f64;
        let until = Instant::now() + ATTACK;
        let times = beside(&server, std::slice::from_ref(attack), || {
            let mut times = Vec::new();
            while Instant::now() < until {
                let sample = || peak = peak.max(mebibytes(&server));
                times.extend(provide.part(&server, &mut numbers, 20, sample));
            }
            times
        });
        std::thread::sleep(AFTER);
        eprintln!("measured: attack, {}", attack.what);
        (attack.what, peak, mebibytes(&server), p99_of(times))
    });
    let attacks = attacks.collect();
    let tools = TOOLS.iter().zip(unhurt).map(|(tool, unhurt)| {
        let rounds = (0..ROUNDS).map(|_| {
            let times = beside(&server, &ATTACKS, || {
                std::thread::sleep(Duration::from_millis(500));
                tool.measure(&server, &mut numbers, || {})
            });
            p99_of(times)
        });
        let best = rounds.min().unwrap_or_default();
        eprintln!("measured: all attacks at once, {}", tool.what);
        (
            tool.what,
            unhurt,
            best,
            (unhurt * 10).max(Duration::from_millis(20)),
        )
    });
    Costs {
        idle,
        caller: (two - idle) / 2.0,
        connection,
        calls,
        attacks,
        tools: tools.collect(),
    }
}

fn settle() {
    std::thread::sleep(Duration::from_secs(1));
}

/// Everything that the server's tools need: keys, a portal, and a display if the system has one.
struct Scene {
    folder: PathBuf,
    display: Option<(Child, String)>,
}

impl Scene {
    fn new(folder: &Path) -> Self {
        let scene = Self {
            folder: folder.to_owned(),
            display: display(),
        };
        let outgoing = scene.portal().join("outgoing/all");
        std::fs::create_dir_all(&outgoing).unwrap();
        std::fs::write(outgoing.join("small"), "hello").unwrap();
        std::fs::write(outgoing.join("large"), vec![b'x'; 2 * 1024 * 1024]).unwrap();
        std::fs::create_dir_all(scene.portal().join("incoming")).unwrap();
        std::fs::create_dir(scene.keys()).unwrap();
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o700);
        std::fs::set_permissions(scene.keys(), mode).unwrap();
        let mut gpg = Command::new("gpg");
        gpg.args(["--batch", "--quiet", "--pinentry-mode", "loopback"]);
        gpg.args(["--passphrase", "", "--quick-gen-key"]);
        gpg.args(["bench@example.org", "ed25519", "sign", "never"]);
        super::run(gpg.env("GNUPGHOME", scene.keys()));
        scene
    }

    fn portal(&self) -> PathBuf {
        self.folder.join("portal")
    }

    fn keys(&self) -> PathBuf {
        self.folder.join("keys")
    }

    fn set(&self, serve: &mut Command) {
        serve.env("ANKLUME_MCP_PORTAL", self.portal());
        serve.env("GNUPGHOME", self.keys());
        if let Some((_, name)) = &self.display {
            serve.env("DISPLAY", name);
        }
    }

    /// Fills the attacker's folder.
    fn fill(&self) {
        let folder = self.portal().join("incoming/loud");
        std::fs::create_dir_all(&folder).unwrap();
        for number in 0..FILES {
            std::fs::File::create(folder.join(number.to_string())).unwrap();
        }
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        if let Some((xvfb, _)) = &mut self.display {
            let _ = xvfb.kill();
            let _ = xvfb.wait();
        }
        let mut end = Command::new("gpgconf");
        end.args(["--kill", "all"]).env("GNUPGHOME", self.keys());
        let _ = end.status();
    }
}

/// A new display; it chooses its own number and prints it.
fn display() -> Option<(Child, String)> {
    let mut xvfb = Command::new("Xvfb");
    xvfb.args(["-displayfd", "1", "-screen", "0", "64x64x24", "-noreset"]);
    xvfb.args(["-nolisten", "tcp"]);
    let started = xvfb.stdout(Stdio::piped()).stderr(Stdio::null()).spawn();
    let Ok(mut xvfb) = started else {
        eprintln!("without a display: there is no Xvfb");
        return None;
    };
    let mut number = String::new();
    let mut said = BufReader::new(xvfb.stdout.take().unwrap());
    said.read_line(&mut number).unwrap();
    Some((xvfb, format!(":{}", number.trim())))
}

impl Tool {
    fn measure(
        &self,
        server: &Server,
        numbers: &mut impl Iterator<Item = usize>,
        sample: impl FnMut(),
    ) -> Vec<Duration> {
        self.part(server, numbers, self.calls, sample)
    }

    fn part(
        &self,
        server: &Server,
        numbers: &mut impl Iterator<Item = usize>,
        calls: usize,
        mut sample: impl FnMut(),
    ) -> Vec<Duration> {
        let mut peer = Peer::connect(&server.socket("quiet")).unwrap();
        let times = numbers.take(calls).map(|number| {
            std::thread::sleep(PAUSE);
            let line = (self.line)(number);
            let start = Instant::now();
            peer.write(&line).unwrap();
            let answer = peer.read().unwrap();
            let took = start.elapsed();
            assert!(
                answer.contains("\"isError\":false"),
                "{}: {answer}",
                self.what
            );
            took
        });
        let times = times.collect();
        sample();
        times
    }
}

fn calls_per_second(server: &Server, in_flight: u32) -> f64 {
    const CALLS: u32 = 4_000;
    let mut peer = Peer::connect(&server.socket("quiet")).unwrap();
    let line = call_with("provide", "{\"path\":\"small\"}");
    let lines: String = (0..in_flight)
        .map(|id| line.replacen("\"id\":0", &format!("\"id\":{id}"), 1))
        .collect();
    let mut times = Vec::new();
    for _ in 0..5 {
        let start = Instant::now();
        for _ in 0..CALLS / in_flight {
            peer.write(&lines).unwrap();
            for _ in 0..in_flight {
                let answer = peer.read().unwrap();
                assert!(answer.contains("\"isError\":false"), "{answer}");
            }
        }
        times.push(start.elapsed());
    }
    f64::from(CALLS) / median(times).as_secs_f64()
}

/// Measures while the attacks run on one core.
fn beside<T>(server: &Server, attacks: &[Attack], measured: impl FnOnce() -> T) -> T {
    let stop = AtomicBool::new(false);
    let socket = server.socket("loud");
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut one = CpuSet::new();
            one.set(0);
            sched_setaffinity(None, &one).unwrap();
            while !stop.load(Ordering::Relaxed) {
                pour(&socket, attacks, &stop);
            }
        });
        let _ends = Ends(&stop);
        measured()
    })
}

/// Runs one cycle: opens all connections and sends all of their bytes.
fn pour(socket: &Path, attacks: &[Attack], stop: &AtomicBool) {
    /// Maximum number of bytes to write to a connection before turning to the next one.
    const WRITE: usize = 1024 * 1024;
    let connections = attacks.iter().cycle().take(CONNECTIONS).enumerate();
    let mut connections: Vec<_> = connections
        .filter_map(|(number, attack)| {
            let stream = UnixStream::connect(socket).ok()?;
            stream.set_nonblocking(true).unwrap();
            Some((stream, attack.reads, (attack.sent)(number), 0))
        })
        .collect();
    let mut buffer = vec![0; 65_536];
    let until = Instant::now() + CYCLE;
    while Instant::now() < until && !stop.load(Ordering::Relaxed) {
        let mut moved = false;
        for (stream, reads, bytes, sent) in &mut connections {
            let rest = bytes.get(*sent..).unwrap_or_default();
            let rest = rest.get(..WRITE).unwrap_or(rest);
            if let Ok(wrote @ 1..) = stream.write(rest) {
                *sent += wrote;
                moved = true;
            }
            let room = buffer.get_mut(..*reads).unwrap_or_default();
            let _ = stream.read(room);
        }
        if !moved {
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

/// The server's memory in MiB: all its processes except gpg's, whose number is bounded.
fn mebibytes(server: &Server) -> f64 {
    let mut all = vec![server.pid()];
    let mut at = 0;
    while let Some(process) = all.get(at).copied() {
        at += 1;
        let threads = std::fs::read_dir(format!("/proc/{process}/task"));
        for thread in threads.into_iter().flatten().flatten() {
            let children = std::fs::read_to_string(thread.path().join("children"));
            let children = children.unwrap_or_default();
            all.extend(
                children
                    .split_whitespace()
                    .filter_map(|id| id.parse::<u32>().ok()),
            );
        }
    }
    let kept = all.into_iter().filter(|process| {
        let name = std::fs::read_to_string(format!("/proc/{process}/comm"));
        !name.unwrap_or_default().starts_with("gpg")
    });
    let kib = kept.map(|process| {
        let text = std::fs::read_to_string(format!("/proc/{process}/smaps_rollup"));
        let text = text.unwrap_or_default();
        let line = text.lines().find_map(|line| line.strip_prefix("Pss:"));
        let number = line.and_then(|line| line.split_whitespace().next());
        number
            .and_then(|number| number.parse::<u32>().ok())
            .unwrap_or_default()
    });
    f64::from(kib.sum::<u32>()) / 1024.0
}

impl Display for Costs {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Self {
            idle,
            caller,
            connection,
            calls: [one, sixteen],
            ..
        } = self;
        writeln!(
            f,
            "memory: {idle:.1} MiB idle, {caller:.2} MiB a caller, {:.0} KiB a connection",
            connection * 1024.0
        )?;
        writeln!(
            f,
            "file_provide on one connection: {one:.0} calls/s one at a time, {sixteen:.0} sixteen in flight"
        )?;
        writeln!(
            f,
            "\n{:<36} {:>10} {:>14} {:>24}",
            "attack on 256 connections, one core", "peak", "5 s after it", "p99 of another caller"
        )?;
        for (what, peak, after, p99) in &self.attacks {
            writeln!(
                f,
                "{what:<36} {:>10} {:>14} {:>24}",
                mib(*peak),
                mib(*after),
                ms(*p99)
            )?;
        }
        writeln!(
            f,
            "\n{:<36} {:>10} {:>14} {:>24}",
            "all attacks at once", "idle", "limit", "p99, best of five"
        )?;
        for (what, unhurt, best, limit) in &self.tools {
            writeln!(
                f,
                "{what:<36} {:>10} {:>14} {:>24}",
                ms(*unhurt),
                ms(*limit),
                ms(*best)
            )?;
        }
        Ok(())
    }
}

fn mib(amount: f64) -> String {
    format!("{amount:.1} MiB")
}

fn ms(time: Duration) -> String {
    format!("{:.2} ms", time.as_secs_f64() * 1e3)
}
