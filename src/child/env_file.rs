//! Reads a program's environment from a file of the machine, which may hold secrets.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::Path;

use rustix::fs::{FileType, Mode, OFlags, fstat, open};
use rustix::process::geteuid;

use crate::dir::{OTHERS, RIGHTS};

/// Maximum length of the file, in bytes.
const FILE_MAX: u64 = 64 * 1024;

/// The reason why an environment file is refused. No message quotes the file.
#[derive(Debug, thiserror::Error)]
pub(crate) enum EnvFileError {
    #[error("`{path}` cannot be read: {source}")]
    Unreadable { path: String, source: io::Error },
    #[error("`{0}` is not a regular file")]
    NotAFile(String),
    #[error("`{path}` belongs to the user {uid}; run `chown root:root {path}`")]
    Owner { path: String, uid: u32 },
    #[error("others may use `{path}` (mode {mode:04o}); run `chmod 0600 {path}`")]
    Mode { path: String, mode: u32 },
    #[error("`{0}` has more than {FILE_MAX} bytes")]
    TooLarge(String),
    #[error("line {line} of `{path}` is not `NAME=value`")]
    Line { path: String, line: usize },
}

/// Reads the variables in a file, in its order: lines of `NAME=value`, where quotes around the value are dropped, empty
/// lines, and comments, which begin with `#`.
pub(super) fn read(path: &str) -> Result<Vec<(String, String)>, EnvFileError> {
    let unreadable = |source: io::Error| EnvFileError::Unreadable {
        path: path.to_owned(),
        source,
    };
    // Does not wait for the writer of a named pipe.
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let file = open(Path::new(path), flags, Mode::empty()).map_err(|why| unreadable(why.into()))?;
    let stat = fstat(&file).map_err(|why| unreadable(why.into()))?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(EnvFileError::NotAFile(path.to_owned()));
    }
    if stat.st_uid != 0 && stat.st_uid != geteuid().as_raw() {
        let (path, uid) = (path.to_owned(), stat.st_uid);
        return Err(EnvFileError::Owner { path, uid });
    }
    if stat.st_mode & OTHERS != 0 {
        let (path, mode) = (path.to_owned(), stat.st_mode & RIGHTS);
        return Err(EnvFileError::Mode { path, mode });
    }
    let mut text = String::new();
    let read = File::from(file)
        .take(FILE_MAX + 1)
        .read_to_string(&mut text);
    read.map_err(unreadable)?;
    if text.len() as u64 > FILE_MAX {
        return Err(EnvFileError::TooLarge(path.to_owned()));
    }
    parse(path, &text)
}

fn parse(path: &str, text: &str) -> Result<Vec<(String, String)>, EnvFileError> {
    let mut variables = Vec::new();
    for (number, line) in (1..).zip(text.lines()) {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let variable = variable(line).ok_or_else(|| EnvFileError::Line {
            path: path.to_owned(),
            line: number,
        })?;
        variables.push(variable);
    }
    Ok(variables)
}

fn variable(line: &str) -> Option<(String, String)> {
    let (name, value) = line.split_once('=')?;
    let is_inner = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let is_name = name.starts_with(|c: char| is_inner(c) && !c.is_ascii_digit());
    if !is_name || !name.chars().all(is_inner) || value.contains('\0') {
        return None;
    }
    let quoted = |quote| value.strip_prefix(quote)?.strip_suffix(quote);
    let value = quoted('"').or_else(|| quoted('\'')).unwrap_or(value);
    Some((name.to_owned(), value.to_owned()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use super::*;

    #[test]
    fn variables_are_read_as_they_stand() {
        let text = "# token\n\nTOKEN=a=b c \n  QUOTED=\"x y\"\nSINGLE='$x'\nEMPTY=\nHALF=\"\n";
        let read = parse("f", text).unwrap();
        let expected = [
            ("TOKEN", "a=b c"),
            ("QUOTED", "x y"),
            ("SINGLE", "$x"),
            ("EMPTY", ""),
            ("HALF", "\""),
        ];
        let expected = expected.map(|(name, value)| (name.to_owned(), value.to_owned()));
        assert_eq!(read, expected);
        for broken in [
            "secret",
            "A B=secret",
            "=secret",
            "1A=secret",
            "export A=secret",
        ] {
            let why = parse("f", &format!("A=1\n{broken}")).unwrap_err();
            assert_eq!(why.to_string(), "line 2 of `f` is not `NAME=value`");
        }
    }

    #[test]
    fn a_file_that_others_may_read_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("env");
        std::fs::write(&path, "A=1\n").unwrap();
        let path = path.to_str().unwrap();
        let mode = |mode| {
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
            read(path).map_err(|why| why.to_string())
        };
        assert_eq!(mode(0o600).unwrap().len(), 1);
        let refused = format!("others may use `{path}` (mode 0640); run `chmod 0600 {path}`");
        assert_eq!(mode(0o640).unwrap_err(), refused);
        mode(0o600).unwrap();
        let link = folder.path().join("link");
        symlink(path, &link).unwrap();
        assert!(matches!(
            read(link.to_str().unwrap()),
            Err(EnvFileError::Unreadable { .. })
        ));
        let folder = folder.path().to_str().unwrap();
        assert!(matches!(read(folder), Err(EnvFileError::NotAFile(_))));
    }
}
