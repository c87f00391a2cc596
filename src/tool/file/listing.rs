//! Lists a folder of the portal for `file_provide`.

use std::collections::BTreeMap;

use rustix::fs::{AtFlags, Dir, FileType, statat};
use rustix::io::Errno;

use super::partial::is_reserved;
use super::portal::Portal;
use crate::catalogue::{BadArguments, PortalPath, Provided, WHOLE_PORTAL};
use crate::policy::Caller;
use crate::tool::{Settings, ToolError, ToolOutcome};

/// Maximum number of entries in one answer.
pub(super) const ANSWER_MAX: usize = 1000;
/// Maximum number of entries in a folder that is listed: more would not fit into the memory of a caller.
const FOLDER_MAX: usize = 10_000;

/// The entries of a folder, in the order of their names.
#[derive(Debug, Default)]
struct Listing {
    /// True for a folder.
    entries: BTreeMap<String, bool>,
    left_out: u64,
}

/// Lists the folder, or the folders, to which a path may refer, from the entry `offset` on.
pub(super) fn list(
    settings: &Settings,
    requested: Option<&PortalPath>,
    caller: &Caller,
    offset: u64,
) -> Result<ToolOutcome, ToolError> {
    let portal = Portal::open(settings)?;
    let below = requested.map_or_else(String::new, |path| format!("/{}", path.as_str()));
    let folders = match caller {
        Caller::Operator => vec![format!(".{below}")],
        Caller::Consumer(name) => vec![
            format!("outgoing/{name}{below}"),
            format!("outgoing/all{below}"),
        ],
    };
    let shown = requested.map_or_else(|| WHOLE_PORTAL.to_owned(), ToString::to_string);
    let mut listing = Listing::default();
    let mut found = requested.is_none();
    for folder in &folders {
        found |= listing.add(&portal, folder, &shown)?;
    }
    if !found {
        return Err(ToolError::NotFound { path: shown });
    }
    listing.answer(offset, shown)
}

impl Listing {
    /// Adds the entries of a folder, except those whose names an earlier folder has; returns false if it does not exist.
    fn add(&mut self, portal: &Portal, folder: &str, shown: &str) -> Result<bool, ToolError> {
        let failed = |refused| match refused {
            Errno::NOTDIR => ToolError::Refused(format!("`{shown}` is not a folder")),
            Errno::LOOP => ToolError::Refused(format!(
                "`{shown}` leads through a symbolic link, which is not followed"
            )),
            refused => ToolError::system(format!("list `{shown}`"), refused),
        };
        let Some(opened) = portal.open_folder(folder).map_err(failed)? else {
            return Ok(false);
        };
        let mut entries = Dir::new(opened).map_err(failed)?;
        while let Some(entry) = entries.read() {
            let entry = entry.map_err(failed)?;
            let name = entry.file_name();
            if matches!(name.to_bytes(), b"." | b"..") {
                continue;
            }
            let folder = entries.fd().map_err(failed)?;
            let stat = match statat(folder, name, AtFlags::SYMLINK_NOFOLLOW) {
                // Removed meanwhile.
                Err(Errno::NOENT) => continue,
                stat => stat.map_err(failed)?,
            };
            let is_folder = match FileType::from_raw_mode(stat.st_mode) {
                FileType::Directory => Some(true),
                FileType::RegularFile if stat.st_nlink <= 1 => Some(false),
                _ => None,
            };
            match (name.to_str(), is_folder) {
                (Ok(name), _) if is_reserved(name) => {}
                (Ok(name), Some(is_folder)) if PortalPath::new(name).is_ok() => {
                    self.entries.entry(name.to_owned()).or_insert(is_folder);
                }
                _ => self.left_out += 1,
            }
            if self.entries.len() > FOLDER_MAX {
                return Err(ToolError::TooLarge(format!(
                    "`{shown}` has more than {FOLDER_MAX} entries; name the files"
                )));
            }
        }
        Ok(true)
    }

    fn answer(self, offset: u64, path: String) -> Result<ToolOutcome, ToolError> {
        let size = u64::try_from(self.entries.len()).unwrap_or(u64::MAX);
        let Some(rest) = size.checked_sub(offset) else {
            let message = format!("`offset` is {offset}, and `{path}` has {size} entries");
            return Err(BadArguments::from(message).into());
        };
        let skipped = usize::try_from(offset).unwrap_or(usize::MAX);
        let entries: Vec<String> = self
            .entries
            .into_iter()
            .skip(skipped)
            .take(ANSWER_MAX)
            .map(|(name, is_folder)| if is_folder { name + "/" } else { name })
            .collect();
        let length = u64::try_from(entries.len()).unwrap_or(u64::MAX);
        let text = entries
            .iter()
            .fold(String::new(), |text, entry| text + entry + "\n");
        let provided = Provided {
            path,
            size,
            offset,
            length,
            complete: length == rest,
            entries: Some(entries),
            left_out: Some(self.left_out),
            ..Provided::default()
        };
        ToolOutcome::new(text, &provided)
    }
}
