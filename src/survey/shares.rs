//! Reads which users of the host can reach the folders that machines write as root. Changes nothing.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::StatVfsMountFlags;

use crate::infra::Infra;
use crate::plan::{Reach, shared_sources};

/// Mode bits that let others pass through a folder.
const OTHERS_PASS: u32 = 0o011;
/// Mode bits that let others create and rename entries of a folder.
const OTHERS_WRITE: u32 = 0o022;
/// What is in a folder may be renamed by its owner alone.
const STICKY: u32 = 0o1000;

/// Reads who can reach the folders that machines of this infrastructure write.
pub(crate) fn look(infra: &Infra) -> BTreeMap<String, Reach> {
    let sources = shared_sources(infra).into_iter();
    sources
        .map(|source| (source.to_owned(), reach(Path::new(source))))
        .collect()
}

fn reach(source: &Path) -> Reach {
    let (there, missing) = existing(source);
    if rustix::fs::statvfs(&there).is_ok_and(|is| is.f_flag.contains(StatVfsMountFlags::NOSUID)) {
        return Reach::Nobody;
    }
    above(&there, missing)
}

/// What the folders above say, of which the last `missing` are still to be made.
fn above(there: &Path, missing: usize) -> Reach {
    // What is there is a folder above the source, or the source itself.
    let above = there.ancestors().skip(usize::from(missing == 0));
    let mut above: Vec<&Path> = above.collect();
    above.reverse();
    for folder in above {
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
    // Of two or more folders that are to be made, those above the source are made closed.
    if missing > 1 {
        Reach::WhenMade
    } else {
        Reach::Everybody
    }
}

/// The part of a path that is there, without its links, and how many folders are not.
fn existing(path: &Path) -> (PathBuf, usize) {
    for (missing, part) in path.ancestors().enumerate() {
        match fs::canonicalize(part) {
            Ok(there) => return (there, missing),
            Err(why) if why.kind() == io::ErrorKind::NotFound => {}
            // Whoever may not look is kept out by a folder above.
            Err(_) => return (part.to_owned(), missing),
        }
    }
    (path.to_owned(), 0)
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
        // Where the tests' own folder is mounted is another matter.
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
        // The machine's root can open it itself.
        assert_eq!(of(path("open/shut")), Reach::Everybody);
        assert_eq!(of(path("open/new")), Reach::Everybody);
        assert_eq!(of(path("open/new/docs")), Reach::WhenMade);
        // A group may have members.
        mode("open/shut", 0o710);
        assert_eq!(of(path("open/shut/docs")), Reach::Everybody);
        mode("open/shut", 0o700);
        // Where it is counts, not where a link to it is.
        symlink(path("open/shut"), path("open/to-shut")).unwrap();
        symlink(path("open"), path("open/shut/to-open")).unwrap();
        assert_eq!(of(path("open/to-shut/docs")), owner);
        assert_eq!(of(path("open/shut/to-open/new")), Reach::Everybody);
        // A closed folder that anybody may put another one in the place of.
        mode("open", 0o777);
        let replaceable = Reach::Replaceable(path("open").to_string_lossy().into_owned());
        assert_eq!(of(path("open/shut/docs")), replaceable);
        mode("open", 0o1777);
        assert_eq!(of(path("open/shut/docs")), owner);
    }
}
