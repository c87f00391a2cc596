//! The yardsticks: plain files, and Python with its MCP SDK and PyYAML.

use std::path::{Path, PathBuf};
use std::process::Command;

/// The peer's scripts, and the Python installation that has their packages.
pub(crate) struct Python {
    program: PathBuf,
}

const HERE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/bench");

impl Python {
    /// Returns the Python that tests/setup.sh installed; if it is missing, prints a line that says so.
    pub(crate) fn find() -> Option<Self> {
        let program = PathBuf::from(concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/target/python/bin/python"
        ));
        let works = Command::new(&program)
            .args(["-c", "import mcp, yaml"])
            .status()
            .is_ok_and(|status| status.success());
        if !works {
            eprintln!("no Python SDK to compare with: tests/setup.sh installs it");
        }
        works.then_some(Self { program })
    }

    /// A client that starts a server, lists its tools, and exits.
    pub(crate) fn client(&self, folder: &Path) -> Command {
        self.script("peer_client.py", folder)
    }

    /// A server with the tools.
    pub(crate) fn server(&self, folder: &Path) -> Command {
        self.script("peer_server.py", folder)
    }

    /// Only reads a declaration.
    pub(crate) fn reader(&self, infra: &Path) -> Command {
        let mut command = self.script("peer_yaml.py", infra.parent().unwrap_or(infra));
        command.arg(infra);
        command
    }

    /// Reads a declaration and writes a file for each machine.
    pub(crate) fn writer(&self, infra: &Path, to: &Path) -> Command {
        let mut command = self.reader(infra);
        command.arg(to);
        command
    }

    fn script(&self, name: &str, folder: &Path) -> Command {
        let mut command = crate::clean(self.program.clone(), folder);
        command.arg(Path::new(HERE).join(name));
        command
    }
}

/// Paths and contents of all files under a folder.
pub(crate) fn files_below(folder: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut files = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(at) = folders.pop() {
        for entry in std::fs::read_dir(&at).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                files.push((
                    path.strip_prefix(folder).unwrap().to_owned(),
                    std::fs::read(&path).unwrap(),
                ));
            }
        }
    }
    files
}

/// Writes files in the simplest way: no check, no temporary file, no rename.
pub(crate) fn write_files(files: &[(PathBuf, Vec<u8>)], to: &Path) {
    for (path, content) in files {
        let path = to.join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content).unwrap();
    }
}
