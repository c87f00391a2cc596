//! The resource that each tool uses, and the limits on a process that runs a resource's tools.

use std::env;
use std::fs::{DirBuilder, File};
use std::io::Read as _;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use super::gpg::launcher::GPGCONF;
use super::{Settings, file, gpg, notify, ssh};
use crate::confinement::{AllowedCalls, PathRights, ProcessLimits, Rule};
use crate::name::{ServiceTool, ToolName};

/// The resource that a tool uses.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, ValueEnum,
)]
#[serde(rename_all = "kebab-case")]
pub enum Resource {
    /// Files below the portal.
    Portal,
    /// The keys of the server's user, through gpg and its agent.
    Keys,
    /// That user's SSH keys, in agents and files.
    SshKeys,
    /// The clipboard of that user's display, or the clipboard file.
    Clipboard,
    /// The session of that user, or the file of messages.
    Session,
    /// The machine's own programs, which the launcher runs.
    Programs,
}

/// Files that a dynamically linked program reads to find its libraries, users and language.
const SYSTEM: [&str; 20] = [
    "/bin",
    "/lib",
    "/lib32",
    "/lib64",
    "/sbin",
    "/usr",
    "/etc/alternatives",
    "/etc/gcrypt",
    "/etc/gnupg",
    "/etc/group",
    "/etc/ld.so.cache",
    "/etc/ld.so.conf",
    "/etc/ld.so.conf.d",
    "/etc/locale.alias",
    "/etc/localtime",
    "/etc/nsswitch.conf",
    "/etc/passwd",
    "/proc/cpuinfo",
    "/proc/sys/crypto",
    "/dev/urandom",
];
/// Folders containing programs that a script may run.
const PROGRAMS: [&str; 6] = ["/bin", "/lib", "/lib64", "/sbin", "/usr", "/opt"];
/// Files that a program reads to find a display on another machine.
const NAMES: [&str; 4] = [
    "/etc/hosts",
    "/etc/resolv.conf",
    "/etc/nsswitch.conf",
    "/etc/host.conf",
];
/// Entries in the key folder that may be links leading out of it.
const LINKED: [&str; 6] = [
    "common.conf",
    "gpg.conf",
    "public-keys.d",
    "pubring.gpg",
    "pubring.kbx",
    "trustdb.gpg",
];
const NULL: &str = "/dev/null";
/// Limits for a process that uses neither files nor programs.
pub(crate) const NOTHING: ProcessLimits = ProcessLimits {
    calls: AllowedCalls::Worker { files: false },
    files: Some(Vec::new()),
    network: false,
};

impl Resource {
    /// Returns the resource that a tool uses.
    #[must_use]
    pub const fn of(tool: &ServiceTool) -> Self {
        let tool = match tool {
            ServiceTool::BuiltIn(tool) => tool,
            ServiceTool::Own(_) | ServiceTool::Upstream(..) => return Self::Programs,
        };
        match tool {
            ToolName::GpgSign => Self::Keys,
            ToolName::SshSign => Self::SshKeys,
            ToolName::ClipboardGet | ToolName::ClipboardSet => Self::Clipboard,
            ToolName::FileAccept | ToolName::FileProvide => Self::Portal,
            ToolName::Notify => Self::Session,
        }
    }

    /// Returns its name on a command line.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Portal => "portal",
            Self::Keys => "keys",
            Self::SshKeys => "ssh-keys",
            Self::Clipboard => "clipboard",
            Self::Session => "session",
            Self::Programs => "programs",
        }
    }

    /// Returns the limits on a process that runs only this resource's tools, and creates the folders that they need;
    /// `tools` are those that its caller may use.
    pub(crate) async fn limits(self, settings: &Settings, tools: &[ServiceTool]) -> ProcessLimits {
        match self {
            Self::Portal => {
                if tools.contains(&ToolName::FileAccept.into()) {
                    // The call fails for the same reason, and reports it.
                    let _ = file::make_portal(settings);
                }
                portal_limits(settings)
            }
            Self::Keys => keys(settings).await,
            Self::SshKeys => ssh_keys(settings),
            Self::Clipboard => clipboard(settings),
            Self::Session => session(settings),
            // No helper runs programs.
            Self::Programs => NOTHING,
        }
    }
}

/// Returns the limits on a process that uses files below the portal.
pub(crate) fn portal_limits(settings: &Settings) -> ProcessLimits {
    folder_limits(&settings.portal)
}

fn folder_limits(folder: &Path) -> ProcessLimits {
    ProcessLimits {
        calls: AllowedCalls::Worker { files: true },
        files: Some(vec![Rule::new(folder, PathRights::Write)]),
        network: false,
    }
}

fn clipboard(settings: &Settings) -> ProcessLimits {
    let Some(display) = &settings.display else {
        // Creates the folder if it is missing, and denies others access to it and the file.
        let _ = super::clipboard::file::read(&settings.runtime);
        return folder_limits(&settings.runtime);
    };
    let authority = env::var_os("XAUTHORITY").map(PathBuf::from);
    let home = env::var_os("HOME").map(|home| Path::new(&home).join(".Xauthority"));
    let mut rules = vec![
        Rule::new(&settings.program, PathRights::Run),
        // For what is offered.
        runtime(settings),
        Rule::new(NULL, PathRights::Write),
    ];
    let authority = authority.or(home).into_iter();
    let read = authority.chain(NAMES.map(PathBuf::from));
    rules.extend(read.map(|path| Rule::new(path, PathRights::Read)));
    ProcessLimits {
        calls: AllowedCalls::Programs,
        files: Some(rules),
        network: display.is_remote(),
    }
}

/// Returns the files that every program of the system needs.
fn system() -> Vec<Rule> {
    let mut rules: Vec<Rule> = SYSTEM.map(|path| Rule::new(path, PathRights::Read)).into();
    rules.push(Rule::new(NULL, PathRights::Write));
    rules
}

/// Makes the runtime folder if it is missing; a call that needs it reports why it cannot be made.
fn runtime(settings: &Settings) -> Rule {
    let _ = super::runtime_folder(&settings.runtime);
    Rule::new(&settings.runtime, PathRights::Write)
}

fn session(settings: &Settings) -> ProcessLimits {
    let mut rules = system();
    rules.push(runtime(settings));
    let path = search(Path::new(notify::PROGRAM));
    rules.extend(path.iter().flat_map(|path| program(path)));
    ProcessLimits {
        calls: AllowedCalls::Programs,
        files: Some(rules),
        network: false,
    }
}

async fn keys(settings: &Settings) -> ProcessLimits {
    let mut rules = system();
    let (gpg, agent) = (&settings.gpg, &settings.gpg_connect_agent);
    let programs = [gpg, agent, Path::new(GPGCONF)];
    let paths = programs.into_iter().filter_map(search);
    rules.extend(paths.flat_map(|path| program(&path)));
    let paths = gpg::key_paths(settings).await;
    if let (Some(home), false) = (paths.first(), settings.names_gnupg_home()) {
        make_private(home);
    }
    let linked = paths.first().map(|home| LINKED.map(|name| home.join(name)));
    let all = linked.into_iter().flatten().chain(paths.iter().cloned());
    // Not writable: the key folder tells the unconfined agent which programs to run.
    rules.extend(all.map(|path| Rule::new(path, PathRights::Read)));
    ProcessLimits {
        calls: AllowedCalls::Programs,
        files: Some(rules),
        network: false,
    }
}

/// Makes a folder of keys in the user's home as the program does that keeps them there: a process that started before the
/// folder existed could not read it later. Without such a home, calls report what is missing.
fn make_private(folder: &Path) {
    let _ = DirBuilder::new().mode(0o700).create(folder);
}

fn ssh_keys(settings: &Settings) -> ProcessLimits {
    let mut rules = system();
    // It says where gpg-agent's socket is.
    let gpgconf = search(Path::new(GPGCONF));
    rules.extend(gpgconf.iter().flat_map(|path| program(path)));
    if let Some(folder) = ssh::key_folder(settings) {
        make_private(&folder);
        rules.push(Rule::new(folder, PathRights::Read));
    }
    ProcessLimits {
        calls: AllowedCalls::Programs,
        files: Some(rules),
        network: false,
    }
}

/// Returns whether GnuPG is installed on this machine.
pub(crate) fn has_gnupg() -> bool {
    search(Path::new(GPGCONF)).is_some()
}

/// Returns the path of the program with this name.
fn search(name: &Path) -> Option<PathBuf> {
    if name.components().count() > 1 {
        return Some(name.to_owned());
    }
    let is_program = |path: &PathBuf| {
        let metadata = path.metadata();
        metadata.is_ok_and(|entry| entry.is_file() && entry.permissions().mode() & 0o111 != 0)
    };
    env::split_paths(&env::var_os("PATH")?)
        .map(|folder| folder.join(name))
        .find(is_program)
}

/// Returns the files needed to run a program: itself and its loader. A script may run any of the system's programs.
fn program(path: &Path) -> Vec<Rule> {
    let mut paths = vec![path.to_owned()];
    match Image::read(path) {
        Some(Image::Loaded(loader)) => paths.push(loader),
        Some(Image::Script(interpreter)) => {
            paths.push(interpreter);
            paths.extend(PROGRAMS.map(PathBuf::from));
        }
        None => {}
    }
    let rules = paths
        .into_iter()
        .map(|path| Rule::new(path, PathRights::Run));
    rules.collect()
}

/// How the kernel runs a program.
#[derive(Debug, PartialEq, Eq)]
enum Image {
    /// Through this loader (`PT_INTERP` of `elf(5)`).
    Loaded(PathBuf),
    /// Through this interpreter (`execve(2)`).
    Script(PathBuf),
}

/// Maximum number of bytes read from a program's head: the loader's name is near its beginning.
const HEAD_MAX: u64 = 64 * 1024;

impl Image {
    /// Reads a program's head; `None` if the program needs no other program, or is unreadable.
    fn read(path: &Path) -> Option<Self> {
        let mut head = Vec::new();
        let file = File::open(path).ok()?;
        file.take(HEAD_MAX).read_to_end(&mut head).ok()?;
        let Some(line) = head.strip_prefix(b"#!") else {
            return Self::loaded(&head);
        };
        let line = line.split(|byte| *byte == b'\n').next()?;
        let interpreter = str::from_utf8(line).ok()?.split_whitespace().next()?;
        Some(Self::Script(interpreter.into()))
    }

    /// Reads a 64-bit ELF file, whose segment of type 3 (`PT_INTERP`) names its loader.
    fn loaded(head: &[u8]) -> Option<Self> {
        let number = |at: usize, length: usize| {
            let bytes = head.get(at..at.checked_add(length)?)?.iter().rev();
            let value = bytes.fold(0_u64, |value, byte| (value << 8) | u64::from(*byte));
            usize::try_from(value).ok()
        };
        if !head.starts_with(b"\x7fELF\x02\x01") {
            return None;
        }
        let (segments, size, count) = (number(32, 8)?, number(54, 2)?, number(56, 2)?);
        let mut starts =
            (0..count).filter_map(|segment| segments.checked_add(segment.checked_mul(size)?));
        let loader = starts.find(|start| number(*start, 4) == Some(3))?;
        let at = number(loader.checked_add(8)?, 8)?;
        let length = number(loader.checked_add(32)?, 8)?;
        let name = head.get(at..at.checked_add(length)?)?;
        let name = str::from_utf8(name.strip_suffix(b"\0")?).ok()?;
        Some(Self::Loaded(name.into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_runs_a_program_is_read_from_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("program");
        let image = |content: &[u8]| {
            std::fs::write(&path, content).unwrap();
            Image::read(&path)
        };
        let script = Some(Image::Script("/bin/sh".into()));
        assert_eq!(image(b"#!/bin/sh\nexit\n"), script);
        assert_eq!(image(b"#! /bin/sh -e\nexit\n"), script);
        assert_eq!(image(b"#!"), None);
        assert_eq!(image(b"\x7fELF\x02\x01"), None);
        assert_eq!(
            image(&[b"\x7fELF\x02\x01".as_slice(), &[0xff; 200]].concat()),
            None
        );
        // Real files: this machine's shell has a loader, this program has none.
        let shell = Image::read(&Path::new("/bin/sh").canonicalize().unwrap());
        let Some(Image::Loaded(loader)) = shell else {
            panic!("{shell:?}");
        };
        assert!(
            loader.exists() && loader.to_string_lossy().contains("ld-"),
            "{loader:?}"
        );
        assert_eq!(Image::read(&env::current_exe().unwrap()), None);
    }
}
