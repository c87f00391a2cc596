//! Owner and rights of what anklume puts into a machine, and of the folders above it.

use serde::{Deserialize, Serialize};

use super::{ETC, IDENTITY, PROGRAM, PROGRAM_FOLDER, SERVICES};
use crate::edge::CONSUMER_FOLDER;

/// Folders of ours in a machine: root's, and [`FOLDER_MODE`].
pub const FOLDERS: [&str; 4] = [PROGRAM_FOLDER, ETC, "/srv/anklume", CONSUMER_FOLDER];
/// Rights of a folder of ours: anybody may look into it.
pub const FOLDER_MODE: u32 = 0o755;
/// Rights of the program: anybody may run it.
pub const PROGRAM_MODE: u32 = 0o755;
/// Rights of a file of ours: anybody may read it.
pub const FILE_MODE: u32 = 0o644;
/// Folders above ours: the machine's, whose rights are left alone unless they keep the caller out.
pub const ABOVE: [&str; 3] = ["/opt", "/etc", "/srv"];
/// What is added to the rights of a folder above that keeps somebody out: to pass, and not to read.
pub const PASS: u32 = 0o111;

/// Every file and folder of ours, with its rights.
pub fn ours() -> impl Iterator<Item = (&'static str, u32)> {
    let files = [
        (PROGRAM, PROGRAM_MODE),
        (IDENTITY, FILE_MODE),
        (SERVICES, FILE_MODE),
    ];
    let folders = FOLDERS.into_iter().map(|folder| (folder, FOLDER_MODE));
    folders.chain(files)
}

/// Owner and mode of something in a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rights {
    /// The user whose it is.
    pub uid: u32,
    /// Its group.
    pub gid: u32,
    /// The rights, such as `0o755`.
    pub mode: u32,
}

impl Rights {
    /// Returns whether it is root's with these rights.
    #[must_use]
    pub const fn are_as_made(self, mode: u32) -> bool {
        self.uid == 0 && self.gid == 0 && self.mode == mode
    }

    /// Returns whether somebody else than root may change what is in it.
    #[must_use]
    pub const fn let_others_write(self) -> bool {
        self.uid != 0 || self.mode & 0o022 != 0
    }
}

/// A user of a machine, with one group and no other, as calls are made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CallerUser {
    /// User number.
    pub uid: u32,
    /// Group number.
    pub gid: u32,
}

impl CallerUser {
    /// Returns whether a folder with these rights lets the user through.
    #[must_use]
    pub const fn passes(self, folder: Rights) -> bool {
        let bit = if self.uid == folder.uid {
            0o100
        } else if self.gid == folder.gid {
            0o010
        } else {
            0o001
        };
        self.uid == 0 || folder.mode & bit != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_lets_through_whom_its_rights_name() {
        let folder = |uid, gid, mode| Rights { uid, gid, mode };
        let dev = CallerUser {
            uid: 1000,
            gid: 100,
        };
        let cases = [
            (folder(0, 0, 0o755), true),
            (folder(0, 0, 0o711), true),
            (folder(0, 0, 0o750), false),
            (folder(0, 100, 0o750), true),
            (folder(0, 100, 0o701), false),
            (folder(1000, 0, 0o700), true),
            (folder(1000, 100, 0o077), false),
        ];
        for (folder, passes) in cases {
            assert_eq!(dev.passes(folder), passes, "{folder:?}");
            assert!(CallerUser::default().passes(folder));
            let opened = Rights {
                mode: folder.mode | PASS,
                ..folder
            };
            assert!(dev.passes(opened));
        }
    }
}
