//! The files of a machine: looked at from the host where that can be, else asked of Incus.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::sync::{Mutex, OnceCell};

use super::Session;
use crate::incus::state::{Instance, InstanceId};
use crate::incus::{DEFAULT_PROJECT, EntryKind, FileEntry, Incus, IncusError, Object};
use crate::machine_root::{Look, MachineRoot, MachineRootError};
use crate::machine_state::PROGRAM;

/// Placeholder digest for any program other than this one.
const ANOTHER: &str = "another";

/// The error of reading a machine's files.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FilesError {
    /// Incus does not say.
    #[error(transparent)]
    Incus(#[from] IncusError),
    /// The machine did not answer in time.
    #[error("{0}")]
    Silent(String),
    /// More bytes than are read.
    #[error("it is too large")]
    TooLarge,
}

/// The roots of the machines that were looked at in a run.
#[derive(Debug, Default)]
pub(crate) struct Roots(Mutex<BTreeMap<InstanceId, Arc<Root>>>);

/// The way from the host into a machine.
#[derive(Debug, Default)]
struct Root {
    /// Its first process, as the host counts, once Incus was asked; `None` within: it did not say.
    first: OnceCell<Option<u32>>,
    way: OnceCell<Mutex<RootAccess>>,
}

#[derive(Debug)]
enum RootAccess {
    /// It is open.
    Open(Box<MachineRoot>),
    /// There is none: Incus is asked.
    Closed,
    /// The machine did not answer in time, and is not asked again.
    Silent(String),
}

/// The files of one machine.
#[derive(Debug)]
pub(crate) struct MachineFiles<'c> {
    session: &'c Session,
    machine: Object,
    root: Arc<Root>,
    /// Made when it is first needed.
    incus: Option<Incus>,
}

impl Session {
    /// The files of a machine.
    pub(crate) async fn files(&self, there: &Instance) -> MachineFiles<'_> {
        let root = self.root(there).await;
        let way = async || Mutex::new(self.way(there, &root).await);
        root.way.get_or_init(way).await;
        MachineFiles {
            session: self,
            machine: Object::machine(&there.project, &there.name),
            root,
            incus: None,
        }
    }

    /// Ends the children that look into machines: what is changed next must find no file system in use.
    pub(crate) async fn close_roots(&self) {
        self.roots().0.lock().await.clear();
    }

    /// A machine's first process, as the host counts; asked once in a run.
    pub(crate) async fn first_process(&self, there: &Instance) -> Option<u32> {
        let root = self.root(there).await;
        self.first(there, &root).await
    }

    async fn root(&self, there: &Instance) -> Arc<Root> {
        let mut roots = self.roots().0.lock().await;
        Arc::clone(roots.entry(there.id()).or_default())
    }

    async fn first(&self, there: &Instance, root: &Root) -> Option<u32> {
        *root
            .first
            .get_or_init(async || self.ask_first(there).await)
            .await
    }

    async fn ask_first(&self, there: &Instance) -> Option<u32> {
        let machine = Object::machine(&there.project, &there.name);
        let mut incus = self.incus_for_looking().await.ok()?;
        incus.first_process(&machine).await.ok()
    }

    /// Opens the way into a machine.
    async fn way(&self, there: &Instance, root: &Root) -> RootAccess {
        if !is_visible(there, rustix::process::geteuid().is_root()) {
            return RootAccess::Closed;
        }
        let Some(first) = self.first(there, root).await else {
            return RootAccess::Closed;
        };
        match MachineRoot::open(first, &cgroup(there)).await {
            // The number could have been another process's, had the machine ended meanwhile.
            Ok(Some(root)) if self.ask_first(there).await == Some(first) => {
                RootAccess::Open(Box::new(root))
            }
            // Nothing of the machine's was read yet: a child that is late is no fault of the machine's.
            Ok(_) | Err(MachineRootError::Io(_) | MachineRootError::Slow) => RootAccess::Closed,
        }
    }
}

/// Returns whether the host can see the files of a machine: only root can, and only in a running container, never in a virtual
/// machine.
fn is_visible(there: &Instance, is_root: bool) -> bool {
    is_root && there.kind == "container" && there.is_running()
}

/// Name of a machine's cgroup, without the prefix `lxc.payload.`.
fn cgroup(there: &Instance) -> String {
    if there.project == DEFAULT_PROJECT {
        there.name.clone()
    } else {
        format!("{}_{}", there.project, there.name)
    }
}

impl MachineFiles<'_> {
    /// Returns what is at a path; `None` if nothing is.
    pub(crate) async fn look(&mut self, path: &str) -> Result<Option<FileEntry>, FilesError> {
        let seen = self.seen(async |root| root.look(path).await).await?;
        if let Some(entry) = seen {
            return Ok(entry);
        }
        let machine = self.machine.clone();
        let incus = self.incus().await?;
        let looked = incus.look_at_file(&machine, path).await;
        self.told(looked)
    }

    /// The content of a regular file, or where a link leads; `None`: nothing is there, or something else.
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
        let machine = self.machine.clone();
        let incus = self.incus().await?;
        let read = incus.read_file(&machine, path, kind, max).await;
        self.told(read)
    }

    /// SHA-256 of the program in the machine, in hexadecimal, where it is this very one; `None`: there is none.
    pub(crate) async fn program(&mut self) -> Result<Option<String>, FilesError> {
        let seen = self.seen(async |root| root.is_this_program(PROGRAM).await);
        // Comparing a machine's program needs this one in any case; it is read once per run.
        let own = self.session.program();
        let own = own.map_err(|why| FilesError::Silent(format!("{why:#}")))?;
        let own = (own.length(), own.digest.clone());
        if let Some(is) = seen.await? {
            return Ok(is.map(|same| if same { own.1 } else { ANOTHER.to_owned() }));
        }
        let machine = self.machine.clone();
        let incus = self.incus().await?;
        let digest = incus.digest_of_file(&machine, PROGRAM, own.0).await;
        match self.told(digest) {
            // The rest of it is not read.
            Err(FilesError::TooLarge) => Ok(Some(ANOTHER.to_owned())),
            done => done,
        }
    }

    /// Reads it from the host; `None` if Incus must be asked.
    async fn seen<T>(
        &self,
        look: impl AsyncFnOnce(&mut MachineRoot) -> Result<Look<T>, MachineRootError>,
    ) -> Result<Option<T>, FilesError> {
        let Some(way) = self.root.way.get() else {
            return Ok(None);
        };
        let mut way = way.lock().await;
        let slow = MachineRootError::Slow.to_string();
        // Taken out for as long as the exchange lasts: if a caller gives up on it, the next one must not read its answer.
        let mut root = match std::mem::replace(&mut *way, RootAccess::Silent(slow)) {
            RootAccess::Open(root) => root,
            RootAccess::Closed => {
                *way = RootAccess::Closed;
                return Ok(None);
            }
            RootAccess::Silent(why) => {
                *way = RootAccess::Silent(why.clone());
                return Err(FilesError::Silent(why));
            }
        };
        let looked = look(&mut root).await;
        *way = match &looked {
            Ok(_) => RootAccess::Open(root),
            Err(MachineRootError::Io(_)) => RootAccess::Closed,
            Err(why @ MachineRootError::Slow) => RootAccess::Silent(why.to_string()),
        };
        match looked {
            Ok(Look::Is(seen)) => Ok(Some(seen)),
            Ok(Look::TooLarge) => Err(FilesError::TooLarge),
            Ok(Look::Unclear) | Err(MachineRootError::Io(_)) => Ok(None),
            Err(why @ MachineRootError::Slow) => Err(FilesError::Silent(why.to_string())),
        }
    }

    async fn incus(&mut self) -> Result<&mut Incus, IncusError> {
        if self.incus.is_none() {
            self.incus = Some(self.session.incus_for_looking().await?);
        }
        self.incus
            .as_mut()
            .ok_or_else(|| IncusError::Connection(std::io::ErrorKind::NotConnected.into()))
    }

    /// Converts the answer of Incus; after a failure, drops the connection so that the next request opens a new one.
    fn told<T>(&mut self, answer: Result<T, IncusError>) -> Result<T, FilesError> {
        answer.map_err(|why| {
            self.incus = None;
            match why {
                IncusError::TooLarge => FilesError::TooLarge,
                why => why.into(),
            }
        })
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

    #[test]
    fn a_machine_of_the_default_project_has_no_project_in_its_cgroup() {
        assert_eq!(
            cgroup(&machine("vault", "container", "Running")),
            "vault_signer"
        );
        assert_eq!(
            cgroup(&machine("default", "container", "Running")),
            "signer"
        );
    }
}
