//! Keeps the clipboard of a machine without a display in a file that only the user can read.

use std::fs::File;
use std::io::{self, Write as _};
use std::path::Path;

use rustix::fs::Mode;

use super::{CLIPBOARD_MAX, not_text, too_large};
use crate::dir::{NotRead, RegularFile, is_own, permit};
use crate::tool::{BlockingStop, ToolError, runtime_folder};

/// Name of the file in the runtime folder.
const NAME: &str = "clipboard";
/// Limit in bytes, for comparison with file sizes.
const MAX: u64 = CLIPBOARD_MAX as u64;

/// Reads the clipboard; returns an empty string if no text was set.
pub(in crate::tool) fn read(runtime: &Path) -> Result<String, ToolError> {
    let folder = runtime_folder(runtime)?;
    let bytes = match folder.regular(NAME) {
        Ok(Some(file)) => contents(file)?,
        Ok(None) => return Ok(String::new()),
        Err(NotRead::Link) => return Err(not_trusted("is a symbolic link")),
        Err(NotRead::NotRegular) => return Err(not_trusted("is not a regular file")),
        Err(NotRead::System(refused)) => {
            return Err(ToolError::system("open the clipboard's file", refused));
        }
    };
    String::from_utf8(bytes).map_err(|_| not_text())
}

/// Returns the content of the file, provided that the file belongs to this user alone.
fn contents(regular: RegularFile) -> Result<Vec<u8>, ToolError> {
    let system = |refused: io::Error| ToolError::system("read the clipboard's file", refused);
    let stat = &regular.stat;
    if !is_own(stat) {
        return Err(not_trusted("belongs to another user"));
    }
    // A file without a name is fine: another call has replaced it since it was opened.
    if stat.st_nlink > 1 {
        return Err(not_trusted("has a second name"));
    }
    permit(&regular.file, Mode::RUSR | Mode::WUSR).map_err(|refused| system(refused.into()))?;
    let size = u64::try_from(stat.st_size).unwrap_or(u64::MAX);
    if size > MAX {
        return Err(too_large(size));
    }
    regular.read(MAX).map_err(|refused| match refused.kind() {
        io::ErrorKind::FileTooLarge => too_large(MAX.saturating_add(1)),
        _ => system(refused),
    })
}

/// Replaces the clipboard's content, completely or not at all.
pub(super) fn write(runtime: &Path, content: &str, stop: &BlockingStop) -> Result<(), ToolError> {
    replace(runtime, NAME, content, stop)
}

/// Replaces a file of the runtime folder, completely or not at all.
pub(super) fn replace(
    runtime: &Path,
    target: &str,
    content: &str,
    stop: &BlockingStop,
) -> Result<(), ToolError> {
    let folder = runtime_folder(runtime)?;
    let name = |count| format!(".{NAME}-{}-{count}", std::process::id());
    let (name, file) = folder
        .create_unused(name, Mode::RUSR | Mode::WUSR)
        .map_err(|refused| ToolError::system("write the clipboard's file", refused))?;
    let replaced = fill(file, content)
        .and_then(|()| stop.check())
        .and_then(|()| {
            folder
                .rename(&name, target)
                .map_err(|refused| ToolError::system("replace the clipboard's file", refused))
        });
    if replaced.is_err() {
        // Only the first error matters.
        let _ = folder.remove(&name);
    }
    replaced
}

fn fill(mut file: File, content: &str) -> Result<(), ToolError> {
    let system = |refused: io::Error| ToolError::system("write the clipboard's file", refused);
    // Restores the bits that the umask removed.
    permit(&file, Mode::RUSR | Mode::WUSR).map_err(|refused| system(refused.into()))?;
    file.write_all(content.as_bytes()).map_err(system)
}

fn not_trusted(what: &str) -> ToolError {
    ToolError::Refused(format!(
        "the clipboard's file {what}, and is not read; remove it on the provider, or set the clipboard again"
    ))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt as _, symlink};
    use std::path::PathBuf;

    use rustix::fs::fstat;

    use super::*;

    fn runtime() -> (tempfile::TempDir, PathBuf) {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("run/anklume");
        (root, folder)
    }

    fn mode(path: &Path) -> u32 {
        fs::symlink_metadata(path).unwrap().permissions().mode() & 0o7777
    }

    fn set(folder: &Path, content: &str) {
        write(folder, content, &BlockingStop::default()).unwrap();
    }

    fn entries(folder: &Path) -> usize {
        fs::read_dir(folder).unwrap().count()
    }

    #[test]
    fn nothing_set_is_an_empty_text() {
        let (_root, folder) = runtime();
        assert_eq!(read(&folder).unwrap(), "");
    }

    #[test]
    fn bytes_come_back_as_they_went() {
        let (_root, folder) = runtime();
        for text in [
            "bonjour",
            "",
            "a\r\nb\rc\nd\n",
            "héllo \u{1f600} \0 \u{1b}[31m",
            "\u{feff}x",
        ] {
            set(&folder, text);
            assert_eq!(read(&folder).unwrap(), text);
        }
        assert_eq!(entries(&folder), 1);
    }

    #[test]
    fn a_short_text_after_a_long_one_is_the_short_one() {
        let (_root, folder) = runtime();
        set(&folder, &"x".repeat(CLIPBOARD_MAX));
        assert_eq!(read(&folder).unwrap().len(), CLIPBOARD_MAX);
        set(&folder, "short");
        assert_eq!(read(&folder).unwrap(), "short");
    }

    #[test]
    fn the_file_and_its_folder_are_closed_to_others() {
        let (_root, folder) = runtime();
        set(&folder, "x");
        assert_eq!((mode(&folder), mode(&folder.join(NAME))), (0o700, 0o600));
    }

    #[test]
    fn lax_modes_of_before_are_tightened() {
        let (_root, folder) = runtime();
        set(&folder, "x");
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o755)).unwrap();
        fs::set_permissions(folder.join(NAME), fs::Permissions::from_mode(0o644)).unwrap();
        assert_eq!(read(&folder).unwrap(), "x");
        assert_eq!((mode(&folder), mode(&folder.join(NAME))), (0o700, 0o600));
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o777)).unwrap();
        fs::set_permissions(folder.join(NAME), fs::Permissions::from_mode(0o666)).unwrap();
        set(&folder, "y");
        assert_eq!((mode(&folder), mode(&folder.join(NAME))), (0o700, 0o600));
    }

    #[test]
    fn a_link_is_neither_read_nor_written_through() {
        let (root, folder) = runtime();
        set(&folder, "x");
        let victim = root.path().join("victim");
        fs::write(&victim, "precious").unwrap();
        fs::remove_file(folder.join(NAME)).unwrap();
        symlink(&victim, folder.join(NAME)).unwrap();
        let refused = read(&folder).unwrap_err().to_string();
        assert!(
            refused.starts_with("the clipboard's file is a symbolic link"),
            "{refused}"
        );
        set(&folder, "mine");
        assert_eq!(fs::read(&victim).unwrap(), b"precious");
        assert_eq!(read(&folder).unwrap(), "mine");
    }

    #[test]
    fn a_folder_that_is_a_link_is_refused() {
        let (root, folder) = runtime();
        let elsewhere = root.path().join("elsewhere");
        fs::create_dir_all(folder.parent().unwrap()).unwrap();
        fs::create_dir(&elsewhere).unwrap();
        symlink(&elsewhere, &folder).unwrap();
        assert!(write(&folder, "x", &BlockingStop::default()).is_err());
        assert!(read(&folder).is_err());
        assert_eq!(entries(&elsewhere), 0);
    }

    #[test]
    fn what_is_set_anew_while_it_is_read_is_read_as_it_was() {
        let (_root, folder) = runtime();
        set(&folder, "before");
        let open = fs::File::open(folder.join(NAME)).unwrap();
        set(&folder, "after");
        let open = RegularFile {
            stat: fstat(&open).unwrap(),
            file: open,
        };
        assert_eq!(contents(open).unwrap(), b"before");
    }

    #[test]
    fn what_is_no_file_of_ours_is_not_read() {
        let (root, folder) = runtime();
        set(&folder, "x");
        let own = root.path().join("key");
        fs::write(&own, "private").unwrap();
        fs::remove_file(folder.join(NAME)).unwrap();
        fs::hard_link(&own, folder.join(NAME)).unwrap();
        assert!(
            read(&folder)
                .unwrap_err()
                .to_string()
                .contains("has a second name")
        );
        fs::remove_file(folder.join(NAME)).unwrap();
        rustix::fs::mkfifoat(rustix::fs::CWD, folder.join(NAME), Mode::RWXU).unwrap();
        assert!(
            read(&folder)
                .unwrap_err()
                .to_string()
                .contains("is not a regular file")
        );
        if crate::tool::testing::is_root() {
            fs::remove_file(folder.join(NAME)).unwrap();
            set(&folder, "x");
            std::os::unix::fs::chown(folder.join(NAME), Some(12_345), None).unwrap();
            assert!(
                read(&folder)
                    .unwrap_err()
                    .to_string()
                    .contains("belongs to another user")
            );
            std::os::unix::fs::chown(&folder, Some(12_345), None).unwrap();
            assert!(
                read(&folder)
                    .unwrap_err()
                    .to_string()
                    .contains("belongs to another user")
            );
            assert!(write(&folder, "y", &BlockingStop::default()).is_err());
        }
    }

    #[test]
    fn a_directory_in_the_way_is_an_error_that_leaves_nothing_behind() {
        let (_root, folder) = runtime();
        set(&folder, "x");
        fs::remove_file(folder.join(NAME)).unwrap();
        fs::create_dir(folder.join(NAME)).unwrap();
        let refused = write(&folder, "y", &BlockingStop::default())
            .unwrap_err()
            .to_string();
        assert!(
            refused.starts_with("cannot replace the clipboard's file: "),
            "{refused}"
        );
        assert_eq!(entries(&folder), 1);
    }

    #[test]
    fn what_is_too_long_or_no_text_is_an_error_with_its_size() {
        let (_root, folder) = runtime();
        set(&folder, "x");
        fs::write(folder.join(NAME), vec![b'x'; CLIPBOARD_MAX + 1]).unwrap();
        assert_eq!(
            read(&folder).unwrap_err().to_string(),
            "the clipboard holds 65537 bytes; at most 65536 can be returned"
        );
        fs::write(folder.join(NAME), b"\xff\xfe").unwrap();
        assert_eq!(
            read(&folder).unwrap_err().to_string(),
            "the clipboard's content is not UTF-8 text"
        );
    }

    #[test]
    fn errors_name_no_path_of_the_server() {
        let (root, _) = runtime();
        fs::write(root.path().join("file"), "").unwrap();
        let folder = root.path().join("file/anklume");
        let said = format!(
            "{} {}",
            read(&folder).unwrap_err(),
            write(&folder, "x", &BlockingStop::default()).unwrap_err()
        );
        assert!(!said.contains(root.path().to_str().unwrap()), "{said}");
    }
}
