//! Stores the last line of each provider's audit log on the host: one file per machine, accessible only to root.
//!
//! [`super::audit_checkpoint`] decides whether a log still contains that line.

use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, OFlags, RenameFlags, fstat, renameat_with};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::dir::{BENEATH, Dir, OTHERS, READ};
use crate::incus::Object;
use crate::incus::state::Instance;
use crate::infra::Infra;
use crate::plan::{is_marked, is_rebuilt, number};

/// The checkpoint folder.
const FOLDER: &str = "/var/lib/anklume/audit";
/// Permissions of the folder.
const FOLDER_MODE: u32 = 0o700;
/// Permissions of the files.
const FILE_MODE: u32 = 0o600;
/// Suffix of the file names, after the machine's UUID.
const SUFFIX: &str = ".json";

/// The last line that was seen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Checkpoint {
    pub(crate) project: String,
    pub(crate) machine: String,
    pub(crate) seq: u64,
    pub(crate) head: String,
    /// Number of files in the log.
    #[serde(default)]
    pub(crate) files: u32,
    /// True if the machine had the mark that it loses in a rebuild.
    #[serde(default)]
    pub(crate) marked: bool,
    /// True if the machine has been rebuilt since.
    #[serde(default)]
    pub(crate) rebuilt: bool,
}

impl Checkpoint {
    /// Returns whether the machine has been rebuilt since this line was seen.
    pub(crate) fn is_rebuilt(&self, now: &Instance) -> bool {
        self.rebuilt || self.marked && is_rebuilt(&now.config)
    }
}

/// The folder with the checkpoints of all machines.
#[derive(Debug)]
pub(crate) struct CheckpointStore(PathBuf);

impl CheckpointStore {
    /// Returns the host's store.
    pub(crate) fn of_host() -> Self {
        Self(FOLDER.into())
    }

    /// Returns the path of a machine's checkpoint; `None` if its UUID is not a valid file name.
    pub(crate) fn path(&self, machine: &Instance) -> Option<PathBuf> {
        let uuid = number(&machine.config).filter(|uuid| is_name(uuid))?;
        Some(self.0.join(format!("{uuid}{SUFFIX}")))
    }

    /// Reads the checkpoint of a machine.
    pub(crate) fn read(path: &Path) -> io::Result<Option<Checkpoint>> {
        match fs::read(path) {
            Ok(text) => Ok(Some(serde_json::from_slice(&text)?)),
            Err(why) if why.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(why) => Err(why),
        }
    }

    /// Writes a checkpoint, whole or not at all, accessible only to root.
    pub(crate) fn write(&self, path: &Path, kept: &Checkpoint) -> io::Result<()> {
        match fs::DirBuilder::new().mode(FOLDER_MODE).create(&self.0) {
            Err(why) if why.kind() != io::ErrorKind::AlreadyExists => return Err(why),
            _ => {}
        }
        let not_alone = || {
            let folder = self.0.display();
            io::Error::other(format!("`{folder}` is not private to root"))
        };
        let folder = match Dir::open(&self.0, READ | OFlags::NOFOLLOW, BENEATH) {
            Err(Errno::NOTDIR | Errno::LOOP) => return Err(not_alone()),
            folder => folder?,
        };
        let stat = fstat(&folder)?;
        if stat.st_uid != 0 || stat.st_mode & OTHERS != 0 {
            return Err(not_alone());
        }
        let name = path.file_name().and_then(|name| name.to_str());
        let name = name.ok_or(io::ErrorKind::InvalidInput)?;
        let temporary = format!(".{name}.{}", std::process::id());
        folder.replace(name, &temporary, FILE_MODE, |file| {
            Ok(serde_json::to_writer(file, kept)?)
        })
    }

    /// Adds this time to a checkpoint's name, because the machine's log starts over; returns the new path.
    pub(crate) fn put_aside(path: &Path, time: jiff::Timestamp) -> io::Result<PathBuf> {
        let time = time.strftime("%Y%m%dT%H%M%SZ");
        let aside = path.with_extension(format!("{time}{SUFFIX}"));
        renameat_with(CWD, path, CWD, &aside, RenameFlags::NOREPLACE)?;
        Ok(aside)
    }

    /// Records the machines that were rebuilt, before they are marked again.
    pub(crate) fn remember_rebuilt(&self, instances: &[Instance]) {
        for machine in instances.iter().filter(|one| !is_marked(&one.config)) {
            let path = self.path(machine);
            let kept = path.and_then(|path| Some((Self::read(&path).ok()??, path)));
            let Some((kept, path)) = kept.filter(|(kept, _)| kept.is_rebuilt(machine)) else {
                continue;
            };
            let rebuilt = Checkpoint {
                rebuilt: true,
                ..kept
            };
            // If this fails, the next check reports a truncated log.
            let _ = self.write(&path, &rebuilt);
        }
    }

    /// Removes the checkpoints of deleted machines.
    pub(crate) fn forget_deleted(&self, deleted: &[&Object]) {
        self.forget_if(|_, kept| deleted.contains(&&Object::machine(&kept.project, &kept.machine)));
    }

    /// Removes the checkpoints of machines in these domains that no longer exist.
    pub(crate) fn forget(&self, infra: &Infra, instances: &[Instance]) {
        self.forget_if(|uuid, kept| {
            let is_it = |one: &Instance| number(&one.config).is_some_and(|it| it == uuid);
            let mut domains = infra.enabled();
            domains.any(|one| one.name.as_str() == kept.project) && !instances.iter().any(is_it)
        });
    }

    /// Removes the checkpoints for which `goes` returns true, including those that were put aside.
    fn forget_if(&self, goes: impl Fn(&str, &Checkpoint) -> bool) {
        let Ok(entries) = fs::read_dir(&self.0) else {
            return;
        };
        for entry in entries.filter_map(Result::ok) {
            let name = entry.file_name().to_string_lossy().into_owned();
            let uuid = name
                .strip_suffix(SUFFIX)
                .and_then(|name| name.split('.').next());
            let uuid = uuid.filter(|uuid| is_name(uuid));
            let kept = uuid.and_then(|uuid| Some((uuid, Self::read(&entry.path()).ok()??)));
            if kept.is_some_and(|(uuid, kept)| goes(uuid, &kept)) {
                // The next run tries again.
                let _ = fs::remove_file(entry.path());
            }
        }
    }
}

/// Returns whether a machine's UUID is a valid file name.
fn is_name(uuid: &str) -> bool {
    !uuid.is_empty()
        && uuid
            .bytes()
            .all(|byte| byte.is_ascii_hexdigit() || byte == b'-')
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::incus::ConfigMap;

    const NUMBER: &str = "0d1c6a2e-55f3-4d0f-a0c4-7a0a5a0f8f5e";

    /// Returns a machine with this number and these other keys.
    fn machine(number: &str, keys: &[(&str, &str)]) -> Instance {
        let own = [
            ("volatile.uuid", number),
            ("volatile.uuid.generation", number),
        ];
        let all = own.iter().chain(keys);
        let config: ConfigMap = all
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
            .collect();
        Instance {
            name: "signer".to_owned(),
            project: "vault".to_owned(),
            config,
            ..Instance::default()
        }
    }

    fn kept(marked: bool) -> Checkpoint {
        Checkpoint {
            project: "vault".to_owned(),
            machine: "signer".to_owned(),
            seq: 7,
            head: "ab".to_owned(),
            files: 0,
            marked,
            rebuilt: false,
        }
    }

    #[test]
    fn only_a_machine_s_number_names_a_file() {
        assert!(is_name(NUMBER));
        assert!(!is_name("") && !is_name("../x") && !is_name("a/b"));
    }

    #[test]
    fn a_machine_that_lost_its_mark_was_built_anew_unless_a_snapshot_took_it() {
        let mark = ("image.anklume", "true");
        let restored = ("volatile.uuid.generation", "1d1c6a2e");
        assert!(kept(true).is_rebuilt(&machine(NUMBER, &[])));
        assert!(!kept(true).is_rebuilt(&machine(NUMBER, &[mark])));
        assert!(!kept(true).is_rebuilt(&machine(NUMBER, &[restored])));
        // This machine never had the mark.
        assert!(!kept(false).is_rebuilt(&machine(NUMBER, &[])));
        // A rebuild that was seen is not forgotten when the mark is set again.
        let seen = Checkpoint {
            rebuilt: true,
            ..kept(true)
        };
        assert!(seen.is_rebuilt(&machine(NUMBER, &[mark])));
        // A file from an earlier version.
        let old = r#"{"project":"vault","machine":"signer","seq":7,"head":"ab"}"#;
        assert_eq!(
            serde_json::from_str::<Checkpoint>(old).unwrap(),
            kept(false)
        );
    }

    #[test]
    fn what_is_put_aside_stays_as_long_as_its_machine() {
        let folder = tempfile::tempdir().unwrap();
        let shelf = CheckpointStore(folder.path().to_owned());
        let path = shelf.path(&machine(NUMBER, &[])).unwrap();
        let write = || fs::write(&path, serde_json::to_vec(&kept(true)).unwrap()).unwrap();
        write();
        let time: jiff::Timestamp = "2026-01-02T03:04:05Z".parse().unwrap();
        let aside = CheckpointStore::put_aside(&path, time).unwrap();
        let name = format!("{NUMBER}.20260102T030405Z.json");
        assert_eq!(aside, folder.path().join(name));
        assert_eq!(CheckpointStore::read(&path).unwrap(), None);
        // A file that was put aside is never overwritten.
        write();
        assert!(CheckpointStore::put_aside(&path, time).is_err());
        shelf.forget_deleted(&[&Object::machine("vault", "other")]);
        assert!(path.exists() && aside.exists());
        shelf.forget_deleted(&[&Object::machine("vault", "signer")]);
        assert!(!path.exists() && !aside.exists());
    }
}
