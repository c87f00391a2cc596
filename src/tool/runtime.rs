//! The folder in the user's runtime folder (`XDG_RUNTIME_DIR`) that only this user can read.

use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, fstat};
use rustix::process::geteuid;

use super::ToolError;
use crate::dir::{BENEATH, Dir, OTHERS, READ, is_own, make_all, permit};

/// Returns the runtime folders in which a user's own programs keep their sockets: that of this process, which is a service's
/// own if one was made for it, and the usual one.
pub(super) fn user_folders(runtime: &Path) -> impl Iterator<Item = PathBuf> {
    let own = runtime.parent().map(Path::to_owned);
    let usual = PathBuf::from(format!("/run/user/{}", geteuid()));
    own.into_iter().chain([usual])
}

/// Opens the folder; creates it if it is missing, and denies others access.
///
/// # Errors
///
/// It cannot be created or opened, or belongs to another user.
pub(crate) fn runtime_folder(runtime: &Path) -> Result<Dir, ToolError> {
    let doing = "open anklume's runtime folder (a folder of the user's own under XDG_RUNTIME_DIR)";
    let system = |refused: io::Error| ToolError::system(doing, refused);
    make_all(runtime, Mode::RWXU).map_err(system)?;
    let opened = Dir::open(runtime, READ | OFlags::NOFOLLOW, BENEATH)
        .map_err(|refused| system(refused.into()))?;
    let stat = fstat(&opened).map_err(|refused| system(refused.into()))?;
    if !is_own(&stat) {
        let text = "anklume's runtime folder belongs to another user; remove it";
        return Err(ToolError::Refused(text.to_owned()));
    }
    if stat.st_mode & OTHERS != 0 {
        permit(&opened, Mode::RWXU).map_err(|refused| system(refused.into()))?;
    }
    Ok(opened)
}
