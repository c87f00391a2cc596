//! Which paths of devices lie where a machine may write, as the host has them: links, bind mounts and all. Looks, and changes
//! nothing.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ffi::{OsStr, OsString};
use std::fs;
use std::path::{Component, Path, PathBuf};

use crate::host::mounts::unescaped;
use crate::infra::{Device, Infra, MACHINES_OWN};

/// Symbolic links on the way to one path, at most: as many as the kernel follows.
const LINKS_MAX: usize = 40;

/// The paths of devices that a machine could exchange, each with the folder that it writes.
pub(crate) fn look(infra: &Infra) -> BTreeMap<String, String> {
    let mounts = Mounts::of_this_process();
    let devices: Vec<&Device> = {
        let profiles = infra.enabled().flat_map(|domain| &domain.profiles);
        let profiles = profiles.flat_map(|(_, profile)| &profile.devices);
        let machines = infra.machines().flat_map(|(_, machine)| &machine.devices);
        profiles.chain(machines).collect()
    };
    nested(&mounts, &devices)
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
        .flat_map(|device| device.host_paths())
        .map(|(_, path)| path)
        .filter(|path| path.starts_with('/'))
        .collect();
    let inside = |path: &str| {
        let on_the_way = steps(Path::new(path));
        on_the_way.iter().find_map(|step| {
            let there = mounts.locate(step);
            let around = folders.iter().find(|(_, folder)| folder.holds(&there));
            around.map(|(folder, _)| (*folder).to_owned())
        })
    };
    paths
        .into_iter()
        .filter_map(|path| Some((path.to_owned(), inside(path)?)))
        .collect()
}

/// Resolves a path step by step: every link on the way, and last the target without links.
fn steps(path: &Path) -> Vec<PathBuf> {
    let mut left: VecDeque<OsString> = names(path);
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
                for name in names(&target).into_iter().rev() {
                    left.push_front(name);
                }
            }
            // No link, or nothing there yet.
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

/// Where something is, in a way in which it is in one place alone: a file system, and a path in it.
#[derive(Debug, PartialEq, Eq)]
struct Location {
    /// The number of its file system, as the kernel writes it.
    system: String,
    path: PathBuf,
}

impl Location {
    /// Returns whether the other one is below this folder.
    fn holds(&self, other: &Self) -> bool {
        self.system == other.system && self.path != other.path && other.path.starts_with(&self.path)
    }
}

/// The mounts.
#[derive(Debug)]
struct Mounts(Vec<Mount>);

#[derive(Debug)]
struct Mount {
    system: String,
    /// The folder of the file system that it shows.
    root: PathBuf,
    place: PathBuf,
}

impl Mounts {
    fn of_this_process() -> Self {
        // Where it cannot be read, paths alone are compared.
        Self::read(&fs::read("/proc/self/mountinfo").unwrap_or_default())
    }

    /// Reads the kernel's table (proc_pid_mountinfo(5)).
    fn read(table: &[u8]) -> Self {
        let text = String::from_utf8_lossy(table);
        let mount = |line: &str| {
            let mut fields = line.split(' ').skip(2);
            Some(Mount {
                system: fields.next()?.to_owned(),
                root: unescaped(fields.next()?).into(),
                place: unescaped(fields.next()?).into(),
            })
        };
        Self(text.lines().filter_map(mount).collect())
    }

    /// Locates a path without links.
    fn locate(&self, path: &Path) -> Location {
        let holding = self.0.iter().filter(|mount| path.starts_with(&mount.place));
        // Of two at one place, the later one hides the other; of two that hold it, the deeper one is it.
        let mount = holding.max_by_key(|mount| mount.place.components().count());
        mount.map_or_else(
            || Location {
                system: String::new(),
                path: path.to_owned(),
            },
            |mount| {
                let below = path.strip_prefix(&mount.place).unwrap_or(path);
                Location {
                    system: mount.system.clone(),
                    path: mount.root.join(below),
                }
            },
        )
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

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

    /// The paths that are found, with `outer` written by a machine, and the others read.
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
        let mounts = Mounts::of_this_process();
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
        // A machine's own storage is written without any device.
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
