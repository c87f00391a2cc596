//! Holds one run against Incus: connections, timeouts, the lock, the program for machines, and the write request count.

pub(crate) mod interrupt;
pub(crate) mod lock;
pub(crate) mod machine_files;

use std::cell::OnceCell;
use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use futures_util::StreamExt as _;
use futures_util::stream;
use hyper::body::Bytes;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::runtime::Builder;
use tokio::sync::Mutex;

use crate::digest::sha256;
use crate::error::{Exit, Failure, with_causes};
use crate::foreign::Reader;
use crate::incus::state::{IncusServer, InstanceId};
use crate::incus::{Incus, IncusError, State, Writes, socket_path};
use crate::plan::{Ownership, owner};
use interrupt::Interrupt;
use lock::{Lock, lock};
use machine_files::Root;

/// Timeout for one request; creating a network takes a second, and requests wait for each other.
const TIMEOUT: Duration = Duration::from_secs(120);
/// Timeout for one request for a machine's content: enough for a program of 50 MB on a busy host.
const LOOK_TIMEOUT: Duration = Duration::from_secs(30);
/// The socket for users who may use only their own project.
const PLAIN: &str = "unix.socket.user";
/// Maximum number of concurrent tasks.
pub(crate) const AT_ONCE: usize = 8;
/// Oldest Incus version that provides what anklume needs.
const OLDEST: (u32, u32, u32) = (6, 0, 0);
/// Required API extensions.
const NEEDED: [&str; 7] = [
    "projects",
    "proxy_unix",
    "proxy_unix_dac_properties",
    "instance_all_projects",
    "profiles_all_projects",
    "storage_volumes_all_projects",
    "network_bridge_acl",
];
/// Help for a user without permission.
const RUN_AS_ROOT: &str = "run this as root or as a member of the group `incus-admin` (its members are root on this computer)";
/// This program, even if its file was replaced or its path is relative.
const THIS_PROGRAM: &str = "/proc/self/exe";

/// Runs work that needs streams, timeouts and signals.
pub(crate) fn block_on<T>(work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    let mut builder = Builder::new_current_thread();
    let runtime = builder.enable_all().build().context("cannot start")?;
    let done = runtime.block_on(work);
    // A run that must end immediately does not wait for a thread that is waiting for a machine or for stdin.
    runtime.shutdown_background();
    done
}

/// A run's access to Incus.
#[derive(Debug, Default)]
pub(crate) struct Session {
    socket: PathBuf,
    writes: Writes,
    /// Held during the run; `None` without root privileges.
    pub(crate) lock: Option<Lock>,
    /// Read when first needed.
    program: OnceCell<Program>,
    /// Access to the machines examined so far.
    roots: Mutex<BTreeMap<InstanceId, Arc<Root>>>,
    /// Parses the output of machines.
    pub(crate) reader: Reader,
    /// Remembers that the run was asked to stop.
    pub(crate) interrupt: Interrupt,
    /// Version and socket of Incus.
    pub(crate) about: String,
    /// Number of the daemon's process.
    pub(crate) daemon: u32,
    /// A note, if anklume is not tested with this version of Incus.
    pub(crate) untested: Option<String>,
}

impl Session {
    /// Finds Incus and checks that it can be used.
    pub(crate) async fn new() -> anyhow::Result<Self> {
        allow_descriptors();
        let socket = socket_path(|name| std::env::var_os(name));
        if socket.file_name().is_some_and(|name| name == PLAIN) {
            // This socket grants access to only one project: enough to begin a run but not to finish it.
            return Err(incus_failure(&IncusError::NoPermission(socket)).into());
        }
        let mut session = Self {
            socket,
            ..Self::default()
        };
        let server = async { session.incus().await?.server().await };
        let server = server.await.map_err(|why| incus_failure(&why))?;
        usable(&server)?;
        session.daemon = server.environment.pid;
        session.untested = untested(&server.environment.server_version);
        session.about = format!(
            "Incus {} on `{}`",
            server.environment.server_version.escape_debug(),
            session.socket.display().to_string().escape_debug()
        );
        Ok(session)
    }

    /// Takes the lock once no other run is making changes; `tell` reports that one is.
    pub(crate) async fn locked(mut self, tell: impl Fn(&str)) -> anyhow::Result<Self> {
        self.lock = lock(tell).await?;
        Ok(self)
    }

    /// Returns the program for the machines, which is this one. Fails if it cannot be read or needs a shared library.
    pub(crate) fn program(&self) -> anyhow::Result<&Program> {
        if let Some(program) = self.program.get() {
            return Ok(program);
        }
        let bytes = fs::read(THIS_PROGRAM).context("cannot read this program")?;
        if !is_static(&bytes) {
            let message = "this anklume needs libraries that machines may lack, so it is not copied into them";
            let failure = Failure::new(Exit::Failed, message);
            return Err(failure.help("use the static binary: `make build`").into());
        }
        Ok(self.program.get_or_init(|| Program {
            digest: sha256(&bytes),
            bytes: bytes.into(),
        }))
    }

    pub(crate) async fn incus(&self) -> Result<Incus, IncusError> {
        self.connect(TIMEOUT).await
    }

    /// The number of write requests sent so far.
    pub(crate) fn writes(&self) -> u64 {
        self.writes.count()
    }

    async fn connect(&self, timeout: Duration) -> Result<Incus, IncusError> {
        let incus = Incus::connect(self.socket.clone(), timeout).await?;
        Ok(incus.counting(self.writes.clone()))
    }

    /// Reads everything in Incus once the operations that an earlier run of the infrastructure left behind have ended.
    pub(crate) async fn state(&self, infra: &str) -> anyhow::Result<State> {
        let read = async {
            let mut incus = self.incus().await?;
            let state = incus.state().await?;
            let ours = |project: &str| {
                let mut projects = state.projects.iter().filter(|one| one.name == project);
                projects.any(|one| owner(&one.config, infra) == Ownership::Ours)
            };
            if incus.settle(ours).await? {
                return incus.state().await;
            }
            Ok(state)
        };
        read.await.map_err(|why| incus_failure(&why).into())
    }
}

/// Runs `one` for each element, several concurrently; returns the results in order.
pub(crate) async fn each<'a, T, R, F: Future<Output = R>>(
    all: &'a [T],
    one: impl Fn(&'a T) -> F,
) -> Vec<R> {
    let results = stream::iter(all.iter().map(one)).buffered(AT_ONCE);
    results.collect().await
}

/// Raises this process's limit on open files to the maximum: each machine needs a few.
fn allow_descriptors() {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        ..limit
    };
    // Most runs also work with the lower limit.
    let _ = setrlimit(Resource::Nofile, raised);
}

/// Converts an Incus error to a failure with help for the user.
pub(crate) fn incus_failure(why: &IncusError) -> Failure {
    Failure::new(Exit::Failed, with_causes(why)).help(match why {
        IncusError::NoSocket(_) => "start Incus, or install it (Debian: `apt install incus`)",
        IncusError::NotListening(_) => "start Incus: `systemctl start incus.service`",
        IncusError::NoPermission(_) => RUN_AS_ROOT,
        IncusError::Silent(..) => "check Incus with `incus info`, then run the command again",
        IncusError::Refused { code: 403, .. } => {
            "this user may use only part of Incus: run this as root or as a member of the group `incus-admin`"
        }
        _ => {
            "run the command again: it resumes where it stopped; `incus monitor` shows what Incus is doing"
        }
    })
}

fn usable(server: &IncusServer) -> Result<(), Failure> {
    let failure = |message: &str, help| Err(Failure::new(Exit::Failed, message).help(help));
    if server.auth != "trusted" {
        return failure("no permission to use Incus", RUN_AS_ROOT);
    }
    let version = &server.environment.server_version;
    let missing: Vec<&str> = NEEDED
        .into_iter()
        .filter(|needed| !server.api_extensions.iter().any(|one| one == needed))
        .collect();
    if parsed(version) < Some(OLDEST) || !missing.is_empty() {
        let lacks = if missing.is_empty() {
            String::new()
        } else {
            format!(" (it lacks {})", missing.join(", "))
        };
        let message = format!(
            "Incus {} is too old{lacks}; anklume needs {}.{} or later",
            version.escape_debug(),
            OLDEST.0,
            OLDEST.1
        );
        let help = "upgrade it (Debian 12: `apt install -t bookworm-backports incus`)";
        return failure(&message, help);
    }
    if server.environment.server_clustered {
        let help =
            "anklume connects the machines of one computer: use an Incus that is not clustered";
        return failure("this Incus is a cluster", help);
    }
    Ok(())
}

/// Returns a note for a version that is not among those of docs/apply.md.
fn untested(version: &str) -> Option<String> {
    let is_tested = match parsed(version) {
        Some((6, 0, patch)) => patch == 0 || patch >= 4,
        Some((major, ..)) => major == 7,
        None => false,
    };
    (!is_tested).then(|| {
        format!(
            "this is Incus {}, which anklume is not tested with (tested: 6.0.0, 6.0.4 and later 6.0 patches, 7.x)",
            version.escape_debug()
        )
    })
}

fn parsed(version: &str) -> Option<(u32, u32, u32)> {
    let mut parts = version.split(|c: char| !c.is_ascii_digit());
    let mut next = || parts.next()?.parse().ok();
    let major = next()?;
    Some((major, next().unwrap_or(0), next().unwrap_or(0)))
}

/// A program that can run in any machine.
#[derive(Debug)]
pub(crate) struct Program {
    pub(crate) bytes: Bytes,
    /// SHA-256, in hexadecimal.
    pub(crate) digest: String,
}

/// Returns whether a program needs no interpreter: a 64-bit little-endian ELF file with no `PT_INTERP` (elf(5)).
fn is_static(elf: &[u8]) -> bool {
    /// Type of the header that names an interpreter.
    const PT_INTERP: u64 = 3;
    let number = |at: usize, bytes: usize| -> Option<u64> {
        let mut field = elf.get(at..at.checked_add(bytes)?)?.iter().rev();
        field.try_fold(0, |sum, byte| Some(sum << 8 | u64::from(*byte)))
    };
    let headers = || {
        let (first, size, count) = (number(32, 8)?, number(54, 2)?, number(56, 2)?);
        (0..count)
            .map(|index| number(usize::try_from(first + index * size).ok()?, 4))
            .collect::<Option<Vec<u64>>>()
    };
    elf.starts_with(b"\x7fELF\x02\x01") && headers().is_some_and(|all| !all.contains(&PT_INTERP))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_compared_as_numbers() {
        assert_eq!(parsed("6.0.4"), Some((6, 0, 4)));
        assert_eq!(parsed("7"), Some((7, 0, 0)));
        assert!(parsed("10.1") > Some(OLDEST));
        assert!(parsed("5.21.3") < Some(OLDEST));
        assert!(parsed("") < Some(OLDEST));
    }

    #[test]
    fn a_version_that_was_not_tested_is_noted() {
        for tested in ["6.0.0", "6.0.4", "6.0.6", "7.0", "7.0.2", "7.3"] {
            assert_eq!(untested(tested), None, "{tested}");
        }
        for other in ["6.0.1", "6.13", "8.0", "?\u{1b}"] {
            let note = untested(other).unwrap();
            assert!(!note.contains('\u{1b}'), "{note}");
        }
    }

    /// Returns the beginning of an ELF file with one program header of this kind.
    fn elf(kind: u8) -> Vec<u8> {
        let mut file = vec![0; 64 + 56];
        file[..6].copy_from_slice(b"\x7fELF\x02\x01");
        (file[32], file[54], file[56]) = (64, 56, 1);
        file[64] = kind;
        file
    }

    #[test]
    fn only_what_needs_no_interpreter_is_static() {
        assert!(is_static(&elf(1)));
        assert!(!is_static(&elf(3)));
        assert!(!is_static(&elf(1)[..64]));
        assert!(!is_static(b"#!/bin/sh\n"));
        // The system's shell needs a loader for its libraries.
        assert!(!is_static(&fs::read("/bin/sh").unwrap()));
    }
}
