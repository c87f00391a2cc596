//! Watches the services file, which may change at any time and is checked before every call.
//!
//! A refused file is reported and leaves the last good policy in force; a missing file grants nothing.

use std::fs::File;
use std::io::{self, Read as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use rustix::fs::{Mode, OFlags, open};

use crate::services::{Services, ServicesFault};

/// Maximum size of a services file, in bytes.
const FILE_MAX: u64 = 16 * 1024 * 1024;
/// A file younger than this may change again within one tick of the file system's clock, so it is read again.
const UNSETTLED: Duration = Duration::from_millis(100);
/// The machine name used without a services file.
const NAMELESS: &str = "unnamed";

/// A policy, and its digest.
#[derive(Debug)]
pub(crate) struct Policy {
    pub(crate) services: Services,
    pub(crate) digest: String,
}

impl Policy {
    /// Creates a policy from services and computes its digest.
    pub(crate) fn new(services: Services) -> Arc<Self> {
        Arc::new(Self {
            digest: services.digest(),
            services,
        })
    }
}

/// The reason why a services file is refused.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PolicyError {
    /// The file cannot be read.
    #[error("the services file `{}` cannot be read: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
    /// The file is too large.
    #[error("the services file `{}` has more than {FILE_MAX} bytes", .0.display())]
    TooLarge(PathBuf),
    /// The file's content is not a policy.
    #[error("the services file `{}` is refused: {fault}", path.display())]
    Fault { path: PathBuf, fault: ServicesFault },
}

/// Receives every change: the policy in force, and the error if a new file was refused.
pub(crate) type OnChange = Box<dyn Fn(&Policy, Option<&PolicyError>) + Send + Sync>;

/// A policy that has just been read.
pub(crate) struct Loaded {
    pub(crate) policy: Arc<Policy>,
    /// True if it remains valid until the file changes.
    pub(crate) settled: bool,
}

/// Reads the policy.
pub(crate) type ReadPolicy = Box<dyn Fn() -> Result<Loaded, PolicyError> + Send + Sync>;

/// A services file and the last policy read from it.
pub(crate) struct PolicyWatcher {
    path: PathBuf,
    read: ReadPolicy,
    on_change: OnChange,
    state: Mutex<PolicyState>,
}

#[derive(Debug)]
struct PolicyState {
    seen: Stamp,
    policy: Arc<Policy>,
    refused: Option<String>,
}

/// Metadata that distinguishes different states of the file without reading it.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Stamp {
    Gone,
    There {
        inode: (u64, u64),
        bytes: u64,
        modified: (i64, i64),
        changed: (i64, i64),
    },
    /// Too young to be distinguished from a later state, or unreadable.
    Unsettled,
}

impl PolicyWatcher {
    /// Reads a services file. Fails if the file is refused: a server does not start with a broken policy.
    pub(crate) fn read(path: &Path) -> Result<Services, PolicyError> {
        let failed = |source| PolicyError::Io {
            path: path.to_owned(),
            source,
        };
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let file = match open(path, flags, Mode::empty()) {
            Ok(file) => File::from(file),
            Err(rustix::io::Errno::NOENT) => {
                let name = NAMELESS.parse();
                let name = name.map_err(|_| failed(io::ErrorKind::NotFound.into()))?;
                return Ok(Services::none(name));
            }
            Err(error) => return Err(failed(error.into())),
        };
        if !file.metadata().map_err(failed)?.is_file() {
            return Err(failed(io::Error::other("it is not a regular file")));
        }
        let mut bytes = Vec::new();
        file.take(FILE_MAX + 1)
            .read_to_end(&mut bytes)
            .map_err(failed)?;
        if bytes.len() as u64 > FILE_MAX {
            return Err(PolicyError::TooLarge(path.to_owned()));
        }
        Services::from_file(&bytes).map_err(|fault| PolicyError::Fault {
            path: path.to_owned(),
            fault,
        })
    }

    /// Watches the file, starting with the services `first`.
    pub(crate) fn new(path: &Path, first: Services, on_change: OnChange) -> Self {
        let file = path.to_owned();
        let read = move || {
            Ok(Loaded {
                policy: Policy::new(Self::read(&file)?),
                settled: true,
            })
        };
        Self::with_reader(path, Box::new(read), Policy::new(first), on_change)
    }

    /// Watches the file with the given reader.
    pub(crate) fn with_reader(
        path: &Path,
        read: ReadPolicy,
        first: Arc<Policy>,
        on_change: OnChange,
    ) -> Self {
        Self {
            path: path.to_owned(),
            read,
            on_change,
            state: Mutex::new(PolicyState {
                // The file may have changed since it was read.
                seen: Stamp::Unsettled,
                policy: first,
                refused: None,
            }),
        }
    }

    /// Returns the policy in force.
    pub(crate) fn current(&self) -> Arc<Policy> {
        self.current_and_settled().0
    }

    /// Returns the policy in force, and whether it remains valid until the file changes.
    pub(crate) fn current_and_settled(&self) -> (Arc<Policy>, bool) {
        let mut state = self.lock();
        let now = stamp(&self.path);
        if now == Stamp::Unsettled || now != state.seen {
            state.seen = now;
            match (self.read)() {
                Ok(fresh) => self.take(&mut state, fresh),
                Err(error) => self.refuse(&mut state, &error),
            }
        }
        let settled = state.seen != Stamp::Unsettled;
        (Arc::clone(&state.policy), settled)
    }

    /// Makes the next access read the file again, even if it looks unchanged.
    pub(crate) fn invalidate(&self) {
        self.lock().seen = Stamp::Unsettled;
    }

    fn lock(&self) -> MutexGuard<'_, PolicyState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the reason why the newest file was refused, if it was.
    pub(crate) fn refused(&self) -> Option<String> {
        self.lock().refused.clone()
    }

    fn take(&self, state: &mut PolicyState, Loaded { policy, settled }: Loaded) {
        let recovered = state.refused.take().is_some();
        if !settled {
            state.seen = Stamp::Unsettled;
        }
        if recovered || policy.digest != state.policy.digest {
            state.policy = policy;
            (self.on_change)(&state.policy, None);
        }
    }

    fn refuse(&self, state: &mut PolicyState, error: &PolicyError) {
        if let PolicyError::Io { .. } = error {
            // The file was not read, perhaps for lack of descriptors, and will look unchanged: read it again next time.
            state.seen = Stamp::Unsettled;
        }
        let text = error.to_string();
        if state.refused.as_ref() != Some(&text) {
            (self.on_change)(&state.policy, Some(error));
        }
        state.refused = Some(text);
    }
}

fn stamp(path: &Path) -> Stamp {
    let metadata = match std::fs::metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Stamp::Gone,
        Err(_) => return Stamp::Unsettled,
    };
    let age = metadata
        .modified()
        .ok()
        .and_then(|modified| SystemTime::now().duration_since(modified).ok());
    if age.is_none_or(|age| age < UNSETTLED) {
        return Stamp::Unsettled;
    }
    Stamp::There {
        inode: (metadata.dev(), metadata.ino()),
        bytes: metadata.size(),
        modified: (metadata.mtime(), metadata.mtime_nsec()),
        changed: (metadata.ctime(), metadata.ctime_nsec()),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    fn policy(consumer: &str) -> Services {
        serde_json::from_value(serde_json::json!({
            "machine": "vault",
            "services": [{"name": "sign", "tool": "gpg_sign", "consumers": [consumer]}]
        }))
        .unwrap()
    }

    struct Watched {
        watcher: PolicyWatcher,
        path: PathBuf,
        changes: Arc<AtomicUsize>,
        _folder: tempfile::TempDir,
    }

    fn watched(first: Option<&Services>) -> Watched {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("services.json");
        if let Some(services) = first {
            std::fs::write(&path, services.to_file()).unwrap();
        }
        let changes = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&changes);
        let count = move |_: &Policy, _: Option<&PolicyError>| {
            counter.fetch_add(1, Ordering::Relaxed);
        };
        Watched {
            watcher: PolicyWatcher::new(
                &path,
                PolicyWatcher::read(&path).unwrap(),
                Box::new(count),
            ),
            path,
            changes,
            _folder: folder,
        }
    }

    #[test]
    fn every_change_is_seen_at_the_next_look() {
        let watched = watched(Some(&policy("a")));
        let consumers = || {
            let policy = watched.watcher.current();
            let names = policy.services.consumers();
            names.iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        assert_eq!(consumers(), ["a"]);
        for consumer in ["b", "c", "d", "e"] {
            std::fs::write(&watched.path, policy(consumer).to_file()).unwrap();
            assert_eq!(consumers(), [consumer]);
        }
        let beside = watched.path.with_extension("new");
        std::fs::write(&beside, policy("f").to_file()).unwrap();
        std::fs::rename(&beside, &watched.path).unwrap();
        assert_eq!(consumers(), ["f"]);
        std::fs::remove_file(&watched.path).unwrap();
        assert_eq!(consumers(), Vec::<String>::new());
        assert_eq!(watched.changes.load(Ordering::Relaxed), 6);
    }

    #[test]
    fn a_broken_file_leaves_the_last_good_policy_and_says_so_once() {
        let watched = watched(Some(&policy("a")));
        let whole = policy("b").to_file();
        std::fs::write(&watched.path, &whole[..whole.len() / 2]).unwrap();
        for _ in 0..3 {
            assert_eq!(watched.watcher.current().digest, policy("a").digest());
        }
        assert_eq!(watched.changes.load(Ordering::Relaxed), 1);
        assert!(watched.watcher.refused().unwrap().contains("is refused"));
        std::fs::write(&watched.path, whole).unwrap();
        assert_eq!(watched.watcher.current().digest, policy("b").digest());
        assert_eq!(watched.watcher.refused(), None);
    }

    #[test]
    fn no_file_grants_nothing_and_a_broken_one_does_not_start() {
        assert!(watched(None).watcher.current().services.services.is_empty());
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("services.json");
        for broken in [&b"{"[..], b"", b"[]", b"\xff"] {
            std::fs::write(&path, broken).unwrap();
            assert!(PolicyWatcher::read(&path).is_err());
        }
        std::fs::remove_file(&path).unwrap();
        let kind = rustix::fs::FileType::Fifo;
        rustix::fs::mknodat(rustix::fs::CWD, &path, kind, Mode::RUSR | Mode::WUSR, 0).unwrap();
        assert!(PolicyWatcher::read(&path).is_err());
    }
}
