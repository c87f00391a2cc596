//! The files of a machine: read from the host where possible, otherwise through Incus.

use std::mem;
use std::sync::Arc;

use tokio::sync::{Mutex, OnceCell};

use super::{LOOK_TIMEOUT, Session};
use crate::host::full_name;
use crate::incus::state::Instance;
use crate::incus::{EntryKind, FileEntry, Incus, IncusError, Object};
use crate::machine_root::{Look, MachineRoot, MachineRootError};
use crate::machine_state::PROGRAM;

/// Placeholder digest for any program other than this one.
const ANOTHER: &str = "another";

/// An error while reading a machine's files.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FilesError {
    #[error(transparent)]
    Incus(IncusError),
    /// The machine did not answer in time.
    #[error("{0}")]
    Silent(String),
    #[error("it is too large")]
    TooLarge,
}

impl From<IncusError> for FilesError {
    fn from(why: IncusError) -> Self {
        match why {
            IncusError::TooLarge => Self::TooLarge,
            why => Self::Incus(why),
        }
    }
}

/// The host's access to a machine's files.
#[derive(Debug, Default)]
pub(super) struct Root {
    /// Host PID of its first process, once Incus has been asked; an inner `None` means that Incus reported none.
    first: OnceCell<Option<u32>>,
    way: OnceCell<Mutex<RootAccess>>,
}

#[derive(Debug)]
enum RootAccess {
    Open(Box<MachineRoot>),
    /// Incus is asked instead.
    Closed,
    /// The machine did not answer in time, and is not asked again.
    Silent,
}

/// The files of one machine.
#[derive(Debug)]
pub(crate) struct MachineFiles<'c> {
    session: &'c Session,
    machine: Object,
    root: Arc<Root>,
    /// Opened when first needed.
    incus: Option<Incus>,
}

impl Session {
    pub(crate) async fn files(&self, machine: &Instance) -> MachineFiles<'_> {
        let root = self.root(machine).await;
        let way = async || Mutex::new(self.way(machine).await);
        root.way.get_or_init(way).await;
        MachineFiles {
            session: self,
            machine: Object::machine(&machine.project, &machine.name),
            root,
            incus: None,
        }
    }

    /// Ends the children that read machines' files, so that no file system is in use when machines are next changed.
    pub(crate) async fn close_roots(&self) {
        self.roots.lock().await.clear();
    }

    /// Host PID of a machine's first process; requested once per run.
    pub(crate) async fn first_process(&self, machine: &Instance) -> Option<u32> {
        let root = self.root(machine).await;
        let first = root
            .first
            .get_or_init(async || self.ask_first(machine).await);
        *first.await
    }

    async fn root(&self, machine: &Instance) -> Arc<Root> {
        let mut roots = self.roots.lock().await;
        Arc::clone(roots.entry(machine.id()).or_default())
    }

    async fn ask_first(&self, machine: &Instance) -> Option<u32> {
        let machine = Object::machine(&machine.project, &machine.name);
        let mut incus = self.connect(LOOK_TIMEOUT).await.ok()?;
        incus.first_process(&machine).await.ok()
    }

    /// Opens the host's access to a machine's files.
    async fn way(&self, machine: &Instance) -> RootAccess {
        if !is_visible(machine, rustix::process::geteuid().is_root()) {
            return RootAccess::Closed;
        }
        let Some(first) = self.first_process(machine).await else {
            return RootAccess::Closed;
        };
        // Its cgroup, without the prefix `lxc.payload.`.
        let cgroup = full_name(&machine.project, &machine.name);
        match MachineRoot::open(first, &cgroup).await {
            // If the machine has stopped in the meantime, another process may have this PID.
            Ok(Some(root)) if self.ask_first(machine).await == Some(first) => {
                RootAccess::Open(Box::new(root))
            }
            // Nothing has been read from the machine yet, so a late child is not the machine's fault.
            Ok(_) | Err(MachineRootError::Io(_) | MachineRootError::Slow) => RootAccess::Closed,
        }
    }
}

/// Returns whether the host can see the files of a machine: only root can, and only in a running container.
fn is_visible(machine: &Instance, is_root: bool) -> bool {
    is_root && machine.kind == "container" && machine.is_running()
}

impl MachineFiles<'_> {
    /// Returns the entry at a path; `None` if it does not exist.
    pub(crate) async fn look(&mut self, path: &str) -> Result<Option<FileEntry>, FilesError> {
        let seen = self.seen(async |root| root.look(path).await);
        if let Some(entry) = seen.await? {
            return Ok(entry);
        }
        self.ask(async |incus, machine| incus.look_at_file(machine, path).await)
            .await
    }

    /// Returns the content of a regular file, or the target of a link; `None` if the path is neither.
    pub(crate) async fn read(
        &mut self,
        path: &str,
        kind: EntryKind,
        max: u64,
    ) -> Result<Option<Vec<u8>>, FilesError> {
        let seen = self.seen(async |root| root.read(path, kind, max).await);
        if let Some(content) = seen.await? {
            return Ok(content);
        }
        self.ask(async |incus, machine| incus.read_file(machine, path, kind, max).await)
            .await
    }

    /// Returns the SHA-256 of the machine's program, possibly [`ANOTHER`] if it is not this one; `None` if missing.
    pub(crate) async fn program(&mut self) -> Result<Option<String>, FilesError> {
        // The comparison always needs this program; it is read only once per run.
        let own = self.session.program();
        let own = own.map_err(|why| FilesError::Silent(format!("{why:#}")))?;
        let seen = self.seen(async |root| root.is_this_program(PROGRAM).await);
        if let Some(is) = seen.await? {
            return Ok(is.map(|same| if same { &own.digest } else { ANOTHER }.to_owned()));
        }
        let length = own.bytes.len() as u64;
        let digest =
            self.ask(async |incus, machine| incus.digest_of_file(machine, PROGRAM, length).await);
        match digest.await {
            // A longer file is another program; its rest is not read.
            Err(FilesError::TooLarge) => Ok(Some(ANOTHER.to_owned())),
            done => done,
        }
    }

    /// Reads from the host; `None` if Incus must be asked.
    async fn seen<T>(
        &self,
        look: impl AsyncFnOnce(&mut MachineRoot) -> Result<Look<T>, MachineRootError>,
    ) -> Result<Option<T>, FilesError> {
        let Some(way) = self.root.way.get() else {
            return Ok(None);
        };
        let mut way = way.lock().await;
        let silent = || FilesError::Silent(MachineRootError::Slow.to_string());
        // Taken out during the exchange: if a caller gives up on it, the next caller must not read its answer.
        let mut root = match mem::replace(&mut *way, RootAccess::Silent) {
            RootAccess::Open(root) => root,
            RootAccess::Closed => {
                *way = RootAccess::Closed;
                return Ok(None);
            }
            RootAccess::Silent => return Err(silent()),
        };
        let (next, seen) = match look(&mut root).await {
            Ok(Look::Is(seen)) => (RootAccess::Open(root), Ok(Some(seen))),
            Ok(Look::TooLarge) => (RootAccess::Open(root), Err(FilesError::TooLarge)),
            Ok(Look::Unclear) => (RootAccess::Open(root), Ok(None)),
            Err(MachineRootError::Io(_)) => (RootAccess::Closed, Ok(None)),
            Err(MachineRootError::Slow) => (RootAccess::Silent, Err(silent())),
        };
        *way = next;
        seen
    }

    /// Asks Incus; after a failure, the next request opens a new connection.
    async fn ask<T>(
        &mut self,
        request: impl AsyncFnOnce(&mut Incus, &Object) -> Result<T, IncusError>,
    ) -> Result<T, FilesError> {
        let mut incus = match self.incus.take() {
            Some(incus) => incus,
            None => self.session.connect(LOOK_TIMEOUT).await?,
        };
        let answer = request(&mut incus, &self.machine).await;
        if answer.is_ok() {
            self.incus = Some(incus);
        }
        Ok(answer?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine(project: &str, kind: &str, status: &str) -> Instance {
        Instance {
            name: "signer".to_owned(),
            project: project.to_owned(),
            kind: kind.to_owned(),
            status: status.to_owned(),
            ..Instance::default()
        }
    }

    #[test]
    fn only_a_container_that_runs_is_looked_into_and_only_by_root() {
        let visible = |kind, status, is_root| is_visible(&machine("vault", kind, status), is_root);
        assert!(visible("container", "Running", true));
        assert!(!visible("container", "Running", false));
        assert!(!visible("container", "Stopped", true));
        assert!(!visible("container", "Frozen", true));
        assert!(!visible("virtual-machine", "Running", true));
        assert!(!visible("", "Running", true));
    }
}
