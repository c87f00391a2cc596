//! `anklume sync`: the files that Ansible reads.

mod yaml;

use std::path::PathBuf;

use crate::harness::have;

/// A program of the Python environment that `tests/setup.sh` makes; see [`have`].
#[track_caller]
fn python(program: &str) -> Option<PathBuf> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("target/python/bin")
        .join(program);
    have(&format!("target/python/bin/{program}"), path.is_file()).then_some(path)
}
