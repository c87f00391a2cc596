//! Determines who can reach or replace the host folders that machines share: host users, and machines that write to an
//! enclosing folder. Follows links and bind mounts, and changes nothing.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Component, Path, PathBuf};

use rustix::fs::StatVfsMountFlags;

use crate::dir::{OTHERS_WRITE, STICKY};
use crate::host::unescaped;
use crate::infra::{Device, Infra, MACHINES_OWN};
use crate::plan::{Reach, shared_sources};

/// Mode bits that let others pass through a folder.
const OTHERS_PASS: u32 = 0o011;
/// Maximum number of symbolic links on the way to one path: as many as the kernel follows.
const LINKS_MAX: usize = 40;

/// Determines who can reach the folders that this infrastructure's machines write to as root.
pub(super) fn reaches(infra: &Infra) -> BTreeMap<String, Reach> {
    let sources = shared_sources(infra).into_iter();
    sources
        .map(|source| (source.to_owned(), reach(Path::new(source))))
        .collect()
}

fn reach(source: &Path) -> Reach {
    let (existing, missing) = existing(source);
    let disk = rustix::fs::statvfs(&existing);
    if disk.is_ok_and(|is| is.f_flag.contains(StatVfsMountFlags::NOSUID)) {
        return Reach::Nobody;
    }
    above(&existing, missing)
}

/// Judges the existing folders above a source, and the number of missing ones.
fn above(existing: &Path, missing: usize) -> Reach {
    // The existing part ends in a folder above the source, or in the source itself.
    let above = existing.ancestors().skip(usize::from(missing == 0));
    let above: Vec<&Path> = above.collect();
    for folder in above.into_iter().rev() {
        let Ok(is) = fs::symlink_metadata(folder) else {
            return Reach::Everybody;
        };
        if is.mode() & OTHERS_PASS == 0 {
            return match is.uid() {
                0 => Reach::Nobody,
                owner => Reach::User(owner),
            };
        }
        if is.mode() & OTHERS_WRITE != 0 && is.mode() & STICKY == 0 {
            return Reach::Replaceable(folder.to_string_lossy().into_owned());
        }
    }
    // If two or more folders are missing, those above the source are created closed.
    if missing > 1 {
        Reach::WhenMade
    } else {
        Reach::Everybody
    }
}

/// The existing part of a path, with its links resolved, and the number of missing folders.
fn existing(path: &Path) -> (PathBuf, usize) {
    for (missing, part) in path.ancestors().enumerate() {
        match fs::canonicalize(part) {
            Ok(part) => return (part, missing),
            Err(why) if why.kind() == io::ErrorKind::NotFound => {}
            // A folder above it is closed to this user.
            Err(_) => return (part.to_owned(), missing),
        }
    }
    (path.to_owned(), 0)
}

/// Returns the device paths that a machine could replace, each with the folder that the machine writes to.
pub(super) fn nested_paths(infra: &Infra) -> BTreeMap<String, String> {
    let profiles = infra.enabled().flat_map(|domain| &domain.profiles);
    let profiles = profiles.flat_map(|(_, profile)| &profile.devices);
    let machines = infra.machines().flat_map(|(_, machine)| &machine.devices);
    let devices: Vec<&Device> = profiles.chain(machines).collect();
    // If the table cannot be read, only paths are compared.
    let table = fs::read("/proc/self/mountinfo").unwrap_or_default();
    nested(&Mounts::read(&table), &devices)
}

fn nested(mounts: &Mounts, devices: &[&Device]) -> BTreeMap<String, String> {
    let written = devices.iter().filter_map(|device| device.written_source());
    let written: BTreeSet<&str> = written.chain(MACHINES_OWN).collect();
    let folders: Vec<(&str, Location)> = written
        .into_iter()
        .filter_map(|folder| Some((folder, mounts.locate(steps(Path::new(folder)).last()?))))
        .collect();
    let paths: BTreeSet<&str> = devices
        .iter()
        .filter_map(|device| device.host_path())
        .map(|(_, path)| path)
        .filter(|path| path.starts_with('/'))
        .collect();
    let inside = |path: &str| {
        steps(Path::new(path)).iter().find_map(|step| {
            let step = mounts.locate(step);
            let around = folders.iter().find(|(_, folder)| folder.holds(&step));
            around.map(|(folder, _)| (*folder).to_owned())
        })
    };
    paths
        .into_iter()
        .filter_map(|path| Some((path.to_owned(), inside(path)?)))
        .collect()
}

/// Resolves a path step by step: returns every link along the way, and finally the target without links.
fn steps(path: &Path) -> Vec<PathBuf> {
    let mut left = names(path);
    let mut at = PathBuf::from("/");
    let mut steps = Vec::new();
    let mut links = 0;
    while let Some(name) = left.pop_front() {
        if name == ".." {
            at.pop();
            continue;
        }
        let next = at.join(&name);
        match fs::read_link(&next) {
            Ok(target) if links < LINKS_MAX => {
                links += 1;
                steps.push(next);
                if target.is_absolute() {
                    at = PathBuf::from("/");
                }
                let mut names = names(&target);
                names.append(&mut left);
                left = names;
            }
            // Not a link, or a missing path.
            _ => at = next,
        }
    }
    steps.push(at);
    steps
}

fn names(path: &Path) -> VecDeque<OsString> {
    let names = path.components().filter_map(|part| match part {
        Component::Normal(name) => Some(name),
        Component::ParentDir => Some(OsStr::new("..")),
        _ => None,
    });
    names.map(OsStr::to_owned).collect()
}

/// The unique location of a path, regardless of the mounts that lead to it: a file system, and a path in it.
#[derive(Debug, PartialEq, Eq)]
struct Location {
    /// The file system's number, as written by the kernel.
    system: String,
    path: PathBuf,
}

impl Location {
    /// Returns whether the other location is below this folder.
    fn holds(&self, other: &Self) -> bool {
        self.system == other.system && self.path != other.path && other.path.starts_with(&self.path)
    }
}

struct Mounts(Vec<Mount>);

struct Mount {
    /// The folder of its file system that is mounted.
    root: Location,
    /// The mount point.
    point: PathBuf,
}

impl Mounts {
    /// Reads the kernel's table (proc_pid_mountinfo(5)).
    fn read(table: &[u8]) -> Self {
        let text = String::from_utf8_lossy(table);
        let mount = |line: &str| {
            let mut fields = line.split(' ').skip(2);
            let root = Location {
                system: fields.next()?.to_owned(),
                path: unescaped(fields.next()?).into(),
            };
            let point = unescaped(fields.next()?).into();
            Some(Mount { root, point })
        };
        Self(text.lines().filter_map(mount).collect())
    }

    /// Locates a path without links.
    fn locate(&self, path: &Path) -> Location {
        let holding = self.0.iter().filter_map(|mount| {
            let below = path.strip_prefix(&mount.point).ok()?;
            Some((mount, below))
        });
        // Of two mounts at the same point, the later hides the other; of two that contain the path, the deeper counts.
        let mount = holding.max_by_key(|(mount, _)| mount.point.components().count());
        let (system, path) = mount.map_or_else(
            || (String::new(), path.to_owned()),
            |(mount, below)| (mount.root.system.clone(), mount.root.path.join(below)),
        );
        Location { system, path }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use super::*;

    #[test]
    fn a_closed_folder_above_keeps_everybody_out_and_that_of_the_folder_itself_does_not() {
        let root = tempfile::tempdir().unwrap();
        let path = |below: &str| root.path().join(below);
        let mode = |below: &str, mode| {
            fs::set_permissions(path(below), fs::Permissions::from_mode(mode)).unwrap();
        };
        fs::create_dir_all(path("open/shut/docs")).unwrap();
        mode("", 0o755);
        mode("open", 0o755);
        mode("open/shut", 0o700);
        mode("open/shut/docs", 0o755);
        // Not `reach`: the tests' own folder may be on a `nosuid` mount.
        let of = |path: PathBuf| {
            let (there, missing) = existing(&path);
            super::above(&there, missing)
        };
        let owner = match fs::metadata(root.path()).unwrap().uid() {
            0 => Reach::Nobody,
            owner => Reach::User(owner),
        };
        assert_eq!(of(path("open/shut/docs")), owner);
        assert_eq!(of(path("open/shut/new")), owner);
        // The machine's root can open the shared folder itself.
        assert_eq!(of(path("open/shut")), Reach::Everybody);
        assert_eq!(of(path("open/new")), Reach::Everybody);
        assert_eq!(of(path("open/new/docs")), Reach::WhenMade);
        // A group may have members.
        mode("open/shut", 0o710);
        assert_eq!(of(path("open/shut/docs")), Reach::Everybody);
        mode("open/shut", 0o700);
        // The location of the folder counts, not that of a link to it.
        symlink(path("open/shut"), path("open/to-shut")).unwrap();
        symlink(path("open"), path("open/shut/to-open")).unwrap();
        assert_eq!(of(path("open/to-shut/docs")), owner);
        assert_eq!(of(path("open/shut/to-open/new")), Reach::Everybody);
        // Anybody may replace the closed folder with another one.
        mode("open", 0o777);
        let replaceable = Reach::Replaceable(path("open").to_string_lossy().into_owned());
        assert_eq!(of(path("open/shut/docs")), replaceable);
        mode("open", 0o1777);
        assert_eq!(of(path("open/shut/docs")), owner);
    }

    fn disk(source: &Path, more: &[(&str, &str)]) -> Device {
        let source = source.to_str().unwrap();
        let mut keys = vec![("type", "disk"), ("source", source)];
        keys.extend(more);
        Device {
            name: "d".to_owned(),
            keys: keys
                .into_iter()
                .map(|(key, value)| (key.to_owned(), value.to_owned()))
                .collect(),
        }
    }

    /// Returns the paths that are found if a machine writes to `outer` and only reads the others.
    fn found(mounts: &Mounts, outer: &Path, others: &[PathBuf]) -> Vec<PathBuf> {
        let outer = disk(outer, &[]);
        let others: Vec<Device> = others
            .iter()
            .map(|path| disk(path, &[("readonly", "true")]))
            .collect();
        let all: Vec<&Device> = std::iter::once(&outer).chain(&others).collect();
        nested(mounts, &all)
            .into_keys()
            .map(PathBuf::from)
            .collect()
    }

    #[test]
    fn what_lies_in_a_written_folder_is_found_through_links() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path().canonicalize().unwrap();
        let path = |below: &str| root.join(below);
        fs::create_dir_all(path("outer/a/inner")).unwrap();
        fs::create_dir_all(path("beside/inner")).unwrap();
        symlink("outer/a", path("to-a")).unwrap();
        symlink(path("outer"), path("to-outer")).unwrap();
        symlink(path("beside"), path("outer/out")).unwrap();
        symlink("outer/out/inner", path("through")).unwrap();
        symlink("loop", path("loop")).unwrap();
        let mounts = Mounts::read(&fs::read("/proc/self/mountinfo").unwrap());
        let of =
            |outer: &str, other: &str| !found(&mounts, &path(outer), &[path(other)]).is_empty();
        for inside in [
            "outer/a/inner",
            "outer/new/folder",
            "to-a/inner",
            "to-a",
            "beside/../outer/a",
            "through",
        ] {
            assert!(of("outer", inside), "{inside}");
            assert!(of("to-outer", inside), "{inside}");
        }
        for outside in [
            "outer",
            "to-outer",
            "beside/inner",
            "outer2",
            "new",
            "loop",
            "outer/../beside",
        ] {
            assert!(!of("outer", outside), "{outside}");
        }
        // A machine writes to its own storage without any device.
        let nobody = found(&mounts, &path("outer"), &["/proc/1/root".into()]);
        assert_eq!(nobody, [PathBuf::from("/proc/1/root")]);
    }

    #[test]
    fn what_lies_in_a_written_folder_is_found_through_bind_mounts() {
        let table = b"1 0 8:1 / / rw - ext4 /dev/sda rw\n\
            2 1 8:2 / /srv rw - ext4 /dev/sdb rw\n\
            3 1 8:2 /x/outer/a /mnt\\040a rw - ext4 /dev/sdb rw\n\
            4 1 8:3 / /other rw - ext4 /dev/sdc rw\n";
        let mounts = Mounts::read(table);
        let of =
            |other: &str| !found(&mounts, Path::new("/srv/x/outer"), &[other.into()]).is_empty();
        assert!(of("/mnt a/inner"));
        assert!(of("/mnt a"));
        assert!(!of("/mnt"));
        assert!(!of("/other/x/outer/a"));
        assert!(!of("/x/outer/a"));
    }
}
