//! Holds one run against Incus: connections, timeouts, the lock, and the number of writing requests.

pub(crate) mod interrupt;
pub(crate) mod lock;
pub(crate) mod machine_files;
mod program;

use std::cell::OnceCell;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use futures_util::StreamExt as _;
use futures_util::stream;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::runtime::Builder;

use crate::error::{Exit, Failure};
use crate::foreign::Reader;
use crate::incus::{Incus, IncusError, State, Writes, socket_path};
use crate::plan::{Ownership, owner};
use interrupt::Interrupt;
use lock::{Lock, lock};
use machine_files::Roots;
use program::Program;

/// Maximum time that one request may take; making a network takes a second, and they wait for each other.
const PATIENCE: Duration = Duration::from_secs(120);
/// Maximum time that one question about what is in a machine may take: a program of 50 MB comes through a busy host.
const LOOK_PATIENCE: Duration = Duration::from_secs(30);
/// The socket of users who may use a project of their own and no more.
const PLAIN: &str = "unix.socket.user";
/// Maximum number of concurrent tasks.
pub(crate) const AT_ONCE: usize = 8;
/// Oldest Incus that does what anklume needs.
const OLDEST: (u32, u32) = (6, 0);
/// API extensions that are required.
const NEEDED: [&str; 7] = [
    "projects",
    "proxy_unix",
    "proxy_unix_dac_properties",
    "instance_all_projects",
    "profiles_all_projects",
    "storage_volumes_all_projects",
    "network_bridge_acl",
];

/// Does work that has streams, time-outs and signals.
pub(crate) fn block_on<T>(work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    let mut builder = Builder::new_current_thread();
    let runtime = builder.enable_all().build().context("cannot start")?;
    let done = runtime.block_on(work);
    // Whoever asked to end at once does not wait for a thread that waits for a machine.
    runtime.shutdown_background();
    done
}

/// The way to Incus.
#[derive(Debug)]
pub(crate) struct Session {
    socket: PathBuf,
    writes: Writes,
    /// Held for the run; `None` without root's rights.
    lock: Option<Lock>,
    /// The program for machines, once it was read.
    program: OnceCell<Program>,
    roots: Roots,
    reader: Reader,
    interrupt: Interrupt,
    /// Version and socket of Incus.
    about: String,
}

impl Session {
    /// Finds Incus and makes sure that it can be used.
    pub(crate) async fn new() -> anyhow::Result<Self> {
        allow_descriptors();
        let socket = socket_path(|name| std::env::var_os(name));
        if socket.file_name().is_some_and(|name| name == PLAIN) {
            // It gives its user a project and no more: enough to begin, and not to finish.
            return Err(incus_failure(&IncusError::NoPermission(socket)).into());
        }
        let writes = Writes::default();
        let mut incus = connect(&socket, &writes)
            .await
            .map_err(|why| incus_failure(&why))?;
        let server = incus.server().await.map_err(|why| incus_failure(&why))?;
        usable(&server)?;
        let about = format!(
            "Incus {} on `{}`",
            server.environment.server_version.escape_debug(),
            socket.display().to_string().escape_debug()
        );
        Ok(Self {
            socket,
            writes,
            lock: None,
            program: OnceCell::new(),
            roots: Roots::default(),
            reader: Reader::default(),
            interrupt: Interrupt::default(),
            about,
        })
    }

    /// The reader of what machines say.
    pub(crate) const fn reader(&self) -> &Reader {
        &self.reader
    }

    /// Version and socket of Incus.
    pub(crate) fn about(&self) -> &str {
        &self.about
    }

    /// The same, when no other run changes things; `tell` says that one does.
    pub(crate) async fn locked(mut self, tell: impl Fn(&str)) -> anyhow::Result<Self> {
        self.lock = lock(tell).await?;
        Ok(self)
    }

    /// The program that goes into machines; read when it is first asked for, as most of them have it.
    ///
    /// # Errors
    ///
    /// This one cannot go into machines.
    pub(crate) fn program(&self) -> anyhow::Result<&Program> {
        if let Some(program) = self.program.get() {
            return Ok(program);
        }
        let program = Program::of_this()?;
        Ok(self.program.get_or_init(|| program))
    }

    /// The ways into machines that were opened so far.
    pub(crate) const fn roots(&self) -> &Roots {
        &self.roots
    }

    /// The lock, if it is held.
    pub(crate) const fn lock(&self) -> Option<&Lock> {
        self.lock.as_ref()
    }

    /// Whether the run was asked to stop.
    pub(crate) const fn interrupt(&self) -> &Interrupt {
        &self.interrupt
    }

    /// A new connection.
    pub(crate) async fn incus(&self) -> Result<Incus, IncusError> {
        connect(&self.socket, &self.writes).await
    }

    /// A new connection for looking into machines, each of which may keep a question waiting.
    pub(crate) async fn incus_for_looking(&self) -> Result<Incus, IncusError> {
        let incus = Incus::connect(self.socket.clone(), LOOK_PATIENCE).await?;
        Ok(incus.counting(self.writes.clone()))
    }

    /// Returns the number of writing requests sent so far.
    pub(crate) fn writes(&self) -> u64 {
        self.writes.count()
    }

    /// Everything on Incus, when what an earlier run of the infrastructure left going on has ended.
    pub(crate) async fn state(&self, infra: &str) -> anyhow::Result<State> {
        self.read(infra)
            .await
            .map_err(|why| incus_failure(&why).into())
    }

    async fn read(&self, infra: &str) -> Result<State, IncusError> {
        let mut incus = self.incus().await?;
        let state = incus.state().await?;
        let ours = |project: &str| is_ours(&state, infra, project);
        if incus.settle(ours).await? {
            return incus.state().await;
        }
        Ok(state)
    }
}

/// Returns whether a project of this state is that infrastructure's.
fn is_ours(state: &State, infra: &str, project: &str) -> bool {
    let mut projects = state.projects.iter();
    projects.any(|one| one.name == project && owner(&one.config, infra) == Ownership::Ours)
}

/// Does something with each, several at once; gives the results in order.
pub(crate) async fn each<'a, T, F, Fut, R>(all: &'a [T], one: F) -> Vec<R>
where
    F: Fn(&'a T) -> Fut,
    Fut: Future<Output = R>,
{
    stream::iter(all.iter().map(one))
        .buffered(AT_ONCE)
        .collect()
        .await
}

/// Lets this process have as many open files as it may: each machine takes a few.
fn allow_descriptors() {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        ..limit
    };
    // With fewer it still works for most.
    let _ = setrlimit(Resource::Nofile, raised);
}

async fn connect(socket: &std::path::Path, writes: &Writes) -> Result<Incus, IncusError> {
    let incus = Incus::connect(socket.to_owned(), PATIENCE).await?;
    Ok(incus.counting(writes.clone()))
}

/// A failure to talk with Incus as a user reads it.
pub(crate) fn incus_failure(why: &IncusError) -> Failure {
    use std::error::Error as _;
    let mut message = why.to_string();
    let mut cause = why.source();
    while let Some(one) = cause {
        let more = one.to_string();
        if !message.ends_with(&more) {
            message = format!("{message}: {more}");
        }
        cause = one.source();
    }
    let failure = Failure::new(Exit::Failed, message);
    match why {
        IncusError::NoSocket(_) => {
            failure.help("start Incus, or install it (Debian: `apt install incus`)")
        }
        IncusError::NotListening(_) => failure.help("start Incus: `systemctl start incus.service`"),
        IncusError::NoPermission(_) => failure.help(
            "run this as root or as a member of the group `incus-admin` (whoever is in it is root on this computer)",
        ),
        IncusError::Silent(..) => failure.help("look at Incus: `incus info`; then run the command again"),
        IncusError::Refused { code: 403, .. } => failure.help(
            "this user may use a part of Incus only: run this as root or as a member of the group `incus-admin`",
        ),
        _ => failure.help("run the command again: it resumes where it stopped; `incus monitor` shows what Incus does"),
    }
}

fn usable(server: &crate::incus::state::IncusServer) -> Result<(), Failure> {
    if server.auth != "trusted" {
        let failure = Failure::new(Exit::Failed, "no permission to use Incus");
        return Err(failure.help(
            "run this as root or as a member of the group `incus-admin` (whoever is in it is root on this computer)",
        ));
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
        return Err(Failure::new(Exit::Failed, message).help(help));
    }
    if server.environment.server_clustered {
        let failure = Failure::new(Exit::Failed, "this Incus is a cluster");
        return Err(
            failure.help("anklume connects the machines of one computer: use an Incus of its own")
        );
    }
    Ok(())
}

fn parsed(version: &str) -> Option<(u32, u32)> {
    let mut parts = version.split(|c: char| !c.is_ascii_digit());
    let mut next = || parts.next()?.parse().ok();
    Some((next()?, next().unwrap_or(0)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_compared_as_numbers() {
        assert_eq!(parsed("6.0.4"), Some((6, 0)));
        assert_eq!(parsed("7"), Some((7, 0)));
        assert!(parsed("10.1") > Some(OLDEST));
        assert!(parsed("5.21.3") < Some(OLDEST));
        assert!(parsed("") < Some(OLDEST));
    }
}
