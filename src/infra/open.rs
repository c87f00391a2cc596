//! An infrastructure on disk: one file, or a folder that reads as one file.
//!
//! Looks at files and their bytes alone; what they say is no matter of this room. Nothing that is not a regular file
//! is opened, nothing blocks, nothing larger than [`FILE_MAX`] is read.

use std::ffi::OsStr;
use std::fs;
use std::io::{self, Read as _};
use std::os::unix::fs::{FileTypeExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::OFlags;

use super::FILE_MAX;
use super::findings::Code;
use crate::diagnostic::{Diagnostic, Faults, Place, Severity, Source, quote};

/// Files tried when no path is given, in this order.
const DEFAULT_FILE: &str = "infra.yml";
const DEFAULT_FOLDER: &str = "infra";
/// The project's name when the folder's has no letter or digit.
const DEFAULT_PROJECT: &str = "anklume";
/// Maximum length of a name of a project that comes from a folder, in bytes.
const PROJECT_MAX: usize = 63;

/// The sections that a file may declare.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FileRole {
    /// Everything: `infra.yml`, or `base.yml` of a folder.
    Base,
    /// Domains by name: `domains/*.yml`.
    Domains,
    /// `network_policies` alone: `policies.yml`.
    Policies,
}

/// A file that was read, and what it may declare.
#[derive(Debug)]
pub(super) struct InfraFile {
    /// Its path and text.
    pub(super) source: Arc<Source>,
    /// The sections it may declare.
    pub(super) role: FileRole,
}

impl InfraFile {
    /// A file that declares everything.
    pub(super) fn whole(path: &str, text: &str) -> Self {
        Self::new(path, text, FileRole::Base)
    }

    fn new(path: &str, text: &str, role: FileRole) -> Self {
        let source = Source {
            path: path.to_owned(),
            text: text.to_owned(),
        };
        Self {
            source: Arc::new(source),
            role,
        }
    }
}

/// The files of an infrastructure.
#[derive(Debug)]
pub(super) struct Opened {
    /// `infra.yml` alone, or `base.yml` and then the others.
    pub(super) files: Vec<InfraFile>,
    /// The folder that holds the file or the folder.
    pub(super) folder: PathBuf,
    /// The name of the project where the file gives none.
    pub(super) project: String,
}

/// Reads the files of an infrastructure, or says why not.
pub(super) fn open(path: Option<&Path>) -> Result<Opened, Faults> {
    let path = match path {
        Some(path) => path.to_owned(),
        None => default_path(Path::new("")).map_err(one)?,
    };
    let metadata = fs::metadata(&path).map_err(|why| one(unreadable(&path, &why)))?;
    let files = if metadata.is_dir() {
        open_folder(&path)?
    } else {
        vec![read(&path, FileRole::Base, Symlinks::Followed).map_err(one)?]
    };
    let folder = match path.parent() {
        Some(parent) if path.file_name().is_some() => parent.to_owned(),
        // `..`, `.` or `/`: the folder around it has no name in the path.
        _ => path.join(".."),
    };
    let project = project_name(&folder);
    Ok(Opened {
        files,
        folder,
        project,
    })
}

/// Files read in a folder when no path is given.
pub(super) fn default_path(folder: &Path) -> Result<PathBuf, Diagnostic> {
    let file = folder.join(DEFAULT_FILE);
    let folder = folder.join(DEFAULT_FOLDER);
    match (fs::symlink_metadata(&file).is_ok(), folder.is_dir()) {
        (true, false) => Ok(file),
        (false, true) => Ok(folder),
        (true, true) => Err(fault(
            Code::BothPresent,
            "there is an `infra.yml` and an `infra` folder here",
            "keep one of them, or name one with `--infra`",
        )),
        (false, false) => Err(fault(
            Code::NotFound,
            "there is no `infra.yml` and no `infra` folder here",
            "write one (`infra.example.yml` shows every key), or name it with `--infra`",
        )),
    }
}

/// A folder's name made a label: what a project is called whose file does not name it.
pub(super) fn project_name(folder: &Path) -> String {
    let folder = if folder.as_os_str().is_empty() {
        Path::new(".")
    } else {
        folder
    };
    let whole = fs::canonicalize(folder).unwrap_or_else(|_| folder.to_owned());
    let name = whole.file_name().unwrap_or_default().to_string_lossy();
    let label: String = name
        .to_lowercase()
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() { c } else { '-' })
        .take(PROJECT_MAX)
        .collect();
    match label.trim_matches('-') {
        "" => DEFAULT_PROJECT.to_owned(),
        label => label.to_owned(),
    }
}

/// Reads `base.yml`, `policies.yml` and `domains/*.yml`; whatever else is there is a fault.
fn open_folder(folder: &Path) -> Result<Vec<InfraFile>, Faults> {
    let mut faults = Vec::new();
    let mut files = Vec::new();
    let mut take = |path: &Path, role| match read(path, role, Symlinks::Refused) {
        Ok(file) => files.push(file),
        Err(fault) => faults.push(fault),
    };
    let mut strays = Vec::new();
    let mut base = false;
    let mut domains = false;
    let entries = sorted(folder).map_err(one)?;
    for path in &entries {
        match path.file_name().and_then(OsStr::to_str) {
            Some("base.yml") => {
                base = true;
                take(path, FileRole::Base);
            }
            Some("domains") => domains = true,
            Some("policies.yml") => {}
            _ => strays.extend(stray(path, "base.yml, domains/ and policies.yml")),
        }
    }
    if domains {
        match domain_files(&folder.join("domains")) {
            Ok((paths, odd)) => {
                strays.extend(odd);
                for path in &paths {
                    take(path, FileRole::Domains);
                }
            }
            Err(fault) => strays.push(fault),
        }
    }
    let policies = folder.join("policies.yml");
    if entries.contains(&policies) {
        take(&policies, FileRole::Policies);
    }
    if !base {
        let message = format!(
            "there is no `base.yml` in {}",
            quote(&folder.to_string_lossy())
        );
        let help = "write one: it holds `project_name` and `global`, and may be empty";
        faults.push(fault(Code::MissingBase, message, help));
    }
    faults.extend(strays);
    if faults.is_empty() {
        Ok(files)
    } else {
        Err(Faults(faults))
    }
}

/// The files of `domains/` in order, and what does not belong there.
fn domain_files(folder: &Path) -> Result<(Vec<PathBuf>, Vec<Diagnostic>), Diagnostic> {
    let metadata = fs::symlink_metadata(folder).map_err(|why| unreadable(folder, &why))?;
    if !metadata.is_dir() {
        return Err(not_regular(folder, metadata.file_type(), "a folder"));
    }
    let (files, others): (Vec<_>, Vec<_>) = sorted(folder)?
        .into_iter()
        .partition(|path| path.extension() == Some(OsStr::new("yml")) && !hidden(path));
    let strays = others.iter().filter_map(|path| stray(path, "*.yml"));
    Ok((files, strays.collect()))
}

fn sorted(folder: &Path) -> Result<Vec<PathBuf>, Diagnostic> {
    let mut paths = fs::read_dir(folder)
        .and_then(|entries| entries.map(|entry| entry.map(|e| e.path())).collect())
        .map_err(|why| unreadable(folder, &why))
        .map(|paths: Vec<PathBuf>| paths)?;
    paths.sort();
    Ok(paths)
}

fn hidden(path: &Path) -> bool {
    path.file_name()
        .is_some_and(|name| name.to_string_lossy().starts_with('.'))
}

/// What does not belong into the folder. Hidden files and an editor's copies are nobody's declaration.
fn stray(path: &Path, belongs: &str) -> Option<Diagnostic> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    if name.starts_with('.') || name.ends_with('~') {
        return None;
    }
    let message = format!("{} is not read", quote(&path.to_string_lossy()));
    let help = match name.strip_suffix(".yaml") {
        Some(stem) => format!("call it {}", quote(&format!("{stem}.yml"))),
        None => format!("this folder holds {belongs}: move it elsewhere"),
    };
    Some(fault(Code::StrayFile, message, help))
}

/// Whether the last component of a path may be a symbolic link.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Symlinks {
    /// A path that the user named.
    Followed,
    /// A file below a folder, which whoever may write there could point anywhere.
    Refused,
}

/// Reads one regular file of at most [`FILE_MAX`] bytes.
fn read(path: &Path, role: FileRole, symlinks: Symlinks) -> Result<InfraFile, Diagnostic> {
    let metadata = match symlinks {
        Symlinks::Followed => fs::metadata(path),
        Symlinks::Refused => fs::symlink_metadata(path),
    };
    // Before opening: opening a device may do something.
    let metadata = metadata.map_err(|why| unreadable(path, &why))?;
    if !metadata.is_file() {
        return Err(not_regular(path, metadata.file_type(), "a regular file"));
    }
    // NONBLOCK: opening a FIFO would wait for its writer.
    let mut flags = OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    if symlinks == Symlinks::Refused {
        flags |= OFlags::NOFOLLOW;
    }
    let flags = i32::try_from(flags.bits()).unwrap_or_default();
    let file = fs::OpenOptions::new()
        .read(true)
        .custom_flags(flags)
        .open(path)
        .map_err(|why| unreadable(path, &why))?;
    let metadata = file.metadata().map_err(|why| unreadable(path, &why))?;
    if !metadata.is_file() {
        return Err(not_regular(path, metadata.file_type(), "a regular file"));
    }
    if metadata.len() > FILE_MAX {
        return Err(too_large(path));
    }
    let mut bytes = Vec::new();
    file.take(FILE_MAX + 1)
        .read_to_end(&mut bytes)
        .map_err(|why| unreadable(path, &why))?;
    if bytes.len() as u64 > FILE_MAX {
        return Err(too_large(path));
    }
    decode(&path.to_string_lossy(), bytes, role)
}

fn decode(path: &str, bytes: Vec<u8>, role: FileRole) -> Result<InfraFile, Diagnostic> {
    let wrong = match String::from_utf8(bytes) {
        Ok(text) => return Ok(InfraFile::new(path, &text, role)),
        Err(wrong) => wrong,
    };
    let at = wrong.utf8_error().valid_up_to();
    let byte = wrong.as_bytes().get(at).copied().unwrap_or_default();
    let text = String::from_utf8_lossy(wrong.as_bytes()).into_owned();
    let before = text.get(..at).unwrap_or_default();
    let line = before.matches('\n').count() + 1;
    let column = before
        .rsplit('\n')
        .next()
        .unwrap_or_default()
        .chars()
        .count()
        + 1;
    let message = format!("byte 0x{byte:02x} is not UTF-8");
    let mut found = fault(Code::NotUtf8, message, "save the file as UTF-8");
    found.place = Some(Place {
        source: Arc::new(Source {
            path: path.to_owned(),
            text,
        }),
        line,
        column,
        bytes: at..at + char::REPLACEMENT_CHARACTER.len_utf8(),
    });
    Err(found)
}

/// The text of bytes, as [`read`] takes it from a file.
#[cfg(test)]
pub(super) fn decode_for_tests(bytes: &[u8]) -> Result<String, Diagnostic> {
    let file = decode("infra.yml", bytes.to_owned(), FileRole::Base)?;
    Ok(file.source.text.clone())
}

fn too_large(path: &Path) -> Diagnostic {
    let mebibytes = FILE_MAX / (1024 * 1024);
    let message = format!(
        "{} is larger than {mebibytes} MiB",
        quote(&path.to_string_lossy())
    );
    fault(
        Code::TooLarge,
        message,
        "10,000 machines need about 4 MiB: is it the right file?",
    )
}

fn not_regular(path: &Path, kind: fs::FileType, expected: &str) -> Diagnostic {
    let (code, is) = if kind.is_symlink() {
        (Code::Symlink, "a symbolic link")
    } else if kind.is_dir() {
        (Code::NotAFile, "a folder")
    } else if kind.is_fifo() {
        (Code::NotAFile, "a FIFO")
    } else if kind.is_socket() {
        (Code::NotAFile, "a socket")
    } else if kind.is_file() {
        (Code::NotAFile, "a file")
    } else {
        (Code::NotAFile, "a device")
    };
    let message = format!("{} is {is}", quote(&path.to_string_lossy()));
    fault(
        code,
        message,
        format!("{expected} is read here, and nothing else"),
    )
}

fn unreadable(path: &Path, why: &io::Error) -> Diagnostic {
    let path = quote(&path.to_string_lossy());
    if why.kind() == io::ErrorKind::NotFound {
        return fault(
            Code::NotFound,
            format!("there is no {path}"),
            "check the path",
        );
    }
    let message = format!("{path} cannot be read: {why}");
    fault(Code::Unreadable, message, "check who may read it")
}

fn fault(code: Code, message: impl Into<String>, help: impl Into<String>) -> Diagnostic {
    Diagnostic {
        severity: Severity::Error,
        code: code.as_str(),
        message: message.into(),
        place: None,
        help: Some(help.into()),
    }
}

fn one(fault: Diagnostic) -> Faults {
    Faults(vec![fault])
}
