//! Opens an infrastructure on disk: one file, or a folder that is read like one file.
//!
//! Just reads files and checks that they are UTF-8. Only regular files are opened, without blocking, and no file larger
//! than [`FILE_MAX`] is read.

use std::ffi::OsStr;
use std::fs;
use std::io::{self, Read as _};
use std::os::unix::fs::{FileTypeExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::OFlags;

use super::FILE_MAX;
use super::findings::Code;
use crate::diagnostic::{Diagnostic, Faults, Place, Severity, Source, position, quote};
use crate::dir::closest_file;
use crate::text::escaped;

/// The file and the folder, exactly one of which must exist if no path is given.
pub(crate) const DEFAULT_FILE: &str = "infra.yml";
pub(crate) const DEFAULT_FOLDER: &str = "infra";
/// The project's name if the folder's name has no letter or digit.
const DEFAULT_PROJECT: &str = "anklume";
/// Maximum length of a project name derived from a folder's name, in bytes.
const PROJECT_MAX: usize = 63;

/// The sections that a file may declare.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FileRole {
    /// Everything: `infra.yml`, or `base.yml` in a folder.
    Base,
    /// Domains, by name: `domains/*.yml`.
    Domains,
    /// Only `network_policies`: `policies.yml`.
    Policies,
}

/// A file that was read, and the sections that it may declare.
#[derive(Debug)]
pub(super) struct InfraFile {
    /// Its path and text.
    pub(super) source: Arc<Source>,
    /// The sections that it may declare.
    pub(super) role: FileRole,
}

impl InfraFile {
    /// Creates a file with this path, text and role.
    pub(super) fn new(path: &str, text: String, role: FileRole) -> Self {
        let path = path.to_owned();
        Self {
            source: Arc::new(Source { path, text }),
            role,
        }
    }
}

/// Reads an infrastructure's files: `infra.yml` alone, or `base.yml` followed by the others. Returns them with the
/// folder that contains the file or the `infra/` folder.
pub(super) fn open(path: Option<&Path>) -> Result<(Vec<InfraFile>, PathBuf), Faults> {
    let path = match path {
        Some(path) => path.to_owned(),
        None => default_path(Path::new("")).map_err(one)?,
    };
    let metadata = fs::metadata(&path).map_err(|why| one(unreadable(&path, &why)))?;
    let files = if metadata.is_dir() {
        open_folder(&path)?
    } else {
        vec![read(&path, FileRole::Base, OFlags::empty()).map_err(one)?]
    };
    let folder = match path.parent() {
        Some(parent) if path.file_name().is_some() => parent.to_owned(),
        // `..`, `.` or `/`: the path does not name the parent folder.
        _ => path.join(".."),
    };
    Ok((files, folder))
}

/// Returns the path to read in a folder if the user gives none.
pub(super) fn default_path(folder: &Path) -> Result<PathBuf, Diagnostic> {
    let file = folder.join(DEFAULT_FILE);
    let folder = folder.join(DEFAULT_FOLDER);
    match (fs::symlink_metadata(&file).is_ok(), folder.is_dir()) {
        (true, false) => Ok(file),
        (false, true) => Ok(folder),
        (true, true) => Err(fault(
            Code::BothPresent,
            "both `infra.yml` and an `infra` folder exist here",
            "keep one of them, or choose one with `--infra`",
        )),
        (false, false) => Err(fault(
            Code::NotFound,
            "neither `infra.yml` nor an `infra` folder exists here",
            "`anklume init` writes a starter `infra.yml`; if yours is elsewhere, name it with `--infra`",
        )),
    }
}

/// Converts a folder's name to a label: the default project name.
pub(crate) fn project_name(folder: &Path) -> String {
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

/// Reads `base.yml`, `domains/*.yml` and `policies.yml`; any other file is a fault.
fn open_folder(folder: &Path) -> Result<Vec<InfraFile>, Faults> {
    let mut faults = Vec::new();
    let mut files = Vec::new();
    // Inside the folder, anyone with write access could create a link to any file.
    let mut take = |path: &Path, role| match read(path, role, OFlags::NOFOLLOW) {
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
            Ok((paths, others)) => {
                strays.extend(others);
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
    let is_infra = base || domains || entries.contains(&policies);
    if !base {
        let message = format!(
            "`base.yml` is missing from {}",
            quote(&folder.to_string_lossy())
        );
        let file = folder.join(DEFAULT_FILE);
        let help = if is_infra {
            "write one: it contains `project_name` and `global`, and may be empty".to_owned()
        } else if entries.contains(&file) {
            format!(
                "name the file instead: `--infra {}`",
                escaped(&file.to_string_lossy())
            )
        } else {
            "name an `infra.yml`, or a folder with `base.yml` and `domains/*.yml`".to_owned()
        };
        faults.push(fault(Code::MissingBase, message, help));
    }
    // Nothing is known of the files in any other folder.
    if is_infra {
        faults.extend(strays);
    }
    if faults.is_empty() {
        Ok(files)
    } else {
        Err(Faults(faults))
    }
}

/// Returns the files in `domains/` in order, and a fault for each file that does not belong there.
fn domain_files(folder: &Path) -> Result<(Vec<PathBuf>, Vec<Diagnostic>), Diagnostic> {
    let metadata = fs::symlink_metadata(folder).map_err(|why| unreadable(folder, &why))?;
    if !metadata.is_dir() {
        return Err(not_regular(folder, metadata.file_type(), "a folder"));
    }
    let (files, others): (Vec<_>, Vec<_>) = sorted(folder)?
        .into_iter()
        .partition(|path| path.extension() == Some(OsStr::new("yml")) && !is_hidden(path));
    let strays = others.iter().filter_map(|path| stray(path, "*.yml"));
    Ok((files, strays.collect()))
}

fn sorted(folder: &Path) -> Result<Vec<PathBuf>, Diagnostic> {
    let entries = fs::read_dir(folder).map_err(|why| unreadable(folder, &why))?;
    let paths: io::Result<Vec<_>> = entries.map(|entry| Ok(entry?.path())).collect();
    let mut paths = paths.map_err(|why| unreadable(folder, &why))?;
    paths.sort();
    Ok(paths)
}

fn is_hidden(path: &Path) -> bool {
    path.file_name()
        .is_some_and(|name| name.to_string_lossy().starts_with('.'))
}

/// Returns a fault for a file that does not belong in the folder; ignores hidden files and editors' backup copies.
fn stray(path: &Path, belongs: &str) -> Option<Diagnostic> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    if name.starts_with('.') || name.ends_with('~') {
        return None;
    }
    let message = format!("{} is not read", quote(&path.to_string_lossy()));
    let help = match name.strip_suffix(".yaml") {
        Some(stem) => format!("rename it to {}", quote(&format!("{stem}.yml"))),
        None => format!("this folder is only for {belongs}: move the file elsewhere"),
    };
    Some(fault(Code::StrayFile, message, help))
}

/// Reads one regular file of at most [`FILE_MAX`] bytes; `nofollow` is `O_NOFOLLOW`, or empty for a path from the user.
fn read(path: &Path, role: FileRole, nofollow: OFlags) -> Result<InfraFile, Diagnostic> {
    let cannot_read = |why| unreadable(path, &why);
    let check_regular = |metadata: &fs::Metadata| {
        if metadata.is_file() {
            return Ok(());
        }
        Err(not_regular(path, metadata.file_type(), "a regular file"))
    };
    let metadata = if nofollow.is_empty() {
        fs::metadata(path)
    } else {
        fs::symlink_metadata(path)
    };
    // Checked first, because opening a device may have an effect.
    check_regular(&metadata.map_err(cannot_read)?)?;
    // Without NONBLOCK, opening a FIFO would wait for a writer.
    let flags = OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC | nofollow;
    let file = fs::OpenOptions::new()
        .read(true)
        .custom_flags(i32::try_from(flags.bits()).unwrap_or_default())
        .open(path)
        .map_err(cannot_read)?;
    let metadata = file.metadata().map_err(cannot_read)?;
    check_regular(&metadata)?;
    if metadata.len() > FILE_MAX {
        return Err(too_large(path));
    }
    let mut bytes = Vec::new();
    file.take(FILE_MAX + 1)
        .read_to_end(&mut bytes)
        .map_err(cannot_read)?;
    if bytes.len() as u64 > FILE_MAX {
        return Err(too_large(path));
    }
    decode(&path.to_string_lossy(), bytes, role)
}

fn decode(path: &str, bytes: Vec<u8>, role: FileRole) -> Result<InfraFile, Diagnostic> {
    let invalid = match String::from_utf8(bytes) {
        Ok(text) => return Ok(InfraFile::new(path, text, role)),
        Err(invalid) => invalid,
    };
    let at = invalid.utf8_error().valid_up_to();
    let byte = invalid.as_bytes().get(at).copied().unwrap_or_default();
    let text = String::from_utf8_lossy(invalid.as_bytes()).into_owned();
    let (line, column) = position(text.get(..at).unwrap_or_default());
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

/// Decodes bytes as [`read`] does.
#[cfg(test)]
pub(super) fn decode_for_tests(bytes: &[u8]) -> Result<String, Diagnostic> {
    let file = decode("infra.yml", bytes.to_owned(), FileRole::Base)?;
    Ok(file.source.text.clone())
}

fn too_large(path: &Path) -> Diagnostic {
    let path = quote(&path.to_string_lossy());
    let message = format!("{path} is larger than {} MiB", FILE_MAX / (1024 * 1024));
    let help = "10,000 machines need about 4 MiB: is this the right file?";
    fault(Code::TooLarge, message, help)
}

fn not_regular(path: &Path, kind: fs::FileType, expected: &str) -> Diagnostic {
    let mut code = Code::NotAFile;
    let is = if kind.is_symlink() {
        code = Code::Symlink;
        "a symbolic link"
    } else if kind.is_dir() {
        "a folder"
    } else if kind.is_fifo() {
        "a FIFO"
    } else if kind.is_socket() {
        "a socket"
    } else if kind.is_file() {
        "a file"
    } else {
        "a device"
    };
    let message = format!("{} is {is}", quote(&path.to_string_lossy()));
    let help = format!("this must be {expected}");
    fault(code, message, help)
}

fn unreadable(path: &Path, why: &io::Error) -> Diagnostic {
    let shown = quote(&path.to_string_lossy());
    if why.kind() == io::ErrorKind::NotFound {
        let message = format!("{shown} does not exist");
        let near = closest_file(path).map(|near| format!("did you mean `{near}`?"));
        let help = near.unwrap_or_else(|| "check the path".to_owned());
        return fault(Code::NotFound, message, help);
    }
    let message = format!("{shown} cannot be read: {why}");
    fault(Code::Unreadable, message, "check its permissions")
}

/// Reads a file in the folder of an infrastructure, if it exists.
pub(super) fn open_beside(folder: &Path, name: &str) -> Result<Option<InfraFile>, Faults> {
    let path = folder.join(name);
    match fs::symlink_metadata(&path) {
        Err(why) if why.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(why) => Err(one(unreadable(&path, &why))),
        Ok(_) => read(&path, FileRole::Base, OFlags::NOFOLLOW)
            .map(Some)
            .map_err(one),
    }
}

fn fault(code: Code, message: impl Into<String>, help: impl Into<String>) -> Diagnostic {
    let mut fault = Diagnostic::new(Severity::Error, code.as_str(), message);
    fault.help(help);
    fault
}

fn one(fault: Diagnostic) -> Faults {
    Faults(vec![fault])
}
